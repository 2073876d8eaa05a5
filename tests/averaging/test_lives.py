"""What averages hold, lend and survive: buffers, copies, iterates that are not finite."""

import copy
import os
import pickle
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from tf_lrtraj import RunRecorder, WeightAveraging, backend, kernels, probes
from tf_lrtraj.averaging import SnapshotRecorder, Snapshots, save_model

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 6)).astype(np.float32)
Y = (X @ RNG.normal(size=(6, 1))).astype(np.float32)
FIT = {"batch_size": 8, "verbose": 0, "shuffle": False}
AVERAGES = {
    "ema": kernels.Exponential(0.8),
    "short": kernels.Exponential(0.5),
    "swa": kernels.Uniform(),
    "window": kernels.Window(3),
}


def numpy_of(variables):
    return [np.array(ops.convert_to_numpy(v.value)) for v in variables]


def network():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.02), "mse")
    return model


def average_of(kernel, iterates):
    weights = kernel.weights(len(iterates) - 1)
    dtype = np.complex128 if np.iscomplexobj(iterates[0][0]) else np.float64
    return [
        sum(w * value[i].astype(dtype) for w, value in zip(weights, iterates, strict=True))
        for i in range(len(iterates[0]))
    ]


def assert_follows(averaging, iterates):
    assert averaging.num_updates == len(iterates) - 1
    for name, kernel in averaging.averages.items():
        expected = average_of(kernel, iterates)
        for one, other in zip(averaging.get_average(name), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)


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
    iterates = [numpy_of([layer.kernel])]
    for step in range(5):
        layer.kernel.assign((np.full((6, 2), 1 + 2j) * (step + 1)).astype("complex64"))
        averaging.update()
        iterates.append(numpy_of([layer.kernel]))
    assert_follows(averaging, iterates)
    name = next(iter(averages))
    with averaging.borrowed(name):
        np.testing.assert_array_equal(
            numpy_of([layer.kernel])[0], averaging.get_average(name)[0].astype("complex64")
        )
    layer.kernel.assign(np.full((6, 2), 1 + 1j * np.nan).astype("complex64"))
    with pytest.warns(UserWarning, match="not finite"):
        assert not averaging.update()


def test_an_average_that_does_not_fit_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(backend, "free_memory", lambda: 10_000)
    averages = {"ema": kernels.Exponential(0.5), "late": kernels.Window(1000)}
    with pytest.raises(
        ValueError, match=r"132\.1 kB, and 10\.0 kB .* 'late': .* 1,000 copies of 33"
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
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", SHARDED], env=environment, check=True)


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
    iterates = [numpy_of(model.trainable_variables)]
    for step in range(8):
        good = [w * np.float32(0.9) + np.float32(0.1) for w in iterates[-1]]
        if step in (0, 5):
            model.set_weights(broken(good))
            told = (
                pytest.warns(UserWarning, match="not finite")
                if not step
                else warnings.catch_warnings()
            )
            with told:
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
    x[41] = np.nan  # the last batch of six
    with pytest.warns(UserWarning, match="at step 6 are not finite: no snapshot"):
        network().fit(x, Y, callbacks=[SnapshotRecorder(tmp_path, every=2)], **FIT)
    assert Snapshots(tmp_path).steps.tolist() == [0, 2, 4]


@pytest.mark.parametrize("option", ["skip", "stop", "ignore"])
def test_what_a_fit_does_with_weights_that_are_not_finite(option):
    x = X.copy()
    x[9] = np.nan  # the second batch of six
    model = network()
    averaging = WeightAveraging({"ema": kernels.Exponential(0.5)}, on_non_finite=option)
    batches = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda b, logs: batches.append(b))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.fit(x, Y, epochs=2, callbacks=[averaging, count], **FIT)
    finite = all(np.isfinite(value).all() for value in averaging.get_average("ema"))
    assert finite == (option != "ignore")
    assert averaging.num_updates == (12 if option == "ignore" else 1)
    assert len(batches) == (2 if option == "stop" else 12)
    assert any("not finite" in str(w.message) for w in told) == (option != "ignore")
    with pytest.raises(ValueError, match=r"`on_non_finite` must be one of .*'drop'"):
        WeightAveraging(AVERAGES, on_non_finite="drop")


