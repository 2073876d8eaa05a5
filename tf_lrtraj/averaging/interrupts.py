"""Signals that must not cut a few lines in half."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType
from typing import Any

# Between these and the generator they drive no signal can be told to have come "inside".
_CONTEXTLIB = {
    contextlib._GeneratorContextManager.__enter__.__code__,
    contextlib._GeneratorContextManager.__exit__.__code__,
}


class HeldSignals:
    """Makes the calls of Python's signal handlers, Ctrl-C's above all, wait while `holding`.

    A handler may raise an exception between any two instructions of the main thread.  From
    `install` to `remove` its calls wait until `remove` while `holding` is true, or while
    `contextlib` enters or leaves the given generator.

    Only the main thread runs handlers of signals, so elsewhere this does nothing.

    Args:
        code: the code object of the generator of a context manager.
    """

    def __init__(self, code: Any) -> None:
        self._code = code
        self._previous: dict[int, Any] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []
        self.holding = True

    def install(self) -> None:
        """Takes the place of every handler that is a function of Python."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                self._previous[number] = handler
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.holding or self._changes_hands(frame):
            self._waiting.append((number, frame))
        else:
            self._previous[number](number, frame)

    def _changes_hands(self, frame: FrameType | None) -> bool:
        if frame is None or frame.f_code not in _CONTEXTLIB:
            return False
        generator = getattr(frame.f_locals.get("self"), "gen", None)
        return getattr(generator, "gi_code", None) is self._code

    def remove(self) -> None:
        """Gives the handlers back, and then calls those that had to wait; they may raise."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, handler)
        self.holding = False  # for what this thread could not give back
        while self._waiting:
            number, frame = self._waiting.pop(0)
            self._previous[number](number, frame)
