"""Trajectories of probes: weights by step, read one at a time, and pairs of steps by lag."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lrtraj.probes.vectors import fingerprint, first_misfit, joined, shapes
from tf_lrtraj.values import error


def listed(weights: Any) -> list[Any]:
    """Returns the arrays of weights; the trainable ones of a Keras model or a `Point`."""
    if hasattr(weights, "trainable_variables"):
        from tf_lrtraj import backend

        return backend.to_numpy(backend.values(weights.trainable_variables))
    return list(weights.trainable if hasattr(weights, "trainable") else weights)


class InMemory:
    """A mapping step → weights as a trajectory."""

    def __init__(self, weights: Mapping[int, Any]) -> None:
        self._weights = dict(weights)
        self.steps = np.array(sorted(self._weights), np.int64)

    def read(self, step: int) -> Any:
        """Returns the weights of a step: arrays, a model or a `Point`."""
        return self._weights[step]


def is_trajectory(thing: Any) -> bool:
    """Returns whether `thing` has `steps` and `read(step)`."""
    return hasattr(thing, "steps") and callable(getattr(thing, "read", None))


def as_trajectory(trajectory: Any, name: str = "trajectory") -> Any:
    """Returns an object with `.steps` and `.read(step)`, for such an object or a mapping.

    Raises:
        ValueError: if it is neither, or its steps do not ascend.
    """
    if isinstance(trajectory, Mapping):
        trajectory = InMemory(trajectory)
    if not is_trajectory(trajectory):
        raise ValueError(
            f"`{name}` must have `.steps` and `.read(step)`, as averaging.Snapshots has, or be a "
            f"mapping step → arrays. Received: {type(trajectory).__name__}"
        )
    steps = np.asarray(trajectory.steps)
    if steps.ndim != 1 or steps.size < 2 or np.any(np.diff(steps) <= 0):
        raise error(f"{name}.steps", "at least 2 ascending step numbers", steps)
    return trajectory


def read_point(surface: Any, trajectory: Any, step: int) -> Any:
    """Returns the point of a step, as `surface.point` makes it; errors name the step."""
    try:
        return surface.point(trajectory.read(step))
    except ValueError as problem:
        raise ValueError(f"step {step} of the trajectory: {problem}") from problem


class Reader:
    """Reads a trajectory's trainable weights as flat vectors and caches the latest.

    Args:
        trajectory: an object with `.steps` and `.read(step)`.
        count: number of arrays, from the first on, that are weights; the others (batch-norm
            statistics) are ignored.  By default the trajectory's own `num_trainable`, or all.
        memory_limit: bytes for cached vectors; at least two are kept.

    Attributes:
        shapes: the shapes of the arrays that are read; known after the first read.
    """

    def __init__(
        self, trajectory: Any, *, count: int | None = None, memory_limit: int = 1 << 30
    ) -> None:
        self._trajectory = trajectory
        self._count = getattr(trajectory, "num_trainable", None) if count is None else count
        self._limit = memory_limit
        self._kept: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self.shapes: list[tuple[int, ...]] = []

    def arrays(self, step: int) -> list[Any]:
        """Returns the arrays of a step in their shapes.

        Raises:
            ValueError: if their shapes differ from those of an earlier step.
        """
        arrays = listed(self._trajectory.read(int(step)))[: self._count]
        found = shapes(arrays)
        if self.shapes and found != self.shapes:
            raise ValueError(
                f"all steps of a trajectory must hold arrays of the same shapes. Received: "
                f"step {int(step)} with {first_misfit(found, self.shapes)}"
            )
        self.shapes = found
        return arrays

    def __call__(self, step: int) -> np.ndarray:
        """Returns the [D] weights of a step, which must not be written to."""
        step = int(step)
        if step in self._kept:
            self._kept.move_to_end(step)
            return self._kept[step]
        vector = joined(self.arrays(step))
        self._kept[step] = vector
        while len(self._kept) > max(2, self._limit // max(vector.nbytes, 1)):
            self._kept.popitem(last=False)
        return vector


def default_lags(steps: np.ndarray, num: int = 16) -> np.ndarray:
    """Returns lags in updates, evenly spaced in the logarithm, up to a sixth of the trajectory.

    For larger lags there are too few disjoint intervals to estimate an error.

    >>> default_lags(np.arange(0, 1000, 10), num=5)
    array([ 10,  20,  40,  80, 160])
    """
    steps = np.asarray(steps)
    spacing = int(np.gcd.reduce(np.diff(steps)))
    longest = max(int(steps[-1] - steps[0]) // 6 // spacing, 1)
    lags = np.unique(np.round(np.geomspace(1, longest, num)).astype(np.int64)) * spacing
    return lags[(earlier(steps, lags) >= 0).any(axis=1)]


def check_lags(lags: Any, steps: np.ndarray) -> np.ndarray:
    """Checks lags and returns them as [L] int64; `default_lags` for None.

    Raises:
        ValueError: if they are not ascending positive integers, or a lag is not the distance of two
        steps (it is named).
    """
    if lags is None:
        return default_lags(steps)
    found = np.asarray(lags)
    if (
        found.ndim != 1
        or found.size == 0
        or found.dtype.kind not in "iu"
        or found[0] < 1
        or np.any(np.diff(found) <= 0)
    ):
        raise error("lags", "ascending positive integers", lags)
    found = found.astype(np.int64)
    span = int(steps[-1] - steps[0])
    if found[-1] > span:
        allowed = f"at most {span}, from the first step to the last"
        raise error("lags", allowed, int(found[-1]))
    lonely = ~(earlier(steps, found) >= 0).any(axis=1)
    if lonely.any():
        raise ValueError(
            "every one of `lags` must be the distance of two of the steps, which are "
            f"{int(np.gcd.reduce(np.diff(steps)))} or a multiple of it apart. "
            f"Received: {int(found[lonely][0])}"
        )
    return found


def earlier(steps: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Returns the [L, K] positions of `steps[k] - lags[l]` among the steps; -1 if it is not one.

    >>> earlier(np.array([0, 2, 4]), np.array([2, 4]))
    array([[-1,  0,  1],
           [-1, -1,  0]])
    """
    steps = np.asarray(steps, np.int64)
    wanted = steps[None, :] - np.asarray(lags, np.int64)[:, None]
    places = np.minimum(np.searchsorted(steps, wanted), steps.size - 1)
    return np.where(steps[places] == wanted, places, -1)


def checked_steps(trajectory: Any) -> dict[str, str]:
    """Returns the description of a trajectory for a record, with checksums of its ends."""
    steps = np.asarray(trajectory.steps)
    return {
        "first_weights": fingerprint(listed(trajectory.read(int(steps[0])))),
        "last_weights": fingerprint(listed(trajectory.read(int(steps[-1])))),
    }
