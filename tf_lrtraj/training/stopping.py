"""Stopping on SIGTERM and SIGINT: at once where nothing would be lost, else after the current work.

Machines in the cloud are taken back with a SIGTERM and half a minute of grace.
This module does not import TensorFlow, so a program can be stopped while it starts.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """SIGTERM or SIGINT asked the run to stop; what is on disk can be gone on with.

    Like KeyboardInterrupt it is no `Exception`, so that no library takes it for an
    error of its own and goes on.
    """


class StopRequest:
    """What the signals asked for.

    Attributes:
        requested: the name of the signal that came first; empty where none has come.
    """

    def __init__(self) -> None:
        self.requested = ""
        self._deferrals = 0

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is only noted: whoever defers looks at `requested` and stops.

        Raises:
            Interrupted: at the end, for a signal that came after the last look.
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
            return  # already on the way out
        self.requested = signal.Signals(number).name
        if not self._deferrals:
            raise Interrupted(f"stopped by {self.requested}")


_active: StopRequest | None = None


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Takes SIGTERM and the first SIGINT as requests to stop, inside a `with` block.

    Blocks may be nested: the inner one shares the request of the outer one.

    Raises:
        Interrupted: at the moment a signal comes, unless it is `deferred`.
    """
    global _active
    if _active is not None:
        yield _active
        return
    request = StopRequest()
    previous: dict[int, Any] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            # Only the main thread may set handlers; elsewhere signals keep their meaning.
            with contextlib.suppress(ValueError):
                previous[number] = signal.signal(number, request._handle)
        _active = request
        yield request
    finally:
        _active = None
        for restored, handler in previous.items():
            signal.signal(restored, handler)
