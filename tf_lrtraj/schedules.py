"""Learning-rate schedules for Keras optimizers.

`RateSchedule` is a schedule for any formula of `tf_lrtraj.rates`.  `EquivalentSchedule` is the
schedule whose last iterate equals an average.  Both run on every Keras backend and inside
compiled functions, and are saved and loaded with the optimizer that uses them.

An optimizer calls its schedule with the updates it has made, so step t is the
update `θ_t → θ_{t+1}`, as in `rates`.  (Under Keras' gradient accumulation it
passes micro-steps; multiply step counts by the number of them.)

>>> import keras
>>> from tf_lrtraj import kernels, rates, schedules
>>> rate = rates.Warmup(rates.Cosine(start=0.4, steps=100), steps=10)
>>> optimizer = keras.optimizers.SGD(schedules.RateSchedule(rate), momentum=0.9)
>>> swa = kernels.Uniform(start=80)
>>> schedule = schedules.EquivalentSchedule(swa, base=0.1, num_steps=100)
>>> schedule.rates[[0, 79, 80, 99]].round(4)
array([0.1   , 0.1   , 0.0952, 0.0048])
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tf_lrtraj import kernels, rates, theory

__all__ = ["EquivalentSchedule", "RateSchedule"]


def _steps(step: Any) -> tuple[Any, str]:
    """Returns `step` as an integer tensor, and the dtype of the rates: float32 or wider."""
    step = keras.ops.convert_to_tensor(step)
    if not keras.backend.is_int_dtype(keras.backend.standardize_dtype(step.dtype)):
        step = keras.ops.cast(step, "int32")
    return step, "float64" if keras.config.floatx() == "float64" else "float32"


@keras.saving.register_keras_serializable(package="tf_lrtraj")
class RateSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A formula of `tf_lrtraj.rates` as a Keras schedule.

    It equals the NumPy formula at every step, to float32 rounding (or to
    float64's where `keras.config.floatx()` is `"float64"`).

    Args:
        rate: a `rates.Rate`, a number, a config (`{"rate": name, …}`) or a [T] array.

    Raises:
        ValueError: if `rate` is none of these, or a value is out of range.

    >>> from tf_lrtraj import rates, schedules
    >>> schedule = schedules.RateSchedule(rates.Linear(start=0.5, steps=4))
    >>> float(schedule(2))
    0.25
    >>> schedules.RateSchedule.from_config(schedule.get_config()).rate == schedule.rate
    True
    """

    def __init__(self, rate: Any) -> None:
        self.rate = rates.as_rate(rate)

    def __call__(self, step: Any) -> Any:
        """The learning rate at `step`: integers of at least 0, of any shape."""
        step, dtype = _steps(step)
        return self.rate.value(step, keras.ops, dtype)

    def get_config(self) -> dict[str, Any]:
        return {"rate": self.rate.get_config()}

    def __repr__(self) -> str:
        return f"RateSchedule({self.rate!r})"


@keras.saving.register_keras_serializable(package="tf_lrtraj")
class EquivalentSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """The schedule whose last iterate equals an average of a run with the base rates.

    A run of `num_steps` updates under this schedule, from the same initial weights on the same
    batches, ends at the average `kernel` of the base run.  This is exact if the loss is quadratic
    with the given curvature or, at curvature 0, if gradients are frozen along the path; see
    `theory.schedule_from_weights` (Keras' momentum convention).  Only the *end* of the run is
    matched: an average after fewer updates has another schedule.  After `num_steps` updates the
    last rate is held.

    The schedule of a kernel with negative weights may have negative rates, which are kept.

    Args:
        kernel: a kernel, or its config (`{"kernel": name, …}`).
        base: rates of the run that is averaged: a number, a `rates.Rate`, its
            config, or a [num_steps] array.
        num_steps: T, at least 1.
        curvature: the curvature at which the equality is exact; 0 for frozen gradients.
        momentum: momentum β of both runs.

    Raises:
        ValueError: if an argument is out of range, or no finite schedule exists.

    >>> from tf_lrtraj import kernels, schedules
    >>> schedule = schedules.EquivalentSchedule(kernels.TwoPoint(gap=2), base=0.5, num_steps=4)
    >>> schedule.rates
    array([0.5 , 0.5 , 0.25, 0.25])
    >>> float(schedule(2)), float(schedule(1000))
    (0.25, 0.25)
    """

    def __init__(
        self,
        kernel: Any,
        base: Any,
        num_steps: int,
        curvature: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        self.kernel: kernels.Kernel = (
            kernel if isinstance(kernel, kernels.Kernel) else kernels.from_config(kernel)
        )
        self.base = rates.as_rate(base)
        base_rates = rates.as_array(self.base, num_steps)
        self.num_steps = int(num_steps)
        given = len(self.base.values) if isinstance(self.base, rates.Table) else self.num_steps
        if self.num_steps < 1 or given != self.num_steps:
            raise ValueError(
                "`num_steps` must be at least 1, and the length of `base` where that is an array. "
                f"Received: num_steps={num_steps!r}, base of {given} rates"
            )
        self._rates = theory.schedule_from_weights(
            self.kernel.weights(self.num_steps), base_rates, curvature=curvature, momentum=momentum
        )
        self.curvature, self.momentum = float(curvature), float(momentum)
        self._rates.flags.writeable = False

    @property
    def rates(self) -> np.ndarray:
        """[T] float64 rates of the updates 0 to T-1 (read-only)."""
        return self._rates

    def __call__(self, step: Any) -> Any:
        """The learning rate at `step`: integers of at least 0, of any shape."""
        step, dtype = _steps(step)
        return rates.look_up(self._rates, step, keras.ops, dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel.get_config(),
            "base": self.base.get_config(),
            "num_steps": self.num_steps,
            "curvature": self.curvature,
            "momentum": self.momentum,
        }

    def __repr__(self) -> str:
        return (
            f"EquivalentSchedule({self.kernel!r}, {self.base!r}, num_steps={self.num_steps}, "
            f"curvature={self.curvature!r}, momentum={self.momentum!r})"
        )
