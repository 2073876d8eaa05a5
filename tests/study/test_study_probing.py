"""The probing tasks of a reproduction, against slow obvious computations."""

import dataclasses
import pathlib
import types

import keras
import numpy as np
import pytest

from tf_lrtraj import probes, records
from tf_lrtraj.backend import batch_norm
from tf_lrtraj.records import ArrayRecord, RecordError
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.study import (
    batch_sizes,
    equal_budgets,
    geometry,
    line_probes,
    probe_settings,
    side_trip_probes,
    study_points,
    training_runs,
    trajectories,
    width_probes,
)
from tf_lrtraj.study.problem import Batches, Problem, crop_and_flip
from tf_lrtraj.study.session import Bench
from tf_lrtraj.study.study_config import default_config, validate
from tf_lrtraj.study.trainer import Trainer

TASKS = {
    "line": line_probes.line,
    "side_trip": side_trip_probes.side_trip,
    "basin": side_trip_probes.basin,
    "gradients": line_probes.gradients,
    "one_step_lines": line_probes.one_step_lines,
    "convexity": line_probes.convexity,
    "reach": batch_sizes.reach,
    "displacement": geometry.displacement,
    "width": width_probes.width,
    "ensemble": width_probes.ensemble,
}


def tiny_config():
    config = default_config()
    config.model.width = 2
    config.batch_size, config.momentum = 16, 0.3
    config.burn_in, config.window, config.every, config.horizon = 24, 16, 2, 8
    config.many_points = {"points": (2,), "gaps": (2,), "ends": 1}
    config.budget.update(every=2, cycle=2)
    config.speed.steps = 12
    config.pairs.steps, config.start.steps = 8, (0, 1, 3, 10)
    config.shell.update(places=2, steps=3)
    config.evaluate.batch_norm_images = 64
    config.averages = {"swa": {"kernel": "Uniform"}}
    config.probes.update(
        batches=3,
        held_out=2,
        others=3,
        low=0.05,
        high=20.0,
        rates=9,
        gradients=4,
        trip_length=3,
        trip_quantile=0.25,
        trip_batches=1,
        basin_positions=3,
    )
    config.convexity.update(distances=2, pairs=2, positions=5, batches=2)
    config.reach.update(steps=16, sizes=(4, 16), images=32)
    config.one_step.update(iterates=2, batches=2, held_out=2, others=3, points=2)
    config.displacement.lags = 4
    config.width.update(images=40, size=20, rays=2, num=3, positions=3)
    config.ensemble.update(members=2, images=40, size=20)
    return config


def some(problem):
    """200 training images, so that an epoch is 12 updates."""
    return Problem(problem.x_train[:200], problem.y_train[:200], problem.x_test, problem.y_test, 10)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(validate(tiny_config()), tmp_path_factory.mktemp("w"), str, progress=False)
    bench.problem = some(bench.problem)
    for seed in (0, 1):  # B6's control reads the next seed's run
        training_runs.base(bench, seed)
    trajectories.one_step_run(bench, 0)
    equal_budgets.cyclical(bench, 0)
    return bench


class Count:
    """Counts images that go forward through networks, while it is on."""

    def __init__(self, patch):
        self.images = 0.0
        surface, evaluate, along, gradient, predict = (
            probes.Surface,
            *(getattr(probes.Surface, n) for n in ("evaluate", "along", "gradient", "predict")),
        )
        recompute = batch_norm.Recompute.__call__

        def counted(function, images):
            def call(*args):
                self.images += images(*args)
                return function(*args)

            return call

        def recomputed(this, trainable, non_trainable, data):
            self.images += sum(len(keras.tree.flatten(batch)[0]) for batch in data)
            return recompute(this, trainable, non_trainable, data)

        patch.setattr(surface, "seconds_per_pass", lambda *_: 1.0)
        patch.setattr(
            surface, "evaluate", counted(evaluate, lambda s, p, b: sum(len(y) for _, y in b))
        )
        patch.setattr(surface, "along", counted(along, lambda s, o, d, k, b: len(k) * len(b[1])))
        patch.setattr(surface, "gradient", counted(gradient, lambda s, p, b: 3 * len(b[1])))
        patch.setattr(surface, "predict", counted(predict, lambda s, p, x: len(x)))
        patch.setattr(batch_norm.Recompute, "__call__", recomputed)


