"""Claims A6 and A7: speed and noise on two time scales, and theory against simulation."""

from __future__ import annotations

import math

import numpy as np

from tf_lrtraj.claims.records_reader import Measured, Records
from tf_lrtraj.claims.statistics import Estimate, combine, mean_of, median_of, student
from tf_lrtraj.claims.verdicts import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Judgement,
    Part,
    above,
    as_interval,
    below,
    conclude,
    number,
)
from tf_lrtraj.records import RecordError

SOURCE = "Sandler et al. 2023, arXiv 2301.02312"

# A6.  "No loss of speed" against the small rate that ends as low: twice as fast is no accident.
SPEED = 2.0
# A7.  Family-wise levels over all comparisons: 5 % to agree, 0.1 % to disagree.
AGREE, DISAGREE = 0.05, 0.001
# A7.  A simulation with errors of half its values agrees with anything: 5 % at most.
PRECISION = 0.05
# A7.  Runs without errors of their own: a tenth, twice the Monte-Carlo error of 40 runs.
DEVIATION = 0.10
CURVES = ("large", "ema", "small")


# A6 -------------------------------------------------------------------------------------------


def judge_a6(records: Records) -> Judgement:
    """Steps to a level on the model, and losses at equal step counts of a real run."""
    model = records.one("two_time_scales")
    steps = {name: model.maybe(f"{name}_steps_to_level") for name in ("ema", "small")}
    length = float(model.array("simulated_steps")[-1])
    # Never reached counts as not before the end for the small rate, and against the average.
    quick = math.inf if steps["ema"] is None else max(steps["ema"], 1.0)
    slow = length if steps["small"] is None else steps["small"]
    faster = 0.0 if math.isinf(quick) else slow / quick
    end = {name: _at_end(model, name) for name in ("large", "ema")}
    lower = Estimate(
        end["large"].value / end["ema"].value - 1.0,
        math.hypot(end["large"].error, end["ema"].error) / end["ema"].value,
        end["large"].dof,
    )
    parts = [
        above("model_speed", faster, SPEED, "model: steps to the level, small rate over average,"),
        above(
            "model_lower", lower, 0.0, "model: loss of the large rate over its average's, less 1,"
        ),
    ]
    lower_real, faster_real, places = _real(records)
    what = "network: ln of the average's loss over the raw iterate's in the later half"
    parts.append(below("network_lower", lower_real, 0.0, what))
    what = "network: ln of the average's loss over that of the small rate at equal step counts"
    parts.append(below("network_speed", faster_real, 0.0, what))
    notes = [
        f"model: rates {number(model.setting('large_rate'))} and "
        f"{number(model.setting('small_rate'))}, the latter with the average's stationary loss",
        f"network: compared at {places} step counts; of one seed intervals are over step counts",
    ]
    return conclude(parts, notes=notes)


def _at_end(record: Measured, name: str) -> Estimate:
    losses, errors = record.same_length(f"{name}_simulated", f"{name}_stderr")
    if losses[-1] <= 0.0 or errors[-1] < 0.0:
        raise RecordError(f"{record.name}: {name}_simulated must be positive.")
    runs = record.setting("num_runs")
    return Estimate(float(losses[-1]), float(errors[-1]), runs - 1.0, f"{runs:.0f} runs")


def _real(records: Records) -> tuple[Estimate, Estimate, int]:
    lower, faster, places = [], [], 0
    for record in records.measured("speed"):
        rates = sorted({record.number(row, "learning_rate") for row in record.select(of="raw")})
        if len(rates) < 2:
            raise RecordError(f"{record.name} must have raw losses at two rates.")
        losses = {
            name: _by_step(record, of, rate)
            for name, of, rate in (
                ("raw", "raw", rates[-1]),
                ("average", "average", rates[-1]),
                ("small", "raw", rates[0]),
            )
        }
        steps = sorted(set.intersection(*(set(found) for found in losses.values())))
        if len(steps) < 2:
            raise RecordError(f"{record.name} has fewer than 2 step counts in common.")
        places = len(steps)
        log = {n: np.log([found[step] for step in steps]) for n, found in losses.items()}
        late = places // 2
        lower.append(mean_of((log["average"] - log["raw"])[late:], "step counts"))
        faster.append(mean_of(log["average"] - log["small"], "step counts"))
    return combine(lower), combine(faster), places


