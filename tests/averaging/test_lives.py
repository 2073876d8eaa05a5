"""What averages go through: every event of a training, buffers, copies, values not finite."""

import copy
import pickle
import warnings

import keras
import numpy as np
import pytest
from helpers import assert_same_bits, run_python
from keras import ops
from keras_helpers import (
    VALIDATION,
    Iterates,
    X,
    Y,
    arrays_of,
    assert_follows,
    fit,
    network,
    trainable,
)

from tf_lrtraj import RunRecorder, WeightAveraging, backend, kernels, probes
from tf_lrtraj.averaging import SnapshotRecorder, Snapshots, save_model

AVERAGES = {
    "ema": kernels.Exponential(0.8),
    "short": kernels.Exponential(0.5),
    "swa": kernels.Uniform(),
    "window": kernels.Window(3),
    "two_point": kernels.TwoPoint(3),
}


def no_momentum():
    return network(keras.optimizers.SGD(0.02))


# Events of a training -------------------------------------------------------------------------


def second_fit(averaging):
    model, iterates = network(), Iterates()
    fit(model, averaging, iterates)
    fit(model, averaging, iterates, epochs=2)
    assert averaging.num_updates == 12
    return iterates.values


def rates_of_keras(averaging):
    scheduler, iterates = keras.callbacks.LearningRateScheduler(lambda _, r: r / 2), Iterates()
    fit(network(), averaging, iterates, scheduler, epochs=3)
    return iterates.values


def gradients_accumulated(averaging):
    optimizer, iterates = keras.optimizers.SGD(0.05, gradient_accumulation_steps=3), Iterates()
    fit(network(optimizer), averaging, iterates, epochs=3)
    assert averaging.num_updates == 4  # 12 batches
    return iterates.values


def steps_skipped_by_loss_scaling(averaging):
    inner = keras.optimizers.SGD(0.01)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**15)
    iterates, x = Iterates(), X.copy()
    x[20] = np.inf  # one batch of four overflows
    fit(network(optimizer), averaging, iterates, x=x, epochs=3)
    assert averaging.num_updates == 9  # of 12
    assert float(ops.convert_to_numpy(optimizer.dynamic_scale)) == 2.0**12
    assert all(np.isfinite(value).all() for value in averaging.get_average("swa"))
    return iterates.values


def another_model_after_a_reset(averaging):
    fit(network(), averaging)
    with pytest.raises(ValueError, match=r"Use a new WeightAveraging for another model.*reset"):
        fit(network(), averaging)
    averaging.reset()
    iterates = Iterates()
    fit(network(), averaging, iterates)
    return iterates.values


def weights_loaded_after_a_look(averaging):
    model, iterates = network(), Iterates()
    averaging.set_model(model)
    assert averaging.evaluate(VALIDATION)["ema"]["loss"] > 0
    assert_same_bits(averaging.get_average("ema"), trainable(model))  # the initial weights
    model.set_weights([w + 1 for w in model.get_weights()])
    fit(model, averaging, iterates)
    return iterates.values


def a_loop_and_then_a_fit(averaging):
    model, iterates = network(), Iterates()
    averaging.set_model(model)
    averaging.get_average("ema")
    iterates.set_model(model)
    iterates.keep()
    for start in range(0, 64, 16):
        model.train_on_batch(X[start : start + 16], Y[start : start + 16])
        averaging.update()
        iterates.keep()
    fit(model, averaging, iterates)
    return iterates.values


def frozen_and_unfrozen(*states):
    def event(averaging):
        model = network()
        variables = model.trainable_variables
        iterates = Iterates(every_batch=True, variables=lambda model: variables)
        for now in states:
            model.layers[0].trainable = now
            model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
            fit(model, averaging, iterates)
        model.layers[0].trainable = True
        assert averaging.num_updates == 12
        return iterates.values

    return event


EVENTS = {
    "a second fit": second_fit,
    "a scheduler of Keras": rates_of_keras,
    "gradients accumulated": gradients_accumulated,
    "steps skipped by loss scaling": steps_skipped_by_loss_scaling,
    "another model after a reset": another_model_after_a_reset,
    "weights loaded after a look": weights_loaded_after_a_look,
    "a loop and then a fit": a_loop_and_then_a_fit,
    "frozen between": frozen_and_unfrozen(True, False, True),
    "unfrozen between": frozen_and_unfrozen(False, True, False),
}


