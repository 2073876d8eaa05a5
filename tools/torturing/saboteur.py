"""`Saboteur`: counts operations on files of a run, and kills the process at a chosen one."""

from __future__ import annotations

import builtins
import io
import mmap
import os
import pathlib
import signal
from typing import Any

COUNTERS = ("operations", "checkpoint", "model")  # what is counted, in shared memory


class Saboteur:
    """Counts operations on files of the run, and kills its own process at a chosen one.

    Args:
        workdir: files in here count.
        counters: shared memory of 8 bytes per entry of `COUNTERS`.
        note: where the last thing done is written before the kill.
        at: number of the operation to die at; 0 for never.
        half: of an operation that can be cut in two or done, do the first half before dying.
    """

    def __init__(
        self, workdir: pathlib.Path, counters: mmap.mmap, note: pathlib.Path, at: int, half: bool
    ) -> None:
        self.prefix = f"{workdir}{os.sep}"
        self.counters, self.at, self.half = counters, at, half
        self.note = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.files: dict[int, str] = {}  # descriptor → path, of files opened by os.open
        self.write, self.kill = os.write, os.kill
        self.replaced: list[tuple[Any, str, Any]] = []

    def tick(self, counter: str = "operations") -> int:
        place = 8 * COUNTERS.index(counter)
        count = int.from_bytes(self.counters[place : place + 8], "little") + 1
        self.counters[place : place + 8] = count.to_bytes(8, "little")
        return count

    def die(self, what: str, path: str) -> None:
        # Names of temporary files contain the id of the process, which is not comparable.
        name = path.removeprefix(self.prefix).replace(f".{os.getpid()}.", ".PID.")
        self.write(self.note, f"{what} {name}".encode())
        self.kill(os.getpid(), signal.SIGKILL)

    def concerns(self, path: Any) -> str:
        try:
            path = os.fspath(path)
        except TypeError:
            return ""
        path = path.decode() if isinstance(path, bytes) else path
        return path if path.startswith(self.prefix) else ""

    def step(self, path: Any, what: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Does one operation, and kills the process before or after it if it is the chosen one."""
        name = self.concerns(path)
        if not name and kwargs.get("dir_fd") is not None:  # only while a folder is deleted
            name = str(path)
        now = bool(name) and self.tick() == self.at
        if now and not self.half:
            self.die(f"before {what}", name)
        result = function(*args, **kwargs)
        if now:
            self.die(f"after {what}", name)
        return result

    def half_write(self, name: str, write: Any, data: Any) -> Any:
        if self.tick() != self.at:
            return write(data)
        done = len(data) // 2 if self.half else 0
        write(data[:done])
        self.die("half-way through writing" if self.half else "before writing", name)
        write(data[done:])  # a subclass may let it live
        return len(data)

    def install(self) -> None:
        """Replaces Python's functions on files in this process."""
        for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir"):
            self._wrap(os, name)
        real_open, real_os_open, real_write = io.open, os.open, os.write

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            name = "" if isinstance(file, int) else self.concerns(file)
            if not name or not set(mode) & set("wax+"):
                return real_open(file, mode, *args, **kwargs)
            result = self.step(file, "opening", real_open, file, mode, *args, **kwargs)
            return File(result, name, self)

        def os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            name = self.concerns(path)
            if not name or not flags & (os.O_WRONLY | os.O_RDWR):
                return real_os_open(path, flags, *args, **kwargs)
            descriptor = self.step(path, "opening", real_os_open, path, flags, *args, **kwargs)
            self.files[descriptor] = name
            return descriptor

        def os_write(descriptor: int, data: Any) -> int:
            if descriptor not in self.files:
                return real_write(descriptor, data)
            return self.half_write(
                self.files[descriptor], lambda part: real_write(descriptor, part), data
            )

        self._put(builtins, "open", opened)
        self._put(io, "open", opened)
        self._put(os, "open", os_open)
        self._put(os, "write", os_write)

        import keras
        import tensorflow as tf

        self._announce(tf.train.Checkpoint, "write", "checkpoint")
        self._announce(keras.Model, "save", "model")

    def _wrap(self, module: Any, name: str) -> None:
        real = getattr(module, name)

        def wrapped(path: Any, *args: Any, **kwargs: Any) -> Any:
            return self.step(path, name, real, path, *args, **kwargs)

        self._put(module, name, wrapped)

    def _put(self, owner: Any, name: str, value: Any) -> None:
        self.replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def remove(self) -> None:
        """Restores Python's functions on files."""
        for owner, name, real in reversed(self.replaced):
            setattr(owner, name, real)
        self.replaced.clear()

    def _announce(self, owner: Any, name: str, counter: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.tick(counter)
            return real(*args, **kwargs)

        self._put(owner, name, wrapped)


class File:
    """An open file whose writes a `Saboteur` counts."""

    def __init__(self, file: Any, name: str, saboteur: Saboteur) -> None:
        self._file, self._name, self._saboteur = file, name, saboteur

    def write(self, data: Any) -> Any:
        def write(part: Any) -> Any:
            count = self._file.write(part)
            if len(part) != len(data):
                self._file.flush()  # the half is on the disk when the process dies
            return count

        return self._saboteur.half_write(self._name, write, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> File:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)
