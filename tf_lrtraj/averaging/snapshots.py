"""Snapshots, the iterates of a run on disk: their timetable, their writer and their reader.

A folder of snapshots holds `index.json`, which describes the content of every snapshot, and one
file `step_000000123.safetensors` per snapshot, which other tools can open.  A file holds an array
for each variable, named by its path, and `step`, `encoding` and `crc32` in the metadata.  Files
are written under another name and renamed when complete.  Nothing is pickled.

Snapshots can be compressed with a bounded error (`encoding`):

* `"exact"` stores every value unchanged;
* `"int16"` and `"int8"` store integers times one scale per variable.  The error of a value is at
  most half a scale, `max|w| / 65534` or `max|w| / 254`.  The scale of the array `NAME` is the
  float64 scalar `NAME_scale`.  Batch-norm statistics, which are few, stay exact.

`crc32` is the checksum of the scales and then the values, both in the order of the index.

Folders of format 1 can be read too; new snapshots in them have the current format.  The files
`step_000000123.snap` of format 1 hold the values of all variables one after another, behind a JSON
header with step, checksum and scales.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Literal, NamedTuple, TypedDict

import numpy as np

from tf_lrtraj.averaging.background_writer import finish_writes
from tf_lrtraj.records import (
    Count,
    RecordError,
    local_path,
    open_file,
    read_json,
    write_json,
)
from tf_lrtraj.records.strict_json import parse
from tf_lrtraj.records.tensor_files import (
    MOST_AXES,
    Tensor,
    TensorFile,
    distinct_names,
    dtype_of,
    read_pieces,
    write_tensors,
)
from tf_lrtraj.values import integer, one_of

FORMAT = 2
INDEX = "index.json"
ENCODINGS = ("exact", "int16", "int8")
WHEN_FULL = ("thin", "drop_oldest")

ENDING = ".safetensors"
_OLD = ".snap"  # ending of format 1
_MAGIC = b"LRTSNAP1"
_LENGTH = struct.Struct("<I")
_NAME = re.compile(r"step_([0-9]{9,15})(\.snap|\.safetensors)")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
# Types of a model's weights; 16-bit values are read as float32.
_DTYPES = ("float32", "float64", "float16", "bfloat16")


class _Variable(TypedDict):
    name: str
    shape: list[Count]
    dtype: Literal["float32", "float64", "float16", "bfloat16"]
    role: Literal["trainable", "statistic"]


class _Index(TypedDict):
    """`index.json`."""

    format: Literal[1, 2]
    encoding: Literal["exact", "int16", "int8"]
    every: int
    start: int
    limit: int | None
    when_full: str
    variables: list[_Variable]


class _Header(TypedDict):
    """The header of a file of format 1."""

    step: Count
    crc32: Count
    scales: list[float | None]


@dataclasses.dataclass(frozen=True)
class Timetable:
    """Determines, as a function of the step, when snapshots are taken and which are kept.

    Args:
        every: number of updates between snapshots.
        start: number of updates before the first snapshot.
        limit: largest number of snapshots on disk; None for no limit.
        when_full: `"thin"` deletes every second snapshot and doubles the spacing, so the
            whole run stays covered; `"drop_oldest"` keeps the newest snapshots.

    Raises:
        ValueError: if `every` is below 1, `limit` is below 2, `start` is negative, or `when_full`
            is unknown.

    >>> timetable = Timetable(every=10, limit=4)
    >>> [step for step in range(101) if timetable.due(step)]
    [0, 10, 20, 30, 40, 60, 80]
    >>> timetable.kept([0, 20, 40, 60, 80], now=80)
    [0, 40, 80]
    """

    every: int
    start: int = 0
    limit: int | None = None
    when_full: str = "thin"

    def __post_init__(self) -> None:
        rules = {
            "every": integer(1),
            "start": integer(0),
            "limit": integer(2).or_none(),
            "when_full": one_of(WHEN_FULL),
        }
        for name, rule in rules.items():
            object.__setattr__(self, name, rule.check(name, getattr(self, name)))

    def spacing(self, step: int) -> int:
        """Returns the number of updates between the snapshots kept after `step` updates."""
        spacing = self.every
        if self.limit is not None and self.when_full == "thin":
            while (step - self.start) // spacing + 1 > self.limit:
                spacing *= 2
        return spacing

    def due(self, step: int) -> bool:
        """Returns whether a snapshot is taken after `step` updates."""
        return step >= self.start and (step - self.start) % self.spacing(step) == 0

    def next_due(self, step: int) -> int:
        """Returns the first step after `step` at which a snapshot is taken."""
        if step < self.start:
            return self.start
        later = step
        while True:  # the spacing may double on the way, once or twice
            spacing = self.spacing(later)
            later = self.start + ((later - self.start) // spacing + 1) * spacing
            if self.due(later):
                return later

    def standing(self, now: int) -> list[int]:
        """Returns the steps of all snapshots that are kept after `now` updates.

        >>> Timetable(every=10, limit=4).standing(90)
        [0, 40, 80]
        """
        return self.kept(range(self.start, now + 1, self.every), now)

    def kept(self, steps: Iterable[int], now: int) -> list[int]:
        """Returns those of `steps` whose snapshots are kept after `now` updates."""
        steps = sorted(steps)
        if self.limit is None:
            return steps
        if self.when_full == "drop_oldest":
            return steps[-self.limit :]
        spacing = self.spacing(now)
        return [step for step in steps if (step - self.start) % spacing == 0]


@dataclasses.dataclass(frozen=True)
class VariableSpec:
    """One variable of a snapshot.

    Attributes:
        name: path of the variable in the model.
        shape: shape of the variable.
        dtype: dtype of the variable in the model.
        role: "trainable", or "statistic" for a batch-norm mean or variance.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def read_dtype(self) -> np.dtype[Any]:
        """The dtype of values that are read: float64 for float64 variables, or float32."""
        return np.dtype("float64" if self.dtype == "float64" else "float32")

    def stored_dtype(self, encoding: str) -> np.dtype[Any]:
        return dtype_of(encoding if self.is_encoded(encoding) else self.dtype)

    def is_encoded(self, encoding: str) -> bool:
        """Returns whether values are stored as integers times a scale."""
        return encoding != "exact" and self.role == "trainable"


