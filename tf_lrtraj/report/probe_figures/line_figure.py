"""Figure of the loss along a step: the batch itself, held-out batches, and fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREEN, GREY, ORANGE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import (
    CURVES,
    band,
    caption,
    measured,
    mode_note,
    names_of_points,
    number_with_error,
    over_batches,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = {
    "train": (BLUE, "this batch"),
    "held_out": (ORANGE, "held-out"),
    "others": (GREEN, "other training"),
}
_DEGREES = ("#bbbbbb", BLUE, "#56B4E9", "#CC79A7")
_DIRECTIONS = {
    "gradient": "along each batch's gradient",
    "momentum": "along the optimizer's step with momentum",
    "random": "along filter-normalised random directions, as long as the gradient",
    "given": "along a given vector",
}


def draw(records: Sequence[ArrayRecord]) -> Figure:
    """Draws curves by rate above, errors of polynomial fits below, with a column per record.

    Args:
        records: the records of `Line`; columns share axes unless their ranges differ by more than
            2.5.
    """
    titles = names_of_points(records, "At step", "Point")
    if len(records) == 1 and "step" not in records[0].about:
        titles = [""]
    ends = [_right_limit(record) for record in records]
    tops = [_top(record) for record in records]
    # One scale for all, unless points differ so much that some would not be visible.
    across, along = (max(limits) <= 2.5 * min(limits) for limits in (tops, ends))
    with style():
        columns = len(records)
        figure, axes = panels(2, columns, max(5.0, 3.7 * columns), 6.2)
        for i, record in enumerate(records):
            _curves(axes[i], record, max(ends) if along else ends[i])
            axes[i].set_ylim(0.0, max(tops) if across else tops[i])
            title(axes[i], titles[i])
            _errors(axes[columns + i], record, labelled=i == columns - 1)
            if i:
                axes[i].tick_params(labelleft=not across)
                axes[columns + i].tick_params(labelleft=False)
        axes[0].set_ylabel("loss after the step")
        axes[columns].set_ylabel("error of the fit / drop of the loss")
        about = [
            _DIRECTIONS.get(str(records[0].about.get("direction")), ""),
            f"{len(records[0].coordinates['batch'])} batches",
            mode_note(records[0].about),
        ]
        note = ", ".join(part for part in about if part) + (
            "\nbands: 2 standard errors of the change; dotted: parabola; bars: gain is gone; "
            "below: quartiles over batches"
        )
        caption(figure, note)
    return figure


def _right_limit(record: ArrayRecord) -> float:
    """Returns the right limit of a panel, beyond the zero crossing of the batch's own curve."""
    rates, values = record.coordinates["rate"], record.values
    wanted = 1.25 * float(values["mean_zero_crossing"][0])
    if not 0.0 < wanted < np.inf:
        wanted = 3.0 * float(values["mean_best_rate"][0])
    return min(wanted, float(rates[-1])) if wanted > 0.0 else float(rates[-1])


def _top(record: ArrayRecord) -> float:
    start = record.values["mean"][:, 0]
    return 1.45 * float(start[np.isfinite(start)].max(initial=0.0)) or 1.0


def _curves(panel: Axes, record: ArrayRecord, end: float) -> None:
    rates, values = record.coordinates["rate"], record.values
    inside = rates <= end
    if not inside.all():
        inside[int(inside.sum())] = True  # a curve continues to the panel's edge
    marker = "o" if inside.sum() < 20 else None
    for c, name in enumerate(record.coordinates["curve"].tolist()):
        color, label = _STYLES[name]
        each, mean = values[name], values["mean"][c]
        shown = inside & np.isfinite(mean)
        if name == "train":
            with np.errstate(invalid="ignore"):
                each_shown = np.where(np.isfinite(each), each, np.nan)
            panel.plot(rates[inside], each_shown[inside], color=color, linewidth=0.5, alpha=0.3)
            fitted = np.linspace(0.0, min(2.0 * values["mean_best_rate"][c], end), 60)
            if np.isfinite(values["mean_fit"][c]).all():
                parabola = np.polynomial.polynomial.polyval(fitted, values["mean_fit"][c])
                panel.plot(fitted, parabola, color="black", linewidth=1.1, linestyle=":", zorder=3)
        with np.errstate(invalid="ignore"):
            _, error = over_batches(each - each[:1])
        band(panel, rates[shown], mean[shown], error[shown], color, marker=marker, markersize=2.5)
        _marks(panel, record, c, color, label)
    panel.set_xlim(0.0, end)
    panel.set_xlabel("learning rate of the step")


