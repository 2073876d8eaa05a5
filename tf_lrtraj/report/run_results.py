"""The results of a run as numbers: its final table, and its pairs of average and matched run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.records import RAW, RecordError, RunRecord
from tf_lrtraj.report.number_text import is_finite
from tf_lrtraj.statistics import mean_and_se

LATE = 0.25  # the last part of a run over which fluctuations are reported
_MOST_METRICS = 8  # columns and figures besides accuracy and loss


def _difference(left: float | None, right: float | None) -> float | None:
    if left is None or right is None or not (is_finite(left) and is_finite(right)):
        return None
    return left - right


@dataclasses.dataclass(frozen=True)
class FinalRow:
    """The final evaluation of one set of weights on one split.

    Attributes:
        weights: "raw" or an average's name; for a matched run, the average it should match.
        matched: whether the row is of the matched run, under the equivalent schedule.
        batch_norm: the batch-norm statistics used.
        step, examples: step and number of examples of the evaluation.
        accuracy, loss: its results; None if not recorded.
        accuracy_vs_raw, loss_vs_raw: differences from the raw weights of the main run at that step.
        best_accuracy, best_step: the highest accuracy over the run, selected on this split; None
            for repeated runs.
        late_accuracy: (mean, lowest, highest) over the last quarter of the run.
        others: the other metrics by name.
        errors: the standard errors over repeated runs of the values above, by attribute; empty for
            a single run.  Those of differences are of the differences of each run.
    """

    weights: str
    matched: bool
    batch_norm: str
    step: int
    examples: int | None
    accuracy: float | None
    loss: float | None
    accuracy_vs_raw: float | None
    loss_vs_raw: float | None
    best_accuracy: float | None
    best_step: int | None
    late_accuracy: tuple[float, float, float] | None
    others: dict[str, float | None] = dataclasses.field(default_factory=dict)
    errors: dict[str, float] = dataclasses.field(default_factory=dict)


# Values of which repeated runs have means and errors.
_AVERAGED = ("accuracy", "loss", "accuracy_vs_raw", "loss_vs_raw")


def main_split(record: RunRecord) -> str:
    """Returns the main split: "test" if it was evaluated, else one that is not "train"."""
    splits = record.splits()
    if "test" in splits or not splits:
        return "test"
    return next((split for split in splits if split != "train"), splits[0])


def total_steps(record: RunRecord) -> int:
    return record.run.get("total_steps") or record.last_step()


def _value(row: Mapping[str, Any] | None, metric: str) -> float | None:
    value = None if row is None else row.get(metric)
    return None if value is None else float(value)


def _row(
    record: RunRecord, rows: list[dict[str, Any]], weights: str, raw: RunRecord, matched: bool
) -> FinalRow:
    """`rows` are evaluations of one set of weights under one policy on one split."""
    last = max(rows, key=lambda row: row["step"])
    step, split = last["step"], last.get("split")
    beside = [row for row in raw.rows("eval", RAW, split) if row["step"] == step]
    baseline = beside[0] if beside and (matched or weights != RAW) else None
    accuracies = {
        row["step"]: float(row["accuracy"]) for row in rows if is_finite(row.get("accuracy"))
    }
    best_step = max(accuracies, key=lambda key: (accuracies[key], -key), default=None)
    late = [value for key, value in accuracies.items() if key > (1 - LATE) * step]
    accuracy, loss = _value(last, "accuracy"), _value(last, "loss")
    return FinalRow(
        weights=weights,
        matched=matched,
        batch_norm=str(last.get("batch_norm", "not recorded")),
        step=step,
        examples=last.get("examples") or None,
        accuracy=accuracy,
        loss=loss,
        accuracy_vs_raw=_difference(accuracy, _value(baseline, "accuracy")),
        loss_vs_raw=_difference(loss, _value(baseline, "loss")),
        best_accuracy=None if best_step is None else accuracies[best_step],
        best_step=best_step,
        late_accuracy=(float(np.mean(late)), min(late), max(late)) if len(late) > 1 else None,
        others={name: _value(last, name) for name in other_metrics(record) if name in last},
    )


def other_metrics(record: RunRecord) -> list[str]:
    """Returns the names of the metrics of evaluations besides accuracy and loss."""
    return [name for name in record.metrics() if name not in ("accuracy", "loss")][:_MOST_METRICS]


def unit(record: RunRecord) -> str:
    """Returns the word for several examples: "images" or "examples"."""
    return str(record.run.get("dataset", {}).get("unit", "images"))


def final_rows(
    record: RunRecord,
    split: str,
    matched: Mapping[str, RunRecord] | None = None,
    until: int | None = None,
) -> list[FinalRow]:
    """Returns the rows of the final table: raw weights, then each average and its matched run.

    Evaluations after step `until` are ignored, if it is given.

    Each row is the last evaluation of its weights.  It is compared with the raw weights *at the
    same step*, so that the comparison is fair for a run killed between two evaluations.

    Rows of repeated runs have the means over the runs.
    """
    matched = matched or {}
    if record.runs:
        until = min(record.last_step(), record.last_step() if until is None else until)
        tables = [
            final_rows(run, split, {name: m.runs[i] for name, m in matched.items()}, until)
            for i, run in enumerate(record.runs)
        ]
        return _mean_rows(tables)
    table = []
    names = record.weights_names()
    for name in [*names, *(name for name in matched if name not in names)]:
        policies: dict[str, list[dict[str, Any]]] = {}
        for row in _until(record.rows("eval", name, split), until):
            policies.setdefault(str(row.get("batch_norm")), []).append(row)
        table += [_row(record, rows, name, record, False) for rows in policies.values()]
        if name in matched:
            rows = _until(matched[name].rows("eval", RAW, split), until)
            if rows:
                # As in `RunRecord.series`, the first policy is used.
                first = [r for r in rows if r.get("batch_norm") == rows[0].get("batch_norm")]
                table.append(_row(matched[name], first, name, record, True))
    return table


def _mean_rows(tables: Sequence[Sequence[FinalRow]]) -> list[FinalRow]:
    """Returns the means of rows that every run's table has, at the same step."""
    keyed = [
        {(row.weights, row.matched, row.batch_norm, row.step): row for row in table}
        for table in tables
    ]
    found = []
    for key, first in keyed[0].items():
        if not all(key in table for table in keyed):
            continue
        rows = [table[key] for table in keyed]
        late = [row.late_accuracy for row in rows if row.late_accuracy is not None]
        means, errors = _means(rows, _AVERAGED)
        found.append(
            dataclasses.replace(
                first,
                **means,
                errors=errors,
                best_accuracy=None,
                best_step=None,
                others={
                    name: _means([row.others for row in rows], [name])[0][name]
                    for name in first.others
                },
                late_accuracy=(
                    float(np.mean([mean for mean, _, _ in late])),
                    min(low for _, low, _ in late),
                    max(high for _, _, high in late),
                )
                if len(late) == len(rows)
                else None,
            )
        )
    return found


