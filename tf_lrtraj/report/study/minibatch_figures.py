"""Figures of the claims of mini-batches: B1 to B6, B11, B12 and O5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.claims.verdicts import Judgement, Part, bounds_shown
from tf_lrtraj.report.drawing import BLUE, GREEN, GREY, ORANGE, PALETTE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import label_ends
from tf_lrtraj.report.study.claim_figure import ClaimFigure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "HEADS"]

_WIDTH = 7.4  # inches: 700 pixels
_DASHED = (0, (4, 2))
_WANTED = "#e3f2ec"
_BATCHES = {
    "train": (BLUE, "the batch itself"),
    "held_out": (ORANGE, "test images"),
    "others": (GREEN, "other training images"),
}

# Parts and thresholds -------------------------------------------------------------------------


def _wanted(panel: Axes, part: Part, along: str = "y") -> None:
    """A dashed line at each threshold; what is wanted is green."""
    wanted, is_y = part.wanted, along == "y"
    line, span = (panel.axhline, panel.axhspan) if is_y else (panel.axvline, panel.axvspan)
    low, high = panel.get_ylim() if is_y else panel.get_xlim()
    for bound in (wanted.low, wanted.high):
        if bound is not None:
            line(bound, color="black", linewidth=1.1, linestyle=_DASHED, zorder=1.5)
    # Where there is no bound: far beyond what is shown, whatever limits are set later.
    log = (panel.get_yscale() if is_y else panel.get_xscale()) == "log"
    first = (1e-12 if log else -1e9) if wanted.low is None else wanted.low
    last = 1e9 if wanted.high is None else wanted.high
    span(first, last, color=_WANTED, linewidth=0, zorder=0.4)
    (panel.set_ylim if is_y else panel.set_xlim)(low, high)


def _shown(part: Part) -> tuple[float, list[list[float]] | None]:
    """A part's value and its interval as `errorbar` takes it; None where there is none."""
    value, low, high = part.interval
    if not np.isfinite([low, high]).all():
        return value, None
    return value, [[value - low], [high - value]]


def _parts(panel: Axes, judgement: Judgement, name: str, color: str = BLUE) -> None:
    """A wanted number at every step: seeds as dots, means with their intervals."""
    parts = [part for part in judgement.parts if part.wanted.name == name]
    for place, part in enumerate(parts):
        _dots(panel, place, part.seeds, color)
        value, bar = _shown(part)
        panel.errorbar(
            [place],
            [value],
            yerr=bar,
            fmt="_",
            color=color,
            markersize=14,
            linewidth=1.6,
            capsize=4,
        )
    panel.set_xlim(-0.6, len(parts) - 0.4)
    panel.set_xticks(range(len(parts)), [f"{int(part.at.split()[1]):,}" for part in parts])
    panel.set_xlabel("step")
    panel.grid(axis="x", visible=False)
    _room(panel, parts[0])
    _wanted(panel, parts[0])


def _dots(panel: Axes, place: float, values: Sequence[float], color: str) -> None:
    offsets = np.linspace(-0.14, 0.14, len(values)) if len(values) > 1 else np.zeros(1)
    panel.plot(
        place + offsets, values, "o", color=color, markersize=4.5, alpha=0.5, markeredgewidth=0
    )


def _room(panel: Axes, part: Part) -> None:
    """Limits that hold the thresholds, with some room beyond them."""
    low, high = panel.get_ylim()
    bounds = [bound for bound in (part.wanted.low, part.wanted.high) if bound is not None]
    low, high = min(low, *bounds), max(high, *bounds)
    more = 0.12 * (high - low)
    panel.set_ylim(low - more if min(bounds) <= low else low, high + more)


def _log(panel: Axes) -> None:
    """A log scale with plain numbers on it."""
    from matplotlib import ticker

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_locator(ticker.NullLocator())


def _limit_note(figure: Figure) -> None:
    """What dots, bars and dashes are, below the figure."""
    note = "dots: seeds; bar: mean with its interval; dashed: the threshold, green: what is wanted"
    figure.supxlabel(note, fontsize=7.5, color=GREY, x=0.01, ha="left")


def _wide_below(axes: list[Axes]) -> Axes:
    """Of two rows of two panels: the lower two become one."""
    grid = axes[2].get_subplotspec()
    assert grid is not None
    axes[2].set_subplotspec(grid.get_gridspec()[1, :])
    axes[3].remove()
    return axes[2]


