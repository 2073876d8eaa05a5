"""Moments of sets of elements, and the pooled moments of several sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_lrtraj import backend

# Number of elements per channel, mean and variance of each channel.
Moments = tuple[Any, Any, Any]


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
    divisor = ops.maximum(count, 1.0)  # a replica's part of a batch may be empty

    def mean_of(values: Any) -> Any:
        return ops.sum(values * weights, axis=axes, keepdims=True) / divisor

    # Differences from the mean first: a second moment minus a square would cancel. Their mean is
    # what rounding left of the first sum.
    mean = mean_of(inputs)
    differences = inputs - mean
    rest = mean_of(differences)
    variance = mean_of(ops.square(differences)) - ops.square(rest)
    return count, ops.reshape(mean + rest, [-1]), ops.reshape(variance, [-1])


def pool(parts: Sequence[Moments]) -> Moments:
    """Returns the pooled moments of several sets of elements (tensors or arrays)."""
    total = sum(count for count, _, _ in parts)
    shares = [count / total for count, _, _ in parts]
    mean = sum(share * mean for share, (_, mean, _) in zip(shares, parts, strict=True))
    variance = sum(
        share * (variance + (own - mean) ** 2)
        for share, (_, own, variance) in zip(shares, parts, strict=True)
    )
    return total, mean, variance


def over_replicas(moments: Sequence[Moments]) -> list[Moments]:
    """Returns the pooled moments of all replicas' elements; call it on every replica.

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
        self.batches = 0

    def add(self, moments: Sequence[Moments]) -> None:
        """Adds the moments of a batch, as `batch_moments` returns them."""
        new: list[Moments] = []
        for entry in moments:
            count, mean, variance = (np.asarray(a, np.float64) for a in backend.to_numpy(entry))
            new.append((count, mean, variance))
        if self.batches:
            new = [_pool_unless_empty(*pair) for pair in zip(self._pooled, new, strict=True)]
        self._pooled = new
        self.batches += 1

    def result(self) -> list[tuple[np.ndarray, np.ndarray] | None]:
        """Returns (mean, variance) per layer over all batches; None for a layer never called.

        Raises:
            ValueError: if nothing was added.
        """
        if not self.batches:
            raise ValueError("Batch-norm statistics need at least one batch of data; none came.")
        return [None if count == 0 else (mean, var) for count, mean, var in self._pooled]


def _pool_unless_empty(first: Moments, second: Moments) -> Moments:
    if first[0] == 0 or second[0] == 0:
        return second if first[0] == 0 else first
    return pool([first, second])
