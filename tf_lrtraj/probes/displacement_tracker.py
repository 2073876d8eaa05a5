r"""Squared displacement of weights against lag, from iterates given one at a time.

Plain NumPy.  For a stationary run of the quadratic model (docs/theory/model.md)

.. math:: \mathbb E\lVert\theta_{t+\Delta} - \theta_t\rVert^2
   = 2\operatorname{tr}\bigl[(I - (I - \lambda A)^\Delta)\,S\bigr],

which levels off at :math:`2\operatorname{tr} S`; a random walk grows as :math:`\Delta`, a
steady drift as :math:`\Delta^2`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes.block_means import block_mean, growth
from tf_lrtraj.probes.filters import Filters
from tf_lrtraj.probes.flat_vectors import RunningMean, dot, joined, square_distance
from tf_lrtraj.probes.record import ProbeRecord
from tf_lrtraj.probes.sketches import Sketch
from tf_lrtraj.probes.trajectory import ascending_lags, earlier
from tf_lrtraj.records import ArrayRecord

KIND = "distance"


# Records --------------------------------------------------------------------------------------

OF_STEPS = ("norm", "from_start", "from_mean")


def empty_record(
    steps: np.ndarray,
    lags: np.ndarray,
    about: dict[str, Any],
    *,
    filters: bool = False,
    reference: bool = False,
    sketch_size: int | None = None,
) -> ArrayRecord:
    """A record of displacements; those that no two steps give are inf."""
    pairs: tuple[str, ...] = ("squared", "filters_squared") if filters else ("squared",)
    coordinates: dict[str, Any] = {"lag": lags, "step": steps}
    dims: dict[str, tuple[str, ...]] = {name: ("lag", "step") for name in pairs}
    dims |= {name: ("step",) for name in OF_STEPS}
    if reference:
        dims["from_reference"] = ("step",)
    for name in pairs:
        dims[f"mean_{name}"] = dims[f"mean_{name}_se"] = ("lag",)
        dims[f"{name}_growth"] = dims[f"{name}_growth_se"] = ()
    if sketch_size is not None:
        coordinates["component"] = np.arange(sketch_size)
        for name in pairs:
            dims[f"{name}_sketch"] = ("step", "component")
    record = ArrayRecord.empty(KIND, coordinates, dims, about)
    for name in pairs:
        record.values[name][earlier(steps, lags) < 0] = np.inf
    return record


def summarise(record: ArrayRecord) -> None:
    """Fills in means by lag, their errors, and the growth at large lags."""
    steps, lags = record.coordinates["step"], record.coordinates["lag"]
    for name in ("squared", "filters_squared"):
        if name not in record.values:
            continue
        values = record.values[name]
        for row, lag in enumerate(lags.tolist()):
            here = np.isfinite(values[row])
            if not here.any():
                record.put(f"mean_{name}", row, np.inf)
                record.put(f"mean_{name}_se", row, np.inf)
                continue
            found = block_mean(steps[here] - lag, values[row, here], lag)
            record.put(f"mean_{name}", row, found.value)
            record.put(f"mean_{name}_se", row, found.error)
        slope = growth(steps, lags, values)
        record.put(f"{name}_growth", (), slope.value)
        record.put(f"{name}_growth_se", (), slope.error)


# Streaming ------------------------------------------------------------------------------------


class DisplacementTracker:
    """Displacements of a run whose iterates are given one at a time and not kept.

    What is held: the start and the running mean, and a ring of the iterates of the last
    `max(lags)` updates, exactly if that fits into `memory_limit`, otherwise as sketches of
    `sketch_size` numbers.

    Args:
        lags: ascending, in updates.
        every: updates from one iterate to the next.
        exact: True or False to choose; None for exact where it fits.
        sketch_size: numbers kept of an iterate where it does not.
        memory_limit: bytes that the ring may take.
        starts_per_lag: a displacement of lag Δ is taken from one start in every
            Δ / `starts_per_lag` updates; starts closer than that say the same.
        filters: displacements between normalised filters as well (`Filters`).
        filter_axes: as `Filters` takes them.
        seed: of the sketches.

    Raises:
        ValueError: for lags that do not ascend or are no multiples of `every`.

    >>> tracker = DisplacementTracker([1, 2])
    >>> for step in range(5):
    ...     tracker.add(step, [np.array([3.0 * step, 4.0 * step])])
    >>> tracker.record().values["mean_squared"]
    array([ 25., 100.])
    """

    def __init__(
        self,
        lags: Sequence[int],
        *,
        every: int = 1,
        exact: bool | None = None,
        sketch_size: int = 4096,
        memory_limit: int = 1 << 30,
        starts_per_lag: int = 8,
        filters: bool = False,
        filter_axes: Sequence[tuple[int, ...]] | None = None,
        seed: int = 0,
    ) -> None:
        self.lags = ascending_lags(lags)
        for name, value in (("every", every), ("starts_per_lag", starts_per_lag)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{name}` must be an integer of at least 1. Received: {name}={value!r}"
                )
        if np.any(self.lags % every):
            odd = int(self.lags[self.lags % every != 0][0])
            raise ValueError(
                f"`lags` must be multiples of `every` = {every}, the updates from one iterate "
                f"to the next. Received: {odd}"
            )
        self._every = every
        self._exact = exact
        self._sketch_size, self._seed = sketch_size, seed
        self._limit = memory_limit
        self._strides = np.maximum(self.lags // every // starts_per_lag, 1)
        self._with_filters, self._filter_axes = filters, filter_axes
        self._filters: Filters | None = None
        self._sketches: list[Sketch] = []
        self._shapes: list[tuple[int, ...]] = []
        self._start = np.zeros(0)
        self._mean = RunningMean()
        self._ring: dict[int, list[np.ndarray]] = {}
        self._steps: list[int] = []
        self._of_steps: list[tuple[float, float, float]] = []
        self._found: list[tuple[int, int, tuple[float, ...]]] = []  # (lag, step, squares)

    @property
    def exact(self) -> bool | None:
        """Whether iterates are kept exactly; None before the first came."""
        return self._exact

    def memory(self, size: int, itemsize: int = 4) -> tuple[int, int]:
        """Bytes of the ring for iterates of `size` numbers: (exact, as sketches)."""
        entries = int(self.lags[-1]) // self._every + 1
        sketches = 2 if self._with_filters else 1
        return entries * size * itemsize, entries * sketches * self._sketch_size * 8

    def add(self, step: int, arrays: Sequence[Any]) -> None:
        """Takes the iterate after `step` updates.

        Args:
            step: larger than every one before.
            arrays: the weights, without batch-norm statistics.

        Raises:
            ValueError: for a step that does not ascend, or arrays of other shapes than before.
        """
        step = int(step)
        if self._steps and step <= self._steps[-1]:
            raise ValueError(
                f"`step` must be larger than {self._steps[-1]}, the last. Received: step={step}"
            )
        shapes = [tuple(np.shape(array)) for array in arrays]
        if self._shapes and shapes != self._shapes:
            raise ValueError(
                f"`arrays` must have the shapes of the first iterate. Received: shapes={shapes}"
            )
        vector = joined(arrays)
        if not self._shapes:
            self._begin(shapes, vector)
        self._mean.add(vector)
        self._steps.append(step)
        self._of_steps.append(
            (
                math.sqrt(dot(vector, vector)),
                math.sqrt(square_distance(vector, self._start)),
                math.sqrt(square_distance(vector, self._mean.value)),
            )
        )
        kept = [vector]
        if self._sketches:
            parts = [vector] + ([self._filters.normalised(vector)] if self._filters else [])
            kept = [sketch(part) for sketch, part in zip(self._sketches, parts, strict=True)]
        for row, (lag, stride) in enumerate(zip(self.lags.tolist(), self._strides, strict=True)):
            then = self._ring.get(step - lag)
            if then is not None and (step // self._every) % stride == 0:
                self._found.append((row, step, self._squares(then, kept)))
        self._ring[step] = kept
        for old in [s for s in self._ring if s <= step - int(self.lags[-1])]:
            del self._ring[old]

    def _begin(self, shapes: list[tuple[int, ...]], vector: np.ndarray) -> None:
        self._shapes = shapes
        self._start = vector
        if self._exact is None:
            self._exact = self.memory(vector.size, vector.itemsize)[0] <= self._limit
        if self._with_filters:
            self._filters = Filters(shapes, self._filter_axes)
        if not self._exact:
            sizes = [vector.size] + ([self._filters.size] if self._filters else [])
            self._sketches = [
                Sketch(size, self._sketch_size, [self._seed, number])
                for number, size in enumerate(sizes)
            ]

    def _squares(self, then: list[np.ndarray], now: list[np.ndarray]) -> tuple[float, ...]:
        squares = [square_distance(then[0], now[0])]
        if self._filters is not None:
            if self._exact:
                squares.append(self._filters.square_distance(then[0], now[0]))
            else:
                squares.append(square_distance(then[1], now[1]) / self._filters.count)
        return tuple(squares)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `restore` needs to go on, the ring included, as arrays for `np.savez`.

        Raises:
            ValueError: before the first iterate has come.
        """
        if not self._steps:
            raise ValueError("there is no state before the first iterate. Received: 0 iterates")
        ring = sorted(self._ring)
        state = {
            "lags": self.lags,
            "steps": np.array(self._steps, np.int64),
            "of_steps": np.array(self._of_steps),
            "found": np.array([(row, step, *squares) for row, step, squares in self._found]),
            "start": self._start,
            "mean": self._mean.value,
            "shapes": np.array([str(shape) for shape in self._shapes]),
            "ring": np.array(ring, np.int64),
            "exact": np.array(self._exact),
        }
        for number in range(len(self._ring[ring[0]])):
            state[f"ring_{number}"] = np.stack([self._ring[step][number] for step in ring])
        return state

    def restore(self, state: Mapping[str, np.ndarray], like: Sequence[Any]) -> None:
        """Goes on from what `state` returned in a tracker of the same options.

        Args:
            state: arrays by name.
            like: weights in their shapes, such as the model's.

        Raises:
            ValueError: if the state is of other weights, or of other options.
        """
        shapes = [tuple(np.shape(array)) for array in like]
        if [str(shape) for shape in shapes] != state["shapes"].tolist():
            raise ValueError(
                f"`state` is of weights of shapes {state['shapes'].tolist()}. "
                f"Received: like={shapes}"
            )
        if not np.array_equal(state["lags"], self.lags):
            raise ValueError(
                f"`state` must be of this tracker's lags, {self.lags.tolist()}. "
                f"Received: lags {state['lags'].tolist()}"
            )
        self._exact = bool(state["exact"])
        self._begin(shapes, np.array(state["start"]))
        rings = [state[name] for name in ("ring_0", "ring_1") if name in state]
        wanted = [sketch.k for sketch in self._sketches] or [self._start.size]
        if [ring.shape[1] for ring in rings] != wanted:
            raise ValueError(
                f"`state` must hold iterates of {wanted} numbers, as this tracker keeps them. "
                f"Received: {[ring.shape[1] for ring in rings]}"
            )
        self._mean.count, self._mean.value = len(state["steps"]), np.array(state["mean"])
        self._steps = state["steps"].tolist()
        self._of_steps = [tuple(row) for row in state["of_steps"].tolist()]
        self._found = [
            (int(row), int(step), tuple(squares)) for row, step, *squares in state["found"].tolist()
        ]
        self._ring = {
            step: [ring[i].copy() for ring in rings]
            for i, step in enumerate(state["ring"].tolist())
        }

    def record(self) -> ProbeRecord:
        """Everything so far, as `displacement` returns it; starts left out are inf.

        Raises:
            ValueError: before two iterates have come.
        """
        if len(self._steps) < 2:
            raise ValueError(
                f"there is nothing to tell of fewer than 2 iterates. Received: {len(self._steps)}"
            )
        steps = np.array(self._steps, np.int64)
        sketched = None if self._exact else self._sketch_size
        about = {"num_weights": int(self._start.size), "sketch_size": sketched, "seed": self._seed}
        record = empty_record(steps, self.lags, about, filters=self._with_filters)
        names = ("squared", "filters_squared") if self._with_filters else ("squared",)
        for name in names:
            record.values[name][...] = np.inf
        places = {step: i for i, step in enumerate(self._steps)}
        for row, step, squares in self._found:
            for name, square in zip(names, squares, strict=True):
                record.put(name, (row, places[step]), square)
        for name, column in zip(OF_STEPS, np.array(self._of_steps).T, strict=True):
            record.put(name, slice(None), column)
        summarise(record)
        return ProbeRecord.of(record)
