"""The devices of a model, their memory, and the replicas of `tf.distribute`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tf_lrtraj import memory
from tf_lrtraj.backend.tensors import name


def has_float64() -> bool:
    """Returns whether variables can be float64 on the model's devices."""
    if name() == "jax":
        import jax

        return jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    if name() == "torch":
        return keras.ops.zeros(1).device.type != "mps"
    import tensorflow as tf

    return not isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)


def free_memory() -> int | None:
    """Returns the free bytes for new variables on the model's devices; None if unknown."""
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
        # Weights may be sharded over all devices.
        free = known.get("bytes_limit", 0) - known.get("bytes_in_use", 0)
        return free * jax.local_device_count() if "bytes_limit" in known else None
    import tensorflow as tf

    on_host = not any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))
    return memory.free() if on_host else None


def strategy_of(model: Any) -> Any:
    """Returns the `tf.distribute` strategy under which `model` was built; None on other
    backends."""
    return getattr(model, "distribute_strategy", None) if name() == "tensorflow" else None


def strategy_scope(model: Any) -> Any:
    """Returns the scope in which variables placed like `model`'s must be created."""
    strategy = strategy_of(model)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def compiled_on_replicas(function: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """Compiles a function that every replica of the model's strategy runs on its part of the data.

    TensorFlow only.  It returns the value of the first local replica.
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
    """Returns whether a data set is distributed over replicas
    (`experimental_distribute_dataset`)."""
    if name() != "tensorflow":
        return False
    import tensorflow as tf

    return isinstance(data, tf.distribute.DistributedDataset)


def sum_over_replicas(arrays: Any) -> Any:
    """Returns the sum of nested arrays over the replicas; call it on a replica."""
    if name() != "tensorflow":
        return arrays
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, arrays)
