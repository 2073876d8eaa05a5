"""Records the learning rate of every update of a Keras optimizer."""

from __future__ import annotations

import array
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend


def schedule_of(optimizer: Any) -> Any:
    """Returns the `LearningRateSchedule` of an optimizer, also inside wrappers; None without
    one."""
    while optimizer is not None:
        rate = getattr(optimizer, "_learning_rate", None)
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            return rate
        optimizer = getattr(optimizer, "inner_optimizer", None) or getattr(optimizer, "inner", None)
    return None


def updates_per_batch(optimizer: Any) -> float:
    """Returns 1, or less if gradients are accumulated over several batches."""
    return 1.0 / (getattr(optimizer, "gradient_accumulation_steps", None) or 1)


class RateRecord:
    """The rate of every update.

    Args:
        optimizer: a built Keras optimizer, or None.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._schedule = schedule_of(optimizer)
        # A schedule is called with the number of batches, and a batch may be a part of an update.
        self._stride = round(1.0 / updates_per_batch(optimizer))
        self._planned = np.zeros(0)
        self._noted = array.array("d")

    def begin(self, step: int, total: int | None, earlier: np.ndarray) -> np.ndarray | None:
        """Plans the rates of a run that begins or resumes at `step`.

        Args:
            step: updates made before.
            total: updates at the end; None if unknown.
            earlier: rates of updates made before; missing ones are NaN.

        Returns:
            [total] expected rates; None if they are unknown.
        """
        self._noted = array.array("d", earlier[:step])
        self._noted.extend([float("nan")] * (step - len(self._noted)))
        if total is None or total < step:
            return None
        steps = np.arange(step, total)
        rates = np.full(total - step, self._now(step)) if steps.size else np.zeros(0)
        if self._schedule is not None:
            found = self._vectorised(steps * self._stride)
            if found is None:
                return None
            rates = found
        self._planned = np.concatenate([self._noted, rates])
        return self._planned

    def _vectorised(self, steps: np.ndarray) -> np.ndarray | None:
        """Returns the schedule at all steps at once; None if it does not support arrays."""
        try:
            found = keras.ops.convert_to_numpy(self._schedule(keras.ops.convert_to_tensor(steps)))
            found = np.broadcast_to(np.asarray(found, np.float64), steps.shape)
        except Exception:  # user-defined schedules may not support arrays
            return None
        some = steps[:: max(1, len(steps) // 8)]
        alone = [float(self._schedule(int(step))) for step in some]
        near = np.isclose(found[:: max(1, len(steps) // 8)], alone, rtol=1e-5, atol=0.0)
        return found if near.all() else None

    def before(self, step: int) -> float:
        """Returns the rate of the update that led to `step`; NaN if there was none."""
        return float(self._noted[step - 1]) if 0 < step <= len(self._noted) else float("nan")

    def note(self, step: int) -> None:
        """Records the rates of the updates since the last call, the last one leading to `step`."""
        for made in range(len(self._noted), step):
            known = self._schedule is not None and made < self._planned.size
            self._noted.append(float(self._planned[made]) if known else self._now(made))

    def _now(self, made: int) -> float:
        if self._schedule is not None:
            return float(self._schedule(made * self._stride))
        rate = getattr(self._optimizer, "learning_rate", None)
        return float("nan") if rate is None else float(backend.to_numpy([rate])[0])

    def noted(self) -> np.ndarray:
        """Returns the [T] rates of the updates made so far."""
        return np.array(self._noted)
