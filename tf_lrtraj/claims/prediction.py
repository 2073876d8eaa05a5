"""Claim A5: predicting the loss of every average from few measurements."""

from __future__ import annotations

import numpy as np

from tf_lrtraj.claims.records_reader import Measured, Records
from tf_lrtraj.claims.statistics import Estimate, mean_of, median_of, share
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
)
from tf_lrtraj.records import RecordError

# Half a per cent is what separates neighbours of a sweep, and half of the 1 % within which
# losses count as equal: with it a predicted ranking is worth having.
MEDIAN_ERROR = 0.5
# A band may hold 10 points less often than it says: short of that it misleads.
COVERAGE_SLACK = 0.10
# The best weights: no more than 1 % above the best of the sweep, which is chosen with hindsight.
BEST_SLACK = 1.0
TRAINING, HELD_OUT = "train_part", "test_part"
SETS = {TRAINING: "training", HELD_OUT: "held-out"}


def judge_a5(records: Records) -> Judgement:
    """Errors of predictions, coverage of their bands, and the optimal average."""
    found = records.measured("sweep")
    parts: list[Part] = []
    numbers: Numbers = {}
    inside = total = 0
    for on, name in SETS.items():
        errors, plain = [], []
        for record in found:
            rows = _unseen(record, on)
            measured = _column(record, rows, "measured")
            predicted = _column(record, rows, "predicted")
            errors.append(100.0 * np.abs(predicted / measured - 1.0))
            if all("quadratic" in row for row in rows):
                plain.append(100.0 * np.abs(_column(record, rows, "quadratic") / measured - 1.0))
            low, high = _column(record, rows, "low"), _column(record, rows, "high")
            inside += int(np.sum((low <= measured) & (measured <= high)))
            total += len(rows)
        text = f"{name} loss: median error of {sum(map(len, errors))} predicted averages, %,"
        parts.append(below(f"median_error_{on}", _medians(errors), MEDIAN_ERROR, text))
        numbers[f"worst_error_{on}"] = as_interval(float(np.concatenate(errors).max()))
        if len(plain) == len(found):
            numbers[f"median_error_uncalibrated_{on}"] = _medians(plain)
        text = f"{name} loss: training's optimal average over the best of the sweep, %,"
        parts.append(below(f"over_best_{on}", _over_best(found, on), BEST_SLACK, text))
    level = found[0].setting("level")
    text = f"share of averages inside their {100 * level:g} % band"
    parts.append(above("coverage", share(inside, total), level - COVERAGE_SLACK, text))
    notes = [
        f"{inside} of {total} inside; averages that calibrated the prediction, and the raw "
        "iterate, whose loss was measured for it, do not count",
        "averages of one run share its iterates, so intervals over averages are too narrow",
    ]
    if len(found) == 1:
        notes.append("one run: against the best of its sweep, on the same images, exact")
    return conclude(parts, numbers=numbers, notes=notes)


def _medians(errors: list[np.ndarray]) -> Interval:
    """The median over averages: of each run, with three runs or more, otherwise of all."""
    if len(errors) > 2:
        return mean_of([float(np.median(one)) for one in errors]).interval()
    return median_of(np.concatenate(errors))


def _unseen(record: Measured, on: str) -> list[dict[str, object]]:
    """Averages whose loss was predicted from others' and measured."""
    rows = [
        row
        for role in ("sweep", "recommendation")
        for row in record.select(set=on, role=role, chosen_on=on)
        if "predicted" in row and "measured" in row
    ]
    if not rows:
        raise RecordError(f"{record.name} has no predicted and measured average of {on}.")
    return rows


def _column(record: Measured, rows: list[dict[str, object]], field: str) -> np.ndarray:
    found = np.array([record.number(row, field) for row in rows])
    if field == "measured" and np.any(found <= 0.0):
        raise RecordError(f"{record.name}: measured losses must be positive.")
    return found


def _over_best(found: tuple[Measured, ...], on: str) -> Estimate | float:
    """By how many per cent the optimal average's loss lies above the lowest of the others.

    The average is optimal by training losses, wherever it is measured.
    """
    gaps = []
    for record in found:
        optimal = record.text("optimal")
        loss = record.value("measured", average=optimal, set=on, chosen_on=TRAINING)
        others = [
            record.number(row, "measured")
            for row in record.select(set=on)
            if row.get("average") not in (optimal, "raw") and "measured" in row
        ]
        if not others or min(others) <= 0.0:
            raise RecordError(f"{record.name} has no average of {on} to compare with.")
        gaps.append(100.0 * (loss / min(others) - 1.0))
    # One run: on the same images of one run the comparison is exact.
    return mean_of(gaps) if len(gaps) > 1 else gaps[0]


CLAIMS = (
    Claim(
        "A5",
        "From single losses and a few two-point averages the loss of every EMA, SWA and window "
        "is predicted, and the best weights found.",
        "derived in docs/theory/prediction.md",
        ("sweep",),
        "predicted and measured loss of a sweep of averages over the window of the base run, on "
        "training and held-out images",
        f"the median relative error is below {MEDIAN_ERROR:g} % on both; bands of 90 % hold at "
        f"least {100 * (0.9 - COVERAGE_SLACK):g} %; the average that is optimal by "
        f"training losses is at most {BEST_SLACK:g} % above the best of the sweep on both",
        "Half a per cent is half of what this ledger calls the same loss, so predictions as good "
        "rank averages as measurements would. A band that holds 10 points less than it says "
        "misleads. The best of the sweep is picked with hindsight, so to come within 1 % of it "
        "without having measured it is finding it.",
        judge_a5,
    ),
)
