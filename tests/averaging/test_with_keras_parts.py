"""`WeightAveraging` beside Keras' own callbacks, and with every kind of model.

Written for every Keras backend; what a backend does not have is left out there.
"""

import contextlib
import json
import shutil

import keras
import numpy as np
import pytest
from helpers import assert_same_bits
from keras import ops
from keras_helpers import (
    VALIDATION,
    Iterates,
    KillAfter,
    Killed,
    X,
    Y,
    arrays_of,
    assert_follows,
    fit,
    network,
    trainable,
)

from tf_lrtraj import WeightAveraging, backend, kernels

AVERAGES = {"ema": kernels.Exponential(0.8), "swa": kernels.Uniform(start=3)}


def averaging_of(averages=AVERAGES, **options):
    return WeightAveraging(averages, **{"batch_norm_data": X, **options})


def validated(**options):
    return averaging_of(validation_data=VALIDATION, **options)


# Metrics of averages in `logs` --------------------------------------------------------------


class EvaluatesByHand(keras.callbacks.Callback):
    """What `validation_data` should have put into `logs`, from `borrowed` alone."""

    def __init__(self, averaging):
        super().__init__()
        self.averaging, self.history = averaging, []

    def on_epoch_end(self, epoch, logs=None):
        with self.averaging.borrowed("ema") as model:
            self.history.append(model.evaluate(*VALIDATION, verbose=0, return_dict=True)["mae"])


def test_metrics_of_averages_are_in_the_history_and_training_is_not_disturbed(tmp_path):
    averaging = validated()
    by_hand = EvaluatesByHand(averaging)
    board = keras.callbacks.TensorBoard(str(tmp_path)) if backend.name() == "tensorflow" else None
    model, plain = network(norm=True), network(norm=True)
    callbacks = [averaging, by_hand, *([board] if board else [])]
    history = fit(model, *callbacks, epochs=3, validation_data=VALIDATION).history
    expected = fit(plain, epochs=3, validation_data=VALIDATION).history
    assert history["val_ema_mae"] == pytest.approx(by_hand.history, rel=1e-6)
    assert set(history) - set(expected) == {
        f"val_{name}_{metric}" for name in ("raw", *AVERAGES) for metric in ("loss", "mae")
    }
    assert {key: history[key] for key in expected} == expected
    assert_same_bits(arrays_of(model.variables), arrays_of(plain.variables))
    if board:
        assert events(tmp_path) == pytest.approx(history["val_ema_loss"], rel=1e-6)


