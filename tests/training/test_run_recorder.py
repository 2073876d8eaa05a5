"""`RunRecorder`: what a `fit` leaves in a workdir, however it ends, and the page drawn from it."""

import contextlib
import copy
import gc
import json
import pathlib
import re

import keras
import numpy as np
import pytest

from tf_lrtraj import (
    RunRecorder,
    WeightAveraging,
    kernels,
    probes,
    records,
    report,
    schedules,
)
from tf_lrtraj.backend.weight_updates import steps_made

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int32)
STEPS = 4  # of an epoch, in batches of 16


def built(rate=0.1, seed=3, **options):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(rate, **options)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def fitted(model, callbacks, epochs=3, **options):
    given = {"batch_size": 16, "shuffle": False, "verbose": 0, "validation_data": (X, Y)}
    return model.fit(X, Y, epochs=epochs, callbacks=callbacks, **{**given, **options})


def averaging(**options):
    averages = {"ema": kernels.Exponential(0.9), "ema_slow": kernels.Exponential(0.99)}
    return WeightAveraging(averages, batch_norm_data=X, validation_data=(X, Y), **options)


def test_rows_are_what_fit_says(tmp_path):
    history = fitted(built(), [averaging(), RunRecorder(tmp_path, seed=3, examples=64)]).history
    run = records.load_run(tmp_path)
    assert run.status == "done" and run.run["total_steps"] == 3 * STEPS
    assert run.weights_names() == ["raw", "ema", "ema_slow"]
    assert list(run.averages) == ["ema", "ema_slow"]
    # As in `lrtraj-train`, raw weights come with recomputed statistics first, then with running.
    for weights, prefix in (("raw", "raw_"), ("ema", "ema_"), ("ema_slow", "ema_slow_")):
        for metric in ("loss", "accuracy"):
            steps, values = run.series(metric, weights, "validation")
            assert steps.tolist() == [4, 8, 12]
            np.testing.assert_array_equal(values, history[f"val_{prefix}{metric}"])
    np.testing.assert_array_equal(run.train_series("loss")[1], history["loss"])
    assert {row["batch_norm"] for row in run.rows("eval", "ema")} == {"recompute"}
    raw = run.rows("eval", "raw")
    assert [row["batch_norm"] for row in raw] == ["recompute", "running"] * 3
    assert [row["loss"] for row in raw[1::2]] == history["val_loss"]
    assert [row["epoch"] for row in run.rows("train")] == [1.0, 2.0, 3.0]
    assert [row["step"] for row in run.timing()] == [4, 8, 12]


