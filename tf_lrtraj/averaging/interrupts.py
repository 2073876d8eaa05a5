"""`HeldSignals`: delays signal handlers while a critical section runs."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType
from typing import Any

# A signal that arrives in these functions cannot be assigned to the inside of the `with` block.
_CONTEXTLIB = {
    contextlib._GeneratorContextManager.__enter__.__code__,
    contextlib._GeneratorContextManager.__exit__.__code__,
}


class HeldSignals:
    """Delays the calls of Python's signal handlers, such as that of Ctrl-C.

    A handler may raise an exception between any two instructions of the main thread.  From
    `install` to `remove`, a call is delayed until `remove` if `holding` is true, or if
    `contextlib` is entering or leaving the given generator.

    Only the main thread runs signal handlers.  In other threads this class does nothing.

    Args:
        code: the code object of the generator of a context manager.
    """

    def __init__(self, code: Any) -> None:
        self._code = code
        self._previous: dict[int, Any] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []
        self.holding = True

    def install(self) -> None:
        """Replaces every handler that is a Python function."""
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
        """Restores the handlers, and then makes the delayed calls, which may raise."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, handler)
        self.holding = False  # for handlers that this thread could not restore
        while self._waiting:
            number, frame = self._waiting.pop(0)
            self._previous[number](number, frame)
