"""A whole reproduction at the smallest scale: made, interrupted, resumed, refused."""

import contextlib
import importlib.util
import itertools
import json
import pathlib
import shutil
import signal

import keras
import numpy as np
import pytest

from tf_lrtraj import claims, data, kernels, records, theory
from tf_lrtraj.averaging import Snapshots
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.study import problem, run_study, schedule_runs, trainer, training_runs
from tf_lrtraj.study import task_plan as plans
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.state_files import read_arrays, write_arrays
from tf_lrtraj.study.study_config import default_config, lead, validate

TINY = pathlib.Path(__file__).with_name("tiny_study.py")


def tiny():
    spec = importlib.util.spec_from_file_location("tiny_study", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def few(monkeypatch):
    """200 training images, so that an epoch is 12 updates and scores are quick."""
    whole = problem.load_problem

    def load(config):
        found = whole(config)
        kept = (found.x_train[:200], found.y_train[:200], found.x_test[:200], found.y_test[:200])
        return problem.Problem(*kept, 10)

    monkeypatch.setattr("tf_lrtraj.study.session.load_problem", load)


def make(folder, needed=None, page=False):
    """All of it; drawing the page takes longer than the work, so it is drawn where it counts."""
    config = run_study.prepare(tiny(), folder)
    with pytest.MonkeyPatch.context() as patch:
        if not page:
            patch.setattr("tf_lrtraj.report.study.study_page.write_page", lambda study: None)
        return run_study.run(config, folder, needed, tell=str, progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A reproduction made in one go."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        make(folder, page=True)
    return folder


def rows(folder, task, seed=0, **wanted):
    found = records.read_json(folder / "measured" / task / f"seed{seed}.json")["rows"]
    return [row for row in found if all(row.get(k) == v for k, v in wanted.items())]


# All of it --------------------------------------------------------------------------------------


def test_every_claim_has_a_verdict_and_a_page(whole):
    ledger = records.read_json(whole / "ledger.json")
    assert [entry["id"] for entry in ledger["claims"]] == [c.id for c in claims.CLAIMS]
    assert not [e["id"] for e in ledger["claims"] if e["verdict"] == "not run at this scale"]
    run = records.read_json(whole / "run.json")
    assert run["status"] == "done"
    assert set(run["done"]) == {task.name for task in plans.TASKS}
    assert "<html" in (whole / "report.html").read_text()


def test_a_second_call_makes_nothing_again(whole, monkeypatch):
    few(monkeypatch)
    monkeypatch.setattr(trainer.Trainer, "steps", lambda *_: pytest.fail("trained again"))
    before = (whole / "ledger.json").read_bytes()
    make(whole)
    assert (whole / "ledger.json").read_bytes() == before


def test_a_part_of_a_finished_reproduction_leaves_it_finished(whole, monkeypatch):
    few(monkeypatch)
    make(whole, {"base"})
    assert records.read_json(whole / "run.json")["status"] == "done"


def test_a_stop_that_a_library_swallows_stops_after_the_task(tmp_path, monkeypatch):
    few(monkeypatch)

    def deaf(session, seed):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)

    tasks = [plans.Task(name, deaf, 1, "") for name in ("first", "second")]
    monkeypatch.setattr(plans, "plan", lambda *_: [(task, 0) for task in tasks])
    monkeypatch.setattr(plans, "images", lambda *_: 0.0)
    with pytest.raises(run_study.Interrupted):
        make(tmp_path)
    run = records.read_json(tmp_path / "run.json")
    assert run["status"] == "interrupted" and run["done"] == {"first": [0]}


def test_the_ledger_needs_no_states(whole, tmp_path):
    """What is committed is enough to judge again, to the byte."""
    kept = tmp_path / "kept"
    shutil.copytree(whole, kept, ignore=shutil.ignore_patterns("state", "ledger.json"))
    claims.write_ledger(claims.Study(kept))
    assert (kept / "ledger.json").read_bytes() == (whole / "ledger.json").read_bytes()


# Numbers ----------------------------------------------------------------------------------------


def test_a_run_under_constant_rates_is_keras_sgd(whole):
    """The base run against a plain loop over `train_on_batch` with Keras' own optimizer."""
    config = validate(tiny())
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        session = Session(config, whole, progress=False)
        data = session.problem
    model = problem.build_model(config, data, seed=0)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.3), session.loss)
    batches = problem.Batches(data, 16, 0, 0, 40)
    for index in range(40):
        model.train_on_batch(*batches[index])
    state = training_runs.base(session, 0).state()
    for i, variable in enumerate(model.trainable_variables):
        np.testing.assert_allclose(
            state[f"weights/{i}"], keras.ops.convert_to_numpy(variable), rtol=1e-4, atol=1e-5
        )


