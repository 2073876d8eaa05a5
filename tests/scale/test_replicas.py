"""The same run on one device and on replicas; checkpoints carried between them; faults of one."""

import signal

import numpy as np
import pytest
from poisoned_digits import OPTIONS, poisoned
from run_contents import BARE, assert_same_run, go_back, scale_config, stopped_at
from run_helpers import checkpoint_steps, checkpoint_values, make

from tf_lrtraj import records
from tf_lrtraj.runs import evaluate_run as evaluation
from tf_lrtraj.runs import train_run
from tf_lrtraj.runs.assembly import assemble
from tf_lrtraj.runs.components import load_dataset
from tf_lrtraj.runs.run_config import ConfigError, read_config, validate
from tf_lrtraj.training import stopping
from tf_lrtraj.training.step import make_train_steps
from tf_lrtraj.training.strategies import make_strategy


def mirrored(count):
    return make_strategy("mirrored", count)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("four") / "run"
    make(workdir, scale_config(**BARE), mirrored(4), "mirrored")
    return workdir


def test_four_replicas_make_the_run_of_one_device(one_device, four):
    assert_same_run(four, one_device)
    run = records.load_run(four)
    assert run.run["num_replicas"] == 4
    # 500 images in batches of 144, and 100 in one: every image once, over all replicas.
    assert {(row["split"], row["examples"]) for row in run.rows("eval")} == {
        ("test", 500),
        ("train", 100),
    }
    # Not all of it is the same to the bit, so the runs did not take the same path.
    ours, theirs = checkpoint_values(four), checkpoint_values(one_device)
    assert any(ours[name].tobytes() != theirs[name].tobytes() for name in theirs)


def weights_in_float64(strategy, synchronized):
    """All weights after 6 steps of the run without probes, in float64."""
    plain = validate(scale_config(**BARE))
    plain["model"].update(dtype="float64")
    plain["model"]["batch_norm"].update(synchronized=synchronized)
    assembly = assemble(plain, load_dataset(plain), strategy)
    steps = make_train_steps(
        strategy, assembly.model, assembly.optimizer, assembly.averages, batch_size=48
    )
    steps(iter(assembly.train_batches(0)), 0, 6)
    return [np.asarray(variable) for variable in assembly.model.variables]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
def test_in_float64_replicas_differ_from_one_device_by_its_rounding(count):
    # In float32 a ReLU's input within rounding of 0 can have another sign, and
    # its gradient jumps; in float64 none of them is that close.
    expected = weights_in_float64(make_strategy("one_device"), False)
    found = weights_in_float64(mirrored(count), True)
    assert all(value.dtype == np.float64 for value in found)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)
    assert any((one != other).any() for one, other in zip(found, expected, strict=True))


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "second"),
    [("one_device", 2), ("one_device", 4), (2, "one_device"), (2, 4), (4, 2), (4, "one_device")],
)
def test_checkpoints_move_between_strategies(one_device, first, second, tmp_path, monkeypatch):
    def run(which):
        name = which if which == "one_device" else "mirrored"
        strategy = make_strategy(name, 0 if which == "one_device" else which)
        make(tmp_path / "run", scale_config(**BARE), strategy, name)

    with (
        stopped_at(6, monkeypatch),
        pytest.raises(stopping.Interrupted, match="SIGTERM after step 6"),
    ):
        run(first)
    assert checkpoint_steps(tmp_path / "run") == [4, 6]
    run(second)
    assert records.load_run(tmp_path / "run").run["resumed_at"] == [6]
    assert_same_run(tmp_path / "run", one_device)


def test_a_batch_that_cannot_be_split_is_refused_before_anything_is_written(tmp_path):
    config = scale_config(**BARE, data__batch_size=50)
    with pytest.raises(ConfigError, match=r"multiple of the number of replicas, 4\. .*=50"):
        train_run.prepare(config, tmp_path / "run", mirrored(4))
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_statistics_of_each_replicas_own_are_evaluated_as_they_are_saved(tmp_path):
    # Replicas' running statistics differ; what is recorded is what the checkpoint holds.
    options = {**BARE, "model.batch_norm.synchronized": False, "total": "6 steps"}
    make(tmp_path, scale_config(**options), mirrored(2), "mirrored")
    config = read_config(tmp_path)
    assembly, step = evaluation.open_checkpoint(config, tmp_path, make_strategy("one_device"))
    run = records.load_run(tmp_path)
    rows = list(evaluation.evaluate(assembly, step))
    assert [row["weights"] for row in rows] == ["raw", "raw", "ema", "two_point"]
    for row in rows:
        recorded = run.rows("eval", weights=row["weights"], split="test")
        (recorded,) = [r for r in recorded if r["batch_norm"] == row["batch_norm"]]
        assert recorded["loss"] == pytest.approx(row["loss"], rel=1e-5), row
        assert recorded["examples"] == row["examples"] == 500


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.long), 2])
def test_nan_stops_the_run_at_its_step_and_no_checkpoint_holds_it(count, tmp_path):
    config = scale_config(**OPTIONS)
    dataset = poisoned()
    step = next(
        step
        for step, (images, _) in enumerate(dataset.train_batches(48, config.seed, 0))
        if np.isnan(images.numpy()).any()
    )
    assert 0 < step < 60
    strategy = make_strategy("one_device") if count == 1 else mirrored(count)
    plain, _ = train_run.prepare(config, tmp_path, strategy)
    with pytest.raises(stopping.Diverged, match=f"loss became nan in step {step} ") as error:
        train_run.run(plain, dataset, tmp_path, strategy, "mirrored", tell=lambda text: None)
    assert error.value.step == step
    assert records.load_run(tmp_path).status == "diverged"
    steps = checkpoint_steps(tmp_path)
    assert step - 3 <= steps[-1] <= step  # of the state that the step started from, or before
    for value in checkpoint_values(tmp_path).values():
        assert value.dtype.kind != "f" or np.isfinite(value).all()


def test_weights_that_overflow_under_a_finite_loss_are_not_saved(tmp_path, monkeypatch):
    config = scale_config(**{**BARE, "checkpoint.every": "1 steps", "evaluate.every": "never"})
    make_steps = train_run.make_train_steps

    def overflowing(strategy, model, *args, **kwargs):
        run = make_steps(strategy, model, *args, **kwargs)

        def call(*numbers):
            found = run(*numbers)
            if int(optimizer_steps(model, *args)) >= 5:
                model.trainable_variables[0].assign(
                    np.full(model.trainable_variables[0].shape, np.inf, np.float32)
                )
            return found

        return call

    def optimizer_steps(model, optimizer, *_):
        return optimizer.iterations.numpy()

    monkeypatch.setattr(train_run, "make_train_steps", overflowing)
    with pytest.raises(stopping.Diverged, match="the model became NaN or infinite in step 4"):
        make(tmp_path, config)
    assert checkpoint_steps(tmp_path) == [3, 4]
    for value in checkpoint_values(tmp_path).values():
        assert value.dtype.kind != "f" or np.isfinite(value).all()


@pytest.mark.long
def test_a_signal_in_the_last_call_stops_before_the_matched_run(one_device, tmp_path, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    workdir = go_back(one_device, tmp_path / "run", 8)
    with stopped_at(12, monkeypatch), pytest.raises(stopping.Interrupted, match="after step 12"):
        make(workdir, scale_config(**BARE))
    assert records.load_run(workdir).status == "interrupted"
    assert signal.getsignal(signal.SIGTERM) == handler
    make(workdir, scale_config(**BARE))
    assert_same_run(workdir, one_device, bits=True)