def _means(rows: Sequence[Any], names: Iterable[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Returns (means, their standard errors) of attributes or entries; None where one is None."""
    means: dict[str, Any] = {}
    errors = {}
    for name in names:
        values = [row.get(name) if isinstance(row, dict) else getattr(row, name) for row in rows]
        means[name] = None
        if all(value is not None for value in values):
            mean, error = mean_and_se(np.array(values))
            means[name], errors[name] = float(mean), float(error)
    return means, errors


def _until(rows: list[dict[str, Any]], step: int | None) -> list[dict[str, Any]]:
    return rows if step is None else [row for row in rows if row["step"] <= step]


def common_step(record: RunRecord, split: str) -> int | None:
    """Returns the last step at which all weights were evaluated."""
    if record.runs:
        return min((common_step(run, split) or 0 for run in record.runs), default=None)
    steps = [
        {row["step"] for row in record.rows("eval", name, split)} for name in record.weights_names()
    ]
    return max(set.intersection(*filter(None, steps)), default=None) if any(steps) else None


# --- Pairs --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pair:
    """An average and the run under the schedule equivalent to it, at one step.

    Differences are matched run minus average; None where one of the two is missing.
    `at_end` says whether `step` is the last step, the one the schedule is made for.  `errors` holds
    standard errors over repeated runs, by attribute.
    """

    average: str
    step: int | None
    at_end: bool
    examples: int | None
    average_accuracy: float | None
    matched_accuracy: float | None
    average_loss: float | None
    matched_loss: float | None
    accuracy_difference: float | None
    loss_difference: float | None
    errors: dict[str, float] = dataclasses.field(default_factory=dict)


_PAIRED = (
    "average_accuracy", "matched_accuracy", "average_loss", "matched_loss",
    "accuracy_difference", "loss_difference",
)  # fmt: skip


def load_matched(record: RunRecord) -> tuple[dict[str, RunRecord], list[str]]:
    """Returns the matched runs that can be read, and a sentence for each that cannot."""
    found, problems = {}, []
    for name in record.matched_dirs():
        try:
            found[name] = record.matched_record(name)
        except RecordError as error:
            problems.append(f"The matched run of {name} cannot be read: {error}")
    return found, problems


def pairs(record: RunRecord, split: str, matched: Mapping[str, RunRecord]) -> dict[str, Pair]:
    """Returns {average: the two runs at the last step at which both were evaluated}."""
    if record.runs:
        return _mean_pairs(
            [
                pairs(run, split, {name: other.runs[i] for name, other in matched.items()})
                for i, run in enumerate(record.runs)
            ]
        )
    result = {}
    for name, other in matched.items():
        here = {row["step"]: row for row in reversed(record.rows("eval", name, split))}
        there = {row["step"]: row for row in reversed(other.rows("eval", RAW, split))}
        step = max(here.keys() & there.keys(), default=None)
        ours, theirs = (None, None) if step is None else (here[step], there[step])
        values = [_value(row, key) for key in ("accuracy", "loss") for row in (ours, theirs)]
        result[name] = Pair(
            average=name,
            step=step,
            at_end=step is not None and step == total_steps(record),
            examples=None if ours is None else ours.get("examples"),
            average_accuracy=values[0],
            matched_accuracy=values[1],
            average_loss=values[2],
            matched_loss=values[3],
            accuracy_difference=_difference(values[1], values[0]),
            loss_difference=_difference(values[3], values[2]),
        )
    return result


def _mean_pairs(found: Sequence[Mapping[str, Pair]]) -> dict[str, Pair]:
    """Returns the means of the pairs of repeated runs; without values at different steps."""
    result = {}
    for name, first in found[0].items():
        each = [pairs_of_run[name] for pairs_of_run in found]
        means, errors = _means(each, _PAIRED)
        if any(pair.step != first.step for pair in each):
            first = dataclasses.replace(first, step=None, at_end=False)
            means, errors = dict.fromkeys(_PAIRED), {}
        result[name] = dataclasses.replace(first, **means, errors=errors)
    return result
