"""Claims, what is wanted of their parts, and how the parts make a verdict.

The rule is one for all claims.  A part holds only if its whole interval lies on the right
side of a threshold that stands in the code.  It fails only if the whole interval lies on the
wrong side, at a level that Holm's method sets for all parts of the claim together: with many
parts, one of them lies on the wrong side by chance.  Anything else is undecided.  A claim is
reproduced if all its parts hold, not reproduced if one fails, inconclusive otherwise, and
inconclusive too if a condition of the measurement (a run that must be stationary, say) is not met.

>>> gain = Wanted("gain", "training loss below that of single iterates, %", low=1.0)
>>> part = gain.judge(Interval(3.0, 2.0, 4.0))
>>> part.verdict, conclude([part]).verdict
('reproduced', 'reproduced')
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from tf_lrtraj.claims.layout import records_of
from tf_lrtraj.statistics import LEVEL, Interval, holm, mean_of
from tf_lrtraj.values import error

SANDLER = "Sandler et al. 2023, arXiv 2301.02312"

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
NOT_MEASURED = "not measured"
NOT_RUN = "not run at this scale"
NOT_JUDGED = "not judged"  # a smoke test shows numbers and no verdicts
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_MEASURED, NOT_RUN, NOT_JUDGED)


class HasInterval(Protocol):
    """A number that knows its interval at any level, as those of `statistics` do."""

    def interval(self, level: float = LEVEL) -> Interval: ...


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """A number whose interval does not depend on the level: exact, or given."""

    given: Interval

    def interval(self, level: float = LEVEL) -> Interval:
        return self.given


@dataclasses.dataclass(frozen=True)
class Seeds:
    """One number of each seed; its interval is Student's for their mean.

    Seeds are the unit of every sentence about networks: what one run's batches or iterates
    scatter by says nothing of another network.  One seed has no interval.
    """

    values: tuple[float, ...]

    def interval(self, level: float = LEVEL) -> Interval:
        return mean_of(self.values).interval(level)


# What can be judged: a bare number is exact, and several are one of each seed.
Number: TypeAlias = HasInterval | Interval | float | Sequence[float] | np.ndarray


def with_interval(value: Number) -> HasInterval:
    """A number that knows its interval.

    >>> with_interval([1.0, 2.0, 3.0]).interval().value
    2.0
    """
    if isinstance(value, Interval):
        return _Fixed(value)
    if isinstance(value, (int, float)):
        return _Fixed(Interval(float(value), float(value), float(value)))
    if isinstance(value, (list, tuple, np.ndarray)):
        return Seeds(tuple(np.ravel(value).tolist()))
    return value  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is wanted of one number: that its interval lies above `low` and below `high`.

    Attributes:
        name: of the number.
        what: what it is, without its value: "own loss after 4 steps over that at the start".
        low: the lower threshold; None for none.
        high: the upper threshold; None for none.
        level: of the interval that must lie inside: `TOST` for a claim of equality (two
            one-sided tests at 5 %), otherwise `LEVEL`.
        fails_low: below this the part fails; `low` where it is None.
        fails_high: above this the part fails; `high` where it is None.
    """

    name: str
    what: str
    low: float | None = None
    high: float | None = None
    level: float = LEVEL
    fails_low: float | None = None
    fails_high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError(f"`low` or `high` of {self.name!r} must be given. Received: neither")

    def judge(self, found: Number, at: str = "") -> Part:
        """The part of a measured number.

        Args:
            found: the number.
            at: where it was measured ("step 8000"), which goes into name and text.
        """
        return Part(self, with_interval(found), at)

    def holds(self, interval: Interval) -> bool:
        return _inside(interval, self.low, self.high)

    def fails(self, interval: Interval) -> bool:
        low = self.low if self.fails_low is None else self.fails_low
        high = self.high if self.fails_high is None else self.fails_high
        return (low is not None and interval.high < low) or (
            high is not None and interval.low > high
        )


def _inside(interval: Interval, low: float | None, high: float | None) -> bool:
    """Whether the whole interval lies between two bounds, where there are such."""
    return (-math.inf if low is None else low) < interval.low and interval.high < (
        math.inf if high is None else high
    )


@dataclasses.dataclass(frozen=True)
class Part:
    """One number of a claim, with what is wanted of it.

    Attributes:
        wanted: the thresholds.
        found: what was measured.
        at: where.
        failed: whether it fails although all parts of its claim are tried, by Holm's method;
            `conclude` fills it in.  None: judged alone.
    """

    wanted: Wanted
    found: HasInterval
    at: str = ""
    failed: bool | None = None

    @property
    def name(self) -> str:
        at = f"_{self.at.lower().replace(' ', '_')}" if self.at else ""
        return f"{self.wanted.name}{at}"

    @property
    def what(self) -> str:
        return f"{self.at}: {self.wanted.what}" if self.at else self.wanted.what

    @property
    def seeds(self) -> list[float]:
        """The number of each seed; empty where it is not made of such."""
        return list(self.found.values) if isinstance(self.found, Seeds) else []

    @property
    def interval(self) -> Interval:
        """As it is shown: at the level of what is wanted."""
        return self.found.interval(self.wanted.level)

    def fails_at(self, level: float) -> bool:
        """Whether the whole interval of that level lies on the wrong side."""
        interval = self.found.interval(level)
        return not math.isnan(interval.value) and self.wanted.fails(interval)

    @property
    def verdict(self) -> str:
        interval = self.interval
        if math.isnan(interval.value):
            return INCONCLUSIVE
        if self.wanted.holds(interval):
            return REPRODUCED
        failed = self.fails_at(LEVEL) if self.failed is None else self.failed
        return NOT_REPRODUCED if failed else INCONCLUSIVE


