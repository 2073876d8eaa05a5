"""Reads and writes `.safetensors` files, which hold named arrays behind a JSON header.

The first eight bytes hold the length of the header.  The header states type, shape and place of
every array, and texts under `__metadata__`.  The arrays follow without gaps
(https://huggingface.co/docs/safetensors).  Files are written atomically, checked when they are
read, and contain no code.

>>> import tempfile
>>> path = tempfile.mkdtemp() + "/weights.safetensors"
>>> write_tensors(path, {"kernel": np.ones((2, 3), np.float32)}, {"step": "12"})
>>> with TensorFile(path) as file:
...     file.metadata["step"], file.tensors["kernel"].shape, file.read("kernel").sum().item()
('12', (2, 3), 6.0)
"""

from __future__ import annotations

import collections
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, TypedDict

import numpy as np

from tf_lrtraj.records.files import PathLike, RecordError, open_file, replacing
from tf_lrtraj.records.shapes import Count, conform
from tf_lrtraj.records.strict_json import parse

# Largest accepted header in bytes; other readers of the format have the same bound.
LARGEST_HEADER = 100_000_000
MOST_AXES = 32  # largest accepted number of axes; the limit of NumPy is 64

_METADATA = "__metadata__"
_WRITER = {"writer": "tf_lrtraj"}
_LENGTH = 8
_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool",
    **{f"{sign}{bits}": f"{word}{bits}" for sign, word in (("I", "int"), ("U", "uint"))
       for bits in (8, 16, 32, 64)},
}  # fmt: skip
_NAMES = {name: code for code, name in _TYPES.items()}


class _Entry(TypedDict):
    dtype: str
    shape: list[Count]
    data_offsets: list[Count]


class Tensor(NamedTuple):
    """One array of a file.

    Attributes:
        dtype: little-endian dtype of the values.
        shape: shape of the array.
        start: position of the array in the file, in bytes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@functools.cache
def dtype_of(name: str) -> np.dtype[Any]:
    """Returns the little-endian NumPy dtype of a name such as `"float32"` or `"bfloat16"`."""
    if name.startswith(("bfloat", "float8")):
        import ml_dtypes  # every Keras backend depends on it

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name).newbyteorder("<")


def write_tensors(
    path: PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes named arrays to a file, whole or not at all.

    The header has the order of `tensors`; the entry `writer` of the metadata indicates it.  Arrays
    with the widest type come first in the file, so that every array is aligned.

    Args:
        path: path of the file.
        tensors: name → array.
        metadata: texts by name.

    Raises:
        ValueError: if the format does not have a name or a type.
        OSError: if the file cannot be written; an existing file is then unchanged.
    """
    arrays = {name: _plain(name, array) for name, array in tensors.items()}
    laid_out = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    places, end = {}, 0
    for name, array in laid_out:
        places[name], end = [end, end + array.nbytes], end + array.nbytes
    header: dict[str, Any] = {_METADATA: {**_WRITER, **metadata}}
    for name, array in arrays.items():
        code = _NAMES[array.dtype.name]
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": places[name]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(_LENGTH, "little") + text)
        for _, array in laid_out:
            file.write(array.reshape(-1).view(np.uint8).data)


