"""What a configuration can decide before it runs: effect, scatter, sample size, half-width.

The entry `power` of a configuration holds the rows, which are fixed together with its sizes; the
claims define thresholds and levels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tf_lrtraj.claims.ledger import CLAIMS
from tf_lrtraj.claims.verdicts import Claim, Wanted
from tf_lrtraj.statistics import Interval, student
from tf_lrtraj.values import integer, number

__all__ = ["Planned", "planned"]

_NUMBERS = {"expected": number(), "scatter": number(0), "count": integer(1)}
_NEEDED = ("claim", "part", *_NUMBERS)
_FREE = ("of",)


@dataclasses.dataclass(frozen=True)
class Planned:
    """The expectation for a part of a claim.

    Attributes:
        claim: its id.
        wanted: the thresholds of the part.
        expected: the value expected from the pilot run or the theory.
        scatter: standard deviation of one unit, from the pilot.
        count: number of units.
        of: the unit.

    >>> share = Wanted("share", "share of the decay's gain", low=0.7, high=1.1)
    >>> row = Planned("A1", share, expected=0.85, scatter=0.03, count=3)
    >>> round(row.half_width, 3), row.decidable
    (0.075, True)
    """

    claim: str
    wanted: Wanted
    expected: float
    scatter: float
    count: int
    of: str = "seeds"

    @property
    def half_width(self) -> float:
        """Half-width of the run's interval, if its scatter is that of the pilot run."""
        if self.count < 2:
            return math.inf
        return student(self.count - 1.0, self.wanted.level) * self.scatter / math.sqrt(self.count)

    @property
    def decidable(self) -> bool:
        """Whether a run with the expected value passes the thresholds or fails them."""
        low, high = self.expected - self.half_width, self.expected + self.half_width
        found = Interval(self.expected, low, high)
        return self.wanted.holds(found) or self.wanted.fails(found)


def planned(rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim] = CLAIMS) -> list[Planned]:
    """Checks the rows of a configuration's `power` and returns them.

    Raises:
        ValueError: if a row is not valid; it names the row and the fault.

    >>> planned([{"claim": "A1"}])
    Traceback (most recent call last):
    ...
    ValueError: `power[0]` must have claim, part, expected, scatter, count, and may have of. \
Received: {'claim': 'A1'}
    """
    wanted = {(claim.id, one.name): one for claim in claims for one in claim.wanted}
    found = []
    for i, row in enumerate(rows):
        if set(row) - set(_FREE) != set(_NEEDED):
            raise ValueError(
                f"`power[{i}]` must have {', '.join(_NEEDED)}, and may have {', '.join(_FREE)}. "
                f"Received: {dict(row)!r}"
            )
        place = row["claim"], row["part"]
        if place not in wanted:
            parts = [name for claim, name in wanted if claim == row["claim"]]
            raise ValueError(
                f"`power[{i}]` must name a claim and a part of it ({', '.join(parts) or 'none'}). "
                f"Received: {place}"
            )
        numbers: dict[str, Any] = {
            name: rule.check(f"power[{i}].{name}", row[name]) for name, rule in _NUMBERS.items()
        }
        found.append(Planned(row["claim"], wanted[place], **numbers, of=row.get("of", "seeds")))
    return found
