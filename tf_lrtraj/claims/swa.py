"""Claims S1-S3 and S6-S8: stochastic weight averaging and fast geometric ensembling."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tf_lrtraj.claims.records_reader import Measured, NotMeasured, Records
from tf_lrtraj.claims.verdicts import Claim, ExtraNumber, Judgement, Wanted, conclude
from tf_lrtraj.records import RecordError
from tf_lrtraj.statistics import PairedRatio, mean_of

SWA = "Izmailov et al. 2018, arXiv 1803.05407"
FGE = "Garipov et al. 2018, arXiv 1802.10026"

KINDS = {"swa_constant": "constant rate", "swa_cyclical": "cyclical rate"}
# S2.  Rates go through float32, of 6e-8 relative precision; ten roundings at most.
SCHEDULE_ERROR = 1e-6
# S3.  One copy and a few counters; a thousandth of an epoch is below what epochs scatter by.
COPIES_LOW, COPIES_HIGH = 0.95, 1.05
TIME_SHARE = 0.001

SWA_GAIN = Wanted("swa_gain", "SWA's test accuracy over the conventional run's, points", low=0.0)
DEVIATION = Wanted(
    "deviation",
    "largest difference of the optimizer's rate from the formula, over the highest rate",
    high=SCHEDULE_ERROR,
)
MISPLACED = Wanted(
    "misplaced", "models collected elsewhere than at a cycle's end, and ends without", high=0.5
)
COPIES = Wanted(
    "copies", "extra memory, in copies of the weights", low=COPIES_LOW, high=COPIES_HIGH
)
TIME = Wanted("time", "an update of the average over an epoch's training, in time", high=TIME_SHARE)
OVER_MEMBERS = Wanted(
    "over_members", "the ensemble's test accuracy over its mean member's, points", low=0.0
)
OVER_RUN = Wanted(
    "over_run", "the ensemble's test accuracy over the conventional run's, points", low=0.0
)
RECOMPUTED = Wanted(
    "recomputed",
    "test accuracy that SWA gains from recomputed statistics, above what its last iterate "
    "gains, points",
    low=0.0,
)
MEMBERS = Wanted(
    "members",
    "test accuracy of members of the cyclical run over iterates of the constant-rate run at "
    "the same steps, points",
    low=0.0,
)


# Records --------------------------------------------------------------------------------------


def _budgets(records: Records) -> tuple[Measured, ...]:
    """Records of SWA by its authors' procedure.

    Raises:
        NotMeasured: if there are only others.
    """
    found = records.measured("budget")
    if not all(record.has("swa_rate") for record in found):
        raise NotMeasured(
            "The runs average iterates at the full rate; the source lowers it to SWA's own before."
        )
    return found


def _accuracy(record: Measured, method: str, policy: str = "recompute") -> float:
    """Test accuracy in per cent; of several rows of a method, their mean."""
    found = record.values("accuracy", method=method, set="test", policy=policy)
    return 100.0 * float(found.mean())


def _all(records: Iterable[Measured], method: str) -> list[float]:
    return [_accuracy(record, method) for record in records]


def _excess(found: Iterable[Measured], method: str, other: str) -> list[float]:
    """Test accuracy of one method less that of another, points, seed by seed."""
    return [_accuracy(r, method) - _accuracy(r, other) for r in found]


# S1 and S6 ------------------------------------------------------------------------------------

_SHOWN = ("conventional", *KINDS, "fge_member", "fge")


def judge_s1(records: Records) -> Judgement:
    """Test accuracy of both kinds of SWA less that of the conventional run."""
    found = _budgets(records)
    parts = [SWA_GAIN.judge(_excess(found, m, "conventional"), at) for m, at in KINDS.items()]
    numbers = []
    for method, at in KINDS.items():
        what = f"{at}: SWA's training loss less the conventional run's"
        losses = [_loss(r, method) - _loss(r, "conventional") for r in found]
        numbers.append(ExtraNumber(f"train_{method}", what, losses))
    for method in ("conventional", *KINDS):
        gap = [_loss(record, method, "test") - _loss(record, method) for record in found]
        what = f"{KINDS.get(method, 'conventional run')}: test loss less training loss"
        numbers.append(ExtraNumber(f"gap_{method}", what, gap))
    return conclude(parts, numbers=numbers, drawn=_methods(found))


def _loss(record: Measured, method: str, on: str = "train_part") -> float:
    return record.value("loss", method=method, set=on, policy="recompute")


def _methods(found: tuple[Measured, ...], independent: float | None = None) -> dict[str, object]:
    """Returns the data of the figure of methods: test accuracy of each, by seed."""
    methods = {method: _all(found, method) for method in _SHOWN}
    if independent is not None:
        methods["independent"] = [independent]
    return {"accuracy": methods, "total": found[0].setting("total")}


def judge_s6(records: Records) -> Judgement:
    """Test accuracy of the ensemble of cycle ends against its members and a conventional run."""
    found = _budgets(records)
    parts = [
        OVER_MEMBERS.judge(_excess(found, "fge", "fge_member")),
        OVER_RUN.judge(_excess(found, "fge", "conventional")),
    ]
    numbers = [
        ExtraNumber(
            f"over_{method}",
            f"the ensemble's test accuracy over SWA's at {at}, points",
            _excess(found, "fge", method),
        )
        for method, at in KINDS.items()
    ]
    several = records.one("independent")
    independent = _accuracy(several, "independent")
    numbers.append(
        ExtraNumber(
            "under_independent",
            f"test accuracy of an ensemble of {several.setting('members'):.0f} independent runs, "
            "at as many times the cost, over the mean FGE ensemble's, points",
            independent - float(np.mean(_all(found, "fge"))),
        )
    )
    return conclude(parts, numbers=numbers, drawn=_methods(found, independent))


# S2 -------------------------------------------------------------------------------------------


def cyclical(count: int, length: int, high: float, low: float) -> np.ndarray:
    """[count] rates of updates i = 1, 2, … by the formula of the paper.

    >>> cyclical(4, 2, 1.0, 0.5)
    array([0.75, 0.5 , 0.75, 0.5 ])
    """
    t = (np.arange(count) % length + 1.0) / length
    return (1.0 - t) * high + t * low


def judge_s2(records: Records) -> Judgement:
    """The optimizer's rates against the formula, and the steps of the models collected."""
    deviations, misplaced = [], 0
    drawn: dict[str, object] = {}
    for record in _budgets(records):
        high, low = (record.setting("cycle", key) for key in ("high", "low"))
        length, first = (round(record.setting("cycle", key)) for key in ("length", "first_step"))
        total = round(record.setting("total"))
        used, collected = record.array("optimizer_rates"), record.array("collected").astype(int)
        if length < 1 or high <= 0.0:
            raise RecordError(f"{record.name}: a cycle must have a length and a positive rate.")
        if used.size != total - first:
            raise RecordError(f"{record.name} must have one rate for each step of the cycles.")
        formula = cyclical(used.size, length, high, low)
        deviations.append(float(np.max(np.abs(used - formula))) / high)
        ends = range(first + length, total + 1, length)
        misplaced += len(set(ends) ^ set(collected.tolist()))
        drawn = drawn or {
            "steps": first + np.arange(1, used.size + 1),
            "used": used,
            "formula": formula,
            "collected": collected,
            "length": length,
        }
    parts = [DEVIATION.judge(max(deviations)), MISPLACED.judge(float(misplaced))]
    return conclude(parts, drawn=drawn)


