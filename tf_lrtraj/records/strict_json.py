"""Strict JSON with NumPy values and non-finite floats, within limits."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lrtraj.records.files import LARGEST, PathLike, RecordError, read_bytes, write_atomically
from tf_lrtraj.records.shapes import DEEPEST, ShapeError, conform

_LARGEST_INTEGER = 2**64  # of either sign; no integer array holds larger numbers


def encode(value: Any, depth: int = 0) -> Any:
    """Converts `value`, which may hold NumPy values, tuples and paths, to strict JSON types.

    Raises:
        TypeError: for values that `read_json` cannot return: other types, integers beyond 64
            bits, and more than `DEEPEST` levels of lists and dicts inside each other.
    """
    if isinstance(value, (Mapping, list, tuple)) and depth >= DEEPEST:
        raise TypeError(f"a record may be nested {DEEPEST} levels deep. Received: a deeper one")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return encode(value.tolist(), depth)
    if isinstance(value, int):
        if abs(value) >= _LARGEST_INTEGER:
            raise TypeError(
                f"a record may hold integers of at most 64 bits. Received: one of "
                f"{value.bit_length()} bits"
            )
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): encode(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item, depth + 1) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(
        "a record may hold None, booleans, numbers, text, arrays, lists and dicts. "
        f"Received: {value!r} of type {type(value).__name__}"
    )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"the bare constant {name} is not strict JSON")


def _integer(text: str) -> int:
    # Check the length first: Python has another message for thousands of digits.
    if len(text) > 21 or abs(value := int(text)) >= _LARGEST_INTEGER:
        raise ValueError(f"a whole number of {len(text.lstrip('-'))} digits is out of range")
    return value


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} stands twice")
        found[name] = value
    return found


def parse(text: bytes, shape: Any = Any, *, unique: bool = False) -> Any:
    """Parses strict JSON of a shape, as `conform` takes it.

    Args:
        text: UTF-8.
        shape: of the value.
        unique: refuse objects that have a name twice; otherwise the last one counts.

    Raises:
        ValueError: if the text is not UTF-8 or not JSON, a number fits no float or 64-bit
            integer, the nesting is too deep, a name stands twice, or the shape is another.
    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_float,
            object_pairs_hook=_without_repeats if unique else None,
        )
        return conform(value, shape)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_json(path: PathLike, obj: Any) -> None:
    """Writes `obj` as strict, indented JSON, atomically.

    NumPy scalars and arrays become numbers and lists; non-finite floats become the strings "NaN",
    "Infinity" and "-Infinity", which `read_json` reads as numbers.

    Raises:
        TypeError: if `obj` holds a value that `encode` refuses.
        OSError: if the folder cannot be written.
    """
    write_atomically(path, json.dumps(encode(obj), indent=2, allow_nan=False) + "\n")


def read_json(path: PathLike, shape: Any = Any, largest: int = LARGEST) -> Any:
    """Reads what `write_json` wrote.

    Args:
        path: the path of the file.
        shape: the shape of the record, as `tf_lrtraj.records.shapes.conform` takes it.
        largest: bytes of a file that is read.

    Raises:
        RecordError: if the file is missing, not a regular file, not strict JSON (it names the
            line), or of another shape (it names the entry).
    """
    data = read_bytes(path, largest)
    try:
        return parse(data, shape)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}"
    except ShapeError as error:
        raise RecordError(
            f"{os.fspath(path)}: {error}. The file is damaged, or of another version."
        ) from None
    except ValueError as error:
        reason = str(error)
    raise RecordError(f"{os.fspath(path)} is not valid JSON ({reason}). The file is damaged.")
