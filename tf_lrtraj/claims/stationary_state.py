"""Claims B7 to B10, B13, B14 and O4: the stationary state, its size, and diverging runs."""

from __future__ import annotations

import math
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
    Wanted,
    conclude,
)
from tf_lrtraj.records import RecordError
from tf_lrtraj.statistics import Estimate, PairedRatio, exponent, mean_of

PLATEAU = Wanted(
    "plateau",
    "squared displacement over the squared distance of two independent runs of that age",
    0.75,
    1.25,
)
HALF_TIME = Wanted(
    "half_time",
    "lag at which half of that distance is reached, over the steps before the window",
    high=0.1,
)
LEVELS = Wanted(
    "levels", "power of time by which the two runs part in the second half of theirs", high=0.5
)
_POWER = (5 / 12, 7 / 12)
DISTANCE = Wanted("distance", "power of the rate by which the distance grows", *_POWER)
ANGLE = Wanted(
    "angle", "power of the rate by which the angle grows, filters over their norms", *_POWER
)
SCATTER = Wanted(
    "scatter", "coefficient of variation of iterates' squared distance from the centre", high=0.25
)
INSIDE = Wanted(
    "inside",
    "an average's squared distance plus two shell thicknesses, over the iterates' mean",
    high=1.0,
)
GROWS = Wanted(
    "grows_inside", "change of squared distance from a start inside, over the iterates' mean", 0.0
)
SHRINKS = Wanted(
    "shrinks_outside",
    "change of squared distance from a start outside, over the iterates' mean",
    high=0.0,
)
_TOGETHER = 0.5
_RATIO = "squared distance on shared batches over that on independent ones"
SHARED = Wanted("shared", f"{_RATIO}, at the end", high=_TOGETHER)
SETTLES = Wanted(
    "settles", "power of time by which squared distance grows on independent batches", high=0.5
)
DEPENDS = Wanted(
    "depends_on_rate", "power of the rate by which it grows, at times in units of 1 / rate", 0.5
)
SMALL = Wanted("small_rate", f"{_RATIO}, at the small rate", high=_TOGETHER)
LARGER = Wanted("larger", "that ratio at the large rate over that at the small rate", low=1.0)
FALLS = Wanted("falls", "ln of the training loss over that at the next larger rate", high=0.0)
EXPLAINED = Wanted(
    "explained",
    "fall of the training loss from the base rate: predicted over measured",
    math.sqrt(0.5),
    math.sqrt(2.0),
)
ALIGNED = Wanted("aligned", "mean cosine of the gradients of two batches", low=0.1)
PARTS = Wanted("parts", "power of steps by which the squared distance of two runs grows", low=0.5)


# B7 -------------------------------------------------------------------------------------------


def judge_b7(records: Records) -> Judgement:
    """Squared displacement against the distance of two runs that share nothing but a start."""
    curves: list[dict[str, Any]] = []
    displaced, plateaus, halves, powers = [], [], [], []
    found = records.measured("displacement")
    for record in found:
        base, pair = (records.of_seed(task, record.seed) for task in ("base", "pairs"))
        steps, squares = _pair(pair, "independent", _pair_rates(pair)[1])
        late = steps >= 0.75 * steps[-1]
        plateau = float(squares[late].mean())
        powers.append(_second_half_exponent(steps, squares))
        lags, moved, _ = stationarity.displacement(record)
        lag = min(float(steps[late].mean()), float(lags[-1]))
        displaced.append(float(np.interp(lag, lags, moved)))
        plateaus.append(plateau)
        half = _reached(np.append(0.0, lags), np.append(0.0, moved), 0.5 * plateau)
        halves.append(half / base.setting("burn_in"))
        per_epoch = base.steps_per_epoch()
        curves.append(
            {
                "lags": lags / per_epoch,
                "moved": moved,
                "ages": steps / per_epoch,
                "apart": squares,
                "plateau": plateau,
                "half": half / per_epoch,
            }
        )
    epochs = [curve["half"] for curve in curves]
    growth = [stationarity.displacement_growth(record).value for record in found]
    return conclude(
        [
            PLATEAU.judge(PairedRatio(displaced, plateaus)),
            LEVELS.judge(powers),
            HALF_TIME.judge(halves),
        ],
        conditions=stationarity.stationary(records),
        numbers=[
            ExtraNumber("half_time_epochs", "epochs until half of the distance", epochs),
            ExtraNumber(
                "growth", "power of the lag by which displacement grows at long lags", growth
            ),
        ],
        drawn={"seeds": curves},
    )


