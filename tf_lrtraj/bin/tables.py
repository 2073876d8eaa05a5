"""Reads rates and spectra from text and files, and writes tables and figures."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tf_lrtraj import kernels, rates, values
from tf_lrtraj.records.files import LARGEST, open_file

LONGEST = 20_000_000  # updates; several arrays of that many numbers are made
MOST_CURVATURES = 100_000
SHORT_NAMES = ("constant", "cosine", "linear", "one_minus_sqrt")


def check_reach(kernel: kernels.Kernel, num_steps: int) -> None:
    """Raises ValueError for a kernel that reaches beyond the run."""
    first = kernel.first_average
    if first is not None and first > num_steps:
        raise ValueError(f"--kernel: {kernel} reaches beyond the run of {num_steps} updates")


def parse_rates(text: str, num_steps: int | None, peak: float, decay: int | None) -> np.ndarray:
    """Returns [T] rates from a number, a short name, a formula or FILE.csv[:COLUMN].

    Args:
        num_steps: T; not needed for a file.
        peak: first rate of a schedule given by its short name.
        decay: updates at the end over which a short name's schedule falls.

    >>> parse_rates("linear", 4, peak=0.4, decay=2)
    array([0.4, 0.4, 0.4, 0.2])
    """
    file = _csv_name(text)
    if file:
        return _rates_of_csv(*file, num_steps)
    if num_steps is None:
        raise ValueError("--num_steps is needed unless --base is a CSV file")
    if _is_number(text):
        return rates.as_array(float(text), num_steps)
    if text in SHORT_NAMES:
        return _short(text, peak, num_steps, num_steps if decay is None else decay)
    if "(" not in text:
        allowed = (
            f"a number, one of {', '.join(SHORT_NAMES)}, a formula such as {rates.RATES.example}, "
            "or FILE.csv[:COLUMN]"
        )
        hint = values.closest(text, [*SHORT_NAMES, *rates.RATES])
        raise values.error("rate", allowed, text, hint=hint)
    return rates.as_array(rates.RATES.from_text(text), num_steps)


def decayed_rates(text: str, base: np.ndarray, decay: int | None) -> np.ndarray:
    """Returns [T] rates that are those of a run until `decay` updates before its end.

    Args:
        text: as for `parse_rates`.
        base: [T] rates of the run.
        decay: updates over which a short name's schedule decays from the run's rate; None for all.

    Raises:
        ValueError: if `decay` is out of range, or is given for a schedule that is not a short name.

    >>> decayed_rates("linear", np.array([0.8, 0.6, 0.4, 0.2]), 2)
    array([0.8, 0.6, 0.4, 0.2])
    """
    steps = len(base)
    if decay is None:
        return parse_rates(text, steps, peak=float(base[0]), decay=None)
    values.one_of(SHORT_NAMES).check("shape", text)
    values.integer(1, steps).check("updates", decay)
    start = steps - decay
    schedule = parse_rates(text, steps, peak=float(base[start]), decay=decay)
    schedule[:start] = base[:start]
    return schedule


def _short(name: str, peak: float, num_steps: int, length: int) -> np.ndarray:
    if name == "one_minus_sqrt":
        return rates.as_array(rates.OneMinusSqrt(peak, num_steps - length, length), num_steps)
    if name == "constant":
        return rates.as_array(peak, num_steps)
    decay: rates.Rate = (rates.Linear if name == "linear" else rates.Cosine)(peak, length)
    if length == num_steps:
        return rates.as_array(decay, num_steps)
    return rates.as_array(
        rates.Sequence([rates.Constant(peak), decay], [num_steps - length]), num_steps
    )


def parse_spectrum(text: str) -> np.ndarray:
    """Returns [D] curvatures from LOW:HIGH:COUNT or FILE.csv[:COLUMN].

    >>> parse_spectrum("0.01:1:3")
    array([0.01, 0.1 , 1.  ])
    """
    file = _csv_name(text)
    if file:
        return _column(*file)[1]
    parts = text.split(":")
    try:
        low, high, count = float(parts[0]), float(parts[1]), int(parts[2])
        sound = len(parts) == 3 and 0.0 < low <= high < math.inf
        sound = sound and 1 <= count <= MOST_CURVATURES
    except (IndexError, ValueError):
        sound = False
    if not sound:
        most = f"COUNT at most {MOST_CURVATURES:,}"
        allowed = f"LOW:HIGH:COUNT with 0 < LOW <= HIGH and {most}, or FILE.csv[:COLUMN]"
        raise values.error("--spectrum", allowed, text)
    return np.geomspace(low, high, count)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _csv_name(text: str) -> tuple[str, str | None] | None:
    """(file, column) of FILE.csv[:COLUMN], or None."""
    file, found, column = text.partition(".csv:")
    if found:
        return file + ".csv", column
    return (text, None) if text.endswith(".csv") else None


def _column(file: str, column: str | None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All columns of a CSV file that hold numbers, and the wanted one (the only one by default)."""
    with (
        open_file(file) as content,
        io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as handle,
    ):
        if os.fstat(content.fileno()).st_size > LARGEST:
            raise ValueError(f"{file} must have at most {LARGEST:,} bytes")
        try:
            rows = [row for row in csv.reader(handle) if row]
        except csv.Error as error:
            raise ValueError(f"{file} is not a CSV file: {error}") from None
    if not rows:
        raise ValueError(f"{file} is empty")
    header = [name.strip() for name in rows[0]]
    if all(_is_number(name) for name in header):
        header = [str(index) for index in range(len(header))]
    else:
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{file} has a header and no rows")
    if column is None:
        others = [name for name in header if name != "step"]
        if len(others) != 1:
            raise ValueError(f"{file} has columns {header}: choose one with {file}:COLUMN")
        column = others[0]
    if column not in header:
        hint = values.closest(column, header)
        raise ValueError(f"{file} has no column {column!r}. It has: {header}.{hint}")
    table = {name: _numbers(file, rows, header, name) for name in {column, "step"} & set(header)}
    return table, table[column]


