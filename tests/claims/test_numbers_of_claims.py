"""Statistics of claims, worked out again from the same records by other means."""

import numpy as np
import pytest
from scipy import stats

from tf_lrtraj import claims
from tf_lrtraj.claims import basin, one_step, swa
from tf_lrtraj.records import ArrayRecord, read_json


@pytest.fixture(scope="module")
def ledger(kept_records):
    return {e["id"]: e["numbers"] for e in claims.make_ledger(kept_records)["claims"]}


@pytest.fixture
def content(kept_records):
    def read(task, seed):
        return read_json(kept_records / "measured" / task / f"seed{seed}.json")

    return read


def pick(content, field, **wanted):
    (found,) = [r for r in content["rows"] if all(r.get(k) == v for k, v in wanted.items())]
    return found[field]


def close(found, expected):
    """Ledger numbers have six digits."""
    np.testing.assert_allclose([found[k] for k in ("value", "low", "high")], expected, rtol=2e-5)


def interval(values, level=0.95):
    found = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    return [np.mean(values), found.low, found.high]


def test_a1_gaps(ledger, content):
    gaps, accuracies = [], []
    for seed in range(3):
        record = content("equivalent", seed)
        wanted = {"average": "swa", "share": 1.0}
        run = {**wanted, "of": "run", "equivalence": "curvature"}
        average = {**wanted, "of": "average"}
        loss = pick(record, "loss", set="train", **run)
        gaps.append(100 * (loss / pick(record, "loss", set="train", **average) - 1))
        accuracies.append(
            100 * pick(record, "accuracy", set="test", **run)
            - 100 * pick(record, "accuracy", set="test", **average)
        )
    close(ledger["A1"]["gap_swa_curvature"], interval(gaps, 0.9))
    close(ledger["A1"]["accuracy_gap_swa_curvature"], interval(accuracies))


def test_a1_prediction_is_the_difference_of_excess_losses(ledger, claim_records):
    """The model's run has an excess loss of 1 % of the loss more than its average."""
    assert ledger["A1"]["predicted_gap_ema_curvature"]["value"] == pytest.approx(1.0, rel=1e-4)
    halfway = ledger["A1"]["halfway_gap_ema"]["value"]
    assert halfway == pytest.approx(1.0, abs=0.3)


def test_a2_position_between_the_rates(ledger, content):
    above, step = 0.0, 0.0
    for seed in range(3):
        points, rates = content("many_points", seed), content("lower_rates", seed)

        def mean(record, **wanted):
            rows = record["rows"]
            fits = [r for r in rows if all(r.get(k) == v for k, v in wanted.items())]
            return np.mean([r["loss"] for r in fits])

        two = mean(points, points=2, gap=50, set="train_part")
        one = mean(points, points=1, set="train_part")
        half = mean(rates, points=2, set="train_part")
        above, step = above + two - half, step + one - half
    assert ledger["A2"]["position_2"]["value"] == pytest.approx(above / step, rel=1e-4)
    assert abs(ledger["A2"]["position_2"]["value"]) < 0.1


@pytest.mark.parametrize(("factor", "position"), [(1.25, 1.0), (1.0, 0.0), (0.875, -0.5)])
def test_positions_of_whole_half_and_quarter_rate(claim_records, folder, factor, position):
    """Losses 0.5, 0.4 and 0.35 at λ, λ/2 and λ/4."""

    def exact(record):
        for row in record["rows"]:
            if row["set"] == "train_part":
                row["loss"] = 0.3 + 0.2 / row["points"]
                if row.get("gap") == 50 and row["points"] == 2:
                    row["loss"] = 0.4 * factor

    claim_records.edit(folder, "many_points", exact)
    claim_records.edit(folder, "lower_rates", exact)
    found = claims.make_ledger(folder, claims.chosen(["A2"]))["claims"][0]
    assert found["numbers"]["position_2"]["value"] == pytest.approx(position, abs=1e-6)
    assert (found["verdict"] == "reproduced") == (position == 0.0)


def test_a4_shares_of_the_gain(ledger, content):
    captured = []
    for seed in range(3):
        record = content("decays", seed)
        raw = pick(content("averages", seed), "loss", average="raw", set="train")
        trained, emulated = (
            pick(record, "loss", decay="cosine", of=of, set="train")
            for of in ("trained", "emulated")
        )
        captured.append((raw - emulated) / (raw - trained))
    close(ledger["A4"]["captured_cosine"], interval(captured))


