"""Averages, snapshots and steps in every way in which the weights of a model may be trained.

The reference is always `kernel.weights` applied to the iterates that a callback, or the loop
itself, has seen; written for every Keras backend.
"""

import keras
import keras_helpers
import numpy as np
import pytest
from keras import ops
from keras_helpers import Iterates, arrays_of, assert_follows, network, trainable

from tf_lrtraj import WeightAveraging, backend, kernels, probes
from tf_lrtraj.averaging import SnapshotRecorder, Snapshots

X, Y = keras_helpers.X[:48], keras_helpers.Y[:48]
FIT = {"batch_size": 8, "verbose": 0, "shuffle": False}
AVERAGES = {
    "ema": kernels.Exponential(0.8),
    "swa": kernels.Uniform(),
    "two_point": kernels.TwoPoint(4),
    "signed": kernels.Custom([1.5, 0.0, -0.5]),
}
ON_JAX = backend.name() == "jax"


def gradients(model, x, y):
    """The gradients of the mean squared error by the trainable weights, on TensorFlow and torch."""
    if backend.name() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = ops.mean((model(x, training=True) - y) ** 2)
        return tape.gradient(loss, model.trainable_variables)
    import torch

    loss = ops.mean((model(x, training=True) - y) ** 2)
    return torch.autograd.grad(loss, [v.value for v in model.trainable_variables])


class Net(keras.Model):
    """Two layers, and a training step that moves the weights by `move(count, gradients)`."""

    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.first, self.last = keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(1)
        self.count = self.add_weight(shape=(), dtype="int32", trainable=False, name="count")
        self(X[:1])

    def call(self, x):
        return self.last(self.first(x))

    def train_step(self, data):
        self.count.assign_add(1)
        self.move(gradients(self, *data))
        return {"loss": ops.zeros(())}

    def by_hand(self, found, rate=0.05):
        for variable, gradient in zip(self.trainable_variables, found, strict=True):
            variable.assign_sub(ops.cast(rate, "float32") * gradient)


class TwoOptimizers(Net):
    """Compiled with nothing; each layer has an optimizer."""

    def __init__(self):
        super().__init__()
        self.optimizers = [keras.optimizers.SGD(0.05), keras.optimizers.Adam(0.01)]
        for part, optimizer in zip((self.first, self.last), self.optimizers, strict=True):
            optimizer.build(part.trainable_variables)

    def move(self, found):
        for part, optimizer in zip((self.first, self.last), self.optimizers, strict=True):
            variables = part.trainable_variables
            optimizer.apply(found[:2] if part is self.first else found[2:], variables)


class ByHand(Net):
    """No optimizer at all."""

    def move(self, found):
        self.by_hand(found)


class EverySecond(Net):
    """No optimizer, and weights that move in every second batch."""

    def move(self, found):
        self.by_hand(found, ops.where(self.count % 2 == 0, 0.1, 0.0))


class InALayer(Net):
    """The optimizer belongs to a layer, in a dict."""

    def __init__(self):
        super().__init__()
        self.last.own = {"optimizer": keras.optimizers.SGD(0.05)}
        self.last.own["optimizer"].build(self.trainable_variables)

    def move(self, found):
        self.last.own["optimizer"].apply(found, self.trainable_variables)


class TwoSteps(Net):
    """The compiled optimizer makes two steps in a batch."""

    def move(self, found):
        self.optimizer.apply(found, self.trainable_variables)
        self.optimizer.apply(found, self.trainable_variables)


class OfTorch(Net):
    """An optimizer of torch's own."""

    def move(self, found):
        import torch

        values = [v.value for v in self.trainable_variables]
        for value, gradient in zip(values, found, strict=True):
            value.grad = gradient
        torch.optim.SGD(values, lr=0.05).step()


