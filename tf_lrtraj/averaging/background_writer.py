"""Files written by another thread while training goes on."""

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
    """Fills a buffer in the calling thread and writes it in another, in order.

    Whoever comes while all buffers wait to be written waits for one.  Once a write has failed,
    those that wait are dropped, and the error is raised by the next `write`, `check` or `wait`.

    The thread lives while there is something to write, and Python waits for it before it ends, so
    what was handed over is written whatever happens to training.  A failure that nobody was left
    to be told of is printed then.

    Args:
        folder: where the files are, for `finish_writes`.
        buffers: what is filled and written, each by one write at a time.
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
        """Calls `fill` with a free buffer now, and `work` with it later, in the other thread.

        Raises:
            Exception: with which an earlier write failed.
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
        """Raises the error with which an earlier write failed, once."""
        if self._failures:
            raise self._failures.pop()

    def finish(self) -> None:
        """Waits until everything is written, or has failed."""
        if threading.current_thread() is not self._thread:
            with self._changed:
                self._changed.wait_for(self._is_idle)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            Exception: with which a write failed.
        """
        self.finish()
        self.check()

    def _is_idle(self) -> bool:
        # After a fork the thread is another process's.
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
            except BaseException as error:  # raised where somebody sees it
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
    """Waits for what this process is writing into a folder, so that readers find it."""
    place = os.path.realpath(folder)
    for writer in list(_ALL):
        if os.path.realpath(writer.folder) == place:
            writer.finish()


def _print_failures(folder: pathlib.Path, failures: list[BaseException]) -> None:
    for error in failures:
        print(f"A file in {folder} was not written: {error}", file=sys.stderr)
