"""The memory of this machine, or of the container of the process."""

from __future__ import annotations

import contextlib
import os
import pathlib

_GROUP = pathlib.Path("/sys/fs/cgroup")


def total() -> int | None:
    """Returns the bytes of memory that this process may use; None if unknown."""
    found = [_number(_GROUP / "memory.max"), _number(_GROUP / "memory/memory.limit_in_bytes")]
    with contextlib.suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min((size for size in found if size is not None and size > 0), default=None)


def free() -> int | None:
    """Returns the free bytes of this memory; None if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("MemAvailable:"))
        found.append(1024 * int(line.split()[1]))
    limit, used = _number(_GROUP / "memory.max"), _number(_GROUP / "memory.current")
    if limit is not None and used is not None:
        found.append(limit - used)
    return min(found, default=None)


def _number(path: pathlib.Path) -> int | None:
    """Returns the number in a file; None if it holds none ("max"), or on another system."""
    with contextlib.suppress(ValueError, OSError):
        return int(path.read_text(encoding="ascii"))
    return None


def describe(size: float) -> str:
    """Formats a number of bytes.

    >>> describe(4_200_000), describe(3_000), describe(1.5e12)
    ('4.2 MB', '3.0 kB', '1.5 TB')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 1e3:,.1f} kB"
