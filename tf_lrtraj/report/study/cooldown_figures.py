"""Figure of what averages lack of a cooldown's gain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.claims import Judgement
from tf_lrtraj.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALETTE,
    columns,
    dots,
    labels,
    legend,
    panels,
    seed_lines,
    sparse_log_ticks,
)
from tf_lrtraj.report.study.claim_figure import draws

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PATHS = {
    "constant": ("constant rate", GREY),
    "cooldown": ("cooldown", GREEN),
    "from_average": ("full rate, from the average", BLUE),
    "from_cooldown": ("full rate, from the cooldown's end", ORANGE),
}


@draws(
    "O3",
    alt="Missing loss by rate times length; losses of short averages along a cooldown and after "
    "it; largest eigenvalues of the Hessian",
    caption="Thin lines and dots: seeds; thick lines: means. Left: what the average lacks of the "
    "cooldown over the same updates. Middle: losses of short averages, which keep a part of the "
    "noise.",
)
def _draw_o3(judgement: Judgement) -> Figure:
    drawn = judgement.drawn
    figure, axes = panels(1, 3, 10.0, 3.9)
    rates, lengths, missing = drawn["rates"], drawn["lengths"], drawn["missing"]
    for i, rate in enumerate(rates):
        color = PALETTE[i % len(PALETTE)]
        x = rate * lengths
        seed_lines(axes[0], x, missing[:, i], color, "o-", markersize=4, label=f"rate {rate:g}")
    axes[0].set_xscale("log")
    sparse_log_ticks(axes[0].xaxis)
    if (missing.mean(axis=0) > 0.0).all():
        axes[0].set_yscale("log")
        sparse_log_ticks(axes[0].yaxis)
    else:
        axes[0].axhline(0.0, color="black", linewidth=0.8)
    labels(axes[0], "rate × length", "missing loss, nats", "What the average lacks")
    _floors(axes[1], drawn)
    names = list(drawn["eigenvalues"])
    columns(axes[2], names)
    for place, name in enumerate(names):
        dots(axes[2], place, drawn["eigenvalues"][name], PALETTE[place])
    axes[2].set_ylim(0.0, None)
    labels(axes[2], "", "eigenvalue", "Hessian's largest eigenvalue")
    legend(figure, panel=axes[0], loc="outside upper left")
    legend(figure, panel=axes[1], loc="outside upper right")
    return figure


def _floors(axes: Axes, drawn: Any) -> None:
    for name, (label, color) in _PATHS.items():
        steps = drawn["floors"][0][name][0] - drawn["end"]
        losses = np.array([floor[name][1] for floor in drawn["floors"]])
        seed_lines(axes, steps, losses, color, label=label)
    axes.axvline(0.0, color="black", linewidth=0.8)
    labels(
        axes,
        "updates after the end",
        "loss of a short average, nats",
        "Along the cooldown and after it",
    )