def test_the_averages_are_those_of_the_iterates(whole):
    """The callback's averages against kernels applied to the iterates that were kept."""
    config = validate(tiny())
    stored = read_arrays(whole / "state/seed0/base/averages.npz")
    kept = Snapshots(whole / "state/seed0/base/horizon")
    steps = range(32, 41)
    iterates = [[np.float64(a) for a in kept.read(step)] for step in steps]
    for name, kernel in config["averages"].items():
        weights = kernels.from_config(kernel).weights(8)
        for i in range(len(iterates[0])):
            expected = sum(w * arrays[i] for w, arrays in zip(weights, iterates, strict=True))
            np.testing.assert_allclose(stored[f"{name}/{i}"], expected, rtol=1e-5, atol=1e-6)


def test_batches_of_an_epoch_hold_every_image_once():
    order = [problem.order_of(3, epoch, 50) for epoch in (0, 1)]
    assert all(sorted(o) == list(range(50)) for o in order)
    assert list(order[0]) != list(order[1])
    data = problem.Problem(np.arange(50.0), np.arange(50), np.zeros(1), np.zeros(1), 2)
    batches = problem.Batches(data, 8, 3, 4, 5)  # six whole batches in an epoch
    seen = np.concatenate([batches[i][1] for i in range(2)])
    np.testing.assert_array_equal(seen, order[0][32:48])
    np.testing.assert_array_equal(batches[2][1], order[1][:8])


def test_shifts_and_flips_are_of_whole_images():
    """Every augmented image is found among all shifts and flips of the original."""
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 2))
    made = problem.crop_and_flip(images, np.random.default_rng(1))
    again = problem.crop_and_flip(images, np.random.default_rng(1))
    np.testing.assert_array_equal(made, again)
    moved = 0
    for image, result in zip(images, made, strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        views = [padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
        views += [view[:, ::-1] for view in views]
        assert sum(np.array_equal(view, result) for view in views) == 1
        moved += not np.array_equal(image, result)
    assert moved >= 4


def test_a_set_too_large_for_memory_is_streamed(tmp_path):
    """Training batches come from the data set's own pipeline; scores from the part held."""
    config = validate(tiny())
    dataset = data.load("digits")
    x, y = dataset.arrays("train")
    held = problem.Problem(x[:200], y[:200], *dataset.arrays("test"), 10, stream=dataset)
    assert held.num_train == 1297
    session = Session(config, tmp_path, progress=False)
    session.problem = held
    session.trainer.compile(0.3)
    session.trainer.put(session.initial(0), 0)
    log = session.trainer.steps(3, np.full(2, 0.1), 5, log_every=1)
    model = problem.build_model(config, held, seed=0)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.3), session.loss)
    first = next(iter(dataset.train_batches(16, seed=5, start_step=3)))
    loss = session.loss(first[1], model(first[0], training=True))
    assert [step for step, _ in log] == [4, 5]
    assert log[0][1] == pytest.approx(float(loss), rel=1e-5)