class Functional(Net):
    """JAX: a pure step, with no optimizer that counts."""

    every = 1

    def train_step(self, state, data):
        import jax

        trainable, rest, slots, metrics = state

        def loss(trainable):
            found, new = self.stateless_call(trainable, rest, data[0])
            return ops.mean((found - data[1]) ** 2), new

        (value, new), found = jax.value_and_grad(loss, has_aux=True)(trainable)
        new = [r + 1 if r.shape == () and r.dtype == "int32" else r for r in new]
        count = next(r for r in new if r.shape == () and r.dtype == "int32")
        rate = ops.where(count % self.every == 0, 0.05, 0.0)
        moved = [t - rate * g for t, g in zip(trainable, found, strict=True)]
        return {"loss": value}, (moved, new, slots, metrics)


class FunctionalEverySecond(Functional):
    every = 2


UNKNOWN = "no optimizer that can be reached"
# model, updates in 12 batches, warning
ON_OTHERS = [
    (TwoOptimizers, 12, None),
    (ByHand, 12, UNKNOWN),
    (EverySecond, 6, UNKNOWN),
    (InALayer, 12, None),
    (TwoSteps, 12, "made 2 steps in one batch"),
]
SITUATIONS = {
    "tensorflow": ON_OTHERS,
    "torch": [*ON_OTHERS, (OfTorch, 12, UNKNOWN)],
    "jax": [(Functional, 12, UNKNOWN), (FunctionalEverySecond, 6, UNKNOWN)],
}[backend.name()]


@pytest.mark.parametrize(
    ("kind", "updates", "message"), SITUATIONS, ids=[kind.__name__ for kind, _, _ in SITUATIONS]
)
def test_weights_have_moved_where_something_moved_them(kind, updates, message, tmp_path, recwarn):
    model = kind()
    model.compile(loss="mse")
    averaging, iterates = WeightAveraging(AVERAGES), Iterates()
    batch = [(X[:8], Y[:8])]
    line = {"line": lambda s: probes.Line(s, s.point(), batch, held_out=batch, rates=[0.0, 0.1])}
    followers = [
        SnapshotRecorder(tmp_path / "snapshots", every=2),
        probes.ProbeRecorder(tmp_path / "probes", line, every=6, loss="mse"),
    ]
    model.fit(X, Y, epochs=2, callbacks=[averaging, iterates, *followers], **FIT)
    assert averaging.num_updates == updates
    assert_follows(averaging, iterates.values)
    snapshots = Snapshots(tmp_path / "snapshots")
    each = 2 if kind is TwoSteps else 1  # there the optimizer counts two in a batch
    assert snapshots.steps.tolist() == list(range(0, each * updates + 1, 2))
    last = snapshots.read(int(snapshots.steps[-1]))
    np.testing.assert_array_equal(last[0], trainable(model)[0])
    assert len(list((tmp_path / "probes").iterdir())) == 1 + each * updates // 6
    again = SnapshotRecorder(tmp_path / "snapshots", every=2)
    fresh = kind()
    fresh.compile(loss="mse")
    if message == UNKNOWN:  # nothing says that these are not snapshots of this very training
        with pytest.raises(ValueError, match=r"no optimizer counts .* another folder"):
            fresh.fit(X, Y, callbacks=[again], **FIT)
        assert Snapshots(tmp_path / "snapshots").steps.tolist() == snapshots.steps.tolist()
    told = [str(w.message) for w in recwarn if "WeightAveraging" in str(w.message)]
    assert len(told) == (message is not None) and all(message in text for text in told)


# The trajectory begins where `set_model` says -------------------------------------------------


def train_on_batch(model):
    model.train_on_batch(X[:8], Y[:8])


def assign(model):
    """An optimizer that nobody can see."""
    for variable in model.trainable_variables:
        variable.assign(ops.convert_to_tensor(variable) * 0.9 + 0.01)


LOOPS = {
    "train_on_batch": (train_on_batch, lambda model: model),
    "weights assigned": (assign, lambda model: model),
    "a part of a model": (train_on_batch, lambda model: model.layers[0]),
    "a model of its layers": (
        train_on_batch,
        lambda model: keras.Sequential([keras.Input((4,)), model.layers[-1]]),
    ),
}


