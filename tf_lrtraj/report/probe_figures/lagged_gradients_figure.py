"""Figure of the alignment of gradients along a trajectory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREEN, ORANGE, PALETTE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import (
    band,
    caption,
    label_ends,
    measured,
    sketch_note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(record: ArrayRecord) -> Figure:
    """Draws cosines by lag, and those of each step's gradient with the displacement."""
    lags, steps, values = record.coordinates["lag"], record.coordinates["step"], record.values
    later = lags > 0
    with style():
        figure, (left, middle, right) = panels(1, 3, 14.2, 3.7)
        curves = [
            ("mean_cosine", BLUE, "the same batches"),
            ("full_cosine", GREEN, "full gradient (estimate)"),
        ]
        _curves(left, record, later, curves)
        title(left, "Gradient and gradient a lag later")
        curves = [
            ("mean_start_cosine", BLUE, "gradient at the start"),
            ("mean_end_cosine", ORANGE, "gradient at the end"),
        ]
        _curves(middle, record, later, curves)
        title(middle, "Gradient and way gone (below 0: downhill)")
        cosines = values["off_mean_cosine"]
        right.plot(steps, np.where(np.isfinite(cosines), cosines, np.nan), color=PALETTE[3])
        right.axhline(0.0, color="black", linewidth=0.8)
        right.set_xlabel("step")
        right.set_ylabel("cosine")
        mean = {"running": "the mean so far", "all": "the mean of all steps"}
        text = mean.get(str(record.about.get("mean")), "given weights")
        title(right, f"Gradient and way from {text}")
        caption(figure, sketch_note(record))
    return figure


def _curves(
    panel: Axes, record: ArrayRecord, later: np.ndarray, curves: list[tuple[str, str, str]]
) -> None:
    lags = record.coordinates["lag"][later].astype(np.float64)
    ends = {}
    for name, color, label in curves:
        mean, error = record.values[name][later], record.values[f"{name}_se"][later]
        band(panel, lags, mean, error, color, marker="o", markersize=3)
        ends[label] = (float(lags[-1]), float(mean[-1]), color)
    panel.axhline(0.0, color="black", linewidth=0.8)
    if lags.size > 1:
        panel.set_xscale("log")
    panel.set_xlabel("lag, updates")
    panel.set_ylabel("cosine")
    label_ends(panel, ends)


def sentences(record: ArrayRecord) -> Iterator[str]:
    """Returns sentences on the findings of a record."""
    lags = record.coordinates["lag"]
    for i in sorted({int(np.argmax(lags > 0)), len(lags) - 1}):
        yield f"gradients of the same batches {lags[i]} updates apart: cosine " + measured(
            record, "mean_cosine", i
        )
