"""Numbers of claims against slow, obvious computations from the same records.

`SEEDS` holds numbers whose interval is Student's over seeds, `RATIOS` ratios of means over seeds.
"""

import pathlib

import numpy as np
import pytest
import records_schedules
from scipy import optimize, stats
from study_records import contents, judged, judgements, probes

from tf_lrtraj.records import read_json

OLD = pathlib.Path(__file__).parents[2] / "results" / "reproduction_cifar10_cpu"


def picked(content, field, **wanted):
    found = [r[field] for r in content["rows"] if all(r.get(k) == v for k, v in wanted.items())]
    assert found, wanted
    return np.array(found)


def power(x, y):
    return np.polyfit(np.log(x), np.log(y), 1)[0]


# One number of each seed ----------------------------------------------------------------------


def b1(folder):
    for record in probes(folder, "line-000000800"):
        misfits = sorted(record.values["fit_error"][1, 3])
        yield 50.0 * (misfits[5] + misfits[6])


def b2(folder):
    lines = probes(folder, "line-000001200")
    for record, trained in zip(lines, contents(folder, "trained"), strict=True):
        lowest = record.values["train"].min(axis=0)
        yield np.mean([a - b for a, b in zip(lowest, trained["batch_loss"], strict=True)])


def apart(record, batches, rate):
    where = {"batches": batches, "learning_rate": rate}
    return picked(record, "step", **where), picked(record, "squared_distance", **where)


def later(record, batches, rate, share):
    steps, squares = apart(record, batches, rate)
    return squares[steps >= share * 160].mean()


def half_times(folder):
    """Lags at which half of the distance of two runs is reached."""
    pairs = zip(contents(folder, "pairs"), contents(folder, "displacement"), strict=True)
    for pair, record in pairs:
        half = 0.5 * later(pair, "independent", 0.1, 0.75)
        lags, moved = [0, *record["lags"]], [0, *record["mean_squared"]]
        after = int(np.argmax(np.array(moved) >= half))
        (x0, x1), (y0, y1) = lags[after - 1 : after + 1], moved[after - 1 : after + 1]
        yield x0 + (half - y0) * (x1 - x0) / (y1 - y0)


def b8(field):
    def powers(folder):
        for record in contents(folder, "rates"):
            rates, squares = (picked(record, k, half=2) for k in ("learning_rate", field))
            yield 0.5 * power(rates, squares)

    return powers


def scatters(folder):
    for record in contents(folder, "shell"):
        halves = np.array_split(np.array(record["squared_distance"]), 2)
        yield np.mean([np.std(half, ddof=1) / np.mean(half) for half in halves])


def places(folder):
    for record, scatter in zip(contents(folder, "shell"), scatters(folder), strict=True):
        squares, iterates = (
            picked(record, k, of="window") for k in ("squared_distance", "iterates")
        )
        yield np.mean(squares / iterates) + 2 * scatter


def walks(folder):
    for record in contents(folder, "shell"):
        after, before, iterates = (
            picked(record, key, of="walk", scale=0.5) for key in ("after", "before", "iterates")
        )
        yield np.mean((after - before) / iterates)


def rates_and_excess(folder):
    """[seed, rate] losses at four rates, and what the model predicts."""
    losses, excess = [], []
    pairs = zip(contents(folder, "rates"), contents(folder, "lower_rates"), strict=True)
    for record, lower in pairs:
        late = [
            picked(lower, "loss", set="train_part", learning_rate=rate).mean()
            for rate in (0.05, 0.025, 0.0125)
        ]
        losses.append([record["about"]["single_loss"], *late])
        excess.append([row["excess"] for row in record["predicted"]])
    return np.array(losses), np.array(excess)


def falls(folder):
    losses, _ = rates_and_excess(folder)
    return np.log(losses[:, 2] / losses[:, 1])


def b14(folder):
    for record in contents(folder, "start"):
        rows = [r for r in record["rows"] if "squared_distance" in r]
        yield power([r["step"] for r in rows], [r["squared_distance"] for r in rows])


def a9(folder):
    for record in contents(folder, "many_points"):
        two = {"points": 2, "gap": 50, "set": "test"}
        one = {"points": 1, "set": "test", "policy": "running"}
        each = [
            picked(record, "accuracy", end=end, **two)[0]
            - picked(record, "accuracy", end=end, **one)[0]
            for end in picked(record, "end", **two)
        ]
        yield 100.0 * np.mean(each)


