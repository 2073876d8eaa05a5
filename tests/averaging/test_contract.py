"""What every kernel × dtype × batch-norm policy must keep, on whichever Keras backend runs.

One tiny network per dtype is trained once, with every kernel beside it.  Its
iterates are kept in float64, and everything below is checked against them:

* an online average is `kernel.weights` applied to the iterates;
* batch-norm statistics are what their policy says;
* borrowing gives back every variable to the bit;
* a state saved at any step goes on to the same bits.
"""

import dataclasses
import random
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tf_lrtraj import WeightAveraging, backend, kernels

RNG = np.random.default_rng(0)
INPUTS = (RNG.normal(size=(40, 5)) * 2 + 1).astype(np.float32)
LABELS = (INPUTS.sum(1) > 5).astype(np.int32)
BATCH = 8
EPOCHS = 3
UPDATES = EPOCHS * len(INPUTS) // BATCH

KERNELS = {
    "ema": kernels.Exponential(0.8),
    "ema_start_every": kernels.Exponential(0.9, start=4, every=2),
    "ema_warmup": kernels.Exponential(0.95, warmup=1),
    "ema_debias": kernels.Exponential(0.9, debias=True),
    "power": kernels.PowerFunction(2.0, start=1),
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


def numpy(variables):
    return [np.array(a) for a in backend.to_numpy(backend.values(variables))]


def everything(model):
    """Every value that belongs to a run, by name."""
    groups = {
        "model": model.variables,  # with metrics, optimizer and the seeds of dropout
        "weights": model.non_trainable_variables,
        "metrics": model.metrics_variables,
        "optimizer": model.optimizer.variables,
        "global seed": [keras.src.random.seed_generator.global_seed_generator().state],
    }
    values = {f"{k} {i}": a for k, group in groups.items() for i, a in enumerate(numpy(group))}
    return values, [random.getstate(), np.random.get_state()[1].tobytes()]  # noqa: NPY002


def assert_same(before, after):
    assert before[1] == after[1]
    assert list(before[0]) == list(after[0])
    for key, old in before[0].items():
        assert old.dtype == after[0][key].dtype
        assert old.tobytes() == after[0][key].tobytes(), key


def network(dtype):
    keras.utils.set_random_seed(7)
    options = {"dtype": keras.DTypePolicy(dtype)}
    inputs = keras.Input((5,), dtype="float64" if dtype == "float64" else "float32")
    x = keras.layers.Dense(6, use_bias=False, name="first", **options)(inputs)
    x = keras.layers.BatchNormalization(momentum=0.7, name="norm", **options)(x)
    x = keras.layers.Dropout(0.2, **options)(keras.layers.ReLU(**options)(x))
    model = keras.Model(inputs, keras.layers.Dense(2, **options)(x))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(
        optimizer=keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0)
        if dtype == "mixed_float16"
        else optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


class Recorder(keras.callbacks.Callback):
    """Keeps every iterate in float64, and the state of an averaging after every step."""

    def __init__(self, averaging, folder):
        super().__init__()
        self.iterates, self.statistics = [], []
        self.averaging, self.folder = averaging, folder

    def keep(self):
        model = self.model
        self.iterates.append([a.astype(np.float64) for a in numpy(model.trainable_variables)])
        self.statistics.append([a.astype(np.float64) for a in numpy(statistics_of(model))])

    def on_train_begin(self, logs=None):
        self.keep()

    def on_train_batch_end(self, batch, logs=None):
        self.keep()
        self.averaging.save_state(self.folder / f"{len(self.iterates) - 1}.npz")


def statistics_of(model):
    norms = [la for la in model.layers if isinstance(la, keras.layers.BatchNormalization)]
    return [v for norm in norms for v in (norm.moving_mean, norm.moving_variance)]


@dataclasses.dataclass
class Trained:
    dtype: str
    model: Any
    averaging: WeightAveraging
    recorder: Recorder
    roundoff: float

    def expected(self, kernel, values):
        weights = kernel.weights(len(values) - 1)
        return [
            sum(w * value[i] for w, value in zip(weights, values, strict=True))
            for i in range(len(values[0]))
        ]


def averaging_of_all():
    # With "average" the state follows the statistics too.  The policy has its effect when an
    # average is read, so tests choose it then.
    return WeightAveraging(KERNELS, batch_norm="average", batch_norm_data=INPUTS, batch_size=13)


def choose(averaging, policy):
    averaging.batch_norm = {name: policy for name in KERNELS}
    return averaging


@pytest.fixture(scope="module", params=DTYPES)
def trained(request, tmp_path_factory):
    dtype = request.param
    if keras.backend.backend() == "jax" and dtype == "float64":
        import jax

        # Without this JAX has no float64 at all.
        jax.config.update("jax_enable_x64", True)
        request.addfinalizer(lambda: jax.config.update("jax_enable_x64", False))
    model = network(dtype)
    averaging = averaging_of_all()
    recorder = Recorder(averaging, tmp_path_factory.mktemp(dtype))
    model.fit(
        INPUTS,
        LABELS,
        batch_size=BATCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[averaging, recorder],
    )
    return Trained(dtype, model, averaging, recorder, DTYPES[dtype])


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
def test_an_online_average_is_the_kernels_weights_on_the_iterates(trained, name):
    iterates = trained.recorder.iterates
    assert len(iterates) == UPDATES + 1
    assert trained.averaging.num_updates == UPDATES
    actual = trained.averaging.get_average(name)
    wide = trained.dtype == "float64"
    assert {a.dtype.name for a in actual} <= ({"float64"} if wide else {"float32", "float64"})
    expected = trained.expected(KERNELS[name], iterates)
    assert_close(actual, expected, iterates, 1e-14 if wide else 5e-7)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_borrowed_model_holds_the_average_and_its_statistics(trained, name, policy):
    model, averaging = trained.model, choose(trained.averaging, policy)
    recorder = trained.recorder
    raw = numpy(statistics_of(model))
    with averaging.borrowed(name):
        held = numpy(model.trainable_variables)
        statistics = numpy(statistics_of(model))
        seen = ops.convert_to_numpy(model.get_layer("first")(INPUTS)).astype(np.float64)
    for own, average, variable in zip(
        held, averaging.get_average(name), model.trainable_variables, strict=True
    ):
        cast = numpy([keras.Variable(average, dtype=variable.dtype)])[0]
        assert own.tobytes() == cast.tobytes()
    if policy == "copy":
        for own, theirs in zip(statistics, raw, strict=True):
            assert own.tobytes() == theirs.tobytes()
    elif policy == "average":
        expected = trained.expected(KERNELS[name], recorder.statistics)
        tolerance = max(1e-6, 1.01 * trained.roundoff)
        assert_close(statistics, expected, recorder.statistics, tolerance)
    else:
        # The first layer's inputs do not depend on statistics, so its moments are exact
        # though the batches hold 13, 13, 13 and 1 examples.
        mean, variance = statistics[:2]
        tolerance = max(3e-7, 1.01 * trained.roundoff)
        if keras.backend.backend() == "jax" and trained.dtype.startswith("mixed"):
            tolerance = 2.0**-8  # compiled, the layer's output is not rounded to what `seen` is
        np.testing.assert_allclose(
            mean.astype(np.float64), seen.mean(0), rtol=tolerance, atol=tolerance * seen.std()
        )
        np.testing.assert_allclose(variance.astype(np.float64), seen.var(0), rtol=4 * tolerance)


@pytest.mark.parametrize("policy", POLICIES)
def test_borrowing_gives_everything_back_to_the_bit(trained, policy):
    model, averaging = trained.model, choose(trained.averaging, policy)
    before = everything(model)
    for name in ("ema", "signed"):
        with averaging.borrowed(name):
            model.predict(INPUTS, verbose=0)
            model.evaluate(INPUTS, LABELS, verbose=0)
        assert_same(before, everything(model))
    with pytest.raises(KeyboardInterrupt), averaging.borrowed("swa"):
        raise KeyboardInterrupt
    assert_same(before, everything(model))


def test_evaluating_every_average_changes_nothing(trained):
    averaging = choose(trained.averaging, "recompute")
    before = everything(trained.model)
    state = numpy(averaging.state.variables)
    results = averaging.evaluate((INPUTS, LABELS))
    assert list(results) == ["raw", "raw_running", *KERNELS]
    assert_same(before, everything(trained.model))
    for old, new in zip(state, numpy(averaging.state.variables), strict=True):
        assert old.tobytes() == new.tobytes()


def test_a_state_saved_at_any_step_goes_on_to_the_same_bits(trained):
    model, averaging = trained.model, choose(trained.averaging, "average")
    recorder = trained.recorder
    expected = numpy(averaging.state.variables)
    resumed = averaging
    if trained.dtype == "float32":  # compiling takes seconds
        resumed = averaging_of_all()
        resumed.set_model(model)
    followed = [*model.trainable_variables, *statistics_of(model)]
    own = numpy(followed)
    for step in range(1, UPDATES + 1, 1 if trained.dtype == "float32" else 6):
        resumed.load_state(recorder.folder / f"{step}.npz")
        assert resumed.num_updates == step
        for later in range(step + 1, UPDATES + 1):
            backend.assign(followed, [*recorder.iterates[later], *recorder.statistics[later]])
            resumed.update()
        for a, b in zip(expected, numpy(resumed.state.variables), strict=True):
            assert a.tobytes() == b.tobytes()
    backend.assign(followed, own)


def test_training_is_the_same_without_averages(trained):
    plain = network(trained.dtype)
    plain.fit(
        INPUTS, LABELS, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[]
    )
    for a, b in zip(numpy(trained.model.variables), numpy(plain.variables), strict=True):
        assert a.tobytes() == b.tobytes()
