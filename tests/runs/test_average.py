"""Averages of a run's snapshots are the averages the run kept, evaluated alike."""

import numpy as np
import pytest

from tf_lrtraj import records
from tf_lrtraj.averaging import average_snapshots
from tf_lrtraj.runs import average_run, train_run
from tf_lrtraj.runs.run_config import ConfigError, default_config, read_config, resolve
from tf_lrtraj.training.strategies import make_strategy


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = default_config()
    for key, value in {
        "data.batch_size": 32,
        "model.width": 4,
        "total": "12 steps",
        "evaluate.every": "never",
        "evaluate.batch_size": 250,
        "checkpoint.every": "never",
        "snapshots.every": "1 steps",
        "batch_norm.batches": 2,
        "save_models": False,
        "tensorboard": False,
        "threads": 1,
    }.items():
        config.update_from_flattened_dict({key: value})
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.8},
        "kept": {"kernel": "Window", "length": 4, "batch_norm": "average"},
    }
    plain, dataset = train_run.prepare(config, workdir)
    strategy = make_strategy("one_device")
    train_run.run(plain, dataset, workdir, strategy, "one_device", tell=lambda text: None)
    return workdir, average_run.RunTarget(read_config(workdir), workdir, strategy)


def test_built_afterwards_they_evaluate_as_during_the_run(finished):
    workdir, target = finished
    kernels = resolve(records.load_run(workdir).config, 1297).averages
    built = average_snapshots(target.snapshots, kernels, progress=False)
    rows = {r["weights"]: r for r in records.load_run(workdir).rows("eval", split="test")}
    for name, policy in (("ema", "recompute"), ("kept", "average")):
        assert built[name].exact
        weights = target.weights(built[name].arrays, 12, policy)
        found = target.evaluate(weights, "test")
        assert found["examples"] == rows[name]["examples"]
        assert found["loss"] == pytest.approx(rows[name]["loss"], rel=1e-5)
        assert found["accuracy"] == pytest.approx(rows[name]["accuracy"], abs=0.005)
        assert target.describe(policy) == rows[name]["batch_norm"]
    copied = target.evaluate(target.weights(built["ema"].arrays, 12, "copy"), "test")
    assert copied["loss"] != pytest.approx(rows["ema"]["loss"], rel=1e-3)


def test_raw_weights_by_copy_are_the_raw_network(finished):
    workdir, target = finished
    raw = target.snapshots.read(12)
    found = target.evaluate(target.weights(raw, 12, "copy"), "test")
    row = next(
        r
        for r in records.load_run(workdir).rows("eval", "raw", "test")
        if r["batch_norm"] == "running"
    )
    assert found["loss"] == pytest.approx(row["loss"], rel=1e-6)


def test_measurements_say_what_they_depend_on(finished):
    _, target = finished
    measured = target.measurement("train", 100, "recompute")
    assert measured.images == 100 + 2 * 32
    assert measured.identity["split"] == "train" and measured.identity["limit"] == 100
    arrays = target.snapshots.read(12)
    result = measured.function(arrays)
    assert result["examples"] == 100 and np.isfinite(result["loss"])
    batch = target.measurement("train", 250, "batch")
    assert batch.identity["batch_norm"] == "each batch's own" and batch.images == 250
    # One batch of 250: batch statistics are those of the very images.
    assert batch.function(arrays)["loss"] != pytest.approx(
        target.measurement("train", 250, "copy").function(arrays)["loss"], rel=1e-3
    )
    with pytest.raises(ConfigError, match="split must be one of"):
        target.check_split("validation")


def test_an_exported_model_holds_the_average(finished, tmp_path):
    import keras

    _, target = finished
    before = [np.array(v) for v in target.assembly.model.get_weights()]
    arrays = target.snapshots.read(7)
    target.save(target.weights(arrays, 7, "copy"), tmp_path / "seven.keras")
    loaded = keras.saving.load_model(tmp_path / "seven.keras")
    for variable, array in zip(loaded.trainable_variables, arrays, strict=False):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), array)
    for now, then in zip(target.assembly.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_run_without_snapshots_says_how_to_take_them(tmp_path):
    with pytest.raises(records.RecordError, match=r"--config\.snapshots\.every="):
        average_run.open_snapshots(tmp_path)
