"""Converts data of Keras users to the batches of probes: a list of (inputs, targets).

Inputs and targets are arrays or nests (lists, tuples, dicts) of arrays, for models with
several inputs or outputs; the first axis of every array counts the examples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend, seeds
from tf_lrtraj.values import integer

Batch = tuple[Any, ...]  # (inputs, targets) or (inputs, targets, example weights)

_FORMS = "(inputs, targets) or (inputs, targets, weights)"


def size_of(batch: Batch) -> int:
    """Returns the number of examples in a batch.

    >>> size_of(({"a": np.zeros((5, 2)), "b": np.zeros(5)}, {"y": np.zeros(5)}))
    5
    """
    return len(keras.tree.flatten(batch[1])[0])


def check_batches(batches: Any, name: str = "batches", fewest: int = 1) -> list[Batch]:
    """Returns a list of (inputs, targets) or (inputs, targets, weights).

    Args:
        batches: a list, a `tf.data.Dataset`, a `keras.utils.PyDataset` or any other finite iterable
            of batches.
        name: the name of the argument, for the error.
        fewest: the smallest number of batches.

    Raises:
        ValueError: if there are fewer, one has another form, or the data set is infinite.
    """
    found = list(each_batch(batches, name)) if _is_iterable(batches) else [batches]
    checked = [_checked(batch, name) for batch in found]
    if len(checked) < fewest:
        plural = "" if fewest == 1 else "es"
        raise ValueError(
            f"`{name}` must hold at least {fewest} batch{plural}. Received: {len(checked)}"
        )
    return checked


def check_groups(**groups: Any) -> dict[str, list[Batch]]:
    """Checks groups of batches; returns name → batches, without the groups that are None."""
    return {
        name: check_batches(batches, name)
        for name, batches in groups.items()
        if batches is not None
    }


def _is_iterable(batches: Any) -> bool:
    return isinstance(batches, (Iterable, Iterator, keras.utils.PyDataset))


def each_batch(batches: Any, name: str) -> Iterator[Any]:
    """Yields the elements of a data set; raises ValueError if it is known to be infinite."""
    if isinstance(batches, keras.utils.PyDataset):
        count = batches.num_batches
        if count is None:
            raise ValueError(_endless(name, batches))
        for index in range(count):
            yield batches[index]
        return
    if _size_unbounded(batches):
        raise ValueError(_endless(name, batches))
    yield from batches


def _size_unbounded(batches: Any) -> bool:
    """Returns whether a `tf.data.Dataset` is known to be infinite."""
    cardinality = getattr(batches, "cardinality", None)
    return callable(cardinality) and int(cardinality()) == -1  # tf.data.INFINITE_CARDINALITY


def _endless(name: str, batches: Any) -> str:
    return (
        f"`{name}` must end: take some batches of it, such as `.take(4)`, or use `take_batches`. "
        f"Received: an endless {type(batches).__name__}"
    )


def _checked(batch: Any, name: str) -> Batch:
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise ValueError(
            f"`{name}` must be a list of {_FORMS}; a single batch is [(inputs, targets)]. "
            f"Received an element of type {type(batch).__name__}{size}"
        )
    if len(batch) == 3 and batch[2] is None:
        batch = batch[:2]
    sizes = _sizes(tuple(batch), name)
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"every batch of `{name}` must have the same number, at least 1, of inputs and "
            f"targets. Received: {sorted(sizes)}"
        )
    return tuple(batch)


def _sizes(nest: Any, name: str) -> set[int]:
    """Returns the numbers of examples of all arrays in a nest."""
    sizes = set()
    for array in keras.tree.flatten(nest):
        if len(np.shape(array)) == 0:
            raise ValueError(
                f"every array of `{name}` must have an axis of examples in front (batch the data "
                f"set first). Received: a scalar, {type(array).__name__}"
            )
        sizes.add(len(array))
    return sizes


# --- Drawing batches from data ------------------------------------------------------------


def take_batches(x: Any, y: Any, batch_size: int, count: int, seed: int = 0) -> list[Batch]:
    """Draws `count` batches of distinct examples.

    Args:
        x: inputs: an array (NumPy, pandas, a backend's tensor), or a list, tuple or dict of
            arrays for a model with several inputs.  With `y=None`: a tuple `(x, y)` or
            `(x, y, sample_weight)`, or batches of those: a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a torch `DataLoader`, a list or another iterable.
        y: targets, in the same forms as inputs; None if `x` holds them.
        batch_size: examples per batch; batches of a data set are divided or joined.
        count: number of batches.
        seed: the seed of the draw from arrays, without replacement.  Of a data set the first
            `batch_size * count` examples are taken, in the order in which they come.

    Returns:
        A list of `(inputs, targets)`, or `(inputs, targets, weights)` where there are weights,
        as NumPy arrays in the nests given.

    Raises:
        ValueError: if `x` and `y` differ in length, or the data is too small.

    >>> [len(y) for _, y in take_batches(np.zeros((10, 2)), np.arange(10), 4, 2)]
    [4, 4]
    >>> left, right = np.arange(6.0), np.arange(6.0)
    >>> (inputs, targets), = take_batches({"left": left, "right": right}, left, 6, 1)
    >>> sorted(inputs), len(targets)
    (['left', 'right'], 6)
    """
    batch_size = integer(1).check("batch_size", batch_size)
    count = integer(1).check("count", count)
    if y is None and isinstance(x, tuple) and len(x) in (2, 3) and _is_arrays(x[0]):
        if len(x) == 3 and x[2] is not None:
            return _drawn(x, batch_size, count, seed)
        x, y = x[:2]
    if _is_arrays(x):
        if y is None:
            raise ValueError(
                "`y` must hold the targets where `x` is an array or a nest of arrays. "
                "Received: y=None"
            )
        return _drawn((x, y), batch_size, count, seed)
    if y is not None:
        raise ValueError(
            "`y` must be None where `x` is a data set, whose batches hold the targets. "
            f"Received: x of type {type(x).__name__}, y of type {type(y).__name__}"
        )
    with backend.random_streams_kept():
        return _first(x, batch_size, count)


def _is_arrays(x: Any) -> bool:
    """Returns whether `x` is an array or a nest of arrays, not an iterable of batches."""
    if isinstance(x, list) and x and all(isinstance(item, (tuple, list)) for item in x):
        return False
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(hasattr(leaf, "shape") for leaf in leaves)


def _host(array: Any) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "to_numpy"):  # pandas
        return np.asarray(array.to_numpy())
    return np.asarray(keras.ops.convert_to_numpy(array))


def _drawn(data: Batch, batch_size: int, count: int, seed: int) -> list[Batch]:
    data = tuple(keras.tree.map_structure(_host, part) for part in data)
    names = ("x", "y", "sample_weight")
    sizes = [_sizes(part, name) for name, part in zip(names, data, strict=False)]
    if len(set.union(*sizes)) > 1:
        shown = ", ".join(
            f"{'/'.join(map(str, sorted(s)))} {what}"
            for s, what in zip(sizes, ("inputs", "targets", "weights"), strict=False)
        )
        raise ValueError(f"`x` and `y` must have the same length. Received: {shown}")
    (size,) = sizes[0]
    if batch_size * count > size:
        raise ValueError(_too_small(size, batch_size, count))
    order = seeds.generator("probe_batches", seed).permutation(size)[: batch_size * count]
    parts = np.split(np.sort(order) if count == 1 else order, count)
    return [
        tuple(keras.tree.map_structure(lambda array, at=part: array[at], one) for one in data)
        for part in parts
    ]


def _first(batches: Any, batch_size: int, count: int) -> list[Batch]:
    """Returns the first examples of a data set, in batches of `batch_size`."""
    if isinstance(batches, Mapping) or not _is_iterable(batches):
        raise ValueError(
            "`x` must be an array, a nest of arrays or an iterable of batches. "
            f"Received: x of type {type(batches).__name__}"
        )
    wanted, size = batch_size * count, 0
    taken: list[Batch] = []
    indices = itertools.count()
    source = (
        (batches[i] for i in (indices if batches.num_batches is None else range(len(batches))))
        if isinstance(batches, keras.utils.PyDataset)
        else iter(batches)
    )
    for batch in source:
        taken.append(tuple(keras.tree.map_structure(_host, part) for part in _checked(batch, "x")))
        size += size_of(taken[-1])
        if size >= wanted:
            break
    if size < wanted:
        raise ValueError(_too_small(size, batch_size, count))
    joined = keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *taken)
    return [
        keras.tree.map_structure(lambda array, at=at: array[at : at + batch_size], joined)
        for at in range(0, wanted, batch_size)
    ]


def _too_small(size: int, batch_size: int, count: int) -> str:
    return (
        f"{count} batches of {batch_size} need {batch_size * count} examples; the data holds "
        f"{size}. Received: batch_size={batch_size}, count={count}"
    )
