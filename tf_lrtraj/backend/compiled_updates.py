"""Fast versions of functions that write variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj.backend.devices import strategy_of
from tf_lrtraj.backend.tensors import compiled, name
from tf_lrtraj.backend.variables import assign, replicas_of, tensor_of, values

# XLA makes one pass over the weights, TensorFlow one per operation, but compiling takes about 50
# ms per variable and average. Weights that fit into a cache gain nothing.
XLA_FROM = 1 << 20


def compiled_update(
    function: Callable[..., None], model: Any, writes: Sequence[Any], reads: Sequence[Any]
) -> Callable[..., None]:
    """Makes a fast version of a function that writes variables placed like `model`'s.

    On TensorFlow it becomes one graph: on a single device compiled by XLA, from `XLA_FROM` numbers
    on, and otherwise run on every replica of the model's strategy.  On JAX it becomes a compiled
    pure function of the variables' values, whose old values are donated (their memory is reused);
    on torch it runs eagerly, without gradients.

    Args:
        function: takes arrays, reads and writes Keras variables, returns nothing.
        model: its strategy is used.
        writes: every variable that `function` writes.
        reads: the variables that it only reads.
    """
    if name() == "tensorflow":
        return _tensorflow_update(function, strategy_of(model), [*writes, *reads])
    if name() == "jax":
        return _jax_update(function, list(writes), list(reads))
    return compiled(function)


def fused_update(function: Callable[..., None], variables: Sequence[Any]) -> Callable[..., None]:
    """Makes a fast version of a function that writes variables, to be called in a training step.

    On TensorFlow it is compiled by XLA on a single device, from `XLA_FROM` numbers on, whether the
    step is or not.  Elsewhere it is the function itself, and part of the step.

    Args:
        function: takes arrays and Keras variables' values, returns nothing.
        variables: those that it reads or writes.
    """
    if name() != "tensorflow" or not _gains_from_xla(variables):
        return function
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)


def _gains_from_xla(variables: Sequence[Any]) -> bool:
    """Whether XLA can compile updates of some variables, and there are enough of them."""
    import tensorflow as tf

    numbers = sum(int(np.prod(variable.shape)) for variable in variables)
    return numbers >= XLA_FROM and not tf.distribute.has_strategy()


def _tensorflow_update(
    function: Callable[..., None], strategy: Any, variables: list[Any]
) -> Callable[..., None]:
    import tensorflow as tf

    if any(replicas_of(variable) for variable in variables):

        @tf.function(reduce_retracing=False)
        def run(*args: Any) -> None:
            strategy.run(function, args=args)

        return run
    xla = True if _gains_from_xla(variables) else None
    traced = tf.function(function, jit_compile=xla, reduce_retracing=False)
    calls: list[Callable[..., Any]] = []

    def run_traced(*args: Any) -> None:
        if not calls:
            calls.append(_flat_call(traced.get_concrete_function(*args), args))
        calls[0](*args)

    return run_traced


def _flat_call(concrete: Any, args: tuple[Any, ...]) -> Callable[..., Any]:
    """Returns a fast call of a traced function that returns nothing.

    Selecting a trace and matching arguments and variables with its signature would take a large
    part of an update; here this is done once.
    """
    import tensorflow as tf

    def kinds(tensors: Sequence[Any]) -> list[Any]:
        return [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]

    flat = tf.nest.flatten(args)
    run_flat = getattr(getattr(concrete, "inference_fn", None), "call_flat", None)
    expected, handles = kinds(concrete.inputs[: len(flat)]), list(concrete.captured_inputs)
    if not all(tf.is_tensor(one) for one in flat) or kinds(flat) != expected or run_flat is None:
        return concrete

    def call(*args: Any) -> None:
        flat = tf.nest.flatten(args)
        if kinds(flat) != expected:
            raise ValueError(f"arguments must be as the first ones, {expected}. Received: {args}")
        run_flat(*flat, *handles)

    return call


def _jax_update(
    function: Callable[..., None], writes: list[Any], reads: list[Any]
) -> Callable[..., None]:
    import jax

    def pure(written: list[Any], read: list[Any], args: Any) -> list[Any]:
        mapping = [*zip(writes, written, strict=True), *zip(reads, read, strict=True)]
        with keras.StatelessScope(mapping) as scope:
            function(*args)
        return [scope.get_current_value(variable) for variable in writes]

    step = jax.jit(pure, donate_argnums=0)
    held, put = _around_scopes()
    # Donated arrays must be owned: a new buffer may still be the model's own array.
    assign(writes, values(writes))

    def run(*args: Any) -> None:
        new = step(held(writes), held(reads), args)
        for variable, value in zip(writes, new, strict=True):
            put(variable, value)

    return run


def _around_scopes() -> tuple[Callable[[Sequence[Any]], list[Any]], Callable[[Any, Any], None]]:
    """Returns functions that read many variables and write one on JAX outside Keras' scopes.

    `value` and `assign` look for scopes and check shapes, which takes a large part of an update for
    ResNet-34's hundred variables.  Variables of Flax's NNX store their arrays differently.
    """
    is_nnx_enabled = getattr(keras.config, "is_nnx_enabled", None)
    if is_nnx_enabled is not None and is_nnx_enabled():
        return values, lambda variable, value: variable.assign(value)
    return lambda variables: [tensor_of(v) for v in variables], lambda v, x: v._direct_assign(x)
