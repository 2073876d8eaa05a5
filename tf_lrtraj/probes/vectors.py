"""Vectors in weight space: lists of arrays in the order of `model.trainable_variables`.

Sums are computed in float64 on the host, piece by piece, so that a product of millions of float32
numbers is accurate on every backend.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Vector = Sequence[Any]  # arrays of the shapes of the trainable variables
_PIECE = 1 << 17  # numbers converted to float64 at a time


def host(vector: Vector) -> list[np.ndarray]:
    """Returns float64 copies on the host."""
    from tf_lrtraj import backend

    return [np.asarray(array, np.float64) for array in backend.to_numpy(list(vector))]


def flat(vector: Vector) -> np.ndarray:
    """Returns all arrays one after another, [D] float64.

    >>> flat([np.ones((2, 1)), np.zeros(1)])
    array([1., 1., 0.])
    """
    if all(isinstance(array, np.ndarray) for array in vector):
        arrays = [np.asarray(array, np.float64) for array in vector]
    else:
        arrays = host(vector)
    return np.concatenate([array.ravel() for array in arrays]) if arrays else np.zeros(0)


def norm(vector: Vector) -> float:
    """Returns the Euclidean norm over all arrays."""
    return float(np.linalg.norm(flat(vector)))


def shapes(arrays: Sequence[Any]) -> list[tuple[int, ...]]:
    """Returns the shapes of arrays or variables."""
    return [tuple(np.shape(array)) for array in arrays]


def first_misfit(found: Sequence[tuple[int, ...]], wanted: Sequence[tuple[int, ...]]) -> str:
    """Returns a description of the first shape that does not fit."""
    pairs = enumerate(zip(found, wanted, strict=False))
    wrong = next((i for i, (a, b) in pairs if a != b), min(len(found), len(wanted)))
    text = f"{len(found)} arrays; the first that does not fit is number {wrong}"
    return text + (f" of shape {found[wrong]}" if wrong < len(found) else "")


def check_shapes(name: str, arrays: Sequence[Any], wanted: Sequence[Any]) -> list[Any]:
    """Returns the arrays as a list.

    Raises:
        ValueError: if they are not of the wanted shapes.
    """
    arrays, wanted = list(arrays), list(wanted)
    found = shapes(arrays)
    if found != wanted:
        raise ValueError(
            f"`{name}` must be {len(wanted)} arrays of the shapes of the trainable weights. "
            f"Received: {first_misfit(found, wanted)}"
        )
    return arrays


def layers_of(model: Any) -> dict[str, list[int]]:
    """Returns the path of each layer with trainable weights → positions of its variables.

    Layers come in the order in which they first appear among `model.trainable_variables`.
    """
    found: dict[str, list[int]] = {}
    for position, variable in enumerate(model.trainable_variables):
        found.setdefault(variable.path.rpartition("/")[0] or variable.path, []).append(position)
    return found


def fingerprint(arrays: Any) -> str:
    """Returns a checksum of nested arrays, with which a record identifies weights and batches.

    >>> fingerprint([np.zeros(2), np.ones(1)]) == fingerprint([np.zeros(2), np.ones(1)])
    True
    """
    import keras

    total = 0
    for array in keras.tree.flatten(arrays):
        data = np.ascontiguousarray(keras.ops.convert_to_numpy(array))
        total = zlib.crc32(f"{data.dtype}{data.shape}".encode(), total)
        total = zlib.crc32(data.data.cast("B") if data.size else b"", total)
    return f"{total:08x}"


# Long flat vectors, without a second copy ------------------------------------------------------


def joined(arrays: Sequence[Any]) -> np.ndarray:
    """Returns all arrays one after another, [D] float32 (float64 if any of them is)."""
    found = [np.asarray(array) for array in arrays]
    dtype = np.float64 if any(array.dtype == np.float64 for array in found) else np.float32
    vector = np.empty(sum(array.size for array in found), dtype)
    low = 0
    for array in found:
        vector[low : low + array.size] = array.reshape(-1)
        low += array.size
    return vector


def _pieces(low: int, high: int) -> Iterator[slice]:
    for start in range(low, high, _PIECE):
        yield slice(start, min(start + _PIECE, high))


def inner(rows: np.ndarray, vector: np.ndarray, ends: Sequence[int] | None = None) -> np.ndarray:
    """Computes [S, k] inner products of `rows` [k, D] with `vector` [D], in segments to `ends`."""
    ends = [vector.size] if ends is None else ends
    found = np.zeros((len(ends), len(rows)))
    low = 0
    for segment, end in enumerate(ends):
        for part in _pieces(low, end):
            found[segment] += rows[:, part].astype(np.float64) @ vector[part].astype(np.float64)
        low = end
    return found


def dot(first: np.ndarray, second: np.ndarray) -> float:
    """Computes ⟨first, second⟩."""
    return float(inner(first[None], second)[0, 0])


def square_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Computes ‖first - second‖²; differences are taken in float64 too.

    >>> square_distance(np.ones(3, np.float32), np.zeros(3, np.float32))
    3.0
    """
    total = 0.0
    for part in _pieces(0, first.size):
        difference = first[part].astype(np.float64) - second[part]
        total += float(difference @ difference)
    return total


class RunningMean:
    """The mean of vectors that are added one at a time, in float64.

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