def _marks(panel: Axes, record: ArrayRecord, c: int, color: str, label: str) -> None:
    """Draws a dot at the best rate and a bar at the zero crossing, and writes both."""
    values = record.values
    best, best_se = values["mean_best_rate"][c], values["mean_best_rate_se"][c]
    zero, zero_se = values["mean_zero_crossing"][c], values["mean_zero_crossing_se"][c]
    start = values["mean"][c, 0]
    panel.plot(
        best, start - values["mean_gain"][c], "o", color=color, markersize=5.5, zorder=4,
        markeredgecolor="white",
    )  # fmt: skip
    if 0.0 < zero < np.inf:
        panel.plot(zero, start, "|", color=color, markersize=13, markeredgewidth=2.2, zorder=4)
    gone = (
        f"gain gone at {number_with_error(zero, zero_se)}"
        if zero < np.inf
        else "gain not gone in range"
    )
    text = f"{label}: best {number_with_error(best, best_se)}, {gone}"
    if zero == 0.0:
        text = f"{label}: no gain"
    panel.annotate(
        text,
        (0.0, 1.0),
        xycoords="axes fraction",
        xytext=(5, -9 - 11 * c),
        textcoords="offset points",
        color=color,
        fontsize=7.5,
        va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8},
        zorder=5,
    )


def _errors(panel: Axes, record: ArrayRecord, labelled: bool) -> None:
    windows, errors = record.coordinates["window"], record.values["fit_error"]
    panel.set_yscale("log")
    panel.set_xlabel("window of the fit / best rate")
    for d, degree in enumerate(record.coordinates["degree"].tolist()):
        color = _DEGREES[d % len(_DEGREES)]
        middle = np.median(errors[d], axis=-1)
        known = np.isfinite(middle) & (middle > 0.0)
        if not known.any():
            continue
        low, high = np.quantile(errors[d], [0.25, 0.75], axis=-1, method="nearest")
        panel.plot(
            windows[known], middle[known], color=color, linewidth=1.7, marker="o", markersize=3.5
        )
        panel.fill_between(
            windows[known],
            np.maximum(low, 1e-12)[known],
            np.where(np.isfinite(high), high, middle)[known],
            color=color,
            alpha=0.2,
            linewidth=0,
        )
        if labelled:
            at = int(np.flatnonzero(known)[-1])
            panel.annotate(
                f"degree {degree}",
                (windows[at], middle[at]),
                xytext=(6, 0),
                textcoords="offset points",
                color=color if d else GREY,
                fontsize=8,
                va="center",
                annotation_clip=False,
            )
    for level in record.coordinates["level"]:
        panel.axhline(level, color="#999999", linewidth=0.6, linestyle=(0, (4, 3)))
    panel.set_ylim(1e-4, 1.0)
    panel.set_yticks([1e-4, 1e-3, 1e-2, 1e-1, 1.0], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"])
    panel.set_xlim(0.0, 1.04 * float(windows[-1]))


def sentences(record: ArrayRecord) -> Iterator[str]:
    """Returns sentences on the findings of a record."""
    batches = len(record.coordinates["batch"])
    for i, curve in enumerate(record.coordinates["curve"].tolist()):
        text = f"{CURVES[curve]}: best at rate {measured(record, 'mean_best_rate', i)}"
        text += f", lower by {measured(record, 'mean_gain', i)}"
        crossing = record.values["mean_zero_crossing"][i]
        if np.isfinite(crossing):
            text += f"; the gain is gone at {measured(record, 'mean_zero_crossing', i)}"
        yield f"{text} (mean of {batches} batches)"
    degrees = record.coordinates["degree"].tolist()
    windows = record.coordinates["window"].tolist()
    if 2 in degrees and 2.0 in windows:
        errors = record.values["fit_error"][degrees.index(2), windows.index(2.0)]
        beyond = int(np.isinf(errors).sum())
        if beyond:
            yield (
                f"no parabola was fitted up to twice the best rate of {beyond} of {batches} "
                "batches, because it lies beyond the largest rate or a loss is not finite"
            )
        elif np.isfinite(errors).any():
            middle, worst = np.nanmedian(errors), np.nanmax(errors)
            yield (
                "a parabola fits each batch's own curve up to twice its best rate within "
                f"{100 * middle:.2g} % of the drop (median; worst {100 * worst:.2g} %)"
            )
