"""The optimizers of side trips: SGD on arrays, or a private copy of a Keras optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj.probes.surface import Point
from tf_lrtraj.probes.vectors import check_shapes, fingerprint, shapes
from tf_lrtraj.values import number


class Sgd:
    """SGD on arrays in Keras' convention: `v ← βv - λg`, `θ ← θ + v`, compiled once.

    Args:
        model: the model; weight decay acts on its kernels only.
        origin: the start of the trips.
        rates: [num_steps] learning rates.
        velocity: v at the start; None for zeros.

    Raises:
        ValueError: for numbers out of range, or a velocity that does not fit.
    """

    def __init__(
        self,
        model: Any,
        origin: Point,
        rates: np.ndarray,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        velocity: Sequence[Any] | None = None,
    ) -> None:
        self._momentum = number(0, below=1).check("momentum", momentum)
        self._decay = number(0).check("weight_decay", weight_decay)
        self._nesterov = bool(nesterov)
        self._rates = rates
        self._decayed = [v.name == "kernel" for v in model.trainable_variables]
        self._update = backend.compiled(self._move)
        self.state = self._start(origin, velocity)
        self._about = {
            "learning_rate": rates.tolist(),
            "momentum": self._momentum,
            "nesterov": self._nesterov,
            "weight_decay": self._decay,
            "velocity": fingerprint(self.state) if velocity is not None else None,
        }

    def about(self) -> dict[str, Any]:
        """Returns the description of the steps for a record."""
        return self._about

    def _start(self, origin: Point, velocity: Sequence[Any] | None) -> list[Any]:
        """Returns the initial velocity of a trip; empty without momentum."""
        if velocity is not None and not self._momentum:
            raise ValueError("`velocity` has no meaning without momentum. Received: momentum=0.0")
        if not self._momentum:
            return []
        if velocity is None:
            return [ops.zeros_like(array) for array in origin.trainable]
        velocity = check_shapes("velocity", velocity, shapes(origin.trainable))
        return [
            ops.copy(ops.cast(ops.convert_to_tensor(given), array.dtype))
            for given, array in zip(velocity, origin.trainable, strict=True)
        ]

    def __call__(
        self, arrays: Sequence[Any], state: Sequence[Any], gradient: Sequence[Any], step: int
    ) -> tuple[list[Any], list[Any]]:
        """Returns (arrays after step number `step`, the state after it)."""
        rate = ops.convert_to_tensor(float(self._rates[step]), "float32")
        moved, state = self._update(list(arrays), list(state), list(gradient), rate)
        return list(moved), list(state)

    def _move(self, arrays: Any, velocity: Any, gradient: Any, rate: Any) -> Any:
        moved, speeds = [], []
        for i, (theta, slope) in enumerate(zip(arrays, gradient, strict=True)):
            if self._decay and self._decayed[i]:
                slope = slope + ops.cast(self._decay, theta.dtype) * theta
            change = ops.cast(rate, theta.dtype) * slope
            if not velocity:
                moved.append(theta - change)
                continue
            beta = ops.cast(self._momentum, theta.dtype)
            speeds.append(beta * velocity[i] - change)
            moved.append(theta + (beta * speeds[i] - change if self._nesterov else speeds[i]))
        return moved, speeds


class KerasOptimizer:
    """Steps of any Keras optimizer, made by a private copy of it on private variables.

    `Optimizer.stateless_apply` would do, but Keras does not have it on TensorFlow.

    Args:
        model: the copy's variables have the names, types and constraints of its weights.
        optimizer: an optimizer, its configuration (`keras.optimizers.serialize`) or its name. One
            that was built for `model`, such as `model.optimizer`, provides its state: trips start
            with its moments, its step count and its learning rate. It is not changed.
        num_steps: number of steps whose learning rates are recorded.

    Raises:
        ValueError: if it is none of these, accumulates gradients, or was built for another
            model.
    """

    def __init__(self, model: Any, optimizer: Any, num_steps: int) -> None:
        source = _optimizer(optimizer)
        if getattr(source, "gradient_accumulation_steps", None):
            raise ValueError(
                "`optimizer` must move the weights at every step. Received: an optimizer with "
                f"gradient_accumulation_steps={source.gradient_accumulation_steps}"
            )
        self._copy = type(source).from_config(source.get_config())
        self._weights = [
            keras.Variable(ops.zeros(v.shape, v.dtype), dtype=v.dtype, name=v.name)
            for v in model.trainable_variables
        ]
        for own, variable in zip(self._weights, model.trainable_variables, strict=True):
            own.constraint = variable.constraint
        _copy_exclusions(source, self._copy, model.trainable_variables, self._weights)
        self._copy.build(self._weights)
        if source.built:
            _check_built_for(source, model)
            backend.assign(self._copy.variables, backend.values(source.variables))
        self.state = self._read(self._copy.variables)
        self._about = {
            "learning_rate": self._learning_rates(num_steps),
            "optimizer": type(source).__name__,
            "optimizer_config": _without_name(keras.saving.serialize_keras_object(self._copy)),
            "optimizer_state": fingerprint(self.state) if source.built else None,
        }

    def about(self) -> dict[str, Any]:
        """Returns the description of the steps for a record."""
        return self._about

    def __call__(
        self, arrays: Sequence[Any], state: Sequence[Any], gradient: Sequence[Any], step: int
    ) -> tuple[list[Any], list[Any]]:
        """(arrays after a step, the state after it); the state holds the count of steps."""
        backend.assign(self._weights, arrays)
        backend.assign(self._copy.variables, state)
        self._copy.apply(list(gradient), self._weights)
        return self._read(self._weights), self._read(self._copy.variables)

    @staticmethod
    def _read(variables: Sequence[Any]) -> list[Any]:
        return [ops.copy(value) for value in backend.values(variables)]

    def _learning_rates(self, num_steps: int) -> list[float]:
        count = self._copy.iterations
        first, rates = int(backend.to_numpy([count])[0]), []
        for step in range(num_steps):
            count.assign(first + step)
            rates.append(float(backend.to_numpy([self._copy.learning_rate])[0]))
        count.assign(first)
        return rates


def _without_name(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration without the name, in which Keras numbers its objects."""
    return {key: value for key, value in config["config"].items() if key != "name"}


def _optimizer(optimizer: Any) -> Any:
    if isinstance(optimizer, (str, Mapping)):
        optimizer = keras.optimizers.get(optimizer if isinstance(optimizer, str) else {**optimizer})
    # Scaled losses are not what a probe differentiates.
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(
            "`optimizer` must be a Keras optimizer, its configuration "
            "(`keras.optimizers.serialize(optimizer)`) or its name. "
            f"Received: {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )
    return optimizer


def _check_built_for(optimizer: Any, model: Any) -> None:
    theirs = [id(variable) for variable in optimizer._trainable_variables]
    if theirs != [id(variable) for variable in model.trainable_variables]:
        raise ValueError(
            "`optimizer` was built for other variables than the model's trainable ones, so its "
            "state is not of this model: give its configuration, "
            "`keras.optimizers.serialize(optimizer)`, to start without a state."
        )


def _copy_exclusions(source: Any, copy: Any, theirs: Sequence[Any], ours: Sequence[Any]) -> None:
    """Copies the exclusions from weight decay, which are not in an optimizer's configuration."""
    if source.weight_decay is None:
        return
    decays = [source._use_weight_decay(variable) for variable in theirs]
    spared = [own for own, decay in zip(ours, decays, strict=True) if not decay]
    if spared:
        copy.exclude_from_weight_decay(var_list=spared)
