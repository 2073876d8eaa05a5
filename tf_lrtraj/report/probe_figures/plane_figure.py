"""Figure of a plane through three points: contours of the loss, and the trajectory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import panels, style, title
from tf_lrtraj.report.probe_figures.bands import caption, mode_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEVELS = 14


def draw(record: ArrayRecord) -> Figure:
    """Draws contours of training and held-out losses; steps are coloured by distance from it.

    Levels are close where the loss is low.  Both panels use the same rule for levels, but different
    levels, because held-out losses have another range.
    """
    shown = [("loss", "loss, training batches")]
    if "held_out_loss" in record.values:
        shown.append(("held_out_loss", "loss, held-out batches"))
    u, v = record.coordinates["u"], record.coordinates["v"]
    tall = float(np.clip((v[-1] - v[0]) / (u[-1] - u[0]), 0.5, 1.4))
    with style():
        figure, axes = panels(1, len(shown), 1.6 + 4.4 * len(shown), 1.2 + 4.2 * tall)
        dots = None
        for panel, (name, text) in zip(axes, shown, strict=True):
            _contours(panel, record, name)
            dots = _trajectory(panel, record)
            _points(panel, record)
            panel.set_xlabel("u, distance in weight space")
            panel.set_aspect("equal")
            panel.set_xlim(float(u[0]), float(u[-1]))
            panel.set_ylim(float(v[0]), float(v[-1]))
            panel.grid(False)
            title(panel, text)
        axes[0].set_ylabel("v, distance in weight space")
        if dots is not None:
            bar = figure.colorbar(dots, ax=axes, shrink=0.8, pad=0.02)
            bar.set_label("distance of the step from the plane")
        caption(figure, mode_note(record.about))
    return figure


def levels(losses: np.ndarray) -> np.ndarray:
    """Returns increasing levels of contours, which are closest at the smallest loss.

    Their distances from a level just below the smallest loss grow geometrically, up to the 90 %
    quantile of the grid.
    """
    finite = losses[np.isfinite(losses)]
    if not finite.size or finite.max() <= finite.min():
        return np.array([0.0, 1.0])
    low = float(finite.min())
    high = float(np.quantile(finite, 0.9))
    if high <= low:
        high = float(finite.max())
    return low + (high - low) * np.geomspace(0.02, 1.0, _LEVELS)


def _contours(panel: Axes, record: ArrayRecord, name: str) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        mean = record.values[name].mean(axis=-1)
    mean = np.ma.masked_invalid(np.where(np.isfinite(mean), mean, np.nan))
    u, v = record.coordinates["u"], record.coordinates["v"]
    steps = levels(mean.compressed())
    panel.contourf(u, v, mean, levels=steps, cmap="Blues_r", extend="both", alpha=0.75)
    lines = panel.contour(u, v, mean, levels=steps, colors="white", linewidths=0.5)
    panel.clabel(lines, steps[::3].tolist(), fontsize=6.5, fmt="%.3g", colors="black")


def _trajectory(panel: Axes, record: ArrayRecord) -> Any:
    """Draws dots of the projected steps; returns None if there are none."""
    if not len(record.coordinates["step"]):
        return None
    x, y, far = (record.values[f"trajectory_{name}"] for name in ("u", "v", "residual"))
    panel.plot(x, y, color="black", linewidth=0.5, alpha=0.6)
    return panel.scatter(x, y, c=far, cmap="plasma", s=13, vmin=0.0, linewidths=0.0, zorder=3)


def _points(panel: Axes, record: ArrayRecord) -> None:
    x, y = record.coordinates["point_u"], record.coordinates["point_v"]
    middle = (float(np.mean(x)), float(np.mean(y)))
    panel.plot(x, y, "X", color="black", markersize=7, markeredgecolor="white", zorder=4)
    for name, a, b in zip(record.coordinates["point"], x, y, strict=True):
        away = (1 if a >= middle[0] else -1, 1 if b >= middle[1] else -1)
        panel.annotate(
            str(name),
            (float(a), float(b)),
            xytext=(6 * away[0], 6 * away[1]),
            textcoords="offset points",
            ha="left" if away[0] > 0 else "right",
            va="bottom" if away[1] > 0 else "top",
            fontsize=8.5,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.0},
            zorder=5,
        )


def sentences(record: ArrayRecord) -> Iterator[str]:
    """Returns sentences on the findings of a record."""
    if "trajectory_residual" in record.values:
        residual = float(np.max(record.values["trajectory_residual"]))
        yield f"the trajectory lies up to {residual:.3g} off the plane"
