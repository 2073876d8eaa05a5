"""Reading and writing many Keras variables at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj.backend.tensors import fingerprints, is_one, name, to_numpy

# Columns of several averages that torch updates together on a CPU.
_COLUMNS = 1 << 20


def values(variables: Sequence[Any]) -> list[Any]:
    """Current values of Keras variables as backend tensors (no copy is promised)."""
    if name() == "torch":
        return [tensor_of(variable).detach() for variable in variables]
    if name() == "tensorflow":
        import tensorflow as tf

        return [tf.convert_to_tensor(variable.value) for variable in variables]
    return [variable.value for variable in variables]


def tensor_of(variable: Any) -> Any:
    """The tensor a variable holds on torch or JAX.

    `variable.value` first looks for scopes that would replace or cast it, which for
    ResNet-34's hundred variables is a good part of an update.
    """
    return variable.value if variable._value is None else variable._value


def replicas_of(variable: Any) -> tuple[Any, ...]:
    """The TensorFlow variables of each local replica, empty for one that is not replicated."""
    return tuple(getattr(variable.value, "values", None) or ())


def synchronized(model: Any) -> Any:
    """Returns a model whose variables hold their values.

    While one of Keras' loops runs on JAX, the values are elsewhere.
    """
    sync = getattr(model, "jax_state_sync", None)
    if sync is not None:
        sync()
    return model


def steps_of(optimizer: Any) -> int:
    """How often a Keras optimizer has moved weights."""
    count = optimizer.iterations  # with gradient accumulation a tensor, otherwise a variable
    if isinstance(count, keras.Variable):
        # A variable of several replicas cannot be made an integer directly.
        count = values([count])[0]
    return int(to_numpy([count])[0])


class _Itself:
    """Equal to another of these only while both are of one array that still exists."""

    def __init__(self, array: Any) -> None:
        self._reference = weakref.ref(array)

    def __eq__(self, other: object) -> bool:
        array = self._reference()
        return isinstance(other, _Itself) and array is not None and other._reference() is array

    __hash__ = None  # type: ignore[assignment]


def versions(variables: Sequence[Any]) -> list[Any]:
    """A mark for each Keras variable that differs once the variable has been written to.

    On TensorFlow only if a number changed.
    """
    if name() == "jax":  # an array never changes
        return [_Itself(variable.value) for variable in variables]
    if name() == "torch":
        tensors = [tensor_of(variable) for variable in variables]
        return [(tensor.data_ptr(), tensor._version) for tensor in tensors]
    return fingerprints(values(variables)).tolist()


def hold_values(variables: Sequence[Any]) -> bool:
    """Whether Keras variables hold their values: not while a loop on JAX keeps them elsewhere.

    A compiled step that took over their arrays has deleted them.
    """
    arrays = [variable._value for variable in variables]
    return not any(
        array is None or (hasattr(array, "is_deleted") and array.is_deleted()) for array in arrays
    )


def holds(variable: Any, array: Any) -> bool:
    """Whether a Keras variable is known to hold this very array, so that assigning it is idle."""
    if name() == "torch":
        own = tensor_of(variable)
        same = getattr(array, "data_ptr", lambda: None)() == own.data_ptr()
        return same and array.shape == own.shape and array.dtype == own.dtype
    return name() == "jax" and array is variable.value


def assign(variables: Sequence[Any], arrays: Sequence[Any]) -> None:
    """Assigns copies of arrays to Keras variables, casting to each variable's dtype."""
    # On JAX a variable keeps the very array it is given, and Keras' compiled steps
    # donate the model's arrays: one shared with an average would be deleted with them.
    shared = name() == "jax"
    for variable, array in zip(variables, arrays, strict=True):
        if _assigned_by_handle(variable, array):
            continue
        value = keras.ops.cast(array, variable.dtype)
        variable.assign(keras.ops.copy(value) if shared and value is array else value)


def _assigned_by_handle(variable: Any, array: Any) -> bool:
    """Assigns a tensor to a single, eager TensorFlow variable; False if it is not that simple.

    Keras' and TensorFlow's own ways take ten times as long as the operation.
    The variable then shares the tensor's memory, as with any assignment in TensorFlow: what
    writes to a variable in place copies the memory first if it is shared.
    """
    if name() != "tensorflow":
        return False
    import tensorflow as tf

    if not tf.executing_eagerly() or replicas_of(variable):
        return False
    value = variable.value  # inside a stateless or an autocast scope it may be a tensor
    if (
        not isinstance(value, tf.Variable)
        or not isinstance(array, tf.Tensor)
        or array.dtype != value.dtype
        or array.shape != value.shape
    ):
        return False
    tf.raw_ops.AssignVariableOp(resource=value.handle, value=array)
    return True


