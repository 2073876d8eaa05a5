"""The advisor on quadratic losses, where every average's loss is known."""

import itertools

import numpy as np
import pytest
from helpers import write_snapshots

from tf_lrtraj import records
from tf_lrtraj.averaging.advising import advisor, measured, sweep
from tf_lrtraj.averaging.advising import measurement_plan as advice_plan
from tf_lrtraj.averaging.advising.advisor import Effort, Measurement
from tf_lrtraj.records import RecordError
from tf_lrtraj.report import advice_figure as drawing

SIZE = 60
SCALES = np.random.default_rng(9).uniform(0.2, 1.0, SIZE)


def quadratic(arrays):
    return 1.0 + float(SCALES @ np.asarray(arrays[0], np.float64) ** 2) / SIZE


class Counting:
    """A loss that counts how often it is measured, and can be made to fail."""

    def __init__(self, stop_after=None):
        self.calls, self.stop_after = 0, stop_after

    def __call__(self, arrays):
        if self.stop_after is not None and self.calls >= self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        return {"loss": quadratic(arrays), "accuracy": 0.5}


def write_run(folder, count, seed=0, every=10):
    """Snapshots of a stationary run with many relaxation times."""
    rng = np.random.default_rng(seed)
    ratios = np.exp(-1.0 / np.geomspace(0.5, 30.0, SIZE))
    iterates, iterate = {}, rng.normal(size=SIZE)
    for index in range(count):
        iterates[100 + index * every] = iterate
        iterate = ratios * iterate + np.sqrt(1.0 - ratios**2) * rng.normal(size=SIZE)
    return write_snapshots(folder, list(iterates), iterates)


def advise(snapshots, loss=None, **options):
    measurement = loss if isinstance(loss, Measurement) else Measurement("train", loss or quadratic)
    return advisor.advise(snapshots, measurement, progress=False, **options)


def test_with_every_pair_predictions_are_exact_to_rounding(tmp_path):
    snapshots = write_run(tmp_path, 12)
    found = advise(snapshots, effort=Effort(every_pair=True, calibration=0), verify=20)
    rows = found.record["averages"]
    assert len(rows) >= 15
    for row in rows:
        assert row["predicted"] == pytest.approx(row["measured"], rel=1e-12)
    # The best non-negative weights: no other average is lower, and no small change helps.
    lowest = min(row["measured"] for row in rows)
    assert next(r for r in rows if r["name"] == "optimal")["measured"] == lowest
    iterates = np.stack([snapshots.read(int(step))[0] for step in snapshots.steps])
    weights = found.arrays["weights"][[r["name"] for r in rows].index("optimal")]
    assert weights.min() >= 0.0 and weights.sum() == pytest.approx(1.0, abs=1e-9)
    for i, j in itertools.permutations(range(12), 2):
        moved = weights.copy()
        step = min(1e-3, moved[i])
        moved[i] -= step
        moved[j] += step
        assert quadratic([moved @ iterates]) >= lowest - 1e-6


def test_bands_cover_and_the_recommendation_is_near_the_best(tmp_path):
    inside, median, ratio = [], [], []
    for seed in range(6):
        snapshots = write_run(tmp_path / str(seed), 80, seed)
        found = advise(snapshots, verify=20)
        rows = [r for r in found.record["averages"] if r["role"] not in ("calibration", "raw")]
        inside += [r["low"] <= r["measured"] <= r["high"] for r in rows]
        accuracy = found.record["accuracy_of_prediction"]
        assert accuracy["averages"] == len(rows) >= 20
        assert accuracy["inside_band"] == sum(inside[-len(rows) :])
        median.append(accuracy["median_relative_error"])
        assert accuracy["median_relative_error"] < 0.3 * accuracy["median_of_mean_single_loss"]
        chosen = next(r for r in rows if r["name"] == found.record["recommended"])
        ratio.append(chosen["measured"] / min(r["measured"] for r in rows))
    assert np.mean(inside) > 0.85
    assert np.median(median) < 0.02
    assert np.mean(ratio) < 1.01


