"""The results of a run in numbers: the final table, the pairs, and sentences.

Pure functions from records to values and text; figures and HTML are made elsewhere.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lrtraj.records import RAW, RecordError, RunRecord, load_run

LATE = 0.25  # the last part of a run over which fluctuations are reported
_MOST_METRICS = 8  # columns and figures besides accuracy and loss


# --- Numbers as text ----------------------------------------------------------------------


def is_finite(value: Any) -> bool:
    """Returns whether `value` is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _decimals(examples: int | None) -> int:
    # Enough digits to show one image in `examples`.
    return 2 if examples is not None and examples >= 5000 else 1


def percent(accuracy: float | None, examples: int | None = None) -> str:
    """Formats an accuracy, with two decimals for 5,000 examples or more.

    >>> percent(0.9417), percent(0.94171, 10_000), percent(None)
    ('94.2 %', '94.17 %', '–')
    """
    if not is_finite(accuracy):
        return "–" if accuracy is None else str(accuracy)
    return f"{100 * accuracy:.{_decimals(examples)}f} %"  # type: ignore[operator]


def points(difference: float | None, examples: int | None = None) -> str:
    """Formats a difference of accuracies in percentage points, with its sign.

    >>> points(0.0312), points(-0.02), points(-0.0004), points(None)
    ('+3.1', '−2.0', '0.0', '–')
    """
    if not is_finite(difference):
        return "–"
    decimals = _decimals(examples)
    value = round(100 * difference, decimals)  # type: ignore[operator]
    return f"{value:+.{decimals}f}".replace("-", "−") if value else f"{0:.{decimals}f}"


def number(value: float | None, signed: bool = False) -> str:
    """Formats a loss or, with `signed`, a difference of losses.

    >>> number(0.20137), number(12.345), number(-0.11, signed=True), number(1e9)
    ('0.2014', '12.345', '−0.1100', '1e+09')
    """
    if value is None:
        return "–"
    if not is_finite(value):
        return "–" if signed else str(value)
    size = abs(value)
    form = (
        "4g" if size >= 1e4 else "3f" if size >= 10 else "4f" if size >= 1e-3 or size == 0 else "2e"
    )
    return f"{value:{'+' if signed else ''}.{form}}".replace("-", "−", 1 if value < 0 else 0)


def _difference(left: float | None, right: float | None) -> float | None:
    if left is None or right is None or not (is_finite(left) and is_finite(right)):
        return None
    return left - right


# --- The final table ----------------------------------------------------------------------


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
        best_accuracy, best_step: the highest accuracy over the run, selected on this split.
        late_accuracy: (mean, lowest, highest) over the last quarter of the run.
        others: the other metrics by name.
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


def main_split(record: RunRecord) -> str:
    """Returns the main split: "test" if it was evaluated, else one that is not "train"."""
    splits = record.splits()
    if "test" in splits or not splits:
        return "test"
    return next((split for split in splits if split != "train"), splits[0])


def _total_steps(record: RunRecord) -> int:
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
    """
    matched = matched or {}
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


def _until(rows: list[dict[str, Any]], step: int | None) -> list[dict[str, Any]]:
    return rows if step is None else [row for row in rows if row["step"] <= step]


def _common_step(record: RunRecord, split: str) -> int | None:
    """Returns the last step at which all weights were evaluated."""
    steps = [
        {row["step"] for row in record.rows("eval", name, split)} for name in record.weights_names()
    ]
    return max(set.intersection(*filter(None, steps)), default=None) if any(steps) else None


# --- Pairs --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pair:
    """An average and the run under the schedule equivalent to it, at one step.

    Differences are matched run minus average; None where one of the two is missing.
    `at_end` says whether `step` is the last step, the one the schedule is made for.
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


def load_matched(record: RunRecord) -> tuple[dict[str, RunRecord], list[str]]:
    """Returns the matched runs that can be read, and a sentence for each that cannot."""
    found, problems = {}, []
    for name, path in record.matched_dirs().items():
        try:
            found[name] = load_run(path)
        except RecordError as error:
            problems.append(f"The matched run of {name} cannot be read: {error}")
    return found, problems


def pairs(record: RunRecord, split: str, matched: Mapping[str, RunRecord]) -> dict[str, Pair]:
    """Returns {average: the two runs at the last step at which both were evaluated}."""
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
            at_end=step is not None and step == _total_steps(record),
            examples=None if ours is None else ours.get("examples"),
            average_accuracy=values[0],
            matched_accuracy=values[1],
            average_loss=values[2],
            matched_loss=values[3],
            accuracy_difference=_difference(values[1], values[0]),
            loss_difference=_difference(values[3], values[2]),
        )
    return result


