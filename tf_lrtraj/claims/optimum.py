"""Claims S4 and S5: how wide the optimum of averaged weights is, and what they predict."""

from __future__ import annotations

import numpy as np

from tf_lrtraj.claims.records_reader import NotMeasured, Probed, Records
from tf_lrtraj.claims.verdicts import Claim, ExtraNumber, Judgement, Wanted, conclude
from tf_lrtraj.records import RecordError

SOURCE = "Izmailov et al. 2018, arXiv 1803.05407"

# S4.  The rise of the test error at which distances are compared, points.
RISE = 5.0
# S5.  Nearer to the power that is claimed than to its neighbours, 0, 1, 2 and 3.
HALF = 0.5
LINEAR, SQUARE = 1.0, 2.0

WIDER = Wanted(
    "wider",
    f"logarithm of the distance at which the test error is {RISE:g} points up, at SWA over SGD",
    low=0.0,
)
BETTER = Wanted("better", "test error at SGD less that at SWA, points", low=0.0)
PAIRS = Wanted(
    "pairs",
    "power of the distance by which two members' predictions differ",
    low=LINEAR - HALF,
    high=LINEAR + HALF,
)
ENSEMBLE = Wanted(
    "ensemble",
    "power of the distance by which the ensemble's and the averaged weights' predictions differ",
    low=SQUARE - HALF,
    high=SQUARE + HALF,
)


# S4 -------------------------------------------------------------------------------------------


def judge_s4(records: Records) -> Judgement:
    """The distance at which test error has risen, and the test error at the two ends."""
    ratios, rises = [], []
    probes = records.probes("width", "width")
    distance = probes[0].coordinate("distance")
    for probe in probes:
        if probe.record.about.get("ray_kind") != "filter":
            raise NotMeasured("Rays are not of normalised filters, so lengths cannot be compared.")
        errors = 100.0 * (1.0 - probe.array("accuracy").mean(axis=-1))
        rise = errors - errors[..., :1]
        found = np.array([rise[probe.index("point", name)] for name in ("sgd", "swa")])
        reached = np.array([[risen(distance, ray) for ray in rays] for rays in found])
        if not np.isfinite(reached).all():
            raise NotMeasured(f"{probe.name}: a test error does not rise by {RISE:g} points.")
        ratios.append(float(np.mean(np.log(reached[1] / reached[0]))))
        rises.append(found.mean(axis=1))
    segments, position = [], np.zeros(0)
    for probe in records.probes("sgd_to_swa", "basin"):
        row, ends = _segment(probe)
        errors = 100.0 * (1.0 - probe.array("held_out_accuracy")[row, 0].mean(axis=-1))
        losses = probe.array("loss", finite=False)[row, 0].mean(axis=-1)
        position = probe.coordinate("position")
        position = position if ends[0] < ends[1] else 1.0 - position
        segments.append((errors, losses, ends))
    better = [errors[sgd] - errors[swa] for errors, _, (sgd, swa) in segments]
    trains = [losses[swa] - losses[sgd] for _, losses, (sgd, swa) in segments]
    drawn = {
        "distance": distance,
        "rise": np.array(rises),  # [seed, point, distance]
        "position": position,
        "errors": np.array([errors for errors, *_ in segments]),
        "losses": np.array([losses for _, losses, _ in segments]),
    }
    told = ExtraNumber("train_loss", "training loss at SWA less that at SGD", trains)
    return conclude([WIDER.judge(ratios), BETTER.judge(better)], numbers=[told], drawn=drawn)


def risen(distance: np.ndarray, rise: np.ndarray) -> float:
    """The first distance at which a rise reaches `RISE`, by straight lines; infinite if never.

    >>> risen(np.array([0.0, 1.0, 2.0]), np.array([0.0, 4.0, 6.0]))
    1.5
    """
    above = np.flatnonzero(rise >= RISE)
    if not above.size:
        return float("inf")
    after = int(above[0])
    before = after - 1
    share = (RISE - rise[before]) / (rise[after] - rise[before])
    return float(distance[before] + share * (distance[after] - distance[before]))


def _segment(probe: Probed) -> tuple[int, tuple[int, int]]:
    """(row of the pair, places of SGD and SWA on it)."""
    position = probe.coordinate("position")
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
    if any(probe.record.about.get("run") == "base" for probe in found):
        raise NotMeasured("The members are iterates at one constant rate, not ends of cycles.")
    spread, pair, ensemble = (
        [probe.array(name) for probe in found]
        for name in ("spread", "mean_pair_difference", "mean_ensemble_difference")
    )
    parts = [
        wanted.judge([float(p.array(f"{name}_difference_exponent")) for p in found])
        for wanted, name in ((PAIRS, "pair"), (ENSEMBLE, "ensemble"))
    ]
    ratios = [float(e[0] / p[0]) for p, e in zip(pair, ensemble, strict=True)]
    what = "ensemble's difference from averaged weights over that of two members, as collected"
    drawn = {"spread": spread, "pair": pair, "ensemble": ensemble}
    return conclude(parts, numbers=[ExtraNumber("difference_ratio", what, ratios)], drawn=drawn)


CLAIMS = (
    Claim(
        "S4",
        "SWA lies in a wider optimum than SGD",
        "SWA lies in a wider optimum than SGD: test error rises more slowly along random rays, "
        "and is lower at SWA on the segment from SGD to SWA.",
        SOURCE,
        ("width",),
        "test error along rays of normalised filters, drawn alike, from the end of a conventional "
        "run and from SWA of equal budget, and along the segment between them",
        (WIDER, BETTER),
        "Both sentences have only signs. Filters before batch norm have no scale of their own, so "
        "distances are shares of each point's own norms; the distance at a fixed rise compares "
        f"starts of different errors, and {RISE:g} points are well above sampling noise. That "
        "training loss is often slightly worse at SWA is told, not judged.",
        judge_s4,
    ),
    Claim(
        "S5",
        "Averaged weights approximate the ensemble to second order",
        "Averaged weights approximate the ensemble: its prediction differs from theirs by O(Δ²), "
        "those of members from each other by O(Δ).",
        SOURCE,
        ("ensemble",),
        "predictions of cycle ends drawn towards their mean, at several scales",
        (PAIRS, ENSEMBLE),
        "An order is a whole number: the exponent must be nearer to it than to the next.",
        judge_s5,
    ),
)
