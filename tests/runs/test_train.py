"""The main job on the embedded digits: records, replicas, resuming, faults."""

import json
import pathlib
import signal
import time

import keras
import numpy as np
import pytest
from helpers import run_python, start_python
from run_helpers import FINISHED, TINY, checkpoint_steps, checkpoint_values, make, tiny_config

from tf_lrtraj import kernels, records
from tf_lrtraj.runs import evaluate_run as evaluation
from tf_lrtraj.runs import train_run
from tf_lrtraj.runs.assembly import assemble
from tf_lrtraj.runs.components import load_dataset
from tf_lrtraj.runs.run_config import ConfigError, read_config, validate
from tf_lrtraj.training import host_memory, stopping
from tf_lrtraj.training.strategies import make_strategy


def test_a_run_leaves_complete_records(finished):
    run = records.load_run(finished)
    assert run.status == "done"
    assert run.run["total_steps"] == 26
    assert run.run["batch_norm"] == {
        "raw": "running",
        "ema": "recompute(2 batches)",
        "two_point": "average",
    }
    np.testing.assert_array_equal(run.schedule(), np.full(26, 0.1))
    steps, losses = run.train_series("loss")
    assert steps.tolist() == [4, 8, 12, 16, 20, 24, 26] and np.all(np.isfinite(losses))
    for weights in ("raw", "ema", "two_point"):
        steps, accuracy = run.series("accuracy", weights)
        assert steps.tolist() == [13, 26]
        assert np.all((accuracy >= 0) & (accuracy <= 1))
    assert {row["examples"] for row in run.rows("eval")} == {500}
    assert (finished / "report.html").stat().st_size > 10_000
    assert list((finished / "tensorboard").glob("events*"))


def test_a_logger_that_is_not_installed_is_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'tf_lrtraj\[trackio\]'"):
        make(tmp_path / "run", tiny_config(loggers=("trackio",)))
    assert not (tmp_path / "run").exists()


def test_the_matched_run_has_the_equivalent_schedule(finished):
    matched = records.load_run(finished).matched()["two_point"]
    assert matched.status == "done"
    # λ'_j = λ Σ_{k>j} c_k (1-β^{k-j}) / (1-β^{T-j}), summed as it stands (theory, section 4).
    c, beta = kernels.TwoPoint(6).weights(26), 0.3
    expected = [
        0.1 * sum(c[k] * (1 - beta ** (k - j)) for k in range(j + 1, 27)) / (1 - beta ** (26 - j))
        for j in range(26)
    ]
    np.testing.assert_allclose(matched.schedule(), expected, rtol=1e-12)
    assert matched.run["matched_to"]["average"] == "two_point"


def test_a_forked_matched_run_is_the_run_made_whole(finished, tmp_path):
    # The schedule equivalent to the average is the base rate until step 10 or so, and the
    # matched run took over the checkpoint of the last step before.
    forked = records.load_run(finished).matched()["two_point"]
    step = forked.run["forked_at"]
    schedule = forked.schedule()
    assert step > 0 and step % 5 == 0
    assert np.all(schedule[:step].astype(np.float32) == np.float32(0.1))
    config = {**read_config(finished / "matched" / "two_point"), "name": "whole"}
    dataset = train_run.load_dataset(config)
    strategy = make_strategy("one_device")
    train_run.OneRun(config, dataset, tmp_path, strategy, learning_rates=schedule).make()
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        finished / "matched" / "two_point" / "metrics.jsonl"
    ).read_bytes()
    ours, theirs = (
        checkpoint_values(tmp_path),
        checkpoint_values(finished / "matched" / "two_point"),
    )
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_saved_models_are_the_weights_that_were_evaluated(finished):
    dataset = train_run.load_dataset(read_config(finished))
    images, labels = dataset.arrays("test")
    run = records.load_run(finished)
    for name in ("raw", "ema", "two_point"):
        model = keras.saving.load_model(finished / "models" / f"{name}.keras")
        logits = model.predict(images, verbose=0)
        accuracy = (logits.argmax(-1) == labels).mean()
        policy = "running" if name == "raw" else None
        recorded = run.series("accuracy", name, batch_norm=policy)[1][-1]
        assert recorded == pytest.approx(accuracy, abs=1e-9)
        shifted = logits - logits.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        loss = -log_p[np.arange(len(labels)), labels].mean()
        recorded = run.series("loss", name, batch_norm=policy)[1][-1]
        assert recorded == pytest.approx(loss, rel=2e-5)


