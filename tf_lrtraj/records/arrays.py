"""Measured arrays with their coordinates, filled in piece by piece and stored on disk.

NaN stands for a value that has not been measured.  A measured NaN, such as a loss that
overflowed, is stored as infinity.

>>> record = ArrayRecord.empty(
...     "line", {"rate": [0.0, 0.1], "batch": [0, 1, 2]}, {"train": ("rate", "batch")}, {"seed": 0}
... )
>>> record.put("train", (slice(None), 1), [2.3, 2.1])
>>> record.missing("train")
array([[ True, False,  True],
       [ True, False,  True]])
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np

from tf_lrtraj.records.archives import load_arrays, save_arrays
from tf_lrtraj.records.files import PathLike, RecordError, read_bytes
from tf_lrtraj.records.shapes import decode
from tf_lrtraj.records.strict_json import encode, parse

FORMAT = 1
_ABOUT = "about.json"


class About(TypedDict):
    """The JSON stored with the arrays."""

    format: Literal[1]
    kind: str
    dims: dict[str, list[str]]
    about: dict[str, Any]


@dataclasses.dataclass
class ArrayRecord:
    """Arrays over named coordinates.

    Attributes:
        kind: the kind of measurement, such as `"line"`.
        coordinates: name → vector of numbers or text.
        dims: name of a value → the coordinates of its axes, in order.
        values: name of a value → float64 array; NaN where nothing has been measured.
        about: provenance, in terms of JSON.
    """

    kind: str
    coordinates: dict[str, np.ndarray]
    dims: dict[str, tuple[str, ...]]
    values: dict[str, np.ndarray]
    about: dict[str, Any]

    @classmethod
    def empty(
        cls,
        kind: str,
        coordinates: Mapping[str, Any],
        dims: Mapping[str, Sequence[str]],
        about: Mapping[str, Any] | None = None,
    ) -> ArrayRecord:
        """Returns a record in which nothing has been measured.

        Raises:
            ValueError: if a coordinate is not a vector of numbers or text, or an axis of a value
                is not a coordinate.
        """
        vectors = {name: _vector(name, vector) for name, vector in coordinates.items()}
        axes = {name: tuple(names) for name, names in dims.items()}
        for name, names in axes.items():
            if not set(names) <= set(vectors) or name in vectors:
                raise ValueError(
                    f"`dims` must name coordinates, {sorted(vectors)}, for each value. "
                    f"Received: {name}={names!r}"
                )
        missing = {
            name: np.full([len(vectors[axis]) for axis in names], np.nan)
            for name, names in axes.items()
        }
        return cls(kind, vectors, axes, missing, decode(encode(dict(about or {}))))

    def put(self, name: str, index: Any, value: Any) -> None:
        """Writes measured numbers into `values[name][index]`; NaN among them becomes infinity."""
        value = np.asarray(value, np.float64)
        self.values[name][index] = np.where(np.isnan(value), np.inf, value)

    def missing(self, name: str) -> np.ndarray:
        """Returns a mask of the entries of `name` that have not been measured."""
        return np.isnan(self.values[name])

    @property
    def complete(self) -> bool:
        """Whether everything has been measured."""
        return not any(np.isnan(value).any() for value in self.values.values())

    def extended(self, coordinate: str, more: Any) -> ArrayRecord:
        """Returns a copy with entries appended to a coordinate, and NaN at the new places."""
        longer = np.concatenate([self.coordinates[coordinate], _vector(coordinate, more)])
        coordinates = {**self.coordinates, coordinate: longer}
        grown = ArrayRecord.empty(self.kind, coordinates, self.dims, self.about)
        for name, value in self.values.items():
            grown.values[name][tuple(slice(n) for n in value.shape)] = value
        return grown

    # On disk ------------------------------------------------------------------------------

    def write(self, path: PathLike) -> None:
        """Writes one `.npz` file atomically."""
        about = {"format": FORMAT, "kind": self.kind, "dims": self.dims, "about": self.about}
        arrays: dict[str, Any] = {
            f"coordinate/{name}": vector for name, vector in self.coordinates.items()
        }
        arrays |= {f"value/{name}": value for name, value in self.values.items()}
        text = json.dumps(encode(about), allow_nan=False).encode()
        arrays[_ABOUT] = np.frombuffer(text, np.uint8)
        save_arrays(path, arrays)

    @classmethod
    def read(cls, path: PathLike) -> ArrayRecord:
        """Reads a file that `write` wrote.

        Raises:
            RecordError: if the file is missing, damaged, or no such record.
        """
        data = read_bytes(path)
        try:
            arrays = load_arrays(data)
            about = parse(arrays.pop(_ABOUT).tobytes(), About)
            coordinates, measured = _under("coordinate/", arrays), _under("value/", arrays)
            for name, axes in about["dims"].items():  # before memory is allocated for them
                if measured[name].size != math.prod(len(coordinates[axis]) for axis in axes):
                    raise ValueError(name)
            record = cls.empty(about["kind"], coordinates, about["dims"], about["about"])
            for name, value in record.values.items():
                value[...] = measured[name].reshape(value.shape)
        except Exception as error:  # an untrusted file can be wrong in many ways
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise RecordError(
                f"{os.fspath(path)} is not a record of measured arrays ({reason}). The file is "
                "damaged."
            ) from None
        return record

    @classmethod
    def resume(cls, path: PathLike, wanted: ArrayRecord, growing: str | None = None) -> ArrayRecord:
        """Returns the record at `path`, or `wanted` if there is no file.

        Args:
            path: the path of the record of a probe.
            wanted: an empty record for the measurement.
            growing: a coordinate to which entries may have been appended.

        Raises:
            RecordError: if the file is damaged, or a record of other measurements; it names the
                first difference.
        """
        if not pathlib.Path(path).exists():
            return wanted
        found = cls.read(path)
        difference = _difference(found, wanted, growing)
        if difference:
            raise RecordError(
                f"{os.fspath(path)} holds other measurements: {difference}. "
                "Choose another file, or delete that one."
            )
        return found


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _vector(name: str, vector: Any) -> np.ndarray:
    array = np.asarray(vector)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.float64)
    if array.ndim != 1 or array.dtype.kind not in "biufU":
        raise ValueError(
            f"coordinate {name!r} must be a vector of numbers or text. "
            f"Received: shape={array.shape}, dtype={array.dtype}"
        )
    return array


def _difference(found: ArrayRecord, wanted: ArrayRecord, growing: str | None) -> str:
    if found.kind != wanted.kind:
        return f"it is a record of {found.kind!r}, not of {wanted.kind!r}"
    if found.dims != wanted.dims:
        return f"its values are {sorted(found.dims)}, not {sorted(wanted.dims)}"
    for name in sorted({*found.coordinates, *wanted.coordinates}):
        there, here = found.coordinates.get(name), wanted.coordinates.get(name)
        if there is not None and here is not None and name == growing:
            there = there[: len(here)]
        if there is None or here is None or not np.array_equal(there, here):
            return f"coordinate {name!r} is {_shown(there)} there and {_shown(here)} now"
    for name in sorted({*found.about, *wanted.about}):
        there, here = (found.about.get(name, "(absent)"), wanted.about.get(name, "(absent)"))
        if there != here:
            return f"{name!r} is {there!r} there and {here!r} now"
    return ""


def _shown(vector: np.ndarray | None) -> str:
    if vector is None:
        return "absent"
    return np.array2string(vector, threshold=8, edgeitems=3, precision=4)
