"""Figures of claims about trajectories, and about averages on two time scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.claims import Judgement
from tf_lrtraj.claims.verdicts import Wanted
from tf_lrtraj.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    end,
    labels,
    panels,
    seed_lines,
    title,
)
from tf_lrtraj.report.probe_figures.bands import label_ends
from tf_lrtraj.report.study.claim_figure import draws

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE, _NARROW = 8.0, 5.4  # inches: two panels, and one
_HEIGHT = 3.5
_BAND = "#e9f3ea"  # where a number is wanted


def _limit(panel: Axes, level: float, text: str, *, below: bool = False) -> None:
    """Draws a threshold, with its name above or below the line at the left."""
    panel.axhline(level, color="#444444", linewidth=0.9, linestyle=(0, (4, 3)))
    panel.annotate(
        text, (0.015, level), xycoords=("axes fraction", "data"), xytext=(0, -3 if below else 3),
        textcoords="offset points", fontsize=8, color="#444444",
        va="top" if below else "bottom",
    )  # fmt: skip


def _wanted(judgement: Judgement, name: str) -> Wanted:
    """Returns the thresholds of the first part of that name, at any place."""
    return next(part.wanted for part in judgement.parts if part.wanted.name == name)


def _log(panel: Axes, *axes: str) -> None:
    """Sets logarithmic axes, with plain numbers if there are few."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in axes:
        getattr(panel, f"set_{axis}scale")("log")
        chosen = getattr(panel, f"{axis}axis")
        chosen.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low, high = getattr(panel, f"get_{axis}lim")()
        if high < 15.0 * low:
            chosen.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
            chosen.set_tick_params(which="minor", labelsize=7)
        else:
            chosen.set_minor_formatter(NullFormatter())


def _rates(panel: Axes, rates: Any) -> None:
    """Sets a logarithmic axis of learning rates with a label for each."""
    from matplotlib.ticker import NullLocator

    panel.set_xscale("log")
    panel.set_xticks(rates, [f"{rate:.3g}" for rate in rates])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("learning rate")


# Stationary state -----------------------------------------------------------------------------


@draws(
    "B7",
    alt="Squared displacement against lag rises to the squared distance of two independent runs.",
    caption="How far the weights lie from where they were a lag before, and how far two runs from "
    "one state on independent batches are apart, a line for each seed. Shaded: where the "
    "displacement is wanted; dots: half of the pair's distance.",
)
def _b7(judgement: Judgement) -> Figure:
    wanted = _wanted(judgement, "plateau")
    figure, (panel,) = panels(1, 1, _NARROW + 1.2, _HEIGHT)
    panel.axhspan(wanted.low or 0.0, wanted.high or 2.0, color=_BAND, linewidth=0, zorder=0)
    ends = {}
    for seed in judgement.drawn["seeds"]:
        for x, y, color, name in (
            ("lags", "moved", BLUE, "displacement"),
            ("ages", "apart", ORANGE, "two runs"),
        ):
            over = seed[y] / seed["plateau"]
            panel.plot(np.append(0, seed[x]), np.append(0, over), color=color, linewidth=1.3)
            ends[name] = end(seed[x], over, color)
        panel.plot([seed["half"]], [0.5], "o", color=BLUE, markersize=4)
    panel.set_xlim(0.0, None)
    panel.set_ylim(0.0, None)
    panel.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    labels(panel, "lag, or age of the pair: epochs", "squared distance over the pair's last")
    label_ends(panel, ends)
    return figure


