"""Figure of the alignment of batch gradients with each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.drawing import BLUE, ORANGE, panels, style, title
from tf_lrtraj.report.probe_figures.bands import bars, caption, measured, sketch_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(records: Sequence[ArrayRecord]) -> Figure:
    """Draws cosines of batch gradients: a row of panels for each record."""
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
        caption(figure, sketch_note(records[0]))
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
    """Draws cosines of pairs of batches and with the mean of the others, and the estimates."""
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
            xerr=bars(error[known]),
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


def sentences(record: ArrayRecord) -> Iterator[str]:
    """Returns sentences on the findings of a record."""
    yield (
        f"cosine of two batches' gradients {measured(record, 'pair_cosine', 0)}, of a batch's and "
        f"the mean of the others {measured(record, 'rest_cosine', 0)}; "
        f"noise scale {measured(record, 'noise_scale', 0)} examples"
    )
