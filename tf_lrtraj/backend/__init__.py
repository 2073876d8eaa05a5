"""The one place that knows which Keras backend runs.

Keras itself hides the backend for layers and operations.  What is left, and
lives here: compiling a function over lists of arrays, reading and writing many
variables at once, and the forward pass of a model with *given* weights, which
leaves every variable of the model as it was.

Arrays below are backend tensors (`tf.Tensor`, `jax.Array`, `torch.Tensor`).
"""

from __future__ import annotations

import contextlib
import functools
import random
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import ml_dtypes  # noqa: F401  (so that NumPy knows bfloat16)
import numpy as np

from tf_lrtraj import memory

# XLA makes one pass over the weights where TensorFlow makes one per operation, but compiling
# takes it some 50 ms per variable and average.  What fits into a cache gains nothing.
XLA_FROM = 1 << 20

# Columns of several averages that torch updates together on a CPU.
_COLUMNS = 1 << 20


def name() -> str:
    """The Keras backend in use: `"tensorflow"`, `"jax"` or `"torch"`."""
    return keras.backend.backend()


def compiled(function: Callable[..., Any], *, xla: bool = False) -> Callable[..., Any]:
    """Compiles a pure function of nested lists of arrays with the backend's own compiler.

    Args:
        function: takes and returns (nests of) arrays and touches no variables.
        xla: on TensorFlow, compile with XLA (fuses element-wise passes over the
            weights: about twice as fast on a CPU).  JAX always uses XLA.

    On torch the function runs eagerly, without gradients.
    """
    if name() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=xla or None, reduce_retracing=False)
    if name() == "jax":
        import jax

        return jax.jit(function)
    if name() == "torch":
        import torch

        return torch.no_grad()(function)
    raise RuntimeError(
        f"Keras backend must be 'tensorflow', 'jax' or 'torch'. Received: {name()!r}"
    )


def values(variables: Sequence[Any]) -> list[Any]:
    """Current values of Keras variables as backend tensors (no copy is promised)."""
    if name() == "torch":
        return [_tensor(variable).detach() for variable in variables]
    if name() == "tensorflow":
        import tensorflow as tf

        return [tf.convert_to_tensor(variable.value) for variable in variables]
    return [variable.value for variable in variables]


def steps_of(optimizer: Any) -> int:
    """How often a Keras optimizer has moved weights."""
    count = optimizer.iterations  # with gradient accumulation a tensor, otherwise a variable
    if isinstance(count, keras.Variable):
        # A variable of several replicas cannot be made an integer directly.
        count = values([count])[0]
    return int(to_numpy([count])[0])


def _tensor(variable: Any) -> Any:
    """The tensor a variable holds on torch or JAX.

    `variable.value` first looks for scopes that would replace or cast it, which for
    ResNet-34's hundred variables is a good part of an update.
    """
    return variable.value if variable._value is None else variable._value


def to_numpy(arrays: Sequence[Any]) -> list[np.ndarray]:
    """Host copies of backend tensors."""
    return [np.array(keras.ops.convert_to_numpy(array)) for array in arrays]


def fingerprints(arrays: Sequence[Any]) -> Any:
    """[n] integers, the wrapped sum of the bits of each array: if one number changes, it does."""
    return to_numpy([_compiled_fingerprints()(list(arrays))])[0] if arrays else np.zeros(0, int)


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
        tensors = [_tensor(variable) for variable in variables]
        return [(tensor.data_ptr(), tensor._version) for tensor in tensors]
    return fingerprints(values(variables)).tolist()


def all_finite(arrays: Sequence[Any]) -> bool:
    """Whether every number of some arrays is finite."""
    if not arrays:
        return True
    finite = np.isfinite(to_numpy([_compiled_sums()(list(arrays))])[0])
    # A sum may be too large where no number is.
    suspects = [array for array, sound in zip(arrays, finite, strict=True) if not sound]
    return all(bool(np.all(np.isfinite(_wide(array)))) for array in suspects)


def _wide(array: Any) -> np.ndarray:
    array = to_numpy([array])[0]
    return array if array.dtype.kind in "fc" else array.astype(np.float32)  # bfloat16


# One function for all models, so that nothing is compiled twice.
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


def is_complex(dtype: Any) -> bool:
    """Whether a dtype is of complex numbers."""
    return keras.backend.standardize_dtype(dtype).startswith("complex")


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

    if not tf.executing_eagerly() or _replicas(variable):
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
        copies = (() if on_replica else _replicas(variable)) or (variable.value,)
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
            torch._foreach_lerp_([_tensor(v) for v in variables], list(arrays), share)
        return
    for variable, array, value in zip(variables, arrays, values(variables), strict=True):
        part, copied = keras.ops.cast(share, variable.dtype), is_one(share, variable.dtype)
        variable.assign(keras.ops.where(copied, array, value + part * (array - value)))


