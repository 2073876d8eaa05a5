"""`SnapshotRecorder`: a Keras callback that writes iterates to disk while a model trains."""

from __future__ import annotations

import os
import pathlib
import shutil
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.averaging.background_writer import BackgroundWriter
from tf_lrtraj.averaging.backup import BackupCalendar
from tf_lrtraj.averaging.other_callbacks import callbacks_beside
from tf_lrtraj.averaging.snapshots import (
    ENCODINGS,
    SnapshotWriter,
    Timetable,
    VariableSpec,
    snapshot_bytes,
)
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.backend.weight_updates import StepCallback
from tf_lrtraj.records import local_path
from tf_lrtraj.records.tensor_files import dtype_of
from tf_lrtraj.values import one_of

# Snapshots in memory: one that is being written, and one that waits for it.
_BUFFERS = 2


def recorded_variables(model: Any) -> list[tuple[Any, str]]:
    """(variable, role) of everything a snapshot of `model` holds, in its order."""
    trainable = len(model.trainable_variables)
    return [
        (variable, "trainable" if i < trainable else "statistic")
        for i, variable in enumerate(bn.weights_and_statistics(model))
    ]


class ModelSnapshots:
    """Writes snapshots of one model; what the callback and the training programs share.

    A snapshot is copied to memory of the host, and another thread writes it.  Two of them are in
    memory at most: whoever comes with a third waits.  As a context manager it waits at the end.

    Args:
        model: a built Keras model.
        folder, timetable, encoding: as in `SnapshotWriter`.

    Raises:
        OSError: if the free disk space is less than the snapshots of `total_steps` will take.
    """

    def __init__(
        self,
        model: Any,
        folder: str | os.PathLike[str],
        timetable: Timetable,
        encoding: str = "exact",
        total_steps: int | None = None,
    ) -> None:
        recorded = recorded_variables(model)
        self._variables = [variable for variable, _ in recorded]
        specs = [VariableSpec(v.path, tuple(v.shape), str(v.dtype), role) for v, role in recorded]
        one_of(ENCODINGS).check("encoding", encoding)
        self.bytes_each = snapshot_bytes(specs, encoding)
        self.most = most_snapshots(timetable, total_steps)
        self._check_space(pathlib.Path(folder))
        self.writer = SnapshotWriter(folder, specs, timetable, encoding)
        buffers = [_host_memory(specs) for _ in range(_BUFFERS)]
        self._background = BackgroundWriter(self.writer.folder, buffers)
        self._skipped: list[int] = []

    def __enter__(self) -> ModelSnapshots:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.wait()
        else:
            self._background.finish()

    def _check_space(self, folder: pathlib.Path) -> None:
        if self.most is None:
            return
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        held = sum(p.stat().st_size for p in folder.glob("step_*")) if folder.is_dir() else 0
        free, needed = shutil.disk_usage(existing).free, self.most * self.bytes_each - held
        if needed > free:
            raise OSError(
                f"Up to {self.most} snapshots of {self.bytes_each / 1e6:.1f} MB need "
                f"{needed / 1e9:.2f} GB in {folder}, and {free / 1e9:.2f} GB are free. Take them "
                "less often, limit their number, or choose encoding='int16' or 'int8'."
            )

    def write(self, step: int, *, only_finite: bool = False) -> None:
        """Takes the model's current values as the snapshot of `step`.

        Args:
            step: number of updates made.
            only_finite: write nothing if a number is not finite; `check` or `wait` tells.

        Raises:
            Exception: with which an earlier snapshot could not be written.
        """

        def fill(buffer: list[np.ndarray]) -> None:
            backend.copy_to_host(self._variables, buffer)

        def work(buffer: list[np.ndarray]) -> None:
            if only_finite and not all(np.isfinite(array).all() for array in buffer):
                self._skipped.append(step)
            else:
                self.writer.write(step, buffer)

        self._background.write(fill, work)

    def check(self) -> None:
        """Warns of snapshots that were skipped.

        Raises:
            Exception: with which an earlier snapshot could not be written.
        """
        while self._skipped:
            warnings.warn(
                f"The weights at step {self._skipped.pop(0)} are not finite: no snapshot of them "
                "is taken.",
                stacklevel=4,
            )
        self._background.check()

    def wait(self) -> None:
        """Waits until all snapshots are on disk, and then does what `check` does."""
        self._background.finish()
        self.check()


