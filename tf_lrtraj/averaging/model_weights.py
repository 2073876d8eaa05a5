"""`ModelWeights`: converts arrays of averages to values for the variables of a Keras model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tf_lrtraj import values
from tf_lrtraj.backend import batch_norm as bn

# "copy" is excluded: there are no raw weights whose statistics could be copied.
POLICIES = tuple(policy for policy in bn.POLICIES if policy != "copy")


class ModelWeights:
    """Converts the arrays of averages to values for all variables of a model.

    Args:
        model: a built Keras model.
        policy: `"recompute"` measures batch-norm statistics on `data`; `"average"` takes them
            from the arrays.
        data: inputs, as `WeightAveraging` takes them; not needed without batch norm.
        batch_size: batch size of the recomputation.

    Attributes:
        statistics: the batch-norm layers whose statistics are set.

    Raises:
        ValueError: if the policy is unknown or data is missing.
    """

    def __init__(
        self, model: Any, policy: str = "recompute", data: Any = None, batch_size: int = 128
    ) -> None:
        self.policy = bn.check_policy(policy, allowed=POLICIES)
        if not getattr(model, "built", False):
            raise values.error("model", "a built Keras model", model)
        self.model = model
        self.statistics = bn.find_statistics(model)
        self._data = bn.check_data(data)
        self._batch_size = batch_size
        self._recompute = bn.Recompute(model)
        if self.statistics and policy == "recompute" and data is None:
            raise ValueError(
                "`batch_norm_data` must hold training inputs, as the model has batch-norm layers "
                "whose statistics are recomputed. Received: batch_norm_data=None"
            )

    def check_shapes(self, shapes: Sequence[tuple[int, ...]], policy: str | None = None) -> None:
        """Raises ValueError unless arrays of these shapes can be weights of the model."""
        whole = [tuple(v.shape) for v in bn.weights_and_statistics(self.model)]
        trainable = whole[: len(self.model.trainable_variables)]
        needed = trainable if (policy or self.policy) == "recompute" else whole
        shapes = [tuple(shape) for shape in shapes]
        if shapes not in (needed, whole):
            fit = sum(a == b for a, b in zip(shapes, needed, strict=False))
            raise ValueError(
                f"The weights must be {len(needed)} arrays of the shapes of the model's variables. "
                f"Received: {len(shapes)} arrays, of which {fit} fit."
            )

    def __call__(self, arrays: Sequence[Any], policy: str | None = None) -> tuple[list, list]:
        """Returns (trainable, non-trainable) values in the order of the model's variables.

        Args:
            arrays: arrays of trainable variables, then batch-norm means and variances in turn.
            policy: policy for this call; by default that of the object.

        Raises:
            ValueError: if the arrays do not fit.
        """
        policy = policy or self.policy
        self.check_shapes([array.shape for array in arrays], policy)
        if policy == "average" or not self.statistics:
            return bn.split_weights(self.model, arrays)
        count = len(self.model.trainable_variables)
        trainable, others = bn.split_weights(self.model, arrays[:count])
        new = self._recompute(trainable, others, self._data, batch_size=self._batch_size)
        return trainable, new
