"""Writes the numbers of a run of the training loop."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

from tf_lrtraj.training.evaluation import Result
from tf_lrtraj.training.loggers import RunLoggers
from tf_lrtraj.training.metric_rows import RunRows


class RunLog:
    """Writes the rows of a run, and sends them to its loggers.

    Args:
        workdir: the run's folder.
        step: the step at which the run starts or resumes; rows of later steps are removed.
        steps_per_epoch: number of steps of an epoch, for the `epoch` of each row.
        learning_rate: step → the rate of the update made at that step.
        batch_size: the global batch size, for images per second.
        loggers: the loggers of the run; None for none.
        writer: whether this process writes (the chief of several workers).
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        step: int,
        steps_per_epoch: float,
        learning_rate: Callable[[int], float],
        batch_size: int,
        loggers: RunLoggers | None = None,
        writer: bool = True,
    ) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._learning_rate = learning_rate
        self._batch_size = batch_size
        self._rows = RunRows(workdir, step, loggers) if writer else None

    def train(self, step: int, means: dict[str, float]) -> None:
        """Writes means over the training batches since the previous row, by name."""
        if self._rows is not None:
            rate = self._learning_rate(step - 1)
            self._rows.train(step, step / self._steps_per_epoch, rate, means)

    def evaluation(
        self, step: int, split: str, weights: str, batch_norm: str, result: Result
    ) -> None:
        """Writes one evaluation of one set of weights."""
        if self._rows is not None:
            about = {"split": split, "weights": weights, "batch_norm": batch_norm}
            fields = {**about, **result.values, "examples": result.examples}
            self._rows.evaluation(step, step / self._steps_per_epoch, fields)

    def speed(self, step: int, steps: int, seconds: float) -> None:
        """Writes the duration of the last `steps` steps."""
        if self._rows is not None and seconds > 0:
            self._rows.timing(step, seconds, steps * self._batch_size)

    def mark(self) -> dict[str, Any] | None:
        """Returns size and checksum of the rows written so far; None if none are written."""
        return None if self._rows is None else self._rows.mark()

    def sync(self) -> None:
        """Syncs all rows to disk before a checkpoint that relies on them."""
        if self._rows is not None:
            self._rows.sync()

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()
