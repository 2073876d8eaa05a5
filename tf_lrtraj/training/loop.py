"""The outer loop: when to log, evaluate, save and stop."""

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
    """Every how many steps each thing is done (0: never); all are also done at the end."""

    log: int
    evaluate: int
    checkpoint: int
    steps_per_call: int

    def due(self, every: int, step: int, total: int) -> bool:
        return step == total or (every > 0 and step % every == 0)

    def next_stop(self, step: int, total: int) -> int:
        """The next step at which one of these is due, at most `steps_per_call` away."""
        stops = [total, step + self.steps_per_call]
        stops += [
            (step // every + 1) * every
            for every in (self.log, self.evaluate, self.checkpoint)
            if every > 0
        ]
        return min(stops)


@dataclasses.dataclass(frozen=True)
class Action:
    """Something done after certain steps: *when* and *what* apart.

    Attributes:
        when: a timetable.
        what: called with the number of updates made; changes nothing that training reads.
    """

    when: Timetable
    what: Callable[[int], None]


def nothing(step: int) -> None:
    """What other workers do while the chief acts; all make the same number of steps in a call."""


def run(
    train_steps: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
    evaluate: Callable[[int], None],
    checkpointer: Checkpointer,
    log: RunLog,
    cadence: Cadence,
    total_steps: int,
    start: tuple[int, Window],
    progress: Progress | None = None,
    actions: Sequence[Action] = (),
    workers: Workers | None = None,
) -> None:
    """Trains from `start` to `total_steps`.

    Everything that decides a number is a function of the step, so a run that was
    killed and started again writes the same rows and ends with the same bits.

    Args:
        train_steps: (first step, count) → ([count] losses, [count] accuracies).
        evaluate: called with the step when an evaluation is due.
        checkpointer: saves when a checkpoint is due.
        log: told of every logging window.
        cadence: when to do what.
        total_steps: number of updates of the whole run.
        start: from `resume`.
        progress: told of steps, and of what is done between them.
        actions: done in their order when they are due, at the start too.
        workers: the processes of a multi-worker run, which stop at the same step.

    Raises:
        Diverged: at the first loss that is not finite, or where a checkpoint would hold
            such a number; the last checkpoint stays.
        Interrupted: after SIGTERM or SIGINT at any worker, with a checkpoint of the last
            step made.
    """
    step, window = start
    shown = Progress(total_steps, step) if progress is None else progress
    finite = _make_finiteness_test(checkpointer.variables)

    def anywhere(flag: bool) -> bool:
        return flag if workers is None else workers.any(flag)

    def save(step: int, extra: bool = False) -> None:
        bad = finite()
        if anywhere(bad is not None):
            what = f"a number of the {bad}" if bad else "a number held by another worker"
            raise Diverged(f"{what} became NaN or infinite", step - 1)
        log.sync()
        with shown.doing("writing a checkpoint"):
            mark = {"window": window.state(), "rows": log.mark()}
            checkpointer.save(step, mark, extra=extra)

    def act(step: int) -> None:
        for action in actions:
            if action.when.due(step):
                with shown.doing("snapshots and probes"):
                    action.what(step)

    def stopped() -> Interrupted:
        who = stop.requested or "a signal to another worker"
        return Interrupted(f"stopped by {who} after step {step}")

    # A signal is answered between two calls, when a checkpoint can be saved.
    with shown, stop_signals() as stop, stop.deferred():
        act(step)
        clock, timed_from = time.perf_counter(), step
        while step < total_steps:
            stops = [action.when.next_due(step) for action in actions]
            count = min([cadence.next_stop(step, total_steps), *stops]) - step
            first = step == start[0]
            with shown.doing("compiling") if first else contextlib.nullcontext():
                losses, accuracies = train_steps(step, count)
            bad = np.flatnonzero(~np.isfinite(losses))
            if bad.size:
                loss = float(losses[bad[0]])
                raise Diverged(f"the training loss became {loss}", step + int(bad[0]))
            step += count
            window.extend(losses, accuracies)
            shown.advance(count)
            act(step)
            if cadence.due(cadence.log, step, total_steps):
                loss, accuracy = window.means()
                seconds = time.perf_counter() - clock
                log.train(step, loss, accuracy)
                log.speed(step, step - timed_from, seconds)
                shown.show_loss(loss)
                clock, timed_from = time.perf_counter(), step
            if cadence.due(cadence.evaluate, step, total_steps):
                with shown.doing("evaluating"):
                    evaluate(step)
                clock, timed_from = time.perf_counter(), step
            if cadence.due(cadence.checkpoint, step, total_steps):
                save(step)
                clock, timed_from = time.perf_counter(), step
            if anywhere(bool(stop.requested)):
                if not cadence.due(cadence.checkpoint, step, total_steps):
                    save(step, extra=True)
                if workers is not None:
                    workers.wait()  # for the chief's checkpoint
                raise stopped()
        if anywhere(bool(stop.requested)):  # while the last action was done
            raise stopped()


def _make_finiteness_test(variables: Mapping[str, Sequence[Any]]) -> Callable[[], str | None]:
    """A function that names a group holding NaN or infinity, or returns None.

    On a process of several replicas it looks at the first one's values, which are saved.
    """

    floating = {
        name: [variable for variable in group if variable.value.dtype.is_floating]
        for name, group in variables.items()
    }

    @tf.function
    def all_finite() -> Any:
        return {
            name: tf.reduce_all(
                [tf.reduce_all(tf.math.is_finite(variable.value)) for variable in group]
            )
            for name, group in floating.items()
        }

    def bad() -> str | None:
        found = [name for name, finite in all_finite().items() if not bool(finite.numpy())]
        return found[0] if found else None

    return bad


class Window:
    """Losses and accuracies since the last logged row.

    They are part of a checkpoint: a row that spans a restart is the same number.
    """

    def __init__(self, losses: Sequence[float] = (), accuracies: Sequence[float] = ()) -> None:
        self._losses = list(losses)
        self._accuracies = list(accuracies)

    def extend(self, losses: np.ndarray, accuracies: np.ndarray) -> None:
        self._losses += [float(x) for x in losses]
        self._accuracies += [float(x) for x in accuracies]

    def means(self) -> tuple[float, float]:
        """Mean loss and accuracy; empties the window."""
        means = float(np.mean(self._losses)), float(np.mean(self._accuracies))
        self._losses.clear()
        self._accuracies.clear()
        return means

    def state(self) -> dict[str, list[float]]:
        return {"losses": list(self._losses), "accuracies": list(self._accuracies)}


class _Window(TypedDict):
    losses: list[float]
    accuracies: list[float]


class _Progress(TypedDict):
    """What a checkpoint of `run` holds beside the variables."""

    window: _Window
    rows: Mark | None


def progress_problem(progress: dict[str, Any]) -> str | None:
    """What is wrong with going on from a checkpoint whose record this is, or None."""
    wrong = problem(progress, _Progress)
    return wrong and f"the checkpoint of step {progress['step']} is damaged: {wrong}"


def resume(checkpointer: Checkpointer, rows: pathlib.Path | None = None) -> tuple[int, Window]:
    """Restores the newest intact checkpoint if there is one.

    Args:
        checkpointer: of the run.
        rows: the file of rows the checkpoint's were part of.  A checkpoint whose rows are
            damaged counts as damaged itself, as their steps must be run again; what
            was written after those is dropped, whole or not.

    Returns:
        (step, the window of losses not yet logged).

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
    return step, Window(**progress["window"])
