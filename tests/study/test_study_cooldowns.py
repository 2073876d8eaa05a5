"""Averages against cooldowns: means of segments, runs and rates, against slow obvious ones."""

import numpy as np
import pytest
from study_helpers import opened, rows, tiny, vector

from tf_lrtraj import records
from tf_lrtraj.study import cooldowns, training_runs
from tf_lrtraj.study.study_config import validate
from tf_lrtraj.study.trainer import arrays_of


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    config = tiny()
    config.speed.seeds = 0
    config.cooldown.places = 2
    session = opened(validate(config), tmp_path_factory.mktemp("cooldowns"))
    for task in cooldowns.TASKS:
        task(session, 0)
    return session


def walked(session, run, low, rates):
    """The iterates after `low` under these rates, one `fit` for each."""
    trainer, state = session.trainer, run.state(low)
    trainer.compile(session.config["momentum"])
    trainer.put(state, low)
    found = []
    for i, rate in enumerate(rates):
        trainer.steps(low + i, np.array([rate]), 0)
        found.append(vector(session, arrays_of(trainer.take())))
    return found


def test_stretches_follow_one_another(session):
    assert cooldowns.ends(session.config) == [24 + 2 + 4, 24 + 2 + 8]


@pytest.mark.parametrize("factor", [1.0, 0.5])
@pytest.mark.parametrize("length", [2, 4])
def test_the_average_is_the_mean_of_the_iterates_one_by_one(session, factor, length):
    run = cooldowns.stretch_run(session, 0, factor)
    for end in (30, 34):
        iterates = walked(session, run, end - length, [0.1 * factor] * length)
        found = vector(session, cooldowns.mean_of(run, end - length, end))
        np.testing.assert_allclose(found, np.mean(iterates, axis=0), rtol=1e-5, atol=1e-6)


def test_a_mean_that_no_segments_have_is_refused(session):
    run = cooldowns.stretch_run(session, 0, 1.0)
    with pytest.raises(ValueError, match="no means of segments from 27 to 30"):
        cooldowns.mean_of(run, 27, 30)


def test_a_cooldown_falls_linearly_from_the_state_of_its_stretch(session):
    stretch = cooldowns.stretch_run(session, 0, 0.5)
    run = cooldowns.cooldown_run(session, 0, 0.5, 4, 34)
    np.testing.assert_allclose(run.rates, [0.05, 0.0375, 0.025, 0.0125])
    last = walked(session, stretch, 30, run.rates)[-1]
    np.testing.assert_allclose(vector(session, run.arrays()), last, rtol=1e-5, atol=1e-6)


def test_the_stretch_at_the_base_rate_is_the_base_run(session):
    base, stretch = training_runs.base(session, 0), cooldowns.stretch_run(session, 0, 1.0)
    snapshots = session.snapshots(0)
    for step in (26, 28, 30):
        np.testing.assert_array_equal(
            vector(session, stretch.arrays(step)), vector(session, snapshots.read(step))
        )
    assert base.last == 40


def test_every_point_is_scored(session):
    for rate in (0.1, 0.05):
        for end in (30, 34):
            where = {"rate": rate, "end": end, "set": "train_part"}
            raw = rows(session, "cooldown_gain", of="raw", **where)
            assert [row["step"] for row in raw] == [end, end - 2, end - 4]
            for of in ("average", "cooldown"):
                found = rows(session, "cooldown_gain", of=of, **where)
                assert [row["length"] for row in found] == [2, 4]
    (row,) = rows(session, "cooldown_gain", of="average", rate=0.05, end=34, length=4, set="test")
    run = cooldowns.stretch_run(session, 0, 0.5)
    (wanted,) = session.scorer.score(cooldowns.mean_of(run, 30, 34), ["test"])
    assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-6)


def test_paths_have_short_averages_side_by_side(session):
    steps = {
        "constant": [32, 34, 36, 38],
        "cooldown": [32, 34],
        "from_average": [36, 38],
        "from_cooldown": [36, 38],
    }
    for of, wanted in steps.items():
        assert [row["step"] for row in rows(session, "cooldown_path", of=of)] == wanted
    stretch = cooldowns.stretch_run(session, 0, 1.0)
    average = cooldowns.mean_of(stretch, 30, 34)
    went_on = cooldowns.continued(session, 0, "average", average)
    # Without velocity, on the batches of the run at constant rate.
    trainer = session.trainer
    trainer.put({f"weights/{i}": array for i, array in enumerate(average)}, 34)
    trainer.steps(34, np.full(4, 0.1), 0)
    np.testing.assert_allclose(
        vector(session, went_on.arrays()),
        vector(session, arrays_of(trainer.take())),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_eigenvalues_at_three_points_on_the_same_batches(session):
    found = {
        name: records.ArrayRecord.read(session.probe_path(f"eigenvalues-{name}", 0))
        for name in ("raw", "average", "cooldown")
    }
    assert len({record.about["batches"] for record in found.values()}) == 1
    assert len({record.about["weights"] for record in found.values()}) == 3
    for name, record in found.items():
        assert record.complete and record.about["point"] == name
        assert record.about["num_batches"] == 2
