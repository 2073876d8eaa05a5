"""Reads the loss curve of a constant-rate run from a CSV file; errors name line and column."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import re

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.records.files import LARGEST, open_file

__all__ = ["CurveFile", "read_curve"]

_AVERAGE = re.compile(r"average_([1-9][0-9]*)")
_NEEDED = ("step", "loss")


@dataclasses.dataclass(frozen=True)
class CurveFile:
    """What a CSV file of a curve holds.

    Attributes:
        steps, losses: [K] of the iterates.
        rates: [K] learning rates; None without that column.
        averages: (length, step, loss) of the measured averages.
    """

    steps: np.ndarray
    losses: np.ndarray
    rates: np.ndarray | None
    averages: list[tuple[int, int, float]]


def read_curve(path: str) -> CurveFile:
    """Reads columns step, loss, learning_rate (optional) and average_N (any number, optional).

    Column average_N holds the loss of the mean of the last N iterates at a step, and is empty where
    it was not measured.

    Raises:
        ValueError: if a column is missing or unknown, or a cell is no finite number; the message
            names file, line and column.
    """
    with (
        open_file(path) as content,
        io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as handle,
    ):
        if os.fstat(content.fileno()).st_size > LARGEST:
            raise ValueError(f"{path} must have at most {LARGEST:,} bytes")
        reader = csv.reader(handle)
        try:
            rows = [(reader.line_num, row) for row in reader if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {reader.line_num + 1}: no CSV file: {error}") from None
    if not rows:
        raise ValueError(f"{path} must have a header with columns step and loss. Received: nothing")
    header = [name.strip() for name in rows[0][1]]
    lengths = _columns(path, header)
    table: dict[str, list[float]] = {name: [] for name in header}
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: must have {len(header)} cells. Received: {len(row)}"
            )
        for name, text in zip(header, row, strict=True):
            optional = name in lengths and not text.strip()
            table[name].append(math.nan if optional else _number(path, line, name, text))
    lines = [line for line, _ in rows[1:]]
    steps = np.array(table["step"])
    falling = np.flatnonzero(np.diff(steps) <= 0.0)
    if falling.size:
        at = int(falling[0]) + 1
        raise ValueError(
            f"{path}, line {lines[at]}, column 'step': must increase. Received: {steps[at]:g} "
            f"after {steps[at - 1]:g}"
        )
    averages = [
        (length, int(step), loss)
        for name, length in lengths.items()
        for step, loss in zip(steps.tolist(), table[name], strict=True)
        if not math.isnan(loss)
    ]
    rates = np.array(table["learning_rate"]) if "learning_rate" in table else None
    return CurveFile(steps, np.array(table["loss"]), rates, averages)


def _columns(path: str, header: list[str]) -> dict[str, int]:
    """Checks the header, and returns the columns of averages with their lengths."""
    for name in _NEEDED:
        if name not in header:
            hint = values.closest(name, header)
            raise ValueError(f"{path}, line 1: must have a column {name!r}.{hint} It has: {header}")
    lengths = {}
    for name in header:
        match = _AVERAGE.fullmatch(name)
        if header.count(name) > 1:
            raise ValueError(f"{path}, line 1: must have each column once. Received: {name!r}")
        if match:
            lengths[name] = int(match[1])
        elif name not in (*_NEEDED, "learning_rate"):
            hint = values.closest(name, (*_NEEDED, "learning_rate", "average_500"))
            raise ValueError(
                f"{path}, line 1: columns must be step, loss, learning_rate and average_N, with N "
                f"iterates, such as average_500.{hint} Received: {name!r}"
            )
    return lengths


def _number(path: str, line: int, name: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or (name == "step" and (found < 0.0 or found != int(found))):
        allowed = "a whole number of at least 0" if name == "step" else "a finite number"
        raise ValueError(
            f"{path}, line {line}, column {name!r}: must be {allowed}. Received: {text!r}"
        )
    return found
