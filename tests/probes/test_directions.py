"""Random directions: lengths, filters in Keras' layout, seeds."""

import keras
import numpy as np
import pytest

from tf_lrtraj.probes import filter_axes_of, random_direction

SHAPES = [(3, 3, 2, 4), (4,), (4,), (5, 3), (3,)]


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for shape in SHAPES]


def test_uniform_directions_are_gaussian_vectors_of_length_one():
    like = weights()
    direction = random_direction(like, 5)
    rng = np.random.default_rng(5)
    drawn = [rng.normal(size=shape) for shape in SHAPES]
    length = np.sqrt(sum((d**2).sum() for d in drawn))
    for found, expected in zip(direction, drawn, strict=True):
        np.testing.assert_allclose(found, expected / length, rtol=1e-12)


def test_filters_have_the_norms_of_the_weights():
    like = weights()
    direction = random_direction(like, [5, 2], "filter")
    for position in (0, 3):
        for out in range(SHAPES[position][-1]):
            found = np.linalg.norm(direction[position][..., out])
            assert found == pytest.approx(np.linalg.norm(like[position][..., out]), rel=1e-6)
    for position in (1, 2, 4):
        assert not direction[position].any()


def test_a_filter_of_zeros_is_not_moved():
    like = weights()
    like[0][..., 1] = 0.0
    direction = random_direction(like, 0, "filter")
    assert not direction[0][..., 1].any()
    assert direction[0][..., 0].any()


def test_the_seed_alone_decides():
    for kind in ("uniform", "filter"):
        a, b, c = (random_direction(weights(), seed, kind) for seed in (1, 1, 2))
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        assert not np.array_equal(a[0], c[0])


def test_axes_of_keras_layers():
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.Conv2DTranspose(3, 3),
            layers.SeparableConv2D(5, 3),
            layers.DepthwiseConv2D(3, depth_multiplier=2),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    axes = filter_axes_of(model)
    found = {
        v.path.split("/", 1)[1].split("_", 1)[0] + "/" + v.name: a
        for v, a in zip(model.trainable_variables, axes, strict=True)
        if "kernel" in v.name
    }
    assert found == {
        "conv2d/kernel": (-2,),
        "separable/depthwise_kernel": (-2, -1),
        "separable/pointwise_kernel": (-1,),
        "depthwise/kernel": (-2, -1),
        "dense/kernel": (-1,),
    }
    direction = random_direction(model.trainable_variables, 0, "filter", filter_axes=axes)
    kernel = keras.ops.convert_to_numpy(model.trainable_variables[0])  # [3, 3, out, in]
    for out in range(3):
        found = np.linalg.norm(direction[0][:, :, out])
        assert found == pytest.approx(np.linalg.norm(kernel[:, :, out]), rel=1e-6)


@pytest.mark.parametrize(
    ("like", "options", "message"),
    [
        (weights(), {"kind": "layer"}, "`kind` must be one of .* Received: kind='layer'"),
        ([], {}, "`like` must hold weights"),
        ([np.ones(3)], {"kind": "filter"}, "moves kernels"),
        (weights(), {"kind": "filter", "filter_axes": [(-1,)]}, "for each of 5 arrays"),
    ],
)
def test_bad_input(like, options, message):
    with pytest.raises(ValueError, match=message):
        random_direction(like, 0, **options)