# Appended to the name of an array of integers; the result is the name of its scale.
SCALE = "_scale"


def array_names(variables: Sequence[VariableSpec], encoding: str) -> list[str]:
    """Returns the names of the variables' arrays in a file: their paths, numbered if equal."""
    endings = [[SCALE] if variable.is_encoded(encoding) else [] for variable in variables]
    return distinct_names([variable.name for variable in variables], endings)


def snapshot_bytes(variables: Sequence[VariableSpec], encoding: str) -> int:
    """Returns the bytes of the values of one snapshot on disk."""
    return sum(v.size * v.stored_dtype(encoding).itemsize for v in variables)


class SnapshotWriter:
    """Writes snapshots into a folder.

    Args:
        folder: folder of the snapshots; it is created if it does not exist.
        variables: the variables of every snapshot, trainable variables first.
        timetable: determines when snapshots are taken and which are kept.
        encoding: one of `ENCODINGS`.

    Raises:
        RecordError: if the folder holds snapshots of another model or with another timetable.
        ValueError: if the encoding is unknown or a dtype cannot be stored.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        variables: Sequence[VariableSpec],
        timetable: Timetable,
        encoding: str = "exact",
    ) -> None:
        self.folder = local_path(folder, "folder")
        self.variables = list(variables)
        self.timetable = timetable
        self.encoding = one_of(ENCODINGS).check("encoding", encoding)
        odd = sorted({v.dtype for v in self.variables} - set(_DTYPES))
        if odd or not self.variables:
            raise ValueError(
                f"`variables` must hold at least one variable, of the types {list(_DTYPES)}. "
                f"Received: {odd or 'none'}"
            )
        index = {
            "format": FORMAT,
            "encoding": encoding,
            **dataclasses.asdict(timetable),
            "variables": [
                {**dataclasses.asdict(v), "shape": list(v.shape)} for v in self.variables
            ],
        }
        path = self.folder / INDEX
        if path.exists():
            found = read_json(path, _Index)
            theirs, ours = _comparable(found), _comparable(index)
            differs = [key for key, value in ours.items() if theirs.get(key) != value]
            if differs:
                raise RecordError(
                    f"{self.folder} holds snapshots with another {', '.join(differs)}: they belong "
                    "to another model or other settings. Use another folder, or delete this one."
                )
            self.variables = [_spec(entry, path) for entry in found["variables"]]
            if found["format"] != FORMAT:
                write_json(path, {**found, "format": FORMAT})
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, index)

    def steps(self) -> list[int]:
        """Returns the steps of the snapshots on disk, oldest first."""
        finish_writes(self.folder)
        return sorted(_files(self.folder))

    def write(self, step: int, values: Iterable[np.ndarray]) -> None:
        """Writes the snapshot taken after `step` updates, and deletes those no longer kept.

        Args:
            step: number of updates made.
            values: an array per variable, in order.

        Raises:
            ValueError: if an array has another shape, or non-finite values must be encoded as
                integers.
            OSError: if the file cannot be written, for example because the disk is full; older
                snapshots are not affected.
        """
        names = array_names(self.variables, self.encoding)
        arrays, scales = {}, {}
        for name, spec, value in zip(names, self.variables, values, strict=True):
            arrays[name], scale = self._encode(spec, np.asarray(value))
            if scale is not None:
                scales[name + SCALE] = np.asarray(scale, np.float64)
        metadata = {
            "step": str(step),
            "encoding": self.encoding,
            "crc32": str(_checksum([*scales.values(), *arrays.values()])),
        }
        write_tensors(self._path(step), {**scales, **arrays}, metadata)
        self._path(step, _OLD).unlink(missing_ok=True)
        self._prune(step)

    def _path(self, step: int, ending: str = ENDING) -> pathlib.Path:
        return self.folder / f"step_{step:09d}{ending}"

    def _encode(self, spec: VariableSpec, value: np.ndarray) -> tuple[np.ndarray, float | None]:
        if value.shape != spec.shape:
            raise ValueError(
                f"The snapshot's variable {spec.name!r} must have shape {spec.shape}. "
                f"Received: shape={value.shape}"
            )
        stored = spec.stored_dtype(self.encoding)
        scale = None
        if spec.is_encoded(self.encoding):
            largest = float(np.max(np.abs(value), initial=0.0))
            if not np.isfinite(largest):
                raise ValueError(f"The variable {spec.name!r} holds values that are not finite.")
            scale = largest / np.iinfo(stored).max or 1.0
            value = np.rint(np.asarray(value, np.float64) / scale)
        return np.ascontiguousarray(value, dtype=stored).reshape(spec.shape), scale

    def _prune(self, now: int) -> None:
        steps = _files(self.folder)
        for step in set(steps) - set(self.timetable.kept(steps, now)):
            self._delete(step)

    def _delete(self, step: int) -> None:
        for ending in (ENDING, _OLD):
            self._path(step, ending).unlink(missing_ok=True)

    def forget_after(self, step: int) -> None:
        """Deletes snapshots later than `step`, and temporary files of a killed process.

        A run that continues from a checkpoint takes these snapshots again.
        """
        for later in self.steps():
            if later > step:
                self._delete(later)
        for ending in (ENDING, _OLD):
            for leftover in self.folder.glob(f".step_*{ending}.*.tmp"):
                leftover.unlink(missing_ok=True)


def _comparable(index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of an index that is equal for all processes of one run.

    Names of variables are excluded, because they depend on other models built in the process.
    """
    bare = [{k: v for k, v in entry.items() if k != "name"} for entry in index["variables"]]
    return {**index, "variables": bare, "format": FORMAT}


