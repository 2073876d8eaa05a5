"""Figures of averages beside runs under the schedules equivalent to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.report.drawing import BLUE, GREEN, GREY, ORANGE, PALETTE, panels, style, title
from tf_lrtraj.report.reproduction.marks import (
    PREDICTED,
    Tasks,
    by_seed,
    column,
    errors,
    known,
    level,
    name_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# How the schedule was computed → colour, name.
EQUIVALENCES = {
    "curvature_free": (ORANGE, "curvature-free"),
    "curvature": (GREEN, "one curvature"),
    "spectrum": (PALETTE[3], "spectrum"),
}
_HALF = (PALETTE[5], "curvature-free, half-way")


def averages_of(tasks: Tasks) -> list[str]:
    """Averages that some run is compared with, in the order of their names in the paper."""
    found = set(known(tasks.get("equivalent", {}), "average")) - {"raw"}
    order = ["ema", "swa", "two_point"]
    return sorted(found, key=lambda name: (order.index(name) if name in order else 9, name))


def of_average(tasks: Tasks, average: str, which: str, what: str, share: float) -> dict[int, float]:
    """The average itself, per seed: as measured beside the runs, or else among all averages."""
    found = by_seed(
        tasks.get("equivalent", {}), what, average=average, of="average", share=share, set=which
    )
    if found or share != 1.0:
        return found
    averages = tasks.get("averages", {})
    return by_seed(averages, what, average=average, policy="recompute", set=which)


def of_run(
    tasks: Tasks, average: str, equivalence: str, which: str, what: str, share: float
) -> dict[int, float]:
    """The run under the equivalent schedule, per seed."""
    return by_seed(
        tasks.get("equivalent", {}),
        what,
        average=average,
        equivalence=equivalence,
        of="run",
        share=share,
        set=which,
    )


def _floor(tasks: Tasks, seed: int) -> float | None:
    """The loss without noise: as estimated, or the level of single iterates less their excess."""
    about = tasks["equivalent"][seed].get("about", {})
    floor = (about.get("estimates") or {}).get("floor")
    if isinstance(floor, (int, float)):
        return float(floor)
    excess = [e.get("excess") for e in about.get("predicted") or () if e.get("average") == "raw"]
    level = by_seed(tasks.get("levels", {}), "loss", set="train").get(seed)
    if level is None or not excess:
        return None
    return level - float(excess[0])


def _excess(tasks: Tasks, average: str, equivalence: str, of: str) -> dict[int, float]:
    """Per seed the excess loss that the quadratic model expects."""
    found = {}
    for seed, record in tasks.get("equivalent", {}).items():
        for item in record.get("about", {}).get("predicted") or ():
            kind = item.get("equivalence")
            # What is expected of an average does not depend on the schedule beside it.
            fits = kind == equivalence or (of == "average" and kind is None)
            if fits and (item.get("average"), item.get("of")) == (average, of):
                found[seed] = float(item["excess"])
    return found


def predicted_gap(tasks: Tasks, average: str, equivalence: str) -> dict[int, float]:
    """Per seed the gap that the model expects, in per cent of the average's measured loss.

    The model knows excess losses; what they are in excess of drops out of the difference.
    """
    run, mean = (_excess(tasks, average, equivalence, of) for of in ("run", "average"))
    measured = of_average(tasks, average, "train", "loss", 1.0)
    return {
        seed: 100.0 * (run[seed] - mean[seed]) / measured[seed]
        for seed in run
        if seed in mean and measured.get(seed)
    }


def predicted(tasks: Tasks, average: str, equivalence: str, of: str) -> dict[int, float]:
    """Per seed the training loss that the quadratic model expects: floor and excess."""
    found = {}
    for seed, excess in _excess(tasks, average, equivalence, of).items():
        floor = _floor(tasks, seed)
        if floor is not None:
            found[seed] = floor + excess
    return found


def _predicted_average(tasks: Tasks, average: str) -> dict[int, float]:
    for kind in (*EQUIVALENCES, ""):
        if found := predicted(tasks, average, kind, "average"):
            return found
    return {}


def _gap(run: dict[int, float], average: dict[int, float], relative: bool) -> dict[int, float]:
    if relative:
        return {s: 100.0 * (run[s] / average[s] - 1.0) for s in run if average.get(s)}
    return {s: 100.0 * (run[s] - average[s]) for s in run if s in average}


def draw_gaps(tasks: Tasks) -> Figure | None:
    """Run minus its average: training loss in per cent, and test accuracy in points."""
    names = averages_of(tasks)
    if not names:
        return None
    with style():
        figure, axes = panels(2, 1, 7.6, 6.6)
        for panel, which, what in zip(axes, ("train", "test"), ("loss", "accuracy"), strict=True):
            _gaps(panel, tasks, names, which, what)
        axes[0].set_ylabel("loss of the run above its average, %")
        axes[1].set_ylabel("accuracy of the run above, points")
        title(axes[0], "Training loss, all images (0: the run ends as low as the average)")
        title(axes[1], "Test accuracy")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8
        )
    return figure


def _gaps(panel: Axes, tasks: Tasks, names: list[str], which: str, what: str) -> None:
    relative = what == "loss"
    kinds = [(kind, 1.0, *EQUIVALENCES[kind]) for kind in EQUIVALENCES]
    kinds.append(("curvature_free", 0.5, *_HALF))
    labelled: set[str] = set()
    for group, name in enumerate(names):
        for k, (kind, share, color, label) in enumerate(kinds):
            on = "train_part" if share < 1.0 and which == "train" else which
            run = of_run(tasks, name, kind, on, what, share)
            gap = _gap(run, of_average(tasks, name, on, what, share), relative)
            place = group + 0.21 * (k - 1.5)
            column(panel, place, gap, color, spread=0.045)
            if gap and label not in labelled:
                labelled.add(label)
                panel.plot([], [], "o", color=color, label=label)
            if relative and share == 1.0 and gap:
                expected = predicted_gap(tasks, name, kind)
                if expected:
                    mark = panel.plot([place + 0.08], [np.mean(list(expected.values()))])[0]
                    mark.set(**PREDICTED)
    if relative:
        panel.plot([], [], **PREDICTED, label="quadratic model")
    panel.axhline(0.0, color="black", linewidth=0.9)
    panel.set_xticks(range(len(names)), [name_of(name) for name in names])
    panel.set_xlim(-0.55, len(names) - 0.45)
    panel.grid(axis="x", visible=False)


def caption_gaps(tasks: Tasks) -> str:
    """What the figure shows, and how far off the quadratic model is."""
    text = (
        "A run from the same state with the schedule equivalent to the average, minus the average "
        "of the constant-rate run. Dots: seeds; bars: their mean with its 95 % interval; "
        "half-way: in the middle of the horizon, beside the average of snapshots that "
        "equals it there (loss of a fixed subset)."
    )
    off = []
    for name in averages_of(tasks):
        average = of_average(tasks, name, "train", "loss", 1.0)
        for kind in EQUIVALENCES:
            measured = _gap(of_run(tasks, name, kind, "train", "loss", 1.0), average, True)
            expected = predicted_gap(tasks, name, kind)
            both = [measured[seed] - expected[seed] for seed in measured if seed in expected]
            off += [abs(float(np.mean(both)))] if both else []
    if off:
        text += (
            " Diamonds: expected by the quadratic model with the spectrum estimated from the same "
            f"run; mean gaps are off by {np.median(off):.2g} points (median; at most "
            f"{max(off):.2g}, of {len(off)})."
        )
    return text


def _pairs(tasks: Tasks) -> list[tuple[float, float]]:
    """(expected, measured) training loss of runs and averages, seed by seed."""
    pairs = []
    for name in averages_of(tasks):
        both = [(_predicted_average(tasks, name), of_average(tasks, name, "train", "loss", 1.0))]
        both += [
            (
                predicted(tasks, name, kind, "run"),
                of_run(tasks, name, kind, "train", "loss", 1.0),
            )
            for kind in EQUIVALENCES
        ]
        pairs += [(p[seed], m[seed]) for p, m in both for seed in p if seed in m]
    return pairs


def draw_levels(tasks: Tasks) -> Figure | None:
    """Loss and accuracy of the raw weights, of each average, and of the runs beside it."""
    names = averages_of(tasks)
    if not names:
        return None
    with style():
        figure, axes = panels(2, len(names), 1.6 + 2.9 * len(names), 6.0)
        for i, name in enumerate(names):
            _levels(axes[i], tasks, name, "train", "loss")
            _levels(axes[len(names) + i], tasks, name, "test", "accuracy")
            title(axes[i], name_of(name))
        for row in (axes[: len(names)], axes[len(names) :]):
            low, high = min(a.get_ylim()[0] for a in row), max(a.get_ylim()[1] for a in row)
            for panel in row:
                panel.set_ylim(low, high)
                panel.tick_params(labelleft=panel is row[0])
        axes[0].set_ylabel("training loss, all images")
        axes[len(names)].set_ylabel("test accuracy, %")
    return figure


def _levels(panel: Axes, tasks: Tasks, name: str, which: str, what: str) -> None:
    scale = 1.0 if what == "loss" else 100.0

    def scaled(values: dict[int, float]) -> dict[int, float]:
        return {seed: scale * value for seed, value in values.items()}

    raw = by_seed(tasks.get("averages", {}), what, average="raw", policy="recompute", set=which)
    columns: list[tuple[str, str, dict[int, float], Any]] = [
        (
            "average",
            BLUE,
            of_average(tasks, name, which, what, 1.0),
            _predicted_average(tasks, name),
        )
    ]
    for kind, (color, label) in EQUIVALENCES.items():
        expected = predicted(tasks, name, kind, "run")
        columns.append((label, color, of_run(tasks, name, kind, which, what, 1.0), expected))
    if raw:
        mean = level(panel, scaled(raw), GREY)
        panel.annotate(
            "raw", (0.99, mean), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", fontsize=8, color=GREY, ha="right",
        )  # fmt: skip
    for place, (_, color, values, expected) in enumerate(columns):
        column(panel, place, scaled(values), color)
        if what == "loss" and expected:
            panel.plot([place + 0.3], [np.mean(list(expected.values()))], **PREDICTED)
    panel.set_xticks(
        range(len(columns)), [label for label, *_ in columns], rotation=25, fontsize=8,
        ha="right", rotation_mode="anchor",
    )  # fmt: skip
    panel.set_xlim(-0.6, len(columns) - 0.4)
    panel.grid(axis="x", visible=False)


def caption_levels(tasks: Tasks) -> str:
    """What the figure shows, in words."""
    return (
        "The same, as levels: the raw weights at the end (dashed, with the 95 % interval), each "
        "average, and the runs under the schedules equivalent to it."
        + (
            " Diamonds: expected by the quadratic model, with a floor that gives single iterates "
            f"the loss they have; off by {errors(pairs)}."
            if (pairs := _pairs(tasks))
            else ""
        )
    )
