"""Files of averages: a state saved by the user, and backups in step with BackupAndRestore."""

from __future__ import annotations

import json
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.averaging.other_callbacks import callbacks_beside
from tf_lrtraj.records import local_path, scheme_of
from tf_lrtraj.records.archives import load_arrays, save_arrays


def read_state(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the arrays of a saved state.

    Raises:
        ValueError: if the file is damaged.
        OSError: if the file cannot be read.
    """
    local_path(path, "path")
    try:
        return load_arrays(path, largest=None)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is not a saved state: {error}") from None


class BackupCalendar:
    """Predicts when a `keras.callbacks.BackupAndRestore` saves the model.

    Args:
        keras_backup: the callback whose `save_freq` is followed.
    """

    def __init__(self, keras_backup: Any) -> None:
        self.followed = keras_backup
        self._batches = self._last_batch = 0

    def due_after_batch(self, batch: int) -> bool:
        """Returns whether Keras saves after this batch; call it in every `on_train_batch_end`.

        Args:
            batch: the index of the last batch, as Keras passes it to callbacks.  With
                `steps_per_execution` it grows by several.
        """
        if self.followed.save_freq == "epoch":
            return False
        # In a new epoch the index begins at 0 again.
        self._batches += batch + 1 if batch <= self._last_batch else batch - self._last_batch
        self._last_batch = batch
        if self._batches < self.followed.save_freq:
            return False
        self._batches = 0
        return True

    def due_after_epoch(self) -> bool:
        """Returns whether Keras saves now; call it in every `on_epoch_end`."""
        self._last_batch = 0
        return self.followed.save_freq == "epoch"


class Backup(BackupCalendar):
    """Saves the averages in step with a `keras.callbacks.BackupAndRestore`.

    A state is a file in the folder of the backup, so Keras deletes it with its own files.  It is
    written just before Keras saves the model and contains a checksum of the weights.  The previous
    state is kept: whenever the process is killed, one of the two belongs to the saved model.

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
        super().__init__(keras_backup)
        self.folder = pathlib.Path(folder)
        self._kept = 3 if getattr(keras_backup, "double_checkpoint", False) else 2

    def write(
        self, model: Any, num_updates: int, arrays: Mapping[str, Any], best: Mapping[str, float]
    ) -> None:
        """Writes a state atomically, and deletes states that are no longer needed.

        Args:
            model: a Keras model; its random streams are saved too.
            num_updates: number of updates of the averages.
            arrays: arrays of the averages.
            best: name → best value of the monitored metric.
        """
        streams = backend.to_numpy(backend.values(_random_streams(model)))
        self.folder.mkdir(parents=True, exist_ok=True)
        save_arrays(
            self.folder / f"{self.PREFIX}.{num_updates}.npz",
            {
                **arrays,
                **{f"stream_{i}": stream for i, stream in enumerate(streams)},
                "best": np.array(json.dumps(dict(best))),
                "checksum": np.uint32(_checksum(model.weights)),
            },
            compress=False,
        )
        states = {int(path.name.split(".")[1]): path for path in self.files()}
        # Later states belong to a training that was abandoned.
        kept = sorted(count for count in states if count <= num_updates)[-self._kept :]
        for count in set(states) - set(kept):
            states[count].unlink()

    def files(self) -> list[pathlib.Path]:
        """Returns the files of the states on disk."""
        return list(self.folder.glob(f"{self.PREFIX}.*.npz"))

    def read(self, model: Any) -> dict[str, np.ndarray] | None:
        """Returns the state written with the model's current weights, or None."""
        weights = _checksum(model.weights)
        for path in self.files():
            stored = load_arrays(path, largest=None)
            if int(stored.get("checksum", -1)) == weights:
                return stored
        return None


def backup_beside(callback: Any, current: Backup | None) -> Backup | None:
    """Returns the backup in step with the first `BackupAndRestore` of the same `fit`; or None.

    Args:
        callback: a callback in the `fit`.
        current: that of an earlier `fit`, which is kept if it follows the same one.
    """
    found = [
        other
        for other in callbacks_beside(callback)
        if isinstance(other, keras.callbacks.BackupAndRestore)
    ]
    if not found:
        return None
    return current if current is not None and current.followed is found[0] else Backup(found[0])


def restore_streams(model: Any, stored: Mapping[str, Any]) -> None:
    """Restores a model's random streams from a state that `Backup.read` returned."""
    streams = _random_streams(model)
    backend.assign(streams, [stored[f"stream_{i}"] for i in range(len(streams))])


def _random_streams(model: Any) -> list[Any]:
    """Returns the variables that Keras does not save with the weights, such as dropout seeds."""
    saved = {id(variable) for variable in model.weights}
    return [v for v in model.non_trainable_variables if id(v) not in saved]


def _checksum(variables: Sequence[Any]) -> int:
    """Computes the CRC-32 of the values of Keras variables."""
    value = 0
    for array in backend.to_numpy(backend.values(variables)):
        value = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, value)
    return value