def test_equivalent_rates_begin_at_the_base_rate_and_stay_below_it():
    config = validate(default_config())
    found = theory.estimate_spectrum([1, 2, 4, 8, 16], [0.02, 0.03, 0.05, 0.06, 0.07], 41, 10, 1.0)
    for entry in config["averages"].values():
        kernel = kernels.from_config(entry)
        ends = schedule_runs.curvature_free_rates(config, kernel, 1600)
        along = schedule_runs.loss_match_rates(config, kernel, found)
        assert [len(ends), len(along)] == [config["horizon"] + lead(config["momentum"]), 200]
        assert ends[0] == pytest.approx(0.1, rel=1e-6)
        for rates in (ends, along):
            assert rates.min() > -1e-9 and rates.max() < 0.1 * (1 + 1e-3)


def test_a_scored_row_is_the_mean_over_images(whole):
    """Loss and accuracy of the last iterate against Keras' own evaluation."""
    config = validate(tiny())
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        session = Session(config, whole, progress=False)
        data, model = session.problem, session.model
    state = training_runs.base(session, 0).state()
    model.set_weights(model.get_weights())
    session.trainer.compile(0.3)
    session.trainer.put(state, 40)
    model.compile(loss=session.loss, metrics=["accuracy"])
    loss, accuracy = model.evaluate(data.x_test, data.y_test, batch_size=50, verbose=0)
    penalty = float(keras.ops.convert_to_numpy(sum(model.losses)))
    (row,) = rows(whole, "averages", average="raw", policy="running")
    assert row["loss"] == pytest.approx(loss - penalty, rel=1e-4)
    assert row["accuracy"] == pytest.approx(accuracy)


# Interruptions ----------------------------------------------------------------------------------


class Moments:
    """Counts what can be interrupted, each training step and each file, and interrupts one."""

    def __init__(self, patch, at=None):
        self.count, self.at = 0, at
        write, begin = records.files.write_atomically, trainer._Rates.on_train_batch_begin

        def wrote(path, data):
            self.tick()  # nothing of this file is there
            write(path, data)
            self.tick()  # it is there, and nobody knows yet

        def began(this, batch, logs=None):
            self.tick()
            begin(this, batch, logs)

        for module in ("records.strict_json", "records.rows", "records.arrays", "records.run"):
            patch.setattr(f"tf_lrtraj.{module}.write_atomically", wrote)
        patch.setattr("tf_lrtraj.study.state_files.write_atomically", wrote)
        patch.setattr(trainer._Rates, "on_train_batch_begin", began)

    def tick(self):
        self.count += 1
        if self.count == self.at:
            raise KeyboardInterrupt


def interrupted(folder, needed, times, within):
    """Makes a reproduction that is interrupted so often, at random, and then ends."""
    rng = np.random.default_rng(0)
    for attempt in itertools.count():
        with pytest.MonkeyPatch.context() as patch:
            Moments(patch, int(rng.integers(1, within)) if times else None)
            try:
                make(folder, needed)
            except (run_study.Interrupted, KeyboardInterrupt):
                times -= 1
                assert records.read_json(folder / "run.json")["status"] != "done"
                continue
        if not times:
            return
        assert attempt < 50


def same_records(one, other, without=()):
    """The measured records of one are, to the byte, those of the other."""
    found = sorted((one / "measured").rglob("*.json"))
    assert found
    for path in found:
        if path.parts[-2] not in without:
            assert (other / path.relative_to(one)).read_bytes() == path.read_bytes(), path


def test_interruptions_change_no_record(whole, tmp_path, monkeypatch):
    few(monkeypatch)
    interrupted(tmp_path, {"base", "decays"}, times=4, within=50)
    same_records(tmp_path, whole)
    assert len(list((tmp_path / "measured").rglob("*.json"))) == 2


