"""Averages against schedules and rates: statistics worked out by other means, and figures."""

import math

import numpy as np
import pytest
import records_schedules
import study_records
from scipy import optimize, stats

from tf_lrtraj import claims
from tf_lrtraj.claims import averages_and_decays, several_points
from tf_lrtraj.records import read_json
from tf_lrtraj.report.drawing import to_svg
from tf_lrtraj.report.study.schedule_figures import FIGURES
from tf_lrtraj.statistics import LEVEL, TOST

FOLDER = study_records.pathlib.Path(__file__).parents[2] / "results" / "reproduction_cifar10_cpu"


def judged(folder, key):
    (claim,) = claims.chosen([key])
    return claims.judge(claim, claims.Records(folder))


def content(folder, task):
    return [read_json(folder / "measured" / task / f"seed{seed}.json") for seed in range(3)]


def losses(record, field="loss", **wanted):
    found = [r[field] for r in record["rows"] if all(r.get(k) == v for k, v in wanted.items())]
    assert found, wanted
    return np.array(found)


def fieller(above, below, level):
    """The ratios at which Student's test of above - r below just decides, by a root finder."""
    above, below = np.asarray(above), np.asarray(below)

    def undecided(r):
        return stats.ttest_1samp(above - r * below, 0.0).pvalue - (1.0 - level)

    middle = above.mean() / below.mean()
    return [
        optimize.brentq(undecided, *ends) for ends in ((middle - 5, middle), (middle, middle + 5))
    ]


def test_a1_is_the_ratio_of_mean_gains_over_both_places(kept_records):
    above, below = [], []
    pairs = zip(content(kept_records, "equivalent"), content(kept_records, "decays"), strict=True)
    for runs, decays in pairs:
        gains = []
        for end in records_schedules.ENDS:
            raw = losses(decays, of="raw", end=end, set="train").mean()
            where = {"average": "swa", "end": end, "set": "train"}
            average = losses(runs, of="average", **where)[0]
            run = losses(runs, of="run", equivalence="curvature_free", **where)[0]
            gains.append((raw - average, raw - run))
        above.append(np.mean([gain[0] for gain in gains]))
        below.append(np.mean([gain[1] for gain in gains]))
    found = judged(kept_records, "A1").part("share_swa").interval
    assert found.value == pytest.approx(np.mean(above) / np.mean(below), rel=1e-9)
    np.testing.assert_allclose(found[1:], fieller(above, below, TOST), rtol=1e-6)


def test_a4_takes_records_of_one_horizon():
    """Older ones: the level without averaging is the mean over the window's last half."""
    found = judged(FOLDER, "A4").part("share_linear").interval
    above, below = [], []
    pairs = zip(content(FOLDER, "decays"), content(FOLDER, "levels"), strict=True)
    for decays, levels in pairs:
        raw = losses(levels, set="train")[4:].mean()
        emulated, trained = (
            losses(decays, decay="linear", of=of, set="train")[0] for of in ("emulated", "trained")
        )
        above.append(raw - emulated)
        below.append(raw - trained)
    assert found.value == pytest.approx(np.mean(above) / np.mean(below), rel=1e-9)
    np.testing.assert_allclose(found[1:], fieller(above, below, TOST), rtol=1e-6)


@pytest.mark.parametrize("key", ["A1", "A4"])
def test_an_effect_too_small_decides_nothing(folder, key):
    """An average that hardly differs from single iterates is no evidence of an equivalence."""

    def change(found):
        for row in found["rows"]:
            if row.get("of") != "raw" and row["set"] == "train":
                row["loss"] = 0.5 + 0.04 * (row["loss"] - 0.5)

    for task in ("equivalent", "decays"):
        study_records.edit(folder, task, change)
    found = judged(folder, key)
    assert found.verdict == "inconclusive" and "condition" in found.reason


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
        study_records.edit(folder, task, exact)
    found = judged(folder, "A2")
    numbers = {told.name: told.interval.value for told in found.numbers}
    assert numbers["position_2"] == pytest.approx(position, abs=1e-6)
    assert (found.verdict == "reproduced") == (position == 0.0)


