"""`Plan`: the measurements of an advice, determined in advance."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.averaging.advising import sweep as families
from tf_lrtraj.averaging.advising.sweep import Candidate
from tf_lrtraj.averaging.snapshots import nearest

__all__ = ["Effort", "Plan", "equally_spaced", "make_plan"]

RECOMMENDATIONS = 4  # averages built at the end: the best of three families, the best weights
_FEWEST = 8  # snapshots that an advice needs


@dataclasses.dataclass(frozen=True)
class Effort:
    """The number of measurements.

    Attributes:
        singles: number of single snapshots, evenly spread (in addition to the ends of pairs).
        lags: number of distances of pairs, log-spaced.
        pairs: number of pairs per distance, spread over the run.
        calibration: number of long averages measured to correct the prediction.
        every_pair: whether to measure every snapshot and every pair instead, K (K + 1) / 2 losses.
            The prediction is then exact for a quadratic loss; a reference for few snapshots.

    Raises:
        ValueError: if a number is too small.
    """

    singles: int = 24
    lags: int = 6
    pairs: int = 6
    calibration: int = 3
    every_pair: bool = False

    def __post_init__(self) -> None:
        for name, least in (("singles", 4), ("lags", 2), ("pairs", 1), ("calibration", 0)):
            values.integer(least).check(name, getattr(self, name))
        if self.calibration == 1:
            raise values.error("calibration", "0 or at least 2", 1)


DEFAULT = Effort()


@dataclasses.dataclass(frozen=True)
class Plan:
    """The measurements of an advice.

    Attributes:
        steps: [K] steps of the equally spaced snapshots in use, oldest first.
        singles: positions of snapshots measured alone.
        pairs: (earlier, later) positions of snapshots whose midpoints are measured.
        calibration: long averages that calibrate the prediction.
        sweep: averages that are measured only to compare them with their prediction.
        every_pair: whether `pairs` contains every pair.
    """

    steps: np.ndarray
    singles: list[int]
    pairs: list[tuple[int, int]]
    calibration: list[Candidate]
    sweep: list[Candidate]
    every_pair: bool = False

    @property
    def count(self) -> int:
        """K, the number of snapshots in use."""
        return self.steps.size

    @property
    def every(self) -> int:
        """Number of updates between snapshots."""
        return int(self.steps[1] - self.steps[0])

    @property
    def measurements(self) -> int:
        """Number of losses measured, including those of at most 4 recommendations."""
        return len(self.singles) + len(self.pairs) + len(self.calibration) + RECOMMENDATIONS

    @property
    def full_sweep(self) -> int:
        """Number of losses of a sweep over every SWA length, every gap and 40 decays."""
        return len(families.full_sweep(self.count))

    def describe(self, images: int) -> str:
        """Describes the cost of the plan.

        Args:
            images: number of images that pass through the network in one measurement.
        """
        number = self.measurements
        text = (
            f"{self.count} snapshots, steps {self.steps[0]} to {self.steps[-1]}, every {self.every}"
            f"\nto measure: {len(self.singles)} single snapshots, {len(self.pairs)} pairs, "
            f"{len(self.calibration)} long averages for calibration, at most 4 recommendations: "
            f"{number} losses"
        )
        if images:
            text += f", {number * images:,} images through the network"
        text += (
            f"\na sweep of every SWA length, every gap and 40 decays: {self.full_sweep} losses; "
            f"this is {number / self.full_sweep:.0%} of it"
        )
        if self.sweep:
            text += f"\nand {len(self.sweep)} more averages to compare predictions with"
        return text


def equally_spaced(steps: Any, first: int | None = None, last: int | None = None) -> np.ndarray:
    """Returns the longest equally spaced sequence of snapshots that ends at `last`.

    Raises:
        ValueError: if `last` is not the step of a snapshot, or the sequence has fewer than 8.

    >>> equally_spaced([0, 3, 6, 9, 12, 15, 18, 21, 24, 25])
    Traceback (most recent call last):
    ...
    ValueError: advice needs at least 8 equally spaced snapshots. Received: 2 (of 10) up to step 25
    >>> equally_spaced([0, 3, 6, 9, 12, 15, 18, 21, 24, 25], last=24).size
    9
    """
    steps = np.asarray(steps, np.int64)
    last = int(steps[-1]) if last is None else last
    if last not in steps:
        raise values.error(
            "last", f"the step of a snapshot; the nearest are {nearest(steps, last)}", last
        )
    there = set(steps[steps >= (0 if first is None else first)].tolist())
    best = [last]
    for spacing in np.unique(np.diff(steps)).tolist():
        chain = [last]
        while chain[-1] - spacing in there:
            chain.append(chain[-1] - spacing)
        if len(chain) > len(best):
            best = chain
    if len(best) < _FEWEST:
        raise ValueError(
            f"advice needs at least {_FEWEST} equally spaced snapshots. Received: {len(best)} (of "
            f"{steps.size}) up to step {last}"
        )
    return np.array(best[::-1])


def make_plan(
    steps: Any,
    effort: Effort = DEFAULT,
    first: int | None = None,
    last: int | None = None,
    verify: int = 0,
) -> Plan:
    """Makes the plan of an advice.

    Args:
        steps: steps of all snapshots.
        effort: the number of measurements.
        first, last: the first and last step to use; all snapshots by default.
        verify: approximate number of averages of the sweep to measure for comparison.

    Raises:
        ValueError: as `equally_spaced`.
    """
    chosen = equally_spaced(steps, first, last)
    count = chosen.size
    singles, pairs = list(range(count)), list(itertools.combinations(range(count), 2))
    if not effort.every_pair:
        singles, pairs = _spread(count, effort)
    calibration = [
        families.candidate("swa", max(round(count / 2.0**i), 2), count)
        for i in range(effort.calibration)
    ]
    sweep = families.sweep(count, verify) if verify else []
    return Plan(chosen, singles, pairs, calibration, sweep, effort.every_pair)


def _spread(count: int, effort: Effort) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns singles on an even grid that ends with the last snapshot, and pairs near it."""
    stride = -(-count // effort.singles)
    grid = np.arange(count - 1, -1, -stride)[::-1]
    lags = np.unique(np.round(np.geomspace(1, count - 1, effort.lags)).astype(int))
    pairs = []
    for lag in lags.tolist():
        # A pair whose lag is on the grid needs no other snapshots; a shorter lag needs one more.
        on_grid = max(round(lag / stride), 1) * stride if lag >= stride else lag
        lag = on_grid if on_grid < count else lag
        starts = grid[grid + lag < count]
        if not starts.size:
            starts = np.array([count - 1 - lag])
        number = min(effort.pairs, starts.size)
        places = np.round((np.arange(number) + 0.5) / number * starts.size - 0.5).astype(int)
        pairs += [(int(start), int(start) + lag) for start in starts[places]]
    pairs = sorted(set(pairs))
    singles = sorted(set(grid.tolist()) | {end for pair in pairs for end in pair})
    return singles, pairs
