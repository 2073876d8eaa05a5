"""A run's workdir: its schedule, its folders, its locks, and reading it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.records.archives import load_arrays, save_arrays
from tf_lrtraj.records.files import (
    FULL,
    PathLike,
    RecordError,
    local_path,
    naming,
    read_bytes,
    temporary_path,
)
from tf_lrtraj.records.rows import read_rows
from tf_lrtraj.records.run_shapes import MetricsRow, Run, TimingRow
from tf_lrtraj.records.shapes import NON_FINITE
from tf_lrtraj.records.strict_json import encode, read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
RAW = "raw"  # the name of the weights themselves, beside the averages' names
# Policies for the batch-norm statistics of averages; `backend.batch_norm` explains them.
BATCH_NORM_POLICIES = ("recompute", "average", "copy")

CONFIG = "config.json"
RUN = "run.json"
METRICS = "metrics.jsonl"
SCHEDULE = "schedule.npz"
TIMING = "timing.jsonl"
MATCHED = "matched"

# Largest size in bytes of the stored rates, more than the longest run needs.
_LARGEST_SCHEDULE = 1 << 30
_ROW_FIELDS = ("kind", "weights", "split")
# Columns of `metrics.jsonl` that are no metrics.
METRIC_FIELDS = (*_ROW_FIELDS, "step", "epoch", "batch_norm", "examples", "learning_rate")

_SAFE_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+=-]{0,62}[A-Za-z0-9_+=-])?")


# --- The schedule -------------------------------------------------------------------------


def write_schedule(path: PathLike, learning_rates: np.ndarray) -> None:
    """Writes the rate of every update, [T], to `schedule.npz`.

    Raises:
        ValueError: if `learning_rates` is not a vector.
    """
    rates = np.asarray(learning_rates, dtype=np.float64)
    if rates.ndim != 1:
        raise values.error("learning_rates", "a vector", rates)
    save_arrays(path, {"learning_rates": rates})


def read_schedule(path: PathLike) -> np.ndarray:
    """Reads the [T] float64 rates that `write_schedule` wrote.

    Raises:
        RecordError: if the file is missing or damaged.
    """
    data = read_bytes(path)
    try:
        rates = np.asarray(load_arrays(data, _LARGEST_SCHEDULE)["learning_rates"], dtype=np.float64)
        if rates.ndim != 1:
            raise ValueError(f"learning_rates has shape {rates.shape}")
    except (ValueError, KeyError, TypeError):
        raise RecordError(f"{os.fspath(path)} is not a schedule. The file is damaged.") from None
    return rates


# --- A workdir ----------------------------------------------------------------------------


def check_average_name(name: Any, what: str = "an average") -> str:
    """Returns `name` if an average, and its folder, may have it.

    Args:
        name: the name to check.
        what: the thing that has the name, for the error.

    Raises:
        ValueError: for another name.

    >>> check_average_name("ema-0.999")
    'ema-0.999'
    """
    if (
        not isinstance(name, str)
        or not _SAFE_NAME.fullmatch(name)
        or name == RAW
        or name in NON_FINITE
    ):
        raise ValueError(
            f"{what}'s name must be 1 to 64 of the characters A-Z a-z 0-9 . _ + = -, start "
            "with a letter, a digit or _, not end with a dot, and not be "
            f"{RAW!r}, 'NaN' or 'Infinity'. Received: {values.received(name)}"
        )
    return name


def matched_dir(workdir: PathLike, average: str) -> pathlib.Path:
    """Returns the workdir of the run under the schedule equivalent to `average`.

    Raises:
        ValueError: for a name that no average may have.
    """
    return pathlib.Path(workdir) / MATCHED / check_average_name(average)


def prepare_workdir(workdir: PathLike) -> pathlib.Path:
    """Makes `workdir` if needed and checks that files can be written there.

    Raises:
        RecordError: if it cannot be made or written; it names the reason and the remedy.
        OSError: if the disk is full; it names the folder.
    """
    try:
        path = local_path(workdir, "workdir")
    except ValueError as error:
        raise RecordError(str(error)) from None
    probe = temporary_path(path / "write-test")
    try:
        with naming(path):
            path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
    except OSError as error:
        if error.errno in FULL:
            raise
        raise RecordError(
            f"workdir {path} cannot be written ({error.strerror}). "
            "Choose another --workdir, or change its permissions."
        ) from None
    return path


@contextlib.contextmanager
def only_writer(workdir: PathLike, shared: bool = False) -> Iterator[None]:
    """Locks `workdir` for this process inside the block.

    The lock is on the folder itself, so it leaves no file, and the system always releases it when
    the process ends. On file systems without locks nothing is checked.

    Args:
        workdir: the folder.
        shared: allow other processes that share it too and write their own files.

    Raises:
        RecordError: if another process has locked it.
        OSError: if there is no such folder.
    """
    try:
        with _locked(workdir, shared, wait=False):
            yield
    except _HeldByAnother:
        raise RecordError(
            f"another process is writing to workdir {pathlib.Path(workdir)}. "
            "Wait until it ends, or choose another --workdir."
        ) from None


@contextlib.contextmanager
def one_at_a_time(folder: PathLike) -> Iterator[None]:
    """Locks a folder inside the block; other processes wait, so that they change a file in turn.

    Raises:
        OSError: if there is no such folder.
    """
    with _locked(folder, shared=False, wait=True):
        yield


@contextlib.contextmanager
def _locked(folder: PathLike, shared: bool, wait: bool) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _HeldByAnother from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


class _HeldByAnother(Exception):
    """Another process has the lock."""


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {"a.b": value} for nested dictionaries.

    >>> flatten({"a": {"b": 1}, "c": {}})
    {'a.b': 1, 'c': {}}
    """
    if not isinstance(value, dict) or (not value and prefix):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else key))
    return flat


