"""Figures of how far weights move: against lag, over steps, and between two runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREEN, GREY, ORANGE, PALETTE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import band, caption, label_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(record: ArrayRecord) -> Figure:
    """The figure of a record of `Distance` (or a `DisplacementTracker`), or of `Separation`."""
    return _between(record) if record.kind == "separation" else _along(record)


def _along(record: ArrayRecord) -> Figure:
    filters = "filters_squared" in record.values
    columns = 3 if filters else 2
    with style():
        figure, axes = panels(1, columns, 4.7 * columns, 3.8)
        _against_lag(axes[0], record, "squared", BLUE)
        axes[0].set_ylabel("mean squared displacement")
        if filters:
            _against_lag(axes[1], record, "filters_squared", GREEN)
            axes[1].set_ylabel("mean squared displacement of unit filters")
        _over_steps(axes[-1], record)
        if record.about.get("sketch_size"):
            size = record.about["sketch_size"]
            note = f"displacement from sketches of {size:,} numbers, ±{np.sqrt(2 / size):.1%}"
            caption(figure, note)
    return figure


def _against_lag(panel: Axes, record: ArrayRecord, name: str, color: str) -> None:
    lags = record.coordinates["lag"].astype(np.float64)
    mean, error = record.values[f"mean_{name}"], record.values[f"mean_{name}_se"]
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("lag, updates")
    # On a log scale a band may not reach 0.
    band(panel, lags, mean, np.minimum(error, 0.45 * mean), color, marker="o", markersize=3)
    unknown = np.isinf(error) & np.isfinite(mean)
    if unknown.any():
        panel.plot(lags[unknown], mean[unknown], "o", color="white", markeredgecolor=color)
    known = np.isfinite(mean) & (mean > 0.0)
    if known.any():
        first = int(np.flatnonzero(known)[0])
        walk = mean[first] * lags / lags[first]
        top = 2.0 * float(mean[known].max())
        panel.plot(lags, walk, color=GREY, linewidth=1.0, linestyle=":")
        at = int(np.flatnonzero(walk <= 0.6 * top)[-1])
        panel.annotate(
            "random walk", (lags[at], walk[at]), xytext=(-5, 2), textcoords="offset points",
            fontsize=7.5, color=GREY, ha="right",
        )  # fmt: skip
        panel.set_ylim(0.6 * float(mean[known].min()), top)
    slope, its_error = (float(record.values[f"{name}_growth{end}"]) for end in ("", "_se"))
    text = f"{slope:.2f}" + (f" ± {its_error:.2f}" if np.isfinite(its_error) else "")
    what = "Filters" if name.startswith("filters") else "Weights"
    title(panel, f"{what}: slope at large lags {text if np.isfinite(slope) else 'unknown'}")


def _over_steps(panel: Axes, record: ArrayRecord) -> None:
    steps = record.coordinates["step"]
    kinds = [
        ("norm", "norm", PALETTE[-1]),
        ("from_start", "from the start", ORANGE),
        ("from_mean", "from the mean so far", BLUE),
        ("from_reference", "from the reference", PALETTE[3]),
    ]
    ends = {}
    for name, label, color in kinds:
        if name in record.values:
            values = record.values[name]
            panel.plot(steps, values, color=color, linewidth=1.5)
            ends[label] = (float(steps[-1]), float(values[-1]), color)
    panel.set_ylim(0.0, None)
    panel.set_xlabel("step")
    panel.set_ylabel("length, in weights")
    title(panel, "Norm and distances")
    label_ends(panel, ends)


def _between(record: ArrayRecord) -> Figure:
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