def assign_row(variable: Any, index: Any, row: Any, *, or_nowhere: bool = False) -> None:
    """Writes `variable[index] = row` for a scalar integer `index`, in place where it can be.

    A ring buffer of a hundred copies of the weights must not be rewritten whole
    to change one of them.

    Args:
        variable: a Keras variable.
        index: which row.
        row: what to write there.
        or_nowhere: `index` may be -1, and then nothing is written.
    """
    if name() == "tensorflow":
        import tensorflow as tf

        # The raw operation takes a handle, so it also serves distributed variables, whose
        # scatter methods do not: on a replica its own copy, elsewhere all of them.
        on_replica = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
        copies = (() if on_replica else replicas_of(variable)) or (variable.value,)
        index = tf.cast(index, tf.int32)
        place = tf.reshape(tf.maximum(index, 0) if or_nowhere else index, [1])
        for copy in copies:
            update = tf.expand_dims(row, 0)
            if or_nowhere:
                old = tf.raw_ops.ResourceGather(
                    resource=copy.handle, indices=place, dtype=row.dtype
                )
                update = tf.where(index < 0, old, update)
            tf.raw_ops.ResourceScatterUpdate(resource=copy.handle, indices=place, updates=update)
    elif name() == "torch":
        if int(index) >= 0:
            variable.value.detach()[int(index)] = row.detach()
    else:
        value = variable.value
        if or_nowhere:  # JAX drops what it is told to write outside, but -1 is its last row
            index = keras.ops.where(index < 0, value.shape[0], index)
        variable.assign(value.at[index].set(row, mode="drop"))


def mix(variables: Sequence[Any], arrays: Sequence[Any], share: Any) -> None:
    """Moves each variable towards an array of its dtype: `v + share * (a - v)`.

    This form does not stall where `share` is small, and a share of 1 copies to the bit.

    Args:
        variables: Keras variables.
        arrays: a backend tensor for each.
        share: a number or scalar tensor in [0, 1].
    """
    if name() == "torch":
        import torch

        share = float(share)
        if share:
            # All tensors in one in-place pass; its own form is exact at 1.
            torch._foreach_lerp_([tensor_of(v) for v in variables], list(arrays), share)
        return
    for variable, array, value in zip(variables, arrays, values(variables), strict=True):
        part, copied = keras.ops.cast(share, variable.dtype), is_one(share, variable.dtype)
        variable.assign(keras.ops.where(copied, array, value + part * (array - value)))


def mix_rows(variables: Sequence[Any], arrays: Sequence[Any], shares: Any) -> None:
    """`mix` for variables of shape [rows, …], each row towards the same array by its own share.

    Args:
        variables: Keras variables.
        arrays: a backend tensor for each, without the axis of rows.
        shares: numbers or a tensor in [0, 1], [rows].
    """
    if name() == "torch":
        _mix_rows_on_torch(variables, arrays, np.asarray(shares))
        return
    for variable, array, value in zip(variables, arrays, values(variables), strict=True):
        rows = (-1, *[1] * len(array.shape))
        part = keras.ops.reshape(keras.ops.cast(shares, variable.dtype), rows)
        copied = keras.ops.reshape(is_one(shares, variable.dtype), rows)
        mixed = value + part * (array - value)
        variable.assign(keras.ops.where(copied, array, mixed))


def _mix_rows_on_torch(variables: Sequence[Any], arrays: Sequence[Any], shares: np.ndarray) -> None:
    import torch

    active = np.flatnonzero(shares)
    parts: dict[Any, Any] = {}  # the shares as a tensor, made once for all variables alike
    for variable, array in zip(variables, arrays, strict=True):
        tensor = tensor_of(variable)
        if len(active) < len(shares):  # no pass over the rows that stay as they are
            for row in active:
                tensor[row].lerp_(array, float(shares[row]))
            continue
        kind = tensor.dtype, tensor.device, array.dim()
        if kind not in parts:
            part = torch.from_numpy(shares).to(dtype=kind[0], device=kind[1])
            parts[kind] = part.view(-1, *[1] * kind[2]), part[:, None]
        if array.numel() <= _COLUMNS or tensor.device.type != "cpu":
            tensor.lerp_(array, parts[kind][0])
            continue
        # So much of the source stays in a cache for all rows.
        rows, source = tensor.view(len(shares), -1), array.reshape(-1)
        pieces = zip(rows.split(_COLUMNS, dim=1), source.split(_COLUMNS), strict=True)
        for piece, towards in pieces:
            piece.lerp_(towards, parts[kind][1])


def backup(variables: Sequence[Any]) -> Callable[[], None]:
    """Copies the values of Keras variables and returns a function that puts them back to the bit.

    Every replica's own value is kept: batch-norm statistics that are not
    synchronised differ from replica to replica.
    """
    if name() == "tensorflow":
        import tensorflow as tf

        parts = [
            part for variable in variables for part in replicas_of(variable) or [variable.value]
        ]
        # The operations themselves: TensorFlow's methods around them take ten times as long.
        # What is read shares the variable's memory; whatever writes there in place copies first.
        handles = [part.handle for part in parts]
        kept = [
            tf.raw_ops.ReadVariableOp(resource=handle, dtype=part.dtype)
            for handle, part in zip(handles, parts, strict=True)
        ]

        def restore() -> None:
            for handle, value in zip(handles, kept, strict=True):
                tf.raw_ops.AssignVariableOp(resource=handle, value=value)

        return restore
    copies = [keras.ops.copy(value) for value in values(variables)]
    return lambda: assign(variables, copies)
