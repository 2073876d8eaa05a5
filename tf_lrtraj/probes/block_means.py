"""Means along a run and their errors, from blocks of starts; plain NumPy.

What is measured over a lag from starts closer than the lag shares steps, so it is not
independent.  Errors come from leaving out one *block* of starts at a time, each block at
least as long as the lag; with fewer than three such blocks the error is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tf_lrtraj.probes.estimators import Estimate

MOST_BLOCKS = 8
_FEWEST_BLOCKS = 3


def blocks(starts: np.ndarray, lag: int) -> np.ndarray | None:
    """[n] number of the block each start lies in; None if there are too few for an error."""
    if starts.size < _FEWEST_BLOCKS:
        return None
    spacing = int(np.diff(starts).min())
    extent = int(starts[-1] - starts[0]) + spacing
    count = min(MOST_BLOCKS, extent // max(lag, spacing))
    if count < _FEWEST_BLOCKS:
        return None
    numbers = (starts - starts[0]) * count // extent
    return numbers if np.unique(numbers).size == count else None


def block_mean(
    starts: np.ndarray,
    values: np.ndarray,
    lag: int,
    scales: tuple[np.ndarray, np.ndarray] | None = None,
) -> Estimate:
    """The mean over starts and its error by leaving out blocks of them.

    Args:
        starts: [n] ascending steps.
        values: [n].
        lag: how long what starts there takes.
        scales: two arrays [n]; the mean is divided by the root of the product of theirs.

    >>> block_mean(np.arange(8), np.array([0.0, 2.0] * 4), 1)
    Estimate(value=1.0, error=0.3779644730092272)
    """

    def statistic(kept: np.ndarray) -> float:
        mean = float(values[kept].mean())
        if scales is None:
            return mean
        square = float(scales[0][kept].mean() * scales[1][kept].mean())
        positive = min(scales[0][kept].mean(), scales[1][kept].mean()) > 0.0
        return mean / math.sqrt(square) if positive else math.inf

    if not np.isfinite(values).all():
        return Estimate(math.inf, math.inf)
    whole = statistic(np.ones(values.size, bool))
    numbers = blocks(starts, lag)
    if numbers is None:
        return Estimate(whole, math.inf)
    return Estimate(whole, _spread([statistic(numbers != i) for i in range(numbers.max() + 1)]))


def _spread(without: Sequence[float]) -> float:
    found, count = np.array(without), len(without)
    if not np.isfinite(found).all():
        return math.inf
    return float(np.sqrt((count - 1) / count * np.sum((found - found.mean()) ** 2)))


def growth(steps: np.ndarray, lags: np.ndarray, squared: np.ndarray) -> Estimate:
    r"""How squared displacement grows at large lags: :math:`d\ln D / d\ln\Delta`.

    0 where it has levelled off (a stationary state), 1 for a random walk, 2 for a drift.  The
    slope of a straight line through the lags from a quarter of the largest on.

    Args:
        steps: [K] later steps.
        lags: [L].
        squared: [L, K] squared displacements, inf where there is none.

    Returns:
        the slope and its error by leaving out blocks of starts; both inf for fewer than 3 lags.
    """
    lags, squared = np.asarray(lags), np.asarray(squared)
    rows = np.flatnonzero(lags >= lags[-1] / 4)
    if rows.size < 3:
        return Estimate(math.inf, math.inf)
    present = np.isfinite(squared)
    longest = steps[present[-1]] - lags[-1]
    numbers = blocks(longest, int(lags[-1]))
    count = 0 if numbers is None else int(numbers.max()) + 1

    def slope(left_out: int | None) -> float:
        means = []
        for row in rows.tolist():
            starts = steps - lags[row]
            kept = present[row].copy()
            if left_out is not None:
                extent = int(longest[-1] - longest[0]) + int(np.diff(longest).min())
                block = np.clip((starts - longest[0]) * count // extent, 0, count - 1)
                kept &= block != left_out
            means.append(squared[row, kept].mean() if kept.any() else np.nan)
        if not np.all(np.array(means) > 0.0):
            return math.inf
        return float(np.polyfit(np.log(lags[rows]), np.log(means), 1)[0])

    value = slope(None)
    if not count or not math.isfinite(value):
        return Estimate(value, math.inf)
    return Estimate(value, _spread([slope(i) for i in range(count)]))
