"""Datasets by name: prepared sets on disk, and what is said when there is none."""

from __future__ import annotations

import itertools
import os
import pathlib
import socket
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from tf_lrtraj import data
from tf_lrtraj.data import sources


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (60, 32, 32, 3), np.uint8), rng.integers(0, 10, 60)


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_tfds, pictures):
    folder = tmp_path_factory.mktemp("tfds")
    images, labels = pictures
    examples = list(zip(images, labels.tolist(), strict=True))
    splits = {"train": [examples[:25], examples[25:40]], "test": [examples[40:]]}
    words = [f"class {i}" for i in range(10)]
    for name, version in [("cifar10", "3.0.2"), ("cifar10", "3.0.10"), ("svhn/cropped", "1.2.3")]:
        write_tfds(folder, name, splits, (32, 32, 3), "png", class_names=words, version=version)
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_prepared_set_is_read_in_order(root, pictures):
    d = data.load("cifar10", data_dir=root, augmentation="standard")
    images, labels = pictures
    for split, rows in [("train", slice(40)), ("test", slice(40, 60))]:
        stored = d.arrays(split, normalize=False)
        np.testing.assert_array_equal(stored[0], images[rows])
        np.testing.assert_array_equal(stored[1], labels[rows])
    assert d.num_examples == {"train": 40, "test": 20} and d.num_classes == 10
    assert d.class_names[3] == "class 3" and d.augmentation == "crop_flip"
    assert d.mean == (0.4914, 0.4822, 0.4465) and d.std == (0.2470, 0.2435, 0.2616)


def test_newest_version_unless_asked_otherwise(root):
    assert data.load("cifar10", data_dir=root).version == "3.0.10"
    assert data.load("cifar10:3.0.2", data_dir=root).version == "3.0.2"
    assert data.load("cifar10:3.*.*", data_dir=root).version == "3.0.10"
    with pytest.raises(data.DatasetNotPreparedError, match=r"cifar10:4\.0\.0"):
        data.load("cifar10:4.0.0", data_dir=root)


@pytest.mark.parametrize("name", ["svhn", "svhn/cropped", "svhn/cropped:1.2.3"])
def test_configurations(root, name):
    d = data.load(name, data_dir=root)
    assert d.version == "1.2.3"
    # Not in the table of usual constants, so measured on the training images.
    stored = d.arrays("train", normalize=False)[0] / 255
    np.testing.assert_allclose(d.mean, stored.mean(axis=(0, 1, 2)), rtol=1e-9)


def test_default_data_dir_is_that_of_tfds(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert data.load("cifar10").num_examples["train"] == 40


def test_validation_fraction_and_image_size(root):
    d = data.load("cifar10", data_dir=root, validation_fraction=0.1, image_size=16)
    assert d.num_examples == {"train": 36, "validation": 4, "test": 20}
    assert d.image_shape == (16, 16, 3)
    full = data.load("cifar10", data_dir=root).arrays("test", normalize=False)[0]
    small = d.arrays("test", normalize=False)[0]
    assert small.dtype == np.uint8
    assert np.abs(small.mean(axis=(1, 2)) - full.mean(axis=(1, 2))).max() < 4


def test_large_sets_are_streamed_and_show_the_same_images(root, monkeypatch):
    held = data.load("cifar10", data_dir=root)
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 60 * 32 * 32 * 3 - 1)
    streamed = data.load("cifar10", data_dir=root, image_size=28)
    assert type(streamed).__name__ == "StreamedDataset"
    # 28 is 87.5 % of 32, so evaluation cuts out the centre without resizing.
    images, labels, _ = next(iter(streamed.eval_batches("test", 20).as_numpy_iterator()))
    np.testing.assert_array_equal(labels, held.arrays("test")[1])
    np.testing.assert_allclose(images, held.arrays("test")[0][:, 2:30, 2:30], atol=1e-5)
    batch = next(iter(streamed.train_batches(8, 0).as_numpy_iterator()))
    assert batch[0].shape == (8, 28, 28, 3)


def test_the_limit_is_on_images_of_the_size_asked_for(root, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 60 * 32 * 32 * 3)
    for size, kind in [(None, "InMemory"), (16, "InMemory"), (32, "InMemory"), (33, "Streamed")]:
        found = data.load("cifar10", data_dir=root, image_size=size)
        assert type(found).__name__ == f"{kind}Dataset"
    with pytest.raises(ValueError, match=r"streamed.*33 pixels.*'crop_flip'"):
        data.load("cifar10", data_dir=root, image_size=33, augmentation="standard")
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 1797 * 16 * 16 - 1)
    with pytest.raises(ValueError, match=r"`image_size`.*1797 images.*image_size=16"):
        data.load("digits", image_size=16)
    assert data.load("digits", image_size=15).image_shape == (15, 15, 1)


