"""Figures of the stationary state: the √λ law, the shell, two trajectories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.report.drawing import BLUE, GREEN, GREY, ORANGE, PALETTE, panels, style, title
from tf_lrtraj.report.probes.bands import label_ends
from tf_lrtraj.report.reproduction.marks import (
    Tasks,
    array,
    by_seed,
    column,
    count_of,
    interval,
    known,
    name_of,
    percent,
    plain_log,
    rows,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AVERAGES = {"ema": BLUE, "swa": ORANGE, "two_point": GREEN}


# Distance against rate ------------------------------------------------------------------------


def draw_rates(tasks: Tasks, power: float | None = None) -> Figure | None:
    """Distance of iterates from their centre against the rate, with a power law and √λ.

    Args:
        tasks: records.
        power: of the rate, as fitted; None draws √λ alone.
    """
    records = tasks.get("rates", {})
    rates = known(records, "learning_rate")
    if not rates:
        return None
    with style():
        figure, (panel,) = panels(1, 1, 6.0, 4.0)
        means = []
        for rate in rates:
            distances, before = (
                _roots(by_seed(records, "squared_distance", learning_rate=float(rate), half=half))
                for half in (2, 1)
            )
            panel.plot([0.97 * rate] * len(before), before, "o", color=GREY, markersize=4,
                       markerfacecolor="none")  # fmt: skip
            panel.plot([rate] * len(distances), distances, "o", color=BLUE, markersize=4, alpha=0.5)
            mean, half = interval(distances)
            means.append(mean)
            bar = None if not np.isfinite(half) else [min(half, 0.9 * mean)]
            panel.errorbar(
                [rate], [mean], yerr=bar, fmt="_", color=BLUE, markersize=14, capsize=3,
                markeredgewidth=2,
            )  # fmt: skip
        x, y = np.array(rates, np.float64), np.array(means)
        usable = (x > 0.0) & np.isfinite(y)
        if usable.sum() > 1:
            log_x, log_y = np.log(x[usable]), np.log(y[usable])
            lines = {"√λ": (0.5, "black", ":")}
            if power is not None:
                lines[f"power {power:.3g}"] = (power, BLUE, "-")
            ends = {}
            for label, (exponent, color, dash) in lines.items():
                # Through the middle of the measurements.
                curve = np.exp((log_y - exponent * log_x).mean()) * x**exponent
                panel.plot(x, curve, color=color, linewidth=1.3, linestyle=dash)
                ends[label] = (float(x[-1]), float(curve[-1]), color)
            plain_log(panel, "x", "y")
            label_ends(panel, ends)
        panel.set_xticks(rates, [f"{rate:.3g}" for rate in rates])
        panel.minorticks_off()
        panel.set_xlabel("learning rate λ")
        panel.set_ylabel("distance from the centre, in weights")
        title(panel, "Distance of iterates from their centre")
    return figure


def _roots(squares: dict[int, float]) -> list[float]:
    return [float(np.sqrt(value)) for value in squares.values() if value > 0.0]


def caption_rates(tasks: Tasks) -> str:
    """What the figure shows, in words."""
    return (
        "Root of the mean squared distance of the iterates from their own centre at several "
        "constant rates, corrected for the finite number of iterates. Dots: seeds, in the second "
        "half of each run (hollow: in the first); bars: mean with its 95 % interval; line: the "
        "fitted power; dotted: the √λ of the model."
    )


# The shell ------------------------------------------------------------------------------------


def draw_shell(tasks: Tasks) -> Figure | None:
    """Distances of iterates and of averages to the window's centre, and their losses."""
    records = tasks.get("shell", {})
    if not records:
        return None
    with style():
        figure, (left, right) = panels(1, 2, 10.2, 3.9)
        _distances(left, tasks)
        _losses(right, tasks)
    return figure