def _second_half_exponent(steps: np.ndarray, squares: np.ndarray) -> float:
    """Power of time by which a squared distance grows over the second half of the time."""
    later = steps >= 0.5 * steps[-1]
    return exponent(steps[later], squares[later]).value


def _reached(at: np.ndarray, values: np.ndarray, level: float) -> float:
    """Returns where a curve first reaches a level, by interpolation; its end if it never does."""
    after = int(np.argmax(values >= level))
    if values[after] < level:
        return float(at[-1])
    if after == 0:
        return float(at[0])
    share = (level - values[after - 1]) / (values[after] - values[after - 1])
    return float(at[after - 1] + share * (at[after] - at[after - 1]))


# B8 -------------------------------------------------------------------------------------------


def judge_b8(records: Records) -> Judgement:
    """Exponent of the distance from the iterates' centre against the rate."""
    kinds = {"distance": "squared_distance", "angle": "filters_squared_distance"}
    powers: dict[tuple[str, int], list[float]] = {}
    found = records.measured("rates")
    rates = np.zeros(0)
    curves: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    for record in found:
        if not all("lag" in row for row in record.rows):
            raise NotMeasured("Distances were taken at one lag for all rates.")
        for half in (1, 2):
            rates, lags = (record.values(k, half=half) for k in ("learning_rate", "lag"))
            if np.unique(rates).size < 3:
                raise NotMeasured("Distances are known at fewer than three rates.")
            times = rates * lags
            if times.max() > 1.5 * times.min():
                raise NotMeasured("Lags are not in proportion to 1 / rate.")
            for name, field in kinds.items():
                squares = record.values(field, half=half)
                if np.any(rates <= 0.0) or np.any(squares <= 0.0):
                    raise RecordError(f"{record.name}: rates and squares must be positive.")
                power = 0.5 * exponent(rates, squares).value
                powers.setdefault((name, half), []).append(power)
                if half == 2:
                    curves[name].append(np.sqrt(squares))
    conditions = [
        stationarity.batch_loss_condition(records),
        stationarity.level_condition(records),
        *_norms(found),
    ]
    limit = 0.5 * (_POWER[1] - _POWER[0])
    for name in kinds:
        first, last = (mean_of(powers[name, half]).value for half in (1, 2))
        moved = last - first
        what = f"power of the {name}: from the second half of the runs less from the first"
        conditions.append(Condition(f"halves_{name}", what, moved, -limit, limit))
    parts = [wanted.judge(powers[wanted.name, 2]) for wanted in (DISTANCE, ANGLE)]
    return conclude(parts, conditions=conditions, drawn={"rates": rates, **curves})


def _norms(found: tuple[Measured, ...]) -> list[Condition]:
    """Returns the condition that the squared norm is stationary at every rate."""
    drifts: dict[float, list[Estimate]] = {}
    for record in found:
        points: dict[float, list[tuple[float, float]]] = {}
        for row in record.table("norms"):
            rate, *point = (
                record.number(row, key) for key in ("learning_rate", "step", "squared_norm")
            )
            points.setdefault(rate, []).append((point[0], point[1]))
        if set(points) != set(record.values("learning_rate")):
            raise RecordError(f"{record.name} must have squared norms at every rate.")
        for rate, pairs in points.items():
            series = np.array(pairs).T
            drifts.setdefault(rate, []).append(stationarity.relative_trend(*series))
    return [
        stationarity.drift_condition(
            f"norm_drift_{rate:g}",
            f"the squared norm at rate {rate:g}, late",
            of_rate,
            stationarity.NORM_LIMIT,
        )
        for rate, of_rate in sorted(drifts.items(), reverse=True)
    ]


