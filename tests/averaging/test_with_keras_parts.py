"""`WeightAveraging` beside Keras' own callbacks, optimizers, policies and kinds of model.

Written for every Keras backend; what a backend does not have is left out there.
"""

import contextlib
import json
import shutil

import keras
import numpy as np
import pytest
from keras import ops

from tf_lrtraj import WeightAveraging, backend, kernels

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 5)).astype(np.float32)
Y = (X @ RNG.normal(size=(5, 1)) + 0.3 * RNG.normal(size=(64, 1))).astype(np.float32)
VALIDATION = (X[:24], Y[:24])
AVERAGES = {"ema": kernels.Exponential(0.8), "swa": kernels.Uniform(start=3)}
RAW_ONLY = {"shuffle": False, "batch_size": 16, "verbose": 0}
on_tensorflow = pytest.mark.skipif(backend.name() != "tensorflow", reason="a part of TensorFlow")


def network(batch_norm=True, dropout=0.0, **compile_options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    x = keras.layers.Dense(4)(inputs)
    if batch_norm:
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=1)(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    compile_model(model, **compile_options)
    return model


def compile_model(model, **options):
    options = {"optimizer": keras.optimizers.SGD(0.05, momentum=0.9), **options}
    model.compile(**{"loss": "mse", "metrics": ["mae"], **options})
    return model


def averaging_of(averages=AVERAGES, **options):
    return WeightAveraging(averages, **{"batch_norm_data": X, **options})


def numpy_of(variables):
    return [np.array(ops.convert_to_numpy(v.value)) for v in variables]


class Iterates(keras.callbacks.Callback):
    """Keeps the trainable weights at the start and after every move of the optimizer."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_epoch_begin(self, epoch, logs=None):
        if not self.values:
            self.values = [numpy_of(self.model.trainable_variables)]
            self.count = int(self.model.optimizer.iterations)

    def on_train_batch_end(self, batch, logs=None):
        count = int(self.model.optimizer.iterations)
        if count != self.count:
            self.values.append(numpy_of(self.model.trainable_variables))
            self.count = count


def assert_follows(averaging, iterates, tolerance=2e-6):
    """Every average is `kernel.weights` applied to the iterates, in float64."""
    assert averaging.num_updates == len(iterates) - 1
    for name, kernel in averaging.averages.items():
        weights = kernel.weights(len(iterates) - 1)
        for index, actual in enumerate(averaging.get_average(name)):
            expected = sum(
                w * value[index].astype(np.float64)
                for w, value in zip(weights, iterates, strict=True)
            )
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def fit(model, *callbacks, epochs=3, x=X, y=Y, **options):
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **{**RAW_ONLY, **options})


# Metrics of averages in `logs` --------------------------------------------------------------


class EvaluatesByHand(keras.callbacks.Callback):
    """What `validation_data` should have put into `logs`, from `borrowed` alone."""

    def __init__(self, averaging):
        super().__init__()
        self.averaging, self.history = averaging, []

    def on_epoch_end(self, epoch, logs=None):
        with self.averaging.borrowed("ema") as model:
            self.history.append(model.evaluate(*VALIDATION, verbose=0, return_dict=True)["mae"])


def test_metrics_of_averages_are_in_the_history_and_training_is_not_disturbed():
    averaging = averaging_of(validation_data=VALIDATION)
    by_hand = EvaluatesByHand(averaging)
    model, plain = network(), network()
    history = fit(model, averaging, by_hand, validation_data=VALIDATION).history
    expected = fit(plain, validation_data=VALIDATION).history
    assert history["val_ema_mae"] == pytest.approx(by_hand.history, rel=1e-6)
    assert set(history) - set(expected) == {
        f"val_{name}_{metric}" for name in ("raw", *AVERAGES) for metric in ("loss", "mae")
    }
    assert {key: history[key] for key in expected} == expected
    assert_same(numpy_of(model.variables), numpy_of(plain.variables))


def test_validation_can_be_rarer_than_epochs_and_weighs_samples():
    weights = np.linspace(0, 1, 24).astype(np.float32)
    averaging = averaging_of(validation_data=(*VALIDATION, weights), validation_freq=2)
    model = network()
    history = fit(model, averaging, epochs=5).history
    assert len(history["val_swa_loss"]) == 2
    fit(model, averaging, epochs=1)  # a second fit counts its epochs anew
    results = averaging.evaluate((*VALIDATION, weights))
    with averaging.borrowed("swa"):
        errors = (model.predict(VALIDATION[0], verbose=0) - VALIDATION[1])[:, 0] ** 2
    assert results["swa"]["loss"] == pytest.approx(float(np.mean(weights * errors)), rel=1e-5)


def test_early_stopping_goes_by_an_average_and_restores_raw_weights():
    averaging, iterates = averaging_of(validation_data=VALIDATION), Iterates()
    monitored = {"monitor": "val_ema_loss", "mode": "max"}  # the loss falls: epoch 1 is the best
    stopping = keras.callbacks.EarlyStopping(**monitored, patience=2, restore_best_weights=True)
    model = network()
    history = fit(model, averaging, iterates, stopping, epochs=10).history
    assert len(history["val_ema_loss"]) == 3 and stopping.best == history["val_ema_loss"][0]
    # The model is back at its raw weights of epoch 1; the averages are of the last step.
    assert_same(numpy_of(model.trainable_variables), iterates.values[4])
    assert_follows(averaging, iterates.values)


def test_model_checkpoint_saves_raw_weights_and_save_best_the_average(tmp_path):
    averaging = averaging_of(
        validation_data=VALIDATION,
        save_best={"ema": tmp_path / "ema.keras"},
        monitor="mae",
        mode="min",
    )
    checkpoint = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "raw.keras"), monitor="val_ema_mae", mode="min", save_best_only=True
    )
    kept = {}

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept[epoch] = numpy_of(self.model.weights), averaging.get_average("ema")

    # Uphill again from the fourth epoch on.
    grow = keras.callbacks.LearningRateScheduler(lambda epoch: 0.02 if epoch < 3 else -0.03)
    model = network(optimizer=keras.optimizers.SGD(0.02))
    history = fit(model, averaging, checkpoint, grow, Keep(), epochs=6).history
    values = history["val_ema_mae"]
    best = int(np.argmin(values))
    assert best < 5 and averaging.best == {"ema": values[best]}
    raw, average = kept[best]
    loaded = keras.saving.load_model(tmp_path / "raw.keras")
    assert_same(numpy_of(loaded.weights), raw)
    loaded = keras.saving.load_model(tmp_path / "ema.keras")
    assert_same(numpy_of(loaded.trainable_variables), average)
    # With the batch-norm statistics it was evaluated with.
    assert loaded.evaluate(*VALIDATION, verbose=0)[1] == pytest.approx(values[best], rel=1e-5)


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path):
    averaging = averaging_of(
        {"ema": kernels.Exponential(0.5)},
        validation_data=(X, Y * np.float32(np.nan)),
        save_best={"ema": tmp_path / "ema.keras"},
    )
    fit(network(), averaging, epochs=2)
    assert averaging.best == {} and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reader", ["EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau"])
def test_callbacks_that_monitor_an_average_must_come_later(reader, tmp_path):
    arguments = {"monitor": "val_swa_loss", "mode": "min"}
    if reader == "ModelCheckpoint":
        arguments["filepath"] = str(tmp_path / "raw.keras")
    other = getattr(keras.callbacks, reader)(**arguments)
    averaging = averaging_of(validation_data=VALIDATION)
    with pytest.raises(ValueError, match=f"WeightAveraging before {reader}.*'val_swa_loss'"):
        fit(network(), other, averaging)
    assert "val_swa_loss" in fit(network(), averaging_of(validation_data=VALIDATION), other).history


def test_callbacks_that_do_not_depend_on_averages_may_come_first(tmp_path):
    early = keras.callbacks.EarlyStopping(monitor="loss")
    fit(network(), early, averaging_of(validation_data=VALIDATION), epochs=1)
    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    fit(network(), log, averaging_of(), epochs=1)
    with pytest.raises(ValueError, match="WeightAveraging before CSVLogger"):
        fit(network(), log, averaging_of(validation_data=VALIDATION), epochs=1)


def test_names_that_collide_with_metrics_of_the_model_are_refused():
    inputs = keras.Input((5,))
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in ("ema", "b")}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"ema": "mse", "b": "mse"}, metrics={"ema": "mae", "b": "mae"})
    targets = {"ema": Y, "b": Y}
    averaging = averaging_of({"ema": kernels.Uniform()}, validation_data=(X, targets))
    with pytest.raises(ValueError, match="'ema' needs another name: 'val_ema_"):
        fit(model, averaging, y=targets, validation_data=(X, targets))


def test_reduce_lr_on_plateau_goes_by_an_average():
    averaging = averaging_of(validation_data=VALIDATION)
    reduce = keras.callbacks.ReduceLROnPlateau(
        monitor="val_ema_loss", mode="max", factor=0.1, patience=1
    )
    history = fit(network(), averaging, reduce, epochs=4).history  # the loss falls: no "progress"
    assert history["learning_rate"] == pytest.approx([0.05, 0.05, 0.005, 0.0005])


def test_learning_rate_scheduler_and_averages():
    averaging, iterates = averaging_of(), Iterates()
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)
    fit(network(), averaging, iterates, scheduler)
    assert_follows(averaging, iterates.values)


@on_tensorflow
def test_tensorboard_has_the_metrics_of_averages(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.util import tensor_util

    averaging = averaging_of(validation_data=VALIDATION)
    history = fit(network(), averaging, keras.callbacks.TensorBoard(str(tmp_path))).history
    events = accumulator.EventAccumulator(str(tmp_path / "validation"))
    events.Reload()
    written = [
        float(tensor_util.make_ndarray(event.tensor_proto))
        for event in events.Tensors("epoch_ema_loss")
    ]
    assert written == pytest.approx(history["val_ema_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_best": {"ema": "a.keras"}}, "needs `validation_data`"),
        ({"save_best": {"emma": "a.keras"}, "validation_data": VALIDATION}, r"\['emma'\]"),
        ({"save_best": {"ema": "a.h5"}, "validation_data": VALIDATION}, "must end in '.keras'"),
        ({"monitor": "mae"}, "mode=None"),
        ({"mode": "auto"}, "mode='auto'"),
        ({"validation_freq": 0}, "validation_freq=0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        WeightAveraging(AVERAGES, **options)


def test_an_unknown_metric_to_go_by_is_named():
    save_best = {"ema": "never_written.keras"}
    averaging = averaging_of(
        validation_data=VALIDATION, save_best=save_best, monitor="auc", mode="max"
    )
    with pytest.raises(ValueError, match=r"\['loss', 'mae'\].*monitor='auc'"):
        fit(network(), averaging)


# BackupAndRestore ---------------------------------------------------------------------------


class Killed(Exception):
    pass


class KillAfter(keras.callbacks.Callback):
    """Ends the training as if the process had died: nothing is tidied up."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch, logs=None):
        self.batches -= 1
        if not self.batches:
            raise Killed


def run(folder, *more, save_freq="epoch", epochs=5, **backup_options):
    """One process' life: a fresh model and fresh callbacks."""
    backup = keras.callbacks.BackupAndRestore(str(folder), save_freq=save_freq, **backup_options)
    model = network(dropout=0.3)
    averaging = averaging_of(
        {**AVERAGES, "two_point": kernels.TwoPoint(5)},
        batch_norm={"ema": "average", "swa": "copy", "two_point": "copy"},
    )
    with contextlib.suppress(Killed):
        fit(model, averaging, *more, backup, epochs=epochs)
    return model, averaging


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run(tmp_path_factory.mktemp("uninterrupted") / "backup")


def assert_same_training(first, second):
    assert first[1].num_updates == second[1].num_updates
    assert_same(numpy_of(first[0].variables), numpy_of(second[0].variables))
    for name in first[1].averages:
        assert_same(first[1].get_average(name), second[1].get_average(name))


@pytest.mark.parametrize("batches", [9, pytest.param(12, marks=pytest.mark.long)])
def test_killed_and_restarted_at_epochs_to_the_bit(batches, uninterrupted, tmp_path):
    _, first = run(tmp_path / "b", KillAfter(batches))
    assert first.num_updates == batches
    names = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert [n for n in names if n.startswith("weight")] == [
        "weight_averaging.4.npz",
        "weight_averaging.8.npz",
    ]
    assert_same_training(run(tmp_path / "b"), uninterrupted)
    assert not (tmp_path / "b").exists()  # deleted with what Keras deletes


@pytest.mark.long
def test_killed_twice_between_epochs(tmp_path):
    # Keras begins an epoch it had saved in the middle of again, with the weights of the
    # middle; so the reference is NumPy's own average of the iterates that make up the run.
    iterates = []

    class Keep(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.add()

        def on_train_batch_end(self, batch, logs=None):
            self.add()

        def add(self):
            del iterates[int(self.model.optimizer.iterations) :]
            iterates.append(numpy_of(self.model.trainable_variables))

    for batches in (8, 4, 1000):
        _, averaging = run(tmp_path / "b", Keep(), KillAfter(batches), save_freq=3, epochs=3)
    assert averaging.num_updates == len(iterates) - 1 > 12
    assert_follows(averaging, iterates)


def test_a_kill_between_the_two_files_leaves_a_pair_that_fits(uninterrupted, tmp_path):
    # The averages of epoch 3 are on disk, the model that Keras saved is of epoch 2.
    class KillBeforeKerasSaves(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise Killed

    run(tmp_path / "b", KillBeforeKerasSaves())
    assert (tmp_path / "b" / "weight_averaging.12.npz").exists()
    assert_same_training(run(tmp_path / "b"), uninterrupted)


@pytest.mark.long
def test_the_older_of_two_checkpoints_of_keras(uninterrupted, tmp_path):
    run(tmp_path / "b", KillAfter(14), double_checkpoint=True)
    (tmp_path / "b" / "latest.weights.h5").write_bytes(b"not a checkpoint")
    assert_same_training(run(tmp_path / "b", double_checkpoint=True), uninterrupted)


@pytest.mark.long
def test_a_training_restored_at_its_end(uninterrupted, tmp_path):
    run(tmp_path / "b", delete_checkpoint=False)
    assert_same_training(run(tmp_path / "b"), uninterrupted)  # no epoch is left to train


def test_a_fit_that_failed_goes_on_in_the_same_process(uninterrupted, tmp_path):
    model, averaging = run(tmp_path / "b", KillAfter(10))
    # A new process has new streams; here the model's run on, so theirs are restored too.
    fit(model, averaging, keras.callbacks.BackupAndRestore(str(tmp_path / "b")), epochs=5)
    assert_same_training((model, averaging), uninterrupted)


def test_the_best_so_far_survives(tmp_path):
    def go(*more):
        averaging = averaging_of(
            validation_data=VALIDATION, save_best={"ema": tmp_path / "ema.keras"}
        )
        rate = keras.callbacks.LearningRateScheduler(lambda epoch: 0.05 if epoch < 2 else -0.1)
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "b"))
        with contextlib.suppress(Killed):
            fit(network(), averaging, *more, rate, backup, epochs=4)
        return averaging.best["ema"]

    best = go(KillAfter(11))  # in the third epoch, the first uphill
    saved = (tmp_path / "ema.keras").read_bytes()
    assert go() == best
    assert (tmp_path / "ema.keras").read_bytes() == saved


def test_a_restored_model_without_averages_that_fit_is_refused(tmp_path):
    run(tmp_path / "b", KillAfter(10))
    for path in (tmp_path / "b").glob("weight_averaging.*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"restored at iteration 8, and .* has no state"):
        run(tmp_path / "b")


@pytest.mark.long
def test_averages_of_another_training_at_the_same_step_are_refused(tmp_path):
    run(tmp_path / "b", KillAfter(10))
    other = network(dropout=0.3, optimizer=keras.optimizers.SGD(0.01))
    with pytest.raises(Killed):
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "c"))
        fit(other, averaging_of(), KillAfter(10), backup)
    shutil.copy(tmp_path / "c" / "weight_averaging.8.npz", tmp_path / "b")
    with pytest.raises(ValueError, match=r"restored at iteration 8, and .* has no state"):
        run(tmp_path / "b")


