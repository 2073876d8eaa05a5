r"""Heights of barriers along a segment, from losses measured on it; pure NumPy.

With \(t\) running from 0 at the first point to 1 at the second, and \(L_b\) the loss of
batch b, the **barrier** is

.. math:: \max_{0 \le t \le 1} \; \overline{L_b(t) - (1-t) L_b(0) - t L_b(1)},

the height over the straight line between the losses of the ends (Frankle et al. 2020, arXiv
1912.05671, take the mean of the two losses instead, which is the same at the middle).  The **rise**
is the plain height over the larger of the two ends.  In a convex basin both are 0, which is their
value at an end.  Differences are taken batch by batch, so constant differences between batches
cancel.  Maxima between two positions of the grid are not found.

The maximum over noisy means is biased upwards. There are two further estimates. The cross-fitted
height chooses the position on one half of the batches and measures the height on the other half; it
is biased downwards if the position is chosen badly. The upper limit is the largest of the upper
limits at all positions, and exceeds the true maximum with the stated confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_lrtraj.statistics import mean_and_se, student
from tf_lrtraj.values import error

ONE_BASIN, UNDECIDED, BARRIER = -1, 0, 1
VERDICTS = {ONE_BASIN: "one basin", UNDECIDED: "undecided", BARRIER: "barrier"}


class Height(NamedTuple):
    """The maximum of a curve, in units of the loss.

    Attributes:
        height: maximum over positions of the mean over batches; 0 or more.
        at: its position.
        se: standard error of the mean at that position.
        cross: mean of the heights at positions chosen on the other half of the batches.
        cross_se: its standard error for independent halves; for a flat curve it is about a tenth
            too small.
        upper: largest upper limit (97.5 %) of the mean at any position.
    """

    height: float
    at: float
    se: float
    cross: float
    cross_se: float
    upper: float


def segment(positions: Any, losses: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the part of a curve between the two points.

    Args:
        positions: [K] increasing, with 0 and 1 among them.
        losses: [K, n] losses of n batches.

    Raises:
        ValueError: if they do not fit, or an end was not measured.
    """
    positions = np.asarray(positions, np.float64)
    losses = np.asarray(losses, np.float64)
    if (
        positions.ndim != 1
        or losses.shape[:1] != positions.shape
        or losses.ndim != 2
        or not losses.size
    ):
        raise ValueError(
            "`losses` must be [positions, batches]. "
            f"Received: shapes {losses.shape} for positions of {positions.shape}"
        )
    if not (np.all(np.diff(positions) > 0) and {0.0, 1.0} <= set(positions.tolist())):
        raise error("positions", "increasing, with 0 and 1 among them", positions)
    inside = (positions >= 0.0) & (positions <= 1.0)
    return positions[inside], losses[inside]


