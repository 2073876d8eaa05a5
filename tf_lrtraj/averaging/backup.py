"""Averages on disk, in step with `keras.callbacks.BackupAndRestore`."""

from __future__ import annotations

import io
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.records import scheme_of, write_atomically
from tf_lrtraj.records.archives import load_arrays


def checksum(variables: Sequence[Any]) -> int:
    """CRC-32 of the bytes of Keras variables: tells whether weights are those of a saved state."""
    value = 0
    for array in backend.to_numpy(backend.values(variables)):
        value = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, value)
    return value


def to_npz(arrays: Mapping[str, Any]) -> bytes:
    """The content of an `.npz` file."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


class Backup:
    """Saves the averages in step with a `keras.callbacks.BackupAndRestore`.

    A state is a file in the same folder, so it is deleted when Keras deletes
    its own.  It is written just before Keras saves the model, with a checksum of the weights,
    and the one before it is kept: whenever the process is killed, one of the two
    belongs to the model that Keras saved.

    Args:
        keras_backup: the callback whose `backup_dir` and `save_freq` are followed.

    Raises:
        ValueError: if `backup_dir` is not on a local file system.
    """

    PREFIX = "weight_averaging"

    def __init__(self, keras_backup: Any) -> None:
        folder = str(keras_backup.backup_dir)
        if scheme_of(folder) is not None:
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

    def write(self, num_updates: int, arrays: dict[str, Any]) -> None:
        """Writes a state, whole or not at all, and deletes those no longer needed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"{self.PREFIX}.{num_updates}.npz", to_npz(arrays))
        states = {int(path.name.split(".")[1]): path for path in self.files()}
        # Later states are of a training that was given up.
        kept = sorted(count for count in states if count <= num_updates)[-self._kept :]
        for count in set(states) - set(kept):
            states[count].unlink()

    def files(self) -> list[pathlib.Path]:
        """The states that are there."""
        return list(self.folder.glob(f"{self.PREFIX}.*.npz"))

    def read(self, weights: int) -> dict[str, np.ndarray] | None:
        """The state of the averages that was written with these weights; None if there is none.

        Args:
            weights: their `checksum`.
        """
        for path in self.files():
            stored = load_arrays(path, largest=None)
            if int(stored.get("checksum", -1)) == weights:
                return stored
        return None
