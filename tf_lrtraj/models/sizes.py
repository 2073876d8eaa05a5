"""Formulas for the sizes of residual networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tf_lrtraj.values import error

__all__ = ["EXPANSION", "Size", "resnet_size", "stages"]

# depth -> (blocks per stage, bottleneck?)
FOUR_STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
}
# Keras builds a graph by recursion, and Python's stack suffices for a depth of about 270.
DEEPEST = 200
EXPANSION = 4  # a bottleneck block's outputs are this many times its width


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a network.

    Attributes:
        trainable: number of trainable weights.
        statistics: number of batch-norm means and variances.
        activations: numbers that training keeps for each image: the image, and the output of every
            convolution and every batch norm.
        largest: numbers in the largest output of a layer, for one image.
    """

    trainable: int = 0
    statistics: int = 0
    activations: int = 0
    largest: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(
            self.trainable + other.trainable,
            self.statistics + other.statistics,
            self.activations + other.activations,
            max(self.largest, other.largest),
        )

    def times(self, count: int) -> Size:
        """Returns the size of `count` consecutive parts of this size."""
        if not count:
            return Size()
        return Size(
            count * self.trainable,
            count * self.statistics,
            count * self.activations,
            self.largest,
        )


def resnet_size(
    depth: int,
    num_classes: int,
    input_shape: Sequence[int],
    stem: str = "imagenet",
    width: int = 64,
) -> Size:
    """Returns the size of `models.resnet` with the same arguments and projection shortcuts.

    Args:
        depth, num_classes, input_shape, stem, width: as for `models.resnet`; height and
            width of images must be known.

    Raises:
        ValueError: for a depth that does not exist.

    >>> resnet_size(34, 1000, (224, 224, 3)).trainable
    21797672
    >>> resnet_size(8, 10, (32, 32, 3), stem="cifar", width=16)
    Size(trainable=78042, statistics=672, activations=175104, largest=16384)
    """
    blocks_per_stage, bottleneck = stages(depth, stem)
    height, breadth, channels = input_shape
    image = height * breadth * channels
    total = Size(activations=image, largest=image)
    area = (height, breadth)
    if stem == "imagenet":
        area = _halved(area)
        total += _convolution(7, channels, width, area)
        area = _halved(area)
    else:
        total += _convolution(3, channels, width, area)
    channels = width
    for stage, count in enumerate(blocks_per_stage):
        before, inner = area, width * 2**stage
        outer = EXPANSION * inner if bottleneck else inner
        area = _halved(area) if stage else area
        first = _block(channels, inner, outer, before, area)
        if stage or channels != outer:
            first += _convolution(1, channels, outer, area)
        total += first + _block(outer, inner, outer, area, area).times(count - 1)
        channels = outer
    return total + Size(trainable=(channels + 1) * num_classes)


def _convolution(kernel: int, inputs: int, outputs: int, area: tuple[int, int]) -> Size:
    """A convolution without bias and its batch norm; `area` is that of the output."""
    numbers = area[0] * area[1] * outputs
    weights = kernel**2 * inputs * outputs + 2 * outputs
    return Size(weights, 2 * outputs, 2 * numbers, numbers)


def _block(
    inputs: int, inner: int, outer: int, before: tuple[int, int], after: tuple[int, int]
) -> Size:
    """A block without its shortcut; a bottleneck strides in its 3×3 convolution."""
    if outer == inner:
        return _convolution(3, inputs, inner, after) + _convolution(3, inner, inner, after)
    return (
        _convolution(1, inputs, inner, before)
        + _convolution(3, inner, inner, after)
        + _convolution(1, inner, outer, after)
    )


def _halved(area: tuple[int, int]) -> tuple[int, int]:
    return -(-area[0] // 2), -(-area[1] // 2)


def stages(depth: int, stem: str) -> tuple[tuple[int, ...], bool]:
    """Returns the number of blocks of each stage, and whether they are bottleneck blocks.

    Raises:
        ValueError: for a depth that does not exist, or not with this stem.
    """
    if depth in FOUR_STAGES:
        return FOUR_STAGES[depth]
    if depth < 8 or depth % 6 != 2:
        allowed = "18, 34, 50 or 6n + 2 with n of at least 1 (8, 14, 20, 26, 32, …)"
        raise error("depth", allowed, depth)
    if depth > DEEPEST:
        allowed = f"at most {DEEPEST}: Keras cannot build so many layers one after another"
        raise error("depth", allowed, depth)
    if stem != "cifar":
        allowed = f"'cifar' with depth={depth}: only 18, 34 and 50 have the ImageNet stem"
        raise error("stem", allowed, stem)
    return ((depth - 2) // 6,) * 3, False
