"""The variables that averages are kept in: their dtype, their layout over devices, their memory."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_lrtraj import backend, memory
from tf_lrtraj.kernels import Kernel, LagKernel

# How the running average of a recursive kernel is stored:
#   single: float32 (float64 for float64 weights);
#   double: float64;
#   pair: two float32 numbers, the average and what its last place could not hold
#         (compensated summation, Kahan 1965), where the backend has no float64.
PRECISIONS = ("auto", "single", "double", "pair")


def buffer_dtype(dtype: str, precision: str = "single") -> str:
    """The dtype an average of weights of this dtype is stored in: float32 or wider.

    In bfloat16 an average with decay 0.999 never moves.  Averages of complex weights are complex.

    >>> buffer_dtype("bfloat16"), buffer_dtype("float64"), buffer_dtype("float32", "double")
    ('float32', 'float64', 'float64')
    >>> buffer_dtype("complex64"), buffer_dtype("complex64", "double")
    ('complex64', 'complex128')
    """
    if backend.is_complex(dtype):
        return "complex128" if dtype == "complex128" or precision == "double" else "complex64"
    return "float64" if dtype == "float64" or precision == "double" else "float32"


def precision_of(kernel: Kernel, precision: str) -> str:
    """What `precision` (one of `PRECISIONS`) means for a kernel; never `"auto"`."""
    if isinstance(kernel, LagKernel):
        return "single"  # formed anew whenever it is read: nothing accumulates
    if precision != "auto":
        return precision
    if not kernel.needs_double:
        return "single"
    return "double" if backend.has_float64() else "pair"


def check_memory(variables: Sequence[Any], kernels: Mapping[str, Kernel], precision: str) -> None:
    """Raises ValueError where averages would take more memory than is free.

    Where the free memory cannot be known nothing is checked.
    """
    free = backend.free_memory()
    needed = {
        name: bytes_needed(variables, kernel, precision_of(kernel, precision))
        for name, kernel in kernels.items()
    }
    if free is None or sum(needed.values()) <= free:
        return
    name = max(needed, key=lambda key: needed[key])
    weights = sum(int(np.prod(v.shape)) for v in variables)
    whole, left, largest = map(memory.describe, (sum(needed.values()), free, needed[name]))
    raise ValueError(
        f"`averages` would keep {whole}, and {left} of memory are free. The largest is {name!r}: "
        f"{kernels[name]!r} keeps {kernels[name].copies:,} copies of {weights:,} weights, "
        f"{largest}. Choose a kernel that keeps fewer, or write snapshots to disk "
        "(SnapshotRecorder) and average those."
    )


def bytes_needed(variables: Sequence[Any], kernel: Kernel, precision: str) -> int:
    """Bytes that an average of some variables takes; `precision` is not `"auto"`."""
    running = (kernel.copies - kernel.ring_size) * (2 if precision == "pair" else 1)
    return sum(
        int(np.prod(v.shape)) * copies * np.dtype(buffer_dtype(v.dtype, kept)).itemsize
        for v in variables
        for copies, kept in ((kernel.ring_size, "single"), (running, precision))
    )


def describe_bytes(cost: Mapping[str, int]) -> str:
    """What averages hold, in words.

    >>> describe_bytes({"ema": 4_200_000, "swa": 3_000})
    'averages keep 4.2 MB: ema 4.2 MB, swa 3.0 kB'
    """
    each = ", ".join(f"{name} {memory.describe(size)}" for name, size in cost.items())
    return f"averages keep {memory.describe(sum(cost.values()))}: {each}"


def new_buffer(name: str, like: Any, precision: str, rows: int | None = None) -> Any:
    """A variable of zeros to keep an average of another variable in.

    It lies on the devices as that one does, so that averages of sharded weights are sharded.

    Args:
        name: of the new variable.
        like: the variable that is averaged.
        precision: how the average is stored; not `"auto"`.
        rows: for that many values, along a new first axis that is not sharded.
    """
    shape = tuple(like.shape) if rows is None else (rows, *like.shape)
    options: dict[str, Any] = {
        "initializer": "zeros",
        "shape": shape,
        "dtype": buffer_dtype(like.dtype, precision),
        "trainable": False,
        "autocast": False,
        # Each replica writes its own copy; all are equal, so reading takes the first.
        "synchronization": "on_read",
        "aggregation": "only_first_replica",
        "name": name,
    }
    layout = _layout(like, rows)
    if layout is not None and "layout" in inspect.signature(keras.Variable.__init__).parameters:
        options["layout"] = layout
    return keras.Variable(**options)


def _layout(like: Any, rows: int | None) -> Any:
    """The layout of a variable under `keras.distribution`, with an axis more for rows; or None."""
    layout = getattr(like, "_layout", None)
    if layout is None or rows is None:
        return layout
    if isinstance(layout, keras.distribution.TensorLayout):
        return keras.distribution.TensorLayout((None, *layout.axes), layout.device_mesh)
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(layout.mesh, PartitionSpec(None, *layout.spec))


def fill(buffer: Any, variable: Any) -> None:
    """Puts a variable's value into a buffer, into every row where it has rows."""
    value = ops.cast(ops.convert_to_tensor(variable), buffer.dtype)
    # On JAX this makes a copy, which Keras does not delete with the model's own array.
    backend.assign([buffer], [ops.broadcast_to(value, buffer.shape)])
