"""Checks and converts the arguments of `what_if`: rates, decays, averages and the curve."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.theory.constant_curve import FEWEST, ConstantCurve
from tf_lrtraj.theory.decay_shapes import DecayShape, as_shape
from tf_lrtraj.theory.diagnosis import Finding

__all__ = [
    "Averages",
    "Decay",
    "constant_rate",
    "curve_findings",
    "read_averages",
    "read_cooldowns",
    "read_decays",
]

_SAME_RATE = 1e-6  # relative
_CUTS = (0.6, 0.8, 0.9)  # shares of the steps from which the curve is extrapolated to its end
_SURE = 4.0  # smallest deviation from an extrapolation that is reported, in standard errors


@dataclasses.dataclass(frozen=True)
class Decay:
    """One decay: its shape, its length and the step at which it ends."""

    shape: DecayShape
    length: int
    end: int


@dataclasses.dataclass(frozen=True)
class Averages:
    """Measured averages of equal weights, and findings about them.

    Attributes:
        lengths, ends: [J] lengths and last steps.
        losses: [J] measured losses.
        errors: [J] standard errors of the losses; NaN if not given.
        findings: findings such as repeated losses.
    """

    lengths: np.ndarray
    ends: np.ndarray
    losses: np.ndarray
    errors: np.ndarray
    findings: tuple[Finding, ...]


def constant_rate(steps: Any, learning_rate: Any) -> float:
    """Returns the constant rate of a run.

    Args:
        steps: [K] steps of the curve.
        learning_rate: a number above 0, or [K] rates, constant after a warm-up in the first half
            of the run.

    Raises:
        ValueError: if the rate is not constant; the message names a step and the rates.

    >>> constant_rate([0, 1, 2, 3, 4], [0.0, 0.05, 0.1, 0.1, 0.1])
    0.1
    """
    if np.ndim(learning_rate) == 0:
        return float(values.number(above=0.0).check("learning_rate", learning_rate))
    steps = np.asarray(steps, np.float64)
    rates = values.vector(steps.size, at_least=0.0).check("learning_rate", learning_rate)
    rate = float(rates.max())
    if rate == 0.0:
        raise values.error("learning_rate", "above 0", learning_rate)
    constant = rates >= rate * (1.0 - _SAME_RATE)
    reached = int(np.argmax(constant))
    warm_up = np.all(np.diff(rates[: reached + 1]) >= 0.0) and steps[reached] <= 0.5 * steps[-1]
    changed = np.flatnonzero(~constant[reached:]) + reached
    if not warm_up or changed.size:
        at = int(changed[0]) if changed.size else reached - 1
        raise ValueError(
            "`learning_rate` must be constant after a warm-up. Received: "
            f"{rates[at]:g} at step {steps[at]:g}, {rate:g} at step {steps[reached]:g}"
        )
    return rate


def _entries(name: str, given: Any, fields: str, counts: Iterable[int]) -> list[tuple[Any, ...]]:
    """Checks that `given` is a sequence of tuples of allowed lengths, and returns them."""
    if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        raise values.error(name, f"a list of ({fields})", given)
    found = []
    for index, entry in enumerate(given):
        is_list = hasattr(entry, "__len__") and not isinstance(entry, (str, bytes))
        if not is_list or len(entry) not in counts:
            raise values.error(f"{name}[{index}]", f"({fields})", entry)
        found.append(tuple(entry))
    return found


def _decay(name: str, curve: ConstantCurve, shape: Any, length: Any, end: Any) -> Decay:
    length, end = _steps(f"{name}: length", length), _steps(f"{name}: end", end)
    if length >= end:
        raise ValueError(
            f"`{name}`: `length` must be below `end`, as a decay cannot begin before the run. "
            f"Received: length={length}, end={end}"
        )
    if end > curve.farthest:
        raise ValueError(
            f"`{name}`: `end` must be at most {curve.farthest:g}, twice the last step of the "
            f"curve. Received: end={end}"
        )
    if end - length < curve.first - curve.spacing:
        raise ValueError(
            f"`{name}`: the decay must begin within the curve, which starts at step "
            f"{curve.first:g}. Received: length={length}, end={end}"
        )
    try:
        return Decay(as_shape(shape, length), length, end)
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from None


def _steps(name: str, value: Any) -> int:
    """Checks a number of steps; a float must be an integer."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return int(values.integer(1).check(name, value))


