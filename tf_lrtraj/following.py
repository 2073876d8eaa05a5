"""What any callback must know of the model that it follows through `fit`."""

from __future__ import annotations

from typing import Any


def check_trainable(model: Any, callback: Any) -> None:
    """Raises ValueError for a model that `callback` cannot follow step by step.

    That is one without weights, or one that calls callbacks once in several steps.
    """
    name = type(callback).__name__
    if getattr(model, "steps_per_execution", 1) != 1:
        raise ValueError(
            f"{name} must see every step, but Keras calls callbacks once in "
            f"steps_per_execution={model.steps_per_execution} steps. Compile the model with "
            "steps_per_execution=1."
        )
    check_built(model, name)


def check_built(model: Any, name: str) -> None:
    """Raises ValueError for a model without weights, which `name` cannot train with."""
    if not (model.built and model.weights):
        raise ValueError(
            f"The model has no weights yet: build it before training with {name}, by an "
            "Input or by calling it on a batch."
        )
