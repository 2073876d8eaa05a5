"""`WeightAveraging()` beside an `AveragedOptimizer`: what it serves from the optimizer."""

import copy

import keras
import numpy as np
import pytest
from helpers import assert_same_bits
from keras_helpers import FIT, VALIDATION, KillAfter, Killed, X, Y, everything, fit, network

from tf_lrtraj import AveragedOptimizer, WeightAveraging, backend, kernels

AVERAGES = {
    "ema": kernels.Exponential(0.8),
    "swa": kernels.Uniform(start=3),
    "window": kernels.Window(3),
}
POLICIES = {"ema": "recompute", "swa": "recompute", "window": "copy"}
STEPS = 1 if backend.name() == "torch" else 3  # of an execution


def inner():
    return keras.optimizers.SGD(0.05, momentum=0.9)


def model_with(optimizer=None, **options):
    optimizer = optimizer or AveragedOptimizer(inner(), AVERAGES)
    return network(optimizer, norm=True, **{"steps_per_execution": STEPS, **options})


def served(**options):
    return WeightAveraging(batch_norm_data=X, batch_size=21, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(model and callback with the optimizer's averages, the same with the callback's own)."""
    folder = tmp_path_factory.mktemp("best")
    options = {"batch_norm": POLICIES, "validation_data": VALIDATION}
    best = {"ema": folder / "ema.keras"}
    model, callback = model_with(), served(save_best=best, **options)
    history = fit(model, callback, epochs=2)
    own = WeightAveraging(AVERAGES, batch_norm_data=X, batch_size=21, **options)
    other = network(inner(), norm=True)
    expected = fit(other, own, epochs=2)
    return model, callback, history, other, own, expected, folder


def test_it_serves_what_a_callback_of_its_own_would(trained):
    _, callback, history, _, own, expected, _ = trained
    assert callback.num_updates == own.num_updates == 8
    assert callback.averages == AVERAGES and callback.batch_norm == POLICIES
    assert_same_bits(
        [a for name in AVERAGES for a in callback.get_average(name)],
        [a for name in AVERAGES for a in own.get_average(name)],
    )
    wanted = own.evaluate((X, Y))
    assert callback.evaluate((X, Y)) == {
        name: pytest.approx(metrics, rel=1e-6) for name, metrics in wanted.items()
    }
    averaged = [key for key in expected.history if key.startswith("val_")]
    assert len(averaged) == 8  # two metrics of the raw weights and of each average
    for key in averaged:
        assert history.history[key] == pytest.approx(expected.history[key], rel=1e-6)


def test_it_lends_and_saves_them(trained, tmp_path):
    model, callback, _, other, own, _, folder = trained
    before = everything(model)
    with callback.borrowed("swa"), own.borrowed("swa"):
        lent = model.predict(X, verbose=0)
        np.testing.assert_allclose(lent, other.predict(X, verbose=0), rtol=1e-5, atol=1e-6)
    assert_same_bits(everything(model), before)
    callback.save("ema", tmp_path / "ema.keras")
    loaded = keras.saving.load_model(tmp_path / "ema.keras")
    with callback.borrowed("ema"):
        expected = model.predict(X, verbose=0)
    np.testing.assert_allclose(loaded.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-6)
    assert [path.name for path in folder.iterdir()] == ["ema.keras"]
    # The saved model goes on with the averages it was saved with.
    loaded.fit(X, Y, **FIT)
    assert loaded.optimizer.num_updates == 12


def test_copies_find_the_averages_in_the_model(trained):
    model, callback, *_ = trained
    twin = copy.deepcopy(callback)
    twin.set_model(model)
    assert_same_bits(twin.get_average("ema"), callback.get_average("ema"))


def test_before_the_first_step_an_average_is_the_weights():
    model, callback = model_with(), served()
    callback.set_model(model)
    assert_same_bits(callback.get_average("swa"), model.get_weights()[:4] + model.get_weights()[6:])
    with callback.borrowed("swa"):
        pass


@pytest.mark.parametrize("save_freq", ["epoch", 3])
def test_a_killed_training_goes_on_to_the_same_averages(tmp_path, save_freq):
    def training(name, *others):
        model = network(AveragedOptimizer(inner(), AVERAGES), norm=True, dropout=0.2)
        best = {"ema": tmp_path / f"{name}.keras"}
        callback = served(validation_data=VALIDATION, save_best=best)
        restore = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=save_freq)
        return model, callback, lambda: fit(model, callback, restore, *others, epochs=3)

    whole, callback, run = training("whole")
    run()
    _, _, killed = training("resumed", KillAfter(7))
    with pytest.raises(Killed):
        killed()
    resumed, again, run = training("resumed")
    run()
    if save_freq == "epoch":
        assert_same_bits(resumed.get_weights(), whole.get_weights())
        for name in AVERAGES:
            assert_same_bits(again.get_average(name), callback.get_average(name))
        assert again.best == callback.best
    # A backup within an epoch begins the epoch anew, as Keras does; the averages go with it.
    assert again.num_updates == int(resumed.optimizer.iterations)


@pytest.mark.skipif(backend.name() == "torch", reason="Keras makes one step at a time on torch")
def test_a_backup_is_in_step_with_executions_of_several_steps(tmp_path):
    class Kept(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            saved.append((batch, len(list((tmp_path / "backup").glob("weight_averaging.*")))))

    saved = []
    restore = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=4)
    model, callback = model_with(steps_per_execution=2), served()
    fit(model, callback, restore, Kept(), epochs=2)
    keras_saves = []
    twin = keras.callbacks.BackupAndRestore(tmp_path / "twin", save_freq=4)
    for batch, _ in saved:
        keras_saves.append(twin._should_save_on_batch(batch))
        if batch == 3:
            twin._last_batch_seen = 0
    # One more file after each batch after which Keras saves (two are kept).
    counts = [count for _, count in saved]
    assert counts == [min(sum(keras_saves[: i + 1]), 2) for i in range(len(counts))]


def test_loss_scaling_may_wrap_the_optimizer():
    optimizer = keras.optimizers.LossScaleOptimizer(
        AveragedOptimizer(inner(), AVERAGES), initial_scale=2.0
    )
    model, callback = model_with(optimizer), served()
    fit(model, callback)
    assert callback.num_updates == 4
    assert sorted(callback.evaluate((X, Y))) == ["ema", "raw", "raw_running", "swa", "window"]


def test_it_resets_them():
    model, callback = model_with(), served()
    fit(model, callback)
    callback.reset()
    assert callback.num_updates == 0
    fit(model, callback)
    assert callback.num_updates == 4


def test_what_it_cannot_do_is_said_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"`averages` may be omitted only .* AveragedOptimizer"):
        fit(network(), WeightAveraging())
    with pytest.raises(ValueError, match=r"`batch_norm` must be 'recompute' or 'copy' .*average"):
        fit(model_with(), WeightAveraging(batch_norm="average"))
    with pytest.raises(ValueError, match=r"`batch_norm` must be a policy for each of .*'swa'"):
        fit(model_with(), WeightAveraging(batch_norm={"ema": "copy"}))
    with pytest.raises(
        ValueError, match=r"`save_best` must be a dict of paths, with keys among .*'emma'"
    ):
        fit(model_with(), served(validation_data=VALIDATION, save_best={"emma": "emma.keras"}))
    callback = served()
    callback.set_model(model_with())
    for call in (
        callback.update,
        lambda: callback.save_state(tmp_path / "state.npz"),
        lambda: callback.load_state(tmp_path / "state.npz"),
    ):
        with pytest.raises(RuntimeError, match="AveragedOptimizer"):
            call()
    with pytest.raises(KeyError, match=r"must be one of .*Received: 'emma'"):
        callback.get_average("emma")
    assert not list(tmp_path.iterdir())
