"""Records of a reproduction as its page reads them: whatever is there, and what is damaged.

A claim's verdict needs all of its records; a figure shows those that exist.
"""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any, TypedDict

from tf_lrtraj.claims.records_reader import Measured, ReproductionConfig
from tf_lrtraj.records import ArrayRecord, Count, RecordError, problem, read_json

__all__ = ["Source"]

_SEED = re.compile(r"seed(\d+)")
_STEP = re.compile(r"-\d+$")


class _LedgerBase(TypedDict):
    claims: list[Any]  # one that is not as it should be must not hide the others


class _Ledger(_LedgerBase, total=False):
    scale: str
    counts: dict[str, int]


class _ClaimBase(TypedDict):
    id: str
    verdict: str


class ClaimEntry(_ClaimBase, total=False):
    """A claim in `ledger.json`."""

    sentence: str | None
    source: str | None
    experiment: str | None
    threshold: str | None
    argument: str | None
    statistic: str | None
    reason: str | None
    notes: list[str] | None
    numbers: dict[str, Any] | None


class _Run(TypedDict, total=False):
    status: str
    message: str | None
    seconds: dict[str, dict[str, float]]
    versions: dict[str, str]
    keras_backend: str
    processors: Count | None


class Source:
    """Records in a folder, read once each.

    Attributes:
        folder: of the reproduction.
        tasks: name of a task → seed → its record.
        problems: a sentence for each file that cannot be used.
        undrawn: names of figures whose records are there and do not allow to draw them.

    Args:
        folder: of the reproduction.

    Raises:
        RecordError: if it is no folder, or its ledger is missing or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = pathlib.Path(folder)
        if not self.folder.is_dir():
            raise RecordError(f"{self.folder} is not a folder, so it holds no reproduction.")
        self.problems: list[str] = []
        self.undrawn: set[str] = set()
        self.ledger: dict[str, Any] = self._ledger()
        self.config = self._optional("config.json", ReproductionConfig)
        self.run = self._optional("run.json", _Run)
        self.tasks: dict[str, dict[int, dict[str, Any]]] = {}
        for path in _files(self.folder / "measured", ".json"):
            self._measured(path)
        self._probes: dict[tuple[int, str], list[ArrayRecord]] = {}
        for path in _files(self.folder / "probes", ".npz"):
            self._probe(path)

    def probes(self, name: str) -> list[ArrayRecord]:
        """Records of a probe at one seed (the first that has it), in the order of steps."""
        for seed, found in sorted(self._probes):
            if found == name:
                return self._probes[seed, found]
        return []

    def all_probes(self, name: str) -> list[ArrayRecord]:
        """The same at every seed."""
        return [r for key in sorted(self._probes) if key[1] == name for r in self._probes[key]]

    def number(self, claim: str, name: str) -> float | None:
        """A number of the ledger's; None where the claim has none of that name."""
        for entry in self.ledger["claims"]:
            if problem(entry, ClaimEntry) is None and entry["id"] == claim:
                found = (entry.get("numbers") or {}).get(name)
                value = found.get("value") if isinstance(found, dict) else None
                return float(value) if isinstance(value, (int, float)) else None
        return None

    # Reading ------------------------------------------------------------------------------

    def _ledger(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.folder / "ledger.json", _Ledger)
        return found

    def _optional(self, name: str, shape: Any) -> dict[str, Any]:
        if not (self.folder / name).exists():
            return {}
        try:
            found: dict[str, Any] = read_json(self.folder / name, shape)
        except RecordError as error:
            self._problem(error)
            return {}
        return found

    def _measured(self, path: pathlib.Path) -> None:
        match = _SEED.fullmatch(path.stem)
        if not match:
            return
        try:
            content = read_json(path)
            Measured(str(path), content)  # of the right shape
        except RecordError as error:
            self._problem(error)
            return
        self.tasks.setdefault(path.parent.name, {})[int(match.group(1))] = content

    def _probe(self, path: pathlib.Path) -> None:
        match = _SEED.fullmatch(path.parent.name)
        if not match:
            return
        try:
            record = ArrayRecord.read(path)
        except RecordError as error:
            self._problem(error)
            return
        if not record.complete:
            self.problems.append(f"{self._short(str(path))} is not complete.")
            return
        name = _STEP.sub("", path.stem)
        self._probes.setdefault((int(match.group(1)), name), []).append(record)

    def _problem(self, error: Exception) -> None:
        self.problems.append(self._short(str(error)))

    def _short(self, text: str) -> str:
        """Where the folder lies is nobody's business who reads the page."""
        return text.replace(f"{self.folder}{os.sep}", "")


def _files(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    return sorted(folder.glob(f"*/*{suffix}")) if folder.is_dir() else []
