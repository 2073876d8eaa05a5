"""A set of one's own, stored as docs/data.md says, opened by name."""

import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tf_lrtraj import data
from tf_lrtraj.runs.components import load_dataset
from tf_lrtraj.runs.run_config import ConfigError, default_config, validate

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (9, 6, 5, 3), np.uint8), RNG.integers(0, 3, 9)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder that holds the page's set and others."""
    folder = tmp_path_factory.mktemp("own")
    section = PAGE.read_text(encoding="utf-8").partition("## Your own images")[2]
    snippet = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    names = {
        "x_train": IMAGES[:6],
        "y_train": LABELS[:6],
        "x_test": IMAGES[6:],
        "y_test": LABELS[6:],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(snippet, names)
    kinds = {
        "image": tfds.features.Image(shape=(6, 5, 3)),
        "label": tfds.features.ClassLabel(num_classes=3),
        "number": tfds.features.Scalar(np.int64),
    }
    for name, features, splits in (
        ("val_split", {"image": "image", "label": "label"}, ("train", "val")),
        (
            "other_names",
            {"picture": "image", "kind": "label", "weight": "number"},
            ("train", "test"),
        ),
        ("two_images", {"left": "image", "right": "image", "label": "label"}, ("train", "test")),
        ("plain_labels", {"image": "image", "label": "number"}, ("train", "test")),
        ("no_train", {"image": "image", "label": "label"}, ("test",)),
    ):
        values = {key: IMAGES if kind == "image" else LABELS for key, kind in features.items()}
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="2.0.0",
            data_dir=folder / "my_data",
            features=tfds.features.FeaturesDict({k: kinds[v] for k, v in features.items()}),
            split_datasets={s: tf.data.Dataset.from_tensor_slices(values) for s in splits},
        )
    return folder / "my_data"


def rows(images):
    """Images in an order of their own: tensorflow-datasets shuffles what it stores."""
    return sorted(image.tobytes() for image in images)


def test_the_pages_set_holds_what_was_given(root):
    found = data.load("my_images", data_dir=root)
    assert found.num_examples == {"train": 6, "test": 3} and found.eval_split == "test"
    assert list(found.class_names) == ["cat", "dog", "fish"]
    for split, part in (("train", slice(6)), ("test", slice(6, 9))):
        images, labels = found.arrays(split, normalize=False)
        assert rows(images) == rows(IMAGES[part])
        pairs = {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
        assert [pairs[image.tobytes()] for image in images] == labels.tolist()


@pytest.mark.parametrize(
    ("name", "splits"),
    [("val_split", {"train": 9, "val": 9}), ("other_names", {"train": 9, "test": 9})],
)
def test_own_names_of_splits_and_features(root, name, splits):
    found = data.load(name, data_dir=root)
    assert found.num_examples == splits and found.num_classes == 3
    assert rows(found.arrays("train", normalize=False)[0]) == rows(IMAGES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two_images", "one tfds.features.Image and one"),
        ("plain_labels", "one tfds.features.ClassLabel"),
        ("no_train", "a dataset with the split 'train'"),
        ("my_imags", r"Did you mean 'my_images'.* or of your own in '.*my_data'"),
    ],
)
def test_what_cannot_be_used_is_said(root, name, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, data_dir=root)


def test_a_configuration_names_it(root):
    config = default_config()
    config.data.name, config.data.dir, config.data.batch_size = "val_split", str(root), 4
    with pytest.raises(ConfigError, match=r"one of the splits \['train', 'val'\].*None"):
        load_dataset(validate(config))
    config.data.eval_split = "val"
    dataset = load_dataset(validate(config))
    images, labels, present = next(iter(dataset.eval_batches("val", 10)))
    assert images.shape == (10, 6, 5, 3) and float(np.sum(present)) == 9 and len(labels) == 10