def _by_step(record: Measured, of: str, rate: float) -> dict[float, float]:
    rows = record.select(of=of, learning_rate=rate, set="train_part")
    found = {record.number(row, "step"): record.number(row, "loss") for row in rows}
    if any(loss <= 0.0 for loss in found.values()):
        raise RecordError(f"{record.name}: losses must be positive.")
    return found


# A7 -------------------------------------------------------------------------------------------


def judge_a7(records: Records) -> Judgement:
    """Largest miss between exact and simulated losses, in standard errors."""
    model = records.one("two_time_scales")
    steps = model.array("simulated_steps").astype(int)
    runs = model.setting("num_runs")
    misses, spreads = [], []
    for name in CURVES:
        exact = model.array(f"{name}_losses")
        found, errors = model.same_length(f"{name}_simulated", f"{name}_stderr")
        if found.size != steps.size or steps.max() >= exact.size or np.any(errors <= 0.0):
            raise RecordError(f"{model.name}: {name} does not fit its simulated steps.")
        misses.append(np.abs(found - exact[steps]) / errors)
        spreads.append(errors / np.abs(exact[steps]))
    miss = np.concatenate(misses)
    worst = float(miss.max())
    agree, disagree = (student(runs - 1.0, 1.0 - p / miss.size) for p in (AGREE, DISAGREE))
    verdict = REPRODUCED if worst < agree else NOT_REPRODUCED if worst > disagree else INCONCLUSIVE
    text = (
        f"largest of {miss.size} misses between theory and simulation {number(worst)} standard "
        f"errors (wanted: below {number(agree)}, and {number(disagree)} would refute)"
    )
    precision = median_of(np.concatenate(spreads))
    single = _single_runs(records.one("single_runs"))
    parts = [
        Part("largest_miss", as_interval(worst), verdict, text),
        below("precision", precision, PRECISION, "median relative error of the simulation"),
        below(
            "deviation",
            median_of(single),
            DEVIATION,
            "single runs: median deviation of crossings, distances, displacements from theory",
        ),
    ]
    numbers = {
        "mean_square_miss": as_interval(float(np.mean(miss**2))),
        "largest_deviation": as_interval(float(single.max())),
    }
    notes = [
        "curves: a large rate, its EMA (the averaged SGD), and the small rate the EMA equals; "
        "steps of one curve share runs, so the bound for so many misses is wide"
    ]
    return conclude(parts, numbers=numbers, notes=notes)


def _single_runs(record: Measured) -> np.ndarray:
    found = []
    for name in ("zero_crossings", "distances", "displacement"):
        exact, measured = record.same_length(name, f"{name}_measured")
        if np.any(exact <= 0.0):
            raise RecordError(f"{record.name}: {name} must be positive.")
        found.append(np.abs(measured / exact - 1.0))
    return np.concatenate(found)


CLAIMS = (
    Claim(
        "A6",
        "Averaging lets the rate stay large: the stationary loss is lower without a loss of "
        "speed; how much depends on the time scale of the weights' evolution.",
        SOURCE,
        ("two_time_scales", "speed"),
        "the quadratic model with fast noisy modes and one slow mode, exact and simulated; a "
        "network from scratch at a large rate, averaged, and at an eighth of the rate",
        f"model: the average is at the common level {SPEED:g} times sooner than the small rate "
        "that ends as low, and lower than the large rate; network: the average is lower than the "
        "raw iterate in the later half, and lower than the small rate at equal step counts",
        "The small rate of the model is chosen to have the average's stationary loss, so any "
        "factor above 1 is speed gained; 2 is no accident of where the level was put. On a "
        "network the sentence itself gives the signs.",
        judge_a6,
    ),
    Claim(
        "A7",
        "On a synthetic model theory, Monte Carlo and averaged SGD agree.",
        SOURCE,
        ("two_time_scales", "single_runs"),
        "exact second moments of a large rate, its EMA and a small rate against many simulated "
        "runs; formulas of crossings, distances and displacement against single runs",
        f"no miss is larger than {100 * AGREE:g} % of all families of as many would have by chance "
        f"(one of {100 * DISAGREE:g} % refutes), simulations are precise to {100 * PRECISION:g} % "
        f"and single runs deviate by less than {100 * DEVIATION:g} % (medians)",
        "An exact theory has no tolerance but the Monte-Carlo error, here for the largest of many "
        "misses (Bonferroni, Student). The second bound keeps a noisy simulation from agreeing "
        "with anything. Single runs carry no error of their own; a tenth is about twice what 40 "
        "runs of 30 modes scatter by.",
        judge_a7,
    ),
)
