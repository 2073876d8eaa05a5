"""Measures what `theory.what_if` needs of a run with snapshots: its curve, and a few averages."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from tf_lrtraj import records, values
from tf_lrtraj.averaging.advising.measured import MeasuredLosses, Measurement, is_finite
from tf_lrtraj.averaging.advising.measurement_plan import equally_spaced
from tf_lrtraj.averaging.advising.sweep import Candidate, candidate
from tf_lrtraj.averaging.snapshots import Snapshots

__all__ = ["CurvePlan", "MeasuredCurve", "constant_from", "measure_curve", "plan_curve"]

_FEWEST = 8  # snapshots measured alone
_LENGTHS = (0.05, 0.1, 0.2, 0.4)  # of averages, in shares of the steps they end at
_ENDS = (1.0, 0.85, 0.7)  # of averages, in shares of the last step


@dataclasses.dataclass(frozen=True)
class CurvePlan:
    """What will be measured, decided before anything is.

    Attributes:
        steps: [K] the equally spaced snapshots at the constant rate, oldest first.
        singles: positions measured alone.
        averages: (end position, weights over all snapshots) of averages.
    """

    steps: np.ndarray
    singles: list[int]
    averages: list[tuple[int, Candidate]]

    @property
    def every(self) -> int:
        """Updates between snapshots."""
        return int(self.steps[1] - self.steps[0])

    def describe(self, images: int) -> str:
        """The cost, before it is incurred; `images` go through the network in one measurement."""
        number = len(self.singles) + len(self.averages)
        text = (
            f"{self.steps.size} snapshots at the constant rate, steps {self.steps[0]} to "
            f"{self.steps[-1]}, every {self.every}\nto measure: {len(self.singles)} single "
            f"snapshots and {len(self.averages)} averages: {number} losses"
        )
        return text + (f", {number * images:,} images through the network" if images else "")


@dataclasses.dataclass(frozen=True)
class MeasuredCurve:
    """A run's curve and averages: `steps` and `losses` [K], and (length, step, loss) each."""

    steps: np.ndarray
    losses: np.ndarray
    averages: list[tuple[int, int, float]]


def constant_from(learning_rates: np.ndarray) -> int:
    """The first step from which the rate is the last one, in a run whose later half is constant.

    Args:
        learning_rates: [T] of the run.

    Raises:
        ValueError: if the rate changes in the later half of the run.

    >>> constant_from(np.array([0.0, 0.1, 0.2, 0.2, 0.2, 0.2]))
    2
    """
    last = learning_rates[-1]
    changed = np.flatnonzero(np.abs(learning_rates - last) > 1e-6 * last)
    first = int(changed[-1]) + 1 if changed.size else 0
    if learning_rates[-1] <= 0.0 or 2 * first > learning_rates.size:
        at = max(first - 1, 0)
        raise ValueError(
            "the run must have a constant rate above 0 over its later half. Received: "
            f"{learning_rates[at]:g} at step {at}, {learning_rates[-1]:g} at the end "
            f"({learning_rates.size})"
        )
    return first


def plan_curve(steps: np.ndarray, first: int, singles: int = 32) -> CurvePlan:
    """Decides what is measured.

    Args:
        steps: of all snapshots.
        first: leave out snapshots before this step, where the rate was another.
        singles: how many snapshots are measured alone.

    Raises:
        ValueError: if there are too few equally spaced snapshots.
    """
    singles = values.integer(_FEWEST).check("singles", singles)
    kept = equally_spaced(steps, first=max(first, 1))
    count, last = kept.size, int(kept[-1])
    every = int(kept[1] - kept[0])
    places = np.unique(np.linspace(0, count - 1, min(singles, count)).round().astype(int))
    averages: dict[tuple[int, int], Candidate] = {}
    for end in _ENDS:
        at = int(np.searchsorted(kept, end * last * (1.0 - 1e-9)))
        for share in _LENGTHS:
            number = round(share * int(kept[at]) / every)
            if 2 <= number <= at + 1:
                averages[at, number] = candidate("swa", number, at + 1)
    return CurvePlan(kept, places.tolist(), [(at, c) for (at, _), c in averages.items()])


def measure_curve(
    snapshots: Snapshots,
    measurement: Measurement,
    plan: CurvePlan,
    folder: str | os.PathLike[str] | None,
    progress: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> MeasuredCurve:
    """Measures single snapshots and averages; each loss once, kept in `folder` as it comes.

    An average of `number` snapshots `every` steps apart stands for the average of
    `number * every` iterates.

    Raises:
        RecordError: if a snapshot is damaged, or a loss is not finite.
    """
    tell(plan.describe(measurement.images))
    path = None if folder is None else records.prepare_workdir(folder) / "measured.jsonl"
    losses = MeasuredLosses(snapshots, plan.steps.tolist(), measurement, path)
    identity = np.eye(plan.steps.size)
    wanted = {f"single_{plan.steps[i]}": identity[i] for i in plan.singles}
    means = {}
    for at, average in plan.averages:
        weights = np.zeros(plan.steps.size)
        weights[: at + 1] = average.weights
        means[f"{average.name}_at_{plan.steps[at]}"] = weights
    left = losses.missing([*wanted.values(), *means.values()])
    known = len(wanted) + len(means) - left
    if known:
        tell(f"{known} of these losses were measured before")
    first = dict(list(wanted.items())[:2])  # the first one also compiles
    found = losses.measure(first, "first two", progress)
    if left and losses.seconds_each is not None:
        remaining = losses.missing([*wanted.values(), *means.values()])
        tell(
            f"a measurement takes {losses.seconds_each:.2g} s, so about "
            f"{remaining * losses.seconds_each:.0f} s from here"
        )
    found |= losses.measure(wanted, "single snapshots", progress)
    found |= losses.measure(means, "averages", progress)
    for name, row in found.items():
        if not is_finite(row["loss"]):
            raise records.RecordError(f"the loss of {name} is not finite; a run that diverged")
    return MeasuredCurve(
        plan.steps[plan.singles].astype(np.float64),
        np.array([found[name]["loss"] for name in wanted]),
        [
            (round(average.parameter) * plan.every, int(plan.steps[at]), found[name]["loss"])
            for (at, average), name in zip(plan.averages, means, strict=True)
        ],
    )
