"""The results of a run in sentences, and as a table for a terminal."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from tf_lrtraj.records import RAW, RunRecord, load_record
from tf_lrtraj.report.number_text import is_finite, number, percent, points
from tf_lrtraj.report.run_results import (
    FinalRow,
    Pair,
    common_step,
    final_rows,
    load_matched,
    main_split,
    other_metrics,
    pairs,
    total_steps,
    unit,
)


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
    total = total_steps(record)
    if record.status == "done" and step >= total:
        return "At the end"
    return f"At step {step:,} of {total:,}"


def findings(
    record: RunRecord, split: str, matched: Mapping[str, RunRecord] | None = None
) -> list[str]:
    """Returns sentences on the effect of averaging, and on what the records do not show."""
    until = common_step(record, split)
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
    change = points(gain, examples, best.errors.get("accuracy_vs_raw"))
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
            f"({change} percentage points).{losses}"
        )
    else:
        first = (
            f"{when}, no average is above the raw weights in {split} accuracy "
            f"({percent(beside, examples)}); {best.weights}{rank} has "
            f"{percent(best.accuracy, examples)} ({change} percentage points)."
            f"{losses}"
        )
    sentences = [first]
    sentences += [
        _pair_sentence(pair) for pair in pairs(record, split, matched or {}).values() if pair.step
    ]
    caution = _caution(record)
    if examples and not record.runs:
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
    change = number(gain, signed=True, error=best.errors.get("loss_vs_raw"))
    against = f"{number(best.loss)} against {number(beside)} ({change})"
    if gain < 0:
        first = f"{_when(record, step)}, {best.weights}{rank} has {split} loss {against}."
    else:
        first = (
            f"{_when(record, step)}, no average has a lower {split} loss than the raw weights; "
            f"{best.weights}{rank} has {against}."
        )
    pairs_found = pairs(record, split, matched).values()
    caution = _caution(record) + "."
    return [first, *(_pair_sentence(pair) for pair in pairs_found if pair.step), caution]


def _caution(record: RunRecord) -> str:
    if not record.runs:
        return "This is one run with one seed, so differences between seeds are not measured here"
    return (
        f"Numbers are means over {len(record.runs)} runs that differ in their seed "
        f"({record.run['seed']}); ± is the standard error of a mean over them, and bands reach "
        "from the lowest to the highest run"
    )


def _pair_sentence(pair: Pair) -> str:
    verb = "ends at" if pair.at_end else f"is, at step {pair.step:,}, at"
    if pair.accuracy_difference is None:
        return (
            f"The run under the schedule equivalent to {pair.average} {verb} loss "
            f"{number(pair.matched_loss)}; {pair.average} has {number(pair.average_loss)}."
        )
    size = points(abs(pair.accuracy_difference), pair.examples).lstrip("+")
    error = pair.errors.get("accuracy_difference")
    if float(size) == 0 and error is None:
        against = "the same as"
    else:
        size = points(abs(pair.accuracy_difference), pair.examples, error).lstrip("+")
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
    record = load_record(workdir)
    matched, problems = load_matched(record)
    split = main_split(record)
    rows = final_rows(record, split, matched)
    run = record.run
    title = f"{_plain(run.get('name') or record.workdir.name)}: {record.status}"
    title += f", step {record.last_step():,} of {total_steps(record):,}, "
    title += f"{'seeds' if record.runs else 'seed'} {run.get('seed')}"
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
            *(
                [percent(row.accuracy, examples, row.errors.get("accuracy"))]
                if with_accuracy
                else []
            ),
            *([_vs_raw(row, examples)] if with_accuracy else []),
            number(row.loss, error=row.errors.get("loss")),
            ""
            if row.loss_vs_raw is None
            else number(row.loss_vs_raw, True, row.errors.get("loss_vs_raw")),
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


def _vs_raw(row: FinalRow, examples: int | None) -> str:
    if row.accuracy_vs_raw is None:
        return ""
    return points(row.accuracy_vs_raw, examples, row.errors.get("accuracy_vs_raw"))


def _plain(text: Any) -> str:
    """Returns text that is safe for any terminal: no control characters, ASCII signs, short."""
    text = str(text).replace("−", "-").replace("–", "-")
    return "".join(character if character.isprintable() else "?" for character in text)[:200]
