"""Figure of an ensemble: differences of predictions by distance of weights, and scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREEN, GREY, ORANGE, PALETTE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import (
    caption,
    label_ends,
    measured,
    mode_note,
    number_with_error,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = (("pair", BLUE, "two members"), ("ensemble", ORANGE, "ensemble, average"))


def draw(record: ArrayRecord) -> Figure:
    """Draws differences of predictions by the spread of weights, and losses and accuracies."""
    logits = "pair_logit_difference" in record.values
    names = [("difference", "probabilities" if logits else "outputs")]
    names += [("logit_difference", "logits")] if logits else []
    scores = ["loss"]
    if np.isfinite(record.values["mean_ensemble_accuracy"]):
        scores.append("accuracy")
    columns = len(names) + 1
    with style():
        figure, axes = panels(1, columns, 4.6 * columns, 3.8)
        for panel, (name, what) in zip(axes, names, strict=False):
            _differences(panel, record, name, what)
        figure.delaxes(axes[-1])
        grid = axes[-1].get_subplotspec().subgridspec(1, len(scores))  # type: ignore[union-attr]
        for place, what in enumerate(scores):
            _scores(figure.add_subplot(grid[0, place]), record, what)
        caption(figure, mode_note(record.about))
    return figure


def _differences(panel: Axes, record: ArrayRecord, name: str, what: str) -> None:
    spread = record.values["spread"]
    ends = {}
    for who, color, label in _KINDS:
        mean = record.values[f"mean_{who}_{name}"]
        error = record.values[f"mean_{who}_{name}_se"]
        bars = np.where(np.isfinite(error), np.minimum(2.0 * error, 0.9 * mean), 0.0)
        panel.errorbar(spread, mean, yerr=bars, fmt="o", color=color, markersize=4, linewidth=1.0)
        power, its_error = (
            float(record.values[f"{who}_{name}_exponent{end}"]) for end in ("", "_se")
        )
        text = label
        if np.isfinite(power) and np.all(mean > 0.0):
            middle = np.exp(np.mean(np.log(mean)) - power * np.mean(np.log(spread)))
            panel.plot(spread, middle * spread**power, color=color, linewidth=1.4)
            text += f"\npower {power:.2f}"
            text += f" ± {its_error:.2f}" if np.isfinite(its_error) else ""
        ends[text] = (float(spread[0]), float(mean[0]), color)
    if name == "difference":
        count = len(record.coordinates["member"])
        first, second = np.triu_indices(count, 1)
        pairs = np.sqrt((record.values["pair_difference"][0, first, second] ** 2).mean(axis=-1))
        own = record.values["distance"][first, second] / np.sqrt(2.0)
        panel.plot(own, pairs, ".", color=GREY, markersize=3, alpha=0.7, zorder=0)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.xaxis.set_minor_formatter("")
    panel.set_xlabel("distance of members from their mean, in weights")
    panel.set_ylabel(f"difference of {what}, root mean square")
    title(panel, f"Predictions apart: {what}")
    label_ends(panel, ends)


def _scores(panel: Axes, record: ArrayRecord, what: str) -> None:
    """Draws members, average and ensemble; bars are of the difference from the members' mean."""
    members = record.values[f"member_{what}"].mean(axis=-1)
    mean = float(record.values[f"mean_member_{what}"])
    panel.plot(np.zeros(members.size), members, "o", color=GREY, alpha=0.6, markersize=4)
    panel.axhline(mean, color=GREY, linewidth=1.0, linestyle=":")
    for place, (who, color) in enumerate((("average", GREEN), ("ensemble", PALETTE[3])), 1):
        change, error = (float(record.values[f"{who}_{what}_change{end}"]) for end in ("", "_se"))
        panel.errorbar(
            [place],
            [mean + change],
            yerr=[2.0 * error] if np.isfinite(error) else None,
            fmt="D",
            color=color,
            markersize=5,
        )
    panel.set_xticks(range(3), ["members", "average", "ensemble"], fontsize=7.5, rotation=30)
    panel.set_xlim(-0.5, 2.5)
    title(panel, what.capitalize())


def sentences(record: ArrayRecord) -> Iterator[str]:
    """Returns sentences on the findings of a record."""

    def accuracy(name: str) -> str:
        mean, error = (100 * float(record.values[f"mean_{name}_accuracy{s}"]) for s in ("", "_se"))
        return f"{number_with_error(mean, error)} %"

    yield (
        f"accuracy: members {accuracy('member')}, ensemble {accuracy('ensemble')}, average of "
        f"weights {accuracy('average')}"
    )
    if not np.isfinite(record.values["ensemble_difference_exponent"]):
        return
    yield (
        "predictions of two members differ as distance to the power "
        f"{measured(record, 'pair_difference_exponent')}, ensemble and average of weights to the "
        f"power {measured(record, 'ensemble_difference_exponent')}"
    )
