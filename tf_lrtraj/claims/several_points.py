"""Claims A2 and A3: averages of n points far apart act like a rate n times smaller."""

from __future__ import annotations

import math

import numpy as np

from tf_lrtraj.claims import stationarity
from tf_lrtraj.claims.records_reader import Measured, NotRun, Records
from tf_lrtraj.claims.statistics import Estimate, combine, difference, line, mean_of
from tf_lrtraj.claims.verdicts import (
    Claim,
    Condition,
    Judgement,
    Numbers,
    Part,
    above,
    as_interval,
    conclude,
    number,
    percent,
    shown,
)

SOURCE = "Sandler et al. 2023, arXiv 2301.02312"

# A2.  "Clearly": by more than the 1 % within which A1 calls two losses equal.
CLEAR = 0.01
# A2, A3.  Excess losses halve with the rate.  With the step between the runs at 2λ/n and λ/n
# as unit, half-way up is 1/2 above the run at λ/n, and half-way down to a run at λ/2n (whose
# loss is half a step lower) is 1/4 below it.
UP, DOWN = 0.5, 0.25


def judge_a2(records: Records) -> Judgement:
    """Two points far apart: against the raw iterate, and against half the rate."""
    parts, numbers, conditions, notes = _against_rates(records, [2])
    gains, accuracies = [], []
    for record in records.measured("many_points"):
        gains.append(_lower_by(record, 2))
        at = _largest_gap(record, 2)
        ends = mean_of(record.values("accuracy", points=2, gap=at, set="test"), "ends")
        raw = mean_of(record.values("accuracy", points=1, set="test"), "iterates")
        accuracies.append(difference(ends, raw).scaled(100.0))
    what = "training loss below that of single iterates by, relative,"
    gain = above("gain", combine(gains), CLEAR, what)
    what = "test accuracy above that of single iterates by, in points,"
    better = above("accuracy_gain", combine(accuracies), 0.0, what)
    return conclude([gain, better, *parts], conditions=conditions, numbers=numbers, notes=notes)


def judge_a3(records: Records) -> Judgement:
    """Four and eight points far apart against a quarter and an eighth of the rate."""
    first = records.one("many_points")
    wanted = sorted({int(n) for n in first.values("points") if n > 2})
    if not wanted:
        raise NotRun(["measured/many_points/seed0.json with more than 2 points"])
    parts, numbers, conditions, notes = _against_rates(records, wanted)
    return conclude(parts, conditions=conditions, numbers=numbers, notes=notes)


def _largest_gap(record: Measured, points: int) -> int:
    gaps = [int(gap) for gap in record.values("gap", points=points)]
    return max(gaps)


def _loss(record: Measured, points: int, gap: int | None = None) -> Estimate:
    """Mean training loss of averages of so many points, over the places where they end."""
    wanted = {"points": points, "set": "train_part"}
    if points > 1:
        wanted["gap"] = _largest_gap(record, points) if gap is None else gap
    return mean_of(record.values("loss", **wanted), "ends")


def _at_rate(records: Records, record: Measured, divisor: int) -> Estimate:
    """Mean training loss of late single iterates at the base rate over `divisor`."""
    if divisor == 1:
        return _loss(record, 1)
    lower = records.of_seed("lower_rates", record.seed)
    return mean_of(lower.values("loss", points=divisor, set="train_part"), "iterates")


def _lower_by(record: Measured, points: int) -> Estimate:
    """By how much averages of far points lie below single iterates, relative to these."""
    raw = _loss(record, 1)
    return difference(raw, _loss(record, points)).scaled(1.0 / raw.value)


