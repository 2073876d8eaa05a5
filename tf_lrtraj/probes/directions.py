"""Random directions and normalised filters in Keras' layout of kernels.

A Keras kernel has its outputs on the last axis, `[kh, kw, in, out]` or `[in, out]`; code for
`[out, in, kh, kw]` would normalise over inputs without an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_lrtraj import seeds
from tf_lrtraj.probes.vectors import Vector, host, square_distance
from tf_lrtraj.values import error, one_of

KINDS = ("uniform", "filter")

# Layer → the axes of its kernels that index output filters.
_AXES: dict[str, tuple[int, ...]] = {
    "Conv1DTranspose": (-2,),
    "Conv2DTranspose": (-2,),
    "Conv3DTranspose": (-2,),
    "DepthwiseConv1D": (-2, -1),
    "DepthwiseConv2D": (-2, -1),
    "Embedding": (0,),
}


def random_direction(
    like: Vector,
    seed: int | Sequence[int],
    kind: str = "uniform",
    *,
    filter_axes: Sequence[tuple[int, ...]] | None = None,
) -> list[np.ndarray]:
    """Returns a random direction in float64, a function of the seed and the shapes.

    Args:
        like: arrays in the order of `model.trainable_variables`: weights, which
            `"filter"` scales by, or (for `"uniform"`) anything of their shapes.
        seed: integers of at least 0: a seed, or `[seed, number]` for one of several.
        kind: `"uniform"`: a Gaussian vector divided by its norm, that is, a point of the
            unit sphere (Izmailov et al. 2018, arXiv 1803.05407, section 3.3);
            `"filter"`: a Gaussian vector whose filters have the norms of the weights' own,
            with zeros for biases and for scales and offsets of normalisation, which
            makes distances comparable between networks of other scales (Li et al. 2018,
            arXiv 1712.09913, section 4).
        filter_axes: for each array, the axes that index its filters (`filter_axes_of`); None for
            the last axis of all.

    Returns:
        arrays of the shapes of `like`.  Their norm is 1 for `"uniform"`, and that of
        all kernels together for `"filter"`.

    Raises:
        ValueError: for another kind, or if there are no weights to move.

    >>> weights = [np.full((3, 2), 2.0), np.zeros(2)]
    >>> direction = random_direction(weights, seed=0, kind="filter")
    >>> np.linalg.norm(direction[0], axis=0) / np.linalg.norm(weights[0], axis=0)
    array([1., 1.])
    >>> direction[1]
    array([0., 0.])
    """
    one_of(KINDS).check("kind", kind)
    shapes = [tuple(array.shape) for array in like]
    if not sum(int(np.prod(shape)) for shape in shapes):
        raise ValueError(f"`like` must hold weights. Received: arrays of shapes {shapes}")
    rng = seeds.generator("direction", *np.atleast_1d(seed))
    # Drawn for every array, so that both kinds use the same numbers for the same kernel.
    drawn = [rng.standard_normal(shape) for shape in shapes]
    if kind == "uniform":
        length = np.sqrt(sum(float(np.vdot(array, array)) for array in drawn))
        return [array / length for array in drawn]
    _check_axes(filter_axes, len(shapes))
    axes = [(-1,)] * len(shapes) if filter_axes is None else list(filter_axes)
    if all(len(shape) < 2 for shape in shapes):
        raise ValueError(
            "`kind='filter'` moves kernels, arrays of two or more axes, and there is none. "
            f"Received: arrays of shapes {shapes}"
        )
    return [
        _filtered(noise, weights, kept) if noise.ndim >= 2 else np.zeros_like(noise)
        for noise, weights, kept in zip(drawn, host(like), axes, strict=True)
    ]


def _filtered(noise: np.ndarray, weights: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    within = tuple(i for i in range(noise.ndim) if i not in {axis % noise.ndim for axis in kept})
    length = np.sqrt(np.sum(noise**2, axis=within, keepdims=True))
    wanted = np.sqrt(np.sum(weights**2, axis=within, keepdims=True))
    scale: np.ndarray = wanted / np.where(length > 0.0, length, 1.0)
    return noise * scale


def filter_axes_of(model: Any) -> list[tuple[int, ...]]:
    """Returns for each trainable variable the axes that index its output filters.

    This is the last axis, except for transposed convolutions (outputs before inputs), depthwise
    convolutions (a filter per input channel) and embeddings (a row per entry).
    """
    axes = {}
    for layer in model._flatten_layers(include_self=True, recursive=True):
        known = next((_AXES[c.__name__] for c in type(layer).__mro__ if c.__name__ in _AXES), None)
        name = type(layer).__name__
        for variable in getattr(layer, "_trainable_variables", ()):
            own = known
            if name.startswith("SeparableConv") and variable.name == "depthwise_kernel":
                own = (-2, -1)
            axes[id(variable)] = own or (-1,)
    return [axes.get(id(variable), (-1,)) for variable in model.trainable_variables]


def _check_axes(axes: Sequence[Any] | None, arrays: int) -> None:
    if axes is not None and len(axes) != arrays:
        raise error("filter_axes", f"axes for each of {arrays} arrays", list(axes))


class Filters:
    """Kernels with every filter divided by its norm, for distances of scale-invariant weights.

    With batch norm after a kernel the network does not depend on the kernel's scale, so distances
    of weights mix changes of direction and of scale (van Laarhoven 2017, arXiv 1706.05350).  Arrays
    of fewer than two axes are left out.

    Args:
        shapes: the shapes of the arrays.
        axes: for each array, the axes that index its filters (`probes.filter_axes_of(model)`); None
            for the last axis of all.

    Attributes:
        count: number of filters.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], axes: Sequence[tuple[int, ...]] | None = None
    ) -> None:
        _check_axes(axes, len(shapes))
        self._parts: list[tuple[slice, tuple[int, ...], tuple[int, ...]]] = []
        self.count = low = 0
        for number, shape in enumerate(shapes):
            size = int(np.prod(shape))
            if len(shape) >= 2:
                kept = {axis % len(shape) for axis in (axes[number] if axes else (-1,))}
                within = tuple(i for i in range(len(shape)) if i not in kept)
                self._parts.append((slice(low, low + size), shape, within))
                self.count += int(np.prod([shape[i] for i in kept]))
            low += size
        self.size = sum(part.stop - part.start for part, _, _ in self._parts)

    def normalised(self, vector: np.ndarray) -> np.ndarray:
        """Returns all kernels one after another, with filters of length 1 (0 stays 0)."""
        found = np.empty(self.size, vector.dtype)
        low = 0
        for part, shape, within in self._parts:
            kernel = vector[part].reshape(shape).astype(np.float64)
            length = np.sqrt(np.sum(kernel**2, axis=within, keepdims=True))
            kernel /= np.where(length > 0.0, length, 1.0)
            found[low : low + kernel.size] = kernel.ravel()
            low += kernel.size
        return found

    def square_distance(self, first: np.ndarray, second: np.ndarray) -> float:
        """Returns the mean over filters of the squared distance of normalised ones, 2 - 2 cos."""
        if not self.count:
            return math.inf
        return square_distance(self.normalised(first), self.normalised(second)) / self.count
