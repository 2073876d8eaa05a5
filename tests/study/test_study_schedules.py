"""Averages against schedules at two places of the window, against slow obvious computations."""

import numpy as np
import pytest

from tf_lrtraj import kernels
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.study import iterates, schedule_runs, trainer, training_runs
from tf_lrtraj.study.problem import Problem
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.study_config import default_config, validate

RATE = 0.1


def config():
    found = default_config()
    found.model.width = 2
    found.seeds = 1
    found.batch_size, found.momentum, found.learning_rate = 16, 0.0, RATE
    found.burn_in, found.window, found.every, found.horizon = 24, 16, 2, 8
    found.segment, found.log_every = 10, 2
    found.places, found.raw_iterates = 2, 3
    found.along = {"places": 2, "averages": ("swa",)}
    found.averages = {"swa": {"kernel": "Uniform"}, "ema": {"kernel": "Exponential", "decay": 0.5}}
    found.evaluate.update(part=100, batch_norm_images=100, levels=3, batch_size=100)
    found.many_points = {"points": (2, 4), "gaps": (2, 4), "ends": 3}
    found.late_iterates = 3
    found.sweep.update(singles=4, lags=2, pairs=1, verify=4)
    found.speed.update(seeds=0, steps=12, places=2)
    found.trade_off.places = 2
    found.reach.steps = 16
    found.pairs.steps = 8
    found.start.steps = (0, 1, 3)
    return found


def opened(folder):
    session = Session(validate(config()), folder, str, progress=False)
    whole = session.problem
    images = whole.x_train[:200], whole.y_train[:200], whole.x_test[:200], whole.y_test[:200]
    session.problem = Problem(*images, 10)
    return session


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    session = opened(tmp_path_factory.mktemp("schedules"))
    for task in (iterates.sweep, iterates.averages, schedule_runs.equivalent, schedule_runs.decays):
        task(session, 0)
    schedule_runs.trade_off(session, 0)
    return session


def rows(session, task, **wanted):
    found = session.read(task, 0)["rows"]
    return [row for row in found if all(row.get(k) == v for k, v in wanted.items())]


def weighted(session, end, weights, last=None):
    """A sum over the iterates of a horizon up to `last`, one by one."""
    last = end if last is None else last
    snapshots = session.snapshots(0, which=training_runs.horizon_name(session.config, end))
    steps = range(last - len(weights) + 1, last + 1)
    total = 0.0
    for step, weight in zip(steps, weights, strict=True):
        total = total + weight * np.concatenate(
            [a.ravel() for a in _trained(session, snapshots, step)]
        )
    return total


def _trained(session, snapshots, step):
    arrays = snapshots.read(step)[: len(session.model.trainable_variables)]
    return [array.astype(np.float64) for array in arrays]


def flat(session, arrays):
    return np.concatenate([a.ravel() for a in arrays[: len(session.model.trainable_variables)]])


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_horizons_end_at_two_places(session):
    assert training_runs.ends(session.config) == [32, 40]
    for end in (32, 40):
        found = training_runs.averages(session, 0, end)
        for name, kernel in session.config["averages"].items():
            weights = kernels.from_config(kernel).weights(8)
            close(flat(session, found[name]), weighted(session, end, weights))


@pytest.mark.parametrize("end", [32, 40])
def test_without_momentum_decrements_of_the_schedule_are_the_weights(session, end):
    schedule = schedule_runs.decay_rates(session.config, "linear")
    padded = np.concatenate([[RATE], schedule, [0.0]]) / RATE
    found = schedule_runs.emulated(session, 0, schedule, end - 8, [end])[end]
    close(flat(session, found), weighted(session, end, padded[:-1] - padded[1:]))
    # Half-way the run has taken its rates in full: the rest of the weight is on the iterate there.
    half = schedule_runs.emulated(session, 0, schedule, end - 8, [end - 4])[end - 4]
    weights = (padded[:-1] - padded[1:])[:5]
    weights[-1] = 1.0 - weights[:-1].sum()
    close(flat(session, half), weighted(session, end, weights, end - 4))


def test_the_running_average_is_the_mean_so_far(session):
    found = schedule_runs.running(session, 0, kernels.Uniform(), [36, 40])
    for step in (36, 40):
        count = step - 32 + 1
        close(flat(session, found[step]), weighted(session, 40, np.full(count, 1.0 / count), step))


