"""Alignment of gradients: closed forms, slow twins, blocks and sketches, resuming, bad input."""

import keras
import numpy as np
import pytest
from probe_cases import measured

from tf_lrtraj import probes
from tf_lrtraj.probes import Surface, measure
from tf_lrtraj.probes.gradients import Gradients
from tf_lrtraj.probes.lagged_gradients import LaggedGradients
from tf_lrtraj.theory import QuadraticModel

THETA = np.array([1.0, -0.5, 2.0, 0.3, -1.2])
STATES = ({"batch_norm": "batch"}, {"batch_norm": "frozen"}, {"batch_norm": "recalibrated"})


def slow_gradients(network, name):
    """One step of plain SGD at rate 1 on a copy of the model: the way it moved, turned round."""
    found = []
    for batch in network.batches:
        clone = keras.models.clone_model(network.model)
        for layer in clone.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        for variable, array in zip(clone.trainable_variables, network.points[name], strict=True):
            variable.assign(array)
        clone.compile(keras.optimizers.SGD(1.0), network.loss, jit_compile=False)
        before = [keras.ops.convert_to_numpy(v).copy() for v in clone.trainable_variables]
        clone.train_on_batch(*batch)
        after = [keras.ops.convert_to_numpy(v) for v in clone.trainable_variables]
        found.append(np.concatenate([(b - a).ravel() for b, a in zip(before, after, strict=True)]))
    return np.array(found, np.float64)


def flat(arrays):
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays])


# At one point ---------------------------------------------------------------------------------


