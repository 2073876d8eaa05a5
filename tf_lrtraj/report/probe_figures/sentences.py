"""What a record of a probe found, in a sentence or two, from its numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.probe_figures.bands import number_with_error

_CURVES = {"train": "its own batch", "held_out": "held-out batches", "others": "other training"}
_GROUPS = ("train", "held_out", "others")


def sentences(record: ArrayRecord) -> list[str]:
    """What was found; empty for kinds without a summary, and for records not complete.

    >>> record = ArrayRecord.empty("plane", {"step": [0, 9]}, {"trajectory_residual": ["step"]})
    >>> record.put("trajectory_residual", ..., [0.0, 1.5])
    >>> sentences(record)
    ['the trajectory lies up to 1.5 off the plane']
    """
    found = _TELL[record.kind](record) if record.kind in _TELL and record.complete else iter(())
    where = f"step {record.about['step']:,}: " if "step" in record.about else ""
    return [f"{where}{text}" for text in found]


def _of(record: ArrayRecord, name: str, index: Any = ()) -> str:
    values = record.values
    return number_with_error(float(values[name][index]), float(values[f"{name}_se"][index]))


def _line(record: ArrayRecord) -> Iterator[str]:
    batches = len(record.coordinates["batch"])
    for i, curve in enumerate(record.coordinates["curve"].tolist()):
        text = f"{_CURVES[curve]}: best at rate {_of(record, 'mean_best_rate', i)}"
        text += f", lower by {_of(record, 'mean_gain', i)}"
        crossing = record.values["mean_zero_crossing"][i]
        if np.isfinite(crossing):
            text += f"; the gain is gone at {_of(record, 'mean_zero_crossing', i)}"
        yield f"{text} (mean of {batches} batches)"
    degrees = record.coordinates["degree"].tolist()
    windows = record.coordinates["window"].tolist()
    if 2 in degrees and 2.0 in windows:
        errors = record.values["fit_error"][degrees.index(2), windows.index(2.0)]
        if np.isfinite(errors).any():
            middle, worst = np.nanmedian(errors), np.nanmax(errors)
            yield (
                "a parabola fits each batch's own curve up to twice its best rate within "
                f"{100 * middle:.2g} % of the drop (median; worst {100 * worst:.2g} %)"
            )


def _side_trip(record: ArrayRecord) -> Iterator[str]:
    last = len(record.coordinates["step"]) - 1
    rate = record.about.get("learning_rate", [float("nan")])[0]
    parts = []
    for group in _GROUPS:
        if f"{group}_mean" in record.values:
            means = record.values[f"{group}_mean"]
            after = f" to {means[3]:.3f} after 3" if last > 3 else ""
            parts.append(f"{_CURVES[group]} from {means[0]:.3f}{after} to {means[last]:.3f}")
    yield f"{last} steps at rate {rate:.3g}: " + "; ".join(parts)


def _basin(record: ArrayRecord) -> Iterator[str]:
    verdicts = ("one basin", "undecided", "barrier")  # -1, 0, 1
    for prefix, name in (("", "training"), ("held_out_", "held-out")):
        if f"{prefix}verdict" not in record.values:
            continue
        found = np.asarray(record.values[f"{prefix}verdict"][:, 0] + 1, np.int64)
        counts = [f"{int(np.sum(found == i))} {text}" for i, text in enumerate(verdicts)]
        worst = int(np.argmax(record.values[f"{prefix}barrier"][:, 0]))
        text = f"{name} loss, {len(found)} segments: {', '.join(counts)}"
        if record.values[f"{prefix}barrier"][worst, 0] > 0.0:
            first, second = (record.coordinates[end][worst] for end in ("first", "second"))
            height = _of(record, f"{prefix}barrier", (worst, 0))
            text += f"; highest barrier {height}, from {first} to {second}"
        yield text


def _width(record: ArrayRecord) -> Iterator[str]:
    rise = record.about.get("rise")
    for prefix, name in (("", "training"), ("held_out_", "held-out")):
        if f"{prefix}width_mean" not in record.values:
            continue
        for i, point in enumerate(record.coordinates["point"].tolist()):
            width = float(record.values[f"{prefix}width_mean"][i])
            if np.isfinite(width):
                error = float(record.values[f"{prefix}width_se"][i])
                at = number_with_error(width, error)
                yield f"{name} loss of {point} has risen by {rise} at distance {at} along rays"


def _gradients(record: ArrayRecord) -> Iterator[str]:
    yield (
        f"cosine of two batches' gradients {_of(record, 'pair_cosine', 0)}, of a batch's and the "
        f"mean of the others {_of(record, 'rest_cosine', 0)}; "
        f"noise scale {_of(record, 'noise_scale', 0)} examples"
    )


def _lagged(record: ArrayRecord) -> Iterator[str]:
    lags = record.coordinates["lag"]
    for i in sorted({int(np.argmax(lags > 0)), len(lags) - 1}):
        yield f"gradients of the same batches {lags[i]} updates apart: cosine " + _of(
            record, "mean_cosine", i
        )


def _distance(record: ArrayRecord) -> Iterator[str]:
    if np.isfinite(record.values["squared_growth"]):  # enough steps for large lags
        yield f"squared displacement grows as lag to the power {_of(record, 'squared_growth')}"
    if np.isfinite(record.values.get("filters_squared_growth", np.inf)):
        power = _of(record, "filters_squared_growth")
        yield f"that of filters divided by their norms as lag to the power {power}"


def _ensemble(record: ArrayRecord) -> Iterator[str]:
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
        f"{_of(record, 'pair_difference_exponent')}, ensemble and average of weights to the power "
        f"{_of(record, 'ensemble_difference_exponent')}"
    )


def _plane(record: ArrayRecord) -> Iterator[str]:
    if "trajectory_residual" in record.values:
        residual = float(np.max(record.values["trajectory_residual"]))
        yield f"the trajectory lies up to {residual:.3g} off the plane"


def _curvature(record: ArrayRecord) -> Iterator[str]:
    values = record.values
    text = f"dᵀHd/‖d‖² along the step: median {np.median(values['per_square']):.3g}"
    if "disagreement" in values:
        text += f"; products are {100 * np.median(values['disagreement']):.2g} % off (median)"
    yield f"{text}; noise of one loss {np.median(values['noise']):.1e}"


def _modes(record: ArrayRecord) -> Iterator[str]:
    names = record.coordinates["mode"].tolist()
    told = [f"{name}: {_of(record, 'mean', i)}" for i, name in enumerate(names)]
    yield f"loss by batch norm and dropout: {'; '.join(told)}"


_TELL: dict[str, Callable[[ArrayRecord], Iterator[str]]] = {
    "line": _line,
    "side_trip": _side_trip,
    "basin": _basin,
    "width": _width,
    "gradients": _gradients,
    "lagged_gradients": _lagged,
    "distance": _distance,
    "ensemble": _ensemble,
    "plane": _plane,
    "curvature": _curvature,
    "modes": _modes,
}