def _numbers(file: str, rows: list[list[str]], header: list[str], name: str) -> np.ndarray:
    place = header.index(name)
    values = np.empty(len(rows))
    for index, row in enumerate(rows):
        text = row[place] if place < len(row) else ""
        values[index] = float(text) if _is_number(text) else math.nan
        if not math.isfinite(values[index]):
            raise ValueError(
                f"{file}: column {name!r} must hold finite numbers. Received: {text!r} in data "
                f"row {index + 1}"
            )
    return values


def _rates_of_csv(file: str, column: str | None, num_steps: int | None) -> np.ndarray:
    table, values = _column(file, column)
    if np.any(values < 0.0):
        row = int(np.argmax(values < 0.0))
        raise ValueError(
            f"{file}: rates must be at least 0. Received: {values[row]:g} in data row {row + 1}"
        )
    if "step" in table:
        steps = table["step"]
        falling = np.flatnonzero(np.diff(steps) <= 0)
        if falling.size:
            row = int(falling[0])
            raise ValueError(
                f"{file}: column 'step' must increase. Received: {steps[row + 1]:g} after "
                f"{steps[row]:g} in data row {row + 2}"
            )
        if steps[0] != 0:
            raise ValueError(f"{file}: column 'step' must begin at 0. Received: {steps[0]:g}")
        if steps[-1] >= LONGEST:
            raise ValueError(
                f"{file}: column 'step' must stay below {LONGEST:,}. Received: {steps[-1]:g}"
            )
        if np.any(np.diff(steps) != 1):
            print(f"note       {file} does not hold every step: missing rates are interpolated")
        values = np.interp(np.arange(int(steps[-1]) + 1), steps, values)
    if num_steps is not None and num_steps > values.size:
        raise ValueError(
            f"{file} holds rates for {values.size} updates. Received: --num_steps={num_steps}"
        )
    return values[:num_steps]


def print_table(columns: dict[str, np.ndarray], rows: int) -> None:
    """Prints at most `rows` rows: half evenly spaced, half increasingly dense towards the end."""
    size = len(next(iter(columns.values())))
    shown = np.arange(size)
    if size > rows:
        even = np.linspace(0, size - 1, rows - rows // 2)
        late = size - 1 - np.geomspace(1, size - 1, rows // 2)
        shown = np.unique(np.concatenate([even, late]).round().astype(int))
    cells = {
        name: [_cell(values[index]) for index in shown.tolist()] for name, values in columns.items()
    }
    widths = {name: max(len(name), *map(len, texts)) for name, texts in cells.items()}
    print("  ".join(name.rjust(width) for name, width in widths.items()))
    for row in range(shown.size):
        print("  ".join(cells[name][row].rjust(width) for name, width in widths.items()))
    if shown.size < size:
        print(f"({shown.size} of {size} rows; --rows=N shows more, --csv=FILE writes all)")


def _cell(value: Any) -> str:
    if isinstance(value, np.integer):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6g}"


def write_csv(path: str, columns: dict[str, np.ndarray]) -> None:
    """Writes all rows with all digits; an empty cell where there is no number."""

    def write(temporary: pathlib.Path) -> None:
        lists = [values.tolist() for values in columns.values()]
        with temporary.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(
                ["" if cell != cell else cell for cell in row] for row in zip(*lists, strict=True)
            )

    _replace(path, write)


def check_figure(path: str) -> None:
    """Raises ValueError if the file's suffix is not that of a figure."""
    if pathlib.Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise values.error("--figure", "a file that ends in .png, .svg or .pdf", path)


def write_figure(path: str, columns: dict[str, np.ndarray], title: str) -> None:
    """Draws rates above, averaging weights below."""
    check_figure(path)
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(7, 5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    names = {"base": "base run", "schedule": "equivalent schedule", "best": "best on the spectrum"}
    for name, colour in zip(names, ("0.6", "C0", "C1"), strict=True):
        if name in columns:
            upper.step(
                columns["step"], columns[name], where="post", label=names[name], color=colour
            )
    upper.set(ylabel="learning rate", title=title)
    upper.legend(frameon=False)
    lower.plot(columns["step"], columns["weight"], color="C2")
    lower.set(ylabel="averaging weight", xlabel="update")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    _replace(path, lambda temporary: figure.savefig(temporary, dpi=150))


def beside(path: str, ending: str) -> str:
    """Returns the path with `ending` before its suffix."""
    place = pathlib.Path(path)
    return str(place.with_name(place.stem + ending + place.suffix))


def _replace(path: str, write: Callable[[pathlib.Path], None]) -> None:
    """Writes to a temporary name first, so that the file is never incomplete."""
    place = pathlib.Path(path)
    temporary = place.with_name(f".{os.getpid()}.{place.name}")
    try:
        write(temporary)
        temporary.replace(place)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