@pytest.mark.parametrize("event", EVENTS.values(), ids=list(EVENTS))
@pytest.mark.filterwarnings("ignore:2 weights have become trainable")
def test_averages_follow_the_iterates_through_every_event(event):
    averaging = WeightAveraging(AVERAGES)
    assert_follows(averaging, event(averaging))


def test_training_in_between_without_the_callback_is_told():
    averaging, model = WeightAveraging(AVERAGES), network()
    fit(model, averaging)
    fit(model)
    with pytest.warns(UserWarning, match="from 4 to 8 iterations without WeightAveraging"):
        fit(model, averaging)


def test_weights_that_become_trainable_are_told():
    averaging, model = WeightAveraging(AVERAGES), network()
    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    fit(model, averaging)
    model.layers[0].trainable = True
    model.compile("sgd", "mse")
    assert len(averaging.get_average("ema")) == 4  # those that have not joined, as they are
    with pytest.warns(UserWarning, match="2 weights have become trainable and join .* update 4"):
        fit(model, averaging)


class LooksAround(keras.callbacks.Callback):
    """Predicts, evaluates and borrows in the middle of an epoch."""

    def __init__(self, averaging):
        super().__init__()
        self.averaging = averaging

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.model.predict(X[:8], verbose=0)
            with self.averaging.borrowed("swa") as model:
                model.predict(X[:8], verbose=0)
            self.averaging.evaluate(VALIDATION)


def test_looking_at_averages_in_mid_epoch_changes_nothing():
    averaging, iterates = WeightAveraging(AVERAGES, batch_norm_data=X), Iterates()
    model, plain = (network(norm=True, dropout=0.2) for _ in range(2))
    history = fit(model, averaging, iterates, LooksAround(averaging), epochs=2).history
    assert history == fit(plain, epochs=2).history
    assert_same_bits(arrays_of(model.variables), arrays_of(plain.variables))
    assert_follows(averaging, iterates.values)


# Buffers --------------------------------------------------------------------------------------


class Complex(keras.layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 2), dtype="complex64", name="kernel")

    def call(self, x):
        return ops.real(ops.matmul(ops.cast(x, "complex64"), self.kernel))


@pytest.mark.parametrize(
    "averages", [AVERAGES, {"long": kernels.Exponential(0.9999)}, {"swa": kernels.Uniform()}]
)
def test_averages_of_complex_weights_are_complex(averages):
    layer = Complex()
    layer.build((None, 6))
    model = keras.Sequential([keras.Input((6,)), layer])
    averaging = WeightAveraging(averages)
    averaging.set_model(model)
    iterates = [arrays_of([layer.kernel])]
    for step in range(5):
        layer.kernel.assign((np.full((6, 2), 1 + 2j) * (step + 1)).astype("complex64"))
        averaging.update()
        iterates.append(arrays_of([layer.kernel]))
    assert_follows(averaging, iterates)
    name = next(iter(averages))
    with averaging.borrowed(name):
        np.testing.assert_array_equal(
            arrays_of([layer.kernel])[0], averaging.get_average(name)[0].astype("complex64")
        )
    layer.kernel.assign(np.full((6, 2), 1 + 1j * np.nan).astype("complex64"))
    with pytest.warns(UserWarning, match="not finite"):
        assert not averaging.update()


def test_an_average_that_does_not_fit_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(backend, "free_memory", lambda: 10_000)
    averages = {"ema": kernels.Exponential(0.5), "late": kernels.Window(1000)}
    with pytest.raises(
        ValueError, match=r"132\.1 kB, but 10\.0 kB .* 'late': .* 1,000 copies of 33"
    ):
        WeightAveraging(averages).set_model(network())
    WeightAveraging({"ema": kernels.Exponential(0.5)}).set_model(network())


def test_free_memory_is_known_on_this_machine():
    free = backend.free_memory()
    assert free is None or 1e7 < free < 1e14


