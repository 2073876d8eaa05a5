"""Claim B4: what one more step does to held-out batches in the stationary state."""

from __future__ import annotations

import numpy as np

from tf_lrtraj.claims import stationarity
from tf_lrtraj.claims.records_reader import Measured, Probed, Records
from tf_lrtraj.claims.statistics import Estimate, jackknife, trend
from tf_lrtraj.claims.verdicts import (
    Claim,
    Condition,
    Judgement,
    as_interval,
    conclude,
    number,
    shown,
    within,
)
from tf_lrtraj.records import RecordError

# B4.  The model says 1 and 1/2 for any spectrum.  "Near" is a quarter either way: far enough
# from each other (1/2 and 1), from 0 and from 2 that no two answers can be confused.
CROSSING, BEST, NEAR = 1.0, 0.5, 0.25


def judge_b4(records: Records) -> Judgement:
    """Zero crossing and minimum of the mean held-out curve, over the run's own rate."""
    runs = {record.seed: record for record in records.measured("one_step")}
    found = records.probes("one_step-*", "line")
    rate = next(iter(runs.values())).setting("learning_rate")
    training, test = _groups(found[0])
    grid, curves = _curves(found, training)
    places = np.arange(len(curves))

    def landmark(which: int) -> Estimate:
        statistic = lambda kept: landmarks(grid, curves[kept].mean(axis=0))[which]  # noqa: E731
        return jackknife(statistic, places, "points").scaled(1.0 / rate)

    parts = [
        within(
            "zero_crossing",
            landmark(0),
            CROSSING * (1.0 - NEAR),
            CROSSING * (1.0 + NEAR),
            "the gain is gone at, over the run's rate,",
        ),
        within(
            "best_rate",
            landmark(1),
            BEST * (1.0 - NEAR),
            BEST * (1.0 + NEAR),
            "the best rate, over the run's rate,",
        ),
    ]
    numbers, notes = {}, []
    for part, predicted in zip(parts, (CROSSING, BEST), strict=True):
        off = 100.0 * (part.interval.value / predicted - 1.0)
        notes.append(f"the model says {predicted:g}: {part.name} is {number(off)} % off")
    notes.append("held-out here: training batches, drawn whatever the step's batch is")
    if test:
        test_grid, changes = _curves(found, test)
        crossing, best = landmarks(test_grid, changes.mean(axis=0))
        numbers = {"test_zero_crossing": crossing / rate, "test_best_rate": best / rate}
    gain = -float(curves.mean(axis=0).min())
    conditions = [_one_step_condition(runs, found, gain)]
    return conclude(parts, conditions=conditions, numbers=numbers, notes=notes)


def _groups(probe: Probed) -> tuple[str, str]:
    """Which of a record's two groups of batches are training images, and which test images."""
    sets = {name: probe.record.about.get(f"{name}_set") for name in ("held_out", "others")}
    training = next((name for name, kind in sets.items() if kind == "train"), "")
    if not training:
        raise RecordError(f"{probe.name} has no group of training batches beside the step's own.")
    return training, next((name for name, kind in sets.items() if kind == "test"), "")


def _curves(found: tuple[Probed, ...], curve: str) -> tuple[np.ndarray, np.ndarray]:
    """(rates, [points, rates] mean changes of the loss), on the rates that all points share."""
    end = min(float(probe.coordinate("rate")[-1]) for probe in found)
    grid = np.asarray(found[0].coordinate("rate"), np.float64)
    grid = grid[grid <= end * (1.0 + 1e-9)]
    curves = []
    for probe in found:
        losses = probe.array(f"{curve}_each", finite=False).mean(axis=(1, 2))
        rates = np.asarray(probe.coordinate("rate"), np.float64)
        inside = rates <= end * (1.0 + 1e-9)
        if not np.isfinite(losses[inside]).all():
            raise RecordError(f"{probe.name}: {curve} losses are not finite.")
        curves.append(np.interp(grid, rates[inside], losses[inside] - losses[0]))
    if grid.size < 4:
        raise RecordError(f"{found[0].name} has fewer than 4 rates in common with the others.")
    return grid, np.array(curves)


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


def _one_step_condition(
    runs: dict[int, Measured], found: tuple[Probed, ...], gain: float
) -> Condition:
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
        drift = trend(steps[inside], losses[inside])
        changes.append(drift.scaled(1.0 / float(losses[inside].mean())))
        per_update.append(drift.scaled(1.0 / float(np.ptp(steps[inside]))))
    change, each = stationarity.pooled(changes), stationarity.pooled(per_update)
    small = gain <= 0.0 or abs(each.value) < stationarity.SHARE_OF_EFFECT * gain
    met = stationarity.settled(change, stationarity.LOSS_LIMIT) and small
    text = (
        f"the loss of the run without momentum changes by {shown(change.scaled(100.0))} % while "
        f"it is probed, {number(each.value)} an update against a best gain of {number(gain)} "
        f"({'level' if met else 'not level'} enough)"
    )
    numbers = {"one_step_drift": as_interval(change), "drift_per_update": as_interval(each)}
    return Condition(met, text, numbers)


CLAIMS = (
    Claim(
        "B4",
        "At a stationary constant rate without momentum the held-out gain of one more step "
        "vanishes near that rate and is best near half of it.",
        "derived in docs/theory/model.md",
        ("one_step", "one_step_lines"),
        "losses of held-out batches along steps on training batches, at several iterates of a "
        "run without momentum whose loss has levelled off",
        f"the intervals of zero crossing and best rate, over the run's rate, lie within "
        f"{100 * NEAR:g} % of {CROSSING:g} and {BEST:g}",
        "The model gives 1 and 1/2 for every spectrum, so there is nothing to fit. A quarter "
        "either way keeps the two numbers well apart from each other, from no gain at all (0) and "
        "from a gain that outlasts the run's own rate by a half, as in a run that still descends. "
        "Held-out means other training batches, as in the model, where both come from one "
        "distribution; test batches stand beside them.",
        judge_b4,
    ),
)
