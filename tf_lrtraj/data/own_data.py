"""Data that a user's own function returns: arrays, sources of examples, or data sets by step.

`from_splits_of` converts what the function returned to a `Dataset`, whose training batches are a
function of (seed, step):

>>> import numpy as np
>>> x, y = np.zeros((6, 3), "float32"), np.array([0, 1, 2, 0, 1, 2])
>>> dataset = from_splits_of("mine", {"train": (x, y), "test": (x[:4], y[:4])})
>>> dataset
OwnDataset('mine', {'train': 6, 'test': 4}, (3,))
>>> dataset.num_classes, dataset.eval_split
(3, 'test')
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.data import augmentations, indexed
from tf_lrtraj.data.dataset import Dataset, Shards, opened, parts_of, plain
from tf_lrtraj.values import error, integer

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["OwnDataset", "from_splits_of"]

FORMS = (
    "((x_train, y_train), (x_test, y_test)), or a dict of splits such as {'train': …, 'test': …}"
)
_SPLIT_FORMS = (
    "a pair of arrays (x, y), a source of examples with `__len__` and `__getitem__`, a "
    "keras.utils.PyDataset"
)
_NUMBERS = ("num_classes", "num_examples")  # entries of the dict that are not splits


def from_splits_of(name: str, found: Any, augmentation: str | None = None) -> OwnDataset:
    """Makes a dataset from what a user's function returned.

    Args:
        name: the name of the data.
        found: `((x_train, y_train), (x_test, y_test))`, or a dict: split → data, "train" among
            them, with "num_classes" for labels whose largest is not in the arrays.  Data are

            - a pair (x, y) of arrays with an example per row; x may be a dict, list or tuple of
              arrays.  Floating numbers become float32 and integers of 64 bits int32;
            - a source with `__len__` and `__getitem__(index)` → (x, y) of one example, such as a
              Grain source.  It is read by one thread at a time;
            - a `keras.utils.PyDataset`, whose items are batches of equal size; they stay together,
              and a shorter last one is not trained on;
            - for "train" a function (seed, step) → `tf.data.Dataset` of the global batches of the
              run from that step on, without end; "num_examples" must then give the number of
              training examples;
            - for other splits a finite `tf.data.Dataset` of batches, which is read into memory.
        augmentation: one of `augmentations.NAMES`, for images [n, height, width, channels]; unlike
            those of named data sets they are not normalised.

    Raises:
        ValueError: if `found` has another form, or shapes and lengths do not fit together.
    """
    splits, numbers = _splits(found)
    examples: dict[str, _Examples] = {}
    factory = splits["train"] if _is_factory(splits["train"]) else None
    if (factory is None) == ("num_examples" in numbers):
        allowed = "given with a function (seed, step) for 'train', and only then"
        raise error("num_examples", allowed, numbers.get("num_examples"))
    for split, data in splits.items():
        if split != "train" or factory is None:
            examples[split] = _examples(split, data)
    specs = {split: one.spec for split, one in examples.items()}
    if factory is not None:
        specs = {"train": _spec_of_factory(factory), **specs}
    for split, spec in specs.items():
        if not _same(spec, specs["train"]):
            raise error(f"the data of {split!r}", f"{_shown(specs['train'])}, as 'train' is", spec)
    return OwnDataset(name, examples, specs["train"], factory, augmentation, **numbers)


class OwnDataset(Dataset):
    """A `Dataset` of a user's own data; made by `from_splits_of`."""

    def __init__(
        self,
        name: str,
        examples: Mapping[str, _Examples],
        spec: Any,
        factory: Callable[[int, int], Any] | None,
        augmentation: str | None,
        num_classes: int | None = None,
        num_examples: int | None = None,
    ) -> None:
        inputs, targets = spec
        integral = np.issubdtype(targets.dtype, np.integer)
        if num_classes is None and integral:
            num_classes = _largest(examples)
        counts = {split: one.count for split, one in examples.items()}
        if factory is not None:
            counts = {"train": integer(1).check("num_examples", num_examples), **counts}
        super().__init__(
            name,
            num_classes=num_classes,
            input_shape=_structure(lambda one: one.shape, inputs),
            num_examples=counts,
            augmentation=augmentation,
        )
        if self.augmentation != "none" and (
            not isinstance(inputs, Spec) or len(inputs.shape) != 3 or None in inputs.shape
        ):
            shown = f"'none' for inputs that are not images. They are {_shown(inputs)}"
            raise error("augmentation", shown, augmentation)
        if self._mixing is not None and (not integral or targets.shape or num_classes is None):
            allowed = "without mixing for targets that are no classes"
            raise error("augmentation", allowed, augmentation)
        self.target_spec = targets
        self._examples, self._spec, self._factory = dict(examples), spec, factory
        opened.add(self)

    def _train(self, shards: Shards, seed: int, start_step: int) -> tf.data.Dataset:
        if self._factory is not None:
            return parts_of(self._from_factory(shards, seed, start_step), shards)
        examples = self._examples["train"]
        if shards.part % examples.block:
            allowed = f"a multiple of {shards.count} × {examples.block}, the items of 'train'"
            raise error("batch_size", allowed, shards.batch_size)

        def batch(index: Any, first: Any) -> tuple[Any, Any]:
            inputs, targets = examples.rows(index, shards.part)
            return self._augmented(inputs, seed, first), targets

        count, block, parallel = examples.count, examples.block, examples.parallel
        return indexed.train_pipeline(
            shards, seed, start_step, count, batch, block=block, parallel=parallel
        )

    def _from_factory(self, shards: Shards, seed: int, start_step: int) -> tf.data.Dataset:
        import tensorflow as tf

        assert self._factory is not None
        found, size, spec = self._factory(seed, start_step), shards.batch_size, self._spec
        if not isinstance(found, tf.data.Dataset):
            raise error("the training data", "a tf.data.Dataset for every (seed, step)", found)

        def checked(number: Any, batch: Any) -> tuple[Any, Any]:
            inputs, targets = _structure(
                lambda array, one: tf.ensure_shape(tf.cast(array, one.dtype), (size, *one.shape)),
                tuple(batch),
                spec,
            )
            first = (start_step + number) * size
            return self._augmented(inputs, seed, first), targets

        try:
            return found.enumerate().map(plain(checked))
        except ValueError:
            allowed = f"batches of {size} examples of {_shown(spec)}"
            raise error("the training data", allowed, found.element_spec) from None

    def _augmented(self, inputs: Any, seed: int, first: Any) -> Any:
        if self._each == "none":
            return inputs
        return augmentations.augment(inputs, self._each, seed, first)

    def _eval(self, shards: Shards, split: str, limit: int | None) -> tf.data.Dataset:
        if split not in self._examples:
            allowed = "a split other than 'train', whose examples a function of (seed, step) makes"
            raise error("split", allowed, split)
        examples = self._examples[split]
        return indexed.eval_pipeline(
            shards,
            self.num_examples[split],
            limit,
            lambda index: examples.rows(index, shards.part),
            parallel=examples.parallel,
        )

    def zeros(self, count: int) -> tuple[Any, Any]:
        def array(spec: Spec) -> np.ndarray:
            return np.zeros((count, *(size or 1 for size in spec.shape)), spec.dtype)

        inputs, targets = _structure(array, self._spec)
        return inputs, targets

    def explain(self, error: BaseException) -> str | None:
        for split, examples in self._examples.items():
            if examples.fault is not None:
                return f"reading {split!r}: {examples.fault}"
        if self._factory is None:
            return None
        if type(error).__name__ == "OutOfRangeError":
            return "the training data end before the run; the function must return data without end"
        if type(error).__name__ == "InvalidArgumentError" and "expected shape" in str(error):
            return f"a training batch has another shape than {_shown(self._spec)}"
        return None

    def describe(self) -> dict[str, Any]:
        shape = _structure(lambda one: list(one.shape), self._spec[0])
        return {**super().describe(), "input_shape": shape}


