"""Claims A1, A4 and A8: averages of a constant-rate run against runs whose rate falls.

Every statistic is a share of the effect, the reduction of the loss of single iterates by the
schedule. Measured in per cent of the loss, the two would count as equal whenever the schedule has
little effect.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lrtraj.claims.records_reader import Measured, NotMeasured, Records
from tf_lrtraj.claims.verdicts import (
    SANDLER,
    Claim,
    Condition,
    ExtraNumber,
    Judgement,
    Wanted,
    conclude,
)
from tf_lrtraj.records import RecordError
from tf_lrtraj.statistics import LEVEL, TOST, Interval, PairedRatio, mean_of

JUDGED = "curvature_free"  # the equivalence that decides A1; others are only reported
MATCH = "loss_match"
KINDS = {JUDGED: "weights", MATCH: "loss match"}
_WORDS = {"ema": "EMA", "swa": "SWA", "two_point": "two points", "one_minus_sqrt": "one minus root"}

# With fixed curvature the mean of the last iterates has 1.00 to 1.09 of a linear decay's gain. This
# is inside the limits; an average that lacks a tenth of the gain is not.
MARGIN = 0.1
SHARE = Wanted(
    "share",
    "what the average takes off the loss of single iterates, over what the schedule does",
    low=1.0 - MARGIN,
    high=1.0 + MARGIN,
    level=TOST,
)
EMULATED = dataclasses.replace(
    SHARE,
    what="what the weights take off the loss of single iterates, over what the trained decay does",
)
# A tenth of an effect of 5 % is half a per cent of the loss; less cannot be measured well.
EFFECT = 5.0
# Along the horizon single networks are compared: a quarter of the whole effect separates a curve
# that follows another from one that does not.
ALONG = 0.25
LARGEST = Wanted(
    "largest_gap",
    "largest gap between run and average along the horizon, as a share of the average's gain",
    high=ALONG,
    level=TOST,
)
CLOSER = Wanted(
    "closer",
    "mean gap along the horizon by the weights' schedule less that by the loss match, as a share",
    low=0.0,
)

Shares = dict[str, tuple[np.ndarray, np.ndarray]]  # name → [seeds] gains of the average, the run


def _title(name: str) -> str:
    """Returns the name of an average or a decay in sentences."""
    return _WORDS.get(name, name.replace("_", " "))


def _ends(record: Measured) -> list[Any]:
    """Returns the ends of a record's horizons; None for an older record, which names none."""
    return record.known("end") or [None]


def _raw(records: Records, seed: int, end: Any) -> float:
    """Mean training loss of single iterates of a horizon; in older records, of the last half
    of the window."""
    if end is not None:
        found = records.of_seed("decays", seed).values("loss", of="raw", end=end, set="train")
        return float(found.mean())
    record = records.of_seed("levels", seed)
    steps, losses = record.values("step", set="train"), record.values("loss", set="train")
    return float(losses[steps >= 0.5 * (steps.min() + steps.max())].mean())


def _decay(record: Measured, name: str, of: str, field: str = "loss", on: str = "train") -> Any:
    """[horizons] a field of a decay, "trained" or "emulated"."""
    ends = [{} if end is None else {"end": end} for end in _ends(record)]
    return np.array([record.value(field, decay=name, of=of, set=on, **end) for end in ends])


def _pair(
    record: Measured, name: str, kind: str, end: Any, field: str = "loss", on: str = "train"
) -> tuple[float, float]:
    """A field of an average and of its run at the end of a horizon."""
    wanted = {"average": name, "set": on} | ({"share": 1.0} if end is None else {"end": end})
    run = record.value(field, equivalence=kind, of="run", **wanted)
    return record.value(field, of="average", **wanted), run


def _ends_of(record: Measured, name: str, kind: str) -> list[Any]:
    """The horizons at which a run of this kind was made."""
    rows = record.select(average=name, equivalence=kind, of="run")
    return list(dict.fromkeys(row.get("end") for row in rows))


