"""Claim O5: what the reach of one step on a batch depends on."""

from __future__ import annotations

import numpy as np

from tf_lrtraj.claims.records_reader import Measured, NotMeasured, Records
from tf_lrtraj.claims.verdicts import Claim, ExtraNumber, Judgement, Wanted, conclude
from tf_lrtraj.statistics import TOST, PairedRatio

DEPENDENCE = Wanted(
    "dependence",
    "lowest loss along a step over that at its start: largest batches less smallest",
    low=0.1,
)
POSITION = Wanted(
    "position",
    "the narrow network's reach: 0 if images per weight decide, 1 if images alone do",
    low=-0.5,
    high=0.5,
    level=TOST,
)


def judge_o5(records: Records) -> Judgement:
    """Reach of two networks at equal images per weight, and at equal batch size."""
    found = records.measured("reach")
    rises, off, apart = [], [], []
    curves: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"wide": [], "narrow": []}
    for record in found:
        wide, narrow = _curve(record, "wide"), _curve(record, "narrow")
        curves["wide"].append(wide)
        curves["narrow"].append(narrow)
        rises.append(float(wide[1][-1] - wide[1][0]))
        distances = _compared(wide, narrow, _weights(record, "wide") / _weights(record, "narrow"))
        off.append(float(distances[0].mean()))
        apart.append(float(distances[1].mean()))
    parts = [DEPENDENCE.judge(rises), POSITION.judge(PairedRatio(off, apart))]
    at_size = [abs(a - b) for a, b in zip(apart, off, strict=True)]
    numbers = [
        ExtraNumber(
            "off_at_equal_images_per_weight",
            "reach of the narrow network less the wide one's, at equal images per weight",
            off,
        ),
        ExtraNumber("off_at_equal_size", "the same in size, at equal batch size", at_size),
    ]
    weights = {name: _weights(found[0], name) for name in curves}
    return conclude(parts, numbers=numbers, drawn={"curves": curves, "weights": weights})


def _place(record: Measured, network: str) -> dict[str, object]:
    return {"network": network, "step": int(record.setting("steps"))}


def _weights(record: Measured, network: str) -> float:
    return float(record.values("weights", **_place(record, network))[0])


def _curve(record: Measured, network: str) -> tuple[np.ndarray, np.ndarray]:
    """([size] of batches, ascending, [size] mean lowest loss over the mean one at the start)."""
    sizes, lowest, start = record.curve("size", "lowest", "start", **_place(record, network))
    return sizes, lowest / start


def _compared(
    wide: tuple[np.ndarray, np.ndarray], narrow: tuple[np.ndarray, np.ndarray], ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """At each of the narrow network's sizes that can be compared: its reach, and that of the wide
    one at the same size, both less the wide one's at equal images per weight.

    That is at `ratio` times the size, between sizes by a straight line over their logarithm.
    """
    sizes, reach = narrow
    places = np.log(wide[0])
    inside = ratio * sizes <= wide[0][-1] * (1.0 + 1e-9)
    inside &= sizes >= wide[0][0]
    if not inside.any():
        raise NotMeasured("No size of batches has equal images per weight in both networks.")
    equal = np.interp(np.log(ratio * sizes[inside]), places, wide[1])
    same = np.interp(np.log(sizes[inside]), places, wide[1])
    return reach[inside] - equal, same - equal


CLAIMS = (
    Claim(
        "O5",
        "How far one step reaches is set by images per weight",
        "The reach of one step, the lowest loss of its batch along it over the loss at the start, "
        "is a function of images per weight.",
        "found here",
        ("reach",),
        "one step on batches of several sizes, in the base run after a few epochs and in a run of "
        "as many updates with a narrower network",
        (DEPENDENCE, POSITION),
        "A tenth of the starting loss is what B5 calls near 0: a reach that changes by less over "
        "all sizes depends on nothing. If images per weight decide, the two networks agree "
        "where these are equal; if the number of images alone does, they agree at equal batch "
        "size. Where the narrow network lies between the two (0 and 1) is the answer, and nearer "
        "to the first than to the second is what the sentence says. It is judged as an equality "
        "is, by two one-sided tests.",
        judge_o5,
    ),
)
