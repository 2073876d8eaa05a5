"""Vectors in weight space: lists of arrays in the order of `model.trainable_variables`.

Sums run in float64 on the host, so a dot product of millions of float32 numbers
keeps its digits on every backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Vector = Sequence[Any]  # arrays of the shapes of the trainable variables


def host(vector: Vector) -> list[np.ndarray]:
    """float64 copies on the host."""
    from tf_lrtraj import backend

    return [np.asarray(array, np.float64) for array in backend.to_numpy(list(vector))]


def flat(vector: Vector) -> np.ndarray:
    """[D] float64, all arrays one after another.

    >>> flat([np.ones((2, 1)), np.zeros(1)])
    array([1., 1., 0.])
    """
    if all(isinstance(array, np.ndarray) for array in vector):
        arrays = [np.asarray(array, np.float64) for array in vector]
    else:
        arrays = host(vector)
    return np.concatenate([array.ravel() for array in arrays]) if arrays else np.zeros(0)


def unflat(numbers: np.ndarray, like: Vector) -> list[np.ndarray]:
    """The inverse of `flat`, in the shapes of `like`."""
    shapes = [tuple(array.shape) for array in like]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = np.split(np.asarray(numbers), ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def norm(vector: Vector) -> float:
    """Euclidean norm over all arrays."""
    return float(np.linalg.norm(flat(vector)))


def combine(terms: Iterable[tuple[float, Vector]]) -> list[np.ndarray]:
    """`Σ factor * vector` in float64."""
    total: list[Any] | None = None
    for factor, vector in terms:
        scaled = [factor * np.asarray(array, np.float64) for array in host(vector)]
        total = scaled if total is None else [t + s for t, s in zip(total, scaled, strict=True)]
    if total is None:
        raise ValueError("`terms` must hold at least one vector. Received: none")
    return total


def layers_of(model: Any) -> dict[str, list[int]]:
    """Path of each layer with trainable weights → positions of its variables.

    In the order in which the layers first appear among `model.trainable_variables`.
    """
    found: dict[str, list[int]] = {}
    for position, variable in enumerate(model.trainable_variables):
        found.setdefault(variable.path.rpartition("/")[0] or variable.path, []).append(position)
    return found


def parts_of(vector: Vector, layers: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
    """The arrays of each layer."""
    return {name: [vector[i] for i in positions] for name, positions in layers.items()}
