"""The curve and averages of a run, measured from its snapshots: the plan, its losses, resuming."""

import shutil

import numpy as np
import pytest
from helpers import run_python, write_snapshots

from tf_lrtraj import records
from tf_lrtraj.averaging.advising.measured import Measurement
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.report import decay_figure
from tf_lrtraj.runs.constant_run import constant_from, measure_curve, plan_curve

STEPS = list(range(0, 401, 10))


@pytest.fixture
def snapshots(tmp_path):
    iterates = np.random.default_rng(0).standard_normal((401, 7)).astype(np.float32)
    write_snapshots(tmp_path / "snapshots", STEPS, iterates)
    return Snapshots(tmp_path / "snapshots"), iterates


def squared(arrays):
    return float(sum(np.sum(np.square(a, dtype=np.float64)) for a in arrays))


def test_losses_are_those_of_snapshots_and_of_their_means(snapshots, tmp_path):
    taken, iterates = snapshots
    plan = plan_curve(taken.steps, first=100, singles=12)
    told = []
    measure = Measurement("test", squared, images=5)
    found = measure_curve(taken, measure, plan, tmp_path / "kept", False, told.append)
    assert found.steps[0] == 100
    assert found.steps[-1] == 400
    expected = [np.sum(iterates[int(s)].astype(np.float64) ** 2) for s in found.steps]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-6)
    assert {step for _, step, _ in found.averages} == {400, 340, 280}
    for length, step, loss in found.averages:
        mean = iterates[step - length + 10 : step + 1 : 10].astype(np.float64).mean(axis=0)
        assert loss == pytest.approx(np.sum(mean**2), rel=1e-5)
    number = len(plan.singles) + len(plan.averages)
    assert f"{number} losses, {5 * number} images" in told[0]


def test_what_was_measured_is_not_measured_again(snapshots, tmp_path):
    taken, _ = snapshots
    plan = plan_curve(taken.steps, first=100, singles=12)
    calls = []

    def counted(arrays):
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(1)
        return squared(arrays)

    with pytest.raises(KeyboardInterrupt):
        measure_curve(taken, Measurement("test", counted), plan, tmp_path / "kept", False)
    told = []
    calls.clear()
    again = Measurement("test", lambda arrays: calls.append(1) or squared(arrays))
    whole = measure_curve(taken, again, plan, tmp_path / "kept", False, told.append)
    assert len(calls) == len(plan.singles) + len(plan.averages) - 7
    assert any("7 of these losses were measured before" in text for text in told)
    fresh = measure_curve(taken, Measurement("test", squared), plan, None, False)
    assert whole.averages == fresh.averages
    assert whole.losses.tolist() == fresh.losses.tolist()


def test_a_loss_that_is_not_finite_is_named(snapshots):
    taken, _ = snapshots
    plan = plan_curve(taken.steps, first=100, singles=12)
    with pytest.raises(records.RecordError, match="the loss of single_100 is not finite"):
        measure_curve(taken, Measurement("test", lambda arrays: np.nan), plan, None, False)


@pytest.mark.parametrize(
    ("changes", "first"), [({}, 0), ({0: 0.1, 1: 0.2}, 2), ({4: 0.1}, 5), ({0: 0.5}, 1)]
)
def test_where_the_constant_rate_begins(changes, first):
    learning_rates = np.full(10, 0.4)
    for at, rate in changes.items():
        learning_rates[at] = rate
    assert constant_from(learning_rates) == first


def test_a_rate_that_changes_late_is_refused():
    with pytest.raises(ValueError, match=r"Received: 0\.4 at step 7, 0\.1 at the end"):
        constant_from(np.array([0.4] * 8 + [0.1] * 2))
    with pytest.raises(ValueError, match="constant rate above 0"):
        constant_from(np.zeros(10))


def test_too_few_snapshots_are_refused():
    with pytest.raises(ValueError, match="at least 8 equally spaced snapshots"):
        plan_curve(np.arange(0, 60, 10), first=0)
    with pytest.raises(ValueError, match="`singles` must be"):
        plan_curve(np.arange(0, 600, 10), first=0, singles=3)


def test_the_program_measures_a_run_tells_the_cost_first_and_goes_on(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    asked = ["-m", "tf_lrtraj.bin.whatif", f"--workdir={run}", "--examples=100", "--singles=10"]
    done = run_python(*asked, "--decay=linear:5", f"--output={tmp_path / 'answers.json'}")
    lines = done.stdout.splitlines()
    cost = next(i for i, line in enumerate(lines) if line.startswith("to measure: 10 single"))
    assert cost < next(i for i, line in enumerate(lines) if line.startswith("a measurement takes"))
    kept = records.read_rows(run / "whatif" / "measured.jsonl", records.Row)
    record = decay_figure.read_forecast(tmp_path / "answers.json")
    assert record["curve"]["steps"][-1] == 26
    singles = {row["average"]: row["loss"] for row in kept}
    assert record["curve"]["losses"][-1] == singles["single_26"]
    assert [(d["length"], d["end"]) for d in record["decays"]] == [(5, 26), (5, 31)]
    again = run_python(*asked, "--decay=linear:5", f"--output={tmp_path / 'again.json'}")
    assert f"{len(kept)} of these losses were measured before" in again.stdout
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "answers.json").read_bytes()
