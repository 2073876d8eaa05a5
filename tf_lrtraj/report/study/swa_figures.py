"""Figures of claims S1 to S8: SWA and FGE compared with a conventional run.

S3, of memory and time, is told by its parts and has no figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.claims import Judgement
from tf_lrtraj.report.drawing import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    interval_row,
    labels,
    legend,
    panels,
    rows,
    seed_lines,
)
from tf_lrtraj.report.study.claim_figure import draws

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_METHODS = {
    "conventional": ("conventional run", GREY),
    "swa_constant": ("SWA, constant rate", BLUE),
    "swa_cyclical": ("SWA, cyclical rate", ORANGE),
    "fge_member": ("FGE, mean member", PALETTE[4]),
    "fge": ("FGE, ensemble", GREEN),
    "independent": ("independent runs, ensemble", PALETTE[3]),
}
_POINTS = (("SGD", GREY), ("SWA", BLUE))


_SEEDS = "Dots: seeds, joined by thin lines; bars: means."


# Shared ---------------------------------------------------------------------------------------


def _rows_of_panels(count: Sequence[float], height: float) -> tuple[Figure, list[Axes]]:
    """Returns panels below each other, with heights by `count`."""
    figure, axes = panels(len(count), 1, 7.2, height)
    grid = figure.axes[0].get_gridspec()
    if grid is not None:
        grid.set_height_ratios(list(count))
    return figure, axes


def _intervals(panel: Axes, judgement: Judgement, names: Mapping[str, str]) -> None:
    """Draws a row for each part: its number, its interval, and the wanted side (shaded)."""
    parts = [part for part in judgement.parts if part.name in names]
    for place, part in enumerate(parts):
        interval_row(panel, place, part.interval, "black", linewidth=1.6)
    left, right = panel.get_xlim()
    low, high = parts[0].wanted.low, parts[0].wanted.high
    edges = [edge for edge in (low, high) if edge is not None]
    room = 0.08 * (max(right, *edges) - min(left, *edges))
    left, right = min(left, *edges) - room, max(right, *edges) + room
    panel.axvspan(left if low is None else low, right if high is None else high, color=GREEN,
                  alpha=0.10, linewidth=0)  # fmt: skip
    for edge in edges:
        panel.axvline(edge, color=GREEN, linewidth=1.2, linestyle=DASHED)
    panel.set_xlim(left, right)
    rows(panel, [names[part.name] for part in parts])


def _by_seed(panel: Axes, found: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> None:
    """Draws a row for each name: a dot per seed, thin lines that join them, a bar at the mean."""
    names = list(found)
    several = [name for name in names if len(found[name]) > 1]
    for one in zip(*(found[name] for name in several), strict=True):
        places = [names.index(name) for name in several]
        panel.plot(one, places, color="#c8c8c8", linewidth=0.8, zorder=1)
    for place, name in enumerate(names):
        values = np.asarray(found[name], np.float64)
        panel.plot(values, np.full(values.size, place), "o", color=colours[name], markersize=5)
        mean = float(values.mean())
        panel.plot([mean, mean], [place - 0.3, place + 0.3], color=colours[name], linewidth=2.2)
    rows(panel, names)


def _thin_and_mean(panel: Axes, x: Any, curves: Any, colour: str, label: str) -> np.ndarray:
    return seed_lines(panel, x, curves, colour, thin=0.7, label=label)


def _legend(figure: Figure, panel: Axes, columns: int = 2) -> None:
    legend(figure, columns, panel=panel, loc="outside lower center", size=None)


# S1 and S6 ------------------------------------------------------------------------------------

_GAINS = {
    "swa_gain_constant_rate": "SWA, constant rate,\nover conventional",
    "swa_gain_cyclical_rate": "SWA, cyclical rate,\nover conventional",
    "over_members": "ensemble\nover mean member",
    "over_run": "ensemble\nover conventional",
}


@draws(
    "S1",
    "S6",
    alt="Test accuracy of SWA, FGE and a conventional run by seed, and their differences",
    caption=f"{_SEEDS} Every run has the same number of steps; an ensemble of independent runs "
    "costs one for each member.",
)
def _draw_methods(judgement: Judgement) -> Figure:
    """Test accuracy of every method by seed, and the differences that are judged."""
    found = judgement.drawn["accuracy"]
    figure, (accuracy, gain) = _rows_of_panels((len(found), len(judgement.parts)), 4.6)
    _by_seed(
        accuracy,
        {_METHODS[name][0]: values for name, values in found.items()},
        {name: colour for name, colour in _METHODS.values()},
    )
    labels(
        accuracy, "test accuracy, %", heading=f"After {judgement.drawn['total']:,.0f} steps each"
    )
    _intervals(gain, judgement, _GAINS)
    gain.set_xlabel("difference of test accuracy, points (95 % interval; shaded: wanted)")
    return figure


# S2 -------------------------------------------------------------------------------------------


@draws(
    "S2",
    alt="The optimizer's learning rate over the cyclical formula, with the models collected",
    caption="The first cycles of one seed. Each model is collected after the step of the lowest "
    "rate.",
)
def _draw_cycle(judgement: Judgement) -> Figure:
    """The optimizer's rate over the formula in the first cycles, and what was collected."""
    drawn = judgement.drawn
    steps, used, formula, collected = (
        drawn[name] for name in ("steps", "used", "formula", "collected")
    )
    shown = min(used.size, 4 * int(drawn["length"]))
    figure, (panel,) = panels(1, 1, 7.2, 3.4)
    panel.plot(
        steps[:shown], formula[:shown], color=ORANGE, linewidth=4.0, alpha=0.5, label="formula"
    )
    panel.plot(steps[:shown], used[:shown], color="black", linewidth=0.9, label="optimizer")
    at = collected[(collected >= steps[0]) & (collected <= steps[shown - 1])]
    panel.plot(at, used[at - steps[0]], "o", color=BLUE, markersize=7, label="model collected")
    panel.set_ylim(0.0, 1.08 * float(used.max()))
    labels(panel, "step of the run", "learning rate")
    _legend(figure, panel, 3)
    return figure


