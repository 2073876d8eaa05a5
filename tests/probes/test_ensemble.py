"""Predictions of several weights: exact exponents, a slow twin, resuming, bad input."""

import keras
import numpy as np
import pytest
from probe_cases import measured
from scipy import special

from tf_lrtraj import probes
from tf_lrtraj.probes import Ensemble, Surface, measure
from tf_lrtraj.probes.ensemble import centred, softmax
from tf_lrtraj.statistics import exponents

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def bilinear():
    """A network whose outputs are of second degree in its weights, members, and batches."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, use_bias=False),
            keras.layers.Dense(2, use_bias=False),
        ]
    )
    random = np.random.default_rng(1)
    shapes = [v.shape for v in model.trainable_variables]
    members = {name: [random.standard_normal(s).astype("f4") for s in shapes] for name in "abcd"}
    batches = [
        (random.standard_normal((8, 3)).astype("f4"), random.standard_normal((8, 2)).astype("f4"))
        for _ in range(3)
    ]
    return model, members, batches


def rms(difference):
    return np.sqrt(np.mean(np.sum(difference**2, axis=1)))


def test_differences_are_of_first_and_second_order(bilinear):
    """x (W̄ + sD)(V̄ + sE): the mean over members is off by s² times a constant, exactly."""
    model, members, batches = bilinear
    scales = [1.0, 0.5, 0.25, 0.125]
    record = measured(
        probes.Ensemble, model, "mean_squared_error", members, batches, logits=False, scales=scales
    )
    assert record.complete
    w = np.mean([m[0].astype(float) for m in members.values()], axis=0)
    v = np.mean([m[1].astype(float) for m in members.values()], axis=0)
    second = np.mean([(m[0] - w) @ (m[1] - v) for m in members.values()], axis=0)
    for number, (x, _) in enumerate(batches):
        for row, scale in enumerate(scales):
            found = record.values["ensemble_difference"][row, number]
            assert found == pytest.approx(scale**2 * rms(x @ second), rel=1e-3)
            outputs = [
                x @ (w + scale * (m[0] - w)) @ (v + scale * (m[1] - v)) for m in members.values()
            ]
            found = record.values["pair_difference"][row, 0, 2, number]
            assert found == pytest.approx(rms(outputs[0] - outputs[2]), rel=1e-4)
    assert record.values["ensemble_difference_exponent"] == pytest.approx(2.0, abs=2e-3)
    assert record.values["pair_difference_exponent"] == pytest.approx(1.0, abs=0.3)
    assert record.values["ensemble_difference_exponent_se"] < 2e-3
    away = [np.sqrt(np.sum((m[0] - w) ** 2) + np.sum((m[1] - v) ** 2)) for m in members.values()]
    np.testing.assert_allclose(record.values["from_average"], away, rtol=1e-5)
    spread = np.sqrt(np.mean(np.square(away))) * np.array(scales)
    np.testing.assert_allclose(record.values["spread"], spread, rtol=1e-5)


def test_a_linear_model_is_its_own_ensemble():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    random = np.random.default_rng(2)
    members = {
        i: [random.standard_normal((5, 2)).astype("f4"), random.standard_normal(2).astype("f4")]
        for i in range(5)
    }
    batches = [(random.standard_normal((6, 5)).astype("f4"), np.zeros((6, 2), "f4"))] * 2
    values = measured(probes.Ensemble, model, "mse", members, batches, logits=False).values
    assert values["ensemble_difference"].max() < 1e-6
    assert values["pair_difference_exponent"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("batch_norm", ["batch", "frozen", "recalibrated"])
def test_a_slow_twin_of_losses_and_differences(network, batch_norm):
    random = np.random.default_rng(3)
    statistics = {n: [random.standard_normal(16), random.random(16) + 0.5] for n in network.points}
    members = {n: [*network.points[n], *statistics[n]] for n in network.points}
    record = measured(
        probes.Ensemble,
        network.model, network.loss, members, network.held_out, scales=(1.0, 0.5),
        batch_norm=batch_norm, moment_batches=network.batches,
    )  # fmt: skip
    mean = [
        np.mean([network.points[n][i].astype(float) for n in network.points], axis=0)
        for i in range(len(network.points["here"]))
    ]

    def outputs(weights, moments, x):
        """As Keras' own layers call it: training with the batch, or with given statistics."""
        clone = network.at("here")
        for layer in clone.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        for variable, array in zip(clone.trainable_variables, weights, strict=True):
            variable.assign(array)
        norm = clone.layers[1]
        if batch_norm == "recalibrated":
            everything = np.concatenate([batch[0] for batch in network.batches])
            inputs = keras.ops.convert_to_numpy(clone.layers[0](everything)).reshape(-1, 16)
            moments = [inputs.mean(axis=0), inputs.var(axis=0)]
        if batch_norm != "batch":
            norm.moving_mean.assign(moments[0])
            norm.moving_variance.assign(moments[1])
        found = clone(x, training=batch_norm == "batch")
        return keras.ops.convert_to_numpy(found).astype(float)

    middle = [np.mean([statistics[n][i] for n in statistics], axis=0) for i in range(2)]
    half = {
        n: [m + 0.5 * (a - m) for a, m in zip(network.points[n], mean, strict=True)]
        for n in network.points
    }
    half_way = {
        n: [m + 0.5 * (a - m) for a, m in zip(statistics[n], middle, strict=True)]
        for n in statistics
    }
    for number, (x, y) in enumerate(network.held_out):
        chances = {
            n: special.softmax(outputs(network.points[n], statistics[n], x), axis=1)
            for n in network.points
        }
        together = np.mean(list(chances.values()), axis=0)
        average = special.softmax(outputs(mean, middle, x), axis=1)

        def score(p, y=y):
            return -np.mean(np.log(p[np.arange(len(y)), y])), np.mean(p.argmax(axis=1) == y)

        for row, name in enumerate(network.points):
            loss, accuracy = score(chances[name])
            assert record.values["member_loss"][row, number] == pytest.approx(loss, rel=2e-4)
            assert record.values["member_accuracy"][row, number] == pytest.approx(accuracy)
        for who, predicted in (("ensemble", together), ("average", average)):
            loss, accuracy = score(predicted)
            assert record.values[f"{who}_loss"][number] == pytest.approx(loss, rel=2e-4)
            assert record.values[f"{who}_accuracy"][number] == pytest.approx(accuracy)
        found = record.values["ensemble_difference"][0, number]
        assert found == pytest.approx(rms(together - average), rel=2e-3, abs=1e-5)
        drawn = [special.softmax(outputs(half[n], half_way[n], x), axis=1) for n in network.points]
        found = record.values["pair_difference"][1, 0, 1, number]
        assert found == pytest.approx(rms(drawn[0] - drawn[1]), rel=2e-3, abs=1e-5)
        found = record.values["ensemble_difference"][1, number]
        assert found == pytest.approx(rms(np.mean(drawn, axis=0) - average), rel=5e-3, abs=1e-5)
    distance = np.sqrt(
        sum(np.sum((a - b) ** 2) for a, b in zip(*list(network.points.values())[:2], strict=True))
    )
    assert record.values["distance"][0, 1] == pytest.approx(distance, rel=1e-5)
    change = record.values["ensemble_loss"] - record.values["member_loss"].mean(axis=0)
    assert record.values["ensemble_loss_change"] == pytest.approx(change.mean())
    assert record.values["ensemble_loss_change_se"] == pytest.approx(change.std(ddof=1) / 3**0.5)


