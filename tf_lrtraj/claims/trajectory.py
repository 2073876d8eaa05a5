"""Claims B7 to B10: the stationary state at constant rate, and how it is reached."""

from __future__ import annotations

import functools
import math

import numpy as np

from tf_lrtraj.claims import stationarity
from tf_lrtraj.claims.records_reader import Measured, NotRun, Records
from tf_lrtraj.claims.statistics import (
    Estimate,
    block_numbers,
    combine,
    difference,
    exponent,
    jackknife,
    mean_of,
    series_mean,
)
from tf_lrtraj.claims.verdicts import (
    Claim,
    Condition,
    Judgement,
    above,
    as_interval,
    below,
    conclude,
    number,
    within,
)
from tf_lrtraj.records import RecordError

SOURCE = "Sandler et al. 2023, arXiv 2301.02312"

# B7.  "Quickly": half the plateau within a quarter of the longest lag.  A random walk is there at
# a half, a steady drift at 0.71.
HALF_TIME = 0.25
# B8.  Nearer to 1/2 than to 1/3 or to 2/3.
EXPONENT_LOW, EXPONENT_HIGH = 5 / 12, 7 / 12
# B9.  The radius varies by half as much as its square: an eighth of itself, a thin shell.  A
# Gaussian cloud does so from 32 directions of equal variance on.
SHELL_CV = 0.25
# B9.  A prediction from a spectrum known to a factor of a few is good within a factor of 2.
CV_FACTOR = 2.0


# B7 -------------------------------------------------------------------------------------------


def judge_b7(records: Records) -> Judgement:
    """Growth of squared displacement at long lags, and how soon half of it is there."""
    found = records.measured("displacement")
    growth = combine([stationarity.displacement_growth(record) for record in found])
    halves = [stationarity.relaxation(record) for record in found]
    half = mean_of(halves) if len(halves) > 2 else Estimate(float(np.mean(halves)), 0.0)
    parts = [
        below(
            "displacement_growth",
            growth,
            stationarity.GROWTH_LIMIT,
            "squared displacement grows at long lags as lag to the power",
        ),
        below("half_time", half, HALF_TIME, "half of it is there at, over the longest lag,"),
    ]
    notes = ["the model: power 0 in a stationary state, 1 for a random walk, 2 for a drift"]
    return conclude(parts, conditions=stationarity.stationary(records), notes=notes)


# B8 -------------------------------------------------------------------------------------------


def judge_b8(records: Records) -> Judgement:
    """Exponent of the distance from the iterates' centre against the rate."""
    last, first, top = [], [], []
    for record in records.measured("rates"):
        slopes = []
        for half in (2, 1):
            rates = record.values("learning_rate", half=half)
            squares = record.values("squared_distance", half=half)
            if np.unique(rates).size < 3:
                raise NotRun([f"{record.name} with three rates or more"])
            if np.any(rates <= 0.0) or np.any(squares <= 0.0):
                raise RecordError(f"{record.name}: rates and squared distances must be positive.")
            slopes.append(exponent(rates, squares).scaled(0.5))
            top.append(float(rates.max() / rates.min()))
        last.append(slopes[0])
        first.append(slopes[1])
    power, before = combine(last), combine(first)
    moved = abs(power.value - before.value)
    # Half the width of the interval in which the exponent must lie.
    limit = 0.5 * (EXPONENT_HIGH - EXPONENT_LOW)
    halves = Condition(
        moved < limit,
        f"the exponent is {number(before.value)} from the first half of the runs and "
        f"{number(power.value)} from the second ({'less' if moved < limit else 'not less'} than "
        f"{number(limit)} apart)",
        {"exponent_first_half": as_interval(before)},
    )
    part = within(
        "exponent",
        power,
        EXPONENT_LOW,
        EXPONENT_HIGH,
        f"over rates {number(max(top))} times apart the distance goes as the rate to the power",
    )
    notes = [f"the model says 0.5 at small rates: {number(part.interval.value - 0.5)} off"]
    conditions = [*stationarity.stationary(records), halves]
    return conclude([part], conditions=conditions, notes=notes)


# B9 -------------------------------------------------------------------------------------------


