"""Figure of side trips: the trip's own batch, all other data, and held-out data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREY, ORANGE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import (
    CURVES,
    band,
    caption,
    label_ends,
    mode_note,
    names_of_points,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = (
    ("train", BLUE, "its own batch"),
    ("others", GREY, "other training"),
    ("held_out", ORANGE, "held out"),
)


def draw(records: Sequence[ArrayRecord]) -> Figure:
    """Draws the loss by step of side trips, with a panel for each starting point.

    Thick lines are means over trips and batches, with bands of two standard errors; thin lines are
    the own batch of each trip.

    Args:
        records: the records of `SideTrip`, one for each starting point.
    """
    titles = names_of_points(records, "From step", "Starting point")
    with style():
        figure, axes = panels(1, len(records), 1.2 + 4.0 * len(records), 3.6)
        top = 0.0
        for record in records:
            shown = [record.values[f"{name}_mean"] for name, _, _ in _STYLES if _has(record, name)]
            top = max(top, *(float(np.max(v[np.isfinite(v)], initial=0.0)) for v in shown))
        for panel, record, text in zip(axes, records, titles, strict=True):
            steps, values = record.coordinates["step"], record.values
            trips = np.where(np.isfinite(values["train_loss"]), values["train_loss"], np.nan)
            panel.plot(steps, trips.T, color=BLUE, linewidth=0.6, alpha=0.45)
            panel.set_xlim(0, steps[-1])
            panel.set_ylim(0.0, 1.12 * top if top > 0.0 else 1.0)
            for name, color, _ in _STYLES:
                if _has(record, name):
                    mean, error = values[f"{name}_mean"], values[f"{name}_mean_se"]
                    band(panel, steps, mean, error, color, marker="o", markersize=3)
            panel.set_xlabel("step on the fixed batch")
            count = len(record.coordinates["trip"])
            title(panel, f"{text}; {count} trip{'s' * (count != 1)}, rate {_rates(record)}")
        axes[0].set_ylabel("loss")
        notes = [_optimizer(records[0]), mode_note(records[0].about)]
        caption(figure, ", ".join(note for note in notes if note))
        last = records[-1]
        ends = {
            label: (float(last.coordinates["step"][-1]), float(last.values[f"{n}_mean"][-1]), color)
            for n, color, label in _STYLES
            if _has(last, n)
        }
        label_ends(axes[-1], ends)
    return figure


def _has(record: ArrayRecord, name: str) -> bool:
    return f"{name}_mean" in record.values


def _optimizer(record: ArrayRecord) -> str:
    name = record.about.get("optimizer")
    return f"steps of {name}" if name else ""


def _rates(record: ArrayRecord) -> str:
    rates = sorted(set(record.about["learning_rate"]))
    return f"{rates[0]:.3g}" if len(rates) == 1 else f"{rates[0]:.3g} to {rates[-1]:.3g}"


def sentences(record: ArrayRecord) -> Iterator[str]:
    """Returns sentences on the findings of a record."""
    last = len(record.coordinates["step"]) - 1
    rate = record.about.get("learning_rate", [float("nan")])[0]
    parts = []
    for group in CURVES:
        if _has(record, group):
            means = record.values[f"{group}_mean"]
            after = f" to {means[3]:.3f} after 3" if last > 3 else ""
            parts.append(f"{CURVES[group]} from {means[0]:.3f}{after} to {means[last]:.3f}")
    yield f"{last} steps at rate {rate:.3g}: " + "; ".join(parts)
