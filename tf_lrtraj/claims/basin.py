"""Claim B6: where side trips end, seen along straight lines."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from tf_lrtraj.claims.records_reader import NotRun, Probed, Records
from tf_lrtraj.claims.statistics import Estimate, combine, mean_of, student
from tf_lrtraj.claims.verdicts import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Interval,
    Judgement,
    Part,
    above,
    conclude,
    number,
    shown,
)
from tf_lrtraj.records import RecordError

# Ends of trips have next to no loss, so a share of theirs means nothing: the unit is the loss
# at the start of the trips.  A tenth of it is near 0, as in B5.
LEVEL = 0.1
_POINT = re.compile(r"trip-(\d+)-(\d+)|main-(\d+)")


class _Pair(NamedTuple):
    """A segment of the record: row, and (step, batch) of its ends; batch None on the trajectory."""

    row: int
    first: tuple[int, int | None]
    second: tuple[int, int | None]


def judge_b6(records: Records) -> Judgement:
    """Barriers between ends of trips on one batch, and between an end and the trajectory."""
    own: list[np.ndarray] = []
    to_trajectory: list[np.ndarray] = []
    changes: list[Estimate] = []
    for probe in records.probes("basin", "basin"):
        pairs = _pairs(probe)
        position = np.asarray(probe.coordinate("position"), np.float64)
        inside = (position >= 0.0) & (position <= 1.0)
        losses, held = probe.array("loss")[:, 0], probe.array("held_out_loss")[:, 0]
        start = _start(probe)
        between = [p for p in pairs if None not in (p.first[1], p.second[1])]
        for pair in between:
            if pair.first[1] == pair.second[1] and pair.first[0] != pair.second[0]:
                curve = losses[pair.row, :, pair.first[1] or 0][inside][:, None]
                own.append(_heights(position[inside], curve) / start)
        for pair in pairs:
            end, main = sorted((pair.first, pair.second), key=lambda p: p[1] is None)
            if end[1] is None or main[1] is not None or end[0] != main[0]:
                continue
            curve = held[pair.row][inside]
            turned = curve if pair.first == main else curve[::-1]
            to_trajectory.append(_heights(position[inside], turned) / start)
            changes.append(mean_of((turned[-1] - turned[0]) / start, "held-out batches"))
    missing = []
    if not own:
        missing.append("probes/seed0/basin.npz with two ends of trips on one batch")
    if not to_trajectory:
        missing.append("probes/seed0/basin.npz with an end of a trip and its start")
    if missing:
        raise NotRun(missing)
    trips_table = np.concatenate(own, axis=1)
    parts = [
        _barrier("between_ends", trips_table, "own loss between the ends of trips on one batch"),
        _barrier(
            "to_trajectory",
            np.mean(to_trajectory, axis=0),
            "held-out loss between the ends of trips and their starts",
        ),
        above(
            "held_out_rise",
            combine(changes),
            0.0,
            "held-out loss at the ends of trips less that at their starts, over the loss there,",
        ),
    ]
    notes = [
        f"{trips_table.shape[1]} pairs of trips on one batch; barriers are heights over the "
        "straight line between the losses of the ends, in units of the loss at the start of trips"
    ]
    return conclude(parts, notes=notes)


def _pairs(probe: Probed) -> list[_Pair]:
    found = []
    ends = probe.coordinate("first"), probe.coordinate("second")
    if len(ends[0]) != len(ends[1]):
        raise RecordError(f"{probe.name}: 'first' and 'second' differ in length.")
    for row, names in enumerate(zip(*ends, strict=True)):
        first, second = (_place(str(name)) for name in names)
        if first is not None and second is not None:
            found.append(_Pair(row, first, second))
    if not found:
        raise RecordError(
            f"{probe.name}: points must be named trip-STEP-BATCH, or main-STEP on the trajectory."
        )
    batches = len(probe.coordinate("batch"))
    for pair in found:
        for _, batch in (pair.first, pair.second):
            if batch is not None and batch >= batches:
                raise RecordError(f"{probe.name} has no batch {batch}.")
    return found


def _place(name: str) -> tuple[int, int | None] | None:
    match = _POINT.fullmatch(name)
    if not match:
        return None
    trip, batch, main = match.groups()
    return (int(main), None) if main else (int(trip), int(batch))


def _start(probe: Probed) -> float:
    """The mean loss of the trips' batches at the starts of the trips."""
    found = probe.record.about.get("loss_at_starts")
    if not isinstance(found, (int, float)) or not 0.0 < found < np.inf:
        raise RecordError(f"{probe.name}: the loss at the starts of trips must be positive.")
    return float(found)


def _heights(position: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """[positions, n] losses over the straight line between those of the ends."""
    share = position[:, None]
    return curve - ((1.0 - share) * curve[0] + share * curve[-1])


def _barrier(name: str, heights: np.ndarray, what: str) -> Part:
    """One basin if the upper limits at all positions are below the level.

    The largest upper limit (97.5 %) exceeds the true maximum with that confidence wherever
    it is.  A barrier: the position is chosen on one half of the entries, and the lower limit
    of the height there over the other half is above the level.
    """
    count = heights.shape[1]
    means = heights.mean(axis=1)
    value = max(float(means.max()), 0.0)
    if count < 2:
        interval = Interval(value, -np.inf, np.inf)
    else:
        errors = heights.std(axis=1, ddof=1) / np.sqrt(count)
        upper = max(float(np.max(means + student(count - 1.0) * errors)), 0.0)
        each = np.empty(count)
        for half in range(2):
            chosen = int(np.argmax(heights[:, 1 - half :: 2].mean(axis=1)))
            each[half::2] = heights[chosen, half::2]
        interval = Interval(value, mean_of(each).interval().low, upper)
    verdict = INCONCLUSIVE
    if interval.high < LEVEL:
        verdict = REPRODUCED
    elif interval.low > LEVEL:
        verdict = NOT_REPRODUCED
    text = f"{what}: barrier {shown(interval)} (wanted: below {number(LEVEL)})"
    return Part(name, interval, verdict, text)


CLAIMS = (
    Claim(
        "B6",
        "Side trips on the same batch from different points end in one basin; held-out loss "
        "rises, yet they stay in the basin of the main trajectory.",
        "Sandler et al. 2023, arXiv 2301.02312",
        ("basin",),
        "losses along straight lines between the ends of side trips on one batch from different "
        "points, and between each end and its start",
        f"the upper limit of both barriers is below {LEVEL:g} of the loss at the start of the "
        "trips; the held-out loss at the ends is above that at the starts",
        "Two points share a basin if no barrier stands between them. Ends of trips have next to no "
        "loss, so its shares mean nothing; a tenth of the starting loss is what B5 calls near 0. "
        "The upper limit holds wherever on the line the maximum is.",
        judge_b6,
    ),
)