@pytest.mark.parametrize(("step", "part"), LOOPS.values(), ids=list(LOOPS))
@pytest.mark.parametrize("look", [False, True])
def test_loops_of_ones_own_begin_at_the_initial_weights(step, part, look):
    model = network()
    averaged = part(model)
    averaging = WeightAveraging(AVERAGES)
    averaging.set_model(averaged)
    if look:
        averaging.get_average("swa")
    iterates = [trainable(averaged)]
    for _ in range(6):
        step(model)
        if look and isinstance(averaged, keras.Model):
            with averaging.borrowed("ema"):
                pass
        assert averaging.update()
        iterates.append(trainable(averaged))
    assert_follows(averaging, iterates)
    averaging.start()
    np.testing.assert_array_equal(averaging.get_average("ema")[0], iterates[-1][0])
    assert averaging.num_updates == 0


def test_a_model_built_after_set_model_is_begun_by_hand():
    model = keras.Sequential([keras.layers.Dense(1)])
    averaging = WeightAveraging(AVERAGES)
    averaging.set_model(model)
    model(X[:1])
    with pytest.raises(RuntimeError, match=r"have not begun.*`start\(\)`"):
        averaging.update()
    averaging.start()
    iterates = [trainable(model)]
    assign(model)
    averaging.update()
    assert_follows(averaging, [*iterates, trainable(model)])


@pytest.mark.parametrize("policy", ["copy", "average"])
def test_weights_that_a_loop_keeps_elsewhere_are_given(policy):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(4), keras.layers.BatchNormalization()]
    )
    averaging = WeightAveraging(AVERAGES, batch_norm=policy)
    averaging.set_model(model)
    weights, rest = trainable(model), arrays_of(model.non_trainable_variables)
    iterates, means = [weights], [rest[0]]
    for _ in range(6):
        weights = [v * np.float32(0.9) + np.float32(0.01) for v in weights]
        rest = [v * np.float32(0.8) + np.float32(0.1) for v in rest]
        averaging.update(weights=weights if policy == "copy" else (weights, rest))
        iterates.append(weights)
        means.append(rest[0])
    assert_follows(averaging, iterates)
    if policy == "average":
        with averaging.borrowed("swa"):
            mean = arrays_of([model.layers[1].moving_mean])[0]
        np.testing.assert_allclose(mean, np.mean(means, axis=0), rtol=1e-6)
        with pytest.raises(ValueError, match=r"must be a pair .* Missing: .*moving_mean"):
            averaging.update(weights=weights)
    with pytest.raises(ValueError, match=r"must hold 4 arrays .* Received: 3 arrays"):
        averaging.update(weights=weights[:3])


@pytest.mark.skipif(not ON_JAX, reason="variables elsewhere are assigned to in place")
def test_on_jax_a_loop_that_assigns_nothing_is_refused():
    model = network()
    averaging = WeightAveraging(AVERAGES)
    averaging.set_model(model)
    with pytest.raises(RuntimeError, match=r"Nothing has been assigned .*update\(weights="):
        averaging.update()
    assign(model)
    averaging.update()


@pytest.mark.skipif(backend.name() == "torch", reason="torch runs eagerly")
def test_update_in_a_compiled_function_is_refused():
    averaging = WeightAveraging(AVERAGES)
    averaging.set_model(network())
    if ON_JAX:
        import jax

        compiled = jax.jit(lambda: averaging.update())
    else:
        import tensorflow as tf

        compiled = tf.function(averaging.update, autograph=False)
    with pytest.raises(RuntimeError, match=r"outside of tf\.function and jax\.jit"):
        compiled()
    assert averaging.num_updates == 0


# One callback in several trainings ------------------------------------------------------------


def fit(model, *callbacks, epochs=1):
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **FIT)


