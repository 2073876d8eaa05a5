"""Claims A6, A7 and A10: speed and noise on two time scales, and theory against simulation."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from tf_lrtraj.claims.records_reader import Measured, NotMeasured, Records
from tf_lrtraj.claims.verdicts import SANDLER, Claim, ExtraNumber, Judgement, Wanted, conclude
from tf_lrtraj.records import RecordError
from tf_lrtraj.statistics import Estimate, Median, PairedRatio

CURVES = ("large", "ema", "small")

MODEL_SPEED = Wanted("model_speed", "model: steps to one level, small rate over average", low=2.0)
MODEL_LOWER = Wanted(
    "model_lower", "model: loss of the large rate over its average's, less 1", low=0.0
)
LOWER = Wanted(
    "network_lower", "network: ln of the average's loss over the iterate's, later half", high=0.0
)
SPEED = Wanted(
    "network_speed", "network: ln of steps to one loss, small rate over average", low=0.0
)
_CHANCE = 0.05
AGREEMENT = Wanted(
    "agreement",
    "chance of a miss as large as the largest, of all misses, if theory is exact",
    low=_CHANCE,
    fails_low=0.001,
)
PRECISION = Wanted("precision", "median relative error of the simulation", high=0.05)
DEVIATION = Wanted("deviation", "median relative deviation of single runs from theory", high=0.1)
_OFF = "the best EMA"
MODEL_SHORTER = Wanted(
    "model_shorter", f"model: excess loss of an EMA ten times shorter, over that of {_OFF}", low=1.1
)
MODEL_LONGER = Wanted(
    "model_longer", f"model: excess loss of an EMA up to ten times longer, over {_OFF}'s", low=1.1
)
SHORTER = Wanted(
    "network_shorter", f"network: share of {_OFF}'s gain lost by one ten times shorter", low=0.1
)
LONGER = Wanted(
    "network_longer", f"network: share of {_OFF}'s gain lost by one ten times longer", low=0.1
)


# A6 -------------------------------------------------------------------------------------------


def judge_a6(records: Records) -> Judgement:
    """Steps to one level, on the model and in a real run, and losses of average and iterate."""
    model = records.one("two_time_scales")
    steps = {name: model.maybe(f"{name}_steps_to_level") for name in ("ema", "small")}
    length = float(model.array("simulated_steps")[-1])
    # Never reached counts as not before the end for the small rate, and against the average.
    quick = math.inf if steps["ema"] is None else max(steps["ema"], 1.0)
    slow = length if steps["small"] is None else steps["small"]
    end = {name: _at_end(model, name) for name in ("large", "ema")}
    lower = Estimate(
        end["large"].value / end["ema"].value - 1.0,
        math.hypot(end["large"].error, end["ema"].error) / end["ema"].value,
        end["large"].dof,
    )
    below, speeds, crossings, curves = [], [], [], []
    for record in records.measured("speed"):
        per_epoch = records.of_seed("base", record.seed).steps_per_epoch()
        at, losses = _curves(record)
        log = {name: np.log(found) for name, found in losses.items()}
        below.append(float((log["average"] - log["raw"])[at.size // 2 :].mean()))
        speeds.append(_speed_up(at, log))
        crossings.append(_crossing(at, log["average"] - log["small"]) / per_epoch)
        curves.append({"epochs": at / per_epoch, "crossing": crossings[-1], **losses})
    numbers, notes = [], []
    if all(math.isfinite(crossing) for crossing in crossings):
        what = "network: epochs until the small rate has overtaken the average"
        numbers.append(ExtraNumber("crossing", what, crossings))
    else:
        notes.append("In some runs the small rate does not overtake the average.")
    drawn = {
        "seeds": curves,
        "rates": sorted(set(records.one("speed").values("learning_rate").tolist())),
        "model": {
            "level": model.setting("level"),
            "simulated_steps": model.array("simulated_steps"),
            "steps_to_level": steps,
            **{name: model.array(f"{name}_losses") for name in CURVES},
        },
    }
    return conclude(
        [
            MODEL_SPEED.judge(0.0 if math.isinf(quick) else slow / quick),
            MODEL_LOWER.judge(lower),
            LOWER.judge(below),
            SPEED.judge(speeds),
        ],
        numbers=numbers,
        notes=notes,
        drawn=drawn,
    )


def _at_end(record: Measured, name: str) -> Estimate:
    losses, errors = record.same_length(f"{name}_simulated", f"{name}_stderr")
    if losses[-1] <= 0.0 or errors[-1] < 0.0:
        raise RecordError(f"{record.name}: {name}_simulated must be positive.")
    runs = record.setting("num_runs")
    return Estimate(float(losses[-1]), float(errors[-1]), runs - 1.0)


def _curves(record: Measured) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(steps, losses of iterate, average and small rate) where all three are known."""
    rates = sorted({record.number(row, "learning_rate") for row in record.select(of="raw")})
    if len(rates) < 2:
        raise RecordError(f"{record.name} must have raw losses at two rates.")
    found = {}
    shown = {
        "raw": ("raw", rates[-1]),
        "average": ("average", rates[-1]),
        "small": ("raw", rates[0]),
    }
    for name, (of, rate) in shown.items():
        rows = record.select(of=of, learning_rate=rate, set="train_part")
        found[name] = {record.number(row, "step"): record.number(row, "loss") for row in rows}
        if any(loss <= 0.0 for loss in found[name].values()):
            raise RecordError(f"{record.name}: losses must be positive.")
    steps = sorted(set.intersection(*(set(losses) for losses in found.values())))
    if len(steps) < 4:
        raise RecordError(f"{record.name} has fewer than 4 step counts in common.")
    at = {name: np.array([losses[step] for step in steps]) for name, losses in found.items()}
    return np.array(steps), at