@draws(
    "B8",
    alt="Distance of iterates from their centre against the rate on logarithmic axes.",
    caption="A line for each seed; dotted: the square root; shaded: the powers that are wanted.",
)
def _b8(judgement: Judgement) -> Figure:
    rates = judgement.drawn["rates"]
    figure, axes = panels(1, 2, _WIDE, _HEIGHT)
    for panel, (name, text) in zip(
        axes, (("distance", "Weights"), ("angle", "Filters over their norms")), strict=True
    ):
        wanted = _wanted(judgement, name)
        roots = np.array(judgement.drawn[name])
        middle = float(np.exp(np.log(roots).mean()))
        centre = float(np.exp(np.log(rates).mean()))
        order = np.argsort(rates)
        x = rates[order]
        edges = [middle * (x / centre) ** (power or 0.0) for power in (wanted.low, wanted.high)]
        panel.fill_between(x, *edges, color="#cfe6d3", linewidth=0, zorder=0)
        panel.plot(x, middle * (x / centre) ** 0.5, color="black", linewidth=1, linestyle=":")
        for curve in roots:
            panel.plot(x, curve[order], "o-", color=BLUE, linewidth=0.9, markersize=4)
        _log(panel, "y")
        _rates(panel, x)
        title(panel, text)
    axes[0].set_ylabel("distance from the iterates' centre")
    return figure