def _equivalent(records: Records, kind: str = JUDGED) -> Shares:
    """Gains of averages and of their runs, each the mean over a seed's horizons."""
    found = records.measured("equivalent")
    shares: Shares = {}
    for name in found[0].known("average"):
        ends = _ends_of(found[0], name, kind)
        if ends:
            gains = [
                [_raw(records, r.seed, end) - np.array(_pair(r, name, kind, end)) for end in ends]
                for r in found
            ]
            average, run = np.mean(gains, axis=1).T
            shares[name] = average, run
    return shares


def _decays(records: Records) -> Shares:
    """Gains of emulated and of trained decays, each the mean over a seed's horizons."""
    found = records.measured("decays")
    shares: Shares = {}
    for name in found[0].known("decay"):
        if name != "none":
            raw = [np.mean([_raw(records, r.seed, end) for end in _ends(r)]) for r in found]
            emulated, trained = (
                np.array(raw) - [_decay(record, name, of).mean() for record in found]
                for of in ("emulated", "trained")
            )
            shares[name] = emulated, trained
    if not shares:
        raise RecordError(f"{found[0].name} names no decay.")
    return shares


def _large_enough(
    records: Records, task: str, gains: Mapping[str, np.ndarray], what: str
) -> list[Condition]:
    """Tests whether [seeds] gains, in per cent of the loss, are large enough for a comparison."""
    raw = np.array([_raw(records, r.seed, _ends(r)[-1]) for r in records.measured(task)])
    return [
        Condition(
            f"effect_{name}",
            f"{_title(name)}: what the {what} takes off the loss of single iterates, %",
            100.0 * gain / raw,
            low=EFFECT,
        )
        for name, gain in gains.items()
    ]


def _judged(
    wanted: Wanted,
    records: Records,
    shares: Shares,
    numbers: list[ExtraNumber],
    drawn: dict[str, Any],
) -> Judgement:
    """The share of each average or decay, where its effect is large enough."""
    effects = {name: below for name, (_, below) in shares.items()}
    return conclude(
        [wanted.judge(PairedRatio(*pair), _title(name)) for name, pair in shares.items()],
        conditions=_large_enough(records, "decays", effects, "schedule"),
        numbers=numbers,
        drawn=drawn,
    )


def _drawn(shares: Shares) -> dict[str, Any]:
    """Returns the shares for figures: those of seeds, and the interval that is judged."""
    return {
        name: {"seeds": above / below, "interval": PairedRatio(above, below).interval(TOST)}
        for name, (above, below) in shares.items()
    }


# A1 -------------------------------------------------------------------------------------------


def judge_a1(records: Records) -> Judgement:
    """The share of the equivalent run's gain that each average has."""
    found, shares = records.measured("equivalent"), _equivalent(records)
    if not shares:
        raise RecordError(f"{found[0].name} names no average with a run under {JUDGED!r}.")
    numbers: list[ExtraNumber] = []
    for name in shares:
        gaps = [_gap(record, name, "loss", "train") for record in found]
        accuracies = [_gap(record, name, "accuracy", "test") for record in found]
        what = f"{_title(name)}: training loss of the run above the average's, %"
        numbers.append(ExtraNumber(f"gap_{name}", what, gaps))
        what = f"{_title(name)}: test accuracy of the run above the average's, points"
        numbers.append(ExtraNumber(f"accuracy_gap_{name}", what, accuracies))
    kinds = [k for k in found[0].known("equivalence") if k not in (None, "none", JUDGED)]
    for kind in kinds:
        for name, pair in _equivalent(records, kind).items():
            what = f"{_title(name)}: the same share, for the run under {kind!r}"
            numbers.append(ExtraNumber(f"share_{name}_{kind}", what, PairedRatio(*pair)))
    for name in shares:
        model = [_model_share(record, name) for record in found]
        if np.isfinite(model).all():
            what = f"{_title(name)}: the share that the quadratic model expects"
            numbers.append(ExtraNumber(f"model_share_{name}", what, model))
    drawn = {"averages": _drawn(shares), "decays": _drawn(_decays(records))}
    return _judged(SHARE, records, shares, numbers, drawn)


