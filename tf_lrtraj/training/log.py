"""Where the numbers of a run go: `metrics.jsonl`, `timing.jsonl` and TensorBoard events."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import logging

from tf_lrtraj.records import METRICS, TIMING, MetricsWriter, RecordError, remove_leftovers
from tf_lrtraj.training.disk import as_os_errors
from tf_lrtraj.training.evaluation import Result


def _open_timing(path: pathlib.Path, step: int) -> MetricsWriter:
    """Opens the record of wall-clock times, which no run should fail for."""
    try:
        return MetricsWriter(path, resume_step=step)
    except RecordError as error:
        logging.warning("%s Earlier times are dropped.", error)
        path.unlink()
        return MetricsWriter(path)


class RunLog:
    """Writes the rows of a run.

    Wall-clock values go to another file, so that `metrics.jsonl` holds
    only what the seed and the configuration decide.

    Args:
        workdir: the run's folder.
        step: where the run starts or goes on; rows of later steps are dropped.
        steps_per_epoch: for the `epoch` of each row.
        learning_rate: step → the rate of the update made at that step.
        batch_size: global, for images per second.
        tensorboard: whether to write TensorBoard events too.
        writer: whether this process writes at all (the chief of several workers).

    Opening it deletes what killed processes left half-written in the folder.
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
        if writer:
            remove_leftovers(workdir)
        self._steps_per_epoch = steps_per_epoch
        self._learning_rate = learning_rate
        self._batch_size = batch_size
        self._metrics = MetricsWriter(workdir / METRICS, resume_step=step) if writer else None
        self._timing = _open_timing(workdir / TIMING, step) if writer else None
        self._folder = workdir / "tensorboard"
        self._events = None
        if writer and tensorboard:
            with as_os_errors(self._folder):
                self._events = tf.summary.create_file_writer(str(self._folder))

    def train(self, step: int, loss: float, accuracy: float) -> None:
        """Means over the training batches since the previous row."""
        rate = self._learning_rate(step - 1)
        values = {"learning_rate": rate, "loss": loss, "accuracy": accuracy}
        self._write({"kind": "train", **self._when(step), **values})
        self._scalars(step, {f"train/{key}": value for key, value in values.items()})

    def evaluation(
        self, step: int, split: str, weights: str, batch_norm: str, result: Result
    ) -> None:
        """One evaluation of one set of weights."""
        values = {"loss": result.loss, "accuracy": result.accuracy}
        self._write(
            {
                "kind": "eval",
                **self._when(step),
                "split": split,
                "weights": weights,
                "batch_norm": batch_norm,
                **values,
                "examples": result.examples,
            }
        )
        self._scalars(step, {f"{split}/{weights}/{key}": value for key, value in values.items()})

    def speed(self, step: int, steps: int, seconds: float) -> None:
        """How long the last `steps` steps took."""
        if self._timing is None or seconds <= 0:
            return
        images = steps * self._batch_size / seconds
        self._timing.write({"step": step, "seconds": seconds, "images_per_second": images})
        self._scalars(step, {"images_per_second": images})

    def _when(self, step: int) -> dict[str, Any]:
        return {"step": step, "epoch": step / self._steps_per_epoch}

    def _write(self, row: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(row)

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self._events is not None:
            with as_os_errors(self._folder), self._events.as_default():
                for name, value in values.items():
                    tf.summary.scalar(name, value, step=step)

    def mark(self) -> dict[str, Any] | None:
        """What tells whether the rows written so far are whole; None where none are written."""
        return None if self._metrics is None else self._metrics.mark()

    def sync(self) -> None:
        """Puts everything on the disk before a checkpoint that relies on it."""
        if self._metrics is not None and self._timing is not None:
            self._metrics.sync()
            self._timing.sync()
        if self._events is not None:
            with as_os_errors(self._folder):
                self._events.flush()

    def close(self) -> None:
        for writer in (self._metrics, self._timing):
            if writer is not None:
                writer.close()
        if self._events is not None:
            with as_os_errors(self._folder):
                self._events.close()
