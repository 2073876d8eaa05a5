"""Figures of averages against schedules, lower rates, predictions and test losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.claims import Judgement
from tf_lrtraj.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALETTE,
    dots,
    interval_row,
    labels,
    legend,
    log_ticks,
    panels,
    rows,
    seed_lines,
    title,
)
from tf_lrtraj.report.study.claim_figure import draws

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {
    "ema": "EMA",
    "swa": "SWA",
    "two_point": "two points",
    "cosine": "cosine decay",
    "linear": "linear decay",
    "one_minus_sqrt": "1 − √ decay",
}
_COLORS = {1: GREY, 2: BLUE, 4: ORANGE, 8: GREEN}  # of n points
_WANTED = "#e3efe0"  # of what is wanted


def _name(key: str) -> str:
    return _NAMES.get(key, key.replace("_", " "))


def _lines(panel: Axes, x: Any, table: np.ndarray, color: str, label: str | None = None) -> None:
    seed_lines(panel, x, table, color, "o-", markersize=4, label=label)


def _dots(panel: Axes, place: float, values: Any, color: str) -> None:
    dots(panel, place, values, color, 0.08, markersize=4, alpha=0.6, zorder=3)


def _rate(divisor: int) -> str:
    return "λ" if divisor == 1 else f"λ/{divisor}"


# Shares of the effect: A1, A4 -------------------------------------------------------------------


def _shares(panel: Axes, groups: Mapping[str, tuple[str, Mapping[str, Any]]], at: Any) -> None:
    """Draws a row for each average or decay: seeds, the interval, and the wanted band."""
    entries = [
        (name, entry, color) for color, group in groups.values() for name, entry in group.items()
    ]
    panel.axvspan(at.low, at.high, color=_WANTED, zorder=0)
    panel.axvline(1.0, color=INK, linewidth=1.0, zorder=1)
    for place, (_, entry, color) in enumerate(entries):
        found = entry["interval"]
        interval_row(panel, place, found, color, "D", linewidth=3.5, alpha=0.5)
        seeds = entry["seeds"]
        panel.plot(seeds, place - 0.22 * np.ones(len(seeds)), "o", color=color, markersize=3.5)
    panel.set_yticks(range(len(entries)), [_name(name) for name, *_ in entries])
    panel.set_ylim(len(entries) - 0.5, -0.6)
    values = [
        x for _, e, _ in entries for x in (e["interval"].value, *e["seeds"]) if np.isfinite(x)
    ]
    panel.set_xlim(min(0.6, min(values) - 0.05), max(1.2, max(values) + 0.05))
    panel.grid(axis="y", visible=False)
    for color, label in ((color, label) for label, (color, _) in groups.items()):
        panel.plot([], [], "D", color=color, label=label)
    panel.set_xlabel("share of the effect (0: single iterates, 1: the run with the schedule)")


@draws(
    "A1",
    alt="Shares of the effect that averages and emulated decays have, seed by seed",
    caption="How much of what a falling rate takes off the loss an average of constant-rate "
    "iterates has too. Dots: seeds; diamonds and bars: their ratio of means with its 90 % "
    "interval; shaded: what counts as equal.",
)
def _draw_a1(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    groups = {
        "average against the run with its equivalent schedule": (BLUE, drawn["averages"]),
        "emulated against trained decay": (ORANGE, drawn["decays"]),
    }
    count = len(drawn["averages"]) + len(drawn["decays"])
    return _draw_shares(judgement, groups, count)


@draws(
    "A4",
    alt="Shares of a decay's gain that weights on snapshots have, seed by seed",
    caption="Dots: seeds; diamonds and bars: the ratio of means with its 90 % interval; shaded: "
    "what counts as equal.",
)
def _draw_a4(judgement: Judgement) -> Figure:
    decays = judgement.drawn["decays"]
    return _draw_shares(
        judgement, {"emulated against trained decay": (ORANGE, decays)}, len(decays)
    )


def _draw_shares(
    judgement: Judgement, groups: Mapping[str, tuple[str, Mapping[str, Any]]], count: int
) -> Figure:
    figure, (panel,) = panels(1, 1, 7.0, 1.3 + 0.5 * count)
    _shares(panel, groups, judgement.parts[0].wanted)
    legend(figure)
    return figure


# Along the trajectory: A8 -----------------------------------------------------------------------


@draws(
    "A8",
    alt="Gap between run and average along the horizon, by both equivalences",
    caption="Thin lines: seeds; thick: their mean; shaded: the gaps that are allowed.",
)
def _draw_a8(judgement: Judgement) -> Figure:
    averages, limit = judgement.drawn["averages"], judgement.drawn["limit"]
    figure, axes = panels(1, len(averages), 1.0 + 3.0 * max(len(averages), 2), 3.6)
    for panel, (name, entry) in zip(axes, averages.items(), strict=True):
        panel.axhspan(-limit, limit, color=_WANTED, zorder=0)
        panel.axhline(0.0, color=INK, linewidth=1.0)
        for (kind, gaps), color in zip(entry["gaps"].items(), (ORANGE, BLUE), strict=False):
            label = f"by {kind}" if panel is axes[0] else None
            _lines(panel, entry["steps"], gaps, color, label)
        labels(panel, "step of the horizon", heading=_name(name))
    low = min(panel.get_ylim()[0] for panel in axes)
    high = max(panel.get_ylim()[1] for panel in axes)
    for panel in axes:
        panel.set_ylim(low, high)
    axes[0].set_ylabel("loss of the run above the average's,\nshare of the effect")
    legend(figure)
    return figure


# Far points: A2, A3, A9, O1 ---------------------------------------------------------------------


def _column(panel: Axes, place: float, n: int, entry: Mapping[str, np.ndarray]) -> None:
    """Draws n points between the runs at λ/n and its neighbour, with the band near the former."""
    means = {key: float(np.mean(values)) for key, values in entry.items()}
    ends = [place - 0.36, place + 0.36]
    panel.fill_between(ends, means["down"], means["up"], color=_WANTED, zorder=0)
    for key, divisor, color in (("same", n, _COLORS.get(n, BLUE)), ("twice", n // 2, GREY)):
        panel.plot(ends, [means[key]] * 2, color=color, linewidth=1.4, linestyle="--")
        panel.annotate(
            f"run at {_rate(divisor)}", (place + 0.36, means[key]), xytext=(0, 3), ha="right",
            textcoords="offset points", fontsize=8, color=INK,
        )  # fmt: skip
        _dots(panel, place + 0.2, entry[key], color)
    _dots(panel, place - 0.15, entry["average"], "black")
    panel.plot([place - 0.15], [means["average"]], "D", color="black", markersize=7, zorder=4)


@draws(
    "A2",
    alt="Training loss of means of two points against their gap, beside runs at λ and λ/2",
    caption="Thin lines and dots: seeds. Right: the largest gap, with the band in which a loss is "
    "nearer to that of the run at λ/2 than to its neighbours.",
)
def _draw_a2(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    figure, (left, right) = panels(1, 2, 7.4, 3.7)
    gaps = drawn["gaps"]
    _lines(left, gaps, drawn["by_gap"], BLUE, "mean of two points")
    predicted = drawn["predicted"].mean(axis=0)
    if np.isfinite(predicted).any():
        left.plot(gaps, predicted, "D", color=BLUE, markersize=8, fillstyle="none",
                  label="predicted")  # fmt: skip
    for n, rates in drawn["rates"].items():
        left.axhline(float(rates.mean()), color=GREY if n == 1 else BLUE, linestyle="--")
        left.annotate(
            f"single iterates at {_rate(n)}", (0.99 if n == 1 else 0.01, float(rates.mean())),
            ha="right" if n == 1 else "left", xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", fontsize=8, color=INK,
        )  # fmt: skip
    log_ticks(left, gaps)
    labels(left, "gap between the two points, steps", "training loss")
    _column(right, 0.0, 2, drawn["ladder"][2])
    right.set_xticks([0.0], ["2 points"])
    right.grid(axis="x", visible=False)
    title(right, "At the largest gap; shaded: nearer to λ/2")
    legend(figure)
    return figure


@draws(
    "A3",
    alt="Training loss of averages of n points beside runs at λ/n and twice that rate",
    caption="Diamonds: means of averages of far points; dots: seeds; dashed: single iterates of "
    "runs; shaded: where a loss is nearer to that of the run at λ/n than to its neighbours.",
)
def _draw_a3(judgement: Judgement) -> Figure:
    ladder = judgement.drawn["ladder"]
    figure, (panel,) = panels(1, 1, 6.4, 3.8)
    for place, (n, entry) in enumerate(ladder.items()):
        _column(panel, float(place), n, entry)
    panel.set_xticks(range(len(ladder)), [f"{n} points" for n in ladder])
    panel.set_ylabel("training loss")
    panel.grid(axis="x", visible=False)
    title(panel, "Black: averages; dashed: runs; shaded: nearer to the run at λ/n")
    return figure


@draws(
    "A9",
    alt="Test accuracy and loss of means of two points over single iterates, against their gap",
    caption="Both end at the same iterates. Thin lines: seeds; thick: their mean.",
)
def _draw_a9(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    gaps = drawn["gaps"]
    looks = {
        "recompute": (BLUE, "statistics recomputed"),
        "running": (ORANGE, "running statistics"),
    }
    figure, (left, right) = panels(1, 2, 7.4, 3.6)
    for policy, (color, label) in looks.items():
        _lines(left, gaps, 100.0 * drawn["accuracy"][policy], color, f"over iterates, {label}")
    _lines(right, gaps, drawn["loss"], BLUE)
    for panel in (left, right):
        panel.axhline(0.0, color=INK, linewidth=1.0)
        log_ticks(panel, gaps)
        panel.set_xlabel("gap between the two points, steps")
    left.set_ylabel("test accuracy gained, points")
    right.set_ylabel("test loss above single iterates'")
    legend(figure)
    return figure


@draws(
    "O1",
    alt="Training loss against the logarithm of the rate, with averages of 2, 4 and 8 points",
    caption="Averages stand where the curve of single iterates has their loss: diamonds, dots for "
    "seeds; hollow squares: where they would stand if n points acted like λ/n; pale bars: the "
    "ranges that were registered.",
)
def _draw_o1(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    losses = drawn["rates"]  # [rate, seed]
    exponents = np.arange(len(losses))
    figure, (panel,) = panels(1, 1, 7.0, 4.6)
    for seed in losses.T:
        panel.plot(-exponents, seed, color="black", linewidth=0.7, alpha=0.4)
    mean = losses.mean(axis=1)
    panel.plot(-exponents, mean, "o-", color="black", linewidth=2.0, markersize=6,
               label="single iterates of runs at this rate")  # fmt: skip
    panel.plot([0, -exponents[-1]], [mean[0], mean[-1]], color=GREY, linewidth=1.0,
               linestyle=":", label="straight line")  # fmt: skip
    for n, entry in drawn["averages"].items():
        color, level = _COLORS.get(n, BLUE), float(np.mean(entry["loss"]))
        found = judgement.part(f"divisor_{n}")
        at = -np.log2([found.interval.value, found.wanted.low or 1.0, found.wanted.high or 1.0])
        panel.plot(at[1:], [level, level], color=color, linewidth=9, alpha=0.22,
                   solid_capstyle="butt")  # fmt: skip
        panel.plot([at[0], -np.log2(n)], [level, level], color=color, linestyle=(0, (2, 2)))
        panel.plot(-np.log2(entry["divisor"]), entry["loss"], "o", color=color, markersize=4)
        panel.plot([at[0]], [level], "D", color=color, markersize=9, zorder=4)
        panel.plot([-np.log2(n)], [level], "s", color=color, markersize=8, fillstyle="none")
        panel.annotate(
            f"{n} points: λ/{found.interval.value:.2g}", (at[1], level), xytext=(7, 0),
            textcoords="offset points", fontsize=9.5, color=color, ha="left", va="center",
        )  # fmt: skip
    for mark, fill, label in (
        ("D", "full", "average of n points, at the rate with its loss"),
        ("s", "none", "the same at λ/n"),
    ):
        panel.plot([], [], mark, color=BLUE, fillstyle=fill, label=label)
    panel.set_xticks(-exponents, [_rate(int(2**k)) for k in exponents])
    labels(panel, "learning rate, logarithmic", "training loss")
    panel.set_xlim(-exponents[-1] - 0.2, 0.2)
    legend(figure)
    return figure


# Predictions: A5 --------------------------------------------------------------------------------

_FAMILIES = {
    "ema": (BLUE, "EMA"),
    "swa": (ORANGE, "mean of the last"),
    "two_point": (GREEN, "two points"),
    "spaced": (PALETTE[3], "points with gaps"),
    "weights": ("black", "best weights"),
}


@draws(
    "A5",
    alt="Errors of predicted losses of many averages, on training and on held-out images",
    caption="A mark for each average, its shape by seed, with the band that was predicted; "
    "shaded: within what the median error must lie.",
)
def _draw_a5(judgement: Judgement) -> Figure:
    shown: set[str] = set()
    figure, axes = panels(1, len(judgement.drawn), 7.4, 3.8)
    for panel, (name, records) in zip(axes, judgement.drawn.items(), strict=True):
        limit = judgement.part(f"median_error_{name}").wanted.high or 0.0
        panel.axhspan(-limit, limit, color=_WANTED, zorder=0)
        panel.axhline(0.0, color=INK, linewidth=1.0)
        for seed, entry in enumerate(records):
            _errors(panel, entry, "osD^v"[seed % 5], shown)
        labels(panel, "measured loss", heading=f"{name.capitalize()} images")
    axes[0].set_ylabel("predicted above measured loss, %")
    legend(figure, 5)
    return figure


def _errors(panel: Axes, entry: Mapping[str, Any], mark: str, shown: set[str]) -> None:
    measured = entry["measured"]
    off = {key: 100.0 * (entry[key] / measured - 1.0) for key in ("predicted", "low", "high")}
    families = np.array(entry["family"])
    for family in dict.fromkeys(entry["family"]):
        color, label = _FAMILIES.get(family, (PALETTE[4], family))
        at = families == family
        bars = [(off["predicted"] - off["low"])[at], (off["high"] - off["predicted"])[at]]
        panel.errorbar(
            measured[at], off["predicted"][at], np.maximum(bars, 0.0), fmt=mark, color=color,
            markersize=4, linewidth=0.6, alpha=0.75, label=None if family in shown else label,
        )  # fmt: skip
        shown.add(family)


# Test against training loss: O2 -----------------------------------------------------------------


@draws(
    "O2",
    alt="Test against training loss of averages, low rates and decays, and their differences",
    caption="Left: below a curve means a lower test loss at equal training loss. Right: the "
    "differences with their 95 % intervals; black: the means that are judged.",
)
def _draw_o2(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    looks = {"low rates": ("black", "o"), "decays": (ORANGE, "^")}
    figure, (left, right) = panels(1, 2, 7.6, 4.0)
    for name, curves in drawn["curves"].items():
        color, mark = looks.get(name, (GREY, "o"))
        for i, (train, test) in enumerate(curves):
            left.plot(train, test, f"{mark}-", color=color, linewidth=0.9, markersize=3.5,
                      alpha=0.6, label=None if i else name)  # fmt: skip
    for i, points in enumerate(drawn["averages"]):
        train, test = np.array(list(points.values())).T
        left.plot(train, test, "D", color=BLUE, markersize=6, label=None if i else "averages")
    labels(left, "training loss", "test loss", "A mark a setting, a line a seed")
    _differences(right, judgement)
    legend(figure, 3)
    return figure


def _differences(panel: Axes, judgement: Judgement) -> None:
    """Draws the difference of every average from every curve, and the mean that is judged."""
    shown = [(f"all, {part.at}", part.interval, "black") for part in judgement.parts]
    for told in judgement.numbers:
        family, label = told.name.split("_", 2)[1:]
        against = {"rate": "low rates", "decay": "decays"}.get(family, family)
        shown.append((f"{label}, {against}", told.interval, BLUE))
    shown = shown[:14]
    panel.axvline(0.0, color=INK, linewidth=1.0)
    for place, (_, found, color) in enumerate(shown):
        interval_row(panel, place, found, color, "D", linewidth=3, alpha=0.5, markersize=5)
    rows(panel, [text for text, *_ in shown], -0.5, 8.5)
    labels(panel, "test loss at equal training loss", heading="Averages less the curve")
