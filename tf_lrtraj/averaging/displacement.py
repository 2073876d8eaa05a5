r"""How far weights move, and how far an average that had to be folded lies from the true one.

Snapshots keep some iterates of a run only.  An average over all iterates
:math:`\sum_k c_k\theta_k` is then built as :math:`\sum_j w_j\theta_{s_j}`, and the
difference is :math:`\sum_k e_k\theta_k` with :math:`\sum e = 0`.  Where the mean
squared displacement depends on the lag alone, :math:`D(\Delta)`,

.. math:: \mathbb E\Bigl\lVert\sum_k e_k\theta_k\Bigr\rVert^2
   = -\tfrac12\sum_{k,l}e_ke_lD(|k-l|),

the identity of docs/theory/prediction.md with distances in place of losses.  `D` is
measured on a random subset of the coordinates, by lag of the snapshots, and fitted by a sum of
relaxations, a random walk and a drift, which says what it is between snapshots.
A relaxation quicker than the spacing of snapshots cannot be seen in them; it is
taken to be instantaneous, so the error stated is then an upper one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tf_lrtraj.theory.gap_curve import fit_gap_curve
from tf_lrtraj.theory.recursion import solve_forward
from tf_lrtraj.theory.weight_space import squared_distances

__all__ = ["CoordinateSample", "Displacement", "fit_displacement", "steps_to_sample"]

SAMPLED_COORDINATES = 1 << 14
MOST_SNAPSHOTS = 128  # whose distances are measured for one average
_FEW = 16  # of them are wanted at least
_MOST_FITTED = 256  # lags that enter a fit
_MOST_LAGS = 50_000  # of the grid the fit is made on


class CoordinateSample:
    """Values of a random subset of the coordinates, collected while snapshots stream by.

    Args:
        size: number of coordinates to draw from.
        steps: of the snapshots to collect.
        count: how many coordinates; all where there are not more.
        seed: decides which.

    Attributes:
        steps: [m] int64, ascending.
        values: [m, n] float32 (float64 once such values come).
        size: as given.
    """

    def __init__(
        self, size: int, steps: Sequence[int], count: int = SAMPLED_COORDINATES, seed: int = 0
    ) -> None:
        self.size = size
        self.steps = np.array(sorted(set(steps)), np.int64)
        if size <= count:
            self._places = np.arange(size)
        else:
            # With repeats, which leave means unbiased, and no permutation of all coordinates.
            self._places = np.sort(np.random.default_rng(seed).integers(size, size=count))
        self._rows = {int(step): row for row, step in enumerate(self.steps)}
        self.values = np.zeros((self.steps.size, self._places.size), np.float32)

    def add(self, step: int, offset: int, piece: np.ndarray) -> None:
        """Takes what it needs of the coordinates `offset … offset + len(piece) - 1`."""
        row = self._rows.get(step)
        if row is None:
            return
        low, high = np.searchsorted(self._places, [offset, offset + piece.size])
        if piece.dtype == np.float64 and self.values.dtype != np.float64:
            self.values = self.values.astype(np.float64)
        self.values[row, low:high] = piece[self._places[low:high] - offset]

    def squared_distance(self, step: int, arrays: Sequence[np.ndarray]) -> float:
        """Estimated squared distance of weights (an array per variable) from one snapshot."""
        ends = np.cumsum([array.size for array in arrays])
        total, low = 0.0, 0
        snapshot = self.values[self._rows[step]]
        for array, end in zip(arrays, ends, strict=True):
            high = int(np.searchsorted(self._places, end))
            values = array.reshape(-1)[self._places[low:high] - (end - array.size)]
            total += float(np.sum((values.astype(np.float64) - snapshot[low:high]) ** 2))
            low = high
        return total * self.size / self._places.size

    def near(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Snapshots from `first` to `last`, or the newest few up to `last` if those are more.

        Returns:
            ([m] steps, [m, m] estimated squared distances between them).
        """
        end = int(np.searchsorted(self.steps, last, side="right"))
        begin = min(int(np.searchsorted(self.steps, first)), max(end - _FEW, 0))
        distances = squared_distances(self.values[begin:end])
        return self.steps[begin:end], distances * (self.size / self._places.size)


