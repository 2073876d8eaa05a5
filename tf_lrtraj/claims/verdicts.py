"""Claims, the thresholds of their parts, and the rule for the verdict.

The rule is the same for all claims.  A part holds only if its whole interval lies on the right side
of its thresholds.  It fails only if the whole interval lies on the wrong side, at the level that
Holm's method sets for all parts of the claim together, because with many parts one of them is
likely to be on the wrong side by chance.  Otherwise it is undecided.  A claim is reproduced if all
its parts hold, and not reproduced if one fails.  It is inconclusive otherwise, or if a condition of
the measurement (such as a stationary run) is not met.

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
# Verdict → its sign, for readers who cannot distinguish colours.
SIGNS = {
    REPRODUCED: "✓",
    NOT_REPRODUCED: "✗",
    INCONCLUSIVE: "?",
    NOT_MEASURED: "○",
    NOT_RUN: "–",
    NOT_JUDGED: "•",
}
VERDICTS = tuple(SIGNS)


class HasInterval(Protocol):
    """A number with an interval at any level, such as those of `statistics`."""

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

    Statements about networks have intervals over seeds, because the scatter of one run's batches or
    iterates contains no information about other networks. One seed has no interval.
    """

    values: tuple[float, ...]

    def interval(self, level: float = LEVEL) -> Interval:
        return mean_of(self.values).interval(level)


# Values that can be judged: a single number is exact, and several are one for each seed.
Number: TypeAlias = HasInterval | Interval | float | Sequence[float] | np.ndarray


def with_interval(value: Number) -> HasInterval:
    """Returns a number with an interval.

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
    """The thresholds of one number: its interval must lie above `low` and below `high`.

    Attributes:
        name: the name of the number.
        what: its description, such as "own loss after 4 steps over that at the start".
        low: the lower threshold; None for none.
        high: the upper threshold; None for none.
        level: the level of the interval that must lie inside: `TOST` for a claim of equality (two
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
        """Returns the part for a measured number.

        Args:
            found: the number.
            at: where it was measured ("step 8000"), which is added to name and text.
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
    """Returns whether the whole interval lies between two bounds; None is no bound."""
    return (-math.inf if low is None else low) < interval.low and interval.high < (
        math.inf if high is None else high
    )


@dataclasses.dataclass(frozen=True)
class Part:
    """One number of a claim and its thresholds.

    Attributes:
        wanted: the thresholds.
        found: the measured number.
        at: where it was measured.
        failed: whether it fails by Holm's method over all parts of its claim; `conclude` sets it.
            None: judged alone.
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
        """The number of each seed; empty if it is not a number over seeds."""
        return list(self.found.values) if isinstance(self.found, Seeds) else []

    @property
    def interval(self) -> Interval:
        """The interval at the level of its thresholds, as shown."""
        return self.found.interval(self.wanted.level)

    def fails_at(self, level: float) -> bool:
        """Returns whether the whole interval of that level lies on the wrong side."""
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
    """A number that is shown with the parts and does not affect the verdict."""

    name: str
    what: str
    found: Number

    @property
    def interval(self) -> Interval:
        return with_interval(self.found).interval()


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition that a measurement must meet before it can decide a claim.

    Attributes:
        name: the name of its number.
        what: its description, without its value.
        found: the measured number.
        low: its lower limit; None for none.
        high: its upper limit; None for none.
        met: whether it is met; by default computed from the limits.
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
    """The judgement of a claim by records.

    Attributes:
        verdict: one of `VERDICTS`.
        reason: the reason in one line.
        parts: the measured numbers and their thresholds.
        conditions: the conditions of the measurement.
        numbers: further numbers for the reader.
        notes: sentences for the reader.
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
        """Returns the part with this name.

        Raises:
            KeyError: if there is none.
        """
        return {part.name: part for part in self.parts}[name]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement that records can confirm or contradict.

    Attributes:
        id: its id, such as "B1".
        title: its title, in at most 12 words.
        sentence: the statement.
        source: its source.
        needs: tasks whose records the judge reads.
        experiment: how it is measured.
        wanted: the thresholds of the parts that its judge returns, each at one place or several.
        argument: the reason for the thresholds, which were set before any run.
        judge: the records → `Judgement`.
        seeds: the smallest number of seeds for a verdict; 1 if the statement is not about networks.
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
    """Returns the judgement of a claim whose parts must all hold.

    Raises:
        ValueError: if there is no part, or two have the same name.
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
    """Formats a number for readers.

    >>> number(0.0123456), number(12345.6), number(float("inf"))
    ('0.0123', '12,346', 'inf')
    """
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def shown(interval: Interval) -> str:
    """Formats a number with its interval.

    >>> shown(Interval(1.0, 0.5, 1.5))
    '1 [0.5, 1.5]'
    """
    if interval.low == interval.high:
        return number(interval.value)
    if math.isinf(interval.low) and math.isinf(interval.high):
        return f"{number(interval.value)} [no interval]"
    return f"{number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"


def bounds_shown(low: float | None, high: float | None) -> str:
    """Describes the bounds of a number in words.

    >>> bounds_shown(0.5, None), bounds_shown(None, 1.0), bounds_shown(0.5, 1.0)
    ('above 0.5', 'below 1', '0.5 to 1')
    """
    if low is None:
        return f"below {number(math.inf if high is None else high)}"
    return f"above {number(low)}" if high is None else f"{number(low)} to {number(high)}"
