"""Claims A1 and A4: averages of a constant-rate run against runs whose rate falls."""

from __future__ import annotations

import math
from typing import Any

from tf_lrtraj.claims.records_reader import Measured, Records
from tf_lrtraj.claims.statistics import TOST, Estimate, mean_of
from tf_lrtraj.claims.verdicts import (
    Claim,
    Condition,
    Interval,
    Judgement,
    Numbers,
    Part,
    as_interval,
    conclude,
    number,
    shown,
    within,
)
from tf_lrtraj.records import RecordError

SOURCE = "Sandler et al. 2023, arXiv 2301.02312"

# Losses count as equal within 1 % of themselves (in per cent here).
MARGIN = 1.0


def gap(first: float, second: float) -> float:
    """By how many per cent a loss lies above another."""
    if second <= 0.0:
        raise RecordError(f"losses must be positive to be compared. Received: {second!r}")
    return 100.0 * (first / second - 1.0)


def raw_loss(records: Records, seed: int) -> float:
    """Training loss of the iterate at the end of a base run, batch norm recomputed."""
    record = records.of_seed("averages", seed)
    return record.value("loss", average="raw", set="train", policy="recompute")


def discriminates(name: str, effect: Estimate) -> Condition:
    """Whether there is anything to match: raw and target must differ by more than the margin."""
    interval = as_interval(effect)
    met = interval.low > MARGIN or interval.high < -MARGIN
    text = (
        f"{name}: the raw iterate's loss is {shown(interval)} % off the one to be matched, "
        f"{'more' if met else 'not surely more'} than the {MARGIN:g} % that counts as equal"
    )
    return Condition(met, text, {f"{name}_raw_gap": interval})


# A1 -------------------------------------------------------------------------------------------


def judge_a1(records: Records) -> Judgement:
    """Loss of the equivalent run against the average, for the best of the equivalences."""
    found = records.measured("equivalent")
    averages = [name for name in found[0].known("average") if name != "raw"]
    kinds = [kind for kind in found[0].known("equivalence") if kind not in (None, "none")]
    if not averages or not kinds:
        raise RecordError(f"{found[0].name} names no average or no equivalence.")
    parts: list[Part] = []
    numbers: Numbers = {}
    notes: list[str] = []
    conditions: list[Condition] = []
    for average in averages:
        gaps = {}
        for kind in kinds:
            name = f"{average}_{kind}"
            gaps[kind] = mean_of([_gap(record, average, kind) for record in found])
            accuracy = mean_of([_accuracy_gap(record, average, kind) for record in found])
            numbers[f"gap_{name}"] = gaps[kind].interval(TOST)
            numbers[f"accuracy_gap_{name}"] = accuracy.interval()
            predicted = _predicted(found, average, kind)
            if predicted is not None:
                numbers[f"predicted_gap_{name}"] = predicted.interval()
                off = gaps[kind].value - predicted.value
                notes.append(
                    f"{average}, {kind}: the model says {number(predicted.value)} %, "
                    f"{number(off)} points off"
                )
        best = min(kinds, key=lambda kind: abs(gaps[kind].value))
        text = f"{average}: run less average ({best.replace('_', '-')}), % of the loss,"
        parts.append(within(f"best_gap_{average}", gaps[best], -MARGIN, MARGIN, text, TOST))
        halfway = [r for r in found if r.select(average=average, share=0.5, of="run")]
        if halfway:
            over = mean_of([_gap(r, average, "curvature_free", 0.5) for r in halfway])
            numbers[f"halfway_gap_{average}"] = over.interval(TOST)
        effect = mean_of([gap(_loss(r, "raw", "raw"), _loss(r, average, "average")) for r in found])
        conditions.append(discriminates(average, effect))
    notes += [
        "the best equivalence of each average is the one with the smallest mean gap, chosen on "
        "the runs that judge it; intervals of gaps are 90 % (two one-sided tests at 5 %)",
        "accuracy gaps are run less average on test images, in points",
    ]
    return conclude(parts, conditions=conditions, numbers=numbers, notes=notes)


def _loss(
    record: Measured,
    average: str,
    of: str,
    kind: str | None = None,
    share: float = 1.0,
    field: str = "loss",
    on: str = "train",
) -> float:
    """A loss; that of the average is the same whatever equivalence it is listed under."""
    wanted: dict[str, Any] = {"average": average, "of": of, "share": share, "set": on}
    if kind is not None:
        return record.value(field, equivalence=kind, **wanted)
    return float(record.values(field, **wanted)[0])