@dataclasses.dataclass(frozen=True)
class Displacement:
    r"""Mean squared displacement of the weights by lag, :math:`D(\Delta)`.

    Attributes:
        times: [P] relaxation times in updates; 0 for what is quicker than can be seen.
        amplitudes: [P] what each adds to `D` at large lags.
        walk: growth of `D` per update (a random walk).
        drift: growth of `D` per squared update (a steady drift).
    """

    times: np.ndarray
    amplitudes: np.ndarray
    walk: float
    drift: float

    def __call__(self, lags: np.ndarray) -> np.ndarray:
        """D at the given lags, in updates (any shape)."""
        lags = np.asarray(lags, np.float64)
        kept = np.exp(-lags[..., None] / np.maximum(self.times, 1e-9))
        return (1.0 - kept) @ self.amplitudes + self.walk * lags + self.drift * lags**2

    def squared_norm(self, weights: np.ndarray) -> float:
        r"""Expected :math:`\lVert\sum_k e_k\theta_k\rVert^2` of consecutive iterates.

        Args:
            weights: [n] weights `e` on consecutive iterates; they sum to 0.

        >>> Displacement(np.zeros(0), np.zeros(0), 2.0, 0.0).squared_norm(np.array([-1.0, 0, 1.0]))
        4.0
        """
        time = np.arange(weights.size) - 0.5 * weights.size
        total = self.drift * float(time @ weights) ** 2
        # Increments of a walk are independent, and Σ e = 0 leaves these.
        total += self.walk * float(np.sum(np.cumsum(weights) ** 2))
        for duration, amplitude in zip(self.times, self.amplitudes, strict=True):
            ratio = np.exp(-1.0 / duration) if duration > 0.0 else 0.0
            smoothed = solve_forward(weights, np.full(weights.size - 1, ratio))
            total += 0.5 * amplitude * float(weights @ (2.0 * smoothed - weights))
        return max(total, 0.0)


def steps_to_sample(steps: np.ndarray, first: int, last: int) -> set[int]:
    """Which snapshots to measure for an average of those from `first` to `last`.

    Args:
        steps: [K] of all snapshots.
    """
    end = int(np.searchsorted(steps, last, side="right"))
    begin = min(int(np.searchsorted(steps, first)), max(end - _FEW, 0))
    chosen = np.arange(begin, end)
    if chosen.size > MOST_SNAPSHOTS:  # neighbours for short lags, a spread for long ones
        spread = np.linspace(begin, end - 1, MOST_SNAPSHOTS // 2).astype(np.int64)
        chosen = np.union1d(chosen[-MOST_SNAPSHOTS // 2 :], spread)
    return set(steps[chosen].tolist())


def fit_displacement(steps: np.ndarray, squared: np.ndarray) -> Displacement | None:
    """`Displacement` from the distances of snapshots; None for fewer than 3 of them.

    Distances of one lag are averaged; snapshots need not be equally spaced.

    Args:
        steps: [m] update counts, ascending.
        squared: [m, m] squared distances.
    """
    if steps.size < 3:
        return None
    unit = int(np.gcd.reduce(np.diff(steps)))
    # The fit works on a grid of lags; one far finer than the snapshots would only cost time.
    unit = max(unit, -(-int(steps[-1] - steps[0]) // _MOST_LAGS))
    first, second = np.triu_indices(steps.size, 1)
    lags = np.maximum(np.round((steps[second] - steps[first]) / unit), 1).astype(np.int64)
    counts, totals = np.bincount(lags), np.bincount(lags, squared[first, second])
    present = np.flatnonzero(counts)
    if present.size > _MOST_FITTED:
        chosen = np.geomspace(1, present.size, _MOST_FITTED).astype(np.int64) - 1
        present = present[np.unique(chosen)]
    means = totals[present] / counts[present]
    if not np.any(means > 0.0):
        return Displacement(np.zeros(0), np.zeros(0), 0.0, 0.0)
    curve = fit_gap_curve(present, means, int(present[-1]) + 1, None, "mixture")
    walking = curve.ratios == 1.0
    ratios = curve.ratios[~walking]
    with np.errstate(divide="ignore"):
        times = np.where(ratios > 0.0, -unit / np.log(ratios), 0.0)
    return Displacement(
        times=times,
        amplitudes=curve.amplitudes[~walking],
        walk=float(curve.amplitudes[walking].sum()) / unit,
        drift=curve.drift / unit**2,
    )