def distinct_names(
    names: Sequence[str], endings: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """Returns distinct names for the arrays of a file: `a`, `a#2`, … for equal names.

    Args:
        names: names of the arrays, possibly equal.
        endings: for each name, the endings of further arrays that belong to it.

    >>> distinct_names(["kernel", "bias", "kernel"])
    ['kernel', 'bias', 'kernel#2']
    >>> distinct_names(["kernel", "kernel_scale"], [["_scale"], []])
    ['kernel', 'kernel_scale#2']
    """
    taken, found = {_METADATA}, []
    met: collections.Counter[str] = collections.Counter()
    for name, more in zip(names, endings or [[]] * len(names), strict=True):
        while True:
            met[name] += 1
            one = name if met[name] == 1 else f"{name}#{met[name]}"
            own = {one, *(one + ending for ending in more)}
            if own.isdisjoint(taken):
                break
        taken |= own
        found.append(one)
    return found


def _plain(name: str, array: Any) -> np.ndarray:
    array = np.asarray(array)
    if name == _METADATA:
        raise ValueError(f"an array in a .safetensors file cannot have the name {name!r}")
    if array.dtype.name not in _NAMES:
        raise ValueError(
            f"the array {name!r} must be of one of the types {sorted(_NAMES)}. "
            f"Received: dtype={array.dtype}"
        )
    # `ascontiguousarray` gives a scalar an axis.
    return np.ascontiguousarray(array, dtype_of(array.dtype.name)).reshape(array.shape)


class TensorFile:
    """A `.safetensors` file open for reading, and a context manager that closes it.

    Args:
        path: path of the file.

    Attributes:
        file: the open, unbuffered file.
        metadata: the texts in the header.
        tensors: name → `Tensor`, in the order of the header.

    Raises:
        OSError: if the file cannot be read, or is not a regular file.
        RecordError: if the file has another format or is truncated, or its header is damaged.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = path
        self.file: BinaryIO = open_file(path, buffering=0)
        try:
            try:
                self.metadata, self.tensors = _read_header(self.file)
            except ValueError as error:
                raise RecordError(f"{os.fspath(path)} is damaged: {error}") from None
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def is_ours(self) -> bool:
        """Whether `write_tensors` wrote the file, so that the order of `tensors` is meaningful."""
        return _WRITER.items() <= self.metadata.items()

    def pieces(self, name: str, size: int = 1 << 20) -> Iterator[np.ndarray]:
        """Yields the values of one array in new vectors of at most `size` values."""
        tensor = self.tensors[name]
        try:
            yield from read_pieces(self.file, tensor, size)
        except EOFError:
            raise RecordError(
                f"{os.fspath(self.path)} is damaged: it ended while it was read"
            ) from None

    def read(self, name: str) -> np.ndarray:
        """Reads one array."""
        tensor = self.tensors[name]
        values = np.empty(tensor.size, tensor.dtype)
        low = 0
        for piece in self.pieces(name):
            values[low : low + piece.size] = piece
            low += piece.size
        return values.reshape(tensor.shape)


def read_pieces(file: BinaryIO, tensor: Tensor, size: int) -> Iterator[np.ndarray]:
    """Yields the values of an array in an unbuffered file, in vectors of at most `size` values.

    Raises:
        EOFError: if the file ends before the array.
    """
    place = tensor.start
    for low in range(0, tensor.size, size):
        piece = np.empty(min(size, tensor.size - low), tensor.dtype)
        data = piece.view(np.uint8).data
        if file.tell() != place:
            file.seek(place)
        if file.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise EOFError
        place += len(data)
        yield piece


def _read_header(file: BinaryIO) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Returns (metadata, tensors); raises ValueError if sizes or places are inconsistent."""
    total = os.fstat(file.fileno()).st_size
    first = file.read(_LENGTH)
    length = int.from_bytes(first, "little")
    start = _LENGTH + length
    if len(first) < _LENGTH or start > total:
        raise ValueError(f"its {total:,} bytes are too few for its header")
    if length > LARGEST_HEADER:
        raise ValueError(f"its header has {length:,} bytes, more than {LARGEST_HEADER:,}")
    text = file.read(length)
    try:
        header = parse(text, dict, unique=True)
        metadata = conform(header.pop(_METADATA, {}), dict[str, str])
        entries = conform(header, dict[str, _Entry])
    except ValueError as error:
        raise ValueError(f"its header cannot be read: {error}") from None
    tensors, ends = {}, {}
    for name, entry in entries.items():
        tensors[name], ends[name] = _tensor(name, entry, start)
    place = start
    for name in sorted(tensors, key=lambda name: (tensors[name].start, ends[name])):
        if tensors[name].start != place:
            word = "overlaps another one" if tensors[name].start < place else "follows a gap"
            raise ValueError(f"the array {name!r} {word}")
        place = ends[name]
    if place != total:
        raise ValueError(f"it has {total} bytes instead of {place}")
    return metadata, tensors


def _tensor(name: str, entry: _Entry, start: int) -> tuple[Tensor, int]:
    """Returns an array's entry and the position of its end."""
    if entry["dtype"] not in _TYPES:
        raise ValueError(
            f"the array {name!r} must be of one of the types {sorted(_TYPES)}. "
            f"Received: dtype={entry['dtype']!r}"
        )
    shape, places = tuple(entry["shape"]), entry["data_offsets"]
    if len(shape) > MOST_AXES:
        raise ValueError(f"the array {name!r} has {len(shape)} axes, more than {MOST_AXES}")
    dtype = dtype_of(_TYPES[entry["dtype"]])
    nbytes = math.prod(shape) * dtype.itemsize
    if len(places) != 2 or places[1] - places[0] != nbytes:
        raise ValueError(f"the array {name!r} has {nbytes} bytes and the places {places}")
    return Tensor(dtype, shape, start + places[0]), start + places[1]
