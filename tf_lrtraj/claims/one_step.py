"""Claim B4: the effect of one more step on held-out batches in the stationary state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tf_lrtraj.claims import stationarity
from tf_lrtraj.claims.records_reader import Measured, Probed, Records
from tf_lrtraj.claims.verdicts import (
    Claim,
    Condition,
    ExtraNumber,
    Judgement,
    Part,
    Wanted,
    conclude,
)
from tf_lrtraj.records import RecordError
from tf_lrtraj.statistics import Estimate, trend

# The model says 1 and 1/2.
CROSSING = Wanted(
    "zero_crossing", "rate at which the gain is gone, over the run's own", low=0.75, high=1.25
)
BEST = Wanted("best_rate", "best rate, over the run's own", low=0.375, high=0.625)


def judge_b4(records: Records) -> Judgement:
    """Zero crossing and minimum of each seed's mean held-out curve, over the run's own rate."""
    runs = {record.seed: record for record in records.measured("one_step")}
    found = records.probes("one_step-*", "line")
    rate = next(iter(runs.values())).setting("learning_rate")
    training, test = _groups(found[0])
    seeds = sorted({probe.seed for probe in found})
    of_seed = [[probe for probe in found if probe.seed == seed] for seed in seeds]
    grid = _shared_grid(found)
    drawn, numbers = {"rate": grid / rate}, []
    parts: list[Part] = []
    for name, group in (("training", training), ("test", test)):
        if not group:
            continue
        drawn[name] = np.array([_mean_curve(probes, group, grid) for probes in of_seed])
        each = np.array([landmarks(grid, curve) for curve in drawn[name]]) / rate
        if name == "training":
            parts = [CROSSING.judge(each[:, 0]), BEST.judge(each[:, 1])]
        else:
            numbers = [
                ExtraNumber(f"test_{wanted.name}", f"test images: {wanted.what}", each[:, i])
                for i, wanted in enumerate((CROSSING, BEST))
            ]
    gain = -float(drawn["training"].mean(axis=0).min())
    return conclude(parts, conditions=_level(runs, found, gain), numbers=numbers, drawn=drawn)


def _groups(probe: Probed) -> tuple[str, str]:
    """Returns which of a record's two groups of batches has training and which test images."""
    sets = {name: probe.record.about.get(f"{name}_set") for name in ("held_out", "others")}
    training = next((name for name, kind in sets.items() if kind == "train"), "")
    if not training:
        raise RecordError(f"{probe.name} has no group of training batches beside the step's own.")
    return training, next((name for name, kind in sets.items() if kind == "test"), "")


def _shared_grid(found: Sequence[Probed]) -> np.ndarray:
    """The rates that all records reach."""
    end = min(float(probe.coordinate("rate")[-1]) for probe in found)
    grid = found[0].coordinate("rate")
    grid = grid[grid <= end * (1.0 + 1e-9)]
    if grid.size < 4:
        raise RecordError(f"{found[0].name} has fewer than 4 rates in common with the others.")
    return grid


def _mean_curve(probes: Sequence[Probed], curve: str, grid: np.ndarray) -> np.ndarray:
    """[rate] change of the loss, the mean over a seed's points, steps and batches."""
    curves = []
    for probe in probes:
        losses = probe.array(f"{curve}_each", finite=False).mean(axis=(1, 2))
        rates = probe.coordinate("rate")
        inside = rates <= grid[-1] * (1.0 + 1e-9)
        if not np.isfinite(losses[inside]).all():
            raise RecordError(f"{probe.name}: {curve} losses are not finite.")
        curves.append(np.interp(grid, rates[inside], losses[inside] - losses[0]))
    return np.asarray(np.mean(curves, axis=0))


def landmarks(rates: np.ndarray, changes: np.ndarray) -> tuple[float, float]:
    """(rate at which a curve of changes is back at 0, rate of its minimum).

    Both are 0 for a curve that never falls; a crossing beyond the grid is put at its end.

    >>> rates = np.linspace(0.0, 2.0, 21)
    >>> [round(x, 9) for x in landmarks(rates, rates**2 - rates)]
    [1.0, 0.5]
    """
    low = int(np.argmin(changes))
    if low == 0:
        return 0.0, 0.0
    best = float(rates[low])
    if low < rates.size - 1:
        left, right = rates[low - 1 : low + 1] - rates[low], rates[low + 1] - rates[low]
        down = (changes[low - 1] - changes[low]) / left[0]
        up = (changes[low + 1] - changes[low]) / right
        square = (up - down) / (right - left[0])
        if square > 0.0:
            best -= 0.5 * float((up - square * right) / square)
    over = np.flatnonzero(changes[low:] >= 0.0)
    if not over.size:
        return float(rates[-1]), best
    after = low + int(over[0])
    fall, rise = changes[after - 1], changes[after]
    share = float(-fall / (rise - fall))
    return float(rates[after - 1] + share * (rates[after] - rates[after - 1])), best


def _level(
    runs: dict[int, Measured], found: tuple[Probed, ...], gain: float
) -> tuple[Condition, Condition]:
    """The run without momentum must have levelled off where it is probed.

    If the loss falls by d in each update, the curve is lower by d at the run's own rate, and
    its crossing, of slope 4G / λ for a best gain G, moves by d / 4G of the rate: the drift of
    one update may be at most G / 4, for a shift of a sixteenth.
    """
    changes, per_update = [], []
    for seed, record in runs.items():
        steps, losses = record.same_length("steps", "batch_loss")
        first = min((probe.step for probe in found if probe.seed == seed), default=0)
        inside = steps >= first
        if inside.sum() < stationarity.BLOCKS_NEEDED:
            inside = np.arange(steps.size) >= steps.size // 2
        changes.append(stationarity.relative_trend(steps[inside], losses[inside]))
        drift = trend(steps[inside], losses[inside])
        per_update.append(drift.scaled(1.0 / float(np.ptp(steps[inside]))))
    share = stationarity.SHARE_OF_EFFECT
    pooled = stationarity.pooled(per_update)
    # Without any gain a drift cannot hide one: the parts fail.
    update = pooled.scaled(1.0 / gain) if gain > 0.0 else Estimate(0.0, 0.0)
    return (
        stationarity.drift_condition(
            "one_step_drift",
            "the mini-batch loss of the run without momentum",
            changes,
            stationarity.LOSS_LIMIT,
        ),
        Condition(
            "drift_per_update",
            "change of that loss in one update, over the best gain of a step",
            update,
            -share,
            share,
            met=math.isfinite(update.value) and abs(update.value) < share,
        ),
    )


CLAIMS = (
    Claim(
        "B4",
        "In the stationary state the held-out gain vanishes at the run's rate",
        "At a stationary constant rate without momentum the held-out gain of one more step "
        "vanishes near that rate and is best near half of it.",
        "derived in docs/theory/model.md",
        ("one_step", "one_step_lines"),
        "losses of held-out batches along steps on training batches, at several iterates of a "
        "run without momentum whose loss has levelled off; landmarks of each seed's mean curve",
        (CROSSING, BEST),
        "The model gives 1 and 1/2 for every spectrum, so there is nothing to fit. A quarter "
        "either way keeps the two numbers well apart from each other, from no gain at all (0) and "
        "from a gain that outlasts the run's own rate by a half, as in a run that still descends. "
        "The two are read off at different places of the curve: only for a parabola is one half "
        "of the other. Held-out means other training batches, as in the model, where both come "
        "from one distribution; test batches stand beside them.",
        judge_b4,
    ),
)
