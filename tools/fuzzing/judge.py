"""Judges the outcome of an input: it is used, refused cleanly, or reveals a fault of the program.

A refusal is clean if it is a documented error with a message, stays within bounds of time and
memory, and leaves every file unchanged.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import importlib
import pathlib
import resource
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase

from tf_lrtraj.records import files as records

SECONDS = 20  # of processor time; more counts as a hang
MEMORY = 500 * 2**20  # bytes an input may add to the most the process ever held


class Fault(AssertionError):
    """An input was not refused cleanly."""


class _TooSlow(BaseException):
    pass


class Refused(Exception):
    """A program refused its input in the documented way: a line on stderr and an exit code.

    Attributes:
        said: the line on stderr.
    """

    def __init__(self, outcome: str, said: str = "") -> None:
        super().__init__(outcome)
        self.said = said


@dataclasses.dataclass(frozen=True)
class Target:
    """An entry point and its inputs.

    Attributes:
        name: name of the entry point.
        inputs: strategy that draws an input.
        run: a function of an input and an empty folder that passes the input to the entry point
            and raises its errors.
        refusals: exceptions that the entry point documents.
        share: relative number of inputs in a whole run.
        keras: whether Keras and TensorFlow are needed.
    """

    name: str
    inputs: Any
    run: Callable[[Any, pathlib.Path], Any]
    refusals: tuple[type[BaseException], ...] = (ValueError,)
    share: float = 1.0
    keras: bool = False


@contextlib.contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """Stops a block after a number of seconds of processor time."""

    def stop(*_: Any) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def most_memory() -> int:
    """Returns the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def bounded_memory(extra: int = 3 * MEMORY) -> Iterator[None]:
    """Limits the additional address space in a block; `MemoryError` is raised beyond it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def content(folder: pathlib.Path) -> dict[str, Any]:
    """Reads everything in a folder: path → bytes, the target of a link, or None for other entries.

    For a file that is too large to be read, the value is its size.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = path.readlink()
        else:
            size = path.stat().st_size
            found[name] = None
            if path.is_file():
                found[name] = path.read_bytes() if size <= records.LARGEST else size
    return found


def unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raises `Fault` if a refused input has left a trace."""
    for what, names in (
        ("written", set(after) - set(before)),
        ("deleted", set(before) - set(after)),
        ("changed", {n for n in set(before) & set(after) if before[n] != after[n]}),
    ):
        if names:
            raise Fault(f"the input was refused, and files were {what}: {sorted(names)}")


def leftovers(after: dict[str, Any]) -> None:
    """Raises `Fault` if temporary files were left behind."""
    names = [n for n in after if n.endswith(".tmp") or pathlib.PurePosixPath(n).name[:1] == "."]
    if names:
        raise Fault(f"temporary files were left: {names}")


def import_keras() -> None:
    """Imports whatever of the package needs Keras, which takes a while and much memory."""
    from absl import logging

    logging.set_verbosity(logging.FATAL)
    for name in (
        "runs.train_run",
        "runs.evaluate_run",
        "runs.average_run",
        "runs.probing.probe_run",
        "study.run_study",
    ):
        importlib.import_module(f"tf_lrtraj.{name}")
    importlib.import_module("tensorflow_datasets")


def judge(target: Target, given: Any, folder: pathlib.Path) -> str:
    """Returns the outcome of an input: "used", or the name of the error that refused it.

    Raises:
        Fault: if the input was not refused cleanly.
    """
    most = most_memory()
    try:
        with warnings.catch_warnings(), limited(), bounded_memory():
            warnings.simplefilter("ignore")
            target.run(given, folder)
        outcome = "used"
    except Refused as refusal:
        outcome = str(refusal)
    except Fault:
        raise
    except target.refusals as error:
        if not str(error).strip():
            raise Fault(f"{type(error).__name__} without a message") from error
        outcome = type(error).__name__
    except _TooSlow:
        raise Fault(f"more than {SECONDS} s of processor time") from None
    except (hypothesis.errors.HypothesisException, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Fault(f"{type(error).__name__}: {error}") from error
    if most_memory() - most > MEMORY:
        raise Fault(f"{(most_memory() - most) / 2**20:.0f} MB of memory")
    return outcome


def fuzz(
    target: Target,
    count: int,
    seed: int = 0,
    tell: Callable[[], Any] = lambda: None,
    shrink: bool = True,
) -> collections.Counter[str]:
    """Passes `count` inputs to an entry point and counts the outcomes.

    Raises:
        Fault: if an input is not refused cleanly; the smallest one found is reported.
    """
    if target.keras:  # outside of the limits
        import_keras()
    outcomes: collections.Counter[str] = collections.Counter()
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))
    failed = False

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        print_blob=False,
        report_multiple_bugs=False,
    )
    @hypothesis.given(target.inputs)
    def one(given: Any) -> None:
        nonlocal failed
        folder = scratch / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            outcomes[judge(target, given, folder)] += 1
        except Fault as fault:
            failed = True
            raise Fault(f"{target.name}: {fault}\ninput: {given!r}") from fault.__cause__
        if not failed:
            tell()

    try:
        one()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        gc.collect()
    return outcomes
