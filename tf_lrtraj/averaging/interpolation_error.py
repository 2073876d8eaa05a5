r"""Estimates the error of an average that is interpolated between snapshots.

Snapshots hold only some iterates of a run.  An average over all iterates
:math:`\sum_k c_k\theta_k` is therefore built as :math:`\sum_j w_j\theta_{s_j}`: each iterate
between two snapshots is replaced by a point on the straight line between them.  The difference is
:math:`\sum_k e_k\theta_k`.  In each interval between two snapshots the :math:`e_k` sum to 0, and
so do the :math:`k e_k`, so a steady drift causes no error.

The remaining error is estimated from the distance of each snapshot from the line between its two
neighbours, near the iterates that have weight in the average.  Squared distances from the line are
assumed to grow as a power :math:`s` of the time between snapshots, also within an interval.  The
power is estimated from neighbours one and two snapshots away.  For displacements
:math:`\mathbb E\lVert\theta_{t+\Delta}-\theta_t\rVert^2 = a^2|\Delta|^s`,

.. math:: \mathbb E\Bigl\lVert\sum_k e_k\theta_k\Bigr\rVert^2
   = -\tfrac12\sum_{k,l}a_ke_k\,a_le_l\,|k-l|^s .

Motion within an interval is mostly smoother than that, so the estimate tends to be high.  `MARGIN`
covers the cases in which it was too low (`tests/averaging/test_interpolation_errors.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from tf_lrtraj import seeds

__all__ = ["CoordinateSample", "interpolation_error"]

MARGIN = 2.25  # ratio of the stated error to its estimate
SAMPLED_COORDINATES = 1 << 14
_SAMPLED_NUMBERS = 1 << 24  # coordinates times snapshots, above _FEWEST of each
_FEWEST = 256
_SMOOTHEST = 1.9  # the largest power; at 2, displacements do not determine the motion in between
_REACH = 4  # number of neighbouring intervals whose errors are combined
_NEIGHBOURS = 8  # snapshots on either side of those with weight that also determine the power


class CoordinateSample:
    """Values of a random subset of the coordinates, collected while snapshots are read.

    Args:
        size: number of coordinates to draw from.
        steps: steps of the snapshots to collect.
        count: number of coordinates to draw; all if there are no more.  By default 16,384, or
            fewer if there are more than 1,024 snapshots.
        seed: seed of the draw.

    Attributes:
        steps: [m] int64, ascending.
        values: [m, n] float32 (float64 if a snapshot has float64 values).
        size: number of coordinates drawn from.
    """

    def __init__(
        self, size: int, steps: Sequence[int], count: int | None = None, seed: int = 0
    ) -> None:
        self.size = size
        self.steps = np.array(sorted(set(steps)), np.int64)
        if count is None:
            affordable = max(_SAMPLED_NUMBERS // max(self.steps.size, 1), _FEWEST)
            count = min(SAMPLED_COORDINATES, affordable)
        if size <= count:
            self._places = np.arange(size)
        else:
            # Drawn with replacement: means stay unbiased, and no permutation is needed.
            random = seeds.generator("displacement_places", seed)
            self._places = np.sort(random.integers(size, size=count))
        self._rows = {int(step): row for row, step in enumerate(self.steps)}
        self.values = np.zeros((self.steps.size, self._places.size), np.float32)

    def add(self, step: int, offset: int, piece: np.ndarray) -> None:
        """Stores the sampled ones of the coordinates `offset … offset + len(piece) - 1`."""
        row = self._rows.get(step)
        if row is None:
            return
        low, high = np.searchsorted(self._places, [offset, offset + piece.size])
        if piece.dtype == np.float64 and self.values.dtype != np.float64:
            self.values = self.values.astype(np.float64)
        self.values[row, low:high] = piece[self._places[low:high] - offset]

    @property
    def scale(self) -> float:
        """Number of coordinates that each sampled one represents."""
        return self.size / self._places.size

    def squared_distance(self, step: int, arrays: Sequence[np.ndarray]) -> float:
        """Estimates the squared distance of weights (an array per variable) from a snapshot."""
        ends = np.cumsum([array.size for array in arrays])
        total, low = 0.0, 0
        snapshot = self.values[self._rows[step]]
        for array, end in zip(arrays, ends, strict=True):
            high = int(np.searchsorted(self._places, end))
            values = array.reshape(-1)[self._places[low:high] - (end - array.size)]
            total += float(np.sum((values.astype(np.float64) - snapshot[low:high]) ** 2))
            low = high
        return total * self.scale

    def upto(self, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns ([m] steps, [m, n] values) of the snapshots up to the step `last`."""
        end = int(np.searchsorted(self.steps, last, side="right"))
        return self.steps[:end], self.values[:end]


def interpolation_error(steps: np.ndarray, values: np.ndarray, target: np.ndarray) -> float | None:
    """Computes an upper estimate of the distance between an average and its interpolation.

    Args:
        steps: [m] update counts of the snapshots, ascending, up to that of the average.
        values: [m, n] coordinates of the snapshots.
        target: [T+1] requested weights on all iterates, T = steps[-1].

    Returns:
        `MARGIN` times the estimated root mean square of the distance, over the n coordinates;
        None for fewer than 3 snapshots.
    """
    if steps.size < 3:
        return None
    time = np.arange(int(steps[0]), int(steps[-1]) + 1)
    stretch = np.minimum(np.searchsorted(steps, time, side="right") - 1, steps.size - 2)
    between = target[steps[0] :].copy()
    between[steps - steps[0]] = 0.0
    moved = np.bincount(stretch, np.abs(between), steps.size - 1)
    early = _early(steps, values, target)
    if not moved.any():
        return MARGIN * early
    power, amplitudes = _displacements(steps, values, moved**2)
    later = (time - steps[stretch]) / np.diff(steps)[stretch]
    # Each interval is treated alone: what it adds to its ends makes its sums vanish.
    errors = []
    for j, (low, high) in enumerate(itertools.pairwise((steps - steps[0]).tolist())):
        part = np.append(between[low:high], 0.0) * amplitudes[j]
        part[0] -= (1.0 - later[low:high]) @ part[:-1]
        part[-1] -= later[low:high] @ part[:-1]
        errors.append(part)
    return MARGIN * (math.sqrt(max(_squared_norm(errors, power), 0.0)) + early)


