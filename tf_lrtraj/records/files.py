"""Files of records: strict JSON, JSON rows, and whole files replaced at once.

Files are written under a temporary name in the same folder, then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np

PathLike = str | os.PathLike[str]

# What the system says when a disk, or a user's share of it, is full.
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

# Strict JSON has no such numbers, so they are kept as these three strings.
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class RecordError(ValueError):
    """A record is missing, damaged, or does not belong to the run that asks for it."""


# --- JSON ---------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """`value` in terms of strict JSON: NumPy values, tuples, paths and non-finite floats too."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return encode(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(
        "a record may hold None, booleans, numbers, text, arrays, lists and dicts. "
        f"Received: {value!r} of type {type(value).__name__}"
    )


def decode(value: Any) -> Any:
    if isinstance(value, str):
        return NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"the bare constant {name} is not strict JSON")


def _parse(text: bytes) -> Any:
    """Raises ValueError (of which JSON and UTF-8 errors are kinds) for anything but strict JSON."""
    try:
        return decode(json.loads(text.decode("utf-8"), parse_constant=_refuse_constant))
    except RecursionError:
        raise ValueError("nested too deeply") from None


# What `temporary_path` makes, a suffix kept; for `remove_leftovers`.
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp(\.[a-z]+)?")


def temporary_path(path: PathLike, suffix: str = "") -> pathlib.Path:
    """Where this process writes what it then renames to `path`; beside it, and hidden.

    The number of the process is part of the name, so that two processes do not
    write into one file and `remove_leftovers` knows whether its writer is alive.
    """
    path = pathlib.Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp{suffix}")


def remove_leftovers(folder: PathLike) -> None:
    """Deletes what killed processes left half-written in a folder and in those right inside it.

    Files of other processes of this machine that are still alive stay.
    """
    root = pathlib.Path(folder)
    inside = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    for path in [*root.iterdir(), *(path for part in inside for path in part.iterdir())]:
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or _alive_elsewhere(int(match.group(1))):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _alive_elsewhere(number: int) -> bool:
    """Whether there is another process of this number."""
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)  # sends nothing
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


@contextlib.contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Errors of the system inside name `path`, where they name nothing or a temporary file."""
    try:
        yield
    except OSError as error:
        known = error.filename is not None and not _TEMPORARY.fullmatch(
            pathlib.PurePath(os.fsdecode(error.filename)).name
        )
        if known or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error


def write_atomically(path: PathLike, data: bytes | str) -> None:
    """Writes a whole file under a temporary name beside it, then renames it into place.

    A reader, or a run killed at any moment, finds the old content or the new one.

    Raises:
        OSError: if the folder cannot be written.
    """
    path = pathlib.Path(path)
    temporary = temporary_path(path)
    try:
        with naming(path):
            with open(temporary, "wb") as file:
                file.write(data.encode("utf-8") if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: PathLike) -> None:
    """Waits until what was written to a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: PathLike, obj: Any) -> None:
    """Writes `obj` as strict, indented JSON, atomically.

    NumPy scalars and arrays become numbers and lists; non-finite floats become
    the strings "NaN", "Infinity" and "-Infinity", which `read_json` turns back.

    Raises:
        TypeError: if `obj` holds something JSON has no form for (the value is named).
        OSError: if the folder cannot be written.
    """
    write_atomically(path, json.dumps(encode(obj), indent=2, allow_nan=False) + "\n")


def read_json(path: PathLike) -> Any:
    """Reads what `write_json` wrote.

    Raises:
        RecordError: if the file is missing or not strict JSON (file and line are named).
    """
    data = read_bytes(path)
    try:
        return _parse(data)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}"
    except ValueError as error:
        reason = str(error)
    raise RecordError(f"{os.fspath(path)} is not valid JSON ({reason}). The file is damaged.")


def read_bytes(path: PathLike) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        raise RecordError(f"{os.fspath(path)} does not exist.") from None
    except OSError as error:
        raise RecordError(f"{os.fspath(path)} cannot be read: {error.strerror}.") from None


# --- Rows ---------------------------------------------------------------------------------


def _encode_row(row: Mapping[str, Any]) -> bytes:
    step = row.get("step")
    if isinstance(step, (bool, np.bool_)) or not isinstance(step, (int, np.integer)) or step < 0:
        raise ValueError(
            f"a row's `step` must be an integer of at least 0. Received: step={step!r}"
        )
    text = json.dumps(encode(row), allow_nan=False, separators=(",", ":"))
    return text.encode("ascii") + b"\n"


