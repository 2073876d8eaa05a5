"""Where a model lives: its devices, their memory, and the replicas of `tf.distribute`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tf_lrtraj import memory
from tf_lrtraj.backend.tensors import name


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


def sum_over_replicas(arrays: Any) -> Any:
    """The sum of a nest of arrays over the replicas; to be called on a replica."""
    if name() != "tensorflow":
        return arrays
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, arrays)