# B1 -------------------------------------------------------------------------------------------


def _b1(judgement: Judgement) -> Figure | None:
    with style():
        figure, axes = panels(2, 2, _WIDTH, 6.2)
        _own_curves(axes[0], judgement)
        _scaled_curves(axes[1], judgement)
        _misfits(_wide_below(axes), judgement)
        _legend(figure, axes[0])
    return figure


def _b1_head(judgement: Judgement) -> Figure | None:
    with style():
        figure, axes = panels(1, 2, _WIDTH, 3.4)
        _own_curves(axes[0], judgement)
        _scaled_curves(axes[1], judgement)
        _legend(figure, axes[0])
    return figure


def _legend(figure: Figure, panel: Axes, columns: int = 3) -> None:
    """Below the figure, where it hides nothing."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5
    )


def _joined(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Curves one after another, as one line with gaps: a much shorter file."""
    return np.concatenate([part for curve in curves for part in (curve, [np.nan])])


def _own_curves(panel: Axes, judgement: Judgement) -> None:
    """Losses of one seed's batches along their steps, and of other images."""
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
    panel.set_xlabel("rate of the step")
    panel.set_ylabel("loss after the step")
    title(panel, f"One step from step {judgement.drawn['step']:,}")
    for label, (color, _) in ends.items():
        panel.plot([], [], color=color, linewidth=2.0, label=label)


def _scaled_curves(panel: Axes, judgement: Judgement) -> None:
    """All batches of all seeds and points, each in units of its own best rate and drop."""
    for place, curves in enumerate(judgement.drawn["curves"].values()):
        color = (BLUE, PALETTE[4], PALETTE[3], GREEN)[place % 4]
        for seed in curves:
            rates, losses = (_joined([curve[k] for curve in seed]) for k in range(2))
            panel.plot(rates, losses, color=color, linewidth=0.5, alpha=0.4)
    u = np.linspace(0.0, 2.0, 80)
    panel.plot(u, u**2 - 2.0 * u, color="black", linewidth=1.6, linestyle=_DASHED)
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
    panel.set_xlabel("rate / the batch's best rate")
    panel.set_ylabel("change of its loss / its drop")
    title(panel, "Every batch, point and seed")


def _misfits(panel: Axes, judgement: Judgement) -> None:
    """By point and degree of the polynomial."""
    colors = {2: BLUE, 3: PALETTE[4], 4: PALETTE[3]}
    steps = list(judgement.drawn["curves"])
    for (step, degree), values in judgement.drawn["misfits"].items():
        _dots(panel, steps.index(step) + 0.25 * (degree - 3), values, colors[degree])
    for place, part in enumerate(judgement.parts):
        value, bar = _shown(part)
        panel.errorbar(
            [place - 0.25], [value], yerr=bar, fmt="_", color=BLUE, markersize=14, linewidth=1.6,
            capsize=4,
        )  # fmt: skip
    for degree, color in colors.items():
        panel.plot([], [], "o", color=color, label=f"degree {degree}", markersize=5)
    panel.plot(0.0, 1.5 * (judgement.parts[0].wanted.high or 1.0), alpha=0.0)  # room
    _log(panel)
    _wanted(panel, judgement.parts[0])
    panel.set_xlim(-0.6, len(steps) - 0.4)
    panel.set_xticks(range(len(steps)), [f"step {step:,}" for step in steps])
    panel.grid(axis="x", visible=False)
    panel.set_ylabel("misfit, % of the drop")
    title(panel, "What a polynomial leaves, up to twice the best rate (dashed: the threshold)")
    panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)


# B2 -------------------------------------------------------------------------------------------


def _b2(judgement: Judgement) -> Figure | None:
    drawn = judgement.drawn
    with style():
        figure, (left, right) = panels(1, 2, _WIDTH, 3.6)
        for place, (start, lowest) in enumerate(zip(drawn["start"], drawn["lowest"], strict=True)):
            _dots(left, place - 0.2, start, GREY)
            _dots(left, place + 0.2, lowest, BLUE)
        for trained in drawn["trained"]:
            left.axhline(trained, color=ORANGE, linewidth=1.0)
        left.set_xlim(-0.6, len(drawn["steps"]) - 0.4)
        left.set_ylim(0.0, 1.3 * left.get_ylim()[1])
        left.set_xticks(range(len(drawn["steps"])), [f"{step:,}" for step in drawn["steps"]])
        left.set_xlabel("step")
        left.grid(axis="x", visible=False)
        left.set_ylabel("mean loss of the batches")
        title(left, "One step on a batch")
        for place, (text, color) in enumerate(
            (("before it", GREY), ("lowest along it", BLUE), ("trained network", ORANGE))
        ):
            left.annotate(
                text, (0.03, 0.97), xycoords="axes fraction", xytext=(0, -11 * place),
                textcoords="offset points", color=color, fontsize=8.5, va="top",
            )  # fmt: skip
        _parts(right, judgement, "difference")
        right.set_ylabel("lowest less trained, batch by batch")
        title(right, "Below the trained network?")
        _limit_note(figure)
    return figure


