"""Averages of a run's snapshots are the averages the run kept, evaluated alike."""

import numpy as np
import pytest

from tf_lrtraj import records
from tf_lrtraj.averaging import average_snapshots
from tf_lrtraj.runs import average_run
from tf_lrtraj.runs.run_config import ConfigError, read_config, resolve
from tf_lrtraj.training.strategies import make_strategy

LAST = 26


@pytest.fixture(scope="module")
def target(finished):
    return average_run.RunTarget(read_config(finished), finished, make_strategy("one_device"))


def test_built_afterwards_they_evaluate_as_during_the_run(finished, target):
    kernels = resolve(records.load_run(finished).config, 1297).averages
    built = average_snapshots(target.snapshots, kernels, progress=False)
    rows = {r["weights"]: r for r in records.load_run(finished).rows("eval", split="test")}
    for name, policy in (("ema", "recompute"), ("two_point", "average")):
        assert built[name].exact
        weights = target.weights(built[name].arrays, LAST, policy)
        found = target.evaluate(weights, "test")
        assert found["examples"] == rows[name]["examples"]
        assert found["loss"] == pytest.approx(rows[name]["loss"], rel=1e-5)
        assert found["accuracy"] == pytest.approx(rows[name]["accuracy"], abs=0.005)
        assert target.describe(policy) == rows[name]["batch_norm"]
    copied = target.evaluate(target.weights(built["ema"].arrays, LAST, "copy"), "test")
    assert copied["loss"] != pytest.approx(rows["ema"]["loss"], rel=1e-3)


def test_raw_weights_by_copy_are_the_raw_network(finished, target):
    raw = target.snapshots.read(LAST)
    found = target.evaluate(target.weights(raw, LAST, "copy"), "test")
    row = next(
        r
        for r in records.load_run(finished).rows("eval", "raw", "test")
        if r["batch_norm"] == "running" and r["step"] == LAST
    )
    assert found["loss"] == pytest.approx(row["loss"], rel=1e-6)


def test_measurements_say_what_they_depend_on(target):
    measured = target.measurement("train", 100, "recompute")
    assert measured.images == 100 + 2 * 32
    assert measured.identity["split"] == "train" and measured.identity["limit"] == 100
    arrays = target.snapshots.read(LAST)
    result = measured.function(arrays)
    assert result["examples"] == 100 and np.isfinite(result["loss"])
    batch = target.measurement("train", 250, "batch")
    assert batch.identity["batch_norm"] == "each batch's own" and batch.images == 250
    # One batch of 250: batch statistics are those of the very images.
    assert batch.function(arrays)["loss"] != pytest.approx(
        target.measurement("train", 250, "copy").function(arrays)["loss"], rel=1e-3
    )
    with pytest.raises(ConfigError, match="`split` must be one of"):
        target.check_split("validation")


def test_an_exported_model_holds_the_average(target, tmp_path):
    import keras

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