# S3 -------------------------------------------------------------------------------------------

NETWORKS = {"own": "scale's network", "large": "larger network"}


def judge_s3(records: Records) -> Judgement:
    """Memory of the float32 average in copies of the weights, and the time of its updates."""
    record = records.one("cost")
    if not record.rows:
        raise NotMeasured("The record has the average in double words only, of a small network.")
    epoch = record.setting("steps_per_epoch")
    parts, numbers = [], []
    for network in record.known("network"):
        own = {"network": network}
        at = NETWORKS.get(str(network), str(network))
        step, update, weights, extra = (
            {p: record.values(key, **own, precision=p) for p in ("single", "auto")}
            for key in ("step_seconds", "update_seconds", "weights_bytes", "extra_bytes")
        )
        if any(np.any(values["single"] <= 0.0) for values in (step, update, weights)):
            raise RecordError(f"{record.name}: times and sizes must be positive.")
        copies = {p: float(np.max(extra[p] / weights[p])) for p in extra}
        parts.append(COPIES.judge(copies["single"], at))
        parts.append(TIME.judge(PairedRatio(update["single"], epoch * step["single"]), at))
        numbers += [
            ExtraNumber(
                f"step_share_{network}",
                f"{at}: an update over a training step, in time",
                PairedRatio(update["single"], step["single"]),
            ),
            ExtraNumber(
                f"double_copies_{network}",
                f"{at}: copies that this package keeps, in twice the precision",
                copies["auto"],
            ),
            ExtraNumber(
                f"double_share_{network}",
                f"{at}: an update in twice the precision over a training step, in time",
                PairedRatio(update["auto"], step["auto"]),
            ),
            ExtraNumber(
                f"weights_{network}", f"{at}: megabytes of weights", weights["single"][0] / 1e6
            ),
            ExtraNumber(
                f"step_seconds_{network}",
                f"{at}: seconds of a training step",
                mean_of(step["single"]),
            ),
        ]
    return conclude(parts, numbers=numbers)


