"""Writes the numbers of a run: `metrics.jsonl`, `timing.jsonl` and TensorBoard events."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_lrtraj.training.evaluation import Result
from tf_lrtraj.training.file_errors import as_os_errors
from tf_lrtraj.training.metric_rows import RunRows


class RunLog:
    """Writes the rows of a run, and TensorBoard events.

    Args:
        workdir: the run's folder.
        step: the step at which the run starts or resumes; rows of later steps are removed.
        steps_per_epoch: number of steps of an epoch, for the `epoch` of each row.
        learning_rate: step → the rate of the update made at that step.
        batch_size: the global batch size, for images per second.
        tensorboard: whether to write TensorBoard events too.
        writer: whether this process writes (the chief of several workers).
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        step: int,
        steps_per_epoch: float,
        learning_rate: Callable[[int], float],
        batch_size: int,
        tensorboard: bool = True,
        writer: bool = True,
    ) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._learning_rate = learning_rate
        self._batch_size = batch_size
        self._rows = RunRows(workdir, step) if writer else None
        self._folder = workdir / "tensorboard"
        self._events = None
        if writer and tensorboard:
            with as_os_errors(self._folder):
                self._events = tf.summary.create_file_writer(str(self._folder))

    def train(self, step: int, means: dict[str, float]) -> None:
        """Writes means over the training batches since the previous row, by name."""
        rate = self._learning_rate(step - 1)
        if self._rows is not None:
            self._rows.train(step, step / self._steps_per_epoch, rate, means)
        values = {"learning_rate": rate, **means}
        self._scalars(step, {f"train/{key}": value for key, value in values.items()})

    def evaluation(
        self, step: int, split: str, weights: str, batch_norm: str, result: Result
    ) -> None:
        """Writes one evaluation of one set of weights."""
        values = result.values
        if self._rows is not None:
            about = {"split": split, "weights": weights, "batch_norm": batch_norm}
            fields = {**about, **values, "examples": result.examples}
            self._rows.evaluation(step, step / self._steps_per_epoch, fields)
        self._scalars(step, {f"{split}/{weights}/{key}": value for key, value in values.items()})

    def speed(self, step: int, steps: int, seconds: float) -> None:
        """Writes the duration of the last `steps` steps."""
        if self._rows is not None and seconds > 0:
            images = steps * self._batch_size
            self._rows.timing(step, seconds, images)
            self._scalars(step, {"images_per_second": images / seconds})

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self._events is not None:
            with as_os_errors(self._folder), self._events.as_default():
                for name, value in values.items():
                    tf.summary.scalar(name, value, step=step)

    def mark(self) -> dict[str, Any] | None:
        """Returns size and checksum of the rows written so far; None if none are written."""
        return None if self._rows is None else self._rows.mark()

    def sync(self) -> None:
        """Syncs all rows to disk before a checkpoint that relies on them."""
        if self._rows is not None:
            self._rows.sync()
        if self._events is not None:
            with as_os_errors(self._folder):
                self._events.flush()

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()
        if self._events is not None:
            with as_os_errors(self._folder):
                self._events.close()