def test_backup_and_restore_must_come_later(tmp_path):
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "b"))
    with pytest.raises(ValueError, match="WeightAveraging before BackupAndRestore"):
        fit(network(), backup, averaging_of())


def test_state_of_other_kernels_is_refused(tmp_path):
    model = network()
    averaging = averaging_of()
    fit(model, averaging, epochs=1)
    averaging.save_state(tmp_path / "state.npz")
    other = averaging_of({**AVERAGES, "ema": kernels.Exponential(0.99)})
    other.set_model(model)
    with pytest.raises(ValueError, match=r"0\.99.*Received: .*state\.npz.* with .*0\.8"):
        other.load_state(tmp_path / "state.npz")


# Optimizers, precision ----------------------------------------------------------------------


def test_gradient_accumulation_counts_moves_of_the_weights():
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=3)
    averaging, iterates = averaging_of(), Iterates()
    fit(network(batch_norm=False, optimizer=optimizer), averaging, iterates)
    assert averaging.num_updates == 4  # 12 batches
    assert_follows(averaging, iterates.values)


@pytest.mark.skipif(backend.name() == "torch", reason="Keras itself refuses it there")
def test_several_steps_per_execution_are_refused_before_training():
    model = network(steps_per_execution=2)
    before = numpy_of(model.weights)
    with pytest.raises(ValueError, match="steps_per_execution=1"):
        fit(model, averaging_of())
    assert_same(numpy_of(model.weights), before)


