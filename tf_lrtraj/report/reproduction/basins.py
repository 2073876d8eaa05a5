"""Figure of where side trips end: losses along the lines between them, and to the trajectory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREY, ORANGE, panels, style, title
from tf_lrtraj.report.probes.bands import band, label_ends, mode_note, over_batches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRIP, _MAIN = re.compile(r"trip-(\d+)-(\d+)"), re.compile(r"main-(\d+)")


def draw(record: ArrayRecord) -> Figure | None:
    """Two panels: between ends of trips on one batch, and from each end to where it left.

    None for a record whose points are not named `trip-STEP-BATCH` and `main-STEP`.
    """
    between, to_main = _kinds(record)
    if not between or not to_main:
        return None
    with style():
        figure, axes = panels(1, 2, 10.4, 3.9)
        shown = (
            (between, ("end of a trip", "½", "end of another"), "Trips on one batch"),
            (to_main, ("end of a trip", "½", "where it left"), "Back to the trajectory"),
        )
        top = 0.0
        for panel, (pairs, ticks, text) in zip(axes, shown, strict=True):
            top = max(top, _along(panel, record, pairs))
            panel.set_xticks([0.0, 0.5, 1.0], ticks)
            title(panel, f"{text}: {len(pairs)} segment{'s' * (len(pairs) > 1)}")
        axes[0].set_ylabel("loss")
        for panel, (pairs, *_) in zip(axes, shown, strict=True):
            panel.set_ylim(0.0, 1.1 * top if top > 0.0 else 1.0)
            label_ends(panel, _ends(record, pairs))
        if note := mode_note(record.about):
            figure.supxlabel(note, fontsize=7.5, color=GREY, x=0.01, ha="left")
    return figure


# (row of the record, whether it is to be read backwards, number of the trip's batch)
_Pair = tuple[int, bool, int]


def _kinds(record: ArrayRecord) -> tuple[list[_Pair], list[_Pair]]:
    """Segments between ends on one batch, and from ends to where the trips left."""
    between: list[_Pair] = []
    to_main: list[_Pair] = []
    ends = zip(record.coordinates["first"], record.coordinates["second"], strict=True)
    for row, (first, second) in enumerate(ends):
        trips = [_TRIP.fullmatch(str(name)) for name in (first, second)]
        mains = [_MAIN.fullmatch(str(name)) for name in (first, second)]
        if trips[0] and trips[1] and trips[0].group(2) == trips[1].group(2):
            between.append((row, False, int(trips[0].group(2))))
        for trip, main, turned in ((trips[0], mains[1], False), (trips[1], mains[0], True)):
            if trip and main and trip.group(1) == main.group(1):
                to_main.append((row, turned, int(trip.group(2))))
    return between, to_main


def _curves(record: ArrayRecord, pairs: list[_Pair]) -> dict[str, np.ndarray]:
    """[segments, positions] loss of the trip's own batch, and mean held-out loss."""
    own = [record.values["loss"][row, 0, :, batch][:: -1 if t else 1] for row, t, batch in pairs]
    found = {"own": np.array(own)}
    if "held_out_loss" in record.values:
        held = record.values["held_out_loss"]
        means = [over_batches(held[row, 0])[0][:: -1 if turned else 1] for row, turned, _ in pairs]
        found["held_out"] = np.array(means)
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in found.items()}


_LOOK = {"own": (BLUE, "own batch"), "held_out": (ORANGE, "held out")}


def _along(panel: Axes, record: ArrayRecord, pairs: list[_Pair]) -> float:
    where, highest = record.coordinates["position"], 0.0
    for name, curves in _curves(record, pairs).items():
        color = _LOOK[name][0]
        panel.plot(where, curves.T, color=color, linewidth=0.6, alpha=0.45)
        mean, error = over_batches(curves.T)
        band(panel, where, mean, error, color)
        highest = max(highest, float(np.max(curves[np.isfinite(curves)], initial=0.0)))
    panel.set_xlim(float(where[0]), float(where[-1]))
    start = record.about.get("loss_at_starts")
    if isinstance(start, (int, float)):
        panel.axhline(start, color=GREY, linewidth=1.0, linestyle=":")
        panel.annotate(
            "own batches at the start", (0.01, start), xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", fontsize=7.5, color=GREY,
        )  # fmt: skip
        highest = max(highest, start)
    return highest


def _ends(record: ArrayRecord, pairs: list[_Pair]) -> dict[str, tuple[float, float, str]]:
    last = float(record.coordinates["position"][-1])
    return {
        _LOOK[name][1]: (last, float(curves[:, -1].mean()), _LOOK[name][0])
        for name, curves in _curves(record, pairs).items()
    }


def caption(record: ArrayRecord) -> str:
    """What the figure shows, in words."""
    start = record.about.get("loss_at_starts")
    level = " (dotted: the loss of the trips' batches before they began)" if start else ""
    return (
        "Losses along straight segments: of the batch that the trips stepped on, and of held-out "
        f"batches{level}. Thin: single segments; thick: their mean with two standard errors. A "
        "hump between two ends would be a barrier."
    )
