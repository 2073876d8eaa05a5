"""Statistics of mini-batches, worked out again by other means, and their figures."""

import numpy as np
import pytest
import records_minibatch
import study_records
from scipy import stats

from tf_lrtraj import claims
from tf_lrtraj.claims import basin, convexity, one_step, reach
from tf_lrtraj.records import ArrayRecord, read_json, write_json
from tf_lrtraj.report.drawing import to_svg
from tf_lrtraj.report.study.minibatch_figures import FIGURES, HEADS


def entry(folder, key):
    return claims.make_ledger(folder, claims.chosen([key]))["claims"][0]


def part(folder, key, name):
    (found,) = [p for p in entry(folder, key)["parts"] if p["name"] == name]
    return [found[k] for k in ("value", "low", "high")]


def interval(values):
    found = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return [np.mean(values), found.low, found.high]


def probe(folder, name, seed):
    return ArrayRecord.read(folder / "probes" / f"seed{seed}" / f"{name}.npz")


def test_b1_is_the_median_of_each_seeds_batches(kept_records):
    medians = []
    for seed in range(3):
        misfits = sorted(probe(kept_records, "line-000000800", seed).values["fit_error"][1, 3])
        medians.append(50.0 * (misfits[5] + misfits[6]))
    found = part(kept_records, "B1", "misfit_step_800")
    np.testing.assert_allclose(found, interval(medians), rtol=1e-5)


def test_b2_is_paired_by_batch(kept_records):
    differences = []
    for seed in range(3):
        lowest = probe(kept_records, "line-000001200", seed).values["train"].min(axis=0)
        path = kept_records / "measured" / "trained" / f"seed{seed}.json"
        trained = read_json(path)["batch_loss"]
        differences.append(np.mean([a - b for a, b in zip(lowest, trained, strict=True)]))
    found = part(kept_records, "B2", "difference_step_1200")
    np.testing.assert_allclose(found, interval(differences), rtol=1e-5)


def test_b3_changes_are_taken_at_each_batches_own_best_rate(folder):
    """Held-out loss 0.5 + rate: the change is the mean of the best rates."""

    def linear(record):
        record.values["held_out"][...] = 0.5 + record.coordinates["rate"][:, None]

    study_records.edit_probe(folder, "line-*", linear)
    best = [probe(folder, "line-000000800", s).values["best_rate"][0].mean() for s in range(3)]
    found = part(folder, "B3", "change_step_800")
    np.testing.assert_allclose(found, interval(best), rtol=1e-5)


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
    assert basin._barrier(curves) == pytest.approx((0.5 + 4.5) / 2)
    assert basin._barrier(curves * [1.0, -1.0]) == pytest.approx(0.25)  # a valley is none


def test_without_a_control_nothing_is_told_of_basins(folder):
    def alone(record):
        for segment in record.about["segments"]:
            segment["kind"] = segment["kind"].replace("control_", "no_")

    study_records.edit_probe(folder, "basin", alone)
    for key in ("B6", "B12"):
        found = entry(folder, key)
        assert found["verdict"] == "not measured" and "control" in found["reason"]


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


def test_the_reach_record_shows_what_decides(folder):
    study_records.edit(folder, "reach", records_minibatch.by_images)
    assert part(folder, "O5", "position")[0] == pytest.approx(1.0)


@pytest.mark.parametrize("key", FIGURES)
def test_figures_are_drawn_from_judgements(kept_records, key):
    (judgement,) = claims.Study(kept_records, claims.chosen([key])).judgements.values()
    for figures in (FIGURES, HEADS):
        if key in figures:
            assert to_svg(figures[key].draw(judgement)).startswith("<?xml")


def test_figures_of_a_smoke_test_with_one_seed(tmp_path):
    folder = study_records.build(tmp_path / "one", seeds=1)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"judged": False, "probe_seeds": 1})
    for claim, judgement in claims.Study(folder).judgements.items():
        if claim.id in FIGURES:
            assert judgement.verdict == "not judged"
            assert FIGURES[claim.id].draw(judgement) is not None
