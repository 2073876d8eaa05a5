"""Figure of segments between points: losses along them, and heights of barriers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, ORANGE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import (
    band,
    bars,
    caption,
    label_ends,
    measured,
    mode_note,
    number_with_error,
    over_batches,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GROUPS = (("", BLUE, "training"), ("held_out_", ORANGE, "held out"))
_VERDICTS = {-1: "one basin", 0: "undecided", 1: "barrier"}
_MOST = 6  # segments drawn as curves; the matrix shows all


def draw(record: ArrayRecord) -> Figure:
    """Losses along segments with bands over batches, and a matrix of barriers.

    For a single pair of points the figure also has the error rate and, if the segment extends
    beyond both points, the asymmetry. Several pairs have a panel each, and a matrix of barriers
    (training above the diagonal, held-out below). Segments of single layers have a panel of their
    barriers.
    """
    pairs = len(record.coordinates["pair"])
    points = _points(record)
    jobs: list[tuple[str, int]] = [("loss", pair) for pair in range(min(pairs, _MOST))]
    if pairs == 1:
        if np.isfinite(record.values["accuracy"]).all():
            jobs.append(("error", 0))
        if record.coordinates["position"][0] < 0.0 and len(record.coordinates["offset"]):
            jobs.append(("asymmetry", 0))
    if pairs > 1:
        # A matrix with few entries is hard to read.
        full = pairs >= 0.3 * len(points) * (len(points) - 1)
        jobs.append(("matrix" if full and len(points) > 2 else "pairs", 0))
    if len(record.coordinates["layer"]) > 1:
        jobs.append(("layers", 0))
    columns = min(len(jobs), 4 if len(jobs) in (4, 7, 8) else 3)
    rows = -(-len(jobs) // columns)
    with style():
        figure, axes = panels(rows, columns, 0.8 + 3.6 * columns, 3.4 * rows)
        top = _upper_limit(record, [pair for what, pair in jobs if what == "loss"])
        for panel, (what, pair) in zip(axes, jobs, strict=False):
            if what == "loss":
                _losses(panel, record, pair, top)
            elif what == "error":
                _errors(panel, record)
            elif what == "asymmetry":
                _asymmetry(panel, record)
            elif what == "matrix":
                _matrix(panel, record, points)
            else:
                _list(panel, record, what)
        for panel in axes[len(jobs) :]:
            panel.set_axis_off()
        caption(figure, mode_note(record.about))
    return figure


def _points(record: ArrayRecord) -> list[str]:
    """Returns the names of the points of the segments."""
    used = {*record.coordinates["first"].tolist(), *record.coordinates["second"].tolist()}
    return [name for name in record.coordinates["point"].tolist() if name in used]


def _groups(record: ArrayRecord) -> list[tuple[str, str, str]]:
    return [group for group in _GROUPS if f"{group[0]}loss" in record.values]


def _upper_limit(record: ArrayRecord, pairs: list[int]) -> float:
    """Returns the upper limit of a panel, from the largest loss between the points."""
    where = record.coordinates["position"]
    inside = (where >= 0.0) & (where <= 1.0)
    highest = 0.0
    for prefix, _, _ in _groups(record):
        means, errors = over_batches(record.values[f"{prefix}loss"][pairs, 0])
        edge = means + 2.0 * np.nan_to_num(errors, posinf=0.0)
        edges = np.concatenate([edge[:, inside].ravel(), 0.7 * edge.ravel()])
        highest = max(highest, float(np.max(edges[np.isfinite(edges)], initial=0.0)))
    return 1.15 * highest if highest > 0.0 else 1.0


def _along(panel: Axes, record: ArrayRecord, pair: int, what: str) -> dict[str, Any]:
    where = record.coordinates["position"]
    ends = {}
    for prefix, color, name in _groups(record):
        values = record.values[f"{prefix}{what}"][pair, 0]
        mean, error = over_batches(1.0 - values if what == "accuracy" else values)
        band(panel, where, mean, error, color)
        ends[name] = (float(where[-1]), float(mean[-1]), color)
    panel.set_xlim(float(where[0]), float(where[-1]))
    first, second = (str(record.coordinates[key][pair]) for key in ("first", "second"))
    for at in (0.0, 1.0):
        panel.axvline(at, color="#999999", linewidth=0.8, linestyle=":")
    near = float(where[-1] - where[0]) > 1.5  # no room between the names
    panel.set_xticks([0.0, 0.5, 1.0], [_folded(first), "" if near else "½", _folded(second)])
    return ends


def _losses(panel: Axes, record: ArrayRecord, pair: int, top: float) -> None:
    ends = _along(panel, record, pair, "loss")
    panel.set_ylim(0.0, top)
    values = record.values
    height = values["barrier"][pair, 0]
    if height > 0.0 and values["verdict"][pair, 0] > -1:
        # From the straight line between the ends up to the curve.
        at = float(values["barrier_at"][pair, 0])
        mean, _ = over_batches(values["loss"][pair, 0])
        where = record.coordinates["position"]
        peak = float(mean[np.argmin(np.abs(where - at))])
        panel.plot([at, at], [peak - height, peak], color="black", linewidth=1.0, marker="_")
        start, stop = (float(mean[np.argmin(np.abs(where - t))]) for t in (0.0, 1.0))
        panel.plot([0.0, 1.0], [start, stop], color=BLUE, linewidth=0.7, dashes=(3, 2))
    panel.set_ylabel("loss")
    verdict = int(values["verdict"][pair, 0])
    number = number_with_error(*_height(record, "", (pair, 0)))
    if height > 0.0:
        title(panel, f"barrier {number}" + ("" if verdict > 0 else f": {_VERDICTS[verdict]}"))
    else:
        title(panel, f"{_VERDICTS[verdict]} (at the middle {number})")
    label_ends(panel, ends)


def _errors(panel: Axes, record: ArrayRecord) -> None:
    ends = _along(panel, record, 0, "accuracy")
    panel.set_ylim(0.0, None)
    panel.set_ylabel("error rate")
    title(panel, "Errors along the same segment")
    label_ends(panel, ends)


def _asymmetry(panel: Axes, record: ArrayRecord) -> None:
    offset, ends = record.coordinates["offset"], {}
    panel.axhline(0.0, color="#999999", linewidth=0.8)
    for prefix, color, name in _groups(record):
        difference = record.values[f"{prefix}asymmetry"][0, 0]
        band(panel, offset, difference, record.values[f"{prefix}asymmetry_se"][0, 0], color)
        ends[name] = (float(offset[-1]), float(difference[-1]), color)
    panel.set_xlim(0.0, float(offset[-1]))
    centre = float(record.about.get("centre", 0.5))
    second = _tail(str(record.coordinates["second"][0]), 14)
    panel.set_xlabel("distance from the centre, in lengths of the segment")
    panel.set_ylabel("difference of the losses")
    title(panel, f"Loss on {second}'s side of {centre:g} minus the other")
    label_ends(panel, ends)


def _height(record: ArrayRecord, prefix: str, index: tuple[int, int]) -> tuple[float, float]:
    """Formats the barrier with its standard error or, without one, the depth of the middle."""
    name = "barrier" if record.values[f"{prefix}barrier"][index] > 0.0 else "middle"
    height, error = (float(record.values[f"{prefix}{name}{s}"][index]) for s in ("", "_se"))
    return height, error


def _matrix(panel: Axes, record: ArrayRecord, points: list[str]) -> None:
    number = {name: i for i, name in enumerate(points)}
    heights = np.full((len(points),) * 2, np.nan)
    texts = {}
    for pair, names in enumerate(
        zip(record.coordinates["first"], record.coordinates["second"], strict=True)
    ):
        i, j = sorted(number[str(name)] for name in names)
        for prefix, _, _ in _groups(record):
            at = (j, i) if prefix else (i, j)
            heights[at], error = _height(record, prefix, (pair, 0))
            verdict = _VERDICTS.get(int(record.values[f"{prefix}verdict"][pair, 0]), "?")
            texts[at] = number_with_error(heights[at], error).replace(" ", "\n", 1) + f"\n{verdict}"
    most = float(np.max(np.abs(heights[np.isfinite(heights)]), initial=0.0)) or 1.0
    panel.imshow(
        np.ma.masked_invalid(heights), cmap="PuOr_r", vmin=-1.6 * most, vmax=1.6 * most,
        aspect="auto",
    )  # fmt: skip
    size = 8.0 if len(points) <= 3 else 6.5 if len(points) <= 5 else 5.0
    for (i, j), text in texts.items():
        panel.text(j, i, text, ha="center", va="center", fontsize=size, linespacing=1.1)
    folded = [_folded(name) for name in points]
    panel.set_xticks(range(len(points)), folded, fontsize=7)
    panel.set_yticks(range(len(points)), folded, fontsize=7)
    panel.grid(False)
    held_out = len(_groups(record)) > 1
    title(panel, "Barriers" + ("; below: held out" if held_out else ""))
    panel.set_xlabel("below 0: none, height at the middle", fontsize=7)


def _list(panel: Axes, record: ArrayRecord, what: str) -> None:
    """Draws barriers one below another: of pairs, or of the first pair's layers."""
    layers = what == "layers"
    names = record.coordinates["layer" if layers else "pair"].tolist()
    rows = np.arange(len(names))
    groups = _groups(record)
    panel.axvline(0.0, color="#999999", linewidth=0.8)
    for k, (prefix, color, label) in enumerate(groups):
        places = [(0, i) if layers else (i, 0) for i in range(len(names))]
        found = [_height(record, prefix, place) for place in places]
        heights, errors = np.array(found).T
        panel.errorbar(
            np.where(np.isfinite(heights), heights, np.nan),
            rows + (0.18 * (2 * k - 1) if len(groups) > 1 else 0.0),
            xerr=bars(errors),
            fmt="o",
            color=color,
            markersize=3.5,
            linewidth=1.0,
            label=label,
        )
    panel.set_yticks(rows, [_tail(name) for name in names], fontsize=7)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_xlabel("barrier; below 0: none, height at the middle", fontsize=7)
    title(panel, "One layer moving at a time" if layers else "Barriers")


def _folded(name: str, width: int = 13) -> str:
    return "\n".join(textwrap.wrap(name, width)[:3]) or name


def _tail(name: str, most: int = 26) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


def sentences(record: ArrayRecord) -> Iterator[str]:
    """Returns sentences on the findings of a record."""
    for prefix, name in (("", "training"), ("held_out_", "held-out")):
        if f"{prefix}verdict" not in record.values:
            continue
        found = np.asarray(record.values[f"{prefix}verdict"][:, 0], np.int64)
        counts = [f"{int(np.sum(found == v))} {text}" for v, text in _VERDICTS.items()]
        worst = int(np.argmax(record.values[f"{prefix}barrier"][:, 0]))
        text = f"{name} loss, {len(found)} segments: {', '.join(counts)}"
        if record.values[f"{prefix}barrier"][worst, 0] > 0.0:
            first, second = (record.coordinates[end][worst] for end in ("first", "second"))
            height = measured(record, f"{prefix}barrier", (worst, 0))
            text += f"; highest barrier {height}, from {first} to {second}"
        yield text
