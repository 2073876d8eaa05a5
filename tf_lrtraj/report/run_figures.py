"""Figures of a run: pure functions from records to matplotlib figures.

Each figure is one panel, so that a page can set panels side by side or below each
other.  Lines carry their names at their right end.  The same weights have the same
colour in every figure of a report (Okabe and Ito's palette, which colour-blind readers
can tell apart); a matched run has its average's colour, dashed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.kernels import Kernel
from tf_lrtraj.records import RAW, RunRecord
from tf_lrtraj.report.drawing import GREY, PALETTE, notebook_figure, style

if TYPE_CHECKING:  # matplotlib takes a second to import, and text output does not need it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MATCHED_DASHES = (4.0, 2.0)
_LARGEST = 1e30  # larger values mean divergence, and arithmetic on axes would overflow
MOST_LINES = 30  # weights per figure; more take long to draw and cannot be distinguished
_MAX_POINTS = 4000  # points of a drawn line; a page should not grow with the length of a run


def colours(record: RunRecord, *others: str) -> dict[str, str]:
    """Returns {weights: colour}: raw grey, averages in the order of the run's configuration."""
    names = dict.fromkeys([*record.averages, *record.weights_names(), *others])
    averages = [name for name in names if name != RAW]
    return {
        RAW: GREY,
        **{name: PALETTE[index % len(PALETTE)] for index, name in enumerate(averages)},
    }


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a panel: steps and values [K], drawn in order, and a band [2, K] around it."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    colour: str
    dashed: bool = False
    width: float = 1.6
    faint: bool = False
    band: np.ndarray | None = None


# --- Drawing ------------------------------------------------------------------------------


def _panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = notebook_figure(figsize=(width, height))
    # Fixed margins, so that panels of a row are aligned and names at line ends have room.
    left, right, bottom, top = 0.74, 1.10, 0.52, 0.16  # inches
    axes = figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    )
    axes.set_axisbelow(True)
    return figure, axes


def _short(text: Any, limit: int = 15) -> str:
    """Returns a name short enough for a line's end, in characters of the font."""
    text = "".join(c if " " <= c <= "~" else "?" for c in str(text))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most about `_MAX_POINTS` points, which include the extremes of every interval."""
    if steps.size <= _MAX_POINTS:
        return steps, values
    keep = {0, steps.size - 1}
    for part in np.array_split(np.arange(steps.size), _MAX_POINTS // 3):
        chunk = values[part]
        keep.add(int(part[0]))
        if np.isfinite(chunk).any():
            keep |= {int(part[np.nanargmin(chunk)]), int(part[np.nanargmax(chunk)])}
    index = np.array(sorted(keep))
    return steps[index], values[index]


def _drawable(lines: Iterable[Line]) -> list[Line]:
    """Returns lines with at least one finite value; values beyond the axes become gaps."""
    lines = [
        dataclasses.replace(
            line, values=np.where(np.abs(line.values) < _LARGEST, line.values, np.nan)
        )
        for line in lines
    ]
    return [line for line in lines if np.isfinite(line.values).any()]


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Writes (value, text, colour) at the right edge, moved apart if they would overlap."""
    height = axes.get_window_extent().height * 72 / axes.figure.dpi  # points
    gap = min(10.5 / height, 1.0 / max(len(labels), 1))
    place = axes.transData + axes.transAxes.inverted()
    wanted = [(float(place.transform((0.0, value))[1]), text, c) for value, text, c in labels]
    wanted = sorted((min(max(y, 0.0), 1.0), text, colour) for y, text, colour in wanted)
    positions = [y for y, _, _ in wanted]
    for _ in range(200):  # push overlapping neighbours apart, within the panel
        moved = False
        for index in range(len(positions) - 1):
            overlap = gap - (positions[index + 1] - positions[index])
            if overlap > 1e-6:
                positions[index] -= overlap / 2
                positions[index + 1] += overlap / 2
                moved = True
        if positions and positions[0] < 0:
            positions[0] = 0.0
        if positions and positions[-1] > 1:
            positions[-1] = 1.0
        if not moved:
            break
    for y, (end, text, colour) in zip(positions, wanted, strict=True):
        axes.annotate(
            text,
            xy=(1.005, end),
            xytext=(1.045, y),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize=8.5,
            annotation_clip=False,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 1, "shrinkB": 0},
        )


def _label_lines(axes: Axes, lines: Sequence[Line]) -> None:
    lasts = [float(line.values[np.isfinite(line.values)][-1]) for line in lines]
    ends = [
        (last, _short(line.label), line.colour) for last, line in zip(lasts, lines, strict=True)
    ]
    _label_ends(axes, ends)


