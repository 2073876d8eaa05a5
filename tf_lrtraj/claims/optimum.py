"""Claims S4 and S5: how wide the optimum of averaged weights is, and what they predict."""

from __future__ import annotations

import numpy as np

from tf_lrtraj.claims.records_reader import Probed, Records
from tf_lrtraj.claims.statistics import Estimate, combine, mean_of
from tf_lrtraj.claims.verdicts import (
    Claim,
    Judgement,
    Numbers,
    above,
    as_interval,
    conclude,
    number,
    within,
)
from tf_lrtraj.records import RecordError

SOURCE = "Izmailov et al. 2018, arXiv 1803.05407"

# S5.  Nearer to the power that is claimed than to its neighbours, 0, 1, 2 and 3.
HALF = 0.5
LINEAR, SQUARE = 1.0, 2.0


# S4 -------------------------------------------------------------------------------------------


def judge_s4(records: Records) -> Judgement:
    """Rise of the test error along rays, and the test error at the two ends."""
    rises, trains = [], []
    for probe in records.probes("width", "width"):
        sgd, swa = (probe.index("point", name) for name in ("sgd", "swa"))
        errors = 100.0 * (1.0 - probe.array("held_out_accuracy").mean(axis=-1))
        far = np.asarray(probe.coordinate("distance")) > 0.0
        rise = (errors - errors[..., :1])[..., far].mean(axis=-1)
        rises.append(mean_of(rise[sgd] - rise[swa], "rays"))
    better: list[Estimate] = []
    for probe in records.probes("sgd_to_swa", "basin"):
        row, ends = _segment(probe)
        errors = 100.0 * (1.0 - probe.array("held_out_accuracy")[row, 0])
        better.append(mean_of(errors[ends[0]] - errors[ends[1]], "held-out batches"))
        losses = probe.array("loss", finite=False)[row, 0]
        trains.append(mean_of(losses[ends[1]] - losses[ends[0]], "training batches"))
    parts = [
        above(
            "rise",
            combine(rises),
            0.0,
            "mean rise of the test error along rays, SGD less SWA, points,",
        ),
        above("error", combine(better), 0.0, "test error at SGD less that at SWA, points,"),
    ]
    numbers: Numbers = {"train_loss_difference": combine(trains).interval()}
    where = "above" if combine(trains).value > 0.0 else "not above"
    notes = [f"training loss at SWA is {where} that at SGD (often slightly worse, says the source)"]
    return conclude(parts, numbers=numbers, notes=notes)


def _segment(probe: Probed) -> tuple[int, tuple[int, int]]:
    """(row of the pair, places of SGD and SWA on it)."""
    position = np.asarray(probe.coordinate("position"), np.float64)
    start, end = (np.flatnonzero(np.abs(position - t) < 1e-9) for t in (0.0, 1.0))
    names = list(zip(probe.coordinate("first"), probe.coordinate("second"), strict=True))
    for row, (first, second) in enumerate(names):
        if {str(first), str(second)} == {"sgd", "swa"} and start.size and end.size:
            places = int(start[0]), int(end[0])
            return row, places if str(first) == "sgd" else places[::-1]
    raise RecordError(f"{probe.name} has no segment between 'sgd' and 'swa'.")


# S5 -------------------------------------------------------------------------------------------


def judge_s5(records: Records) -> Judgement:
    """Powers of the spread by which predictions differ."""
    found = records.probes("ensemble", "ensemble")
    powers: dict[str, list[Estimate]] = {"pair": [], "ensemble": []}
    ratios = []
    for probe in found:
        batches = len(probe.coordinate("batch"))
        for name, estimates in powers.items():
            value = float(probe.array(f"{name}_difference_exponent"))
            error = float(probe.array(f"{name}_difference_exponent_se", finite=False))
            estimates.append(Estimate(value, error, batches - 1.0, f"{batches} batches"))
        ratios.append(
            float(probe.array("mean_ensemble_difference")[0])
            / float(probe.array("mean_pair_difference")[0])
        )
    parts = [
        within(
            "pair_exponent",
            combine(powers["pair"]),
            LINEAR - HALF,
            LINEAR + HALF,
            "two members' predictions differ as distance to the power",
        ),
        within(
            "ensemble_exponent",
            combine(powers["ensemble"]),
            SQUARE - HALF,
            SQUARE + HALF,
            "ensemble and averaged weights differ as distance to the power",
        ),
    ]
    notes = [
        f"the expansion says 1 and 2: {number(part.interval.value - said)} off"
        for part, said in zip(parts, (LINEAR, SQUARE), strict=True)
    ]
    numbers: Numbers = {"difference_ratio": as_interval(float(np.mean(ratios)))}
    return conclude(parts, numbers=numbers, notes=notes)


CLAIMS = (
    Claim(
        "S4",
        "SWA lies in a wider optimum than SGD: test error rises more slowly along random rays, "
        "and is lower at SWA on the segment from SGD to SWA.",
        SOURCE,
        ("width",),
        "test error along random rays, the same for both, from the last iterate at "
        "constant rate and from SWA, and along the segment between them",
        "the interval over rays of the difference of mean rises, and over batches of the "
        "difference of test errors at the ends, lies above 0",
        "Both sentences have only signs. Error, not loss, as in the source; the mean over "
        "distances takes the whole curve and no chosen height. That training loss is often "
        "slightly worse at SWA is told, not judged, as 'often' needs many networks.",
        judge_s4,
    ),
    Claim(
        "S5",
        "Averaged weights approximate the ensemble: its prediction differs from theirs by O(Δ²), "
        "those of members from each other by O(Δ).",
        SOURCE,
        ("ensemble",),
        "predictions of members drawn towards their mean, at several scales",
        f"the interval of the members' exponent lies within {LINEAR - HALF:g} to "
        f"{LINEAR + HALF:g}, of the ensemble's within {SQUARE - HALF:g} to {SQUARE + HALF:g}",
        "An order is a whole number: the exponent must be nearer to it than to the next.",
        judge_s5,
    ),
)
