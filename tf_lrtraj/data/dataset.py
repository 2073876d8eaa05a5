"""What every dataset offers, and the checks its methods share."""

from __future__ import annotations

import abc
import contextlib
import math
import operator
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.data.augmentations import AUGMENTATIONS

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["DataError", "ImageDataset", "explain"]


class DataError(ValueError):
    """A file of a dataset is missing or damaged; the message names it."""


# The streamed datasets of this process.
opened: weakref.WeakSet[ImageDataset] = weakref.WeakSet()


def explain(error: BaseException) -> str | None:
    """What an error says about the files of the datasets opened; None if nothing.

    For programs, which end with one line that names the file.
    """
    if isinstance(error, DataError):
        return str(error)
    if type(error).__module__.startswith("tensorflow."):
        for dataset in list(opened):
            reason = dataset.explain(error)
            if reason is not None:
                return f"dataset {dataset.name!r}: {reason}"
    return None


class ImageDataset(abc.ABC):
    """Labelled images: training batches by step, and evaluation over every image once.

    Attributes:
        name: the dataset's name.
        num_classes: number of classes; labels are 0..num_classes-1.
        image_shape: (height, width, channels) of the images in a batch.
        class_names: names of the classes, or None.
        num_examples: images in each split, for example {"train": 50000, "test": 10000}.
        mean, std: per channel, on the scale where the brightest pixel is 1; images are
            normalised by `(image - mean) / std`.
        augmentation: applied to training batches, one of
            "none", "crop", "crop_flip", "random_resized_crop".
        version: version of the stored dataset, or None.
    """

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
        self.name = name
        self.num_classes = integer("num_classes", num_classes, 1)
        self.image_shape = image_shape
        self.class_names = None if class_names is None else _names(class_names, self.num_classes)
        self.num_examples = dict(num_examples)
        self.mean = _per_channel("mean", mean, image_shape[-1])
        self.std = _per_channel("std", std, image_shape[-1])
        if min(self.std) <= 0:
            raise ValueError(f"`std` must be positive. Received: std={std!r}")
        self.augmentation = check_augmentation(augmentation)
        self.version = version
        # (x / max_value - mean) / std as one multiplication and one addition.
        scale = np.asarray(self.std)
        self._scale = (1.0 / (positive("max_value", max_value) * scale)).astype(np.float32)
        self._offset = (-np.asarray(self.mean) / scale).astype(np.float32)

    @property
    def eval_split(self) -> str | None:
        """The split to evaluate on: "test" if there is one, else "validation", else None."""
        return next((s for s in ("test", "validation") if s in self.num_examples), None)

    @abc.abstractmethod
    def train_batches(
        self,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        num_shards: int = 1,
        shard_ids: Sequence[int] | None = None,
    ) -> tf.data.Dataset:
        """The endless sequence of training batches from `start_step` on.

        The global batch of step s, order and augmentation included, is a
        function of (seed, s) alone.  It is the images at the positions
        `s * batch_size … (s + 1) * batch_size - 1` of an endless sequence that
        shows every training image once per epoch, so a batch may straddle two epochs.

        Args:
            batch_size: images in the global batch, at most the number of training images.
            seed: integer in [0, 2⁶³).
            start_step: the step the first batch belongs to.
            num_shards: the global batch is split into so many consecutive equal parts.
            shard_ids: the parts that this pipeline makes, in increasing order; all by default.

        Returns:
            A `tf.data.Dataset` of (images, labels), float32 [b, height, width, channels]
            normalised, and int32 [b], with b = batch_size / num_shards.  Element i belongs to
            step `start_step + i // k` and to part `shard_ids[i % k]`, k = len(shard_ids).
        """

    @abc.abstractmethod
    def eval_batches(
        self,
        split: str,
        batch_size: int,
        num_shards: int = 1,
        shard_ids: Sequence[int] | None = None,
        limit: int | None = None,
    ) -> tf.data.Dataset:
        """Every image of a split exactly once, without augmentation.

        The order is fixed; of streamed sets it depends on the batch size.

        Args:
            split: a key of `num_examples`; "train" is allowed.
            batch_size, num_shards, shard_ids: as in `train_batches`.
            limit: only so many images, always the same ones.  Datasets in memory
                take the first of a fixed permutation; streamed ones the first as stored.

        Returns:
            A finite `tf.data.Dataset` of (images, labels, weights) of static shapes; weights,
            float32 [b], are 1 for images and 0 for the padding of the last batch.
            Every part has the same number of batches.
        """

    @abc.abstractmethod
    def arrays(self, split: str, normalize: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """A split as NumPy arrays, (images [n, height, width, channels], labels int32 [n]).

        Images are float32 and normalised, or as stored (usually uint8) with `normalize=False`.

        Raises:
            ValueError: if the dataset is streamed from disk.
        """

    def explain(self, error: BaseException) -> str | None:
        """What an error of TensorFlow says about the dataset's files; None if nothing."""
        return None

    @contextlib.contextmanager
    def named_faults(self) -> Iterator[None]:
        """Inside, errors met on reading the dataset become a `DataError` that names the file."""
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
        """Training images over the batch size; not rounded, as batches straddle epochs."""
        return self.num_examples["train"] / integer("batch_size", batch_size, 1)

    def describe(self) -> dict[str, Any]:
        """A JSON-serialisable account for a run's records."""
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

    def _check_split(self, split: str) -> int:
        if split not in self.num_examples:
            raise ValueError(
                f"`split` must be one of {sorted(self.num_examples)}, the splits of "
                f"{self.name!r}. Received: split={split!r}"
            )
        return self.num_examples[split]

    def _check_train(self, batch_size: int, seed: int, start_step: int) -> int:
        """Checks what is particular to training; returns the number of training images."""
        count = self._check_split("train")
        if integer("batch_size", batch_size, 1) > count:
            raise ValueError(
                f"`batch_size` must be at most {count}, the number of training images of "
                f"{self.name!r}. Received: batch_size={batch_size}"
            )
        integer("start_step", start_step, 0)
        if integer("seed", seed, 0) >= 2**63:
            raise ValueError(f"`seed` must be below 2**63. Received: seed={seed}")
        return count

    def _check_eval(self, split: str, limit: int | None) -> int:
        """Returns the number of images to evaluate."""
        count = self._check_split(split)
        if limit is None:
            return count
        if integer("limit", limit, 1) > count:
            raise ValueError(
                f"`limit` must be at most {count}, the number of images in split {split!r} of "
                f"{self.name!r}. Received: limit={limit}"
            )
        return limit

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.num_examples}, {self.image_shape})"