def _draw(axes: Axes, line: Line) -> None:
    steps, values = _thin(line.steps, line.values)
    if line.band is not None and line.steps.size <= _MAX_POINTS:
        axes.fill_between(
            line.steps, *line.band, color=line.colour, alpha=0.1 if line.faint else 0.2, linewidth=0
        )
    axes.plot(
        steps,
        values,
        color=line.colour,
        linewidth=line.width,
        alpha=0.45 if line.faint else 1.0,
        solid_capstyle="round",
        dashes=_MATCHED_DASHES if line.dashed else (),
        marker="o" if steps.size <= 30 and not line.faint else "",
        markersize=3.2,
        markerfacecolor="white" if line.dashed else line.colour,
    )


def _limits(axes: Axes, lines: Sequence[Line], metric: str, total: int, after: float) -> bool:
    """Sets the range of values from the run after a share `after`; returns if any lie outside."""
    drawn = [np.vstack([line.values, *([] if line.band is None else line.band)]) for line in lines]
    everything = np.concatenate([rows.ravel() for rows in drawn])
    everything = everything[np.isfinite(everything)]
    if everything.size == 0:
        return False
    # The first evaluations, before anything is learned, would compress the range of the others.
    later = np.concatenate(
        [
            rows[:, line.steps >= after * total].ravel()
            for line, rows in zip(lines, drawn, strict=True)
        ]
    )
    later = later[np.isfinite(later)]
    if later.size < 2:
        later = everything
    low, high = float(later.min()), float(later.max())
    if metric == "loss" and low > 0 and high > 30 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, min(high * 1.3, 1e300))
    else:
        margin = 0.06 * (high - low) or max(0.02 * abs(high), 1e-3)
        bottom, top = low - margin, high + margin
        if metric == "accuracy":
            bottom, top = max(bottom, -1.0), min(top, 101.0)
        elif low >= 0:
            bottom = max(bottom, 0.0)
        axes.set_ylim(bottom, top)
    bottom, top = axes.get_ylim()
    return bool((everything < bottom).any() or (everything > top).any())


