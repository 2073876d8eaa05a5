"""The figure of a forecast, from its record alone: the run's curve, and where decays would end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from tf_lrtraj import records
from tf_lrtraj.records import Count
from tf_lrtraj.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    UNDRAWN,
    labels,
    panels,
    reason,
    style,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "figure", "read_forecast"]

_COLOURS = {"linear": ORANGE, "one_minus_sqrt": GREEN, "cosine": PALETTE[3]}
_TITLES = {"linear": "linear decay", "one_minus_sqrt": "1-√ decay", "cosine": "cosine decay"}


class _Curve(TypedDict):
    steps: list[float]
    losses: list[float]


class _Decay(TypedDict):
    shape: str
    length: Count
    end: Count
    loss: float
    low: float
    high: float
    average: float


class _Forecast(TypedDict):
    """The record, as far as the figure needs it."""

    format: Literal[1]
    level: float
    curve: _Curve
    decays: list[_Decay]


def read_forecast(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The record that `lrtraj-whatif --output` wrote.

    Raises:
        RecordError: if it is missing, damaged or of another format.
    """
    found: Mapping[str, Any] = records.read_json(path, _Forecast)
    return found


def draw(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the figure as SVG.

    Raises:
        RecordError: if the record lacks what the figure shows.
    """
    try:
        drawn = to_svg(figure(record))
    except UNDRAWN as error:
        raise records.RecordError(f"the forecast lacks {reason(error)}") from None
    records.write_atomically(path, drawn)


def figure(record: Mapping[str, Any]) -> Figure:
    """The constant curve, each decay's predicted end with its band, and the averages' losses."""
    curve, decays = record["curve"], record["decays"]
    steps, losses = np.asarray(curve["steps"]), np.asarray(curve["losses"])
    with style():
        result, (axes,) = panels(1, 1, 7.2, 4.6)
        axes.plot(steps, losses, color=GREY, linewidth=1.0, label="constant rate")
        left, right = _span(steps, decays)
        beside = _beside(decays, 0.006 * (right - left))
        seen: set[str] = set()
        for decay, shift in zip(decays, beside, strict=True):
            if not np.isfinite(decay["loss"]):
                continue
            colour = _COLOURS.get(decay["shape"], BLUE)
            label = _TITLES.get(decay["shape"], decay["shape"])
            begin, end = decay["end"] - decay["length"], decay["end"] + shift
            raw = float(np.interp(begin, steps, losses))
            axes.plot([begin, end], [raw, decay["loss"]], color=colour, linewidth=0.7, alpha=0.4)
            axes.errorbar(
                [end],
                [decay["loss"]],
                yerr=[[decay["loss"] - decay["low"]], [decay["high"] - decay["loss"]]],
                fmt="o",
                color=colour,
                markersize=4.0,
                linewidth=1.0,
                capsize=2.0,
                label=label if label not in seen else None,
            )
            if np.isfinite(decay["average"]):
                axes.plot(
                    [end],
                    [decay["average"]],
                    "_",
                    color=BLUE,
                    markersize=7.0,
                    label=None if seen else "average of equal weights",
                )
            seen.add(label)
        axes.set_xlim(left, right)
        _frame(axes, steps[steps >= left], losses[steps >= left], decays)
        labels(axes, "step", "loss", f"What decays would reach, {record['level']:.0%} bands")
        axes.legend(frameon=False, fontsize=8)
    return result


def _span(steps: np.ndarray, decays: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """From a little before the first decay to a little after the last one."""
    first = min((d["end"] - d["length"] for d in decays), default=float(steps[0]))
    last = max([d["end"] for d in decays] + [float(steps[-1])])
    left = max(0.8 * first, float(steps[0]))
    return left, last + 0.04 * (last - left)


def _beside(decays: Sequence[Mapping[str, Any]], distance: float) -> list[float]:
    """Shifts that draw decays of one end side by side."""
    ends = [decay["end"] for decay in decays]
    found = []
    for index, end in enumerate(ends):
        found.append((ends[:index].count(end) - 0.5 * (ends.count(end) - 1)) * distance)
    return found


def _frame(
    axes: Axes, steps: np.ndarray, losses: np.ndarray, decays: Sequence[Mapping[str, Any]]
) -> None:
    """Shows the losses in which decays begin and end, not the run's first fall."""
    there = [decay["low"] for decay in decays if np.isfinite(decay["low"])]
    if not there or not steps.size:
        return
    low, high = min(*there, float(losses.min())), float(np.quantile(losses, 0.98))
    axes.set_ylim(low - 0.06 * (high - low), high + 0.1 * (high - low))
