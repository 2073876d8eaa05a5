"""Averages of `AveragedOptimizer` in Keras' own files, and after a process was killed."""

import contextlib
import random
import signal
import time

import keras
import numpy as np
import pytest
from helpers import TEST_PATHS, assert_same_bits, average_of, run_python, start_python
from keras_helpers import (
    Iterates,
    KillAfter,
    Killed,
    X,
    arrays_of,
    assert_follows,
    fit,
    network,
    trainable,
)

from tf_lrtraj import AveragedOptimizer, kernels
from tf_lrtraj.averaging.averaged_optimizer import find_averaged

KERNELS = {
    "ema": kernels.Exponential(0.9),
    "long": kernels.Exponential(0.9999),
    "window": kernels.Window(3, every=2),
    "two_point": kernels.TwoPoint(6),
}


def made(averages=KERNELS, **options):
    optimizer = AveragedOptimizer(keras.optimizers.Adam(0.01), averages)
    return network(optimizer, norm=True, **options)


def found_in(optimizer):
    """Every array of every average."""
    return {
        f"{name} {index}": array
        for name in optimizer.averages
        for index, array in enumerate(optimizer.get_average(name))
    }


@pytest.fixture(scope="module")
def trained():
    """A model after one epoch."""
    model = made()
    fit(model)
    return model


@pytest.fixture(scope="module")
def uninterrupted():
    """Weights and averages after five epochs."""
    model = made()
    fit(model, epochs=5)
    return trainable(model), found_in(model.optimizer)


def assert_ended(model, uninterrupted):
    assert_same_bits(trainable(model), uninterrupted[0])
    assert_same_bits(found_in(model.optimizer), uninterrupted[1])


# Files ----------------------------------------------------------------------------------------


def test_a_saved_model_goes_on_to_the_bits_of_one_that_was_not(trained, uninterrupted, tmp_path):
    trained.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.num_updates == 4
    assert_same_bits(found_in(loaded.optimizer), found_in(trained.optimizer))
    fit(loaded, epochs=4)
    assert_ended(loaded, uninterrupted)


def momentum():
    return keras.optimizers.SGD(0.05, momentum=0.9)


def several():
    parts = keras.optimizers.OptimizerMap(momentum(), {".*kernel": keras.optimizers.Adam(0.01)})
    return keras.optimizers.MultiOptimizer(parts)


WRAPPED = {
    "scaled inside": lambda: AveragedOptimizer(
        keras.optimizers.LossScaleOptimizer(momentum()), KERNELS
    ),
    "scaled outside": lambda: keras.optimizers.LossScaleOptimizer(
        AveragedOptimizer(momentum(), KERNELS)
    ),
    "several": lambda: AveragedOptimizer(several(), KERNELS),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_optimizers_are_saved_whole(name, tmp_path):
    model = network(WRAPPED[name]())
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        fit(each)
    assert_same_bits(trainable(loaded), trainable(model))
    first, second = (find_averaged(each.optimizer) for each in (loaded, model))
    assert first.num_updates == second.num_updates == 8
    assert_same_bits(found_in(first), found_in(second))


def test_a_saved_model_serves_without_this_package(trained, tmp_path):
    path, inputs = tmp_path / "model.keras", tmp_path / "inputs.npy"
    trained.save(path)
    np.save(inputs, X)
    program = (
        "import sys, keras, numpy as np\n"
        f"model = keras.saving.load_model({str(path)!r}, compile=False)\n"
        f"outputs = model.predict(np.load({str(inputs)!r}), verbose=0)\n"
        f"np.save({str(tmp_path / 'outputs.npy')!r}, outputs)\n"
        "assert not [name for name in sys.modules if name.startswith('tf_lrtraj')]\n"
    )
    run_python("-c", program)
    expected = trained.predict(X, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), expected, rtol=1e-6, atol=1e-6)


def test_a_weights_file_holds_the_averages(trained, tmp_path):
    path = tmp_path / "model.weights.h5"
    trained.save_weights(path)
    model = made()
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    assert_same_bits(arrays_of(model.optimizer.variables), arrays_of(trained.optimizer.variables))
    assert_same_bits(found_in(model.optimizer), found_in(trained.optimizer))


