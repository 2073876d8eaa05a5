r"""Distances of averages from the distances of snapshots: the weight-space twin of prediction.

With :math:`\tfrac12\lVert\theta - p\rVert^2` in place of the loss the Jensen
gap of two snapshots is an eighth of their squared distance, and the identity is exact:

.. math:: \Bigl\lVert\sum_k c_k\theta_k - p\Bigr\rVert^2
   = \sum_k c_k\lVert\theta_k - p\rVert^2 - \tfrac12\sum_{k,l}c_kc_l\lVert\theta_k-\theta_l\rVert^2.

So the squared distances of snapshots, or their mean by lag alone, give the
distance of every average to any point.  Proof: docs/theory/prediction.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from tf_lrtraj.theory import checks
from tf_lrtraj.theory.prediction import AveragePredictor

__all__ = [
    "autocovariance_from_displacement",
    "average_distance_to_mean",
    "mean_squared_displacement",
    "predict_squared_distance",
    "squared_distances",
]

_CHUNK = 1 << 20  # weights converted to float64 at a time


def squared_distances(snapshots: Any) -> np.ndarray:
    """[K, K] squared distances between snapshots.

    Works through the weights in chunks, so `snapshots` may be memory-mapped;
    memory beyond it is a few times K × 1 Mi numbers.

    Args:
        snapshots: [K, n] array of any floating type.

    Raises:
        ValueError: if the shape is wrong or a value is not finite.

    >>> squared_distances(np.array([[0.0, 0.0], [3.0, 4.0]]))
    array([[ 0., 25.],
           [25.,  0.]])
    """
    if not isinstance(snapshots, np.ndarray) or snapshots.dtype.kind not in "iuf":
        snapshots = checks.finite_array("snapshots", snapshots)
    if snapshots.ndim != 2 or snapshots.size == 0:
        raise ValueError(f"`snapshots` must have shape [K, n]. Received: shape={snapshots.shape}")
    count, size = snapshots.shape
    gram = np.zeros((count, count))
    chunk = max(_CHUNK // count, 1)
    for low in range(0, size, chunk):
        # From the middle snapshot, so that a common offset cannot cancel digits away.
        part = snapshots[:, low : low + chunk].astype(np.float64)
        part -= part[count // 2].copy()
        gram += part @ part.T
    if not np.all(np.isfinite(gram)):
        raise ValueError("`snapshots` must be finite")
    norms = np.diag(gram)
    distances = np.maximum(norms[:, None] + norms - 2.0 * gram, 0.0)
    np.fill_diagonal(distances, 0.0)
    return 0.5 * (distances + distances.T)


def mean_squared_displacement(snapshots: Iterable[Any], max_lag: int) -> np.ndarray:
    """Mean squared distance of snapshots by lag, in one pass over an iterator.

    Holds `max_lag + 1` snapshots at a time.

    Args:
        snapshots: vectors of one length, equally spaced in time.
        max_lag: largest lag.

    Returns:
        [max_lag + 1] means over all pairs of each lag; 0 at lag 0.

    Raises:
        ValueError: if there are not more than `max_lag` snapshots, their sizes
            differ, or a value is not finite.

    >>> mean_squared_displacement([[0.0], [1.0], [3.0]], max_lag=2)
    array([0. , 2.5, 9. ])
    """
    max_lag = checks.integer("max_lag", max_lag, 1)
    if not isinstance(snapshots, Iterable) or isinstance(snapshots, str):
        raise ValueError(f"`snapshots` must be vectors, one after another. Received: {snapshots!r}")
    recent: deque[np.ndarray] = deque(maxlen=max_lag + 1)
    totals, pairs = np.zeros(max_lag + 1), np.zeros(max_lag + 1)
    for index, snapshot in enumerate(snapshots):
        vector = checks.finite_array(f"snapshots[{index}]", snapshot).ravel()
        if recent and vector.size != recent[-1].size:
            raise ValueError(
                f"`snapshots` must all have one size. Received: {vector.size} numbers in snapshot "
                f"{index}, {recent[-1].size} before"
            )
        recent.append(vector)
        for lag in range(1, len(recent)):
            step = vector - recent[-1 - lag]
            totals[lag] += step @ step
            pairs[lag] += 1
    if len(recent) <= max_lag:
        raise ValueError(
            f"`max_lag` must be below the number of snapshots. Received: max_lag={max_lag} with "
            f"{len(recent)} snapshots"
        )
    return totals / np.maximum(pairs, 1.0)


def autocovariance_from_displacement(displacement: Any, plateau: float | None = None) -> np.ndarray:
    """Autocovariance of the weights by lag, summed over directions, from squared displacements.

    In a stationary state `E‖θ_{t+Δ} - θ_t‖² = 2 (c(0) - c(Δ))`.

    Args:
        displacement: [N] mean squared displacement by lag.
        plateau: its value at infinite lag, `2 c(0)`; its largest value by default.

    >>> autocovariance_from_displacement([0.0, 1.0, 1.5, 2.0])
    array([1.  , 0.5 , 0.25, 0.  ])
    """
    displacement = checks.nonnegative_vector("displacement", displacement)
    if plateau is None:
        plateau = float(displacement.max())
    plateau = checks.number("plateau", plateau, -np.nextafter(0.0, 1.0), np.inf, "at least 0")
    return 0.5 * (plateau - displacement)


def average_distance_to_mean(weights: Any, distances: Any) -> float:
    """Distance of an average to the uniform mean of all snapshots; exact.

    Args:
        weights: [K] weights that sum to 1, or a kernel.
        distances: [K, K] squared distances between snapshots, as `squared_distances` gives.

    >>> square = squared_distances(np.array([[0.0], [2.0], [4.0]]))
    >>> average_distance_to_mean([0.0, 0.0, 1.0], square)
    2.0
    """
    distances = checks.finite_array("distances", distances)
    count = distances.shape[0] if distances.ndim == 2 else 0
    to_mean = distances.mean(axis=1) - 0.5 * distances.mean() if count else distances
    squared = predict_squared_distance(weights, to_mean, None, distances)
    return float(np.sqrt(max(squared, 0.0)))


def predict_squared_distance(weights: Any, to_point: Any, gaps: Any, displacements: Any) -> float:
    """Squared distance of an average to any point, from distances of snapshots.

    Args:
        weights: [K] weights that sum to 1, or a kernel.
        to_point: [K] squared distances of the snapshots to the point.
        gaps: [M] lags, or None with a matrix.
        displacements: [M] mean squared displacements at those lags, or the
            [K, K] matrix of squared distances, with which the result is exact.

    >>> predict_squared_distance([0.5, 0.5], [1.0, 1.0], [1], [4.0])
    0.0
    """
    to_point = checks.nonnegative_vector("to_point", to_point)
    displacements = checks.finite_array("displacements", displacements)
    return 2.0 * AveragePredictor(0.5 * to_point, gaps, displacements / 8.0).loss(weights)
