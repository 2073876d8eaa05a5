"""Streamed datasets, from real JPEG files in the layout of tensorflow-datasets.

Their order, and who reads what, is tested in test_order.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from data_helpers import assert_same, take

from tf_lrtraj import data

# 41 files of unequal sizes; every image has a label of its own.
SIZES = [3 + i % 4 for i in range(38)] + [1, 9, 5]
TRAIN, VALIDATION = sum(SIZES), 21


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_tfds, photographs):
    folder = tmp_path_factory.mktemp("tfds")
    encoded = photographs(TRAIN + VALIDATION)
    numbered = iter([(image, label) for label, image in enumerate(encoded)])
    train = [list(itertools.islice(numbered, size)) for size in SIZES]
    write_tfds(
        folder,
        "imagenet2012",
        {"train": train, "validation": [list(numbered)], "test": [[(encoded[0], 0)]]},
        image_shape=(None, None, 3),
        class_names=TRAIN + VALIDATION,
    )
    return folder


@pytest.fixture
def load(root):
    def opened(**options):
        arguments = {"image_size": 16, "shuffle_window": 20, **options}
        return data.load("imagenet2012", data_dir=root, **arguments)

    return opened


def test_fields(load):
    d = load(augmentation="standard")
    assert d.augmentation == "random_resized_crop"
    # The split "test" of ImageNet has no labels and is left out.
    assert d.num_examples == {"train": TRAIN, "validation": VALIDATION}
    assert d.eval_split == "validation" and d.image_shape == (16, 16, 3)
    assert d.mean == (0.485, 0.456, 0.406) and d.std == (0.229, 0.224, 0.225)
    assert d.version == "1.0.0" and d.num_classes == TRAIN + VALIDATION
    images, labels = d.train_batches(4, 0).element_spec
    assert images.shape == (4, 16, 16, 3) and images.dtype.name == "float32"
    assert labels.shape == (4,) and labels.dtype.name == "int32"


def test_labels_stay_with_images(load):
    """Without augmentation the training images are those of evaluation."""
    d = load()
    expected = {}
    for images, labels, weights in d.eval_batches("train", 16).as_numpy_iterator():
        expected.update(zip(labels[weights > 0].tolist(), images[weights > 0], strict=True))
    assert len(expected) == TRAIN
    for images, labels in take(d.train_batches(10, seed=0), 20):
        for image, label in zip(images, labels, strict=True):
            np.testing.assert_array_equal(image, expected[label])


@pytest.mark.long
def test_order_is_mixed_beyond_files_and_blocks(load):
    """Labels count through the files, so the order read back must not follow them."""
    d = load(shuffle_window=64)
    first = np.array(
        [np.concatenate([y for _, y in take(d.train_batches(17, s), 4)]) for s in range(8)]
    )
    # The mean label of the first 68 images varies as that of about four windows of files.
    assert abs(first.mean() - TRAIN / 2) < 0.1 * TRAIN
    neighbours = np.abs(np.diff(first, axis=1))
    assert np.median(neighbours) > TRAIN / 8 and (neighbours == 1).mean() < 0.1


def test_batch_is_a_function_of_seed_and_step(load):
    steps = 45  # more than two epochs
    d = load(augmentation="random_resized_crop")
    whole = take(d.train_batches(9, seed=4), steps)
    d = load(augmentation="random_resized_crop")
    # Resumed in the middle of an epoch, the run goes on through the next ones.
    assert_same(whole[13:], take(d.train_batches(9, 4, 13), steps - 13))
    other = take(d.train_batches(9, seed=5), 3)
    assert not any(np.array_equal(a[1], b[1]) for a, b in zip(whole, other, strict=False))


@pytest.mark.parametrize("split, size", [("validation", VALIDATION), ("train", TRAIN)])
@pytest.mark.parametrize("batch_size", [64])
def test_evaluation_shows_every_image_once(load, split, size, batch_size):
    d = load(augmentation="random_resized_crop")
    batches = list(d.eval_batches(split, batch_size).as_numpy_iterator())
    assert len(batches) == -(-size // batch_size)
    assert all(images.shape == (batch_size, 16, 16, 3) for images, _, _ in batches)
    _, labels, weights = (np.concatenate(x) for x in zip(*batches, strict=True))
    first = 0 if split == "train" else TRAIN
    np.testing.assert_array_equal(np.sort(labels[weights > 0]), first + np.arange(size))
    assert weights.sum() == size and weights.dtype == np.float32


def test_evaluation_crops_the_centre(load, root):
    import tensorflow as tf

    d = load()
    (images, labels, _), *_ = d.eval_batches("validation", VALIDATION).as_numpy_iterator()
    path = next((root / "imagenet2012" / "1.0.0").glob("*-validation.*"))
    records = [
        tf.train.Example.FromString(r).features.feature
        for r in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    ]
    kinds = set()
    for image, label, record in zip(images, labels, records, strict=True):
        assert record["label"].int64_list.value[0] == label
        encoded = record["image"].bytes_list.value[0]
        kinds.add(encoded[:4])
        pixels = tf.io.decode_image(encoded, channels=3).numpy()
        height, width, _ = pixels.shape
        side = int(np.rint(0.875 * min(height, width)))
        top, left = (height - side) // 2, (width - side) // 2
        square = pixels[top : top + side, left : left + side].astype(np.float64)
        # Half-pixel centres, bilinear, written out.
        x = np.clip((np.arange(16) + 0.5) * side / 16 - 0.5, 0, side - 1)
        low = np.floor(x).astype(int)
        high, share = np.minimum(low + 1, side - 1), x - low
        rows = (1 - share)[:, None, None] * square[low] + share[:, None, None] * square[high]
        expected = (1 - share)[:, None] * rows[:, low] + share[:, None] * rows[:, high]
        expected = (expected / 255 - d.mean) / d.std
        # Decoding a box alone rounds the colours at its edge otherwise (chroma upsampling).
        np.testing.assert_allclose(image, expected, atol=0.05)
        assert np.abs(image - expected).mean() < 1e-3
    assert len(kinds) == 2  # JPEG and PNG


def test_random_crops_come_from_their_images(load):
    """Every photograph has a colour of its own, which its crops keep."""
    plain, cropped = load(), load(augmentation="random_resized_crop")
    differ = 0
    for one, two in zip(
        take(plain.train_batches(10, 0), 10), take(cropped.train_batches(10, 0), 10), strict=True
    ):
        np.testing.assert_array_equal(one[1], two[1])
        distance = np.abs(one[0].mean(axis=(1, 2)) - two[0].mean(axis=(1, 2))).max(axis=1)
        assert distance.max() < 0.2
        differ += sum(not np.array_equal(a, b) for a, b in zip(one[0], two[0], strict=True))
    assert differ >= 98


def test_validation_cut_off_the_training_images(load):
    with pytest.raises(ValueError, match="has a split 'validation'"):
        load(validation_fraction=0.1)


def test_validation_fraction_of_a_set_without_one(tmp_path, write_tfds, photographs):
    images = [(image, label) for label, image in enumerate(photographs(20))]
    write_tfds(
        tmp_path,
        "my_photographs",
        {"train": [images[:7], images[7:8], images[8:]]},
        image_shape=(None, None, 3),
        class_names=20,
    )
    d = data.load("my_photographs", data_dir=tmp_path, image_size=8, validation_fraction=0.6)
    assert d.num_examples == {"train": 8, "validation": 12}
    held_out = np.concatenate([b[1] for b in d.eval_batches("validation", 4).as_numpy_iterator()])
    train = np.concatenate([b[1] for b in take(d.train_batches(4, 0), 2)])
    assert sorted(train) == list(range(8)) and sorted(held_out) == list(range(8, 20))
    deeper = data.load("my_photographs", data_dir=tmp_path, image_size=8, validation_fraction=0.25)
    held_out = [b[1] for b in deeper.eval_batches("validation", 5).as_numpy_iterator()]
    assert sorted(np.concatenate(held_out)) == list(range(15, 20))
    assert sorted(np.concatenate([b[1] for b in take(deeper.train_batches(5, 0), 3)])) == list(
        range(15)
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda load: load().arrays("train"), ["'imagenet2012'", "streamed", "eval_batches"]),
        (lambda load: load(augmentation="crop_flip"), ["`augmentation`", "random_resized_crop"]),
        (lambda load: load(shuffle_window=0), ["`shuffle_window`", "shuffle_window=0"]),
    ],
)
def test_errors(load, call, words):
    with pytest.raises(ValueError) as error:
        call(load)
    for word in words:
        assert word in str(error.value)
