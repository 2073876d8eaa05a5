"""`SnapshotRecorder`: a Keras callback that writes snapshots to disk during training."""

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

# Snapshots in memory: one that is being written, and one that waits.
_BUFFERS = 2


def recorded_variables(model: Any) -> list[tuple[Any, str]]:
    """Returns (variable, role) of each variable in a snapshot of `model`, in order."""
    trainable = len(model.trainable_variables)
    return [
        (variable, "trainable" if i < trainable else "statistic")
        for i, variable in enumerate(bn.weights_and_statistics(model))
    ]


class ModelSnapshots:
    """Writes snapshots of one model; the callback and the training programs use it.

    A snapshot is copied to host memory, and another thread writes it.  At most two snapshots are
    in memory, and the next one waits.  As a context manager, the object waits for all writes at
    the end of the block.

    Args:
        model: a built Keras model.
        folder, timetable, encoding: as in `SnapshotWriter`.
        total_steps: number of steps of the run; None if unknown.

    Raises:
        OSError: if the snapshots of `total_steps` need more than the free disk space.
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
                f"{needed / 1e9:.2f} GB in {folder}, but {free / 1e9:.2f} GB are free. Take them "
                "less often, limit their number, or use encoding='int16' or 'int8'."
            )

    def write(self, step: int, *, only_finite: bool = False) -> None:
        """Takes the model's current values as the snapshot of `step`.

        Args:
            step: number of updates made.
            only_finite: whether to skip the snapshot if a value is not finite; `check` and `wait`
                then issue a warning.

        Raises:
            Exception: the error of an earlier snapshot that could not be written.
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
            Exception: the error of an earlier snapshot that could not be written.
        """
        while self._skipped:
            warnings.warn(
                f"The weights at step {self._skipped.pop(0)} are not finite, so no snapshot of "
                "them is taken.",
                stacklevel=4,
            )
        self._background.check()

    def wait(self) -> None:
        """Waits until all snapshots are on disk, and then calls `check`."""
        self._background.finish()
        self.check()


def _host_memory(specs: Sequence[VariableSpec]) -> list[np.ndarray]:
    """Allocates an array for each variable, in memory that is already mapped."""
    nbytes = [spec.size * dtype_of(spec.dtype).itemsize for spec in specs]
    places = np.cumsum([0, *(-(-count // 64) * 64 for count in nbytes)]).tolist()
    whole = np.empty(places[-1], np.uint8)
    whole.fill(0)
    return [
        whole[place : place + count].view(dtype_of(spec.dtype)).reshape(spec.shape)
        for spec, place, count in zip(specs, places, nbytes, strict=False)
    ]


def most_snapshots(timetable: Timetable, total_steps: int | None) -> int | None:
    """Returns the largest number of snapshots on disk at once; None if it is unbounded."""
    counts = []
    if timetable.limit is not None:
        counts.append(timetable.limit + 1)  # a new snapshot is written before one is deleted
    if total_steps is not None:
        counts.append(max(total_steps - timetable.start, -1) // timetable.every + 1)
    return min(counts, default=None)


class SnapshotRecorder(StepCallback):
    """Writes snapshots at regular steps, for averages that are chosen after training.

    `tf_lrtraj.averaging.average_snapshots` builds averages from the snapshots.  A snapshot holds
    the trainable weights and the batch-norm statistics.  A step waits only for their copy to
    memory; another thread writes them.  If a snapshot cannot be written, the next step raises the
    error.

    All snapshots are on disk at the end of `fit`, and before `keras.callbacks.BackupAndRestore`
    saves the model, so a run that is resumed finds them.  List `BackupAndRestore` after this
    callback; otherwise every snapshot waits for the disk.

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
        folder: folder of the snapshots.  A folder with snapshots of the same model and the same
            settings is continued; snapshots later than the model's step are replaced.
        every: number of optimizer steps between snapshots.
        start: number of optimizer steps before the first snapshot.
        encoding: `"exact"`; or `"int16"` or `"int8"`, which are smaller and have a bounded error.
        limit: largest number of snapshots on disk; None for no limit.
        when_full: `"thin"` or `"drop_oldest"`, the rule at the limit; see `snapshots.Timetable`.

    Raises:
        ValueError: if a setting is out of range.
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
        self._backup_before = False  # whether a backup is listed before this callback

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        before, self._snapshots = self._snapshots, None
        self._epoch = 0
        self._follow_backups()
        if before is not None:  # a previous `fit` ended with an exception
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
        # Every calendar must be called, because each counts batches.
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
                "steps of this model, so it is unknown whether they belong to this training. Use "
                f"another folder. Received: folder={str(self.folder)!r}"
            )
        snapshots.writer.forget_after(step)
        return snapshots

    def _total_steps(self, step: int) -> int | None:
        """Returns an upper bound of the steps at the end of training; None if unknown."""
        params = self.params or {}
        if params.get("steps") and params.get("epochs"):
            # "epochs" counts from epoch 0; this `fit` may have begun at a later epoch.
            return step + params["steps"] * (params["epochs"] - self._epoch)
        return None
