"""Writes the files of a run that `fit` trains."""

from __future__ import annotations

import contextlib
import datetime
import pathlib
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

import tf_lrtraj
from tf_lrtraj import backend, records
from tf_lrtraj.training.loggers import LoggedRun, RunLoggers
from tf_lrtraj.training.metric_rows import RunRows
from tf_lrtraj.training.rate_record import RateRecord


def now() -> str:
    """Returns the time in UTC in the format of `run.json`."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Returns the versions of the libraries of a run, and the backend of Keras."""
    name = backend.name()
    return {
        "tf_lrtraj": tf_lrtraj.__version__,
        "python": platform.python_version(),
        "keras": keras.__version__,
        "numpy": np.__version__,
        name: str(sys.modules[name].__version__),
        "backend": name,
    }


def parameters(model: Any) -> int:
    """Returns the number of trainable weights of a model."""
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


class RunFiles:
    """Writes the files of a run's workdir; see docs/records.md.

    Args:
        workdir: the run's folder.
        held: resources to release at the end, such as the workdir's lock.
        earlier: the previous content of `run.json`, or an empty dict.
        loggers: checked loggers, which receive every row.

    Attributes:
        planned: updates at the end of the run; None if unknown.
        description: the content of `run.json`.
        rows_at: step of the last row of training means.
        rates: the rate of every update.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        held: contextlib.ExitStack,
        earlier: dict[str, Any],
        loggers: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.workdir, self.earlier = workdir, earlier
        self.planned: int | None = None
        self.description: dict[str, Any] = {}
        self.rows_at = 0
        self.rates = RateRecord(None)
        self._held = held
        self._rows: RunRows | None = None
        self._entries = loggers
        self._loggers: RunLoggers | None = None
        self._clock, self._timed_at = time.monotonic(), 0
        self._ended = False

    def begin(
        self,
        config: Mapping[str, Any],
        description: dict[str, Any],
        step: int,
        rates: RateRecord,
    ) -> None:
        """Writes configuration, description and schedule, and opens the rows at `step`.

        Rows of later steps are removed, because these steps are run again.
        """
        self.description, self.rates = description, rates
        path = self.workdir / records.SCHEDULE
        earlier = records.read_schedule(path) if self.earlier and path.exists() else np.zeros(0)
        planned = rates.begin(step, self.planned, earlier)
        records.write_json(self.workdir / records.CONFIG, config)
        records.write_json(self.workdir / records.RUN, description)
        if planned is not None:
            records.write_schedule(path, planned)
        self._loggers = RunLoggers(self._entries, LoggedRun(self.workdir, config, description))
        self._rows = RunRows(self.workdir, step, self._loggers)
        self._held.callback(self._rows.close)
        self._clock, self._timed_at, self.rows_at = time.monotonic(), step, step

    def train_row(self, step: int, epoch: float, rate: float, means: Mapping[str, float]) -> None:
        """Writes training means over the steps since the previous row."""
        if self._rows is not None:
            self._rows.train(step, epoch, rate, means)
        self.rows_at = step

    def eval_row(self, step: int, epoch: float, fields: Mapping[str, Any]) -> None:
        """Writes one evaluation of one set of weights."""
        if self._rows is not None:
            self._rows.evaluation(step, epoch, fields)

    def timing_row(self, step: int, batch_size: int | None) -> None:
        """Writes the duration of the steps since the last such row, evaluations included."""
        now = time.monotonic()
        seconds, steps = now - self._clock, step - self._timed_at
        if self._rows is not None and seconds > 0.0 and steps > 0:
            self._rows.timing(step, seconds, None if batch_size is None else steps * batch_size)
        self._clock, self._timed_at = now, step

    def end(self, status: str, message: str | None = None) -> None:
        """Writes the final status and closes the files; only the first call has an effect."""
        if self._ended:
            return
        self._ended = True
        try:
            if self.description:  # training had begun
                noted = self.rates.noted()
                path = self.workdir / records.SCHEDULE
                if status != "interrupted" or not path.exists():
                    records.write_schedule(path, noted)
                self.description.update(status=status, message=message)
                records.write_json(self.workdir / records.RUN, self.description)
            if self._loggers is not None:
                self._loggers.finish(status)
        finally:
            self._held.close()