def test_steps_that_loss_scaling_skips_are_not_counted():
    inner = keras.optimizers.SGD(0.05)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**15)
    x = X.copy()
    x[20] = np.inf  # one batch of four overflows
    averaging, iterates = averaging_of(batch_norm_data=X), Iterates()
    model = network(batch_norm=False, optimizer=optimizer)
    fit(model, averaging, iterates, x=x)
    assert averaging.num_updates == 9  # of 12
    assert float(ops.convert_to_numpy(optimizer.dynamic_scale)) == 2.0**12
    assert all(np.isfinite(value).all() for value in averaging.get_average("swa"))
    assert_follows(averaging, iterates.values)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_low_precision(policy):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy(previous)
    averaging, iterates = averaging_of(), Iterates()
    fit(model, averaging, iterates, epochs=2)
    weights = "bfloat16" if policy == "bfloat16" else "float32"
    assert {v.dtype for v in model.trainable_variables} == {weights}
    assert {value.dtype for value in averaging.get_average("ema")} == {np.dtype("float32")}
    assert_follows(averaging, iterates.values)
    before = numpy_of(model.variables)
    results = averaging.evaluate(VALIDATION)
    assert all(np.isfinite(metrics["loss"]) for metrics in results.values())
    assert_same(numpy_of(model.variables), before)


