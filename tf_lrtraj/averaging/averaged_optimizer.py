"""`AveragedOptimizer`: averages of the weights, updated in the optimizer's step."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_lrtraj import backend, values
from tf_lrtraj.averaging import average_settings
from tf_lrtraj.averaging.buffers import PRECISIONS
from tf_lrtraj.averaging.state import AverageState
from tf_lrtraj.kernels import Kernel


@keras.saving.register_keras_serializable(package="tf_lrtraj")
class AveragedOptimizer(keras.optimizers.Optimizer):
    """Optimizer that updates averages of the weights in the step that moves the weights.

    It applies the steps of another optimizer and updates the averages after each step.  The
    averages are variables of the optimizer, with the same layout over devices as the weights.  So
    they are compiled with the step, Keras saves and restores them, and no callback is needed.  The
    class works with `steps_per_execution`, `jit_compile`, custom training steps and loops,
    `tf.distribute` strategies and `keras.distribution`.

    Micro-steps of gradient accumulation and steps skipped by loss scaling move no weights, so they
    do not update the averages.

    A `WeightAveraging()` without arguments, beside a model compiled with this optimizer,
    evaluates, lends and saves its averages.

    Example:

    >>> import keras, numpy as np
    >>> from tf_lrtraj import AveragedOptimizer, kernels
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> optimizer = AveragedOptimizer(keras.optimizers.SGD(0.1), {"ema": kernels.Exponential(0.9)})
    >>> model.compile(optimizer, "mse", steps_per_execution=4)
    >>> history = model.fit(np.ones((32, 3)), np.ones((32, 1)), batch_size=4, verbose=0)
    >>> optimizer.num_updates
    8
    >>> [average.shape for average in optimizer.get_average("ema")]
    [(3, 1), (1,)]

    Args:
        inner: a Keras optimizer, which moves the weights.  It may be a `LossScaleOptimizer` or a
            `MultiOptimizer`, and may accumulate gradients.
        averages: name → kernel, or a kernel's configuration.
        precision: how averages are stored, as in `AverageState`.  `"auto"` stores float32, and
            wider numbers where a kernel needs them; the other values are `"single"`, `"double"`
            and `"pair"`.
        name: name of the optimizer.

    Raises:
        ValueError: if `inner` is not an optimizer or keeps an average itself; if a kernel or the
            precision is unknown; if a kernel counts updates in epochs or percent.
    """

    def __init__(
        self,
        inner: keras.optimizers.Optimizer,
        averages: Mapping[str, Kernel | Mapping[str, Any]],
        precision: str = "auto",
        name: str | None = None,
    ) -> None:
        _check_inner(inner)
        kernels, waiting = average_settings.read_averages(averages)
        if waiting:
            raise values.error(
                f"averages[{min(waiting)!r}]",
                "a kernel with numbers of updates, as an optimizer does not know the length of a "
                "`fit`",
                waiting[min(waiting)],
            )
        one_of = values.one_of(PRECISIONS)
        # A function creates no variable; the learning rate is the inner optimizer's.
        super().__init__(learning_rate=lambda: inner.learning_rate, name=name)
        self.inner = inner
        self.precision = one_of.check("precision", precision)
        # Keras would replace a dict or a list by a tracked copy.
        self.averages = types.MappingProxyType(kernels)
        self._state: AverageState | None = None
        self._follow: Any = None  # updates the averages
        self._begun = False  # whether an update is known to have been made

    # The interface of Keras optimizers --------------------------------------------------------

    @property
    def variables(self) -> list[Any]:
        if backend.name() == "jax":  # Keras' loops on JAX read the values here before they begin
            self._begin()
        return [*self._variables, *self.inner.variables]

    @property
    def iterations(self) -> Any:
        """Number of steps that the inner optimizer has made."""
        return self.inner.iterations

    @property
    def learning_rate(self) -> Any:
        return self.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner.learning_rate = learning_rate

    @property
    def loss_scale_factor(self) -> Any:
        inner = getattr(self, "inner", None)
        return None if inner is None else inner.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float | None) -> None:
        if hasattr(self, "inner"):
            self.inner.loss_scale_factor = factor

    def scale_loss(self, loss: Any) -> Any:
        return self.inner.scale_loss(loss)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        self.inner.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list: Any) -> None:
        self.inner.finalize_variable_values(var_list)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the variables of the averages and of the inner optimizer.

        Raises:
            ValueError: if the averages do not fit into memory.
        """
        if self.built:
            return
        variables = list(variables)
        if not self.inner.built:
            self.inner.build(variables)
        _check_inner(self.inner)  # a MultiOptimizer may know its parts only now
        super().build(variables)
        # Some file formats of Keras identify a variable by its path.
        with backend.outside_of_graphs(), keras.name_scope(self.name):
            state = AverageState(variables, self.averages, self.precision, begin=False)
        for variable in state.variables:
            self._track_variable(variable)
        self._state = state
        self._follow = backend.fused_update(state.update, [*state.variables, *variables])
        self._begin()

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        grads = list(grads)
        if not grads:
            return
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if not self.built:
                self.build(trainable_variables)
        self._begin()
        before = self._steps()
        self.inner.apply(grads, trainable_variables)
        self._update(before)

    def stateless_apply(
        self, optimizer_variables: Any, grads: Any, trainable_variables: Any
    ) -> tuple[Any, Any]:
        if backend.name() == "tensorflow" or not self.built:
            return super().stateless_apply(optimizer_variables, grads, trainable_variables)
        weights, own = self._trainable_variables, self._variables
        held, inner = optimizer_variables[: len(own)], optimizer_variables[len(own) :]

        def scope(weight_values: Any, own_values: Any, inner_values: Any) -> Any:
            variables = [*weights, *own, *self.inner.variables]
            numbers = [*weight_values, *own_values, *inner_values]
            return keras.StatelessScope(list(zip(variables, numbers, strict=True)))

        with scope(trainable_variables, held, inner):
            steps = self._steps()
        # The `stateless_apply` of LossScaleOptimizer differs from its `apply`.
        moved, inner = self.inner.stateless_apply(inner, grads, trainable_variables)
        with scope(moved, held, inner) as after:
            self._update(steps)
        return moved, [*(after.get_current_value(variable) for variable in own), *inner]

    def _begin(self) -> None:
        """Takes the current weights as `θ_0`, unless updates have been made.

        This adds no cost to compiled steps.  It runs when the optimizer is built.  Weights may be
        loaded after that, so it also runs when a step is traced or, on JAX, when a loop reads the
        values.
        """
        if self._begun or self._state is None:
            return
        with backend.outside_of_graphs() as possible:
            if not possible or not backend.hold_values(
                [*self._trainable_variables, *self._variables]
            ):
                return
            if self.num_updates:
                self._begun = True
            else:
                self._state.start()

    def _steps(self) -> list[Any] | None:
        """Returns the steps of each inner optimizer, or None if every call makes one step."""
        counters = _counters(self.inner)
        if not any(_may_skip(one) for one in (self.inner, *counters)):
            return None
        return [ops.convert_to_tensor(one.iterations) + 0 for one in counters]

    def _update(self, before: list[Any] | None) -> None:
        """Updates the averages if the weights have moved since `before`."""
        if before is None:
            self._iterations.assign_add(1)
            self._follow(_number(self._iterations))
            return
        pairs = zip(self._steps() or (), before, strict=True)
        moved = ops.any(ops.stack([ops.not_equal(now, then) for now, then in pairs]))
        self._iterations.assign_add(ops.cast(moved, self._iterations.dtype))
        self._follow(_number(self._iterations), counts=moved)

    # The averages -----------------------------------------------------------------------------

    @property
    def state(self) -> AverageState:
        """The buffers of the averages.

        Raises:
            RuntimeError: before the optimizer is built.
        """
        if self._state is None:
            raise RuntimeError(
                "The optimizer has no averages yet. Train with it, or call "
                "`optimizer.build(model.trainable_variables)`."
            )
        return self._state

    @property
    def averaged_variables(self) -> list[Any]:
        """The averaged variables, in the order of the averages' arrays."""
        return list(self._trainable_variables)

    @property
    def num_updates(self) -> int:
        """Number of updates made so far."""
        return int(backend.to_numpy(backend.values([self._iterations]))[0])

    def get_average(self, name: str) -> list[np.ndarray]:
        """Returns the average `name` as arrays in the order of the trainable variables.

        Before the first update it equals the weights.  Inside a `fit` on JAX the values are
        current only after `model.jax_state_sync()`, which `WeightAveraging` calls.

        Raises:
            KeyError: for an unknown name.
            RuntimeError: before the optimizer is built.
        """
        state = self.state
        self._begin()
        return backend.to_numpy(state.average(name, self.num_updates))

    def reset(self) -> None:
        """Restarts the averages at the current weights."""
        backend.assign([self._iterations], [0])
        self._begun = False
        self._begin()

    # Saving -----------------------------------------------------------------------------------

    def save_own_variables(self, store: Any) -> None:
        # Keras saves the inner optimizer separately, as a part of this one.
        store["averages"] = np.frombuffer(self._description().encode(), np.uint8)
        for index, array in enumerate(backend.to_numpy(backend.values(self._variables))):
            store[str(index)] = array

    def load_own_variables(self, store: Any) -> None:
        own, saved = self._description(), "no averages"
        if "averages" in store.keys():  # noqa: SIM118  (Keras' stores are no dicts)
            saved = np.asarray(store["averages"]).tobytes().decode()
        if saved != own:
            raise ValueError(
                f"The optimizer {self.name!r} keeps the averages {own}, but the file holds "
                f"{saved}. To load the weights alone, load them before `compile`."
            )
        if len(store.keys()) != len(self._variables) + 1:
            raise ValueError(
                f"The optimizer {self.name!r} keeps its averages in {len(self._variables)} "
                f"variables, but the file holds {len(store.keys()) - 1}. The file belongs to "
                "another model, or the optimizer is not built yet: call "
                "`optimizer.build(model.trainable_variables)` before loading."
            )
        for index, variable in enumerate(self._variables):
            variable.assign(store[str(index)])

    def _description(self) -> str:
        """Returns the averages as JSON, in their order."""
        return json.dumps({name: kernel.get_config() for name, kernel in self.averages.items()})

    def set_weights(self, weights: Sequence[Any]) -> None:
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)

    def get_config(self) -> dict[str, Any]:
        return {
            "inner": keras.saving.serialize_keras_object(self.inner),
            "averages": {name: kernel.get_config() for name, kernel in self.averages.items()},
            "precision": self.precision,
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Any = None
    ) -> AveragedOptimizer:
        inner = keras.saving.deserialize_keras_object(config["inner"], custom_objects)
        return cls(**{**config, "inner": inner})


