"""How judges compute and decide: functions on small arrays, and records changed by hand."""

import math

import numpy as np
import pytest
import records_minibatch
import records_schedules
import study_records
from scipy import stats
from study_records import edit, edit_probe, judged

from tf_lrtraj import kernels, theory
from tf_lrtraj.claims import (
    averages_and_decays,
    convexity,
    one_step,
    optimum,
    reach,
    several_points,
    shared_basin,
    swa,
    time_scales,
)
from tf_lrtraj.statistics import TOST


def values(judgement):
    """Name → value, of parts and of numbers beside them."""
    return {one.name: one.interval.value for one in (*judgement.parts, *judgement.numbers)}


# Functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("crossing", "size"), [(1.0, 21), (0.83, 33), (1.4, 17)])
def test_landmarks_of_parabolas(crossing, size):
    """The minimum of a parabola is found between grid points, its zero to a line's error."""
    rates = np.linspace(0.0, 2.0, size)
    zero, best = one_step.landmarks(rates, rates * (rates - crossing))
    assert best == pytest.approx(0.5 * crossing, abs=1e-12)
    assert zero == pytest.approx(crossing, abs=(rates[1] - rates[0]) ** 2 / 4)


def test_landmarks_at_the_ends():
    rates = np.linspace(0.0, 2.0, 9)
    assert one_step.landmarks(rates, rates) == (0.0, 0.0)
    assert one_step.landmarks(rates, -rates) == (2.0, 2.0)


def test_barriers_are_heights_over_the_line_between_the_ends():
    curves = np.array([[2.0, 0.0], [3.5, 5.0], [4.0, 1.0]])
    assert shared_basin._barrier(curves) == pytest.approx((0.5 + 4.5) / 2)
    assert shared_basin._barrier(curves * [1.0, -1.0]) == pytest.approx(0.25)  # a valley is none


@pytest.mark.parametrize(
    ("function", "concave"),
    [
        (lambda x: x**2, 0.0),
        (lambda x: np.abs(x), 0.0),
        (lambda x: np.sin(np.pi * x), 0.5),  # one period
        (lambda x: 0.4 * x + np.tanh(2.0 * x), 0.5),
        (lambda x: (x**2 - 1.0) ** 2, 1.0 / np.sqrt(3.0)),  # from one minimum to the other
    ],
)
def test_concave_lengths(function, concave):
    """Also on uneven grids, and whatever is added that rounding of float32 could add."""
    random = np.random.default_rng(1)
    even = np.linspace(-1.0, 1.0, 401)
    for x in (even, np.sort(np.r_[-1.0, 1.0, random.uniform(-1.0, 1.0, 400)])[::4]):
        y = 1.0 + function(x)
        found, told = convexity.lengths(x, y)
        assert found / told == pytest.approx(concave, abs=0.05)
    noisy = y * (1.0 + 2.0**-23 * random.uniform(-1.0, 1.0, y.shape))
    assert convexity.lengths(x, noisy)[0] == pytest.approx(found, abs=0.02)


def test_rounding_of_a_straight_line_is_no_curvature():
    x = np.linspace(0.0, 1.0, 50)
    y = np.float32(1.0 + x).astype(np.float64)
    assert convexity.lengths(x, y) == (0.0, 0.0)


def test_reach_of_two_networks_is_compared_at_equal_images_per_weight():
    wide = np.array([4.0, 16.0, 64.0]), np.array([0.2, 0.4, 0.6])
    narrow = np.array([4.0, 16.0, 64.0]), np.array([0.45, 0.55, 0.9])
    off, apart = reach._compared(wide, narrow, 4.0)
    np.testing.assert_allclose(off, [0.05, -0.05])  # 64 would be as 256: not measured
    np.testing.assert_allclose(apart, [-0.2, -0.2])


def test_a6_speeds_are_steps_to_one_loss():
    steps = np.arange(50.0, 401.0, 50.0)
    log = {"small": np.log(4.0 / steps), "average": np.log(1.0 / steps)}
    # A curve of a quarter's loss is four times sooner, where that is not before its first point.
    expected = np.mean([math.log(step / max(step / 4, 50.0)) for step in (50, 100, 150, 200)])
    assert time_scales._speed_up(steps, log) == pytest.approx(expected)
    never = {"small": np.log(1.0 / steps), "average": np.full(8, 1.0)}
    expected = np.mean([math.log(step / 400) for step in (50, 100, 150, 200)])
    assert time_scales._speed_up(steps, never) == pytest.approx(expected)


