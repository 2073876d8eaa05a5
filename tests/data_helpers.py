"""Batches of pipelines: taken, compared, and the parts of a batch found in it."""

import itertools

import numpy as np


def take(pipeline, count):
    return list(itertools.islice(pipeline.as_numpy_iterator(), count))


def assert_same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def assert_parts(made, whole, part, ids):
    """What a pipeline made for the shards `ids` are these shards, of `part` images, of `whole`."""
    assert len(made) == len(whole) * len(ids)
    rows = [slice(shard * part, (shard + 1) * part) for shard in ids]
    assert_same(made, [[x[shard] for x in batch] for batch in whole for shard in rows])
