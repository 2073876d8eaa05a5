"""Atomic checkpoints, checked on reading, with a fallback to the previous one.

Each checkpoint is a folder `step_000000123` that holds TensorFlow's own checkpoint files,
`progress.json`, and `manifest.json` with the size and SHA-256 of every file.  It is written under a
temporary name and renamed when complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypedDict

import tensorflow as tf
from absl import logging

from tf_lrtraj.records import (
    Count,
    RecordError,
    naming,
    open_file,
    read_json,
    sync,
    temporary_path,
    write_json,
)
from tf_lrtraj.training.file_errors import as_os_errors

_NAME = re.compile(r"step_([0-9]{9,15})")
_MANIFEST = "manifest.json"
_PROGRESS = "progress.json"
_EXTRA = "extra"


class _File(TypedDict):
    bytes: Count
    sha256: str


class _ProgressBase(TypedDict):
    step: Count
    shapes: dict[str, list[list[Count]]]


class Progress(_ProgressBase, total=False):
    """The entries of `progress.json` that `save` adds."""

    extra: bool


class CheckpointError(RecordError):
    """Checkpoints exist, and none of them can be used."""


class Checkpointer:
    """Saves and restores groups of variables and a small JSON record.

    Args:
        directory: the folder of the checkpoints.
        variables: group name → Keras variables.
        keep: number of checkpoints to keep, the newest ones.
        pinned: steps whose checkpoints are always kept.
        writer: whether this process writes (the chief of several workers, whose values the others
            share).
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        variables: Mapping[str, Sequence[Any]],
        keep: int = 2,
        writer: bool = True,
        pinned: Collection[int] = (),
    ) -> None:
        self.directory = pathlib.Path(directory)
        self.variables = dict(variables)
        self.keep = keep
        self.pinned = frozenset(pinned)
        self.writer = writer
        self._checkpoint = tf.train.Checkpoint(
            **{name: [v.value for v in group] for name, group in variables.items()}
        )
        self._shapes = {name: [list(v.shape) for v in group] for name, group in variables.items()}

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match.group(1)) for match in matches if match)

    def path(self, step: int) -> pathlib.Path:
        return self.directory / f"step_{step:09d}"

    def save(self, step: int, progress: Mapping[str, Any], extra: bool = False) -> None:
        """Writes a checkpoint of the variables' current values, if this process is the writer.

        Args:
            step: the number of updates made.
            progress: a JSON value, which `restore` returns.
            extra: whether it is saved because of a stop; it is deleted when a later one exists, so
                that the checkpoints at the end do not depend on stops.
        """
        if not self.writer:
            return
        with naming(self.directory), as_os_errors(self.directory):
            self._save(step, {**progress, _EXTRA: True} if extra else progress)
        self._prune()

    def _save(self, step: int, progress: Mapping[str, Any]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(self.path(step))
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            self._checkpoint.write(str(temporary / "variables"))
            write_json(
                temporary / _PROGRESS, {"step": step, "shapes": self._shapes, **dict(progress)}
            )
            write_json(temporary / _MANIFEST, _manifest(temporary))
            for path in temporary.iterdir():
                sync(path)
            final = self.path(step)
            if final.exists():
                self._delete(step)
            os.replace(temporary, final)
            sync(self.directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _prune(self) -> None:
        steps = self.steps()
        extra = {step for step in steps if self._is_extra(step)}
        regular = [step for step in steps if step not in extra]
        for step in (set(regular[: -self.keep]) - self.pinned) | (extra - set(steps[-1:])):
            self._delete(step)
        for leftover in self.directory.glob(".step_*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _is_extra(self, step: int) -> bool:
        with contextlib.suppress(RecordError):
            return bool(_read_progress(self.path(step)).get(_EXTRA))
        return False

    def _delete(self, step: int) -> None:
        """Deletes a checkpoint; a kill during this leaves no partial checkpoint."""
        temporary = temporary_path(self.directory / f"{self.path(step).name}.old")
        with contextlib.suppress(OSError):  # one too many does no harm
            os.replace(self.path(step), temporary)
            shutil.rmtree(temporary, ignore_errors=True)

    def newest_good(
        self, check: Callable[[dict[str, Any]], str | None] = lambda progress: None
    ) -> tuple[int, list[str]]:
        """Returns the newest step whose files are intact, and the damage of any newer ones.

        Args:
            check: progress record → another reason against resuming from it, or None.

        Raises:
            CheckpointError: if checkpoints exist and all of them are damaged.
            FileNotFoundError: if there is none at all.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            problem = self._problem(step, check)
            if problem is None:
                return step, problems
            problems.append(problem)
        if problems:
            raise CheckpointError(
                "no usable checkpoint: "
                + "; ".join(problems)
                + f". Delete {self.directory} to start again from step 0."
            )
        raise FileNotFoundError(f"no checkpoint in {self.directory}")

    def _problem(self, step: int, check: Callable[[dict[str, Any]], str | None]) -> str | None:
        damage = _damage(self.path(step))
        return damage or check(_read_progress(self.path(step)))

    def restore(
        self,
        step: int | None = None,
        check: Callable[[dict[str, Any]], str | None] = lambda progress: None,
    ) -> tuple[int, dict[str, Any]]:
        """Restores one checkpoint, by default the newest intact one.

        A damaged newer checkpoint is reported as a warning and deleted, so that the run, which
        resumes from an earlier step, writes it again.

        Args:
            step: its step; None for the newest intact one.
            check: as in `newest_good`.

        Returns:
            (step, the progress record given to `save`).

        Raises:
            CheckpointError: if it is damaged or belongs to another model or other averages.
            FileNotFoundError: if there is none.
        """
        if step is None:
            step, problems = self.newest_good(check)
            for problem in problems:
                logging.warning("%s; falling back to the checkpoint of step %d", problem, step)
            if self.writer:
                for later in [s for s in self.steps() if s > step]:
                    self._delete(later)
                self._prune()  # left by a process that was killed before it could delete them
        else:
            if step not in self.steps():
                raise FileNotFoundError(
                    f"no checkpoint of step {step} in {self.directory}; steps: {self.steps()}"
                )
            damage = self._problem(step, check)
            if damage is not None:
                raise CheckpointError(f"{damage}. Choose one of the steps {self.steps()}.")
        progress = _read_progress(self.path(step))
        stored = progress.pop("shapes")
        wrong = [name for name in self._shapes if self._shapes[name] != stored.get(name)]
        if wrong:
            raise CheckpointError(
                f"the checkpoint {self.path(step)} holds other variables than this run in "
                f"{wrong}: it belongs to another model or other averages."
            )
        try:
            status = self._checkpoint.read(str(self.path(step) / "variables"))
            # A matched run reads a part of another run's checkpoint, which is not an error.
            status.assert_existing_objects_matched().expect_partial()
        except Exception as error:  # TensorFlow raises many kinds of errors for damaged files
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise CheckpointError(
                f"the checkpoint {self.path(step)} cannot be read: {reason}"
            ) from None
        return step, progress


def _manifest(folder: pathlib.Path) -> dict[str, Any]:
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != _MANIFEST
    }


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _damage(folder: pathlib.Path) -> str | None:
    """Returns the damage of a checkpoint's files, or None."""
    try:
        problem = _damaged_file(folder, read_json(folder / _MANIFEST, dict[str, _File]))
        if problem is None and f"step_{_read_progress(folder)['step']:09d}" != folder.name:
            problem = f"{_PROGRESS} is of another step"
    except (RecordError, OSError) as error:
        problem = str(error)
    return None if problem is None else f"checkpoint {folder} is damaged: {problem}"


def _damaged_file(folder: pathlib.Path, manifest: Mapping[str, Any]) -> str | None:
    # Unlisted files are not checked, and TensorFlow reads every file of variables.
    for name in {_PROGRESS, "variables.index", *(p.name for p in folder.glob("variables*"))}:
        if name not in manifest:
            return f"{_MANIFEST} does not list {name}"
    for name, entry in manifest.items():
        path = folder / pathlib.PurePath(name).name
        if not path.is_file():
            return f"{name} is missing, or no file"
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{name} has {size} bytes instead of {entry['bytes']}"
        if _sha256(path) != entry["sha256"]:
            return f"{name} has another SHA-256 than recorded"
    return None


def _read_progress(folder: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / _PROGRESS, Progress)
    return found