def judge_b9(records: Records) -> Judgement:
    """Scatter of the squared distance from the centre, and where averages are."""
    shells = records.measured("shell")
    scatters, ratios = [], []
    inside: dict[str, list[Estimate]] = {}
    for record in shells:
        _, squares = record.same_length("steps", "squared_distance")
        if squares.size < 8 or np.any(squares < 0.0) or squares.mean() <= 0.0:
            raise RecordError(f"{record.name} needs 8 or more squared distances, not negative.")
        blocks = block_numbers(squares.size)
        scatter = jackknife(functools.partial(_scatter_of, squares), blocks)
        scatters.append(scatter)
        ratios.append(scatter.scaled(1.0 / record.setting("predicted_cv")))
        for row in record.rows:
            if row.get("average") == "raw":
                continue
            place = record.number(row, "squared_distance")
            name = str(row.get("average"))
            inside.setdefault(name, []).append(
                jackknife(functools.partial(_outermost, squares, place), blocks)
            )
    if not inside:
        raise RecordError(f"{shells[0].name} has no average.")
    parts = [
        below("scatter", combine(scatters), SHELL_CV, "squared distance from the centre varies by"),
        within(
            "scatter_over_predicted",
            combine(ratios),
            1.0 / CV_FACTOR,
            CV_FACTOR,
            "that over what the spectrum predicts",
        ),
    ]
    for name, estimates in inside.items():
        what = f"{name}: squared distance plus two shell thicknesses, over the iterates' mean,"
        parts.append(below(f"{name}_inside", combine(estimates), 1.0, what))
    for name, change in _losses_inside(records, list(inside)).items():
        what = f"{name}: training loss relative to the iterates', less 1,"
        parts.append(below(f"{name}_loss", change, 0.0, what))
    conditions = [
        *stationarity.stationary(records),
        stationarity.levelled_displacement(records),
    ]
    notes = ["the centre is the mean of the window, so an average over much of it is near it"]
    return conclude(parts, conditions=conditions, notes=notes)


def _scatter_of(squares: np.ndarray, kept: np.ndarray) -> float:
    return _scatter(squares[kept])


def _outermost(squares: np.ndarray, place: float, kept: np.ndarray) -> float:
    """Place of an average in units of the mean square, moved out by two shell thicknesses."""
    return place / float(squares[kept].mean()) + 2.0 * _scatter(squares[kept])


def _scatter(squares: np.ndarray) -> float:
    return float(squares.std(ddof=1) / squares.mean())


def _losses_inside(records: Records, names: list[str]) -> dict[str, Estimate]:
    """Relative loss of averages against the mean single iterate of the window."""
    found: dict[str, list[Estimate]] = {name: [] for name in names}
    for record in records.measured("averages"):
        levels = records.of_seed("levels", record.seed)
        iterates = mean_of(levels.values("loss", set="train"), "iterates")
        for name in names:
            loss = record.value("loss", average=name, set="train", policy="recompute")
            error = loss * iterates.error / iterates.value**2
            change = loss / iterates.value - 1.0
            found[name].append(Estimate(change, error, iterates.dof, iterates.of))
    return {name: combine(estimates) for name, estimates in found.items()}


# B10 ------------------------------------------------------------------------------------------


