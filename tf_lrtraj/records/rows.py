"""Rows of JSON, appended one at a time, as in `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, TypedDict

from tf_lrtraj import values
from tf_lrtraj.records.files import (
    FULL,
    PathLike,
    RecordError,
    naming,
    open_file,
    read_bytes,
    write_atomically,
)
from tf_lrtraj.records.shapes import Count
from tf_lrtraj.records.strict_json import encode, parse


class Row(TypedDict):
    """A row of any record."""

    step: int


class Mark(TypedDict):
    """Size and checksum of the rows written so far; see `MetricsWriter.mark`."""

    bytes: Count
    sha256: str


def _encode_row(row: Mapping[str, Any]) -> bytes:
    values.integer(0).check("step", row.get("step"))
    text = json.dumps(encode(row), allow_nan=False, separators=(",", ":"))
    return text.encode("ascii") + b"\n"


def _parse_lines(path: PathLike, shape: Any = Row) -> list[tuple[bytes, dict[str, Any]]]:
    """Returns (line without its newline, row) of each row, without an incomplete last line."""
    lines = read_bytes(path).split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        whole = number < len(lines)  # a newline follows
        if not line and not whole:
            break
        try:
            row = parse(line, shape)
        except ValueError as error:
            if not whole:
                break
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise RecordError(f"{os.fspath(path)}, line {number}: {reason}.") from None
        rows.append((line, row))
    return rows


def read_rows(path: PathLike, shape: Any = Row) -> list[dict[str, Any]]:
    """Reads the rows of a .jsonl file, without an incomplete last line of a killed run.

    Args:
        path: the path of the file.
        shape: the shape of every row, as `tf_lrtraj.records.shapes.conform` takes it.

    Raises:
        RecordError: if the file is missing, or any other line is damaged or of another shape
            (file and line are named).
    """
    return [row for _, row in _parse_lines(path, shape)]


def damage_before(path: PathLike, mark: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with the rows written before `MetricsWriter.mark`, or None."""
    digest, left = hashlib.sha256(), mark["bytes"]
    try:
        with open_file(path) as file:
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    except OSError as error:
        return f"{os.fspath(path)} cannot be read: {error.strerror}"
    if left:
        there = mark["bytes"] - left
        return f"{os.fspath(path)} has {there} bytes instead of {mark['bytes']} or more"
    if digest.hexdigest() != mark["sha256"]:
        return f"{os.fspath(path)} has other rows than were written"
    return None


def keep_until(path: PathLike, mark: Mapping[str, Any]) -> None:
    """Removes the rows written after `MetricsWriter.mark`, intact or damaged.

    The rows before must be intact: see `damage_before`.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size == mark["bytes"]:
            return
        data = file.read(mark["bytes"])
    write_atomically(path, data)


class MetricsWriter:
    """Appends rows to a .jsonl file, each in one write.

    Args:
        path: the file, which is created if missing.
        resume_step: rows of later steps, which a resumed run makes again, are removed on opening;
            -1 removes all, None keeps all.  An incomplete last line is always removed.  The other
            rows keep every byte.

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
                if data != read_bytes(self.path):
                    write_atomically(self.path, data)
                self._digest.update(data)
                self._size = len(data)
            self._file: int | None = os.open(
                self.path,
                os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0),
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
            TypeError: if JSON cannot represent a value.
            OSError: if the disk is full; readers ignore the incomplete row.
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
        """Returns the current size and SHA-256 of the file, for `keep_until`."""
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}

    def sync(self) -> None:
        """Waits until the rows are on disk; call it before a checkpoint that relies on them.

        Raises:
            OSError: if the file was deleted, replaced or written to by another program meanwhile.
                The rows are then in a file that the error names.
        """
        if self._file is None:
            return
        with naming(self.path):
            os.fsync(self._file)
            opened = os.fstat(self._file)
            try:
                found = os.stat(self.path)
            except FileNotFoundError:
                found = None
        if found is None:
            what, place, remedy = "deleted", self.path, "Its rows are put back: run"
        elif not os.path.samestat(opened, found):
            what, place = "replaced", self.path.with_name(f"{self.path.name}.kept")
            remedy = f"Its rows are in {place.name}: rename that to {self.path.name}, and run"
        elif opened.st_size != self._size:
            what, place, remedy = "changed", None, "Bring back the rows it had, and run"
        else:
            return
        if place is not None:
            write_atomically(place, os.pread(self._file, opened.st_size, 0))
        raise OSError(
            errno.ESTALE,
            f"another program {what} it while this one was writing. {remedy} the same command "
            "again",
            os.fspath(self.path),
        )

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
    """Appends `rows` to a .jsonl file, which may be the user's own; see `MetricsWriter`.

    Raises:
        RecordError: if the file ends without a newline, or is damaged or cannot be written.
    """
    with naming(path), contextlib.suppress(FileNotFoundError), open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if size and file.read() != b"\n":
            raise RecordError(
                f"{os.fspath(path)} does not end with a newline, so it is no file of rows, or its "
                "last one is incomplete. End or delete that line, or name another file."
            )
    with MetricsWriter(path) as writer:
        for row in rows:
            writer.write(row)
