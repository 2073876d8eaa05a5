"""Figures of the speed of averages at a large rate, and of the synthetic experiments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.report import synthetic
from tf_lrtraj.report.drawing import BLUE, GREY, ORANGE, panels, style, title
from tf_lrtraj.report.probes.bands import band, label_ends
from tf_lrtraj.report.reproduction.marks import (
    SETS,
    Seeds,
    Tasks,
    count_of,
    interval,
    known,
    plain_log,
    rows,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_speed(tasks: Tasks) -> Figure | None:
    """Loss from scratch against steps: a large rate, its average, and a small rate."""
    records = tasks.get("speed", {})
    rates = known(records, "learning_rate")
    if not rates:
        return None
    large = max(rates)
    sets = [name for name in ("train_part", "train", "test") if known(records, "step", set=name)]
    with style():
        figure, axes = panels(1, len(sets), 1.8 + 4.2 * len(sets), 3.9)
        for panel, which in zip(axes, sets, strict=True):
            ends = {}
            for rate in rates:
                for of in ("raw", "average"):
                    color = BLUE if of == "average" else GREY if rate == large else ORANGE
                    steps, means, errors = _over_steps(records, which, float(rate), of)
                    if not steps:
                        continue
                    band(panel, steps, means, errors, color, marker="o", markersize=2.8)
                    label = f"rate {rate:.3g}" + (", average" if of == "average" else "")
                    ends[label] = (float(steps[-1]), means[-1], color)
            panel.set_xlabel("step")
            panel.set_ylabel(SETS[which])
            plain_log(panel, "y")
            title(panel, SETS[which].capitalize())
            label_ends(panel, ends)
    return figure


def _over_steps(
    records: Seeds, which: str, rate: float, of: str
) -> tuple[list[int], list[float], list[float]]:
    """(steps, mean loss over seeds, half of its 95 % interval's half width)."""
    at: dict[int, list[float]] = {}
    for record in records.values():
        for row in rows(record, set=which, learning_rate=rate, of=of):
            at.setdefault(int(row["step"]), []).append(float(row["loss"]))
    steps = sorted(at)
    found = [interval(at[step]) for step in steps]
    return steps, [mean for mean, _ in found], [0.5 * half for _, half in found]


def caption_speed(tasks: Tasks) -> str:
    """What the figure shows, in words."""
    seeds = len(tasks.get("speed", {}))
    return (
        "From scratch, at the same numbers of steps: raw weights at the large rate, the average of "
        "the last third of their steps, and raw weights at the small rate "
        f"({count_of(seeds)}; bands: 95 % interval)."
    )


def synthetic_record(seeds: Seeds) -> dict[str, Any]:
    """A record of a synthetic experiment as its figure wants it: lists of numbers as arrays."""
    if not seeds:
        return {}
    record = seeds[min(seeds)]
    flat = {**record.get("about", {}), **record}
    return {
        key: np.asarray(value) if isinstance(value, list) and key != "rows" else value
        for key, value in flat.items()
    }


def _drawn(tasks: Tasks, name: str, draw: Callable[[Mapping[str, Any]], Figure]) -> Figure | None:
    record = synthetic_record(tasks.get(name, {}))
    return draw(record) if record else None


def draw_two_time_scales(tasks: Tasks) -> Figure | None:
    """The model with fast noisy modes and a slow one."""
    return _drawn(tasks, "two_time_scales", synthetic.two_time_scales)


def draw_single_runs(tasks: Tasks) -> Figure | None:
    """What single runs of the model show, beside its formulas."""
    return _drawn(tasks, "single_runs", synthetic.single_runs)


def caption_two_time_scales(tasks: Tasks) -> str:
    """What the figure shows, in words."""
    record = synthetic_record(tasks.get("two_time_scales", {}))
    missed = [record.get(f"{name}_largest_miss") for name in ("large", "ema", "small")]
    told = [f"{float(miss):.1f}" for miss in missed if isinstance(miss, (int, float))]
    text = (
        "Synthetic model with fast noisy modes and one slow mode. Lines: exact expectation; dots: "
        "mean of simulated runs with two standard errors."
    )
    if told:
        text += f" Largest miss of a curve, in standard errors: {', '.join(told)}."
    return text


def caption_single_runs(tasks: Tasks) -> str:
    """What the figure shows, in words."""
    del tasks
    return (
        "What single runs of the synthetic model show (dots and thin lines), beside its formulas "
        "(lines): one-step curves, their zero, distance, displacement, the shell, two runs."
    )