def judge_b10(records: Records) -> Judgement:
    """Distance between two runs on the same batches, and on independent ones."""
    shrinks: dict[float, list[Estimate]] = {}
    settles: dict[float, list[Estimate]] = {}
    plateaus: dict[float, list[Estimate]] = {}
    for record in records.measured("pairs"):
        for rate in sorted(set(record.values("learning_rate").tolist())):
            steps, squares = _pair(record, "shared", rate)
            if steps.size:
                if squares[0] <= 0.0:
                    raise RecordError(f"{record.name}: runs on shared batches start at one point.")
                late = np.log(squares[3 * squares.size // 4 :])
                end = series_mean(late, blocks=late.size)
                start = float(np.log(squares[0]))
                shrinks.setdefault(rate, []).append(
                    Estimate(end.value - start, end.error, end.dof, end.of)
                )
            steps, squares = _pair(record, "independent", rate)
            if steps.size:
                half = squares.size // 2
                steps, squares = steps[half:], squares[half:]
                settles.setdefault(rate, []).append(_growth(steps, squares))
                plateaus.setdefault(rate, []).append(series_mean(np.log(squares)))
    missing = [name for name, kind in (("shared", shrinks), ("independent", plateaus)) if not kind]
    if missing or len(plateaus) < 2:
        wanted = missing or ["independent at two rates"]
        raise NotRun([f"measured/pairs/seed0.json with batches {' and '.join(wanted)}"])
    parts = []
    for rate, changes in shrinks.items():
        what = f"shared batches, rate {number(rate)}: ln of squared distance, end less start,"
        parts.append(below(f"shared_{rate:g}", combine(changes), 0.0, what))
    for rate, growths in settles.items():
        what = f"independent batches, rate {number(rate)}: squared distance grows as time to"
        limit = stationarity.GROWTH_LIMIT
        parts.append(below(f"growth_{rate:g}", combine(growths), limit, what))
    low, high = min(plateaus), max(plateaus)
    gap = difference(combine(plateaus[high]), combine(plateaus[low]))
    what = f"ln of squared distance at rate {number(high)} less that at {number(low)}"
    parts.append(above("plateaus", gap, 0.0, what))
    power = gap.value / math.log(high / low)
    notes = [f"the model says that it goes as the rate to the power 1; here {number(power)}"]
    return conclude(parts, notes=notes, numbers={"plateau_exponent": power})


def _pair(record: Measured, batches: str, rate: float) -> tuple[np.ndarray, np.ndarray]:
    rows = record.select(batches=batches, learning_rate=rate)
    rows.sort(key=lambda row: record.number(row, "step"))
    steps = np.array([record.number(row, "step") for row in rows])
    squares = np.array([record.number(row, "squared_distance") for row in rows])
    late = squares[squares.size // 2 :]
    if rows and (len(rows) < 8 or np.any(squares < 0.0) or np.any(late <= 0.0)):
        raise RecordError(f"{record.name}: {batches} needs 8 or more distances, positive later.")
    return steps, squares


def _growth(steps: np.ndarray, squares: np.ndarray) -> Estimate:
    """Power of time by which a squared distance grows, its error by blocks."""

    def slope(kept: np.ndarray) -> float:
        return exponent(steps[kept], squares[kept]).value

    return jackknife(slope, block_numbers(steps.size, 5))


CLAIMS = (
    Claim(
        "B7",
        "At constant rate the weights reach a quasi-stationary state quickly.",
        SOURCE,
        ("base", "levels", "displacement"),
        "squared displacement of the weights against lag over the window of the base run, with "
        "tests of its losses and norm",
        f"squared displacement grows at long lags as lag to a power below "
        f"{stationarity.GROWTH_LIMIT:g}, and half of it is there within {HALF_TIME:g} of the "
        "longest lag; losses and norm must have levelled off",
        "A stationary state has power 0, a random walk 1, a drift 2: below 1/2 the run is nearer "
        "to the first. A random walk has half its displacement at half the longest lag, a drift at "
        "0.71 of it: a quarter or less shows a time scale that is short against the window.",
        judge_b7,
    ),
    Claim(
        "B8",
        "The distance to the minimum grows as the square root of the rate.",
        SOURCE,
        ("rates", "base", "levels"),
        "root mean square distance of iterates from their own centre in runs at several constant "
        "rates from one state",
        f"the interval of the fitted exponent lies within {EXPONENT_LOW:.3f} to "
        f"{EXPONENT_HIGH:.3f}; halves of the runs must agree",
        "The exponent must be nearer to 1/2 than to 1/3 or to 2/3, the nearest other simple "
        "powers. The model itself lies a little above 1/2 where rate times curvature is not small.",
        judge_b8,
    ),
    Claim(
        "B9",
        "The trajectory runs on the shell of an ellipsoid; averages lie inside it.",
        SOURCE,
        ("shell", "averages", "base", "levels", "displacement"),
        "distances of iterates and of averages from the centre of the window, and their losses",
        f"squared distances of iterates vary by less than {100 * SHELL_CV:g} % and as predicted "
        f"within a factor of {CV_FACTOR:g}; each average lies two shell thicknesses inside and "
        "has a lower loss than the iterates",
        "A quarter of the square is an eighth of the radius: a shell, not a cloud; a Gaussian "
        "cloud is so thin from 32 directions of equal variance on. Two standard deviations of the "
        "iterates' own squared distance put an average clearly off the shell.",
        judge_b9,
    ),
    Claim(
        "B10",
        "The distance between two trajectories shrinks with time on shared batches, and settles "
        "at a value that depends on the rate on independent ones.",
        SOURCE,
        ("pairs",),
        "pairs of runs from two states on the same batches, and from one state on independent "
        "batches, at two rates",
        f"shared: the interval of the change of ln squared distance lies below 0; independent: "
        f"growth over the second half as time to a power below {stationarity.GROWTH_LIMIT:g}, and "
        "a larger distance at the larger rate",
        "Signs, where the sentence only has signs. Two independent random walks part as time to "
        "the power 1: below 1/2 they are nearer to having settled.",
        judge_b10,
    ),
)
