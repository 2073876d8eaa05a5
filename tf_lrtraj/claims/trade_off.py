"""Claim O2: test against training loss of averages, and of what has a lower rate instead."""

from __future__ import annotations

import numpy as np

from tf_lrtraj.claims.records_reader import Measured, NotMeasured, Records
from tf_lrtraj.claims.verdicts import Claim, ExtraNumber, Judgement, Part, Wanted, conclude
from tf_lrtraj.records import RecordError

FAMILIES = {"rate": "low rates", "decay": "decays"}
LOWER = Wanted(
    "difference", "test loss of averages less that of the curve at equal training loss", high=0.0
)


Points = dict[str, tuple[float, float]]  # label → training and test loss
Curve = tuple[np.ndarray, np.ndarray]  # training losses, ascending, and test losses


def judge_o2(records: Records) -> Judgement:
    """Test loss of averages less that of a family's curve, at the averages' training loss."""
    found = records.measured("trade_off")
    known = found[0].known("family")
    averages = [_points(record, "average") for record in found]
    parts: list[Part] = []
    numbers: list[ExtraNumber] = []
    curves: dict[str, list[Curve]] = {}
    for family, name in FAMILIES.items():
        if family not in known:
            continue
        curves[name] = [_curve(record, family) for record in found]
        pairs = list(zip(averages, curves[name], strict=True))
        labels = [
            label
            for label in averages[0]
            if all(curve[0][0] <= points[label][0] <= curve[0][-1] for points, curve in pairs)
        ]
        if not labels:
            continue
        table = np.array(
            [[_difference(points[label], curve) for label in labels] for points, curve in pairs]
        )
        parts.append(LOWER.judge(table.mean(axis=1), name))
        for label, column in zip(labels, table.T, strict=True):
            what = f"{name}: the same for the average {label}"
            numbers.append(ExtraNumber(f"difference_{family}_{label}", what, column))
    if not parts:
        raise NotMeasured("No average has a training loss that a low rate or a decay passes.")
    return conclude(parts, numbers=numbers, drawn={"averages": averages, "curves": curves})


def _difference(point: tuple[float, float], curve: Curve) -> float:
    return point[1] - float(np.interp(point[0], *curve))


def _points(record: Measured, family: str) -> Points:
    """label → training and test loss, means over what has that label."""
    labels = dict.fromkeys(row.get("label") for row in record.select(family=family))
    points: Points = {}
    for label in labels:
        train, test = (
            float(record.values("loss", family=family, label=label, set=on).mean())
            for on in ("train_part", "test")
        )
        points[str(label)] = train, test
    return points


def _curve(record: Measured, family: str) -> Curve:
    """Training and test losses of a family, in ascending order of the former."""
    found = sorted(_points(record, family).values())
    if len(found) < 2:
        raise RecordError(f"{record.name} has fewer than 2 points of {family!r}.")
    train, test = np.array(found).T
    return train, test


CLAIMS = (
    Claim(
        "O2",
        "At equal training loss averages have lower test loss",
        "At equal training loss averages have lower test loss than iterates of low-rate and of "
        "decayed runs.",
        "found here, registered before this run",
        ("trade_off",),
        "Training and test loss of averages, of late iterates at lower rates and of states along "
        "decays, batch norm recomputed; the test loss of the latter is interpolated at each "
        "average's training loss, seed by seed.",
        (LOWER,),
        "The sentence is about a sign, so 0 decides. The mean over all averages is judged, not the "
        "best of them. Averages count whose training loss lies within the curve's range in every "
        "seed: others would be compared with points of another training loss.",
        judge_o2,
    ),
)