# B3 -------------------------------------------------------------------------------------------


def _b3(judgement: Judgement) -> Figure | None:
    with style():
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


def _b4(judgement: Judgement) -> Figure | None:
    drawn = judgement.drawn
    rate = drawn["rate"]
    curves = [("training", GREEN, "training")]
    if "test" in drawn:
        curves.append(("test", ORANGE, "test"))
    with style():
        figure, (panel,) = panels(1, 1, _WIDTH, 4.0)
        depth = height = 0.0
        ends = {}
        for name, color, label in curves:
            mean = drawn[name].mean(axis=0)
            panel.plot(rate, drawn[name].T, color=color, linewidth=0.8, alpha=0.5)
            panel.plot(rate, mean, color=color, linewidth=2.2)
            depth, height = min(depth, float(drawn[name].min())), max(height, float(mean.max()))
            ends[label] = (float(rate[-1]), min(float(mean[-1]), -1.6 * depth), color)
        top = min(1.05 * height, -1.6 * depth) if depth < 0.0 else 1.05 * height or 1.0
        bottom = 1.75 * depth if depth < 0.0 else -0.2 * top
        panel.set_ylim(bottom, top)
        lowest = np.min([drawn[name].mean(axis=0) for name, *_ in curves], axis=0)
        last = max(float(rate[lowest <= top][-1]), 1.4)  # beyond, all curves have left the panel
        panel.set_xlim(0.0, min(last, float(rate[-1])))
        panel.axhline(0.0, color="black", linewidth=0.9)
        for part, model, text in zip(
            judgement.parts, (1.0, 0.5), ("gain gone", "best rate"), strict=True
        ):
            low, high = part.wanted.low, part.wanted.high
            assert low is not None and high is not None
            panel.axvspan(low, high, color=_WANTED, linewidth=0, zorder=0.4)
            panel.axvline(model, color="black", linewidth=1.0, linestyle=_DASHED, zorder=1.5)
            value, bar = _shown(part)
            at = 0.88 * bottom
            panel.errorbar(
                [value],
                [at],
                xerr=bar,
                fmt="|",
                color=GREEN,
                markersize=11,
                linewidth=1.8,
                capsize=4,
            )
            panel.annotate(
                text, (model, top), xytext=(0, -4), textcoords="offset points", ha="center",
                va="top", fontsize=8.5,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
            )  # fmt: skip
        panel.set_xlabel("rate of one more step / rate of the run")
        panel.set_ylabel("change of the loss")
        title(panel, "One more step from the stationary state")
        label_ends(panel, ends)
        note = (
            "dashed: the model; green: what is wanted; bars: where the curves of the seeds have "
            "their landmarks, on other training images"
        )
        figure.supxlabel(note, fontsize=7.5, color=GREY, x=0.01, ha="left")
    return figure


# B5 -------------------------------------------------------------------------------------------


def _b5(judgement: Judgement) -> Figure | None:
    drawn = judgement.drawn
    step, trips = list(drawn["trips"].items())[-1]
    with style():
        figure, (left, right) = panels(1, 2, _WIDTH, 3.8)
        for seed in trips:
            start = seed["own"][:, 0].mean()
            left.plot(seed["own"].mean(axis=0) / start, color=BLUE, marker="o", markersize=3)
            left.plot(seed["held_out"].mean(axis=0) / start, color=ORANGE, marker="o", markersize=3)
        part = judgement.parts[0]
        left.set_ylim(0.0, 1.25 * left.get_ylim()[1])
        _wanted(left, part)
        left.axvline(4.0, color=GREY, linewidth=1.0, linestyle=":")
        left.set_xlabel("steps on the batch")
        left.set_ylabel("loss / own loss at the start")
        title(left, f"Side trips from step {step:,}")
        for place, (text, color) in enumerate((("test images", ORANGE), ("own batch", BLUE))):
            left.annotate(
                text, (0.03, 0.97), xycoords="axes fraction", xytext=(0, -11 * place),
                textcoords="offset points", color=color, fontsize=8.5, va="top",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6},
            )  # fmt: skip
        _by_size(right, drawn["sizes"], drawn["left"], part)
        right.set_ylabel("own loss left after 4 steps")
        title(right, "By the size of the batch")
        figure.supxlabel(
            "a line for each seed; green: near 0, where the own loss should be after 4 steps",
            fontsize=7.5, color=GREY, x=0.01, ha="left",
        )  # fmt: skip
    return figure


