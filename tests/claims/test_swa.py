"""Claims S1 to S8 against numbers computed apart from their judges."""

import numpy as np
import pytest
from scipy import stats

from tf_lrtraj import claims
from tf_lrtraj.claims import optimum, swa
from tf_lrtraj.records import ArrayRecord, read_json, write_json

SEEDS = range(3)


@pytest.fixture(scope="module")
def ledger(kept_records):
    chosen = claims.chosen([f"S{i}" for i in range(1, 9)])
    return {entry["id"]: entry for entry in claims.make_ledger(kept_records, chosen)["claims"]}


def number(entry, name, of="parts"):
    (found,) = (one for one in entry[of] if one["name"] == name)
    return found["value"], found["low"], found["high"]


def accuracies(folder, **wanted):
    """Test accuracy by seed, in per cent; of several rows their mean."""
    found = []
    for seed in SEEDS:
        rows = read_json(folder / f"measured/budget/seed{seed}.json")["rows"]
        chosen = [r for r in rows if r["set"] == "test"]
        for key, value in {"policy": "recompute", **wanted}.items():
            chosen = [row for row in chosen if row[key] == value]
        found.append(100.0 * np.mean([row["accuracy"] for row in chosen]))
    return np.array(found)


def student(values):
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return pytest.approx((np.mean(values), low, high), rel=1e-4)


def test_s1_s6_and_s8_are_paired_t_tests(ledger, kept_records):
    of = {
        name: accuracies(kept_records, method=name)
        for name in ("swa_cyclical", "conventional", "fge", "fge_member", "constant_iterate")
    }
    gain = number(ledger["S1"], "swa_gain_cyclical_rate")
    assert gain == student(of["swa_cyclical"] - of["conventional"])
    assert number(ledger["S6"], "over_members") == student(of["fge"] - of["fge_member"])
    assert number(ledger["S8"], "members") == student(of["fge_member"] - of["constant_iterate"])


def test_s7_is_a_difference_of_differences(ledger, kept_records):
    def of(method, policy):
        return accuracies(kept_records, method=method, policy=policy)

    swa_gain = of("swa_constant", "recompute") - of("swa_constant", "copy")
    raw_gain = of("swa_constant_last", "recompute") - of("swa_constant_last", "running")
    assert number(ledger["S7"], "recomputed_constant_rate") == student(swa_gain - raw_gain)


def test_s2_formula_update_by_update():
    count, length, high, low = 23, 5, 0.05, 0.001
    expected = []
    for i in range(1, count + 1):
        t = ((i - 1) % length + 1) / length
        expected.append((1 - t) * high + t * low)
    np.testing.assert_allclose(swa.cyclical(count, length, high, low), expected, rtol=1e-14)


def test_s4_distances_by_interpolation(ledger, kept_records):
    ratios = []
    for seed in SEEDS:
        record = ArrayRecord.read(kept_records / f"probes/seed{seed}/width.npz")
        distance, errors = record.coordinates["distance"], -100 * record.values["accuracy"]
        errors = errors.mean(axis=-1)
        found = [  # errors rise all the way in these records, so that they can be inverted
            [np.interp(5.0, curve - curve[0], distance) for curve in rays] for rays in errors
        ]
        ratios.append(np.mean(np.log(found[1]) - np.log(found[0])))
    assert number(ledger["S4"], "wider") == student(ratios)


def test_s4_without_a_rise_is_not_measured(folder, study_records):
    def flat(record):
        record.values["accuracy"][1] = 0.9

    study_records.edit_probe(folder, "width", flat)
    (entry,) = claims.make_ledger(folder, claims.chosen(["S4"]))["claims"]
    assert entry["verdict"] == "not measured" and "does not rise by 5 points" in entry["reason"]
    assert optimum.risen(np.array([0.0, 1.0]), np.array([0.0, 4.9])) == np.inf


@pytest.mark.parametrize(
    ("key", "file", "reason"),
    [
        ("S1", "measured/budget", "at the full rate"),
        ("S3", "measured/cost", "double words only"),
        ("S4", "width", "normalised filters"),
        ("S5", "ensemble", "not ends of cycles"),
    ],
)
def test_older_records_do_not_measure_it(folder, study_records, key, file, reason):
    """As records were before they measured these sentences."""
    if file.startswith("measured"):
        for path in (folder / file).glob("*.json"):
            content = read_json(path)
            content["about"].pop("swa_rate", None)
            write_json(path, {**content, "rows": [] if key == "S3" else content["rows"]})
    else:
        old = {"ray_kind": "uniform", "run": "base"}
        study_records.edit_probe(folder, file, lambda record: record.about.update(old))
    (entry,) = claims.make_ledger(folder, claims.chosen([key]))["claims"]
    assert entry["verdict"] == "not measured" and reason in entry["reason"]


def test_members_at_other_steps_cannot_be_compared(folder, study_records):
    def move(content):
        for row in study_records.rows(content, method="fge_member"):
            row["step"] += 1

    study_records.edit(folder, "budget", move)
    (entry,) = claims.make_ledger(folder, claims.chosen(["S8"]))["claims"]
    assert entry["verdict"] == "inconclusive" and "at the same steps" in entry["reason"]