def predictions(folder):
    for record in contents(folder, "sweep"):
        yield [r for r in record["rows"] if "predicted" in r and r["role"] != "calibration"]


def a5_errors(folder):
    for rows in predictions(folder):
        train = [row for row in rows if row["set"] == "train_part"]
        yield np.median([100 * abs(r["predicted"] / r["measured"] - 1) for r in train])


def accuracies(folder, method, policy="recompute"):
    """Test accuracy by seed, in per cent; of several rows their mean."""
    where = {"set": "test", "method": method, "policy": policy}
    found = [picked(r, "accuracy", **where).mean() for r in contents(folder, "budget")]
    return 100.0 * np.array(found)


def less(method, other):
    return lambda folder: accuracies(folder, method) - accuracies(folder, other)


def s7(folder):
    """A difference of differences."""
    swa, last = "swa_constant", "swa_constant_last"
    gain = accuracies(folder, swa) - accuracies(folder, swa, "copy")
    return gain - (accuracies(folder, last) - accuracies(folder, last, "running"))


def s4(folder):
    for record in probes(folder, "width"):
        distance, errors = record.coordinates["distance"], -100 * record.values["accuracy"]
        found = [  # errors rise all the way in these records, so that they can be inverted
            [np.interp(5.0, curve - curve[0], distance) for curve in rays]
            for rays in errors.mean(axis=-1)
        ]
        yield np.mean(np.log(found[1]) - np.log(found[0]))


SEEDS = {
    ("B1", "misfit_step_800"): b1,
    ("B2", "difference_step_1200"): b2,
    ("B7", "half_time"): lambda folder: [lag / 1200 for lag in half_times(folder)],
    ("B7", "half_time_epochs"): lambda folder: [lag * 32 / 1437 for lag in half_times(folder)],
    ("B8", "distance"): b8("squared_distance"),
    ("B8", "angle"): b8("filters_squared_distance"),
    ("B9", "scatter"): scatters,
    ("B9", "inside_averages_of_a_stretch"): places,
    ("B9", "grows_inside"): walks,
    ("B13", "falls_rate_0.025"): falls,
    ("B14", "parts"): b14,
    ("A5", "median_error_training"): a5_errors,
    ("A9", "over_running"): a9,
    ("S1", "swa_gain_cyclical_rate"): less("swa_cyclical", "conventional"),
    ("S4", "wider"): s4,
    ("S6", "over_members"): less("fge", "fge_member"),
    ("S7", "recomputed_constant_rate"): s7,
    ("S8", "members"): less("fge_member", "constant_iterate"),
}


@pytest.fixture(scope="module")
def found(kept_records):
    """(claim, name) → (interval, its level), of parts and of numbers beside them."""
    return {
        (key, one.name): (one.interval, one.wanted.level if hasattr(one, "wanted") else 0.95)
        for key, judgement in judgements(kept_records).items()
        for one in (*judgement.parts, *judgement.numbers)
    }


@pytest.mark.parametrize("name", SEEDS, ids="-".join)
def test_the_mean_over_seeds_with_students_interval(found, kept_records, name):
    values = list(SEEDS[name](kept_records))
    interval, level = found[name]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    np.testing.assert_allclose(interval, [np.mean(values), *expected], rtol=1e-9)


# Ratios of means over seeds -------------------------------------------------------------------


def b7(folder):
    displaced = [
        np.interp(140, r["lags"], r["mean_squared"]) for r in contents(folder, "displacement")
    ]
    return displaced, [later(r, "independent", 0.1, 0.75) for r in contents(folder, "pairs")]


def ends(folder, rate):
    """Squared distances on shared and on independent batches, at the end."""
    both = [
        [later(record, batches, rate, 0.875) for batches in ("shared", "independent")]
        for record in contents(folder, "pairs")
    ]
    return np.array(both).T


def o4(folder):
    large, small = (
        shared / independent for shared, independent in (ends(folder, 0.1), ends(folder, 0.0125))
    )
    return large, small


def b13(folder):
    losses, excess = rates_and_excess(folder)
    return excess[:, 0] - excess[:, 3], losses[:, 0] - losses[:, 3]


