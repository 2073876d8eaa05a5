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
import difflib
import functools
import importlib
import json
import math
import operator
from collections.abc import Mapping
from typing import Any, overload

import numpy as np

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


def _number(name: str, value: Any) -> float:
    """Returns `value` as a finite float of at least 0, or raises an error that names it."""
    try:
        if isinstance(value, (bool, np.bool_, str)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise ValueError(
            f"`{name}` must be a finite number of at least 0. Received: {name}={value!r}"
        )
    return number


def _count(name: str, value: Any, minimum: int) -> int:
    """Returns `value` as an int of at least `minimum`, or raises an error that names it."""
    try:
        number = minimum - 1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = minimum - 1
    if number < minimum:
        raise ValueError(
            f"`{name}` must be an integer of at least {minimum}. Received: {name}={value!r}"
        )
    return number


def _boundaries(values: Any, pieces: int, name: str) -> tuple[int, ...]:
    """Checks that `values` are increasing steps that part `pieces` pieces, given as `name`."""
    try:
        boundaries = tuple(_count("boundaries", value, 1) for value in values)
    except (TypeError, ValueError):
        boundaries = (0,)
    if any(later <= earlier for earlier, later in zip((0, *boundaries), boundaries, strict=False)):
        raise ValueError(
            "`boundaries` must be strictly increasing integers of at least 1. "
            f"Received: boundaries={values!r}"
        )
    if pieces != len(boundaries) + 1:
        raise ValueError(
            f"`{name}` must have one entry more than `boundaries`. "
            f"Received: {pieces} {name} and {len(boundaries)} boundaries"
        )
    return boundaries


def _floating(values: Any, xp: Any, dtype: str) -> Any:
    """`values` (integers of the namespace, or a NumPy array) as floats of type `dtype`."""
    if xp is np:
        return np.asarray(values, dtype=dtype)
    if isinstance(values, np.ndarray):
        return xp.convert_to_tensor(values.astype(dtype), dtype=dtype)
    return xp.cast(values, dtype)


def _progress(step: Any, steps: int, xp: Any, dtype: str) -> tuple[Any, Any]:
    """Fractions of a ramp of `steps` updates that are done and that are left; they sum to 1."""
    done = xp.minimum(step, steps)
    return _floating(done, xp, dtype) / steps, _floating(steps - done, xp, dtype) / steps


def look_up(values: np.ndarray, step: Any, xp: Any, dtype: str) -> Any:
    """`values[step]` for a [T] array of rates; the last one is held after step T-1.

    Args:
        values: [T] NumPy array, T ≥ 1.
        step: integers of the namespace, any shape.
        xp: `numpy` or `keras.ops`.
        dtype: floating type of the result.

    >>> look_up(np.array([0.2, 0.1]), np.array([0, 1, 7]), np, "float64")
    array([0.2, 0.1, 0.1])
    """
    return xp.take(_floating(values, xp, dtype), xp.minimum(step, len(values) - 1))


class Rate(abc.ABC):
    """A formula step → rate; call it with a step or with an array of steps."""

    @abc.abstractmethod
    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        """The formula, written against an array namespace.

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
        """The rate of the update made after `step` updates, in float64.

        Raises:
            ValueError: if `step` is not an integer (or an array of integers) of at least 0.

        >>> Constant(0.1)(3), Constant(0.1)(np.arange(2))
        (0.1, array([0.1, 0.1]))
        """
        steps = np.asarray(step)
        if steps.dtype.kind not in "iu" or np.any(steps < 0):
            raise ValueError(f"`step` must hold integers of at least 0. Received: step={step!r}")
        values = np.asarray(self.value(steps.astype(np.int64), np, "float64"))
        return float(values) if values.ndim == 0 else values

    def get_config(self) -> dict[str, Any]:
        """A JSON-serialisable description; `from_config` turns it back into an equal rate.

        >>> Warmup(0.1, steps=5).get_config()["inner"]
        {'rate': 'Constant', 'constant': 0.1}
        """
        config: dict[str, Any] = {"rate": type(self).__name__}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # every rate is one
            config[field.name] = _plain(getattr(self, field.name))
        return config

    def _check(self, **minimum: int) -> None:
        """Makes the fields named in `minimum` counts of at least that, all others rates."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.name in minimum:
                value = _count(field.name, value, minimum[field.name])
            else:
                value = _number(field.name, value)
            object.__setattr__(self, field.name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, Rate):
        return value.get_config()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class Constant(Rate):
    r"""The same rate at every step.

    Raises:
        ValueError: if `constant` is negative or not finite.

    >>> Constant(0.1)(1000)
    0.1
    """

    constant: float

    def __post_init__(self) -> None:
        self._check()

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        return _floating(xp.zeros_like(step), xp, dtype) + self.constant


@dataclasses.dataclass(frozen=True)
class Linear(Rate):
    r"""A straight line from `start` to `end` over `steps` updates; `end` is held after.

    Raises:
        ValueError: if a rate is negative or not finite, or `steps` is below 1.

    >>> Linear(start=0.4, steps=4, end=0.2)(np.arange(6))
    array([0.4 , 0.35, 0.3 , 0.25, 0.2 , 0.2 ])
    """

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        self._check(steps=1)

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        done, left = _progress(step, self.steps, xp, dtype)
        return self.start * left + self.end * done


@dataclasses.dataclass(frozen=True)
class Cosine(Rate):
    r"""Half a cosine from `start` to `end` over `steps` updates; `end` is held after.

    :math:`\lambda_t = e + (s - e)\,\tfrac12 (1 + \cos(\pi t/n))`
    (Loshchilov & Hutter 2017, arXiv 1608.03983, one period).

    Raises:
        ValueError: if a rate is negative or not finite, or `steps` is below 1.

    >>> Cosine(start=0.4, steps=4)(np.arange(6)).round(3)
    array([0.4  , 0.341, 0.2  , 0.059, 0.   , 0.   ])
    """

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        self._check(steps=1)

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

    Raises:
        ValueError: if a rate is negative or not finite, `hold` is negative or `steps` below 1.

    >>> OneMinusSqrt(start=0.4, hold=2, steps=4)(np.arange(8)).round(3)
    array([0.4  , 0.4  , 0.4  , 0.2  , 0.117, 0.054, 0.   , 0.   ])
    """

    start: float
    hold: int
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        self._check(hold=0, steps=1)

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        # 1 - √f = (1-f)/(1+√f), which keeps its relative precision as it vanishes.
        done, left = _progress(xp.maximum(step - self.hold, 0), self.steps, xp, dtype)
        root = xp.sqrt(done)
        return self.start * (left / (1.0 + root)) + self.end * root


@dataclasses.dataclass(frozen=True)
class InverseTime(Rate):
    r"""`start / (1 + step / steps)`: half of `start` after `steps` updates.

    Raises:
        ValueError: if `start` is negative or not finite, or `steps` is below 1.

    >>> InverseTime(start=0.4, steps=2)(np.array([0, 2, 6]))
    array([0.4, 0.2, 0.1])
    """

    start: float
    steps: int

    def __post_init__(self) -> None:
        self._check(steps=1)

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

    start: float
    factor: float
    steps: int = 1

    def __post_init__(self) -> None:
        self._check(steps=1)
        if not 0.0 < self.factor <= 1.0:
            raise ValueError(f"`factor` must lie in (0, 1]. Received: factor={self.factor!r}")

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

    Raises:
        ValueError: if a rate is negative or not finite, or `length` is below 1.

    >>> Cyclical(start=0.5, end=0.1, length=4)(np.arange(5)).round(3)
    array([0.4, 0.3, 0.2, 0.1, 0.4])
    """

    start: float
    end: float
    length: int

    def __post_init__(self) -> None:
        self._check(length=1)

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

    start: float
    end: float
    length: int

    def __post_init__(self) -> None:
        self._check(length=2)
        if self.length % 2:
            raise ValueError(
                f"`length` must be even, so that a cycle has a middle. Received: {self.length!r}"
            )

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

    boundaries: Any  # a tuple of int, once built
    values: Any  # a tuple of float

    def __post_init__(self) -> None:
        values = _numbers(self.values)
        boundaries = _boundaries(self.boundaries, len(values), "values")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "boundaries", boundaries)

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        piece = xp.zeros_like(step)
        for index, boundary in enumerate(self.boundaries, start=1):
            piece = xp.where(step >= boundary, index, piece)
        return look_up(np.asarray(self.values), piece, xp, dtype)


