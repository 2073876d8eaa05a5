"""A whole study at the smallest scale: made, interrupted, resumed, refused."""

import contextlib
import itertools
import json
import shutil
import signal

import keras
import numpy as np
import pytest
from study_helpers import few, keras_iterates, make, rows, tiny

from tf_lrtraj import claims, data, kernels, records
from tf_lrtraj.averaging import Snapshots
from tf_lrtraj.claims import layout
from tf_lrtraj.data import portable
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.study import problem, run_study, trainer, training_runs
from tf_lrtraj.study import task_plan as plans
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.state_files import read_arrays, write_arrays
from tf_lrtraj.study.study_config import default_config, validate
from tf_lrtraj.training.stopping import Diverged, Interrupted

# All of it --------------------------------------------------------------------------------------


def test_every_claim_has_a_verdict_and_a_page(whole):
    ledger = records.read_json(whole / "ledger.json")
    assert [entry["id"] for entry in ledger["claims"]] == [c.id for c in claims.CLAIMS]
    assert not [e["id"] for e in ledger["claims"] if e["verdict"] == "not run at this scale"]
    run = records.read_json(whole / "run.json")
    assert run["status"] == "done"
    assert set(run["done"]) == {task.name for task in plans.TASKS}
    assert "<html" in (whole / "report.html").read_text()


def test_tasks_and_claims_agree_on_seeds_and_records(whole):
    config = {
        **default_config().to_dict(),
        "seeds": 5,
        "probe_seeds": 3,
        "pairs": {"seeds": 4},
        "speed": {"seeds": 2},
    }
    for task in plans.TASKS:
        assert task.seeds(config) == layout.seeds_of(task.name, config), task.name
        assert task.records == layout.records_of(task.name), task.name
        for pattern in task.records:
            assert list(whole.glob(pattern)), task.name
    lengths = {len(task.seeds(config)) for task in plans.TASKS}
    assert lengths == {1, 2, 3, 4, 5}


def test_a_second_call_makes_nothing_again(whole, monkeypatch):
    few(monkeypatch)
    monkeypatch.setattr(trainer.Trainer, "steps", lambda *_: pytest.fail("trained again"))
    before = (whole / "ledger.json").read_bytes()
    make(whole)
    assert (whole / "ledger.json").read_bytes() == before
    make(whole, {"base"})  # a part of a finished study leaves it finished
    assert records.read_json(whole / "run.json")["status"] == "done"


def test_a_stop_that_a_library_swallows_stops_after_the_task(tmp_path, monkeypatch):
    few(monkeypatch)

    def deaf(session, seed):
        with contextlib.suppress(Interrupted):
            signal.raise_signal(signal.SIGTERM)

    tasks = [plans.Task(name, deaf, "") for name in ("first", "second")]
    monkeypatch.setattr(plans, "plan", lambda *_: [(task, 0) for task in tasks])
    monkeypatch.setattr(plans, "images", lambda *_: 0.0)
    with pytest.raises(Interrupted):
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


def test_a_run_under_constant_rates_is_keras_sgd(session):
    expected = keras_iterates(session, [0.1] * 40)[40]
    state = training_runs.base(session, 0).state()
    for i, array in enumerate(expected):
        np.testing.assert_allclose(state[f"weights/{i}"], array, rtol=1e-4, atol=1e-5)


def test_the_averages_are_those_of_the_iterates(session):
    """The callback's averages against kernels applied to the iterates that were kept."""
    stored = read_arrays(session.folder / "state/seed0/base/averages.npz")
    kept = Snapshots(session.folder / "state/seed0/base/horizon")
    iterates = [[np.float64(a) for a in kept.read(step)] for step in range(32, 41)]
    for name, kernel in session.config["averages"].items():
        weights = kernels.from_config(kernel).weights(8)
        for i in range(len(iterates[0])):
            expected = sum(w * arrays[i] for w, arrays in zip(weights, iterates, strict=True))
            np.testing.assert_allclose(stored[f"{name}/{i}"], expected, rtol=1e-5, atol=1e-6)


def test_batches_of_an_epoch_hold_every_image_once():
    order = [np.random.default_rng([3, epoch, 0x6F72]).permutation(50) for epoch in (0, 1)]
    data = problem.Problem(np.arange(50.0), np.arange(50), np.zeros(1), np.zeros(1), 2)
    batches = problem.Batches(data, 8, 3, 4, 5)  # six whole batches in an epoch
    seen = np.concatenate([batches[i][1] for i in range(2)])
    np.testing.assert_array_equal(seen, order[0][32:48])
    np.testing.assert_array_equal(batches[2][1], order[1][:8])