# Kinds of model -----------------------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(4, activation="tanh")
        self.last = keras.layers.Dense(1)

    def call(self, inputs):
        return self.last(self.hidden(inputs))


@pytest.mark.parametrize("kind", [Subclassed, lambda: keras.Sequential([keras.layers.Dense(1)])])
def test_a_model_without_weights_before_fit_works_or_is_told_to_be_built(kind):
    keras.utils.set_random_seed(0)
    model = compile_model(kind())
    averaging, iterates = averaging_of(validation_data=VALIDATION), Iterates()
    if backend.name() == "tensorflow":  # there Keras builds the model in its first step only
        with pytest.raises(ValueError, match="no weights yet: build it"):
            fit(model, averaging)
        model(X[:1])
    fit(model, averaging, iterates)
    assert_follows(averaging, iterates.values)


def test_weights_shared_between_layers_are_averaged_once():
    shared = keras.layers.Dense(5)
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Dense(1)(shared(ops.tanh(shared(inputs)))))
    averaging, iterates = averaging_of(), Iterates()
    fit(compile_model(model), averaging, iterates)
    assert len(averaging.get_average("ema")) == 4
    assert_follows(averaging, iterates.values)


def test_several_inputs_and_outputs_as_dicts():
    inputs = {"a": keras.Input((5,), name="a"), "b": keras.Input((5,), name="b")}
    x = keras.layers.BatchNormalization()(keras.layers.Concatenate()([inputs["a"], inputs["b"]]))
    outputs = {name: keras.layers.Dense(1, name=name)(x) for name in ("first", "second")}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"first": "mse", "second": "mae"})
    x, y = {"a": X, "b": X[::-1].copy()}, {"first": Y, "second": -Y}
    averaging = averaging_of(batch_norm_data=[{k: v[:32] for k, v in x.items()}] * 2)
    averaging.validation_data = (x, y)
    iterates = Iterates()
    history = fit(model, averaging, iterates, x=x, y=y).history
    assert_follows(averaging, iterates.values)
    with averaging.borrowed("ema"):
        norm = next(v for v in model.layers if isinstance(v, keras.layers.BatchNormalization))
        mean = ops.convert_to_numpy(norm.moving_mean.value)
        predicted = model.predict(x, verbose=0)
    np.testing.assert_allclose(
        mean, np.concatenate([X[:32], X[::-1][:32]], 1).mean(0), rtol=1e-4, atol=1e-6
    )
    loss = np.mean((predicted["first"] - Y) ** 2) + np.mean(np.abs(predicted["second"] + Y))
    assert history["val_ema_loss"][-1] == pytest.approx(float(loss), rel=1e-4)


