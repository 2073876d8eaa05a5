r"""Predicts distances of averages from distances of snapshots.

With :math:`\tfrac12\lVert\theta - p\rVert^2` in place of the loss the Jensen
gap of two snapshots is an eighth of their squared distance, and the identity is exact:

.. math:: \Bigl\lVert\sum_k c_k\theta_k - p\Bigr\rVert^2
   = \sum_k c_k\lVert\theta_k - p\rVert^2 - \tfrac12\sum_{k,l}c_kc_l\lVert\theta_k-\theta_l\rVert^2.

So the squared distances of snapshots, or their mean by lag alone, give the
distance of every average to any point.  Proof: docs/theory/prediction.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.theory.prediction import AveragePredictor

__all__ = [
    "predict_squared_distance",
    "squared_distances",
]

_CHUNK = 1 << 20  # weights converted to float64 at a time


def squared_distances(snapshots: Any) -> np.ndarray:
    """Computes the [K, K] squared distances between snapshots.

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
        snapshots = values.array().check("snapshots", snapshots)
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


def predict_squared_distance(weights: Any, to_point: Any, gaps: Any, displacements: Any) -> float:
    """Predicts the squared distance of an average to any point, from distances of snapshots.

    Args:
        weights: [K] weights that sum to 1, or a kernel.
        to_point: [K] squared distances of the snapshots to the point.
        gaps: [M] lags, or None with a matrix.
        displacements: [M] mean squared displacements at those lags, or the
            [K, K] matrix of squared distances, with which the result is exact.

    >>> predict_squared_distance([0.5, 0.5], [1.0, 1.0], [1], [4.0])
    0.0
    """
    to_point = values.vector(at_least=0).check("to_point", to_point)
    displacements = values.array().check("displacements", displacements)
    return 2.0 * AveragePredictor(0.5 * to_point, gaps, displacements / 8.0).loss(weights)
