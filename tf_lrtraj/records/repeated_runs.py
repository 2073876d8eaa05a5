"""Runs that differ in their seed alone, read as one record."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_lrtraj.records.files import PathLike, RecordError
from tf_lrtraj.records.run import RAW, RUN, RunRecord, flatten, load_run

_STATES = ("diverged", "incomplete", "interrupted", "done")  # the first that occurs is shown
# Settings in which repetitions may differ: the seed, and where the data are.
_FREE = ("seed", "data.dir")


class RepeatedRuns(RunRecord):
    """The records of runs that differ in their seed alone; `load_record` reads them.

    `series`, `train_series` and `bounds` combine the runs at the steps that all of them have.
    `all_rows` holds the rows of all runs; `run` and `config` are those of the first, with the seeds
    of all.
    """

    def series(
        self, metric: str, weights: str = RAW, split: str = "test", batch_norm: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the means of `RunRecord.series` over the runs."""
        steps, values = _common(
            [run.series(metric, weights, split, batch_norm) for run in self.runs]
        )
        return steps, values.mean(axis=0)

    def bounds(self, metric: str, weights: str = RAW, split: str = "test") -> np.ndarray | None:
        """Returns the [2, K] lowest and highest values of the runs at the steps of `series`."""
        _, values = _common([run.series(metric, weights, split) for run in self.runs])
        return np.stack([values.min(axis=0), values.max(axis=0)])

    def train_series(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the means of `RunRecord.train_series` over the runs."""
        steps, values = _common([run.train_series(metric) for run in self.runs])
        return steps, values.mean(axis=0)

    def last_step(self) -> int:
        """Returns the last step that every run has reached."""
        return min(run.last_step() for run in self.runs)

    def schedule(self) -> np.ndarray | None:
        """Returns the [T] rates of every update, the same for every seed."""
        return self.runs[0].schedule()

    def timing(self) -> list[dict[str, Any]]:
        """Returns the rows of wall-clock times of all runs."""
        return [row for run in self.runs for row in run.timing()]

    def matched_dirs(self) -> dict[str, pathlib.Path]:
        """Returns {average: the first run's matched run} for those that all runs have."""
        first, *others = (run.matched_dirs() for run in self.runs)
        return {name: path for name, path in first.items() if all(name in o for o in others)}

    def matched_record(self, name: str) -> RunRecord:
        """Returns the matched runs of an average as one record."""
        return _repeated(self.workdir, [run.matched_record(name) for run in self.runs])


def _common(
    series: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ([K] steps that all series have, [runs, K] their values)."""
    steps = series[0][0]
    for others, _ in series[1:]:
        steps = np.intersect1d(steps, others)
    return steps, np.stack([values[np.isin(own, steps)] for own, values in series])


def _repeated(folder: pathlib.Path, runs: Sequence[RunRecord]) -> RepeatedRuns:
    first, *others = runs
    names = [run.workdir.relative_to(folder).parts[0] for run in runs]
    compared = flatten(first.config)
    for run, name in zip(others, names[1:], strict=True):
        other = flatten(run.config)
        for key in dict.fromkeys([*compared, *other]):
            if key not in _FREE and compared.get(key) != other.get(key):
                raise RecordError(
                    f"{folder} holds runs that are no repetitions of one another: {key} is "
                    f"{json.dumps(compared.get(key))} in {names[0]} and "
                    f"{json.dumps(other.get(key))} in {name}. Only config.seed may differ; draw "
                    "the report of each run by itself."
                )
    states = {run.status for run in runs}
    messages = [
        f"{name}: {run.run['message']}"
        for name, run in zip(names, runs, strict=True)
        if run.run.get("message")
    ]
    content = first.run | {
        "status": next(state for state in _STATES if state in states),
        "seed": ", ".join(str(run.run.get("seed")) for run in runs),
        "message": "; ".join(messages) or None,
        "resumed_at": sorted({step for run in runs for step in run.run.get("resumed_at", [])}),
    }
    rows = [row for run in runs for row in run.all_rows]
    return RepeatedRuns(folder, first.config, content, rows, tuple(runs))


def load_record(folder: PathLike) -> RunRecord:
    """Reads a workdir, or a folder whose subfolders are the workdirs of repeated runs.

    Repetitions differ in `config.seed` alone.  Their record, a `RepeatedRuns`, has the means over
    the runs.  A folder with one run in a subfolder is read as that run.

    Raises:
        RecordError: if the folder holds no run, the runs differ in more than the seed, or a file is
            damaged; it names the file or the setting.
    """
    path = pathlib.Path(folder)
    if path.is_dir() and not (path / RUN).is_file():
        runs = [load_run(file.parent) for file in sorted(path.glob(f"*/{RUN}"))]
        if len(runs) == 1:
            return runs[0]
        if runs:
            return _repeated(path, runs)
        raise RecordError(
            f"{path} holds no {RUN}, nor do its subfolders: it is not the workdir of a run."
        )
    return load_run(path)