def check_workdir_matches(
    workdir: PathLike,
    config: Mapping[str, Any],
    complete: Callable[[Any], Any] | None = None,
) -> None:
    """Checks that a workdir with a `config.json` has the same configuration.

    Args:
        workdir: the workdir of a run.
        config: the configuration of this run.
        complete: adds settings that an earlier version did not store to the stored configuration;
            if it raises ValueError, nothing is added.

    Raises:
        RecordError: if its `config.json` differs; it names the keys and both values.
        TypeError: if `config` holds a value that no record can hold.
    """
    path = pathlib.Path(workdir) / CONFIG
    if not path.exists():
        return
    stored = read_json(path, dict[str, Any])
    if complete is not None:
        with contextlib.suppress(ValueError):
            stored = complete(stored)
    old, new = flatten(encode(stored)), flatten(encode(config))
    keys = [key for key in {**old, **new} if old.get(key, ...) != new.get(key, ...)]
    if not keys:
        return

    def show(flat: dict[str, Any], key: str) -> str:
        return json.dumps(flat[key]) if key in flat else "(absent)"

    shown = [f"  {key}: there {show(old, key)}, asked {show(new, key)}" for key in keys[:20]]
    if len(keys) > len(shown):
        shown.append(f"  … and {len(keys) - len(shown)} more")
    raise RecordError(
        f"workdir {pathlib.Path(workdir)} holds a run of another configuration:\n"
        + "\n".join(shown)
        + "\nChoose another --workdir, or delete that one."
    )


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The records of one run, as `load_run` reads them.

    Attributes:
        workdir: the folder.
        config: the validated configuration.
        run: the content of `run.json`: status, versions, seed, averages, and so on.
        all_rows: the rows of `metrics.jsonl`, in the order written.
        runs: the records that this one combines (`RepeatedRuns`); empty for a single run.
    """

    workdir: pathlib.Path
    config: dict[str, Any]
    run: dict[str, Any]
    all_rows: list[dict[str, Any]]
    runs: tuple[RunRecord, ...] = ()

    @property
    def status(self) -> str:
        return self.run["status"]

    @property
    def averages(self) -> dict[str, dict[str, Any]]:
        """{name: configuration of its kernel} for the run's averages."""
        return self.run.get("averages") or {}

    def rows(
        self, kind: str | None = None, weights: str | None = None, split: str | None = None
    ) -> list[dict[str, Any]]:
        """Returns the rows of these values; None stands for any."""
        return self._rows_by_fields.get((kind, weights, split), [])

    @functools.cached_property
    def _rows_by_fields(self) -> dict[tuple[str | None, ...], list[dict[str, Any]]]:
        """(kind, weights, split), each or None for any → rows; cached for many look-ups."""
        found: dict[tuple[str | None, ...], list[dict[str, Any]]] = {(None, None, None): []}
        for row in self.all_rows:
            keys = [(None,) if row.get(k) is None else (None, row[k]) for k in _ROW_FIELDS]
            for key in itertools.product(*keys):
                found.setdefault(key, []).append(row)
        return found

    def weights_names(self) -> list[str]:
        """Returns the names of evaluated weights: raw, those of `averages`, others."""
        seen = dict.fromkeys(row["weights"] for row in self.rows("eval") if "weights" in row)
        known = dict.fromkeys([RAW, *self.averages])
        return [name for name in known if name in seen] + [n for n in seen if n not in known]

    def metrics(self) -> list[str]:
        """Returns the names of the recorded metrics: accuracy and loss, then others by name.

        A name whose values are not all numbers or null is left out.
        """
        values: dict[str, list[Any]] = {}
        for row in self.all_rows:
            for name in row.keys() - set(METRIC_FIELDS):
                values.setdefault(name, []).append(row[name])
        numeric = {name for name, found in values.items() if all(map(_is_number, found))}
        first = [name for name in ("accuracy", "loss") if name in numeric]
        return [*first, *sorted(numeric - set(first))]

    def splits(self) -> list[str]:
        """Returns the names of the splits that were evaluated, in the order of the rows."""
        return list(dict.fromkeys(row["split"] for row in self.rows("eval") if "split" in row))

    def series(
        self,
        metric: str,
        weights: str = RAW,
        split: str = "test",
        batch_norm: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the evaluations of one metric over the run.

        Without `batch_norm`, the policy of the first evaluation of these weights is used.

        Returns:
            ([K] int64 steps, strictly rising, [K] float64 values).
        """
        rows = [row for row in self.rows("eval", weights, split) if row.get(metric) is not None]
        if rows and batch_norm is None:
            batch_norm = rows[0].get("batch_norm")
        return _series(metric, (row for row in rows if row.get("batch_norm") == batch_norm))

    def bounds(self, metric: str, weights: str = RAW, split: str = "test") -> np.ndarray | None:
        """Returns the lowest and highest values of repeated runs; None for a single run."""
        return None

    def train_series(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns a metric of the training batches, or `learning_rate`, as `series` does."""
        return _series(metric, self.rows("train"))

    def last_step(self) -> int:
        """Returns the largest step of all rows, or 0."""
        return max((row["step"] for row in self.all_rows), default=0)

    def schedule(self) -> np.ndarray | None:
        """Returns the [T] rates of every update, or None if they were not recorded.

        Raises:
            RecordError: if the file is damaged.
        """
        path = self.workdir / SCHEDULE
        return read_schedule(path) if path.exists() else None

    def timing(self) -> list[dict[str, Any]]:
        """Returns the rows of wall-clock times."""
        path = self.workdir / TIMING
        return read_rows(path, TimingRow) if path.exists() else []

    def matched_dirs(self) -> dict[str, pathlib.Path]:
        """Returns {average: workdir} for the matched runs that were started.

        Folders with a name that no average may have, and those outside the workdir, are left out.
        """
        folder = self.workdir / MATCHED
        if not folder.is_dir():
            return {}
        root = self.workdir.resolve()
        found = {
            path.name: path
            for path in sorted(folder.iterdir())
            if _SAFE_NAME.fullmatch(path.name)
            and (path / RUN).is_file()
            and path.resolve().is_relative_to(root)
        }
        known = [name for name in self.averages if name in found]
        return {name: found[name] for name in dict.fromkeys([*known, *found])}

    def matched_record(self, name: str) -> RunRecord:
        """Returns the record of the matched run of an average.

        Raises:
            RecordError: if it is damaged.
        """
        return load_run(self.matched_dirs()[name])

    def matched(self) -> dict[str, RunRecord]:
        """Returns {average: record of its matched run}.

        Raises:
            RecordError: if one of them is damaged.
        """
        return {name: self.matched_record(name) for name in self.matched_dirs()}


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _series(metric: str, rows: Iterable[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns ([K] steps, strictly rising, [K] values) of the rows that have the metric."""
    points = {row["step"]: float(row[metric]) for row in rows if row.get(metric) is not None}
    steps = np.array(sorted(points), dtype=np.int64)
    return steps, np.array([points[step] for step in steps.tolist()], dtype=np.float64)


def read_run(workdir: PathLike, shape: Any = Run) -> dict[str, Any]:
    """Reads `run.json` of a workdir, of a given shape; returns {} if there is none.

    Raises:
        RecordError: if it is damaged, or of a format that this version cannot read.
    """
    path = pathlib.Path(workdir) / RUN
    found: dict[str, Any] = read_json(path, shape) if path.exists() else {}
    return found


def load_run(workdir: PathLike) -> RunRecord:
    """Reads a workdir; a run without rows has an empty record.

    Raises:
        RecordError: if `workdir` holds no run, or a file is damaged; it names the file.
    """
    path = pathlib.Path(workdir)
    if not (path / RUN).is_file():
        what = "is not a folder" if not path.is_dir() else f"holds no {RUN}"
        raise RecordError(f"{path} {what}, so it is not the workdir of a run.")
    run, config = read_run(path), read_json(path / CONFIG, dict[str, Any])
    metrics = path / METRICS
    rows = read_rows(metrics, MetricsRow) if metrics.exists() else []
    return RunRecord(path, config, run, rows)