def a1(folder):
    """Gains, the mean over both places of the window."""
    above, below = [], []
    pairs = zip(contents(folder, "equivalent"), contents(folder, "decays"), strict=True)
    for runs, decays in pairs:
        gains = []
        for end in records_schedules.ENDS:
            raw = picked(decays, "loss", of="raw", end=end, set="train").mean()
            where = {"average": "swa", "end": end, "set": "train"}
            average = picked(runs, "loss", of="average", **where)[0]
            run = picked(runs, "loss", of="run", equivalence="curvature_free", **where)[0]
            gains.append((raw - average, raw - run))
        above.append(np.mean([gain[0] for gain in gains]))
        below.append(np.mean([gain[1] for gain in gains]))
    return above, below


def a4(folder):
    """Of records of one horizon: the loss without averaging is that of the window's last half."""
    above, below = [], []
    for decays, levels in zip(contents(folder, "decays"), contents(folder, "levels"), strict=True):
        raw = picked(levels, "loss", set="train")[4:].mean()
        emulated, trained = (
            picked(decays, "loss", decay="linear", of=of, set="train")[0]
            for of in ("emulated", "trained")
        )
        above.append(raw - emulated)
        below.append(raw - trained)
    return above, below


RATIOS = {
    ("B7", "plateau"): b7,
    ("B10", "shared"): lambda folder: ends(folder, 0.1),
    ("O4", "small_rate"): lambda folder: ends(folder, 0.0125),
    ("O4", "larger"): o4,
    ("B13", "explained_rate_0.0125"): b13,
    ("A1", "share_swa"): a1,
}


def fieller(above, below, level):
    """The ratios at which Student's test of above - r below just decides, by a root finder."""
    above, below = np.asarray(above), np.asarray(below)

    def undecided(r):
        return stats.ttest_1samp(above - r * below, 0.0).pvalue - (1.0 - level)

    middle = above.mean() / below.mean()
    limits = ((middle - 5, middle), (middle, middle + 5))
    return [middle, *(optimize.brentq(undecided, *limit) for limit in limits)]


@pytest.mark.parametrize("name", RATIOS, ids="-".join)
def test_the_ratio_of_means_with_fiellers_interval(found, kept_records, name):
    interval, level = found[name]
    expected = fieller(*RATIOS[name](kept_records), level)
    np.testing.assert_allclose(interval, expected, rtol=1e-6)


def test_a4_takes_records_of_one_horizon():
    part = judged(OLD, "A4").part("share_linear")
    np.testing.assert_allclose(part.interval, fieller(*a4(OLD), part.wanted.level), rtol=1e-6)


# Others ---------------------------------------------------------------------------------------


def test_b10_powers_of_the_model(found):
    assert found["B10", "depends_on_rate"][0].value == pytest.approx(1.0, abs=0.02)
    assert abs(found["B10", "settles"][0].value) < 0.05


def test_a7_chance_of_the_largest_miss(kept_records):
    record = read_json(kept_records / "measured/two_time_scales/seed0.json")
    worst, count = 0.0, 0
    for name in ("large", "ema", "small"):
        exact = np.array(record[f"{name}_losses"])[record["simulated_steps"]]
        miss = np.abs(np.array(record[f"{name}_simulated"]) - exact) / record[f"{name}_stderr"]
        worst, count = max(worst, miss.max()), count + miss.size
    judgement = judged(kept_records, "A7")
    chance = min(1.0, count * 2 * stats.t.sf(worst, 99))
    assert judgement.part("agreement").interval.value == pytest.approx(chance)
    bound = judgement.drawn["bound"]
    assert count * 2 * stats.t.sf(bound, 99) == pytest.approx(0.05)


def test_a10_model_is_the_loss_of_the_ema(found, kept_records):
    record = read_json(kept_records / "measured/averaging_length/seed0.json")
    total = np.array(record["ema_bias"]) + np.array(record["ema_variance"])
    lengths = np.array(record["lengths"])
    best = total[1].argmin()
    near = np.abs(np.log10(lengths / lengths[best]) - 1.0).argmin()
    value = found["A10", "model_longer_rate_0.5"][0].value
    assert value == pytest.approx(total[1, near] / total[1, best], rel=1e-9)


def test_o2_compares_at_equal_training_loss(found):
    """Records have a test loss of 0.4 + train / 2 on both curves, and 0.02 less for averages."""
    for name in ("difference_low_rates", "difference_decays"):
        assert found["O2", name][0].value == pytest.approx(-0.02, abs=1e-6)


def test_a5_coverage_is_the_share_inside_the_bands(found, kept_records):
    inside = [
        np.mean([r["low"] <= r["measured"] <= r["high"] for r in rows])
        for rows in predictions(kept_records)
    ]
    assert found["A5", "coverage"][0].value == pytest.approx(np.mean(inside))