def test_resizing_holds_a_piece_of_floats_and_no_more(monkeypatch):
    monkeypatch.setattr(sources, "_PIECE", 2**15, raising=False)
    images = np.random.default_rng(0).integers(0, 17, (300, 8, 8, 1), np.uint8)
    sources._resized(images[:1], 64, 16.0)  # imports TensorFlow
    tracemalloc.start()
    try:
        found = sources._resized(images, 64, 16.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.dtype == np.uint8 and found.max() == 16
    assert peak < 1.5 * found.nbytes  # as float32 they would be four times as large
    for index in (0, 7, 8, 299):  # pieces are of 8 images
        alone = sources._resized(images[index : index + 1], 64, 16.0)
        np.testing.assert_array_equal(found[index : index + 1], alone)


def test_digits_through_a_pipeline():
    d = data.load("digits", augmentation="standard", validation_fraction=0.1)
    assert d.num_examples == {"train": 1167, "validation": 130, "test": 500}
    assert d.augmentation == "crop"
    images, labels = next(itertools.islice(d.train_batches(32, 0).as_numpy_iterator(), 3, 4))
    assert images.shape == (32, 8, 8, 1) and set(labels) <= set(range(10))
    bigger = data.load("digits", image_size=16)
    assert bigger.image_shape == (16, 16, 1)
    assert bigger.arrays("test", normalize=False)[0].max() == 16


@pytest.mark.parametrize(
    "name, near",
    [("cifra10", "'cifar10'"), ("Imagenet2012", "'imagenet2012'"), ("digit", "'digits'")],
)
def test_unknown_names_get_suggestions(tmp_path, name, near):
    for download in (False, True):
        with pytest.raises(ValueError) as error:
            data.load(name, data_dir=tmp_path, download=download)
        assert not isinstance(error.value, data.DatasetNotPreparedError)
        assert near in str(error.value) and repr(name) in str(error.value)


def test_not_prepared_says_how(tmp_path):
    with pytest.raises(data.DatasetNotPreparedError) as error:
        data.load("cifar10", data_dir=tmp_path)
    command = f"python tools/prepare_data.py --dataset=cifar10 --data_dir={tmp_path}"
    assert command in str(error.value) and "download=True" in str(error.value)
    assert isinstance(error.value, ValueError) and isinstance(error.value, FileNotFoundError)


def test_failed_download_is_explained(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds, "builder", offline)
    with pytest.raises(RuntimeError, match=r"(?s)'cifar10'.*no route to host.*network"):
        data.load("cifar10", data_dir=tmp_path, download=True)


def test_missing_package_is_named(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def missing(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'scipy.io'", name="scipy")

    monkeypatch.setattr(tfds, "builder", missing)
    with pytest.raises(RuntimeError, match="pip install scipy"):
        data.load("svhn_cropped", data_dir=tmp_path, download=True)


def test_prepare_finds_what_is_there(root):
    assert data.prepare("cifar10", root) == str(root / "cifar10" / "3.0.10")


def test_not_an_image_classification_set(tmp_path):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder = tmp_path / "words" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    template = tfds.core.ShardedFileTemplate(
        dataset_name="words", data_dir=folder, split="train", filetype_suffix="tfrecord"
    )
    with tf.io.TFRecordWriter(str(folder / "words-train.tfrecord-00000-of-00001")) as writer:
        writer.write(features.serialize_example({"text": b"hello"}))
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=[1], num_bytes=0, filename_template=template
    )
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[split])
    with pytest.raises(ValueError, match=r"image-classification.*'text'"):
        data.load("words", data_dir=tmp_path)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"augmentation": "randaugment"}, ["`augmentation`", "standard", "'randaugment'"]),
        ({"validation_fraction": -0.1}, ["`validation_fraction`", "-0.1"]),
        ({"validation_fraction": "0.1"}, ["`validation_fraction`", "number", "'0.1'"]),
        ({"image_size": 0}, ["`image_size`", "image_size=0"]),
        ({"name": ""}, ["`name`", "name=''"]),
    ],
)
def test_errors_come_before_reading(options, words):
    with pytest.raises(ValueError) as error:
        data.load(**{"name": "digits", **options})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "flag, code, words",
    [("cifra10", 1, "Did you mean 'cifar10'"), ("cifar10", 0, "cifar10 is ready in")],
)
def test_the_tool(root, flag, code, words):
    repository = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "tools/prepare_data.py", f"--dataset={flag}", f"--data_dir={root}"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert words in done.stdout + done.stderr