def _step_axis(axes: Axes, record: RunRecord, total: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(0, max(total, 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    steps, label = record.run.get("steps_per_epoch") or 0.0, "step"
    if 1 <= steps < math.inf:
        label = f"step (1 epoch = {f'{steps:,.0f}' if steps >= 100 else f'{steps:.3g}'} steps)"
    axes.set_xlabel(label, parse_math=False)


def _total(record: RunRecord, lines: Sequence[Line]) -> int:
    last = max((int(line.steps[-1]) for line in lines if line.steps.size), default=0)
    return max(last, record.run.get("total_steps") or 0)


def _label(record: RunRecord, metric: str) -> str:
    """Returns a metric with its unit; a loss is a cross-entropy where accuracy is measured."""
    if metric == "loss" and "accuracy" in record.metrics():
        return "loss, nats"
    return "accuracy, %" if metric == "accuracy" else metric


def _metric_panel(
    record: RunRecord,
    lines: Sequence[Line],
    metric: str,
    size: tuple[float, float],
    what: str,
    after: float = 0.2,
) -> Figure | None:
    """Draws a metric in a panel; returns None if no line has a finite value."""
    scale = 100.0 if metric == "accuracy" else 1.0
    lines = _drawable(
        dataclasses.replace(
            line,
            values=scale * line.values,
            band=None if line.band is None else scale * line.band,
        )
        for line in lines
    )
    if not lines:
        return None
    total = _total(record, lines)
    with style():
        figure, axes = _panel(*size)
        for line in lines:
            _draw(axes, line)
        clipped = _limits(axes, lines, metric, total, after)
        _step_axis(axes, record, total)
        axes.set_ylabel(f"{what} {_label(record, metric)}", parse_math=False)
        _label_lines(axes, lines)
        if clipped:
            axes.text(
                0.0, 1.01, "some values outside the panel", transform=axes.transAxes,
                fontsize=7, color="#777777", va="bottom",
            )  # fmt: skip
    return figure


def _line(
    label: str, record: RunRecord, metric: str, weights: str, split: str, colour: str, **how: Any
) -> Line:
    """Returns a metric of some weights as a line, of repeated runs with its band."""
    steps, values = record.series(metric, weights, split)
    return Line(label, steps, values, colour, band=record.bounds(metric, weights, split), **how)


# --- Panels -------------------------------------------------------------------------------


def curves(
    record: RunRecord,
    metric: str,
    split: str,
    palette: Mapping[str, str],
    size: tuple[float, float] = (5.4, 3.5),
) -> Figure | None:
    """Draws a metric of the raw weights and of averages (`MOST_LINES` in all) by step.

    Args:
        metric: "accuracy" or "loss".
        palette: the result of `colours`.
        size: the size of the figure, in inches.

    Returns:
        A figure, or None if the metric was never recorded on this split.
    """
    lines = []
    for name in record.weights_names()[:MOST_LINES]:
        lines.append(
            _line(
                name, record, metric, name, split, palette[name], width=1.2 if name == RAW else 1.7
            )
        )
    return _metric_panel(record, lines, metric, size, _short(split))


def pair_curves(
    record: RunRecord,
    matched: RunRecord,
    average: str,
    metric: str,
    split: str,
    palette: Mapping[str, str],
    size: tuple[float, float] = (4.3, 3.2),
) -> Figure | None:
    """Draws an average and its matched run, with the raw weights in the background."""
    lines = [
        _line(RAW, record, metric, RAW, split, GREY, width=1.0, faint=True),
        _line(average, record, metric, average, split, palette[average], width=1.8),
        _line("matched run", matched, metric, RAW, split, palette[average], dashed=True, width=1.5),
    ]
    return _metric_panel(record, lines, metric, size, _short(split), after=0.4)


def training_batches(
    record: RunRecord, metric: str, size: tuple[float, float] = (4.3, 3.2)
) -> Figure | None:
    """Draws a metric of the training batches: means over the steps between two records."""
    steps, values = record.train_series(metric)
    line = Line("batches, raw", steps, values, GREY, width=1.2)
    return _metric_panel(record, [line], metric, size, "training")


def rates(
    record: RunRecord,
    own: np.ndarray | None,
    matched: Mapping[str, np.ndarray],
    palette: Mapping[str, str],
    size: tuple[float, float] = (4.3, 3.2),
) -> Figure | None:
    """Draws the rates of the run (`own`, [T]) and of matched runs ({average: [T]})."""
    lines = [] if own is None else [Line("this run", np.arange(own.size), own, "#333333")]
    lines += [
        Line(name, np.arange(rate.size), rate, palette[name], dashed=True)
        for name, rate in matched.items()
    ]
    lines = _drawable(lines)
    if not lines:
        return None
    values = np.concatenate([line.values for line in lines])
    values = values[np.isfinite(values)]
    low, high = min(0.0, float(values.min())), float(values.max())
    with style():
        figure, axes = _panel(*size)
        for line in lines:
            _draw(axes, line)
        axes.set_ylim(1.05 * low, 1.08 * high if high > 0 else 1.0)
        _step_axis(axes, record, _total(record, lines))
        axes.set_ylabel("learning rate")
        _label_lines(axes, lines)
    return figure


def kernel_weights(
    name: str, kernel: Kernel, num_steps: int, colour: str, size: tuple[float, float] = (4.3, 2.8)
) -> Figure:
    """Draws the weights of the average after `num_steps` updates by the age of the iterate."""
    weights = kernel.weights(num_steps)[::-1]  # by age: the newest iterate first
    ages = np.flatnonzero(weights)
    reach = np.searchsorted(np.cumsum(np.abs(weights)), 0.998 * np.abs(weights).sum())
    with style():
        figure, axes = _panel(*size)
        if ages.size <= 60:
            axes.vlines(ages, 0.0, weights[ages], color=colour, linewidth=1.3)
            axes.plot(ages, weights[ages], "o", color=colour, markersize=3.5)
        else:
            drawn_ages, drawn = _thin(ages, weights[ages])
            axes.fill_between(drawn_ages, 0.0, drawn, color=colour, alpha=0.2, linewidth=0)
            axes.plot(drawn_ages, drawn, color=colour, linewidth=1.5)
        right = max(1.0, min(1.06 * float(reach), float(num_steps)))
        axes.set_xlim(-0.02 * right, 1.02 * right)
        axes.set_ylim(1.1 * min(0.0, float(weights.min())), 1.15 * float(weights.max()))
        axes.yaxis.get_major_formatter().set_powerlimits((-4, 4))  # type: ignore[attr-defined]
        axes.locator_params(nbins=4)
        axes.set_xlabel("age of the iterate, steps")
        axes.set_ylabel("weight")
        axes.text(
            1.04, 0.5, _short(name), transform=axes.transAxes, color=colour, parse_math=False,
            va="center", fontsize=8.5,
        )  # fmt: skip
    return figure


def cumulative_weights(
    averages: Mapping[str, Kernel],
    num_steps: int,
    palette: Mapping[str, str],
    size: tuple[float, float] = (4.3, 2.8),
) -> Figure | None:
    """Draws the total weight of the iterates after an update, by the updates left until the end.

    An update made `n` updates before the end affects the last `n` iterates, so its effect is the
    sum of their weights.  At curvature 0 the equivalent schedule is the rate of the run times this
    share (derived in docs/theory).
    """
    if not averages or num_steps < 1:
        return None
    with style():
        from matplotlib.ticker import FuncFormatter

        figure, axes = _panel(*size)
        ends = []
        left = np.arange(1, num_steps + 1)
        for name, kernel in averages.items():
            share = np.cumsum(kernel.weights(num_steps)[:0:-1])
            axes.plot(
                *_thin(left, share), color=palette[name], linewidth=1.6, drawstyle="steps-post"
            )
            ends.append((float(share[0]), _short(name), palette[name]))
        if num_steps > 50:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        # Time runs to the right, so the end of training is at the right edge.
        axes.set_xlim(num_steps, 1)
        axes.set_xlabel("updates left until the end of training")
        axes.set_ylabel("share of the run's rate")
        _label_ends(axes, ends)
    return figure