def test_a_dict_of_arrays_as_batch_norm_data():
    inputs = {"a": keras.Input((5,), name="a")}
    outputs = keras.layers.Dense(1)(keras.layers.BatchNormalization()(inputs["a"]))
    model = compile_model(keras.Model(inputs, outputs))
    averaging = averaging_of(batch_norm_data={"a": X}, batch_size=10)
    fit(model, averaging, x={"a": X})
    with averaging.borrowed("ema"):
        mean = ops.convert_to_numpy(model.layers[1].moving_mean.value)
    np.testing.assert_allclose(mean, X.mean(0), rtol=1e-5, atol=1e-6)


# Several fits, custom loops, any moment -----------------------------------------------------


def test_a_second_fit_goes_on_counting():
    averaging, iterates = averaging_of(), Iterates()
    model = network()
    fit(model, averaging, iterates, epochs=1)
    fit(model, averaging, iterates, epochs=2)
    assert_follows(averaging, iterates.values)


def test_training_in_between_without_the_callback_is_told():
    averaging = averaging_of()
    model = network()
    fit(model, averaging, epochs=1)
    fit(model, epochs=1)
    with pytest.warns(UserWarning, match="from 4 to 8 iterations without WeightAveraging"):
        fit(model, averaging, epochs=1)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.filterwarnings("ignore:1 weights have become trainable", "ignore:2 weights have")