SHARDED = """
import numpy as np, keras
from tf_lrtraj import WeightAveraging, kernels
mesh = keras.distribution.DeviceMesh((1, 4), ["batch", "model"], keras.distribution.list_devices())
layout = keras.distribution.LayoutMap(mesh)
layout[".*wide.*kernel"] = (None, "model")
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"))
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(64, name="wide"), keras.layers.Dense(1)])
model.compile(keras.optimizers.SGD(0.01), "mse")
averages = {"a": kernels.Exponential(0.8), "b": kernels.Uniform(), "c": kernels.Exponential(0.5),
            "d": kernels.Window(3), "e": kernels.Exponential(0.9999)}
iterates = []
class Keep(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None): iterates.append(self.model.get_weights())
    def on_train_batch_end(self, batch, logs=None): iterates.append(self.model.get_weights())
averaging = WeightAveraging(averages)
x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
model.fit(x, x[:, :1], batch_size=8, verbose=0, shuffle=False, callbacks=[averaging, Keep()])
for name, kernel in averages.items():
    weights = kernel.weights(4)
    for i, value in enumerate(averaging.get_average(name)):
        expected = sum(w * it[i] for w, it in zip(weights, iterates))
        np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-6)
def share(variable):
    return variable.value.addressable_shards[0].data.nbytes / variable.value.nbytes
wide = [v for v in averaging.state.variables if 64 in v.shape and 6 in v.shape]
assert len(wide) >= 4, len(wide)
assert {share(v) for v in wide} == {0.25}, [share(v) for v in wide]
with averaging.borrowed("d"):
    assert share(model.trainable_variables[0]) == 0.25
assert share(model.trainable_variables[0]) == 0.25
"""


@pytest.mark.skipif(backend.name() != "jax", reason="keras.distribution shards on JAX")
def test_averages_of_sharded_weights_are_sharded():
    run_python("-c", SHARDED, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4"})


@pytest.mark.skipif(backend.name() != "jax", reason="JAX tells what it holds")
def test_lending_copies_what_changes_only():
    import jax

    backbone = keras.Sequential([keras.Input((300,)), keras.layers.Dense(300)])
    backbone.trainable = False
    lora = keras.layers.Dense(300)
    model = keras.Sequential([keras.Input((300,)), backbone, lora, keras.layers.Dense(1)])
    lora.enable_lora(2)
    model.compile("sgd", "mse")
    averaging = WeightAveraging({"ema": kernels.Exponential(0.9)})
    x = np.ones((8, 300), "float32")
    model.fit(x, x[:, :1], verbose=0, callbacks=[averaging])

    def held():
        return sum(array.nbytes for array in jax.live_arrays())

    frozen = sum(v.value.nbytes for v in model.non_trainable_variables)
    before = held()
    with averaging.borrowed("ema"):
        assert held() - before < 0.1 * frozen
        model.predict(x, verbose=0)
    assert held() - before < 0.1 * frozen


# Iterates that are not finite -----------------------------------------------------------------

BROKEN = {
    "all of them": lambda w: [v * np.float32(np.nan) for v in w],
    "one number": lambda w: [*w[:-1], np.where(np.arange(w[-1].size) == 0, np.inf, w[-1])],
    "minus infinity": lambda w: [w[0] - np.float32(np.inf), *w[1:]],
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=list(BROKEN))
def test_an_iterate_that_is_not_finite_is_left_out(broken):
    model = network()
    averaging = WeightAveraging(AVERAGES)
    averaging.set_model(model)
    iterates = [trainable(model)]
    for step in range(8):
        good = [w * np.float32(0.9) + np.float32(0.1) for w in iterates[-1]]
        if step in (0, 5):
            model.set_weights(broken(good))
            told = pytest.warns(UserWarning, match="not finite")
            with warnings.catch_warnings() if step else told:  # once
                assert not averaging.update()
        model.set_weights(good)
        assert averaging.update()
        iterates.append(good)
    assert averaging.skipped == 2
    assert_follows(averaging, iterates)


def test_large_numbers_are_finite():
    model = network()
    averaging = WeightAveraging({"swa": kernels.Uniform()})
    averaging.set_model(model)
    model.set_weights([np.full(w.shape, 3e38, np.float32) for w in model.get_weights()])
    assert averaging.update()


def test_no_snapshot_is_taken_of_weights_that_are_not_finite(tmp_path):
    x = X.copy()
    x[60] = np.nan  # the last batch of four
    with pytest.warns(UserWarning, match="at step 4 are not finite, so no snapshot"):
        fit(network(), SnapshotRecorder(tmp_path, every=2), x=x)
    assert Snapshots(tmp_path).steps.tolist() == [0, 2]


@pytest.mark.parametrize("option", ["skip", "stop", "ignore"])
def test_what_a_fit_does_with_weights_that_are_not_finite(option):
    x = X.copy()
    x[20] = np.nan  # the second batch of four
    averaging = WeightAveraging({"ema": kernels.Exponential(0.5)}, on_non_finite=option)
    batches = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda b, logs: batches.append(b))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(network(), averaging, count, x=x, epochs=2)
    finite = all(np.isfinite(value).all() for value in averaging.get_average("ema"))
    assert finite == (option != "ignore")
    assert averaging.num_updates == (8 if option == "ignore" else 1)
    assert len(batches) == (2 if option == "stop" else 8)
    assert any("not finite" in str(w.message) for w in told) == (option != "ignore")


