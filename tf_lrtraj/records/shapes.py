"""The shape of a JSON record, declared as a type and checked when the file is read.

A list instead of an object, text instead of a number and a missing entry are errors that name the
place in the record.  Checked records need no further checks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from tf_lrtraj import values

# Strict JSON has no such numbers, so they are stored as these three strings.
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

DEEPEST = 100  # levels of nested lists and objects

_MISSING = object()
_Reader = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Within:
    """Bounds of a number, for `typing.Annotated`."""

    low: float = -math.inf
    high: float = math.inf


Count = Annotated[int, Within(0)]


class ShapeError(ValueError):
    """A value does not have the declared shape.

    Args:
        wanted: the shape, in words.
        received: the value.
    """

    def __init__(self, wanted: str, received: Any = _MISSING) -> None:
        super().__init__()
        self.wanted, self.received, self.place = wanted, received, ""

    def within(self, key: str | int) -> ShapeError:
        """Adds the key of the object, or the index of the list, to the front of the place."""
        dot = "." if self.place and self.place[0] != "[" else ""
        name = key if isinstance(key, str) else f"[{key}]"
        self.place = f"{name}{dot}{self.place}"
        return self

    def __str__(self) -> str:
        if self.received is _MISSING:
            return f"`{self.place}` is missing"
        if not self.place:
            return f"it must be {self.wanted}. Received: {values.received(self.received)}"
        return str(values.error(self.place, self.wanted, self.received))


def decode(value: Any, depth: int = 0) -> Any:
    """Returns a JSON value with the names of non-finite numbers converted to numbers.

    Raises:
        ValueError: if it is nested more than `DEEPEST` levels deep.
    """
    if isinstance(value, str):
        return NON_FINITE.get(value, value)
    if isinstance(value, (dict, list)) and depth >= DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} levels deep")
    if isinstance(value, dict):
        return {key: decode(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item, depth + 1) for item in value]
    return value


def conform(value: Any, shape: Any = Any) -> Any:
    """Returns `value` in a shape; the strings "NaN" and "Infinity" become numbers, except in text.

    Args:
        value: a value from `json.loads`.
        shape: `int`, `float` (any number), `str`, `bool`, `None`, `dict`, `list`,
            `dict[str, ...]`, `list[...]`, a `TypedDict` (entries it does not name are allowed),
            a union, a `Literal`, `Annotated` with `Within`, or `Any`.

    Raises:
        ShapeError: if it has another shape; it names the place, the shape and the value.

    >>> conform({"losses": [1, "NaN"]}, dict[str, list[float]])
    {'losses': [1, nan]}
    >>> conform({"losses": [1, "many"]}, dict[str, list[float]])
    Traceback (most recent call last):
    ...
    tf_lrtraj.records.shapes.ShapeError: `losses[1]` must be a number. \
Received: losses[1]='many'
    """
    return _reader(shape)[1](value)


def problem(value: Any, shape: Any) -> str | None:
    """Returns what is wrong with the shape of a value, or None."""
    try:
        conform(value, shape)
    except ShapeError as error:
        return str(error)
    return None


@functools.cache
def _reader(shape: Any) -> tuple[str, _Reader]:
    """Returns (the shape in words, a function that reads a value of it)."""
    if shape is Any or shape is object:
        return "anything", decode
    if is_typeddict(shape):
        fields = get_type_hints(shape, include_extras=True)
        return "a JSON object", _object_reader(fields, Any, shape.__required_keys__)
    origin, arguments = get_origin(shape), get_args(shape)
    if origin in (Union, types.UnionType):
        return _union_reader(arguments)
    if origin is Annotated:
        return _bounded_reader(arguments)
    if origin is Literal:
        return _literal_reader(arguments)
    if origin is dict or shape is dict:
        return "a JSON object", _object_reader({}, arguments[1] if arguments else Any)
    if origin is list or shape is list:
        return "a list", _list_reader(arguments[0] if arguments else Any)
    return _plain_reader(shape)


def _plain_reader(shape: Any) -> tuple[str, _Reader]:
    words = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    wanted = words.get(shape, "null")

    def read(value: Any) -> Any:
        if shape is float and isinstance(value, str) and value in NON_FINITE:
            return NON_FINITE[value]
        kinds = (int, float) if shape is float else type(None) if shape is None else shape
        if not isinstance(value, kinds) or (isinstance(value, bool) and shape is not bool):
            raise ShapeError(wanted, value)
        return value

    return wanted, read


def _object_reader(
    fields: dict[str, Any], other: Any, required: frozenset[str] = frozenset()
) -> _Reader:
    """Reads objects whose entries have the shapes of `fields`, and all others that of `other`."""
    readers = {name: _reader(shape) for name, shape in fields.items()}
    read_other = _reader(other)[1]

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ShapeError("a JSON object", value)
        found = {}
        for key, item in value.items():
            try:
                found[key] = readers[key][1](item) if key in readers else read_other(item)
            except ShapeError as error:
                raise error.within(key) from None
        for key in readers:
            if key in required and key not in found:
                raise ShapeError(readers[key][0]).within(key)
        return found

    return read


def _list_reader(shape: Any) -> _Reader:
    inner = _reader(shape)[1]

    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise ShapeError("a list", value)
        found: list[Any] = []
        try:
            for item in value:
                found.append(inner(item))
        except ShapeError as error:
            raise error.within(len(found)) from None
        return found

    return read


def _union_reader(shapes: tuple[Any, ...]) -> tuple[str, _Reader]:
    readers = [_reader(None if shape is type(None) else shape) for shape in shapes]
    wanted = " or ".join(dict.fromkeys(words for words, _ in readers))

    def read(value: Any) -> Any:
        inner = None
        for _, reader in readers:
            try:
                return reader(value)
            except ShapeError as error:
                if error.place:  # of this kind, with an error inside
                    inner = error
        raise inner or ShapeError(wanted, value)

    return wanted, read


def _bounded_reader(arguments: tuple[Any, ...]) -> tuple[str, _Reader]:
    words, inner = _reader(arguments[0])
    bounds = next(item for item in arguments[1:] if isinstance(item, Within))
    wanted = words + (f" of at least {bounds.low:g}" if bounds.low > -math.inf else "")
    wanted += f" of at most {bounds.high:g}" if bounds.high < math.inf else ""

    def read(value: Any) -> Any:
        try:
            found = inner(value)
        except ShapeError:
            raise ShapeError(wanted, value) from None
        if not bounds.low <= found <= bounds.high:
            raise ShapeError(wanted, value)
        return found

    return wanted, read


def _literal_reader(allowed: tuple[Any, ...]) -> tuple[str, _Reader]:
    wanted = f"one of {list(allowed)}" if len(allowed) > 1 else repr(allowed[0])

    def read(value: Any) -> Any:
        if not any(value == one and type(value) is type(one) for one in allowed):
            raise ShapeError(wanted, value)
        return value

    return wanted, read