# --- Examples of a split ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape and dtype of one example's array; axes of varying length are None."""

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype.name} {list(self.shape)}"


@dataclasses.dataclass
class _Examples:
    """The examples of a split.

    Attributes:
        count: number of examples.
        spec: (inputs, targets), nests of `Spec`.
        block: number of consecutive examples that stay together.
        parallel: number of threads that may read them; None for any.
        fault: the first error of the user's code in reading them.
    """

    count: int
    spec: Any
    block: int = 1
    parallel: int | None = None
    fault: str | None = None

    def rows(self, index: Any, part: int) -> tuple[Any, Any]:
        """Returns (inputs, targets) of the examples at int64 [part] indices, in a graph."""
        raise NotImplementedError

    def largest_target(self) -> int | None:
        """Returns the largest target; None if it is not known."""
        return None


class _Arrays(_Examples):
    """Examples held in memory as arrays."""

    def __init__(self, arrays: Any) -> None:
        self._arrays = arrays
        count = len(_leaves(arrays)[0])
        super().__init__(
            count, _structure(lambda array: Spec(array.shape[1:], array.dtype), arrays)
        )
        self._tensors: Any = None

    def rows(self, index: Any, part: int) -> tuple[Any, Any]:
        import tensorflow as tf

        if self._tensors is None:
            with tf.init_scope(), tf.device("CPU:0"):
                self._tensors = _structure(tf.constant, self._arrays)
            self._arrays = _structure(lambda tensor: np.asarray(memoryview(tensor)), self._tensors)
        inputs, targets = _structure(
            lambda tensor: tf.ensure_shape(tf.gather(tensor, index), (part, *tensor.shape[1:])),
            self._tensors,
        )
        return inputs, targets

    def largest_target(self) -> int | None:
        return int(self._arrays[1].max())