def events(folder):
    """What TensorBoard shows of an average."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.util import tensor_util

    found = accumulator.EventAccumulator(str(folder / "validation"))
    found.Reload()
    tensors = [event.tensor_proto for event in found.Tensors("epoch_ema_loss")]
    return [float(tensor_util.make_ndarray(tensor)) for tensor in tensors]


def test_validation_can_be_rarer_than_epochs_and_weighs_samples():
    weights = np.linspace(0, 1, 24).astype(np.float32)
    averaging = averaging_of(validation_data=(*VALIDATION, weights), validation_freq=2)
    model = network()
    history = fit(model, averaging, epochs=5).history
    assert len(history["val_swa_loss"]) == 2
    fit(model, averaging)  # a second fit counts its epochs anew
    results = averaging.evaluate((*VALIDATION, weights))
    with averaging.borrowed("swa"):
        errors = (model.predict(VALIDATION[0], verbose=0) - VALIDATION[1])[:, 0] ** 2
    assert results["swa"]["loss"] == pytest.approx(float(np.mean(weights * errors)), rel=1e-5)


def test_early_stopping_goes_by_an_average_and_restores_raw_weights():
    averaging, iterates = validated(), Iterates()
    monitored = {"monitor": "val_ema_loss", "mode": "max"}  # the loss falls: epoch 1 is the best
    stopping = keras.callbacks.EarlyStopping(**monitored, patience=2, restore_best_weights=True)
    model = network()
    history = fit(model, averaging, iterates, stopping, epochs=10).history
    assert len(history["val_ema_loss"]) == 3 and stopping.best == history["val_ema_loss"][0]
    # The model is back at its raw weights of epoch 1; the averages are of the last step.
    assert_same_bits(trainable(model), iterates.values[4])
    assert_follows(averaging, iterates.values)


def test_model_checkpoint_saves_raw_weights_and_save_best_the_average(tmp_path):
    averaging = validated(save_best={"ema": tmp_path / "ema.keras"}, monitor="mae", mode="min")
    checkpoint = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "raw.keras"), monitor="val_ema_mae", mode="min", save_best_only=True
    )
    kept = {}

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept[epoch] = arrays_of(self.model.weights), averaging.get_average("ema")

    # Uphill again from the fourth epoch on.
    grow = keras.callbacks.LearningRateScheduler(lambda epoch: 0.02 if epoch < 3 else -0.03)
    model = network(keras.optimizers.SGD(0.02), norm=True)
    history = fit(model, averaging, checkpoint, grow, Keep(), epochs=6).history
    values = history["val_ema_mae"]
    best = int(np.argmin(values))
    assert best < 5 and averaging.best == {"ema": values[best]}
    raw, average = kept[best]
    loaded = keras.saving.load_model(tmp_path / "raw.keras")
    assert_same_bits(arrays_of(loaded.weights), raw)
    loaded = keras.saving.load_model(tmp_path / "ema.keras")
    assert_same_bits(trainable(loaded), average)
    # With the batch-norm statistics it was evaluated with.
    assert loaded.evaluate(*VALIDATION, verbose=0)[1] == pytest.approx(values[best], rel=1e-5)


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path):
    averaging = averaging_of(
        validation_data=(X, Y * np.float32(np.nan)), save_best={"ema": tmp_path / "ema.keras"}
    )
    fit(network(), averaging, epochs=2)
    assert averaging.best == {} and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reader", ["EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau"])
def test_callbacks_that_monitor_an_average_must_come_later(reader, tmp_path):
    arguments = {"monitor": "val_swa_loss", "mode": "min"}
    if reader == "ModelCheckpoint":
        arguments["filepath"] = str(tmp_path / "raw.keras")
    other = getattr(keras.callbacks, reader)(**arguments)
    with pytest.raises(ValueError, match=f"WeightAveraging before {reader}.*'val_swa_loss'"):
        fit(network(), other, validated())


def test_callbacks_that_do_not_depend_on_averages_may_come_first(tmp_path):
    early = keras.callbacks.EarlyStopping(monitor="loss")
    fit(network(), early, validated())
    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    fit(network(), log, averaging_of())
    with pytest.raises(ValueError, match="WeightAveraging before CSVLogger"):
        fit(network(), log, validated())


def test_names_that_collide_with_metrics_of_the_model_are_refused():
    inputs = keras.Input((6,))
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in ("ema", "b")}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"ema": "mse", "b": "mse"}, metrics={"ema": "mae", "b": "mae"})
    targets = {"ema": Y, "b": Y}
    averaging = averaging_of({"ema": kernels.Uniform()}, validation_data=(X, targets))
    with pytest.raises(ValueError, match="'ema' needs another name: 'val_ema_"):
        fit(model, averaging, y=targets, validation_data=(X, targets))


def test_reduce_lr_on_plateau_goes_by_an_average():
    reduce = keras.callbacks.ReduceLROnPlateau(
        monitor="val_ema_loss", mode="max", factor=0.1, patience=1
    )
    history = fit(network(), validated(), reduce, epochs=4).history  # the loss falls: no "progress"
    assert history["learning_rate"] == pytest.approx([0.05, 0.05, 0.005, 0.0005])


def test_an_unknown_metric_to_go_by_is_named():
    averaging = validated(save_best={"ema": "never_written.keras"}, monitor="auc", mode="max")
    with pytest.raises(ValueError, match=r"\['loss', 'mae'\].*monitor='auc'"):
        fit(network(), averaging)


def test_missing_batch_norm_data_is_told_before_training_and_refused_after():
    model = network(norm=True)
    averaging = WeightAveraging({"ema": kernels.Exponential(0.9)})
    with pytest.warns(UserWarning, match="`batch_norm_data` is missing"):
        fit(model, averaging)
    assert len(averaging.get_average("ema")) == len(model.trainable_variables)
    with pytest.raises(ValueError, match="needs `batch_norm_data`"), averaging.borrowed("ema"):
        pass
    averaging.batch_norm_data = X
    with averaging.borrowed("ema"):
        pass


# Arguments ----------------------------------------------------------------------------------

SAVE = {"validation_data": VALIDATION}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"averages": {}}, "non-empty dict"),
        ({"averages": {"raw": kernels.Uniform()}}, "'raw'"),
        ({"averages": {"a/b": kernels.Uniform()}}, "'a/b'"),
        ({"averages": {"ema": 0.99}}, "must be a kernel .* Received: 0.99"),
        ({"averages": {"a": {"kernel": "Uniform", "start": "1 fortnight"}}}, "start.*fortnight"),
        (
            {"averages": {"a": {"kernel": "Uniforn", "start": "1 epoch"}}},
            "Did you mean 'Uniform'.*Received: kernel='Uniforn'",
        ),
        ({"averages": {"a": {"kernel": "Exponential", "decay": 2}}}, "decay=2"),
        ({"batch_norm": "refresh"}, "must be one of .*'refresh'"),
        ({"batch_norm": {"ema": "copy"}}, "policy for each of"),
        ({"batch_norm": object()}, "batch_norm"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": None}, "batch_size"),
        ({"variables": "kernel"}, r"`variables` must be a function or None\. Received"),
        ({"on_non_finite": "drop"}, r"`on_non_finite` must be one of .*'drop'"),
        ({"monitor": "mae"}, "mode=None"),
        ({"monitor": []}, "monitor"),
        ({"mode": "auto"}, "mode='auto'"),
        ({"mode": []}, "mode"),
        ({"validation_freq": 0}, "validation_freq=0"),
        ({"save_best": {"ema": "a.keras"}}, "needs `validation_data`"),
        ({"save_best": 5}, "save_best"),
        ({"save_best": {"emma": "a.keras"}, **SAVE}, r"\['emma'\]"),
        ({"save_best": {"ema": "a.h5"}, **SAVE}, r"save_best\['ema'\].*must end in '.keras'"),
        (
            {"save_best": {"ema": "gs://no-such-bucket/ema.keras"}, **SAVE},
            r"save_best\['ema'\].*must be in an existing bucket",
        ),
        (
            {"save_best": {"ema": "nosuch://bucket/ema.keras"}, **SAVE},
            r"save_best\['ema'\].*begin with one of",
        ),
        (
            {"save_best": {"ema": "gs://bucket/ema.h5"}, **SAVE},
            r"save_best\['ema'\].*must end in '.keras'",
        ),
        ({"save_best": {"ema": b"ema.keras"}, **SAVE}, r"save_best\['ema'\].*must be a path"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightAveraging(**{"averages": AVERAGES, **arguments})


def test_an_average_asked_for_without_a_model():
    with pytest.raises(RuntimeError, match="has no model yet"):
        WeightAveraging(AVERAGES).get_average("ema")


# BackupAndRestore ---------------------------------------------------------------------------


def run(folder, *more, save_freq="epoch", epochs=5, **backup_options):
    """One process' life: a fresh model and fresh callbacks."""
    backup = keras.callbacks.BackupAndRestore(str(folder), save_freq=save_freq, **backup_options)
    model = network(norm=True, dropout=0.3)
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
    assert_same_bits(arrays_of(first[0].variables), arrays_of(second[0].variables))
    for name in first[1].averages:
        assert_same_bits(first[1].get_average(name), second[1].get_average(name))


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

    class Keep(Iterates):
        def keep(self, again=False):
            del iterates[int(self.model.optimizer.iterations) :]
            iterates.append(trainable(self.model))

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
        averaging = validated(save_best={"ema": tmp_path / "ema.keras"})
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
    with pytest.raises(ValueError, match=r"restored at iteration 8, but .* has no state"):
        run(tmp_path / "b")


