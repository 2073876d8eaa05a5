"""Tests of stationarity on records, and what they do to claims about a stationary state."""

import numpy as np
import pytest
from scipy import stats

from tf_lrtraj import claims
from tf_lrtraj.claims import stationarity
from tf_lrtraj.claims.records_reader import Records
from tf_lrtraj.claims.statistics import Estimate
from tf_lrtraj.records import RecordError

STATIONARY = ("B7", "B8", "B9", "A2", "A3")


def verdicts(folder):
    return {e["id"]: e for e in claims.make_ledger(folder)["claims"]}


def drift(claim_records, folder, task, change):
    claim_records.edit(folder, task, change)
    return verdicts(folder)


def falling(content):
    """A mini-batch loss that falls by a third over the window."""
    first, last = 1200, 1600
    content["batch_loss"] = [
        loss * (1.0 - 0.33 * max(step - first, 0) / (last - first))
        for step, loss in zip(content["steps"], content["batch_loss"], strict=True)
    ]


def levels_fall(content):
    for row in content["rows"]:
        row["loss"] *= 1.0 - 0.33 * (row["step"] - 1200) / 400


def norms_grow(content):
    content["squared_norm"] = np.linspace(200.0, 300.0, len(content["squared_norm"])).tolist()


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("base", falling, "the mini-batch loss changes by"),
        ("levels", levels_fall, "the full training loss of single iterates changes by"),
        ("base", norms_grow, "the squared norm of the weights changes by"),
    ],
)
def test_a_drifting_run_decides_nothing(claim_records, folder, task, change, words):
    found = drift(claim_records, folder, task, change)
    for key in STATIONARY:
        assert found[key]["verdict"] == "inconclusive", key
        assert words in found[key]["reason"] and "not within" in found[key]["reason"]
        assert found[key]["statistic"], "what was measured is told all the same"
    others = {key for key, e in found.items() if e["verdict"] != "reproduced"}
    assert others == set(STATIONARY)


def test_a_drifting_run_refutes_nothing_either(claim_records, folder):
    claim_records.edit(folder, "base", falling)

    def wrong(content):
        for row in content["rows"]:
            row["squared_distance"] = row["learning_rate"] ** 2

    claim_records.edit(folder, "rates", wrong)
    assert verdicts(folder)["B8"]["verdict"] == "inconclusive"


def test_the_run_without_momentum_is_tested_itself(claim_records, folder):
    def change(content):
        content["batch_loss"] = np.linspace(0.6, 0.4, len(content["steps"])).tolist()

    found = drift(claim_records, folder, "one_step", change)
    assert found["B4"]["verdict"] == "inconclusive"
    assert "without momentum changes by" in found["B4"]["reason"]
    assert [key for key, e in found.items() if e["verdict"] != "reproduced"] == ["B4"]


def test_a_slow_fall_is_small_against_the_gain_of_one_step(claim_records, folder):
    """Within a tenth over the run, yet more in one update than a quarter of the best gain."""

    def tiny(record):
        for name in ("others_each", "held_out_each"):
            start = record.values[name][:1]
            record.values[name][...] = start + 1e-2 * (record.values[name] - start)

    def change(content):
        content["batch_loss"] = np.linspace(0.51, 0.49, len(content["steps"])).tolist()

    claim_records.edit_probe(folder, "one_step-*", tiny)
    assert verdicts(folder)["B4"]["verdict"] == "reproduced"
    found = drift(claim_records, folder, "one_step", change)["B4"]
    assert found["verdict"] == "inconclusive"
    assert "not level" in found["reason"]


def test_a_growing_displacement_is_no_shell(claim_records, folder):
    def change(content):
        content["mean_squared"] = [0.02 * lag for lag in content["lags"]]
        content["standard_error"] = [0.0002 * lag for lag in content["lags"]]

    found = drift(claim_records, folder, "displacement", change)
    assert found["B9"]["verdict"] == "inconclusive"
    assert found["B7"]["verdict"] == "not reproduced"


def test_halves_that_disagree(claim_records, folder):
    def change(content):
        for row in content["rows"]:
            if row["half"] == 1:
                row["squared_distance"] *= (row["learning_rate"] / 0.1) ** 0.4

    found = drift(claim_records, folder, "rates", change)
    assert found["B8"]["verdict"] == "inconclusive"
    assert "first half" in found["B8"]["reason"]


