"""Settings of the C library for the memory of freed tensors, for the programs."""

from __future__ import annotations

import ctypes
import os
import sys

_kept = False


def keep_freed_memory() -> None:
    """Lets glibc keep the memory of freed tensors; call it before TensorFlow is imported.

    By default glibc returns it to the system at every step and requests it again page by page,
    which took half of the processor time of a small network's training (benchmarks/allocator.sh).
    A single arena is used, because several would each keep memory.  On machines with many cores,
    where threads would wait for it, the settings are not changed.
    """
    global _kept
    if sys.platform != "linux" or (os.cpu_count() or 1) > 8:
        return
    _kept = True
    _ask()


def keep_freed_memory_again() -> None:
    """Repeats the setting of `keep_freed_memory`, if made; call it after making an iterator.

    On Python 3.11 TensorFlow lowers the threshold to 128 kB whenever it creates the kernel
    `GeneratorDataset`, which is part of such iterators.
    """
    if _kept:
        _ask()


def _ask() -> None:
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # from malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(arena_max, 1)
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, 2**31 - 1)