@pytest.mark.long
def test_averages_of_another_training_at_the_same_step_are_refused(tmp_path):
    run(tmp_path / "b", KillAfter(10))
    other = network(keras.optimizers.SGD(0.01), norm=True, dropout=0.3)
    with pytest.raises(Killed):
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "c"))
        fit(other, averaging_of(), KillAfter(10), backup, epochs=3)
    shutil.copy(tmp_path / "c" / "weight_averaging.8.npz", tmp_path / "b")
    with pytest.raises(ValueError, match=r"restored at iteration 8, but .* has no state"):
        run(tmp_path / "b")


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


ARRANGEMENTS = {
    "listed": lambda averaging, backup: [averaging, backup],
    "forwarded": lambda averaging, backup: [Forwards(averaging), backup],
    "forwarded, out of sight": lambda averaging, backup: [Forwards(averaging, hide=True), backup],
    "both forwarded": lambda averaging, backup: [Forwards(averaging, backup)],
    "forwarded twice": lambda averaging, backup: [Forwards(Forwards(averaging), backup)],
}


def arranged(arrange, folder, *more):
    """A training with a backup; averages that end with the training."""
    averaging = WeightAveraging(AVERAGES)
    backup = keras.callbacks.BackupAndRestore(str(folder))
    fit(network(), *arrange(averaging, backup), *more, epochs=3)
    return averaging