@dataclasses.dataclass(frozen=True)
class ExtraNumber:
    """A number that stands beside the parts and decides nothing."""

    name: str
    what: str
    found: Number

    @property
    def interval(self) -> Interval:
        return with_interval(self.found).interval()


@dataclasses.dataclass(frozen=True)
class Condition:
    """What must be true of a measurement before it can decide a claim.

    Attributes:
        name: of its number.
        what: what it is, without its value.
        found: what was measured.
        low: its lower limit; None for none.
        high: its upper limit; None for none.
        met: whether it is; from the limits where it is not given.
    """

    name: str
    what: str
    found: Number
    low: float | None = None
    high: float | None = None
    met: bool | None = None

    @property
    def interval(self) -> Interval:
        return with_interval(self.found).interval()

    @property
    def is_met(self) -> bool:
        if self.met is not None:
            return self.met
        return _inside(self.interval, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What records say of a claim.

    Attributes:
        verdict: one of `VERDICTS`.
        reason: why, in one line.
        parts: what was measured and what was wanted.
        conditions: of the measurement.
        numbers: others that a reader should know.
        notes: sentences that a reader should know.
        drawn: arrays and numbers that the claim's figure draws; not in the ledger.
    """

    verdict: str
    reason: str
    parts: tuple[Part, ...] = ()
    conditions: tuple[Condition, ...] = ()
    numbers: tuple[ExtraNumber, ...] = ()
    notes: tuple[str, ...] = ()
    drawn: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def part(self, name: str) -> Part:
        """The part of that name.

        Raises:
            KeyError: if there is none.
        """
        return {part.name: part for part in self.parts}[name]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence that records can bear out or contradict.

    Attributes:
        id: "B1" and so on.
        title: what it says, in at most 12 words.
        sentence: what is claimed.
        source: who claims it.
        needs: tasks whose records the judge reads.
        experiment: how it is measured.
        wanted: the parts that its judge gives, each at one place or several.
        argument: why these thresholds; settled before any run was looked at.
        judge: the records → `Judgement`.
        seeds: the least number of seeds that can say anything; 1 where the sentence is not
            about networks.
    """

    id: str
    title: str
    sentence: str
    source: str
    needs: tuple[str, ...]
    experiment: str
    wanted: tuple[Wanted, ...]
    argument: str
    judge: Callable[[Any], Judgement]
    seeds: int = 2

    def __post_init__(self) -> None:
        if not 1 <= len(self.title.split()) <= 12:
            raise error("title", "1 to 12 words", self.title)

    @property
    def records(self) -> tuple[str, ...]:
        """The files that it reads, as patterns in the workdir."""
        return tuple(pattern for task in self.needs for pattern in records_of(task))


def conclude(
    parts: Sequence[Part],
    *,
    conditions: Sequence[Condition] = (),
    numbers: Sequence[ExtraNumber] = (),
    notes: Sequence[str] = (),
    drawn: Mapping[str, Any] | None = None,
) -> Judgement:
    """The verdict of a claim whose parts must all hold.

    Raises:
        ValueError: for no part, which would decide nothing, or two of one name.
    """
    names = [part.name for part in parts]
    if not names or len(set(names)) < len(names):
        raise error("parts", "one or more parts of different names", names)
    judged = [
        dataclasses.replace(part, failed=failed)
        for part, failed in zip(parts, holm([part.fails_at for part in parts]), strict=True)
    ]
    verdict = REPRODUCED
    reason = "The part holds." if len(judged) == 1 else f"All {len(judged)} parts hold."
    against = (
        (INCONCLUSIVE, "A condition is not met", [c.what for c in conditions if not c.is_met]),
        (NOT_REPRODUCED, "Fails", [p.what for p in judged if p.verdict == NOT_REPRODUCED]),
        (INCONCLUSIVE, "Not decided", [p.what for p in judged if p.verdict == INCONCLUSIVE]),
    )
    for verdict_then, begin, what in against:
        if what:
            more = f", and {len(what) - 1} more" if len(what) > 1 else ""
            verdict, reason = verdict_then, f"{begin}: {what[0]}{more}."
            break
    return Judgement(
        verdict, reason, tuple(judged), tuple(conditions), tuple(numbers), tuple(notes), drawn or {}
    )


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


def shown(interval: Interval) -> str:
    """A number with its interval.

    >>> shown(Interval(1.0, 0.5, 1.5))
    '1 [0.5, 1.5]'
    """
    if interval.low == interval.high:
        return number(interval.value)
    if math.isinf(interval.low) and math.isinf(interval.high):
        return f"{number(interval.value)} [no interval]"
    return f"{number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"


def bounds_shown(low: float | None, high: float | None) -> str:
    """What is wanted of a number, in words.

    >>> bounds_shown(0.5, None), bounds_shown(None, 1.0), bounds_shown(0.5, 1.0)
    ('above 0.5', 'below 1', '0.5 to 1')
    """
    if low is None:
        return f"below {number(math.inf if high is None else high)}"
    return f"above {number(low)}" if high is None else f"{number(low)} to {number(high)}"
