"""The variables that store averages: their dtype, their layout over devices and their memory."""

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
#   pair: two float32 numbers, the average and its rounding error (compensated summation,
#         Kahan 1965), for backends without float64.
PRECISIONS = ("auto", "single", "double", "pair")


def buffer_dtype(dtype: str, precision: str = "single") -> str:
    """Returns the dtype of an average of weights of this dtype: float32 or wider.

    In bfloat16 an average with decay 0.999 would never move.  Averages of complex weights are
    complex.

    >>> buffer_dtype("bfloat16"), buffer_dtype("float64"), buffer_dtype("float32", "double")
    ('float32', 'float64', 'float64')
    >>> buffer_dtype("complex64"), buffer_dtype("complex64", "double")
    ('complex64', 'complex128')
    """
    if backend.is_complex(dtype):
        return "complex128" if dtype == "complex128" or precision == "double" else "complex64"
    return "float64" if dtype == "float64" or precision == "double" else "float32"


def precision_of(kernel: Kernel, precision: str) -> str:
    """Returns the precision of a kernel's average, with `"auto"` resolved."""
    if isinstance(kernel, LagKernel):
        return "single"  # the average is computed when it is read, so no errors accumulate
    if precision != "auto":
        return precision
    if not kernel.needs_double:
        return "single"
    return "double" if backend.has_float64() else "pair"


def check_memory(variables: Sequence[Any], kernels: Mapping[str, Kernel], precision: str) -> None:
    """Raises ValueError if the averages need more memory than is free.

    Nothing is checked if the amount of free memory is unknown.
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
        f"`averages` would keep {whole}, but {left} of memory are free. The largest is {name!r}: "
        f"{kernels[name]!r} keeps {kernels[name].copies:,} copies of {weights:,} weights, "
        f"{largest}. Choose a kernel that keeps fewer copies, or write snapshots to disk "
        "(SnapshotRecorder) and average those."
    )


def bytes_needed(variables: Sequence[Any], kernel: Kernel, precision: str) -> int:
    """Returns the bytes of an average of some variables; `precision` must not be `"auto"`."""
    running = (kernel.copies - kernel.ring_size) * (2 if precision == "pair" else 1)
    return sum(
        int(np.prod(v.shape)) * copies * np.dtype(buffer_dtype(v.dtype, kept)).itemsize
        for v in variables
        for copies, kept in ((kernel.ring_size, "single"), (running, precision))
    )


def describe_bytes(cost: Mapping[str, int]) -> str:
    """Describes the memory of averages in one line.

    >>> describe_bytes({"ema": 4_200_000, "swa": 3_000})
    'averages keep 4.2 MB: ema 4.2 MB, swa 3.0 kB'
    """
    each = ", ".join(f"{name} {memory.describe(size)}" for name, size in cost.items())
    return f"averages keep {memory.describe(sum(cost.values()))}: {each}"


def new_buffer(name: str, like: Any, precision: str, rows: int | None = None) -> Any:
    """Creates a variable of zeros that stores an average of another variable.

    It has the same layout over devices, so averages of sharded weights are sharded.

    Args:
        name: name of the new variable.
        like: the variable that is averaged.
        precision: how the average is stored; not `"auto"`.
        rows: number of values to store, along a new first axis that is not sharded; None stores
            one value without that axis.
    """
    shape = tuple(like.shape) if rows is None else (rows, *like.shape)
    options: dict[str, Any] = {
        "initializer": "zeros",
        "shape": shape,
        "dtype": buffer_dtype(like.dtype, precision),
        "trainable": False,
        "autocast": False,
        # Each replica writes its own copy.  All copies are equal, so a read returns the first.
        "synchronization": "on_read",
        "aggregation": "only_first_replica",
        "name": name,
    }
    layout = _layout(like, rows)
    if layout is not None and "layout" in inspect.signature(keras.Variable.__init__).parameters:
        options["layout"] = layout
    return keras.Variable(**options)


def _layout(like: Any, rows: int | None) -> Any:
    """Returns a variable's layout under `keras.distribution`, with an axis for rows, or None."""
    layout = getattr(like, "_layout", None)
    if layout is None or rows is None:
        return layout
    if isinstance(layout, keras.distribution.TensorLayout):
        return keras.distribution.TensorLayout((None, *layout.axes), layout.device_mesh)
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(layout.mesh, PartitionSpec(None, *layout.spec))


def fill(buffer: Any, variable: Any) -> None:
    """Assigns a variable's value to a buffer, or to each of its rows."""
    value = ops.cast(ops.convert_to_tensor(variable), buffer.dtype)
    # On JAX this is a copy, which survives when Keras deletes the model's own array.
    backend.assign([buffer], [ops.broadcast_to(value, buffer.shape)])
