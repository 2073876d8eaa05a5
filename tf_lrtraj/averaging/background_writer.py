"""`BackgroundWriter`: a thread that writes files while training goes on."""

from __future__ import annotations

import collections
import os
import pathlib
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Buffer = TypeVar("Buffer")


class BackgroundWriter(Generic[Buffer]):
    """Fills buffers in the calling thread and writes them in another thread, in order.

    `write` waits for a free buffer.  After a write has failed, the waiting writes are dropped, and
    the next call of `write`, `check` or `wait` raises the error.

    The thread runs while there is something to write.  Python waits for it at exit, so all
    accepted data are written even if training fails.  An error that no call has raised by then is
    printed.

    Args:
        folder: folder of the files, for `finish_writes`.
        buffers: the buffers; each is used by one write at a time.
    """

    def __init__(self, folder: str | os.PathLike[str], buffers: Sequence[Buffer]) -> None:
        self.folder = pathlib.Path(folder).absolute()
        self._free = list(buffers)
        self._waiting: collections.deque[tuple[Buffer, Callable[[Buffer], None]]]
        self._waiting = collections.deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failures: list[BaseException] = []
        _ALL.add(self)
        weakref.finalize(self, _print_failures, self.folder, self._failures)

    def write(self, fill: Callable[[Buffer], None], work: Callable[[Buffer], None]) -> None:
        """Calls `fill` with a free buffer now, and `work` with it later in the other thread.

        Raises:
            Exception: the error of an earlier write that failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._failures)
            self.check()
            buffer = self._free.pop()
        try:
            fill(buffer)
        except BaseException:
            with self._changed:
                self._free.append(buffer)
            raise
        with self._changed:
            self._waiting.append((buffer, work))
            if self._thread is None:
                # Not a daemon: Python waits for it at exit.
                self._thread = threading.Thread(target=self._work, name="snapshots")
                self._thread.start()

    def check(self) -> None:
        """Raises the error of an earlier write that failed; each error is raised once."""
        if self._failures:
            raise self._failures.pop()

    def finish(self) -> None:
        """Waits until every write has ended, with success or not."""
        if threading.current_thread() is not self._thread:
            with self._changed:
                self._changed.wait_for(self._is_idle)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            Exception: the error of a write that failed.
        """
        self.finish()
        self.check()

    def _is_idle(self) -> bool:
        # After a fork the thread belongs to the other process.
        return self._thread is None or not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    self._changed.notify_all()
                    return
                buffer, work = self._waiting.popleft()
            failure: BaseException | None = None
            try:
                work(buffer)
            except BaseException as error:  # raised later, in the calling thread
                failure = error
            with self._changed:
                self._free.append(buffer)
                if failure is not None:
                    self._failures.append(failure)
                    self._free += [dropped for dropped, _ in self._waiting]
                    self._waiting.clear()
                self._changed.notify_all()


_ALL: weakref.WeakSet[BackgroundWriter] = weakref.WeakSet()


def finish_writes(folder: str | os.PathLike[str]) -> None:
    """Waits until this process has written all pending files of a folder."""
    place = os.path.realpath(folder)
    for writer in list(_ALL):
        if os.path.realpath(writer.folder) == place:
            writer.finish()


def _print_failures(folder: pathlib.Path, failures: list[BaseException]) -> None:
    for error in failures:
        print(f"A file in {folder} was not written: {error}", file=sys.stderr)