# B9 -------------------------------------------------------------------------------------------


def judge_b9(records: Records) -> Judgement:
    """Scatter of the distance from the centre, where averages are, and where steps lead."""
    scatters, drawn = [], []
    inside: dict[str, list[float]] = {"window": [], "two_point": []}
    changes: dict[float, list[float]] = {}
    for record in records.measured("shell"):
        walks = record.select(of="walk")
        if not walks:
            raise NotMeasured("Averages were not seen from the other half of the window.")
        _, squares = record.same_length("steps", "squared_distance")
        if squares.size < 8 or np.any(squares <= 0.0):
            raise RecordError(f"{record.name} needs 8 or more squared distances, above 0.")
        halves = np.array_split(squares, 2)
        scatter = float(np.mean([half.std(ddof=1) / half.mean() for half in halves]))
        scatters.append(scatter)
        places: dict[str, np.ndarray] = {}
        for name, found in inside.items():
            iterates = record.values("iterates", of=name)
            places[name] = record.values("squared_distance", of=name) / iterates
            found.append(float(places[name].mean()) + 2.0 * scatter)
        for scale in sorted({record.number(row, "scale") for row in walks}):
            before, after, iterates = (
                record.values(key, of="walk", scale=scale)
                for key in ("before", "after", "iterates")
            )
            changes.setdefault(scale, []).append(float(np.mean((after - before) / iterates)))
        iterates = np.concatenate([half / half.mean() for half in halves])
        drawn.append({"iterates": iterates, **places})
    scales = sorted(changes)
    if len({len(found) for found in changes.values()}) > 1 or not scales[0] < 1.0 < scales[-1]:
        raise RecordError("measured/shell must have walks from inside and from outside.")
    parts = [
        SCATTER.judge(scatters),
        INSIDE.judge(inside["window"], "averages of a stretch"),
        INSIDE.judge(inside["two_point"], "averages of two points"),
        GROWS.judge(changes[scales[0]]),
        SHRINKS.judge(changes[scales[-1]]),
    ]
    numbers = [
        ExtraNumber(
            f"change_at_{scale:g}",
            f"change of squared distance from a start at {scale:g} times an iterate's place",
            changes[scale],
        )
        for scale in scales[1:-1]
    ]
    return conclude(
        parts,
        conditions=[*stationarity.stationary(records), stationarity.levelled_displacement(records)],
        numbers=numbers,
        drawn={"seeds": drawn, "scales": np.array(scales), "changes": changes},
    )


# B10 and O4 -----------------------------------------------------------------------------------


def _pair_rates(record: Measured) -> tuple[float, float]:
    """The small and the large rate of pairs of runs."""
    rates = sorted(set(record.values("learning_rate", batches="independent").tolist()))
    if len(rates) != 2 or rates[0] <= 0.0:
        raise RecordError(f"{record.name} must have pairs at two rates above 0.")
    return rates[0], rates[1]


