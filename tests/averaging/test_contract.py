"""What every kernel × dtype × batch-norm policy must keep, on whichever Keras backend runs.

One tiny network per dtype is trained once, with every kernel beside it.  Its iterates are kept in
float64, and everything below is checked against them:

* an average, of the callback, of an optimizer or of the snapshots afterwards, is `kernel.weights`
  applied to the iterates;
* batch-norm statistics are those of their policy;
* borrowing gives back every variable to the bit;
* a state saved at any step, followed by an update loop, ends with the bits of the `fit`.
"""

import dataclasses
import random
from typing import Any

import keras
import numpy as np
import pytest
from helpers import assert_same_bits, average_of
from keras_helpers import FIT, VALIDATION, Iterates, X, Y, arrays_of, everything, network, trainable

from tf_lrtraj import AveragedOptimizer, WeightAveraging, backend, kernels
from tf_lrtraj.averaging import SnapshotRecorder, average_snapshots
from tf_lrtraj.averaging.averaged_optimizer import find_averaged

EPOCHS = 4
UPDATES = 16
KERNELS = {
    "ema": kernels.Exponential(0.8),
    "ema_start_every": kernels.Exponential(0.9, start=4, every=2),
    "ema_warmup": kernels.Exponential(0.95, warmup=1),
    "ema_debias": kernels.Exponential(0.9, debias=True),
    "half_life": kernels.HalfLife(0.4, longest=5, start=1),
    "bema": kernels.BEMA(start=2, end=12),
    "power": kernels.PowerFunction(2.0, start=1),
    "power_negative": kernels.PowerFunction(-0.5, start=1, every=2),
    "swa": kernels.Uniform(),
    "swa_start_every": kernels.Uniform(start=3, every=4),
    "window": kernels.Window(4),
    "window_every": kernels.Window(3, every=3),
    "two_point": kernels.TwoPoint(6),
    "signed": kernels.Custom([1.75, 0.0, -1.0, 0.25]),
}
POLICIES = ("recompute", "average", "copy")
# The unit roundoff of what variables are stored in.
DTYPES = {
    "float32": 2.0**-24,
    "mixed_bfloat16": 2.0**-24,
    "mixed_float16": 2.0**-24,
    "bfloat16": 2.0**-8,
    "float64": 2.0**-53,
}
in_float32 = pytest.mark.parametrize("trained", ["float32"], indirect=True)


def state_of(model):
    """Every value that belongs to a run, by name, and the generators of random numbers."""
    seed = keras.src.random.seed_generator.global_seed_generator().state
    generators = [random.getstate(), np.random.get_state()[1].tobytes()]  # noqa: NPY002
    return {**everything(model), "global seed": arrays_of([seed])[0]}, generators


def assert_unchanged(model, before):
    values, generators = state_of(model)
    assert_same_bits(values, before[0])
    assert generators == before[1]


def made(dtype, averages=None):
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    if averages:
        optimizer = AveragedOptimizer(optimizer, averages)
    if dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0)
    return network(optimizer, norm=True, dropout=0.2, units=6, dtype=keras.DTypePolicy(dtype))


def statistics_of(model):
    norm = model.get_layer("norm")
    return [norm.moving_mean, norm.moving_variance]


class Recorder(keras.callbacks.Callback):
    """Keeps every iterate in float64, and the state of an averaging after every step."""

    def __init__(self, averaging, folder):
        super().__init__()
        self.iterates, self.statistics = [], []
        self.averaging, self.folder = averaging, folder

    def keep(self):
        model = self.model
        self.iterates.append([a.astype(np.float64) for a in trainable(model)])
        self.statistics.append([a.astype(np.float64) for a in arrays_of(statistics_of(model))])

    def on_train_begin(self, logs=None):
        self.keep()

    def on_train_batch_end(self, batch, logs=None):
        self.keep()
        self.averaging.save_state(self.folder / f"{len(self.iterates) - 1}.npz")


@dataclasses.dataclass
class Trained:
    dtype: str
    model: Any
    averaging: WeightAveraging
    recorder: Recorder
    roundoff: float
    first: Any  # the first layer as a model, with the same variables


def averaging_of_all():
    # With "average" the state follows the statistics too.  The policy has its effect when an
    # average is read, so tests choose it then.
    return WeightAveraging(KERNELS, batch_norm="average", batch_norm_data=X, batch_size=21)


def choose(averaging, policy):
    averaging.batch_norm = {name: policy for name in KERNELS}
    return averaging