def test_closed_form_of_the_quadratic_model(least_squares):
    """With every batch there is, averages over pairs are the theory's expectations exactly."""
    direction = np.array([1.0, 2.0, 0.0, -1.0, 0.5])
    record = measured(
        probes.Gradients,
        least_squares.model,
        "mean_squared_error",
        least_squares.weights(THETA),
        least_squares.batches,
        directions={"some": least_squares.weights(direction)},
    )
    theory = QuadraticModel(np.diag(least_squares.curvatures), least_squares.noise)
    closed = theory.gradient_statistics(THETA)
    gram = record.values["gram"][0]
    assert gram.mean() == pytest.approx(closed.signal, rel=1e-5)  # all pairs, also with itself
    assert np.diag(gram).mean() == pytest.approx(closed.signal + closed.noise, rel=1e-5)
    own = least_squares.curvatures * (THETA - least_squares.minimisers)
    np.testing.assert_allclose(gram, own @ own.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(record.values["loss"], least_squares.losses(THETA), rtol=1e-5)
    cosines = own @ direction / np.linalg.norm(own, axis=1) / np.linalg.norm(direction)
    np.testing.assert_allclose(record.values["direction_cosine"][0, 0], cosines, rtol=1e-4)
    mean = own.mean(axis=0)
    cosine = mean @ direction / np.linalg.norm(mean) / np.linalg.norm(direction)
    assert record.values["mean_direction_cosine"][0, 0] == pytest.approx(cosine, rel=1e-4)
    # Unbiased from a sample of endless batches; these six are all, so n-1 in place of n.
    count = len(own)
    signal = closed.signal - closed.noise / (count - 1)
    assert record.values["signal"][0] == pytest.approx(signal, rel=1e-4, abs=1e-5)
    noise = closed.noise * count / (count - 1) * len(least_squares.curvatures)
    assert record.values["noise"][0] == pytest.approx(noise, rel=1e-4)


def test_a_slow_twin_per_layer(network):
    record = measured(
        probes.Gradients,
        network.model,
        network.loss,
        network.points["b"],
        network.batches,
        per_layer=True,
    )
    twin = slow_gradients(network, "b")
    names = record.coordinates["layer"].tolist()
    sizes = [v.shape for v in network.model.trainable_variables]
    assert names[0] == "(all)" and len(names) == 4  # convolution, batch norm, dense
    np.testing.assert_allclose(record.values["gram"][0], twin @ twin.T, rtol=1e-3, atol=1e-5)
    low = 0
    for row, arrays in enumerate([sizes[:1], sizes[1:3], sizes[3:]], 1):
        high = low + sum(int(np.prod(shape)) for shape in arrays)
        part = twin[:, low:high]
        np.testing.assert_allclose(record.values["gram"][row], part @ part.T, rtol=1e-3, atol=1e-5)
        low = high
    parts = record.values["gram"][1:].sum(axis=0)
    np.testing.assert_allclose(record.values["gram"][0], parts, rtol=1e-12)


def test_few_gradients_at_a_time_give_the_same(network):
    surface = Surface(network.model, network.loss)
    whole = Gradients(surface, None, network.batches)
    blocked = Gradients(surface, None, network.batches, memory_limit=1)
    size = whole.empty().about["num_weights"]
    pairs = Gradients(surface, None, network.batches, memory_limit=3 * 4 * size)
    first = measure(whole, progress=False)
    for probe in (blocked, pairs):
        second = measure(probe, progress=False)
        for name, values in first.values.items():
            np.testing.assert_allclose(second.values[name], values, rtol=1e-9, err_msg=name)
    # 4 batches: each once; or one row at a time, 4 + 3 + 2 + 1; or two at a time, 4 + 2.
    for probe, count in ((whole, 4), (blocked, 10), (pairs, 6)):
        assert probe.passes(probe.pieces(probe.empty())) == 3 * count


@pytest.mark.parametrize("options", STATES)
def test_the_mode_reaches_the_gradients(network, options):
    record = measured(
        probes.Gradients,
        network.model, network.loss, None, network.batches,
        moment_batches=network.held_out, **options,
    )  # fmt: skip
    surface = Surface(network.model, network.loss, moment_batches=network.held_out, **options)
    twin = [flat(surface.gradient(surface.point(), batch)[1]) for batch in network.batches]
    np.testing.assert_allclose(record.values["gram"][0], np.array(twin) @ np.transpose(twin),
                               rtol=1e-6)  # fmt: skip
    assert record.about["batch_norm"] == options["batch_norm"]


def test_sketches_err_as_stated(network):
    batches = network.batches + network.held_out
    surface = Surface(network.model, network.loss)
    exact = measure(Gradients(surface, None, batches), progress=False)
    gram = exact.values["gram"][0]
    squares = np.diag(gram)
    stated = np.sqrt((np.outer(squares, squares) + gram**2) / 64)
    errors = []
    for seed in range(12):
        found = measure(
            Gradients(surface, None, batches, sketch_size=64, seed=seed), progress=False
        )
        assert found.complete
        ours = found.values["gram"][0]
        np.testing.assert_allclose(np.diag(ours), squares, rtol=1e-12)
        errors.append((ours - gram)[np.triu_indices(len(gram), 1)])
    ratio = np.array(errors) / stated[np.triu_indices(len(gram), 1)]
    assert 0.3 < np.sqrt(np.mean(ratio**2)) < 1.2


# Along a trajectory ---------------------------------------------------------------------------


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("mean", ["running", "all", "given"])
def test_closed_form_along_a_trajectory(least_squares, mean):
    random = np.random.default_rng(0)
    steps = [0, 5, 10, 15, 25, 30]
    thetas = {step: THETA + 0.1 * step + random.standard_normal(5) for step in steps}
    given = np.ones(5)
    record = measured(
        probes.LaggedGradients,
        least_squares.model,
        "mean_squared_error",
        {step: least_squares.weights(theta) for step, theta in thetas.items()},
        least_squares.batches,
        lags=[5, 15],
        mean=least_squares.weights(given) if mean == "given" else mean,
    )
    assert record.complete and record.coordinates["lag"].tolist() == [0, 5, 15]
    gradients = {s: least_squares.curvatures * theta for s, theta in thetas.items()}  # mean ξ = 0
    halves = {
        s: [least_squares.curvatures * (thetas[s] - least_squares.minimisers[i::2].mean(axis=0))
            for i in (0, 1)]
        for s in steps
    }  # fmt: skip
    for row, lag in enumerate([0, 5, 15]):
        for column, step in enumerate(steps):
            found = {name: record.values[name][row, column] for name in
                     ("cosine", "dot", "dot_across", "start_cosine", "end_cosine")}  # fmt: skip
            if step - lag not in thetas:
                assert all(np.isinf(value) for value in found.values())
                continue
            then, now = gradients[step - lag], gradients[step]
            assert found["cosine"] == pytest.approx(cosine(then, now), rel=1e-4)
            assert found["dot"] == pytest.approx(then @ now, rel=1e-4)
            (even, odd), (even_now, odd_now) = halves[step - lag], halves[step]
            across = 0.5 * (even @ odd_now + odd @ even_now)
            assert found["dot_across"] == pytest.approx(across, rel=1e-4, abs=1e-4)
            if lag:
                moved = thetas[step] - thetas[step - lag]
                assert found["start_cosine"] == pytest.approx(cosine(then, moved), abs=1e-4)
                assert found["end_cosine"] == pytest.approx(cosine(now, moved), abs=1e-4)
    points = np.array([thetas[s] for s in steps])
    means = {
        "running": np.cumsum(points, axis=0) / np.arange(1, 7)[:, None],
        "all": np.tile(points.mean(axis=0), (6, 1)),
        "given": np.tile(given, (6, 1)),
    }[mean]
    for column, step in enumerate(steps):
        if mean == "running" and column == 0:
            assert np.isinf(record.values["off_mean_cosine"][0])
        else:
            twin = cosine(gradients[step], points[column] - means[column])
            assert record.values["off_mean_cosine"][column] == pytest.approx(twin, abs=1e-4)
    np.testing.assert_allclose(
        record.values["loss"], least_squares.losses(points).mean(axis=-1), rtol=1e-5
    )


def test_signs_of_cosines_with_the_way_gone(least_squares):
    """Descent goes against the gradient: negative with the way gone, positive with θ - θ̄."""
    theta, trajectory = 3.0 * THETA, {}
    for step in range(8):
        trajectory[step] = least_squares.weights(theta)
        theta = theta - 0.2 * least_squares.curvatures * theta
    record = measured(
        probes.LaggedGradients,
        least_squares.model, "mean_squared_error", trajectory, least_squares.batches,
        lags=[1], mean=least_squares.weights(np.zeros(5)),
    )  # fmt: skip
    assert np.allclose(record.values["start_cosine"][1, 1:], -1.0, atol=1e-4)
    assert np.all(record.values["off_mean_cosine"] > 0.5)


def test_sketches_along_a_trajectory(network):
    random = np.random.default_rng(1)
    trajectory = {
        step: [a + 0.05 * step * random.standard_normal(a.shape) for a in network.points["here"]]
        for step in range(10)
    }
    call = (network.model, network.loss, trajectory, network.batches)
    exact = measured(probes.LaggedGradients, *call, lags=[1, 3])
    kept = measured(
        probes.LaggedGradients, *call, lags=[1, 3], sketch_size=4096
    )  # more than there are
    for name, values in exact.values.items():
        if name not in ("off_mean_cosine",):
            np.testing.assert_allclose(kept.values[name], values, rtol=1e-5, atol=1e-6)
    rough = measured(probes.LaggedGradients, *call, lags=[1, 3], sketch_size=64)
    present = np.isfinite(exact.values["cosine"])
    error = rough.values["cosine"][present] - exact.values["cosine"][present]
    assert 1e-4 < np.sqrt(np.mean(error**2)) < 1.5 / np.sqrt(64)


def test_only_what_the_largest_lag_needs_is_held(least_squares):
    trajectory = {step: least_squares.weights(THETA + step) for step in range(12)}
    surface = Surface(least_squares.model, "mean_squared_error")
    probe = LaggedGradients(surface, trajectory, least_squares.batches, lags=[1, 3])
    record = probe.empty()
    for piece in probe.pieces(record):
        probe.measure(record, piece)
        assert len(probe._held) <= 4
