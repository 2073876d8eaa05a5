"""What a user's function returns: every form gives the same batches, in the package's order."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_lrtraj import data
from tf_lrtraj.data import augmentations
from tf_lrtraj.data.own_data import from_splits_of

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)).astype(np.float32), np.arange(12, dtype=np.int32)
TEST = (X[:5], Y[:5])


class Source:
    """Examples by their index, as a Grain source gives them."""

    def __init__(self, x=X, y=Y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index].astype(np.float64), int(self.y[index])


class Batches(keras.utils.PyDataset):
    def __init__(self, size, count=12):
        super().__init__()
        self.size, self.count = size, count

    def __len__(self):
        return -(-self.count // self.size)

    def __getitem__(self, item):
        rows = slice(item * self.size, min((item + 1) * self.size, self.count))
        return X[rows], Y[rows]


def by_step(seed, step):
    def batch(number):
        rows = (tf.range(4, dtype=tf.int64) + 4 * number + seed) % 12
        return tf.gather(X, rows), tf.gather(Y, rows)

    return tf.data.Dataset.counter(step).map(batch)


def batches(train, count=6, batch_size=4, seed=3, start=0, shards=1, ids=None, **more):
    dataset = from_splits_of("mine", {"train": train, "test": TEST, **more})
    found = dataset.train_batches(batch_size, seed, start, shards, ids)
    return [(x.numpy(), y.numpy()) for x, y in found.take(count)]


def test_a_source_has_the_batches_of_its_arrays_and_each_example_once_per_epoch():
    arrays = batches((X, Y))
    for (x, y), (x2, y2) in zip(batches(Source()), arrays, strict=True):
        assert x2.dtype == np.float32 and y2.dtype == np.int32
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)
        np.testing.assert_array_equal(x, X[y])
    labels = np.concatenate([y for _, y in arrays]).reshape(2, 12)
    assert [sorted(epoch) for epoch in labels.tolist()] == [list(range(12))] * 2
    assert labels[0].tolist() != labels[1].tolist()


FORMS = {
    "arrays": ((X, Y), {}),
    "source": (Source(), {}),
    "PyDataset": (Batches(2), {}),
    "by step": (by_step, {"num_examples": 12}),
}


@pytest.mark.parametrize(("train", "more"), FORMS.values(), ids=FORMS)
def test_batches_do_not_depend_on_the_start_or_the_parts(train, more):
    whole = batches(train, **more)
    for (x, y), (x2, y2) in zip(batches(train, 4, start=2, **more), whole[2:], strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)
    one, two = (batches(train, shards=2, ids=(i,), **more) for i in range(2))
    for a, b, (x, y) in zip(one, two, whole, strict=True):
        np.testing.assert_array_equal(np.concatenate([a[0], b[0]]), x)
        np.testing.assert_array_equal(np.concatenate([a[1], b[1]]), y)


def test_items_of_a_pydataset_stay_together_and_a_short_one_is_evaluated_only():
    dataset = from_splits_of(
        "mine", {"train": Batches(3, 11), "test": Batches(3, 11), "num_classes": 12}
    )
    assert dataset.num_examples == {"train": 9, "test": 11}
    labels = np.concatenate([y for _, y in dataset.train_batches(3, 0).take(3)])
    assert sorted(labels.tolist()) == list(range(9))
    assert np.all(np.diff(labels.reshape(3, 3)) == 1)
    found = [(y[w > 0], w) for _, y, w in dataset.eval_batches("test", 4).as_numpy_iterator()]
    assert np.concatenate([y for y, _ in found]).tolist() == list(range(11))
    assert found[-1][1].tolist() == [1, 1, 1, 0]
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of 1 × 3"):
        dataset.train_batches(4, 0)


def test_inputs_may_be_nests_and_splits_finite_datasets():
    x = {"tokens": np.arange(24).reshape(12, 2), "length": np.ones(12)}
    test = tf.data.Dataset.from_tensor_slices((x, Y)).batch(5)
    dataset = from_splits_of("mine", {"train": (x, Y), "test": test})
    assert dataset.input_shape == {"tokens": (2,), "length": ()} and dataset.num_classes == 12
    inputs, y = next(iter(dataset.train_batches(4, 0)))
    assert inputs["tokens"].dtype == tf.int32 and inputs["length"].dtype == tf.float32
    np.testing.assert_array_equal(inputs["tokens"].numpy()[:, 0], 2 * y.numpy())
    assert sum(float(tf.reduce_sum(w)) for *_, w in dataset.eval_batches("test", 5)) == 12


class Failing(Source):
    def __getitem__(self, index):
        if index == 7:
            raise OSError("the file of example 7 is gone")
        return super().__getitem__(index)


def test_an_error_of_the_source_is_named():
    dataset = from_splits_of("mine", {"train": Failing(), "test": TEST})
    with (
        pytest.raises(data.DataError, match="reading 'train': OSError: the file of example 7"),
        dataset.named_faults(),
    ):
        list(dataset.train_batches(4, 0).take(3))


class Plain:
    """Stands for a data set, which would start TensorFlow before other tests split the CPU."""


WRONG = {
    "no splits": (3, "the data` must be \\(\\(x_train, y_train\\)"),
    "no train": ({"test": TEST}, "split 'train'"),
    "lengths": ({"train": (X, Y[:5])}, "a row for each example.*\\[12, 3\\], \\[5\\]"),
    "shapes": ({"train": (X, Y), "test": (X[:, :2], Y)}, "data of 'test'` must be float32 \\[3\\]"),
    "text": ({"train": (X, np.array(["a"] * 12))}, "arrays of numbers"),
    "empty": ({"train": (X[:0], Y[:0])}, "a row for each example"),
    "iterator": ({"train": Plain, "test": TEST}, "could not go on with a plain tf.data.Dataset"),
    "no count": ({"train": by_step, "test": TEST}, "`num_examples` must be given"),
    "count": ({"train": (X, Y), "num_examples": 5}, "`num_examples` must be given .*only then"),
    "no batches": ({"train": lambda seed, step: 3, "num_examples": 5}, "returns a tf.data.Dataset"),
    "an item": ({"train": [1, 2, 3]}, "an item must be \\(x, y\\). Received: int"),
}


@pytest.mark.parametrize(("found", "message"), WRONG.values(), ids=WRONG)
def test_other_returns_are_refused_in_one_line(found, message):
    if isinstance(found, dict) and found.get("train") is Plain:
        found = {**found, "train": tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)}
    with pytest.raises(ValueError, match=message) as error:
        from_splits_of("mine", found)
    assert "\n" not in str(error.value)


def test_batches_of_another_size_are_refused():
    with pytest.raises(ValueError, match="batches of 6 examples"):
        batches(by_step, batch_size=6, num_examples=12)


# --- MixUp and CutMix -----------------------------------------------------------------------

IMAGES = RNG.integers(0, 256, (12, 8, 6, 1), np.uint8)


@pytest.mark.parametrize("name", ["mixup", "crop+cutmix"])
def test_mixed_batches_are_a_function_of_seed_and_step(name):
    dataset = data.from_arrays("images", IMAGES, Y, augmentation=name)
    whole = [b for b in dataset.train_batches(6, 1).take(4).as_numpy_iterator()]
    parts = dataset.train_batches(6, 1, 2, num_shards=3, shard_ids=(1, 2))
    for (x, y), (x2, y2) in zip(
        parts.as_numpy_iterator(),
        [(x[2 * i : 2 * i + 2], y[2 * i : 2 * i + 2]) for x, y in whole[2:] for i in (1, 2)],
        strict=False,
    ):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)
    labels = np.concatenate([y for _, y in whole])
    np.testing.assert_allclose(labels.sum(-1), 1.0, rtol=1e-6)
    assert ((labels > 1e-3).sum(-1) == 2).any()
    evaluated = next(iter(dataset.eval_batches("train", 6)))
    assert evaluated[1].dtype == tf.int32


def test_shares_have_the_distributions_of_the_papers():
    """The share s is Beta(0.2, 0.2), variance 1/(4·1.4), in MixUp; labels follow the pixels."""
    count = 4096
    images = np.broadcast_to(np.eye(2, dtype=np.float32)[0], (count, 4, 4, 2)).copy()
    images[count // 2 :] = [0.0, 1.0]
    labels = images[:, 0, 0]
    for kind in augmentations.MIXINGS:
        mixed, shares = augmentations.mix(
            tf.constant(images), tf.constant(labels), kind, 0, tf.constant(5, tf.int64)
        )
        # Of two kinds of constant images, the mean pixel is the label.
        np.testing.assert_allclose(mixed.numpy().mean((1, 2)), shares, atol=1e-6)
    _, shares = augmentations.mix(
        tf.constant(images), tf.eye(count), "mixup", 0, tf.constant(1, tf.int64)
    )
    kept = np.diag(shares.numpy())
    assert abs(kept.mean() - 0.5) < 0.03 and abs(kept.var() - 1 / 5.6) < 0.01


@pytest.mark.parametrize("kind", ["MixUp", "CutMix"])
def test_the_layers_of_keras_cv_mix_the_same_way(kind):
    """Pixels and labels of one set of draws, and the mean share of labels."""
    layers = pytest.importorskip("keras_cv.layers")
    images = tf.constant(RNG.normal(size=(512, 8, 8, 1)), tf.float32)
    theirs = getattr(layers, kind)(seed=1)({"images": images, "labels": tf.eye(512)})
    ours = augmentations.mix(images, tf.eye(512), kind.lower(), 0, tf.constant(0, tf.int64))
    for mixed, shares in ((theirs["images"], theirs["labels"]), ours):
        mixed, shares = mixed.numpy(), shares.numpy()
        np.testing.assert_allclose(shares.sum(-1), 1.0, rtol=1e-5)
        if kind == "MixUp":  # a label's shares are those of its pixels
            expected = np.einsum("ij,j...->i...", shares, images.numpy())
            np.testing.assert_allclose(mixed, expected, atol=1e-5)
        else:  # every pixel is one of the image's own or of its partner's
            partner = np.argmax(shares - 2.0 * np.eye(512), axis=1)
            own = np.isclose(mixed, images.numpy()) | np.isclose(mixed, images.numpy()[partner])
            alone = np.isclose(np.diag(shares), 1.0)
            assert own[~alone].all()
    own_shares = [np.diag(shares.numpy()).mean() for shares in (theirs["labels"], ours[1])]
    spread = 4 * 0.42 / np.sqrt(512)  # four standard errors, as shares vary by at most 0.42
    bias = 0.15 if kind == "CutMix" else 0.0  # keras-cv counts pixels of the box outside the image
    assert abs(own_shares[0] - own_shares[1]) < 2 * spread + bias
