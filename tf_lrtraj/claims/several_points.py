"""Claims A2, A3, A9 and O1: averages of n points far apart against lower rates."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from tf_lrtraj.claims import stationarity
from tf_lrtraj.claims.records_reader import Measured, NotMeasured, Records
from tf_lrtraj.claims.verdicts import (
    SANDLER,
    Claim,
    Condition,
    ExtraNumber,
    Judgement,
    Part,
    Wanted,
    conclude,
)
from tf_lrtraj.statistics import LEVEL, TOST, Interval, PairedRatio, mean_of

# Fewer iterates of a rate do not determine its loss.
ITERATES = 10

# A2.  "Clearly": more than the last digit of a table of losses.
GAIN = Wanted("gain", "training loss below that of single iterates, %", low=1.0)
# A2, A3.  Excess losses halve with the rate.  With the step between the runs at 2λ/n and λ/n
# as unit, half-way up is 1/2 above the run at λ/n, and half-way down to a run at λ/2n (whose
# loss is half a step lower) is 1/4 below it.
UP, DOWN = 0.5, 0.25
BELOW = Wanted("below", "loss below half-way up to the run at twice the rate λ/n, %", low=0.0)
ABOVE = Wanted("above", "loss above half-way down to the run at half the rate λ/n, %", low=0.0)
# A9.
RECOMPUTED = Wanted(
    "over_recomputed",
    "test accuracy above single iterates', statistics recomputed, points",
    low=0.0,
)
RUNNING = Wanted(
    "over_running", "test accuracy above single iterates', running statistics, points", low=0.0
)
# O1.  Seen before: λ/2.1, λ/3.0, λ/3.6 for 2, 4, 8 points.  A factor of 1.25 either way is the
# largest round one that leaves 4 out of the range about 3.0.
SEEN = {2: 2.1, 4: 3.0, 8: 3.6}
FACTOR = 1.25
DIVISORS = {
    n: Wanted(
        f"divisor_{n}",
        f"divisor of the rate whose single iterates have the loss of {n} points",
        low=seen / FACTOR,
        high=seen * FACTOR,
        level=TOST,
    )
    for n, seen in SEEN.items()
}
# Over λ … λ/8 an excess loss in proportion to the rate gives -0.21, a straight line 0.
BEND = Wanted(
    "bend",
    "loss at λ/2 and λ/4 above the straight line in log rate, as a share of its drop to λ/8",
    low=-0.1,
    high=0.1,
    level=TOST,
)


@dataclasses.dataclass(frozen=True)
class _PowerOf2:
    """2 to the power of a mean over seeds."""

    exponents: list[float]

    def interval(self, level: float = LEVEL) -> Interval:
        found = mean_of(self.exponents).interval(level)
        return Interval(*(float(np.exp2(min(x, 1000.0))) for x in found))


# Reading the records ----------------------------------------------------------------------------


def _gaps(record: Measured, points: int = 2) -> list[int]:
    return sorted({int(gap) for gap in record.values("gap", points=points)})


def _points(record: Measured, points: int, gap: int | None = None) -> float:
    """Mean training loss of averages of so many points, over the places where they end."""
    wanted: dict[str, Any] = {"points": points, "set": "train_part"}
    if points > 1:
        wanted["gap"] = _gaps(record, points)[-1] if gap is None else gap
    return float(record.values("loss", **wanted).mean())


def _averages(records: Records, points: int) -> np.ndarray:
    """[seeds] losses of averages of so many points at the largest gap."""
    return np.array([_points(record, points) for record in records.measured("many_points")])


def _rate(records: Records, divisor: int) -> np.ndarray:
    """[seeds] mean training loss of late single iterates at the base rate over `divisor`."""
    found = []
    for record in records.measured("many_points"):
        if divisor > 1:
            lower = records.of_seed("lower_rates", record.seed)
            rows = lower.values("loss", points=divisor, set="train_part")
        else:
            rows = record.values("loss", points=1, set="train_part")
        if records.judged and rows.size < ITERATES:
            raise NotMeasured(
                f"{rows.size} iterates at the rate λ/{divisor}, where {ITERATES} or more are "
                "needed."
            )
        found.append(float(rows.mean()))
    return np.array(found)


def _settled_at(records: Records, n: int) -> Condition:
    """Returns the condition that the run at the rate over n is stationary in its late iterates."""
    drifts = [
        stationarity.relative_line(record, points=n, set="train_part")
        for record in records.measured("lower_rates")
    ]
    return stationarity.drift_condition(
        f"drift_{n}", f"the loss at λ/{n}", drifts, stationarity.LOSS_LIMIT, "its late iterates"
    )


def _conditions(records: Records, counts: list[int]) -> list[Condition]:
    """Runs that have levelled off, at rates whose losses are told apart."""
    raw = _rate(records, 1)
    steps, effects = [], []
    for n in counts:
        same, twice = _rate(records, n), _rate(records, n // 2)
        what = f"loss of the run at λ/{n} below that at λ/{n // 2}, % of that at λ"
        steps.append(Condition(f"step_{n}", what, 100.0 * (twice - same) / raw, low=0.0))
        effects.append(float(np.mean(1.0 - same / raw)))
    settled = [_settled_at(records, n) for n in counts]
    return [*stationarity.stationary(records, min(effects)), *steps, *settled]


# A2, A3 -----------------------------------------------------------------------------------------


def judge_a2(records: Records) -> Judgement:
    """Two points far apart: against single iterates, and against half the rate."""
    raw, mean = _rate(records, 1), _averages(records, 2)
    gain = GAIN.judge(100.0 * (1.0 - mean / raw))
    parts, numbers, ladder = _against_rates(records, [2])
    found = records.measured("many_points")
    gaps = _gaps(found[0])
    drawn = {
        "ladder": ladder,
        "gaps": np.array(gaps),
        "by_gap": np.array([[_points(record, 2, gap) for gap in gaps] for record in found]),
        "predicted": np.array([_predicted(record, gaps) for record in found]),
        "rates": {n: _rate(records, n) for n in (1, 2)},
    }
    conditions = _conditions(records, [2])
    return conclude([gain, *parts], conditions=conditions, numbers=numbers, drawn=drawn)


def _predicted(record: Measured, gaps: list[int]) -> list[float]:
    """Loss of two points at these gaps by the quadratic identity; NaN where it is not told."""
    known = {row.get("gap"): row for row in record.table("predicted") if row.get("points") == 2}
    return [record.number(known[gap], "loss") if gap in known else np.nan for gap in gaps]


def judge_a3(records: Records) -> Judgement:
    """Four and eight points far apart against a quarter and an eighth of the rate."""
    wanted = sorted({int(n) for n in records.one("many_points").values("points") if n > 2})
    if not wanted:
        raise NotMeasured("No average of more than two points was measured.")
    parts, numbers, ladder = _against_rates(records, wanted)
    conditions = _conditions(records, wanted)
    return conclude(parts, conditions=conditions, numbers=numbers, drawn={"ladder": ladder})


def _against_rates(
    records: Records, counts: list[int]
) -> tuple[list[Part], list[ExtraNumber], dict[int, dict[str, np.ndarray]]]:
    """Tests whether n points are nearer to the run at λ/n than to its neighbours.

    Borders are linear in measured losses, so no quotient of noisy numbers decides.
    """
    raw = _rate(records, 1)
    parts, numbers, ladder = [], [], {}
    for n in counts:
        mean, same, twice = _averages(records, n), _rate(records, n), _rate(records, n // 2)
        up = UP * twice + (1.0 - UP) * same
        down = (1.0 + DOWN) * same - DOWN * twice
        parts.append(BELOW.judge(100.0 * (up - mean) / raw, f"{n} points"))
        parts.append(ABOVE.judge(100.0 * (mean - down) / raw, f"{n} points"))
        what = f"{n} points: 0 at the loss of the run at λ/{n}, 1 at that of λ/{n // 2}"
        numbers.append(ExtraNumber(f"position_{n}", what, PairedRatio(mean - same, twice - same)))
        ladder[n] = {"average": mean, "same": same, "twice": twice, "up": up, "down": down}
    return parts, numbers, ladder


# A9 ---------------------------------------------------------------------------------------------


def judge_a9(records: Records) -> Judgement:
    """Test accuracy of two points far apart over that of single iterates, ending alike."""
    found = records.measured("many_points")
    _rate(records, 1)
    if not all(record.select(points=1, policy="running") for record in found):
        raise NotMeasured("Single iterates were not scored with their running statistics.")
    gaps = _gaps(found[0])
    accuracy = {
        policy: np.array([[_gain(r, gap, policy, "accuracy") for gap in gaps] for r in found])
        for policy in ("recompute", "running")
    }
    loss = np.array([[_gain(r, gap, "recompute", "loss") for gap in gaps] for r in found])
    decayed = [_over_decays(records, record, gaps[-1]) for record in found]
    parts = [
        RECOMPUTED.judge(100.0 * accuracy["recompute"][:, -1]),
        RUNNING.judge(100.0 * accuracy["running"][:, -1]),
    ]
    numbers = [
        ExtraNumber("loss_gain", "test loss above single iterates', recomputed", loss[:, -1]),
        ExtraNumber("over_decays", "test accuracy above that of trained decays, points", decayed),
    ]
    drawn = {"gaps": np.array(gaps), "accuracy": accuracy, "loss": loss}
    return conclude(parts, numbers=numbers, drawn=drawn)


def _gain(record: Measured, gap: int, policy: str, field: str) -> float:
    """Mean over ends of a field of two points above that of the single iterate they end with."""
    gains = [
        record.number(row, field)
        - record.value(field, points=1, end=row.get("end"), set="test", policy=policy)
        for row in record.select(points=2, gap=gap, set="test")
    ]
    return float(np.mean(gains))


def _over_decays(records: Records, record: Measured, gap: int) -> float:
    mean = record.values("accuracy", points=2, gap=gap, set="test").mean()
    decays = records.of_seed("decays", record.seed)
    return 100.0 * float(mean - decays.values("accuracy", of="trained", set="test").mean())


# O1 ---------------------------------------------------------------------------------------------


def judge_o1(records: Records) -> Judgement:
    """The rate whose single iterates have the loss of n points, and how loss goes with the rate."""
    losses = np.array([_rate(records, 2**k) for k in range(4)])  # [rate, seed]
    parts = []
    drawn: dict[str, Any] = {"rates": losses, "averages": {}, "seen": SEEN}
    for n, wanted in DIVISORS.items():
        mean = _averages(records, n)
        exponents = [_equivalent(column, loss) for column, loss in zip(losses.T, mean, strict=True)]
        parts.append(wanted.judge(_PowerOf2(exponents)))
        drawn["averages"][n] = {"loss": mean, "divisor": np.exp2(exponents)}
    above = 0.5 * (losses[1] + losses[2]) - 0.5 * (losses[0] + losses[3])
    parts.append(BEND.judge(PairedRatio(above, losses[0] - losses[3])))
    return conclude(parts, conditions=_conditions(records, [2, 4, 8]), drawn=drawn)


def _equivalent(losses: np.ndarray, loss: float) -> float:
    """Returns the k at which the linear interpolant of losses at λ/2^k equals `loss`, else NaN.

    The line is extrapolated at its ends.
    """
    for k, (high, low) in enumerate(itertools.pairwise(losses)):
        inside = low <= loss <= high or (k == 0 and loss > high)
        if inside or k == len(losses) - 2:
            return float(k + (high - loss) / (high - low)) if high > low else np.nan
    return np.nan


_EXPERIMENT = (
    "Losses of averages of points of the base run far apart, against the mean over single iterates "
    "of it and of runs at lower constant rates from the same state; training images."
)
_NEARER = (
    "'Like λ/n' means nearer to the run at λ/n than to one at twice or at half that rate. Excess "
    "losses halve with the rate, so with the step from λ/n up to 2λ/n as unit the borders are 1/2 "
    "above and 1/4 below the loss at λ/n. Both borders are linear in measured losses."
)
_NEEDS = ("many_points", "lower_rates", "base", "levels")

CLAIMS = (
    Claim(
        "A2",
        "Averaging two points far apart improves clearly, like half the rate",
        "The mean of two iterates far apart has a clearly lower loss than one iterate, and acts "
        "like half the rate.",
        SANDLER,
        _NEEDS,
        _EXPERIMENT,
        (GAIN, BELOW, ABOVE),
        "Clearly: by more than 1 % of the loss, the last digit of a table of losses. " + _NEARER,
        judge_a2,
    ),
    Claim(
        "A3",
        "n points far apart act like a rate n times smaller",
        "Averages of n iterates far apart have the loss of a run at the rate λ/n.",
        SANDLER,
        _NEEDS,
        _EXPERIMENT,
        (BELOW, ABOVE),
        _NEARER,
        judge_a3,
    ),
    Claim(
        "A9",
        "Averaging two points far apart improves test accuracy over single iterates",
        "The mean of two iterates far apart has significantly better test accuracy than the "
        "baseline.",
        SANDLER,
        ("many_points", "decays"),
        "Test accuracy of means of two iterates at the largest gap less that of the later one, "
        "with its batch-norm statistics recomputed as for the mean, and as training left them.",
        (RECOMPUTED, RUNNING),
        "Significantly is a word about error, not size: above 0 at 95 % over seeds. Recomputed "
        "statistics alone improve a single iterate, so both baselines must be beaten.",
        judge_a9,
    ),
    Claim(
        "O1",
        "Averages of 2, 4, 8 points act like λ/2.1, λ/3.0, λ/3.6",
        "Averages of 2, 4 and 8 points act like the rates λ/2.1, λ/3.0 and λ/3.6, and loss is "
        "nearly linear in the logarithm of the rate.",
        "found here, registered before this run",
        _NEEDS,
        _EXPERIMENT + " The equivalent divisor is read off the broken line through the losses at "
        "λ, λ/2, λ/4 and λ/8 against the logarithm of the rate, seed by seed.",
        (*DIVISORS.values(), BEND),
        f"The divisors were seen before, on another network: within a factor of {FACTOR:g}, the "
        "largest that leaves 4 out for 4 points, so A3 and this cannot both hold. Nearly linear: "
        "an excess loss in proportion to the rate would bend by -0.21, and half of that decides.",
        judge_o1,
    ),
)