# S7 -------------------------------------------------------------------------------------------

# What is compared: (row's method, policy), "{}" for the kind of SWA.
_POLICIES = {
    "last iterate, running": ("{}_last", "running"),
    "last iterate, recomputed": ("{}_last", "recompute"),
    "SWA, copied": ("{}", "copy"),
    "SWA, averaged": ("{}", "average"),
    "SWA, recomputed": ("{}", "recompute"),
}


def judge_s7(records: Records) -> Judgement:
    """What SWA gains from recomputed statistics, beyond what a raw iterate gains."""
    found = _budgets(records)
    parts, numbers = [], []
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for kind, at in KINDS.items():
        running, raw, copied, averaged, recomputed = (
            np.array([_accuracy(record, method.format(kind), policy) for record in found])
            for method, policy in _POLICIES.values()
        )
        parts.append(RECOMPUTED.judge((recomputed - copied) - (raw - running), at))
        for name, what, values in (
            ("swa", "test accuracy of SWA, recomputed over copied statistics", recomputed - copied),
            ("raw", "test accuracy of the last iterate, recomputed over its own", raw - running),
            ("averaged", "test accuracy of SWA, recomputed over averaged", recomputed - averaged),
        ):
            numbers.append(ExtraNumber(f"{name}_{kind}", f"{at}: {what}, points", values))
        shown = (running, raw, copied, averaged, recomputed)
        drawn[at] = dict(zip(_POLICIES, shown, strict=True))
    return conclude(parts, numbers=numbers, drawn=drawn)


# S8 -------------------------------------------------------------------------------------------


def judge_s8(records: Records) -> Judgement:
    """Members at cycle ends against iterates of the constant-rate run at the same steps."""
    found = _budgets(records)
    steps, members, iterates = np.zeros(0), [], []
    for record in found:
        (steps, own), (others, other) = (
            record.curve("step", "accuracy", method=method, set="test", policy="recompute")
            for method in ("fge_member", "constant_iterate")
        )
        if steps.tolist() != others.tolist():
            raise RecordError(f"{record.name} must have both kinds of models at the same steps.")
        members.append(100.0 * own)
        iterates.append(100.0 * other)
    own, other = (np.array([one.mean() for one in found]) for found in (members, iterates))
    numbers = [
        ExtraNumber("member_accuracy", "test accuracy of members of the cyclical run, %", own),
        ExtraNumber(
            "iterate_accuracy", "test accuracy of iterates of the constant-rate run, %", other
        ),
    ]
    drawn = {"steps": steps, "members": np.array(members), "iterates": np.array(iterates)}
    return conclude([MEMBERS.judge(own - other)], numbers=numbers, drawn=drawn)