def _gap(record: Measured, average: str, kind: str, share: float = 1.0) -> float:
    """Half-way, where losses are of a part of the training images, or at the end."""
    on = "train" if share == 1.0 else "train_part"
    run = _loss(record, average, "run", kind, share, on=on)
    return gap(run, _loss(record, average, "average", None, share, on=on))


def _accuracy_gap(record: Measured, average: str, kind: str) -> float:
    run = _loss(record, average, "run", kind, field="accuracy", on="test")
    return 100.0 * (run - _loss(record, average, "average", field="accuracy", on="test"))


def _predicted(found: tuple[Measured, ...], average: str, kind: str) -> Estimate | None:
    """The quadratic model's gap in per cent of the measured loss; None where it has none.

    The model knows excess losses; the loss they are in excess of drops out of the difference.
    """
    gaps = []
    for record in found:
        run, mean = (_excess(record, average, kind, of) for of in ("run", "average"))
        if run is None or mean is None:
            return None
        gaps.append(100.0 * (run - mean) / _loss(record, average, "average"))
    return mean_of(gaps)


def _excess(record: Measured, average: str, kind: str, of: str) -> float | None:
    for entry in record.table("predicted"):
        named = entry.get("average"), entry.get("of"), entry.get("equivalence")
        if named == (average, of, kind):
            value = entry.get("excess")
            return value if isinstance(value, (int, float)) and math.isfinite(value) else None
    return None


# A4 -------------------------------------------------------------------------------------------


def judge_a4(records: Records) -> Judgement:
    """Loss of weights on snapshots against the run they emulate."""
    found = records.measured("decays")
    decays = found[0].known("decay")
    if not decays:
        raise RecordError(f"{found[0].name} names no decay.")
    parts, conditions = [], []
    numbers: dict[str, Interval] = {}
    for decay in decays:
        gaps, effects, captured, accuracies = [], [], [], []
        for record in found:
            trained, emulated = (
                record.value("loss", decay=decay, of=of, set="train")
                for of in ("trained", "emulated")
            )
            raw = raw_loss(records, record.seed)
            gaps.append(gap(emulated, trained))
            effects.append(gap(raw, trained))
            captured.append((raw - emulated) / (raw - trained) if raw != trained else math.nan)
            accuracies.append(
                100.0
                * (
                    record.value("accuracy", decay=decay, of="emulated", set="test")
                    - record.value("accuracy", decay=decay, of="trained", set="test")
                )
            )
        text = f"{decay}: emulated less trained, % of the loss,"
        parts.append(within(f"gap_{decay}", mean_of(gaps), -MARGIN, MARGIN, text, TOST))
        conditions.append(discriminates(decay, mean_of(effects)))
        numbers[f"captured_{decay}"] = mean_of(captured).interval()
        numbers[f"accuracy_gap_{decay}"] = mean_of(accuracies).interval()
    notes = ["captured: the share of the decay's gain over the raw iterate that weights have"]
    return conclude(parts, conditions=conditions, numbers=numbers, notes=notes)


CLAIMS = (
    Claim(
        "A1",
        "EMA and SWA of a constant-rate run match a run with the equivalent schedule.",
        SOURCE,
        ("equivalent",),
        "from one state and on the same batches: a constant-rate run with its averages, and for "
        "each average three runs under schedules said to be equivalent (curvature-free, at an "
        "estimated curvature, best on an estimated spectrum); several seeds",
        f"for each average the 90 % interval over seeds of the training-loss gap of its best "
        f"equivalence lies within {MARGIN:g} %, while the raw iterate is more than "
        f"{MARGIN:g} % off",
        "To show equality one must bound the difference, so two one-sided tests at 5 % are made, "
        "which is a 90 % interval inside the margin. One per cent of the loss is less than what "
        "separates seeds, and what one would still call the same number in a table. The second "
        "half keeps the test from passing where averaging does nothing: what is matched must "
        "differ from the raw iterate by more than the margin.",
        judge_a1,
    ),
    Claim(
        "A4",
        "A schedule can be emulated by weights on constant-rate snapshots.",
        SOURCE,
        ("decays", "averages"),
        "cosine, linear and 1-√ decay over the end of the run, trained, against the averages of "
        "the constant-rate run's snapshots that the inverse map gives",
        f"for each decay the 90 % interval over seeds of the training-loss gap, emulated against "
        f"trained, lies within {MARGIN:g} %, while the raw iterate is more than {MARGIN:g} % off",
        "The bar of A1, as the inverse map is the same theorem read backwards.",
        judge_a4,
    ),
)
