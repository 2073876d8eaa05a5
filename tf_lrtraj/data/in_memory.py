"""Datasets that are held in memory as they are stored (usually uint8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj import seeds
from tf_lrtraj.data import augmentations, indexed
from tf_lrtraj.data.dataset import ImageDataset, Shards
from tf_lrtraj.values import error, integer, number

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["InMemoryDataset", "from_arrays", "from_splits"]


def from_arrays(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    test_images: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
    validation_fraction: float = 0.0,
    seed: int = 0,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    max_value: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: str | None = None,
    version: str | None = None,
) -> InMemoryDataset:
    """Makes a dataset from NumPy arrays.

    Args:
        name: any name.
        images: training images, uint8 or floating, [n, height, width, channels] or
            [n, height, width].
        labels: integers [n] in 0..num_classes-1.
        test_images, test_labels: the split "test", if there is one.
        validation_fraction: share of the training images, in [0, 1), that become the split
            "validation".
        seed: the seed that selects these images.
        num_classes: by default the number of names, or the largest label plus 1.
        class_names: names of the classes, one for each.
        max_value: the brightest possible pixel, above 0, by default 255 for uint8 and 1 otherwise.
        mean, std: per channel on the scale where `max_value` is 1, finite.  By default those of
            the training images for uint8, and 0 and 1 (no normalisation) otherwise.
        augmentation: see `load`.
        version: recorded in `describe`.

    Raises:
        ValueError: if shapes, dtypes or values do not fit together.

    >>> images = np.zeros((6, 8, 8, 3), np.uint8)
    >>> dataset = from_arrays("black", images, np.arange(6), mean=[0, 0, 0], std=[1, 1, 1])
    >>> dataset.num_examples, dataset.num_classes, dataset.steps_per_epoch(4)
    ({'train': 6}, 6, 1.5)
    """
    if (test_images is None) != (test_labels is None):
        raise ValueError("`test_images` and `test_labels` must be given together.")
    splits = {"train": _checked("images", images, "labels", labels)}
    if test_images is not None:
        splits["test"] = _checked("test_images", test_images, "test_labels", test_labels)
    return from_splits(
        name,
        splits,
        validation_fraction=validation_fraction,
        seed=seed,
        num_classes=num_classes,
        class_names=class_names,
        max_value=max_value,
        mean=mean,
        std=std,
        augmentation=augmentation,
        version=version,
    )


def from_splits(
    name: str,
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    validation_fraction: float = 0.0,
    seed: int = 0,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    max_value: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **fields: Any,
) -> InMemoryDataset:
    """`from_arrays` for {split: (images [n, height, width, channels], labels int32 [n])}."""
    number(0, below=1).check("validation_fraction", validation_fraction)
    images, labels = splits["train"]
    for split, (other, _) in splits.items():
        if other.shape[1:] != images.shape[1:] or other.dtype != images.dtype:
            allowed = f"{list(images.shape[1:])} of {images.dtype}, as `images` are"
            raise error(f"{split}_images", allowed, f"{list(other.shape[1:])} of {other.dtype}")
    smallest = min(int(y.min()) for _, y in splits.values())
    largest = max(int(y.max()) for _, y in splits.values())
    if num_classes is None:
        num_classes = largest + 1 if class_names is None else len(class_names)
    num_classes = int(integer(1).check("num_classes", num_classes))
    if smallest < 0 or largest >= num_classes:
        raise error("labels", f"in 0..{num_classes - 1}", smallest if smallest < 0 else largest)
    splits = dict(splits)
    if validation_fraction:
        splits.update(split_off_validation(images, labels, validation_fraction, seed))
    integral = images.dtype == np.uint8
    if max_value is None:
        max_value = 255.0 if integral else 1.0
    max_value = float(number(above=0).check("max_value", max_value))
    if mean is None or std is None:
        if integral:
            measured = channel_moments(splits["train"][0], max_value)
        else:
            measured = (0.0,) * images.shape[-1], (1.0,) * images.shape[-1]
        mean = measured[0] if mean is None else mean
        std = measured[1] if std is None else std
    return InMemoryDataset(
        name,
        splits,
        max_value=max_value,
        num_classes=num_classes,
        class_names=class_names,
        mean=mean,
        std=std,
        **fields,
    )


class InMemoryDataset(ImageDataset):
    """An `ImageDataset` held in memory; made by `from_arrays` or `load`."""

    def __init__(
        self,
        name: str,
        splits: Mapping[str, tuple[np.ndarray, np.ndarray]],
        **fields: Any,
    ) -> None:
        shape = next(iter(splits.values()))[0].shape[1:]
        super().__init__(
            name,
            image_shape=(int(shape[0]), int(shape[1]), int(shape[2])),
            num_examples={split: len(labels) for split, (_, labels) in splits.items()},
            **fields,
        )
        self._splits = dict(splits)
        self._tensors: dict[str, tuple[tf.Tensor, tf.Tensor]] = {}

    def _train(self, shards: Shards, seed: int, start_step: int) -> tf.data.Dataset:
        import tensorflow as tf

        images, labels = self._as_tensors("train")

        def batch(index: Any, first: Any) -> tuple[tf.Tensor, tf.Tensor]:
            chosen = augmentations.augment(
                tf.ensure_shape(tf.gather(images, index), (shards.part, *self.image_shape)),
                self._each,
                seed,
                first,
            )
            return self._normalized(chosen), tf.gather(labels, index)

        return indexed.train_pipeline(shards, seed, start_step, self.num_examples["train"], batch)

    def _eval(self, shards: Shards, split: str, limit: int | None) -> tf.data.Dataset:
        import tensorflow as tf

        images, labels = self._as_tensors(split)

        def batch(index: Any) -> tuple[tf.Tensor, tf.Tensor]:
            chosen = tf.ensure_shape(tf.gather(images, index), (shards.part, *self.image_shape))
            return self._normalized(chosen), tf.gather(labels, index)

        return indexed.eval_pipeline(shards, self.num_examples[split], limit, batch)

    def arrays(self, split: str, normalize: bool = True) -> tuple[np.ndarray, np.ndarray]:
        self._count(split)
        images, labels = self._splits[split]
        if normalize:
            images = images.astype(np.float32)
            images *= self._scale
            images += self._offset
        return images, labels

    def _as_tensors(self, split: str) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a split as tensors on the host, which all pipelines share."""
        import tensorflow as tf

        if split not in self._tensors:
            with tf.device("CPU:0"):
                images, labels = (tf.constant(a) for a in self._splits[split])
            # The arrays become views of the tensors, so that images are held only once.
            self._splits[split] = _view(images), _view(labels)
            self._tensors[split] = images, labels
        return self._tensors[split]


