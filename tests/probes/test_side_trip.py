"""Side trips against closed forms, against Keras' own training, and interrupted."""

import keras
import numpy as np
import pytest
from probe_cases import measured

from tf_lrtraj import probes, theory
from tf_lrtraj.probes.side_trip import SideTrip

RATE = 0.3


def arrays(point):
    return [np.array(keras.ops.convert_to_numpy(a)) for a in point.trainable]


def test_steps_on_a_quadratic_batch(least_squares):
    problem, steps = least_squares, 7
    theta = np.linspace(-1.0, 2.0, 5)
    record = measured(
        probes.SideTrip,
        problem.model,
        "mean_squared_error",
        problem.weights(theta),
        problem.batches[:4],
        held_out=problem.batches[4:],
        others=problem.batches[:2],
        num_steps=steps,
        learning_rate=RATE,
    )
    shrunk = (1.0 - RATE * problem.curvatures) ** np.arange(steps + 1)[:, None]
    xi = problem.minimisers[:4, None, :]
    path = xi + shrunk * (theta - xi)  # [trip, step, D]
    exact = problem.losses(path)  # [trip, step, batch]
    own = np.stack([exact[i, :, i] for i in range(4)])
    np.testing.assert_allclose(record.values["train_loss"], own, rtol=3e-5, atol=1e-7)
    np.testing.assert_allclose(record.values["held_out_loss"], exact[..., 4:], rtol=2e-5)
    np.testing.assert_allclose(record.values["others_loss"], exact[..., :2], rtol=3e-5, atol=1e-7)
    distance = np.linalg.norm(path - theta, axis=-1)
    np.testing.assert_allclose(record.values["distance"], distance, rtol=1e-5, atol=1e-7)
    gradient = np.linalg.norm(problem.curvatures * (path - xi), axis=-1)
    np.testing.assert_allclose(record.values["gradient_norm"], gradient, rtol=1e-5)
    np.testing.assert_allclose(record.values["train_mean"], own.mean(0), rtol=3e-5, atol=1e-7)
    change = own - own[:, :1]
    error = change.std(0, ddof=1) / 2.0
    np.testing.assert_allclose(record.values["train_change_se"], error, rtol=1e-4, atol=1e-6)
    # Targets are no classes: measured, and no number.
    assert np.isposinf(record.values["held_out_accuracy"]).all()
    assert record.complete


def test_one_step_is_what_the_theory_says(least_squares):
    """With all batches as trips and as held-out data, means over both are expectations."""
    problem, theta = least_squares, np.linspace(0.5, -1.0, 5)
    model = theory.QuadraticModel(problem.curvatures, np.diag(problem.noise))
    for rate in (0.1, 0.6):
        record = measured(
            probes.SideTrip,
            problem.model,
            "mean_squared_error",
            problem.weights(theta),
            problem.batches,
            held_out=problem.batches,
            num_steps=1,
            learning_rate=rate,
        )
        for name, held_out in (("train", False), ("held_out", True)):
            expected = model.one_step_loss([0.0, rate], theta, held_out=held_out)
            np.testing.assert_allclose(record.values[f"{name}_mean"], expected, rtol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_as_keras_trains_a_clone(network, nesterov):
    """Momentum with a velocity from earlier steps, and weight decay on kernels."""
    steps, rate, beta, decay = 4, 0.2, 0.8, 0.03
    batch, earlier = network.batches[0], network.batches[1]
    clone = network.at("here")
    clone.layers[0].kernel_regularizer = keras.regularizers.L2(decay / 2)
    clone.layers[-1].kernel_regularizer = keras.regularizers.L2(decay / 2)
    clone = keras.models.clone_model(clone)  # regularizers take effect where layers are built
    clone.layers[4].rate = 0.0
    for variable, array in zip(clone.trainable_variables, network.points["here"], strict=True):
        variable.assign(array)
    optimizer = keras.optimizers.SGD(rate, momentum=beta, nesterov=nesterov)
    clone.compile(optimizer, network.loss)
    for _ in range(2):
        clone.train_on_batch(*earlier)
    start = [keras.ops.convert_to_numpy(v).copy() for v in clone.trainable_variables]
    velocity = [keras.ops.convert_to_numpy(v).copy() for v in optimizer.momentums]
    assert max(np.abs(v).max() for v in velocity) > 1e-3
    surface = probes.Surface(network.model, network.loss)
    trip = SideTrip(
        surface,
        start,
        [batch],
        held_out=network.held_out,
        num_steps=steps,
        learning_rate=rate,
        momentum=beta,
        nesterov=nesterov,
        velocity=velocity,
        weight_decay=decay,
    )
    record = probes.measure(trip)
    for _ in range(steps):
        clone.train_on_batch(*batch)
    trained = [keras.ops.convert_to_numpy(v) for v in clone.trainable_variables]
    moved = max(np.abs(a - b).max() for a, b in zip(trained, start, strict=True))
    assert moved > 0.05
    for found, wanted in zip(arrays(trip.end_point(0)), trained, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=3e-6)
    distance = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(trained, start, strict=True)))
    np.testing.assert_allclose(record.values["distance"][0, -1], distance, rtol=1e-4)
    # The losses of the clone with each batch's own moments; dropout is off there.
    for values, batches in (("train", [batch]), ("held_out", network.held_out)):
        losses = [float(network.loss(y, clone(x, training=True))) for x, y in batches]
        np.testing.assert_allclose(record.values[f"{values}_loss"][0, -1], losses, rtol=1e-4)