def _pair(record: Measured, batches: str, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """(steps since the fork, squared distances), ascending, without the common start."""
    steps, squares = record.curve("step", "squared_distance", batches=batches, learning_rate=rate)
    kept = steps > 0.0
    if kept.sum() < 4 or np.any(squares[kept] <= 0.0):
        raise RecordError(f"{record.name}: {batches} needs 4 or more distances, above 0 later.")
    return steps[kept], squares[kept]


class _Pairs:
    """Distances of all seeds' pairs: at the end, and what is drawn."""

    def __init__(self, records: Records) -> None:
        found = records.measured("pairs")
        if not all(record.has("switch") for record in found):
            raise NotMeasured("Pairs did not go over to shared batches from independent ones.")
        self.small, self.large = _pair_rates(found[0])
        self.ends: dict[tuple[str, float], list[float]] = {}
        self.changes: dict[float, list[float]] = {}
        self.growths, self.powers, self.curves = [], [], []
        for record in found:
            if _pair_rates(record) != (self.small, self.large):
                raise RecordError(f"{record.name} has other rates than other seeds.")
            curves = {}
            switch = record.setting("switch")
            for rate in (self.small, self.large):
                steps, squares = curves["independent", rate] = _pair(record, "independent", rate)
                shared = curves["shared", rate] = _pair(record, "shared", rate)
                late = 0.25 * switch + 0.75 * steps[-1]
                for name, (at, values) in (("independent", (steps, squares)), ("shared", shared)):
                    self.ends.setdefault((name, rate), []).append(float(values[at >= late].mean()))
                start = float(np.interp(switch, steps, squares))
                self.changes.setdefault(rate, []).append(self.ends["shared", rate][-1] / start)
            steps, squares = curves["independent", self.large]
            self.growths.append(_second_half_exponent(steps, squares))
            slow_steps, slow = curves["independent", self.small]
            late_steps = slow_steps[slow_steps >= 0.75 * slow_steps[-1]]
            ratio = self.small / self.large
            there = float(np.interp(late_steps * ratio, steps, squares).mean())
            here = float(np.interp(late_steps, slow_steps, slow).mean())
            self.powers.append(math.log(there / here) / -math.log(ratio))
            self.curves.append({"switch": switch, "pairs": curves})

    def ratio(self, rate: float) -> PairedRatio:
        return PairedRatio(self.ends["shared", rate], self.ends["independent", rate])

    def change(self, name: str, rate: float) -> ExtraNumber:
        what = f"rate {rate:g}: squared distance on shared batches at the end, over their first"
        return ExtraNumber(name, what, self.changes[rate])

    def drawn(self) -> dict[str, Any]:
        return {"small": self.small, "large": self.large, "seeds": self.curves}


def judge_b10(records: Records) -> Judgement:
    """Distance between two runs on the same batches, and on independent ones."""
    pairs = _Pairs(records)
    return conclude(
        [
            SHARED.judge(pairs.ratio(pairs.large)),
            SETTLES.judge(pairs.growths),
            DEPENDS.judge(pairs.powers),
        ],
        numbers=[pairs.change("change", pairs.large)],
        drawn=pairs.drawn(),
    )


def judge_o4(records: Records) -> Judgement:
    """Distance between two runs on the same batches, at a small and at a large rate."""
    pairs = _Pairs(records)
    small, large = (
        np.array(pairs.ends["shared", rate]) / np.array(pairs.ends["independent", rate])
        for rate in (pairs.small, pairs.large)
    )
    return conclude(
        [SMALL.judge(pairs.ratio(pairs.small)), LARGER.judge(PairedRatio(large, small))],
        numbers=[
            ExtraNumber("large_rate", f"{_RATIO}, at the large rate", pairs.ratio(pairs.large)),
            pairs.change("change_small", pairs.small),
            pairs.change("change_large", pairs.large),
        ],
        drawn=pairs.drawn(),
    )


# B13 ------------------------------------------------------------------------------------------


def judge_b13(records: Records) -> Judgement:
    """Stationary loss against rate: measured, and predicted from the base rate alone."""
    measured, predicted, drifts = [], [], []
    rates: list[float] = []
    for record in records.measured("rates"):
        excess = {
            record.number(row, "learning_rate"): record.number(row, "excess")
            for row in record.table("predicted")
        }
        if not excess:
            raise NotMeasured("No excess loss was predicted for other rates.")
        lower = records.of_seed("lower_rates", record.seed)
        base = max(excess)
        late = {
            rate: lower.values("loss", set="train_part", learning_rate=rate)
            for rate in sorted(excess, reverse=True)
            if rate < base and lower.select(set="train_part", learning_rate=rate)
        }
        if len(late) < 2 or (rates and rates != [base, *late]):
            raise NotMeasured("Losses are not known at two rates below the base rate, or more.")
        rates = [base, *late]
        losses = [record.setting("single_loss"), *(float(one.mean()) for one in late.values())]
        if min(losses) <= 0.0:
            raise RecordError(f"{lower.name}: losses must be positive.")
        measured.append(losses)
        predicted.append([losses[0] - excess[base] + excess[rate] for rate in rates])
        halves = [
            [record.value("batch_loss", learning_rate=rate, half=half) for rate in rates]
            for half in (1, 2)
        ]
        drifts.append([second / first - 1.0 for first, second in zip(*halves, strict=True)])
    found, theory, drift = (np.array(x) for x in (measured, predicted, drifts))
    parts = [
        FALLS.judge(np.log(found[:, i] / found[:, i - 1]), f"rate {rate:g}")
        for i, rate in enumerate(rates[1:], start=1)
    ]
    fall, foreseen = found[:, :1] - found, theory[:, :1] - theory
    parts += [
        EXPLAINED.judge(PairedRatio(foreseen[:, i], fall[:, i]), f"rate {rate:g}")
        for i, rate in enumerate(rates[1:], start=1)
    ]
    limit = 100.0 * stationarity.LOSS_LIMIT
    conditions = [
        Condition(
            f"drift_{rate:g}",
            f"change of the mini-batch loss between late halves of the run at rate {rate:g}, %",
            100.0 * float(drift[:, i].mean()),
            -limit,
            limit,
        )
        for i, rate in enumerate(rates)
    ]
    drawn = {"rates": np.array(rates), "measured": found, "predicted": theory}
    return conclude(parts, conditions=conditions, drawn=drawn)


# B14 ------------------------------------------------------------------------------------------


def judge_b14(records: Records) -> Judgement:
    """Cosines of gradients in the first steps, and the distance of two runs from one start."""
    found = records.measured("start")
    last = {max(record.values("step")) for record in found}
    tables = []
    for record in found:
        rows = sorted(record.rows, key=lambda row: record.number(row, "step"))
        tables.append(rows[:-1])  # the last is from the burn-in's end
    steps = [[record.number(r, "step") for r in t] for record, t in zip(found, tables, strict=True)]
    if len(last) > 1 or any(one != steps[0] for one in steps) or len(steps[0]) < 3:
        raise RecordError("measured/start must have the same three steps or more for all seeds.")
    at = np.array(steps[0])

    def field(name: str, first: int = 0) -> np.ndarray:
        return np.array(
            [
                [record.number(row, name) for row in table[first:]]
                for record, table in zip(found, tables, strict=True)
            ]
        )

    cosines, apart = field("pair_cosine"), field("squared_distance", 1)
    moved, to_start = field("squared_displacement", 1), field("cosine_to_start")
    if np.any(apart <= 0.0) or np.any(moved <= 0.0):
        raise RecordError("measured/start must have distances above 0 after the start.")
    parts = [ALIGNED.judge(cosines[:, i], f"step {step:g}") for i, step in enumerate(at)]
    parts.append(PARTS.judge([exponent(at[1:], one).value for one in apart]))
    late = [record.value("pair_cosine", step=max(last)) for record in found]
    share = apart[:, -1] / (2.0 * moved[:, -1])
    return conclude(
        parts,
        numbers=[
            ExtraNumber("late_cosine", "mean cosine of gradients at the burn-in's end", late),
            ExtraNumber("share", "squared distance over both squared displacements", share),
        ],
        drawn={
            "steps": at,
            "cosines": cosines,
            "to_start": to_start,
            "to_displacement": field("cosine_to_displacement", 1),
            "late": float(np.mean(late)),
            "apart": apart,
            "moved": moved,
        },
    )


CLAIMS = (
    Claim(
        "B7",
        "At constant rate the weights soon reach a quasi-stationary state",
        "At constant rate the weights reach a quasi-stationary state quickly.",
        SANDLER,
        ("base", "levels", "displacement", "pairs"),
        "Squared displacement of the weights against lag over the window of the base run, beside "
        "the squared distance of two runs from one state on independent batches.",
        (PLATEAU, LEVELS, HALF_TIME),
        "Displacement is compared at a lag equal to the age of the pair: in a stationary state "
        "the two are equal, for a random walk their ratio is 1/2, and a drift that both runs share "
        "raises it; a quarter off is half-way to the walk. The pair itself must have levelled off: "
        "walks part as time to the power 1. Quickly: within a tenth of the steps made before.",
        judge_b7,
    ),
    Claim(
        "B8",
        "Distance to the minimum grows as the root of the rate",
        "The distance to the minimum grows as the square root of the rate.",
        SANDLER,
        ("rates", "base", "levels"),
        "Half of the mean squared displacement in runs at several constant rates from one state, "
        "at lags in proportion to 1 / rate; of the weights, and of filters divided by their norms.",
        (DISTANCE, ANGLE),
        "The power must be nearer to 1/2 than to 1/3 or to 2/3, the nearest other simple powers. "
        "Before batch norm only the angle counts, so it must obey too. The norm must have levelled "
        "off at every rate, and both halves of the runs must agree.",
        judge_b8,
    ),
    Claim(
        "B9",
        "Iterates lie on an ellipsoid's shell and averages inside it",
        "The trajectory runs on the shell of an ellipsoid; averages lie inside it.",
        SANDLER,
        ("shell", "base", "levels", "displacement"),
        "Distances of iterates and of averages over stretches of the window from the mean of the "
        "window's other half; and short runs from places nearer to it and further away.",
        (SCATTER, INSIDE, GROWS, SHRINKS),
        "A quarter of the square is an eighth of the radius: a shell, not a cloud. Two standard "
        "deviations of the iterates' squared distance put an average clearly off it. Inside the "
        "ellipsoid a step leads outwards and outside inwards: signs.",
        judge_b9,
    ),
    Claim(
        "B10",
        "Shared batches bring two runs together; independent ones keep them apart",
        "The distance between two trajectories shrinks with time on shared batches, and settles "
        "at a value that depends on the rate on independent ones.",
        SANDLER,
        ("pairs",),
        "Two runs from one state on independent batches, at two rates; from half-way on the second "
        "is continued on the first's batches too.",
        (SHARED, SETTLES, DEPENDS),
        "In a quadratic model shared batches leave less than half of what independent ones do, in "
        "every direction; where nothing pulls the runs together, a half. Two random walks part as "
        "time to the power 1: below 1/2 they are nearer to having settled. The model's value goes "
        "as the rate to the power 1: above 1/2 it is nearer to that than to no dependence.",
        judge_b10,
    ),
    Claim(
        "B13",
        "The rate sets how close to the minimum a run comes",
        "A fixed rate comes only so close to the minimum: the stationary loss falls with the rate, "
        "by what the quadratic model of the run at the base rate predicts.",
        SANDLER,
        ("rates", "lower_rates"),
        "Training loss of late iterates of runs at constant rates from one state, and excess loss "
        "by the quadratic model that pairs of iterates of the base run alone give.",
        (FALLS, EXPLAINED),
        "The first is a sign. A prediction must be nearer to what is measured than to twice or "
        "half of it.",
        judge_b13,
    ),
    Claim(
        "B14",
        "From the first step on gradients align and trajectories part",
        "Gradients of different batches align, and trajectories diverge, from step 0 on.",
        SANDLER,
        ("start",),
        "Gradients of several batches at the first steps from scratch, and a second run from the "
        "same weights on independent batches.",
        (ALIGNED, PARTS),
        "A cosine of a tenth: a tenth of a batch's squared gradient is common to all batches; "
        "chance gives one over the root of the number of weights. Runs that part as a random walk "
        "have the power 1, those that keep their directions 2, and those that stay together 0.",
        judge_b14,
    ),
    Claim(
        "O4",
        "Shared batches bring two runs together more at a smaller rate",
        "On shared batches two runs come together at a small rate, and less so at a large one.",
        "Found here, claimed by nobody",
        ("pairs",),
        "As for B10: two runs that independent batches have driven apart, continued on the same "
        "batches, at the base rate and at a fraction of it.",
        (SMALL, LARGER),
        "Together means what it means in B10: less than half of the squared distance that "
        "independent batches lead to. The second is a sign, and a quadratic model has it the "
        "other way: in as many steps a larger rate forgets more.",
        judge_o4,
    ),
)