def split_off_validation(
    images: np.ndarray, labels: np.ndarray, fraction: float, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Splits training images into "train" and "validation"; both keep the stored order."""
    size = validation_size(fraction, len(labels))
    order = seeds.generator("validation", integer(0).check("seed", seed)).permutation(len(labels))
    chosen = np.sort(order[:size])
    mask = np.zeros(len(labels), bool)
    mask[chosen] = True
    return {
        "train": (images[~mask], labels[~mask]),
        "validation": (images[mask], labels[mask]),
    }


def validation_size(fraction: float, count: int) -> int:
    """Returns the number of validation images; both parts must be non-empty."""
    size = round(fraction * count) if 0.0 < fraction < 1.0 else 0
    if not 0 < size < count:
        allowed = f"0, or in (0, 1) and leave some of {count} images in both splits"
        raise error("validation_fraction", allowed, fraction)
    return size


def channel_moments(
    images: np.ndarray, max_value: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images, exact, via histograms."""
    mean, std = [], []
    values = np.arange(256) / max_value
    for channel in range(images.shape[-1]):
        counts = np.zeros(256)
        for start in range(0, len(images), 4096):  # bincount widens its input to 8 bytes
            block = images[start : start + 4096, ..., channel]
            counts += np.bincount(block.ravel(), minlength=256)
        average = float(counts @ values / counts.sum())
        mean.append(average)
        std.append(float(np.sqrt(counts @ (values - average) ** 2 / counts.sum())))
    # A constant channel is only centred.
    return tuple(mean), tuple(s if s > 0 else 1.0 for s in std)


def _view(tensor: tf.Tensor) -> np.ndarray:
    return np.asarray(memoryview(tensor))


def _checked(
    images_name: str, images: Any, labels_name: str, labels: Any
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        allowed = "[n, height, width] or [n, height, width, channels], not empty"
        raise error(images_name, allowed, images)
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise error(images_name, "uint8 or floating", images.dtype.name)
        images = images.astype(np.float32)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise error(labels_name, f"integers, one for each of the {len(images)} images", labels)
    # Held as int32, into which larger ones would be wrapped around.
    largest = np.iinfo(np.int32).max
    for label in (int(labels.min()), int(labels.max())):
        if abs(label) > largest:
            allowed = f"in 0..{largest}, and below the number of classes"
            raise error(labels_name, allowed, label)
    return np.ascontiguousarray(images), labels.astype(np.int32)