def find_averaged(optimizer: Any) -> AveragedOptimizer | None:
    """Returns the `AveragedOptimizer` that `optimizer` is or wraps, or None."""
    if isinstance(optimizer, AveragedOptimizer):
        return optimizer
    inner = getattr(optimizer, "inner_optimizer", None)
    return None if inner is None else find_averaged(inner)


def _counters(optimizer: Any) -> list[Any]:
    """Returns the innermost optimizers, whose `iterations` count updates of weights."""
    inner = getattr(optimizer, "inner_optimizer", None)  # LossScaleOptimizer has it
    if inner is not None:
        return _counters(inner)
    several = getattr(optimizer, "optimizers", None)  # MultiOptimizer has it
    return [optimizer] if several is None else [one for part in several for one in _counters(part)]


def _may_skip(optimizer: Any) -> bool:
    """Returns whether a call of an optimizer may leave the weights unchanged."""
    return bool(optimizer.gradient_accumulation_steps or hasattr(optimizer, "inner_optimizer"))


def _check_inner(inner: Any) -> None:
    if not isinstance(inner, keras.optimizers.Optimizer):
        raise values.error("inner", "a Keras optimizer, such as keras.optimizers.SGD(0.1)", inner)
    for one in [inner, *_counters(inner)]:
        if isinstance(one, AveragedOptimizer):
            raise values.error("inner", "an optimizer without averages", one)
        if one.use_ema:
            raise ValueError(
                "`inner` must not have `use_ema`, which replaces the weights by its average when "
                "training ends. Add this average to `averages` instead, as "
                f"kernels.Exponential({one.ema_momentum}). Received: inner={one!r}"
            )


def _number(variable: Any) -> Any:
    """Returns the value of a counter variable on the current replica."""
    if backend.name() == "torch":
        return int(variable.value)
    return backend.values([variable])[0]
