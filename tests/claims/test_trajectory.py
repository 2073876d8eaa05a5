"""Numbers of claims about trajectories and time scales, against slow obvious computations."""

import math

import numpy as np
import pytest
from scipy import stats

from tf_lrtraj import claims, kernels, theory
from tf_lrtraj.claims import stationary_state, time_scales
from tf_lrtraj.claims.records_reader import Records
from tf_lrtraj.records import read_json

SEEDS = range(3)


@pytest.fixture(scope="module")
def ledger(kept_records):
    chosen = [c.id for c in (*stationary_state.CLAIMS, *time_scales.CLAIMS)]
    entries = claims.make_ledger(kept_records, claims.chosen(chosen))["claims"]
    return {e["id"]: {p["name"]: p for p in (*e["parts"], *e["numbers"])} for e in entries}


@pytest.fixture(scope="module")
def content(kept_records):
    return lambda task, seed: read_json(kept_records / "measured" / task / f"seed{seed}.json")


def close(found, values):
    """Mean over seeds with Student's interval."""
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(
        [found["value"], found["low"], found["high"]], [np.mean(values), low, high], rtol=1e-4
    )


def squares(record, batches, rate):
    rows = [r for r in record["rows"] if (r["batches"], r["learning_rate"]) == (batches, rate)]
    return {r["step"]: r["squared_distance"] for r in rows}


def test_b7_plateau_and_half_time(ledger, content):
    displaced, plateaus, halves = [], [], []
    for seed in SEEDS:
        apart = squares(content("pairs", seed), "independent", 0.1)
        plateaus.append(np.mean([v for step, v in apart.items() if step >= 120]))
        record = content("displacement", seed)
        lags, moved = record["lags"], record["mean_squared"]
        displaced.append(np.interp(140, lags, moved))
        lags, moved = [0, *lags], [0, *moved]
        after = int(np.argmax(np.array(moved) >= 0.5 * plateaus[-1]))
        (x0, x1), (y0, y1) = lags[after - 1 : after + 1], moved[after - 1 : after + 1]
        halves.append((x0 + (0.5 * plateaus[-1] - y0) * (x1 - x0) / (y1 - y0)) / 1200)
    value = np.mean(displaced) / np.mean(plateaus)
    assert ledger["B7"]["plateau"]["value"] == pytest.approx(value, rel=1e-5)
    close(ledger["B7"]["half_time"], halves)
    epochs = np.mean(halves) * 1200 * 32 / 1437
    assert ledger["B7"]["half_time_epochs"]["value"] == pytest.approx(epochs, rel=1e-4)


def test_b8_exponent_is_half_that_of_squares(ledger, content):
    for name, field in (("distance", "squared_distance"), ("angle", "filters_squared_distance")):
        powers = []
        for seed in SEEDS:
            rows = [r for r in content("rates", seed)["rows"] if r["half"] == 2]
            logs = [np.log([r[k] for r in rows]) for k in ("learning_rate", field)]
            powers.append(0.5 * np.polyfit(*logs, 1)[0])
        close(ledger["B8"][name], powers)


def test_b9_scatter_places_and_walks(ledger, content):
    scatters, places, grown = [], [], []
    for seed in SEEDS:
        record = content("shell", seed)
        halves = np.array_split(np.array(record["squared_distance"]), 2)
        scatters.append(np.mean([np.std(h, ddof=1) / np.mean(h) for h in halves]))
        rows = [r for r in record["rows"] if r["of"] == "window"]
        places.append(
            np.mean([r["squared_distance"] / r["iterates"] for r in rows]) + 2 * scatters[-1]
        )
        rows = [r for r in record["rows"] if r.get("scale") == 0.5]
        grown.append(np.mean([(r["after"] - r["before"]) / r["iterates"] for r in rows]))
    close(ledger["B9"]["scatter"], scatters)
    close(ledger["B9"]["inside_averages_of_a_stretch"], places)
    close(ledger["B9"]["grows_inside"], grown)


