"""Claims S1, S2, S3, S6 and S7: stochastic weight averaging and fast geometric ensembling."""

from __future__ import annotations

import numpy as np

from tf_lrtraj.claims.records_reader import Measured, NotRun, Records
from tf_lrtraj.claims.statistics import Estimate, combine, mean_of
from tf_lrtraj.claims.verdicts import (
    Claim,
    Interval,
    Judgement,
    Numbers,
    Part,
    above,
    as_interval,
    below,
    conclude,
    number,
)
from tf_lrtraj.records import RecordError

SWA = "Izmailov et al. 2018, arXiv 1803.05407"
FGE = "Garipov et al. 2018, arXiv 1802.10026"

# S2.  Rates go through float32, of 6e-8 relative precision; ten roundings at most.
SCHEDULE_ERROR = 1e-6
# S3.  One copy and a few counters; time that no one would notice in a step.
COPIES_LOW, COPIES_HIGH = 0.95, 1.05
TIME_SHARE = 0.05


def _accuracy(record: Measured, method: str) -> float:
    return 100.0 * record.value("accuracy", method=method, set="test")


# S1 -------------------------------------------------------------------------------------------


def judge_s1(records: Records) -> Judgement:
    """Test accuracy of both kinds of SWA less that of the conventional run."""
    found = records.measured("budget")
    parts, numbers = [], {}
    for method in ("swa_constant", "swa_cyclical"):
        gains = [_accuracy(r, method) - _accuracy(r, "conventional") for r in found]
        what = (
            f"{method.replace('_', ', ')} rate: test accuracy over the conventional run's, points,"
        )
        parts.append(above(f"{method}_gain", mean_of(gains), 0.0, what))
        numbers[f"{method}_accuracy"] = mean_of([_accuracy(r, method) for r in found]).interval()
    plain = mean_of([_accuracy(r, "conventional") for r in found])
    numbers["conventional_accuracy"] = plain.interval()
    notes = [f"every run has {number(found[0].setting('total'))} updates"]
    return conclude(parts, numbers=numbers, notes=notes)


# S2 -------------------------------------------------------------------------------------------


def cyclical(count: int, length: int, high: float, low: float) -> np.ndarray:
    """[count] rates of updates i = 1, 2, … by the formula of the paper.

    >>> cyclical(4, 2, 1.0, 0.5)
    array([0.75, 0.5 , 0.75, 0.5 ])
    """
    t = (np.arange(count) % length + 1.0) / length
    return (1.0 - t) * high + t * low