_PROCEDURE = (
    "conventional: the rate constant until half of the budget, then on a line to a hundredth of it "
    "at nine tenths; SWA: the same shape down to its own rate before it begins to average; all "
    "from scratch and of the same number of steps"
)

CLAIMS = (
    Claim(
        "S1",
        "SWA beats a conventional run of equal budget",
        "SWA with constant or cyclical rate beats the conventional run at equal budget.",
        SWA,
        ("budget",),
        f"test accuracy of SWA and of a conventional run; {_PROCEDURE}",
        (SWA_GAIN,),
        "The sentence has only a sign. It is asked of both rates, on the same seeds pair by pair.",
        judge_s1,
    ),
    Claim(
        "S2",
        "The cyclical rate follows its formula; models come from cycle ends",
        "The cyclical rate is α(i) = (1-t) α₁ + t α₂ with t = (mod(i-1, c) + 1) / c, and models "
        "are collected at the ends of cycles.",
        SWA,
        ("budget",),
        "the rate that the optimizer had at every step of the cyclical run, and the steps that the "
        "collected models have on disk",
        (DEVIATION, MISPLACED),
        "An identity has no tolerance but that of its number format: float32 has 6e-8. Not one "
        "model may be missing or be one too many.",
        judge_s2,
        seeds=1,
    ),
    Claim(
        "S3",
        "The running average needs one extra copy and negligible time",
        "The running average needs one extra copy of the weights and negligible time.",
        SWA,
        ("cost",),
        "bytes of the float32 average, and times of its update and of a training step in turn, on "
        "the scale's network and a larger one; SWA makes one update an epoch",
        (COPIES, TIME),
        "Counters may come on top of one copy. A thousandth of an epoch is below what epochs "
        "scatter by, so that nobody would notice it.",
        judge_s3,
        seeds=1,
    ),
    Claim(
        "S6",
        "Averaged predictions of cycle ends beat their members and a conventional run",
        "FGE: averaging the predictions of models at the ends of cycles improves on them, in the "
        "time of one run.",
        FGE,
        ("budget", "independent"),
        "test accuracy of the ensemble of cycle ends, of its members and of a conventional run of "
        f"equal budget; {_PROCEDURE}",
        (OVER_MEMBERS, OVER_RUN),
        "An ensemble that does not beat its members is none, and one that does not beat a single "
        "run of the same cost is no bargain. Independent runs cost several times as much: told, "
        "not judged.",
        judge_s6,
    ),
    Claim(
        "S7",
        "Averaged weights need recomputed batch-norm statistics",
        "Batch-norm statistics must be recomputed for averaged weights.",
        SWA,
        ("budget",),
        "test accuracy of SWA with recomputed statistics and with those of its last iterate, and "
        "of that iterate with recomputed statistics and its own",
        (RECOMPUTED,),
        "A raw iterate gains from recomputation too, as running statistics lag behind the weights. "
        "Only what SWA gains beyond that is due to averaging; the sentence gives it a sign.",
        judge_s7,
    ),
    Claim(
        "S8",
        "Members of a cyclical run beat iterates of a constant-rate run",
        "Members of a cyclical run are better than iterates of a constant-rate run.",
        SWA,
        ("budget",),
        "test accuracy of the models at cycle ends and of the constant-rate run at the same "
        "steps; both leave the same model, and the constant rate is the highest of the cycles",
        (MEMBERS,),
        "The sentence has only a sign. The mean over cycle ends is one number for each seed.",
        judge_s8,
    ),
)
