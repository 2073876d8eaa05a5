"""The figure of the advisor's results, from its records: predicted and measured losses.

`draw` reads the folder that `lrtraj-average --advise` wrote (advice.json and advice.npz)
and adds advice.svg.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from tf_lrtraj import records
from tf_lrtraj.records import Count
from tf_lrtraj.records.archives import load_arrays
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
    title,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "figure", "read_advice"]


class _Snapshots(TypedDict):
    every: Count


class _Prediction(TypedDict):
    averages: Count


class _Average(TypedDict):
    name: str
    family: str
    role: str
    mean_age_updates: float
    predicted: float
    low: float
    high: float


class _Advice(TypedDict):
    """The entries of `advice.json` that the figure needs."""

    format: Literal[1]
    recommended: str
    sets: list[str]
    snapshots: _Snapshots
    averages: list[_Average]
    accuracy_of_prediction: _Prediction
    level: float
    raw_loss: float


_COLOURS = {
    "ema": BLUE,
    "swa": ORANGE,
    "two_point": GREEN,
    "spaced": PALETTE[3],
    "weights": "#000000",
    "raw": GREY,
}
_TITLES = {
    "ema": "EMA",
    "swa": "mean of the last",
    "two_point": "two points",
    "spaced": "points with gaps",
    "weights": "best weights",
    "raw": "raw weights",
}


def read_advice(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the advisor's record and arrays.

    Raises:
        RecordError: if it is missing, damaged or of another format.
    """
    folder = pathlib.Path(folder)
    record = records.read_json(folder / "advice.json", _Advice)
    try:
        found: dict[str, Any] = dict(load_arrays(folder / "advice.npz"))
    except (OSError, ValueError) as error:
        raise records.RecordError(f"{folder / 'advice.npz'} cannot be read: {error}") from None
    return {**record, "arrays": found}


def draw(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Draws advice.svg in the folder of the records and returns its path.

    Raises:
        RecordError: as `read_advice`.
    """
    path = pathlib.Path(folder) / "advice.svg"
    advice = read_advice(folder)
    try:
        drawn = to_svg(figure(advice))
    except UNDRAWN as error:
        raise records.RecordError(f"the advice in {folder} lacks {reason(error)}") from None
    records.write_atomically(path, drawn)
    return path


def figure(record: Mapping[str, Any]) -> Figure:
    """Four panels: the sweep, predicted against measured, the gaps, the best weights."""
    with style():
        result, axes = panels(2, 2, 9.6, 7.0)
        for draw_panel, panel in zip((_sweep, _against, _gaps, _weights), axes, strict=True):
            draw_panel(panel, record)
    return result


def _sweep(axes: Axes, record: Mapping[str, Any]) -> None:
    arrays, every = record["arrays"], record["snapshots"]["every"]
    for family in ("ema", "swa", "two_point"):
        _, age, loss, low, high = arrays[f"curve_{family}"].T
        colour = _COLOURS[family]
        axes.plot(age * every, loss, color=colour, linewidth=1.6, label=_TITLES[family])
        axes.fill_between(age * every, low, high, color=colour, alpha=0.12, linewidth=0)
    for row in _measured(record):
        axes.plot(
            max(row["mean_age_updates"], 0.3 * every),
            row["measured"],
            marker=_marker(row, record),
            color=_COLOURS[row["family"]],
            markersize=5.5 if row["name"] != record["recommended"] else 10,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linestyle="none",
        )
    axes.axhline(record["raw_loss"], color=GREY, linewidth=1.0, dashes=(4, 2))
    axes.annotate(
        "raw weights", (0.99, record["raw_loss"]), xycoords=("axes fraction", "data"),
        xytext=(0, 2), textcoords="offset points", ha="right", fontsize=8,
        color=GREY,
    )  # fmt: skip
    axes.set_xscale("log")
    labels(axes, "mean age of the average, updates", f"loss, {record['sets'][0]}")
    axes.legend(frameon=False, fontsize=8)
    title(axes, f"Predicted with {record['level']:.0%} bands; marks: measured")


def _marker(row: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    if row["name"] == record["recommended"]:
        return "*"
    return "s" if row["role"] == "calibration" else "o"


def _measured(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [r for r in record["averages"] if isinstance(r.get("measured"), float)]


def _against(axes: Axes, record: Mapping[str, Any]) -> None:
    rows = _measured(record)
    seen: set[str] = set()
    for row in rows:
        label = _TITLES[row["family"]] if row["family"] not in seen else None
        seen.add(row["family"])
        axes.errorbar(
            row["measured"],
            row["predicted"],
            [[row["predicted"] - row["low"]], [row["high"] - row["predicted"]]],
            fmt=_marker(row, record),
            color=_COLOURS[row["family"]],
            markersize=4.5 if row["name"] != record["recommended"] else 9,
            linewidth=0.8,
            label=label,
        )
    if rows:
        ends = [min(r["measured"] for r in rows), max(r["measured"] for r in rows)]
        axes.plot(ends, ends, color="#999999", linewidth=0.8, zorder=0)
        axes.legend(frameon=False, fontsize=8)
    labels(axes, "measured loss", "predicted loss")
    found = record["accuracy_of_prediction"]
    text = "Predicted against measured"
    if found["averages"]:
        text += f": median error {found['median_relative_error']:.2%}"
    title(axes, text)


def _gaps(axes: Axes, record: Mapping[str, Any]) -> None:
    arrays, every = record["arrays"], record["snapshots"]["every"]
    curve = arrays["gap_curve"]
    axes.plot(arrays["lags"] * every, arrays["jensen_gaps"], "o", color=BLUE, markersize=3.5)
    axes.plot(np.arange(1, curve.size) * every, curve[1:], color=ORANGE, linewidth=1.6)
    axes.set_xscale("log")
    axes.set_ylim(min(0.0, float(arrays["jensen_gaps"].min())), None)
    labels(
        axes,
        "distance of two snapshots, updates",
        "gain of their midpoint",
        "Jensen gaps: measured pairs and fit",
    )


def _weights(axes: Axes, record: Mapping[str, Any]) -> None:
    arrays = record["arrays"]
    names = [row["name"] for row in record["averages"]]
    chosen = arrays["weights"][names.index(record["recommended"])]
    markers, stems, base = axes.stem(arrays["steps"], chosen, basefmt=" ")
    for part in (markers, stems, base):
        part.set_color(BLUE)
    markers.set_markersize(2.5)
    stems.set_linewidth(0.8)
    twin = axes.twinx()
    twin.spines["right"].set_visible(True)
    twin.grid(False)
    singles = arrays["singles"]
    twin.plot(arrays["steps"][singles], arrays["losses"][singles], color=GREY, linewidth=0.9)
    twin.set_ylabel("loss of single snapshots", color=GREY)
    labels(
        axes,
        "step of the snapshot",
        "weight",
        f"Weights of the recommended average, {record['recommended']}",
    )
