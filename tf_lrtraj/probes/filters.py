"""Kernels whose filters are divided by their norms; plain NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tf_lrtraj.probes.flat_vectors import square_distance


class Filters:
    """Kernels with every filter divided by its norm: what scale-invariant weights are judged by.

    A network with batch norm after a kernel does not see the kernel's scale, so raw distances
    mix turning and growing (van Laarhoven 2017, arXiv 1706.05350).  Arrays of fewer than two
    axes are left out.

    Args:
        shapes: of the arrays.
        axes: for each array, the axes that tell its filters apart
            (`probes.filter_axes_of(model)`); None for the last axis of all.

    Attributes:
        count: number of filters.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], axes: Sequence[tuple[int, ...]] | None = None
    ) -> None:
        if axes is not None and len(axes) != len(shapes):
            raise ValueError(
                f"`filter_axes` must name axes for each of {len(shapes)} arrays. "
                f"Received: {len(axes)} entries"
            )
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
        """All kernels one after another, each filter of length 1 (0 stays 0)."""
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
        """Mean over filters of the squared distance between normalised ones: 2 - 2 cos."""
        if not self.count:
            return math.inf
        return square_distance(self.normalised(first), self.normalised(second)) / self.count