def excess(positions: Any, losses: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns (positions from 0 to 1, [K, n] losses minus each batch's line between the ends).

    >>> excess([0.0, 0.5, 1.0], [[1.0], [2.0], [2.0]])[1].tolist()
    [[0.0], [0.5], [0.0]]
    """
    positions, losses = segment(positions, losses)
    share = positions[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        line = np.where(share == 0.0, losses[0], (1.0 - share) * losses[0] + share * losses[-1])
        found = losses - np.where(share == 1.0, losses[-1], line)
    found[[0, -1]] = 0.0  # by definition, infinite losses included
    return positions, found


def over_larger_end(positions: Any, losses: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns (positions from 0 to 1, [K, n] losses minus those at the end with larger mean)."""
    positions, losses = segment(positions, losses)
    larger = losses[0] if losses[0].mean() >= losses[-1].mean() else losses[-1]
    with np.errstate(invalid="ignore"):
        return positions, losses - larger


def highest(positions: np.ndarray, heights: np.ndarray) -> Height:
    """Returns the maximum of [K, n] heights over positions, with its error over batches.

    >>> curve = np.array([0.0, 1.0, 0.0])[:, None] + np.array([[0, 0], [-0.5, 0.5], [0, 0]])
    >>> highest(np.array([0.0, 0.5, 1.0]), curve)[:5]
    (1.0, 0.5, 0.5, 1.0, 0.5)
    """
    count = heights.shape[1]
    means, errors = mean_and_se(heights)
    # Losses that overflowed give infinite heights.
    means = np.where(np.isnan(means), np.inf, means)
    best = int(np.argmax(means))
    if count < 2:
        nan = float("nan")
        return Height(float(means[best]), float(positions[best]), nan, nan, nan, nan)
    spread = student(count - 1) * errors
    upper = float(np.max(np.where(np.isnan(spread), np.inf, means + spread)))
    own = np.empty(count)
    for fold in range(2):
        chosen = int(
            np.argmax(np.nan_to_num(mean_and_se(heights[:, 1 - fold :: 2])[0], nan=np.inf))
        )
        own[fold::2] = heights[chosen, fold::2]
    cross, cross_se = mean_and_se(own)
    return Height(
        float(means[best]),
        float(positions[best]),
        float(errors[best]),
        float(cross),
        float(cross_se),
        upper,
    )


def verdict(height: Height, level: float, count: int) -> int:
    """Returns whether two points lie in one basin, at a stated level.

    The verdict is `ONE_BASIN` if the upper limit of the height is below the level, `BARRIER` if the
    lower limit (97.5 %, Student's) of the cross-fitted height is above it, and `UNDECIDED`
    otherwise.

    Args:
        height: the height of the barrier.
        level: the height, in units of the loss, below which a barrier counts as none.
        count: number of batches.
    """
    if count < 2:
        return UNDECIDED
    if height.upper < level:
        return ONE_BASIN
    if not np.isfinite(height.cross):
        return BARRIER
    lower = height.cross - student(count - 1) * height.cross_se
    return BARRIER if lower > level else UNDECIDED


class Asymmetry(NamedTuple):
    """Differences `L(centre + s) - L(centre - s)`, batch by batch.

    Attributes:
        offsets: [S] values of s.
        difference: [S] means over batches; positive where the far side is steeper.
        se: [S] standard errors.
    """

    offsets: np.ndarray
    difference: np.ndarray
    se: np.ndarray


def offsets(positions: Any, centre: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (offsets s, indices of centre + s, indices of centre - s) within the grid."""
    positions = np.asarray(positions, np.float64)
    after = np.flatnonzero(positions > centre + 1e-9)
    mirrored = 2.0 * centre - positions[after]
    before = np.searchsorted(positions, mirrored - 1e-9)
    there = before < len(positions)
    there[there] = np.abs(positions[before[there]] - mirrored[there]) < 1e-9
    return positions[after[there]] - centre, after[there], before[there]


def asymmetry(positions: Any, losses: Any, centre: float = 0.5) -> Asymmetry:
    """Returns the asymmetry of a valley (He et al. 2019, arXiv 1902.00744).

    >>> asymmetry([0.0, 0.5, 1.0], [[1.0, 1.0], [0.0, 0.0], [3.0, 5.0]])
    Asymmetry(offsets=array([0.5]), difference=array([3.]), se=array([1.]))
    """
    losses = np.asarray(losses, np.float64)
    steps, after, before = offsets(positions, centre)
    with np.errstate(invalid="ignore"):
        differences = losses[after] - losses[before]
    return Asymmetry(steps, *mean_and_se(differences))


def check_pairs(
    pairs: Sequence[Sequence[str]] | None, names: Sequence[str]
) -> list[tuple[str, str]]:
    """Checks the pairs of points to connect; None for all pairs."""
    if pairs is None:
        return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    found = []
    for pair in pairs:
        entry = tuple(str(name) for name in pair)
        if len(entry) != 2 or entry[0] == entry[1] or not set(entry) <= set(names):
            raise error("pairs", f"pairs of different points out of {list(names)}", tuple(pair))
        found.append((entry[0], entry[1]))
    if not found or len(set(found)) < len(found):
        raise error("pairs", "at least one pair, each once", found)
    return found
