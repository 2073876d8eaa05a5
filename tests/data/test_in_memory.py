"""Datasets in memory: batches are functions of (seed, step), every image comes once."""

from __future__ import annotations

import numpy as np
import pytest
from data_helpers import assert_parts, assert_same, take

from tf_lrtraj import data


def dataset(count=50, test=23, shape=(8, 8, 3), **options):
    """Images that are all different, so that each can be told from the others."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count + test, *shape), np.uint8)
    labels = np.arange(count + test) % 7
    if test:
        options.update(test_images=images[count:], test_labels=labels[count:])
    return data.from_arrays("fake", images[:count], labels[:count], **options)


def identify(images, reference):
    """Index of each image among the reference ones."""
    known = {image.tobytes(): i for i, image in enumerate(reference)}
    assert len(known) == len(reference)
    return [known[image.tobytes()] for image in images]


def plain(**options):
    """Without normalisation, so that pixels come out exactly as they went in."""
    return dataset(mean=[0, 0, 0], std=[1, 1, 1], max_value=1.0, **options)


AUGMENTATIONS = ("none", "crop", "crop_flip", "random_resized_crop")


class TestTrainBatches:
    def test_shapes_and_types(self):
        images, labels = dataset().train_batches(4, seed=0).element_spec
        assert images.shape == (4, 8, 8, 3) and images.dtype.name == "float32"
        assert labels.shape == (4,) and labels.dtype.name == "int32"

    def test_every_image_once_per_epoch_and_labels_stay_with_images(self):
        d = plain()
        batches = take(d.train_batches(8, seed=3), 25)  # 4 epochs of 50; batches straddle
        reference, labels = d.arrays("train")
        index = np.array(identify(np.concatenate([b[0] for b in batches]), reference))
        np.testing.assert_array_equal(np.concatenate([b[1] for b in batches]), labels[index])
        epochs = index.reshape(4, 50)
        for epoch in epochs:
            np.testing.assert_array_equal(np.sort(epoch), np.arange(50))
        assert len({tuple(epoch) for epoch in epochs}) == 4

    def test_batch_as_large_as_the_data(self):
        d = plain()
        for images, _ in take(d.train_batches(50, seed=0), 3):
            assert sorted(identify(images, d.arrays("train")[0])) == list(range(50))

    @pytest.mark.parametrize("augmentation", AUGMENTATIONS)
    def test_batch_is_a_function_of_seed_and_step(self, augmentation):
        d = dataset(augmentation=augmentation)
        whole = take(d.train_batches(8, seed=5), 14)
        assert_same(whole, take(dataset(augmentation=augmentation).train_batches(8, seed=5), 14))
        for start in (1, 11):
            assert_same(whole[start:], take(d.train_batches(8, 5, start), 14 - start))
        other = take(d.train_batches(8, seed=6), 14)
        assert not any(np.array_equal(a[0], b[0]) for a, b in zip(whole, other, strict=True))

    @pytest.mark.parametrize("augmentation", ["crop_flip", "random_resized_crop"])
    @pytest.mark.parametrize("num_shards, groups", [(2, [(0, 1)]), (4, [(0, 2), (1,), (3,)])])
    def test_parts_make_up_the_global_batch(self, augmentation, num_shards, groups):
        d = dataset(augmentation=augmentation)
        steps, start = 9, 4
        whole = take(d.train_batches(8, 1, start), steps)
        for ids in groups:
            made = take(d.train_batches(8, 1, start, num_shards, ids), steps * len(ids))
            assert_parts(made, whole, 8 // num_shards, ids)

    def test_order_does_not_depend_on_the_batch_size(self):
        d = dataset(augmentation="crop_flip")
        one = np.concatenate([b[0] for b in take(d.train_batches(5, 2), 24)])
        two = np.concatenate([b[0] for b in take(d.train_batches(8, 2), 15)])
        np.testing.assert_array_equal(one, two)

    def test_far_away_steps(self):
        d = plain()
        ((images, _),) = take(d.train_batches(50, 2**63 - 1, start_step=2**40), 1)
        assert sorted(identify(images, d.arrays("train")[0])) == list(range(50))

    def test_normalisation(self):
        d = dataset(mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 1.0])
        images, _ = take(d.train_batches(50, 0), 1)[0]
        stored, _ = d.arrays("train", normalize=False)
        expected = (stored / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 1.0]
        order = np.argsort(images[:, 0, 0, 0] * 1e3 + images[:, 0, 1, 0])
        expected_order = np.argsort(expected[:, 0, 0, 0] * 1e3 + expected[:, 0, 1, 0])
        np.testing.assert_allclose(images[order], expected[expected_order], atol=1e-5)

    @pytest.mark.parametrize(
        "arguments, words",
        [
            ((51, 0), ["`batch_size`", "at most 50", "'fake'", "batch_size=51"]),
            ((-4, 0), ["`batch_size`", "batch_size=-4"]),
            ((8.0, 0), ["`batch_size`", "8.0"]),
            ((8, -1), ["`seed`", "seed=-1"]),
            ((8, 2**63), ["`seed`", "below 9223372036854775808"]),
            ((8, 0, -1), ["`start_step`", "-1"]),
            ((8, 0, 0, 3), ["divisible", "`num_shards`, 3", "batch_size=8"]),
            ((8, 0, 0, 0), ["`num_shards`", "0"]),
            ((8, 0, 0, 2, (1, 0)), ["`shard_ids`", "(1, 0)", "0..1"]),
            ((8, 0, 0, 2, (2,)), ["`shard_ids`", "(2,)"]),
            ((8, 0, 0, 2, ()), ["`shard_ids`", "()"]),
        ],
    )
    def test_errors(self, arguments, words):
        with pytest.raises(ValueError) as error:
            dataset().train_batches(*arguments)
        for word in words:
            assert word in str(error.value)


class TestEvalBatches:
    @pytest.mark.parametrize("split, count", [("test", 23), ("train", 50)])
    @pytest.mark.parametrize("batch_size", [1, 8, 23, 64])
    def test_every_image_once(self, split, count, batch_size):
        d = plain(augmentation="crop_flip")
        batches = list(d.eval_batches(split, batch_size).as_numpy_iterator())
        assert len(batches) == -(-count // batch_size)
        assert all(b[0].shape == (batch_size, 8, 8, 3) for b in batches)
        images, labels, weights = (np.concatenate(x) for x in zip(*batches, strict=True))
        assert weights.dtype == np.float32 and set(weights) <= {0.0, 1.0}
        expected = d.arrays(split)
        np.testing.assert_array_equal(images[weights > 0], expected[0])
        np.testing.assert_array_equal(labels[weights > 0], expected[1])

    @pytest.mark.parametrize("groups", [[(0, 1, 2, 3)], [(0,), (1, 3), (2,)]])
    def test_parts_have_equally_many_batches_and_make_up_the_whole(self, groups):
        d = dataset()
        whole = list(d.eval_batches("test", 8).as_numpy_iterator())
        for ids in groups:
            parts = list(d.eval_batches("test", 8, 4, ids).as_numpy_iterator())
            assert len(parts) == 3 * len(ids)
            assert_parts(parts, whole, 2, ids)

    def test_limit_takes_a_fixed_mixed_subset(self):
        d = plain()
        small, large = (
            np.concatenate(
                [
                    identify(i[w > 0], d.arrays("train")[0])
                    for i, _, w in d.eval_batches("train", 4, limit=n).as_numpy_iterator()
                ]
            )
            for n in (10, 30)
        )
        assert len(set(small)) == 10 and len(set(large)) == 30
        np.testing.assert_array_equal(small, large[:10])
        assert sorted(small) != list(range(10))

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (("tset", 8), ["`split`", "['test', 'train']", "'tset'"]),
            (("test", 0), ["`batch_size`", "0"]),
            (("test", 8, 1, (0,), 24), ["`limit`", "at most 23", "limit=24"]),
            (("test", 8, 1, (0,), 0), ["`limit`", "limit=0"]),
            (("test", 9, 2), ["divisible", "9"]),
        ],
    )
    def test_errors(self, arguments, words):
        with pytest.raises(ValueError) as error:
            dataset().eval_batches(*arguments)
        for word in words:
            assert word in str(error.value)


class TestFromArrays:
    def test_default_normalisation_is_the_moments_of_the_training_images(self):
        d = dataset(count=40)
        stored, _ = d.arrays("train", normalize=False)
        np.testing.assert_allclose(d.mean, (stored / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(d.std, (stored / 255).std(axis=(0, 1, 2)), rtol=1e-12)

    def test_floating_images_are_left_alone(self):
        images = np.random.default_rng(0).normal(size=(9, 4, 4)).astype(np.float32)
        d = data.from_arrays("floats", images, np.arange(9))
        assert d.image_shape == (4, 4, 1)
        np.testing.assert_array_equal(d.arrays("train")[0][..., 0], images)

    def test_validation_is_set_apart(self):
        whole = plain(test=0)
        d = plain(validation_fraction=0.2)
        assert d.num_examples == {"train": 40, "validation": 10, "test": 23}
        parts = [
            identify(d.arrays(s)[0], whole.arrays("train")[0]) for s in ("train", "validation")
        ]
        assert sorted(parts[0] + parts[1]) == list(range(50))
        again = plain(validation_fraction=0.2).arrays("validation")[0]
        np.testing.assert_array_equal(again, d.arrays("validation")[0])
        other = plain(validation_fraction=0.2, seed=1).arrays("validation")[0]
        assert not np.array_equal(other, again)

    def test_eval_split(self):
        assert dataset().eval_split == "test"
        assert dataset(test=0, validation_fraction=0.5).eval_split == "validation"
        assert dataset(test=0).eval_split is None

    def test_images_are_held_once(self):
        d = dataset()
        take(d.train_batches(4, 0), 1)
        view, _ = d.arrays("train", normalize=False)
        tensor, _ = d._as_tensors("train")
        assert np.shares_memory(view, np.asarray(memoryview(tensor)))
        assert not view.flags.writeable

    def test_describe_is_json(self):
        import json

        account = dataset(version="1.0").describe()
        assert json.loads(json.dumps(account)) == account
        assert account["num_examples"] == {"train": 50, "test": 23}

    def test_steps_per_epoch(self):
        assert dataset().steps_per_epoch(8) == 6.25

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"augmentation": "mixdown"}, ["`augmentation`", "crop_flip+mixup", "'mixdown'"]),
            ({"validation_fraction": 1.0}, ["`validation_fraction`", "1.0"]),
            ({"validation_fraction": 0.001}, ["`validation_fraction`", "0.001", "50 images"]),
            ({"validation_fraction": "0.1"}, ["`validation_fraction`", "number", "'0.1'"]),
            ({"mean": [0.5]}, ["`mean`", "vector of shape [3]", "[0.5]"]),
            ({"mean": [0, np.inf, 0]}, ["`mean`", "finite", "inf"]),
            ({"mean": 0.5}, ["`mean`", "mean=0.5"]),
            ({"std": [1, 0, 1]}, ["`std`", "positive"]),
            ({"std": [1, np.nan, 1]}, ["`std`", "finite", "nan"]),
            ({"max_value": 0}, ["`max_value`", "above 0", "max_value=0"]),
            ({"num_classes": 6}, ["`labels`", "0..5", "6"]),
            ({"num_classes": 10.5}, ["`num_classes`", "integer", "10.5"]),
            (
                {"num_classes": 10, "class_names": list("abcdefg")},
                ["`class_names`", "each of the 10"],
            ),
            ({"class_names": "abcdefg"}, ["`class_names`", "list of names", "'abcdefg'"]),
            ({"test_labels": None}, ["`test_labels`", "together"]),
        ],
    )
    def test_errors(self, options, words):
        with pytest.raises(ValueError) as error:
            dataset(**options) if "test_labels" not in options else data.from_arrays(
                "x", np.zeros((2, 4, 4)), [0, 1], test_images=np.zeros((2, 4, 4))
            )
        for word in words:
            assert word in str(error.value)

    @pytest.mark.parametrize(
        "images, labels, words",
        [
            (np.zeros((3, 4)), [0, 1, 2], ["`images`", "[n, height, width]"]),
            (np.zeros((3, 4, 4), np.int64), [0, 1, 2], ["`images`", "int64"]),
            (np.zeros((3, 4, 4)), [0, 1], ["`labels`", "3 images"]),
            (np.zeros((3, 4, 4)), [0.0, 1.0, 2.0], ["`labels`", "must be integers"]),
            (np.zeros((3, 4, 4)), [0, 1, -1], ["`labels`", "-1"]),
            (np.zeros((3, 4, 4)), [0, 1, 2**32 + 5], ["`labels`", "0..2147483647", "4294967301"]),
        ],
    )
    def test_bad_arrays(self, images, labels, words):
        with pytest.raises(ValueError) as error:
            data.from_arrays("bad", images, np.array(labels))
        for word in words:
            assert word in str(error.value)
