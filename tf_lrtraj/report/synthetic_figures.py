"""Figures of the synthetic experiments, from their records alone.

`draw` reads the folder that `tf_lrtraj.runs.synthetic_run.run` wrote and adds one SVG per
experiment; each figure is also a pure function from a record to a matplotlib figure.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj import records
from tf_lrtraj.records.archives import load_arrays
from tf_lrtraj.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    UNDRAWN,
    labels,
    legend,
    panels,
    reason,
    style,
    title,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {"ema": "EMA", "swa": "SWA", "two_point": "two points"}


def read_record(folder: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """Reads the record of one experiment.

    Raises:
        records.RecordError: if it is missing or damaged.
    """
    folder = pathlib.Path(folder)
    try:
        record: dict[str, Any] = dict(load_arrays(folder / f"{name}.npz"))
    except (OSError, ValueError) as error:
        raise records.RecordError(f"{folder / name}.npz cannot be read: {error}") from None
    return record | records.read_json(folder / f"{name}.json", dict[str, Any])


def draw(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Draws every experiment with a record in the folder; returns the files written.

    Raises:
        records.RecordError: if there is none, or one is damaged.
    """
    folder = pathlib.Path(folder)
    present = [name for name in FIGURES if (folder / f"{name}.json").exists()]
    if not present:
        raise records.RecordError(f"{folder} holds no record of a synthetic experiment.")
    drawn = {folder / f"{name}.svg": _drawn(folder, name) for name in present}
    for path, text in drawn.items():  # after all of them could be drawn
        records.write_atomically(path, text)
    return list(drawn)


def _drawn(folder: pathlib.Path, name: str) -> str:
    record = read_record(folder, name)
    try:
        return to_svg(FIGURES[name](record))
    except UNDRAWN as error:
        raise records.RecordError(
            f"{folder / name}.json and .npz do not hold what the figure needs: {reason(error)}"
        ) from None


def two_time_scales(record: Mapping[str, Any]) -> Figure:
    """Left: the loss against steps.  Right: single runs in the plane of a fast and a slow mode."""
    lines = [
        ("large", GREY, f"rate {record['large_rate']:g}"),
        ("small", ORANGE, f"rate {record['small_rate']:.2g}"),
        ("ema", BLUE, f"rate {record['large_rate']:g}, EMA of decay {record['decay']:g}"),
    ]
    with style():
        figure, (left, right) = panels(1, 2, 9.6, 3.9)
        shown = record["simulated_steps"]
        for name, colour, label in lines:
            losses = record[f"{name}_losses"]
            steps = np.unique(np.geomspace(1, losses.size - 1, 400).astype(int))
            left.plot(steps, losses[steps], color=colour, linewidth=1.7, label=label)
            left.errorbar(
                shown,
                record[f"{name}_simulated"],
                2.0 * record[f"{name}_stderr"],
                fmt="o",
                color=colour,
                markersize=2.6,
                linewidth=0.7,
            )
            reached = record[f"{name}_steps_to_level"]
            if reached is not None:
                left.plot([reached] * 2, [0.0, record["level"]], color=colour, linestyle=":")
                left.annotate(
                    f"{reached:,} steps",
                    (reached, 0.62 * record["level"]),
                    xytext=(-3, 0),
                    textcoords="offset points",
                    color=colour,
                    fontsize=8,
                    ha="right",
                )
        left.axhline(record["level"], color="#999999", linewidth=0.7, linestyle=":")
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_ylim(0.45 * record["level"], None)
        labels(left, "step", "expected excess loss")
        left.legend(frameon=False, fontsize=8, loc="center left")
        title(left, "As low as the small rate, as fast as the large one")

        for name, colour, label in lines:
            path = record[f"{name}_path"]
            width = 0.5 if name == "large" else 1.6
            right.plot(path[:, 1], path[:, 0], color=colour, linewidth=width, label=label)
            right.plot(path[-1:, 1], path[-1:, 0], "o", color=colour, markersize=5)
        right.plot(0.0, 0.0, "+", color="black", markersize=11, markeredgewidth=1.5)
        right.annotate(
            "minimum", (0.0, 0.0), xytext=(-16, -18), textcoords="offset points", fontsize=8,
            ha="center",
        )  # fmt: skip
        right.invert_xaxis()
        labels(
            right,
            "slow direction",
            "fast direction",
            f"One run each, {len(record['ema_path']) - 1} steps; dots: the ends",
        )
    return figure


def averaging_against_schedule(record: Mapping[str, Any]) -> Figure:
    """Draws for each average its loss and those of scheduled runs, and the schedules below."""
    names = record["averages"]
    kinds = [
        ("flat", ORANGE, "schedule exact for frozen gradients"),
        ("reference", GREEN, f"… at curvature {record['reference_curvature']:g}"),
        ("best", "black", "… fitted to the end on the spectrum"),
    ]
    with style():
        figure, axes = panels(2, len(names), 3.6 * len(names), 5.4)
        for column, name in enumerate(names):
            top, bottom = axes[column], axes[len(names) + column]
            raw, losses = record["raw_losses"], record[f"{name}_losses"]
            steps = np.arange(raw.size)
            top.plot(steps, raw, color=GREY, linewidth=1.2, label="constant rate")
            top.plot(steps, losses, color=BLUE, linewidth=2.0, label="its average")
            bottom.axhline(record["rate"], color=GREY, linewidth=1.2)
            for kind, colour, label in kinds:
                top.plot(
                    steps, record[f"{name}_{kind}_losses"], color=colour, linewidth=1.2,
                    dashes=(4, 2), label=label,
                )  # fmt: skip
                bottom.plot(record[f"{name}_{kind}_schedule"], color=colour, linewidth=1.3)
            top.set_yscale("log")
            finite = [losses[-1], *(record[f"{name}_{kind}_losses"][-1] for kind, *_ in kinds)]
            top.set_ylim(0.7 * min(finite), 3.0 * float(raw[-1]))
            bottom.set_xlabel("step")
            title(top, _TITLES.get(name, name))
        axes[0].set_ylabel("expected excess loss")
        axes[len(names)].set_ylabel("learning rate")
        legend(figure, 3, panel=axes[0], loc="outside lower center", size=8.0)
    return figure


