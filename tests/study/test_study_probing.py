"""The probing tasks of a study, against slow obvious computations."""

import dataclasses
import pathlib
import types

import numpy as np
import pytest
from study_helpers import IMAGES, beside, loss_at, walk

from tf_lrtraj import probes
from tf_lrtraj.data.portable import Order, crop_and_flip
from tf_lrtraj.records import ArrayRecord, RecordError
from tf_lrtraj.study import (
    line_probes,
    probe_settings,
    scoring,
    side_trip_probes,
    study_points,
    training_runs,
    width_probes,
)


def read(session, name):
    return ArrayRecord.read(session.probe_path(name, 0))


# Settings -------------------------------------------------------------------------------------


def test_costs_are_the_images_that_were_counted(session):
    expected = probe_settings.costs(session.config)
    assert {task: IMAGES[task] for task in expected} == expected


# Batches and points ---------------------------------------------------------------------------


def test_unseen_images_are_those_of_the_rest_of_the_epoch(session):
    order = Order(200, 16, 0)
    for step in (24, 27, 35):  # an epoch of 12 updates starts at 24
        seen = {row for s in range(24, step) for row in order.rows(s).tolist()}
        assert study_points.unseen(session, 0, step).tolist() == sorted(set(range(200)) - seen)
    np.testing.assert_array_equal(study_points.just_seen(session, 0, 30), order.rows(29))


def test_the_next_step_of_a_stationary_run_changes_nothing():
    """What B4 rests on, for a quadratic loss and a data set that is gone through in epochs.

    With the next batch drawn from the unseen images the mean loss of *all* images is
    best at half the run's rate and unchanged at the rate itself; drawn from all of them, it is not.
    """
    images, pace, size = 20, 0.1, 500
    rng = np.random.default_rng(1)
    minimisers = rng.normal(size=(images, size))
    minimisers -= minimisers.mean(axis=0)
    session = types.SimpleNamespace(
        config={"batch_size": 1}, problem=types.SimpleNamespace(x_train=np.zeros(images))
    )
    order = Order(images, 1, 0)
    theta, shares = np.zeros(size), np.linspace(0.5, 2.0, 7)
    gains = np.zeros((2, shares.size))
    for step in range(images * 250):
        if step >= images * 10:
            drawn = rng.choice(study_points.unseen(session, 0, step)), rng.integers(images)
            for row, image in enumerate(drawn):
                moved = theta - np.outer(shares, pace * (theta - minimisers[image]))
                gains[row] += (moved**2).sum(axis=1) - theta @ theta
        theta = theta - pace * (theta - minimisers[order.rows(step)[0]])
    slope, start = np.polyfit(shares, (gains / shares).T, 1)
    fresh, any_image = -start / slope
    assert fresh == pytest.approx(1.0, abs=0.05)  # twice the best rate as well: it is a parabola
    assert any_image < 0.7


def test_drawn_batches_do_not_overlap(session):
    first, second = study_points.drawn(
        session, (3, 2), np.random.default_rng([0]), without=range(50)
    )
    rows = np.concatenate([*first, *second])
    assert len(set(rows.tolist())) == 80 and rows.min() >= 50
    with pytest.raises(ValueError, match=r"12 batches of 16 training images are more .* 150"):
        study_points.drawn(session, (12,), np.random.default_rng([0]), without=range(50))