def read_decays(decays: Any, curve: ConstantCurve) -> list[Decay]:
    """Checks and converts the requested decays.

    Raises:
        ValueError: if a shape is unknown, or a length or end lies beyond the run.
    """
    fields = "shape, length, end"
    return [
        _decay(f"decays[{index}]", curve, *entry)
        for index, entry in enumerate(_entries("decays", decays, fields, (3,)))
    ]


def read_averages(averages: Any, curve: ConstantCurve) -> Averages:
    """Checks and converts measured averages; a loss repeated at later steps counts once.

    Raises:
        ValueError: if a length or step lies beyond the run, or a value is not finite.
    """
    fields = "length, step, loss) or (length, step, loss, error"
    rows, seen, stale = [], set(), 0
    for index, entry in enumerate(_entries("averages", averages, fields, (3, 4))):
        name = f"averages[{index}]"
        length, end = _steps(f"{name}: length", entry[0]), _steps(f"{name}: step", entry[1])
        loss = values.number().check(f"{name}: loss", entry[2])
        error = np.nan
        if len(entry) == 4:
            error = values.number(0.0).check(f"{name}: error", entry[3])
        if length > end + 1:
            raise ValueError(
                f"`{name}`: `length` must be at most step + 1, the number of iterates. "
                f"Received: length={length}, step={end}"
            )
        if end > curve.last + curve.spacing:
            raise ValueError(
                f"`{name}`: `step` must be at most {curve.last:g}, the last step of the curve. "
                f"Received: step={end}"
            )
        rows.append((end, length, loss, error))
    kept = []
    for end, length, loss, error in sorted(rows, key=lambda row: row[:2]):
        if (length, loss) in seen:
            stale += 1
            continue
        seen.add((length, loss))
        kept.append((length, end, loss, error))
    table = np.array(kept, np.float64).reshape(len(kept), 4)
    findings = []
    if stale:
        findings.append(
            Finding(
                "stale-averages",
                f"{stale} of {len(rows)} averages repeat the loss of an earlier step to the last "
                "digit, so their windows were not updated. Each loss counts once, at its first "
                "step.",
            )
        )
    return Averages(table[:, 0], table[:, 1], table[:, 2], table[:, 3], tuple(findings))


def read_cooldowns(
    cooldowns: Any, curve: ConstantCurve, rate: float
) -> tuple[list[tuple[Decay, float]], list[Finding]]:
    """Checks and converts trained decays.

    Returns:
        (decay, loss) of each decay from the run's own rate, and findings about the others.

    Raises:
        ValueError: as `read_decays`, or if a loss or rate is not finite.
    """
    kept, others = [], []
    fields = "shape, length, end, loss, learning_rate"
    for index, entry in enumerate(_entries("cooldowns", cooldowns, fields, (5,))):
        name = f"cooldowns[{index}]"
        decay = _decay(name, curve, *entry[:3])
        loss = values.number().check(f"{name}: loss", entry[3])
        its = values.number(above=0.0).check(f"{name}: learning_rate", entry[4])
        if abs(its - rate) <= 1e-3 * rate:
            kept.append((decay, loss))
        else:
            others.append(its)
    findings = []
    if others:
        findings.append(
            Finding(
                "other-rate",
                f"{len(others)} trained decays started from another rate ({others[0]:g}) than that "
                f"of the curve ({rate:g}). They are not used, as their run is not known.",
            )
        )
    return kept, findings


def curve_findings(curve: ConstantCurve) -> list[Finding]:
    """Compares the end of the curve with extrapolations of its earlier part."""
    worst: tuple[float, float, float, float] | None = None
    for cut in _CUTS:
        kept = curve.steps <= cut * curve.last
        if kept.sum() < 2 * FEWEST:
            continue
        before = ConstantCurve(curve.steps[kept], curve.losses[kept])
        expected = before.levels([curve.last])
        seen = curve.levels([curve.last])
        error = float(np.hypot(expected.errors[0], seen.errors[0]))
        change = float(seen.losses[0] - expected.losses[0])
        if abs(change) > _SURE * error + 1e-9 * abs(seen.losses[0]) and (
            worst is None or abs(change) / error > abs(worst[1]) / worst[2]
        ):
            worst = (cut, change, max(error, 1e-300), before.last)
    if worst is None:
        return []
    _, change, error, step = worst
    return [
        Finding(
            "not-constant",
            f"The loss at the last step differs by {change:+.3g} (± {error:.1g}) from the "
            f"extrapolation of the run up to step {step:.0f}: the rate, or another setting, "
            "changed during the run.",
        )
    ]
