"""Tests of stationarity on records, and what they do to claims about a stationary state."""

import numpy as np
import pytest
from scipy import stats
from study_records import edit, judged

from tf_lrtraj import claims
from tf_lrtraj.claims import stationarity
from tf_lrtraj.claims.records_reader import Records
from tf_lrtraj.records import RecordError
from tf_lrtraj.statistics import Estimate


def drift(record):
    """Change of the mini-batch loss over the window."""
    return stationarity.relative_trend(*stationarity.in_window(record))


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
    ("task", "change", "condition"),
    [
        ("base", falling, "batch_loss_drift"),
        ("levels", levels_fall, "level_drift"),
        ("base", norms_grow, "norm_drift"),
    ],
)
def test_a_drifting_run_decides_nothing(folder, task, change, condition):
    edit(folder, task, change)
    touched = set()
    for key, entry in {e["id"]: e for e in claims.make_ledger(folder)["claims"]}.items():
        unmet = {c["name"] for c in entry["conditions"] if not c["met"]}
        assert unmet <= {condition}
        if unmet:
            touched.add(key)
            assert entry["verdict"] == "inconclusive"
            assert entry["reason"].startswith("A condition is not met: change of ")
            assert entry["parts"], "what was measured is told all the same"
        else:
            assert entry["verdict"] == "reproduced", key
    assert {"B7", "B9"} <= touched


def test_a_drifting_run_refutes_nothing_either(folder):
    def wrong(content):
        for row in content["rows"]:
            row["squared_distance"] = row["learning_rate"] ** 2

    edit(folder, "base", falling)
    edit(folder, "rates", wrong)
    found = judged(folder, "B8")
    assert found.verdict == "inconclusive"
    assert found.parts[0].verdict == "not reproduced"


def growing(content):
    content["mean_squared"] = [0.02 * lag for lag in content["lags"]]
    content["standard_error"] = [0.0002 * lag for lag in content["lags"]]


def norm_at_one_rate(content):
    for row in content["norms"]:
        if row["learning_rate"] == 0.0125:
            row["squared_norm"] *= 1.0 + 0.002 * (1600 - row["step"])


def halves_disagree(content):
    for row in content["rows"]:
        if row["half"] == 1:
            row["squared_distance"] *= (row["learning_rate"] / 0.1) ** 0.4


def still_falling(content):
    for row in content["rows"]:
        if row["half"] == 1 and row["learning_rate"] == 0.025:
            row["batch_loss"] *= 1.2


@pytest.mark.parametrize(
    ("key", "task", "change", "condition"),
    [
        ("B9", "displacement", growing, "displacement_growth"),
        ("B8", "rates", norm_at_one_rate, "norm_drift_0.0125"),
        ("B8", "rates", halves_disagree, "halves_distance"),
        ("B13", "rates", still_falling, "drift_0.025"),
    ],
)
def test_one_condition_that_is_not_met(folder, key, task, change, condition):
    edit(folder, task, change)
    found = judged(folder, key)
    assert found.verdict == "inconclusive"
    assert [one.name for one in found.conditions if not one.is_met] == [condition]


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


def test_drifts_are_relative_changes_over_the_window(folder):
    edit(folder, "base", falling)
    record = Records(folder).one("base")
    steps, losses = np.array(record.array("steps")), record.array("batch_loss")
    inside = steps > 1200
    line = stats.linregress(steps[inside], losses[inside])
    expected = line.slope * np.ptp(steps[inside]) / losses[inside].mean()
    assert drift(record).value == pytest.approx(expected, rel=0.05)
    assert -0.42 < drift(record).value < -0.3


def test_single_iterates_have_the_line_of_linregress(kept_records):
    record = Records(kept_records).one("levels")
    steps, losses = record.values("step", set="train"), record.values("loss", set="train")
    line = stats.linregress(steps, losses)
    found = stationarity.relative_line(record, set="train")
    assert found.value == pytest.approx(line.slope * 400 / losses.mean())
    assert found.error == pytest.approx(line.stderr * 400 / losses.mean())


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_growth_is_the_power_at_long_lags(folder, power):
    def change(content):
        content["mean_squared"] = [3.0 * (lag / 50) ** power for lag in content["lags"]]

    edit(folder, "displacement", change)
    found = stationarity.displacement_growth(Records(folder).one("displacement"))
    assert found.value == pytest.approx(power, abs=1e-9)


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
def test_displacements_that_make_no_sense(folder, change):
    edit(folder, "displacement", change)
    with pytest.raises(RecordError, match=r"displacement/seed0\.json"):
        stationarity.displacement_growth(Records(folder).one("displacement"))


def test_a_window_too_short(folder):
    def change(content):
        content["about"]["burn_in"] = 1590

    edit(folder, "base", change)
    with pytest.raises(RecordError, match="fewer than 3 entries"):
        drift(Records(folder).one("base"))
