"""Tasks about trajectories, at the smallest scale, against slow obvious computations."""

import numpy as np
import pytest
from study_helpers import keras_iterates, vector, walk

from tf_lrtraj.study import iterates, training_runs
from tf_lrtraj.study.trainer import arrays_of


def test_rates(session):
    record = session.read("rates", 0)
    rows = {(row["learning_rate"], row["half"]): row for row in record["rows"]}
    # Late: 28 to 40; its second half: 36 to 40, three iterates; at the highest rate one apart.
    lags = {0.2: 2, 0.1: 4, 0.05: 4, 0.025: 4}
    assert {rate: rows[rate, 2]["lag"] for rate in lags} == lags
    for rate, run in ((0.2, "rate-2"), (0.1, "base"), (0.05, "rate-0.5"), (0.025, "rate-0.25")):
        found, path = rows[rate, 2], walk(session, run)
        lag = found["lag"]
        late = [s for s in path if s >= found["from_step"] and s + lag in path]
        squares = [((path[s + lag] - path[s]) ** 2).sum() for s in late]
        assert found["squared_distance"] == pytest.approx(0.5 * np.mean(squares), rel=1e-6)
        turned = np.mean([_turned(session, run, s, s + lag) for s in late])
        assert found["filters_squared_distance"] == pytest.approx(0.5 * turned, rel=1e-5)
        norms = {
            n["step"]: n["squared_norm"] for n in record["norms"] if n["learning_rate"] == rate
        }
        assert list(norms) == [s for s in path if s >= found["from_step"]]
        assert norms[40] == pytest.approx((path[40] ** 2).sum(), rel=1e-6)
    excess = {row["learning_rate"]: row["excess"] for row in record["predicted"]}
    found = iterates.estimate(session, 0)
    assert excess[0.1] == pytest.approx(found.excess.sum(), rel=1e-6)
    assert excess[0.1] > excess[0.05] > excess[0.025] > 0.0


def _turned(session, run, first, second):
    """Mean over filters of 2 - 2 cos; filters are told apart by a kernel's last axis."""
    found = []
    ends = [session.snapshots(0, run).read(step) for step in (first, second)]
    for i, variable in enumerate(session.model.trainable_variables):
        if len(variable.shape) > 1:
            a, b = (np.float64(end[i]).reshape(-1, variable.shape[-1]) for end in ends)
            lengths = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
            found += (2.0 - 2.0 * (a * b).sum(0) / lengths).tolist()
    return np.mean(found)


def test_pairs(session):
    rows = session.read("pairs", 0)["rows"]
    steps = {}
    for rate, first, name in ((0.1, "base", "pair-1"), (0.05, "rate-0.5", "pair-0.5")):
        for batches, second in (("independent", name), ("shared", f"{name}-shared")):
            found = {
                row["step"]: row["squared_distance"]
                for row in rows
                if row["batches"] == batches and row["learning_rate"] == rate
            }
            steps[batches] = list(found)
            left, right = walk(session, first), walk(session, second)
            for step, square in found.items():
                away = left[24 + step] - right[24 + step]
                assert square == pytest.approx(away @ away, rel=1e-6, abs=1e-12)
    assert steps == {"independent": [0, 2, 4, 6, 8], "shared": [4, 6, 8]}
    at = {(r["batches"], r["learning_rate"], r["step"]): r["squared_distance"] for r in rows}
    assert at["independent", 0.1, 0] == 0.0 < at["independent", 0.1, 2]
    assert at["shared", 0.1, 4] == at["independent", 0.1, 4]
    assert at["shared", 0.1, 8] != at["independent", 0.1, 8]


def test_shared_batches_are_those_of_the_base_run(session):
    """From the base run's own state the run on shared batches would be the base run."""
    again = training_runs.fork(session, 0, "again", 24, np.full(4, 0.1), every=2)
    np.testing.assert_allclose(
        walk(session, "again")[again.last], walk(session)[28], rtol=1e-5, atol=1e-6
    )