@pytest.fixture(scope="module")
def measured(bench):
    """Images each task took; every task has been done once."""
    before = [array.copy() for array in bench.model.get_weights()]
    images = {}
    with pytest.MonkeyPatch.context() as patch:
        count = Count(patch)
        for name, task in TASKS.items():
            count.images = 0.0
            task(bench, 0)
            images[name] = count.images
    for array, now in zip(before, bench.model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, now)
    return images


def read(bench, name):
    return ArrayRecord.read(bench.probe_path(name, 0))


def loss_at(bench, weights, batch, training=True):
    """The loss by Keras' own forward pass of a copy of the model."""
    model = keras.models.clone_model(bench.model)
    trainable = weights[: len(model.trainable_variables)]
    for variable, array in zip(model.trainable_variables, trainable, strict=True):
        variable.assign(array)
    return float(bench.loss(batch[1], model(batch[0], training=training)))


def vectors(bench, run="base"):
    snapshots = bench.snapshots(0, run)
    count = snapshots.num_trainable
    return {
        int(s): np.concatenate([a.ravel() for a in snapshots.read(s)[:count]]).astype(float)
        for s in snapshots.steps
    }


# Settings -------------------------------------------------------------------------------------


def test_costs_are_the_images_that_were_counted(bench, measured):
    assert measured == probe_settings.costs(bench.config)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("probes", "steps", (20, 10)),
        ("probes", "trip_steps", (24,)),
        ("probes", "trip_quantile", 1.5),
        ("probes", "basin_level", 0.0),
        ("one_step", "points", 3),
        ("reach", "sizes", (8, 4)),
        ("reach", "divisor", 3),
        ("displacement", "longest", 1.5),
    ],
)
def test_settings_out_of_range_are_named(group, key, value):
    config = tiny_config().to_dict()
    config[group][key] = value
    with pytest.raises(ConfigError, match=rf"config\.{group}\.{key}` must be .*Received"):
        validate(config)


def test_every_probe_setting_is_checked():
    keys = {f"{g}.{k}" for g, group in probe_settings.PROBE_DEFAULTS.items() for k in group}
    assert keys == set(probe_settings.PROBE_CHECKS)


# Batches and points ---------------------------------------------------------------------------


def test_unseen_images_are_those_of_the_rest_of_the_epoch(bench):
    order = Batches(bench.problem, 16, 0, 0, 100)
    for step in (24, 27, 35):  # an epoch of 12 updates starts at 24
        seen = {row for s in range(24, step) for row in order.rows(s).tolist()}
        assert study_points.unseen(bench, 0, step).tolist() == sorted(set(range(200)) - seen)
    np.testing.assert_array_equal(study_points.just_seen(bench, 0, 30), order.rows(29))


def test_the_next_step_of_a_stationary_run_changes_nothing():
    """What B4 rests on, for a quadratic loss and a data set that is gone through in epochs.

    With the next batch drawn from the unseen images the mean loss of *all* images is
    best at half the run's rate and unchanged at the rate itself; drawn from all of them, it is not.
    """
    images, pace, size = 20, 0.1, 500
    rng = np.random.default_rng(1)
    minimisers = rng.normal(size=(images, size))
    minimisers -= minimisers.mean(axis=0)
    bench = types.SimpleNamespace(
        config={"batch_size": 1}, problem=types.SimpleNamespace(x_train=np.zeros(images))
    )
    order = Batches(bench.problem, 1, 0, 0, 10**6)
    theta, shares = np.zeros(size), np.linspace(0.5, 2.0, 7)
    gains = np.zeros((2, shares.size))
    for step in range(images * 250):
        if step >= images * 10:
            drawn = rng.choice(study_points.unseen(bench, 0, step)), rng.integers(images)
            for row, image in enumerate(drawn):
                moved = theta - np.outer(shares, pace * (theta - minimisers[image]))
                gains[row] += (moved**2).sum(axis=1) - theta @ theta
        theta = theta - pace * (theta - minimisers[order.rows(step)[0]])
    slope, start = np.polyfit(shares, (gains / shares).T, 1)
    fresh, any_image = -start / slope
    assert fresh == pytest.approx(1.0, abs=0.05)  # twice the best rate as well: it is a parabola
    assert any_image < 0.7


