"""Named points of a run in weight space: snapshots, checkpoints, averages of snapshots."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import backend, records
from tf_lrtraj.averaging.post_hoc import average_snapshots
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.runs.assembly import Assembly
from tf_lrtraj.runs.kernel_parsing import parse_average
from tf_lrtraj.runs.run_config import ConfigError
from tf_lrtraj.training.checkpoints import Checkpointer, CheckpointError
from tf_lrtraj.values import error

SNAPSHOTS, CHECKPOINTS = "snapshots", "checkpoints"
_TRIP = re.compile(r"trip:([^:]+)(?::(\d+))?")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|percent)")


class RunWeights:
    """Weights of a run at its steps, read from disk one step at a time.

    It has `steps` and `read(step)`, as `Snapshots` has, so probes accept it as a trajectory.

    Args:
        assembly: the run's parts; checkpoints are read into its model and optimizer.
        workdir: the run's folder.
        checkpoints: whether to use checkpoints; not possible while the model is being trained.

    Raises:
        RecordError: if the run has neither snapshots nor checkpoints.
        ConfigError: if its snapshots are of another model.
    """

    def __init__(
        self, assembly: Assembly, workdir: str | os.PathLike[str], *, checkpoints: bool = True
    ) -> None:
        self.workdir = pathlib.Path(workdir)
        self._assembly = assembly
        self.snapshots: Snapshots | None = None
        if (self.workdir / SNAPSHOTS).is_dir():
            self.snapshots = Snapshots(self.workdir / SNAPSHOTS)
            self._check(self.snapshots)
        self.num_trainable = len(assembly.model.trainable_variables)
        groups = {key: assembly.checkpointed[key] for key in ("model", "optimizer")}
        self._checkpointer = Checkpointer(self.workdir / CHECKPOINTS, groups, writer=False)
        self._checkpoints = self._checkpointer.steps() if checkpoints else []
        self._restored: int | None = None
        taken = [] if self.snapshots is None else self.snapshots.steps.tolist()
        self.steps = np.array(sorted({*taken, *self._checkpoints}), np.int64)
        if not self.steps.size:
            raise records.RecordError(
                f"{workdir} holds neither snapshots nor checkpoints. A run writes snapshots with, "
                "for example, --config.snapshots.every='20 steps'"
            )

    def _check(self, snapshots: Snapshots) -> None:
        expected = [tuple(v.shape) for v in bn.weights_and_statistics(self._assembly.model)]
        found = [v.shape for v in snapshots.variables]
        if found != expected:
            raise ConfigError(
                f"the snapshots in {self.workdir / SNAPSHOTS} are of another model: they hold "
                f"{len(found)} variables, and the model has {len(expected)}"
            )

    def __len__(self) -> int:
        return len(self.steps)

    def read(self, step: int) -> list[Any]:
        """Returns the trainable arrays, then mean and variance of each batch-norm layer in turn.

        Raises:
            ConfigError: if there is no such step; the message lists the steps.
        """
        if self.snapshots is not None and step in self.snapshots.steps:
            return self.snapshots.read(step)
        if step not in self._checkpoints:
            raise ConfigError(
                f"{self.workdir} holds no snapshot or checkpoint of step {step}. "
                f"Steps: {_shown(self.steps)}"
            )
        self._restore(step)
        variables = bn.weights_and_statistics(self._assembly.model)
        return backend.to_numpy(backend.values(variables))

    def velocity(self, step: int) -> list[Any]:
        """Returns the optimizer's velocity v of θ ← θ + v at a step, from a checkpoint.

        Raises:
            ConfigError: if there is no checkpoint of that step, or no momentum.
        """
        if step not in self._checkpoints:
            raise ConfigError(
                f"the velocity at step {step} needs a checkpoint of it (snapshots hold weights "
                f"only). Checkpoints: {self._checkpoints}"
            )
        self._restore(step)
        return velocity_of(self._assembly.optimizer)

    def _restore(self, step: int) -> None:
        if self._restored != step:
            try:
                self._checkpointer.restore(step)
            except (CheckpointError, FileNotFoundError) as problem:
                raise ConfigError(str(problem)) from None
            self._restored = step

    def nearest(self, text: str) -> int:
        """Returns the step that `text` names: a number, "last", "first", or a share ("50%").

        A share selects the nearest step; a number must be a step of the run.

        Raises:
            ConfigError: if it names none.
        """
        return nearest_step(text, self.steps, self._assembly.plan.total_steps, self.workdir)

    def named(
        self,
        texts: Sequence[str],
        trip_end: Callable[[int, int], Any] | None = None,
    ) -> dict[str, Any]:
        """Returns weights by name: of steps, of averages of snapshots, of ends of side trips.

        Args:
            texts: steps as for `nearest`, kernels as for `parse_average`, or `trip:STEP:BATCH`,
                each with an optional NAME= before it.
            trip_end: (step, number of the batch) → weights at the end of a side trip.

        Raises:
            ConfigError: for texts that are neither, and names given twice.
        """
        found: dict[str, Any] = {}
        for text in texts:
            name, weights = self._one(text, trip_end)
            if name in found:
                raise ConfigError(
                    f"two points are named {name!r}: give one of them another name with NAME=…"
                )
            found[name] = weights
        return found

    def _one(self, text: str, trip_end: Any) -> tuple[str, Any]:
        point = parse_point(text, trips=trip_end is not None)
        if point.kernel is None:
            step = self.nearest(point.step)
            if point.batch is None:
                return point.name or str(step), self.read(step)
            assert trip_end is not None
            return point.name or f"trip-{step}-{point.batch}", trip_end(step, point.batch)
        try:
            if self.snapshots is None:
                raise ValueError("averages need snapshots, and the run has none")
            built = average_snapshots(self.snapshots, {point.name: point.kernel}, progress=False)
        except ValueError as problem:
            raise ConfigError(f"the point {text!r}: {problem}") from None
        return point.name, built[point.name].arrays


@dataclasses.dataclass(frozen=True)
class Point:
    """A parsed point: a step, the end of a side trip from it, or an average of snapshots.

    Attributes:
        name: its given name; empty for that of the step.
        step: a text for `nearest_step`; empty for an average.
        batch: number of the side trip's batch; None if it is not the end of a trip.
        kernel: the kernel of an average, else None.
    """

    name: str
    step: str = ""
    batch: int | None = None
    kernel: Any = None


def parse_point(text: str, *, trips: bool = False) -> Point:
    """Parses a point as for `RunWeights.named`.

    Raises:
        ConfigError: if the text is not a point.

    >>> parse_point("end=trip:50%:3", trips=True)
    Point(name='end', step='50%', batch=3, kernel=None)
    """
    name, equals, rest = text.partition("=")
    plain = (rest if equals else text).strip()
    given = name if equals else ""
    trip = _TRIP.fullmatch(plain)
    if trip and trips:
        return Point(given, trip.group(1), int(trip.group(2) or 0))
    if plain in ("first", "last") or plain[:1].isdigit():
        return Point(given, plain)
    try:
        name, kernel = parse_average(text)
    except ValueError as problem:
        raise ConfigError(f"the point {text!r}: {problem}") from None
    return Point(name, kernel=kernel)


def check_trip(batch: int | None, count: int, text: Any) -> None:
    """Checks that a side trip's batch is one of the training batches.

    Raises:
        ConfigError: if it is not.
    """
    if batch is not None and batch >= count:
        allowed = f"with the number of one of the {count} training batches, from 0, in the end"
        raise error("trip", allowed, text, ConfigError)


def nearest_step(text: str, steps: Any, total: int, where: str | os.PathLike[str]) -> int:
    """Returns the one of [n] `steps` that `text` names; see `RunWeights.nearest`.

    Args:
        text: "first", "last", a share such as "50%", or a number.
        steps: ascending, not empty.
        total: steps of the whole run, for shares.
        where: the place of the steps, for the message.

    Raises:
        ConfigError: if it names none.

    >>> nearest_step("40%", np.array([0, 50, 100]), 100, "runs/a")
    50
    """
    text = text.strip()
    if text in ("first", "last"):
        return int(steps[0 if text == "first" else -1])
    share = _PERCENT.fullmatch(text)
    if share and float(share.group(1)) <= 100:
        wanted = float(share.group(1)) / 100 * total
        return int(steps[np.argmin(np.abs(steps - wanted))])
    if not text.isdigit() or int(text) not in steps:
        known = f"one of the steps in {where}, {_shown(steps)}"
        raise error(
            "step", f'"first", "last", a share such as "50%", or {known}', text, ConfigError
        )
    return int(text)


class Slice:
    """Some of the steps of a trajectory.

    Args:
        trajectory: an object with `read(step)`.
        steps: the steps to keep, ascending.
    """

    def __init__(self, trajectory: Any, steps: Sequence[int]) -> None:
        self._trajectory = trajectory
        self.steps = np.asarray(steps, np.int64)
        self.num_trainable = trajectory.num_trainable

    def __len__(self) -> int:
        return len(self.steps)

    def read(self, step: int) -> list[Any]:
        return self._trajectory.read(step)


def velocity_of(optimizer: Any) -> list[Any]:
    """Returns SGD's velocities in the order of the trainable variables.

    Raises:
        ConfigError: if it keeps none.
    """
    # SGD's velocity of θ ← θ + v; the momenta of other optimizers are averages of gradients.
    own = getattr(optimizer, "momentums", None) if type(optimizer).__name__ == "SGD" else None
    velocities = [v for v in own or [] if v is not None]
    if not velocities:
        raise ConfigError("the run has no momentum, so there is no velocity")
    return backend.to_numpy(backend.values(velocities))


def _shown(steps: Any) -> str:
    numbers = [str(step) for step in steps]
    return ", ".join(numbers if len(numbers) <= 12 else [*numbers[:6], "…", *numbers[-5:]])


def spaced(run_weights: RunWeights, first: str | None, last: str | None) -> Slice:
    """Returns equally spaced snapshots (or, without any, checkpoints) from `first` to `last`.

    Raises:
        ConfigError: if there are fewer than 3 equally spaced ones.
    """
    low, high = run_weights.nearest(first or "first"), run_weights.nearest(last or "last")
    steps = run_weights.steps if run_weights.snapshots is None else run_weights.snapshots.steps
    return Slice(run_weights, equally_spaced(steps, low, high))


def equally_spaced(steps: Any, low: int, high: int) -> list[int]:
    """Returns equally spaced steps from `low` to `high`.

    Raises:
        ConfigError: if there are fewer than 3.

    >>> equally_spaced(np.array([0, 10, 20, 30]), 5, 30)
    [10, 20, 30]
    """
    inside = steps[(steps >= low) & (steps <= high)]
    if inside.size >= 3:
        spacing = int(np.min(np.diff(inside)))
        inside = inside[(inside - inside[0]) % spacing == 0]
        if inside.size >= 3 and np.all(np.diff(inside) == spacing):
            return [int(step) for step in inside]
    raise ConfigError(
        f"needs at least 3 equally spaced snapshots between steps {low} and {high}. "
        f"Received: {_shown(inside)}"
    )
