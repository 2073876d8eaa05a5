"""The weights on which weight decay acts, as `weight_decay_on` of configurations selects them."""

from __future__ import annotations

from typing import Any

from tf_lrtraj.values import one_of

__all__ = ["decayed_variables"]


def decayed_variables(model: Any, on: str = "kernels") -> list[bool]:
    """Returns for each trainable variable of a model whether weight decay acts on it.

    Args:
        model: a Keras model.
        on: "kernels", or "all" (biases, and scales and offsets of batch norm, too).

    Raises:
        ValueError: if `on` is something else.
    """
    everywhere = one_of(["kernels", "all"]).check("on", on) == "all"
    return [everywhere or variable.name == "kernel" for variable in model.trainable_variables]
