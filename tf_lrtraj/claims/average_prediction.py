"""Claim A5: predicting the loss of every average from few measurements."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_lrtraj.claims.records_reader import Measured, Records
from tf_lrtraj.claims.verdicts import Claim, ExtraNumber, Judgement, Part, Wanted, conclude
from tf_lrtraj.records import RecordError

TRAINING, HELD_OUT = "train_part", "test_part"
SETS = {TRAINING: "training", HELD_OUT: "held-out"}
# Neighbours of a sweep differ by half a per cent, so this accuracy makes a predicted ranking
# useful.
ERROR = Wanted("median_error", "median error of predicted losses, %", high=0.5)
# The best weights: no more than 1 % above the best of the sweep, which is chosen with hindsight.
BEST = Wanted(
    "over_best",
    "loss of the weights optimal on training images above the sweep's best, %",
    high=1.0,
)
# The coverage of a 90 % band may be 10 points lower than stated; below that it is misleading.
COVERAGE = Wanted("coverage", "share of averages inside their 90 % band", low=0.8)


def judge_a5(records: Records) -> Judgement:
    """Errors of predictions, coverage of their bands, and the optimal average."""
    found = records.measured("sweep")
    if any(record.setting("level") != 0.9 for record in found):
        raise RecordError(f"{found[0].name}: bands must be of 90 %.")
    parts: list[Part] = []
    numbers: list[ExtraNumber] = []
    drawn: dict[str, Any] = {}
    inside: list[list[bool]] = [[] for _ in found]
    for on, name in SETS.items():
        errors, plain = [], []
        drawn[name] = []
        for i, record in enumerate(found):
            rows = _predicted_and_measured(record, on)
            columns = {
                field: _column(record, rows, field)
                for field in ("measured", "predicted", "low", "high")
            }
            measured = columns["measured"]
            errors.append(100.0 * np.abs(columns["predicted"] / measured - 1.0))
            inside[i] += ((columns["low"] <= measured) & (measured <= columns["high"])).tolist()
            if all("quadratic" in row for row in rows):
                plain.append(100.0 * np.abs(_column(record, rows, "quadratic") / measured - 1.0))
            drawn[name].append({**columns, "family": [str(row.get("family")) for row in rows]})
        parts.append(ERROR.judge([float(np.median(one)) for one in errors], name))
        parts.append(BEST.judge(_over_best(found, on), name))
        worst = [float(one.max()) for one in errors]
        numbers.append(ExtraNumber(f"worst_error_{on}", f"{name}: worst error, %", worst))
        if len(plain) == len(found):
            what = f"{name}: median error without calibration, %"
            medians = [float(np.median(one)) for one in plain]
            numbers.append(ExtraNumber(f"median_error_uncalibrated_{on}", what, medians))
    parts.append(COVERAGE.judge([float(np.mean(one)) for one in inside]))
    notes = [
        "Averages that calibrated the prediction, and the raw iterate, are not among those judged."
    ]
    return conclude(parts, numbers=numbers, notes=notes, drawn=drawn)


def _predicted_and_measured(record: Measured, on: str) -> list[dict[str, object]]:
    """Returns averages whose loss was predicted from others and measured."""
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


def _over_best(found: tuple[Measured, ...], on: str) -> list[float]:
    """Returns the excess, in per cent, of each seed's optimal average over the lowest of the
    others.

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
    return gaps


CLAIMS = (
    Claim(
        "A5",
        "Few two-point averages predict every average's loss and the best weights",
        "From single losses and a few two-point averages the loss of every EMA, SWA and window is "
        "predicted, and the best weights found.",
        "derived in docs/theory/prediction.md",
        ("sweep",),
        "Predicted and measured loss of a sweep of averages over the window of the base run, on "
        "training and held-out images; each seed gives its median error, its coverage, and how far "
        "the optimal average is above the best of its sweep.",
        (ERROR, BEST, COVERAGE),
        "Half a per cent is what separates neighbours of a sweep, so predictions as good rank "
        "averages as measurements would. A band that holds 10 points less than it says misleads. "
        "The best of the sweep is picked with hindsight, so to come within 1 % of it without "
        "having measured it is finding it.",
        judge_a5,
    ),
)