def _distances(panel: Axes, tasks: Tasks) -> None:
    ends = {}
    records = tasks["shell"]
    for number, (_, record) in enumerate(sorted(records.items())):
        steps, squares = array(record, "steps"), array(record, "squared_distance")
        if not steps.size or steps.size != squares.size:
            continue
        distances = np.sqrt(np.maximum(squares, 0.0))
        panel.plot(steps, distances, color=GREY, linewidth=0.9, alpha=0.8)
        ends["iterates"] = (float(steps[-1]), float(distances.mean()), GREY)
        spread = record.get("predicted_cv", record.get("about", {}).get("predicted_cv"))
        if number == 0 and isinstance(spread, (int, float)):
            # The coefficient of variation is of squares; that of the distance is half of it.
            middle = float(np.sqrt(squares.mean()))
            panel.axhspan(
                middle * (1.0 - 0.5 * spread), middle * (1.0 + 0.5 * spread), color=PALETTE[5],
                alpha=0.35, linewidth=0, zorder=0,
            )  # fmt: skip
            ends["expected shell"] = (float(steps[-1]), middle * (1 + 0.5 * spread), "#9a6a00")
    for name, color in _AVERAGES.items():
        squares_of = by_seed(records, "squared_distance", average=name)
        if squares_of:
            mean = float(np.mean(np.sqrt(list(squares_of.values()))))
            panel.axhline(mean, color=color, linewidth=1.6)
            ends[name_of(name)] = (0.0, mean, color)
    panel.set_ylim(0.0, None)
    panel.set_xlabel("step")
    panel.set_ylabel("distance from the centre, in weights")
    title(panel, "Iterates and averages")
    label_ends(panel, ends)


def _losses(panel: Axes, tasks: Tasks) -> None:
    names = [name for name in ("raw", *_AVERAGES) if _loss_of(tasks, name)]
    for place, name in enumerate(names):
        column(panel, place, _loss_of(tasks, name), _AVERAGES.get(name, GREY))
    panel.set_xticks(range(len(names)), [name_of(name) for name in names])
    panel.set_xlim(-0.6, max(len(names), 1) - 0.4)
    panel.grid(axis="x", visible=False)
    panel.set_ylabel("training loss")
    title(panel, "Training loss")


def _loss_of(tasks: Tasks, name: str) -> dict[int, float]:
    """From the shell's own rows, or from the task that measured all averages."""
    found = by_seed(tasks["shell"], "loss", average=name)
    if found:
        return found
    averages = tasks.get("averages", {})
    return by_seed(averages, "loss", average=name, policy="recompute", set="train")


def caption_shell(tasks: Tasks) -> str:
    """What the figure shows, and how far the spread is from what the model expects."""
    text = (
        "Left: distance of iterates (grey, a line for each seed) and of averages from the mean "
        "of the window. Right: their training loss (dots: seeds; bars: mean with 95 % interval)."
    )
    spreads = []
    for _, record in sorted(tasks.get("shell", {}).items()):
        squares = array(record, "squared_distance")
        spread = record.get("predicted_cv", record.get("about", {}).get("predicted_cv"))
        if isinstance(spread, (int, float)) and squares.size > 1 and spread > 0.0:
            spreads.append((float(squares.std(ddof=1) / squares.mean()), float(spread)))
    if spreads:
        measured, expected = (float(np.mean(side)) for side in zip(*spreads, strict=True))
        text += (
            " Shaded: the spread expected from the number of effective directions, "
            f"{percent(expected)} of the squared distance; measured: {percent(measured)}."
        )
    return text


# Two trajectories -----------------------------------------------------------------------------


def draw_pairs(tasks: Tasks) -> Figure | None:
    """Squared distance between two runs against steps, on shared and on independent batches."""
    records = tasks.get("pairs", {})
    kinds = [k for k in ("shared", "independent") if k in known(records, "batches")]
    if not kinds:
        return None
    rates = known(records, "learning_rate")
    with style():
        figure, axes = panels(1, len(kinds), 1.4 + 4.5 * len(kinds), 3.8)
        for panel, kind in zip(axes, kinds, strict=True):
            ends = {}
            for i, rate in enumerate(rates):
                color = PALETTE[i % len(PALETTE)]
                for _, record in sorted(records.items()):
                    found = [
                        (int(row["step"]), float(row["squared_distance"]))
                        for row in rows(record, batches=kind, learning_rate=float(rate))
                        if float(row["squared_distance"]) > 0.0
                    ]
                    if found:
                        steps, squares = zip(*sorted(found), strict=True)
                        panel.plot(steps, squares, color=color, linewidth=1.4, alpha=0.85)
                        ends[f"rate {rate:.3g}"] = (float(steps[-1]), float(squares[-1]), color)
            plain_log(panel, "y")
            panel.set_xlabel("step since the fork")
            title(panel, f"{kind.capitalize()} batches")
            label_ends(panel, ends)
        axes[0].set_ylabel("squared distance of two runs")
    return figure


def caption_pairs(tasks: Tasks) -> str:
    """What the figure shows, in words."""
    seeds = len(tasks.get("pairs", {}))
    return (
        "Two runs forked apart, then trained on the same batches (their difference should shrink) "
        "or on independent ones (it should settle at a level that grows with the rate); "
        f"{count_of(seeds)}."
    )
