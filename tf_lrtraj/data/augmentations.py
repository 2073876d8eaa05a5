"""Random crops and flips of whole batches, each a function of (seed, position).

The position of an image is its index in the infinite sequence of training images, `step *
batch_size + place in the global batch`.  The same position always gets the same crop, however the
batch is split over replicas.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tf_lrtraj.data import randomness

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = [
    "AUGMENTATIONS",
    "NAMES",
    "augment",
    "crop_padding",
    "mix",
    "random_boxes",
    "split_name",
]

AUGMENTATIONS = ("none", "crop", "crop_flip", "random_resized_crop")  # of single images
# Of pairs of images: MixUp (arXiv:1710.09412) and CutMix (arXiv:1905.04899).  The number is alpha
# of the Beta distribution of the shares, as keras-cv sets it.
MIXINGS = {"mixup": 0.2, "cutmix": 1.0}
NAMES = (
    *AUGMENTATIONS,
    *MIXINGS,
    *(f"{each}+{mixing}" for each in AUGMENTATIONS[1:] for mixing in MIXINGS),
)

# Inception's crop, as everyone trains ImageNet with it (arXiv:1409.4842, section 6).
AREA_RANGE = (0.08, 1.0)
ASPECT_RANGE = (3 / 4, 4 / 3)
ATTEMPTS = 10
# Four numbers each: whether to mirror, then (area, aspect, top, left) for every attempt.
RESIZED_CROP_STREAMS = 1 + ATTEMPTS


def split_name(name: str) -> tuple[str, str | None]:
    """Returns the augmentation of single images and the mixing of a name of `NAMES`.

    >>> split_name("crop_flip+cutmix"), split_name("mixup"), split_name("crop")
    (('crop_flip', 'cutmix'), ('none', 'mixup'), ('crop', None))
    """
    each, _, mixing = name.rpartition("+")
    if mixing in MIXINGS:
        return each or "none", mixing
    return name, None


def crop_padding(height: int, width: int) -> int:
    """Returns the padding of a crop: an eighth of the image, 4 pixels for 32×32.

    >>> crop_padding(32, 32), crop_padding(8, 8)
    (4, 1)
    """
    return max(1, min(height, width) // 8)


def augment(images: Any, kind: str, seed: int, first: Any) -> tf.Tensor:
    """Augments a batch of images at the positions `first, first + 1, …`.

    Args:
        images: [n, height, width, channels], any dtype, static shape.
        kind: one of `AUGMENTATIONS`.
            "crop": padded by `crop_padding` black pixels on every side and cropped back
            to size at a random place; "crop_flip": the same, then mirrored in
            half of the cases; "random_resized_crop": a random box (8 to 100 % of the area, aspect
            3/4 to 4/3) resized bilinearly to the image's size, then mirrored in half of the cases.
        seed: Python integer.
        first: int64 scalar.

    Returns:
        Images of the same shape; of the same dtype for crops, float32 once resized.
    """
    import tensorflow as tf

    if kind == "none":
        return images
    count, height, width, _ = images.shape
    if kind == "random_resized_crop":
        draws = randomness.uniforms(seed, first, count, RESIZED_CROP_STREAMS)
        sizes = tf.fill([count], height), tf.fill([count], width)
        top, left, rows, columns = random_boxes(draws[:, 4:], *sizes)
        # `crop_and_resize` counts from centre to centre of the corner pixels.
        down, right = float(max(height - 1, 1)), float(max(width - 1, 1))
        first_column = tf.cast(left, tf.float32) / right
        last_column = tf.cast(left + columns - 1, tf.float32) / right
        mirrored = draws[:, 0] < 0.5  # a box from right to left comes out mirrored
        boxes = tf.stack(
            [
                tf.cast(top, tf.float32) / down,
                tf.where(mirrored, last_column, first_column),
                tf.cast(top + rows - 1, tf.float32) / down,
                tf.where(mirrored, first_column, last_column),
            ],
            axis=1,
        )
        return tf.image.crop_and_resize(images, boxes, tf.range(count), [height, width])
    draws = randomness.uniforms(seed, first, count, 1)
    margin = crop_padding(height, width)
    shifts = tf.cast(draws[:, 1:3] * (2 * margin + 1), tf.int32) - margin
    flipped = draws[:, 0] < 0.5 if kind == "crop_flip" else None
    return _shift(images, shifts, flipped)


def _shift(images: Any, shifts: Any, flipped: Any) -> tf.Tensor:
    """Moves images by whole pixels, filling with zeros, and mirrors some of them."""
    import tensorflow as tf

    count, height, width, channels = images.shape
    columns = tf.range(width)[None, :]
    if flipped is not None:
        columns = tf.where(flipped[:, None], width - 1 - columns, columns)
    rows = tf.range(height)[None, :] + shifts[:, :1]  # [n, height]
    columns = columns + shifts[:, 1:]  # [n, width]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    # One gather of pixels from the flattened batch, to which a black pixel is appended for those
    # outside: masking afterwards would cost more than the gather.
    pixel = (tf.range(count)[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]
    flat = tf.reshape(images, [-1, channels])
    flat = tf.concat([flat, tf.zeros([1, channels], images.dtype)], axis=0)
    return tf.gather(flat, tf.where(inside, pixel, count * height * width))


def random_boxes(draws: Any, heights: Any, widths: Any) -> tuple[Any, Any, Any, Any]:
    """Returns boxes of random area and aspect inside images.

    Ten boxes are proposed with area uniform in 8 to 100 % and the logarithm of the
    aspect uniform in 3/4 to 4/3; the first that fits is placed uniformly.  If none fits, the
    largest centred box with an allowed aspect is taken.

    Args:
        draws: float32 [n, 40] uniform numbers.
        heights, widths: int32 [n].

    Returns:
        (top, left, rows, columns), each int32 [n].
    """
    import tensorflow as tf

    draws = tf.reshape(draws, [-1, ATTEMPTS, 4])
    height, width = tf.cast(heights, tf.float32)[:, None], tf.cast(widths, tf.float32)[:, None]
    low, high = (math.log(a) for a in ASPECT_RANGE)
    share = AREA_RANGE[0] + draws[:, :, 0] * (AREA_RANGE[1] - AREA_RANGE[0])
    aspect = tf.exp(low + draws[:, :, 1] * (high - low))  # width over height
    rows = tf.round(tf.sqrt(share * height * width / aspect))
    columns = tf.round(tf.sqrt(share * height * width * aspect))
    fits = (rows >= 1) & (rows <= height) & (columns >= 1) & (columns <= width)
    top = tf.floor(draws[:, :, 2] * (height - rows + 1))
    left = tf.floor(draws[:, :, 3] * (width - columns + 1))

    full_rows = tf.minimum(height, tf.round(width / ASPECT_RANGE[0]))
    full_columns = tf.minimum(width, tf.round(height * ASPECT_RANGE[1]))
    fallback = (
        (height - full_rows) // 2,
        (width - full_columns) // 2,
        full_rows,
        full_columns,
    )
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1)
    found = tf.reduce_any(fits, axis=1)
    chosen = []
    for proposed, centred in zip((top, left, rows, columns), fallback, strict=True):
        value = tf.gather(proposed, first, axis=1, batch_dims=1)
        chosen.append(tf.cast(tf.where(found, value, centred[:, 0]), tf.int32))
    return chosen[0], chosen[1], chosen[2], chosen[3]


def mix(images: Any, labels: Any, kind: str, seed: int, step: Any) -> tuple[Any, Any]:
    """Mixes each image of a batch with another one, and their labels in the same shares.

    "mixup" returns `s * image + (1 - s) * partner` with s from Beta(0.2, 0.2).  "cutmix" replaces a
    box, of share 1 - s of the area with s uniform and with a uniform centre, by that of the
    partner; the labels are mixed by the share of pixels that remain.

    Args:
        images: [n, height, width, channels] of the whole batch, floating.
        labels: [n, classes], floating.
        kind: one of `MIXINGS`.
        seed: Python integer.
        step: int64 scalar.  Partners and shares are a function of (seed, step).

    Returns:
        (images, labels).
    """
    import tensorflow as tf

    count, height, width, _ = images.shape
    words = randomness.words(seed, 3 * tf.cast(step, tf.int64), randomness.MIXING, 3)
    partner = randomness.permute(tf.range(count, dtype=tf.int64), count, words[0, :3])
    others = tf.gather(images, partner)
    seeds = tf.bitcast(words[1:, :2], tf.int32)
    if kind == "mixup":
        # In float64, where a variable of so small a shape does not become 0.
        drawn = tf.random.stateless_gamma([2, count], seeds[0], MIXINGS[kind], dtype=tf.float64)
        share = tf.cast(drawn[0] / (drawn[0] + drawn[1]), images.dtype)
        kept = share[:, None, None, None]
        mixed = kept * images + (1.0 - kept) * others
    else:
        side = tf.sqrt(tf.random.stateless_uniform([count], seeds[0]))  # share 1 - s is uniform too
        rows, columns = (tf.cast(side * size, tf.int32) for size in (height, width))
        centres = tf.random.stateless_uniform([2, count], seeds[1])
        top = tf.cast(centres[0] * height, tf.int32) - rows // 2
        left = tf.cast(centres[1] * width, tf.int32) - columns // 2
        inside_rows = _between(tf.range(height), top, top + rows)
        inside_columns = _between(tf.range(width), left, left + columns)
        box = inside_rows[:, :, None] & inside_columns[:, None, :]
        mixed = tf.where(box[..., None], others, images)
        share = 1.0 - tf.reduce_mean(tf.cast(box, images.dtype), axis=[1, 2])
    share = tf.cast(share, labels.dtype)[:, None]
    return mixed, share * labels + (1.0 - share) * tf.gather(labels, partner)


def _between(places: Any, low: Any, high: Any) -> Any:
    """Returns [n, places] whether low ≤ place < high, for [n] bounds."""
    return (places[None, :] >= low[:, None]) & (places[None, :] < high[:, None])
