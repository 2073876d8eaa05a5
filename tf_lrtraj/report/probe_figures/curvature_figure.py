"""Figure of curvature along steps: from losses, by products, and compared with the noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREY, ORANGE, PALETTE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import caption, mode_note, names_of_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(records: Sequence[ArrayRecord]) -> Figure:
    """Left: dᵀHd / ‖d‖² from losses against products.  Right: the errors of both, by record.

    Args:
        records: the records of `Curvature`, of one point of training or several.
    """
    with style():
        figure, axes = panels(1, 2, 8.4, 3.6)
        _against_products(axes[0], records)
        _errors(axes[1], records)
        caption(figure, mode_note(records[0].about))
    return figure


def _against_products(axes: Axes, records: Sequence[ArrayRecord]) -> None:
    shown = []
    names = names_of_points(records, "step", "point")
    for index, record in enumerate(records):
        values = record.values
        squares = values["direction_norm"] ** 2
        measured, error = values["curvature"] / squares, values["curvature_error"] / squares
        # Without products (recalibrated batch norm) batches are shown side by side.
        checked = "product" in values
        across = values["product"] / squares if checked else 1.0 + index + 0.0 * measured
        axes.errorbar(
            across,
            measured,
            yerr=np.where(np.isfinite(error), error, 0.0),
            fmt="o",
            markersize=3.5,
            linewidth=0.8,
            color=PALETTE[index % len(PALETTE)],
            label=names[index],
        )
        shown.append(np.concatenate([measured, across] if checked else [measured]))
    numbers = np.concatenate(shown)
    ends = [float(np.nanmin(numbers)), float(np.nanmax(numbers))]
    if all("product" in record.values for record in records):
        axes.plot(ends, ends, color=GREY, linewidth=0.8, zorder=0)
        axes.set_xlabel("by a Hessian-vector product")
    if ends[0] > 0.0 and ends[1] > 10.0 * ends[0]:
        axes.set_yscale("log")
        if all("product" in record.values for record in records):
            axes.set_xscale("log")
    axes.set_ylabel("from measured losses")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    title(axes, "Curvature along the step, dᵀHd / ‖d‖²")


def _errors(axes: Axes, records: Sequence[ArrayRecord]) -> None:
    """Draws medians over batches, with the smallest and largest values."""
    rows = [
        ("noise of the loss", "noise", GREY),
        ("estimated error", "relative", BLUE),
        ("off the product", "disagreement", ORANGE),
    ]
    places = np.arange(len(records))
    for number, (label, key, colour) in enumerate(rows):
        found = []
        for record in records:
            values = record.values
            if key == "relative":
                numbers = np.abs(values["curvature_error"] / values["curvature"])
            elif key in values:
                numbers = values[key]
            else:
                break
            finite = numbers[np.isfinite(numbers) & (numbers > 0.0)]
            found.append(np.quantile(finite, [0.0, 0.5, 1.0]) if finite.size else [np.nan] * 3)
        if len(found) < len(records):
            continue
        low, middle, high = np.transpose(found)
        axes.errorbar(
            places + 0.12 * (number - 1),
            middle,
            yerr=[middle - low, high - middle],
            fmt="o",
            markersize=4,
            linewidth=1.0,
            color=colour,
            label=label,
        )
    axes.set_yscale("log")
    axes.set_xticks(places, names_of_points(records, "step", "point"))
    axes.set_xlim(-0.5, len(records) - 0.5)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    title(axes, "Relative errors, and noise in nats: median and range")


def sentences(record: ArrayRecord) -> Iterator[str]:
    """Returns sentences on the findings of a record."""
    values = record.values
    text = f"dᵀHd/‖d‖² along the step: median {np.median(values['per_square']):.3g}"
    if "disagreement" in values:
        text += f"; products are {100 * np.median(values['disagreement']):.2g} % off (median)"
    yield f"{text}; noise of one loss {np.median(values['noise']):.1e}"
