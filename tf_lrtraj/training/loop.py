"""The outer loop, which decides when to log, evaluate, save and stop."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import tensorflow as tf

from tf_lrtraj.averaging.snapshots import Timetable
from tf_lrtraj.records import Mark, damage_before, keep_until, problem
from tf_lrtraj.training.checkpoints import Checkpointer
from tf_lrtraj.training.log import RunLog
from tf_lrtraj.training.progress import Progress
from tf_lrtraj.training.stopping import Diverged, Interrupted, stop_signals
from tf_lrtraj.training.workers import Workers


@dataclasses.dataclass(frozen=True)
class Cadence:
    """Numbers of steps between logs, evaluations and so on (0: never); all also run at the end."""

    log: int
    evaluate: int
    checkpoint: int
    steps_per_call: int

    def due(self, every: int, step: int, total: int) -> bool:
        return step == total or (every > 0 and step % every == 0)

    def next_stop(self, step: int, total: int) -> int:
        """Returns the next step at which one of these is due, at most `steps_per_call` away."""
        stops = [total, step + self.steps_per_call]
        stops += [
            (step // every + 1) * every
            for every in (self.log, self.evaluate, self.checkpoint)
            if every > 0
        ]
        return min(stops)


@dataclasses.dataclass(frozen=True)
class Action:
    """A function that is called after certain steps.

    Attributes:
        when: its timetable.
        what: called with the number of updates made; must not change what training reads.
        check: called after every call of the compiled steps; raises errors that occurred since.
        finish: called before a checkpoint is saved, from which a killed run resumes.
    """

    when: Timetable
    what: Callable[[int], None]
    check: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None


def nothing(step: int) -> None:
    """The action of other workers, so that all make the same number of steps in a call."""


class Loop:
    """The outer loop of a run: calls of the compiled steps, and the actions between them.

    All numbers depend on the step alone, so a run that was killed and resumed writes the same rows
    and ends with the same bits.

    Args:
        train_steps: (first step, count) → [count] values by name, "loss" among them.
        evaluate: called with the step when an evaluation is due.
        checkpointer: saves when a checkpoint is due.
        log: receives every logging window.
        cadence: when to log, evaluate and save.
        total_steps: number of updates of the whole run.
        progress: the progress bar; a new one by default.
        actions: called in their order when they are due, also at the start.
        workers: the processes of a multi-worker run, which stop at the same step.
    """

    def __init__(
        self,
        train_steps: Callable[[int, int], Mapping[str, np.ndarray]],
        evaluate: Callable[[int], None],
        checkpointer: Checkpointer,
        log: RunLog,
        cadence: Cadence,
        total_steps: int,
        progress: Progress | None = None,
        actions: Sequence[Action] = (),
        workers: Workers | None = None,
    ) -> None:
        self._train_steps = train_steps
        self._evaluate = evaluate
        self._checkpointer = checkpointer
        self._log = log
        self._cadence = cadence
        self._total = total_steps
        self._progress = progress
        self._actions = actions
        self._workers = Workers(None) if workers is None else workers
        self._non_finite = _NonFinite(checkpointer.variables)

    def run(self, step: int, window: Window) -> None:
        """Trains from a step to the end of the run.

        Args:
            step, window: from `resume`.

        Raises:
            Diverged: at the first loss that is not finite, or if a checkpoint would hold such a
            number; the last checkpoint is kept. Interrupted: after SIGTERM or SIGINT at any worker,
            with a checkpoint of the last step made.
        """
        shown = Progress(self._total, step) if self._progress is None else self._progress
        first, due = step, self._cadence.due
        # A signal is handled between two calls, when a checkpoint can be saved.
        with shown, stop_signals() as stop, stop.deferred():
            self._act(step, shown)
            clock = _Clock(step)
            while step < self._total:
                count = self._next_stop(step) - step
                with shown.doing("compiling") if step == first else contextlib.nullcontext():
                    found = self._train_steps(step, count)
                bad = np.flatnonzero(~np.isfinite(found["loss"]))
                if bad.size:
                    what = f"the training loss became {float(found['loss'][bad[0]])}"
                    raise Diverged(what, step + int(bad[0]))
                step += count
                window.extend(found)
                shown.advance(count)
                self._act(step, shown)
                if due(self._cadence.log, step, self._total):
                    steps, seconds = clock.since(step)
                    means = window.means()
                    self._log.train(step, means)
                    self._log.speed(step, steps, seconds)
                    shown.show_loss(means["loss"])
                    clock = _Clock(step)
                if due(self._cadence.evaluate, step, self._total):
                    with shown.doing("evaluating"):
                        self._evaluate(step)
                    clock = _Clock(step)
                saved = due(self._cadence.checkpoint, step, self._total)
                if saved:
                    self._save(step, window, shown)
                    clock = _Clock(step)
                if self._workers.any(bool(stop.requested)):
                    if not saved:
                        self._save(step, window, shown, extra=True)
                    self._workers.wait()  # for the chief's checkpoint
                    raise _stopped(stop.requested, step)
            if self._workers.any(bool(stop.requested)):  # during the last action
                raise _stopped(stop.requested, step)

    def _next_stop(self, step: int) -> int:
        stops = [action.when.next_due(step) for action in self._actions]
        return min([self._cadence.next_stop(step, self._total), *stops])

    def _act(self, step: int, shown: Progress) -> None:
        for action in self._actions:
            action.check()
            if action.when.due(step):
                with shown.doing("snapshots and probes"):
                    action.what(step)

    def _save(self, step: int, window: Window, shown: Progress, extra: bool = False) -> None:
        bad = self._non_finite.group()
        if self._workers.any(bad is not None):
            what = f"a number of the {bad}" if bad else "a number held by another worker"
            raise Diverged(f"{what} became NaN or infinite", step - 1)
        for action in self._actions:
            action.finish()
        self._log.sync()
        with shown.doing("writing a checkpoint"):
            mark = {"window": window.state(), "rows": self._log.mark()}
            self._checkpointer.save(step, mark, extra=extra)


def _stopped(signal: str, step: int) -> Interrupted:
    return Interrupted(f"stopped by {signal or 'a signal to another worker'} after step {step}")


class _Clock:
    """Wall-clock time of steps, restarted after other work."""

    def __init__(self, step: int) -> None:
        self._step, self._start = step, time.perf_counter()

    def since(self, step: int) -> tuple[int, float]:
        """Returns (steps made, seconds) since the start."""
        return step - self._step, time.perf_counter() - self._start


class _NonFinite:
    """Finds NaN and infinity in groups of variables.

    With several replicas it checks the values of the first one, which are saved.
    """

    def __init__(self, variables: Mapping[str, Sequence[Any]]) -> None:
        self._floating = {
            name: [variable for variable in group if variable.value.dtype.is_floating]
            for name, group in variables.items()
        }
        self._finite = tf.function(self._all_finite)

    def _all_finite(self) -> dict[str, Any]:
        return {
            name: tf.reduce_all(
                [tf.reduce_all(tf.math.is_finite(variable.value)) for variable in group]
            )
            for name, group in self._floating.items()
        }

    def group(self) -> str | None:
        """Returns the name of a group with such a number, or None."""
        found = self._finite().items()
        return next((name for name, finite in found if not bool(finite.numpy())), None)


class Window:
    """Losses and metrics of the steps since the last logged row.

    They are part of a checkpoint, so that a row that spans a restart does not change.

    >>> window = Window()
    >>> window.extend({"loss": np.array([1.0, 2.0])})
    >>> window.state(), window.means(), window.state()
    ({'loss': [1.0, 2.0]}, {'loss': 1.5}, {})
    """

    def __init__(self, values: Mapping[str, Sequence[float]] | None = None) -> None:
        self._values = {name: list(found) for name, found in (values or {}).items()}

    def extend(self, values: Mapping[str, np.ndarray]) -> None:
        for name, found in values.items():
            self._values.setdefault(name, []).extend(float(x) for x in found)

    def means(self) -> dict[str, float]:
        """Returns the means by name, the loss first, and empties the window."""
        names = sorted(self._values, key=lambda name: (name != "loss", name))
        means = {name: float(np.mean(self._values[name])) for name in names}
        self._values.clear()
        return means

    def state(self) -> dict[str, list[float]]:
        return {name: list(found) for name, found in self._values.items()}


# As checkpoints of earlier versions name them.
_EARLIER = {"losses": "loss", "accuracies": "accuracy"}


class _Progress(TypedDict):
    """The record that a checkpoint of `run` holds beside the variables."""

    window: dict[str, list[float]]
    rows: Mark | None


def progress_problem(progress: dict[str, Any]) -> str | None:
    """Returns the damage of a checkpoint's progress record, or None."""
    wrong = problem(progress, _Progress)
    if wrong is None:
        window = _named(progress["window"])
        if len({len(found) for found in window.values()}) > 1 or (window and "loss" not in window):
            wrong = "its window must hold a loss, and as many of every other metric"
    return wrong and f"the checkpoint of step {progress['step']} is damaged: {wrong}"


def _named(window: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Returns the values of a window that holds any, also as earlier versions stored them."""
    return {_EARLIER.get(name, name): found for name, found in window.items() if found}


def resume(checkpointer: Checkpointer, rows: pathlib.Path | None = None) -> tuple[int, Window]:
    """Restores the newest intact checkpoint if there is one.

    Args:
        checkpointer: the checkpointer of the run.
        rows: the file of the checkpoint's rows. A checkpoint whose rows are damaged counts as
            damaged itself, because their steps must be run again. Later rows are removed.

    Returns:
        (step, the window of losses that are not yet logged).

    Raises:
        CheckpointError: if there are checkpoints and all are damaged.
    """

    def check(progress: dict[str, Any]) -> str | None:
        wrong = progress_problem(progress)
        if wrong is not None:
            return wrong
        mark = progress["rows"]
        return damage_before(rows, mark) if rows is not None and mark is not None else None

    try:
        step, progress = checkpointer.restore(check=check)
    except FileNotFoundError:
        if rows is not None:
            rows.unlink(missing_ok=True)
        return 0, Window()
    if rows is not None and progress["rows"] is not None:
        keep_until(rows, progress["rows"])
    return step, Window(_named(progress["window"]))
