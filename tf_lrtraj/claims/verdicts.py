"""Claims, judgements, and how the parts of a claim make its verdict.

The rule is one for all claims.  A part holds only if its whole interval lies on the right
side of a threshold that stands in the code; it fails only if the whole interval lies on
the wrong side; anything else is undecided.  A claim is reproduced if all its parts hold,
not reproduced if one fails, inconclusive otherwise, and inconclusive too if a condition of
the measurement (a run that must be stationary, say) is not met.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tf_lrtraj.claims.layout import PROBES_OF
from tf_lrtraj.claims.statistics import Estimate, Interval

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
NOT_RUN = "not run at this scale"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_RUN)

Numbers = dict[str, Interval]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What records say of a claim.

    Attributes:
        verdict: one of `VERDICTS`.
        statistic: what was measured, in words and numbers.
        numbers: name → value and ends of its interval (equal to it where it has none).
        reason: why the verdict, in a sentence.
        notes: what a reader should know beside it.
    """

    verdict: str
    statistic: str
    numbers: Numbers
    reason: str
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence that records can bear out or contradict.

    Attributes:
        id: "B1" and so on.
        sentence: what is claimed.
        source: who claims it.
        needs: tasks whose records the judge reads.
        experiment: how it is measured.
        threshold: what the interval must clear, in words.
        argument: why this threshold; settled before any run was looked at.
        judge: the records → `Judgement`.
    """

    id: str
    sentence: str
    source: str
    needs: tuple[str, ...]
    experiment: str
    threshold: str
    argument: str
    judge: Callable[[Any], Judgement]

    @property
    def records(self) -> tuple[str, ...]:
        """The files that it reads, as patterns in the workdir."""
        found: list[str] = []
        for task in self.needs:
            patterns = PROBES_OF.get(task)
            if patterns is None:
                found.append(f"measured/{task}/seed*.json")
            else:
                found += [f"probes/seed*/{pattern}.npz" for pattern in patterns]
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing that must hold.

    Attributes:
        name: of its number.
        interval: what was measured.
        verdict: of this part alone.
        text: what was measured and what was wanted, in words.
    """

    name: str
    interval: Interval
    verdict: str
    text: str


@dataclasses.dataclass(frozen=True)
class Condition:
    """What must be true of a measurement before it can decide a claim."""

    met: bool
    text: str
    numbers: Mapping[str, Interval] = dataclasses.field(default_factory=dict)


def as_interval(found: Estimate | Interval | float, level: float | None = None) -> Interval:
    """An interval of whatever was found; a bare number is exact."""
    if isinstance(found, Interval):
        return found
    if isinstance(found, Estimate):
        return found.interval() if level is None else found.interval(level)
    return Interval(float(found), float(found), float(found))


def above(name: str, found: Estimate | Interval | float, threshold: float, what: str) -> Part:
    """A part that holds if its interval lies above a threshold."""
    interval = as_interval(found)
    verdict = _side(interval.low > threshold, interval.high < threshold, interval)
    text = f"{what} {shown(interval)} (wanted: above {number(threshold)})"
    return Part(name, interval, verdict, text)


def below(name: str, found: Estimate | Interval | float, threshold: float, what: str) -> Part:
    """A part that holds if its interval lies below a threshold."""
    interval = as_interval(found)
    verdict = _side(interval.high < threshold, interval.low > threshold, interval)
    text = f"{what} {shown(interval)} (wanted: below {number(threshold)})"
    return Part(name, interval, verdict, text)


def within(
    name: str,
    found: Estimate | Interval,
    low: float,
    high: float,
    what: str,
    level: float | None = None,
) -> Part:
    """A part that holds if its interval lies between two thresholds.

    With `level` (0.9 for two one-sided tests at 5 %) that interval is the one to lie inside;
    it fails only if the whole 95 % interval lies outside.
    """
    inner = as_interval(found, level)
    outer = as_interval(found)
    outside = outer.high < low or outer.low > high
    verdict = _side(low < inner.low and inner.high < high, outside, inner)
    wanted = f"wanted: within {number(low)} to {number(high)}"
    return Part(name, inner, verdict, f"{what} {shown(inner)} ({wanted})")


def _side(holds: bool, fails: bool, interval: Interval) -> str:
    if math.isnan(interval.value):
        return INCONCLUSIVE
    return REPRODUCED if holds else NOT_REPRODUCED if fails else INCONCLUSIVE


def conclude(
    parts: Sequence[Part],
    *,
    conditions: Sequence[Condition] = (),
    notes: Sequence[str] = (),
    numbers: Mapping[str, Interval | Estimate | float] | None = None,
) -> Judgement:
    """The verdict of a claim whose parts must all hold.

    Raises:
        ValueError: for no part, which would decide nothing.
    """
    if not parts:
        raise ValueError("`parts` must hold at least one. Received: none")
    found: Numbers = {part.name: part.interval for part in parts}
    for condition in conditions:
        found.update(condition.numbers)
    found |= {name: as_interval(value) for name, value in (numbers or {}).items()}
    statistic = "; ".join(part.text for part in parts)
    failing = [part.text for part in parts if part.verdict == NOT_REPRODUCED]
    undecided = [part.text for part in parts if part.verdict != REPRODUCED]
    unmet = [condition.text for condition in conditions if not condition.met]
    if unmet:
        verdict, reason = INCONCLUSIVE, f"The condition is not met: {'; '.join(unmet)}."
    elif failing:
        verdict, reason = NOT_REPRODUCED, f"Fails: {'; '.join(failing)}."
    elif undecided:
        verdict, reason = INCONCLUSIVE, f"Not decided: {'; '.join(undecided)}."
    else:
        verdict = REPRODUCED
        count = "The part" if len(parts) == 1 else f"All {len(parts)} parts"
        reason = f"{count} clear{'s its' if len(parts) == 1 else ' their'} threshold."
    met = tuple(condition.text for condition in conditions if condition.met)
    return Judgement(verdict, statistic, found, reason, (*met, *notes))


# Texts ----------------------------------------------------------------------------------------


def number(value: float) -> str:
    """A number as people read it.

    >>> number(0.0123456), number(12345.6), number(float("inf"))
    ('0.0123', '12,346', 'inf')
    """
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def shown(found: Interval | Estimate | float) -> str:
    """A number with its interval.

    >>> shown(Interval(1.0, 0.5, 1.5))
    '1 [0.5, 1.5]'
    """
    interval = as_interval(found)
    if interval.low == interval.high:
        return number(interval.value)
    if math.isinf(interval.low) and math.isinf(interval.high):
        return f"{number(interval.value)} [no interval]"
    return f"{number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"


def percent(found: Interval | Estimate) -> Interval:
    """The same in per cent."""
    interval = as_interval(found)
    return Interval(*(100.0 * x for x in interval))
