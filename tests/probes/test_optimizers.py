"""Side trips with Keras optimizers: what `fit` would do, and nothing of the user's touched."""

import keras
import numpy as np
import pytest

from tf_lrtraj import backend, probes

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 3)).astype("float32")
Y = RNG.normal(size=(16, 2)).astype("float32")
LATER = (RNG.normal(size=(16, 3)).astype("float32"), RNG.normal(size=(16, 2)).astype("float32"))
STEPS = 4

optimizers = keras.optimizers


def without_biases():
    optimizer = optimizers.AdamW(0.02, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


OPTIMIZERS = {
    "SGD": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "Adam": lambda: optimizers.Adam(0.03),
    "AdamW, not of biases": without_biases,
    "RMSprop": lambda: optimizers.RMSprop(0.02),
    "Lion": lambda: optimizers.Lion(0.01),
    "Nadam": lambda: optimizers.Nadam(0.02),
    "clipped": lambda: optimizers.Adam(0.03, global_clipnorm=0.1),
    "on a schedule": lambda: optimizers.Adam(optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
    "with scaled losses": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.03)),
}


def built(optimizer=None):
    keras.utils.set_random_seed(1)
    hidden = keras.layers.Dense(4, activation="tanh", kernel_constraint="max_norm")
    model = keras.Sequential([keras.Input((3,)), hidden, keras.layers.Dense(2)])
    if optimizer is not None:
        model.compile(optimizer, "mse")
    return model


def weights(model):
    return backend.to_numpy(backend.values(model.trainable_variables))


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [a.tobytes() for a in backend.to_numpy(backend.values(variables))]


def trip(model, optimizer, **options):
    surface = probes.Surface(model, "mse")
    probe = probes.SideTrip(
        surface, None, [[(X, Y), LATER]], optimizer=optimizer, num_steps=STEPS, **options
    )
    return probe, probes.measure(probe)


def assert_ends_where_fit_does(probe, model):
    for step in range(STEPS):
        model.train_on_batch(*((X, Y) if step % 2 == 0 else LATER))
    for found, wanted in zip(probe.end_point(0).trainable, weights(model), strict=True):
        found = np.asarray(keras.ops.convert_to_numpy(found))
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("begun", [False, True], ids=["fresh", "with its state"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_fit(name, begun):
    model = built(OPTIMIZERS[name]())
    for _ in range(3 if begun else 0):
        model.train_on_batch(*LATER)
    if not begun:
        model.optimizer.build(model.trainable_variables)
    before = state(model)
    probe, record = trip(model, model.optimizer)
    assert state(model) == before
    assert record.complete and list(record.values["train_loss"].shape) == [1, STEPS + 1]
    assert_ends_where_fit_does(probe, model)


GIVEN = {
    "a name": lambda: "adam",
    "a configuration": lambda: optimizers.serialize(optimizers.Adam()),
    "an instance": lambda: optimizers.Adam(),
}


@pytest.mark.parametrize("name", GIVEN)
def test_forms_in_which_an_optimizer_is_given(name):
    probe, record = trip(built(), GIVEN[name]())
    assert record.about["optimizer"] == "Adam"
    np.testing.assert_allclose(record.about["learning_rate"], [0.001] * STEPS)
    assert_ends_where_fit_does(probe, built("adam"))
    assert "Adam" in record.plot()._supxlabel.get_text()


def test_rates_of_a_schedule_go_on_from_the_count():
    schedule = optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    model = built(optimizers.SGD(schedule))
    model.train_on_batch(X, Y)
    _, record = trip(model, model.optimizer)
    np.testing.assert_allclose(record.about["learning_rate"], 0.1 * 0.5 ** np.arange(1, STEPS + 1))


REFUSED = {
    "a rate beside": (lambda: "adam", {"learning_rate": 0.1}, r"leave out \['learning_rate'\]"),
    "momentum beside": (lambda: "sgd", {"momentum": 0.9}, r"leave out \['momentum'\]"),
    "of another model": (
        lambda: built_for_another(), {}, "`optimizer` was built for other variables",
    ),
    "accumulating": (
        lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2), {}, "at every step",
    ),
    "no optimizer": (lambda: object(), {}, "must be a Keras optimizer"),
}  # fmt: skip


def built_for_another():
    optimizer = optimizers.Adam()
    optimizer.build(built().trainable_variables)
    return optimizer


@pytest.mark.parametrize("name", REFUSED)
def test_optimizers_that_are_refused(name):
    optimizer, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        trip(built(), optimizer(), **options)