# --- Sentences ----------------------------------------------------------------------------


def standard_error(accuracy: float, examples: int) -> float:
    """Returns the standard error of an accuracy from the number of examples.

    It is binomial, with two successes and two failures added (Agresti and Coull 1998), so that it
    is positive even if every example is correct.

    >>> round(standard_error(0.9, 400), 4), round(standard_error(1.0, 400), 4)
    (0.0152, 0.0035)
    """
    share = (accuracy * examples + 2) / (examples + 4)
    return math.sqrt(max(share * (1.0 - share), 0.0) / (examples + 4))


def _when(record: RunRecord, step: int) -> str:
    total = _total_steps(record)
    if record.status == "done" and step >= total:
        return "At the end"
    return f"At step {step:,} of {total:,}"


def findings(
    record: RunRecord, split: str, matched: Mapping[str, RunRecord] | None = None
) -> list[str]:
    """Returns sentences on the effect of averaging, and on what the records do not show."""
    until = _common_step(record, split)
    rows = final_rows(record, split, until=until)
    if rows and not any(row.accuracy is not None for row in rows):
        return _loss_findings(record, split, rows, matched or {})
    rows = [row for row in rows if is_finite(row.accuracy)]
    raw = next((row for row in rows if row.weights == RAW), None)
    averages = [row for row in rows if row.weights != RAW and row.accuracy_vs_raw is not None]
    if raw is None or not averages:
        if raw is not None and not record.averages:
            when, accuracy = _when(record, raw.step), percent(raw.accuracy, raw.examples)
            return [f"{when}, the weights have {accuracy} {split} accuracy. No averages were kept."]
        return [f"No average has been evaluated beside the raw weights on the {split} split yet."]
    # Only rows of one step can be ranked.
    step = max(row.step for row in averages)
    averages = [row for row in averages if row.step == step]
    best = max(averages, key=lambda row: row.accuracy or 0.0)
    gain, examples = best.accuracy_vs_raw or 0.0, best.examples
    beside = (best.accuracy or 0.0) - gain
    names = list(dict.fromkeys(row.weights for row in averages))
    tied = [row.weights for row in averages if row.accuracy == best.accuracy and row is not best]
    rank = ""
    if len(names) > 1:
        rank = f", the highest of {len(names)} averages"
        rank += f" (with {' and '.join(tied)})," if tied else ","
    losses = ""
    if best.loss_vs_raw is not None and best.loss is not None:
        losses = f" Its loss is {number(best.loss)} against {number(best.loss - best.loss_vs_raw)}."
    when = _when(record, step)
    if gain > 0:
        first = (
            f"{when}, {best.weights}{rank} has {percent(best.accuracy, examples)} {split} accuracy "
            f"where the raw weights have {percent(beside, examples)} "
            f"({points(gain, examples)} percentage points).{losses}"
        )
    else:
        first = (
            f"{when}, no average is above the raw weights in {split} accuracy "
            f"({percent(beside, examples)}); {best.weights}{rank} has "
            f"{percent(best.accuracy, examples)} ({points(gain, examples)} percentage points)."
            f"{losses}"
        )
    sentences = [first]
    sentences += [
        _pair_sentence(pair) for pair in pairs(record, split, matched or {}).values() if pair.step
    ]
    caution = "This is one run with one seed, so differences between seeds are not measured here"
    if examples:
        error = standard_error(beside, examples)
        caution += (
            f"; {examples:,} {split} {unit(record)} alone leave a standard error of about "
            f"{100 * error:.1f} points in each accuracy"
        )
    if raw.late_accuracy:
        _, low, high = raw.late_accuracy
        caution += (
            f", and the raw weights moved between {percent(low, examples)} and "
            f"{percent(high, examples)} over the last quarter of the run"
        )
    return [*sentences, caution + "."]