def _gap(record: Measured, name: str, field: str, on: str) -> float:
    """Returns the excess of a run over its average: loss in per cent, accuracy in points."""
    pairs = [_pair(record, name, JUDGED, e, field, on) for e in _ends_of(record, name, JUDGED)]
    average, run = np.mean(pairs, axis=0)
    return 100.0 * float((run - average) / (average if field == "loss" else 1.0))


def _model_share(record: Measured, name: str) -> float:
    """The share that the model with the estimated spectrum expects; NaN where it has none."""
    excess = {
        (row.get("average"), row.get("of")): row.get("excess")
        for row in record.table("predicted")
        if row.get("equivalence") in (None, JUDGED)
    }
    raw, mean, run = (excess.get(key) for key in (("raw", "raw"), (name, "average"), (name, "run")))
    if not all(isinstance(x, (int, float)) for x in (raw, mean, run)) or raw == run:
        return math.nan
    return float((raw - mean) / (raw - run))  # type: ignore[operator]


# A4 -------------------------------------------------------------------------------------------


def judge_a4(records: Records) -> Judgement:
    """The share of a trained decay's gain that weights on snapshots have."""
    found, shares = records.measured("decays"), _decays(records)
    numbers = []
    for name in shares:
        for field, on, unit in (("loss", "train", "%"), ("accuracy", "test", "points")):
            gaps = []
            for record in found:
                emulated, trained = (
                    _decay(record, name, of, field, on).mean() for of in ("emulated", "trained")
                )
                scale = trained if field == "loss" else 1.0
                gaps.append(100.0 * float((emulated - trained) / scale))
            what = f"{_title(name)}: {on} {field} of the weights above that of the decay, {unit}"
            numbers.append(ExtraNumber(f"{field}_gap_{name}", what, gaps))
    return _judged(EMULATED, records, shares, numbers, {"decays": _drawn(shares)})


# A8 -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LargestGap:
    """The largest absolute value of the mean gaps at several places.

    The interval's upper end is the largest upper end of the places' intervals: it lies below a
    threshold only if each place's does, which needs no correction.  Its lower end is the largest
    lower end of intervals that hold at all places together, by Bonferroni's correction.

    Attributes:
        gaps: [seeds, places].
    """

    gaps: np.ndarray

    def interval(self, level: float = LEVEL) -> Interval:
        together = 1.0 - (1.0 - level) / self.gaps.shape[1]
        each = [mean_of(column).interval(level) for column in self.gaps.T]
        wide = [mean_of(column).interval(together) for column in self.gaps.T]
        return Interval(
            max(abs(found.value) for found in each),
            max(max(found.low, -found.high, 0.0) for found in wide),
            max(max(found.high, -found.low) for found in each),
        )


def judge_a8(records: Records) -> Judgement:
    """Gaps between runs and averages along the last horizon, by both equivalences."""
    found = records.measured("equivalent")
    names = list(dict.fromkeys(str(row.get("average")) for row in found[0].table("along")))
    if not names:
        raise NotMeasured("The runs were not followed along the horizon.")
    parts, numbers = [], []
    drawn: dict[str, Any] = {}
    gains = {name: np.array([_gain(records, record, name) for record in found]) for name in names}
    for name in names:
        curves = {kind: [_curves(record, name, kind) for record in found] for kind in KINDS}
        gaps = {
            kind: np.array(
                [(c["run"] - c["average"]) / g for c, g in zip(pair, gains[name], strict=True)]
            )
            for kind, pair in curves.items()
        }
        for kind, gap in gaps.items():
            parts.append(LARGEST.judge(LargestGap(gap), f"{_title(name)} {KINDS[kind]}"))
            what = f"{_title(name)}: mean gap by {KINDS[kind]}, run above average, as a share"
            numbers.append(ExtraNumber(f"mean_gap_{name}_{kind}", what, gap.mean(axis=1)))
        parts.append(CLOSER.judge(_closer(gaps[JUDGED], gaps[MATCH]), _title(name)))
        drawn[name] = {
            "steps": curves[JUDGED][0]["steps"] - found[0].setting("begin"),
            "gaps": {KINDS[kind]: gap for kind, gap in gaps.items()},
        }
    conditions = _large_enough(records, "equivalent", gains, "average")
    return conclude(
        parts, conditions=conditions, numbers=numbers, drawn={"averages": drawn, "limit": ALONG}
    )