def test_averages_go_on_over_freezing_and_unfreezing(trainable):
    averaging, iterates = averaging_of({**AVERAGES, "two": kernels.TwoPoint(5)}), []
    model = network(batch_norm=False)
    variables = model.trainable_variables

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model  # on JAX this brings the variables up to date
            iterates.append(numpy_of(variables))

    iterates.append(numpy_of(variables))
    for now in (not trainable, trainable, not trainable):
        model.layers[1].trainable = now
        compile_model(model)
        fit(model, averaging, Keep(), epochs=1)
    model.layers[1].trainable = True
    assert averaging.num_updates == 12
    assert_follows(averaging, iterates)


def test_weights_that_become_trainable_are_told():
    averaging, model = averaging_of(), network(batch_norm=False)
    model.layers[1].trainable = False
    compile_model(model)
    fit(model, averaging, epochs=1)
    model.layers[1].trainable = True
    compile_model(model)
    assert len(averaging.get_average("ema")) == 4  # those that have not joined, as they are
    with pytest.warns(UserWarning, match="2 weights have become trainable and join .* update 4"):
        fit(model, averaging, epochs=1)


def test_another_model_is_refused_until_the_averages_are_reset():
    averaging, iterates = averaging_of(), Iterates()
    fit(network(), averaging, epochs=1)
    with pytest.raises(ValueError, match=r"Use a new WeightAveraging for another model.*reset"):
        fit(network(), averaging, epochs=1)
    averaging.reset()
    fit(network(), averaging, iterates, epochs=1)
    assert_follows(averaging, iterates.values)


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
    averaging, iterates = averaging_of(), Iterates()
    model, plain = network(dropout=0.2), network(dropout=0.2)
    history = fit(model, averaging, iterates, LooksAround(averaging)).history
    assert history == fit(plain).history
    assert_same(numpy_of(model.variables), numpy_of(plain.variables))
    assert_follows(averaging, iterates.values)


def test_an_average_before_training_is_the_initial_weights():
    averaging = averaging_of()
    model = network()
    averaging.set_model(model)
    assert averaging.evaluate(VALIDATION)["ema"]["loss"] > 0
    assert_same(averaging.get_average("ema"), numpy_of(model.trainable_variables))
    # Weights loaded after that are where the training, and the averages, begin.
    model.set_weights([w + 1 for w in model.get_weights()])
    iterates = Iterates()
    fit(model, averaging, iterates)
    assert_follows(averaging, iterates.values)


def test_train_on_batch_and_update_by_hand():
    averaging = averaging_of()
    model = network()
    averaging.set_model(model)
    averaging.get_average("ema")
    iterates = [numpy_of(model.trainable_variables)]
    for start in range(0, 64, 16):
        model.train_on_batch(X[start : start + 16], Y[start : start + 16])
        averaging.update()
        iterates.append(numpy_of(model.trainable_variables))
    assert_follows(averaging, iterates)
    seen = Iterates()
    seen.set_model(model)
    fit(model, averaging, seen, epochs=1)  # and `fit` goes on from there
    assert_follows(averaging, iterates + seen.values[1:])


def test_what_a_state_file_holds(tmp_path):
    averaging = averaging_of()
    fit(network(), averaging, epochs=1)
    averaging.save_state(tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz", allow_pickle=False) as stored:
        assert int(stored["num_updates"]) == int(stored["iterations"]) == 4
        assert json.loads(str(stored["averages"]))["averages"]["ema"]["decay"] == 0.8