def _by_size(panel: Axes, sizes: np.ndarray, values: np.ndarray, part: Part) -> None:
    """[seed, size] numbers of batches of several sizes, with the threshold."""
    panel.plot(sizes, values.T, color=BLUE, linewidth=0.9, marker="o", markersize=4, alpha=0.7)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [f"{size:g}" for size in sizes])
    panel.minorticks_off()
    panel.set_ylim(0.0, max(1.15 * float(values.max()), 1.5 * (part.wanted.high or 0.0)))
    _wanted(panel, part)
    panel.set_xlabel("images in a batch")


# B6 -------------------------------------------------------------------------------------------


def _b6(judgement: Judgement) -> Figure | None:
    drawn = judgement.drawn
    position = drawn["position"]
    with style():
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
                linestyle=_DASHED,
            )  # fmt: skip
            panel.set_ylim(0.0, 1.18 * panel.get_ylim()[1])
            panel.set_xlim(0.0, 1.0)
            panel.set_xticks([0.0, 0.5, 1.0], ticks)
            title(panel, text)
            for place, (label, color) in enumerate(
                (("to another seed's run (control)", ORANGE), ("within one run", BLUE))
            ):
                panel.annotate(
                    label, (0.03, 0.98), xycoords="axes fraction", xytext=(0, -11 * place),
                    textcoords="offset points", color=color, fontsize=8.5, va="top",
                )  # fmt: skip
        axes[0].set_ylabel("loss / loss where the trips start")
        figure.supxlabel(
            "a line for each seed, the mean over segments; dashed: the highest that counts as one "
            "basin",
            fontsize=7.5, color=GREY, x=0.01, ha="left",
        )  # fmt: skip
    return figure


# B11 ------------------------------------------------------------------------------------------


def _b11(judgement: Judgement) -> Figure | None:
    drawn = judgement.drawn
    with style():
        figure, (left, right) = panels(1, 2, _WIDTH, 3.6)
        _parts(left, judgement, "share")
        left.set_ylim(0.0, left.get_ylim()[1])
        left.set_ylabel("cosine of two batches' gradients")
        title(left, f"Batches of {drawn['batch_size']:g}, along the run")
        _by_size(right, drawn["sizes"], drawn["share"], judgement.parts[0])
        right.set_ylabel("the same at the end")
        title(right, "By the size of the batch")
        _limit_note(figure)
    return figure


# B12 ------------------------------------------------------------------------------------------


def _b12(judgement: Judgement) -> Figure | None:
    drawn = judgement.drawn
    with style():
        figure, (left, right) = panels(1, 2, _WIDTH, 3.8)
        position, curves = drawn["between"]
        shades = (BLUE, PALETTE[4], PALETTE[3], GREEN)
        for place, (distance, curve) in enumerate(curves.items()):
            left.plot(
                position,
                curve,
                color=shades[place % 4],
                linewidth=1.6,
                label=f"{distance:,} updates",
            )
        left.plot(*drawn["apart"], color=ORANGE, linewidth=1.6, label="two seeds")
        _log(left)
        left.set_xlim(0.0, 1.0)
        left.set_xticks([0.0, 0.5, 1.0], ["first", "½", "second"])
        left.set_ylabel("loss / loss at the first")
        title(left, "Between two iterates")
        _legend(figure, left, columns=4)
        labels = []
        count = len(judgement.parts)
        for place, part in zip(range(count, 0, -1), judgement.parts, strict=True):
            color = BLUE if part.wanted.name == "line" else GREEN
            values = part.seeds
            right.plot(values, np.full(len(values), place), "o", color=color, alpha=0.5)
            value, bar = _shown(part)
            right.errorbar(
                [value], [place], xerr=bar, fmt="|", color=color, markersize=12, linewidth=1.6,
                capsize=3,
            )  # fmt: skip
            labels.append(part.at if part.wanted.name == "line" else part.at.removesuffix(" apart"))
        controls = drawn["control"]
        right.plot(controls, np.zeros(len(controls)), "o", color=ORANGE)
        labels.append("two seeds")
        right.set_yticks(range(count, -1, -1), labels, fontsize=8)
        right.set_ylim(-0.5, count + 0.5)
        right.grid(axis="y", visible=False)
        low, high = right.get_xlim()
        right.set_xlim(min(low, -1.0), max(high, 1.3 * (judgement.parts[0].wanted.high or 0.0)))
        _wanted(right, judgement.parts[0], "x")
        right.set_xlabel("concave part of the way, %")
        title(right, "Along steps and between iterates")
    return figure