class _Source(_Examples):
    """Examples that a user's object returns by their index."""

    def __init__(self, split: str, source: Any, batched: bool) -> None:
        self._source, self._batched = source, batched
        first = _checked_item(split, source[0])
        block = len(_leaves(first)[0]) if batched else 1
        spec = _structure(
            lambda array: Spec(array.shape[1:] if batched else array.shape, array.dtype), first
        )
        super().__init__(len(source) * block, spec, block, parallel=1)
        if batched:
            short = len(_leaves(_checked_item(split, source[len(source) - 1]))[0]) % block
            if split == "train" and short:
                self.count -= block
            elif short:
                self.count -= block - short
        if self.count < 1:
            raise error(f"the data of {split!r}", "at least one example", source)

    def _read(self, index: np.ndarray) -> list[np.ndarray]:
        """Returns the leaves of the examples, stacked; remembers the first error."""
        try:
            found = [np.stack(rows) for rows in zip(*self._examples_at(index), strict=True)]
            for array, spec in zip(found, _leaves(self.spec), strict=True):
                if array.shape[1:] != spec.shape:
                    raise ValueError(
                        f"an example has shape {list(array.shape[1:])} instead of {spec}"
                    )
            return found
        except Exception as problem:  # the source is the user's own code
            self.fault = self.fault or f"{type(problem).__name__}: {problem}"
            raise

    def _examples_at(self, index: np.ndarray) -> Iterator[list[np.ndarray]]:
        held: tuple[int, list[Any]] = (-1, [])
        for place in index.tolist():
            number, row = divmod(place, self.block)
            if not self._batched:
                yield [_narrow(array) for array in _leaves(_pair(self._source[number]))]
                continue
            if held[0] != number:
                held = number, [_narrow(a) for a in _leaves(_pair(self._source[number]))]
            yield [array[row] for array in held[1]]

    def rows(self, index: Any, part: int) -> tuple[Any, Any]:
        import tensorflow as tf

        specs = _leaves(self.spec)
        found = tf.numpy_function(
            self._read, [index], [tf.as_dtype(spec.dtype) for spec in specs], stateful=False
        )
        shaped = [
            tf.ensure_shape(array, (part, *spec.shape))
            for array, spec in zip(found, specs, strict=True)
        ]
        inputs, targets = tf.nest.pack_sequence_as(_structure(lambda _: 0, self.spec), shaped)
        return inputs, targets


def _examples(split: str, data: Any) -> _Examples:
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return _Arrays(_checked_arrays(split, (data[0], data[1])))
    if _module_of(data) == "tensorflow" and hasattr(data, "element_spec"):
        return _Arrays(_checked_arrays(split, _all_of(split, data)))
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not hasattr(data, "keys"):
        import keras

        if len(data) < 1:
            raise error(f"the data of {split!r}", "at least one example", data)
        return _Source(split, data, isinstance(data, keras.utils.PyDataset))
    more = (
        ", or a function (seed, step) that returns a tf.data.Dataset of batches from that step on"
        if split == "train"
        else ", or a finite tf.data.Dataset of batches"
    )
    raise error(f"the data of {split!r}", _SPLIT_FORMS + more, data)


def _all_of(split: str, dataset: Any) -> tuple[Any, Any]:
    """Returns the arrays of a finite `tf.data.Dataset` of batches."""
    import tensorflow as tf

    if split == "train" or int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        allowed = (
            f"{_SPLIT_FORMS}, or a function (seed, step) that returns a tf.data.Dataset of batches "
            "from that step on: a killed run could not go on with a plain tf.data.Dataset"
            if split == "train"
            else "a tf.data.Dataset that ends"
        )
        raise error(f"the data of {split!r}", allowed, dataset)
    batches = [_pair(batch) for batch in dataset.as_numpy_iterator()]
    if not batches:
        raise error(f"the data of {split!r}", "at least one batch", dataset)
    found = _structure(lambda *arrays: np.concatenate(arrays), *batches)
    return found[0], found[1]


def _spec_of_factory(factory: Callable[[int, int], Any]) -> Any:
    import tensorflow as tf

    found = factory(0, 0)
    if not isinstance(found, tf.data.Dataset):
        allowed = "a function (seed, step) that returns a tf.data.Dataset"
        raise error("the data of 'train'", allowed, found)
    spec = found.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or not isinstance(spec[1], tf.TensorSpec):
        raise error("the data of 'train'", "batches (inputs, targets), targets one array", spec)

    def of_example(one: Any) -> Spec:
        if one.shape.rank is None or one.shape.rank < 1:
            raise error("the data of 'train'", "batches of known rank", spec)
        dtype = _narrow(np.zeros((), one.dtype.as_numpy_dtype)).dtype
        return Spec(tuple(one.shape[1:]), dtype)

    return tf.nest.map_structure(of_example, spec)