def test_weights_that_are_set_begin_a_new_average():
    model, averaging = network(), WeightAveraging(AVERAGES)
    start = model.get_weights()
    fit(model, averaging)
    for _ in range(2):
        model.set_weights(start)
        iterates = Iterates()
        with pytest.warns(UserWarning, match="weights were set .*of 6 updates, begin anew"):
            fit(model, averaging, iterates)
        assert_follows(averaging, iterates.values)


@pytest.mark.parametrize("moved", [False, True])
def test_another_optimizer_goes_on_from_the_same_weights_only(moved):
    model, averaging, iterates = network(), WeightAveraging(AVERAGES), Iterates()
    fit(model, averaging, iterates)
    if moved:
        fit(model)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    if moved:
        with pytest.raises(ValueError, match=r"another optimizer and other weights.*reset\(\)"):
            fit(model, averaging)
        averaging.reset()
        iterates = Iterates()
    fit(model, averaging, iterates)
    assert_follows(averaging, iterates.values)


# Which variables, and from when to when -------------------------------------------------------


def test_chosen_variables_are_averaged_and_the_others_stay_raw():
    model, iterates = network(), Iterates()
    averaging = WeightAveraging(AVERAGES, variables=lambda v: v.path.endswith("kernel"))
    fit(model, averaging, iterates)
    chosen = [0, 2]
    assert_follows(averaging, [[value[i] for i in chosen] for value in iterates.values])
    raw = trainable(model)
    with averaging.borrowed("swa"):
        lent = trainable(model)
    assert [bool((a != b).any()) for a, b in zip(lent, raw, strict=True)] == [1, 0, 1, 0]
    none = WeightAveraging(AVERAGES, variables=lambda v: False)
    with pytest.raises(ValueError, match="or `variables` selects none"):
        none.set_model(model)


@pytest.mark.parametrize(
    ("config", "kernel"),
    [
        ({"kernel": "Uniform", "start": "50 percent"}, kernels.Uniform(start=9)),
        ({"kernel": "Uniform", "start": "1 epoch"}, kernels.Uniform(start=6)),
        ({"kernel": "TwoPoint", "gap": "2 epochs"}, kernels.TwoPoint(12)),
        (
            {"kernel": "Exponential", "decay": 0.5, "end": "2 epochs"},
            kernels.Exponential(0.5, end=12),
        ),
        ({"kernel": "Window", "length": 3, "end": "50 percent"}, kernels.Window(3, end=9)),
        ({"kernel": "Uniform", "start": 4}, kernels.Uniform(start=4)),
    ],
)
def test_kernels_in_durations_of_the_fit(config, kernel):
    model, averaging, iterates = network(), WeightAveraging({"a": config}), Iterates()
    fit(model, averaging, iterates, epochs=3)
    assert averaging.averages == {"a": kernel}
    assert_follows(averaging, iterates.values)


def test_durations_count_updates_and_not_micro_steps():
    model, averaging = (
        network(),
        WeightAveraging({"a": {"kernel": "Uniform", "start": "1 epoch"}}),
    )
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=3), "mse")
    fit(model, averaging, epochs=2)
    assert averaging.averages["a"].start == 2


def test_durations_need_a_fit():
    averaging = WeightAveraging({"a": {"kernel": "Uniform", "start": "1 epoch"}})
    averaging.set_model(network())
    with pytest.raises(RuntimeError, match=r"\['a'\] are in epochs or percent of a `fit`"):
        averaging.get_average("a")


@pytest.mark.parametrize(("start", "warns"), [(11, False), (12, True), (500, True)])
def test_averages_that_begin_after_the_end_are_told(start, warns, recwarn):
    averaging = WeightAveraging({"swa": kernels.Uniform(start=start)})
    fit(network(), averaging, epochs=2)
    found = [str(w.message) for w in recwarn if "'swa'" in str(w.message)]
    assert len(found) == warns
    assert not warns or "this `fit` ends at update 12" in found[0]