def _speed_up(steps: np.ndarray, log: dict[str, np.ndarray]) -> float:
    """Mean ln of the small rate's steps over the average's, to losses of its first half.

    A loss that the average does not reach counts as reached at the end, against it.
    """
    found = []
    for step, level in zip(steps, log["small"], strict=True):
        if step <= 0.5 * steps[-1]:
            below = np.flatnonzero(log["average"] <= level)
            first = int(below[0]) if below.size else steps.size - 1
            there = float(steps[first])
            if below.size and first:
                high, low = log["average"][first - 1], log["average"][first]
                there -= (level - low) / (high - low) * float(steps[first] - steps[first - 1])
            found.append(math.log(step / there))
    return float(np.mean(found))


def _crossing(steps: np.ndarray, ahead: np.ndarray) -> float:
    """Returns where a curve that begins below 0 becomes positive for good; infinite if never."""
    below = np.flatnonzero(ahead <= 0.0)
    if not below.size:
        return float(steps[0])
    last = int(below[-1])
    if last == steps.size - 1:
        return math.inf
    share = ahead[last] / (ahead[last] - ahead[last + 1])
    return float(steps[last] + share * (steps[last + 1] - steps[last]))


# A7 -------------------------------------------------------------------------------------------


def judge_a7(records: Records) -> Judgement:
    """Largest miss between exact and simulated losses, against what chance gives."""
    model = records.one("two_time_scales")
    steps = model.array("simulated_steps").astype(int)
    runs = model.setting("num_runs")
    misses, spreads = {}, []
    for name in CURVES:
        exact = model.array(f"{name}_losses")
        found, errors = model.same_length(f"{name}_simulated", f"{name}_stderr")
        if found.size != steps.size or steps.max() >= exact.size or np.any(errors <= 0.0):
            raise RecordError(f"{model.name}: {name} does not fit its simulated steps.")
        misses[name] = (found - exact[steps]) / errors
        spreads.append(errors / np.abs(exact[steps]))
    miss = np.abs(np.concatenate(list(misses.values())))
    worst = float(miss.max())
    chance = min(1.0, miss.size * 2.0 * float(stats.t.sf(worst, runs - 1.0)))
    single = _single_runs(records.one("single_runs"))
    deviations = np.concatenate([np.abs(there / here - 1.0) for here, there in single.values()])
    return conclude(
        [
            AGREEMENT.judge(chance),
            PRECISION.judge(Median(np.concatenate(spreads))),
            DEVIATION.judge(Median(deviations)),
        ],
        numbers=[
            ExtraNumber("largest_miss", "largest miss, in standard errors", worst),
            ExtraNumber("misses", "number of misses", float(miss.size)),
            ExtraNumber("mean_square_miss", "mean squared miss", float(np.mean(miss**2))),
            ExtraNumber("largest_deviation", "largest of single runs", float(deviations.max())),
        ],
        drawn={
            "steps": steps,
            "misses": misses,
            "bound": float(stats.t.isf(0.5 * _CHANCE / miss.size, runs - 1.0)),
            "single": single,
        },
    )