def test_a6_crossings():
    steps = np.array([1.0, 2.0, 3.0, 4.0])
    assert time_scales._crossing(steps, np.array([-1.0, 1.0, -1.0, 3.0])) == pytest.approx(3.25)
    assert time_scales._crossing(steps, np.array([1.0, 1.0, 1.0, -0.1])) == math.inf
    assert time_scales._crossing(steps, np.ones(4)) == 1.0


def test_a10_best_times_come_from_the_other_seeds():
    times = 10.0 ** np.arange(5)
    curves = np.array([[3.0, 2.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.5, 1.0, 3.0]])
    shorter, longer, gain, best = time_scales._excess_over_best(times, curves, np.array([4.0, 4.0]))
    assert best.tolist() == [1000.0, 100.0]
    np.testing.assert_allclose(shorter, [-1.0, 0.5])
    np.testing.assert_allclose(longer, [1.0, -0.5])
    np.testing.assert_allclose(gain, [2.0, 2.5])


def test_the_largest_gap_is_bounded_at_all_places():
    random = np.random.default_rng(3)
    gaps = np.array([0.1, -0.3, 0.05]) + 0.01 * random.standard_normal((3, 3))
    found = averages_and_decays.LargestGap(gaps).interval(TOST)
    each = [stats.ttest_1samp(g, 0.0).confidence_interval(TOST) for g in gaps.T]
    assert found.value == pytest.approx(-gaps[:, 1].mean())
    assert found.high == pytest.approx(-each[1].low)
    together = stats.ttest_1samp(gaps[:, 1], 0.0).confidence_interval(1 - 0.1 / 3)
    assert found.low == pytest.approx(max(-together.high, 0.0))


def test_a_loss_match_that_is_as_far_on_the_other_side_is_no_closer():
    away = np.full((3, 4), 0.2)
    assert averages_and_decays._closer(away, -away).tolist() == [0.0] * 3
    assert averages_and_decays._closer(away, 0.5 * away) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("loss", "exponent"),
    [(9.0, 0.0), (7.0, 2 / 3), (6.0, 1.0), (4.5, 2.0), (3.0, 3.5), (12.0, -1.0)],
)
def test_equivalent_rates_on_a_broken_line(loss, exponent):
    curve = np.array([9.0, 6.0, 4.5, 3.5])
    assert several_points._equivalent(curve, loss) == pytest.approx(exponent)
    assert math.isnan(several_points._equivalent(curve[::-1], loss))


def test_s2_formula_update_by_update():
    count, length, high, low = 23, 5, 0.05, 0.001
    expected = []
    for i in range(1, count + 1):
        t = ((i - 1) % length + 1) / length
        expected.append((1 - t) * high + t * low)
    np.testing.assert_allclose(swa.cyclical(count, length, high, low), expected, rtol=1e-14)


# Thresholds against the quadratic model -------------------------------------------------------


@pytest.mark.parametrize("rate", [0.3, 0.03])
@pytest.mark.parametrize("curvatures", [[1.0], [1e-4], np.geomspace(1e-3, 1.0, 20)])
def test_shared_batches_leave_less_than_half_in_a_quadratic_model(curvatures, rate):
    """The threshold of B10: at most a half in any direction, at any rate, after any time."""
    half = 40
    ratios = []
    for a in np.atleast_1d(curvatures):
        noise = theory.QuadraticModel([a], [1.0]).stationary_variance(rate)[0]
        kept = (1.0 - rate * a) ** (2 * half)
        grown = 2.0 * noise * (1.0 - kept)  # from no distance, on independent batches
        shared, independent = kept * grown, kept * grown + grown
        ratios.append((shared, independent))
    total = np.sum(ratios, axis=0)
    assert 0.0 <= total[0] / total[1] <= 0.5


def test_the_quadratic_model_is_sensitive_to_the_length():
    """What A10 says of the model, by simulation of one rate."""
    a = np.geomspace(0.003, 1.0, 10)
    model = theory.QuadraticModel(a, np.ones(10))
    lengths = (8, 80, 1000)
    named = {str(n): kernels.Exponential(theory.ema_decay_for_window(n)) for n in lengths}
    found = model.simulate(np.full(600, 0.5), np.full(10, 3.0), 100, 0, named).averages
    short, middle, long = (found[str(n)].losses[-1] for n in lengths)
    assert short > 1.1 * middle and long > 1.1 * middle


# Records changed by hand ------------------------------------------------------------------------


