"""Batch-norm statistics for averaged weights.

The running mean and variance that training keeps belong to the raw weights.
An average of weights produces other activations, so it needs statistics of its
own (Izmailov et al. 2018, arXiv 1803.05407, section 3.2).  Three policies:

* `recompute`: run some training batches through the network with the averaged
  weights and pool the moments of each layer's inputs;
* `average`: average the running statistics with the same kernel;
* `copy`: use the raw weights' statistics as they are (shown to be wrong by
  claim S7, and kept for that comparison).

Recomputed statistics are the mean and variance of *everything* a layer is
called on, every element counted once: batches may differ in size, masked
elements do not count, and a layer that a model calls several times gets the
moments of all its calls together (that is what it stores one set of statistics
for).  They are measured at each layer's input in float32 or wider whatever the
model computes in, so neither the layer's momentum nor the dtype of its
variables plays a part.  A frozen layer (`trainable=False`) keeps its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_lrtraj import backend, layer_calls

POLICIES = ("recompute", "average", "copy")

# Number of elements per channel, mean and variance of each channel.
Moments = tuple[Any, Any, Any]


def check_policy(policy: str, name: str = "batch_norm") -> str:
    """Returns `policy` if it is known, or raises an error that lists the known ones."""
    if not isinstance(policy, str) or policy not in POLICIES:
        raise ValueError(f"`{name}` must be one of {list(POLICIES)}. Received: {name}={policy!r}")
    return policy


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Where one batch-norm layer keeps its running statistics.

    `mean`, `variance` and `stddev` are positions in `model.non_trainable_variables`;
    `stddev` is None but for batch renormalisation, which keeps √(variance + epsilon) too.
    """

    layer: Any
    mean: int
    variance: int
    stddev: int | None = None


def find_statistics(model: Any, *, frozen: bool = False) -> list[Statistics]:
    """The batch-norm layers of a model, nested ones included.

    Args:
        model: a built Keras model.
        frozen: also list layers with `trainable=False`; they always normalise by
            their stored statistics, which no policy changes.
    """
    positions = {id(v): i for i, v in enumerate(model.non_trainable_variables)}
    found = []
    for layer in model._flatten_layers(include_self=False, recursive=True):
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


# Measuring ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _listening(layers: Sequence[Any]) -> Iterator[dict[int, list[Moments]]]:
    """Collects the moments of whatever the given layers are called on, in this thread."""
    heard: dict[int, list[Moments]] = {id(layer): [] for layer in layers}

    def listen(layer: Any, call: Callable[..., Any], given: inspect.BoundArguments) -> Any:
        arguments = given.arguments
        if not arguments.get("training"):  # this call uses the stored statistics
            return call(*given.args, **given.kwargs)
        inputs = next(iter(arguments.values()))
        heard[id(layer)].append(moments(inputs, layer.axis, arguments.get("mask")))
        if not getattr(layer, "renorm", False):
            return call(*given.args, **given.kwargs)
        # Batch renormalisation corrects towards statistics of the raw weights.
        layer.renorm = False
        try:
            return call(*given.args, **given.kwargs)
        finally:
            layer.renorm = True

    with layer_calls.intercepted({layer: listen for layer in layers}):
        yield heard


def moments(inputs: Any, axis: int, mask: Any) -> Moments:
    """Number of elements, mean and variance per channel, in float32 or wider."""
    # Keras' own promotion rules would make float32 of float64.
    wide = keras.backend.standardize_dtype(inputs.dtype) == "float64"
    dtype = "float64" if wide else "float32"
    inputs = ops.cast(inputs, dtype)
    axes = [i for i in range(len(inputs.shape)) if i != axis % len(inputs.shape)]
    shape = ops.shape(inputs)
    weights: Any = 1.0
    count = ops.cast(math.prod([shape[i] for i in axes]), dtype)
    if mask is not None:
        weights = ops.cast(ops.broadcast_to(ops.expand_dims(mask, -1), shape), dtype)
        count = ops.sum(weights) / ops.cast(shape[axis], dtype)
    divisor = ops.maximum(count, 1.0)  # a replica's share of a batch may be empty

    def mean_of(values: Any) -> Any:
        return ops.sum(values * weights, axis=axes, keepdims=True) / divisor

    # Differences first: a second moment minus a square would cancel.  Their mean is
    # what rounding left of the first sum.
    mean = mean_of(inputs)
    differences = inputs - mean
    rest = mean_of(differences)
    variance = mean_of(ops.square(differences)) - ops.square(rest)
    return count, ops.reshape(mean + rest, [-1]), ops.reshape(variance, [-1])


