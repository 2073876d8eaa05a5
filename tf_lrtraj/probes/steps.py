"""Which way a step goes: along a batch's gradient, with momentum, at random, or as given."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from tf_lrtraj.probes.base import fingerprint
from tf_lrtraj.probes.batches import Batch
from tf_lrtraj.probes.directions import filter_axes_of, random_direction
from tf_lrtraj.probes.surface import Point, Surface
from tf_lrtraj.probes.vectors import flat, norm

KINDS = ("gradient", "momentum", "random")
GRADIENT_PASSES = 3.0  # a gradient's time, in forward passes


class Step(NamedTuple):
    """The direction d of steps `θ - rate * d`, for one batch.

    Attributes:
        vector: d, as backend tensors of the weights' dtypes.
        loss: the batch's loss at θ.
        gradient_norm: norm of the batch's gradient g at θ.
        norm: that of d.
        slope: derivative of the batch's loss by the rate at rate 0, -⟨g, d⟩.
    """

    vector: list[Any]
    loss: float
    gradient_norm: float
    norm: float
    slope: float


class Direction:
    """Directions of steps, a function of the batch.

    Args:
        surface: what is measured.
        kind: `"gradient"`: d = g, the batch's gradient; `"momentum"`: the step that Keras'
            SGD with momentum (not Nesterov's) would make, d = g - momentum * velocity /
            learning_rate, which at rate `learning_rate` is exactly that step, velocity ←
            momentum * velocity - learning_rate * g, θ ← θ + velocity; `"random"`: a
            filter-normalised random direction (Li et al. 2018, arXiv 1712.09913; biases,
            scales and offsets stay), one for each batch, stretched to the length of the
            batch's gradient so that rates compare; or a list of arrays in the order of
            `model.trainable_variables`: the same d for all batches.
        velocity: of the optimizer, as Keras keeps it (already signed as a step).
        momentum: of the optimizer.
        learning_rate: at which `velocity` was gathered and the step is made.
        seed: of random directions.

    Raises:
        ValueError: for anything else, or where velocity and learning rate are missing.
    """

    def __init__(
        self,
        surface: Surface,
        kind: Any = "gradient",
        *,
        velocity: Any = None,
        momentum: float = 0.9,
        learning_rate: float | None = None,
        seed: int = 0,
    ) -> None:
        self._surface = surface
        self._seed = seed
        self._given: list[Any] | None = None
        self._factor = 0.0
        if isinstance(kind, str):
            if kind not in KINDS:
                raise ValueError(
                    f"`direction` must be one of {list(KINDS)}, or a list of arrays. "
                    f"Received: direction={kind!r}"
                )
            self.kind = kind
        else:
            self.kind = "given"
            self._given = self._checked(kind, "direction")
        if self.kind == "momentum":
            if velocity is None or learning_rate is None or not learning_rate > 0.0:
                raise ValueError(
                    "`direction='momentum'` needs the optimizer's `velocity` and a positive "
                    f"`learning_rate`. Received: velocity of type {type(velocity).__name__}, "
                    f"learning_rate={learning_rate!r}"
                )
            self._given = self._checked(velocity, "velocity")
            self._factor = float(momentum) / float(learning_rate)
        self._about: dict[str, Any] = {"direction": self.kind}
        if self._given is not None:
            self._about["vector"] = fingerprint(self._given)
        if self.kind == "momentum":
            self._about |= {"momentum": float(momentum), "learning_rate": float(learning_rate or 0)}
        if self.kind == "random":
            self._about["direction_seed"] = int(seed)

    def _checked(self, vector: Any, name: str) -> list[Any]:
        variables = self._surface.model.trainable_variables
        found = [tuple(np.shape(array)) for array in vector]
        wanted = [tuple(variable.shape) for variable in variables]
        if found != wanted:
            raise ValueError(
                f"`{name}` must have the shapes of the model's {len(wanted)} trainable variables, "
                f"{wanted[:3]} …. Received: {len(found)} arrays, {found[:3]} …"
            )
        return [ops.cast(a, v.dtype) for a, v in zip(vector, variables, strict=True)]

    def of(self, origin: Point, batch: Batch, number: int) -> Step:
        """The direction for batch `number` at `origin`; costs one gradient."""
        loss, gradient = self._surface.gradient(origin, batch)
        length = norm(gradient)
        if self.kind == "gradient":
            return Step(gradient, loss, length, length, -(length**2))
        if self.kind == "momentum":
            assert self._given is not None
            vector = [
                g - ops.cast(self._factor, g.dtype) * v
                for g, v in zip(gradient, self._given, strict=True)
            ]
        elif self.kind == "random":
            raw = random_direction(
                origin.trainable,
                [self._seed, number],
                "filter",
                filter_axes=filter_axes_of(self._surface.model),
            )
            scale = length / norm(raw)
            vector = [ops.cast(scale * r, g.dtype) for r, g in zip(raw, gradient, strict=True)]
        else:
            assert self._given is not None
            vector = self._given
        along = flat(vector)
        slope = -float(along @ flat(gradient))
        return Step(vector, loss, length, float(np.linalg.norm(along)), slope)

    def about(self) -> dict[str, Any]:
        """What a record says of the direction."""
        return dict(self._about)