def _against_rates(
    records: Records, wanted: list[int]
) -> tuple[list[Part], Numbers, list[Condition], list[str]]:
    found = records.measured("many_points")
    parts: list[Part] = []
    numbers: Numbers = {}
    conditions: list[Condition] = []
    notes: list[str] = []
    effects = []
    for n in wanted:
        ups, downs, steps, offsets = [], [], [], []
        for record in found:
            mean, raw = _loss(record, n), _loss(record, 1)
            same, twice = _at_rate(records, record, n), _at_rate(records, record, n // 2)
            unit = 1.0 / raw.value
            # Linear in measured losses, so no quotient of noisy numbers decides.
            up = UP * twice.value + (1.0 - UP) * same.value - mean.value
            down = mean.value - (1.0 + DOWN) * same.value + DOWN * twice.value
            ups.append(_linear(up, (mean, 1.0), (same, 1.0 - UP), (twice, UP)).scaled(unit))
            downs.append(_linear(down, (mean, 1.0), (same, 1.0 + DOWN), (twice, DOWN)).scaled(unit))
            steps.append(difference(twice, same).scaled(unit))
            offsets.append((mean.value - same.value, twice.value - same.value))
        gaps = {_largest_gap(record, n) for record in found}
        who = f"{n} points {max(gaps)} updates apart"
        text = f"{who}: % of the loss below half-way up to rate λ/{n // 2}"
        parts.append(above(f"below_{n // 2}", percent(combine(ups)), 0.0, text))
        text = f"{who}: % of the loss above half-way down to rate λ/{2 * n}"
        parts.append(above(f"above_{2 * n}", percent(combine(downs)), 0.0, text))
        step = combine(steps)
        resolved = as_interval(step).low > 0.0
        conditions.append(
            Condition(
                resolved,
                f"the run at λ/{n} lies {shown(percent(step))} % of the loss below that at "
                f"λ/{n // 2} ({'resolved' if resolved else 'not resolved'})",
                {f"step_{n}": as_interval(step)},
            )
        )
        total = sum(up for _, up in offsets)
        if total:
            numbers[f"position_{n}"] = as_interval(sum(off for off, _ in offsets) / total)
        gain = combine([_lower_by(record, n) for record in found])
        numbers[f"gain_{n}"] = gain.interval()
        effects.append(_expected(records, found, n))
        notes += _by_gap(found, n, numbers)
        conditions.append(_settled_at(records, n))
    notes.append("position: 0 at the loss of the run at λ/n, 1 at that of twice its rate")
    conditions = [*stationarity.stationary(records, min(effects)), *conditions]
    return parts, numbers, conditions, notes


def _expected(records: Records, found: tuple[Measured, ...], n: int) -> float:
    """By how much the claim expects the average below single iterates: by as much as rate λ/n."""
    drops = []
    for record in found:
        raw = _loss(record, 1).value
        drops.append(1.0 - _at_rate(records, record, n).value / raw)
    return float(np.mean(drops))


def _linear(value: float, *terms: tuple[Estimate, float]) -> Estimate:
    error = math.sqrt(sum((factor * term.error) ** 2 for term, factor in terms))
    return Estimate(value, error, min(term.dof for term, _ in terms), terms[0][0].of)


def _by_gap(found: tuple[Measured, ...], n: int, numbers: Numbers) -> list[str]:
    """Puts losses by gap into `numbers`, and tells how far off the model is at the largest."""
    gaps = sorted({int(gap) for gap in found[0].values("gap", points=n)})
    for gap in gaps:
        numbers[f"loss_{n}_gap_{gap}"] = combine([_loss(r, n, gap) for r in found]).interval()
    off = []
    for record in found:
        for row in record.table("predicted"):
            if row.get("points") == n and row.get("gap") == gaps[-1]:
                loss = record.number(row, "loss")
                off.append(100.0 * (loss / _loss(record, n).value - 1.0))
    if not off:
        return []
    numbers[f"predicted_off_{n}"] = mean_of(off).interval()
    return [f"the model's loss of {n} points is {number(float(np.mean(off)))} % off"]


def _settled_at(records: Records, n: int) -> Condition:
    """Whether the run at the rate over n has levelled off among its late iterates."""
    drifts = []
    for record in records.measured("lower_rates"):
        steps = record.values("step", points=n, set="train_part")
        losses = record.values("loss", points=n, set="train_part")
        slope = line(steps, losses)
        drifts.append(slope.scaled(float(np.ptp(steps)) / float(losses.mean())))
    drift = stationarity.pooled(drifts)
    met = stationarity.settled(drift, stationarity.LOSS_LIMIT)
    text = (
        f"the loss at λ/{n} changes by {shown(percent(drift))} % over its late iterates "
        f"({'within' if met else 'not within'} {100 * stationarity.LOSS_LIMIT:g} %)"
    )
    return Condition(met, text, {f"drift_{n}": as_interval(drift)})


_EXPERIMENT = (
    "losses of averages of points of the base run far apart, against single iterates of it and "
    "of runs at lower constant rates from the same state"
)
_NEARER = (
    "'Like λ/n' means nearer to the run at λ/n than to one at twice or at half that rate. Excess "
    "losses halve with the rate, so with the step from λ/n up to 2λ/n as unit the borders are 1/2 "
    "above and 1/4 below the loss at λ/n. Both borders are linear in measured losses."
)

CLAIMS = (
    Claim(
        "A2",
        "Averaging two points far apart improves clearly over the raw iterate and acts like half "
        "the rate.",
        SOURCE,
        ("many_points", "lower_rates", "base", "levels"),
        _EXPERIMENT,
        f"at the largest gap training loss is lower by more than {100 * CLEAR:g} %, test accuracy "
        "is higher, and the loss lies between half-way up to the full rate and half-way down to a "
        "quarter of it; the runs must have levelled off",
        "Clearly: by more than the 1 % within which A1 calls losses equal, in loss and accuracy. "
        + _NEARER,
        judge_a2,
    ),
    Claim(
        "A3",
        "Averages of n points far apart act like a rate n times smaller.",
        SOURCE,
        ("many_points", "lower_rates", "base", "levels"),
        _EXPERIMENT,
        "for n = 4 and 8 at the largest gap the loss lies between half-way up to the run at 2λ/n "
        "and half-way down to λ/2n; the runs must have levelled off",
        _NEARER,
        judge_a3,
    ),
)