def test_b3_changes_are_taken_at_each_batches_own_best_rate(folder):
    """Held-out loss 0.5 + rate: the change is the mean of the best rates."""

    def linear(record):
        record.values["held_out"][...] = 0.5 + record.coordinates["rate"][:, None]

    edit_probe(folder, "line-*", linear)
    lines = study_records.probes(folder, "line-000000800")
    best = [record.values["best_rate"][0].mean() for record in lines]
    found = judged(folder, "B3").part("change_step_800").interval
    expected = stats.ttest_1samp(best, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(found, [np.mean(best), *expected], rtol=1e-9)


def test_the_reach_record_shows_what_decides(folder):
    edit(folder, "reach", records_minibatch.by_images)
    assert values(judged(folder, "O5"))["position"] == pytest.approx(1.0)


@pytest.mark.parametrize("key", ["A1", "A4"])
def test_an_effect_too_small_decides_nothing(folder, key):
    """An average that hardly differs from single iterates is no evidence of an equivalence."""

    def change(found):
        for row in found["rows"]:
            if row.get("of") != "raw" and row["set"] == "train":
                row["loss"] = 0.5 + 0.04 * (row["loss"] - 0.5)

    for task in ("equivalent", "decays"):
        edit(folder, task, change)
    found = judged(folder, key)
    assert found.verdict == "inconclusive" and "condition" in found.reason


@pytest.mark.parametrize(("factor", "position"), [(1.25, 1.0), (1.0, 0.0), (0.875, -0.5)])
def test_positions_of_whole_half_and_quarter_rate(folder, factor, position):
    """Losses 0.5, 0.4 and 0.35 at λ, λ/2 and λ/4."""

    def exact(record):
        for row in record["rows"]:
            if row["set"] == "train_part":
                row["loss"] = 0.3 + 0.2 / row["points"]
                if row.get("gap") == 50 and row["points"] == 2:
                    row["loss"] = 0.4 * factor

    for task in ("many_points", "lower_rates"):
        edit(folder, task, exact)
    found = judged(folder, "A2")
    assert values(found)["position_2"] == pytest.approx(position, abs=1e-6)
    assert (found.verdict == "reproduced") == (position == 0.0)


def test_bends_of_the_two_laws(folder):
    records_schedules.floor(folder)
    assert abs(judged(folder, "O1").part("bend").interval.value) < 0.02
    for task in ("many_points", "lower_rates"):
        edit(folder, task, records_schedules.bent)
    bend = judged(folder, "O1").part("bend").interval.value
    assert bend == pytest.approx((0.375 - 0.5625) / 0.875)


def test_o2_leaves_out_what_no_curve_passes(folder):
    def change(record):
        for row in record["rows"]:
            if row["family"] == "decay" and row["label"] != "0" and row["set"] == "train_part":
                row["loss"] = 0.43

    edit(folder, "trade_off", change)
    names = values(judged(folder, "O2"))
    assert "difference_decay_2" in names and "difference_decay_8" not in names


def without_control(folder):
    def alone(record):
        for segment in record.about["segments"]:
            segment["kind"] = segment["kind"].replace("control_", "no_")

    edit_probe(folder, "basin", alone)


def without_rise(folder):
    def flat(record):
        record.values["accuracy"][1] = 0.9

    edit_probe(folder, "width", flat)


def other_steps(folder):
    def move(content):
        for row in study_records.rows(content, method="fge_member"):
            row["step"] += 1

    edit(folder, "budget", move)


def older(name, **about):
    """Records as they were before they measured these sentences; none is an entry that was not."""

    def change(record):
        found = record["about"] if isinstance(record, dict) else record.about
        found.update(about)
        if name == "cost":
            record["rows"] = []
        found.pop("swa_rate", None)

    def spoil(folder):
        spoiled = edit if (folder / "measured" / name).exists() else edit_probe
        spoiled(folder, name, change)

    return spoil


@pytest.mark.parametrize(
    ("key", "spoil", "verdict", "reason"),
    [
        ("B6", without_control, "not measured", "control"),
        ("B12", without_control, "not measured", "control"),
        ("S1", older("budget"), "not measured", "at the full rate"),
        ("S3", older("cost"), "not measured", "double words only"),
        ("S4", older("width", ray_kind="uniform"), "not measured", "normalised filters"),
        ("S4", without_rise, "not measured", "does not rise by 5 points"),
        ("S5", older("ensemble", run="base"), "not measured", "not ends of cycles"),
        ("S8", other_steps, "inconclusive", "at the same steps"),
    ],
)
def test_records_that_lack_what_a_claim_compares(folder, key, spoil, verdict, reason):
    spoil(folder)
    found = judged(folder, key)
    assert found.verdict == verdict and reason in found.reason


def test_a_rise_that_is_not_reached_is_infinitely_far():
    assert optimum.risen(np.array([0.0, 1.0]), np.array([0.0, 4.9])) == np.inf