def _closer(weights: np.ndarray, match: np.ndarray) -> np.ndarray:
    """[seeds] the mean gap of the first less that of the second, each towards its own side of 0."""
    sides = [np.sign(gap.mean()) * gap.mean(axis=1) for gap in (weights, match)]
    return np.asarray(sides[0] - sides[1])


def _gain(records: Records, record: Measured, name: str) -> float:
    end = _ends(record)[-1]
    gain = _raw(records, record.seed, end) - _pair(record, name, JUDGED, end)[0]
    if gain <= 0.0:
        raise RecordError(f"{record.name}: the average {name!r} is no better than single iterates.")
    return gain


def _curves(record: Measured, name: str, kind: str) -> Mapping[str, np.ndarray]:
    """Losses of a run and its average along the horizon, in the order of steps."""
    curves: dict[str, np.ndarray] = {}
    for of in ("run", "average"):
        chosen = sorted(
            (record.number(row, "step"), record.number(row, "loss"))
            for row in record.table("along")
            if [row.get(key) for key in ("average", "equivalence", "of")] == [name, kind, of]
        )
        steps, curves[of] = np.array(chosen).reshape(-1, 2).T
        if not chosen or steps.tolist() != curves.setdefault("steps", steps).tolist():
            raise RecordError(f"{record.name}: {name!r} is not followed at the same steps.")
    return curves


_PAIRED = (
    "Losses are of all training images, batch norm recomputed. Single iterates are the mean of "
    "several from the same horizon. Each seed gives its mean over horizons at different places of "
    "the window; the ratio is of means over seeds."
)
_MARGIN = (
    "Per cent of the loss calls two things equal wherever the effect is small, so equality is "
    "judged by the share of the effect. With fixed curvature exact theory puts it at 1.00 to 1.09 "
    "for the mean of the last iterates: 0.9 to 1.1 includes that, and no average that misses a "
    "tenth of the gain. Two one-sided tests at 5 % are one 90 % interval inside the margin. The "
    f"effect must be at least {EFFECT:g} % of the loss, so that a tenth of it can be measured."
)

CLAIMS = (
    Claim(
        "A1",
        "Averages of a constant-rate run match a run with the equivalent schedule",
        "EMA, SWA and two-point averages of a constant-rate run have the loss of a run from the "
        "same state under the equivalent schedule.",
        SANDLER,
        ("equivalent", "decays", "levels"),
        "From one state and on the same batches: a constant-rate run with its averages, and for "
        "each a run under the schedule that the curvature-free map gives. " + _PAIRED,
        (SHARE,),
        _MARGIN + " The curvature-free map was chosen beforehand: it needs nothing estimated.",
        judge_a1,
    ),
    Claim(
        "A4",
        "Weights on constant-rate snapshots emulate a schedule",
        "The average of constant-rate snapshots that the inverse map gives has the loss of the "
        "decay it emulates.",
        SANDLER,
        ("decays", "levels"),
        "Cosine, linear and 1-√ decay to 0 over the horizon, trained, against weighted averages of "
        "the constant-rate run's iterates. " + _PAIRED,
        (EMULATED,),
        _MARGIN + " It is the bar of A1, as the inverse map is the same theorem read backwards.",
        judge_a4,
    ),
    Claim(
        "A8",
        "The equivalence holds along the whole trajectory, best by loss match",
        "Average and run have the same loss along the whole trajectory, and a schedule that "
        "matches the average's loss at every step does better.",
        SANDLER,
        ("equivalent", "decays", "levels"),
        "At places evenly along the horizon: the run under the curvature-free schedule against the "
        "partial average that equals it there, and the run under the schedule fitted to the "
        "average's expected loss against the running average.",
        (LARGEST, CLOSER),
        f"Along the way single networks are compared, so the margin is {ALONG:g} of the effect: a "
        "run that stayed at the constant rate's loss would end a whole effect off. The largest gap "
        "passes only if it passes at each place, and fails only by an interval that holds at all "
        "places together. Better means a mean gap nearer to 0.",
        judge_a8,
    ),
)
