"""Figure of the outer eigenvalues of the Hessian: at each point, and by Lanczos iterations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import PALETTE, columns, labels, panels, style
from tf_lrtraj.report.probe_figures.bands import (
    caption,
    label_ends,
    mode_note,
    names_of_points,
    number_with_error,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(records: Sequence[ArrayRecord]) -> Figure:
    """Left: the largest eigenvalues with their bounds.  Right: the largest one by iterations.

    Args:
        records: the records of `Eigenvalues`, of one point of training or several.
    """
    names = names_of_points(records, "step", "point")
    with style():
        figure, axes = panels(1, 2, 8.8, 3.6)
        ends = {}
        for index, record in enumerate(records):
            color, values = PALETTE[index % len(PALETTE)], record.values
            found, bounds = values["eigenvalues"], values["bounds"]
            at = index + np.linspace(-0.2, 0.2, found.shape[1])
            for start in range(found.shape[0]):
                axes[0].errorbar(
                    at, found[start], yerr=bounds[start], fmt="o", color=color, markersize=4,
                    linewidth=1.0, capsize=2,
                )  # fmt: skip
            iterations = record.coordinates["iteration"]
            axes[1].plot(iterations, values["largest"].T, color=color, linewidth=1.4)
            ends[names[index]] = (
                float(iterations[-1]),
                float(values["largest"][:, -1].mean()),
                color,
            )
        columns(axes[0], names)
        axes[0].set_ylim(min(0.0, axes[0].get_ylim()[0]), None)
        axes[1].set_ylim(min(0.0, axes[1].get_ylim()[0]), None)
        labels(axes[0], "", "eigenvalue", "Largest eigenvalues of the Hessian")
        labels(axes[1], "products with the Hessian", "largest eigenvalue found", "Convergence")
        label_ends(axes[1], ends)
        caption(figure, mode_note(records[0].about))
    return figure


def sentences(record: ArrayRecord) -> Iterator[str]:
    """Returns a sentence on the largest and smallest eigenvalue."""
    top, bound = record.values["eigenvalues"][:, 0], record.values["bounds"][:, 0]
    best = int(np.argmax(top))
    yield (
        "largest eigenvalue of the Hessian "
        f"{number_with_error(float(top[best]), float(bound[best]))}, smallest found "
        f"{float(record.values['smallest'][:, -1].min()):.2g}"
    )
