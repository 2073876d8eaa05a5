"""Losses along segments against closed forms and a clone with its weights set."""

import keras
import numpy as np
import pytest
from probe_cases import Steps, measured

from tf_lrtraj import probes
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.probes.basin import ALL


def test_a_quadratic_basin(least_squares):
    problem = least_squares
    ends = {"a": np.linspace(-1.0, 2.0, 5), "b": np.linspace(2.0, 0.0, 5), "c": np.ones(5)}
    record = problem.measured(probes.Basin, ends, num=5, extend=(0.5, 0.25))
    assert record.coordinates["pair"].tolist() == ["a to b", "a to c", "b to c"]
    where = record.coordinates["position"]
    np.testing.assert_allclose(where, [-0.5, -0.25, 0, 0.25, 0.5, 0.75, 1.0, 1.25])
    for pair, (first, second) in enumerate((("a", "b"), ("a", "c"), ("b", "c"))):
        gap = ends[second] - ends[first]
        exact = problem.losses(ends[first] + where[:, None] * gap)
        np.testing.assert_allclose(record.values["loss"][pair, 0], exact[:, :4], rtol=2e-5)
        held_out = record.values["held_out_loss"][pair, 0]
        np.testing.assert_allclose(held_out, exact[:, 4:], rtol=2e-5)
        assert record.values["length"][pair, 0] == pytest.approx(np.linalg.norm(gap), rel=1e-6)
        # The Jensen gap of the two points, the same for every batch.
        jensen = (problem.curvatures * gap**2).sum() / 8.0
        assert record.values["middle"][pair, 0] == pytest.approx(-jensen, rel=1e-4)
        assert record.values["middle_se"][pair, 0] < 1e-5 * jensen
        assert record.values["barrier"][pair, 0] == 0.0
        assert record.values["verdict"][pair, 0] == -1
        # Around the middle: twice the slope there, by the offset.
        slope = (problem.curvatures * gap * ((ends[first] + gap / 2) - problem.minimisers)).sum(-1)
        lopsided = 2.0 * record.coordinates["offset"] * slope[:4].mean()
        np.testing.assert_allclose(
            record.values["asymmetry"][pair, 0], lopsided, rtol=1e-3, atol=1e-5
        )
    assert record.complete


@pytest.mark.parametrize("mode", ["batch", "frozen", "recalibrated"])
def test_against_a_clone_with_its_weights_set(network, statistics, mode):
    moment_batches = network.batches[2:]
    record = measured(
        probes.Basin,
        network.model,
        network.loss,
        {name: [*network.points[name], *statistics[name]] for name in ("b", "c")},
        network.batches[:2],
        num=3,
        extend=(0.5, 0.5),
        batch_norm=mode,
        moment_batches=moment_batches if mode == "recalibrated" else None,
    )
    for i, t in enumerate(record.coordinates["position"]):
        clone = network.mixed({"b": 1.0 - t, "c": t}, statistics)
        if mode == "recalibrated":
            values = [v.value for v in clone.trainable_variables]
            others = [v.value for v in clone.non_trainable_variables]
            new = bn.recompute(clone, values, others, moment_batches)
            for variable, value in zip(clone.non_trainable_variables, new, strict=True):
                variable.assign(value)
        for k, (x, y) in enumerate(network.batches[:2]):
            outputs = clone(x, training=mode == "batch")
            loss = float(network.loss(y, outputs))
            assert record.values["loss"][0, 0, i, k] == pytest.approx(loss, rel=2e-4)
            correct = np.argmax(keras.ops.convert_to_numpy(outputs), -1) == y
            assert record.values["accuracy"][0, 0, i, k] == pytest.approx(correct.mean())


def test_the_ends_are_the_points_to_the_bit(network):
    surface = probes.Surface(network.model, network.loss)
    record = probes.measure(
        probes.Basin(surface, network.points, network.batches, num=3, pairs=[("c", "b")])
    )
    for index, name in ((0, "c"), (2, "b")):
        losses, _ = surface.evaluate(surface.point(network.points[name]), network.batches)
        np.testing.assert_array_equal(record.values["loss"][0, 0, index], losses)


def test_layer_by_layer(network):
    surface = probes.Surface(network.model, network.loss)
    record = probes.measure(
        probes.Basin(
            surface,
            {"b": network.points["b"], "c": network.points["c"]},
            network.batches,
            num=3,
            per_layer=True,
        )
    )
    names = record.coordinates["layer"].tolist()
    assert names[0] == ALL
    assert [name.split("/")[-1].split("_")[0] for name in names[1:]] == ["conv2d", "batch", "dense"]
    for layer, positions in enumerate([range(5), [0], [1, 2], [3, 4]]):
        mixed = [
            (a + b) / 2 if i in positions else a
            for i, (a, b) in enumerate(zip(network.points["b"], network.points["c"], strict=True))
        ]
        losses, _ = surface.evaluate(surface.point(mixed), network.batches)
        np.testing.assert_allclose(record.values["loss"][0, layer, 1], losses, rtol=1e-5)
        squares = [
            ((network.points["b"][i] - network.points["c"][i]) ** 2).sum() for i in positions
        ]
        assert record.values["length"][0, layer] == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)


def test_the_same_function_by_permuted_units_lies_behind_a_barrier():
    """A network fitted to data, and its twin with hidden units in another order."""
    rng = np.random.default_rng(6)
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)]
    )
    # |x| + |y|, exactly.
    kernel = np.array([[1, -1, 0, 0], [0, 0, 1, -1]], "float32")
    fitted = [kernel, np.zeros(4), np.ones((4, 1)), np.zeros(1)]
    order = [1, 0, 3, 2]
    twin = [kernel[:, order], np.zeros(4), np.ones((4, 1)), np.zeros(1)]
    near = [kernel * 1.1, np.zeros(4), np.ones((4, 1)) / 1.1, np.zeros(1)]
    batches = []
    for _ in range(6):
        x = rng.normal(size=(32, 2)).astype("float32")
        batches.append((x, np.abs(x).sum(1, keepdims=True)))
    record = measured(
        probes.Basin,
        model, "mean_squared_error", {"fitted": fitted, "twin": twin, "near": near}, batches,
        level=0.05, num=9,
    )  # fmt: skip
    found = dict(zip(record.coordinates["pair"].tolist(), record.values["verdict"][:, 0],
                     strict=True))  # fmt: skip
    assert found == {"fitted to twin": 1, "fitted to near": -1, "twin to near": 1}
    pair = record.coordinates["pair"].tolist().index("fitted to twin")
    assert record.values["barrier_at"][pair, 0] == 0.5
    # Half way all hidden units are 0, so the loss is that of predicting nothing.
    nothing = np.mean([np.mean(y**2) for _, y in batches])
    assert record.values["barrier"][pair, 0] == pytest.approx(nothing, rel=1e-5)
    assert record.values["rise"][pair, 0] == pytest.approx(nothing, rel=1e-5)


def test_a_trajectory_is_read_a_step_at_a_time(least_squares):
    problem = least_squares
    steps = Steps(None, {s: problem.weights(np.full(5, s / 10.0)) for s in (5, 10, 20)})
    record = measured(
        probes.Basin,
        problem.model,
        "mse",
        steps,
        problem.batches,
        num=3,
        pairs=[("5", "10"), ("10", "20")],
    )
    assert record.coordinates["point"].tolist() == ["5", "10", "20"]
    # Once each for checksums; then two at a time.
    assert steps.reads == [5, 10, 20, 5, 10, 20]
    np.testing.assert_allclose(record.values["length"][:, 0], [0.5 * 5**0.5, 5**0.5], rtol=1e-6)
