"""Training batches of arrays in memory for every backend, with NumPy only.

A batch is a function of (seed, step).  The batches differ from those of the tf.data pipelines.

>>> order = Order(num_images=5, batch_size=2, seed=0)
>>> sorted({*order.rows(0).tolist(), *order.rows(1).tolist()} | {*range(5)})
[0, 1, 2, 3, 4]
>>> order.rows(1).tolist() == Order(5, 2, 0).rows(1).tolist()
True
"""

from __future__ import annotations

import numpy as np

from tf_lrtraj import seeds

__all__ = ["AUGMENTATIONS", "Order", "augmented", "crop_and_flip"]

AUGMENTATIONS = ("none", "crop_flip")


class Order:
    """The training images of each step: each at most once per epoch, in random order.

    Batches are complete; the remaining images of an epoch are not used in it.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self._num_images = num_images
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    @property
    def steps_per_epoch(self) -> int:
        return self._num_images // self._batch_size

    def rows(self, step: int) -> np.ndarray:
        """Returns the [batch_size] indices of the images of step `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            random = seeds.generator("order", self._seed, epoch)
            self._order, self._epoch = random.permutation(self._num_images), epoch
        return self._order[place * self._batch_size : (place + 1) * self._batch_size]


def augmented(images: np.ndarray, augmentation: str, random: np.random.Generator) -> np.ndarray:
    """Returns augmented images, for one of `AUGMENTATIONS`."""
    return crop_and_flip(images, random) if augmentation == "crop_flip" else images


def crop_and_flip(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Shifts each image randomly by up to an eighth of its size, with zeros, and flips half of
    them.

    Args:
        images: [n, height, width, channels], normalised, so that 0 is the mean.
        random: the random generator.
    """
    count, height, width, _ = images.shape
    down, right = max(height // 8, 1), max(width // 8, 1)
    padded = np.pad(images, ((0, 0), (down, down), (right, right), (0, 0)))
    tops = random.integers(0, 2 * down + 1, count)
    lefts = random.integers(0, 2 * right + 1, count)
    flipped = random.random(count) < 0.5
    cropped = np.stack(
        [
            image[top : top + height, left : left + width]
            for image, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )
    cropped[flipped] = cropped[flipped, :, ::-1]
    return cropped