def is_one(share: Any, dtype: str) -> Any:
    """Whether shares are 1 in the real numbers of a dtype (complex ones have no order)."""
    real = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    return keras.ops.cast(share, real) >= 1.0


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
        tensor = _tensor(variable)
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


def scalars(array: np.ndarray) -> Any:
    """A small array in the form in which compiled updates take coefficients.

    On torch it stays on the host: reading it back from a device would wait for all work there.
    """
    return array if name() == "torch" else keras.ops.convert_to_tensor(array)


def has_float64() -> bool:
    """Whether variables can be float64 where the model lives."""
    if name() == "jax":
        import jax

        return jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    if name() == "torch":
        return keras.ops.zeros(1).device.type != "mps"
    import tensorflow as tf

    return not isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)


def free_memory() -> int | None:
    """Bytes that new variables can take where the model lives; None where that is not known."""
    if name() == "torch":
        import torch

        if keras.ops.zeros(1).device.type == "cuda":
            return int(torch.cuda.mem_get_info()[0])
        return memory.free() if keras.ops.zeros(1).device.type == "cpu" else None
    if name() == "jax":
        import jax

        device = jax.local_devices()[0]
        if device.platform == "cpu":
            return memory.free()
        known = device.memory_stats() or {}
        # Weights may be spread over all the devices.
        free = known.get("bytes_limit", 0) - known.get("bytes_in_use", 0)
        return free * jax.local_device_count() if "bytes_limit" in known else None
    import tensorflow as tf

    on_host = not any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))
    return memory.free() if on_host else None