# --- Checks -------------------------------------------------------------------------------


def _splits(found: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (split → data, the other entries)."""
    if isinstance(found, (tuple, list)) and len(found) == 2:
        pairs = [isinstance(one, (tuple, list)) and len(one) == 2 for one in found]
        if all(pairs):
            return {"train": found[0], "test": found[1]}, {}
    if not isinstance(found, Mapping):
        raise error("the data", FORMS, found)
    numbers = {key: found[key] for key in _NUMBERS if found.get(key) is not None}
    splits = {key: value for key, value in found.items() if key not in _NUMBERS}
    if "train" not in splits or not all(isinstance(key, str) for key in splits):
        raise error("the data", "a dict with the split 'train'", list(found))
    return splits, numbers


def _is_factory(data: Any) -> bool:
    return callable(data) and not hasattr(data, "__getitem__")


def _module_of(data: Any) -> str:
    return type(data).__module__.partition(".")[0]


def _pair(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        size = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise ValueError(f"an item must be (x, y). Received: {type(item).__name__}{size}")
    return item[0], item[1]


def _checked_item(split: str, item: Any) -> Any:
    try:
        inputs, targets = _pair(item)
    except ValueError as problem:
        raise ValueError(f"the data of {split!r}: {problem}") from None
    return _structure(lambda array: _checked_array(split, array), (inputs, targets))


def _checked_arrays(split: str, arrays: tuple[Any, Any]) -> Any:
    """Returns (inputs, targets) as arrays of numbers with the same number of rows."""
    if isinstance(arrays[1], (Mapping, tuple)):
        raise error(f"the targets of {split!r}", "one array", type(arrays[1]).__name__)
    arrays = arrays[0], np.asarray(arrays[1])
    found = _structure(lambda array: _checked_array(split, array), arrays)
    rows = sorted({array.shape[:1] for array in _leaves(found)})
    if len(rows) != 1 or not rows[0] or rows[0][0] < 1:
        shown = [list(array.shape) for array in _leaves(found)]
        raise error(f"the data of {split!r}", "arrays with a row for each example", shown)
    return found


def _checked_array(split: str, array: Any) -> np.ndarray:
    found = np.asarray(array)
    if found.dtype.kind not in "fiub":
        raise error(f"the data of {split!r}", "arrays of numbers", found.dtype.name)
    return np.ascontiguousarray(_narrow(found)) if found.ndim else _narrow(found)


def _narrow(array: Any) -> np.ndarray:
    """Returns an array with floating numbers as float32, and wide integers as int32."""
    found = np.asarray(array)
    if found.dtype.kind == "f":
        return found.astype(np.float32)
    if found.dtype in (np.int64, np.uint64, np.uint32):
        limit = np.iinfo(np.int32)
        if found.size and (found.min() < limit.min or found.max() > limit.max):
            raise ValueError("integers must fit 32 bits")
        return found.astype(np.int32)
    return found


def _largest(examples: Mapping[str, _Examples]) -> int | None:
    found = [one.largest_target() for one in examples.values()]
    known = [number for number in found if number is not None]
    return max(known) + 1 if known and "train" in examples and len(known) == len(found) else None


def _same(one: Any, other: Any) -> bool:
    shapes = [[(spec.dtype, spec.shape) for spec in _leaves(spec_of)] for spec_of in (one, other)]
    return len(shapes[0]) == len(shapes[1]) and all(
        a[0] == b[0]
        and len(a[1]) == len(b[1])
        and all(None in (m, n) or m == n for m, n in zip(a[1], b[1], strict=True))
        for a, b in zip(*shapes, strict=True)
    )


def _shown(spec: Any) -> str:
    return ", ".join(str(one) for one in _leaves(spec))


# --- Nests: dicts, lists and tuples of arrays -----------------------------------------------


def _structure(function: Callable[..., Any], *nests: Any) -> Any:
    """Applies a function to the corresponding leaves of nests."""
    first = nests[0]
    if isinstance(first, Mapping):
        return {key: _structure(function, *(nest[key] for nest in nests)) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_structure(function, *parts) for parts in zip(*nests, strict=True))
    return function(*nests)


def _leaves(nest: Any) -> list[Any]:
    """Returns the leaves of a nest, entries of a dict in the order of their names."""
    if isinstance(nest, Mapping):
        return [leaf for key in sorted(nest) for leaf in _leaves(nest[key])]
    if isinstance(nest, (tuple, list)):
        return [leaf for part in nest for leaf in _leaves(part)]
    return [nest]
