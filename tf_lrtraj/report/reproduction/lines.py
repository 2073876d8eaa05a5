"""Figures of single steps on mini-batches: against the trained model, and against other batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREEN, GREY, ORANGE, panels, style, title
from tf_lrtraj.report.probes.bands import band, label_ends
from tf_lrtraj.report.reproduction.marks import Tasks, by_seed, column, level, plain_log, settle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVES = {
    "train": (BLUE, "the step's own batch"),
    "held_out": (ORANGE, "held-out batches"),
    "others": (GREEN, "other training batches"),
}


def _by_step(lines: Sequence[ArrayRecord]) -> dict[int, list[ArrayRecord]]:
    found: dict[int, list[ArrayRecord]] = {}
    for record in lines:
        found.setdefault(int(record.about.get("step", 0)), []).append(record)
    return dict(sorted(found.items()))


# Against the trained model --------------------------------------------------------------------


def draw_lowest(tasks: Tasks, lines: Sequence[ArrayRecord]) -> Figure | None:
    """Lowest loss of each batch along its own step, beside the trained model's mean loss."""
    by_step = _by_step(lines)
    if not by_step:
        return None
    with style():
        figure, (panel,) = panels(1, 1, 6.6, 4.0)
        for place, records in enumerate(by_step.values()):
            curves = [np.where(np.isfinite(r.values["train"]), r.values["train"], np.nan)
                      for r in records]  # fmt: skip
            column(panel, place - 0.17, np.concatenate([c[0] for c in curves]).tolist(), GREY,
                   spread=0.08)  # fmt: skip
            lowest = np.concatenate([np.nanmin(c, axis=0) for c in curves])
            column(panel, place + 0.17, lowest.tolist(), BLUE, spread=0.08)
        panel.set_xlim(-0.6, len(by_step) - 0.4)
        panel.set_ylim(0.0, None)
        ends = {}
        trained = by_seed(tasks.get("budget", {}), "loss", method="conventional", set="train_part")
        if trained:
            mean = level(panel, trained, "black")
            ends["trained model"] = (0.0, mean, "black")
        panel.set_xticks(range(len(by_step)), [f"step {step:,}" for step in by_step])
        panel.grid(axis="x", visible=False)
        panel.set_ylabel("loss of the batch")
        for color, label in ((GREY, "before the step"), (BLUE, "lowest along the step")):
            panel.plot([], [], "o", color=color, label=label)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        title(panel, "One step on a batch, at its best rate")
        settle(panel)
        label_ends(panel, ends)
    return figure


def caption_lowest(tasks: Tasks, lines: Sequence[ArrayRecord]) -> str:
    """What the figure shows, in words."""
    del tasks, lines
    return (
        "Loss of single training batches before one step along their own gradient, and the lowest "
        "along it (dots: batches; bars: mean with its 95 % interval). Dashed: mean training loss "
        "of the conventional run at the end of its budget."
    )


# Against other batches ------------------------------------------------------------------------


def draw_held_out(lines: Sequence[ArrayRecord]) -> Figure | None:
    """Best rate and gain of a step, on its own batch and on others, at every point."""
    by_step = _by_step(lines)
    if not by_step:
        return None
    with style():
        figure, (left, right) = panels(1, 2, 9.6, 3.8)
        for panel, name in ((left, "best_rate"), (right, "gain")):
            _compared(panel, by_step, name)
        left.set_ylabel("best rate of the step")
        right.set_ylabel("gain: drop of the loss")
        title(left, "The rate that is best for …")
        title(right, "… and how much the loss falls there")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8
        )
    return figure


def _compared(panel: Axes, by_step: dict[int, list[ArrayRecord]], name: str) -> None:
    lowest = np.inf
    for k, (curve, (color, label)) in enumerate(_CURVES.items()):
        for place, records in enumerate(by_step.values()):
            for record in records:
                row = np.flatnonzero(record.coordinates["curve"] == curve)
                if not row.size:
                    continue
                value, error = (
                    float(record.values[f"mean_{name}{end}"][row[0]]) for end in ("", "_se")
                )
                if not np.isfinite(value) or value <= 0.0:
                    continue
                bar = min(2.0 * error, 0.9 * value) if np.isfinite(error) else 0.0
                lowest = min(lowest, value - bar)
                panel.errorbar(
                    [place + 0.16 * (k - 1)], [value], yerr=[bar], fmt="o", color=color,
                    markersize=5, linewidth=1.2, label=label,
                )  # fmt: skip
                label = ""
    panel.set_xlim(-0.6, len(by_step) - 0.4)
    if np.isfinite(lowest):
        plain_log(panel, "y")
    panel.set_xticks(range(len(by_step)), [f"step {step:,}" for step in by_step])
    panel.grid(axis="x", visible=False)