def _squared_norm(errors: list[np.ndarray], power: float) -> float:
    """Computes -½ Σ e_k e_l |k-l|^s over the intervals, ends included.

    Pairs of distant intervals contribute almost nothing, because their sums vanish.
    """
    from scipy.signal import fftconvolve  # slow to import

    total = 0.0
    distances: dict[tuple[int, int], np.ndarray] = {}
    for j, error in enumerate(errors):
        if not error.any():
            continue
        together = errors[j : j + _REACH]
        length = sum(part.size - 1 for part in together)
        others = np.zeros(length + 1)
        low = 0
        for part in together:
            others[low : low + part.size] += part if part is error else 2.0 * part
            low += part.size - 1
        key = (error.size, length)
        if key not in distances:
            lags = np.arange(1 - error.size, length + 1, dtype=np.float64)
            distances[key] = np.where(lags == 0.0, 0.0, np.abs(lags) ** power)
        total -= 0.5 * float(others @ fftconvolve(distances[key], error, mode="valid"))
    return total


def _early(steps: np.ndarray, values: np.ndarray, target: np.ndarray) -> float:
    """Bounds the error from iterates before the first snapshot.

    These iterates are assumed to move in a straight line, at the speed between the first two
    snapshots.
    """
    pace = math.sqrt(float(_norms(values[1] - values[0]))) / (steps[1] - steps[0])
    ages = steps[0] - np.arange(steps[0])
    return float(pace * (np.abs(target[: steps[0]]) @ ages))


def _norms(differences: np.ndarray) -> np.ndarray:
    return np.sum(np.square(differences, dtype=np.float64), axis=-1)


def _displacements(
    steps: np.ndarray, values: np.ndarray, moved: np.ndarray
) -> tuple[float, np.ndarray]:
    """Estimates (power s, [m-1] amplitude a in each interval between two snapshots).

    Args:
        steps, values: as in `interpolation_error`.
        moved: [m-1] squared weight that was moved out of each interval.
    """
    near, reach = _deviations(steps, values, 1)
    importance = np.zeros(steps.size)  # weight of each snapshot in the estimate of the power
    importance[:-1] += moved
    importance[1:] += moved
    # A single interval with weight does not determine a power.
    window = 2 * _NEIGHBOURS + 1
    around = np.convolve(importance, np.full(window, 1.0 / window), "full")
    importance += around[_NEIGHBOURS : _NEIGHBOURS + steps.size]
    powers = [_power(steps, values, importance, stride) for stride in (1, 2)]
    power = powers[0]
    # The closer the snapshots, the more noise shows beneath a drift; this trend is extrapolated.
    power -= max(powers[1] - powers[0], 0.0) if steps.size >= 9 else 0.0
    power = min(max(power, 0.0), _SMOOTHEST)
    before, after = reach
    share = before / (before + after)
    expected = (1.0 - share) * before**power + share * after**power
    expected -= share * (1.0 - share) * (before + after) ** power
    squared = near / expected
    at_snapshots = np.concatenate([squared[:1], squared, squared[-1:]])
    return power, np.sqrt(0.5 * (at_snapshots[:-1] + at_snapshots[1:]))


def _power(steps: np.ndarray, values: np.ndarray, importance: np.ndarray, stride: int) -> float:
    """Returns the power of time by which squared deviations grow from `stride` to `2 * stride`.

    Returns 0, the power with the largest errors, if the power cannot be determined.
    """
    if steps.size < 4 * stride + 1:
        return 0.0
    near, _ = _deviations(steps, values, stride)
    far, _ = _deviations(steps, values, 2 * stride)
    near, shares = near[stride:-stride], importance[2 * stride : -2 * stride]
    if not shares @ near > 0.0 < shares @ far:
        return 0.0
    widths = np.log(_widths(steps, 2 * stride) / _widths(steps, stride)[stride:-stride])
    return math.log((shares @ far) / (shares @ near)) / float(shares @ widths / shares.sum())


def _widths(steps: np.ndarray, stride: int) -> np.ndarray:
    return (steps[2 * stride :] - steps[: -2 * stride]).astype(np.float64)


def _deviations(
    steps: np.ndarray, values: np.ndarray, stride: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Computes squared distances of snapshots from the lines between their neighbours.

    The neighbours are those `stride` snapshots before and after.

    Returns:
        ([m - 2 stride] squared distances, the times to the two neighbours).
    """
    before = (steps[stride:-stride] - steps[: -2 * stride]).astype(np.float64)
    after = (steps[2 * stride :] - steps[stride:-stride]).astype(np.float64)
    found = np.empty(before.size)
    for i, share in enumerate(before / (before + after)):  # one at a time, to save memory
        line = (1.0 - share) * values[i] + share * values[i + 2 * stride]
        found[i] = _norms(values[i + stride] - line)
    return found, (before, after)
