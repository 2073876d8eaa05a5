"""Averages against schedules at two places of the window, against slow obvious computations."""

import numpy as np
import pytest
from study_helpers import opened, rows, tiny, vector

from tf_lrtraj import kernels, theory
from tf_lrtraj.study import iterates, schedule_runs, training_runs
from tf_lrtraj.study.study_config import default_config, lead, validate

RATE = 0.1


def config():
    """Without momentum a run under a schedule is a sum over iterates, exactly."""
    found = tiny()
    found.momentum, found.places = 0.0, 2
    found.along = {"places": 2, "averages": ("swa",)}
    found.many_points.ends = 3
    found.speed.seeds = 0
    found.trade_off.places = 2
    return found


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    session = opened(validate(config()), tmp_path_factory.mktemp("schedules"))
    for task in (iterates.sweep, iterates.averages, schedule_runs.equivalent, schedule_runs.decays):
        task(session, 0)
    schedule_runs.trade_off(session, 0)
    return session


def weighted(session, end, weights, last=None):
    """A sum over the iterates of a horizon up to `last`, one by one."""
    last = end if last is None else last
    snapshots = session.snapshots(0, which=training_runs.horizon_name(session.config, end))
    steps = range(last - len(weights) + 1, last + 1)
    return sum(
        weight * vector(session, snapshots.read(step))
        for step, weight in zip(steps, weights, strict=True)
    )


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_horizons_end_at_two_places(session):
    assert training_runs.ends(session.config) == [32, 40]
    for end in (32, 40):
        found = training_runs.averages(session, 0, end)
        for name, kernel in session.config["averages"].items():
            weights = kernels.from_config(kernel).weights(8)
            close(vector(session, found[name]), weighted(session, end, weights))


@pytest.mark.parametrize("end", [32, 40])
def test_without_momentum_decrements_of_the_schedule_are_the_weights(session, end):
    schedule = schedule_runs.decay_rates(session.config, "linear")
    padded = np.concatenate([[RATE], schedule, [0.0]]) / RATE
    found = schedule_runs.emulated(session, 0, schedule, end - 8, [end])[end]
    close(vector(session, found), weighted(session, end, padded[:-1] - padded[1:]))
    # Half-way the run has taken its rates in full: the rest of the weight is on the iterate there.
    half = schedule_runs.emulated(session, 0, schedule, end - 8, [end - 4])[end - 4]
    weights = (padded[:-1] - padded[1:])[:5]
    weights[-1] = 1.0 - weights[:-1].sum()
    close(vector(session, half), weighted(session, end, weights, end - 4))


def test_the_running_average_is_the_mean_so_far(session):
    found = schedule_runs.running(session, 0, kernels.Uniform(), [36, 40])
    for step in (36, 40):
        count = step - 32 + 1
        close(
            vector(session, found[step]), weighted(session, 40, np.full(count, 1.0 / count), step)
        )


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
    assert row["loss"] == pytest.approx(
        session.scorer.score(arrays, ["train"])[0]["loss"], rel=1e-6
    )
    along = session.read("equivalent", 0)["along"]
    assert {row["average"] for row in along} == {"swa"}
    assert [row["step"] for row in along if row["of"] == "run"] == [36, 40, 36, 40]


def test_the_end_along_the_horizon_is_the_end(session):
    """Of the weights' schedule; on other images, so the weights are compared."""
    config = session.config
    schedule = schedule_runs.curvature_free_rates(config, kernels.Uniform(), 40)
    found = schedule_runs.emulated(session, 0, schedule, 32, [40])[40]
    close(vector(session, found), vector(session, training_runs.averages(session, 0)["swa"]))


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
    assert {row["label"] for row in rows(session, "trade_off", family="decay")} == {
        "0",
        "1/2",
        "2/2",
    }


def test_iterates_kept_of_a_horizon_reach_its_end():
    """With momentum a fork lies before the horizon, at a multiple of what is kept."""
    found = config()
    found.momentum, found.horizon_every, found.places = 0.3, 4, 1
    plain = validate(found)
    assert (40 - training_runs.fork_step(plain)) % 4 == 0
    assert schedule_runs.along_steps(plain) == [36, 40]


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