def _parse_lines(path: PathLike) -> list[tuple[bytes, dict[str, Any]]]:
    """(line without its newline, row) for each row; a half-written last line is left out."""
    lines = read_bytes(path).split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        whole = number < len(lines)  # a newline follows
        if not line and not whole:
            break
        try:
            row = _parse(line)
            if not isinstance(row, dict):
                raise ValueError(f"a row must be a JSON object, not {type(row).__name__}")
            step = row.get("step")
            if isinstance(step, bool) or not isinstance(step, int):
                raise ValueError(f"a row needs a whole number as its step, not {step!r}")
        except ValueError as error:
            if not whole:
                break
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise RecordError(f"{os.fspath(path)}, line {number}: {reason}.") from None
        rows.append((line, row))
    return rows


def read_rows(path: PathLike) -> list[dict[str, Any]]:
    """Rows of a .jsonl file; a half-written last line, as a killed run leaves it, is left out.

    Raises:
        RecordError: if the file is missing, or any other line is damaged (file and line are named).
    """
    return [row for _, row in _parse_lines(path)]


def damage_before(path: PathLike, mark: Mapping[str, Any]) -> str | None:
    """What is wrong with the rows written before `MetricsWriter.mark`, or None."""
    try:
        with open(path, "rb") as file:
            data = file.read(mark["bytes"])
        if len(data) != mark["bytes"]:
            return f"{os.fspath(path)} has {len(data)} bytes instead of {mark['bytes']} or more"
        if hashlib.sha256(data).hexdigest() != mark["sha256"]:
            return f"{os.fspath(path)} has other rows than were written"
    except OSError as error:
        return f"{os.fspath(path)} cannot be read: {error.strerror}"
    return None


def keep_until(path: PathLike, mark: Mapping[str, Any]) -> None:
    """Cuts off, whole or damaged, what was written after `MetricsWriter.mark`."""
    if os.stat(path).st_size != mark["bytes"]:
        with open(path, "rb") as file:
            data = file.read(mark["bytes"])
        write_atomically(path, data)


class MetricsWriter:
    """Appends rows to a .jsonl file; each row is one write, in the system's hands on return.

    Args:
        path: the file; made if missing.
        resume_step: rows of later steps are dropped on opening (they belong to work
            that a resumed run does again); -1 drops all, None keeps all.  A half-written
            last line is always dropped.  The rows kept are kept to the byte.

    Raises:
        RecordError: if the existing file is damaged, or the file cannot be written.
    """

    def __init__(self, path: PathLike, resume_step: int | None = None) -> None:
        self.path = pathlib.Path(path)
        try:
            self._digest = hashlib.sha256()
            self._size = 0
            if self.path.exists():
                kept = [
                    line
                    for line, row in _parse_lines(self.path)
                    if resume_step is None or row["step"] <= resume_step
                ]
                data = b"".join(line + b"\n" for line in kept)
                if data != self.path.read_bytes():
                    write_atomically(self.path, data)
                self._digest.update(data)
                self._size = len(data)
            self._file: int | None = os.open(
                self.path,
                os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0),
                0o666,
            )
        except OSError as error:
            if error.errno in FULL:  # nothing is wrong with the record
                raise
            raise RecordError(f"{self.path} cannot be written: {error.strerror}.") from None

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row, which needs an integer `step`.

        Raises:
            ValueError: if `step` is not an integer of at least 0, or the writer is closed.
            TypeError: if a value has no form in JSON.
            OSError: if the disk is full; what was written of the row is left out on reading.
        """
        if self._file is None:
            raise ValueError(f"the writer of {self.path} is closed")
        data = _encode_row(row)
        self._digest.update(data)
        self._size += len(data)
        with naming(self.path):
            while data:  # one call unless the disk is full or a signal arrives
                data = data[os.write(self._file, data) :]

    def mark(self) -> dict[str, Any]:
        """Size and SHA-256 of the file as it is now, for `keep_until` later."""
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}

    def sync(self) -> None:
        """Waits until the rows are on the disk; call it before a checkpoint that relies on them."""
        if self._file is not None:
            with naming(self.path):
                os.fsync(self._file)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def append_rows(path: PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends `rows` to a .jsonl file, which may be somebody's own; see `MetricsWriter`.

    Raises:
        RecordError: if the file ends without a newline, or is damaged or cannot be written.
    """
    with naming(path), contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if size and file.read() != b"\n":
            raise RecordError(
                f"{os.fspath(path)} does not end with a newline, so it is no file of rows, or its "
                "last one is half-written. End or delete that line, or name another file."
            )
    with MetricsWriter(path) as writer:
        for row in rows:
            writer.write(row)