def test_a5_errors_and_coverage(ledger, content):
    medians, worst, inside, total = [], 0.0, 0, 0
    for seed in range(3):
        for on in ("train_part", "test_part"):
            rows = [
                r
                for r in content("sweep", seed)["rows"]
                if r["set"] == on and "predicted" in r and r["role"] != "calibration"
            ]
            errors = [100 * abs(r["predicted"] - r["measured"]) / r["measured"] for r in rows]
            inside += sum(r["low"] <= r["measured"] <= r["high"] for r in rows)
            total += len(rows)
            if on == "train_part":
                medians.append(np.median(errors))
                worst = max(worst, *errors)
    close(ledger["A5"]["median_error_train_part"], interval(medians))
    assert ledger["A5"]["worst_error_train_part"]["value"] == pytest.approx(worst, rel=1e-4)
    wilson = stats.binomtest(inside, total).proportion_ci(0.95, "wilson")
    close(ledger["A5"]["coverage"], [inside / total, wilson.low, wilson.high])


def test_b8_exponent_is_half_that_of_squares(ledger, content):
    powers = []
    for seed in range(3):
        rows = [r for r in content("rates", seed)["rows"] if r["half"] == 2]
        rates, squares = ([r[k] for r in rows] for k in ("learning_rate", "squared_distance"))
        powers.append(0.5 * np.polyfit(np.log(rates), np.log(squares), 1)[0])
    close(ledger["B8"]["exponent"], interval(powers))


def test_b9_scatter_and_places(ledger, content):
    squares = [np.array(content("shell", seed)["squared_distance"]) for seed in range(3)]
    scatter = [np.std(s, ddof=1) / np.mean(s) for s in squares]
    close(ledger["B9"]["scatter"], interval(scatter))
    places = [
        pick(content("shell", seed), "squared_distance", average="swa") / squares[seed].mean()
        + 2 * scatter[seed]
        for seed in range(3)
    ]
    close(ledger["B9"]["swa_inside"], interval(places))


def test_b10_plateaus_follow_the_rate(ledger):
    assert ledger["B10"]["plateau_exponent"]["value"] == pytest.approx(1.0, abs=0.02)


def test_s1_is_the_paired_t_test(ledger, content):
    swa_runs, plain = (
        [
            100 * pick(content("budget", seed), "accuracy", method=method, set="test")
            for seed in range(3)
        ]
        for method in ("swa_constant", "conventional")
    )
    found = stats.ttest_rel(swa_runs, plain).confidence_interval(0.95)
    expected = [np.mean(swa_runs) - np.mean(plain), found.low, found.high]
    close(ledger["S1"]["swa_constant_gain"], expected)


def test_s2_formula_update_by_update():
    count, length, high, low = 23, 5, 0.05, 0.001
    expected = []
    for i in range(1, count + 1):
        t = ((i - 1) % length + 1) / length
        expected.append((1 - t) * high + t * low)
    np.testing.assert_allclose(swa.cyclical(count, length, high, low), expected, rtol=1e-14)


def test_b2_counts_batches(ledger, kept_records, content):
    record = ArrayRecord.read(kept_records / "probes" / "seed0" / "line-000001200.npz")
    trained = pick(content("budget", 0), "loss", method="conventional", set="train_part")
    close(
        ledger["B2"]["difference_step_1200"],
        interval(record.values["train"].min(axis=0) - trained),
    )


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
    position = np.array([0.0, 0.25, 1.0])
    curve = np.array([[2.0], [3.0], [4.0]])
    np.testing.assert_allclose(basin._heights(position, curve)[:, 0], [0.0, 0.5, 0.0])


def test_the_verdict_on_barriers_errs_seldom():
    """A barrier of just the level is called neither in more than one case in twenty."""
    random = np.random.default_rng(5)
    shape = np.array([0.0, 0.5, 1.0, 0.5, 0.0])
    count = {"reproduced": 0, "not reproduced": 0}
    for _ in range(1000):
        noise = 0.05 * random.standard_normal((5, 12))
        part = basin._barrier("x", basin.LEVEL * shape[:, None] + noise, "x")
        if part.verdict in count:
            count[part.verdict] += 1
    assert count["reproduced"] <= 50
    assert count["not reproduced"] <= 50


def test_clear_barriers_are_told():
    random = np.random.default_rng(6)
    shape = np.array([0.0, 1.0, 0.0])[:, None]
    noise = 0.01 * random.standard_normal((3, 8))
    assert basin._barrier("x", 0.3 * shape + noise, "x").verdict == "not reproduced"
    assert basin._barrier("x", -0.3 * shape + noise, "x").verdict == "reproduced"
    assert basin._barrier("x", -0.3 * shape, "x").verdict == "inconclusive"  # one entry