def test_a_trajectory_is_as_good_as_names(network):
    class Trajectory:
        steps = np.array([3, 7, 9])

        def read(self, step):
            return list(network.points.values())[self.steps.tolist().index(step)]

    one = measured(probes.Ensemble, network.model, network.loss, Trajectory(), network.held_out)
    two = measured(probes.Ensemble, network.model, network.loss, network.points, network.held_out)
    assert one.coordinates["member"].tolist() == ["3", "7", "9"]
    for name, values in one.values.items():
        np.testing.assert_array_equal(values, two.values[name])


def test_recalibration_is_made_once_for_a_point(network, monkeypatch):
    surface = Surface(
        network.model, network.loss, batch_norm="recalibrated", moment_batches=network.batches
    )
    calls = []
    recompute = surface._recompute
    monkeypatch.setattr(surface, "_recompute", lambda *a: calls.append(1) or recompute(*a))
    record = measure(Ensemble(surface, network.points, network.held_out, scales=(1.0, 0.5)))
    assert record.complete and len(calls) == 1 + 2 * 3  # the average, three members at two scales


def test_softmax_and_exponents():
    logits = RNG.standard_normal((4, 3)) * 300
    np.testing.assert_allclose(softmax(logits), special.softmax(logits, axis=1))
    np.testing.assert_allclose(centred(logits).mean(axis=1), 0.0, atol=1e-12)
    sizes = np.array([1.0, 0.5, 0.1])
    value, error = exponents(sizes, sizes[:, None] ** np.array([1.0, 2.0, 3.0]))
    assert value == pytest.approx(2.0) and error == pytest.approx(1 / np.sqrt(3))
    assert exponents(sizes, sizes[:, None]) == (pytest.approx(1.0), np.inf)
    assert exponents(sizes, np.zeros((3, 2))) == (np.inf, np.inf)
    assert exponents(sizes[:1], np.ones((1, 2))) == (np.inf, np.inf)