# S4 -------------------------------------------------------------------------------------------


@draws(
    "S4",
    alt="Rise of the test error along rays from SGD and SWA, and test error and training loss on "
    "the segment between them",
    caption="Thin lines: seeds; thick lines: their means. SWA is wider if its curve reaches the "
    "dashed line further out.",
)
def _draw_width(judgement: Judgement) -> Figure:
    """Rise of the test error along rays, and test error and training loss along the segment."""
    drawn = judgement.drawn
    distance, rise, position = (drawn[name] for name in ("distance", "rise", "position"))
    figure, (rays, errors, losses) = panels(1, 3, 7.6, 3.6)
    # Values far beyond the compared rise contain no information about the optimum.
    near = rise.mean(axis=0).min(axis=0) <= 20.0
    for point, (name, colour) in enumerate(_POINTS):
        curves = rise[:, point][:, near]
        _thin_and_mean(rays, distance[near], curves, colour, f"from {name}")
    rays.axhline(5.0, color=GREEN, linewidth=1.2, linestyle=DASHED, label="5 points")
    rays.set_ylim(min(-1.0, float(rise.min())), 20.0)
    labels(rays, "distance along rays,\nnorms of the kernels", "rise of test error, points")
    for panel, name, what in (
        (errors, "errors", "test error, %"),
        (losses, "losses", "training loss"),
    ):
        curves = drawn[name]
        mean = _thin_and_mean(panel, position, curves, "black", "segment")
        for place, (_, colour) in enumerate(_POINTS):
            at = int(np.argmin(np.abs(position - place)))
            panel.plot(position[at], mean[at], "o", color=colour, markersize=8, zorder=3)
        inside = np.sort(curves[:, (position >= -0.6) & (position <= 1.6)].ravel())
        room = 0.15 * (inside[-1] - inside[0])
        panel.set_xlim(-0.55, 1.55)
        panel.set_ylim(inside[0] - room, inside[-1] + room)
        panel.set_xticks([0.0, 1.0], ["SGD", "SWA"])
        labels(panel, "segment", what)
    _legend(figure, rays, 3)
    return figure


# S5 -------------------------------------------------------------------------------------------


