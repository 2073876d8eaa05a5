r"""The outer eigenvalues of the Hessian of a mean loss, by Lanczos iteration.

From a random unit vector, k products with the Hessian give an orthonormal basis of a Krylov space
and the k×k tridiagonal matrix of the Hessian in it (Golub & Van Loan, Matrix Computations, chapter
10).  Its eigenvalues, the Ritz values, approach the outer eigenvalues of the Hessian from inside:
the largest never exceeds the true one.  Every basis vector is made orthogonal to all earlier ones,
so that rounding does not produce copies of eigenvalues.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import linalg

from tf_lrtraj import seeds
from tf_lrtraj.probes.base import LossProbe
from tf_lrtraj.probes.batches import size_of
from tf_lrtraj.probes.surface import Surface
from tf_lrtraj.probes.vectors import fingerprint, inner, joined, shapes
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.values import error, integer

_EXHAUSTED = 1e-6  # of the Hessian's size: a remainder below this is rounding


@dataclasses.dataclass(eq=False, repr=False)
class Eigenvalues(LossProbe):
    r"""The largest and smallest eigenvalues of the Hessian of the mean loss of batches.

    Coordinates: start [S]; iteration [K], from 1; eigenvalue [E], the largest first.

    Values:
        largest, smallest [start, iteration]: the extreme Ritz values after that many products.
        eigenvalues [start, eigenvalue]: the E largest after all of them.
        bounds [start, eigenvalue]: for each, a distance within which there is an eigenvalue.
        diagonal, off_diagonal [start, iteration]: the tridiagonal matrix; `off_diagonal[k]` couples
            the vectors k and k + 1.

    The mean is over batches, with equal weights.  With batch statistics their derivatives are
    included, as in training.  Products describe the smooth piece of a network with ReLU at θ.

    Cost: K products for every batch and start.  Memory: K + 2 vectors of all weights.

    Args:
        surface: the loss and its mode; batch norm "batch" or "frozen".
        weights: the point, as `Surface.point` takes it; None for the model's own.
        batches: the batches of the mean loss.
        iterations: K.
        count: E.
        starts: S, the number of random first vectors; their results show what the iteration has not
            resolved.
        seed: the seed of the first vectors.

    Raises:
        ValueError: for batches that do not fit, or a surface that recalibrates batch norm, for
            which the products would keep the statistics fixed.

    Example: the mean of (w_1 - y)² and (2 w_2 - y)² over both has the Hessian diag(1, 4).

    >>> import keras
    >>> from tf_lrtraj import probes
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    >>> batch = np.diag([1.0, 2.0]), np.zeros((2, 1))
    >>> probe = Eigenvalues(probes.Surface(model, "mse"), None, [batch], iterations=2, count=2)
    >>> probes.measure(probe).values["eigenvalues"].round(4)
    array([[4., 1.]])
    """

    kind = "eigenvalues"

    surface: Surface
    weights: Any
    batches: Any
    _: dataclasses.KW_ONLY
    iterations: int = 30
    count: int = 3
    starts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.surface.mode.batch_norm == "recalibrated":
            allowed = "a surface with batch norm 'batch' or 'frozen'"
            raise error("surface", allowed, self.surface.mode)
        self.weights = self.surface.point(self.weights)
        self._shapes = shapes(self.surface.model.trainable_variables)
        sizes = [int(np.prod(shape)) for shape in self._shapes]
        self._ends = np.cumsum(sizes).tolist()
        # No more directions than weights.
        self.iterations = min(integer(1).check("iterations", self.iterations), self._ends[-1])
        self.count = min(integer(1).check("count", self.count), self.iterations)
        self.starts = integer(1).check("starts", self.starts)
        self.seed = integer(0).check("seed", self.seed)
        self._basis = np.zeros((0, 0), np.float32)

    def coordinates(self) -> dict[str, Any]:
        return {
            "start": np.arange(self.starts),
            "iteration": np.arange(1, self.iterations + 1),
            "eigenvalue": np.arange(self.count),
        }

    def about(self) -> dict[str, Any]:
        return {
            **self.surface.about(),
            "weights": self.surface.fingerprint(self.weights),
            "batches": fingerprint(self.batches),
            "batch_sizes": sorted({size_of(batch) for batch in self.batches}),
            "num_batches": len(self.batches),
            "num_weights": self._ends[-1],
            "seed": self.seed,
        }

    def pieces(self, record: ArrayRecord) -> list[tuple[int, int]]:
        """Returns (start, iteration); a start that was interrupted begins again."""
        missing = np.flatnonzero(record.missing("diagonal").any(axis=1))
        return [(start, k) for start in missing.tolist() for k in range(self.iterations)]

    def measure(self, record: ArrayRecord, piece: tuple[int, int]) -> None:
        start, k = piece
        if k == 0:
            self._begin(start)
        vector = self._basis[k]
        product = self._product(vector)
        known = self._basis[: k + 1]
        diagonal = float(inner(vector[None], product)[0, 0])
        for _ in range(2):  # twice is enough (Parlett 1998, section 6.9)
            product = product - inner(known, product)[0] @ known
        size = float(np.linalg.norm(product))
        record.put("diagonal", (start, k), diagonal)
        largest = float(np.abs(record.values["diagonal"][start, : k + 1]).max())
        # The Krylov space is exhausted: the iteration goes on with a new direction, uncoupled.
        exhausted = size <= _EXHAUSTED * largest or size == 0.0
        record.put("off_diagonal", (start, k), 0.0 if exhausted else size)
        if k + 1 < self.iterations:
            self._basis[k + 1] = self._another(start, k) if exhausted else product / size

    def _begin(self, start: int) -> None:
        wide = any(v.dtype == "float64" for v in self.surface.model.trainable_variables)
        dtype = np.float64 if wide else np.float32
        self._basis = np.zeros((self.iterations, self._ends[-1]), dtype)
        self._basis[0] = self._another(start, -1)

    def _another(self, start: int, k: int) -> np.ndarray:
        """Returns a random unit vector that is orthogonal to the first k + 1 of the basis."""
        random = seeds.generator("lanczos", self.seed, start, k + 1)
        vector = random.standard_normal(self._ends[-1])
        for _ in range(2):
            known = self._basis[: k + 1]
            vector = vector - inner(known, vector)[0] @ known
            vector /= np.linalg.norm(vector)
        return vector

    def _product(self, vector: np.ndarray) -> np.ndarray:
        """Computes the Hessian of the mean loss times a [D] vector, in float64."""
        parts = np.split(vector, self._ends[:-1])
        arrays = [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        total = np.zeros(self._ends[-1])
        for batch in self.batches:
            found = self.surface.hessian_vector(self.weights, batch, arrays)
            total += joined(_host(found))
        return total / len(self.batches)

    def passes(self, pieces: Sequence[Any]) -> float:
        return self.spec.passes(products=len(pieces) * len(self.batches))

    def finish(self, record: ArrayRecord) -> None:
        for start in range(self.starts):
            diagonal = record.values["diagonal"][start]
            off = record.values["off_diagonal"][start]
            for k in range(self.iterations):
                ritz = linalg.eigvalsh_tridiagonal(diagonal[: k + 1], off[:k])
                record.put("largest", (start, k), ritz[-1])
                record.put("smallest", (start, k), ritz[0])
            ritz, vectors = linalg.eigh_tridiagonal(diagonal, off[:-1])
            chosen = slice(None, -self.count - 1, -1)
            record.put("eigenvalues", start, ritz[chosen])
            # The norm of the residual (Parlett 1998, section 4.5).
            record.put("bounds", start, np.abs(off[-1] * vectors[-1, chosen]))


def _host(arrays: Sequence[Any]) -> list[np.ndarray]:
    from tf_lrtraj import backend

    return backend.to_numpy(list(arrays))