def _single_runs(record: Measured) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns quantity → (by theory, in runs)."""
    found = {}
    for name in ("zero_crossings", "distances", "displacement"):
        exact, measured = record.same_length(name, f"{name}_measured")
        if np.any(exact <= 0.0):
            raise RecordError(f"{record.name}: {name} must be positive.")
        found[name] = (exact, measured)
    return found


# A10 ------------------------------------------------------------------------------------------


def judge_a10(records: Records) -> Judgement:
    """Loss against the time of an EMA, on the model and while a network's loss still falls."""
    model = records.one("averaging_length")
    lengths, rates = model.array("lengths"), model.array("rates")
    losses = model.array("ema_bias", 2) + model.array("ema_variance", 2)
    if losses.shape != (rates.size, lengths.size) or np.any(losses <= 0.0):
        raise RecordError(
            f"{model.name}: losses do not fit rates and lengths, or are not positive."
        )
    parts = []
    for rate, curve in zip(rates, losses, strict=True):
        best = int(np.argmin(curve))
        for wanted, factor in ((MODEL_SHORTER, 0.1), (MODEL_LONGER, 10.0)):
            off = int(np.argmin(np.abs(np.log(lengths / (factor * lengths[best])))))
            parts.append(wanted.judge(float(curve[off] / curve[best]), f"rate {rate:g}"))
    network = {phase: _by_time(records, phase) for phase in ("early", "window")}
    sweeps = {phase: _excess_over_best(*found) for phase, found in network.items()}
    shorter, longer, gain, _ = sweeps["early"]
    parts += [SHORTER.judge(PairedRatio(shorter, gain)), LONGER.judge(PairedRatio(longer, gain))]
    numbers = []
    for phase, what in (("early", "while the loss falls"), ("window", "in the window")):
        numbers.append(ExtraNumber(f"best_{phase}", f"best time {what}, steps", sweeps[phase][3]))
    shorter, longer, gain, _ = sweeps["window"]
    numbers += [
        ExtraNumber(f"{name}_window", f"{what}, in the window", PairedRatio(lost, gain))
        for name, what, lost in (
            ("shorter", SHORTER.what, shorter),
            ("longer", LONGER.what, longer),
        )
    ]
    drawn = {"model": {"lengths": lengths, "rates": rates, "losses": losses}, "network": network}
    return conclude(parts, numbers=numbers, drawn=drawn)


def _by_time(records: Records, phase: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(times, losses [seed, time], losses of the last iterate [seed]) on training images."""
    curves, raw, times = [], [], np.zeros(0)
    for record in records.measured("ema_times"):
        at, losses = record.curve("time", "loss", phase=phase, set="train_part")
        if at[0] != 0.0 or at.size < 6 or (times.size and not np.allclose(times, at[1:])):
            raise RecordError(f"{record.name} must have a time of 0, and the same of all seeds.")
        times = at[1:]
        raw.append(losses[0])
        curves.append(losses[1:])
    if times[-1] < 99.0 * times[0]:
        raise NotMeasured("EMA times span less than two decades.")
    return times, np.array(curves), np.array(raw)


def _excess_over_best(times: np.ndarray, curves: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """[4, seed] what times ten times shorter and longer lose against the best, its gain and time.

    A seed's best time is that of the other seeds' mean, so it is not picked on its own noise.
    Where the sweep ends within the decade, its end is taken.
    """
    found = []
    for seed, curve in enumerate(curves):
        others = np.delete(curves, seed, axis=0) if len(curves) > 1 else curves
        best = int(np.argmin(others.mean(axis=0)))
        off = [int(np.argmin(np.abs(np.log(times / (f * times[best]))))) for f in (0.1, 10.0)]
        lost = [curve[i] - curve[best] for i in off]
        found.append((*lost, raw[seed] - curve[best], times[best]))
    return np.array(found).T


CLAIMS = (
    Claim(
        "A6",
        "Averaging keeps the speed of a large rate and lowers its loss",
        "Averaging lets the rate stay large: lower stationary loss, no loss of speed.",
        SANDLER,
        ("two_time_scales", "speed", "base"),
        "The quadratic model with fast noisy modes and a slow one, exact and simulated; a network "
        "from scratch at a large rate, the average of the last third of its iterates, and at a "
        "fraction of the rate.",
        (MODEL_SPEED, MODEL_LOWER, LOWER, SPEED),
        "The small rate of the model is chosen to have the average's stationary loss, so any "
        "factor above 1 is speed gained; 2 is no accident of where the level was put. On a "
        "network the sentence itself gives the signs; steps are compared at the losses that the "
        "small rate goes through in the first half of its run.",
        judge_a6,
    ),
    Claim(
        "A7",
        "On a synthetic model theory, Monte Carlo and averaged SGD agree",
        "On a synthetic model theory, Monte Carlo and averaged SGD agree.",
        SANDLER,
        ("two_time_scales", "single_runs"),
        "Exact second moments of a large rate, its EMA and a small rate against many simulated "
        "runs; formulas of crossings, distances and displacement against single runs.",
        (AGREEMENT, PRECISION, DEVIATION),
        "An exact theory has no tolerance but the Monte-Carlo error: chance as large as 5 % for "
        "the largest of all misses (Bonferroni, Student) agrees, and below 0.1 % it refutes. A "
        "noisy simulation would agree with anything, so its error is bounded. Single runs carry "
        "no error of their own; a tenth is about twice what 40 runs of 30 modes scatter by.",
        judge_a7,
        seeds=1,
    ),
    Claim(
        "A10",
        "How long an average should be depends on the weights' time scale",
        "Averaging is sensitive to the time scale of the weights' evolution.",
        SANDLER,
        ("averaging_length", "ema_times"),
        "Loss against the time of an EMA: exactly, on the quadratic model at three rates; and of a "
        "network's iterates, while the loss still falls and in the window.",
        (MODEL_SHORTER, MODEL_LONGER, SHORTER, LONGER),
        "Sensitive: one decade off on either side loses a tenth, of the model's excess loss or of "
        "what averaging gains on the network, where no excess is known. The best time of a seed is "
        "taken from the other seeds.",
        judge_a10,
    ),
)