def test_every_average_and_run_is_scored_at_both_places(session):
    for end in (32, 40):
        for name in ("swa", "ema"):
            for of, kind in (("average", "none"), ("run", "curvature_free")):
                found = rows(session, "equivalent", average=name, end=end, of=of, equivalence=kind)
                assert [row["set"] for row in found] == ["train", "test"]
        for of in ("trained", "emulated"):
            assert len(rows(session, "decays", of=of, end=end, set="train")) == 3
        assert len(rows(session, "decays", of="raw", end=end, set="train")) == 3
    (row,) = rows(session, "equivalent", average="swa", end=32, of="average", set="train")
    arrays = training_runs.averages(session, 0, 32)["swa"][: len(session.model.trainable_variables)]
    assert row["loss"] == pytest.approx(session.scorer.score(arrays, ["train"])[0]["loss"], rel=1e-6)
    along = session.read("equivalent", 0)["along"]
    assert {row["average"] for row in along} == {"swa"}
    assert [row["step"] for row in along if row["of"] == "run"] == [36, 40, 36, 40]


def test_the_end_along_the_horizon_is_the_end(session):
    """Of the weights' schedule; on other images, so the weights are compared."""
    config = session.config
    schedule = schedule_runs.curvature_free_rates(config, kernels.Uniform(), 40)
    found = schedule_runs.emulated(session, 0, schedule, 32, [40])[40]
    close(flat(session, found), flat(session, training_runs.averages(session, 0)["swa"]))


def test_loss_matching_rates_begin_high_and_fall(session):
    found = iterates.estimate(session, 0)
    rates = schedule_runs.loss_match_rates(session.config, kernels.Uniform(), found)
    assert len(rates) == 8 and rates.max() <= RATE * (1 + 1e-6) and rates[-1] < rates[0]


def test_far_points_are_paired_with_the_iterate_they_end_with(session):
    found = session.read("many_points", 0)["rows"]
    singles = {row["end"] for row in found if row["points"] == 1}
    assert {row["end"] for row in found if (row["points"], row["gap"]) == (2, 4)} == singles
    assert {row["end"] for row in found if row["gap"] == 2} == {max(singles)}
    assert len([row for row in found if row["policy"] == "running"]) == len(singles)


def test_the_trade_off_has_what_was_scored_before(session):
    for points in (2, 4):
        mine = rows(session, "trade_off", family="average", label=f"{points}", set="test")
        theirs = rows(session, "many_points", points=points, gap=4, set="test")
        assert [row["loss"] for row in mine] == [row["loss"] for row in theirs]
        mine = rows(session, "trade_off", family="rate", label=f"1/{points}", set="train_part")
        theirs = rows(session, "lower_rates", points=points, set="train_part")
        assert [row["loss"] for row in mine] == [row["loss"] for row in theirs]
    assert {row["label"] for row in rows(session, "trade_off", family="decay")} == {"0", "1/2", "2/2"}


def test_a_run_that_stops_within_its_horizons_goes_on_to_the_same_bits(session, tmp_path):
    other = opened(tmp_path)
    steps = trainer.Trainer.steps
    for stop in (2, 4, 6):  # calls after which it stops
        left = [stop]

        def some(self, *args, left=left, **options):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return steps(self, *args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer.Trainer, "steps", some)
            if not other.state_folder("base", 0).joinpath("state-000000040.npz").exists():
                try:
                    training_runs.base(other, 0)
                except KeyboardInterrupt:
                    continue
    training_runs.base(other, 0)
    for name in ("averages.npz", "averages-32.npz", "state-000000040.npz"):
        paths = [b.state_folder("base", 0) / name for b in (session, other)]
        assert paths[0].read_bytes() == paths[1].read_bytes(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"places": 3},
            "`config.places` must be so few that stretches of 8 updates do not overlap",
        ),
        ({"along": {"averages": ("x",)}}, r"among the names of config.averages, \['ema', 'swa'\]"),
        ({"along": {"places": 9}}, "at most the number of iterates kept of the horizon, 8"),
        ({"trade_off": {"of": "x"}}, "config.trade_off.of"),
    ],
)
def test_a_bad_configuration_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        validate({**config().to_dict(), **change})


def test_iterates_kept_of_a_horizon_reach_its_end():
    """With momentum a fork lies before the horizon, at a multiple of what is kept."""
    found = config()
    found.momentum, found.horizon_every, found.places = 0.3, 4, 1
    plain = validate(found)
    assert (40 - training_runs.fork_step(plain)) % 4 == 0
    assert schedule_runs.along_steps(plain) == [36, 40]