@contextlib.contextmanager
def random_streams_kept() -> Iterator[None]:
    """Leaves the global streams of Python, NumPy and torch as they were before the block.

    Reading a shuffled data set draws from them.
    """
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (users' code has it)
    with contextlib.ExitStack() as stack:
        if "torch" in sys.modules:
            stack.enter_context(sys.modules["torch"].random.fork_rng(devices=[]))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def weighted_sum(weights: Any, arrays: Any) -> Any:
    """`Σ_i weights[i] * arrays[i]` for [n] weights and an [n, …] array, in the array's dtype."""
    weights = keras.ops.cast(weights, arrays.dtype)
    if name() == "torch":
        import torch

        return torch.tensordot(weights, arrays, dims=1)  # Keras' goes through float32
    return keras.ops.tensordot(weights, arrays, axes=1)


def is_tracing() -> bool:
    """Whether a function is being traced, which runs its Python code once only."""
    if name() == "tensorflow":
        import tensorflow as tf

        return not tf.executing_eagerly()
    if name() == "jax":
        import jax

        return isinstance(jax.numpy.zeros(()) + 1, jax.core.Tracer)
    return False


def strategy_of(model: Any) -> Any:
    """The `tf.distribute` strategy `model` was built under; None on other backends."""
    return getattr(model, "distribute_strategy", None) if name() == "tensorflow" else None


def strategy_scope(model: Any) -> Any:
    """The scope in which variables that live beside `model`'s must be created."""
    strategy = strategy_of(model)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def compiled_on_replicas(function: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """Compiles a function that every replica of the model's strategy runs on its share.

    TensorFlow only.  What the first replica here returns is returned.
    """
    import tensorflow as tf

    strategy = strategy_of(model)

    @tf.function(reduce_retracing=False)
    def run(*args: Any) -> Any:
        return keras.tree.map_structure(
            lambda result: strategy.experimental_local_results(result)[0],
            strategy.run(function, args=args),
        )

    return run


def is_distributed(data: Any) -> bool:
    """Whether a data set hands every replica its share (`experimental_distribute_dataset`)."""
    if name() != "tensorflow":
        return False
    import tensorflow as tf

    return isinstance(data, tf.distribute.DistributedDataset)


def unconverted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose Python code TensorFlow traces as it is, as Keras has models traced."""
    if name() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def sum_over_replicas(arrays: Any) -> Any:
    """The sum of a nest of arrays over the replicas; to be called on a replica."""
    if name() != "tensorflow":
        return arrays
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, arrays)


def compiled_update(
    function: Callable[..., None], model: Any, writes: Sequence[Any], reads: Sequence[Any]
) -> Callable[..., None]:
    """Makes a fast version of a function that writes variables living beside `model`'s.

    On TensorFlow it becomes one graph: on a single device compiled by XLA, from
    `XLA_FROM` numbers on, and otherwise run on every replica of the model's
    strategy.  On JAX it becomes a compiled pure function of the variables'
    values, whose old ones are donated (their memory is used again); on torch
    it runs eagerly, without gradients.

    Args:
        function: takes arrays, reads and writes Keras variables, returns nothing.
        model: tells the strategy.
        writes: every variable that `function` writes.
        reads: the variables that it only reads.
    """
    if name() == "tensorflow":
        return _tensorflow_update(function, strategy_of(model), [*writes, *reads])
    if name() == "jax":
        return _jax_update(function, list(writes), list(reads))
    return compiled(function)


def _tensorflow_update(
    function: Callable[..., None], strategy: Any, variables: list[Any]
) -> Callable[..., None]:
    import tensorflow as tf

    if any(_replicas(variable) for variable in variables):

        @tf.function(reduce_retracing=False)
        def run(*args: Any) -> None:
            strategy.run(function, args=args)

        return run
    numbers = sum(int(np.prod(variable.shape)) for variable in variables)
    xla = True if numbers >= XLA_FROM else None
    traced = tf.function(function, jit_compile=xla, reduce_retracing=False)
    calls: list[Callable[..., Any]] = []

    def run_traced(*args: Any) -> None:
        if not calls:
            calls.append(_flat_call(traced.get_concrete_function(*args), args))
        calls[0](*args)

    return run_traced


def _flat_call(concrete: Any, args: tuple[Any, ...]) -> Callable[..., Any]:
    """Calls a traced function that returns nothing with what it was traced for.

    Choosing among traces, and matching arguments and the variables' handles with its
    signature, would be a good part of an update: here both are done once.
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


def _replicas(variable: Any) -> tuple[Any, ...]:
    """The TensorFlow variables of each local replica, empty for one that is not replicated."""
    return tuple(getattr(variable.value, "values", None) or ())


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
    # What is donated must be owned: a new buffer may still be the model's own array.
    assign(writes, values(writes))

    def run(*args: Any) -> None:
        new = step(held(writes), held(reads), args)
        for variable, value in zip(writes, new, strict=True):
            put(variable, value)

    return run


def _around_scopes() -> tuple[Callable[[Sequence[Any]], list[Any]], Callable[[Any, Any], None]]:
    """How to read many and to write one variable on JAX outside of all Keras' scopes.

    `value` and `assign` look for scopes and check shapes, which for ResNet-34's hundred
    variables is a good part of an update.  Variables of Flax's NNX hide their arrays otherwise.
    """
    is_nnx_enabled = getattr(keras.config, "is_nnx_enabled", None)
    if is_nnx_enabled is not None and is_nnx_enabled():
        return values, lambda variable, value: variable.assign(value)
    return lambda variables: [_tensor(v) for v in variables], lambda v, x: v._direct_assign(x)


@contextlib.contextmanager
def given_weights(
    model: Any, trainable: Sequence[Any], non_trainable: Sequence[Any]
) -> Iterator[Any]:
    """A block in which `model` has the given weights, and in which no variable changes.

    Args:
        model: a built Keras model.
        trainable: values in the order of `model.trainable_variables`.
        non_trainable: values in the order of `model.non_trainable_variables`.

    Yields:
        a `keras.StatelessScope`, which tells the values that variables have by then.
    """
    mapping = [
        *zip(model.trainable_variables, trainable, strict=True),
        *zip(model.non_trainable_variables, non_trainable, strict=True),
    ]
    with keras.StatelessScope(mapping) as scope:
        yield scope


def forward(
    model: Any,
    trainable: Sequence[Any],
    non_trainable: Sequence[Any],
    inputs: Any,
    training: bool,
) -> tuple[Any, list[Any]]:
    """The model's outputs with the given weights, leaving its own variables untouched.

    Args:
        model: a built Keras model.
        trainable: values in the order of `model.trainable_variables`.
        non_trainable: values in the order of `model.non_trainable_variables`.
        inputs: a batch, or a nest of arrays for models with several inputs.
        training: whether batch norm uses batch statistics and dropout is on.  Keras hands
            it on to the layers inside, also where the model's `call` has no such argument.

    Returns:
        (outputs, the values the non-trainable variables would have afterwards).
    """
    with given_weights(model, trainable, non_trainable) as scope:
        outputs = model(inputs, training=training)
        updated = [scope.get_current_value(variable) for variable in model.non_trainable_variables]
    return outputs, updated


def holds(variable: Any, array: Any) -> bool:
    """Whether a Keras variable is known to hold this very array, so that assigning it is idle."""
    if name() == "torch":
        own = _tensor(variable)
        same = getattr(array, "data_ptr", lambda: None)() == own.data_ptr()
        return same and array.shape == own.shape and array.dtype == own.dtype
    return name() == "jax" and array is variable.value


def backup(variables: Sequence[Any]) -> Callable[[], None]:
    """Copies the values of Keras variables and returns a function that puts them back to the bit.

    Every replica's own value is kept: batch-norm statistics that are not
    synchronised differ from replica to replica.
    """
    if name() == "tensorflow":
        import tensorflow as tf

        parts = [part for variable in variables for part in _replicas(variable) or [variable.value]]
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


def value_and_gradient(function: Callable[..., Any]) -> Callable[..., tuple[Any, list[Any]]]:
    """Compiles `function(arrays, *args) -> scalar` into (scalar, its gradient by the arrays).

    Args:
        function: pure; differentiated with respect to its first argument, a list of arrays.

    Returns:
        a function of the same arguments; an array that the scalar does not depend on has
        a gradient of zeros.
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
