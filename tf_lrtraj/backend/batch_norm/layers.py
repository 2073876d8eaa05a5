"""Finds the running statistics of a model and replaces their values."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from tf_lrtraj import backend, values
from tf_lrtraj.backend.layer_calls import layers_of
from tf_lrtraj.records import BATCH_NORM_POLICIES as POLICIES


def check_policy(policy: str, name: str = "batch_norm", allowed: Sequence[str] = POLICIES) -> str:
    """Returns `policy`, or raises ValueError if it is not among the allowed ones."""
    return values.one_of(allowed).check(name, policy)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """The positions of one batch-norm layer's running statistics.

    `mean`, `variance` and `stddev` are positions in `model.non_trainable_variables`; `stddev` is
    None except for batch renormalisation, which also keeps √(variance + epsilon).
    """

    layer: Any
    mean: int
    variance: int
    stddev: int | None = None

    @property
    def places(self) -> list[int]:
        """All positions."""
        places = [self.mean, self.variance]
        return places if self.stddev is None else [*places, self.stddev]


def find_statistics(model: Any, *, frozen: bool = False) -> list[Statistics]:
    """Returns the batch-norm layers of a model, including nested ones.

    Args:
        model: a built Keras model.
        frozen: whether to include layers with `trainable=False`, which always normalise by their
            stored statistics.
    """
    positions = {id(v): i for i, v in enumerate(model.non_trainable_variables)}
    found = []
    for layer in layers_of(model):
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        # A layer that the model never calls has no variables.
        if layer.built and (layer.trainable or frozen):
            stddev = getattr(layer, "moving_stddev", None)
            found.append(
                Statistics(
                    layer,
                    positions[id(layer.moving_mean)],
                    positions[id(layer.moving_variance)],
                    None if stddev is None else positions[id(stddev)],
                )
            )
    return found


# Variables of an average: trainable weights, then statistics ----------------------------------


def statistics_variables(model: Any) -> list[Any]:
    """Returns the mean and variance variables of each trainable batch-norm layer in turn."""
    return [
        variable
        for entry in find_statistics(model)
        for variable in (entry.layer.moving_mean, entry.layer.moving_variance)
    ]


def weights_and_statistics(model: Any) -> list[Any]:
    """Returns the variables that snapshots and averages hold, in their order.

    These are the trainable ones in the order of `model.trainable_variables`, then
    `statistics_variables(model)`.  `split_weights` is the inverse.
    """
    return [*model.trainable_variables, *statistics_variables(model)]


def split_weights(model: Any, arrays: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Returns the (trainable, non-trainable) values of a model, in the order of its variables.

    Args:
        model: a built Keras model.
        arrays: one for each of `weights_and_statistics(model)`, or for the trainable variables
            alone; every other value is the model's own.
    """
    count = len(model.trainable_variables)
    trainable = [
        ops.cast(array, variable.dtype)
        for array, variable in zip(arrays[:count], model.trainable_variables, strict=True)
    ]
    others = backend.values(model.non_trainable_variables)
    if len(arrays) > count:
        others = replace(others, find_statistics(model), pairs(arrays[count:]))
    return trainable, others


def join_weights(model: Any, trainable: Sequence[Any], non_trainable: Sequence[Any]) -> list[Any]:
    """Values of `weights_and_statistics(model)`, out of all of a model; undoes `split_weights`."""
    places = [i for entry in find_statistics(model) for i in (entry.mean, entry.variance)]
    return [*trainable, *(non_trainable[i] for i in places)]


