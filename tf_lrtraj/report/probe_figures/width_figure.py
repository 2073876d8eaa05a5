"""Figure of losses along random rays from several points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import GREY, PALETTE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import (
    band,
    caption,
    label_ends,
    mode_note,
    number_with_error,
    over_batches,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Points have colours that are not used for training or held-out data.
_COLOURS = (*PALETTE[2:], *PALETTE[:2])
_GROUPS = (("", "training batches"), ("held_out_", "held-out batches"))


def draw(records: Sequence[ArrayRecord]) -> Figure:
    """Draws loss and error by distance: means over rays with bands, single rays thin.

    Args:
        records: the records of `Width`; a row of panels for each.
    """
    with style():
        rows = []
        for record in records:
            groups = [group for group in _GROUPS if f"{group[0]}loss" in record.values]
            row = [(prefix, "loss", text) for prefix, text in groups]
            prefix, text = groups[-1]
            if np.isfinite(record.values[f"{prefix}accuracy"]).all():
                row.append((prefix, "accuracy", text))
            rows.append(row)
        columns = max(map(len, rows))
        figure, axes = panels(len(rows), columns, 1.2 + 3.7 * columns, 3.6 * len(rows))
        for number, (record, row) in enumerate(zip(records, rows, strict=True)):
            own = axes[number * columns : (number + 1) * columns]
            for panel, (prefix, what, text) in zip(own, row, strict=False):
                _curves(panel, record, prefix, what, text)
            for panel in own[len(row) :]:
                panel.set_axis_off()
        caption(figure, mode_note(records[0].about))
    return figure


def _curves(panel: Axes, record: ArrayRecord, prefix: str, what: str, text: str) -> None:
    distance = record.coordinates["distance"]
    values = record.values[f"{prefix}{what}"]
    with np.errstate(invalid="ignore", over="ignore"):
        rays = (1.0 - values if what == "accuracy" else values).mean(axis=-1)
    ends, told = {}, []
    for i, name in enumerate(record.coordinates["point"].tolist()):
        color = _COLOURS[i % len(_COLOURS)]
        single = np.where(np.isfinite(rays[i]), rays[i], np.nan)
        panel.plot(distance, single.T, color=color, linewidth=0.5, alpha=0.35)
        mean, error = over_batches(rays[i].T)
        band(panel, distance, mean, error, color)
        ends[name] = (float(distance[-1]), float(mean[-1]), color)
        if what == "loss":
            told += _mark(panel, record, prefix, i, color, float(mean[0]))
    panel.set_xlim(0.0, float(distance[-1]))
    panel.set_ylim(0.0, None)
    filtered = record.about.get("ray_kind") == "filter"
    panel.set_xlabel(
        "distance along rays, in " + ("norms of the kernels" if filtered else "weights")
    )
    for row, (text_of_point, color) in enumerate(told):
        panel.text(
            0.03, 0.97 - 0.065 * row, text_of_point, color=color, fontsize=7.5, va="top",
            transform=panel.transAxes,
        )  # fmt: skip
    panel.set_ylabel("loss" if what == "loss" else "error rate")
    count = len(record.coordinates["ray"])
    title(panel, f"{text}, {count} ray{'s' * (count != 1)}")
    label_ends(panel, ends)


def _mark(
    panel: Axes, record: ArrayRecord, prefix: str, point: int, color: str, start: float
) -> list[tuple[str, str]]:
    """Marks the width of a point, where its loss has risen by the stated amount; writes it."""
    name, rise = str(record.coordinates["point"][point]), float(record.about["rise"])
    width = float(record.values[f"{prefix}width_mean"][point])
    error = float(record.values[f"{prefix}width_se"][point])
    if not np.isfinite(width):
        return [(f"{name}: +{rise:g} not reached on all rays", color)]
    known = np.isfinite(error)
    panel.errorbar(
        [width],
        [start + rise],
        xerr=[2.0 * error] if known else None,
        fmt="o",
        color=color,
        markeredgecolor="black",
        markersize=4.5,
        linewidth=1.2,
        zorder=4,
    )
    told = [(f"{name}: +{rise:g} at {number_with_error(width, error)}", color)]
    if point == 1:  # on the same rays, so it has a smaller error than either
        values = (record.values[f"{prefix}width_difference{s}"][1, 0] for s in ("", "_se"))
        told.append((f"difference {number_with_error(*values)}", GREY))
    return told


def sentences(record: ArrayRecord) -> Iterator[str]:
    """Returns sentences on the findings of a record."""
    rise = record.about.get("rise")
    for prefix, name in (("", "training"), ("held_out_", "held-out")):
        if f"{prefix}width_mean" not in record.values:
            continue
        for i, point in enumerate(record.coordinates["point"].tolist()):
            width = float(record.values[f"{prefix}width_mean"][i])
            if np.isfinite(width):
                error = float(record.values[f"{prefix}width_se"][i])
                at = number_with_error(width, error)
                yield f"{name} loss of {point} has risen by {rise} at distance {at} along rays"
