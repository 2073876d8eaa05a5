"""`Advice`: the measured, predicted and recommended averages, and their record on disk."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import records
from tf_lrtraj.averaging.advising import sweep as families
from tf_lrtraj.averaging.advising.measured import MeasuredLosses, is_finite
from tf_lrtraj.averaging.advising.measurement_plan import RECOMMENDATIONS, Plan
from tf_lrtraj.averaging.advising.sweep import Candidate
from tf_lrtraj.records.archives import save_arrays
from tf_lrtraj.theory import AveragePredictor, diagnose

__all__ = ["Advice", "accuracy", "make_advice", "row_of"]

FORMAT = 1
LEVEL = 0.9  # probability of the bands
ADVICE, ARRAYS = "advice.json", "advice.npz"


@dataclasses.dataclass(frozen=True)
class Advice:
    """The measured, predicted and recommended averages.

    Attributes:
        record: the content of advice.json.
        arrays: the arrays of advice.npz.
    """

    record: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def recommended(self) -> np.ndarray:
        """[K] weights of the recommended average on the snapshots `arrays["steps"]`."""
        names = [row["name"] for row in self.record["averages"]]
        return self.arrays["weights"][names.index(self.record["recommended"])]

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes advice.npz and advice.json, each atomically."""
        folder = records.prepare_workdir(folder)
        save_arrays(folder / ARRAYS, self.arrays)
        records.write_json(folder / ADVICE, self.record)

    def __str__(self) -> str:
        record = self.record
        second = record["sets"][1] if len(record["sets"]) > 1 else None
        head = f"{'average':<18}{'mean age':>9}{'predicted':>11}{'90 % band':>18}{'measured':>10}"
        lines = [head + (f"{second:>10}" if second else "")]
        shown = [r for r in record["averages"] if "measured" in r or r["role"] == "recommendation"]
        for row in shown:
            band = f"{row['low']:.4f}–{row['high']:.4f}"
            values = [row.get("measured"), row.get(f"measured_{second}") if second else None]
            cells = [f"{v:>10.4f}" if is_finite(v) else f"{'-':>10}" for v in values]
            mark = " *" if row["name"] == record["recommended"] else ""
            lines.append(
                f"{row['name']:<18}{row['mean_age_updates']:>9.0f}{row['predicted']:>11.4f}"
                f"{band:>18}{cells[0]}{cells[1] if second else ''}{mark}"
            )
        lines.append(record["summary"])
        lines += [f"note: {finding['message']}" for finding in record["findings"]]
        lines += [f"note: {note}" for note in record["notes"]]
        return "\n".join(lines)


def row_of(
    candidate: Candidate,
    predictor: AveragePredictor,
    plain: AveragePredictor,
    role: str,
    measured: Mapping[str, float] | None,
    every: int,
) -> dict[str, Any]:
    prediction = predictor.predict(candidate.weights, LEVEL)
    row: dict[str, Any] = {
        "name": candidate.name,
        "family": candidate.family,
        "parameter": candidate.parameter,
        "role": role,
        "mean_age_updates": candidate.mean_age * every,
        "predicted": prediction.loss,
        "low": prediction.low,
        "high": prediction.high,
        "quadratic": plain.loss(candidate.weights),
        "mean_of_singles": float(candidate.weights @ predictor.losses),
    }
    if candidate.family == "ema":
        row["decay_per_update"] = candidate.parameter ** (1.0 / every)
    for name, value in (measured or {}).items():
        row[name.replace("loss", "measured", 1) if name.startswith("loss") else name] = value
    return row


def make_advice(
    plan: Plan,
    predictor: AveragePredictor,
    rows: list[dict[str, Any]],
    chosen: Candidate,
    notes: list[str],
    sets: list[MeasuredLosses],
    raw: Mapping[str, float],
) -> Advice:
    names = [losses.measurement.name for losses in sets]
    curves = _curves(plan.count, predictor)
    record: dict[str, Any] = {
        "format": FORMAT,
        "recommended": chosen.name,
        "sets": names,
        "identity": {losses.measurement.name: losses.measurement.identity for losses in sets},
        "images_per_measurement": {
            losses.measurement.name: losses.measurement.images for losses in sets
        },
        "snapshots": {
            "count": plan.count,
            "first": int(plan.steps[0]),
            "last": int(plan.steps[-1]),
            "every": plan.every,
        },
        "measured": {
            "singles": len(plan.singles),
            "pairs": len(plan.pairs),
            "calibration": len(plan.calibration),
            "recommendations": RECOMMENDATIONS,
            "sweep": len(plan.sweep),
            "losses": plan.measurements,
            "full_sweep": plan.full_sweep,
        },
        "level": LEVEL,
        "bend": predictor.bend,
        "model_error": predictor.model_error,
        "dimension": predictor.dimension,
        "raw_loss": float(predictor.losses[-1]),
        "raw": dict(raw),
        "averages": rows,
        "accuracy_of_prediction": accuracy(rows),
        "findings": [dataclasses.asdict(finding) for finding in diagnose(predictor)],
        "notes": notes,
    }
    record["summary"] = _summary(record, rows)
    arrays = {
        "steps": plan.steps,
        "singles": np.array(plan.singles),
        "losses": predictor.losses,
        **_gaps(predictor),
        **curves,
    }
    return Advice(record, arrays)


