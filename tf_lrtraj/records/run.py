"""A run's workdir: its schedule, its folders, and reading all of it back."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

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
# What batch-norm statistics averaged weights get; `backend.batch_norm` says what they mean.
BATCH_NORM_POLICIES = ("recompute", "average", "copy")

CONFIG = "config.json"
RUN = "run.json"
METRICS = "metrics.jsonl"
SCHEDULE = "schedule.npz"
TIMING = "timing.jsonl"
MATCHED = "matched"

# Bytes of the rates of the longest run that a configuration may ask for, and more.
_LARGEST_SCHEDULE = 1 << 30
_ROW_FIELDS = ("kind", "weights", "split")

_SAFE_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+=-]{0,62}[A-Za-z0-9_+=-])?")


# --- The schedule -------------------------------------------------------------------------


def write_schedule(path: PathLike, learning_rates: np.ndarray) -> None:
    """Writes the rate of every update, [T], to `schedule.npz`.

    Raises:
        ValueError: if `learning_rates` is not a vector.
    """
    rates = np.asarray(learning_rates, dtype=np.float64)
    if rates.ndim != 1:
        raise ValueError(f"`learning_rates` must be a vector. Received: shape={rates.shape}")
    save_arrays(path, {"learning_rates": rates})


def read_schedule(path: PathLike) -> np.ndarray:
    """[T] float64 rates that `write_schedule` wrote.

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
    """Returns `name` if it may name an average (it also names a folder), or raises ValueError.

    Args:
        name: to check.
        what: is named, for the error: probes follow the same rule.

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
            f"{RAW!r}, 'NaN' or 'Infinity'. Received: {name!r}"
        )
    return name


def matched_dir(workdir: PathLike, average: str) -> pathlib.Path:
    """The workdir of the run under the schedule equivalent to `average`.

    Raises:
        ValueError: if `average` is not a name an average may have.
    """
    return pathlib.Path(workdir) / MATCHED / check_average_name(average)


def prepare_workdir(workdir: PathLike) -> pathlib.Path:
    """Makes `workdir` if needed and makes sure that files can be written there.

    Raises:
        RecordError: if it cannot be made or written (the reason and the remedy are named).
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
    """While it lasts, no other process can hold `workdir` so.

    The folder itself is locked, not a file in it, so nothing is left behind; the system lets go
    of the lock when the process ends, however it ends.  Where the system or the file system
    knows no such locks nothing is checked.

    Args:
        workdir: the folder.
        shared: let others hold it that share it too, as processes do of which each writes
            files of its own.

    Raises:
        RecordError: if another process holds it.
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
    """While it lasts, other processes that want the same wait: for reading and writing one file.

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
    """A lock that another process has."""


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or (not value and prefix):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flatten(item, f"{prefix}.{key}" if prefix else key))
    return flat


