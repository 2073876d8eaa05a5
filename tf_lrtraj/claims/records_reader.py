"""Reads the records of a reproduction: measured rows and arrays, and probes.

Missing records raise `NotMeasured`, which the ledger shows as "not measured".  Records that are
damaged, of another shape or not finite raise a `RecordError` that names the file.  Files are named
relative to the folder, so that a ledger does not depend on the place of the folder.
"""

from __future__ import annotations

import fnmatch
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypedDict

import numpy as np

from tf_lrtraj.claims.layout import PROBES_OF, seeds_of
from tf_lrtraj.records import ArrayRecord, Count, RecordError, problem, read_json
from tf_lrtraj.records.shapes import Within
from tf_lrtraj.specs import PROBES

# Larger numbers have overflowed, or their squares would.
_LARGEST = 1e100
_SEED = re.compile(r"seed(\d+)")
_STEP = re.compile(r"-(\d+)$")


class NotMeasured(Exception):
    """Records that a claim needs are missing.

    Attributes:
        reason: a sentence about what is missing.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    @classmethod
    def files(cls, names: Iterable[str]) -> NotMeasured:
        """Returns the error for missing files, or patterns of their names."""
        first, *more = names
        rest = f" and {len(more)} more" if more else ""
        return cls(f"{first}{rest} missing.")


_Seeds = Annotated[int, Within(0, 10_000)]


class _Probes(TypedDict, total=False):
    steps: list[Count]
    trip_steps: list[Count]


class _OneStep(TypedDict, total=False):
    iterates: Count


class _Seeded(TypedDict, total=False):
    seeds: _Seeds


class ReproductionConfig(TypedDict, total=False):
    """The entries of `config.json` that the readers of a reproduction need."""

    name: str
    command: str
    seeds: _Seeds
    probe_seeds: _Seeds
    claims: list[str]
    judged: bool
    power: list[dict[str, Any]]
    pilot: str | None
    pairs: _Seeded
    speed: _Seeded
    probes: _Probes
    one_step: _OneStep
    burn_in: Count
    window: Count
    data: dict[str, Any]
    model: dict[str, Any]


class _MeasuredFile(TypedDict, total=False):
    task: str
    seed: int
    about: dict[str, Any]
    rows: list[dict[str, Any]]


class Measured:
    """One file of a task: settings, rows and arrays, each checked as it is read.

    Missing entries, and entries of another shape or not finite, raise a `RecordError` with the
    file.

    Args:
        name: the name of the file in messages.
        content: its content, read from JSON.
    """

    def __init__(self, name: str, content: Any) -> None:
        self.name = name
        wrong = problem(content, _MeasuredFile)
        if wrong is not None:
            raise RecordError(f"{name} is not a measured record: {wrong}.")
        self._content: dict[str, Any] = content
        self.about: dict[str, Any] = content.get("about", {})
        self.rows: list[dict[str, Any]] = content.get("rows", [])
        self.seed: int = content.get("seed", -1)

    def select(self, **wanted: Any) -> list[dict[str, Any]]:
        """Returns the rows in which every named field has the given value (or one of a tuple)."""
        return [row for row in self.rows if _matches(row, wanted)]

    def values(self, field: str, **wanted: Any) -> np.ndarray:
        """Returns [n] values of a field in these rows, of which there must be at least one."""
        rows = self.select(**wanted)
        if not rows:
            raise RecordError(f"{self.name} has no row{_named(wanted)}.")
        return np.array([self.number(row, field) for row in rows])

    def curve(self, *fields: str, **wanted: Any) -> tuple[np.ndarray, ...]:
        """Returns [n] values of fields in these rows, in ascending order of the first field."""
        found = [self.values(field, **wanted) for field in fields]
        order = np.argsort(found[0])
        return tuple(values[order] for values in found)

    def value(self, field: str, **wanted: Any) -> float:
        """Returns a field of the only matching row."""
        found = self.values(field, **wanted)
        if found.size != 1:
            raise RecordError(f"{self.name} has {found.size} rows{_named(wanted)}, not one.")
        return float(found[0])

    def number(self, row: Mapping[str, Any], field: str) -> float:
        """Returns a finite number of a row."""
        return _finite(self.name, field, row.get(field))

    def known(self, field: str) -> list[Any]:
        """Returns the different values of a field, text or numbers, in order of appearance."""
        found = [row[field] for row in self.rows if field in row]
        if not all(value is None or isinstance(value, (str, int, float)) for value in found):
            raise RecordError(f"{self.name}: {field!r} must be text or numbers.")
        return list(dict.fromkeys(found))

    def setting(self, *path: str) -> float:
        """Returns a finite number in `about`, or at the top of the file."""
        return _finite(self.name, ".".join(path), self._find(path))

    def has(self, *path: str) -> bool:
        """Returns whether there is such an entry, in `about` or at the top."""
        return self._find(path) is not None

    def text(self, *path: str) -> str:
        """Returns a text in `about`."""
        found = self._find(path)
        if not isinstance(found, str):
            raise RecordError(f"{self.name} has no text {'.'.join(path)!r}.")
        return found

    def steps_per_epoch(self) -> float:
        return self.setting("num_train") / self.setting("batch_size")

    def _find(self, path: tuple[str, ...]) -> Any:
        for start in (self.about, self._content):
            found: Any = start
            for key in path:
                found = found.get(key) if isinstance(found, dict) else None
            if found is not None:
                return found
        return None

    def array(self, name: str, ndim: int = 1, finite: bool = True) -> np.ndarray:
        """Returns a named array, of finite numbers unless `finite` is False."""
        try:
            found = np.asarray(self._find((name,)))
        except ValueError:  # rows of different lengths
            found = np.zeros(0)
        found = found.astype(np.float64) if found.dtype.kind in "iuf" else np.zeros(0)
        if found.ndim != ndim or not found.size:
            raise RecordError(f"{self.name} has no array {name!r} of {ndim} dimension(s).")
        if finite and not (np.abs(found) < _LARGEST).all():
            raise RecordError(f"{self.name}: {name!r} holds numbers that are not finite.")
        return found

    def table(self, name: str) -> list[dict[str, Any]]:
        """Returns a named list of further rows; empty if there is none."""
        found = self._find((name,))
        if found is None:
            return []
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise RecordError(f"{self.name}: {name!r} must be a list of rows.")
        return found

    def maybe(self, name: str) -> float | None:
        """Returns a finite number, or None if the record has None."""
        found = {**self._content, **self.about}
        if name not in found:
            raise RecordError(f"{self.name} has no {name!r}.")
        return None if found[name] is None else _finite(self.name, name, found[name])

    def same_length(self, *names: str) -> list[np.ndarray]:
        """Returns arrays of the same length; raises RecordError otherwise."""
        found = [self.array(name) for name in names]
        if len({len(array) for array in found}) > 1:
            raise RecordError(f"{self.name}: {', '.join(names)} differ in length.")
        return found


class Probed:
    """One probe record and its step and seed; values are checked when they are read."""

    def __init__(self, name: str, seed: int, record: ArrayRecord) -> None:
        self.name, self.seed, self.record = name, seed, record
        match = _STEP.search(name.removesuffix(".npz"))
        self.step = int(match.group(1)) if match else int(record.about.get("step", 0))

    def expect(self, kind: str) -> Probed:
        """Returns itself after checking its kind and the axes of its values."""
        if self.record.kind != kind:
            raise RecordError(f"{self.name} is a record of {self.record.kind!r}, not of {kind!r}.")
        for value, axes in PROBES[kind].dims.items():
            found = self.record.dims.get(value)
            if found is not None and found != axes:
                raise RecordError(f"{self.name}: {value!r} is over {found}, not over {axes}.")
        return self

    def array(self, name: str, finite: bool = True) -> np.ndarray:
        """Returns a completely measured value of the record; finite unless `finite` is False."""
        found = self.record.values.get(name)
        if found is None or not found.size:
            raise RecordError(f"{self.name} has no value {name!r}.")
        if np.isnan(found).any():
            raise RecordError(f"{self.name}: {name!r} has not been measured throughout.")
        if finite and not np.isfinite(found).all():
            raise RecordError(f"{self.name}: {name!r} holds numbers that are not finite.")
        return found

    def coordinate(self, name: str) -> np.ndarray:
        """Returns a coordinate of the record; numbers as float64."""
        if name not in self.record.coordinates:
            raise RecordError(f"{self.name} has no coordinate {name!r}.")
        found = self.record.coordinates[name]
        return found.astype(np.float64) if found.dtype.kind in "iuf" else found

    def index(self, coordinate: str, value: Any) -> int:
        """Returns the index of a value on a coordinate."""
        found = np.flatnonzero(self.coordinate(coordinate) == value)
        if found.size != 1:
            raise RecordError(f"{self.name}: {coordinate!r} has no single entry {value!r}.")
        return int(found[0])


class Records:
    """The records of a reproduction, read on demand.

    Args:
        folder: the workdir.

    Raises:
        RecordError: if it is not a folder, or its configuration is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = pathlib.Path(folder)
        if not self.folder.is_dir():
            raise RecordError(f"{self.folder} is not a folder, so it holds no records.")
        self._read: dict[tuple[str, ...], tuple[Any, ...]] = {}
        self.config: dict[str, Any] = {}
        if (self.folder / "config.json").exists():
            self.config = self._load("config.json", lambda p: read_json(p, ReproductionConfig))

    @property
    def scale(self) -> str:
        """The name of the configuration."""
        return self.config.get("name", "unknown")

    def _load(self, name: str, read: Callable[[pathlib.Path], Any]) -> Any:
        """Reads a file with `read`; errors name it relative to the folder."""
        path = self.folder / name
        try:
            return read(path)
        except RecordError as error:
            raise RecordError(str(error).replace(str(path), name)) from None

    def expected_seeds(self, task: str) -> tuple[int, ...]:
        """Returns the seeds of a task in the configuration."""
        return seeds_of(task, self.config)

    def judges(self, claim: str) -> bool:
        """Returns whether the scale measures a claim; a scale that names no claims measures all."""
        named = self.config.get("claims")
        return not named or claim in named

    @property
    def judged(self) -> bool:
        """Whether the scale gives verdicts; a smoke test gives numbers only."""
        return bool(self.config.get("judged", True))

    def missing(self, task: str) -> list[str]:
        """Returns the missing files of a task."""
        found = []
        for seed in self.expected_seeds(task):
            if task not in PROBES_OF:
                found += self._absent(f"measured/{task}", f"seed{seed}.json", 1)
            for pattern in PROBES_OF.get(task, ()):
                found += self._absent(f"probes/seed{seed}", f"{pattern}.npz", self._points(task))
        return found

    def _absent(self, folder: str, pattern: str, wanted: int) -> list[str]:
        """Returns the pattern with the number of its missing files, if any is missing."""
        count = len(list((self.folder / folder).glob(pattern)))
        few = f" ({wanted - count} of {wanted})" if count else ""
        return [f"{folder}/{pattern}{few}"] if count < wanted else []

    def _points(self, task: str) -> int:
        """Returns the steps at which a task probes, if the configuration determines them."""
        if task == "one_step_lines":
            return int(self.config.get("one_step", {}).get("iterates", 1))
        if task == "cooldown_curvature":
            return 3  # an iterate, an average, a cooldown's end
        settings = self.config.get("probes")
        if settings is None or task not in ("line", "gradients", "side_trip"):
            return 1
        named = settings.get("trip_steps" if task == "side_trip" else "steps")
        if named:
            return len(named)
        burn_in, window = self.config.get("burn_in"), self.config.get("window")
        if burn_in is None or window is None:
            return 1
        end = burn_in + window
        return 2 if task == "side_trip" else len({end // 2, burn_in, end})

    def _seeds(self, folder: pathlib.Path, suffix: str) -> list[int]:
        if not folder.is_dir():
            return []
        matches = [
            _SEED.fullmatch(entry.name.removesuffix(suffix))
            for entry in folder.iterdir()
            if entry.name.endswith(suffix)
        ]
        return sorted(int(match.group(1)) for match in matches if match)

    def measured(self, task: str) -> tuple[Measured, ...]:
        """Returns all files of a task, in the order of seeds.

        Raises:
            NotMeasured: if one is missing.
            RecordError: if one is damaged or of another task.
        """
        if (task,) not in self._read:
            if missing := self.missing(task):
                raise NotMeasured.files(missing)
            seeds = self._seeds(self.folder / "measured" / task, ".json")
            self._read[(task,)] = tuple(self._measured(task, seed) for seed in seeds)
        return self._read[(task,)]

    def _measured(self, task: str, seed: int) -> Measured:
        name = f"measured/{task}/seed{seed}.json"
        content = self._load(name, read_json)
        record = Measured(name, content)
        if content.get("task", task) != task or record.seed not in (seed, -1):
            raise RecordError(f"{name} is the record of another task or seed.")
        record.seed = seed
        return record

    def one(self, task: str) -> Measured:
        """Returns the first seed's file of a task."""
        return self.measured(task)[0]

    def of_seed(self, task: str, seed: int) -> Measured:
        """Returns a seed's file of a task.

        Raises:
            NotMeasured: if it is missing.
        """
        found = {record.seed: record for record in self.measured(task)}
        if seed not in found:
            raise NotMeasured.files([f"measured/{task}/seed{seed}.json"])
        return found[seed]

    def probes(self, pattern: str, kind: str) -> tuple[Probed, ...]:
        """Returns probe records whose name matches a pattern (`line-*`), by step and then by seed.

        Raises:
            NotMeasured: if there is none.
            RecordError: if one is damaged or of another kind.
        """
        if (pattern, kind) not in self._read:
            root = self.folder / "probes"
            names = [
                (f"{place.parent.name}/{place.name}", seed)
                for seed in self._seeds(root, "")
                for place in sorted((root / f"seed{seed}").iterdir())
                if place.suffix == ".npz" and fnmatch.fnmatchcase(place.stem, pattern)
            ]
            if not names:
                raise NotMeasured.files([f"probes/seed0/{pattern}.npz"])
            found = []
            for place, seed in names:
                record = self._load(f"probes/{place}", ArrayRecord.read)
                found.append(Probed(f"probes/{place}", seed, record).expect(kind))
            found.sort(key=lambda probe: (probe.step, probe.seed))
            self._read[(pattern, kind)] = tuple(found)
        return self._read[(pattern, kind)]

    def lacking(self, tasks: Iterable[str]) -> list[str]:
        """Returns the missing files of the tasks that a claim needs."""
        return [name for task in tasks for name in self.missing(task)]


def _matches(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    for key, value in wanted.items():
        if key not in row:
            return False
        if isinstance(value, float) and isinstance(row[key], (int, float)):
            if not math.isclose(row[key], value, rel_tol=1e-9, abs_tol=1e-12):
                return False
        elif row[key] not in value if isinstance(value, tuple) else row[key] != value:
            return False
    return True


def _named(wanted: Mapping[str, Any]) -> str:
    text = ", ".join(f"{key}={value!r}" for key, value in wanted.items())
    return f" with {text}" if text else ""


def _finite(name: str, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecordError(f"{name}: {field!r} must be a number. Received: {value!r}")
    if not abs(value) < _LARGEST:
        raise RecordError(f"{name}: {field!r} is not finite: {value!r}")
    return float(value)
