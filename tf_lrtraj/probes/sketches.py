r"""Random projections that preserve distances, with thousands of numbers instead of millions.

A sketch :math:`S\theta` is linear, so the sketch of a difference is the difference of the sketches,
and distances and inner products are unbiased over the random signs and places:

.. math:: \mathbb E\langle Sa, Sb\rangle = \langle a, b\rangle, \qquad
   \operatorname{Var}\langle Sa, Sb\rangle
   \le \bigl(\lVert a\rVert^2\lVert b\rVert^2 + \langle a, b\rangle^2\bigr) / k

so the relative standard error of a squared norm is at most :math:`\sqrt{2/k}`.  It is a structured
variant of the count sketch of Charikar, Chen & Farach-Colton 2002: the vector is divided into rows
of `k` numbers, and each row is added to the sketch with random signs and a random cyclic shift.
Two numbers collide with probability at most 1/k, which gives the variance above, and a vector of at
most `k` numbers is kept exactly.

Errors of one sketch are not independent, because all vectors use the same signs: the errors of the
distances of similar differences have the same sign.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tf_lrtraj import seeds
from tf_lrtraj.values import integer

_BLOCK = 1 << 18  # numbers whose signs are drawn at a time


class Sketch:
    """A fixed random projection of vectors of `size` numbers to `k`.

    Args:
        size: D.
        k: numbers in a sketch; memory of a sketch is 8 k bytes.
        seed: an integer or several; the same seed gives the same projection everywhere.

    Raises:
        ValueError: for a size or `k` below 1.

    >>> sketch = Sketch(1000, 64, seed=1)
    >>> a, b = np.ones(1000), np.arange(1000.0)
    >>> bool(np.allclose(sketch(a - 2 * b), sketch(a) - 2 * sketch(b)))
    True
    >>> round(sketch.relative_error, 3)
    0.177
    """

    def __init__(self, size: int, k: int, seed: Any = 0) -> None:
        self.size = integer(1).check("size", size)
        self.k = integer(1).check("k", k)
        self._seed = [int(part) for part in np.atleast_1d(seed)]

    @property
    def relative_error(self) -> float:
        """Bound of the relative standard error of a squared norm; 0 if all numbers are kept."""
        return math.sqrt(2.0 / self.k) if self.size > self.k else 0.0

    def _blocks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (first place, signs as booleans, shift of each row), block by block."""
        step = max(_BLOCK // self.k, 1) * self.k
        for number, low in enumerate(range(0, self.size, step)):
            random = seeds.generator("sketch", *self._seed, number)
            count = min(step, self.size - low)
            turns = random.integers(self.k, size=-(-count // self.k))
            bits = np.frombuffer(random.bytes(-(-count // 8)), np.uint8)
            yield low, np.unpackbits(bits, count=count).astype(bool), turns

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        """Returns the sketch of a vector [D], [k] float64.

        Raises:
            ValueError: for another shape.
        """
        if vector.shape != (self.size,):
            raise ValueError(
                f"`vector` must have shape ({self.size},). Received: shape={vector.shape}"
            )
        total, k = np.zeros(self.k), self.k
        for low, negative, turns in self._blocks():
            values = vector[low : low + negative.size].astype(np.float64)
            np.negative(values, out=values, where=negative)
            for row, turn in enumerate(turns.tolist()):
                part = values[row * k : (row + 1) * k]
                head = min(part.size, k - turn)
                total[turn : turn + head] += part[:head]
                total[: part.size - head] += part[head:]
        return total
