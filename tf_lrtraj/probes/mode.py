"""The modes of batch norm and dropout while a loss is measured.

In training mode the loss of a mini-batch differs from that in evaluation mode, because batch norm
normalises by the batch's own moments and dropout is on.  The record of a probe states the mode.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.backend import layer_calls
from tf_lrtraj.values import one_of

BATCH_NORM = ("batch", "frozen", "recalibrated")
DROPOUT = ("off", "pinned")


@dataclasses.dataclass(frozen=True)
class Mode:
    """The statistics of batch norm, and whether dropout is on.

    Attributes:
        batch_norm: `"batch"`: each batch's own moments, as in training, with no state
            changed; `"frozen"`: the stored statistics that came with the weights;
            `"recalibrated"`: statistics recomputed for every point from given batches.
        dropout: `"off"`, or `"pinned"`: on, with the same masks at every point (those
            the model's seed generators would draw next).

    Raises:
        ValueError: for anything else.
    """

    batch_norm: str = "batch"
    dropout: str = "off"

    def __post_init__(self) -> None:
        one_of(BATCH_NORM).check("batch_norm", self.batch_norm)
        one_of(DROPOUT).check("dropout", self.dropout)

    def about(self, model: Any) -> dict[str, str]:
        """Returns the description of the mode for a record; "none" if the model has no such
        layers."""
        has_norm = bool(bn.find_statistics(model, frozen=True))
        has_random = bool(random_layers(model))
        return {
            "batch_norm": self.batch_norm if has_norm else "none",
            "dropout": self.dropout if has_random else "none",
        }


def random_layers(model: Any) -> list[Any]:
    """Returns the layers that draw random numbers in training: dropout, noise, augmentation."""
    layers = model._flatten_layers(include_self=False, recursive=True)
    return [layer for layer in layers if getattr(layer, "seed_generator", None) is not None]


def as_in(
    model: Any, mode: Mode, *, exact_moments: bool = False
) -> contextlib.AbstractContextManager[None]:
    """Makes `model`, called with `training=True`, follow `mode` inside a block.

    Args:
        model: a built Keras model.
        mode: the modes of batch norm and dropout.
        exact_moments: whether batch norm computes the batch's moments in a form that can be
            differentiated twice.  Keras' own, on TensorFlow, stops the gradient inside the
            variance: first derivatives are right, second ones are not.
    """
    handlers: dict[Any, layer_calls.Handler] = {}
    if mode.dropout == "off":
        handlers |= {layer: _not_training for layer in random_layers(model)}
    elif backend.name() == "torch":
        handlers |= {layer: _pinned_on_torch for layer in random_layers(model)}
    for entry in bn.find_statistics(model, frozen=True):
        if mode.batch_norm != "batch":
            handlers[entry.layer] = _not_training
        elif exact_moments:
            handlers[entry.layer] = _normalised_exactly
    return layer_calls.intercepted(handlers)


def _not_training(layer: Any, call: Callable[..., Any], given: inspect.BoundArguments) -> Any:
    if "training" in given.signature.parameters:
        given.arguments["training"] = False
    return call(*given.args, **given.kwargs)


def _pinned_on_torch(layer: Any, call: Callable[..., Any], given: inspect.BoundArguments) -> Any:
    # Layers without a seed draw from torch's global stream there, for any state of their
    # generators, and advance it.
    import torch

    first, second = (int(number) for number in layer.seed_generator.state.value)
    with torch.random.fork_rng():
        torch.manual_seed((first * 1_000_003 + second) % 2**62)
        return call(*given.args, **given.kwargs)


def _normalised_exactly(layer: Any, call: Callable[..., Any], given: inspect.BoundArguments) -> Any:
    arguments = given.arguments
    if not (arguments.get("training") and layer.trainable):
        return call(*given.args, **given.kwargs)
    inputs = next(iter(arguments.values()))
    _, mean, variance = bn.moments(inputs, layer.axis, arguments.get("mask"))
    shape = [1] * len(inputs.shape)
    shape[layer.axis] = inputs.shape[layer.axis]

    def wide(array: Any) -> Any:
        return ops.reshape(ops.cast(array, mean.dtype), shape)

    outputs = (ops.cast(inputs, mean.dtype) - wide(mean)) * ops.rsqrt(
        wide(variance) + layer.epsilon
    )
    if layer.scale:
        outputs = outputs * wide(layer.gamma)
    if layer.center:
        outputs = outputs + wide(layer.beta)
    return ops.cast(outputs, keras.backend.standardize_dtype(inputs.dtype))