def pool(parts: Sequence[Moments]) -> Moments:
    """The moments of several sets of elements taken together (tensors or arrays)."""
    total = sum(count for count, _, _ in parts)
    shares = [count / total for count, _, _ in parts]
    mean = sum(share * mean for share, (_, mean, _) in zip(shares, parts, strict=True))
    variance = sum(
        share * (variance + (own - mean) ** 2)
        for share, (_, own, variance) in zip(shares, parts, strict=True)
    )
    return total, mean, variance


def batch_moments(
    model: Any,
    statistics: Sequence[Statistics],
    trainable: Sequence[Any],
    non_trainable: Sequence[Any],
    inputs: Any,
) -> tuple[list[Moments], list[Any]]:
    """Moments of what every batch-norm layer is called on in one batch.

    The forward pass runs as in training (each layer normalises by its batch's
    own moments) and changes nothing in the model.

    Returns:
        for each entry of `statistics` (number of elements, [channels] mean, [channels]
        variance), with 0 elements for a layer that this pass did not call in training
        mode; and the values the non-trainable variables would have afterwards.
    """
    with _listening([entry.layer for entry in statistics]) as heard:
        _, updated = backend.forward(model, trainable, non_trainable, inputs, training=True)
    pooled = []
    for entry in statistics:
        calls = heard[id(entry.layer)]
        if not calls:
            nothing = ops.zeros(entry.layer.moving_mean.shape, "float32")
            calls = [(ops.zeros((), "float32"), nothing, nothing)]
        pooled.append(calls[0] if len(calls) == 1 else pool(calls))
    return pooled, updated


def over_replicas(moments: Sequence[Moments]) -> list[Moments]:
    """The moments of all replicas' elements together; to be called on every replica.

    Replicas may hold different numbers of examples, or none.
    """
    sums = backend.sum_over_replicas([[count, count * mean] for count, mean, _ in moments])
    totals = [ops.maximum(count, 1.0) for count, _ in sums]
    means = [first / total for (_, first), total in zip(sums, totals, strict=True)]
    spread = backend.sum_over_replicas(
        [
            count * (variance + ops.square(own - mean))
            for (count, own, variance), mean in zip(moments, means, strict=True)
        ]
    )
    return [
        (count, mean, second / total)
        for (count, _), mean, second, total in zip(sums, means, spread, totals, strict=True)
    ]


class PooledMoments:
    """Pools the moments of batches in float64 on the host."""

    def __init__(self) -> None:
        self._pooled: list[Moments] = []
        self._batches = 0

    def add(self, moments: Sequence[Moments]) -> None:
        """Adds what `batch_moments` found in a batch."""
        new: list[Moments] = []
        for entry in moments:
            count, mean, variance = (np.asarray(a, np.float64) for a in backend.to_numpy(entry))
            new.append((count, mean, variance))
        if self._batches:
            new = [_pool_unless_empty(*pair) for pair in zip(self._pooled, new, strict=True)]
        self._pooled = new
        self._batches += 1

    def result(self) -> list[tuple[np.ndarray, np.ndarray] | None]:
        """(mean, variance) per layer over everything added; None for a layer never called.

        Raises:
            ValueError: if nothing was added.
        """
        if not self._batches:
            raise ValueError("Batch-norm statistics need at least one batch of data; none came.")
        return [None if count == 0 else (mean, var) for count, mean, var in self._pooled]


def _pool_unless_empty(first: Moments, second: Moments) -> Moments:
    if first[0] == 0 or second[0] == 0:
        return second if first[0] == 0 else first
    return pool([first, second])


# Recomputing ----------------------------------------------------------------------------------


