"""Figure of the displacement of weights: by lag, and by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREEN, GREY, ORANGE, PALETTE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import band, caption, label_ends, measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(record: ArrayRecord) -> Figure:
    """Draws squared displacement by lag, of weights and filters; norm and distances by step."""
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


def sentences(record: ArrayRecord) -> Iterator[str]:
    """Returns sentences on the findings of a record."""
    if np.isfinite(record.values["squared_growth"]):  # enough steps for large lags
        yield f"squared displacement grows as lag to the power {measured(record, 'squared_growth')}"
    if np.isfinite(record.values.get("filters_squared_growth", np.inf)):
        power = measured(record, "filters_squared_growth")
        yield f"that of filters divided by their norms as lag to the power {power}"
