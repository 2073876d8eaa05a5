"""Figures of the claims of mini-batches: B1 to B6, B11, B12 and O5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.claims.verdicts import Judgement, Part, bounds_shown
from tf_lrtraj.report.drawing import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    columns,
    corner_names,
    dots,
    labels,
    legend,
    log_ticks,
    note,
    panels,
    title,
    value_bar,
)
from tf_lrtraj.report.probe_figures.bands import label_ends
from tf_lrtraj.report.study.claim_figure import draws

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 7.4  # inches: 700 pixels
_WANTED = "#e3f2ec"
_BATCHES = {
    "train": (BLUE, "the batch itself"),
    "held_out": (ORANGE, "test images"),
    "others": (GREEN, "other training images"),
}

# Parts and thresholds -------------------------------------------------------------------------


def _wanted(panel: Axes, part: Part, along: str = "y") -> None:
    """Draws a dashed line at each threshold; the wanted range is green."""
    wanted, is_y = part.wanted, along == "y"
    line, span = (panel.axhline, panel.axhspan) if is_y else (panel.axvline, panel.axvspan)
    low, high = panel.get_ylim() if is_y else panel.get_xlim()
    for bound in (wanted.low, wanted.high):
        if bound is not None:
            line(bound, color="black", linewidth=1.1, linestyle=DASHED, zorder=1.5)
    # Without a bound: far beyond any limits that are set later.
    log = (panel.get_yscale() if is_y else panel.get_xscale()) == "log"
    first = (1e-12 if log else -1e9) if wanted.low is None else wanted.low
    last = 1e9 if wanted.high is None else wanted.high
    span(first, last, color=_WANTED, linewidth=0, zorder=0.4)
    (panel.set_ylim if is_y else panel.set_xlim)(low, high)


def _parts(panel: Axes, judgement: Judgement, name: str, color: str = BLUE) -> None:
    """Draws a number at every step: seeds as dots, means with their intervals."""
    parts = [part for part in judgement.parts if part.wanted.name == name]
    for place, part in enumerate(parts):
        dots(panel, place, part.seeds, color)
        value_bar(panel, place, part.interval, color)
    columns(panel, [f"{int(part.at.split()[1]):,}" for part in parts], "step")
    _set_limits(panel, parts[0])
    _wanted(panel, parts[0])


def _set_limits(panel: Axes, part: Part) -> None:
    """Sets limits that include the thresholds, with a margin."""
    low, high = panel.get_ylim()
    bounds = [bound for bound in (part.wanted.low, part.wanted.high) if bound is not None]
    low, high = min(low, *bounds), max(high, *bounds)
    more = 0.12 * (high - low)
    panel.set_ylim(low - more if min(bounds) <= low else low, high + more)


def _log(panel: Axes) -> None:
    """Sets a logarithmic scale with plain numbers."""
    from matplotlib import ticker

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_locator(ticker.NullLocator())


def _limit_note(figure: Figure) -> None:
    """Explains dots, bars and dashes below the figure."""
    note(
        figure,
        "dots: seeds; bar: mean with its interval; dashed: the threshold, green: what is wanted",
    )


def _join_lower_panels(axes: list[Axes]) -> Axes:
    """Joins the lower two of two rows of two panels."""
    grid = axes[2].get_subplotspec()
    assert grid is not None
    axes[2].set_subplotspec(grid.get_gridspec()[1, :])
    axes[3].remove()
    return axes[2]


# B1 -------------------------------------------------------------------------------------------

_B1_ALT = "Losses of batches along their own steps, beside parabolas, and the misfit by point."


@draws(
    "B1",
    alt=_B1_ALT,
    caption="Left: losses of one seed's batches along their steps, and of images that no step is "
    "made on. Right: all batches in units of their best rate and drop. Below: medians over "
    "batches.",
)
def _b1(judgement: Judgement) -> Figure:
    figure, axes = panels(2, 2, _WIDTH, 6.2)
    _own_curves(axes[0], judgement)
    _scaled_curves(axes[1], judgement)
    _misfits(_join_lower_panels(axes), judgement)
    legend(figure, 3, panel=axes[0], loc="outside lower left")
    return figure


@draws(
    "B1_head",
    alt=_B1_ALT,
    caption="Left: losses of one seed's batches along their own steps, and of images that no step "
    "is made on. Right: all batches in units of their best rate and drop.",
)
def _b1_head(judgement: Judgement) -> Figure:
    figure, axes = panels(1, 2, _WIDTH, 3.4)
    _own_curves(axes[0], judgement)
    _scaled_curves(axes[1], judgement)
    legend(figure, 3, panel=axes[0], loc="outside lower left")
    return figure


def _joined(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Joins curves to one line with gaps, which makes the file much shorter."""
    return np.concatenate([part for curve in curves for part in (curve, [np.nan])])