def check_shards(
    batch_size: int, num_shards: int, shard_ids: Sequence[int] | None
) -> tuple[int, tuple[int, ...]]:
    """Returns (images per part, the parts to make)."""
    integer("batch_size", batch_size, 1)
    integer("num_shards", num_shards, 1)
    if batch_size % num_shards:
        raise ValueError(
            "`batch_size` must be divisible by `num_shards`. "
            f"Received: batch_size={batch_size}, num_shards={num_shards}"
        )
    ids = tuple(range(num_shards)) if shard_ids is None else tuple(int(i) for i in shard_ids)
    if not ids or list(ids) != sorted(set(ids)) or ids[0] < 0 or ids[-1] >= num_shards:
        raise ValueError(
            f"`shard_ids` must be increasing integers in 0..{num_shards - 1}. "
            f"Received: shard_ids={shard_ids!r}, num_shards={num_shards}"
        )
    return batch_size // num_shards, ids


def check_augmentation(augmentation: str | None) -> str:
    name = "none" if augmentation is None else augmentation
    if name not in AUGMENTATIONS:
        raise ValueError(
            f"`augmentation` must be one of {list(AUGMENTATIONS)} or None. "
            f"Received: augmentation={augmentation!r}"
        )
    return name


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps AutoGraph, which has nothing to do in pipelines, from rewriting the function."""
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def integer(name: str, value: Any, minimum: int) -> int:
    """Returns `value` as an int of at least `minimum`, or raises an error that names it."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = minimum - 1
    if number < minimum:
        raise ValueError(
            f"`{name}` must be an integer of at least {minimum}. Received: {name}={value!r}"
        )
    return number


def positive(name: str, value: Any) -> float:
    """Returns `value` as a finite float above 0, or raises an error that names it."""
    number = _finite(value)
    if number is None or number <= 0.0:
        raise ValueError(f"`{name}` must be a finite number above 0. Received: {name}={value!r}")
    return number


def _finite(value: Any) -> float | None:
    """`value` as a float; None if it is no finite number."""
    if isinstance(value, (str, bytes, bool, np.bool_)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    try:
        given = [_finite(value) for value in values]
    except TypeError:  # nothing to go through
        given = []
    numbers = tuple(number for number in given if number is not None)
    if not len(numbers) == len(given) == channels:
        raise ValueError(
            f"`{name}` must have one finite number per channel, {channels} of them. "
            f"Received: {name}={values!r}"
        )
    return numbers


def _names(class_names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    names = tuple(class_names)
    if isinstance(class_names, str) or len(names) != num_classes:
        raise ValueError(
            f"`class_names` must be a list of names, one for each of the {num_classes} classes. "
            f"Received: {len(names)} of them, class_names={class_names!r}"
        )
    return names
