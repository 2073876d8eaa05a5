"""The directions of steps: a batch's gradient, with momentum, random, or given."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from tf_lrtraj.probes.base import LossProbe
from tf_lrtraj.probes.directions import filter_axes_of, random_direction
from tf_lrtraj.probes.surface import Surface
from tf_lrtraj.probes.vectors import check_shapes, fingerprint, flat, norm, shapes
from tf_lrtraj.values import error, number, one_of

KINDS = ("gradient", "momentum", "random")


class Step(NamedTuple):
    """The direction d of steps `θ - rate * d`, for one batch.

    Attributes:
        vector: d, as backend tensors of the weights' dtypes.
        loss: the batch's loss at θ.
        gradient_norm: norm of the batch's gradient g at θ.
        norm: norm of d.
        slope: derivative of the batch's loss by the rate at rate 0, -⟨g, d⟩.
    """

    vector: list[Any]
    loss: float
    gradient_norm: float
    norm: float
    slope: float


@dataclasses.dataclass(eq=False, repr=False)
class StepProbe(LossProbe):
    """A probe of steps from one point, each along a direction of its own batch.

    Args:
        surface: the loss and its mode.
        weights: the start θ, as `Surface.point` takes it; None for the model's own.
        batches: training batches, (inputs, targets) each.
        direction: `"gradient"`: d = g, the batch's gradient; `"momentum"`: the step that Keras' SGD
            with momentum (not Nesterov's) would make, d = g - momentum * velocity / learning_rate,
            which at rate `learning_rate` is exactly that step, velocity ← momentum * velocity -
            learning_rate * g, θ ← θ + velocity; `"random"`: a filter-normalised random direction
            (Li et al. 2018, arXiv 1712.09913; biases, scales and offsets do not change), one for
            each batch, scaled to the length of the batch's gradient so that rates are comparable;
            or a list of arrays in the order of `model.trainable_variables`: the same d for all
            batches.
        velocity: the velocity of the optimizer, as Keras keeps it (already signed as a step).
        momentum: the momentum of the optimizer.
        learning_rate: the learning rate of `velocity` and of the step.
        seed: the seed of random directions.

    Raises:
        ValueError: for weights, batches or directions that do not fit, or if velocity or learning
        rate are missing.
    """

    surface: Surface
    weights: Any
    batches: Any
    _: dataclasses.KW_ONLY
    direction: Any = "gradient"
    velocity: Any = None
    momentum: float = 0.9
    learning_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weights = self.surface.point(self.weights)
        self._step: tuple[int, Step] | None = None
        self._about_direction: dict[str, Any] = {"direction": "given"}
        if not isinstance(self.direction, str):
            self.direction = self._vector("direction", self.direction)
            self._about_direction["vector"] = fingerprint(self.direction)
            return
        self._about_direction["direction"] = one_of(KINDS).check("direction", self.direction)
        if self.direction == "momentum":
            if self.velocity is None:
                raise error("velocity", "given where the direction is 'momentum'", None)
            self.velocity = self._vector("velocity", self.velocity)
            self.learning_rate = number(above=0).check("learning_rate", self.learning_rate)
            self._about_direction |= {
                "vector": fingerprint(self.velocity),
                "momentum": float(self.momentum),
                "learning_rate": self.learning_rate,
            }
        if self.direction == "random":
            self._about_direction["direction_seed"] = int(self.seed)

    def _vector(self, name: str, vector: Any) -> list[Any]:
        variables = self.surface.model.trainable_variables
        arrays = check_shapes(name, vector, shapes(variables))
        return [ops.cast(a, v.dtype) for a, v in zip(arrays, variables, strict=True)]

    def about(self) -> dict[str, Any]:
        return {
            **self.surface.about(),
            **self._about_direction,
            "weights": self.surface.fingerprint(self.weights),
            "batches": fingerprint(self.batches),
        }

    def step(self, number: int) -> Step:
        """Returns the step of a batch, by its number; the last one is kept."""
        if self._step is None or self._step[0] != number:
            self._step = None  # free its memory first
            self._step = number, self._new_step(number)
        return self._step[1]

    def _new_step(self, number: int) -> Step:
        loss, gradient = self.surface.gradient(self.weights, self.batches[number])
        length = norm(gradient)
        if not isinstance(self.direction, str):
            vector = self.direction
        elif self.direction == "gradient":
            return Step(gradient, loss, length, length, -(length**2))
        elif self.direction == "momentum":
            assert self.learning_rate is not None
            factor = float(self.momentum) / self.learning_rate
            vector = [
                g - ops.cast(factor, g.dtype) * v
                for g, v in zip(gradient, self.velocity, strict=True)
            ]
        else:
            axes = filter_axes_of(self.surface.model)
            raw = random_direction(
                self.weights.trainable, [self.seed, number], "filter", filter_axes=axes
            )
            scale = length / norm(raw)
            vector = [ops.cast(scale * r, g.dtype) for r, g in zip(raw, gradient, strict=True)]
        along = flat(vector)
        slope = -float(along @ flat(gradient))
        return Step(vector, loss, length, float(np.linalg.norm(along)), slope)

    def put_step(self, record: Any, number: int) -> Step:
        """Writes norms and slope of a batch's step to a record, and returns the step."""
        step = self.step(number)
        record.put("gradient_norm", number, step.gradient_norm)
        record.put("direction_norm", number, step.norm)
        record.put("slope", number, step.slope)
        return step
