"""What Keras users have: forms of data, of weights and of models, in every probe."""

import pathlib
import re

import keras
import numpy as np
import pytest
from probe_cases import FIRST, measured, of_case

from tf_lrtraj import backend, probes
from tf_lrtraj.probes.batches import check_batches, size_of

RNG = np.random.default_rng(0)
LEFT = RNG.normal(size=(24, 3)).astype("float32")
RIGHT = RNG.normal(size=(24, 2)).astype("float32")
Y = (LEFT[:, 0] + RIGHT[:, 0] > 0).astype("int32")
WEIGHTS = np.arange(24.0)


def values(variables):
    return [np.array(a) for a in backend.to_numpy(backend.values(variables))]


# --- Batches from data ---------------------------------------------------------------------


class Halves(keras.utils.PyDataset):
    """Two batches of 12 examples."""

    def __init__(self, count=2):
        super().__init__()
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        part = slice(12 * index, 12 * index + 12)
        return {"left": LEFT[part], "right": RIGHT[part]}, Y[part]


class Frame:
    """As much of a pandas object as Keras looks at."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def __len__(self):
        return len(self.array)

    def to_numpy(self):
        return self.array


def tf_data(repeat=False):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(({"left": LEFT, "right": RIGHT}, Y)).batch(7)
    return data.repeat() if repeat else data


def torch_loader():
    import torch

    tensors = [torch.from_numpy(a) for a in (LEFT, RIGHT, Y)]
    data = torch.utils.data.TensorDataset(*tensors)
    return [
        ({"left": left, "right": right}, y)
        for left, right, y in torch.utils.data.DataLoader(data, batch_size=5)
    ]


# name -> (x, y, whether examples are drawn; otherwise they are the first)
DATA = {
    "dict of arrays": lambda: ({"left": LEFT, "right": RIGHT}, Y, True),
    "list of arrays": lambda: ([LEFT, RIGHT], Y, True),
    "dict of targets": lambda: ({"left": LEFT, "right": RIGHT}, {"y": Y}, True),
    "tensors": lambda: (
        {"left": keras.ops.convert_to_tensor(LEFT), "right": keras.ops.convert_to_tensor(RIGHT)},
        keras.ops.convert_to_tensor(Y),
        True,
    ),
    "pandas": lambda: ({"left": Frame(LEFT), "right": Frame(RIGHT)}, Frame(Y), True),
    "a tuple of both": lambda: (({"left": LEFT, "right": RIGHT}, Y), None, True),
    "tf.data": lambda: (tf_data(), None, False),
    "endless tf.data": lambda: (tf_data(repeat=True), None, False),
    "PyDataset": lambda: (Halves(), None, False),
    "batches in a list": lambda: ([Halves()[0], Halves()[1]], None, False),
    "generator": lambda: ((Halves()[i] for i in range(2)), None, False),
    "torch loader": lambda: (torch_loader(), None, False),
}


@pytest.mark.parametrize("name", DATA)
def test_batches_of_every_form_of_data(name):
    x, y, drawn = DATA[name]()
    batches = probes.take_batches(x, y, batch_size=9, count=2, seed=4)
    order = np.random.default_rng(4).permutation(24)[:18] if drawn else np.arange(18)
    assert [size_of(batch) for batch in batches] == [9, 9]
    for batch, rows in zip(batches, (order[:9], order[9:]), strict=True):
        inputs = batch[0].values() if isinstance(batch[0], dict) else batch[0]
        targets = batch[1]["y"] if isinstance(batch[1], dict) else batch[1]
        for found, wanted in zip((*inputs, targets), (LEFT, RIGHT, Y), strict=True):
            assert isinstance(found, np.ndarray)
            np.testing.assert_array_equal(found, wanted[rows])


def test_example_weights_stay_beside_their_examples():
    data = ([LEFT, RIGHT], Y, WEIGHTS)
    for inputs, targets, weights in probes.take_batches(data, None, 8, 3):
        rows = weights.astype(int)
        np.testing.assert_array_equal(inputs[0], LEFT[rows])
        np.testing.assert_array_equal(targets, Y[rows])


REFUSED_DATA = {
    "too few examples": (lambda: ({"a": LEFT}, Y, 9, 3), "need 27 examples; the data holds 24"),
    "too few in a data set": (lambda: (Halves(1), None, 8, 2), "the data holds 12"),
    "other lengths": (lambda: ({"a": LEFT, "b": RIGHT[:5]}, Y, 2, 1), "5/24 inputs, 24 targets"),
    "no targets": (lambda: (LEFT, None, 2, 1), "`y` must hold the targets"),
    "targets twice": (lambda: (Halves(), Y, 2, 1), "`y` must be None where `x` is a data set"),
    "not batched": (lambda: ([(LEFT[0], Y[0])], None, 2, 1), "an axis of examples in front"),
    "no data": (lambda: (3, Y, 2, 1), "Received: x of type int"),
}


@pytest.mark.parametrize("name", REFUSED_DATA)
def test_data_that_is_refused(name):
    arguments, message = REFUSED_DATA[name]
    with pytest.raises(ValueError, match=message):
        probes.take_batches(*arguments())


REFUSED_BATCHES = {
    "endless": (lambda: tf_data(repeat=True), "`batches` must end"),
    "one batch": (lambda: (LEFT, Y), r"a single batch is \[\(inputs, targets\)\]"),
    "inputs alone": (lambda: [(LEFT,)], "an element of type tuple of 1"),
    "keys counted": (lambda: [({"a": LEFT, "b": LEFT}, Y[:2])], r"Received: \[2, 24\]"),
    "empty": (list, "at least 1 batch"),
}


@pytest.mark.parametrize("name", REFUSED_BATCHES)
def test_batches_that_are_refused(name):
    batches, message = REFUSED_BATCHES[name]
    with pytest.raises(ValueError, match=message):
        check_batches(batches())


# --- A model with two inputs, in every probe -------------------------------------------------


@pytest.fixture(scope="module")
def two_inputs():
    """A network of a dict of inputs, and the same function of one joined input."""
    keras.utils.set_random_seed(1)
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    hidden = keras.layers.Dense(4, activation="tanh")(joined)
    hidden = keras.layers.BatchNormalization()(hidden)
    model = keras.Model({"left": left, "right": right}, keras.layers.Dense(2)(hidden))
    single = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )
    single.set_weights(model.get_weights())
    return model, single


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DICTS = [({"left": LEFT[i : i + 8], "right": RIGHT[i : i + 8]}, Y[i : i + 8]) for i in (0, 8, 16)]
JOINED = [(np.concatenate([x["left"], x["right"]], axis=1), y) for x, y in DICTS]


@pytest.mark.parametrize("name", FIRST)
def test_every_probe_of_a_dict_of_inputs(name, two_inputs):
    """The same numbers as of the same function of one input."""
    model, single = two_inputs
    found, wanted = of_case(name, model, LOSS, DICTS), of_case(name, single, LOSS, JOINED)
    sizes = [key for key in found.about if key.endswith("sizes")]
    assert {key: found.about[key] for key in sizes} == {key: wanted.about[key] for key in sizes}
    for key, value in wanted.values.items():
        if not key.endswith(("product", "disagreement", "_se", "_error", "step_taken", "noise")):
            np.testing.assert_allclose(found.values[key], value, rtol=1e-2, atol=2e-5, err_msg=key)


# --- Points ----------------------------------------------------------------------------------


def trained(frozen=False):
    """A model with statistics that have moved, seeds, and a layer of state without weights."""
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Normalization(mean=0.5, variance=2.0),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.Dropout(0.1, seed=1),
            keras.layers.Dense(2),
        ]
    )
    model.compile("sgd", LOSS)
    model.layers[1].trainable = not frozen
    model.fit(LEFT, Y, verbose=0)
    return model


POINTS = {
    "another model": lambda model: model,
    "get_weights": lambda model: model.get_weights(),
    "trainable variables": lambda model: values(model.trainable_variables),
    "with statistics": lambda model: values(
        [*model.trainable_variables, model.layers[2].moving_mean, model.layers[2].moving_variance]
    ),
    "tensors": lambda model: [v.value for v in model.trainable_variables],
}


@pytest.mark.parametrize("frozen", [False, True], ids=["all trainable", "a frozen layer"])
@pytest.mark.parametrize("name", POINTS)
def test_points_of_every_form(name, frozen):
    """The loss at a point is the loss of the model it was taken from."""
    here, there = trained(frozen), trained(frozen)
    there.fit(LEFT, Y, epochs=3, verbose=0)
    surface = probes.Surface(here, LOSS, batch_norm="frozen")
    wanted = probes.Surface(there, LOSS, batch_norm="frozen").loss(
        probes.Surface(there, LOSS).point(), (LEFT, Y)
    )
    given = POINTS[name](there)
    if name in ("trainable variables", "tensors"):  # statistics are then the model's own
        for mine, theirs in zip(here.layers, there.layers, strict=True):
            if isinstance(mine, keras.layers.BatchNormalization):
                mine.moving_mean.assign(theirs.moving_mean)
                mine.moving_variance.assign(theirs.moving_variance)
    point = surface.point(given)
    there.fit(LEFT, Y, verbose=0)  # a point is a copy, whatever its model does later
    assert surface.loss(point, (LEFT, Y)) == pytest.approx(wanted, rel=1e-6)


def test_models_as_points_of_a_segment(two_inputs):
    model, _ = two_inputs
    other = keras.models.clone_model(model)
    record = measured(probes.Basin, model, LOSS, {"a": model, "b": other}, DICTS, num=3)
    ends = [probes.Surface(m, LOSS).evaluate(probes.Surface(m, LOSS).point(), DICTS)[0]
            for m in (model, other)]  # fmt: skip
    np.testing.assert_allclose(record.values["loss"][0, 0, [0, -1]], ends, rtol=1e-5)


def test_models_and_points_as_steps_of_a_trajectory(two_inputs):
    model, _ = two_inputs
    others = [keras.models.clone_model(model) for _ in range(2)]
    models = dict(enumerate([model, *others]))
    surface = probes.Surface(model, LOSS)
    forms = [
        models,
        {step: values(one.trainable_variables) for step, one in models.items()},
        {step: surface.point(one) for step, one in models.items()},
    ]
    for build in (
        lambda trajectory: probes.Distance(trajectory, lags=[1]),
        lambda trajectory: probes.LaggedGradients(surface, trajectory, DICTS, lags=[1]),
    ):
        first, *rest = (probes.measure(build(form)) for form in forms)
        for found in rest:
            assert found.about["first_weights"] == first.about["first_weights"]
            for name, value in first.values.items():
                np.testing.assert_array_equal(found.values[name], value)


def test_shapes_that_fit_two_orders_are_told():
    twice = [keras.layers.BatchNormalization(), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((3,)), *twice])
    surface = probes.Surface(model, "mse")
    with pytest.warns(UserWarning, match="fit two orders"):
        surface.point(model.get_weights())
    assert surface.point(model).trainable[0].shape == (3,)


REFUSED_POINTS = {
    "a path": (lambda: pathlib.Path("a.weights.h5"), "load the file into a model"),
    "a dict": (lambda: {"w": np.zeros(3)}, "Received: weights of type dict"),
    "one array": (lambda: np.zeros((3, 4)), "Received: weights of type ndarray"),
    "a smaller model": (
        lambda: keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(2, name="d")], name="small"
        ),
        "Received: model 'small' with 2 arrays; the first that does not fit is number 0",
    ),
    "a number": (lambda: 3, "Received: weights of type int"),
    "other arrays": (lambda: [np.zeros((2, 2))], "Received: 1 arrays; the first that does not fit"),
}


@pytest.mark.parametrize("name", REFUSED_POINTS)
def test_points_that_are_refused(name):
    weights, message = REFUSED_POINTS[name]
    with pytest.raises(ValueError, match=message) as caught:
        probes.Surface(trained(), LOSS).point(weights())
    assert "\n" not in str(caught.value)


def torch_module():
    import torch

    return torch.nn.Linear(3, 2)


class Legacy:
    """A model of another Keras."""

    built = True


REFUSED_MODELS = {
    "a torch module": (torch_module, "a torch module goes into keras.layers.TorchModuleWrapper"),
    "another Keras' model": (Legacy, r"must be a model of Keras 3.*Legacy"),
    "a class": (lambda: keras.Sequential, "an object of type"),
    "not built": (lambda: keras.Sequential([keras.layers.Dense(2)]), "must be built"),
}


@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_models_that_are_refused(name):
    model, message = REFUSED_MODELS[name]
    with pytest.raises(ValueError, match=message) as caught:
        probes.Surface(model(), "mse")
    assert re.search("`model` must", str(caught.value)) and "\n" not in str(caught.value)
