"""Gradients and Hessian-vector products of functions of lists of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from tf_lrtraj.backend.tensors import name


def value_and_gradient(function: Callable[..., Any]) -> Callable[..., tuple[Any, list[Any]]]:
    """Compiles `function(arrays, *args) -> scalar` into (scalar, its gradient by the arrays).

    Args:
        function: pure; differentiated with respect to its first argument, a list of arrays.

    Returns:
        a function of the same arguments; the gradient is zero for an array on which the scalar does
        not depend.
    """
    if name() == "tensorflow":
        import tensorflow as tf

        @tf.function(reduce_retracing=False)
        def run(arrays: Any, *args: Any) -> Any:
            return _tape_gradient(function, arrays, args)

        return run
    if name() == "jax":
        import jax

        return jax.jit(jax.value_and_grad(function))
    import torch

    def eager(arrays: Any, *args: Any) -> Any:
        with torch.enable_grad():
            leaves = [array.detach().requires_grad_() for array in arrays]
            value = function(leaves, *args)
            found = torch.autograd.grad(value, leaves, allow_unused=True)
        return value.detach(), _zeros_for_none(found, leaves)

    return eager


def hessian_vector_product(function: Callable[..., Any]) -> Callable[..., list[Any]]:
    """Compiles `function(arrays, *args) -> scalar` into `(arrays, vector, *args) -> H·vector`.

    The product is the gradient of ⟨gradient, vector⟩, exact to rounding.

    Args:
        function: pure, twice differentiable where it is evaluated.
    """
    if name() == "tensorflow":
        import tensorflow as tf

        @tf.function(reduce_retracing=False)
        def run(arrays: Any, vector: Any, *args: Any) -> Any:
            def slope(arrays: Any) -> Any:
                _, found = _tape_gradient(function, arrays, args)
                return sum(tf.reduce_sum(g * v) for g, v in zip(found, vector, strict=True))

            return _tape_gradient(slope, arrays, ())[1]

        return run
    if name() == "jax":
        import jax

        def product(arrays: Any, vector: Any, *args: Any) -> Any:
            gradient = jax.grad(lambda point: function(point, *args))
            return jax.jvp(gradient, (arrays,), (vector,))[1]

        return jax.jit(product)
    import torch

    def eager(arrays: Any, vector: Any, *args: Any) -> Any:
        with torch.enable_grad():
            leaves = [array.detach().requires_grad_() for array in arrays]
            value = function(leaves, *args)
            first = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
            slope = sum((g * v).sum() for g, v in zip(first, vector, strict=True) if g is not None)
            found = torch.autograd.grad(slope, leaves, allow_unused=True)
        return _zeros_for_none(found, leaves)

    return eager


def _tape_gradient(function: Callable[..., Any], arrays: Any, args: Any) -> tuple[Any, list[Any]]:
    import tensorflow as tf

    arrays = list(arrays)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(arrays)
        value = function(arrays, *args)
    zeros = tf.UnconnectedGradients.ZERO
    return value, tape.gradient(value, arrays, unconnected_gradients=zeros)


def _zeros_for_none(found: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    return [
        keras.ops.zeros_like(array) if gradient is None else gradient.detach()
        for gradient, array in zip(found, like, strict=True)
    ]