@draws(
    "S5",
    alt="Difference of predictions against the distance of members, on logarithmic axes",
    caption="A line for each seed; dashed: the powers that the expansion says. Members are drawn "
    "towards their mean to shrink the distance.",
)
def _draw_ensemble(judgement: Judgement) -> Figure:
    """Differences of predictions against the spread of the members, on logarithmic axes."""
    drawn = judgement.drawn
    spread = np.asarray(drawn["spread"])
    shapes = (
        ("pair", BLUE, 1, "two members"),
        ("ensemble", ORANGE, 2, "ensemble and averaged weights"),
    )
    figure, (panel, powers) = _rows_of_panels((3.2, 1.0), 5.0)
    for name, colour, power, label in shapes:
        values = np.asarray(drawn[name])
        for x, y in zip(spread, values, strict=True):
            panel.plot(x, y, "o-", color=colour, linewidth=0.8, markersize=4.5)
        panel.plot([], [], "o-", color=colour, label=label)
        x, y = spread.mean(axis=0), np.exp(np.log(values).mean(axis=0))
        line = y[-1] * (x / x[-1]) ** power
        panel.plot(x, line, color=colour, linewidth=1.2, linestyle=DASHED)
        panel.annotate(
            "Δ" if power == 1 else "Δ²", (x[0], line[0]), xytext=(6, -3),
            textcoords="offset points", color=colour, fontsize=10,
        )  # fmt: skip
    panel.set_xscale("log")
    panel.set_yscale("log")
    labels(panel, "distance Δ of members from their mean", "difference of predictions")
    panel.legend(loc="upper left", frameon=False)
    for place, part in enumerate(judgement.parts):
        wanted = part.wanted
        powers.barh(place, (wanted.high or 0) - (wanted.low or 0), left=wanted.low or 0,
                    height=0.7, color=GREEN, alpha=0.15)  # fmt: skip
        interval_row(powers, place, part.interval, shapes[place][1], line="black", linewidth=1.6)
    rows(powers, [label.replace(" and ", "\nand ") for *_, label in shapes])
    powers.set_xlabel("power of Δ (95 % interval; shaded: wanted)")
    return figure


# S7 -------------------------------------------------------------------------------------------

_RECOMPUTED = {
    "recomputed_constant_rate": "constant rate",
    "recomputed_cyclical_rate": "cyclical rate",
}


@draws(
    "S7",
    alt="Test accuracy of SWA and of its last iterate by their batch-norm statistics",
    caption=f"{_SEEDS} Judged is by how much more SWA gains from recomputed statistics than its "
    "last iterate does.",
)
def _draw_statistics(judgement: Judgement) -> Figure:
    """Test accuracy of SWA and of its last iterate by their statistics, and what is judged."""
    found = judgement.drawn
    figure, axes = _rows_of_panels((5.0, 5.0, 2.4), 6.4)
    for panel, (kind, values) in zip(axes, found.items(), strict=False):
        colours = {name: BLUE if name.startswith("SWA") else GREY for name in values}
        _by_seed(panel, values, colours)
        labels(panel, "test accuracy, %", heading=kind.capitalize())
    _intervals(axes[2], judgement, _RECOMPUTED)
    axes[2].set_xlabel("SWA's gain above the last iterate's, points (shaded: wanted)")
    return figure


# S8 -------------------------------------------------------------------------------------------


@draws(
    "S8",
    alt="Test accuracy of models at cycle ends and of the constant-rate run at the same steps",
    caption="Thin lines: seeds; thick lines: their means.",
)
def _draw_members(judgement: Judgement) -> Figure:
    """Test accuracy of members and of iterates along the run, and their difference."""
    drawn = judgement.drawn
    figure, (panel, gain) = _rows_of_panels((4.0, 0.8), 4.6)
    _thin_and_mean(panel, drawn["steps"], drawn["members"], ORANGE, "ends of cycles")
    _thin_and_mean(panel, drawn["steps"], drawn["iterates"], BLUE, "constant rate")
    labels(panel, "step", "test accuracy, %")
    _intervals(gain, judgement, {"members": "difference"})
    gain.set_xlabel("points (95 % interval; shaded: wanted)")
    _legend(figure, panel)
    return figure