def test_weights_come_from_snapshots_or_states(session):
    half_way = session.config["burn_in"] + session.config["window"]
    state = training_runs.base(session, 0).state(half_way // 2)
    for i, array in enumerate(study_points.weights_at(session, 0, half_way // 2)):
        np.testing.assert_array_equal(array, state[f"weights/{i}"])
    with pytest.raises(RecordError, match="neither a snapshot nor a state of step 13"):
        study_points.weights_at(session, 0, 13)


# Lines ----------------------------------------------------------------------------------------


def test_line_records(session):
    assert study_points.probe_steps(session, 0) == (20, 24, 40)
    record = read(session, "line-000000024")
    assert record.complete and record.kind == "line" and record.about["step"] == 24
    assert (record.about["held_out_set"], record.about["others_set"]) == ("test", "train")
    assert record.values["train"].shape[1] == 3
    assert record.values["others_each"].shape[1:] == (3, 3)
    same = {read(session, f"line-{s:09d}").about["batches"] for s in (20, 24, 40)}
    assert len(same) == 1

    batches, others = study_points.drawn(session, (3, 3), np.random.default_rng([0, 1]))
    weights = study_points.weights_at(session, 0, 24)
    batch = study_points.taken(session, batches)[1]
    _, gradient = session.surface.gradient(session.surface.point(weights), batch)
    rate = record.coordinates["rate"][4]
    moved = [w - rate * np.asarray(g) for w, g in zip(weights, gradient, strict=False)]
    np.testing.assert_allclose(
        record.values["train"][4, 1], loss_at(session, moved, batch), rtol=1e-4
    )
    np.testing.assert_allclose(
        record.values["others_each"][4, 1, 0],
        loss_at(session, moved, study_points.taken(session, others)[0]),
        rtol=1e-4,
    )


def test_one_step_lines(session):
    rate = session.config["learning_rate"] / (1.0 - session.config["momentum"])
    steps = session.snapshots(0, "one_step").steps
    settled = steps[round(0.25 * (len(steps) - 1))]
    paths = sorted(pathlib.Path(session.probe_path("x", 0)).parent.glob("one_step-*.npz"))
    assert [p.name for p in paths] == [f"one_step-{s:09d}.npz" for s in (settled, steps[-1])]
    for path in paths:
        record = ArrayRecord.read(path)
        assert record.coordinates["rate"].tolist() == [0.0, rate / 2, rate, 1.5 * rate, 2 * rate]
        assert record.values["held_out_each"].shape == (5, 2, 2)
        assert record.values["others_each"].shape == (5, 2, 3)
        assert (record.about["held_out_set"], record.about["others_set"]) == ("test", "train")
        assert record.about["learning_rate"] == rate


def test_gradients_and_displacement(session):
    path = walk(session)
    assert "direction" not in read(session, "gradients-000000024").coordinates
    record = read(session, "gradients-000000040")
    assert record.coordinates["direction"].tolist() == ["from_start", "from_previous"]
    for number, origin in enumerate((24, 38)):
        away = path[40] - path[origin]
        np.testing.assert_allclose(
            record.values["direction_square"][0, number], away @ away, rtol=1e-6
        )
        (rows,) = study_points.drawn(session, (4,), np.random.default_rng([0, 3]))
        for b, batch in enumerate(study_points.taken(session, rows)):
            point = session.surface.point(study_points.weights_at(session, 0, 40))
            gradient = session.surface.gradient(point, batch)[1]
            slope = np.concatenate([np.asarray(g, float).ravel() for g in gradient])
            cosine = slope @ away / np.linalg.norm(slope) / np.linalg.norm(away)
            found = record.values["direction_cosine"][0, number, b]
            np.testing.assert_allclose(found, cosine, atol=1e-5)


# Trips ----------------------------------------------------------------------------------------


def test_side_trips_share_their_batches(session):
    found = {step: read(session, f"side_trip-{step:09d}") for step in (24, 40)}
    assert found[24].about["batches"] == found[40].about["batches"]
    order = Order(200, 16, 0)
    batches = study_points.taken(session, [order.rows(23), order.rows(39)])
    for step, record in found.items():
        assert record.complete and record.values["train_loss"].shape == (3, 4)
        assert record.about["just_seen"] == [24, 40, None]
        best = read(session, f"line-{step:09d}").values["best_rate"][0]
        np.testing.assert_allclose(record.about["learning_rate"], np.quantile(best, 0.25))
        weights = study_points.weights_at(session, 0, step)
        for trip, batch in enumerate(batches):
            np.testing.assert_allclose(
                record.values["train_loss"][trip, 0], loss_at(session, weights, batch), rtol=1e-4
            )


def test_basin_connects_the_ends_of_trips(session):
    record = read(session, "basin")
    own, losses = record.about["own"], record.values["loss"][:, 0]
    assert own == 3 and losses.shape == (3 + 6 + 1, 3, 6)
    ends = {s: read(session, f"side_trip-{s:09d}").values for s in (24, 40)}
    kinds = []
    for pair, segment in enumerate(record.about["segments"]):
        (first, second), i = segment["steps"], segment["batch"]
        kinds.append(segment["kind"])
        if segment["kind"] == "main":
            name = f"main-{first} to main-{second}"
            assert i is None
        else:
            there = {"ends": f"trip-{second}-{i}", "to_main": f"main-{second}"}[segment["kind"]]
            name = f"trip-{first}-{i} to {there}"
            at_end = {"ends": -1, "to_main": 0}[segment["kind"]]
            for place, step, at in ((0, first, -1), (2, second, at_end)):
                np.testing.assert_allclose(
                    losses[pair, place, i], ends[step]["train_loss"][i, at], rtol=1e-4
                )
                np.testing.assert_allclose(
                    losses[pair, place, own:], ends[step]["others_loss"][i, at], rtol=1e-4
                )
        assert record.coordinates["pair"][pair] == name
    assert kinds == ["ends"] * 3 + ["to_main"] * 6 + ["main"]
    starts = np.mean([ends[s]["train_loss"][:, 0].mean() for s in (24, 40)])
    np.testing.assert_allclose(record.about["level"], 0.05 * starts, rtol=1e-4)


def test_controls_of_basins_end_in_another_seeds_run(session, tmp_path):
    first, session = session, beside(session, tmp_path, {**session.config, "seeds": 2}, "state")
    (tmp_path / "probes/seed0").mkdir(parents=True)
    for path in first.probe_path("x", 0).parent.glob("line-*"):
        (tmp_path / "probes/seed0" / path.name).symlink_to(path)
    side_trip_probes.basin(session, 0)
    record = read(session, "basin")
    kinds = [segment["kind"] for segment in record.about["segments"]]
    assert kinds[10:] == ["control_ends"] * 3 + ["control_to_main"] * 3 + ["control_main"]
    assert record.coordinates["pair"][-1] == "main-40 to other-main-40"
    batch = study_points.taken(session, [Order(200, 16, 0).rows(39)])[0]
    other = study_points.weights_at(session, 1, 40)
    np.testing.assert_allclose(
        record.values["loss"][-1, 0, -1, 1], loss_at(session, other, batch), rtol=1e-4
    )
    rate = float(np.quantile(read(session, "line-000000040").values["best_rate"][0], 0.25))
    point = session.surface.point(other)
    for _ in range(3):
        gradient = session.surface.gradient(point, batch)[1]
        point = session.surface.moved(point, gradient, rate)
    np.testing.assert_allclose(
        record.values["loss"][11, 0, -1, 1], session.surface.loss(point, batch), rtol=1e-3
    )


# Batch sizes and convexity ----------------------------------------------------------------------


def test_reach_of_both_networks(session):
    record = session.read("reach", 0)
    places = [(r["network"], r["step"], r["size"]) for r in record["rows"]]
    assert places == [
        (*place, size) for place in (("wide", 16), ("narrow", 16), ("wide", 40)) for size in (4, 16)
    ]
    for network, of in (("wide", session), ("narrow", session.narrow)):
        row = next(r for r in record["rows"] if r["network"] == network and r["size"] == 16)
        count = sum(int(np.prod(v.shape)) for v in of.model.trainable_variables)
        assert row["weights"] == count
        path = (
            session.state_folder({"wide": "base"}.get(network, network), 0) / "state-000000016.npz"
        )
        with np.load(path) as state:
            weights = [state[f"weights/{i}"] for i in range(len(of.model.trainable_variables))]
        (rows,) = study_points.drawn(session, (4,), np.random.default_rng([0, 16, 5]), size=16)
        grid = probes.rate_grid(0.05, 20.0, 9)
        lowest = []
        for batch in study_points.taken(session, rows):
            gradient = of.surface.gradient(of.surface.point(weights), batch)[1]
            curve = []
            for rate in grid:
                moved = [w - rate * np.asarray(g) for w, g in zip(weights, gradient, strict=True)]
                curve.append(loss_at(of, moved, batch))
            lowest.append(min(curve))
        # The minimum is refined by a parabola, so it lies a little lower.
        assert 0.9 * np.mean(lowest) < row["lowest"] < 1.0001 * np.mean(lowest)
    assert session.narrow.model.count_params() < session.model.count_params()
    assert all(r["left"] > 0.0 and r["share"] <= 1.0 for r in record["rows"] if r["step"] == 40)


def test_convexity_is_measured_between_iterates(session):
    record = read(session, "convexity")
    assert record.coordinates["pair"].tolist() == ["24 to 26", "38 to 40", "24 to 40"]
    (rows,) = study_points.drawn(session, (2,), np.random.default_rng([0, 6]))
    batch = study_points.taken(session, rows)[1]
    first, last = (study_points.weights_at(session, 0, step) for step in (24, 40))
    middle = [0.75 * a + 0.25 * b for a, b in zip(first, last, strict=True)]
    np.testing.assert_allclose(
        record.values["loss"][2, 0, 1, 1], loss_at(session, middle, batch), rtol=1e-4
    )


def test_a_trained_network_is_the_run_with_its_rate_lowered(session):
    record = session.read("trained", 0)
    run = training_runs.fork(session, 0, "trained", 24, 0.1 * np.linspace(1.0, 0.0, 17)[:-1])
    weights = [run.state()[f"weights/{i}"] for i in range(len(session.model.trainable_variables))]
    batches, _ = study_points.drawn(session, (3, 3), np.random.default_rng([0, 1]))
    losses = [loss_at(session, weights, batch) for batch in study_points.taken(session, batches)]
    np.testing.assert_allclose(record["batch_loss"], losses, rtol=1e-4)


def test_steps_are_made_of_batches_as_training_sees_them(session):
    problem = dataclasses.replace(session.problem, augmentation="crop_flip")
    augmented = types.SimpleNamespace(problem=problem)
    rows = [np.arange(8)]
    ((plain, labels),) = study_points.taken(augmented, rows)
    ((moved, same),) = study_points.taken(augmented, rows, np.random.default_rng(0))
    np.testing.assert_array_equal(plain, problem.x_train[:8])
    np.testing.assert_array_equal(labels, same)
    wanted = crop_and_flip(plain, np.random.default_rng(0))
    np.testing.assert_array_equal(moved, wanted)
    assert not np.array_equal(moved, plain)


def test_interrupted_is_uninterrupted(session, tmp_path, monkeypatch):
    other = beside(session, tmp_path, None, "state")
    measure, done = probes.Line.measure, []

    def interrupted(*args):
        if len(done) % 10 == 9:
            done.append("stopped")
            raise KeyboardInterrupt
        done.append("piece")
        return measure(*args)

    monkeypatch.setattr(probes.Line, "measure", interrupted)
    for _ in range(20):
        try:
            line_probes.line(other, 0)
        except KeyboardInterrupt:
            # What the model holds is another run's by then: it must not count.
            for array in session.model.non_trainable_variables:
                array.assign(np.asarray(array) + 1.0)
            continue
        break
    assert done.count("stopped") >= 3
    for step in (20, 24, 40):
        name = f"line-{step:09d}"
        found, wanted = read(other, name), read(session, name)
        assert found.about == wanted.about
        for key, value in wanted.values.items():
            np.testing.assert_array_equal(found.values[key], value)


def test_trips_go_on_whatever_the_model_holds(session, tmp_path):
    """The same points are known as the same after other runs have used the model."""
    other = beside(session, tmp_path, None, "state", "probes")
    for array in session.model.variables:
        array.assign(np.asarray(array) + 0.5)
    for task in (
        side_trip_probes.side_trip,
        side_trip_probes.basin,
        width_probes.width,
        width_probes.ensemble,
    ):
        task(other, 0)


def test_trips_without_a_line_say_so(session, tmp_path):
    other = beside(session, tmp_path, None, "state")
    with pytest.raises(RecordError, match=r"line-000000024\.npz is missing"):
        side_trip_probes.side_trip(other, 0)


# Geometry -------------------------------------------------------------------------------------


def test_displacement(session):
    record, path = session.read("displacement", 0), walk(session)
    assert record["about"]["total_lag"] == 16
    assert record["lags"] == [2, 4]
    for lag, found in zip(record["lags"], record["mean_squared"], strict=True):
        squares = [((path[s] - path[s - lag]) ** 2).sum() for s in path if s - lag in path]
        np.testing.assert_allclose(found, np.mean(squares), rtol=1e-6)
    assert len(record["standard_error"]) == len(record["filters_mean_squared"]) == 2
    assert np.isfinite(record["standard_error"]).all()


# Widths and ensembles -------------------------------------------------------------------------


def test_width_and_segment(session):
    width, segment = read(session, "width"), read(session, "sgd_to_swa")
    assert width.coordinates["point"].tolist() == ["sgd", "swa"]
    assert segment.coordinates["pair"].tolist() == ["sgd to swa"]
    assert width.about["batch_norm"] == segment.about["batch_norm"] == "recalibrated"
    assert width.about["ray_kind"] == "filter" and width.about["batches_set"] == "test"
    np.testing.assert_allclose(width.coordinates["distance"], [0, 0.05, 0.08**0.5, 1.6])
    places = segment.coordinates["position"].tolist()
    assert places == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]
    at = segment.values["held_out_accuracy"][0, 0]
    for number, place in ((0, 0.0), (1, 1.0)):
        start = width.values["accuracy"][number, 0, 0]
        np.testing.assert_allclose(start, at[places.index(place)], rtol=1e-5)


def test_width_is_measured_as_averages_are_scored(session):
    problem = session.problem
    few = dataclasses.replace(problem, x_test=problem.x_test[:100], y_test=problem.y_test[:100])
    scorer = scoring.Scorer(session.model, session.loss, few, session.config["evaluate"])
    snapshots = session.snapshots(0, "swa_constant", "collected")
    assert snapshots.steps.tolist() == [32, 34, 36, 38, 40]
    count = snapshots.num_trainable
    arrays = zip(*(snapshots.read(step)[:count] for step in (34, 36, 38, 40)), strict=True)
    (row,) = scorer.score([np.mean(a, axis=0) for a in arrays], ["test"])
    found = read(session, "width").values["loss"][1, 0, 0].mean()
    np.testing.assert_allclose(found, row["loss"], rtol=1e-5)


def test_ensemble_members_are_ends_of_cycles(session):
    record = read(session, "ensemble")
    assert record.coordinates["member"].tolist() == ["36", "40"]
    assert record.about["steps"] == [36, 40] and record.about["run"] == "cyclical"
    snapshots = session.snapshots(0, "cyclical", "collected")
    one, other = (
        np.concatenate([a.ravel() for a in snapshots.read(step)[: snapshots.num_trainable]])
        for step in (36, 40)
    )
    np.testing.assert_allclose(
        record.values["distance"][0, 1], np.linalg.norm(one - other), rtol=1e-5
    )
    assert record.values["ensemble_difference"].shape == (4, 2)
