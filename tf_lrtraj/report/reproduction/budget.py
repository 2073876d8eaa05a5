"""Figures of SWA and FGE: methods at equal budget, the cyclical rate, cost, batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj import rates
from tf_lrtraj.report.drawing import BLUE, GREEN, GREY, ORANGE, PALETTE, panels, style, title
from tf_lrtraj.report.reproduction.marks import (
    Seeds,
    Tasks,
    array,
    by_seed,
    column,
    known,
    name_of,
    rows,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

S1 = ("conventional", "swa_constant", "swa_cyclical")
S6 = ("conventional", "fge_member", "fge", "swa_cyclical", "independent")
METHODS = {
    "conventional": (GREY, "conventional\nrun"),
    "swa_constant": (BLUE, "SWA,\nconstant rate"),
    "swa_cyclical": (ORANGE, "SWA,\ncyclical rate"),
    "fge_member": (PALETTE[4], "FGE,\nsingle members"),
    "fge": (GREEN, "FGE,\nensemble"),
    "independent": (PALETTE[3], "ensemble of\nindependent runs"),
}
_POLICIES = {
    "recompute": (BLUE, "recomputed"),
    "running": (GREY, "running, of the raw weights"),
    "average": (ORANGE, "averaged"),
    "copy": (GREEN, "copied"),
}


def _records(tasks: Tasks) -> Seeds:
    """All methods, those that take several runs together among them."""
    found: dict[int, dict[str, Any]] = {}
    for task in ("budget", "independent"):
        for seed, record in tasks.get(task, {}).items():
            merged = found.setdefault(seed, {"about": {}, "rows": []})
            merged["about"] = {**record.get("about", {}), **merged["about"]}
            merged["rows"] = [*merged["rows"], *record.get("rows", ())]
    return found


def draw_methods(tasks: Tasks, methods: Sequence[str]) -> Figure | None:
    """Test accuracy of some methods at the same number of steps.

    Args:
        tasks: records.
        methods: of `METHODS`, in the order shown.
    """
    records = _records(tasks)
    names = [name for name in methods if name in known(records, "method", set="test")]
    if not names:
        return None
    with style():
        figure, (panel,) = panels(1, 1, 7.8, 4.0)
        for place, name in enumerate(names):
            color = METHODS[name][0]
            values = by_seed(records, "accuracy", method=name, set="test")
            column(panel, place, [100.0 * v for v in values.values()], color, spread=0.15)
            if name == "fge_member":
                single = [
                    100.0 * float(row["accuracy"])
                    for _, record in sorted(records.items())
                    for row in rows(record, method=name, set="test")
                ]
                panel.plot([place + 0.36] * len(single), single, "_", color=color, markersize=6)
        panel.set_xticks(range(len(names)), [METHODS[name][1] for name in names], fontsize=8)
        panel.set_xlim(-0.5, len(names) - 0.5)
        panel.grid(axis="x", visible=False)
        panel.set_ylabel("test accuracy, %")
        totals = {record.get("about", {}).get("total") for record in records.values()} - {None}
        title(panel, f"After {totals.pop():,} steps each" if len(totals) == 1 else "Equal budget")
    return figure


def caption_methods(tasks: Tasks, methods: Sequence[str]) -> str:
    """What the figure shows, in words."""
    text = "Dots: seeds; bars: mean with its 95 % interval."
    names = set(methods) & set(known(_records(tasks), "method", set="test"))
    if "fge_member" in names:
        text += " Small bars: every member of the FGE ensembles; its dots are means over members."
    if "independent" in names:
        text += (
            " The ensemble of the conventional runs of all seeds costs one full run for each "
            "member; the others cost one run in all."
        )
    return text


def draw_cycle(tasks: Tasks) -> Figure | None:
    """The cyclical rate as the run used it, its formula, and where models were collected."""
    for _, record in sorted(tasks.get("budget", {}).items()):
        used, cycle = array(record, "rates"), record.get("about", {}).get("cycle") or {}
        if used.size and {"length", "high", "low"} <= set(cycle):
            break
    else:
        return None
    first, collected = int(cycle.get("first_step", 0)), array(record, "collected")
    length = int(cycle["length"])
    formula = rates.as_array(
        rates.Cyclical(float(cycle["high"]), float(cycle["low"]), length), used.size
    )
    shown = min(used.size, 4 * length)
    with style():
        figure, (panel,) = panels(1, 1, 7.6, 3.4)
        # The i-th update of the cyclical part is update first + i of the run.
        steps = first + np.arange(1, used.size + 1)
        panel.plot(steps[:shown], formula[:shown], color=ORANGE, linewidth=3.2, alpha=0.5)
        panel.plot(steps[:shown], used[:shown], color="black", linewidth=0.9)
        at = collected[(collected > first) & (collected <= first + shown)].astype(int)
        panel.plot(at, used[at - first - 1], "o", color=BLUE, markersize=6)
        for label, color, x, y in (
            ("formula", ORANGE, steps[0], formula[0]),
            ("collected", BLUE, at[0] if at.size else steps[-1], float(used.min())),
        ):
            panel.annotate(
                label, (x, y), xytext=(6, 4 if y > used.mean() else -10), color=color, fontsize=8,
                textcoords="offset points",
            )  # fmt: skip
        panel.set_ylim(0.0, 1.12 * float(used.max()))
        panel.set_xlabel("update of the run")
        panel.set_ylabel("learning rate")
        title(panel, "Cyclical rate, as the run used it (black) over its formula")
    return figure


def caption_cycle(tasks: Tasks) -> str:
    """What the figure shows, in words."""
    del tasks
    return (
        "The first cycles: α(i) = (1 − t)α₁ + tα₂ with t = (mod(i − 1, c) + 1)/c. "
        "A model is collected after the update that used the lowest rate."
    )


def draw_cost(tasks: Tasks) -> Figure | None:
    """Seconds of a training step and of an update of the average; megabytes of both."""
    found = [record for _, record in sorted(tasks.get("cost", {}).items())]
    if not found:
        return None
    record, about = found[0], found[0].get("about", {})
    with style():
        figure, (time, memory) = panels(1, 2, 8.0, 2.6)
        bars: list[tuple[str, np.ndarray, str]] = [
            ("training step", 1e3 * array(record, "step_seconds"), GREY),
            ("update of the average", 1e3 * array(record, "update_seconds"), BLUE),
        ]
        for place, (_, values, color) in enumerate(bars):
            if values.size:
                middle = float(np.median(values))
                time.barh([place], [middle], color=color, height=0.55)
                time.plot(values, np.full(values.size, place), "|", color="black", markersize=7)
                _told(time, f"{middle:.3g} ms", float(values.max()), place)
        time.set_yticks(range(len(bars)), [name for name, *_ in bars])
        time.set_xlabel("milliseconds (bar: median; ticks: blocks)")
        title(time, "Time")
        sizes = [("weights", about.get("weights_bytes")), ("average", about.get("extra_bytes"))]
        for place, (_, size) in enumerate(sizes):
            if isinstance(size, (int, float)):
                memory.barh([place], [size / 1e6], color=(GREY, BLUE)[place], height=0.55)
                _told(memory, f"{size / 1e6:.3g} MB", size / 1e6, place)
        memory.set_yticks(range(2), [name for name, _ in sizes])
        memory.set_xlabel("megabytes")
        title(memory, "Memory")
        for panel in (time, memory):
            panel.set_ylim(1.6, -0.6)
            panel.set_xlim(0.0, 1.25 * panel.get_xlim()[1])
            panel.grid(axis="y", visible=False)
    return figure


def _told(panel: Any, text: str, x: float, y: float) -> None:
    panel.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", fontsize=8, va="center")


def caption_cost(tasks: Tasks) -> str:
    """What the figure shows, in words."""
    del tasks
    return "Time of one training step and of one update of SWA's average; what both keep in memory."


def draw_policies(tasks: Tasks) -> Figure | None:
    """Test accuracy of each average by what its batch-norm statistics were."""
    records = tasks.get("averages", {})
    found = known(records, "average", set="test")
    names = [name for name in ("raw", "ema", "swa", "two_point") if name in found]
    names += [name for name in found if name not in names]
    policies = [p for p in _POLICIES if p in known(records, "policy", set="test")]
    if not names or len(policies) < 2:
        return None
    with style():
        figure, (panel,) = panels(1, 1, 7.8, 4.0)
        for group, name in enumerate(names):
            for k, policy in enumerate(policies):
                values = by_seed(records, "accuracy", average=name, policy=policy, set="test")
                place = group + 0.2 * (k - 0.5 * (len(policies) - 1))
                column(panel, place, [100 * v for v in values.values()], _POLICIES[policy][0],
                       spread=0.045)  # fmt: skip
        for policy in policies:
            panel.plot([], [], "o", color=_POLICIES[policy][0], label=_POLICIES[policy][1])
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
        panel.set_xticks(range(len(names)), [name_of(name) for name in names])
        panel.set_xlim(-0.5, len(names) - 0.5)
        panel.grid(axis="x", visible=False)
        panel.set_ylabel("test accuracy, %")
        title(panel, "By the batch-norm statistics used")
    return figure


def caption_policies(tasks: Tasks) -> str:
    """What the figure shows, in words."""
    del tasks
    return (
        "The same weights with batch-norm statistics recomputed on training images, averaged like "
        "the weights, or copied from the raw weights. Dots: seeds; bars: mean with 95 % interval."
    )