def averaging_length(record: Mapping[str, Any]) -> Figure:
    """Draws the final loss by the length of the average, per rate; bias and variance are thin."""
    lengths, families = record["lengths"], record["families"]
    colours = (BLUE, ORANGE, GREEN, "#CC79A7", "black")
    with style():
        figure, axes = panels(1, len(families), 4.8 * len(families), 3.8)
        for panel, family in zip(axes, families, strict=True):
            bias, variance = record[f"{family}_bias"], record[f"{family}_variance"]
            for i, rate in enumerate(record["rates"].tolist()):
                colour = colours[i % len(colours)]
                total = bias[i] + variance[i]
                panel.plot(lengths, total, color=colour, linewidth=1.9, label=f"rate {rate:g}")
                panel.plot(lengths, bias[i], color=colour, linewidth=0.8, dashes=(1, 1.5))
                panel.plot(lengths, variance[i], color=colour, linewidth=0.8, dashes=(4, 2))
                best = int(np.argmin(total))
                panel.plot(lengths[best], total[best], "o", color=colour, markersize=5)
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_ylim(0.3 * float(np.min(bias + variance)), None)
            labels(
                panel,
                "length of the average, steps",
                heading=f"{_TITLES.get(family, family)}; dashed: noise, dotted: way still to go",
            )
        axes[0].set_ylabel("expected excess loss at the end")
        axes[0].legend(frameon=False, fontsize=8)
    return figure


def single_runs(record: Mapping[str, Any]) -> Figure:
    """Draws six panels: one-step curves, their zero, distance, displacement, shell, two runs."""
    with style():
        figure, axes = panels(2, 3, 11.0, 6.4)
        steps, zero, distance, lag, shell, two = axes
        rates = record["step_rates"]
        for where, colour in (("far", GREY), ("settled", BLUE)):
            for kind, dash in (("same", ()), ("other", (4, 2))):
                losses = record[f"{where}_{kind}_losses"]
                batch = "the same batch" if kind == "same" else "another batch"
                steps.plot(
                    rates, losses / losses[0], color=colour, dashes=dash, linewidth=1.6,
                    label=f"{where}, {batch}",
                )  # fmt: skip
        steps.set_ylim(0.0, 2.0)
        labels(steps, "rate of one step", "batch loss, relative")
        steps.legend(frameon=False, fontsize=7.5)
        title(steps, "One step: its own batch and another")

        _power_panel(zero, record, "zero_crossings", "held-out gain is 0 at")
        title(zero, "… gains nothing at the run's own rate")
        _power_panel(distance, record, "distances", "distance to the minimum")
        title(distance, f"Distance: exponent {record['distance_exponent']:.2f} in the rate")

        lag.plot(record["lags"], record["displacement"], color=BLUE, linewidth=1.7)
        lag.plot(record["lags"], record["displacement_measured"], "o", color="black", markersize=3)
        lag.set_xscale("log")
        lag.set_yscale("log")
        labels(
            lag, "lag, steps", "mean squared displacement", "Stationary: displacement levels off"
        )

        bins = np.geomspace(
            min(record["average_positions"].min(), record["iterate_positions"].min()),
            max(record["average_positions"].max(), record["iterate_positions"].max()),
            60,
        )
        for name, colour in (("iterate", GREY), ("average", BLUE)):
            shell.hist(
                record[f"{name}_positions"],
                bins.tolist(),
                color=colour,
                alpha=0.6,
                label=f"{name}s",
            )
        shell.axvline(1.0, color="black", linewidth=1.0)
        shell.set_xscale("log")
        labels(shell, "position against the shell (1: on it)", "points")
        shell.legend(frameon=False, fontsize=8)
        title(shell, "Iterates on the shell, averages inside")

        for name, colour in (("shared", ORANGE), ("independent", GREEN)):
            exact = record[f"{name}_square_distance"]
            two.plot(exact, color=colour, linewidth=1.7, label=f"{name} batches")
            measured = record[f"{name}_square_distance_measured"]
            two.plot(measured, color=colour, linewidth=0.6, alpha=0.7)
        two.set_yscale("log")
        labels(two, "step", "squared distance of two runs")
        two.legend(frameon=False, fontsize=8)
        title(two, "Two runs from opposite starts")
    return figure


def _power_panel(axes: Axes, record: Mapping[str, Any], name: str, label: str) -> None:
    axes.plot(record["rates"], record[name], color=BLUE, linewidth=1.7, label="formula")
    axes.plot(record["rates"], record[f"{name}_measured"], "o", color="black", label="runs")
    axes.set_xscale("log")
    axes.set_yscale("log")
    labels(axes, "learning rate of the run", label)
    axes.legend(frameon=False, fontsize=8)


FIGURES: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
    "two_time_scales": two_time_scales,
    "averaging_against_schedule": averaging_against_schedule,
    "averaging_length": averaging_length,
    "single_runs": single_runs,
}