@pytest.fixture(scope="module", params=DTYPES)
def trained(request, tmp_path_factory):
    dtype = request.param
    if backend.name() == "jax" and dtype == "float64":
        import jax

        # Without this JAX has no float64 at all.
        jax.config.update("jax_enable_x64", True)
        request.addfinalizer(lambda: jax.config.update("jax_enable_x64", False))
    model, averaging = made(dtype), averaging_of_all()
    recorder = Recorder(averaging, tmp_path_factory.mktemp(dtype))
    snapshots = SnapshotRecorder(recorder.folder / "snapshots", every=1)
    model.fit(X, Y, epochs=EPOCHS, callbacks=[averaging, recorder, snapshots], **FIT)
    first = keras.Model(model.inputs, model.layers[0].output)
    return Trained(dtype, model, averaging, recorder, DTYPES[dtype], first)


@pytest.fixture(scope="module")
def by_optimizer(trained):
    """The averages of an optimizer, and its iterates in float64."""
    model, iterates = made(trained.dtype, KERNELS), Iterates(every_batch=True)
    model.fit(X, Y, epochs=EPOCHS, callbacks=[iterates], **FIT)
    values = [[array.astype(np.float64) for array in one] for one in iterates.values]
    return find_averaged(model.optimizer), values


@pytest.fixture(params=["callback", "optimizer"])
def kept(request, trained):
    """Who keeps averages, and the iterates they are of."""
    if request.param == "optimizer":
        return request.getfixturevalue("by_optimizer")
    return trained.averaging, trained.recorder.iterates


def assert_close(actual, expected, iterates, tolerance):
    """Errors relative to the size of the variable's iterates."""
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        size = max(np.abs(iterate[index]).max() for iterate in iterates)
        np.testing.assert_allclose(np.asarray(a, np.float64), e, rtol=0, atol=tolerance * size)


def test_the_suite_has_every_kernel_and_every_policy():
    from tf_lrtraj.backend import batch_norm

    assert {type(kernel) for kernel in KERNELS.values()} == set(kernels.KERNELS.values())
    assert set(POLICIES) == set(batch_norm.POLICIES)


@pytest.mark.parametrize("name", KERNELS)
def test_an_online_average_is_the_kernels_weights_on_the_iterates(trained, kept, name):
    averages, iterates = kept
    assert len(iterates) == UPDATES + 1 and averages.num_updates == UPDATES
    actual = averages.get_average(name)
    wide = trained.dtype == "float64"
    assert {a.dtype.name for a in actual} <= ({"float64"} if wide else {"float32", "float64"})
    expected = average_of(KERNELS[name], iterates)
    assert_close(actual, expected, iterates, 1e-14 if wide else 5e-7)


def test_averages_of_the_snapshots_are_the_kernels_weights_on_the_iterates(trained):
    iterates, statistics = trained.recorder.iterates, trained.recorder.statistics
    found = average_snapshots(trained.recorder.folder / "snapshots", KERNELS, progress=False)
    # They are rounded once, to the dtype of the variables or to float32 if that is wider.
    tolerance = 1e-14 if trained.dtype == "float64" else 2e-7
    for name, kernel in KERNELS.items():
        assert found[name].exact
        weights, moments = found[name].arrays[:-2], found[name].arrays[-2:]
        assert_close(weights, average_of(kernel, iterates), iterates, tolerance)
        assert_close(moments, average_of(kernel, statistics), statistics, tolerance)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_borrowed_model_holds_the_average_and_its_statistics(trained, name, policy):
    model, averaging = trained.model, choose(trained.averaging, policy)
    recorder = trained.recorder
    raw = arrays_of(statistics_of(model))
    with averaging.borrowed(name):
        held, statistics = trainable(model), arrays_of(statistics_of(model))
        # Compiled, as TensorFlow then rounds a product and its bias once, in place of twice.
        if policy == "recompute":
            seen = np.asarray(trained.first.predict(X, batch_size=21, verbose=0), np.float64)
    variables = zip(averaging.get_average(name), model.trainable_variables, strict=True)
    cast = [keras.Variable(average, dtype=variable.dtype) for average, variable in variables]
    assert_same_bits(held, arrays_of(cast))
    if policy == "copy":
        assert_same_bits(statistics, raw)
    elif policy == "average":
        expected = average_of(KERNELS[name], recorder.statistics)
        tolerance = max(1e-6, 1.01 * trained.roundoff)
        assert_close(statistics, expected, recorder.statistics, tolerance)
    else:
        # The first layer's inputs do not depend on statistics, so its moments are exact
        # though the batches hold 21, 21, 21 and 1 examples.
        mean, variance = statistics
        tolerance = max(3e-7, 1.01 * trained.roundoff)
        if backend.name() == "jax" and trained.dtype.startswith("mixed"):
            tolerance = 2.0**-8  # compiled, the layer's output is not rounded to what `seen` is
        np.testing.assert_allclose(
            mean.astype(np.float64), seen.mean(0), rtol=tolerance, atol=tolerance * seen.std()
        )
        np.testing.assert_allclose(variance.astype(np.float64), seen.var(0), rtol=4 * tolerance)


