"""Figures of how gradients are aligned: with each other, and along a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, GREEN, ORANGE, PALETTE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import band, caption, label_ends, mode_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(records: ArrayRecord | Sequence[ArrayRecord]) -> Figure:
    """The figure of records of `Gradients` (a row for each), or of one of `LaggedGradients`."""
    given = [records] if isinstance(records, ArrayRecord) else list(records)
    if given[0].kind == "lagged_gradients":
        return _along(given[0])
    return _at_points(given)


# At a point -----------------------------------------------------------------------------------


def _at_points(records: Sequence[ArrayRecord]) -> Figure:
    per_layer = any(len(record.coordinates["layer"]) > 1 for record in records)
    columns = 3 if per_layer else 2
    with style():
        most = max(len(record.coordinates["layer"]) for record in records)
        height = max(3.6, 0.2 * most if per_layer else 0.0)
        figure, axes = panels(len(records), columns, 4.1 * columns, height * len(records))
        for row, record in enumerate(records):
            own = axes[row * columns : (row + 1) * columns]
            gram = record.values["gram"][0]
            lengths = np.sqrt(np.diag(gram))
            with np.errstate(invalid="ignore", divide="ignore"):
                cosines = gram / np.outer(lengths, lengths)
            _matrix(figure, own[0], cosines)
            where = f", step {record.about['step']:,}" if "step" in record.about else ""
            title(own[0], f"Cosines of batch gradients{where}")
            _histograms(own[1], record, cosines)
            if per_layer:
                _layers(own[2], record)
        _note(figure, records[0])
    return figure


def _matrix(figure: Figure, panel: Axes, cosines: np.ndarray) -> None:
    count = len(cosines)
    shown = np.where(np.eye(count, dtype=bool), np.nan, cosines)
    finite = np.abs(shown[np.isfinite(shown)])
    limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    panel.grid(False)
    image = panel.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    ticks = np.unique(np.linspace(0, count - 1, min(count, 5)).astype(int))
    panel.set_xticks(ticks, [str(i) for i in ticks])
    panel.set_yticks(ticks, [str(i) for i in ticks])
    panel.set_xlabel("batch")
    panel.set_ylabel("batch")
    figure.colorbar(image, ax=panel, shrink=0.85).set_label("cosine", fontsize=8)


def _histograms(panel: Axes, record: ArrayRecord, cosines: np.ndarray) -> None:
    """Batch against batch, and against the mean of the others; what follows from them."""
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    rest = record.values["batch_rest_cosine"][0]
    kinds = [("pair", pairs, BLUE, "two batches"), ("rest", rest, ORANGE, "batch, mean of others")]
    everything = np.concatenate([pairs, rest])
    everything = everything[np.isfinite(everything)]
    if not everything.size:
        return
    low, high = min(float(everything.min()), 0.0), float(everything.max())
    bins = np.linspace(low, high + 1e-9, 31)
    for name, values, color, label in kinds:
        values = values[np.isfinite(values)]
        mean, error = (float(record.values[f"{name}_cosine{end}"][0]) for end in ("", "_se"))
        shares = np.full(values.size, 1.0 / max(values.size, 1))
        panel.hist(
            values, bins.tolist(), weights=shares, color=color, alpha=0.55,
            label=f"{label}: {mean:.3f} ± {error:.3f}",
        )  # fmt: skip
        panel.axvline(mean, color=color, linewidth=1.2)
    panel.axvline(0.0, color="black", linewidth=0.8)
    top = panel.get_ylim()[1]
    panel.set_ylim(0.0, 1.3 * top)
    panel.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=7.5, loc="upper left")
    sizes = record.about.get("batch_sizes") or [0]
    panel.set_xlabel(f"cosine, batches of {sizes[0]:,}")
    panel.set_ylabel("share")
    scale, error = (float(record.values[f"noise_scale{end}"][0]) for end in ("", "_se"))
    about = f" ± {error:,.0f}" if np.isfinite(error) else ""
    text = f"Noise scale {scale:,.0f}{about} examples" if np.isfinite(scale) else (
        "Mean gradient not told from 0"
    )  # fmt: skip
    title(panel, text)


def _layers(panel: Axes, record: ArrayRecord) -> None:
    names = record.coordinates["layer"].tolist()
    places = np.arange(len(names))
    for name, color, shift in (("pair", BLUE, -0.12), ("rest", ORANGE, 0.12)):
        mean, error = (record.values[f"{name}_cosine{end}"] for end in ("", "_se"))
        known = np.isfinite(mean)
        panel.errorbar(
            mean[known],
            places[known] + shift,
            xerr=2.0 * np.where(np.isfinite(error[known]), error[known], 0.0),
            fmt="o",
            color=color,
            markersize=3.2,
            linewidth=1.0,
        )
    panel.axvline(0.0, color="black", linewidth=0.8)
    panel.set_yticks(places, names, fontsize=7)
    panel.invert_yaxis()
    panel.set_xlabel("mean cosine, 2 standard errors")
    title(panel, "Layer by layer")


# Along a trajectory ---------------------------------------------------------------------------


def _along(record: ArrayRecord) -> Figure:
    lags, steps, values = record.coordinates["lag"], record.coordinates["step"], record.values
    later = lags > 0
    with style():
        figure, (left, middle, right) = panels(1, 3, 14.2, 3.7)
        curves = [
            ("mean_cosine", BLUE, "the same batches"),
            ("full_cosine", GREEN, "full gradient (estimate)"),
        ]
        _curves(left, record, later, curves)
        title(left, "Gradient and gradient a lag later")
        curves = [
            ("mean_start_cosine", BLUE, "gradient at the start"),
            ("mean_end_cosine", ORANGE, "gradient at the end"),
        ]
        _curves(middle, record, later, curves)
        title(middle, "Gradient and way gone (below 0: downhill)")
        cosines = values["off_mean_cosine"]
        right.plot(steps, np.where(np.isfinite(cosines), cosines, np.nan), color=PALETTE[3])
        right.axhline(0.0, color="black", linewidth=0.8)
        right.set_xlabel("step")
        right.set_ylabel("cosine")
        mean = {"running": "the mean so far", "all": "the mean of all steps"}
        text = mean.get(str(record.about.get("mean")), "given weights")
        title(right, f"Gradient and way from {text}")
        _note(figure, record)
    return figure


def _curves(
    panel: Axes, record: ArrayRecord, later: np.ndarray, curves: list[tuple[str, str, str]]
) -> None:
    lags = record.coordinates["lag"][later].astype(np.float64)
    ends = {}
    for name, color, label in curves:
        mean, error = record.values[name][later], record.values[f"{name}_se"][later]
        band(panel, lags, mean, error, color, marker="o", markersize=3)
        ends[label] = (float(lags[-1]), float(mean[-1]), color)
    panel.axhline(0.0, color="black", linewidth=0.8)
    if lags.size > 1:
        panel.set_xscale("log")
    panel.set_xlabel("lag, updates")
    panel.set_ylabel("cosine")
    label_ends(panel, ends)


def _note(figure: Figure, record: ArrayRecord) -> None:
    note = mode_note(record.about)
    if record.about.get("sketch_size"):
        note += f"{', ' if note else ''}from sketches of {record.about['sketch_size']:,} numbers"
    caption(figure, note)
