"""Shared parts of probe figures: bands of uncertainty, labels, captions, numbers as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Descriptions of the kinds of batches of a record.
CURVES = {"train": "its own batch", "held_out": "held-out batches", "others": "other training"}


def band(
    axes: Axes,
    x: Any,
    mean: Any,
    error: Any,
    color: str,
    *,
    label: str | None = None,
    width: float = 1.8,
    **line: Any,
) -> None:
    """Draws a curve and a band of two standard errors, if the error is known."""
    x, mean, error = (np.asarray(array, np.float64) for array in (x, mean, error))
    shown = np.where(np.isfinite(mean), mean, np.nan)
    axes.plot(x, shown, color=color, linewidth=width, label=label, **line)
    known = np.isfinite(error) & np.isfinite(mean)
    if known.any():
        low, high = (
            np.where(known, mean + s * np.where(known, error, 0.0), np.nan) for s in (-2, 2)
        )
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def over_batches(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over the last axis and its standard error, NaN for a single batch."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean = values.mean(axis=-1)
        if values.shape[-1] < 2:
            return mean, np.full(mean.shape, np.nan)
        return mean, values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])


def bars(error: Any) -> np.ndarray:
    """Returns the lengths of error bars: two standard errors, 0 if the error is unknown."""
    return 2.0 * np.where(np.isfinite(error), error, 0.0)


def names_of_points(records: Sequence[ArrayRecord], at: str, otherwise: str) -> list[str]:
    """Returns the name of each record: its step if it has one, else its number."""
    return [
        f"{at} {record.about['step']:,}" if "step" in record.about else f"{otherwise} {i + 1}"
        for i, record in enumerate(records)
    ]


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]], size: float = 8.0) -> None:
    """Writes names at the right ends of curves, moved apart if they would overlap.

    Args:
        axes: the panel, with final limits; the layout makes room for the names.
        ends: name → (x, y, colour).
        size: the size of the text, in points.
    """
    figure: Any = axes.get_figure()
    points = axes.get_position().height * float(figure.get_size_inches()[1]) * 72.0
    transform = axes.transData + axes.transAxes.inverted()
    shown = {name: end for name, end in ends.items() if np.isfinite(end[1])}
    wanted = [float(transform.transform(end[:2])[1]) for end in shown.values()]
    room = 1.25 * size / max(points, 1.0)
    for (name, (_, _, color)), at in zip(shown.items(), spread(wanted, room), strict=True):
        axes.annotate(
            name,
            (1.0, at),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            color=color,
            fontsize=size,
            va="center",
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], room: float) -> list[float]:
    """Returns places in [0, 1] near the wanted ones, at least `room` apart if they fit.

    >>> spread([0.5, 0.5, 0.1], 0.25)
    [0.5, 0.75, 0.1]
    >>> spread([2.0, 2.0], 0.25)
    [0.75, 1.0]
    """
    order = np.argsort(wanted, kind="stable")
    places = np.clip(np.asarray(wanted, np.float64)[order], 0.0, 1.0)
    for i in range(1, len(places)):  # up, as far as there is need
        places[i] = max(places[i], places[i - 1] + room)
    top = 1.0
    for i in reversed(range(len(places))):  # and back down from the top
        places[i] = min(places[i], top)
        top = places[i] - room
    found = np.empty(len(places))
    found[order] = places
    return [float(place) for place in found]


def number_with_error(number: float, error: float) -> str:
    """Formats a number with the digits that its standard error allows; without one, two digits.

    >>> number_with_error(0.0551, 0.0063), number_with_error(12.3, 2.6)
    ('0.055 ± 0.006', '12 ± 3')
    """
    if not np.isfinite(error) or error <= 0.0 or not np.isfinite(number):
        return f"{number:.2g}"
    digits = max(0, -int(np.floor(np.log10(error))))
    return f"{number:.{digits}f} ± {error:.{digits}f}"


def measured(record: ArrayRecord, name: str, index: Any = ()) -> str:
    """Formats a value of a record with its standard error."""
    values = record.values
    return number_with_error(float(values[name][index]), float(values[f"{name}_se"][index]))


def mode_note(about: Mapping[str, Any]) -> str:
    """Describes the modes of batch norm and dropout in a few words."""
    parts = []
    norm = {
        "batch": "batch norm by each batch",
        "frozen": "batch norm frozen",
        "recalibrated": "batch norm recomputed at every point",
    }.get(str(about.get("batch_norm")))
    if norm:
        parts.append(norm)
    if about.get("dropout") == "pinned":
        parts.append("dropout masks pinned")
    if "penalties" in about and about["penalties"] is not None:
        parts.append(f"penalties of regularizers {about['penalties']}")
    return ", ".join(parts)


def sketch_note(record: ArrayRecord) -> str:
    """Describes the mode, and whether the numbers come from sketches."""
    note = mode_note(record.about)
    if record.about.get("sketch_size"):
        note += f"{', ' if note else ''}from sketches of {record.about['sketch_size']:,} numbers"
    return note


def caption(figure: Figure, text: str, size: float = 7.5) -> None:
    """Writes a note below a figure, in as many lines as its width requires.

    Args:
        text: the note, which may hold newlines; nothing is written if it is empty.
        size: the size of the text, in points.
    """
    if not text:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.font_manager import FontProperties

    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    font = FontProperties(size=size)
    room = 0.84 * float(figure.bbox.width)
    lines: list[str] = []
    for part in text.splitlines():
        lines.append("")
        for word in part.split():
            longer = f"{lines[-1]} {word}".strip()
            width = renderer.get_text_width_height_descent(longer, font, ismath=False)[0]
            if lines[-1] and width > room:
                lines.append(word)
            else:
                lines[-1] = longer
    figure.supxlabel("\n".join(lines), fontsize=size, color=GREY, x=0.01, ha="left")