def _loss_findings(
    record: RunRecord, split: str, rows: list[FinalRow], matched: Mapping[str, RunRecord]
) -> list[str]:
    """Returns the sentences of a run without accuracies, such as a regression."""
    rows = [row for row in rows if is_finite(row.loss)]
    raw = next((row for row in rows if row.weights == RAW), None)
    averages = [row for row in rows if row.weights != RAW and row.loss_vs_raw is not None]
    if raw is None or not averages:
        if raw is not None and not record.averages:
            when, loss = _when(record, raw.step), number(raw.loss)
            return [f"{when}, the weights have {split} loss {loss}. No averages were kept."]
        return [f"No average has been evaluated beside the raw weights on the {split} split yet."]
    step = max(row.step for row in averages)
    averages = [row for row in averages if row.step == step]
    best = min(averages, key=lambda row: row.loss or 0.0)
    gain = best.loss_vs_raw or 0.0
    beside = (best.loss or 0.0) - gain
    names = list(dict.fromkeys(row.weights for row in averages))
    rank = f", the lowest of {len(names)} averages," if len(names) > 1 else ""
    against = f"{number(best.loss)} against {number(beside)} ({number(gain, signed=True)})"
    if gain < 0:
        first = f"{_when(record, step)}, {best.weights}{rank} has {split} loss {against}."
    else:
        first = (
            f"{_when(record, step)}, no average has a lower {split} loss than the raw weights; "
            f"{best.weights}{rank} has {against}."
        )
    pairs_found = pairs(record, split, matched).values()
    caution = "This is one run with one seed, so differences between seeds are not measured here."
    return [first, *(_pair_sentence(pair) for pair in pairs_found if pair.step), caution]


def _pair_sentence(pair: Pair) -> str:
    verb = "ends at" if pair.at_end else f"is, at step {pair.step:,}, at"
    if pair.accuracy_difference is None:
        return (
            f"The run under the schedule equivalent to {pair.average} {verb} loss "
            f"{number(pair.matched_loss)}; {pair.average} has {number(pair.average_loss)}."
        )
    size = points(abs(pair.accuracy_difference), pair.examples).lstrip("+")
    if float(size) == 0:
        against = "the same as"
    else:
        against = f"{size} points {'above' if pair.accuracy_difference > 0 else 'below'}"
    return (
        f"The run under the schedule equivalent to {pair.average} {verb} "
        f"{percent(pair.matched_accuracy, pair.examples)}, {against} the average itself."
    )


def text_summary(workdir: str | os.PathLike[str]) -> str:
    """Returns the final numbers of a run as a plain-text table for a terminal.

    Raises:
        RecordError: if `workdir` holds no run, or its records are damaged.
    """
    record = load_run(workdir)
    matched, problems = load_matched(record)
    split = main_split(record)
    rows = final_rows(record, split, matched)
    run = record.run
    title = f"{_plain(run.get('name') or record.workdir.name)}: {record.status}"
    title += f", step {record.last_step():,} of {_total_steps(record):,}, seed {run.get('seed')}"
    lines = [title]
    if run.get("message"):
        lines.append(_plain(run["message"]))
    if not rows:
        return "\n".join([*lines, "No evaluation has been recorded yet."])
    examples = next((row.examples for row in rows if row.examples), None)
    steps = {row.step for row in rows}
    where = f"{_plain(split)} split" + (f", {examples:,} {unit(record)}" if examples else "")
    lines.append(where + (f", at step {rows[0].step:,}" if len(steps) == 1 else ""))
    with_accuracy = any(row.accuracy is not None for row in rows)
    others = other_metrics(record)
    header = ["weights", "batch norm"]
    header += (["accuracy", "vs raw"] if with_accuracy else []) + ["loss", "vs raw", *others]
    table = [header + (["step"] if len(steps) > 1 else [])]
    for row in rows:
        cells = [
            f"  matched run of {row.weights}" if row.matched else row.weights,
            row.batch_norm,
            *([percent(row.accuracy, examples)] if with_accuracy else []),
            *([_points_or_none(row.accuracy_vs_raw, examples)] if with_accuracy else []),
            number(row.loss),
            "" if row.loss_vs_raw is None else number(row.loss_vs_raw, signed=True),
            *(number(row.others.get(name)) for name in others),
        ]
        table.append(
            [_plain(cell) for cell in cells] + ([f"{row.step:,}"] if len(steps) > 1 else [])
        )
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for index, cells in enumerate(table):
        padded = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
        if index == 0:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines + [_plain(problem) for problem in problems])


def _points_or_none(difference: float | None, examples: int | None) -> str:
    return "" if difference is None else points(difference, examples)


def _plain(text: Any) -> str:
    """Returns text that is safe for any terminal: no control characters, ASCII signs, short."""
    text = str(text).replace("−", "-").replace("–", "-")
    return "".join(character if character.isprintable() else "?" for character in text)[:200]