def check_workdir_matches(
    workdir: PathLike,
    config: Mapping[str, Any],
    complete: Callable[[Any], Any] | None = None,
) -> None:
    """Makes sure that a workdir already in use belongs to this very configuration.

    Passes when the workdir holds no `config.json` yet.

    Args:
        workdir: of a run.
        config: what is asked for.
        complete: fills in what the stored configuration lacks, because an earlier version,
            which wrote it, had no such settings; if it raises ValueError, nothing is filled in.

    Raises:
        RecordError: if its `config.json` differs; the keys and both values are named.
        TypeError: if `config` holds what no record can.
    """
    path = pathlib.Path(workdir) / CONFIG
    if not path.exists():
        return
    stored = read_json(path, dict[str, Any])
    if complete is not None:
        with contextlib.suppress(ValueError):
            stored = complete(stored)
    old, new = _flatten(encode(stored)), _flatten(encode(config))
    keys = [key for key in {**old, **new} if old.get(key, ...) != new.get(key, ...)]
    if not keys:
        return

    def show(values: dict[str, Any], key: str) -> str:
        return json.dumps(values[key]) if key in values else "(absent)"

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
        run: what `run.json` says: status, versions, seed, averages, and so on.
        all_rows: every row of `metrics.jsonl`, in the order written.
    """

    workdir: pathlib.Path
    config: dict[str, Any]
    run: dict[str, Any]
    all_rows: list[dict[str, Any]]

    @property
    def status(self) -> str:
        return self.run["status"]

    @property
    def averages(self) -> dict[str, dict[str, Any]]:
        """{name: configuration of its kernel} of the averages kept during the run."""
        return self.run.get("averages") or {}

    def rows(
        self, kind: str | None = None, weights: str | None = None, split: str | None = None
    ) -> list[dict[str, Any]]:
        """Rows whose fields equal the values asked for; None asks for nothing."""
        return self._rows_by_fields.get((kind, weights, split), [])

    @functools.cached_property
    def _rows_by_fields(self) -> dict[tuple[str | None, ...], list[dict[str, Any]]]:
        """(kind, weights, split), each or None for any → rows; looked up thousands of times."""
        found: dict[tuple[str | None, ...], list[dict[str, Any]]] = {(None, None, None): []}
        for row in self.all_rows:
            values = [(None,) if row.get(k) is None else (None, row[k]) for k in _ROW_FIELDS]
            for key in itertools.product(*values):
                found.setdefault(key, []).append(row)
        return found

    def weights_names(self) -> list[str]:
        """Names of the weights that were evaluated: raw first, then as in `averages`."""
        return list(self._weights_names)

    @functools.cached_property
    def _weights_names(self) -> list[str]:
        seen = dict.fromkeys(row["weights"] for row in self.rows("eval") if "weights" in row)
        known = dict.fromkeys([RAW, *self.averages])
        return [name for name in known if name in seen] + [n for n in seen if n not in known]

    def splits(self) -> list[str]:
        """Names of the splits that were evaluated, in the order met."""
        return list(dict.fromkeys(row["split"] for row in self.rows("eval") if "split" in row))

    def series(
        self,
        metric: str,
        weights: str = RAW,
        split: str = "test",
        batch_norm: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Evaluations of one metric over the run.

        Where the same weights were evaluated under several batch-norm policies and
        none is asked for, the one met first in the record counts.

        Returns:
            ([K] int64 steps, strictly rising, [K] float64 values); K = 0 where none were made.
        """
        rows = [row for row in self.rows("eval", weights, split) if row.get(metric) is not None]
        if rows and batch_norm is None:
            batch_norm = rows[0].get("batch_norm")
        points = {
            row["step"]: float(row[metric]) for row in rows if row.get("batch_norm") == batch_norm
        }
        steps = sorted(points)
        return (
            np.array(steps, dtype=np.int64),
            np.array([points[step] for step in steps], dtype=np.float64),
        )

    def train_series(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """A metric of the training batches (or `learning_rate`) against steps; as `series`."""
        points = {
            row["step"]: float(row[metric])
            for row in self.rows("train")
            if row.get(metric) is not None
        }
        steps = sorted(points)
        return (
            np.array(steps, dtype=np.int64),
            np.array([points[step] for step in steps], dtype=np.float64),
        )

    def last_step(self) -> int:
        """The largest step any row speaks of; 0 where there is none."""
        return max((row["step"] for row in self.all_rows), default=0)

    @functools.cached_property
    def _schedule(self) -> np.ndarray | None:
        path = self.workdir / SCHEDULE
        return read_schedule(path) if path.exists() else None

    def schedule(self) -> np.ndarray | None:
        """[T] rates of every update, or None where the record was not written.

        Raises:
            RecordError: if the file is damaged.
        """
        return self._schedule

    def timing(self) -> list[dict[str, Any]]:
        """Wall-clock rows; empty where none were written."""
        path = self.workdir / TIMING
        return read_rows(path, TimingRow) if path.exists() else []

    def matched_dirs(self) -> dict[str, pathlib.Path]:
        """{average: workdir of its matched run} of the matched runs that were started.

        Folders whose name no average may have, or that lead out of the workdir, are left out.
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

    def matched(self) -> dict[str, RunRecord]:
        """{average: record of its matched run}.

        Raises:
            RecordError: if one of them is damaged.
        """
        return {name: load_run(path) for name, path in self.matched_dirs().items()}


def read_run(workdir: PathLike) -> dict[str, Any]:
    """What `run.json` of a workdir says; empty where there is none.

    Raises:
        RecordError: if it is damaged, or of a format that this version cannot read.
    """
    path = pathlib.Path(workdir) / RUN
    found: dict[str, Any] = read_json(path, Run) if path.exists() else {}
    return found


def load_run(workdir: PathLike) -> RunRecord:
    """Reads a workdir; a run that has no rows yet has an empty record.

    Raises:
        RecordError: if `workdir` holds no run, or a file is damaged (it is named).
    """
    path = pathlib.Path(workdir)
    if not (path / RUN).is_file():
        what = "is not a folder" if not path.is_dir() else f"holds no {RUN}"
        raise RecordError(f"{path} {what}, so it is not the workdir of a run.")
    run, config = read_run(path), read_json(path / CONFIG, dict[str, Any])
    metrics = path / METRICS
    rows = read_rows(metrics, MetricsRow) if metrics.exists() else []
    return RunRecord(path, config, run, rows)