def test_drawn_batches_do_not_overlap(bench):
    first, second = study_points.drawn(bench, (3, 2), np.random.default_rng([0]), without=range(50))
    rows = np.concatenate([*first, *second])
    assert len(set(rows.tolist())) == 80 and rows.min() >= 50
    with pytest.raises(ValueError, match=r"12 batches of 16 training images are more .* 150"):
        study_points.drawn(bench, (12,), np.random.default_rng([0]), without=range(50))


def test_weights_come_from_snapshots_or_states(bench):
    half_way = bench.config["burn_in"] + bench.config["window"]
    state = training_runs.base(bench, 0).state(half_way // 2)
    for i, array in enumerate(study_points.weights_at(bench, 0, half_way // 2)):
        np.testing.assert_array_equal(array, state[f"weights/{i}"])
    with pytest.raises(RecordError, match="neither a snapshot nor a state of step 13"):
        study_points.weights_at(bench, 0, 13)


# Lines ----------------------------------------------------------------------------------------


def test_line_records(bench, measured):
    assert study_points.probe_steps(bench, 0) == (20, 24, 40)
    record = read(bench, "line-000000024")
    assert record.complete and record.kind == "line" and record.about["step"] == 24
    assert (record.about["held_out_set"], record.about["others_set"]) == ("test", "train")
    assert record.values["train"].shape[1] == 3
    assert record.values["others_each"].shape[1:] == (3, 3)
    same = {read(bench, f"line-{s:09d}").about["batches"] for s in (20, 24, 40)}
    assert len(same) == 1

    batches, others = study_points.drawn(bench, (3, 3), np.random.default_rng([0, 1]))
    weights = study_points.weights_at(bench, 0, 24)
    batch = study_points.taken(bench, batches)[1]
    _, gradient = bench.surface.gradient(bench.surface.point(weights), batch)
    rate = record.coordinates["rate"][4]
    moved = [w - rate * np.asarray(g) for w, g in zip(weights, gradient, strict=False)]
    np.testing.assert_allclose(
        record.values["train"][4, 1], loss_at(bench, moved, batch), rtol=1e-4
    )
    np.testing.assert_allclose(
        record.values["others_each"][4, 1, 0],
        loss_at(bench, moved, study_points.taken(bench, others)[0]),
        rtol=1e-4,
    )


def test_one_step_lines(bench, measured):
    rate = bench.config["learning_rate"] / (1.0 - bench.config["momentum"])
    steps = bench.snapshots(0, "one_step").steps
    settled = steps[round(0.25 * (len(steps) - 1))]
    paths = sorted(pathlib.Path(bench.probe_path("x", 0)).parent.glob("one_step-*.npz"))
    assert [p.name for p in paths] == [f"one_step-{s:09d}.npz" for s in (settled, steps[-1])]
    for path in paths:
        record = ArrayRecord.read(path)
        assert record.coordinates["rate"].tolist() == [0.0, rate / 2, rate, 1.5 * rate, 2 * rate]
        assert record.values["held_out_each"].shape == (5, 2, 2)
        assert record.values["others_each"].shape == (5, 2, 3)
        assert (record.about["held_out_set"], record.about["others_set"]) == ("test", "train")
        assert record.about["learning_rate"] == rate


def test_gradients_and_displacement(bench, measured):
    walk = vectors(bench)
    assert "direction" not in read(bench, "gradients-000000024").coordinates
    record = read(bench, "gradients-000000040")
    assert record.coordinates["direction"].tolist() == ["from_start", "from_previous"]
    for number, origin in enumerate((24, 38)):
        away = walk[40] - walk[origin]
        np.testing.assert_allclose(
            record.values["direction_square"][0, number], away @ away, rtol=1e-6
        )
        (rows,) = study_points.drawn(bench, (4,), np.random.default_rng([0, 3]))
        for b, batch in enumerate(study_points.taken(bench, rows)):
            point = bench.surface.point(study_points.weights_at(bench, 0, 40))
            gradient = bench.surface.gradient(point, batch)[1]
            slope = np.concatenate([np.asarray(g, float).ravel() for g in gradient])
            cosine = slope @ away / np.linalg.norm(slope) / np.linalg.norm(away)
            found = record.values["direction_cosine"][0, number, b]
            np.testing.assert_allclose(found, cosine, atol=1e-5)


# Trips ----------------------------------------------------------------------------------------


def test_side_trips_share_their_batches(bench, measured):
    found = {step: read(bench, f"side_trip-{step:09d}") for step in (24, 40)}
    assert found[24].about["batches"] == found[40].about["batches"]
    order = Batches(bench.problem, 16, 0, 0, 100)
    batches = study_points.taken(bench, [order.rows(23), order.rows(39)])
    for step, record in found.items():
        assert record.complete and record.values["train_loss"].shape == (3, 4)
        assert record.about["just_seen"] == [24, 40, None]
        best = read(bench, f"line-{step:09d}").values["best_rate"][0]
        np.testing.assert_allclose(record.about["learning_rate"], np.quantile(best, 0.25))
        weights = study_points.weights_at(bench, 0, step)
        for trip, batch in enumerate(batches):
            np.testing.assert_allclose(
                record.values["train_loss"][trip, 0], loss_at(bench, weights, batch), rtol=1e-4
            )


def test_basin_connects_the_ends_of_trips(bench, measured):
    record = read(bench, "basin")
    own, losses = record.about["own"], record.values["loss"][:, 0]
    assert own == 3 and losses.shape == (3 + 6 + 1 + 3 + 3 + 1, 3, 6)
    ends = {s: read(bench, f"side_trip-{s:09d}").values for s in (24, 40)}
    kinds = []
    for pair, segment in enumerate(record.about["segments"]):
        (first, second), i = segment["steps"], segment["batch"]
        kinds.append(segment["kind"])
        if segment["kind"].startswith("control"):
            continue
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
    assert kinds[:10] == ["ends"] * 3 + ["to_main"] * 6 + ["main"]
    assert kinds[10:] == ["control_ends"] * 3 + ["control_to_main"] * 3 + ["control_main"]
    starts = np.mean([ends[s]["train_loss"][:, 0].mean() for s in (24, 40)])
    np.testing.assert_allclose(record.about["level"], 0.05 * starts, rtol=1e-4)


def test_controls_of_basins_end_in_another_seeds_run(bench, measured):
    record = read(bench, "basin")
    assert record.coordinates["pair"][-1] == "main-40 to other-main-40"
    batch = study_points.taken(bench, [Batches(bench.problem, 16, 0, 0, 100).rows(39)])[0]
    other = study_points.weights_at(bench, 1, 40)
    np.testing.assert_allclose(
        record.values["loss"][-1, 0, -1, 1], loss_at(bench, other, batch), rtol=1e-4
    )
    rate = float(np.quantile(read(bench, "line-000000040").values["best_rate"][0], 0.25))
    point = bench.surface.point(other)
    for _ in range(3):
        gradient = bench.surface.gradient(point, batch)[1]
        point = bench.surface.moved(point, gradient, rate)
    np.testing.assert_allclose(
        record.values["loss"][11, 0, -1, 1], bench.surface.loss(point, batch), rtol=1e-3
    )


# Batch sizes and convexity ----------------------------------------------------------------------


def test_reach_of_both_networks(bench, measured):
    record = bench.read("reach", 0)
    places = [(r["network"], r["step"], r["size"]) for r in record["rows"]]
    assert places == [
        (*place, size) for place in (("wide", 16), ("narrow", 16), ("wide", 40)) for size in (4, 16)
    ]
    for network, of in (("wide", bench), ("narrow", bench.narrow)):
        row = next(r for r in record["rows"] if r["network"] == network and r["size"] == 16)
        count = sum(int(np.prod(v.shape)) for v in of.model.trainable_variables)
        assert row["weights"] == count
        path = bench.state_folder({"wide": "base"}.get(network, network), 0) / "state-000000016.npz"
        with np.load(path) as state:
            weights = [state[f"weights/{i}"] for i in range(len(of.model.trainable_variables))]
        (rows,) = study_points.drawn(bench, (4,), np.random.default_rng([0, 16, 5]), size=16)
        grid = probes.rate_grid(0.05, 20.0, 9)
        lowest = []
        for batch in study_points.taken(bench, rows):
            gradient = of.surface.gradient(of.surface.point(weights), batch)[1]
            curve = []
            for rate in grid:
                moved = [w - rate * np.asarray(g) for w, g in zip(weights, gradient, strict=True)]
                curve.append(loss_at(of, moved, batch))
            lowest.append(min(curve))
        # The minimum is refined by a parabola, so it lies a little lower.
        assert 0.9 * np.mean(lowest) < row["lowest"] < 1.0001 * np.mean(lowest)
    assert bench.narrow.model.count_params() < bench.model.count_params()
    assert all(r["left"] > 0.0 and r["share"] <= 1.0 for r in record["rows"] if r["step"] == 40)


def test_the_narrow_run_goes_on_where_it_stopped(bench, measured, tmp_path, monkeypatch):
    other = Bench({**bench.config, "segment": 4}, tmp_path, str, progress=False)
    other.problem, steps, calls = bench.problem, Trainer.steps, []

    def interrupted(*args):
        calls.append(args[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return steps(*args)

    monkeypatch.setattr(Trainer, "steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batch_sizes.narrow_run(other, 0)
    found = batch_sizes.narrow_run(other, 0).state()
    assert calls == [0, 4, 8, 8, 12]
    for name, array in batch_sizes.narrow_run(bench, 0).state().items():
        if not name.startswith("log"):
            np.testing.assert_array_equal(array, found[name])


def test_convexity_is_measured_between_iterates(bench, measured):
    record = read(bench, "convexity")
    assert record.coordinates["pair"].tolist() == ["24 to 26", "38 to 40", "24 to 40"]
    (rows,) = study_points.drawn(bench, (2,), np.random.default_rng([0, 6]))
    batch = study_points.taken(bench, rows)[1]
    first, last = (study_points.weights_at(bench, 0, step) for step in (24, 40))
    middle = [0.75 * a + 0.25 * b for a, b in zip(first, last, strict=True)]
    np.testing.assert_allclose(
        record.values["loss"][2, 0, 1, 1], loss_at(bench, middle, batch), rtol=1e-4
    )


def test_a_trained_network_is_the_run_with_its_rate_lowered(bench, measured):
    line_probes.trained(bench, 0)
    record = bench.read("trained", 0)
    run = training_runs.fork(bench, 0, "trained", 24, 0.1 * np.linspace(1.0, 0.0, 17)[:-1])
    weights = [run.state()[f"weights/{i}"] for i in range(len(bench.model.trainable_variables))]
    batches, _ = study_points.drawn(bench, (3, 3), np.random.default_rng([0, 1]))
    losses = [loss_at(bench, weights, batch) for batch in study_points.taken(bench, batches)]
    np.testing.assert_allclose(record["batch_loss"], losses, rtol=1e-4)


def test_steps_are_made_of_batches_as_training_sees_them(bench):
    problem = dataclasses.replace(bench.problem, augmentation="crop_flip")
    augmented = types.SimpleNamespace(problem=problem)
    rows = [np.arange(8)]
    ((plain, labels),) = study_points.taken(augmented, rows)
    ((moved, same),) = study_points.taken(augmented, rows, np.random.default_rng(0))
    np.testing.assert_array_equal(plain, problem.x_train[:8])
    np.testing.assert_array_equal(labels, same)
    wanted = crop_and_flip(plain, np.random.default_rng(0))
    np.testing.assert_array_equal(moved, wanted)
    assert not np.array_equal(moved, plain)


def test_interrupted_is_uninterrupted(bench, measured, tmp_path, monkeypatch):
    other = Bench(bench.config, tmp_path, str, progress=False)
    (tmp_path / "state").symlink_to(bench.folder / "state")
    other.problem, other.model, other.surface = bench.problem, bench.model, bench.surface
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
            for array in bench.model.non_trainable_variables:
                array.assign(np.asarray(array) + 1.0)
            continue
        break
    assert done.count("stopped") >= 3
    for step in (20, 24, 40):
        name = f"line-{step:09d}"
        found, wanted = read(other, name), read(bench, name)
        assert found.about == wanted.about
        for key, value in wanted.values.items():
            np.testing.assert_array_equal(found.values[key], value)


def test_trips_go_on_whatever_the_model_holds(bench, measured, tmp_path):
    """The same points are known as the same after other runs have used the model."""
    other = Bench(bench.config, tmp_path, str, progress=False)
    (tmp_path / "state").symlink_to(bench.folder / "state")
    (tmp_path / "probes").symlink_to(bench.folder / "probes")
    other.problem, other.model, other.surface = bench.problem, bench.model, bench.surface
    for array in bench.model.variables:
        array.assign(np.asarray(array) + 0.5)
    for task in (
        side_trip_probes.side_trip,
        side_trip_probes.basin,
        width_probes.width,
        width_probes.ensemble,
    ):
        task(other, 0)


def test_trips_without_a_line_say_so(bench, tmp_path):
    other = Bench(bench.config, tmp_path, str, progress=False)
    (tmp_path / "state").symlink_to(bench.folder / "state")
    other.problem, other.model = bench.problem, bench.model
    with pytest.raises(RecordError, match=r"line-000000024\.npz is missing"):
        side_trip_probes.side_trip(other, 0)


# Geometry -------------------------------------------------------------------------------------


def test_displacement(bench, measured):
    record, walk = bench.read("displacement", 0), vectors(bench)
    assert record["about"]["total_lag"] == 16
    assert record["lags"] == [2, 4]
    for lag, found in zip(record["lags"], record["mean_squared"], strict=True):
        squares = [((walk[s] - walk[s - lag]) ** 2).sum() for s in walk if s - lag in walk]
        np.testing.assert_allclose(found, np.mean(squares), rtol=1e-6)
    assert len(record["standard_error"]) == len(record["filters_mean_squared"]) == 2
    assert np.isfinite(record["standard_error"]).all()


# Widths and ensembles -------------------------------------------------------------------------


def test_width_and_segment(bench, measured):
    width, segment = read(bench, "width"), read(bench, "sgd_to_swa")
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


def test_width_is_measured_as_averages_are_scored(bench, measured):
    other = Bench(bench.config, bench.folder, str, progress=False)
    other.model, test = bench.model, bench.problem.images("test", 0)
    other.problem = dataclasses.replace(bench.problem, x_test=test[0][:40], y_test=test[1][:40])
    snapshots = bench.snapshots(0, "swa_constant", "collected")
    assert snapshots.steps.tolist() == [32, 34, 36, 38, 40]
    count = snapshots.num_trainable
    arrays = zip(*(snapshots.read(step)[:count] for step in (34, 36, 38, 40)), strict=True)
    row = other.scorer.score([np.mean(a, axis=0) for a in arrays], ["test"])[0]
    found = read(bench, "width").values["loss"][1, 0, 0].mean()
    np.testing.assert_allclose(found, row["loss"], rtol=1e-5)


def test_ensemble_members_are_ends_of_cycles(bench, measured):
    record = read(bench, "ensemble")
    assert record.coordinates["member"].tolist() == ["36", "40"]
    assert record.about["steps"] == [36, 40] and record.about["run"] == "cyclical"
    snapshots = bench.snapshots(0, "cyclical", "collected")
    one, other = (
        np.concatenate([a.ravel() for a in snapshots.read(step)[: snapshots.num_trainable]])
        for step in (36, 40)
    )
    np.testing.assert_allclose(
        record.values["distance"][0, 1], np.linalg.norm(one - other), rtol=1e-5
    )
    assert record.values["ensemble_difference"].shape == (4, 2)


def test_records_are_plain(bench, measured):
    assert records.read_json(bench.record_path("displacement", 0))["task"] == "displacement"
