"""The base classes of datasets."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.data.augmentations import NAMES, mix, split_name
from tf_lrtraj.values import integer, number, one_of, vector

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["DataError", "Dataset", "ImageDataset", "explain"]


class DataError(ValueError):
    """A file of a dataset is missing or damaged; the message names it."""


# The streamed datasets of this process.
opened: weakref.WeakSet[Dataset] = weakref.WeakSet()


def explain(error: BaseException) -> str | None:
    """Returns what an error says about the files of open datasets; None if nothing.

    Programs use it to end with one line that names the file.
    """
    if isinstance(error, DataError):
        return str(error)
    if type(error).__module__.startswith("tensorflow."):
        for dataset in list(opened):
            reason = dataset.explain(error)
            if reason is not None:
                return f"dataset {dataset.name!r}: {reason}"
    return None


class Dataset(abc.ABC):
    """Inputs and targets: training batches by step, and evaluation over every example once.

    Attributes:
        name: the dataset's name.
        num_classes: number of classes; targets are then 0..num_classes-1.  None for other targets.
        input_shape: the shape of an example's input, or a nest of shapes.
        num_examples: examples in each split, for example {"train": 50000, "test": 10000}.
        augmentation: applied to training batches, one of `augmentations.NAMES`.
        unit: the word for several examples, in messages.
    """

    unit = "examples"

    def __init__(
        self,
        name: str,
        *,
        num_classes: int | None,
        input_shape: Any,
        num_examples: Mapping[str, int],
        augmentation: str | None = None,
    ) -> None:
        self.name = name
        self.num_classes = integer(1).or_none().check("num_classes", num_classes)
        self.input_shape = input_shape
        self.num_examples = dict(num_examples)
        self.augmentation = check_augmentation(augmentation)
        self._each, self._mixing = split_name(self.augmentation)

    @property
    def eval_split(self) -> str | None:
        """The split to evaluate on: "test" if there is one, else "validation", else None."""
        return next((s for s in ("test", "validation") if s in self.num_examples), None)

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        num_shards: int = 1,
        shard_ids: Sequence[int] | None = None,
    ) -> tf.data.Dataset:
        """Returns the infinite sequence of training batches from `start_step` on.

        The global batch of step s, order and augmentation included, is a function of (seed, s)
        alone.  It holds the examples at the positions `s * batch_size … (s + 1) * batch_size - 1`
        of an infinite sequence with every training example once per epoch, so a batch may contain
        examples of two epochs.

        Args:
            batch_size: examples in the global batch, at most the number of training examples.
            seed: integer in [0, 2⁶³).
            start_step: the step the first batch belongs to.
            num_shards: number of equal, consecutive parts of the global batch.
            shard_ids: the parts that this pipeline makes, in increasing order; all by default.

        Returns:
            A `tf.data.Dataset` of (inputs, targets) of b examples, b = batch_size / num_shards;
            for images float32 [b, height, width, channels], normalised, and int32 labels [b], or
            float32 [b, classes] if the augmentation mixes images.  Element i belongs to step
            `start_step + i // k` and to part `shard_ids[i % k]`, k = len(shard_ids).
        """
        count = self._count("train")
        if integer(1).check("batch_size", batch_size) > count:
            allowed = f"at most {count}, the number of training {self.unit} of {self.name!r}"
            raise values.error("batch_size", allowed, batch_size)
        integer(0).check("start_step", start_step)
        integer(0, below=2**63).check("seed", seed)
        shards = _shards(batch_size, num_shards, shard_ids)
        if self._mixing is None:
            return self._train(shards, seed, start_step)
        # Partners come from the whole batch, so that they do not depend on the parts.
        whole = self._train(Shards(batch_size, 1, (0,)), seed, start_step)
        return parts_of(self._mixed(whole, seed, start_step), shards)

    def eval_batches(
        self,
        split: str,
        batch_size: int,
        num_shards: int = 1,
        shard_ids: Sequence[int] | None = None,
        limit: int | None = None,
    ) -> tf.data.Dataset:
        """Returns every example of a split exactly once, without augmentation.

        The order is fixed; for streamed sets it depends on the batch size.

        Args:
            split: a key of `num_examples`; "train" is allowed.
            batch_size, num_shards, shard_ids: as in `train_batches`.
            limit: number of examples, always the same ones: the first of a fixed permutation for
                datasets in memory, the first as stored for streamed ones.

        Returns:
            A finite `tf.data.Dataset` of (inputs, targets, weights) of static shapes; weights,
            float32 [b], are 1 for examples and 0 for the padding of the last batch.
            Every part has the same number of batches.
        """
        count = self._count(split)
        if limit is not None and integer(1).check("limit", limit) > count:
            allowed = f"at most {count}, the number of {self.unit} in {split!r} of {self.name!r}"
            raise values.error("limit", allowed, limit)
        return self._eval(_shards(batch_size, num_shards, shard_ids), split, limit)

    @abc.abstractmethod
    def _train(self, shards: Shards, seed: int, start_step: int) -> tf.data.Dataset:
        """`train_batches` with checked arguments, without mixing."""

    @abc.abstractmethod
    def _eval(self, shards: Shards, split: str, limit: int | None) -> tf.data.Dataset:
        """`eval_batches` with checked arguments."""

    def zeros(self, count: int) -> tuple[Any, Any]:
        """Returns (inputs, targets) of zeros for `count` examples, in the form of evaluations."""
        return np.zeros((count, *self.input_shape), np.float32), np.zeros(count, np.int32)

    @property
    def mixes(self) -> bool:
        """Whether training targets are shares of classes, as the augmentation mixes examples."""
        return self._mixing is not None

    def _mixed(self, whole: tf.data.Dataset, seed: int, start_step: int) -> tf.data.Dataset:
        """Mixes the images of global batches (see `augmentations.mix`)."""
        import tensorflow as tf

        assert self._mixing is not None
        kind, classes = self._mixing, self.num_classes

        def mixed(step: Any, batch: Any) -> tuple[Any, Any]:
            images, labels = batch
            shares = tf.one_hot(labels, classes, dtype=tf.float32)
            return mix(tf.cast(images, tf.float32), shares, kind, seed, step)

        return whole.enumerate(start_step).map(plain(mixed))

    def explain(self, error: BaseException) -> str | None:
        """Returns what an error of TensorFlow says about the dataset's files; None if nothing."""
        return None

    @contextlib.contextmanager
    def named_faults(self) -> Iterator[None]:
        """Converts errors of reading the dataset inside the block to a `DataError` with the
        file."""
        try:
            yield
        except Exception as error:
            reason = None
            if type(error).__module__.startswith("tensorflow."):
                reason = self.explain(error)
            if reason is None:
                raise
            raise DataError(f"dataset {self.name!r}: {reason}") from error

    def steps_per_epoch(self, batch_size: int) -> float:
        """Returns training examples / batch size, not rounded: a batch may belong to two epochs."""
        return self.num_examples["train"] / integer(1).check("batch_size", batch_size)

    def describe(self) -> dict[str, Any]:
        """Returns a JSON-serialisable description for a run's records."""
        return {
            "name": self.name,
            "num_examples": dict(self.num_examples),
            "num_classes": self.num_classes,
            "augmentation": self.augmentation,
        }

    def _count(self, split: str) -> int:
        """Returns the number of examples in a split; raises ValueError if it does not exist."""
        allowed = f"one of {sorted(self.num_examples)}, the splits of {self.name!r}"
        if split not in self.num_examples:
            raise values.error("split", allowed, split)
        return self.num_examples[split]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.num_examples}, {self.input_shape})"


