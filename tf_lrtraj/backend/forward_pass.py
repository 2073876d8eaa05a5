"""The forward pass of a model with given weights, which does not change its variables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras


@contextlib.contextmanager
def given_weights(
    model: Any, trainable: Sequence[Any], non_trainable: Sequence[Any]
) -> Iterator[Any]:
    """Gives `model` other weights inside a block, in which no variable changes.

    Args:
        model: a built Keras model.
        trainable: values in the order of `model.trainable_variables`.
        non_trainable: values in the order of `model.non_trainable_variables`.

    Yields:
        a `keras.StatelessScope`, which holds the updated values of variables.
    """
    mapping = [
        *zip(model.trainable_variables, trainable, strict=True),
        *zip(model.non_trainable_variables, non_trainable, strict=True),
    ]
    with keras.StatelessScope(mapping) as scope:
        yield scope


def forward(
    model: Any,
    trainable: Sequence[Any],
    non_trainable: Sequence[Any],
    inputs: Any,
    training: bool,
) -> tuple[Any, list[Any]]:
    """Computes the model's outputs with the given weights, without changing its variables.

    Args:
        model, trainable, non_trainable: as in `given_weights`.
        inputs: a batch, or a nest of arrays for models with several inputs.
        training: whether batch norm uses batch statistics and dropout is on. Keras passes it to the
            layers even if the model's `call` has no such argument.

    Returns:
        (outputs, the values the non-trainable variables would have afterwards).
    """
    with given_weights(model, trainable, non_trainable) as scope:
        outputs = model(inputs, training=training)
        updated = [scope.get_current_value(variable) for variable in model.non_trainable_variables]
    return outputs, updated