class Recompute:
    """Recomputes batch-norm statistics of a model for any weights; compiled once.

    Args:
        model: a built Keras model; neither its variables nor its random streams move,
            nor do the global streams of Python, NumPy and torch.
    """

    def __init__(self, model: Any, call: Any = None) -> None:
        self._model = model
        self._statistics: list[Statistics] = []
        self._compiled: dict[bool, Any] = {}

    def __call__(
        self,
        trainable: Sequence[Any],
        non_trainable: Sequence[Any],
        data: Any,
        *,
        distributed: bool = False,
        batch_size: Any = None,
        batches: Any = None,
    ) -> list[Any]:
        """Non-trainable values with batch-norm statistics recomputed for the given weights.

        Args:
            trainable: values in the order of `model.trainable_variables`.
            non_trainable: values in the order of `model.non_trainable_variables`.
            batches: input batches (arrays without labels), of any sizes.
            distributed: the batches come from a `tf.distribute` data set.  Each replica
                measures its share, and all workers must take part.

        Returns:
            `non_trainable` with the statistics of every trainable batch-norm layer replaced.

        Raises:
            ValueError: if there is no batch.
        """
        statistics = find_statistics(self._model)
        limit, batches = batches, data
        if batch_size is not None:
            distributed = backend.is_distributed(batches)
            batches = input_batches(batches, batch_size, limit)
        if not statistics:
            return list(non_trainable)
        if statistics != self._statistics:  # layers were frozen or unfrozen
            self._statistics, self._compiled = statistics, {}
        if distributed not in self._compiled:
            self._compiled[distributed] = self._compile(distributed)
        measure = self._compiled[distributed]
        pooled = PooledMoments()
        state = list(non_trainable)
        with backend.random_streams_kept():
            for inputs in batches:
                if not distributed:
                    inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
                # Random layers go on from batch to batch, as they do in training.
                moments, state = measure(list(trainable), list(state), inputs)
                pooled.add(moments)
        return replace(non_trainable, statistics, pooled.result())

    def _compile(self, distributed: bool) -> Any:
        model, statistics = self._model, self._statistics

        def measure(trainable: Any, non_trainable: Any, inputs: Any) -> Any:
            moments, state = batch_moments(model, statistics, trainable, non_trainable, inputs)
            return over_replicas(moments) if distributed else moments, state

        if distributed:
            return backend.compiled_on_replicas(measure, model)
        return backend.compiled(measure)


def recompute(
    model: Any,
    trainable: Sequence[Any],
    non_trainable: Sequence[Any],
    batches: Iterable[Any],
) -> list[Any]:
    """What a `Recompute` of `model` returns, for a single use."""
    return Recompute(model)(trainable, non_trainable, batches)


def replace(
    non_trainable: Sequence[Any],
    statistics: Sequence[Statistics],
    moments: Sequence[tuple[Any, Any] | None],
) -> list[Any]:
    """Non-trainable values with the given (mean, variance) put into each layer's place.

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


def input_batches(data: Any, batch_size: int, limit: int | None = None) -> Iterator[Any]:
    """Batches of inputs, without labels, of what `WeightAveraging` takes as `batch_norm_data`.

    Args:
        data: an array or a dict of arrays, or a re-iterable of batches; of a tuple, here
            and in every batch, the first element is taken.
        batch_size: examples in a batch where `data` is arrays.
        limit: yield at most this many; None for all.
    """
    if isinstance(data, tuple):
        data = data[0]
    arrays = keras.tree.flatten(data) if isinstance(data, dict) else [data]
    batches: Iterable[Any] = data
    if isinstance(data, keras.utils.PyDataset):
        batches = (data[i] for i in range(len(data)))
    elif all(hasattr(array, "shape") for array in arrays):
        starts = range(0, arrays[0].shape[0], batch_size)
        batches = (
            keras.tree.map_structure(lambda array: array[i : i + batch_size], data)  # noqa: B023
            for i in starts
        )
    for batch in itertools.islice(batches, limit):
        yield batch[0] if isinstance(batch, (tuple, list)) else batch


def check_data(data: Any, name: str = "batch_norm_data", batches=None, limit="") -> Any:
    if isinstance(data, Iterator):
        raise ValueError(
            f"`{name}` is read each time an average is used, so it must be arrays or something "
            f"that can be iterated again and again. Received an iterator: {name}={data!r}"
        )
    return data


def check_model(*a):
    pass


def averaged_variables(model):
    return [
        v for e in find_statistics(model) for v in (e.layer.moving_mean, e.layer.moving_variance)
    ]