# Copies and the like --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("trained", [False, True])
def test_copies_go_on_by_themselves(how, trained):
    model = network()
    first = WeightAveraging(AVERAGES, validation_data=(X, Y))
    if trained:
        model.fit(X, Y, callbacks=[first], **FIT)
    second = copy.deepcopy(first) if how == "deepcopy" else pickle.loads(pickle.dumps(first))
    assert second.model is None and second.averages == first.averages
    if how == "deepcopy":
        assert second.validation_data is first.validation_data
    other = network()
    other.set_weights(model.get_weights())
    for one, averaging in ((model, first), (other, second)):
        one.compile(keras.optimizers.SGD(0.02), "mse")
        one.fit(X, Y, callbacks=[averaging], **FIT)
    assert second.num_updates == first.num_updates == (12 if trained else 6)
    for name in AVERAGES:
        for a, b in zip(first.get_average(name), second.get_average(name), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(backend.name() != "tensorflow", reason="tf.data")
def test_data_sets_are_shared_by_copies():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    first = WeightAveraging(AVERAGES, batch_norm_data=data, validation_data=data)
    assert copy.deepcopy(first).batch_norm_data is data


class Forwards(keras.callbacks.Callback):
    """Calls the hooks of callbacks that it holds."""

    def __init__(self, *held, hide=False):
        super().__init__()
        self._held = (lambda: held) if hide else None
        self.held = [] if hide else list(held)

    def _all(self):
        return self._held() if self._held else self.held

    def set_model(self, model):
        super().set_model(model)
        for one in self._all():
            one.set_model(model)

    def __getattribute__(self, name):
        if name.startswith("on_"):
            held = self._all()
            return lambda *a, **k: [getattr(one, name)(*a, **k) for one in held]
        return super().__getattribute__(name)


class Killed(Exception):
    pass


class KillAfter(keras.callbacks.Callback):
    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise Killed


ARRANGEMENTS = {
    "listed": lambda averaging, backup: [averaging, backup],
    "forwarded": lambda averaging, backup: [Forwards(averaging), backup],
    "forwarded, out of sight": lambda averaging, backup: [Forwards(averaging, hide=True), backup],
    "both forwarded": lambda averaging, backup: [Forwards(averaging, backup)],
    "forwarded twice": lambda averaging, backup: [Forwards(Forwards(averaging), backup)],
}


@pytest.mark.parametrize("arrange", ARRANGEMENTS.values(), ids=list(ARRANGEMENTS))
def test_backups_are_followed_however_callbacks_are_called(arrange, tmp_path):
    def run(folder, *more):
        model, averaging = network(), WeightAveraging(AVERAGES)
        backup = keras.callbacks.BackupAndRestore(str(folder))
        callbacks = [*arrange(averaging, backup), *more]
        model.fit(X, Y, epochs=3, callbacks=callbacks, **FIT)
        return averaging

    with pytest.raises(Killed):
        run(tmp_path / "a", KillAfter(14))
    again, whole = run(tmp_path / "a"), run(tmp_path / "b")
    assert again.num_updates == whole.num_updates == 18
    for name in AVERAGES:
        for a, b in zip(again.get_average(name), whole.get_average(name), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_backup_before_a_forwarded_callback_is_refused_at_the_start(tmp_path):
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "b"))
    with pytest.raises(ValueError, match="WeightAveraging before BackupAndRestore"):
        network().fit(X, Y, callbacks=[backup, Forwards(WeightAveraging(AVERAGES))], **FIT)


# Inside `borrowed` ----------------------------------------------------------------------------


def trained():
    model, averaging = network(), WeightAveraging(AVERAGES)
    model.fit(X, Y, callbacks=[averaging], **FIT)
    return model, averaging


def test_quantizing_a_lent_model_is_refused():
    model, averaging = trained()
    before, own = numpy_of(model.variables), model.quantize
    with averaging.borrowed("ema"), pytest.raises(RuntimeError, match="before quantizing"):
        model.quantize("int8")
    for one, other in zip(before, numpy_of(model.variables), strict=True):
        np.testing.assert_array_equal(one, other)
    assert model.quantize is own


def test_variables_replaced_in_the_block_are_noticed():
    model, averaging = trained()
    with (
        pytest.raises(RuntimeError, match="were replaced while it held the average 'ema'"),
        averaging.borrowed("ema"),
    ):
        model.layers[0].quantize("int8")


def test_steps_of_an_optimizer_of_ones_own_are_noticed():
    model, averaging = trained()
    other = keras.optimizers.SGD(0.1)
    before = numpy_of(model.trainable_variables)
    with (
        pytest.warns(UserWarning, match="Weights were changed while .* 'ema'.*are lost"),
        averaging.borrowed("ema"),
    ):
        other.apply(
            [ops.ones(v.shape) for v in model.trainable_variables], model.trainable_variables
        )
    for one, after in zip(before, numpy_of(model.trainable_variables), strict=True):
        np.testing.assert_array_equal(one, after)


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
    ("path", "message"),
    [
        ("gs://no-such-bucket/ema.keras", "must lie in a bucket that is there"),
        ("nosuch://bucket/ema.keras", "begin with one of"),
        ("gs://bucket/ema.h5", "must end in '.keras'"),
        (b"ema.keras", "must be a path"),
    ],
)
def test_places_that_cannot_be_written_are_refused_at_once(path, message):
    with pytest.raises(ValueError, match=message) as error:
        WeightAveraging(AVERAGES, validation_data=(X, Y), save_best={"ema": path})
    assert "save_best['ema']" in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        SnapshotRecorder,
        Snapshots,
        RunRecorder,
        lambda folder: probes.ProbeRecorder(folder, {}, every=1),
        lambda folder: trained()[1].save_state(f"{folder}/state.npz"),
        lambda folder: trained()[1].load_state(f"{folder}/state.npz"),
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

    model, averaging = trained()
    tf.io.gfile.makedirs("ram://bucket/there")
    averaging.save("ema", "ram://bucket/there/ema.keras")
    assert tf.io.gfile.listdir("ram://bucket/there") == ["ema.keras"]
    content = tf.io.gfile.GFile("ram://bucket/there/ema.keras", "rb").read()
    assert content[:2] == b"PK"
    with pytest.raises(ValueError, match="local file system"):
        averaging.save_state("ram://bucket/state.npz")
    save_model(model, "ram://bucket/there/ema.keras")
    assert len(tf.io.gfile.GFile("ram://bucket/there/ema.keras", "rb").read()) > 1000
