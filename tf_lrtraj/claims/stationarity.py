"""Tests from records whether a run at constant rate is stationary.

Claims about a stationary state do not apply to a run that still drifts.  Each test is a number with
an interval: the change from the first to the last step of the window, along a straight line through
block means (so that autocorrelation does not make the error too small).  It must be smaller than a
limit, and either its whole 95 % interval must lie within the limit or it must not be resolved from
0: a noisy estimate beyond the limit is not evidence of a stationary state.

The norm of weights before batch norm has no effect on the loss, and without decay it only grows
(docs/theory/model.md).  Losses therefore decide; the norm is judged by its effect on the effective
rate, which is proportional to one over its square, and displacement by its growth with lag.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_lrtraj.claims.records_reader import Measured, Records
from tf_lrtraj.claims.verdicts import Condition, with_interval
from tf_lrtraj.records import RecordError
from tf_lrtraj.statistics import Estimate, exponent, line, mean_of, trend

# A loss that has levelled off may change by a tenth of itself over the window.  Rates that
# differ by a factor of 2, the smallest step between rates in any claim, move the loss of a
# network in its noise-dominated phase by several tenths, so a tenth cannot pass for them.
LOSS_LIMIT = 0.10
# The effective rate of weights before batch norm goes as 1 / norm²: a change of a fifth is
# small against the factor of 2 between neighbouring rates.
NORM_LIMIT = 0.20
# Squared displacement grows with lag as its power 0 in a stationary state, 1 in a random
# walk: below 1/2 it is nearer to the former.
GROWTH_LIMIT = 0.5
# Where a drift is compared with an effect: a quarter of it.  Averages weigh the window from
# its middle, so of a drift d over the window they feel d/2, an eighth of the effect.
SHARE_OF_EFFECT = 0.25
# Smallest number of entries of a series for an estimate from blocks.
BLOCKS_NEEDED = 8


def settled(drift: Estimate, limit: float) -> bool:
    """Returns whether a change counts as none, by the rule of this module."""
    value, low, high = with_interval(drift).interval()
    if not (math.isfinite(value) and math.isfinite(low)):
        return False
    return (-limit < low and high < limit) or (abs(value) < limit and low <= 0.0 <= high)


def in_window(record: Measured, values: str = "batch_loss") -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a series of `base` after its burn-in."""
    name = "snapshot_steps" if values == "squared_norm" else "steps"
    steps, found = record.same_length(name, values)
    inside = steps > record.setting("burn_in")
    if inside.sum() < 3:
        raise RecordError(f"{record.name}: {values!r} has fewer than 3 entries in the window.")
    return steps[inside], found[inside]


def relative_trend(steps: np.ndarray, values: np.ndarray) -> Estimate:
    """Change of a series along its trend, relative to its mean."""
    return trend(steps, values).scaled(1.0 / float(values.mean()))


def relative_line(record: Measured, **wanted: Any) -> Estimate:
    """Change of the losses of a few rows along a straight line, relative to their mean."""
    steps, losses = (record.values(field, **wanted) for field in ("step", "loss"))
    return line(steps, losses).scaled(float(np.ptp(steps)) / float(losses.mean()))


def displacement_growth(record: Measured) -> Estimate:
    """Power of the lag by which squared displacement grows, from a quarter of the longest lag on.

    Points of the curve share steps, so what they leave of a straight line is no error; it comes
    from the standard errors at the two ends, or from nothing.
    """
    lags, squares, errors = displacement(record)
    chosen = lags >= 0.25 * lags[-1]
    if chosen.sum() < 3:
        chosen = np.arange(lags.size) >= lags.size - 3
    slope = exponent(lags[chosen], squares[chosen])
    first, last = np.flatnonzero(chosen)[[0, -1]]
    ends = [errors[i] / squares[i] for i in (first, last)]
    error = math.hypot(*ends) / math.log(lags[last] / lags[first])
    return Estimate(slope.value, error)