@draws(
    "B9",
    alt="Squared distances of iterates and averages from a centre, and where updates lead.",
    caption="Left: dots are iterates and averages, a column for each seed; shaded: two "
    "thicknesses of the iterates' shell. Right: above 0 updates lead away from the centre, below "
    "it towards it; bars are 95 % intervals.",
)
def _b9(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    figure, (left, right) = panels(1, 2, _WIDE, _HEIGHT)
    names = {"iterates": GREY, "two_point": GREEN, "window": BLUE}
    thickness = 2.0 * judgement.part("scatter").interval.value
    left.axhspan(1.0 - thickness, 1.0 + thickness, color="#eeeeee", linewidth=0, zorder=0)
    for place, (name, color) in enumerate(names.items()):
        for i, seed in enumerate(drawn["seeds"]):
            at = place + 0.16 * (i - 0.5 * (len(drawn["seeds"]) - 1))
            size = 2.0 if name == "iterates" else 4.5
            left.plot([at] * len(seed[name]), seed[name], "o", color=color, markersize=size,
                      alpha=0.6, markeredgewidth=0)  # fmt: skip
    left.set_xticks(range(3), ["iterates", "averages of\ntwo points", "averages of\na stretch"])
    left.set_xlim(-0.5, 2.5)
    left.set_ylim(0.0, None)
    left.grid(axis="x", visible=False)
    labels(
        left,
        y="squared distance over the iterates'",
        heading="From the mean of the window's other half",
    )
    scales = drawn["scales"]
    table = np.array([drawn["changes"][scale] for scale in scales]).T
    right.axhline(0.0, color="#444444", linewidth=0.9)
    for curve in table:
        right.plot(scales, curve, "o-", color=BLUE, linewidth=0.9, markersize=4)
    for name, scale in (("grows_inside", scales[0]), ("shrinks_outside", scales[-1])):
        _bar(right, float(scale), judgement.part(name).interval)
    right.set_xticks(scales, [f"{scale:g}" for scale in scales])
    labels(
        right,
        "start, in distances of an iterate",
        "change of squared distance",
        "A few updates from there",
    )
    return figure


def _bar(panel: Axes, x: float, interval: Any) -> None:
    """Draws an interval, if it has finite ends."""
    if np.isfinite([interval.low, interval.high]).all():
        panel.plot([x, x], [interval.low, interval.high], color="black", linewidth=2.2, alpha=0.6)


# Two runs -------------------------------------------------------------------------------------


@draws(
    "B10",
    alt="Squared distance of two runs against steps, on shared and on independent batches.",
    caption="A line for each seed. Left: from the dotted line on one of the runs is continued on "
    "the batches of the other. Right: time is in units of 1 / rate.",
)
def _b10(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    small, large = drawn["small"], drawn["large"]
    figure, (left, right) = panels(1, 2, _WIDE + 0.6, _HEIGHT)
    ends = {}
    for seed in drawn["seeds"]:
        for batches, color in (("independent", ORANGE), ("shared", BLUE)):
            steps, squares = seed["pairs"][batches, large]
            left.plot(steps, squares, color=color, linewidth=1.3)
            ends[batches] = end(steps, squares, color)
    left.axvline(drawn["seeds"][0]["switch"], color=GREY, linewidth=0.8, linestyle=":")
    left.set_xlim(0.0, None)
    left.set_ylim(0.0, None)
    labels(
        left,
        "updates since the fork",
        "squared distance of two runs",
        f"Rate {large:g}, batches shared or not",
    )
    label_ends(left, ends)
    ends = {}
    for seed in drawn["seeds"]:
        for rate, color in ((large, ORANGE), (small, GREEN)):
            steps, squares = seed["pairs"]["independent", rate]
            right.plot(steps * rate / large, squares, color=color, linewidth=1.3)
            ends[f"rate {rate:g}"] = (1.0, float(squares[-1]), color)
    _log(right, "x", "y")
    labels(right, f"updates times rate / {large:g}", heading="Independent batches")
    label_ends(right, ends)
    return figure


@draws(
    "O4",
    alt="Squared distance on shared batches over that on independent ones, at two rates.",
    caption="Thin: seeds, thick: their mean. Below the dashed line runs have come together.",
)
def _o4(judgement: Judgement) -> Figure:
    drawn, wanted = judgement.drawn, _wanted(judgement, "small_rate")
    figure, (panel,) = panels(1, 1, _NARROW + 0.8, _HEIGHT)
    ends = {}
    top = 1.05
    for rate, color in ((drawn["large"], ORANGE), (drawn["small"], BLUE)):
        curves = []
        for seed in drawn["seeds"]:
            steps, shared = seed["pairs"]["shared", rate]
            at, independent = seed["pairs"]["independent", rate]
            curves.append(shared / np.interp(steps, at, independent))
        mean = seed_lines(panel, steps - drawn["seeds"][0]["switch"], curves, color)
        ends[f"rate {rate:g}"] = end(steps, mean, color)
        top = max(top, 1.05 * float(np.max(curves)))
    panel.set_ylim(0.0, top)
    _limit(panel, wanted.high or 0.5, "together", below=True)
    labels(panel, "updates on shared batches", "squared distance over that\non independent batches")
    label_ends(panel, ends)
    return figure


@draws(
    "B14",
    alt="Cosines of gradients, and distance of two runs, against the first steps.",
    caption="Left: gradients of two batches with each other (dotted: at the burn-in's end), the "
    "mean gradient with the first one and, reversed, with the way so far. Right: two runs from "
    "one start, and their way from it. Thin: seeds.",
)
def _b14(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    steps = drawn["steps"]
    figure, (left, right) = panels(1, 2, _WIDE + 0.8, _HEIGHT)
    left.set_xscale("symlog", linthresh=1.0, linscale=0.4)
    ends = {}
    for name, at, color in (
        ("cosines", steps, BLUE),
        ("to_start", steps, GREY),
        ("to_displacement", steps[1:], GREEN),
    ):
        label = {"cosines": "two batches", "to_start": "with the first"}.get(name, "with the way")
        mean = seed_lines(left, at, drawn[name], color, linewidth=2.0 if name == "cosines" else 1.1)
        ends[label] = end(at, mean, color)
    left.axhline(drawn["late"], color=BLUE, linewidth=0.8, linestyle=":")
    _limit(left, _wanted(judgement, "aligned").low or 0.0, "aligned")
    left.set_xticks(steps, [f"{step:g}" for step in steps])
    left.set_xlim(-0.1, 1.1 * steps[-1])
    labels(left, "updates from scratch", "cosine of gradients", "Gradients")
    label_ends(left, ends)
    ends = {}
    for name, label, color in (("moved", "from the start", GREY), ("apart", "of two runs", ORANGE)):
        mean = seed_lines(right, steps[1:], drawn[name], color)
        ends[label] = end(steps, mean, color)
    _log(right, "x", "y")
    right.set_xticks(steps[1:], [f"{step:g}" for step in steps[1:]])
    labels(right, "updates from scratch", heading="Squared distance")
    label_ends(right, ends)
    return figure


@draws(
    "B13",
    alt="Training loss of stationary runs against the rate, measured and predicted.",
    caption="Thin: seeds, thick: their mean. Dashed: predicted from the base rate, the first, "
    "alone; shaded: where the measured loss is wanted.",
)
def _b13(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    rates, measured, predicted = (drawn[k] for k in ("rates", "measured", "predicted"))
    wanted = _wanted(judgement, "explained")
    figure, (panel,) = panels(1, 1, _NARROW + 0.8, _HEIGHT)
    base, foreseen = measured[:, 0].mean(), predicted.mean(axis=0)
    fall = predicted[:, 0].mean() - foreseen
    edges = [base - fall / (factor or 1.0) for factor in (wanted.low, wanted.high)]
    panel.fill_between(rates, *edges, color="#cfe6d3", linewidth=0, zorder=0)
    panel.plot(rates, foreseen, color=GREEN, linewidth=1.4, linestyle="--")
    mean = seed_lines(panel, rates, measured, BLUE, marker="o", markersize=4)
    _rates(panel, rates)
    panel.invert_xaxis()
    panel.set_ylabel("training loss of single iterates")
    label_ends(
        panel, {"measured": end(rates, mean, BLUE), "predicted": end(rates, foreseen, GREEN)}
    )
    return figure


# Two time scales ------------------------------------------------------------------------------


@draws(
    "A6",
    alt="Loss against time of a large rate, of its average and of a small rate; model and network.",
    caption="The average goes down as fast as the large rate and comes as low as a smaller one. "
    "Dots: where a common level is reached. Thin: seeds; dotted: where the small rate overtakes.",
)
def _a6(judgement: Judgement) -> Figure:
    model, seeds = judgement.drawn["model"], judgement.drawn["seeds"]
    small, large = judgement.drawn["rates"][0], judgement.drawn["rates"][-1]
    colors = {"small": ORANGE, "large": GREY, "raw": GREY, "ema": BLUE, "average": BLUE}
    figure, (left, right) = panels(1, 2, _WIDE + 1.0, _HEIGHT + 0.2)
    ends = {}
    for name, label in (("large", "large rate"), ("small", "small rate"), ("ema", "average")):
        losses = model[name]
        steps = np.unique(np.geomspace(1, losses.size - 1, 400).astype(int))
        left.plot(steps, losses[steps], color=colors[name], linewidth=2.0)
        ends[label] = (float(steps[-1]), float(losses[steps[-1]]), colors[name])
        reached = model["steps_to_level"].get(name)
        if reached is not None and reached < losses.size:
            left.plot([reached], [model["level"]], "o", color=colors[name], markersize=6)
    _log(left, "x", "y")
    if all(model["steps_to_level"].values()):
        left.annotate(
            f"{judgement.part('model_speed').interval.value:.0f} times sooner",
            (model["steps_to_level"]["ema"], model["level"]),
            xytext=(-8, -5), textcoords="offset points", fontsize=8.5, color=BLUE, ha="right",
            va="top",
        )  # fmt: skip
    left.axhline(model["level"], color="#444444", linewidth=0.9, linestyle=(0, (4, 3)))
    left.set_ylim(0.5 * model["level"], None)
    labels(left, "updates", "excess loss", "Quadratic model")
    label_ends(left, ends)
    ends = {}
    for name, label in (
        ("raw", f"rate {large:g}"),
        ("small", f"rate {small:g}"),
        ("average", "average"),
    ):
        mean = seed_lines(right, seeds[0]["epochs"], [seed[name] for seed in seeds], colors[name])
        ends[label] = end(seeds[0]["epochs"], mean, colors[name])
    crossings = [seed["crossing"] for seed in seeds if np.isfinite(seed["crossing"])]
    for crossing in crossings:
        right.axvline(crossing, color=ORANGE, linewidth=0.8, linestyle=":")
    _log(right, "y")
    if crossings:
        right.annotate(
            "the small rate\novertakes",
            (float(np.mean(crossings)), 0.97),
            xycoords=("data", "axes fraction"), xytext=(-4, 0), textcoords="offset points",
            fontsize=8.5, color=ORANGE, ha="right", va="top",
        )  # fmt: skip
    right.set_xlim(0.0, None)
    labels(right, "epochs", "training loss", "Network from scratch")
    label_ends(right, ends)
    return figure


@draws(
    "A7",
    alt="Misses between simulation and theory, and single runs over theory.",
    caption="Left: shaded is what chance allows for the largest of all misses. Right: shaded is "
    "where the median is wanted.",
)
def _a7(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    figure, (left, right) = panels(1, 2, _WIDE, _HEIGHT)
    bound = drawn["bound"]
    left.axhspan(-bound, bound, color=_BAND, linewidth=0, zorder=0)
    for name, color, label in (
        ("large", GREY, "large rate"),
        ("ema", BLUE, "its EMA"),
        ("small", ORANGE, "small rate"),
    ):
        left.plot(drawn["steps"], drawn["misses"][name], "o", color=color, markersize=3,
                  label=label)  # fmt: skip
    _log(left, "x")
    left.set_ylim(-1.5 * bound, 1.9 * bound)
    labels(left, "updates", "simulated less exact, standard errors")
    left.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", handletextpad=0.1,
                columnspacing=0.8)  # fmt: skip
    title(left, "Monte Carlo against theory")
    limit = _wanted(judgement, "deviation").high or 0.1
    right.axhspan(1.0 - limit, 1.0 + limit, color=_BAND, linewidth=0, zorder=0)
    names = ("zero_crossings", "distances", "displacement")
    for place, name in enumerate(names):
        exact, measured = drawn["single"][name]
        spread = np.linspace(-0.25, 0.25, exact.size) if exact.size > 1 else [0.0]
        right.plot(place + np.asarray(spread), measured / exact, "o", color=BLUE, markersize=3)
    right.set_xticks(range(3), ["zero\ncrossing", "distance", "displace-\nment"])
    right.set_ylim(min(0.8, right.get_ylim()[0]), max(1.2, right.get_ylim()[1]))
    right.grid(axis="x", visible=False)
    labels(right, y="in runs over theory", heading="Single runs")
    return figure


@draws(
    "A10",
    alt="Loss against the time of an exponential average, on the model and on a network.",
    caption="Dots: the best time of each curve. Thin: seeds.",
)
def _a10(judgement: Judgement) -> Figure:
    model, network = judgement.drawn["model"], judgement.drawn["network"]
    figure, (left, right) = panels(1, 2, _WIDE + 1.2, _HEIGHT)
    colors = (GREEN, BLUE, ORANGE, GREY)
    for rate, losses, color in zip(model["rates"], model["losses"], colors, strict=False):
        best, lengths = int(np.argmin(losses)), model["lengths"]
        left.plot(lengths, losses, color=color, linewidth=2.0, label=f"rate {rate:g}")
        left.plot([lengths[best]], [losses[best]], "o", color=color, markersize=6)
    _log(left, "x", "y")
    left.set_ylim(0.35 * float(model["losses"].min()), None)
    left.legend(frameon=False, fontsize=8, loc="lower left")
    labels(left, "length of the EMA, updates", "excess loss", "Quadratic model")
    ends = {}
    for phase, color, label in (
        ("early", ORANGE, "while the\nloss falls"),
        ("window", BLUE, "in the\nwindow"),
    ):
        times, curves, raw = network[phase]
        mean = seed_lines(right, times, curves, color)
        best = int(np.argmin(mean))
        right.plot([times[best]], [mean[best]], "o", color=color, markersize=6)
        right.axhline(float(np.mean(raw)), color=color, linewidth=0.9, linestyle=":")
        ends[label] = end(times, mean, color)
    _log(right, "x", "y")
    labels(right, "time of the EMA, updates", "training loss", "Network (dotted: the last iterate)")
    label_ends(right, ends)
    return figure