def test_an_interrupted_advice_goes_on_and_measures_nothing_twice(tmp_path):
    snapshots = write_run(tmp_path / "snapshots", 40)
    folder = tmp_path / "advice"
    whole = Counting()
    expected = advise(snapshots, whole, verify=6)

    def attempt(loss, identity=()):
        return advise(
            snapshots, Measurement("train", loss, dict(identity)), verify=6, folder=folder
        )

    broken = Counting(stop_after=20)
    with pytest.raises(KeyboardInterrupt):
        attempt(broken)
    assert not (folder / "advice.json").exists()
    rest = Counting()
    found = attempt(rest)
    assert rest.calls == whole.calls - 20
    assert found.record["averages"] == expected.record["averages"]
    again = Counting()
    attempt(again)
    assert again.calls == 0
    other = Counting()
    attempt(other, {"examples": 7}.items())
    assert other.calls == whole.calls  # another measurement, though of the same weights


def test_the_plan_counts_what_is_measured(tmp_path):
    snapshots = write_run(tmp_path, 60)
    told, loss = [], Counting()
    found = advise(snapshots, Measurement("train", loss, images=1000), tell=told.append)
    plan = advice_plan.make_plan(snapshots.steps)
    # Recommendations may coincide with calibration, so a few less may be measured.
    assert plan.measurements - 4 <= loss.calls <= plan.measurements
    assert f"{plan.measurements} losses, {plan.measurements * 1000:,} images" in told[0]
    assert plan.full_sweep == 59 + 59 + 40
    assert f"{plan.measurements / plan.full_sweep:.0%}" in told[0]
    assert any("a measurement takes" in text for text in told)
    assert found.record["measured"]["full_sweep"] == plan.full_sweep


def test_plans_join_measured_snapshots():
    for count in (8, 9, 30, 161, 500):
        plan = advice_plan.make_plan(np.arange(count) * 10)
        assert plan.singles == sorted(set(plan.singles)) and plan.singles[-1] == count - 1
        assert {end for pair in plan.pairs for end in pair} <= set(plan.singles)
        assert all(0 <= i < j < count for i, j in plan.pairs)
        assert plan.every == 10
    assert advice_plan.make_plan(np.arange(161)).measurements < 0.25 * 360


def test_equally_spaced_snapshots_are_found_among_others():
    steps = [0, 5, 10, *range(20, 120, 10), 117]
    with pytest.raises(ValueError, match="the nearest are"):
        advice_plan.equally_spaced(steps, last=95)
    np.testing.assert_array_equal(
        advice_plan.equally_spaced(steps, last=110), np.arange(0, 120, 10)
    )
    np.testing.assert_array_equal(
        advice_plan.equally_spaced(steps, first=15, last=110), np.arange(20, 120, 10)
    )


@pytest.mark.parametrize(
    "arguments", [{"singles": 3}, {"lags": 1}, {"pairs": 0}, {"calibration": 1}, {"singles": 5.5}]
)
def test_efforts_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        Effort(**arguments)


def test_a_diverged_snapshot_is_named(tmp_path):
    snapshots = write_run(tmp_path, 20)
    first = snapshots.read(100)[0]

    def loss(arrays):
        return np.nan if np.array_equal(arrays[0], first) else quadratic(arrays)

    plan = advice_plan.make_plan(snapshots.steps, Effort(singles=20))
    assert plan.singles[0] == 0
    with pytest.raises(RecordError, match="snapshot of step 100 is not finite; set --first"):
        advise(snapshots, loss, effort=Effort(singles=20))


def test_a_second_set_is_measured_for_what_is_built(tmp_path):
    snapshots = write_run(tmp_path / "snapshots", 40)
    held_out = Measurement("test", lambda arrays: 2.0 * quadratic(arrays))
    found = advise(snapshots, held_out=held_out, verify=6, folder=tmp_path / "advice")
    for row in found.record["averages"]:
        assert row["measured_test"] == pytest.approx(2.0 * row["measured"], rel=1e-12)
    assert found.record["raw"]["loss_test"] == pytest.approx(2.0 * found.record["raw_loss"])
    text = str(found)
    assert "measured" in text and found.record["recommended"] in text