def displacement(record: Measured) -> list[np.ndarray]:
    """Lags, ascending, with mean squared displacements and their standard errors."""
    lags, squares = record.array("lags"), record.array("mean_squared")
    errors = record.array("standard_error", finite=False)  # none at lags too long for blocks
    if not lags.size == squares.size == errors.size:
        raise RecordError(f"{record.name}: lags, mean_squared, standard_error differ in length.")
    if lags.size < 3 or np.any(np.diff(lags) <= 0) or lags[0] <= 0 or np.any(squares <= 0):
        raise RecordError(f"{record.name} must have 3 or more ascending lags, squares above 0.")
    return [lags, squares, errors]


# Over seeds -----------------------------------------------------------------------------------


def pooled(drifts: Sequence[Estimate]) -> Estimate:
    """The mean drift of several seeds' runs, with the errors within the runs.

    Seeds go through the same schedule, so drifts have a common cause and their scatter is
    that of the runs' own noise, of which there are many more blocks than seeds.
    """
    if any(not math.isfinite(drift.error) for drift in drifts):
        return mean_of([drift.value for drift in drifts])
    count = len(drifts)
    error = math.sqrt(sum(drift.error**2 for drift in drifts)) / count
    value = sum(drift.value for drift in drifts) / count
    dof = float(sum(drift.dof for drift in drifts))
    return Estimate(value, error, dof)


def drift_condition(
    name: str, what: str, drifts: Sequence[Estimate], limit: float, over: str = "the window"
) -> Condition:
    """A condition on the relative change of something in each seed's run, in per cent."""
    drift = pooled(drifts)
    return Condition(
        name,
        f"change of {what} over {over}, %",
        drift.scaled(100.0),
        -100.0 * limit,
        100.0 * limit,
        met=settled(drift, limit),
    )


def batch_loss_condition(records: Records, limit: float = LOSS_LIMIT) -> Condition:
    """Returns the condition that the mini-batch loss of the base runs is stationary."""
    drifts = [relative_trend(*in_window(record)) for record in records.measured("base")]
    return drift_condition("batch_loss_drift", "the mini-batch loss", drifts, limit)


def level_condition(records: Records, limit: float = LOSS_LIMIT) -> Condition:
    """Returns the condition that the training loss of the base runs' iterates is stationary."""
    drifts = [relative_line(record, set="train") for record in records.measured("levels")]
    what = "the full training loss of single iterates"
    return drift_condition("level_drift", what, drifts, limit)


def norm_condition(records: Records, limit: float = NORM_LIMIT) -> Condition:
    """Returns the condition that the squared norm of the weights is stationary."""
    found = [in_window(record, "squared_norm") for record in records.measured("base")]
    drifts = [relative_trend(*series) for series in found]
    return drift_condition("norm_drift", "the squared norm of the weights", drifts, limit)


def stationary(records: Records, effect: float | None = None) -> list[Condition]:
    """The conditions that a claim about the stationary state puts on the base runs.

    Args:
        records: with tasks `base` and `levels`.
        effect: relative change of the loss that the claim judges; a quarter of it is allowed
            as drift of the mini-batch loss, and never more than `LOSS_LIMIT`.  The few single
            iterates scatter too much to bound a quarter of a small effect: they have the
            general limit.
    """
    limit = LOSS_LIMIT if effect is None else min(LOSS_LIMIT, SHARE_OF_EFFECT * max(effect, 0.0))
    return [batch_loss_condition(records, limit), level_condition(records), norm_condition(records)]


def levelled_displacement(records: Records) -> Condition:
    """Returns the condition that squared displacement does not grow with lag any more."""
    growth = mean_of([displacement_growth(r).value for r in records.measured("displacement")])
    return Condition(
        "displacement_growth",
        "power of the lag by which squared displacement grows at long lags",
        growth,
        high=GROWTH_LIMIT,
        met=growth.value < GROWTH_LIMIT,
    )
