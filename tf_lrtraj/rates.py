r"""Learning-rate formulas: step → rate.

A rate is a plain, immutable formula :math:`t \mapsto \lambda_t`.  It knows
nothing of Keras, so training, theory and plots all read the same object;
`tf_lrtraj.schedules.RateSchedule` hands it to a Keras optimizer.

**Steps and boundaries.**  `step` counts the updates already made, so `rate(t)`
is :math:`\lambda_t`, the rate of the update :math:`\theta_t \to \theta_{t+1}`,
and a run of T updates uses `rate(0)` to `rate(T - 1)`.  A change at boundary
`b` takes effect *at* step `b`: the update :math:`\theta_b \to \theta_{b+1}` is
the first with the new value.  This holds for every formula here: a ramp of
`steps` updates has its start value at step 0 and its end value from step
`steps` on.

Every formula is written once (`Rate.value`) against an array namespace, which
is NumPy in float64 here and `keras.ops`, mostly in float32, in the Keras twin.
So that both agree at every step, boundaries are compared as integers, and what
vanishes towards the end of a decay is computed from the steps that are left,
not as a difference from one.

Example:

>>> from tf_lrtraj import rates
>>> rate = rates.Warmup(rates.Linear(start=0.4, steps=4), steps=2)
>>> rates.as_array(rate, 7)
array([0. , 0.2, 0.4, 0.3, 0.2, 0.1, 0. ])
>>> rates.Piecewise(boundaries=[2], values=[0.5, 0.25])(2)
0.25
>>> rates.from_config({"rate": "Cosine", "start": 0.1, "steps": 10})
Cosine(start=0.1, steps=10, end=0.0)
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, overload

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.configurable import (
    Configurable,
    Family,
    Parameter,
    PositiveSteps,
    Steps,
    is_config,
)

__all__ = [
    "Constant",
    "Cosine",
    "Cyclical",
    "Exponential",
    "InverseTime",
    "KerasSchedule",
    "Linear",
    "OneMinusSqrt",
    "Piecewise",
    "Rate",
    "Scaled",
    "Sequence",
    "Table",
    "Triangular",
    "Warmup",
    "as_array",
    "as_rate",
    "from_config",
    "look_up",
]


_NOT_NEGATIVE = values.number(0)
Level = Annotated[float, Parameter(_NOT_NEGATIVE)]


def _read_boundaries(given: Any) -> tuple[int, ...]:
    boundaries = tuple(values.integer(1).read(step) for step in given)
    if any(np.diff(boundaries) <= 0):
        raise ValueError
    return boundaries


def _read_even(given: Any) -> int:
    found: int = values.integer(2).read(given)
    if found % 2:
        raise ValueError
    return found


# A cycle of even length has a middle.
EvenSteps = Annotated[
    int,
    Parameter(values.Rule("an even integer of at least 2", _read_even), counts_steps=True),
]
Boundaries = Annotated[  # a tuple of int, once built
    Any,
    Parameter(
        values.Rule("strictly increasing integers of at least 1", _read_boundaries),
        counts_steps=True,
    ),
]
_LEVELS = values.vector(at_least=0)
Levels = Annotated[  # a tuple of float, once built
    Any,
    Parameter(values.Rule(_LEVELS.allowed, lambda given: tuple(_LEVELS.read(given).tolist()))),
]


def _check_pieces(boundaries: tuple[int, ...], pieces: tuple[Any, ...], name: str) -> None:
    if len(pieces) != len(boundaries) + 1:
        raise ValueError(
            f"`{name}` must have one entry more than `boundaries`. "
            f"Received: {len(pieces)} {name} and {len(boundaries)} boundaries"
        )


def _floating(given: Any, xp: Any, dtype: str) -> Any:
    """Integers of the namespace, or a NumPy array, as floats of type `dtype`."""
    if xp is np:
        return np.asarray(given, dtype=dtype)
    if isinstance(given, np.ndarray):
        return xp.convert_to_tensor(given.astype(dtype), dtype=dtype)
    return xp.cast(given, dtype)


def _progress(step: Any, steps: int, xp: Any, dtype: str) -> tuple[Any, Any]:
    """Fractions of a ramp of `steps` updates that are done and that are left; they sum to 1."""
    done = xp.minimum(step, steps)
    return _floating(done, xp, dtype) / steps, _floating(steps - done, xp, dtype) / steps


def look_up(table: np.ndarray, step: Any, xp: Any, dtype: str) -> Any:
    """`table[step]` for a [T] array of rates; the last one is held after step T-1.

    Args:
        table: [T] NumPy array, T ≥ 1.
        step: integers of the namespace, any shape.
        xp: `numpy` or `keras.ops`.
        dtype: floating type of the result.

    >>> look_up(np.array([0.2, 0.1]), np.array([0, 1, 7]), np, "float64")
    array([0.2, 0.1, 0.1])
    """
    return xp.take(_floating(table, xp, dtype), xp.minimum(step, len(table) - 1))


class Rate(Configurable, abc.ABC):
    """A formula step → rate; call it with a step or with an array of steps.

    Every rate raises ValueError if a parameter is out of range: levels are finite and at least 0.
    """

    family = "rate"

    @abc.abstractmethod
    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        """Computes the formula in an array namespace.

        Args:
            step: integers of at least 0, of the namespace's own kind, any shape.
            xp: `numpy` or `keras.ops`.
            dtype: floating type to compute in.

        Returns:
            Rates of the shape of `step`.
        """

    @overload
    def __call__(self, step: int) -> float: ...
    @overload
    def __call__(self, step: np.ndarray) -> np.ndarray: ...
    def __call__(self, step: int | np.ndarray) -> float | np.ndarray:
        """Returns the rate of the update made after `step` updates, in float64.

        Raises:
            ValueError: if `step` is not an integer (or an array of integers) of at least 0.

        >>> Constant(0.1)(3), Constant(0.1)(np.arange(2))
        (0.1, array([0.1, 0.1]))
        """
        steps = np.asarray(step)
        if steps.dtype.kind not in "iu" or np.any(steps < 0):
            raise values.error("step", "an integer of at least 0, or an array of them", step)
        found = np.asarray(self.value(steps.astype(np.int64), np, "float64"))
        return float(found) if found.ndim == 0 else found


@dataclasses.dataclass(frozen=True)
class Constant(Rate):
    r"""The same rate at every step.

    >>> Constant(0.1)(1000)
    0.1
    """

    constant: Level

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        return _floating(xp.zeros_like(step), xp, dtype) + self.constant


@dataclasses.dataclass(frozen=True)
class Linear(Rate):
    r"""A straight line from `start` to `end` over `steps` updates; `end` is held after.

    >>> Linear(start=0.4, steps=4, end=0.2)(np.arange(6))
    array([0.4 , 0.35, 0.3 , 0.25, 0.2 , 0.2 ])
    """

    start: Level
    steps: PositiveSteps
    end: Level = 0.0

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        done, left = _progress(step, self.steps, xp, dtype)
        return self.start * left + self.end * done


@dataclasses.dataclass(frozen=True)
class Cosine(Rate):
    r"""Half a cosine from `start` to `end` over `steps` updates; `end` is held after.

    :math:`\lambda_t = e + (s - e)\,\tfrac12 (1 + \cos(\pi t/n))`
    (Loshchilov & Hutter 2017, arXiv 1608.03983, one period).

    >>> Cosine(start=0.4, steps=4)(np.arange(6)).round(3)
    array([0.4  , 0.341, 0.2  , 0.059, 0.   , 0.   ])
    """

    start: Level
    steps: PositiveSteps
    end: Level = 0.0

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        # (1 + cos πf)/2 = sin²(π(1-f)/2), which keeps its relative precision as it vanishes.
        done, left = _progress(step, self.steps, xp, dtype)
        falling = xp.square(xp.sin(0.5 * math.pi * left))
        rising = xp.square(xp.sin(0.5 * math.pi * done))
        return self.start * falling + self.end * rising


@dataclasses.dataclass(frozen=True)
class OneMinusSqrt(Rate):
    r"""`start` for `hold` updates, then a 1-√ decay to `end` over `steps` updates.

    :math:`\lambda_t = s + (e - s)\sqrt{(t - h)/n}` for :math:`h \le t \le h + n`:
    the decay of a warm-up-stable-decay (WSD) run, steep at first
    (Hägele et al. 2024, arXiv 2405.18392).

    >>> OneMinusSqrt(start=0.4, hold=2, steps=4)(np.arange(8)).round(3)
    array([0.4  , 0.4  , 0.4  , 0.2  , 0.117, 0.054, 0.   , 0.   ])
    """

    start: Level
    hold: Steps
    steps: PositiveSteps
    end: Level = 0.0

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        # 1 - √f = (1-f)/(1+√f), which keeps its relative precision as it vanishes.
        done, left = _progress(xp.maximum(step - self.hold, 0), self.steps, xp, dtype)
        root = xp.sqrt(done)
        return self.start * (left / (1.0 + root)) + self.end * root


@dataclasses.dataclass(frozen=True)
class InverseTime(Rate):
    r"""`start / (1 + step / steps)`: half of `start` after `steps` updates.

    >>> InverseTime(start=0.4, steps=2)(np.array([0, 2, 6]))
    array([0.4, 0.2, 0.1])
    """

    start: Level
    steps: PositiveSteps

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        return self.start / (1.0 + _floating(step, xp, dtype) / self.steps)


@dataclasses.dataclass(frozen=True)
class Exponential(Rate):
    r"""`start * factor ** (step / steps)`: smooth decay by `factor` every `steps` updates.

    Raises:
        ValueError: if `start` is negative or not finite, `factor` is outside (0, 1]
            or `steps` is below 1.

    >>> Exponential(start=0.4, factor=0.25, steps=2)(np.array([0, 1, 2])).round(3)
    array([0.4, 0.2, 0.1])
    """

    start: Level
    factor: Annotated[float, Parameter(values.number(above=0, at_most=1))]
    steps: PositiveSteps = 1

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        # A power of `factor` would round it first: 0.99999 in float32, to the power
        # 10⁶, is 3 % off.  Its logarithm loses nothing.
        slope = math.log(self.factor) / self.steps
        return self.start * xp.exp(slope * _floating(step, xp, dtype))


@dataclasses.dataclass(frozen=True)
class Cyclical(Rate):
    r"""SWA's cyclical rate: in each cycle of `length` updates a line down to `end`.

    :math:`\alpha(i) = (1 - t)\alpha_1 + t\,\alpha_2`, :math:`t = (\mathrm{mod}(i-1, c) + 1)/c`
    with iterations i = 1, 2, …, so i = step + 1 (Izmailov et al. 2018, arXiv
    1803.05407; Garipov et al. 2018, arXiv 1802.10026), α₁ = `start`,
    α₂ = `end`, c = `length`.  The last update of each cycle uses `end` exactly;
    the model to collect is :math:`\theta_{kc}`, which that update makes.  The
    first is already one c-th below `start`; with `length` = 1 the rate is `end`.

    >>> Cyclical(start=0.5, end=0.1, length=4)(np.arange(5)).round(3)
    array([0.4, 0.3, 0.2, 0.1, 0.4])
    """

    start: Level
    end: Level
    length: PositiveSteps

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        done, left = _progress(xp.mod(step, self.length) + 1, self.length, xp, dtype)
        return self.start * left + self.end * done


@dataclasses.dataclass(frozen=True)
class Triangular(Rate):
    r"""FGE's cyclical rate: in each cycle of `length` updates down to `end` and up again.

    With iterations i = step + 1 and :math:`t = (\mathrm{mod}(i-1, c) + 1)/c` the rate is
    :math:`(1-2t)\alpha_1 + 2t\alpha_2` up to t = 1/2 and then
    :math:`(2-2t)\alpha_2 + (2t-1)\alpha_1` (Garipov et al. 2018, arXiv 1802.10026),
    α₁ = `start`, α₂ = `end`, c = `length`, which must be even.  The rate is `end` exactly in
    the middle of each cycle; the models to collect are :math:`\theta_{c/2 + kc}`,
    which those updates make (`SnapshotRecorder(start=c // 2, every=c)`).

    Raises:
        ValueError: if a rate is negative or not finite, or `length` is odd or below 2.

    >>> Triangular(start=0.5, end=0.1, length=4)(np.arange(5)).round(3)
    array([0.3, 0.1, 0.3, 0.5, 0.3])
    """

    start: Level
    end: Level
    length: EvenSteps

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        place = xp.mod(step, self.length) + 1
        half = self.length // 2
        away, near = _progress(xp.abs(place - half), half, xp, dtype)
        return self.start * away + self.end * near


@dataclasses.dataclass(frozen=True)
class Piecewise(Rate):
    """Constant pieces: `values[i]` from step `boundaries[i-1]` on, `values[0]` before.

    Args:
        boundaries: increasing steps, one fewer than `values`.
        values: rates.

    Raises:
        ValueError: if a rate is negative or not finite, the boundaries do not
            increase, or the counts do not fit.

    >>> Piecewise(boundaries=[2, 3], values=[0.4, 0.2, 0.1])(np.arange(5))
    array([0.4, 0.4, 0.2, 0.1, 0.1])
    """

    boundaries: Boundaries
    values: Levels

    def _check(self) -> None:
        _check_pieces(self.boundaries, self.values, "values")

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        piece = xp.zeros_like(step)
        for index, boundary in enumerate(self.boundaries, start=1):
            piece = xp.where(step >= boundary, index, piece)
        return look_up(np.asarray(self.values), piece, xp, dtype)


@dataclasses.dataclass(frozen=True)
class Table(Rate):
    """A table of rates, [T]; the last one is held after step T-1.

    >>> Table([0.4, 0.2, 0.1])(np.arange(5))
    array([0.4, 0.2, 0.1, 0.1, 0.1])
    """

    values: Levels

    @functools.cached_property
    def _array(self) -> np.ndarray:
        return np.asarray(self.values)

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        return look_up(self._array, step, xp, dtype)


Inner = Annotated[Any, Parameter(lambda given: as_rate(given))]  # a `Rate`, once built


@dataclasses.dataclass(frozen=True)
class Warmup(Rate):
    """A line from `start` up to the first rate of `inner` over `steps` updates, then `inner`.

    `inner` begins when the warm-up ends: at step t ≥ `steps` the rate is `inner(t - steps)`. With
    `start` = 0 the first update does not change the weights.

    Args:
        inner: a rate, a Keras schedule, a number (a constant rate) or a config.
        steps: length of the warm-up; 0 leaves `inner` as it is.
        start: rate at step 0.

    >>> Warmup(0.4, steps=4, start=0.2)(np.arange(6))
    array([0.2 , 0.25, 0.3 , 0.35, 0.4 , 0.4 ])
    """

    inner: Inner
    steps: Steps
    start: Level = 0.0

    def _check(self) -> None:
        # Computed now, because inside a compiled function a Keras schedule returns no number.
        object.__setattr__(self, "_first", self.inner(0))

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        after = self.inner.value(xp.maximum(step - self.steps, 0), xp, dtype)
        if self.steps == 0:
            return after
        done, left = _progress(step, self.steps, xp, dtype)
        first: float = self._first  # type: ignore[attr-defined]
        return xp.where(step < self.steps, self.start * left + first * done, after)


def _rates(given: Any) -> tuple[Rate, ...]:
    if isinstance(given, (str, Rate)) or not hasattr(given, "__len__"):
        raise values.error("rates", "a list of rates", given)
    return tuple(as_rate(rate) for rate in given)


@dataclasses.dataclass(frozen=True)
class Sequence(Rate):
    """One rate after another: `rates[i]` from step `boundaries[i-1]` on.

    Each rate counts its steps from its own boundary: in its piece the rate is
    `rates[i](step - boundaries[i-1])`.

    Args:
        rates: rates, numbers (constant rates) or configs.
        boundaries: increasing steps, one fewer than `rates`.

    Raises:
        ValueError: if an entry is no rate, the boundaries do not increase, or
            the counts do not fit.

    >>> Sequence([0.4, Linear(start=0.4, steps=2)], boundaries=[2])(np.arange(5))
    array([0.4, 0.4, 0.4, 0.2, 0. ])
    """

    rates: Annotated[Any, Parameter(_rates)]  # a tuple of `Rate`, once built
    boundaries: Boundaries

    def _check(self) -> None:
        _check_pieces(self.boundaries, self.rates, "rates")

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        result = self.rates[0].value(step, xp, dtype)
        for rate, boundary in zip(self.rates[1:], self.boundaries, strict=True):
            after = rate.value(xp.maximum(step - boundary, 0), xp, dtype)
            result = xp.where(step >= boundary, after, result)
        return result


@dataclasses.dataclass(frozen=True)
class Scaled(Rate):
    """`factor` times another rate.

    >>> Scaled(Linear(start=0.4, steps=2), factor=0.5)(np.arange(3))
    array([0.2, 0.1, 0. ])
    """

    inner: Inner
    factor: Level

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        return self.factor * self.inner.value(step, xp, dtype)


def _keras_schedule(given: Any) -> Any:
    """Returns the Keras schedule for a schedule or its serialized form."""
    schedule = given
    if is_config(given):
        # Imported here, because nothing else in this module needs Keras.
        saving = importlib.import_module("keras").saving
        try:
            plain = json.loads(json.dumps(given, default=dict))
            schedule = saving.deserialize_keras_object(plain)
        except Exception as error:  # Keras raises many kinds for malformed configurations
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"`schedule` cannot be loaded by Keras: {reason}") from None
    if not _is_keras_schedule(schedule):
        allowed = "a Keras LearningRateSchedule or its serialized form"
        raise values.error("schedule", allowed, given)
    return schedule


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class KerasSchedule(Rate):
    """A Keras `LearningRateSchedule` as a rate, which can be combined with other rates.

    Every rate is computed by a call of the schedule, usually in float32, so an array of T steps
    takes T calls.  `as_rate`, which combined rates call, returns the rate inside a
    `schedules.RateSchedule` instead of wrapping it.

    Args:
        schedule: the schedule, or its `keras.saving.serialize_keras_object`.

    Raises:
        ValueError: if `schedule` is neither.

    Example, a warm-up before a schedule of Keras:

        rate = rates.Warmup(keras.optimizers.schedules.CosineDecay(0.1, 900), steps=100)
        optimizer = keras.optimizers.SGD(schedules.RateSchedule(rate))
    """

    schedule: Annotated[Any, Parameter(_keras_schedule)]

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        if xp is not np:
            return xp.cast(self.schedule(step), dtype)
        convert = importlib.import_module("keras").ops.convert_to_numpy
        steps, where = np.unique(step, return_inverse=True)
        found = [float(convert(self.schedule(one))) for one in steps.tolist()]
        return np.asarray(found, dtype)[where].reshape(np.shape(step))

    def get_config(self) -> dict[str, Any]:
        serialize = importlib.import_module("keras").saving.serialize_keras_object
        return {"rate": "KerasSchedule", "schedule": serialize(self.schedule)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KerasSchedule):
            return NotImplemented
        return self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(json.dumps(self.get_config(), sort_keys=True, default=str))

    def __repr__(self) -> str:
        config = self.schedule.get_config()
        arguments = ", ".join(f"{key}={value!r}" for key, value in config.items())
        return f"KerasSchedule({type(self.schedule).__name__}({arguments}))"


def _is_keras_schedule(value: Any) -> bool:
    """Returns whether `value` is a Keras schedule, without importing Keras."""
    names = [f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(value).__mro__]
    return any(name.endswith("keras.LearningRateSchedule") for name in names)


RATES: Family[Rate] = Family(
    "rate",
    "Linear(start=0.4, steps=90)",
    *(Constant, Cosine, Cyclical, Triangular, Exponential, InverseTime, KerasSchedule, Linear),
    *(OneMinusSqrt, Piecewise, Scaled, Sequence, Table, Warmup),
)


def as_array(rate: Any, num_steps: int) -> np.ndarray:
    """Returns the rates of a run of `num_steps` = T updates: [T] float64, `rate(0)` to `rate(T-1)`.

    Args:
        rate: anything `as_rate` takes.
        num_steps: at least 0.

    Raises:
        ValueError: if `num_steps` is not an integer of at least 0, or `rate` is no rate.

    >>> as_array(Linear(start=0.4, steps=4), 3)
    array([0.4, 0.3, 0.2])
    """
    return as_rate(rate)(np.arange(values.integer(0).check("num_steps", num_steps)))


def as_rate(rate: Any) -> Rate:
    """Returns the rate for a `Rate`, a number, a config, a [T] array or a Keras schedule.

    A number is a `Constant`, an array a `Table`, and a schedule of Keras a `KerasSchedule`.

    Raises:
        ValueError: if it is none of these, or a value is out of range.

    >>> as_rate(0.1), as_rate({"rate": "Table", "values": [0.2, 0.1]})
    (Constant(constant=0.1), Table(values=(0.2, 0.1)))
    """
    if isinstance(rate, Rate):
        return rate
    if is_config(rate):
        return from_config(rate)
    if _is_keras_schedule(rate):
        inner = getattr(rate, "rate", None)  # of a `schedules.RateSchedule`
        return inner if isinstance(inner, Rate) else KerasSchedule(rate)
    if isinstance(rate, (list, tuple)) or np.ndim(rate) == 1:
        return Table(rate)
    return Constant(_NOT_NEGATIVE.check("rate", rate))


def from_config(config: Mapping[str, Any]) -> Rate:
    """Builds a rate from `{"rate": name, **arguments}`, as `get_config` writes it.

    Raises:
        ValueError: if the rate's name or an argument is unknown or missing
            (close names are suggested), or a value is out of range.

    >>> from_config({"rate": "Warmup", "steps": 2, "inner": {"rate": "Constant", "constant": 1.0}})
    Warmup(inner=Constant(constant=1.0), steps=2, start=0.0)
    """
    return RATES.from_config(config)