def test_rates_that_do_not_differ(claim_records, folder):
    """Where λ/2 is as good as λ nothing can act like half the rate."""

    def change(content):
        for row in content["rows"]:
            row["loss"] = 0.5 + 0.001 * (row["step"] % 3)

    found = drift(claim_records, folder, "lower_rates", change)
    assert found["A2"]["verdict"] == "inconclusive"
    assert "not resolved" in found["A2"]["reason"]


# The tests themselves -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "settled"),
    [
        (0.01, 0.01, True),  # inside, not resolved
        (0.05, 0.005, True),  # resolved, and negligible whatever it is
        (0.08, 0.03, False),  # resolved, and perhaps too large
        (0.08, 0.08, True),  # not resolved, estimate inside
        (0.15, 0.30, False),  # not resolved, but the estimate is too large
        (-0.2, 0.01, False),
        (float("nan"), 0.1, False),
        (0.0, float("nan"), False),
    ],
)
def test_the_rule(value, error, settled):
    assert stationarity.settled(Estimate(value, error, 20.0), 0.1) == settled


def test_nothing_is_negligible_against_no_effect():
    assert not stationarity.settled(Estimate(0.01, 0.1, 20.0), 0.0)


def test_drifts_are_relative_changes_over_the_window(claim_records, folder):
    claim_records.edit(folder, "base", falling)
    record = Records(folder).one("base")
    steps, losses = np.array(record.array("steps")), record.array("batch_loss")
    inside = steps > 1200
    line = stats.linregress(steps[inside], losses[inside])
    expected = line.slope * np.ptp(steps[inside]) / losses[inside].mean()
    assert stationarity.batch_loss_drift(record).value == pytest.approx(expected, rel=0.05)
    assert -0.42 < stationarity.batch_loss_drift(record).value < -0.3


def test_single_iterates_have_the_line_of_linregress(kept_records):
    record = Records(kept_records).one("levels")
    steps, losses = record.values("step", set="train"), record.values("loss", set="train")
    line = stats.linregress(steps, losses)
    found = stationarity.level_drift(record)
    assert found.value == pytest.approx(line.slope * 400 / losses.mean())
    assert found.error == pytest.approx(line.stderr * 400 / losses.mean())


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_growth_is_the_power_at_long_lags(claim_records, folder, power):
    def change(content):
        content["mean_squared"] = [3.0 * (lag / 50) ** power for lag in content["lags"]]

    claim_records.edit(folder, "displacement", change)
    found = stationarity.displacement_growth(Records(folder).one("displacement"))
    assert found.value == pytest.approx(power, abs=1e-9)


@pytest.mark.parametrize(("power", "half"), [(1.0, 0.5), (2.0, 2**-0.5), (0.5, 0.25)])
def test_half_time_of_power_laws(claim_records, folder, power, half):
    lags = np.arange(1, 201)

    def change(content):
        content["lags"] = lags.tolist()
        content["mean_squared"] = ((lags / 200) ** power).tolist()
        content["standard_error"] = [0.01] * 200

    claim_records.edit(folder, "displacement", change)
    record = Records(folder).one("displacement")
    assert stationarity.relaxation(record) == pytest.approx(half, abs=0.005)


def test_errors_within_runs_are_pooled():
    drifts = [Estimate(value, 0.03, 8.0) for value in (0.0, 0.03, 0.06)]
    found = stationarity.pooled(drifts)
    assert found.value == pytest.approx(0.03)
    assert found.error == pytest.approx(0.03 / 3**0.5)
    assert found.dof == 24.0


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(lags=c["lags"][::-1]),
        lambda c: c.update(mean_squared=[0.0] * len(c["lags"])),
        lambda c: c.update(mean_squared=c["mean_squared"][:-1]),
    ],
)
def test_displacements_that_make_no_sense(claim_records, folder, change):
    claim_records.edit(folder, "displacement", change)
    with pytest.raises(RecordError, match=r"displacement/seed0\.json"):
        stationarity.displacement_growth(Records(folder).one("displacement"))


def test_a_window_too_short(claim_records, folder):
    def change(content):
        content["about"]["burn_in"] = 1590

    claim_records.edit(folder, "base", change)
    with pytest.raises(RecordError, match="fewer than 3 entries"):
        stationarity.batch_loss_drift(Records(folder).one("base"))