def _own_curves(panel: Axes, judgement: Judgement) -> None:
    """Draws losses of one seed's batches along their steps, and of other images."""
    line = judgement.drawn["line"]
    ends, rates = {}, line["rate"]
    for name, (color, label) in _BATCHES.items():
        if name not in line:
            continue
        values = np.where(np.isfinite(line[name]), line[name], np.nan)
        if name == "train":
            thin = _joined([rates] * values.shape[1]), _joined(list(values.T))
            panel.plot(*thin, color=color, linewidth=0.5, alpha=0.4)
        mean = values.mean(axis=1)
        panel.plot(rates, mean, color=color, linewidth=2.0)
        ends[label] = (color, mean)
    start = max(float(mean[0]) for _, mean in ends.values())
    panel.set_ylim(0.0, 1.9 * start)
    panel.set_xlim(0.0, float(rates[-1]))
    labels(
        panel,
        "rate of the step",
        "loss after the step",
        f"One step from step {judgement.drawn['step']:,}",
    )
    for label, (color, _) in ends.items():
        panel.plot([], [], color=color, linewidth=2.0, label=label)


def _scaled_curves(panel: Axes, judgement: Judgement) -> None:
    """Draws all batches of all seeds and points, in units of their own best rates and drops."""
    for place, curves in enumerate(judgement.drawn["curves"].values()):
        color = (BLUE, PALETTE[4], PALETTE[3], GREEN)[place % 4]
        for seed in curves:
            rates, losses = (_joined([curve[k] for curve in seed]) for k in range(2))
            panel.plot(rates, losses, color=color, linewidth=0.5, alpha=0.4)
    u = np.linspace(0.0, 2.0, 80)
    panel.plot(u, u**2 - 2.0 * u, color="black", linewidth=1.6, linestyle=DASHED)
    panel.annotate(
        "parabola",
        (1.0, -1.0),
        xytext=(0, 16),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
    )
    panel.set_xlim(0.0, 2.2)
    panel.set_ylim(-1.25, 0.6)
    labels(
        panel,
        "rate / the batch's best rate",
        "change of its loss / its drop",
        "Every batch, point and seed",
    )


def _misfits(panel: Axes, judgement: Judgement) -> None:
    """Draws misfits by point and degree of the polynomial."""
    colors = {2: BLUE, 3: PALETTE[4], 4: PALETTE[3]}
    steps = list(judgement.drawn["curves"])
    for (step, degree), values in judgement.drawn["misfits"].items():
        dots(panel, steps.index(step) + 0.25 * (degree - 3), values, colors[degree])
    for place, part in enumerate(judgement.parts):
        value_bar(panel, place - 0.25, part.interval, BLUE)
    for degree, color in colors.items():
        panel.plot([], [], "o", color=color, label=f"degree {degree}", markersize=5)
    panel.plot(0.0, 1.5 * (judgement.parts[0].wanted.high or 1.0), alpha=0.0)  # room
    _log(panel)
    _wanted(panel, judgement.parts[0])
    columns(panel, [f"step {step:,}" for step in steps])
    labels(
        panel,
        y="misfit, % of the drop",
        heading="What a polynomial leaves, up to twice the best rate (dashed: the threshold)",
    )
    panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)


# B2 -------------------------------------------------------------------------------------------