def test_a9_pairs_by_where_they_end(kept_records):
    gains = []
    for record in content(kept_records, "many_points"):
        ends = losses(record, "end", points=2, gap=50, set="test")
        each = [
            losses(record, "accuracy", points=2, gap=50, end=end, set="test")[0]
            - losses(record, "accuracy", points=1, end=end, set="test", policy="running")[0]
            for end in ends
        ]
        gains.append(100.0 * np.mean(each))
    found = judged(kept_records, "A9").part("over_running").interval
    expected = stats.ttest_1samp(gains, 0.0).confidence_interval(LEVEL)
    np.testing.assert_allclose(found, [np.mean(gains), expected.low, expected.high], rtol=1e-9)


@pytest.mark.parametrize(
    ("loss", "exponent"),
    [(9.0, 0.0), (7.0, 2 / 3), (6.0, 1.0), (4.5, 2.0), (3.0, 3.5), (12.0, -1.0)],
)
def test_equivalent_rates_on_a_broken_line(loss, exponent):
    curve = np.array([9.0, 6.0, 4.5, 3.5])
    assert several_points._equivalent(curve, loss) == pytest.approx(exponent)
    assert math.isnan(several_points._equivalent(curve[::-1], loss))


def test_bends_of_the_two_laws(folder):
    records_schedules.floor(folder)
    assert abs(judged(folder, "O1").part("bend").interval.value) < 0.02
    for task in ("many_points", "lower_rates"):
        study_records.edit(folder, task, records_schedules.bent)
    bend = judged(folder, "O1").part("bend").interval.value
    assert bend == pytest.approx((0.375 - 0.5625) / 0.875)


def test_o2_compares_at_equal_training_loss(kept_records):
    """Records have a test loss of 0.4 + train / 2 on both curves, and 0.02 less for averages."""
    found = judged(kept_records, "O2")
    for name in ("difference_low_rates", "difference_decays"):
        assert found.part(name).interval.value == pytest.approx(-0.02, abs=1e-6)


def test_o2_leaves_out_what_no_curve_passes(folder):
    def change(record):
        for row in record["rows"]:
            if row["family"] == "decay" and row["label"] != "0" and row["set"] == "train_part":
                row["loss"] = 0.43

    study_records.edit(folder, "trade_off", change)
    names = [told.name for told in judged(folder, "O2").numbers]
    assert "difference_decay_2" in names and "difference_decay_8" not in names


def test_a5_medians_and_coverage_are_of_seeds(kept_records):
    medians, inside = [], []
    for record in content(kept_records, "sweep"):
        rows = [r for r in record["rows"] if "predicted" in r and r["role"] != "calibration"]
        held = [r["low"] <= r["measured"] <= r["high"] for r in rows]
        train = [r for r in rows if r["set"] == "train_part"]
        errors = [100 * abs(r["predicted"] / r["measured"] - 1) for r in train]
        medians.append(np.median(errors))
        inside.append(np.mean(held))
    found = judged(kept_records, "A5")
    expected = stats.ttest_1samp(medians, 0.0).confidence_interval(LEVEL)
    interval = found.part("median_error_training").interval
    np.testing.assert_allclose(interval, [np.mean(medians), *expected], rtol=1e-9)
    assert found.part("coverage").interval.value == pytest.approx(np.mean(inside))


@pytest.mark.parametrize("key", FIGURES)
def test_every_claim_is_drawn(kept_records, key):
    figure = FIGURES[key].draw(judged(kept_records, key))
    assert len(figure.axes) <= 3
    assert to_svg(figure) == to_svg(FIGURES[key].draw(judged(kept_records, key)))


def test_claims_of_this_group_have_figures():
    modules = (averages_and_decays, several_points)
    assert {claim.id for module in modules for claim in module.CLAIMS} <= set(FIGURES)