def judge_s2(records: Records) -> Judgement:
    """Deviation of the recorded rates from the formula, and where models were collected."""
    deviations, misplaced, ends = [], 0, 0
    for record in records.measured("budget"):
        length = round(record.setting("cycle", "length"))
        high, low = record.setting("cycle", "high"), record.setting("cycle", "low")
        first = round(record.setting("cycle", "first_step"))
        rates, collected = record.array("rates"), record.array("collected")
        if length < 1 or high <= 0.0:
            raise RecordError(f"{record.name}: a cycle must have a length and a positive rate.")
        expected = cyclical(rates.size, length, high, low)
        deviations.append(float(np.max(np.abs(rates - expected))) / high)
        wanted = {first + length * (k + 1) for k in range(rates.size // length)}
        ends += len(wanted)
        misplaced += len(wanted ^ {round(step) for step in collected.tolist()})
    what = "largest deviation of a rate from the formula, over the highest rate,"
    parts = [
        below("deviation", max(deviations), SCHEDULE_ERROR, what),
        below(
            "misplaced", float(misplaced), 0.5, f"models not collected at one of {ends} cycle ends"
        ),
    ]
    return conclude(parts, notes=["exact: no interval is needed"])


# S3 -------------------------------------------------------------------------------------------


def judge_s3(records: Records) -> Judgement:
    """Extra memory in copies of the weights, and the time of an update of the average."""
    copies, times = [], []
    for record in records.measured("cost"):
        weights = record.setting("weights_bytes")
        if weights <= 0:
            raise RecordError(f"{record.name}: weights_bytes must be positive.")
        copies.append(record.setting("extra_bytes") / weights)
        step, update = (record.array(f"{name}_seconds") for name in ("step", "update"))
        if np.any(step <= 0.0) or np.any(update < 0.0):
            raise RecordError(f"{record.name}: times must be positive.")
        whole = mean_of(step, "repeats")
        part = mean_of(update, "repeats")
        share = part.value / whole.value
        error = np.hypot(part.error, share * whole.error) / whole.value
        times.append(Estimate(share, float(error), min(part.dof, whole.dof), whole.of))
    held = as_interval(float(np.mean(copies)))
    inside = min(copies) > COPIES_LOW and max(copies) < COPIES_HIGH
    text = f"extra memory, in copies of the weights, {number(held.value)} (wanted: 1)"
    verdict = "reproduced" if inside else "not reproduced"
    what = "an update of the average over a training step, in time,"
    parts = [
        Part("copies", held, verdict, text),
        below("time_share", combine(times), TIME_SHARE, what),
    ]
    notes = ["were it made after every step; SWA makes it once in an epoch or a cycle"]
    return conclude(parts, notes=notes)


# S6 -------------------------------------------------------------------------------------------


def judge_s6(records: Records) -> Judgement:
    """Accuracy of the ensemble of cycle ends against its members and a conventional run."""
    found = records.measured("budget")
    members, runs = [], []
    numbers: Numbers = {}
    for record in found:
        ensemble = _accuracy(record, "fge")
        each = 100.0 * record.values("accuracy", method="fge_member", set="test")
        if each.size < 2:
            raise NotRun([f"{record.name} with two members of the ensemble or more"])
        members.append(ensemble - float(each.mean()))
        runs.append(ensemble - _accuracy(record, "conventional"))
    parts = [
        above(
            "over_members", mean_of(members), 0.0, "test accuracy over the mean member's, points,"
        ),
        above(
            "over_run", mean_of(runs), 0.0, "over the conventional run's of equal budget, points,"
        ),
    ]
    for method in ("swa_cyclical", "swa_constant"):
        against = [_accuracy(r, "fge") - _accuracy(r, method) for r in found]
        numbers[f"over_{method}"] = mean_of(against).interval()
    several = records.one("independent")
    gap = _accuracy(found[0], "fge") - _accuracy(several, "independent")
    numbers["over_independent"] = as_interval(gap)
    notes = [
        f"the ensemble of {len(found)} independent runs costs {len(found)} times as much and is "
        f"told, not judged: FGE of the first seed is {number(gap)} points above it"
    ]
    return conclude(parts, numbers=numbers, notes=notes)


# S7 -------------------------------------------------------------------------------------------


def judge_s7(records: Records) -> Judgement:
    """Test accuracy with recomputed statistics less that with copied ones."""
    found = records.measured("averages")
    averages = [name for name in found[0].known("average") if name != "raw"]
    if not averages:
        raise RecordError(f"{found[0].name} has no average.")
    if "swa" not in averages:
        raise NotRun([f"{found[0].name} with the average swa"])
    numbers: dict[str, Interval] = {}
    parts, notes = [], []
    for average in averages:
        for policy in ("copy", "average"):
            lost = mean_of([_lost(record, average, policy) for record in found])
            numbers[f"{average}_{policy}"] = lost.interval()
            if average == "swa" and policy == "copy":
                what = "SWA: test accuracy, recomputed statistics over copied ones, points,"
                parts.append(above("swa_recomputed", lost, 0.0, what))
            elif average == "swa" and lost.interval().low <= 0.0:
                notes.append(
                    "averaged statistics were not surely worse than recomputed ones: recomputing "
                    "is one remedy, averaging them is another"
                )
    return conclude(parts, numbers=numbers, notes=notes)


def _lost(record: Measured, average: str, policy: str) -> float:
    best, other = (
        record.value("accuracy", average=average, set="test", policy=p)
        for p in ("recompute", policy)
    )
    return 100.0 * (best - other)


CLAIMS = (
    Claim(
        "S1",
        "SWA with constant or cyclical rate beats the conventional run at equal budget.",
        SWA,
        ("budget",),
        "test accuracy of SWA with a constant and with a cyclical rate and of a conventional run, "
        "all of the same number of updates, on several seeds",
        "the interval over seeds of both differences lies above 0",
        "The sentence has only a sign. It is asked of both rates, pair by pair on the same seeds.",
        judge_s1,
    ),
    Claim(
        "S2",
        "The cyclical rate is α(i) = (1-t) α₁ + t α₂ with t = (mod(i-1, c) + 1) / c, and models "
        "are collected at the ends of cycles.",
        SWA,
        ("budget",),
        "the rates that the cyclical run used, update by update, and the updates after which it "
        "collected",
        f"no rate is further off than {SCHEDULE_ERROR:g} of the highest; every cycle's end is "
        "collected and nothing else",
        "An identity has no tolerance but that of its number format: float32 has 6e-8.",
        judge_s2,
    ),
    Claim(
        "S3",
        "The running average needs one extra copy of the weights and negligible time.",
        SWA,
        ("cost",),
        "bytes of the average's state, and measured times of a training step and of an update of "
        "the average",
        f"the state holds {COPIES_LOW:g} to {COPIES_HIGH:g} copies of the weights; an update takes "
        f"less than {100 * TIME_SHARE:g} % of a step",
        "A counter and batch-norm statistics may come on top of one copy. Time below a twentieth "
        "of a step, even if the average were updated after every one, drowns in the scatter of "
        "the steps themselves.",
        judge_s3,
    ),
    Claim(
        "S6",
        "FGE: averaging the predictions of models at the ends of cycles improves on them, in the "
        "time of one run.",
        FGE,
        ("budget", "independent"),
        "test accuracy of the ensemble of cycle ends, of its members, of SWA, and of conventional "
        "runs",
        "the intervals over seeds of its accuracy over the mean member's and over the conventional "
        "run's of equal budget lie above 0",
        "An ensemble that does not beat its members is none, and one that does not beat a single "
        "run of the same cost is no bargain. Independent runs cost several times as much: told, "
        "not judged.",
        judge_s6,
    ),
    Claim(
        "S7",
        "Batch-norm statistics must be recomputed for averaged weights.",
        SWA,
        ("averages",),
        "test accuracy of averages with statistics copied from the last iterate, averaged, and "
        "recomputed",
        "for SWA the interval over seeds of recomputed less copied lies above 0",
        "The sentence has only a sign; it is judged for the average of its source, and told for "
        "the others and for averaged statistics, which the source does not consider.",
        judge_s7,
    ),
)