# Copies and the like --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("trained", [False, True])
def test_copies_go_on_by_themselves(how, trained):
    model = network()
    first = WeightAveraging(AVERAGES, validation_data=(X, Y))
    if trained:
        fit(model, first)
    second = copy.deepcopy(first) if how == "deepcopy" else pickle.loads(pickle.dumps(first))
    assert second.model is None and second.averages == first.averages
    if how == "deepcopy":
        assert second.validation_data is first.validation_data
    other = network()
    other.set_weights(model.get_weights())
    for one, averaging in ((model, first), (other, second)):
        one.compile(keras.optimizers.SGD(0.02), "mse")
        fit(one, averaging)
    assert second.num_updates == first.num_updates == (8 if trained else 4)
    for name in AVERAGES:
        assert_same_bits(first.get_average(name), second.get_average(name))


@pytest.mark.skipif(backend.name() != "tensorflow", reason="tf.data")
def test_data_sets_are_shared_by_copies():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    first = WeightAveraging(AVERAGES, batch_norm_data=data, validation_data=data)
    assert copy.deepcopy(first).batch_norm_data is data


# Arguments that the numbers contradict --------------------------------------------------------


def test_averaged_variances_below_zero_are_refused_with_the_number():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization()])
    averaging = WeightAveraging({"signed": kernels.Custom([-1.0, 2.0])}, batch_norm="average")
    averaging.set_model(model)
    for variance in (1.0, 4.0):
        model.layers[0].moving_variance.assign(np.full(6, variance))
        model.layers[0].gamma.assign(np.full(6, variance))
        averaging.update()
    with (
        pytest.raises(ValueError, match=r"'signed' .* 'batch_normalization.*' falls to -2\b"),
        averaging.borrowed("signed"),
    ):
        pass
    averaging.batch_norm["signed"] = "copy"
    with averaging.borrowed("signed"):
        pass


@pytest.mark.parametrize("model", [object(), 3, np.ones(3), keras.layers])
def test_what_is_no_model_of_keras_is_refused(model):
    with pytest.raises(
        ValueError, match=r"WeightAveraging needs a model of Keras 3 .* Received: a"
    ):
        WeightAveraging(AVERAGES).set_model(model)


@pytest.mark.parametrize(
    "make",
    [
        SnapshotRecorder,
        Snapshots,
        RunRecorder,
        lambda folder: probes.ProbeRecorder(folder, {}, every=1),
        lambda folder: WeightAveraging(AVERAGES).save_state(f"{folder}/state.npz"),
        lambda folder: WeightAveraging(AVERAGES).load_state(f"{folder}/state.npz"),
    ],
    ids=["SnapshotRecorder", "Snapshots", "RunRecorder", "ProbeRecorder", "save", "load"],
)
def test_folders_in_buckets_are_refused_and_no_folder_of_that_name_is_made(
    make, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"must be on a local file system.* Received: .*gs://here"):
        make("gs://here/there")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(backend.name() != "tensorflow", reason="TensorFlow's file systems")
def test_models_are_saved_through_the_file_systems_of_tensorflow():
    import tensorflow as tf

    model, averaging = network(), WeightAveraging(AVERAGES)
    fit(model, averaging)
    tf.io.gfile.makedirs("ram://bucket/there")
    averaging.save("ema", "ram://bucket/there/ema.keras")
    assert tf.io.gfile.listdir("ram://bucket/there") == ["ema.keras"]
    content = tf.io.gfile.GFile("ram://bucket/there/ema.keras", "rb").read()
    assert content[:2] == b"PK"
    with pytest.raises(ValueError, match="local file system"):
        averaging.save_state("ram://bucket/state.npz")
    save_model(model, "ram://bucket/there/ema.keras")
    assert len(tf.io.gfile.GFile("ram://bucket/there/ema.keras", "rb").read()) > 1000