def pairs(statistics: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Returns (mean, variance) of each layer, for values that hold them in turn."""
    return list(zip(statistics[::2], statistics[1::2], strict=True))


def replace(
    non_trainable: Sequence[Any],
    statistics: Sequence[Statistics],
    moments: Sequence[tuple[Any, Any] | None],
) -> list[Any]:
    """Returns the non-trainable values with the given (mean, variance) of each layer.

    A layer whose entry is None keeps its own.
    """
    replaced = list(non_trainable)
    for entry, pair in zip(statistics, moments, strict=True):
        if pair is None:
            continue
        layer, (mean, variance) = entry.layer, pair
        replaced[entry.mean] = ops.cast(mean, layer.moving_mean.dtype)
        replaced[entry.variance] = ops.cast(variance, layer.moving_variance.dtype)
        if entry.stddev is not None:
            deviation = ops.sqrt(replaced[entry.variance] + layer.epsilon)
            replaced[entry.stddev] = ops.cast(deviation, layer.moving_stddev.dtype)
    return replaced


# Other layers with running statistics ---------------------------------------------------------


def other_statistics(model: Any) -> list[tuple[Any, Any]]:
    """Returns (layer, variable) for possible running statistics of layers other than batch norm.

    They are the floating-point variables of trainable layers that gradients do not train:
    statistics of other kinds of normalisation, code books, the state of a `JaxLayer`.  The states
    of recurrent layers are left out, because they belong to the current sequence.
    """
    owners: dict[int, Any] = {}
    states: set[int] = set()
    for layer in (model, *layers_of(model)):
        for variable in layer.non_trainable_variables:
            owners[id(variable)] = layer  # the innermost comes last
        if getattr(layer, "stateful", False):
            states |= {id(state) for state in keras.tree.flatten(getattr(layer, "states", None))}
    found = []
    for variable in model.non_trainable_variables:
        layer = owners.get(id(variable), model)
        if (
            layer.trainable
            and not isinstance(layer, keras.layers.BatchNormalization)
            and keras.backend.is_float_dtype(variable.dtype)
            and id(variable) not in states
        ):
            found.append((layer, variable))
    return found


def averaged_variables(model: Any) -> list[Any]:
    """Returns the running statistics that the policy "average" averages with the weights.

    They are `statistics_variables(model)`, then those of other layers (`other_statistics`).
    """
    return [*statistics_variables(model), *(variable for _, variable in other_statistics(model))]


def put_averaged(model: Any, non_trainable: Sequence[Any], averages: Sequence[Any]) -> list[Any]:
    """Returns the non-trainable values with averages of `averaged_variables(model)` inserted."""
    statistics = find_statistics(model)
    count = 2 * len(statistics)
    replaced = replace(non_trainable, statistics, pairs(averages[:count]))
    positions = {id(v): i for i, v in enumerate(model.non_trainable_variables)}
    for (_, variable), average in zip(other_statistics(model), averages[count:], strict=True):
        replaced[positions[id(variable)]] = ops.cast(average, variable.dtype)
    return replaced


# What cannot be measured or averaged ----------------------------------------------------------


def torch_modules(model: Any) -> list[Any]:
    """The layers of a model that wrap a torch module."""
    wrapper = getattr(keras.layers, "TorchModuleWrapper", None)
    if keras.backend.backend() != "torch" or wrapper is None:
        return []
    return [layer for layer in layers_of(model) if isinstance(layer, wrapper)]


def check_model(model: Any, policies: Iterable[str]) -> None:
    """Checks that the policies in use can handle all running statistics of a model.

    torch modules keep theirs in buffers that are no variables of the model.

    Args:
        model: a Keras model.
        policies: those in use.

    Raises:
        ValueError: naming the layer.
    """
    wanted = sorted(set(policies) - {"copy"})
    if not wanted:
        return
    for layer in torch_modules(model):
        base = sys.modules["torch"].nn.modules.batchnorm._NormBase
        for name, module in layer.module.named_modules():
            if isinstance(module, base) and module.running_mean is not None:
                where = f"{type(module).__name__} {name!r}".replace(" ''", "")
                raise ValueError(
                    f"batch_norm={wanted[0]!r} cannot serve {where} in the layer {layer.name!r}: a "
                    "torch module keeps its running statistics out of Keras' sight. Use "
                    "keras.layers.BatchNormalization, or batch_norm='copy' for the raw weights' "
                    "statistics."
                )