OTHERS = {
    "other kernels": (lambda: made({**KERNELS, "ema": kernels.Exponential(0.5)}), r"0\.5.*0\.9,"),
    "another order": (lambda: made(dict(reversed(KERNELS.items()))), "keeps the averages .* holds"),
    "other weights": (lambda: made(units=5), "shape"),
    "not built": (made, r"call `optimizer\.build\(model\.trainable_variables\)`"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_file_of_other_averages_is_refused(other, trained, tmp_path):
    make, message = OTHERS[other]
    path = tmp_path / "model.weights.h5"
    trained.save_weights(path)
    model = make()
    if other != "not built":
        model.optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match=message):
        model.load_weights(path)


def test_a_file_without_averages_is_refused_and_its_weights_can_be_loaded_first(tmp_path):
    plain, path = network(), tmp_path / "model.weights.h5"
    fit(plain)
    plain.save_weights(path)
    optimizer = AveragedOptimizer(keras.optimizers.SGD(0.05), KERNELS)
    model = network(optimizer)
    message = r"the file holds no averages\. To load the weights alone, load them before `compile`"
    with pytest.raises(ValueError, match=message):
        model.load_weights(path)
    model = network()
    model.load_weights(path)
    model.compile(optimizer, "mse")
    iterates = Iterates()
    fit(model, iterates)
    assert_same_bits(iterates.values[0], trainable(plain))
    assert_follows(optimizer, iterates.values)


def test_orbax_checkpoints_hold_the_averages(uninterrupted, tmp_path):
    pytest.importorskip("orbax.checkpoint")
    checkpoint = keras.callbacks.OrbaxCheckpoint(str(tmp_path), save_freq="epoch")
    keras.utils.clear_session()  # names begin anew, as in another process
    model = made()
    fit(model, checkpoint, epochs=2)
    checkpoint.wait_until_finished()
    model_found = found_in(model.optimizer)
    keras.utils.clear_session()
    resumed = made()
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(str(tmp_path))
    assert resumed.optimizer.num_updates == 8
    assert_same_bits(found_in(resumed.optimizer), model_found)
    fit(resumed, epochs=3)
    assert_ended(resumed, uninterrupted)


# BackupAndRestore -----------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [9, 14])
def test_killed_and_restarted_at_epochs_to_the_bit(batches, uninterrupted, tmp_path):
    for callbacks in ([KillAfter(batches)], []):
        model = made()
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        with contextlib.suppress(Killed):
            fit(model, *callbacks, backup, epochs=5)
    assert_ended(model, uninterrupted)


def test_killed_between_epochs_averages_are_of_the_steps_that_count(tmp_path):
    # Keras begins an epoch it had saved in the middle of again, with the weights of the middle.
    iterates = []

    class Keep(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.keep()

        def on_train_end(self, logs=None):
            self.keep()

        def keep(self):
            del iterates[self.model.optimizer.num_updates :]
            iterates.append(trainable(self.model))

    for batches in (8, 4, 1000):
        model = made()
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"), save_freq=3)
        with contextlib.suppress(Killed):
            fit(model, Keep(), KillAfter(batches), backup, epochs=3)
    assert len(iterates) > 13
    assert_follows(model.optimizer, iterates)


# Trains slowly, so that a signal finds it in the middle; keeps every iterate, by its number.
PROGRAM = """
import pathlib, sys, time
import keras, numpy as np
from keras_helpers import fit, trainable
from test_saved_optimizer import made

folder, save_freq = pathlib.Path(sys.argv[1]), sys.argv[2]

class Keep(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        self.keep()
        time.sleep(0.03)
    def on_train_end(self, logs=None):
        self.keep()
    def keep(self):
        step = self.model.optimizer.num_updates
        np.savez(folder / f"iterate_{step}.npz", *trainable(self.model))
        print("step", step, flush=True)

class Marked(keras.callbacks.BackupAndRestore):
    def _save_model(self):
        marker = folder / "writing"
        marker.touch()
        super()._save_model()
        marker.unlink()

model = made()
freq = save_freq if save_freq == "epoch" else int(save_freq)
backup = Marked(str(folder / "backup"), save_freq=freq)
fit(model, Keep(), backup, epochs=12, batch_size=8)
for name in model.optimizer.averages:
    np.savez(folder / f"{name}.npz", *model.optimizer.get_average(name))
print("updates", model.optimizer.num_updates, flush=True)
"""


def arrays(path):
    with np.load(path) as stored:
        return [stored[f"arr_{index}"] for index in range(len(stored.files))]


def kill(process, marker):
    """Kills a process, but not while Keras writes its backup in place, which then is lost."""
    while True:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.02)
        if not marker.exists():
            process.send_signal(signal.SIGKILL)
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)


def lives(folder, save_freq, kills, generator):
    """Runs the program, kills it at random moments, and returns the number of updates."""
    folder.mkdir()
    environment = {"PYTHONPATH": TEST_PATHS}
    for life in range(kills + 1):
        process = start_python("-c", PROGRAM, folder, save_freq, env=environment, stderr=None)
        with process:
            lines = []
            for line in process.stdout:
                lines.append(line.split())
                if life < kills:
                    time.sleep(generator.uniform(0.3, 1.2))
                    kill(process, folder / "writing")
                    break
        assert process.returncode == (-signal.SIGKILL if life < kills else 0)
    assert lines[-1][0] == "updates"
    return int(lines[-1][1])


@pytest.mark.long
@pytest.mark.parametrize("save_freq", ["epoch", 5])
def test_a_process_killed_at_random_moments_ends_with_the_same_averages(save_freq, tmp_path):
    generator = random.Random()
    killed = tmp_path / "killed"
    updates = lives(killed, save_freq, 3, generator)
    if save_freq == "epoch":
        whole = tmp_path / "whole"
        assert lives(whole, save_freq, 0, generator) == updates == 96
        for name in KERNELS:
            assert_same_bits(arrays(killed / f"{name}.npz"), arrays(whole / f"{name}.npz"))
    assert updates >= 96
    iterates = [arrays(killed / f"iterate_{step}.npz") for step in range(updates + 1)]
    for name, kernel in KERNELS.items():
        for actual, expected in zip(
            arrays(killed / f"{name}.npz"), average_of(kernel, iterates), strict=True
        ):
            np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)
