"""Figure of one loss in several modes of batch norm and dropout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREY, ORANGE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import bars, caption, measured, mode_note

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(record: ArrayRecord) -> Figure:
    """Mean losses of all modes, and their differences from the first, batch by batch.

    Args:
        record: of `Modes`.
    """
    names, values = record.coordinates["mode"].tolist(), record.values
    rows = np.arange(len(names))
    with style():
        figure, axes = panels(1, 2, 8.4, 1.4 + 0.34 * len(names))
        for panel, each, mean, color in (
            (axes[0], values["loss"], "mean", BLUE),
            (axes[1], values["loss"] - values["loss"][:1], "difference", ORANGE),
        ):
            shown = np.where(np.isfinite(each), each, np.nan)
            for row, numbers in zip(rows, shown, strict=True):
                panel.plot(numbers, np.full(numbers.size, row), "|", color=GREY, alpha=0.7)
            panel.errorbar(
                values[mean],
                rows,
                xerr=bars(values[f"{mean}_se"]),
                fmt="o",
                color=color,
                markersize=4.5,
                linewidth=1.2,
            )
            panel.set_ylim(len(names) - 0.5, -0.5)
        axes[1].axvline(0.0, color="black", linewidth=0.8)
        axes[0].set_yticks(rows, names)
        axes[1].set_yticks(rows, [])
        axes[0].set_xlabel("loss")
        axes[1].set_xlabel("loss less that of the first mode")
        title(axes[0], "Batch norm, dropout")
        title(axes[1], "Differences, batch by batch")
        note = "bars: 2 standard errors over batches; ticks: single batches"
        modes: dict[str, Any] = record.about.get("modes") or {}
        said = [about.get("penalties") for about in modes.values()]
        penalties = mode_note({"penalties": said[0] if said else None})
        caption(figure, f"{note}, {penalties}" if penalties else note)
    return figure


def sentences(record: ArrayRecord) -> Iterator[str]:
    """What a record found."""
    names = record.coordinates["mode"].tolist()
    told = [f"{name}: {measured(record, 'mean', i)}" for i, name in enumerate(names)]
    yield f"loss by batch norm and dropout: {'; '.join(told)}"