def _host_memory(specs: Sequence[VariableSpec]) -> list[np.ndarray]:
    """An array for each variable, in memory that is mapped already."""
    nbytes = [spec.size * dtype_of(spec.dtype).itemsize for spec in specs]
    places = np.cumsum([0, *(-(-count // 64) * 64 for count in nbytes)]).tolist()
    whole = np.empty(places[-1], np.uint8)
    whole.fill(0)
    return [
        whole[place : place + count].view(dtype_of(spec.dtype)).reshape(spec.shape)
        for spec, place, count in zip(specs, places, nbytes, strict=False)
    ]


def most_snapshots(timetable: Timetable, total_steps: int | None) -> int | None:
    """How many snapshots can be on disk at once; None where nothing bounds them."""
    counts = []
    if timetable.limit is not None:
        counts.append(timetable.limit + 1)  # the new one is written before another is dropped
    if total_steps is not None:
        counts.append(max(total_steps - timetable.start, -1) // timetable.every + 1)
    return min(counts, default=None)


class SnapshotRecorder(StepCallback):
    """Writes iterates to disk on a cadence, for averages that are chosen afterwards.

    `tf_lrtraj.averaging.average_snapshots` builds averages of them.  Snapshots hold
    the trainable weights and the batch-norm statistics.  A step waits for a copy of them to memory
    only; another thread writes.  If a snapshot cannot be written, the next step raises the error.
    At the end of `fit` all are on disk, and before `keras.callbacks.BackupAndRestore` saves the
    model, so a run that goes on from there finds all that it needs (list `BackupAndRestore` last:
    before this callback it makes every snapshot wait for the disk).

    Example:

    >>> import keras, numpy as np, tempfile
    >>> from tf_lrtraj.averaging import SnapshotRecorder, Snapshots
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> folder = tempfile.mkdtemp() + "/snapshots"
    >>> recorder = SnapshotRecorder(folder, every=2)
    >>> x, y = np.ones((8, 3)), np.ones((8, 1))
    >>> history = model.fit(x, y, epochs=5, verbose=0, callbacks=[recorder])
    >>> Snapshots(folder).steps
    array([0, 2, 4])

    Args:
        folder: where they are written.  A folder that holds snapshots of the same model with
            the same settings is gone on with; those later than the model's step are replaced.
        every: optimizer steps from one snapshot to the next.
        start: optimizer steps before the first.
        encoding: `"exact"`, or `"int16"` or `"int8"` with their stated errors.
        limit: at most so many on disk; None for no limit.
        when_full: with a limit, `"thin"` or `"drop_oldest"`; see `snapshots.Timetable`.

    Raises:
        ValueError: for settings out of range.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int = 1,
        start: int = 0,
        encoding: str = "exact",
        limit: int | None = None,
        when_full: str = "thin",
    ) -> None:
        super().__init__()
        self.folder = local_path(folder, "folder")
        self.timetable = Timetable(every, start, limit, when_full)
        self.encoding = one_of(ENCODINGS).check("encoding", encoding)
        self._snapshots: ModelSnapshots | None = None
        self._epoch = 0
        self._backups: list[BackupCalendar] = []
        self._backup_before = False  # whether one of them saves before this is called

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        before, self._snapshots = self._snapshots, None
        self._epoch = 0
        self._follow_backups()
        if before is not None:  # of a `fit` that an exception ended
            before.wait()

    def _follow_backups(self) -> None:
        known = {id(calendar.followed): calendar for calendar in self._backups}
        self._backups, self._backup_before = [], False
        for member in callbacks_beside(self):
            if isinstance(member, keras.callbacks.BackupAndRestore):
                # They count batches from one `fit` to the next.
                self._backups.append(known.get(id(member)) or BackupCalendar(member))
            elif member is self:
                self._backup_before = bool(self._backups)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        super().on_epoch_begin(epoch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        # Every one is asked, as each counts.
        due = [backup.due_after_batch(batch) for backup in self._backups]
        if self._snapshots is not None and any(due):
            self._snapshots.wait()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        due = [backup.due_after_epoch() for backup in self._backups]
        if self._snapshots is not None and any(due):
            self._snapshots.wait()

    def on_train_end(self, logs: Any = None) -> None:
        snapshots, self._snapshots = self._snapshots, None
        if snapshots is not None:
            snapshots.wait()

    def at_step(self, step: int) -> None:
        if self._snapshots is None:
            self._snapshots = self._open(step)
        self._snapshots.check()
        if self.timetable.due(step):
            self._snapshots.write(step, only_finite=True)
            if self._backup_before:
                self._snapshots.wait()

    def _open(self, step: int) -> ModelSnapshots:
        total = self._total_steps(step)
        snapshots = ModelSnapshots(self.model, self.folder, self.timetable, self.encoding, total)
        later = [one for one in snapshots.writer.steps() if one > step]
        if later and self.counter is not None and not self.counter.is_known:
            raise ValueError(
                f"`folder` holds snapshots up to step {later[-1]}, and no optimizer counts the "
                "steps of this model, so that they may be of this training or of another. Give "
                f"another folder. Received: folder={str(self.folder)!r}"
            )
        snapshots.writer.forget_after(step)
        return snapshots

    def _total_steps(self, step: int) -> int | None:
        """Optimizer steps at the end of training, at most; None where Keras does not know."""
        params = self.params or {}
        if params.get("steps") and params.get("epochs"):
            # "epochs" counts from the very first one; this fit may have begun at a later one.
            return step + params["steps"] * (params["epochs"] - self._epoch)
        return None