def test_shifts_and_flips_are_of_whole_images():
    """Every augmented image is found among all shifts and flips of the original."""
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 2))
    made = portable.crop_and_flip(images, np.random.default_rng(1))
    moved = 0
    for image, result in zip(images, made, strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        views = [padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
        views += [view[:, ::-1] for view in views]
        assert sum(np.array_equal(view, result) for view in views) == 1
        moved += not np.array_equal(image, result)
    assert moved >= 4
    data = problem.Problem(images, np.arange(6), images, np.arange(6), 6, "crop_flip")
    found, labels = problem.Batches(data, 3, 2, 4, 1)[0]  # a function of (seed, step)
    expected = portable.crop_and_flip(images[labels], np.random.default_rng([2, 4, 0x6175]))
    np.testing.assert_array_equal(found, expected)


def test_a_set_too_large_for_memory_is_streamed(tmp_path):
    """Training batches come from the data set's own pipeline; scores from the part held."""
    dataset = data.load("digits")
    x, y = dataset.arrays("train")
    held = problem.Problem(x[:200], y[:200], *dataset.arrays("test"), 10, stream=dataset)
    assert held.num_train == 1297
    session = Session(validate(tiny()), tmp_path, progress=False)
    session.problem = held
    session.trainer.compile(0.3)
    session.trainer.put(session.initial(0), 0)
    log = session.trainer.steps(3, np.full(2, 0.1), 5, log_every=1)
    model = problem.build_model(session.config, held, seed=0)
    first = next(iter(dataset.train_batches(16, seed=5, start_step=3)))
    loss = session.loss(first[1], model(first[0], training=True))
    assert [step for step, _ in log] == [4, 5]
    assert log[0][1] == pytest.approx(float(loss), rel=1e-5)


def test_a_scored_row_is_the_mean_over_images(session):
    """Loss and accuracy of the last iterate against Keras' own evaluation."""
    problem_of, model = session.problem, session.model
    session.trainer.compile(0.3)
    session.trainer.put(training_runs.base(session, 0).state(), 40)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.compile(loss=session.loss, metrics=["accuracy"])
    loss, accuracy = copy.evaluate(problem_of.x_test, problem_of.y_test, batch_size=50, verbose=0)
    (row,) = rows(session, "averages", average="raw", policy="running")
    assert row["loss"] == pytest.approx(loss, rel=1e-4)
    assert row["accuracy"] == pytest.approx(accuracy)


def test_weight_decay_acts_on_what_the_configuration_says(session):
    def decayed(on):
        config = {**session.config, "weight_decay": 0.02, "weight_decay_on": on}
        model = problem.build_model(config, session.problem, seed=0)
        found = {v.name for v in model.trainable_variables if v.regularizer is not None}
        penalty = float(keras.ops.convert_to_numpy(sum(model.losses)))
        weights = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
        kept = [w for w, v in zip(weights, model.trainable_variables, strict=True) if v.regularizer]
        assert penalty == pytest.approx(0.01 * sum((w**2).sum() for w in kept), rel=1e-5)
        return found

    assert decayed("kernels") == {"kernel"}
    assert decayed("all") == {"kernel", "bias", "gamma", "beta"}


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

        for module in ("strict_json", "rows", "archives"):
            patch.setattr(f"tf_lrtraj.records.{module}.write_atomically", wrote)
        patch.setattr(trainer._Rates, "on_train_batch_begin", began)

    def tick(self):
        self.count += 1
        if self.count == self.at:
            raise KeyboardInterrupt


def interrupted(folder, needed, times, within):
    """Makes a study that is interrupted so often, at random, and then ends."""
    rng = np.random.default_rng(0)
    for attempt in itertools.count():
        with pytest.MonkeyPatch.context() as patch:
            Moments(patch, int(rng.integers(1, within)) if times else None)
            try:
                make(folder, needed)
            except (Interrupted, KeyboardInterrupt):
                times -= 1
                assert records.read_json(folder / "run.json")["status"] != "done"
                continue
        if not times:
            return
        assert attempt < 50


def same_records(one, other, without=()):
    """The measured records, and the averages and rates of runs, are the same to the byte."""
    found = [*one.glob("measured/*/*.json"), *one.glob("state/*/*/[ar]*.npz")]
    assert found
    for path in found:
        if path.parts[-2] not in without:
            assert (other / path.relative_to(one)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize(
    ("needed", "within"),
    [({"base", "decays"}, 50), ({"budget"}, 50), ({"reach"}, 40)],
    ids=["base and decays", "budget", "reach"],
)
def test_interruptions_change_no_record(whole, tmp_path, monkeypatch, needed, within):
    few(monkeypatch)
    interrupted(tmp_path, needed, times=4, within=within)
    same_records(tmp_path, whole)
    assert {path.parts[-2] for path in tmp_path.glob("measured/*/*.json")} == needed


@pytest.mark.long
def test_ten_interruptions_end_with_the_same_ledger(whole, tmp_path, monkeypatch):
    few(monkeypatch)
    # Times are measured anew in every study; everything else must be the same.
    timed = {"cost"}
    interrupted(tmp_path, {task.name for task in plans.TASKS} - timed, times=10, within=160)
    same_records(whole, tmp_path, timed)
    mine, other = (records.read_json(f / "ledger.json")["claims"] for f in (tmp_path, whole))
    for left, right in zip(mine, other, strict=True):
        if left["id"] != "S3":
            assert json.dumps(left) == json.dumps(right)


# What is refused --------------------------------------------------------------------------------

# Changes of the default configuration.
REFUSED = [
    ({"momentum": 1.0}, "`config.momentum` must be a number of at least 0 and below 1"),
    ({"learning_rat": 0.1}, "Did you mean config.learning_rate"),
    ({"horizon": 500}, "`config.horizon` must be at most config.window, 400. Received: .*=500"),
    ({"every": 7}, "`config.every` must be a divisor of config.window, 400. Received: .*=7"),
    ({"every": 100}, "holds 8 snapshots. Received: .*=100"),
    ({"burn_in": 2, "window": 200, "horizon": 200}, "runs can fork 153 updates before"),
    ({"averages": {"x": {"kernel": "Nothing"}}}, "config.averages.x: .*Nothing"),
    ({"averages": {"x": {"kernel": "Uniform", "start": -1}}}, "config.averages.x: .*start"),
    ({"many_points": {"gaps": (3,)}}, "with a multiple of config.every, 10. Received"),
    ({"many_points": {"gaps": (200,)}}, "so short that 8 points fit into config.window, 400"),
    ({"rates": (0.5, -1)}, "`config.rates` must be a list of positive numbers"),
    ({"budget": {"low": 0.5}}, "`config.budget.low` must be below config.budget.swa_rate, 0.5"),
    ({"places": 3}, "`config.places` must be so few that stretches of 353 updates do not overlap"),
    ({"along": {"averages": ("x",)}}, r"among the names of config.averages, \['ema', 'swa', "),
    ({"along": {"places": 201}}, "at most the number of iterates kept of the horizon, 200"),
    ({"claims": ("Z1",)}, "Received: claims='Z1'"),
    ({"power": ({"claim": "A1"},)}, r"`power\[0\]` must have claim"),
]
# Entry → values that it refuses.
OUT_OF_RANGE = {
    "trade_off.of": ["x"],
    "pairs.steps": [30, 404],
    "start.steps": [(1, 3, 10), (0, 1), (0, 1, 1201)],
    "ema_times.decades": [0],
    "shell.places": [3],
    "shell.scales": [(0.5, 1.0), ()],
    "probes.steps": [(20, 10)],
    "probes.trip_steps": [(24,)],
    "probes.trip_quantile": [1.5],
    "probes.basin_level": [0.0],
    "one_step.points": [3],
    "reach.sizes": [(8, 4)],
    "reach.divisor": [1, 16],
    "displacement.longest": [1.5],
    "weight_decay_on": ["biases"],
}


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_configuration_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        validate({**default_config().to_dict(), **change})


@pytest.mark.parametrize("key", OUT_OF_RANGE)
def test_settings_out_of_range_are_named(key):
    group, _, name = key.rpartition(".")
    for value in OUT_OF_RANGE[key]:
        change = {group: {name: value}} if group else {name: value}
        with pytest.raises(ConfigError, match=rf"`config\.{key}` must be .*Received: config.{key}"):
            validate(change)


def test_stored_configurations_lack_later_settings(tmp_path):
    plain = validate(tiny())
    assert plain["weight_decay_on"] == "all"
    stored = {key: value for key, value in plain.items() if key != "weight_decay_on"}
    records.write_json(tmp_path / "config.json", stored)
    assert run_study.prepare(tiny(), tmp_path) == plain


def test_unknown_claims_are_refused():
    with pytest.raises(ConfigError, match=r"`claims` must be .*'B1', .*Received: claims='Z9'"):
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 1298}, "`config.batch_size` must be at most the number of .* 1297"),
        ({"evaluate": {"part": 1298}}, "`config.evaluate.part` must be at most"),
        ({"evaluate": {"batch_norm_images": 1298}}, "batch_norm_images` must be at most"),
        ({"data": {"augmentation": "random_resized_crop"}}, "for a set held in memory"),
    ],
)
def test_data_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        problem.load_problem(validate({**default_config().to_dict(), **change}))


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
    with pytest.raises(Diverged, match=r"became nan in step [23] \(.*Lower the learning rate"):
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
