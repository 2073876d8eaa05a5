"""What `WeightAveraging` must know of the other callbacks in the same `fit`.

Keras calls callbacks in the order of their list, and tells none of them about
the others.  Two things depend on the order: metrics of averages must be in the
epoch's `logs` before other callbacks read them, and the averages must be saved
in step with `keras.callbacks.BackupAndRestore`, which knows only the model.
"""

from __future__ import annotations

import inspect
import io
import pathlib
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.records import write_atomically
from tf_lrtraj.records.archives import load_arrays


def callbacks_beside(callback: Any) -> list[Any]:
    """The callbacks of the running `fit`, in order, as seen from one of its hooks.

    A callback is not told what list it stands in, so this looks for the
    `CallbackList` among the callers.  Empty where there is none (a custom loop
    that calls the hooks itself).
    """
    frame = inspect.currentframe()
    try:
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, keras.callbacks.CallbackList):
                members = list(owner.callbacks)
                return members if any(member is callback for member in members) else []
            frame = frame.f_back
        return []
    finally:
        del frame  # frames keep everything in them alive


def check_order(callback: Any, members: Sequence[Any], monitored: Iterable[str]) -> None:
    """Raises an error if a callback that depends on `callback` comes before it.

    Args:
        callback: the `WeightAveraging`.
        members: all callbacks, in order.
        monitored: beginnings of the names that `callback` adds to `logs`; empty
            if it adds none.

    Raises:
        ValueError: naming the callback that must come later.
    """
    prefixes = tuple(monitored)
    readers = (keras.callbacks.TensorBoard, keras.callbacks.CSVLogger, keras.callbacks.History)
    for other in members:
        if other is callback:
            return
        if isinstance(other, keras.callbacks.BackupAndRestore):
            reason = "saves the model before the averages of that step are there"
        elif prefixes and str(getattr(other, "monitor", "")).startswith(prefixes):
            reason = f"reads {other.monitor!r} before it is there"
        elif prefixes and isinstance(other, readers):
            reason = "writes the epoch's metrics before those of the averages are there"
        elif getattr(other, "swap_on_epoch", False):
            reason = "has put its own average into the model at the end of an epoch"
        else:
            continue
        raise ValueError(
            f"`callbacks` must list {type(callback).__name__} before {type(other).__name__}, which "
            f"{reason}. Received: callbacks={[type(member).__name__ for member in members]}"
        )


def checksum(variables: Sequence[Any]) -> int:
    """CRC-32 of the bytes of Keras variables: tells whether weights are those of a saved state."""
    value = 0
    for array in backend.to_numpy(backend.values(variables)):
        value = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, value)
    return value


class Backup:
    """Saves the averages in step with a `keras.callbacks.BackupAndRestore`.

    A state is a file in the same folder, so it is deleted when Keras deletes
    its own.  It is written just before Keras saves the model, under the count
    of the optimizer's iterations, and the one before it is kept: whenever the
    process is killed, one of the two belongs to the model that Keras saved.

    Args:
        keras_backup: the callback whose `backup_dir` and `save_freq` are followed.

    Raises:
        ValueError: if `backup_dir` is not on a local file system.
    """

    PREFIX = "weight_averaging"

    def __init__(self, keras_backup: Any) -> None:
        folder = str(keras_backup.backup_dir)
        if "://" in folder:
            raise ValueError(
                "The averages can be saved beside BackupAndRestore on a local file system only. "
                f"Received: backup_dir={folder!r}"
            )
        self.followed = keras_backup
        self.folder = pathlib.Path(folder)
        self._kept = 3 if getattr(keras_backup, "double_checkpoint", False) else 2
        self._batches = 0

    def due_after_batch(self) -> bool:
        """Whether Keras is about to save after this batch; to be asked once per batch."""
        if self.followed.save_freq == "epoch":
            return False
        self._batches += 1
        if self._batches < self.followed.save_freq:
            return False
        self._batches = 0
        return True

    def due_after_epoch(self) -> bool:
        """Whether Keras is about to save at the end of the epoch."""
        return self.followed.save_freq == "epoch"

    def _path(self, iterations: int) -> pathlib.Path:
        return self.folder / f"{self.PREFIX}.{iterations}.npz"

    def write(self, iterations: int, arrays: dict[str, Any]) -> None:
        """Writes a state, whole or not at all, and deletes those no longer needed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_atomically(self._path(iterations), content.getvalue())
        states = {int(path.name.split(".")[1]): path for path in self._files()}
        # Later states are of a training that was given up.
        kept = sorted(count for count in states if count <= iterations)[-self._kept :]
        for count in set(states) - set(kept):
            states[count].unlink()

    def _files(self) -> list[pathlib.Path]:
        return list(self.folder.glob(f"{self.PREFIX}.*.npz"))

    def read(self, iterations: int) -> dict[str, np.ndarray] | None:
        """The state written at this count of iterations; None if there is none."""
        path = self._path(iterations)
        if not path.exists():
            return None
        return load_arrays(path, largest=None)