def test_sets_of_batches_are_walked_in_turn(network):
    surface = probes.Surface(network.model, network.loss, dropout="pinned")
    options = {"held_out": network.held_out, "num_steps": 3, "learning_rate": [0.3, 0.2, 0.1]}
    pair = network.batches[:2]
    trip = SideTrip(surface, None, [pair, network.batches[2]], **options)
    record = probes.measure(trip)
    point = surface.point()
    for step, rate in enumerate(options["learning_rate"]):
        losses, accuracies = surface.evaluate(point, pair)
        np.testing.assert_allclose(record.values["train_loss"][0, step], losses.mean(), rtol=1e-5)
        np.testing.assert_allclose(record.values["train_accuracy"][0, step], accuracies.mean())
        _, gradient = surface.gradient(point, pair[step % 2])
        point = surface.moved(point, gradient, rate)
    for found, wanted in zip(arrays(trip.end_point(0)), arrays(point), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert record.about["batches_per_trip"] == [2, 1]


def test_frozen_statistics_stay_those_of_the_start(network):
    statistics = [np.full(16, 0.2, "float32"), np.full(16, 1.7, "float32")]
    surface = probes.Surface(network.model, network.loss, batch_norm="frozen")
    start = [*network.points["b"], *statistics]
    trip = SideTrip(surface, start, network.batches[:1], held_out=network.held_out,
                    learning_rate=0.2, num_steps=2)  # fmt: skip
    record = probes.measure(trip)
    clone = network.at("b", statistics)
    for variable, array in zip(clone.trainable_variables, arrays(trip.end_point(0)), strict=True):
        variable.assign(array)
    losses = [float(network.loss(y, clone(x, training=False))) for x, y in network.held_out]
    np.testing.assert_allclose(record.values["held_out_loss"][0, -1], losses, rtol=1e-5)


def test_ends_are_the_same_kept_or_walked_again(network):
    surface = probes.Surface(network.model, network.loss)
    options = {"held_out": network.held_out, "num_steps": 2, "learning_rate": 0.1}
    keeping = SideTrip(surface, None, network.batches[:2], keep_ends=True, **options)
    probes.measure(keeping)
    again = SideTrip(surface, None, network.batches[:2], **options)
    for trip in (0, 1):
        kept, walked = (arrays(probe.end_point(trip)) for probe in (keeping, again))
        for a, b in zip(kept, walked, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(
        ValueError, match=r"`trip` must be .* at least 0 and of at most 1\. Received: trip=2"
    ):
        again.end_point(2)
