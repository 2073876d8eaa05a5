"""`BuiltAverage`: an average as arrays, which can be applied to a model or saved."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from tf_lrtraj import values

ENDINGS = (".keras", ".weights.h5", ".safetensors")


class BuiltAverage:
    """An average as arrays; the base class of averages built after training.

    Attributes:
        arrays: one array per variable.  The trainable ones come first, in the order of
            `model.trainable_variables`; then the batch-norm means and variances in turn, averaged
            with the same weights.  The statistics may be missing if they are recomputed or the
            model has none.
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
        """Replaces the weights of `model` by the average.  The old weights are lost.

        All checks and the recomputation of batch-norm statistics come before the first weight
        changes.

        Args:
            model: a built Keras model of the same architecture.
            batch_norm: `"recompute"` computes batch-norm statistics from `batch_norm_data`;
                `"average"` uses the statistics that were averaged with the weights.
            batch_norm_data: training inputs, as `WeightAveraging` takes them; needed if the model
                has batch-norm layers and their statistics are recomputed.
            batch_size: batch size of the recomputation.

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
        """Writes the average to a file, whole or not at all.  `model` does not change.

        Args:
            path: path of the file.  It ends in `.keras` for the whole model, or in `.weights.h5`
                or `.safetensors` for its weights (the latter named by the variables' paths).
            model, batch_norm, batch_norm_data, batch_size: as in `apply`.

        Raises:
            ValueError: as `apply`, or if `path` has another ending.
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
    """Returns `path` if a model or its weights can be saved there; raises ValueError otherwise."""
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).endswith(ENDINGS):
        raise values.error(
            "path", f"a path that ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}", path
        )
    target = pathlib.Path(path)
    if not target.parent.is_dir():
        raise values.error("path", "a path in an existing folder", os.fspath(path))
    return target
