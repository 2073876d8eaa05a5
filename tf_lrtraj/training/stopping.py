"""The reasons for an early end: numbers that are not finite, a lost worker, a signal.

A signal (SIGTERM, SIGINT) stops the program at once if nothing would be lost, and otherwise after
the current work.  Cloud machines send SIGTERM half a minute before they stop.

This module does not import TensorFlow, because a program can be stopped while it starts, and the
study trains on other backends.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Diverged(RuntimeError):
    """A training loss, or a value that would be stored, became NaN or infinite.

    Args:
        what: the name of the value.
        step: the step of the update, from `step` to `step + 1`, in which it happened.
        last: if only a range is known, the number of updates at its end.

    >>> raise Diverged("the training loss became nan", 20)
    Traceback (most recent call last):
        ...
    tf_lrtraj.training.stopping.Diverged: the training loss became nan in step 20 (the update \
from step 20 to 21). Lower the learning rate, or lengthen its warm-up.
    """

    def __init__(self, what: str, step: int, last: int | None = None) -> None:
        where = f"in step {step} (the update from step {step} to {step + 1})"
        if last is not None and last > step + 1:
            where = f"between steps {step} and {last}"
        super().__init__(f"{what} {where}. Lower the learning rate, or lengthen its warm-up.")
        self.step = step


class Lost(RuntimeError):
    """Another worker is gone, so the collectives of this one cannot finish."""


class Interrupted(BaseException):
    """SIGTERM or SIGINT stopped the run, which can be resumed from the files on disk.

    Like KeyboardInterrupt it is not an `Exception`, so that no library catches it.
    """


class StopRequest:
    """The requests of signals.

    Attributes:
        requested: the name of the first signal; empty if there was none.
    """

    def __init__(self) -> None:
        self.requested = ""
        self._deferrals = 0

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defers signals inside the block; the caller checks `requested` and stops.

        Raises:
            Interrupted: at the end, for a signal that came after the last check.
        """
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1
        if self.requested and not self._deferrals:
            raise Interrupted(f"stopped by {self.requested}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt  # a second Ctrl-C does not wait
            return  # already stopping
        self.requested = signal.Signals(number).name
        if not self._deferrals:
            raise Interrupted(f"stopped by {self.requested}")


_active: StopRequest | None = None


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Handles SIGTERM and the first SIGINT as requests to stop, inside a `with` block.

    Blocks may be nested: the inner one shares the request of the outer one.

    Raises:
        Interrupted: when a signal comes, unless it is `deferred`.
    """
    global _active
    if _active is not None:
        yield _active
        return
    request = StopRequest()
    previous: dict[int, Any] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            # Only the main thread may set handlers; in other threads signals are not changed.
            with contextlib.suppress(ValueError):
                previous[number] = signal.signal(number, request._handle)
        _active = request
        yield request
    finally:
        _active = None
        for restored, handler in previous.items():
            signal.signal(restored, handler)
