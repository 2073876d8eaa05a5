"""The global random streams of Python, NumPy and torch."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def random_streams_kept() -> Iterator[None]:
    """Restores the global random streams of Python, NumPy and torch after the block.

    Reading a shuffled data set advances them.
    """
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (users' code has it)
    with contextlib.ExitStack() as stack:
        if "torch" in sys.modules:
            stack.enter_context(sys.modules["torch"].random.fork_rng(devices=[]))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
