"""Figures of the run that everything else starts from: has its loss levelled off?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.report.drawing import BLUE, GREY, ORANGE, panels, style, title
from tf_lrtraj.report.probes.bands import band, label_ends
from tf_lrtraj.report.reproduction.marks import (
    Tasks,
    array,
    count_of,
    interval,
    plain_log,
    rows,
    settle,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 400  # points of a curve
_SETS = (("train", BLUE, "training"), ("test", ORANGE, "test"))


def draw_levels(tasks: Tasks) -> Figure | None:
    """Batch loss from the first step, losses of single iterates in the window, and norms."""
    base, levels = tasks.get("base", {}), tasks.get("levels", {})
    if not base and not levels:
        return None
    with style():
        figure, (whole, window, norm) = panels(1, 3, 11.4, 3.5)
        _whole(whole, tasks)
        _window(window, tasks)
        _norm(norm, tasks)
    return figure


def caption_levels(tasks: Tasks) -> str:
    """What the figure shows, in words."""
    seeds = len(tasks.get("base", {}) or tasks.get("levels", {}))
    return (
        f"The constant-rate run, {count_of(seeds)}. Left: loss of the mini-batches; "
        "the shaded part is the window in which everything is measured. Middle: loss of single "
        "iterates over the window (dots: seeds; band: 95 % interval of the mean over seeds). "
        "Right: squared norm of the weights, relative to the window's mean."
    )


def _about(tasks: Tasks, key: str) -> float:
    for record in tasks.get("base", {}).values():
        if key in record.get("about", {}):
            return float(record["about"][key])
    return float("nan")


def _thinned(values: np.ndarray) -> np.ndarray:
    """Means of equal blocks, at most so many as a panel can show."""
    size = -(-values.size // _MOST)
    return np.array([values[i : i + size].mean() for i in range(0, values.size, size)])


def _whole(panel: Axes, tasks: Tasks) -> None:
    losses = []
    for record in tasks.get("base", {}).values():
        steps, loss = array(record, "steps"), array(record, "batch_loss")
        if steps.size and steps.size == loss.size:
            steps, loss = _thinned(steps), _thinned(loss)
            panel.plot(steps, loss, color=GREY, linewidth=0.6, alpha=0.6)
            losses.append((steps, loss))
    if len({steps.tobytes() for steps, _ in losses}) == 1:
        panel.plot(losses[0][0], np.mean([y for _, y in losses], 0), color=BLUE, linewidth=1.2)
    burn_in, length = _about(tasks, "burn_in"), _about(tasks, "window")
    if np.isfinite(burn_in) and np.isfinite(length):
        panel.axvspan(burn_in, burn_in + length, color=BLUE, alpha=0.08, linewidth=0)
    if losses and all((loss > 0.0).all() for _, loss in losses):
        plain_log(panel, "y")
    panel.set_xlabel("step")
    panel.set_ylabel("mini-batch loss")
    title(panel, "From the first step")


def _window(panel: Axes, tasks: Tasks) -> None:
    ends = {}
    for name, color, label in _SETS:
        at: dict[int, list[float]] = {}
        for record in tasks.get("levels", {}).values():
            for row in rows(record, set=name):
                at.setdefault(int(row["step"]), []).append(float(row["loss"]))
        if not at:
            continue
        steps = sorted(at)
        means, halves = zip(*(interval(at[step]) for step in steps), strict=True)
        for step in steps:
            count = len(at[step])
            panel.plot([step] * count, at[step], "o", color=color, markersize=2.6, alpha=0.5)
        band(panel, steps, means, 0.5 * np.array(halves), color)
        ends[label] = (float(steps[-1]), float(means[-1]), color)
    settle(panel)
    panel.set_xlabel("step")
    panel.set_ylabel("loss of single iterates")
    title(panel, "In the window: all images")
    label_ends(panel, ends)


def _norm(panel: Axes, tasks: Tasks) -> None:
    furthest = 0.02
    for record in tasks.get("base", {}).values():
        steps, norms = array(record, "snapshot_steps"), array(record, "squared_norm")
        if steps.size and steps.size == norms.size and norms.mean() > 0.0:
            relative = norms / norms.mean() - 1.0
            furthest = max(furthest, 1.3 * float(np.abs(relative).max()))
            panel.plot(steps, 100.0 * relative, color=BLUE, linewidth=1.0, alpha=0.7)
    panel.axhline(0.0, color="#999999", linewidth=0.8)
    panel.set_ylim(-100.0 * furthest, 100.0 * furthest)
    panel.set_xlabel("step")
    panel.set_ylabel("squared norm, % off its mean")
    title(panel, "In the window: norm of the weights")


def draw_displacement(tasks: Tasks) -> Figure | None:
    """Mean squared displacement against lag, seed by seed, beside that of a random walk."""
    kinds = {kind: _curves(tasks, kind) for kind in _DISPLACEMENTS}
    kinds = {kind: found for kind, found in kinds.items() if found}
    if not kinds:
        return None
    with style():
        figure, axes = panels(1, len(kinds), 1.2 + 4.6 * len(kinds), 3.8)
        for panel, (kind, found) in zip(axes, kinds.items(), strict=True):
            _against_lag(panel, found)
            title(panel, _DISPLACEMENTS[kind])
        axes[0].set_ylabel("mean squared displacement")
    return figure


_Curve = tuple[np.ndarray, np.ndarray, np.ndarray]
_DISPLACEMENTS = {"": "Displacement of the weights", "filters_": "… of filters over their norms"}


def _curves(tasks: Tasks, kind: str) -> list[_Curve]:
    """(lags, mean, standard error) per seed."""
    found = []
    for _, record in sorted(tasks.get("displacement", {}).items()):
        lags, mean = array(record, "lags"), array(record, f"{kind}mean_squared")
        error = array(record, f"{kind}standard_error")
        good = mean > 0.0
        if lags.size == mean.size and good.any():
            error = error if error.size == mean.size else np.full(mean.size, np.nan)
            found.append((lags[good], mean[good], error[good]))
    return found


def _against_lag(panel: Axes, found: list[_Curve]) -> None:
    for lags, mean, error in found:
        # On a log scale a band may not reach 0.
        shown = np.where(np.isfinite(error), np.minimum(error, 0.45 * mean), np.nan)
        band(
            panel, lags, mean, shown, BLUE,
            width=1.1, marker="o", markersize=2.6,
        )  # fmt: skip
    lags, mean, _ = found[0]
    tops = max(float(mean.max()) for _, mean, _ in found)
    walk = mean[0] * lags / lags[0]
    panel.plot(lags, walk, color=GREY, linewidth=1.0, linestyle=":")
    at = int(np.flatnonzero(walk <= 1.2 * tops)[-1])
    panel.annotate(
        "random walk", (lags[at], walk[at]), xytext=(-6, 2), textcoords="offset points",
        fontsize=8, color=GREY, ha="right",
    )  # fmt: skip
    panel.set_ylim(0.6 * min(float(mean.min()) for _, mean, _ in found), 2.0 * tops)
    plain_log(panel, "x", "y")
    panel.set_xlabel("lag, steps")


def caption_displacement(tasks: Tasks) -> str:
    """What the figure shows, in words."""
    seeds = len(tasks.get("displacement", {}))
    return (
        "How far the weights lie from where they were some steps before, over the window "
        f"({count_of(seeds)}; bands of two standard errors). Where it "
        "levels off, the run has forgotten; a random walk (dotted) never does."
    )