# O5 -------------------------------------------------------------------------------------------


def _o5(judgement: Judgement) -> Figure | None:
    drawn = judgement.drawn
    with style():
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
        axes[0].set_xscale("log", base=2)
        axes[0].set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes[0].minorticks_off()
        axes[1].set_xscale("log")
        axes[0].set_xlabel("images in a batch")
        axes[1].set_xlabel("images / weights of the network")
        axes[0].set_ylabel("lowest loss / loss before the step")
        title(axes[0], "By the size of the batch")
        title(axes[1], "By images per weight")
        axes[0].legend(loc="lower right", frameon=False, fontsize=8)
        below = _wide_below(axes)
        part = judgement.part("position")
        value, bar = _shown(part)
        below.errorbar(
            [value], [0.0], xerr=bar, fmt="|", color=ORANGE, markersize=16, linewidth=2.0, capsize=5
        )
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


FIGURES = {
    "B1": ClaimFigure(
        "Losses of batches along their own steps, beside parabolas, and the misfit by point.",
        "Left: losses of one seed's batches along their steps, and of images that no step is made "
        "on. Right: all batches in units of their best rate and drop. Below: medians over batches.",
        _b1,
    ),
    "B2": ClaimFigure(
        "Mean loss of batches before a step and lowest along it, beside a trained network's.",
        "Every dot is a seed; lines are the trained networks. The right panel pairs by batch.",
        _b2,
    ),
    "B3": ClaimFigure(
        "Best rate and gain of held-out batches over those of the step's own batch, by point.",
        "Left and middle: 1 would mean that the batch's own curve and the held-out one agree. "
        "Right: how held-out loss changes at the rate that is best for the step's own batch.",
        _b3,
    ),
    "B4": ClaimFigure(
        "Change of the loss of other images over one more step, against its rate.",
        "Thin: seeds; thick: their mean. The model puts the lowest point at half the run's rate "
        "and the return to 0 at the rate itself.",
        _b4,
    ),
    "B5": ClaimFigure(
        "Losses of the own batch and of test images along side trips, and by batch size.",
        "Left: repeated steps on one fixed batch. Right: what four steps leave of the own loss, "
        "for batches of several sizes.",
        _b5,
    ),
    "B6": ClaimFigure(
        "Losses along straight lines between ends of side trips, and back to the trajectory.",
        "A hump above the dashed line would be a barrier; the lines to another seed's run show "
        "what one looks like.",
        _b6,
    ),
    "B11": ClaimFigure(
        "Cosine of two batches' gradients along the run, and by batch size.",
        "Larger batches are always better aligned: the threshold judges the size that the run is "
        "trained with.",
        _b11,
    ),
    "B12": ClaimFigure(
        "Losses between iterates, and the part of the way where they are concave.",
        "Left: one segment of each length, and one between the runs of two seeds. Right: the part "
        "of the length with negative second differences; seeds as dots.",
        _b12,
    ),
    "O5": ClaimFigure(
        "Reach of one step against batch size and against images per weight, for two widths.",
        "If the two networks fall on one line on the right and not on the left, images per weight "
        "set the reach.",
        _o5,
    ),
}
# For the head of the page: a claim's figure with less in it.
HEADS: dict[str, ClaimFigure] = {
    "B1": ClaimFigure(
        FIGURES["B1"].alt,
        "Left: losses of one seed's batches along their own steps, and of images that no step is "
        "made on. Right: all batches in units of their best rate and drop.",
        _b1_head,
    ),
}
