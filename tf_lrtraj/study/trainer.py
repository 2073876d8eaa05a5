"""SGD through `model.fit` with a given rate for each step, from one state to another.

All runs use one model and one compiled step: weights, velocities and rates are assigned to them.  A
run is divided into segments.  Each segment is one call of `fit` that begins and ends at a state on
disk, so an interruption loses at most one segment, and a resumed run has the same bits.
TensorFlow is not needed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.averaging.snapshot_recorder import SnapshotRecorder
from tf_lrtraj.study.problem import Problem
from tf_lrtraj.study.state_files import read_arrays, write_arrays
from tf_lrtraj.training.stopping import Diverged

__all__ = ["Run", "Trainer", "Watch", "arrays_of", "state_name", "state_of"]

_STATE = re.compile(r"state-(\d{9})\.npz")


def state_name(step: int) -> str:
    """Returns the file name of a run's state after `step` updates."""
    return f"state-{step:09d}.npz"


def state_of(weights: Sequence[Any]) -> dict[str, np.ndarray]:
    """Returns the values of Keras variables with the names of a state."""
    arrays = backend.to_numpy(backend.values(weights))
    return {f"weights/{i}": array for i, array in enumerate(arrays)}


def arrays_of(state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Returns a state's trainable weights and then batch-norm statistics, as in snapshots."""
    count = sum(name.startswith("weights/") for name in state)
    return [state[f"weights/{i}"] for i in range(count)]


class Trainer:
    """Trains a model on batches, with one compiled step.

    Args:
        model: the model; its loss may have decay terms (`variable.regularizer`).
        loss: the loss without decay terms.
        problem: the data.
        batch_size: the size of training batches.
    """

    def __init__(self, model: keras.Model, loss: Any, problem: Problem, batch_size: int) -> None:
        self.model = model
        self.problem = problem
        self.batch_size = batch_size
        self._loss = loss
        self._momentum: float | None = None

    def _weights(self) -> list[Any]:
        return [*self.model.trainable_variables, *self.model.non_trainable_variables]

    def compile(self, momentum: float) -> None:
        """Compiles the step for this momentum, unless it is compiled already."""
        if momentum == self._momentum:
            return
        optimizer = keras.optimizers.SGD(0.0, momentum=momentum)
        self.model.compile(
            optimizer,
            self._loss,
            metrics=[
                keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy")
            ],
        )
        optimizer.build(self.model.trainable_variables)
        self._momentum = momentum

    def put(self, state: dict[str, np.ndarray], step: int) -> None:
        """Assigns a state to the model; a velocity that is missing or does not fit is 0."""
        weights, optimizer = self._weights(), self.model.optimizer
        backend.assign(weights, [state[f"weights/{i}"] for i in range(len(weights))])
        for i, variable in enumerate(self._velocities()):
            array = state.get(f"velocity/{i}")
            backend.assign(
                [variable], [np.zeros(variable.shape, np.float32) if array is None else array]
            )
        optimizer.iterations.assign(step)

    def take(self) -> dict[str, np.ndarray]:
        """Returns the model's state."""
        velocities = backend.to_numpy(backend.values(self._velocities()))
        return state_of(self._weights()) | {
            f"velocity/{i}": array for i, array in enumerate(velocities)
        }

    def _velocities(self) -> list[Any]:
        return list(self.model.optimizer.momentums) if self._momentum else []

    def steps(
        self,
        first: int,
        rates: np.ndarray,
        order_seed: int,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        log_every: int = 50,
    ) -> list[tuple[int, float]]:
        """Makes one step for each rate, on the batches of steps `first`, `first + 1`, ….

        Returns:
            (step, mean loss of the batches since the previous entry), every `log_every` steps.

        Raises:
            Diverged: if a loss is not finite.
        """
        log = _Log(first, log_every)
        batches = self.problem.training_batches(self.batch_size, order_seed, first, len(rates))
        self.model.fit(
            batches,
            epochs=1,
            steps_per_epoch=len(rates),
            shuffle=False,
            verbose=0,
            callbacks=[_Rates(rates), log, *callbacks],
        )
        return log.rows


class _Rates(keras.callbacks.Callback):
    """Sets the rate of each step if it changes."""

    def __init__(self, rates: np.ndarray) -> None:
        super().__init__()
        self._rates = np.asarray(rates, np.float32)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 0 or self._rates[batch] != self._rates[batch - 1]:
            self.model.optimizer.learning_rate = float(self._rates[batch])


class _Log(keras.callbacks.Callback):
    """Means of the batches' losses, from the running mean of `fit`."""

    def __init__(self, first: int, every: int) -> None:
        super().__init__()
        self.rows: list[tuple[int, float]] = []
        self._first = first
        self._every = every
        self._seen = (0, 0.0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        count = batch + 1
        if (self._first + count) % self._every and count != self.params["steps"]:
            return
        mean = float((logs or {})["cross_entropy"])
        seen, before = self._seen
        loss = (mean * count - before * seen) / (count - seen)
        if not math.isfinite(loss):
            raise Diverged(
                f"the training loss became {loss}", self._first + seen, self._first + count
            )
        self.rows.append((self._first + count, loss))
        self._seen = (count, mean)


class Watch:
    """Additional work during the segments of a run; by default none."""

    def callbacks(self, low: int, high: int) -> list[keras.callbacks.Callback]:
        """Returns the callbacks of the segment from step `low` to `high`."""
        return []

    def done(self, run: Run, low: int, high: int) -> None:
        """Called after the segment, before the state at its end is written.

        Its files therefore exist whenever the state exists.
        """


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run on disk, trained segment by segment.

    Attributes:
        trainer: the trainer.
        folder: the folder of its states and snapshots.
        first: the step from which it starts.
        rates: [n] rates of its steps.
        momentum: the momentum of SGD.
        order_seed: the seed of the order of the batches.
        start: () → its initial state.
        keep: steps whose states are kept; the last is always kept.
        segment: largest number of steps between states.
        snapshots: (name of the folder, every, first step, last step) of iterates to keep.
        log_every: steps per entry in the log of batch losses.
        whole: (first, last) steps of disjoint intervals that are one segment of any length.
    """

    trainer: Trainer
    folder: pathlib.Path
    first: int
    rates: np.ndarray
    momentum: float
    order_seed: int
    start: Callable[[], dict[str, np.ndarray]]
    keep: tuple[int, ...] = ()
    segment: int = 1000
    snapshots: tuple[tuple[str, int, int, int], ...] = ()
    log_every: int = 50
    whole: tuple[tuple[int, int], ...] = ()

    @property
    def last(self) -> int:
        return self.first + len(self.rates)

    def path(self, step: int) -> pathlib.Path:
        return self.folder / state_name(step)

    def state(self, step: int | None = None) -> dict[str, np.ndarray]:
        """Returns a kept state; the last by default."""
        return read_arrays(self.path(self.last if step is None else step))

    def arrays(self, step: int | None = None) -> list[np.ndarray]:
        """Returns weights and statistics of a kept state; the last by default."""
        return arrays_of(self.state(step))

    def log(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (steps, mean batch loss since the previous entry) from the run's first step
        on."""
        state = self.state()
        return state["log_steps"], state["log_loss"]

    def _bounds(self) -> list[int]:
        cuts = {self.first, self.last, *self.keep}
        cuts |= {step for _, _, low, high in self.snapshots for step in (low, high)}
        cuts = {step for step in cuts if self.first <= step <= self.last}
        for low, high in self.whole:
            cuts |= {low, high}
            cuts -= set(range(low + 1, high))
        ordered, bounds = sorted(cuts), [self.first]
        for low, high in itertools.pairwise(ordered):
            pieces = 1 if (low, high) in self.whole else math.ceil((high - low) / self.segment)
            bounds += [low + round((high - low) * (i + 1) / pieces) for i in range(pieces)]
        return bounds

    def finish(
        self, watch: Watch | None = None, progress: Callable[[int], Any] = lambda _: None
    ) -> None:
        """Trains the missing steps of the run.

        Args:
            watch: additional work during the segments.
            progress: called with numbers of steps made.
        """
        watch = watch or Watch()
        bounds = self._bounds()
        at = max((i for i, step in enumerate(bounds) if self.path(step).exists()), default=-1)
        if at == len(bounds) - 1:
            progress(len(self.rates))
            return
        bounds = bounds[max(at, 0) :]
        trainer = self.trainer
        trainer.compile(self.momentum)
        state = dict(self.start()) if at < 0 else self.state(bounds[0])
        # A run that starts from another run's state has a new log.
        steps, losses = (state.pop(f"log_{name}", np.zeros(0)) for name in ("steps", "loss"))
        log = [] if at < 0 else list(zip(steps.tolist(), losses.tolist(), strict=True))
        trainer.put(state, bounds[0])
        progress(bounds[0] - self.first)
        for low, high in itertools.pairwise(bounds):
            recorders = [
                SnapshotRecorder(self.folder / name, every=every, start=begin)
                for name, every, begin, end in self.snapshots
                if begin <= low and high <= end
            ]
            rates = self.rates[low - self.first : high - self.first]
            callbacks = [*recorders, *watch.callbacks(low, high)]
            log += trainer.steps(low, rates, self.order_seed, callbacks, self.log_every)
            watch.done(self, low, high)
            rows = np.array(log, np.float64).reshape(-1, 2)
            write_arrays(
                self.path(high),
                trainer.take() | {"log_steps": rows[:, 0].astype(np.int64), "log_loss": rows[:, 1]},
            )
            self._forget(high)
            progress(high - low)

    def _forget(self, now: int) -> None:
        """Deletes states before `now` that are not needed any more."""
        for path in self.folder.glob("state-*.npz"):
            match = _STATE.fullmatch(path.name)
            if match and int(match.group(1)) < now and int(match.group(1)) not in self.keep:
                path.unlink()