def test_long_averages_are_built_as_pairs_are(tmp_path):
    snapshots = write_run(tmp_path, 10)
    seen = []
    losses = measured.MeasuredLosses(
        snapshots,
        snapshots.steps[2:].tolist(),
        Measurement("train", lambda arrays: seen.append(arrays[0]) or 1.0),
    )
    weights = {"pair": np.array([0.5, 0, 0, 0, 0, 0, 0, 0.5]), "long": np.full(8, 0.125)}
    losses.measure(weights, "", progress=False)
    iterates = np.stack([snapshots.read(int(step))[0] for step in snapshots.steps[2:]])
    np.testing.assert_allclose(seen[0], weights["pair"] @ iterates, rtol=1e-14)
    np.testing.assert_allclose(seen[1], weights["long"] @ iterates, rtol=0, atol=1e-15)


def test_sweeps_hold_each_family_within_the_snapshots():
    for count, number in ((8, 20), (161, 20), (161, 60)):
        found = sweep.sweep(count, number)
        assert len({c.name for c in found}) == len(found)
        assert {c.family for c in found} == set(sweep.FAMILIES)
        assert all(c.weights.sum() == pytest.approx(1.0) for c in found)
    assert len(sweep.sweep(161, 20)) >= 20
    with pytest.raises(ValueError, match="reaches beyond the 8 snapshots"):
        sweep.candidate("two_point", 8, 8)
    assert sweep.candidate("spaced", 5, 20, points=4).mean_age == pytest.approx(7.5)


def test_the_figure_is_drawn_from_the_records_alone(tmp_path):
    snapshots = write_run(tmp_path / "snapshots", 30)
    folder = tmp_path / "advice"
    found = advise(snapshots, verify=8, folder=folder)
    path = drawing.draw(folder)
    first = path.read_text()
    assert "<svg" in first
    drawing.draw(folder)
    assert path.read_text() == first
    figure = drawing.figure(drawing.read_advice(folder))
    against = figure.axes[1]
    drawn = {
        tuple(np.round([line[0].get_xdata()[0], line[0].get_ydata()[0]], 12))
        for line in against.containers
    }
    rows = found.record["averages"]
    assert drawn == {tuple(np.round([r["measured"], r["predicted"]], 12)) for r in rows}
    (folder / "advice.npz").write_bytes(b"no archive")
    with pytest.raises(RecordError, match=r"advice\.npz cannot be read"):
        drawing.draw(folder)
    records.write_json(folder / "advice.json", {"format": 99})
    with pytest.raises(RecordError, match=r"advice\.json: `format` must be 1"):
        drawing.draw(folder)


NOISE = np.tile([1.0, -1.0], 10)


def bowl(arrays):
    return 1.0 + float(arrays[0][0] ** 2)


def ripple(arrays):
    """Lowest where the snapshots are, high between them: nothing like a quadratic."""
    return 1.0 + float(np.sin(np.pi * arrays[0][0]) ** 2) + 0.01 * float(arrays[0][0] ** 2)


@pytest.mark.parametrize(
    ("places", "loss", "second", "raw"),
    [
        # Falling to the end: whatever is averaged with older snapshots is worse.
        (np.arange(20.0)[::-1], bowl, None, True),
        (np.tile([0.0, 1.0], 10)[::-1], ripple, None, True),
        # Noise about the minimum: averages pay.
        (NOISE, bowl, None, False),
        # On the second set they do not.
        (NOISE, bowl, lambda a: 2.0 - a[0][0] ** 2, True),
        (NOISE, bowl, lambda a: 2.0 + a[0][0] ** 2, False),
        # A loss that is not finite is worse.
        (NOISE, lambda a: 1.0 if abs(a[0][0]) > 0.5 else np.nan, None, True),
    ],
    ids=["falling", "ripples", "noise", "worse on the second set", "better on both", "not finite"],
)
def test_nothing_that_measured_worse_than_the_raw_weights_is_recommended(
    tmp_path, places, loss, second, raw
):
    held_out = None if second is None else Measurement("test", second)
    snapshots = write_snapshots(tmp_path, range(len(places)), places[:, None])
    found = advise(snapshots, loss, held_out=held_out, verify=12)
    rows = {row["name"]: row for row in found.record["averages"]}
    chosen = rows[found.record["recommended"]]
    assert (chosen["name"] == "raw") == raw
    for key in ["measured"] + (["measured_test"] if second else []):
        assert chosen[key] <= rows["raw"][key]
    if raw:
        np.testing.assert_array_equal(found.recommended, np.eye(20)[-1])
        assert "no average that was built measured better than the raw weights" in str(found)
        assert "recommended: raw" in str(found)
