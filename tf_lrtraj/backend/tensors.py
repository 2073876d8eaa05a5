"""Arrays of the current Keras backend: `tf.Tensor`, `jax.Array` or `torch.Tensor`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import ml_dtypes  # noqa: F401  (so that NumPy knows bfloat16)
import numpy as np


def name() -> str:
    """Returns the name of the current Keras backend: `"tensorflow"`, `"jax"` or `"torch"`."""
    return keras.backend.backend()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a pure function of nested lists of arrays with the backend's own compiler.

    Args:
        function: takes and returns (nests of) arrays and touches no variables.

    On torch the function runs eagerly, without gradients.
    """
    if name() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, reduce_retracing=False)
    if name() == "jax":
        import jax

        return jax.jit(function)
    if name() == "torch":
        import torch

        return torch.no_grad()(function)
    raise RuntimeError(
        f"Keras backend must be 'tensorflow', 'jax' or 'torch'. Received: {name()!r}"
    )


def unconverted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function without AutoGraph conversion, as Keras traces models."""
    if name() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def is_tracing() -> bool:
    """Returns whether a function is being traced, which runs its Python code only once."""
    if name() == "tensorflow":
        import tensorflow as tf

        return not tf.executing_eagerly()
    if name() == "jax":
        import jax

        return isinstance(jax.numpy.zeros(()) + 1, jax.core.Tracer)
    return False


@contextlib.contextmanager
def outside_of_graphs() -> Iterator[bool]:
    """Leaves the function that is being traced, if any, to read and write values at once.

    Yields:
        whether that is possible: not on JAX while it traces.
    """
    if name() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            yield tf.executing_eagerly()
    else:
        yield not is_tracing()


def to_numpy(arrays: Sequence[Any]) -> list[np.ndarray]:
    """Returns host copies of backend tensors."""
    return [np.array(keras.ops.convert_to_numpy(array)) for array in arrays]


def on_host(array: Any) -> np.ndarray:
    """A tensor's values, without a copy where they are on the host and NumPy has their type."""
    if name() == "jax":
        return np.asarray(array)
    if name() == "torch" and array.device.type == "cpu" and array.dtype.itemsize > 2:
        return array.detach().numpy()
    if name() == "tensorflow" and array.dtype.size > 2:
        return np.asarray(memoryview(array))
    return np.asarray(keras.ops.convert_to_numpy(array))


def scalars(array: np.ndarray) -> Any:
    """Returns a small array in the form of the coefficients of compiled updates.

    On torch it stays on the host, because reading it from a device would wait for all its work.
    """
    return array if name() == "torch" else keras.ops.convert_to_tensor(array)


def is_complex(dtype: Any) -> bool:
    """Returns whether a dtype is complex."""
    return keras.backend.standardize_dtype(dtype).startswith("complex")


def stored(array: Any, dtype: str) -> Any:
    """Casts an array to a wider dtype, and keeps to the numbers that its own dtype holds.

    Where XLA compiles both, it leaves out the rounding of a result to 16 bits that is cast to 32
    again: an average made in a training step would be of weights that no variable ever held.
    """
    short = keras.backend.standardize_dtype(array.dtype)
    if name() == "jax" and short in _SHORT:
        import jax

        return jax.lax.reduce_precision(keras.ops.cast(array, dtype), *_SHORT[short])
    if name() == "tensorflow" and short == "bfloat16":
        import tensorflow as tf

        bits = tf.cast(tf.bitcast(array, tf.int16), tf.int32)  # the upper half of a float32
        wide = tf.bitcast(tf.bitwise.left_shift(bits, tf.constant(16, tf.int32)), tf.float32)
        return keras.ops.cast(wide, dtype)
    return keras.ops.cast(array, dtype)


# Bits of exponent and mantissa.
_SHORT = {"bfloat16": (8, 7), "float16": (5, 10)}


def is_one(share: Any, dtype: str) -> Any:
    """Returns whether shares are 1 in the real dtype of a dtype (complex numbers have no order)."""
    real = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    return keras.ops.cast(share, real) >= 1.0


def weighted_sum(weights: Any, arrays: Any) -> Any:
    """`Σ_i weights[i] * arrays[i]` for [n] weights and an [n, …] array, in the array's dtype."""
    weights = keras.ops.cast(weights, arrays.dtype)
    if name() == "torch":
        import torch

        return torch.tensordot(weights, arrays, dims=1)  # Keras' goes through float32
    return keras.ops.tensordot(weights, arrays, axes=1)


def all_finite(arrays: Sequence[Any]) -> bool:
    """Returns whether all numbers of arrays are finite."""
    if not arrays:
        return True
    finite = np.isfinite(to_numpy([_compiled_sums()(list(arrays))])[0])
    # A sum may overflow although every number is finite.
    suspects = [array for array, sound in zip(arrays, finite, strict=True) if not sound]
    return all(bool(np.all(np.isfinite(_wide(array)))) for array in suspects)


def _wide(array: Any) -> np.ndarray:
    array = to_numpy([array])[0]
    return array if array.dtype.kind in "fc" else array.astype(np.float32)  # bfloat16


def fingerprints(arrays: Sequence[Any]) -> Any:
    """Returns [n] integers, the wrapped sum of the bits of each array, to detect changes."""
    return to_numpy([_compiled_fingerprints()(list(arrays))])[0] if arrays else np.zeros(0, int)


# One function for all models, so that it is compiled once.
@functools.cache
def _compiled_fingerprints() -> Callable[..., Any]:
    return compiled(lambda arrays: keras.ops.stack([_sum_of_bits(_real(a)) for a in arrays]))


@functools.cache
def _compiled_sums() -> Callable[..., Any]:
    return compiled(lambda arrays: keras.ops.stack([_sum(_real(a)) for a in arrays]))


def _real(array: Any) -> Any:
    """A complex array as two real ones."""
    if not is_complex(array.dtype):
        return array
    return keras.ops.stack([keras.ops.real(array), keras.ops.imag(array)])


def _sum(array: Any) -> Any:
    dtype = keras.backend.standardize_dtype(array.dtype)
    if dtype not in ("float32", "float64"):
        array = keras.ops.cast(array, "float32")
    return keras.ops.cast(keras.ops.sum(array), "float32")


def _sum_of_bits(array: Any) -> Any:
    size = np.dtype(keras.backend.standardize_dtype(array.dtype)).itemsize
    if name() == "tensorflow":
        import tensorflow as tf

        bits = tf.bitcast(array, f"int{8 * size}")
        # On a GPU TensorFlow sums integers of 32 bits on the host.
        if size != 4 or tf.config.list_logical_devices("GPU"):
            bits = tf.cast(bits, tf.int64)
        return tf.cast(tf.reduce_sum(bits), tf.int64)
    if name() == "jax":
        import jax

        bits = jax.lax.bitcast_convert_type(array, f"int{8 * size}")
        return jax.numpy.sum(bits, dtype=f"int{8 * max(size, 4)}").astype("int32")
    import torch

    return array.contiguous().view(getattr(torch, f"int{8 * size}")).sum()
