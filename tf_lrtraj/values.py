"""Checks of values from users: arguments, flags, configurations, records.

A `Rule` describes the allowed values in words and checks a value.  Functions use it for their
arguments, and configurations and options of probes declare it beside their default.  Every error
states the allowed values and the value received:

>>> integer(1).check("batches", 4)
4
>>> integer(1).check("batches", 0)
Traceback (most recent call last):
    ...
ValueError: `batches` must be an integer of at least 1. Received: batches=0
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import reprlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

__all__ = [
    "Rule",
    "array",
    "boolean",
    "closest",
    "error",
    "integer",
    "number",
    "one_of",
    "received",
    "sequence_of",
    "text",
    "vector",
]

# Every array that fits into memory has fewer elements.
LARGEST_COUNT = 2**31

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlong = 60
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 20


def received(value: Any) -> str:
    """Returns the `repr` of a value for an error, shortened if it is long.

    >>> len(received("x" * 1000))
    200
    """
    if isinstance(value, np.ndarray) and value.size > 20:
        return f"an array of shape {list(value.shape)}"
    shown = _SHORT.repr(value)
    return shown if len(shown) <= 500 else f"{shown[:250]} ... {shown[-245:]}"


def error(
    name: str, allowed: str, value: Any, kind: type[Exception] = ValueError, hint: str = ""
) -> Exception:
    """Returns the error for a value that is not allowed, to be raised.

    >>> raise error("points", "at least 2 points", ["first"])
    Traceback (most recent call last):
        ...
    ValueError: `points` must be at least 2 points. Received: points=['first']
    """
    return kind(f"`{name}` must be {allowed}.{hint} Received: {name}={received(value)}")


def closest(value: Any, allowed: Iterable[Any]) -> str:
    """Returns a hint at the allowed name closest to `value`, or "".

    >>> closest("lin", ["line", "plane"])
    " Did you mean 'line'?"
    """
    near = difflib.get_close_matches(str(value), [str(name) for name in allowed], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


@dataclasses.dataclass(frozen=True)
class Rule:
    """The values that are allowed.

    Attributes:
        allowed: the allowed values in words that continue "`x` must be".
        read: converts a value to its stored form, or raises TypeError, ValueError or
            OverflowError.
        choices: names that an error may suggest, if there are any.
        examples: values at the limits of what is allowed and just beyond them, for tests; empty
            if the limits are not known.
    """

    allowed: str
    read: Callable[[Any], Any]
    choices: tuple[str, ...] = ()
    examples: tuple[Any, ...] = ()

    def check(self, name: str, value: Any, kind: type[Exception] = ValueError) -> Any:
        """Checks a value and returns it in its stored form.

        Args:
            name: the name of the argument, flag or setting, for the error.
            value: the value received.
            kind: class of the error raised.

        Raises:
            ValueError (or `kind`): if the value is not allowed.
        """
        try:
            return self.read(value)
        except (TypeError, ValueError, OverflowError):
            hint = closest(value, self.choices) if isinstance(value, str) else ""
            raise error(name, self.allowed, value, kind, hint) from None

    def accepts(self, value: Any) -> bool:
        """Returns whether a value is allowed."""
        try:
            self.read(value)
        except (TypeError, ValueError, OverflowError):
            return False
        return True

    def or_none(self) -> Rule:
        """Returns the same rule with None allowed too.

        >>> integer(1).or_none().allowed
        'an integer of at least 1, or None'
        """

        def read(value: Any) -> Any:
            return None if value is None else self.read(value)

        return Rule(f"{self.allowed}, or None", read, self.choices, (*self.examples, None))


def _range(
    at_least: float | None, above: float | None, at_most: float | None, below: float | None
) -> str:
    """Limits in words: " of at least 0 and below 1"."""
    limits = {"of at least": at_least, "above": above, "of at most": at_most, "below": below}
    words = [
        f"{word} {limit if isinstance(limit, int) else format(limit, 'g')}"
        for word, limit in limits.items()
        if limit is not None
    ]
    return "".join(f" {words}" for words in [" and ".join(words)] if words)


def _within(
    value: float,
    at_least: float | None,
    above: float | None,
    at_most: float | None,
    below: float | None,
) -> bool:
    return (
        (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )


def integer(
    at_least: int | None = None, at_most: int | None = None, *, below: int | None = None
) -> Rule:
    """An integer (Python's, NumPy's, or an array of one), never True or False.

    >>> integer(1).examples
    (0, 1, 2)

    >>> integer(0, 3).check("axis", np.int64(2))
    2
    >>> integer(0, below=3).allowed
    'an integer of at least 0 and below 3'
    """

    def read(value: Any) -> int:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        found = operator.index(value)
        if not _within(found, at_least, None, at_most, below):
            raise ValueError
        return found

    limits = [limit for limit in (at_least, at_most, below) if limit is not None]
    around = tuple(limit + step for limit in limits for step in (-1, 0, 1))
    return Rule(f"an integer{_range(at_least, None, at_most, below)}", read, examples=around)


def number(
    at_least: float | None = None,
    at_most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    finite: bool = True,
) -> Rule:
    """A real number, finite unless said otherwise, within limits; never True, False or text.

    >>> number(above=0).check("learning_rate", 0.1)
    0.1
    >>> number(0, below=1).allowed
    'a number of at least 0 and below 1'
    """

    def read(value: Any) -> float:
        if isinstance(value, (bool, np.bool_, str, bytes)):
            raise TypeError
        found = float(value)
        if math.isnan(found) or (finite and math.isinf(found)):
            raise ValueError
        if not _within(found, at_least, above, at_most, below):
            raise ValueError
        return found

    limits = _range(at_least, above, at_most, below)
    finite_word = "finite " if finite and not limits else ""
    known = [float(one) for one in (at_least, above, at_most, below) if one is not None]
    around = tuple(limit + step for limit in known for step in (-0.5, 0.0, 0.5))
    return Rule(f"a {finite_word}number{limits}", read, examples=around)


def boolean() -> Rule:
    """True or False; 0 and 1 are not allowed."""

    def read(value: Any) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError
        return bool(value)

    return Rule("True or False", read, examples=(True, False))


def text() -> Rule:
    """A string of at least one character."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise TypeError
        return value

    return Rule("a non-empty text", read)