class ImageDataset(Dataset):
    """Labelled images.  It has the attributes of `Dataset` too.

    Attributes:
        image_shape: (height, width, channels) of the images in a batch.
        class_names: names of the classes, or None.
        mean, std: per channel, on the scale where the brightest pixel is 1; images are
            normalised by `(image - mean) / std`.
        version: version of the stored dataset, or None.
    """

    unit = "images"
    num_classes: int

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        num_examples: Mapping[str, int],
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: str | None = None,
        class_names: Sequence[str] | None = None,
        version: str | None = None,
        max_value: float = 255.0,
    ) -> None:
        super().__init__(
            name,
            num_classes=integer(1).check("num_classes", num_classes),
            input_shape=image_shape,
            num_examples=num_examples,
            augmentation=augmentation,
        )
        self.image_shape = image_shape
        self.class_names = None if class_names is None else tuple(class_names)
        if isinstance(class_names, str) or (
            self.class_names is not None and len(self.class_names) != self.num_classes
        ):
            allowed = f"a list of names, one for each of the {self.num_classes} classes"
            raise values.error("class_names", allowed, class_names)
        self.mean = tuple(vector(image_shape[-1]).check("mean", mean).tolist())
        scale = vector(image_shape[-1]).check("std", std)
        if np.any(scale <= 0):
            raise values.error("std", "positive", std)
        self.std = tuple(scale.tolist())
        self.version = version
        # (x / max_value - mean) / std as one multiplication and one addition.
        max_value = number(above=0).check("max_value", max_value)
        self._scale = (1.0 / (max_value * scale)).astype(np.float32)
        self._offset = (-np.asarray(self.mean) / scale).astype(np.float32)

    @abc.abstractmethod
    def arrays(self, split: str, normalize: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Returns a split as NumPy arrays: images [n, height, width, channels], labels int32 [n].

        Images are float32 and normalised, or as stored (usually uint8) with `normalize=False`.

        Raises:
            ValueError: if the dataset is streamed from disk.
        """

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "num_examples": dict(self.num_examples),
            "num_classes": self.num_classes,
            "image_shape": list(self.image_shape),
            "mean": list(self.mean),
            "std": list(self.std),
            "augmentation": self.augmentation,
        }

    def _normalized(self, images: tf.Tensor) -> tf.Tensor:
        """Normalises [..., height, width, channels] pixels into float32."""
        import tensorflow as tf

        # TensorFlow broadcasts over whole rows many times faster than over three channels.
        width, channels = self.image_shape[1:]
        rows = tf.reshape(tf.cast(images, tf.float32), [-1, width * channels])
        rows = rows * np.tile(self._scale, width) + np.tile(self._offset, width)
        return tf.reshape(rows, images.shape)


@dataclasses.dataclass(frozen=True)
class Shards:
    """The parts of every global batch that a pipeline makes.

    Attributes:
        batch_size: images in the global batch.
        count: number of all parts.
        ids: the parts of this pipeline, in increasing order.
    """

    batch_size: int
    count: int
    ids: tuple[int, ...]

    @property
    def part(self) -> int:
        """Number of images in a part."""
        return self.batch_size // self.count


def _shards(batch_size: int, num_shards: int, shard_ids: Sequence[int] | None) -> Shards:
    integer(1).check("batch_size", batch_size)
    integer(1).check("num_shards", num_shards)
    if batch_size % num_shards:
        raise values.error("batch_size", f"divisible by `num_shards`, {num_shards}", batch_size)
    ids = tuple(range(num_shards)) if shard_ids is None else tuple(int(i) for i in shard_ids)
    if not ids or list(ids) != sorted(set(ids)) or ids[0] < 0 or ids[-1] >= num_shards:
        raise values.error("shard_ids", f"increasing integers in 0..{num_shards - 1}", shard_ids)
    return Shards(batch_size, num_shards, ids)


def check_augmentation(augmentation: str | None) -> str:
    """Checks the name of an augmentation and returns it; None stands for "none"."""
    return str(one_of([*NAMES, None]).check("augmentation", augmentation) or "none")


def parts_of(whole: tf.data.Dataset, shards: Shards) -> tf.data.Dataset:
    """Returns the parts of global batches that a pipeline makes, in turn."""
    import tensorflow as tf

    if shards.count == 1:
        return deterministic(whole.prefetch(tf.data.AUTOTUNE))

    def parts(*batch: Any) -> tf.data.Dataset:
        def chosen(array: Any) -> Any:
            apart = tf.reshape(array, [shards.count, shards.part, *array.shape[1:]])
            return tf.gather(apart, shards.ids)

        return tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(chosen, batch))

    return deterministic(whole.flat_map(plain(parts)).prefetch(tf.data.AUTOTUNE))


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Prevents AutoGraph from rewriting the function, which pipelines do not need."""
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def deterministic(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the dataset with a deterministic order."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    # Pipelines are split over workers by `shard_ids`, so TensorFlow must not shard them.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)
