"""Reading regular files up to a size, and writing files atomically.

A file is written under a temporary name in the same folder and then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Iterator
from typing import BinaryIO

from tf_lrtraj.values import error

PathLike = str | os.PathLike[str]

# The system's errors for a full disk and a full quota.
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

# Largest size in bytes of a file that is read as a whole; records are far smaller.
LARGEST = 1 << 29


class RecordError(ValueError):
    """A record is missing, damaged, or does not belong to the run that asks for it."""


# Names that `temporary_path` makes.
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp(\.[a-z]+)?")


def temporary_path(path: PathLike, suffix: str = "") -> pathlib.Path:
    """Returns a hidden path beside `path`, to which this process writes before it renames.

    The name contains the process id, so that two processes do not write to the same file and
    `remove_leftovers` knows whether the writer is alive.
    """
    path = pathlib.Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp{suffix}")


def remove_leftovers(folder: PathLike) -> None:
    """Deletes incomplete files of dead processes in a folder and its direct subfolders.

    Files of other live processes on this machine are kept.
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
    """Returns whether another process has this id."""
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)  # sends nothing
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


# A path on another file system than this machine's: `gs://bucket/…`.
_REMOTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://[^/]*")


def scheme_of(path: object) -> str | None:
    """Returns the scheme of a remote path, and None for a local one.

    >>> scheme_of("gs://bucket/runs"), scheme_of("runs/one")
    ('gs', None)
    """
    match = _REMOTE.match(path) if isinstance(path, str) else None
    return None if match is None else match.group(1)


def local_path(path: PathLike, name: str) -> pathlib.Path:
    """Returns a path on this machine's file systems.

    Raises:
        ValueError: for a path of another file system, which `pathlib` would take for a folder.
    """
    if scheme_of(path) is not None:
        hint = " Copy it with tf.io.gfile.copy, or mount the bucket."
        raise error(name, "on a local file system", path, hint=hint)
    return pathlib.Path(path)


@contextlib.contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Makes system errors inside name `path` if they name a file unknown to the user.

    Such files are those of `temporary_path`, files inside one, and relative names in a folder that
    is being deleted.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or _known(error.filename, path):
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error


def _known(filename: str | bytes | None, path: PathLike) -> bool:
    """Returns whether a user who knows `path` knows the file that an error names."""
    if filename is None:
        return False
    named = pathlib.PurePath(os.fsdecode(filename))
    if any(_TEMPORARY.fullmatch(part) for part in named.parts):
        return False
    return named.is_absolute() or named.is_relative_to(pathlib.PurePath(path).parent)


@contextlib.contextmanager
def replacing(path: PathLike, temporary: pathlib.Path | None = None) -> Iterator[pathlib.Path]:
    """Gives a block a path to write to, and renames the written file to `path`.

    The file is synced to disk before it is renamed.  If the block fails, `path` does not change.

    Args:
        path: the path of the file.
        temporary: the path to write to, by default `temporary_path(path)`.
    """
    temporary = temporary_path(path) if temporary is None else temporary
    try:
        with naming(path):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: PathLike, data: bytes | str) -> None:
    """Writes a whole file under a temporary name beside it, then renames it into place.

    A reader finds either the old or the new content, also after a kill at any moment.

    Raises:
        OSError: if the folder cannot be written.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


def sync(path: PathLike) -> None:
    """Waits until the content of a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Reading ------------------------------------------------------------------------------


def open_file(path: PathLike, buffering: int = -1) -> BinaryIO:
    """Opens a regular file for reading, directly or through a link.

    Pipes and devices are not opened: a pipe would wait for a writer, and a device may be endless.

    Raises:
        OSError: if it is something else, or cannot be opened.
    """
    _check_regular(os.stat(path), path)  # before opening, which has effects on some devices

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file: BinaryIO = open(path, "rb", buffering, opener=opened)  # noqa: SIM115
    try:
        _check_regular(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


def _check_regular(found: os.stat_result, path: PathLike) -> None:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    if not stat.S_ISREG(found.st_mode):
        kind = kinds.get(stat.S_IFMT(found.st_mode), "something else")
        code = errno.EISDIR if kind == "a folder" else errno.EINVAL
        raise OSError(code, f"it is {kind}, not a file", os.fspath(path))


def read_bytes(path: PathLike, largest: int = LARGEST) -> bytes:
    """Reads a file.

    Raises:
        RecordError: if it is missing, not a regular file, cannot be read, or has more than
            `largest` bytes.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > largest else file.read(largest + 1)
            if max(size, len(data)) > largest:
                raise RecordError(
                    f"{os.fspath(path)} has {size:,} bytes. Records of more than {largest:,} are "
                    "not read."
                )
            return data
    except FileNotFoundError:
        raise RecordError(f"{os.fspath(path)} does not exist.") from None
    except OSError as error:
        raise RecordError(f"{os.fspath(path)} cannot be read: {error.strerror}.") from None
