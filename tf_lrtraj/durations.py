"""Durations such as "3 epochs", and their conversion to steps.

>>> config = {"kernel": "Uniform", "start": "75 percent", "every": "1 epoch", "end": "90 percent"}
>>> resolve_durations(config, steps_per_epoch=50, total_steps=400)
{'kernel': 'Uniform', 'start': 300, 'every': 50, 'end': 360}
"""

from __future__ import annotations

import dataclasses
import fractions
import math
import re
from collections.abc import Mapping
from typing import Any

from tf_lrtraj import kernels, rates, values
from tf_lrtraj.configurable import is_config, parameters

__all__ = ["LONGEST", "NEVER", "UNITS", "Duration", "resolve_durations"]

UNITS = ("steps", "epochs", "examples", "percent")
NEVER = "never"
LONGEST = 10**12  # limit of an amount and of its steps; far longer than any run
_LONGEST_TEXT = 100  # characters; an amount with more digits is a mistake
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z%]+)\s*")


@dataclasses.dataclass(frozen=True)
class Duration:
    """An amount in exactly one of `UNITS`.

    >>> Duration.parse("1.5 epochs").steps(steps_per_epoch=10)
    15
    >>> Duration.parse("25 percent").steps(steps_per_epoch=10, total_steps=60)
    15
    """

    amount: fractions.Fraction
    unit: str

    @classmethod
    def parse(cls, text: Any, name: str = "duration") -> Duration:
        """Reads text such as `"8 epochs"`, `"300 steps"`, `"1 epoch"` or `"10 percent"`.

        Raises:
            ValueError: if `text` is not one amount with one unit (`name` is named).
        """
        is_text = isinstance(text, str) and len(text) <= _LONGEST_TEXT
        match = _DURATION.fullmatch(text) if is_text else None
        unit = match.group(2) if match else ""
        unit = "percent" if unit == "%" else unit if unit.endswith("s") else unit + "s"
        unit = "percent" if unit == "percents" else unit
        if match is None or unit not in UNITS:
            units = f"{', '.join(UNITS[:-1])} or {UNITS[-1]}"
            raise values.error(name, f"one amount and one unit ({units})", text)
        amount = fractions.Fraction(match.group(1))
        if amount > LONGEST:
            raise values.error(name, f"at most {LONGEST:.0e} {unit}", text)
        return cls(amount, unit)

    def steps(
        self,
        steps_per_epoch: float | fractions.Fraction | None = None,
        total_steps: int | None = None,
        batch_size: int | None = None,
        name: str = "duration",
    ) -> int:
        """Returns the nearest number of steps.

        Args:
            steps_per_epoch: needed for epochs; it need not be a whole number.
            total_steps: number of steps of the run, needed for percent.
            batch_size: needed for examples.
            name: the name of the duration, for errors.

        Raises:
            ValueError: if `steps` is not a whole number, or the number that the unit needs is None.
        """
        if self.unit == "steps":
            if self.amount.denominator != 1:
                raise ValueError(
                    f"`{name}` in steps must be a whole number. Received: {name}={self}"
                )
            return int(self.amount)
        if self.unit == "epochs" and steps_per_epoch is not None:
            return _nearest(self.amount * fractions.Fraction(steps_per_epoch))
        if self.unit == "examples" and batch_size is not None:
            return _nearest(self.amount / batch_size)
        if self.unit == "percent" and total_steps is not None:
            return _nearest(self.amount / 100 * total_steps)
        missing = {
            "epochs": "number of steps of an epoch",
            "examples": "batch size",
            "percent": "number of steps of the run",
        }
        known = {"epochs": steps_per_epoch, "examples": batch_size, "percent": total_steps}
        others = ["steps", *(unit for unit, value in known.items() if value is not None)]
        raise ValueError(
            f"`{name}` cannot be in {self.unit}, as the {missing[self.unit]} is not known here; "
            f"give it in {' or '.join(others)}. Received: {name}={self}"
        )

    def __str__(self) -> str:
        return f"'{float(self.amount):g} {self.unit}'"


def resolve_durations(
    config: Mapping[str, Any],
    steps_per_epoch: float | fractions.Fraction | None,
    total_steps: int | None,
    batch_size: int | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Returns the configuration of a kernel or rate with durations as numbers of steps.

    Every field that is a number of steps (`start`, `every`, `gap`, `length`, `steps`, `boundaries`,
    …) may be text such as `"200 steps"`, `"3 epochs"` or `"75 percent"`; kernels and rates inside
    are resolved too. Unknown entries are not changed; `from_config` refuses them.

    Args:
        config: `{"kernel": name, …}` or `{"rate": name, …}`, as for `kernels.from_config`.
        steps_per_epoch: number of steps of an epoch, or None if it is not known.
        total_steps: number of steps of the run, or None if it is not known.
        batch_size: needed for durations in examples only.
        name: of what is configured, for the messages; by default that of the kernel or rate.

    Returns:
        A new dict.

    Raises:
        ValueError: naming the entry, for text that is not a duration, text where no number of
            steps belongs, and a unit that needs a number which is not known.

    >>> resolve_durations({"kernel": "TwoPoint", "gap": "0.5 epochs"}, 40, None)
    {'kernel': 'TwoPoint', 'gap': 20}
    """
    kind: Any = None
    for family in (kernels.KERNELS, rates.RATES):
        chosen = config.get(family.key)
        if kind is None and isinstance(chosen, str):
            kind = family.get(chosen)
    where = name if name is not None else "" if kind is None else kind.__name__
    known = {} if kind is None else parameters(kind)

    def resolve(value: Any, path: str, counts_steps: bool) -> Any:
        if is_config(value):
            return resolve_durations(value, steps_per_epoch, total_steps, batch_size, path)
        if isinstance(value, (list, tuple)):
            return [
                resolve(item, f"{path}[{index}]", counts_steps) for index, item in enumerate(value)
            ]
        if not isinstance(value, str):
            return value
        if not counts_steps:
            raise values.error(path, "no text, as it is no number of steps", value)
        return Duration.parse(value, path).steps(steps_per_epoch, total_steps, batch_size, path)

    resolved = {}
    for key in config.keys():  # noqa: SIM118  # an ml_collections.ConfigDict is no Mapping
        value = config[key]
        if key in known or is_config(value):
            counts_steps = key in known and known[key].parameter.counts_steps
            value = resolve(value, f"{where}.{key}", counts_steps)
        resolved[key] = value
    return resolved


def _nearest(value: fractions.Fraction) -> int:
    """Halves are rounded up."""
    return math.floor(value + fractions.Fraction(1, 2))
