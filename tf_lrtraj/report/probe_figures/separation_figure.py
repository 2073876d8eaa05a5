"""Figure of the distance between two runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREEN, GREY, PALETTE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import label_ends

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(record: ArrayRecord) -> Figure:
    """Draws distance and norms by step, of weights and filters, and the displacements' cosine."""
    steps, values = record.coordinates["step"], record.values
    filters = "filters_squared" in values
    columns = 3 if filters else 2
    with style():
        figure, axes = panels(1, columns, 4.6 * columns, 3.7)
        ends = {}
        for name, label, color in (
            ("distance", "distance", BLUE),
            ("norm_a", "norm, first run", GREY),
            ("norm_b", "norm, second run", PALETTE[5]),
        ):
            axes[0].plot(steps, values[name], color=color, linewidth=1.6)
            ends[label] = (float(steps[-1]), float(values[name][-1]), color)
        positive = values["distance"][values["distance"] > 0.0]
        if positive.size and positive.max() > 30.0 * positive.min():
            axes[0].set_yscale("log")
        else:
            axes[0].set_ylim(0.0, None)
        axes[0].set_ylabel("length, in weights")
        kind = record.about.get("batches")
        title(axes[0], f"Distance of two runs{f', {kind} batches' if kind else ''}")
        label_ends(axes[0], ends)
        if filters:
            axes[1].plot(steps, values["filters_squared"], color=GREEN, linewidth=1.6)
            axes[1].set_ylim(0.0, None)
            axes[1].set_ylabel("mean squared distance of unit filters")
            title(axes[1], "Filters; 2: at right angles")
        cosine = np.where(np.isfinite(values["displacement_cosine"]), values["displacement_cosine"],
                          np.nan)  # fmt: skip
        axes[-1].plot(steps, cosine, color=PALETTE[3], linewidth=1.6)
        axes[-1].axhline(0.0, color="black", linewidth=0.8)
        axes[-1].set_ylabel("cosine")
        title(axes[-1], "Ways of both from the first step")
        for one in axes:
            one.set_xlabel("step")
    return figure


def sentences(record: ArrayRecord) -> Iterator[str]:
    """Returns no sentences: the figure states the findings of a separation."""
    return iter(())
