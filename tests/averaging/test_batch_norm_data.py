"""What `batch_norm_data` may be: what `fit` takes, read as Keras reads it; the rest is refused."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tf_lrtraj import WeightAveraging, backend, kernels
from tf_lrtraj.backend import batch_norm as bn

X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) * 2.0 + 1.0
Z = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32) + 5.0
Y = np.random.default_rng(2).integers(0, 3, 40)
W = np.ones(40, np.float32)
PARTS = [slice(0, 16), slice(16, 32), slice(32, 40)]


def dataset(*arrays):
    tf = pytest.importorskip("tensorflow")
    arrays = arrays[0] if len(arrays) == 1 else arrays
    return tf.data.Dataset.from_tensor_slices(arrays).batch(16)


def loader(*arrays):
    data = pytest.importorskip("torch").utils.data
    tensors = [pytest.importorskip("torch").tensor(array) for array in arrays]
    return data.DataLoader(data.TensorDataset(*tensors), batch_size=16)


def frame():
    return pytest.importorskip("pandas").DataFrame(X)


class Batches(keras.utils.PyDataset):
    ends = 0

    def __len__(self):
        return len(PARTS)

    def __getitem__(self, index):
        return X[PARTS[index]], Y[PARTS[index]]

    def on_epoch_end(self):
        self.ends += 1


class Unsized(keras.utils.PyDataset):
    """Does not say how many batches it has, as one that draws them at random."""

    def __getitem__(self, index):
        return X[PARTS[index % 3]], Y[PARTS[index % 3]]


class Endless(Unsized):
    @property
    def num_batches(self):
        return None


class Iterable:
    def __iter__(self):
        return ((X[part], Y[part]) for part in PARTS)


class Indexed:
    def __getitem__(self, index):
        return X[PARTS[index % 3]]


ONE = {
    "array": lambda: X,
    "(x,)": lambda: (X,),
    "(x, y)": lambda: (X, Y),
    "(x, None)": lambda: (X, None),
    "(x, y, sample_weight)": lambda: (X, Y, W),
    "[x]": lambda: [X],
    "[x, y]": lambda: [X, Y],
    "[noisy, clean]": lambda: [X, Z],
    "[x, y, sample_weight]": lambda: [X, Y, W],
    "list of batches": lambda: [(X[part], Y[part]) for part in PARTS],
    "list of two batches": lambda: [(X[:20], Y[:20]), (X[20:], Y[20:])],
    "list of batches of inputs": lambda: [X[part] for part in PARTS],
    "list of many batches of inputs": lambda: [X[i : i + 8] for i in range(0, 40, 8)],
    "list of lists": lambda: [[X[part], Y[part]] for part in PARTS],
    "iterable": Iterable,
    "PyDataset": Batches,
    "dataset": lambda: dataset(X),
    "dataset of pairs": lambda: dataset(X, Y),
    "dataset with weights": lambda: dataset(X, Y, W),
    "dataset of unknown length": lambda: dataset(X, Y).filter(lambda x, y: True),
    "torch loader": lambda: loader(X, Y),
    "pandas": frame,
}

TWO = {
    "[a, b]": lambda: [X, Z],
    "([a, b], y)": lambda: ([X, Z], Y),
    "[[a, b], y]": lambda: [[X, Z], Y],
    "((a, b), y, w)": lambda: ((X, Z), Y, W),
    "by name": lambda: {"a": X, "b": Z},
    "(by name, y)": lambda: ({"a": X, "b": Z}, Y),
    "[by name, y by name]": lambda: [{"a": X, "b": Z}, {"out": Y}],
    "list of batches by name": lambda: [{"a": X[part], "b": Z[part]} for part in PARTS],
    "list of batches": lambda: [((X[part], Z[part]), Y[part]) for part in PARTS],
    "dataset": lambda: dataset(((X, Z), Y)),
    "dataset by name": lambda: dataset({"a": X, "b": Z}, Y),
}


def one_input():
    return keras.Sequential([keras.Input((6,)), layers.BatchNormalization(name="norm")])


def two_inputs():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    return keras.Model([a, b], layers.BatchNormalization(name="norm")(a + 2.0 * b))


def check(model, data, seen, recompute=None, **options):
    values = [backend.values(v) for v in (model.trainable_variables, model.non_trainable_variables)]
    result = (recompute or bn.Recompute(model))(*values, data, **options)
    (entry,) = bn.find_statistics(model)
    seen = seen.astype(np.float64)
    for place, expected in ((entry.mean, seen.mean(0)), (entry.variance, seen.var(0))):
        np.testing.assert_allclose(ops.convert_to_numpy(result[place]), expected, rtol=1e-5)


@pytest.mark.filterwarnings("error::UserWarning")
def test_every_form_of_one_input():
    model = one_input()
    recompute = bn.Recompute(model)  # is compiled once
    for data in ONE.values():
        try:
            given = data()
        except pytest.skip.Exception:
            continue
        bn.check_data(given)
        for _ in range(2):
            check(model, given, X, recompute, batch_size=16)


def test_one_input_by_name():
    inputs = {"a": keras.Input((6,), name="a")}
    model = keras.Model(inputs, layers.BatchNormalization(name="norm")(inputs["a"]))
    check(model, {"a": X}, X, batch_size=10)


@pytest.mark.parametrize("form", TWO)
def test_several_inputs(form):
    check(two_inputs(), TWO[form](), X + 2.0 * Z, batch_size=16)


LIMITED = {
    "array": lambda: X,
    "iterable": Iterable,
    "PyDataset": Batches,
    "PyDataset without len": Unsized,
    "PyDataset without end": Endless,
    "dataset": lambda: dataset(X, Y),
    "dataset.repeat()": lambda: dataset(X, Y).repeat(),
    "dataset.repeat().filter()": lambda: dataset(X, Y).repeat().filter(lambda x, y: True),
    "indexed without len": Indexed,
    "torch loader": lambda: loader(X, Y),
}


@pytest.mark.parametrize("form", LIMITED)
def test_a_number_of_batches(form):
    data = LIMITED[form]()
    bn.check_data(data, batches=2)
    check(one_input(), data, X[:32], batch_size=16, batches=2)


ENDLESS = ("PyDataset without len", "PyDataset without end", "dataset.repeat()",
           "dataset.repeat().filter()", "indexed without len")  # fmt: skip


@pytest.mark.parametrize("form", ENDLESS)
def test_data_without_end_need_a_number_before_the_first_step(form):
    data = LIMITED[form]()
    with pytest.raises(ValueError, match=r"`validation_data` must come to an end, or `validation_"):
        bn.check_data(data, "validation_data", limit="validation_steps")
    model = one_input()
    model.compile("sgd", "mse")
    averaging = WeightAveraging({"ema": kernels.Uniform()}, batch_norm_data=data)
    with pytest.raises(ValueError, match=r"or `batch_norm_batches` must say how many"):
        model.fit(X, X, verbose=0, callbacks=[averaging])
    assert averaging.num_updates == 0
    averaging.batch_norm_batches = 3
    model.fit(X, X, verbose=0, callbacks=[averaging])
    with averaging.borrowed("ema"):
        mean = ops.convert_to_numpy(model.get_layer("norm").moving_mean.value)
    np.testing.assert_allclose(mean, X.mean(0), rtol=1e-4)


REFUSED = {
    "generator": (lambda: (x for x in [X]), "Received an iterator"),
    "iterator": (lambda: iter([X]), "Received an iterator"),
    "iterator in a tuple": (lambda: (iter([X]), None), "Received an iterator"),
    "iterator of a dataset": (lambda: iter(dataset(X)), "Received an iterator"),
    "text": (lambda: "x_train.npy", "must be arrays"),
    "number": (lambda: 4096, "must be arrays"),
    "set": (lambda: {1, 2}, "must be arrays"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_data_or_ends_once_is_refused_at_once(form):
    make, message = REFUSED[form]
    with pytest.raises(ValueError, match=rf"`batch_norm_data` .*{message}"):
        WeightAveraging({"ema": kernels.Uniform()}, batch_norm_data=make())


def test_forms_that_cannot_be_told_are_refused():
    with pytest.raises(ValueError, match=r"must hold the model's 2 inputs. Received: 3 arrays"):
        check(two_inputs(), [X, Z, Z], X)
    with pytest.raises(ValueError, match=r"\(x, y, sample_weight\). Received: 4 of them"):
        check(one_input(), (X, Z, Z, Z), X)
    for empty in (X[:0], [], dataset(X).take(0)):
        with pytest.raises(ValueError, match="at least one batch"):
            check(one_input(), empty, X)


def test_a_training_set_is_not_told_of_the_end_of_an_epoch():
    data = Batches()
    check(one_input(), data, X)
    assert data.ends == 0
