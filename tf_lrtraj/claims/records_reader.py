"""Reading the records of a reproduction: measured rows and arrays, and probes.

What is absent raises `NotMeasured`, which the ledger turns into "not measured".  What is
damaged, of another shape or not finite raises `RecordError` that names the file, and is
never a pass.  Files are named by their place in the folder, so that a ledger does not
depend on where the folder is.
"""

from __future__ import annotations

import fnmatch
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypedDict

import numpy as np

from tf_lrtraj.claims.layout import PROBES_OF, seeds_of
from tf_lrtraj.records import ArrayRecord, Count, RecordError, problem, read_json
from tf_lrtraj.records.shapes import Within
from tf_lrtraj.specs import PROBES

# What has grown beyond this has overflowed, and its square would.
_LARGEST = 1e100
_SEED = re.compile(r"seed(\d+)")
_STEP = re.compile(r"-(\d+)$")


class NotMeasured(Exception):
    """What a claim needs is not in the records.

    Attributes:
        reason: what is missing, in a sentence.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    @classmethod
    def files(cls, names: Iterable[str]) -> NotMeasured:
        """Of files, or patterns of their names, that are missing."""
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
    """What the readers of a reproduction need of its `config.json`."""

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

    Args:
        name: what messages call the file.
        content: as read from JSON.
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
        """The rows in which every named field has the value given (or one of a tuple's)."""
        return [row for row in self.rows if _matches(row, wanted)]

    def values(self, field: str, **wanted: Any) -> np.ndarray:
        """[n] a field of every such row, of which there must be one or more.

        Raises:
            RecordError: if there is none, or a value is no finite number.
        """
        rows = self.select(**wanted)
        if not rows:
            raise RecordError(f"{self.name} has no row{_named(wanted)}.")
        return np.array([self.number(row, field) for row in rows])

    def value(self, field: str, **wanted: Any) -> float:
        """A field of the one row that fits.

        Raises:
            RecordError: if there is none or more than one, or it is no finite number.
        """
        found = self.values(field, **wanted)
        if found.size != 1:
            raise RecordError(f"{self.name} has {found.size} rows{_named(wanted)}, not one.")
        return float(found[0])

    def number(self, row: Mapping[str, Any], field: str) -> float:
        """A finite number of a row."""
        return _finite(self.name, field, row.get(field))

    def known(self, field: str) -> list[Any]:
        """The different values of a field, text or numbers, in order of appearance.

        Raises:
            RecordError: if a value is something else.
        """
        found = [row[field] for row in self.rows if field in row]
        if not all(value is None or isinstance(value, (str, int, float)) for value in found):
            raise RecordError(f"{self.name}: {field!r} must be text or numbers.")
        return list(dict.fromkeys(found))

    def setting(self, *path: str) -> float:
        """A finite number in `about`, or at the top of the file."""
        return _finite(self.name, ".".join(path), self._find(path))

    def has(self, *path: str) -> bool:
        """Whether there is such an entry, in `about` or at the top."""
        return self._find(path) is not None

    def text(self, *path: str) -> str:
        """Text in `about`."""
        found = self._find(path)
        if not isinstance(found, str):
            raise RecordError(f"{self.name} has no text {'.'.join(path)!r}.")
        return found

    def _find(self, path: tuple[str, ...]) -> Any:
        for start in (self.about, self._content):
            found: Any = start
            for key in path:
                found = found.get(key) if isinstance(found, dict) else None
            if found is not None:
                return found
        return None

    def array(self, name: str, ndim: int = 1, finite: bool = True) -> np.ndarray:
        """A named array, of finite numbers unless they may be missing.

        Raises:
            RecordError: if it is absent, of other dimensions, empty or not finite.
        """
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
        """A named list of rows beside the main ones; empty where there is none."""
        found = self._find((name,))
        if found is None:
            return []
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise RecordError(f"{self.name}: {name!r} must be a list of rows.")
        return found

    def maybe(self, name: str) -> float | None:
        """A finite number, or None where the record says that there is none.

        Raises:
            RecordError: if the record does not say.
        """
        for place in (self.about, self._content):
            if name in place:
                return None if place[name] is None else _finite(self.name, name, place[name])
        raise RecordError(f"{self.name} has no {name!r}.")

    def same_length(self, *names: str) -> list[np.ndarray]:
        """Arrays that belong together."""
        found = [self.array(name) for name in names]
        if len({len(array) for array in found}) > 1:
            raise RecordError(f"{self.name}: {', '.join(names)} differ in length.")
        return found


class Probed:
    """One probe record and where it was taken."""

    def __init__(self, name: str, seed: int, record: ArrayRecord) -> None:
        self.name, self.seed, self.record = name, seed, record
        match = _STEP.search(name.removesuffix(".npz"))
        self.step = int(match.group(1)) if match else int(record.about.get("step", 0))

    def expect(self, kind: str) -> Probed:
        """Itself, if it is a record of that kind, its values over the axes they should have.

        Raises:
            RecordError: otherwise.
        """
        if self.record.kind != kind:
            raise RecordError(f"{self.name} is a record of {self.record.kind!r}, not of {kind!r}.")
        for value, axes in PROBES[kind].dims.items():
            found = self.record.dims.get(value)
            if found is not None and found != axes:
                raise RecordError(f"{self.name}: {value!r} is over {found}, not over {axes}.")
        return self

    def array(self, name: str, finite: bool = True) -> np.ndarray:
        """A value of the record.

        Raises:
            RecordError: if it is absent, empty or not measured; or not finite, if it should be.
        """
        found = self.record.values.get(name)
        if found is None or not found.size:
            raise RecordError(f"{self.name} has no value {name!r}.")
        if np.isnan(found).any():
            raise RecordError(f"{self.name}: {name!r} has not been measured throughout.")
        if finite and not np.isfinite(found).all():
            raise RecordError(f"{self.name}: {name!r} holds numbers that are not finite.")
        return found

    def coordinate(self, name: str) -> np.ndarray:
        """A coordinate of the record."""
        if name not in self.record.coordinates:
            raise RecordError(f"{self.name} has no coordinate {name!r}.")
        return self.record.coordinates[name]

    def index(self, coordinate: str, value: Any) -> int:
        """The place of a value on a coordinate."""
        found = np.flatnonzero(self.coordinate(coordinate) == value)
        if found.size != 1:
            raise RecordError(f"{self.name}: {coordinate!r} has no single entry {value!r}.")
        return int(found[0])


class Records:
    """The records of a reproduction, read when asked for.

    Args:
        folder: the workdir.

    Raises:
        RecordError: if it is no folder, or its configuration is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = pathlib.Path(folder)
        if not self.folder.is_dir():
            raise RecordError(f"{self.folder} is not a folder, so it holds no records.")
        self._read: dict[tuple[str, ...], tuple[Any, ...]] = {}
        self.config: dict[str, Any] = {}
        if (self.folder / "config.json").exists():
            self.config = self._json("config.json", ReproductionConfig)

    @property
    def scale(self) -> str:
        """The name of the configuration."""
        return self.config.get("name", "unknown")

    def _json(self, name: str, shape: Any = Any) -> Any:
        try:
            return read_json(self.folder / name, shape)
        except RecordError as error:
            raise RecordError(str(error).replace(str(self.folder / name), name)) from None

    def expected_seeds(self, task: str) -> tuple[int, ...]:
        """Seeds that the configuration says a task is run on."""
        return seeds_of(task, self.config)

    def judges(self, claim: str) -> bool:
        """Whether the scale is there for a claim; every one is, where the scale names none."""
        named = self.config.get("claims")
        return not named or claim in named

    @property
    def judged(self) -> bool:
        """Whether the scale gives verdicts; a smoke test gives numbers only."""
        return bool(self.config.get("judged", True))

    def missing(self, task: str) -> list[str]:
        """Files of a task that ought to be there and are not."""
        seeds = self.expected_seeds(task)
        if task in PROBES_OF:
            return [name for seed in seeds for name in self._missing_probes(task, seed)]
        there = self._seeds(self.folder / "measured" / task, ".json")
        return [f"measured/{task}/seed{seed}.json" for seed in seeds if seed not in there]

    def _missing_probes(self, task: str, seed: int) -> list[str]:
        found = []
        for pattern in PROBES_OF[task]:
            name = f"probes/seed{seed}/{pattern}.npz"
            count = len(list((self.folder / "probes" / f"seed{seed}").glob(f"{pattern}.npz")))
            wanted = self._points(task)
            if count < wanted:
                found.append(name if not count else f"{name} ({wanted - count} of {wanted})")
        return found

    def _points(self, task: str) -> int:
        """Steps at which a task probes, as far as the configuration tells."""
        if task == "one_step_lines":
            return int(self.config.get("one_step", {}).get("iterates", 1))
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
        """The files of a task, in the order of seeds: all that are there.

        Raises:
            NotMeasured: if one is missing.
            RecordError: if one is damaged or of another task.
        """
        if (task,) in self._read:
            return self._read[(task,)]
        missing = self.missing(task)
        if missing:
            raise NotMeasured.files(missing)
        found = []
        for seed in self._seeds(self.folder / "measured" / task, ".json"):
            name = f"measured/{task}/seed{seed}.json"
            content = self._json(name)
            record = Measured(name, content)
            if content.get("task", task) != task or record.seed not in (seed, -1):
                raise RecordError(f"{name} is the record of another task or seed.")
            record.seed = seed
            found.append(record)
        self._read[(task,)] = tuple(found)
        return self._read[(task,)]

    def one(self, task: str) -> Measured:
        """The first seed's file of a task."""
        return self.measured(task)[0]

    def of_seed(self, task: str, seed: int) -> Measured:
        """A seed's file of a task.

        Raises:
            NotMeasured: if it is missing.
        """
        for record in self.measured(task):
            if record.seed == seed:
                return record
        raise NotMeasured.files([f"measured/{task}/seed{seed}.json"])

    def probes(self, pattern: str, kind: str) -> tuple[Probed, ...]:
        """Probe records whose name fits a pattern ("line-*"), by step and then by seed.

        Raises:
            NotMeasured: if there is none.
            RecordError: if one is damaged or of another kind.
        """
        if (pattern, kind) in self._read:
            return self._read[(pattern, kind)]
        found = []
        root = self.folder / "probes"
        for seed in self._seeds(root, ""):
            for path in sorted((root / f"seed{seed}").iterdir()):
                if path.suffix != ".npz" or not fnmatch.fnmatchcase(path.stem, pattern):
                    continue
                name = f"probes/seed{seed}/{path.name}"
                try:
                    record = ArrayRecord.read(path)
                except RecordError as error:
                    raise RecordError(str(error).replace(str(path), name)) from None
                found.append(Probed(name, seed, record).expect(kind))
        if not found:
            raise NotMeasured.files([f"probes/seed0/{pattern}.npz"])
        found.sort(key=lambda probe: (probe.step, probe.seed))
        self._read[(pattern, kind)] = tuple(found)
        return self._read[(pattern, kind)]

    def lacking(self, tasks: Iterable[str]) -> list[str]:
        """Files that are missing of the tasks that a claim needs."""
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
