"""Claim O2: test against training loss of averages, and of what has a lower rate instead."""

from __future__ import annotations

import numpy as np

from tf_lrtraj.claims.records_reader import Measured, Records
from tf_lrtraj.claims.statistics import over_seeds
from tf_lrtraj.claims.verdicts import Claim, Condition, Judgement, Told, Wanted, conclude
from tf_lrtraj.records import RecordError

FAMILIES = {"rate": "low rates", "decay": "decays"}
LOWER = Wanted(
    "difference", "test loss of averages less that of the curve at equal training loss", high=0.0
)


def judge_o2(records: Records) -> Judgement:
    """Test loss of averages less that of a family's curve, at the averages' training loss."""
    found = records.measured("trade_off")
    known = found[0].known("family")
    families = [family for family in FAMILIES if family in known]
    if "average" not in known or not families:
        raise RecordError(f"{found[0].name} names no average, or nothing to compare it with.")
    parts, numbers, conditions = [], [], []
    averages = [_points(record, "average") for record in found]
    drawn = {"averages": averages}
    for family in families:
        curves = [_curve(record, family) for record in found]
        each = [
            {label: test - float(np.interp(train, *curve)) for label, (train, test) in one.items()}
            for one, curve in zip(averages, curves, strict=True)
        ]
        inside = [
            float(np.mean([curve[0][0] <= train <= curve[0][-1] for train, _ in one.values()]))
            for one, curve in zip(averages, curves, strict=True)
        ]
        name = FAMILIES[family]
        conditions.append(
            Condition(
                f"overlap_{family}",
                f"{name}: share of averages whose training loss lies within the curve's",
                float(np.mean(inside)),
                low=0.999,
            )
        )
        mean = [float(np.mean(list(one.values()))) for one in each]
        parts.append(LOWER.judge(over_seeds(mean), name))
        for label in averages[0]:
            what = f"{name}: the same for the average {label}"
            numbers.append(
                Told(f"difference_{family}_{label}", what, over_seeds([one[label] for one in each]))
            )
        drawn[family] = curves
    return conclude(parts, conditions=conditions, numbers=numbers, drawn=drawn)


def _points(record: Measured, family: str) -> dict[str, tuple[float, float]]:
    """label → training and test loss, means over what has that label."""
    labels = dict.fromkeys(row.get("label") for row in record.select(family=family))
    points = {}
    for label in labels:
        train, test = (
            float(record.values("loss", family=family, label=label, set=on).mean())
            for on in ("train_part", "test")
        )
        points[str(label)] = train, test
    return points


def _curve(record: Measured, family: str) -> tuple[np.ndarray, np.ndarray]:
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
        "best of them. An average outside the curve's range would be compared with a point of "
        "another training loss: then nothing is decided.",
        judge_o2,
    ),
)
