"""Sizes by formula against networks that were built."""

import math

import keras
import pytest

from tf_lrtraj.models import resnet, resnet_size
from tf_lrtraj.models.sizes import DEEPEST


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="once is enough")
@pytest.mark.parametrize(
    ("depth", "stem", "width", "shape", "classes"),
    [
        (8, "cifar", 8, (8, 8, 1), 10),
        (14, "cifar", 5, (9, 7, 3), 3),
        (26, "cifar", 1, (5, 6, 2), 1),
        (18, "cifar", 4, (31, 33, 3), 10),
        (18, "imagenet", 4, (33, 31, 3), 10),
        (34, "imagenet", 2, (64, 64, 3), 7),
        (50, "imagenet", 2, (65, 64, 3), 7),
        (50, "cifar", 2, (15, 16, 1), 7),
    ],
)
def test_sizes_are_those_of_the_network(depth, stem, width, shape, classes):
    model = resnet(depth, classes, shape, stem=stem, width=width)
    size = resnet_size(depth, classes, shape, stem, width)
    count = [
        sum(math.prod(v.shape) for v in variables)
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    assert [size.trainable, size.statistics] == count
    outputs = [
        math.prod(layer.output.shape[1:])
        for layer in model.layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.BatchNormalization))
    ]
    assert size.activations == math.prod(shape) + sum(outputs)
    assert size.largest == max(*outputs, math.prod(shape))


def test_the_deepest_can_be_built_and_no_deeper_one_is_tried():
    assert resnet(DEEPEST, 2, (4, 4, 1), stem="cifar", width=1).count_params()
    with pytest.raises(ValueError, match=r"`depth` must be at most 200.*Received: depth=8000000"):
        resnet_size(8_000_000, 10, (8, 8, 1), "cifar")