def caption_held_out(lines: Sequence[ArrayRecord]) -> str:
    """What the figure shows, in words."""
    del lines
    return (
        "The same steps, seen by the batch that gave the gradient, by held-out batches and by "
        "other training batches: landmarks of the mean curves, with two standard errors, on a log "
        "scale; a mark that is missing means no gain."
    )


# One step without momentum --------------------------------------------------------------------


def draw_one_step(tasks: Tasks, lines: Sequence[ArrayRecord]) -> Figure | None:
    """Mean change of other batches' loss over one step, against the rate in units of λ′."""
    rate = _own_rate(tasks, lines)
    shown = [r for r in lines if r.complete and "held_out" in r.values]
    if not shown or rate is None:
        return None
    names = [name for name in _CURVES if all(name in r.values for r in shown)]
    curves = {name: [_change(r, name, rate) for r in shown] for name in names}
    with style():
        figure, (panel,) = panels(1, 1, 7.2, 4.2)
        ends: dict[str, tuple[float, float, str]] = {}
        for name in names:
            ends |= _mean_curve(panel, curves[name], _CURVES[name][0], _label(shown[0], name))
        others = [y for name in names if name != "train" for _, y in curves[name]]
        depth = min(float(np.min(y[np.isfinite(y)], initial=0.0)) for y in others)
        height = max(float(np.max(y[np.isfinite(y)], initial=0.0)) for y in others)
        room = max(height, -depth) or 1.0
        panel.set_ylim(min(2.2 * depth, -0.6 * room), 1.1 * room)
        panel.set_xlim(0.0, max(float(x[-1]) for x, _ in curves["held_out"]))
        panel.axhline(0.0, color="black", linewidth=0.8)
        for place, label in ((1.0, "model: gone at λ′"), (0.5, "model: best at λ′/2")):
            panel.axvline(place, color=GREY, linewidth=1.0, linestyle=(0, (4, 2)))
            panel.annotate(
                label, (place, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -8),
                textcoords="offset points", fontsize=8, color=GREY,
            )  # fmt: skip
        panel.set_xlabel("rate of the step / rate of the run, λ′")
        panel.set_ylabel("change of the loss")
        title(panel, "One more step from the stationary state, no momentum")
        label_ends(panel, ends)
    return figure


def _own_rate(tasks: Tasks, lines: Sequence[ArrayRecord]) -> float | None:
    abouts: list[Any] = [r.get("about", {}) for _, r in sorted(tasks.get("one_step", {}).items())]
    for about in [*abouts, *(record.about for record in lines)]:
        rate = about.get("learning_rate")
        if isinstance(rate, (int, float)) and rate > 0:
            return float(rate)
    return None


def _label(record: ArrayRecord, name: str) -> str:
    """By which images a curve was measured on, where the record says."""
    told = {"train": "training images", "test": "test images"}
    if name == "train":
        return "the step's own batch"
    return told.get(str(record.about.get(f"{name}_set")), _CURVES[name][1])


def _change(record: ArrayRecord, name: str, rate: float) -> tuple[np.ndarray, np.ndarray]:
    each = record.values[name]
    with np.errstate(invalid="ignore"):
        change = (each - each[:1]).mean(axis=1)
    return record.coordinates["rate"] / rate, np.where(np.isfinite(change), change, np.nan)


def _mean_curve(
    panel: Axes, curves: list[tuple[np.ndarray, np.ndarray]], color: str, label: str
) -> dict[str, tuple[float, float, str]]:
    for x, y in curves:
        panel.plot(x, y, color=color, linewidth=0.6, alpha=0.35)
    grid = max((x for x, _ in curves), key=len)
    values = np.array([np.interp(grid, x, y) for x, y in curves])
    mean = values.mean(axis=0)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else mean * np.nan
    band(panel, grid, mean, error, color)
    known = np.flatnonzero(np.isfinite(mean))  # a loss may overflow at large rates
    return {label: (float(grid[-1]), float(mean[known[-1]]), color)} if known.size else {}


def caption_one_step(tasks: Tasks, lines: Sequence[ArrayRecord]) -> str:
    """What the figure shows, in words."""
    del tasks
    count = sum(r.complete for r in lines)
    return (
        "Change of the loss of other batches over one step along the gradient of a mini-batch; "
        f"thin: the mean at each of {count} points of the run, thick: mean over points with two "
        "standard errors. The model says: the gain of unseen training batches is best at λ′/2 and "
        "gone at λ′."
    )