@pytest.fixture(scope="module")
def unarranged(tmp_path_factory):
    return arranged(ARRANGEMENTS["listed"], tmp_path_factory.mktemp("unarranged") / "backup")


@pytest.mark.parametrize("arrange", ARRANGEMENTS.values(), ids=list(ARRANGEMENTS))
def test_backups_are_followed_however_callbacks_are_called(arrange, unarranged, tmp_path):
    with pytest.raises(Killed):
        arranged(arrange, tmp_path, KillAfter(9))
    again = arranged(arrange, tmp_path)
    assert again.num_updates == unarranged.num_updates == 12
    for name in AVERAGES:
        assert_same_bits(again.get_average(name), unarranged.get_average(name))


@pytest.mark.parametrize("wrap", [lambda averaging: averaging, Forwards])
def test_a_backup_before_the_averages_is_refused_at_the_start(wrap, tmp_path):
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "b"))
    with pytest.raises(ValueError, match="WeightAveraging before BackupAndRestore"):
        fit(network(), backup, wrap(averaging_of()))


def test_a_state_file_and_its_averages(tmp_path):
    model, averaging = network(), averaging_of()
    fit(model, averaging)
    path = tmp_path / "state.npz"
    averaging.save_state(path)
    with np.load(path, allow_pickle=False) as stored:
        assert int(stored["num_updates"]) == int(stored["iterations"]) == 4
        assert json.loads(str(stored["averages"]))["averages"]["ema"]["decay"] == 0.8
    for averages, message in [
        ({**AVERAGES, "ema": kernels.Exponential(0.99)}, r"0\.99.*Received: .*state\.npz.*0\.8"),
        ({"w": kernels.Window(2)}, "must hold the state of the averages"),
    ]:
        other = averaging_of(averages)
        other.set_model(model)
        with pytest.raises(ValueError, match=message):
            other.load_state(path)


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
    model = kind()
    model.compile(keras.optimizers.SGD(0.01), "mse")
    averaging, iterates = validated(), Iterates()
    if backend.name() == "tensorflow":  # there Keras builds the model in its first step only
        with pytest.raises(ValueError, match="no weights yet: build it"):
            fit(model, averaging)
        model(X[:1])
    fit(model, averaging, iterates)
    assert_follows(averaging, iterates.values)


def test_weights_shared_between_layers_are_averaged_once():
    shared = keras.layers.Dense(6)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(1)(shared(ops.tanh(shared(inputs)))))
    model.compile(keras.optimizers.SGD(0.01), "mse")
    averaging, iterates = averaging_of(), Iterates()
    fit(model, averaging, iterates)
    assert len(averaging.get_average("ema")) == 4
    assert_follows(averaging, iterates.values)


def test_several_inputs_and_outputs_as_dicts():
    inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((6,), name="b")}
    x = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    x = keras.layers.BatchNormalization(name="norm")(x)
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
        mean = ops.convert_to_numpy(model.get_layer("norm").moving_mean.value)
        predicted = model.predict(x, verbose=0)
    given = np.concatenate([X[:32], X[::-1][:32]], 1)
    np.testing.assert_allclose(mean, given.mean(0), rtol=1e-4, atol=1e-6)
    loss = np.mean((predicted["first"] - Y) ** 2) + np.mean(np.abs(predicted["second"] + Y))
    assert history["val_ema_loss"][-1] == pytest.approx(float(loss), rel=1e-4)