@dataclasses.dataclass(frozen=True)
class Table(Rate):
    """Rates given one by one, [T]; the last one is held after step T-1.

    Raises:
        ValueError: if `values` is not a non-empty vector of finite numbers of at least 0.

    >>> Table([0.4, 0.2, 0.1])(np.arange(5))
    array([0.4, 0.2, 0.1, 0.1, 0.1])
    """

    values: Any  # a tuple of float, once built

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _numbers(self.values))

    @functools.cached_property
    def _array(self) -> np.ndarray:
        return np.asarray(self.values)

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        return look_up(self._array, step, xp, dtype)


def _numbers(values: Any) -> tuple[float, ...]:
    """A non-empty vector of rates as a tuple; the error names the first bad entry."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"`values` must be a non-empty vector of rates. Received: {values!r}")
    for index in np.flatnonzero(~(np.isfinite(array) & (array >= 0.0)))[:1]:
        _number(f"values[{index}]", array[index].item())
    return tuple(array.tolist())


@dataclasses.dataclass(frozen=True)
class Warmup(Rate):
    """A line from `start` up to the first rate of `inner` over `steps` updates, then `inner`.

    `inner` begins when the warm-up ends: at step t ≥ `steps` the rate is
    `inner(t - steps)`.  With `start` = 0 the first update moves nothing.

    Args:
        inner: a rate, a Keras schedule, a number (a constant rate) or a config.
        steps: length of the warm-up; 0 leaves `inner` as it is.
        start: rate at step 0.

    Raises:
        ValueError: if `inner` is no rate, `start` is negative or not finite, or
            `steps` is negative.

    >>> Warmup(0.4, steps=4, start=0.2)(np.arange(6))
    array([0.2 , 0.25, 0.3 , 0.35, 0.4 , 0.4 ])
    """

    inner: Any  # a Rate, once built
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", as_rate(self.inner))
        object.__setattr__(self, "steps", _count("steps", self.steps, 0))
        object.__setattr__(self, "start", _number("start", self.start))
        # Now, because a Keras schedule has no number inside a compiled function.
        object.__setattr__(self, "_first", self.inner(0))

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        after = self.inner.value(xp.maximum(step - self.steps, 0), xp, dtype)
        if self.steps == 0:
            return after
        done, left = _progress(step, self.steps, xp, dtype)
        first: float = self._first  # type: ignore[attr-defined]
        return xp.where(step < self.steps, self.start * left + first * done, after)


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

    rates: Any  # a tuple of Rate, once built
    boundaries: Any  # a tuple of int

    def __post_init__(self) -> None:
        if isinstance(self.rates, (str, Rate)) or not hasattr(self.rates, "__len__"):
            raise ValueError(f"`rates` must be a list of rates. Received: rates={self.rates!r}")
        rates = tuple(as_rate(rate) for rate in self.rates)
        boundaries = _boundaries(self.boundaries, len(rates), "rates")
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "boundaries", boundaries)

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        result = self.rates[0].value(step, xp, dtype)
        for rate, boundary in zip(self.rates[1:], self.boundaries, strict=True):
            after = rate.value(xp.maximum(step - boundary, 0), xp, dtype)
            result = xp.where(step >= boundary, after, result)
        return result


@dataclasses.dataclass(frozen=True)
class Scaled(Rate):
    """`factor` times another rate.

    Raises:
        ValueError: if `inner` is no rate, or `factor` is negative or not finite.

    >>> Scaled(Linear(start=0.4, steps=2), factor=0.5)(np.arange(3))
    array([0.2, 0.1, 0. ])
    """

    inner: Any  # a Rate, once built
    factor: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", as_rate(self.inner))
        object.__setattr__(self, "factor", _number("factor", self.factor))

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        return self.factor * self.inner.value(step, xp, dtype)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class KerasSchedule(Rate):
    """A Keras `LearningRateSchedule` as a rate, to be composed with others.

    Keras is asked for every step, so its own precision holds, float32 as a rule, and an array
    of T steps takes T calls.  A `schedules.RateSchedule` is not wrapped but taken apart by
    `as_rate`, which is what composed rates call.

    Args:
        schedule: the schedule, or its `keras.saving.serialize_keras_object`.

    Raises:
        ValueError: if `schedule` is neither.

    Example, a warm-up before a schedule of Keras:

        rate = rates.Warmup(keras.optimizers.schedules.CosineDecay(0.1, 900), steps=100)
        optimizer = keras.optimizers.SGD(schedules.RateSchedule(rate))
    """

    schedule: Any

    def __post_init__(self) -> None:
        schedule = self.schedule
        if hasattr(schedule, "keys"):
            # Only here: nothing else in this module needs Keras.
            saving = importlib.import_module("keras").saving
            try:
                plain = json.loads(json.dumps(schedule, default=dict))
                schedule = saving.deserialize_keras_object(plain)
            except Exception as error:  # Keras raises many kinds on configurations of another shape
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ValueError(f"`schedule` cannot be loaded by Keras: {reason}") from None
        if not _is_keras_schedule(schedule):
            raise ValueError(
                "`schedule` must be a Keras LearningRateSchedule or its serialized form. "
                f"Received: schedule={self.schedule!r}"
            )
        object.__setattr__(self, "schedule", schedule)

    def value(self, step: Any, xp: Any, dtype: str) -> Any:
        if xp is not np:
            return xp.cast(self.schedule(step), dtype)
        convert = importlib.import_module("keras").ops.convert_to_numpy
        steps, where = np.unique(step, return_inverse=True)
        values = [float(convert(self.schedule(one))) for one in steps.tolist()]
        return np.asarray(values, dtype)[where].reshape(np.shape(step))

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
    """Whether something is a Keras schedule, told without an import of Keras."""
    names = [f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(value).__mro__]
    return any(name.endswith("keras.LearningRateSchedule") for name in names)


RATES: dict[str, type[Rate]] = {
    cls.__name__: cls
    for cls in (
        Constant,
        Cosine,
        Cyclical,
        Triangular,
        Exponential,
        InverseTime,
        KerasSchedule,
        Linear,
        OneMinusSqrt,
        Piecewise,
        Scaled,
        Sequence,
        Table,
        Warmup,
    )
}


def as_array(rate: Any, num_steps: int) -> np.ndarray:
    """The rates of a run of `num_steps` = T updates: [T] float64, `rate(0)` to `rate(T-1)`.

    Args:
        rate: anything `as_rate` takes.
        num_steps: at least 0.

    Raises:
        ValueError: if `num_steps` is not an integer of at least 0, or `rate` is no rate.

    >>> as_array(Linear(start=0.4, steps=4), 3)
    array([0.4, 0.3, 0.2])
    """
    return as_rate(rate)(np.arange(_count("num_steps", num_steps, 0)))


def as_rate(rate: Any) -> Rate:
    """The rate meant by a `Rate`, a number, a config, a [T] array or a Keras schedule.

    A number is a `Constant`, an array a `Table`, and a schedule of Keras a `KerasSchedule`.

    Raises:
        ValueError: if it is none of these, or a value is out of range.

    >>> as_rate(0.1), as_rate({"rate": "Table", "values": [0.2, 0.1]})
    (Constant(constant=0.1), Table(values=(0.2, 0.1)))
    """
    if isinstance(rate, Rate):
        return rate
    if hasattr(rate, "keys"):  # dict, or an ml_collections.ConfigDict
        return from_config(rate)
    if _is_keras_schedule(rate):
        inner = getattr(rate, "rate", None)  # of a `schedules.RateSchedule`
        return inner if isinstance(inner, Rate) else KerasSchedule(rate)
    if isinstance(rate, (list, tuple)) or np.ndim(rate) == 1:
        return Table(rate)
    return Constant(_number("rate", rate))


def from_config(config: Mapping[str, Any]) -> Rate:
    """Builds a rate from `{"rate": name, **arguments}`, as `get_config` writes it.

    Raises:
        ValueError: if the rate's name or an argument is unknown or missing
            (close names are suggested), or a value is out of range.

    >>> from_config({"rate": "Warmup", "steps": 2, "inner": {"rate": "Constant", "constant": 1.0}})
    Warmup(inner=Constant(constant=1.0), steps=2, start=0.0)
    """
    if not hasattr(config, "keys"):  # a dict, or an ml_collections.ConfigDict
        raise ValueError(
            'a rate\'s configuration must be a dict such as {"rate": "Constant", "constant": 0.1}. '
            f"Received: {config!r}"
        )
    arguments = {str(key): config[key] for key in config.keys()}  # noqa: SIM118  # ConfigDict
    name = arguments.pop("rate", None)
    if not isinstance(name, str) or name not in RATES:
        raise ValueError(
            f"`rate` must be one of {sorted(RATES)}. Received: rate={name!r}.{_hint(name, RATES)}"
        )
    fields = dataclasses.fields(RATES[name])  # type: ignore[arg-type]  # every rate is one
    allowed = [field.name for field in fields]
    unknown = sorted(set(arguments) - set(allowed))
    if unknown:
        raise ValueError(
            f"Rate {name!r} takes {allowed}. Received unknown: {unknown}."
            f"{_hint(unknown[0], allowed)}"
        )
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    missing = [key for key in required if key not in arguments]
    if missing:
        raise ValueError(f"Rate {name!r} needs {missing}. Received: {arguments!r}")
    return RATES[name](**arguments)


def _hint(name: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
