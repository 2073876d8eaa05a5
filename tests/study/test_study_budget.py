"""SWA, FGE and the conventional run of a study, against slow obvious computations."""

import keras
import numpy as np
import pytest
from study_helpers import keras_iterates

from tf_lrtraj.averaging import Snapshots
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.study import equal_budgets, trainer
from tf_lrtraj.study.task import Sizes

RATE, TOTAL, START, LENGTH = 0.1, 40, 32, 4


def published(step, over, low):
    """The schedule of the authors' code (timgaripov/swa, train.py), by the step."""
    t = step / over
    if t <= 0.5:
        return RATE
    if t <= 0.9:
        return RATE * (1.0 - (1.0 - low) * (t - 0.5) / 0.4)
    return RATE * low


def rates_of(method):
    """The rate of every step from scratch."""
    if method == "conventional":
        return [published(step, TOTAL, 0.01) for step in range(TOTAL)]
    found = [published(step, START, 0.5) for step in range(TOTAL)]
    if method == "cyclical":
        for i in range(1, TOTAL - START + 1):
            t = ((i - 1) % LENGTH + 1) / LENGTH
            found[START + i - 1] = (1 - t) * 0.5 * RATE + t * 0.1 * RATE
    return found


@pytest.mark.parametrize("method", ["conventional", "swa_constant", "cyclical"])
def test_runs_share_prefixes_and_are_keras_sgd(session, method):
    """Each, forked from another or not, against a plain loop from scratch."""
    iterates = keras_iterates(session, rates_of(method))

    def same(arrays, wanted):
        for one, other in zip(arrays, wanted, strict=False):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

    if method == "conventional":
        same(trainer.arrays_of(equal_budgets.conventional(session, 0).state()), iterates[TOTAL])
        points = equal_budgets.trade_off_points(session, 0)
        same(next(w for _, label, w in points if label == "step 22"), iterates[22])
        return
    kind = "swa_constant" if method == "swa_constant" else "swa_cyclical"
    steps = range(START + 2, TOTAL + 1, 2) if method == "swa_constant" else (36, 40)
    found = equal_budgets.average(session, 0, kind)[len(steps)]
    count = len(iterates[TOTAL])
    same(found, [np.mean([iterates[s][i] for s in steps], axis=0) for i in range(count)])


def test_rates_are_those_of_the_optimizer(session):
    used = session.read("budget", 0)["optimizer_rates"]
    np.testing.assert_allclose(used, rates_of("cyclical")[START:], rtol=1e-6)
    assert session.read("budget", 0)["collected"] == [36, 40]
    whole = equal_budgets.optimizer_rates(equal_budgets.conventional(session, 0))
    np.testing.assert_allclose(whole, rates_of("conventional"), rtol=1e-6)


def test_every_method_is_scored(session):
    found = session.read("budget", 0)
    rows = [(r["method"], r["policy"], r["set"]) for r in found["rows"]]
    both, test = ("train_part", "test"), ("test",)
    wanted = [("conventional", "recompute", both), ("fge", "recompute", both)]
    for kind in equal_budgets.RUNS:
        wanted += [(kind, "recompute", both), (kind, "copy", test), (kind, "average", test)]
        wanted += [(f"{kind}_last", "recompute", both), (f"{kind}_last", "running", test)]
    once = [(method, policy, one) for method, policy, sets in wanted for one in sets]
    for method in ("fge_member", "constant_iterate"):
        steps = [r["step"] for r in found["rows"] if r["method"] == method and r["set"] == "test"]
        assert steps == [36, 40]
        once += [(method, "recompute", one) for one in both] * 2
    assert sorted(rows) == sorted(once)
    # The last member is the last iterate.
    (last,) = (r for r in found["rows"] if r["method"] == "swa_cyclical_last" and r["set"] ==
               "test" and r["policy"] == "recompute")  # fmt: skip
    (member,) = (r for r in found["rows"] if r.get("step") == 40 and r["set"] == "test" and
                 r["method"] == "fge_member")  # fmt: skip
    assert last["loss"] == member["loss"]


def test_copied_statistics_are_those_of_the_last_iterate(session):
    model, snapshots = (
        session.model,
        Snapshots(equal_budgets.swa_constant(session, 0).folder / "collected"),
    )
    (row,) = (r for r in session.read("budget", 0)["rows"] if r["policy"] == "copy" and
              r["method"] == "swa_constant")  # fmt: skip
    count = len(model.trainable_variables)
    last, mean = snapshots.read(TOTAL), equal_budgets.average(session, 0, "swa_constant")[4]
    other = keras.models.clone_model(model)
    for variables, arrays in (
        (other.trainable_variables, mean[:count]),
        (other.non_trainable_variables, last[count:]),
    ):
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
    x, y = session.problem.x_test, session.problem.y_test
    outputs = keras.ops.convert_to_numpy(other(x, training=False))
    assert row["accuracy"] == pytest.approx((outputs.argmax(axis=1) == y).mean(), abs=1e-6)


def test_points_of_the_trade_off(session):
    points = equal_budgets.trade_off_points(session, 0)
    labels = [label for family, label, _ in points if family == "average"]
    assert labels == ["swa_constant of 2", "swa_constant of 4", "swa_cyclical of 2"]
    snapshots = Snapshots(equal_budgets.swa_constant(session, 0).folder / "collected")
    for i, array in enumerate(points[0][2]):
        two = [snapshots.read(step)[i] for step in (34, 36)]
        np.testing.assert_allclose(array, np.mean(two, axis=0), rtol=1e-6, atol=1e-7)
    sizes = Sizes(200, 200, 100, 100)
    assert equal_budgets.trade_off_images(session.config, sizes) == len(points) * sizes.some


def test_memory_and_time_of_an_average(session):
    found = session.read("cost", 0)
    assert found["about"]["steps_per_epoch"] == 200 // 16
    for row in found["rows"]:
        assert row["step_seconds"] > 0 and row["update_seconds"] > 0
        copies = 1 if row["precision"] == "single" else 2
        assert row["extra_bytes"] == copies * row["weights_bytes"]
    assert [(r["network"], r["precision"], r["repeat"]) for r in found["rows"]] == [
        (network, precision, repeat)
        for network in ("own", "large")
        for repeat in range(3)
        for precision in ("single", "auto")
    ]


def test_cycles_end_with_the_budget(session):
    config = session.config
    at = equal_budgets.times(config, 200)
    assert (at.total, at.start, at.fork, at.ends) == (TOTAL, START, START // 2, [36, 40])
    with pytest.raises(ConfigError, match=r"config\.budget\.cycle` must be so short that 2 cycles"):
        equal_budgets.times({**config, "budget": {**config["budget"], "cycle": 10}}, 200)