def test_b10_and_o4_ratios(ledger, content):
    found = {rate: [] for rate in (0.1, 0.0125)}
    for seed in SEEDS:
        for rate, ends in found.items():
            both = [squares(content("pairs", seed), b, rate) for b in ("shared", "independent")]
            ends.append([np.mean([v for step, v in one.items() if step >= 140]) for one in both])
    ratios = {rate: np.array(ends) for rate, ends in found.items()}
    means = {rate: ends.mean(0)[0] / ends.mean(0)[1] for rate, ends in ratios.items()}
    assert ledger["B10"]["shared"]["value"] == pytest.approx(means[0.1], rel=1e-5)
    assert ledger["O4"]["small_rate"]["value"] == pytest.approx(means[0.0125], rel=1e-5)
    large, small = (ratios[rate][:, 0] / ratios[rate][:, 1] for rate in (0.1, 0.0125))
    assert ledger["O4"]["larger"]["value"] == pytest.approx(large.mean() / small.mean(), rel=1e-5)
    assert ledger["B10"]["depends_on_rate"]["value"] == pytest.approx(1.0, abs=0.02)
    assert abs(ledger["B10"]["settles"]["value"]) < 0.05


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


def test_b13_falls_and_predictions(ledger, content):
    losses, predicted = [], []
    for seed in SEEDS:
        record = content("rates", seed)
        lower = [
            np.mean(
                [
                    r["loss"]
                    for r in content("lower_rates", seed)["rows"]
                    if r["set"] == "train_part" and r["learning_rate"] == rate
                ]
            )
            for rate in (0.05, 0.025, 0.0125)
        ]
        losses.append([record["about"]["single_loss"], *lower])
        predicted.append([p["excess"] for p in record["predicted"]])
    losses, predicted = np.array(losses), np.array(predicted)
    close(ledger["B13"]["falls_rate_0.025"], np.log(losses[:, 2] / losses[:, 1]))
    foreseen, fall = (x[:, 0] - x[:, 3] for x in (predicted, losses))
    assert ledger["B13"]["explained_rate_0.0125"]["value"] == pytest.approx(
        foreseen.mean() / fall.mean(), rel=1e-5
    )


def test_b14_powers(ledger, content):
    powers = []
    for seed in SEEDS:
        rows = [r for r in content("start", seed)["rows"] if "squared_distance" in r]
        logs = [np.log([r[k] for r in rows]) for k in ("step", "squared_distance")]
        powers.append(np.polyfit(*logs, 1)[0])
    close(ledger["B14"]["parts"], powers)


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


def test_a7_chance_of_the_largest_miss(kept_records, content):
    record = content("two_time_scales", 0)
    worst, count = 0.0, 0
    for name in ("large", "ema", "small"):
        exact = np.array(record[f"{name}_losses"])[record["simulated_steps"]]
        miss = np.abs(np.array(record[f"{name}_simulated"]) - exact) / record[f"{name}_stderr"]
        worst, count = max(worst, miss.max()), count + miss.size
    found = time_scales.judge_a7(Records(kept_records))
    chance = min(1.0, count * 2 * stats.t.sf(worst, 99))
    assert found.part("agreement").interval.value == pytest.approx(chance)
    bound = found.drawn["bound"]
    assert count * 2 * stats.t.sf(bound, 99) == pytest.approx(0.05)


def test_a10_model_is_the_loss_of_the_ema(ledger, content):
    record = content("averaging_length", 0)
    total = np.array(record["ema_bias"]) + np.array(record["ema_variance"])
    lengths = np.array(record["lengths"])
    best = total[1].argmin()
    near = np.abs(np.log10(lengths / lengths[best]) - 1.0).argmin()
    assert ledger["A10"]["model_longer_rate_0.5"]["value"] == pytest.approx(
        total[1, near] / total[1, best], rel=1e-5
    )


def test_a10_best_times_come_from_the_other_seeds():
    times = 10.0 ** np.arange(5)
    curves = np.array([[3.0, 2.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.5, 1.0, 3.0]])
    shorter, longer, gain, best = time_scales._off_the_best(times, curves, np.array([4.0, 4.0]))
    assert best == [1000.0, 100.0]
    np.testing.assert_allclose(shorter, [-1.0, 0.5])
    np.testing.assert_allclose(longer, [1.0, -0.5])
    np.testing.assert_allclose(gain, [2.0, 2.5])


def test_the_quadratic_model_is_sensitive_to_the_length():
    """What A10 says of the model, by simulation of one rate."""
    a = np.geomspace(0.003, 1.0, 10)
    model = theory.QuadraticModel(a, np.ones(10))
    lengths = (8, 80, 1000)
    named = {str(n): kernels.Exponential(theory.ema_decay_for_window(n)) for n in lengths}
    found = model.simulate(np.full(600, 0.5), np.full(10, 3.0), 100, 0, named).averages
    short, middle, long = (found[str(n)].losses[-1] for n in lengths)
    assert short > 1.1 * middle and long > 1.1 * middle