def _checksum(arrays: Iterable[np.ndarray]) -> int:
    """Computes the CRC-32 of the bytes of arrays, one after another."""
    value = 0
    for array in arrays:
        value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
    return value


def nearest(steps: Iterable[Any], step: int) -> list[int]:
    """Returns the three of `steps` that are nearest to `step`, ascending."""
    return sorted(sorted(map(int, steps), key=lambda other: abs(other - step))[:3])


def _files(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Returns {step: file}; if a killed process left two files of a step, that of format 2."""
    found: dict[int, pathlib.Path] = {}
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and (match.group(2) == ENDING or int(match.group(1)) not in found):
            found[int(match.group(1))] = path
    return found


class _Stored(NamedTuple):
    """An open file of a snapshot.

    Attributes:
        file: the unbuffered file.
        arrays: type, shape and place of each variable's values.
        scales: the scale of each variable; None for variables that are not encoded.
        crc32: the stated checksum of the scales (format 2 only) and the values.
        before: the checksum of the part before the values.
    """

    file: BinaryIO
    arrays: list[Tensor]
    scales: list[float | None]
    crc32: int
    before: int


class Snapshots:
    """The snapshots in a folder.

    Args:
        folder: a folder that a `SnapshotWriter` wrote.

    Attributes:
        steps: [K] int64, the number of updates at each snapshot, ascending.
        variables: the variables of each snapshot: trainable variables in the order of
            `model.trainable_variables`, then batch-norm means and variances in turn.
        encoding: encoding of the values, one of `ENCODINGS`.

    Raises:
        RecordError: if the folder holds no snapshots, or its index is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = local_path(folder, "folder")
        if not self.folder.is_dir():
            raise RecordError(f"there is no folder of snapshots {self.folder}")
        path = self.folder / INDEX
        index = read_json(path, _Index)
        self.encoding: str = index["encoding"]
        try:
            self.timetable = Timetable(
                *(index[key] for key in ("every", "start", "limit", "when_full"))
            )
        except ValueError as error:
            raise RecordError(f"{path} is damaged: {error}") from None
        self.variables = [_spec(entry, path) for entry in index["variables"]]
        if not self.variables:
            raise RecordError(f"{path} is damaged: it names no variables")
        finish_writes(self.folder)
        self._files = _files(self.folder)
        self.steps = np.array(sorted(self._files), np.int64)
        if not self.steps.size:
            raise RecordError(f"{self.folder} holds no snapshots yet")

    def __len__(self) -> int:
        return int(self.steps.size)

    @property
    def num_trainable(self) -> int:
        """Number of trainable variables."""
        return sum(v.role == "trainable" for v in self.variables)

    @property
    def num_weights(self) -> int:
        """Number of values in one snapshot, statistics included."""
        return sum(v.size for v in self.variables)

    @property
    def nbytes(self) -> int:
        """Bytes of the values of one snapshot on disk."""
        return snapshot_bytes(self.variables, self.encoding)

    def path(self, step: int) -> pathlib.Path:
        """Returns the file of one snapshot.

        Raises:
            RecordError: if there is no snapshot of that step; the message names the nearest ones.
        """
        if step not in self._files:
            near = nearest(self.steps, step)
            raise RecordError(
                f"{self.folder} holds no snapshot of step {step}; the nearest are {near}"
            )
        return self._files[int(step)]

    def _open(self, step: int) -> _Stored:
        """Opens a file and checks its header against the index; the caller closes it."""
        path = self.path(step)
        opened = self._open_old if path.suffix == _OLD else self._open_new
        try:
            return opened(path, int(step))
        except OSError as error:
            raise RecordError(f"{path} cannot be read: {error.strerror}") from None

    def _open_new(self, path: pathlib.Path, step: int) -> _Stored:
        file = TensorFile(path)
        try:
            names = array_names(self.variables, self.encoding)
            expected = {
                name: (spec.stored_dtype(self.encoding), spec.shape)
                for name, spec in zip(names, self.variables, strict=True)
            }
            encoded = [spec.is_encoded(self.encoding) for spec in self.variables]
            scaled = [name + SCALE for name, one in zip(names, encoded, strict=True) if one]
            expected |= {name: (np.dtype("<f8"), ()) for name in scaled}
            found = {name: (one.dtype, one.shape) for name, one in file.tensors.items()}
            wrong = [
                name for name in {**expected, **found} if expected.get(name) != found.get(name)
            ]
            if wrong:
                raise RecordError(f"{path} is damaged: its array {wrong[0]!r} is not as in {INDEX}")
            told = [file.metadata.get(key, "") for key in ("step", "encoding", "crc32")]
            sound = told[:2] == [str(step), self.encoding] and file.is_ours
            if not sound or not _NUMBER.fullmatch(told[2]):
                raise RecordError(f"{path} is damaged: its metadata are not those of step {step}")
            read = [file.read(name) for name in scaled]
            left = iter(read)
            scales = [float(next(left)) if one else None for one in encoded]
            self._check_scales(path, scales)
            arrays = [file.tensors[name] for name in names]
            return _Stored(file.file, arrays, scales, int(told[2]), _checksum(read))
        except BaseException:
            file.file.close()
            raise

    def _open_old(self, path: pathlib.Path, step: int) -> _Stored:
        file = open_file(path, buffering=0)
        try:
            start = file.read(len(_MAGIC) + _LENGTH.size)
            if len(start) < len(_MAGIC) + _LENGTH.size or start[: len(_MAGIC)] != _MAGIC:
                raise RecordError(f"{path} is no snapshot, or its beginning is damaged")
            (length,) = _LENGTH.unpack(start[len(_MAGIC) :])
            size, place = os.fstat(file.fileno()).st_size, len(start) + length
            if size != place + self.nbytes:
                raise RecordError(
                    f"{path} is damaged: it has {size} bytes instead of {place + self.nbytes}"
                )
            try:
                header = parse(file.read(length), _Header)
            except ValueError:
                raise RecordError(f"{path} is damaged: its header cannot be read") from None
            if header["step"] != step:
                raise RecordError(f"{path} is damaged: its header is not that of step {step}")
            self._check_scales(path, header["scales"])
            arrays = []
            for spec in self.variables:
                arrays.append(Tensor(spec.stored_dtype(self.encoding), spec.shape, place))
                place += spec.size * arrays[-1].dtype.itemsize
            return _Stored(file, arrays, header["scales"], header["crc32"], 0)
        except BaseException:
            file.close()
            raise

    def _check_scales(self, path: pathlib.Path, scales: Sequence[float | None]) -> None:
        sound = len(scales) == len(self.variables)
        for spec, scale in zip(self.variables, scales, strict=False):
            if spec.is_encoded(self.encoding):
                integers = np.iinfo(spec.stored_dtype(self.encoding))
                largest = float(np.finfo(spec.read_dtype).max) / integers.max
                sound &= scale is not None and 0.0 < scale <= largest
            else:
                sound &= scale is None
        if not sound:
            raise RecordError(f"{path} is damaged: its scales are not those of its variables")

    def chunks(self, step: int, size: int = 1 << 18) -> Iterator[np.ndarray]:
        """Yields the values of one snapshot in pieces, all variables one after another.

        Memory stays at one piece.  Each piece is a new array.

        Args:
            step: step of the snapshot.
            size: largest number of values in a piece (no piece spans two variables).

        Raises:
            RecordError: if the file is damaged.  Changed values are detected only at the end, so
                no piece may be used before the last one is read.
        """
        stored = self._open(step)
        checksum = stored.before
        with stored.file:
            for spec, array, scale in zip(
                self.variables, stored.arrays, stored.scales, strict=True
            ):
                try:
                    for piece in read_pieces(stored.file, array, size):
                        checksum = zlib.crc32(piece.view(np.uint8).data, checksum)
                        if scale is None:
                            yield piece.astype(spec.read_dtype, copy=False)
                        else:
                            yield np.multiply(
                                piece, scale, dtype=spec.read_dtype, casting="same_kind"
                            )
                except EOFError:
                    raise RecordError(f"{self.path(step)} ended early while it was read") from None
        if checksum != stored.crc32:
            raise RecordError(
                f"{self.path(step)} is damaged: its checksum is another than recorded"
            )

    def read(self, step: int) -> list[np.ndarray]:
        """Reads one snapshot.

        Returns:
            An array per variable, float32 (float64 for float64 variables).

        Raises:
            RecordError: if there is no snapshot of that step, or it is damaged.
        """
        self.checksum(step)  # checks the size of the file before memory is taken
        values = [np.empty(spec.size, spec.read_dtype) for spec in self.variables]
        places = ((value, low) for value in values for low in range(0, value.size, 1 << 20))
        for (value, low), piece in zip(places, self.chunks(step, 1 << 20), strict=True):
            value[low : low + piece.size] = piece
        return [v.reshape(s.shape) for v, s in zip(values, self.variables, strict=True)]

    def checksum(self, step: int) -> int:
        """Returns the CRC-32 that the file of a snapshot states, without reading the values."""
        stored = self._open(step)
        stored.file.close()
        return stored.crc32

    def error_bound(self, step: int) -> float:
        """Returns the largest possible error of a value of one snapshot by the encoding."""
        stored = self._open(step)
        stored.file.close()
        return max((0.5 * scale for scale in stored.scales if scale is not None), default=0.0)


def _spec(entry: Mapping[str, Any], path: pathlib.Path) -> VariableSpec:
    if len(entry["shape"]) > MOST_AXES:
        raise RecordError(f"{path} is damaged: {entry['name']!r} has {len(entry['shape'])} axes")
    return VariableSpec(entry["name"], tuple(entry["shape"]), entry["dtype"], entry["role"])