@pytest.mark.parametrize("policy", POLICIES)
def test_borrowing_gives_everything_back_to_the_bit(trained, policy):
    model, averaging = trained.model, choose(trained.averaging, policy)
    before = state_of(model)
    for name in ("ema", "signed"):
        with averaging.borrowed(name):
            model.predict(X, verbose=0)
            model.evaluate(X, Y, verbose=0)
        assert_unchanged(model, before)
    with pytest.raises(KeyboardInterrupt), averaging.borrowed("swa"):
        raise KeyboardInterrupt
    assert_unchanged(model, before)


@pytest.fixture(scope="module")
def evaluated(trained):
    """What `evaluate` gives with recomputed statistics; it has changed nothing."""
    averaging = choose(trained.averaging, "recompute")
    before, state = state_of(trained.model), arrays_of(averaging.state.variables)
    results = averaging.evaluate((X, Y))
    assert_unchanged(trained.model, before)
    assert_same_bits(arrays_of(averaging.state.variables), state)
    return results


def test_evaluating_every_average_changes_nothing(evaluated):
    assert list(evaluated) == ["raw", "raw_running", *KERNELS]
    assert all(np.isfinite(metrics["loss"]) for metrics in evaluated.values())


@in_float32
def test_evaluate_gives_what_each_set_of_weights_gives_alone(trained, evaluated):
    model, averaging = trained.model, choose(trained.averaging, "recompute")

    def alone():
        return pytest.approx(model.evaluate(X, Y, verbose=0, return_dict=True), rel=1e-6)

    assert evaluated["raw_running"] == alone()
    for name in KERNELS:
        with averaging.borrowed(name):
            assert evaluated[name] == alone()


@in_float32
def test_raw_weights_are_shown_with_statistics_as_fresh_as_those_of_averages(trained, evaluated):
    # The weights of now, as an average of one iterate, with recomputed statistics.
    now = WeightAveraging({"now": kernels.Window(1)}, batch_norm_data=X)
    now.set_model(trained.model)
    assert evaluated["raw"] == pytest.approx(now.evaluate((X, Y))["now"], rel=1e-6)
    assert abs(evaluated["raw"]["loss"] - evaluated["raw_running"]["loss"]) > 1e-3
    copied = WeightAveraging({"now": kernels.Window(1)}, batch_norm="copy")
    copied.set_model(trained.model)
    assert list(copied.evaluate(VALIDATION)) == ["raw", "now"]


@in_float32
def test_a_saved_model_predicts_what_the_borrowed_one_does_and_can_be_trained(trained, tmp_path):
    model, averaging = trained.model, choose(trained.averaging, "recompute")
    averaging.save("ema", tmp_path / "ema.keras")
    with averaging.borrowed("ema"):
        expected = model.predict(X, verbose=0)
    loaded = keras.saving.load_model(tmp_path / "ema.keras")
    assert_same_bits(trainable(loaded), averaging.get_average("ema"))
    np.testing.assert_allclose(loaded.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-6)
    loaded.fit(X, Y, **FIT)
    assert [path.name for path in tmp_path.iterdir()] == ["ema.keras"]
    with pytest.raises(ValueError, match=r"must end in '\.keras'.*ema\.h5"):
        averaging.save("ema", tmp_path / "ema.h5")


def test_a_state_saved_at_any_step_goes_on_to_the_same_bits(trained):
    model, averaging = trained.model, choose(trained.averaging, "average")
    recorder = trained.recorder
    expected = arrays_of(averaging.state.variables)
    resumed = averaging
    if trained.dtype == "float32":  # compiling takes seconds
        resumed = averaging_of_all()
        resumed.set_model(model)
    followed = [*model.trainable_variables, *statistics_of(model)]
    own = arrays_of(followed)
    for step in range(1, UPDATES + 1, 1 if trained.dtype == "float32" else 6):
        resumed.load_state(recorder.folder / f"{step}.npz")
        assert resumed.num_updates == step
        for later in range(step + 1, UPDATES + 1):
            backend.assign(followed, [*recorder.iterates[later], *recorder.statistics[later]])
            resumed.update()
        assert_same_bits(arrays_of(resumed.state.variables), expected)
    backend.assign(followed, own)


def test_training_is_the_same_without_averages(trained):
    plain = made(trained.dtype)
    plain.fit(X, Y, epochs=EPOCHS, **FIT)
    assert_same_bits(arrays_of(plain.variables), arrays_of(trained.model.variables))