def one_of(choices: Collection[Any]) -> Rule:
    """One of the given values, with the same type (1 is not True).

    >>> one_of(["log", "linear"]).check("scale", "linaer")
    Traceback (most recent call last):
        ...
    ValueError: `scale` must be one of ['log', 'linear']. Did you mean 'linear'? \
Received: scale='linaer'
    """
    known = list(choices)

    def read(value: Any) -> Any:
        for choice in known:
            if type(choice) is type(value) and choice == value:
                return choice
        raise ValueError

    return Rule(f"one of {known}", read, tuple(map(str, known)), tuple(known))


def sequence_of(rule: Rule, words: str, fewest: int = 0, most: int | None = None) -> Rule:
    """A list or tuple whose members fulfil `rule`; stored as a tuple.

    Args:
        rule: the rule for every member.
        words: the list in words, such as "a list of steps".
        fewest, most: limits of the number of members.

    >>> sequence_of(integer(0), "a list of steps", 1).check("steps", [3, 5])
    (3, 5)
    """

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        if len(value) < fewest or (most is not None and len(value) > most):
            raise ValueError
        return tuple(rule.read(member) for member in value)

    several = tuple([example] * max(fewest, 1) for example in rule.examples)
    return Rule(words, read, examples=([], *several))


def array(ndim: int | None = None) -> Rule:
    """Finite numbers as a float64 array (a copy), of any shape or of `ndim` dimensions."""

    def read(value: Any) -> np.ndarray:
        found = np.array(value, dtype=np.float64)
        if not np.all(np.isfinite(found)) or (ndim is not None and found.ndim != ndim):
            raise ValueError
        return found

    dims = "" if ndim is None else f" of {ndim} dimension{'' if ndim == 1 else 's'}"
    return Rule(f"an array{dims} of finite numbers", read)


def vector(length: int | None = None, *, at_least: float | None = None) -> Rule:
    """A non-empty vector of finite numbers as float64 (a copy), of `length` if given."""

    def read(value: Any) -> np.ndarray:
        found = np.array(value, dtype=np.float64)
        if found.ndim != 1 or not np.all(np.isfinite(found)):
            raise ValueError
        if (found.size == 0 if length is None else found.size != length) or (
            at_least is not None and np.any(found < at_least)
        ):
            raise ValueError
        return found

    words = "a non-empty vector" if length is None else f"a vector of shape [{length}]"
    limits = "" if at_least is None else f" of at least {at_least:g}"
    return Rule(f"{words} of finite numbers{limits}", read)
