"""Durations: one number and one unit, turned into a number of steps."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

UNITS = ("steps", "epochs", "examples", "percent")
NEVER = "never"
LONGEST = 10**12  # of an amount, and of the steps it comes to; far beyond any run
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z%]+)\s*")


@dataclasses.dataclass(frozen=True)
class Duration:
    """An amount in exactly one of `UNITS`.

    >>> Duration.parse("1.5 epochs").steps(batch_size=10, epoch_examples=100)
    15
    >>> Duration.parse("25 percent").steps(batch_size=10, epoch_examples=100, total_steps=60)
    15
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: Any, name: str = "duration") -> Duration:
        """Reads text such as `"8 epochs"`, `"300 steps"`, `"1 epoch"` or `"10 percent"`.

        Raises:
            ValueError: if `text` is not one amount with one unit (`name` is named).
        """
        match = _DURATION.fullmatch(text) if isinstance(text, str) else None
        unit = match.group(2) if match else ""
        unit = "percent" if unit == "%" else unit if unit.endswith("s") else unit + "s"
        unit = "percent" if unit == "percents" else unit
        if match is None or unit not in UNITS:
            raise ValueError(
                f"`{name}` must be one amount and one unit of {list(UNITS)}, such as '8 epochs' or "
                f"'300 steps'. Received: {name}={text!r}"
            )
        amount = float(match.group(1))
        if amount > LONGEST:
            raise ValueError(
                f"`{name}` must be at most {LONGEST:.0e} {unit}. Received: {_shown(text)}"
            )
        return cls(amount, unit)

    def steps(
        self,
        batch_size: int,
        epoch_examples: int,
        total_steps: int | None = None,
        name: str = "duration",
    ) -> int:
        """The nearest number of steps.

        Raises:
            ValueError: for a fraction of a step, or percent of an unknown total.
        """
        if self.unit == "steps":
            if self.amount != int(self.amount):
                raise ValueError(
                    f"`{name}` in steps must be a whole number. Received: {name}={self}"
                )
            return int(self.amount)
        if self.unit == "epochs":
            return _nearest(self.amount * epoch_examples / batch_size)
        if self.unit == "examples":
            return _nearest(self.amount / batch_size)
        if total_steps is None:
            raise ValueError(
                f"`{name}` cannot be in percent: it is itself the whole. Received: {name}={self}"
            )
        return _nearest(self.amount / 100 * total_steps)

    def __str__(self) -> str:
        return f"'{self.amount:g} {self.unit}'"


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
