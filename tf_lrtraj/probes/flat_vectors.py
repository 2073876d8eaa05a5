"""Arithmetic of long vectors on the host: sums in float64, piece by piece, no second copy.

>>> square_distance(np.ones(3, np.float32), np.zeros(3, np.float32))
3.0
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_PIECE = 1 << 17  # numbers that are float64 at a time


def joined(arrays: Sequence[Any]) -> np.ndarray:
    """[D] all arrays one after another, a new float32 array (float64 if any of them is)."""
    host = [np.asarray(array) for array in arrays]
    dtype = np.float64 if any(array.dtype == np.float64 for array in host) else np.float32
    vector = np.empty(sum(array.size for array in host), dtype)
    low = 0
    for array in host:
        vector[low : low + array.size] = array.reshape(-1)
        low += array.size
    return vector


def _pieces(low: int, high: int) -> Iterator[slice]:
    for start in range(low, high, _PIECE):
        yield slice(start, min(start + _PIECE, high))


def inner(rows: np.ndarray, vector: np.ndarray, ends: Sequence[int] | None = None) -> np.ndarray:
    """[S, k] inner products of `rows` [k, D] with `vector` [D], by segments that end at `ends`."""
    ends = [vector.size] if ends is None else ends
    found = np.zeros((len(ends), len(rows)))
    low = 0
    for segment, end in enumerate(ends):
        for part in _pieces(low, end):
            found[segment] += rows[:, part].astype(np.float64) @ vector[part].astype(np.float64)
        low = end
    return found


def dot(first: np.ndarray, second: np.ndarray) -> float:
    """⟨first, second⟩."""
    return float(inner(first[None], second)[0, 0])


def square_distance(first: np.ndarray, second: np.ndarray) -> float:
    """‖first - second‖²; differences are taken in float64 too."""
    total = 0.0
    for part in _pieces(0, first.size):
        difference = first[part].astype(np.float64) - second[part]
        total += float(difference @ difference)
    return total


class RunningMean:
    """The mean of vectors given one at a time, in float64.

    >>> mean = RunningMean()
    >>> mean.add(np.zeros(2)), mean.add(np.ones(2)), mean.value
    (None, None, array([0.5, 0.5]))
    """

    def __init__(self) -> None:
        self.count = 0
        self.value = np.zeros(0)

    def add(self, vector: np.ndarray) -> None:
        """Adds one more vector."""
        if not self.count:
            self.value = np.zeros(vector.size)
        self.count += 1
        for part in _pieces(0, vector.size):
            self.value[part] += (vector[part] - self.value[part]) / self.count