def test_start(session):
    rows = {row["step"]: row for row in session.read("start", 0)["rows"]}
    assert list(rows) == [0, 1, 3, 10, 24]
    origin = vector(session, arrays_of(session.initial(0)))
    first, second = (
        vector(session, arrays_of(run.state(3))) - origin
        for run in (
            training_runs.base(session, 0),
            training_runs.fork(session, 0, "start-other", 0, np.full(10, 0.1)),
        )
    )
    assert rows[3]["squared_distance"] == pytest.approx(((first - second) ** 2).sum(), rel=1e-4)
    mean = 0.5 * (first @ first + second @ second)
    assert rows[3]["squared_displacement"] == pytest.approx(mean, rel=1e-4)
    # One step without a velocity goes along the batch's gradient with the decay's.
    assert rows[0]["cosine_to_start"] == pytest.approx(1.0)
    assert rows[1]["cosine_to_displacement"] > 0.0
    assert all(-0.5 <= row["pair_cosine"] <= 1.0 for row in rows.values())
    assert "squared_distance" not in rows[0] and "cosine_to_start" not in rows[24]


def test_ema_times(session):
    rows = [row for row in session.read("ema_times", 0)["rows"] if row["set"] == "train_part"]
    assert [r["time"] for r in rows if r["phase"] == "window"] == pytest.approx(
        [0.0, 2.0, 2.0 * 10**0.5, 20.0]
    )
    snapshots = session.snapshots(0)
    weights = np.exp((snapshots.steps - 40.0) / 20.0)
    arrays = [snapshots.read(step) for step in snapshots.steps.tolist()]
    average = [
        sum(w * a[i] for w, a in zip(weights / weights.sum(), arrays, strict=True))
        for i in range(len(arrays[0]))
    ]
    (expected,) = session.scorer.score(average, ["train_part"])
    (found,) = (r for r in rows if r["phase"] == "window" and r["time"] > 10.0)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    (last,) = session.scorer.score(arrays[-1], ["train_part"])
    (raw,) = (r for r in rows if r["phase"] == "window" and r["time"] == 0.0)
    assert raw["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert {r["step"] for r in rows if r["phase"] == "early"} == {12}


def test_shell(session):
    record, path = session.read("shell", 0), walk(session, "base")
    places = np.array(list(path.values()))
    steps = list(path)
    halves = np.array_split(np.arange(len(places)), 2)
    centres = [places[half].mean(0) for half in reversed(halves)]
    away = [
        ((places[i] - c) ** 2).sum() for half, c in zip(halves, centres, strict=True) for i in half
    ]
    np.testing.assert_allclose(record["squared_distance"], away, rtol=1e-5)
    stretch = np.array_split(halves[1], 2)[1]
    last = [row for row in record["rows"] if row["to_step"] == 40]
    by_name = {row["of"]: row for row in last if row["of"] != "walk"}
    expected = ((places[stretch].mean(0) - centres[1]) ** 2).sum()
    assert by_name["window"]["squared_distance"] == pytest.approx(expected, rel=1e-5)
    two = 0.5 * (places[stretch[0]] + places[stretch[-1]])
    assert by_name["two_point"]["squared_distance"] == pytest.approx(
        ((two - centres[1]) ** 2).sum(), rel=1e-5
    )
    assert by_name["window"]["iterates"] == pytest.approx(np.mean(np.array(away)[stretch]))
    # The same updates by Keras' own loop, on batches of another order.
    (walked,) = (row for row in last if row.get("scale") == 1.5)
    place = centres[1] + 1.5 * (places[-1] - centres[1])
    assert walked["before"] == pytest.approx(2.25 * away[-1], rel=1e-5)
    shapes = [tuple(v.shape) for v in session.model.trainable_variables]
    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    weights = [a.reshape(shape) for a, shape in zip(np.split(place, cuts), shapes, strict=True)]
    moved = keras_iterates(session, [0.1] * 3, weights, training_runs.OTHER_ORDER, steps[-1])
    expected = ((vector(session, moved[steps[-1] + 3]) - centres[1]) ** 2).sum()
    assert walked["after"] == pytest.approx(expected, rel=1e-3)


def test_speed_is_of_the_last_third(session):
    rows = session.read("speed", 0)["rows"]
    assert {row["step"] for row in rows} == {6, 12}
    early = session.snapshots(0, which="early")
    arrays = [early.read(step) for step in (9, 10, 11, 12)]
    average = [np.mean([a[i] for a in arrays], axis=0) for i in range(len(arrays[0]))]
    (expected,) = session.scorer.score(average, ["test_part"])
    (found,) = (
        row for row in rows if (row["of"], row["step"], row["set"]) == ("average", 12, "test_part")
    )
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
