"""Figures of averages against predictions: far points, emulated decays, the whole sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.report.drawing import BLUE, GREEN, GREY, ORANGE, PALETTE, panels, style, title
from tf_lrtraj.report.probes.bands import band, label_ends
from tf_lrtraj.report.reproduction.marks import (
    SETS,
    Tasks,
    by_seed,
    column,
    errors,
    interval,
    known,
    level,
    rows,
    settle,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# n points → colour; the runs at λ/n share it.
_POINTS = {1: GREY, 2: BLUE, 4: ORANGE, 8: GREEN}
_DECAYS = {"cosine": "cosine", "linear": "linear", "one_minus_sqrt": "1 − √"}
_FAMILIES = {
    "ema": (BLUE, "EMA"),
    "swa": (ORANGE, "mean of the last"),
    "two_point": (GREEN, "two points"),
    "spaced": (PALETTE[3], "points with gaps"),
    "weights": ("black", "best weights"),
    "raw": (GREY, "raw weights"),
}
SWEPT = ("train_part", "train", "test_part", "test")
_MARKERS = {"sweep": "o", "calibration": "s", "recommendation": "*", "raw": "X"}


# Far points -----------------------------------------------------------------------------------


def draw_points(tasks: Tasks, counts: Sequence[int]) -> Figure | None:
    """Loss and accuracy of averages of n points against their gap, beside runs at λ/n.

    Args:
        tasks: records.
        counts: the numbers of points to show.
    """
    if not set(counts) & set(known(tasks.get("many_points", {}), "points")):
        return None
    with style():
        figure, (left, right) = panels(1, 2, 10.4, 4.3)
        _points(left, tasks, counts, "train_part", "loss")
        _points(right, tasks, counts, "test", "accuracy")
        left.set_ylabel("training loss, fixed subset")
        right.set_ylabel("test accuracy, %")
        title(left, "Training loss; dashed: runs at the rate λ/n")
        title(right, "Test accuracy; dashed: runs at the rate λ/n")
    return figure


def _points(panel: Axes, tasks: Tasks, counts: Sequence[int], which: str, what: str) -> None:
    records, lower = tasks["many_points"], tasks.get("lower_rates", {})
    scale = 1.0 if what == "loss" else 100.0
    ends = {}
    panel.set_xscale("log", base=2)
    for n in (1, *counts):
        color = _POINTS.get(n, PALETTE[6])
        gaps = [g for g in known(records, "gap", set=which, points=n) if g > 0]
        if n > 1 and gaps:
            found = [by_seed(records, what, set=which, points=n, gap=gap) for gap in gaps]
            for gap, values in zip(gaps, found, strict=True):
                dots = [scale * value for value in values.values()]
                panel.plot([gap] * len(dots), dots, "o", color=color, markersize=2.6, alpha=0.45)
            means, halves = zip(*(interval(v.values()) for v in found), strict=True)
            middle, half = scale * np.array(means), 0.5 * scale * np.array(halves)
            band(panel, gaps, middle, half, color)
            ends[f"{n} points"] = (float(gaps[-1]), float(middle[-1]), color)
            if what == "loss":
                _expected(panel, tasks, n, color)
        single = by_seed(records, what, set=which, points=1) if n == 1 else {}
        rate = by_seed(lower, what, set=which, points=n)
        reference = {s: scale * v for s, v in (rate or single).items()}
        if reference:
            mean = level(panel, reference, color)
            label = "λ, raw" if n == 1 else f"run at λ/{n}"
            ends[label] = (0.0, mean, color)
    shown = sorted({gap for gap in known(records, "gap", set=which) if gap > 0})
    panel.set_xticks(shown, [f"{gap:,}" for gap in shown])
    panel.minorticks_off()
    settle(panel)
    panel.set_xlabel("gap between neighbouring points, steps")
    label_ends(panel, {name: (max(end[0], 1.0), *end[1:]) for name, end in ends.items()})


def _expected(panel: Axes, tasks: Tasks, n: int, color: str) -> None:
    at: dict[float, list[float]] = {}
    for record in tasks["many_points"].values():
        for item in _predictions(record):
            if item.get("points") == n and item.get("gap", 0) > 0:
                at.setdefault(float(item["gap"]), []).append(float(item["loss"]))
    if at:
        gaps = sorted(at)
        panel.plot(
            gaps, [np.mean(at[gap]) for gap in gaps], "D", color=color, markersize=5.5,
            markerfacecolor="none", zorder=5,
        )  # fmt: skip


def _predictions(record: Any) -> list[Any]:
    found = record.get("predicted") or record.get("about", {}).get("predicted") or []
    return [item for item in found if isinstance(item, dict)]


def caption_points(tasks: Tasks, counts: Sequence[int]) -> str:
    """What the figure shows, and how far off the prediction is."""
    text = (
        f"Averages of {' and of '.join(map(str, counts))} points of the constant-rate run against "
        "the gap between them (dots: seeds; bands: 95 % interval), beside single iterates of runs "
        "at the rate λ/n (dashed)."
    )
    pairs = []
    for seed, record in tasks.get("many_points", {}).items():
        for item in _predictions(record):
            if item.get("points") not in counts:
                continue
            measured = by_seed(
                {seed: record}, "loss", set="train_part", points=item.get("points"),
                gap=item.get("gap"),
            )  # fmt: skip
            pairs += [(float(item["loss"]), value) for value in measured.values()]
    if pairs:
        text += (
            " Diamonds: the training loss predicted from single losses and two-point averages, "
            f"off, over all gaps, by {errors(pairs)}."
        )
    return text


# Decays emulated from snapshots ---------------------------------------------------------------


def draw_decays(tasks: Tasks) -> Figure | None:
    """Every decay trained, and emulated by weights on snapshots of the constant-rate run."""
    records = tasks.get("decays", {})
    names = [name for name in _DECAYS if name in known(records, "decay")]
    if not names:
        return None
    with style():
        figure, axes = panels(1, 3, 10.8, 3.8)
        shown = (("train", "loss"), ("test", "loss"), ("test", "accuracy"))
        for panel, (which, what) in zip(axes, shown, strict=True):
            scale = 1.0 if what == "loss" else 100.0
            for group, name in enumerate(names):
                pair = [
                    by_seed(records, what, decay=name, of=of, set=which)
                    for of in ("trained", "emulated")
                ]
                for seed in pair[0].keys() & pair[1].keys():
                    ends = [scale * values[seed] for values in pair]
                    panel.plot([group - 0.18, group + 0.18], ends, color="#bbbbbb", linewidth=0.7)
                for place, values, color in zip((-0.18, 0.18), pair, (ORANGE, BLUE), strict=True):
                    scaled = [scale * v for v in values.values()]
                    column(panel, group + place, scaled, color, spread=0.06)
            raw = by_seed(
                tasks.get("averages", {}), what, average="raw", policy="recompute", set=which
            )
            if raw:
                mean = level(panel, {s: scale * v for s, v in raw.items()}, GREY)
                panel.annotate(
                    "raw, constant rate", (0.99, mean), xycoords=("axes fraction", "data"),
                    xytext=(0, 3), textcoords="offset points", fontsize=8, color=GREY, ha="right",
                )  # fmt: skip
            panel.set_xticks(range(len(names)), [_DECAYS[name] for name in names])
            panel.set_xlim(-0.5, len(names) - 0.5)
            panel.grid(axis="x", visible=False)
            title(panel, SETS[which].capitalize() if what == "loss" else "Test accuracy, %")
        for color, label in ((ORANGE, "trained"), (BLUE, "emulated")):
            axes[0].plot([], [], "o", color=color, label=label)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def caption_decays(tasks: Tasks) -> str:
    """What the figure shows, in words."""
    every = {
        record.get("about", {}).get("snapshot_every") for record in tasks.get("decays", {}).values()
    } - {None}
    text = f", a snapshot every {every.pop()} steps" if len(every) == 1 else ""
    return (
        "Runs whose rate decays over the horizon, beside weighted averages of snapshots of the "
        f"constant-rate run{text}: the weights are the decrements of the schedule. Dots: seeds, "
        "joined by grey lines; bars: mean with its 95 % interval."
    )


# The whole sweep ------------------------------------------------------------------------------


def draw_sweep(tasks: Tasks) -> Figure | None:
    """Predicted against measured loss of every average, with bands, and the relative error."""
    records = tasks.get("sweep", {})
    sets = [name for name in SWEPT if _measured(tasks, name)]
    if not records or not sets:
        return None
    with style():
        figure, axes = panels(2, len(sets), 1.0 + 4.4 * len(sets), 6.8)
        for i, which in enumerate(sets):
            _against(axes[i], tasks, which)
            _relative(axes[len(sets) + i], tasks, which)
            title(axes[i], SETS[which].capitalize())
        axes[0].set_ylabel("predicted loss")
        axes[len(sets)].set_ylabel("predicted above measured, %")
        axes[0].legend(frameon=False, fontsize=8)
    return figure


def _measured(tasks: Tasks, which: str) -> list[dict[str, Any]]:
    return [
        dict(row)
        for _, record in sorted(tasks.get("sweep", {}).items())
        for row in rows(record, set=which)
        if _number(row.get("measured")) and _number(row.get("predicted"))
    ]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _look(row: dict[str, Any]) -> tuple[str, str, str]:
    role = str(row.get("role"))
    family = "raw" if role == "raw" else str(row.get("family"))
    return *_FAMILIES.get(family, (PALETTE[4], family)), _MARKERS.get(role, "o")


def _against(panel: Axes, tasks: Tasks, which: str) -> None:
    seen: set[str] = set()
    found = _measured(tasks, which)
    for row in found:
        color, label, marker = _look(row)
        panel.errorbar(
            row["measured"], row["predicted"], _bars(row, 1.0), fmt=marker, color=color,
            markersize=8 if marker == "*" else 3.4, linewidth=0.6, alpha=0.8,
            label=None if label in seen else label,
        )  # fmt: skip
        seen.add(label)
    ends = [min(row["measured"] for row in found), max(row["measured"] for row in found)]
    panel.plot(ends, ends, color="#999999", linewidth=0.8, zorder=0)
    panel.set_xlabel("measured loss")


def _bars(row: dict[str, Any], scale: float) -> list[list[float]] | None:
    low, high = row.get("low"), row.get("high")
    if not (_number(low) and _number(high)):
        return None
    middle = row["predicted"]
    return [[max(0.0, scale * (middle - low))], [max(0.0, scale * (high - middle))]]


def _relative(panel: Axes, tasks: Tasks, which: str) -> None:
    for row in _measured(tasks, which):
        if row["measured"] == 0.0:
            continue
        color, _, marker = _look(row)
        scale = 100.0 / row["measured"]
        panel.errorbar(
            row["measured"], 100.0 * (row["predicted"] / row["measured"] - 1.0), _bars(row, scale),
            fmt=marker, color=color, markersize=8 if marker == "*" else 3.4, linewidth=0.6,
            alpha=0.8,
        )  # fmt: skip
    panel.axhline(0.0, color="black", linewidth=0.8)
    panel.set_xlabel("measured loss")


def caption_sweep(tasks: Tasks, errors_of: Mapping[str, tuple[float | None, float | None]]) -> str:
    """What the figure shows, and how far off the predictions are.

    Args:
        tasks: records.
        errors_of: set → (median, worst) error in per cent, where they are known.
    """
    levels = {
        record.get("about", {}).get("level") for record in tasks.get("sweep", {}).values()
    } - {None}
    bands = f"{levels.pop():.0%} bands".replace("%", " %") if len(levels) == 1 else "bands"
    parts = [
        f"{SETS[which]}: median {middle:.2g} %, worst {worst:.2g} %"
        for which, (middle, worst) in errors_of.items()
        if middle is not None and worst is not None
    ]
    text = (
        f"Loss of every average as predicted from single losses and a few pairs, with {bands}, "
        "against its loss as measured. Squares: averages that calibrated the prediction; stars: "
        "recommended ones."
    )
    return text + (f" Off by, {'; '.join(parts)}." if parts else "")
