"""`BuiltAverage`: the arrays of an average, put into a Keras model or saved as one."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from tf_lrtraj import values

ENDINGS = (".keras", ".weights.h5", ".safetensors")


class BuiltAverage:
    """An average as arrays; what all averages built afterwards have in common.

    Attributes:
        arrays: one per variable: the trainable ones in the order of `model.trainable_variables`,
            then the batch-norm means and variances in turn, averaged with the same weights.
            Without batch norm, or where its statistics are recomputed, the latter may be missing.
    """

    arrays: list[np.ndarray]

    def apply(
        self,
        model: Any,
        *,
        batch_norm: str = "recompute",
        batch_norm_data: Any = None,
        batch_size: int = 128,
    ) -> None:
        """Gives `model` the average in place of its weights, which are lost.

        Everything is checked, and batch-norm statistics are recomputed, before a weight changes.

        Args:
            model: a built Keras model of the same architecture.
            batch_norm: `"recompute"` from `batch_norm_data`, or `"average"`: the statistics that
                were averaged with the weights.
            batch_norm_data: training inputs, as `WeightAveraging` takes them; needed if the model
                has batch-norm layers and their statistics are recomputed.
            batch_size: of the recomputation.

        Raises:
            ValueError: if the arrays do not fit the model, or data is missing.
            RuntimeError: if the model holds a borrowed average.
        """
        from tf_lrtraj import backend
        from tf_lrtraj.averaging.borrowing import refuse_lent
        from tf_lrtraj.averaging.model_weights import ModelWeights

        convert = ModelWeights(model, batch_norm, batch_norm_data, batch_size)
        trainable, others = convert(self.arrays)
        refuse_lent(model, "no average can be applied to it")
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        backend.assign(variables, [*trainable, *others])

    def save(
        self,
        path: str | os.PathLike[str],
        model: Any,
        *,
        batch_norm: str = "recompute",
        batch_norm_data: Any = None,
        batch_size: int = 128,
    ) -> None:
        """Writes a file that holds the average, whole or not at all; `model` stays as it is.

        Args:
            path: ends in `.keras` (the model with the average), or in `.weights.h5` or
                `.safetensors` (its weights; the latter by the variables' paths).
            model, batch_norm, batch_norm_data, batch_size: as in `apply`.

        Raises:
            ValueError: as `apply`, or for another ending.
            OSError: if the file cannot be written.
        """
        from tf_lrtraj.averaging.borrowing import borrow
        from tf_lrtraj.averaging.model_files import save_weights
        from tf_lrtraj.averaging.model_weights import ModelWeights

        target = check_file(path)
        convert = ModelWeights(model, batch_norm, batch_norm_data, batch_size)
        with borrow(model, *convert(self.arrays), "an average that is being saved"):
            save_weights(model, target)


def check_file(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns `path` if a model or its weights can be saved under that name.

    Raises:
        ValueError: otherwise.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).endswith(ENDINGS):
        raise values.error(
            "path", f"a path that ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}", path
        )
    target = pathlib.Path(path)
    if not target.parent.is_dir():
        raise values.error("path", "in a folder that exists", os.fspath(path))
    return target
