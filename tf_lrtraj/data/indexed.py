"""Pipelines over examples that can be read by their index: the order of training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tf_lrtraj import seeds
from tf_lrtraj.data import randomness
from tf_lrtraj.data.dataset import Shards, deterministic, plain

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["eval_pipeline", "train_pipeline"]


def train_pipeline(
    shards: Shards,
    seed: int,
    start_step: int,
    count: int,
    batch: Callable[[Any, Any], Any],
    *,
    block: int = 1,
    parallel: int | None = None,
) -> tf.data.Dataset:
    """Returns training batches in an order that is a function of (seed, step).

    Args:
        shards: the parts to make.
        seed, start_step: as for `Dataset.train_batches`.
        count: number of examples, a multiple of `block`.
        batch: (int64 [part] indices, the position of the first) → the elements of a batch.
        block: number of consecutive examples that stay together; it divides the part.
        parallel: number of batches made at the same time; None lets TensorFlow choose.
    """
    import tensorflow as tf

    part = shards.part

    def made(element: tf.Tensor) -> Any:
        first = _first(shards, element) + start_step * shards.batch_size
        places = _epoch_order(seed, first // block, part // block, count // block)
        if block > 1:
            inside = tf.range(block, dtype=tf.int64)
            places = tf.reshape(places[:, None] * block + inside, [-1])
        return batch(places, first)

    return _pipeline(tf.data.Dataset.counter(), made, parallel)


def eval_pipeline(
    shards: Shards,
    count: int,
    limit: int | None,
    batch: Callable[[Any], Any],
    *,
    parallel: int | None = None,
) -> tf.data.Dataset:
    """Returns every example once, with weights that are 0 for the padding of the last batch.

    Args:
        shards: the parts to make.
        count: number of examples.
        limit: number of examples to return, the first of a fixed permutation; None for all.
        batch: int64 [part] indices → the elements of a batch.
        parallel: as in `train_pipeline`.
    """
    import tensorflow as tf

    part, total = shards.part, limit or count
    subset = None
    if limit is not None:
        order = seeds.generator("evaluation_part", 0).permutation(count)
        subset = tf.constant(order[:limit], tf.int64)

    def made(element: tf.Tensor) -> Any:
        position = _first(shards, element) + tf.range(part, dtype=tf.int64)
        real = position < total
        index = tf.where(real, position, 0)  # padding repeats the first example
        if subset is not None:
            index = tf.gather(subset, index)
        return (*batch(index), tf.cast(real, tf.float32))

    batches = -(-total // shards.batch_size)
    return _pipeline(tf.data.Dataset.range(batches * len(shards.ids)), made, parallel)


def _epoch_order(seed: int, first: Any, part: int, count: int) -> tf.Tensor:
    """Indices of the examples at the positions `first … first + part - 1`.  int64 [part]"""
    import tensorflow as tf

    position = first + tf.range(part, dtype=tf.int64)
    epoch, place = position // count, position % count
    # A batch is no larger than an epoch, so it needs at most two permutations.
    keys = randomness.words(seed, epoch[0], randomness.ORDER, count=2)[:, :3]
    return randomness.permute(place, count, tf.gather(keys, epoch - epoch[0]))


def _first(shards: Shards, element: Any) -> tf.Tensor:
    """Returns the index of an element's first example, from the pipeline's first batch on."""
    import tensorflow as tf

    count = len(shards.ids)
    shard = tf.gather(tf.constant(shards.ids, tf.int64), element % count)
    return element // count * shards.batch_size + shard * shards.part


def _pipeline(elements: tf.data.Dataset, make: Any, parallel: int | None) -> tf.data.Dataset:
    import tensorflow as tf

    calls = tf.data.AUTOTUNE if parallel is None else parallel
    made = elements.map(plain(make), num_parallel_calls=calls, deterministic=True)
    return deterministic(made.prefetch(tf.data.AUTOTUNE))
