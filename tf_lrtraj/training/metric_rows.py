"""Writes the rows of a run during training to `metrics.jsonl`, `timing.jsonl` and its loggers."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from tf_lrtraj.records import METRICS, RAW, TIMING, MetricsWriter, RecordError, remove_leftovers
from tf_lrtraj.training.loggers import RunLoggers

# Fields of an evaluation that are not metrics.
_ABOUT = ("split", "weights", "batch_norm", "examples")


class RunRows:
    """Writes the rows of a run.

    Wall-clock times are written to another file, so that `metrics.jsonl` depends only on the seed
    and the configuration.

    Args:
        workdir: the run's folder.  Incomplete files of killed processes are deleted.
        step: the step at which the run starts or resumes; rows of later steps are removed.
        loggers: receive the numbers of every row; None for no loggers.
    """

    def __init__(self, workdir: pathlib.Path, step: int, loggers: RunLoggers | None = None) -> None:
        self._loggers = loggers
        remove_leftovers(workdir)
        self._metrics = MetricsWriter(workdir / METRICS, resume_step=step)
        try:
            self._timing = MetricsWriter(workdir / TIMING, resume_step=step)
        except RecordError as error:  # a run must not fail because of its times
            logging.warning("%s Earlier times are dropped.", error)
            (workdir / TIMING).unlink()
            self._timing = MetricsWriter(workdir / TIMING)

    def train(self, step: int, epoch: float, rate: float, means: Mapping[str, float]) -> None:
        """Writes training means over the steps since the previous row."""
        row = {"kind": "train", "step": step, "epoch": epoch, "learning_rate": rate}
        self._metrics.write({**row, **means})
        self._send(step, "train/", {"learning_rate": rate, **means})

    def evaluation(self, step: int, epoch: float, fields: Mapping[str, Any]) -> None:
        """Writes one evaluation of one set of weights."""
        self._metrics.write({"kind": "eval", "step": step, "epoch": epoch, **fields})
        weights = fields["weights"]
        if weights == RAW and fields["batch_norm"].startswith("recompute"):
            weights = f"{RAW}_recomputed"  # its running statistics have rows of their own
        metrics = {key: value for key, value in fields.items() if key not in _ABOUT}
        self._send(step, f"{fields['split']}/{weights}/", metrics)

    def timing(self, step: int, seconds: float, images: int | None) -> None:
        """Writes the duration of the last steps and their number of images."""
        row: dict[str, Any] = {"step": step, "seconds": seconds}
        if images is not None:
            row["images_per_second"] = images / seconds
        self._timing.write(row)
        if images is not None:
            self._send(step, "", {"images_per_second": images / seconds})

    def _send(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        if self._loggers is not None:
            self._loggers.log(step, {f"{prefix}{key}": value for key, value in values.items()})

    def mark(self) -> dict[str, Any]:
        """Returns size and checksum of the rows written so far."""
        return self._metrics.mark()

    def sync(self) -> None:
        """Syncs all rows to disk before a checkpoint that relies on them."""
        self._metrics.sync()
        self._timing.sync()
        if self._loggers is not None:
            self._loggers.flush()

    def close(self) -> None:
        self._metrics.close()
        self._timing.close()