def _gaps(predictor: AveragePredictor) -> dict[str, np.ndarray]:
    """Returns the measured Jensen gaps with their lags, and the curve used in predictions."""
    if predictor.curve is not None:
        curve = predictor.curve.values
        return {"lags": predictor.gaps, "jensen_gaps": predictor.jensen_gaps, "gap_curve": curve}
    first, second = np.triu_indices(predictor.num_snapshots, 1)
    lags, gaps = second - first, predictor.gap_matrix[first, second]
    means = np.bincount(lags, gaps) / np.maximum(np.bincount(lags), 1)
    return {"lags": lags, "jensen_gaps": gaps, "gap_curve": means}


def _curves(count: int, predictor: AveragePredictor) -> dict[str, np.ndarray]:
    """Predicts every family: columns parameter, mean age, loss, low, high."""
    found = {}
    members = {
        "ema": [
            families.candidate("ema", a / (1.0 + a), count) for a in families.ages_of(count, 40)
        ],
        "swa": [families.candidate("swa", n, count) for n in _some(2, count)],
        "two_point": [families.candidate("two_point", n, count) for n in _some(1, count - 1)],
    }
    for family, line in members.items():
        table = []
        for member in line:
            p = predictor.predict(member.weights, LEVEL)
            table.append([member.parameter, member.mean_age, p.loss, p.low, p.high])
        found[f"curve_{family}"] = np.array(table)
    return found


def _some(low: int, high: int) -> list[int]:
    return np.unique(np.round(np.geomspace(low, high, 60)).astype(int)).tolist()


def accuracy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compares predictions with measurements that they did not use.

    Averages that calibrated the prediction, and the raw weights, are excluded.
    """
    seen = [
        r for r in rows if r["role"] not in ("calibration", "raw") and is_finite(r.get("measured"))
    ]
    if not seen:
        return {"averages": 0}
    measured = np.array([r["measured"] for r in seen])
    off = np.abs(np.array([r["predicted"] for r in seen]) / measured - 1.0)
    plain = np.abs(np.array([r["quadratic"] for r in seen]) / measured - 1.0)
    naive = np.abs(np.array([r["mean_of_singles"] for r in seen]) / measured - 1.0)
    inside = [r["low"] <= r["measured"] <= r["high"] for r in seen]
    return {
        "averages": len(seen),
        "median_relative_error": float(np.median(off)),
        "worst_relative_error": float(off.max()),
        "inside_band": int(np.sum(inside)),
        "median_without_calibration": float(np.median(plain)),
        "median_of_mean_single_loss": float(np.median(naive)),
    }


def _summary(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    row = next(r for r in rows if r["name"] == record["recommended"])
    spacing = record["snapshots"]["every"]
    what = {
        "ema": f"EMA of the snapshots with decay {row['parameter']:.4f} each "
        f"({row.get('decay_per_update', 0.0):.6f} per update)",
        "swa": f"mean of the last {row['parameter']:.0f} snapshots",
        "two_point": f"mean of the last snapshot and the one {row['parameter'] * spacing:.0f} "
        "updates before it",
        "spaced": f"mean of snapshots {row['parameter'] * spacing:.0f} updates apart",
        "weights": "its weights are in advice.npz",
        "raw": "the weights of the last snapshot, not averaged",
    }[row["family"]]
    text = f"recommended: {row['name']} ({what}), predicted {row['predicted']:.4f}"
    if is_finite(row.get("measured")):
        text += f", measured {row['measured']:.4f}; raw weights {record['raw_loss']:.4f}"
    found = record["accuracy_of_prediction"]
    if found["averages"] > 4:
        text += (
            f"\npredicted against measured, {found['averages']} averages: median error "
            f"{found['median_relative_error']:.2%}, worst {found['worst_relative_error']:.2%}, "
            f"{found['inside_band']} inside their 90 % band; the mean of the single losses is "
            f"{found['median_of_mean_single_loss']:.1%} off"
        )
        best = min((r for r in rows if is_finite(r.get("measured"))), key=lambda r: r["measured"])
        text += f"\nlowest measured: {best['name']}, {best['measured']:.4f}"
    return text