@draws(
    "B2",
    alt="Mean loss of batches before a step and lowest along it, beside a trained network's.",
    caption="Every dot is a seed; lines are the trained networks. The right panel pairs by batch.",
)
def _b2(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    figure, (left, right) = panels(1, 2, _WIDTH, 3.6)
    for place, (start, lowest) in enumerate(zip(drawn["start"], drawn["lowest"], strict=True)):
        dots(left, place - 0.2, start, GREY)
        dots(left, place + 0.2, lowest, BLUE)
    for trained in drawn["trained"]:
        left.axhline(trained, color=ORANGE, linewidth=1.0)
    left.set_ylim(0.0, 1.3 * left.get_ylim()[1])
    columns(left, [f"{step:,}" for step in drawn["steps"]], "step")
    labels(left, y="mean loss of the batches", heading="One step on a batch")
    corner_names(left, {"before it": GREY, "lowest along it": BLUE, "trained network": ORANGE})
    _parts(right, judgement, "difference")
    labels(right, y="lowest less trained, batch by batch", heading="Below the trained network?")
    _limit_note(figure)
    return figure


# B3 -------------------------------------------------------------------------------------------


@draws(
    "B3",
    alt="Best rate and gain of held-out batches over those of the step's own batch, by point.",
    caption="Left and middle: 1 would mean that the batch's own curve and the held-out one agree. "
    "Right: how held-out loss changes at the rate that is best for the step's own batch.",
)
def _b3(judgement: Judgement) -> Figure:
    figure, axes = panels(1, 3, _WIDTH, 3.4)
    for panel, name, text in zip(
        axes,
        ("best_rate_ratio", "gain_ratio", "change"),
        ("Best rate", "Gain", "Change at own best"),
        strict=True,
    ):
        _parts(panel, judgement, name, ORANGE)
        title(panel, text)
        panel.tick_params(axis="x", labelsize=8)
        if name != "change":
            panel.set_ylim(0.0, None)
    axes[0].set_ylabel("held-out / own batch")
    axes[2].set_ylabel("held-out loss")
    _limit_note(figure)
    return figure


# B4 -------------------------------------------------------------------------------------------


@draws(
    "B4",
    alt="Change of the loss of other images over one more step, against its rate.",
    caption="Thin: seeds; thick: their mean. The model puts the lowest point at half the run's "
    "rate and the return to 0 at the rate itself.",
)
def _b4(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    rate = drawn["rate"]
    colors = {"training": GREEN, "test": ORANGE}
    curves = {name: drawn[name] for name in colors if name in drawn}
    figure, (panel,) = panels(1, 1, _WIDTH, 4.0)
    depth = height = 0.0
    ends = {}
    for name, table in curves.items():
        color, mean = colors[name], table.mean(axis=0)
        panel.plot(rate, table.T, color=color, linewidth=0.8, alpha=0.5)
        panel.plot(rate, mean, color=color, linewidth=2.2)
        depth, height = min(depth, float(table.min())), max(height, float(mean.max()))
        ends[name] = (float(rate[-1]), min(float(mean[-1]), -1.6 * depth), color)
    top = min(1.05 * height, -1.6 * depth) if depth < 0.0 else 1.05 * height or 1.0
    bottom = 1.75 * depth if depth < 0.0 else -0.2 * top
    panel.set_ylim(bottom, top)
    lowest = np.min([table.mean(axis=0) for table in curves.values()], axis=0)
    last = max(float(rate[lowest <= top][-1]), 1.4)  # beyond it, all curves have left the panel
    panel.set_xlim(0.0, min(last, float(rate[-1])))
    panel.axhline(0.0, color="black", linewidth=0.9)
    for part, model, text in zip(
        judgement.parts, (1.0, 0.5), ("gain gone", "best rate"), strict=True
    ):
        low, high = part.wanted.low, part.wanted.high
        assert low is not None and high is not None
        panel.axvspan(low, high, color=_WANTED, linewidth=0, zorder=0.4)
        panel.axvline(model, color="black", linewidth=1.0, linestyle=DASHED, zorder=1.5)
        value_bar(panel, 0.88 * bottom, part.interval, GREEN, "x", size=11.0, width=1.8)
        panel.annotate(
            text, (model, top), xytext=(0, -4), textcoords="offset points", ha="center",
            va="top", fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
        )  # fmt: skip
    labels(
        panel,
        "rate of one more step / rate of the run",
        "change of the loss",
        "One more step from the stationary state",
    )
    label_ends(panel, ends)
    note(
        figure,
        "dashed: the model; green: what is wanted; bars: where the curves of the seeds have "
        "their landmarks, on other training images",
    )
    return figure


# B5 -------------------------------------------------------------------------------------------


@draws(
    "B5",
    alt="Losses of the own batch and of test images along side trips, and by batch size.",
    caption="Left: repeated steps on one fixed batch. Right: what four steps leave of the own "
    "loss, for batches of several sizes.",
)
def _b5(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    step, trips = list(drawn["trips"].items())[-1]
    figure, (left, right) = panels(1, 2, _WIDTH, 3.8)
    for seed in trips:
        start = seed["own"][:, 0].mean()
        left.plot(seed["own"].mean(axis=0) / start, color=BLUE, marker="o", markersize=3)
        left.plot(seed["held_out"].mean(axis=0) / start, color=ORANGE, marker="o", markersize=3)
    part = judgement.parts[0]
    left.set_ylim(0.0, 1.25 * left.get_ylim()[1])
    _wanted(left, part)
    left.axvline(4.0, color=GREY, linewidth=1.0, linestyle=":")
    labels(
        left, "steps on the batch", "loss / own loss at the start", f"Side trips from step {step:,}"
    )
    white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6}
    corner_names(left, {"test images": ORANGE, "own batch": BLUE}, bbox=white)
    _by_size(right, drawn["sizes"], drawn["left"], part)
    labels(right, y="own loss left after 4 steps", heading="By the size of the batch")
    note(figure, "a line for each seed; green: near 0, where the own loss should be after 4 steps")
    return figure


def _by_size(panel: Axes, sizes: np.ndarray, values: np.ndarray, part: Part) -> None:
    """Draws [seed, size] numbers for batches of several sizes, with the threshold."""
    panel.plot(sizes, values.T, color=BLUE, linewidth=0.9, marker="o", markersize=4, alpha=0.7)
    log_ticks(panel, sizes, 2.0)
    panel.set_ylim(0.0, max(1.15 * float(values.max()), 1.5 * (part.wanted.high or 0.0)))
    _wanted(panel, part)
    panel.set_xlabel("images in a batch")


# B6 -------------------------------------------------------------------------------------------


@draws(
    "B6",
    alt="Losses along straight lines between ends of side trips, and back to the trajectory.",
    caption="A hump above the dashed line would be a barrier; the lines to another seed's run "
    "show what one looks like.",
)
def _b6(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    position = drawn["position"]
    figure, axes = panels(1, 2, _WIDTH, 3.8)
    for panel, kind, ticks, text, part in zip(
        axes,
        ("ends", "to_main"),
        (("one end", "½", "another"), ("an end", "½", "its start")),
        ("Own batch, between two ends", "Test images, back to the run"),
        judgement.parts,
        strict=False,
    ):
        for name, color in ((kind, BLUE), (f"control_{kind}", ORANGE)):
            for curves in drawn["curves"][name]:
                panel.plot(position, curves.mean(axis=1), color=color, linewidth=1.4)
        mean = np.mean([curves.mean(axis=1) for curves in drawn["curves"][kind]], axis=0)
        straight = mean[0] + (mean[-1] - mean[0]) * position
        panel.plot(
            position, straight + (part.wanted.high or 0.0), color="black", linewidth=1.1,
            linestyle=DASHED,
        )  # fmt: skip
        panel.set_ylim(0.0, 1.18 * panel.get_ylim()[1])
        panel.set_xlim(0.0, 1.0)
        panel.set_xticks([0.0, 0.5, 1.0], ticks)
        title(panel, text)
        corner_names(
            panel, {"to another seed's run (control)": ORANGE, "within one run": BLUE}, 0.98
        )
    axes[0].set_ylabel("loss / loss where the trips start")
    note(
        figure,
        "a line for each seed, the mean over segments; dashed: the highest that counts as one "
        "basin",
    )
    return figure


# B11 ------------------------------------------------------------------------------------------


@draws(
    "B11",
    alt="Cosine of two batches' gradients along the run, and by batch size.",
    caption="Larger batches are always better aligned: the threshold judges the size that the run "
    "is trained with.",
)
def _b11(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    figure, (left, right) = panels(1, 2, _WIDTH, 3.6)
    _parts(left, judgement, "share")
    left.set_ylim(0.0, left.get_ylim()[1])
    labels(
        left,
        y="cosine of two batches' gradients",
        heading=f"Batches of {drawn['batch_size']:g}, along the run",
    )
    _by_size(right, drawn["sizes"], drawn["share"], judgement.parts[0])
    labels(right, y="the same at the end", heading="By the size of the batch")
    _limit_note(figure)
    return figure


# B12 ------------------------------------------------------------------------------------------


@draws(
    "B12",
    alt="Losses between iterates, and the part of the way where they are concave.",
    caption="Left: one segment of each length, and one between the runs of two seeds. Right: the "
    "part of the length with negative second differences; seeds as dots.",
)
def _b12(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    figure, (left, right) = panels(1, 2, _WIDTH, 3.8)
    position, curves = drawn["between"]
    shades = (BLUE, PALETTE[4], PALETTE[3], GREEN)
    for place, (distance, curve) in enumerate(curves.items()):
        left.plot(
            position, curve, color=shades[place % 4], linewidth=1.6, label=f"{distance:,} updates"
        )
    left.plot(*drawn["apart"], color=ORANGE, linewidth=1.6, label="two seeds")
    _log(left)
    left.set_xlim(0.0, 1.0)
    left.set_xticks([0.0, 0.5, 1.0], ["first", "½", "second"])
    labels(left, y="loss / loss at the first", heading="Between two iterates")
    legend(figure, 4, panel=left, loc="outside lower left")
    names = []
    count = len(judgement.parts)
    for place, part in zip(range(count, 0, -1), judgement.parts, strict=True):
        color = BLUE if part.wanted.name == "line" else GREEN
        values = part.seeds
        right.plot(values, np.full(len(values), place), "o", color=color, alpha=0.5)
        value_bar(right, place, part.interval, color, "x", size=12.0, caps=3.0)
        names.append(part.at if part.wanted.name == "line" else part.at.removesuffix(" apart"))
    controls = drawn["control"]
    right.plot(controls, np.zeros(len(controls)), "o", color=ORANGE)
    names.append("two seeds")
    right.set_yticks(range(count, -1, -1), names, fontsize=8)
    right.set_ylim(-0.5, count + 0.5)
    right.grid(axis="y", visible=False)
    low, high = right.get_xlim()
    right.set_xlim(min(low, -1.0), max(high, 1.3 * (judgement.parts[0].wanted.high or 0.0)))
    _wanted(right, judgement.parts[0], "x")
    labels(right, "concave part of the way, %", heading="Along steps and between iterates")
    return figure


# O5 -------------------------------------------------------------------------------------------


@draws(
    "O5",
    alt="Reach of one step against batch size and against images per weight, for two widths.",
    caption="If the two networks fall on one line on the right and not on the left, images per "
    "weight set the reach.",
)
def _o5(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    figure, axes = panels(2, 2, _WIDTH, 5.0)
    for panel, by in ((axes[0], "size"), (axes[1], "weights")):
        for name, color in (("wide", BLUE), ("narrow", ORANGE)):
            weights = drawn["weights"][name]
            for k, (sizes, reach) in enumerate(drawn["curves"][name]):
                panel.plot(
                    sizes if by == "size" else sizes / weights, reach, color=color,
                    linewidth=1.1, marker="o", markersize=4, alpha=0.8,
                    label=f"{weights:,.0f} weights" if not k else "",
                )  # fmt: skip
        panel.set_ylim(0.0, 1.0)
    sizes = drawn["curves"]["wide"][0][0]
    log_ticks(axes[0], sizes, 2.0)
    axes[1].set_xscale("log")
    axes[0].set_xlabel("images in a batch")
    axes[1].set_xlabel("images / weights of the network")
    labels(axes[0], y="lowest loss / loss before the step", heading="By the size of the batch")
    title(axes[1], "By images per weight")
    axes[0].legend(loc="lower right", frameon=False, fontsize=8)
    below = _join_lower_panels(axes)
    part = judgement.part("position")
    value_bar(below, 0.0, part.interval, ORANGE, "x", size=16.0, width=2.0, caps=5.0)
    low, high = below.get_xlim()
    below.set_xlim(min(low, -0.8), max(high, 1.2))
    _wanted(below, part, "x")
    below.set_xticks([0.0, 1.0], ["0: images per weight decide", "1: images alone decide"])
    below.set_yticks([0.0], ["all sizes"])
    below.set_ylim(-1.0, 1.0)
    grid: Any = below.get_subplotspec()
    grid.get_gridspec().set_height_ratios([4.0, 1.0])
    title(below, f"Where the narrow network lies (wanted: {bounds_shown(-0.5, 0.5)})")
    return figure
