"""Claim B6: where side trips end, seen along straight lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lrtraj.claims.records_reader import NotMeasured, Probed, Records
from tf_lrtraj.claims.verdicts import SANDLER, Claim, Condition, Judgement, Wanted, conclude
from tf_lrtraj.records import RecordError

# Ends of trips have next to no loss, so a share of theirs means nothing: the unit is the loss
# at the start of the trips.  A tenth of it is near 0, as in B5.
LEVEL = 0.1
_IN_UNITS = "in units of the loss at the starts"
BETWEEN = Wanted(
    "between_ends",
    f"barrier in a batch's own loss between two trips' ends, {_IN_UNITS}",
    high=LEVEL,
)
TO_MAIN = Wanted(
    "to_trajectory",
    f"barrier in held-out loss between the end of a trip and its start, {_IN_UNITS}",
    high=LEVEL,
)
RISE = Wanted(
    "held_out_rise",
    f"held-out loss at the end of a trip less that at its start, {_IN_UNITS}",
    low=0.0,
)


def judge_b6(records: Records) -> Judgement:
    """Barriers between ends of trips on one batch, and between an end and the trajectory."""
    curves: dict[str, list[np.ndarray]] = {}
    found = records.probes("basin", "basin")
    for probe in found:
        for kind, values in curves_of(probe).items():
            curves.setdefault(kind, []).append(values)
    for kind, what in (
        ("ends", "the ends of trips on one batch"),
        ("to_main", "an end of a trip and its start"),
        ("control_ends", "ends of trips from different seeds' runs, the control"),
        ("control_to_main", "an end of a trip and another seed's run, the control"),
    ):
        if len(curves.get(kind, [])) < len(found):
            raise NotMeasured(f"No segments between {what}.")
    barriers = {kind: [_barrier(table) for table in tables] for kind, tables in curves.items()}
    parts = [
        BETWEEN.judge(barriers["ends"]),
        TO_MAIN.judge(barriers["to_main"]),
        RISE.judge([float(np.mean(t[0] - t[-1])) for t in curves["to_main"]]),
    ]
    conditions = [
        Condition(
            f"control_{wanted.name}",
            f"the same from one seed's run to another's: {wanted.what}",
            barriers[f"control_{kind}"],
            low=LEVEL,
        )
        for kind, wanted in (("ends", BETWEEN), ("to_main", TO_MAIN))
    ]
    position = found[0].coordinate("position")
    position = position[(position >= 0.0) & (position <= 1.0)]
    return conclude(parts, conditions=conditions, drawn={"position": position, "curves": curves})


def segments_of(probe: Probed) -> list[Mapping[str, Any]]:
    """Returns the kind of connection of each pair of a record."""
    found = probe.record.about.get("segments")
    count = len(probe.coordinate("pair"))
    if not isinstance(found, list) or len(found) != count:
        raise RecordError(f"{probe.name} does not say what its {count} segments connect.")
    return found


def curves_of(probe: Probed) -> dict[str, np.ndarray]:
    """Kind of segment → [position, segment] loss, in units of that at the starts of trips.

    Of the batch itself between ends, and held-out, the mean over batches, otherwise.
    """
    start = probe.record.about.get("loss_at_starts")
    if not isinstance(start, (int, float)) or not 0.0 < start < np.inf:
        raise RecordError(f"{probe.name}: the loss at the starts of trips must be positive.")
    position = probe.coordinate("position")
    inside = (position >= 0.0) & (position <= 1.0)
    losses, held = probe.array("loss")[:, 0], probe.array("held_out_loss")[:, 0]
    found: dict[str, list[np.ndarray]] = {}
    for row, segment in enumerate(segments_of(probe)):
        kind = str(segment["kind"])
        if kind.endswith("ends"):
            curve = losses[row, inside, int(segment["batch"])]
        else:
            curve = held[row, inside].mean(axis=-1)
        found.setdefault(kind, []).append(curve / start)
    return {kind: np.stack(curves, axis=1) for kind, curves in found.items()}


def _barrier(curves: np.ndarray) -> float:
    """The mean over segments of the greatest height over the line between the ends' losses."""
    share = np.linspace(0.0, 1.0, len(curves))[:, None]
    heights = curves - ((1.0 - share) * curves[0] + share * curves[-1])
    return float(heights.max(axis=0).mean())


CLAIMS = (
    Claim(
        "B6",
        "Trips on one batch end in one basin, the trajectory's",
        "Side trips on the same batch from different points end in one basin; held-out loss "
        "rises, yet they stay in the basin of the main trajectory.",
        SANDLER,
        ("basin",),
        "losses along straight lines between the ends of side trips on one batch from different "
        "points, and between each end and its start; the same to another seed's run, where there "
        "should be barriers",
        (BETWEEN, TO_MAIN, RISE),
        "Two points share a basin if no barrier stands between them: the greatest height over the "
        "straight line between the losses of the ends, the mean over segments. Ends of trips have "
        "next to no loss, so its shares mean nothing; a tenth of the starting loss is what B5 "
        "calls near 0. A rule that finds no barrier between networks of different initial "
        "weights could find none anywhere: both kinds of segment must show one there.",
        judge_b6,
    ),
)