def test_a_checkpoint_evaluates_to_what_training_recorded(finished):
    config = read_config(finished)
    assembly, step = evaluation.open_checkpoint(config, finished, make_strategy("one_device"))
    run = records.load_run(finished)
    rows = list(evaluation.evaluate(assembly, step))
    names = [(row["weights"], row["batch_norm"].split("(")[0]) for row in rows]
    assert names == [
        ("raw", "recompute"),
        ("raw", "running"),
        ("ema", "recompute"),
        ("two_point", "average"),
    ]
    recorded = [row for row in run.rows("eval") if row["step"] == step and row["split"] == "test"]
    for row, there in zip(rows, recorded, strict=True):
        assert row == {key: there[key] for key in row}
    assert rows[0]["loss"] == run.series("loss", "raw")[1][-1] != rows[1]["loss"]
    copied = list(evaluation.evaluate(assembly, step, ["raw", "ema"], batch_norm="copy"))
    assert [row["batch_norm"] for row in copied] == ["running", "copy"]
    assert copied[1]["loss"] != rows[2]["loss"]
    with pytest.raises(ConfigError, match=r"must be one of \['raw', 'ema', 'two_point'\].*emma"):
        next(evaluation.evaluate(assembly, step, ["emma"]))
    with pytest.raises(ConfigError, match=r"`split` must be one of.*'dev'"):
        next(evaluation.evaluate(assembly, step, split="dev"))


def test_a_finished_run_is_left_alone_and_another_configuration_refused(finished):
    before = (finished / "metrics.jsonl").read_bytes()
    make(finished, tiny_config(**FINISHED))
    assert (finished / "metrics.jsonl").read_bytes() == before
    with pytest.raises(records.RecordError, match=r"seed: there 0, asked 5"):
        train_run.prepare(tiny_config(**FINISHED, seed=5), finished)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_status(tmp_path):
    config = tiny_config(schedule__constant=1e25, checkpoint__every="1 steps", steps_per_call=1)
    with pytest.raises(stopping.Diverged, match=r"loss became (nan|inf) in step") as error:
        make(tmp_path, config)
    run = records.load_run(tmp_path)
    assert run.status == "diverged" and str(error.value) == run.run["message"]
    assert checkpoint_steps(tmp_path)[-1] == error.value.step  # the last good one
    assert (tmp_path / "report.html").exists()


SCRIPT = """
import sys
from tf_lrtraj.bin import train
sys.argv[0] = "lrtraj-train"
train.run()
"""


def command(workdir):
    settings = [f"--config.{key}={value}" for key, value in TINY.items()]
    config = pathlib.Path(__file__).with_name("bare_config.py")
    return ["-c", SCRIPT, f"--config={config}", f"--workdir={workdir}", *settings]


def test_killed_and_started_again_it_ends_with_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_python(*command(whole))
    process = start_python(*command(killed))
    metrics = killed / "metrics.jsonl"
    deadline = time.monotonic() + 300
    # Step 12 is logged: past the checkpoint of step 10, in the middle of an epoch of 40.5.
    while not (metrics.exists() and b'"step":12,' in metrics.read_bytes()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert records.load_run(killed).status == "incomplete"
    run_python(*command(killed))
    run = records.load_run(killed)
    assert run.status == "done"
    resumed = run.run["resumed_at"]
    assert len(resumed) == 1 and resumed[0] in (5, 10, 15, 20)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    ours, theirs = checkpoint_values(killed), checkpoint_values(whole)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    groups = {name.split("/")[0] for name in theirs}
    assert {"model", "optimizer", "averages"} <= groups
    assert json.loads((killed / "config.json").read_text()) == json.loads(
        (whole / "config.json").read_text()
    )


def test_iterators_leave_the_memory_allocator_as_the_program_set_it(monkeypatch):
    # TensorFlow resets it, on Python 3.11, when it makes an iterator.
    asked = []
    monkeypatch.setattr(host_memory, "_ask", lambda: asked.append(1))
    config = validate(tiny_config())
    assembly = assemble(config, load_dataset(config), make_strategy("one_device"))
    monkeypatch.setattr(host_memory, "_kept", False)
    iter(assembly.train_batches(0))
    assert not asked  # a library has no business with its user's process
    monkeypatch.setattr(host_memory, "_kept", True)
    for batches in (assembly.train_batches(0), assembly.eval_batches("test")):
        iter(batches)
    next(iter(assembly.moment_batches()))
    assert len(asked) == 3