def test_windows_of_training_means(tmp_path):
    """Means over the steps since the row before, against losses of single steps."""
    losses = []

    class Single(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            part = slice(16 * batch, 16 * batch + 16)
            outputs = self.model.stateless_call(
                self.model.trainable_variables, self.model.non_trainable_variables,
                X[part], training=True,
            )[0]  # fmt: skip
            losses.append(float(keras.ops.mean(self.model.loss(Y[part], outputs))))

    fitted(built(), [Single(), RunRecorder(tmp_path, every=3)])
    steps, values = records.load_run(tmp_path).train_series("loss")
    assert steps.tolist() == [3, 6, 9, 12]
    np.testing.assert_allclose(values, np.reshape(losses, (4, 3)).mean(1), rtol=2e-5)


RATES = {
    "constant": (lambda: 0.1, None, lambda t: 0.1),
    "cosine": (
        lambda: keras.optimizers.schedules.CosineDecay(0.2, 12),
        None,
        lambda t: 0.1 * (1 + np.cos(np.pi * t / 12)),
    ),
    "changed by a callback": (
        lambda: 0.1,
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 / (epoch + 1)),
        lambda t: 0.1 / (t // STEPS + 1),
    ),
}


@pytest.mark.parametrize("name", RATES)
def test_the_rate_of_every_update(name, tmp_path):
    rate, callback, expected = RATES[name]
    callbacks = [callback()] if callback else []
    fitted(built(rate()), [*callbacks, RunRecorder(tmp_path)])
    run = records.load_run(tmp_path)
    wanted = [expected(t) for t in range(12)]
    np.testing.assert_allclose(run.schedule(), wanted, rtol=1e-5)
    np.testing.assert_allclose(run.train_series("learning_rate")[1], wanted[3::4], rtol=1e-5)


class StopAt(keras.callbacks.Callback):
    """Ends training at a step, by what is given."""

    def __init__(self, step, error=None):
        super().__init__()
        self.step, self.error = step, error

    def on_train_batch_end(self, batch, logs=None):
        if steps_made(self.model) == self.step:
            if self.error is not None:
                raise self.error
            self.model.stop_training = True


ENDS = {
    "done": (list, 0.1, "done", None),
    "stopped early": (lambda: [StopAt(6)], 0.1, "done", "ended at step 6 of the 12 planned"),
    "not finite": (list, 1e30, "diverged", "not finite from step"),
    "stopped for it": (
        lambda: [keras.callbacks.TerminateOnNaN()], 1e30, "diverged", "not finite from step",
    ),
    "by hand": (lambda: [StopAt(6, KeyboardInterrupt())], 0.1, "interrupted", "exception"),
    "by an error": (lambda: [StopAt(6, OSError("full"))], 0.1, "interrupted", "exception"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_how_a_run_ends(name, tmp_path):
    callbacks, rate, status, message = ENDS[name]
    with contextlib.suppress(KeyboardInterrupt, OSError):
        fitted(built(rate), [RunRecorder(tmp_path), *callbacks()])
    gc.collect()
    run = records.load_run(tmp_path)
    assert run.status == status
    assert message in run.run["message"] if message else run.run["message"] is None
    assert report.write_report(tmp_path).exists()


def test_data_that_ends_without_notice(tmp_path):
    """Keras on TensorFlow counts a step that is not made where such data ends."""

    def batches():
        for _ in range(3):
            yield X[:16], Y[:16]

    model, recorder = built(), RunRecorder(tmp_path)
    for _ in range(2):
        model.fit(batches(), epochs=1, verbose=0, callbacks=[recorder])
    run = records.load_run(tmp_path)
    assert [row["step"] for row in run.rows("train")] == [3, 6]
    assert run.run["total_steps"] == run.schedule().size == 6


def test_a_recorder_goes_on_after_an_exception(tmp_path):
    model, recorder = built(), RunRecorder(tmp_path)
    with pytest.raises(KeyboardInterrupt) as kept:  # its traceback keeps `fit` alive
        fitted(model, [recorder, StopAt(6, KeyboardInterrupt())])
    fitted(model, [recorder], epochs=1)
    run = records.load_run(tmp_path)
    assert run.status == "done" and run.run["resumed_at"] == [6] and run.last_step() == 10
    assert kept is not None


def test_copies_as_tuners_make_them(tmp_path):
    recorder = RunRecorder(tmp_path, every=2)
    fitted(built(), [copy.deepcopy(recorder)], epochs=1)
    assert records.load_run(tmp_path).train_series("loss")[0].tolist() == [2, 4]
    copy.deepcopy(recorder)


def test_records_stand_while_it_trains(tmp_path):
    """What a process killed in the third epoch would leave."""
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            run = records.load_run(tmp_path)
            seen.append((run.status, run.last_step(), run.schedule().size, run.run["seed"]))

    fitted(built(), [RunRecorder(tmp_path, seed=3), Look()])
    assert seen == [("incomplete", 4 * epoch, 12, 3) for epoch in range(3)]


REFUSED = {
    "another run": lambda path: [RunRecorder(path)],
    "before the averages": lambda path: [RunRecorder(path / "new"), averaging()],
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_first_step(name, tmp_path):
    fitted(built(), [RunRecorder(tmp_path)], epochs=1)
    before = (tmp_path / records.METRICS).read_bytes()
    model = built()
    message = "holds a run already" if name == "another run" else "before RunRecorder"
    with pytest.raises(ValueError, match=message):
        fitted(model, REFUSED[name](tmp_path), epochs=1)
    assert steps_made(model) == 0
    assert (tmp_path / records.METRICS).read_bytes() == before


def test_arguments_out_of_range(tmp_path):
    for options, message in (
        ({"every": 0}, "`every` must be"),
        ({"examples": True}, "`examples` must be"),
        ({"split": ""}, "`split` must be"),
        ({"config": {"model": object()}}, "`config` must hold what JSON can"),
    ):
        with pytest.raises(ValueError, match=message):
            RunRecorder(tmp_path, **options)


def test_a_later_fit_goes_on(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fitted(built(), [RunRecorder(whole)], epochs=3)
    model, recorder = built(), RunRecorder(parts)
    fitted(model, [recorder], epochs=1)
    fitted(model, [recorder], epochs=2)
    assert (parts / records.METRICS).read_bytes() == (whole / records.METRICS).read_bytes()
    run = records.load_run(parts)
    assert run.status == "done" and run.run["total_steps"] == 12
    assert run.run["resumed_at"] == [4] and run.schedule().size == 12
    with pytest.raises(records.RecordError, match="holds a run already"):
        fitted(built(), [recorder], epochs=1)  # another model, at step 0


def test_a_killed_run_goes_on_beside_a_backup(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fitted(built(), [RunRecorder(whole, every=2)], epochs=3)

    def callbacks():
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        return [RunRecorder(killed, every=2), backup]

    with contextlib.suppress(KeyboardInterrupt):
        fitted(built(), [*callbacks(), StopAt(7, KeyboardInterrupt())], epochs=3)
    gc.collect()
    assert records.load_run(killed).status == "interrupted"
    fitted(built(), callbacks(), epochs=3)
    run = records.load_run(killed)
    assert run.status == "done" and run.run["resumed_at"] != []
    np.testing.assert_allclose(
        run.series("loss", split="validation")[1][-1],
        records.load_run(whole).series("loss", split="validation")[1][-1],
        rtol=1e-5,
    )


def test_a_matched_run_is_compared_on_the_page(tmp_path):
    kernel = kernels.Uniform(start=4)
    workdir = tmp_path / "run"
    callback = WeightAveraging({"swa": kernel}, batch_norm_data=X, validation_data=(X, Y))
    fitted(built(), [callback, RunRecorder(workdir, seed=3)])
    schedule = schedules.EquivalentSchedule(kernel, base=0.1, num_steps=12)
    matched = RunRecorder(records.matched_dir(workdir, "swa"), seed=3)
    fitted(built(schedule), [matched])
    other = records.load_run(workdir).matched()["swa"]
    assert other.run["matched_to"] == {
        "average": "swa", "kernel": kernel.get_config(), "curvature": 0.0, "momentum": 0.0,
    }  # fmt: skip
    np.testing.assert_allclose(other.schedule(), schedule.rates, rtol=1e-6)
    page = report.write_report(workdir).read_text(encoding="utf-8")
    assert "equivalent to swa" in page and "Same seed" in page


def test_probes_are_on_the_page(tmp_path):
    batches = probes.take_batches(X, Y, 16, 3)
    recorder = probes.ProbeRecorder(
        tmp_path / "probes", {"gradients": lambda s: probes.Gradients(s, None, batches)}, every=8
    )
    fitted(built(), [RunRecorder(tmp_path), recorder])
    page = report.write_report(tmp_path).read_text(encoding="utf-8")
    assert "Alignment of batch gradients" in page and "step 8" in page


def test_config_says_what_was_trained(tmp_path):
    fitted(built(momentum=0.5), [RunRecorder(tmp_path, config={"note": "wide"})], epochs=1)
    config = json.loads((tmp_path / records.CONFIG).read_text())
    assert config["note"] == "wide" and config["model"]["parameters"] == 4 * 6 + 6 + 12 + 14
    assert config["optimizer"]["config"]["momentum"] == 0.5


def test_the_documented_pair_of_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (pathlib.Path(__file__).parents[2] / "docs" / "records.md").read_text(encoding="utf-8")
    section = page[page.index("## Recording `fit`") :]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    x = RNG.normal(size=(256, 4)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int32)
    exec(code, {"x_train": x, "y_train": y, "x_test": x[:64], "y_test": y[:64]})
    run = records.load_run("runs/mine")
    matched = run.matched()["swa"]
    assert run.status == matched.status == "done"
    # Until the average begins the two runs are one and the same.
    steps, losses = run.train_series("loss")
    early = steps <= 40
    assert early.any()
    np.testing.assert_allclose(matched.train_series("loss")[1][early], losses[early], rtol=1e-5)
    page = pathlib.Path("runs/mine/report.html").read_text(encoding="utf-8")
    assert "equivalent to swa" in page and "Alignment of batch gradients" in page