@pytest.mark.long
def test_ten_interruptions_end_with_the_same_ledger(whole, tmp_path, monkeypatch):
    few(monkeypatch)
    # Times are measured anew in every reproduction; everything else must be the same.
    timed = {"cost"}
    interrupted(tmp_path, {task.name for task in plans.TASKS} - timed, times=10, within=160)
    same_records(whole, tmp_path, timed)
    mine, other = (records.read_json(f / "ledger.json")["claims"] for f in (tmp_path, whole))
    for left, right in zip(mine, other, strict=True):
        if left["id"] != "S3":
            assert json.dumps(left) == json.dumps(right)


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": 1.0}, r"`config.momentum` must be a number in \[0, 1\). Received: 1.0"),
        ({"learning_rat": 0.1}, "Did you mean config.learning_rate"),
        ({"horizon": 500}, "`config.horizon` must be at most config.window, 400. Received: 500"),
        ({"every": 7}, "`config.every` must be a divisor of config.window, 400. Received: 7"),
        ({"every": 100}, "holds 8 snapshots. Received: 100"),
        ({"burn_in": 2, "window": 200, "horizon": 200}, "runs can fork 153 updates before"),
        ({"averages": {"x": {"kernel": "Nothing"}}}, "config.averages.x: .*Nothing"),
        ({"averages": {"x": {"kernel": "Uniform", "start": -1}}}, "config.averages.x: .*start"),
        ({"many_points": {"gaps": (3,)}}, "with a multiple of config.every, 10. Received"),
        ({"many_points": {"gaps": (200,)}}, "so short that 8 points fit into config.window, 400"),
        ({"rates": (0.5, -1)}, "`config.rates` must be a list of positive numbers"),
        ({"budget": {"low": 0.5}}, "`config.budget.low` must be below config.budget.swa_rate, 0.5"),
    ],
)
def test_a_bad_configuration_is_refused(change, message):
    config = default_config()
    with pytest.raises(ConfigError, match=message):
        validate({**config.to_dict(), **change})


def test_unknown_claims_are_refused():
    with pytest.raises(ConfigError, match=r"`claims` must be among B1, .*Received: Z9"):
        run_study.needed_tasks(["B1", "Z9"])


def test_a_claim_needs_its_tasks_and_what_they_read():
    needed = run_study.needed_tasks(["B6"])
    config = validate({**default_config().to_dict(), "probe_seeds": 1})
    names = [task.name for task, _ in plans.plan(config, needed)]
    assert names == ["line", "side_trip", "basin"]


def test_a_workdir_of_another_configuration_is_refused(whole):
    config = tiny()
    config.learning_rate = 0.2
    with pytest.raises(records.RecordError, match="learning_rate"):
        run_study.prepare(config, whole)


def test_a_data_file_must_hold_images(tmp_path):
    config = validate({**default_config().to_dict(), "data": {"file": str(tmp_path / "x.npz")}})
    with pytest.raises(ConfigError, match=r"`config.data.file` must be an .npz file"):
        problem.load_problem(config)
    np.savez(tmp_path / "x.npz", x_train=1, y_train=1, x_test=1, y_test=1)
    with pytest.raises(ConfigError, match="x_train must be images"):
        problem.load_problem(config)


def test_nothing_is_written_where_data_is_missing(tmp_path):
    config = tiny()
    config.data.update(name="cifar10", dir=str(tmp_path / "nowhere"))
    checked = run_study.prepare(config, tmp_path / "w")
    with pytest.raises(ConfigError, match=r"config\.data: .*cifar10"):
        run_study.run(checked, tmp_path / "w", tell=str, progress=False)
    assert not any((tmp_path / "w").iterdir())


def test_a_diverging_run_is_recorded(tmp_path, monkeypatch):
    few(monkeypatch)
    config = tiny()
    config.learning_rate = 1e6
    with pytest.raises(trainer.Diverged, match="choose a smaller learning rate"):
        run_study.run(
            run_study.prepare(config, tmp_path), tmp_path, {"base"}, tell=str, progress=False
        )
    run = records.read_json(tmp_path / "run.json")
    assert run["status"] == "diverged" and "training loss" in run["message"]
    assert "reproduced" not in records.read_json(tmp_path / "ledger.json")["counts"]


def test_a_damaged_state_is_told(tmp_path):
    path = tmp_path / "state-000000001.npz"
    weights = np.arange(1000.0)  # most of the file, so that its middle is one of these
    write_arrays(path, {"weights/0": weights})
    np.testing.assert_array_equal(read_arrays(path)["weights/0"], weights)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(records.RecordError, match=r"the file is damaged\. Delete it"):
        read_arrays(path)
