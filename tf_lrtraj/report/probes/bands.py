"""Curves with bands of uncertainty, and their labels at their ends."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    """A curve and a band of two standard errors; none where the error is not known."""
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
    """Mean over the last axis and its standard error, NaN for a single batch."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean = values.mean(axis=-1)
        if values.shape[-1] < 2:
            return mean, np.full(mean.shape, np.nan)
        return mean, values.std(axis=-1, ddof=1) / np.sqrt(values.shape[-1])


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]], size: float = 8.0) -> None:
    """Writes names beside the right ends of curves, moved apart where they would overlap.

    Args:
        axes: its limits must be final; the layout then makes room for the names.
        ends: name → (x, y, colour).
        size: of the text, in points.
    """
    figure = axes.get_figure()
    if figure is None:
        return
    box = axes.get_position()
    height = max(box.height * float(figure.get_size_inches()[1]) * 72.0, 1.0)
    transform = axes.transData + axes.transAxes.inverted()
    places = []
    for name, (x, y, color) in ends.items():
        if np.isfinite(y):
            at = float(transform.transform((x, y))[1])
            places.append([min(max(at, 0.02), 0.98), name, x, y, color])
    places.sort(key=lambda place: place[0])
    room = 1.25 * size / height
    for below, above in itertools.pairwise(places):
        above[0] = max(above[0], below[0] + room)
    excess = places[-1][0] - 0.99 if places else 0.0
    for place in reversed(places):  # back down from the top, as far as there is need
        if excess <= 0.0:
            break
        place[0] -= excess
        excess = min(excess, room)
    for at, name, _, _, color in places:
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


def mode_note(about: Mapping[str, Any]) -> str:
    """What was measured, in a few words: batch norm and dropout."""
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
    return ", ".join(parts)
