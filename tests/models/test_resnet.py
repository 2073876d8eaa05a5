"""Residual networks: reference sizes, an independent implementation, policies, errors."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from helpers import assert_same_bits

from tf_lrtraj.models import resnet

# Slow, and the same on every backend of Keras.
once = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="once is enough")


def trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def tiny(**options):
    arguments = {"depth": 8, "num_classes": 10, "input_shape": (16, 16, 3)}
    arguments.update({"stem": "cifar", "width": 4, "seed": 1}, **options)
    return resnet(**arguments)


def norms(model):
    return [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]


def disturb(model, seed=0):
    """Random batch-norm parameters and statistics, so that no norm is the identity."""
    rng = np.random.default_rng(seed)
    for norm in norms(model):
        size = norm.gamma.shape
        scale, variance = rng.uniform(0.5, 1.5, (2, *size))
        norm.set_weights([scale, *rng.normal(0, 0.3, (2, *size)), variance])


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def outputs(model, batch, training=False):
    return keras.ops.convert_to_numpy(model(batch, training=training))


@once
@pytest.mark.parametrize("depth, count", [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_reference_parameter_counts(depth, count):
    assert trainable(resnet(depth, 1000, (224, 224, 3))) == count


@once
@pytest.mark.parametrize("depth", [8, 14, 20])
@pytest.mark.parametrize("shortcut", ["projection", "identity"])
def test_cifar_parameter_counts_by_hand(depth, shortcut):
    blocks, width, classes = (depth - 2) // 6, 16, 10
    count = 9 * 3 * width + 2 * width
    channels = width
    for stage in (width, 2 * width, 4 * width):
        for _ in range(blocks):
            count += 9 * channels * stage + 9 * stage * stage + 4 * stage
            if channels != stage and shortcut == "projection":
                count += channels * stage + 2 * stage
            channels = stage
    count += channels * classes + classes
    model = resnet(depth, classes, (32, 32, 3), stem="cifar", width=width, shortcut=shortcut)
    assert trainable(model) == count


def test_resnet20_with_identity_shortcuts_has_the_papers_size():
    # Table 6 of arXiv:1512.03385: 0.27M parameters.
    model = resnet(20, 10, (32, 32, 3), stem="cifar", width=16, shortcut="identity")
    assert trainable(model) == 269_722


def strided_in_3x3(layer):
    """A copy of keras-cv's layer, a bottleneck's stride moved from its first 1×1 to its 3×3."""
    config = layer.get_config()
    if part := re.fullmatch(r"v2_stack_[1-3]_block1_([12])_conv", layer.name):
        config["strides"] = {"1": 1, "2": 2}[part[1]]
    return type(layer).from_config(config)


@once
@pytest.mark.parametrize("depth, block", [(18, "basic_block"), (34, "basic_block"), (50, "block")])
def test_agrees_with_keras_cv(depth, block):
    """Same weights, same outputs; odd sizes throughout, where both paddings coincide."""
    keras_cv_models = pytest.importorskip("keras_cv.models")
    blocks = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}[depth]
    backbone = keras_cv_models.ResNetBackbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=blocks,
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=False,
        block_type=block,
        input_shape=(33, 33, 3),
    )
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
    theirs = keras.Model(backbone.input, keras.layers.Dense(7, name="logits")(pooled))
    if block == "block":
        theirs = keras.models.clone_model(theirs, clone_function=strided_in_3x3)
    ours = resnet(depth, 7, (33, 33, 3), batch_norm_epsilon=1.001e-5, seed=0)
    disturb(ours)

    def their_name(layer_name):
        part = re.fullmatch(
            r"(stem|head|stage(\d)_block(\d+)_(\w+))_(conv|norm|logits)", layer_name
        )
        kind = {"conv": "conv", "norm": "bn", "logits": "logits"}[part[5]]
        if part[1] == "head":
            return kind
        if part[1] == "stem":
            return f"conv1_{kind}"
        index = "0" if part[4] == "shortcut" else part[4]
        return f"v2_stack_{int(part[2]) - 1}_block{part[3]}_{index}_{kind}"

    copied = 0
    for layer in ours.layers:
        if layer.weights:
            twin = theirs.get_layer(their_name(layer.name))
            weights = layer.get_weights()
            if isinstance(layer, keras.layers.Conv2D) and len(twin.get_weights()) == 2:
                weights.append(np.zeros(weights[0].shape[-1], np.float32))  # a bias there
            twin.set_weights(weights)
            copied += len(layer.weights)
    assert copied == len(ours.weights)

    batch = images(2, 33, 33, 3)
    expected, actual = outputs(theirs, batch), outputs(ours, batch)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


@once
def test_downsampling_pads_both_sides_alike():
    """Mirrored images give mirrored features where sizes are odd, and stay centred on even ones."""
    model = tiny(input_shape=(16, 16, 3))
    conv = model.get_layer("stage2_block1_1_conv")
    before = keras.Model(model.input, model.get_layer("stage1_block1_relu").output)
    after = keras.Model(model.input, conv.output)
    batch = images(1, 16, 16, 3)
    x = np.pad(outputs(before, batch), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = conv.get_weights()[0]
    expected = np.zeros((8, 8, kernel.shape[-1]))
    for row in range(8):
        for column in range(8):
            patch = x[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected[row, column] = np.einsum("ijc,ijco->o", patch, kernel)
    np.testing.assert_allclose(outputs(after, batch)[0], expected, rtol=1e-4, atol=1e-4)


def test_identity_shortcut_samples_and_pads_channels():
    model = tiny(shortcut="identity", zero_init_residual=True)
    before = keras.Model(model.input, model.get_layer("stage1_block1_relu").output)
    after = keras.Model(model.input, model.get_layer("stage2_block1_relu").output)
    batch = images(2, 16, 16, 3)
    x, y = outputs(before, batch), outputs(after, batch)
    assert x.shape == (2, 16, 16, 4) and x.max() > 0
    # The residual starts at zero, so the block is its shortcut.
    np.testing.assert_array_equal(y[..., :4], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 4:], 0)


def test_zero_init_residual_makes_every_block_its_shortcut():
    model = tiny(zero_init_residual=True)
    zeroed = [n.name for n in norms(model) if not keras.ops.convert_to_numpy(n.gamma).any()]
    assert zeroed == ["stage1_block1_2_norm", "stage2_block1_2_norm", "stage3_block1_2_norm"]


@pytest.mark.parametrize(
    "options, shape",
    [
        ({"depth": 18, "stem": "cifar"}, (8, 8, 1)),
        ({"depth": 18, "stem": "imagenet"}, (33, 47, 3)),
        ({"depth": 50, "stem": "cifar"}, (8, 8, 3)),
        ({"depth": 50, "stem": "imagenet", "shortcut": "identity"}, (32, 32, 3)),
        ({"depth": 8, "shortcut": "identity"}, (9, 8, 3)),
        ({"depth": 8}, (None, None, 3)),
    ],
)
def test_every_kind_runs(options, shape):
    model = tiny(input_shape=shape, **options)
    batch = images(2, *(s or 20 for s in shape))
    logits = outputs(model, batch)
    assert logits.shape == (2, 10) and np.isfinite(logits).all()


def test_weights_are_a_function_of_the_seed():
    one = tiny(seed=3).get_weights()
    tiny(seed=None)  # moves Keras' global generator, which must not matter
    two = tiny(seed=3, name="other").get_weights()
    assert_same_bits(one, two)
    other = tiny(seed=4).get_weights()
    kernels = [i for i, w in enumerate(one) if w.ndim > 1]
    assert all(not np.array_equal(one[i], other[i]) for i in kernels)
    # Layers of one shape within one network differ too.
    model = tiny(seed=3)
    a, b = (model.get_layer(f"stage1_block1_{i}_conv").get_weights()[0] for i in (1, 2))
    assert a.shape == b.shape and not np.array_equal(a, b)


def test_adding_blocks_leaves_shared_layers_alone():
    small, large = tiny(depth=8), tiny(depth=14)
    for layer in small.layers:
        if isinstance(layer, keras.layers.Conv2D):
            twin = large.get_layer(layer.name)
            np.testing.assert_array_equal(layer.get_weights()[0], twin.get_weights()[0])


def test_initial_scale_is_he_normal():
    model = resnet(8, 10, (32, 32, 3), stem="cifar", width=64, seed=0)
    for name in ("stage1_block1_1_conv", "stage3_block1_2_conv"):
        kernel = model.get_layer(name).get_weights()[0]
        fan_in = np.prod(kernel.shape[:3])
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_in), rel=0.02)
        assert abs(kernel.mean()) < 3 * np.sqrt(2 / fan_in / kernel.size)
    logits = model.get_layer("head_logits").get_weights()[0]
    assert logits.std() == pytest.approx(np.sqrt(1 / 256), rel=0.06)


def test_batch_norm_policy_reaches_every_norm():
    synchronized = keras.backend.backend() == "tensorflow"  # the only one that can
    model = tiny(
        batch_norm_momentum=0.7, batch_norm_epsilon=1e-3, batch_norm_synchronized=synchronized
    )
    found = [(n.momentum, n.epsilon, n.synchronized) for n in norms(model)]
    assert found == [(0.7, 1e-3, synchronized)] * 9


@pytest.mark.parametrize(
    "policy, compute, variable, output",
    [
        ("float32", "float32", "float32", "float32"),
        ("mixed_bfloat16", "bfloat16", "float32", "float32"),
        ("mixed_float16", "float16", "float32", "float32"),
        ("float64", "float64", "float64", "float64"),
    ],
)
def test_dtype_policy(policy, compute, variable, output):
    model = tiny(dtype=policy)
    conv = model.get_layer("stage2_block1_1_conv")
    assert (conv.compute_dtype, conv.variable_dtype) == (compute, variable)
    assert all(v.dtype == variable for v in model.trainable_variables)
    logits = model(images(2, 16, 16, 3), training=True)
    # JAX has no float64 unless it is started with it.
    known = keras.backend.standardize_dtype(keras.ops.ones((), dtype=output).dtype)
    assert keras.backend.standardize_dtype(logits.dtype) == known


def test_mixed_precision_is_close_to_float32():
    batch = images(4, 16, 16, 3)
    full, mixed = (
        outputs(tiny(dtype=d), batch, training=True) for d in ("float32", "mixed_bfloat16")
    )
    assert np.abs(full - mixed).max() < 0.1 * np.abs(full).max()


@pytest.mark.parametrize("shortcut", ["projection", "identity"])
def test_saves_and_loads(tmp_path, shortcut):
    model = tiny(shortcut=shortcut)
    disturb(model)
    path = tmp_path / "model.keras"
    model.save(path)
    batch = images(2, 16, 16, 3)
    np.testing.assert_array_equal(
        outputs(keras.saving.load_model(path), batch), outputs(model, batch)
    )


@pytest.mark.parametrize(
    "options, words",
    [
        ({"depth": 19}, ["`depth`", "6n + 2", "depth=19"]),
        ({"depth": 2}, ["`depth`", "depth=2"]),
        ({"depth": True}, ["`depth`", "True"]),
        ({"depth": 20, "stem": "imagenet"}, ["`stem`", "'cifar'", "stem='imagenet'"]),
        ({"stem": "mnist"}, ["`stem`", "['imagenet', 'cifar']", "stem='mnist'"]),
        ({"shortcut": "C"}, ["`shortcut`", "'identity'", "shortcut='C'"]),
        ({"num_classes": 0}, ["`num_classes`", "num_classes=0"]),
        ({"width": 1.5}, ["`width`", "width=1.5"]),
        ({"seed": -1}, ["`seed`", "seed=-1"]),
        ({"input_shape": (32, 32)}, ["`input_shape`", "(32, 32)"]),
        ({"input_shape": 32}, ["`input_shape`", "32"]),
        ({"input_shape": (32, 32, None)}, ["`input_shape`", "None)"]),
        ({"batch_norm_momentum": 1.0}, ["`batch_norm_momentum`", "below 1", "1.0"]),
        ({"batch_norm_epsilon": 0.0}, ["`batch_norm_epsilon`", "0.0"]),
    ],
)
def test_errors_name_value_and_remedy(options, words):
    with pytest.raises(ValueError) as error:
        tiny(**options)
    for word in words:
        assert word in str(error.value)


def test_synchronised_batch_norm_needs_tensorflow(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match=r"`batch_norm_synchronized` must be False.*'jax'"):
        tiny(batch_norm_synchronized=True)
