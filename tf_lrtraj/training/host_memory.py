"""How the C library treats the memory of freed tensors, for programs that own their process."""

from __future__ import annotations

import ctypes
import os
import sys

_kept = False


def keep_freed_memory() -> None:
    """Lets glibc keep the memory that tensors free; call it before TensorFlow is imported.

    By default it goes back to the system at every step and comes again page by page, which
    took half of the processor time of a small network's training (benchmarks/allocator.sh).
    Several arenas would each do the same, so there is one; on machines with many cores,
    where threads would queue for it, nothing is changed.
    """
    global _kept
    if sys.platform != "linux" or (os.cpu_count() or 1) > 8:
        return
    _kept = True
    _ask()


def keep_it_so() -> None:
    """Asks again, if `keep_freed_memory` was called; after a distributed iterator was made.

    On Python 3.11 TensorFlow lowers the threshold to 128 kB whenever it makes the kernel
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
