"""Arrays of averages as values for the variables of a Keras model."""

from __future__ import annotations

import os
import pathlib
import uuid
from collections.abc import Sequence
from typing import Any

import keras

from tf_lrtraj import backend
from tf_lrtraj.averaging.model_files import save_model
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.records import naming, sync, temporary_path

__all__ = ["ModelWeights", "save_weights"]

POLICIES = ("recompute", "average")


class ModelWeights:
    """Turns the arrays of averages into values for all variables of a model.

    Args:
        model: a built Keras model.
        policy: `"recompute"`: batch-norm statistics are measured on `data`; `"average"`: they
            are those among the arrays.
        data: inputs, as `WeightAveraging` takes them; may be missing without batch norm.
        batch_size: of the recomputation.

    Attributes:
        statistics: the batch-norm layers whose statistics are set.

    Raises:
        ValueError: for an unknown policy, or if data is missing.
    """

    def __init__(
        self, model: Any, policy: str = "recompute", data: Any = None, batch_size: int = 128
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(
                f"`batch_norm` must be one of {list(POLICIES)}. Received: batch_norm={policy!r}"
            )
        if not getattr(model, "built", False):
            raise ValueError(f"`model` must be a built Keras model. Received: {model!r}")
        self.model = model
        self.policy = policy
        self.statistics = bn.find_statistics(model)
        self._data = bn.check_data(data)
        self._batch_size = batch_size
        self._recompute = bn.Recompute(model)
        if self.statistics and policy == "recompute" and data is None:
            raise ValueError(
                "The model has batch-norm layers: give `batch_norm_data`, some training inputs, so "
                "that their statistics can be recomputed. Received: batch_norm_data=None"
            )

    def check_shapes(self, shapes: Sequence[tuple[int, ...]], policy: str | None = None) -> None:
        """Raises ValueError unless arrays of these shapes can be weights of the model."""
        trainable = [tuple(v.shape) for v in self.model.trainable_variables]
        whole = list(trainable)
        for entry in self.statistics:
            whole += [tuple(entry.layer.moving_mean.shape)] * 2
        needed = trainable if (policy or self.policy) == "recompute" else whole
        shapes = [tuple(shape) for shape in shapes]
        if shapes not in (needed, whole):
            fit = sum(a == b for a, b in zip(shapes, needed, strict=False))
            raise ValueError(
                f"The weights must be {len(needed)} arrays of the shapes of the model's variables. "
                f"Received: {len(shapes)} arrays, of which {fit} fit."
            )

    def __call__(self, arrays: Sequence[Any], policy: str | None = None) -> tuple[list, list]:
        """(trainable, non-trainable) values, in the order of the model's variables.

        Args:
            arrays: trainable ones, then batch-norm means and variances in turn.
            policy: another one than the object's own.

        Raises:
            ValueError: if the arrays do not fit.
        """
        policy = policy or self.policy
        self.check_shapes([array.shape for array in arrays], policy)
        variables = self.model.trainable_variables
        trainable = [
            keras.ops.cast(array, v.dtype)
            for array, v in zip(arrays[: len(variables)], variables, strict=True)
        ]
        others = backend.values(self.model.non_trainable_variables)
        if not self.statistics:
            return trainable, others
        if policy == "recompute":
            new = self._recompute(trainable, others, self._data, batch_size=self._batch_size)
            return trainable, new
        given = arrays[len(variables) :]
        pairs = list(zip(given[::2], given[1::2], strict=True))
        return trainable, bn.replace(others, self.statistics, pairs)


def save_weights(model: Any, path: str | os.PathLike[str]) -> None:
    """Saves a `.keras` or `.weights.h5` file under a temporary name, then renames it."""
    target = pathlib.Path(path)
    if target.suffix == ".keras":
        save_model(model, target)
        return
    temporary = temporary_path(target.with_name(uuid.uuid4().hex), ".weights.h5")
    try:
        with naming(target):
            model.save_weights(temporary)
            sync(temporary)  # before the name stands for it
            os.replace(temporary, target)
            sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
