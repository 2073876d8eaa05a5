"""Losses along random rays, and the distance at which they have risen."""

import numpy as np
import pytest
from probe_cases import measured

from tf_lrtraj import probes
from tf_lrtraj.probes.directions import random_direction
from tf_lrtraj.probes.width import width


def test_rays_in_a_quadratic_bowl(least_squares):
    problem, rise, seed = least_squares, 0.4, 7
    points = {"a": np.zeros(5), "b": np.full(5, 0.2)}
    distances = np.linspace(0.0, 3.0, 61)
    record = problem.measured(
        probes.Width, points, distances=distances, num_rays=3, seed=seed, rise=rise
    )
    assert record.complete
    # One and the same rays at both points: a pure function of the seed and their number.
    rays = [random_direction(problem.weights(np.zeros(5)), [seed, i])[0][:, 0] for i in range(3)]
    assert not np.allclose(rays[0], rays[1])
    for p, theta in enumerate(points.values()):
        for i, ray in enumerate(rays):
            assert np.linalg.norm(ray) == pytest.approx(1.0)
            exact = problem.losses(theta + distances[:, None] * ray)
            np.testing.assert_allclose(record.values["loss"][p, i], exact[:, :4], rtol=3e-5)
            held_out = record.values["held_out_loss"][p, i]
            np.testing.assert_allclose(held_out, exact[:, 4:], rtol=3e-5)
            # Where ½ d² rᵀAr + d rᵀA(θ - ξ̄) = rise.
            bend = (problem.curvatures * ray**2).sum() / 2.0
            for name, part in (("width", slice(0, 4)), ("held_out_width", slice(4, None))):
                centre = problem.minimisers[part].mean(0)
                slope = (problem.curvatures * ray * (theta - centre)).sum()
                root = (-slope + np.sqrt(slope**2 + 4 * bend * rise)) / (2 * bend)
                assert record.values[name][p, i] == pytest.approx(root, abs=2e-3)
    widths = record.values["width"]
    np.testing.assert_allclose(record.values["width_mean"], widths.mean(1))
    np.testing.assert_allclose(record.values["width_se"], widths.std(1, ddof=1) / np.sqrt(3))
    gaps = widths[1] - widths[0]
    assert record.values["width_difference"][1, 0] == pytest.approx(gaps.mean())
    error = gaps.std(ddof=1) / np.sqrt(3)
    assert record.values["width_difference_se"][1, 0] == pytest.approx(error)
    np.testing.assert_array_equal(np.diag(record.values["width_difference"]), 0.0)


def test_filter_normalised_rays_are_scaled_at_every_point(network):
    surface = probes.Surface(network.model, network.loss)
    record = probes.measure(
        probes.Width(
            surface,
            {"here": network.points["here"], "b": network.points["b"]},
            network.batches,
            distances=[0.5],
            num_rays=2,
            seed=1,
            ray_kind="filter",
        )
    )
    assert record.coordinates["distance"].tolist() == [0.0, 0.5]
    drawn = {}
    for p, name in enumerate(("here", "b")):
        weights = network.points[name]
        for i in range(2):
            drawn[name, i] = random_direction(weights, [1, i], "filter")
            moved = [a + 0.5 * d for a, d in zip(weights, drawn[name, i], strict=True)]
            losses, accuracies = surface.evaluate(surface.point(moved), network.batches)
            np.testing.assert_allclose(record.values["loss"][p, i, 1], losses, rtol=1e-5)
            np.testing.assert_allclose(record.values["accuracy"][p, i, 1], accuracies)
        losses, _ = surface.evaluate(surface.point(weights), network.batches)
        np.testing.assert_array_equal(record.values["loss"][p, :, 0], [losses, losses])
    # The same draw, so the same directions of each filter.
    a, b = drawn["here", 0][0][..., 0], drawn["b", 0][0][..., 0]
    np.testing.assert_allclose(a / np.linalg.norm(a), b / np.linalg.norm(b))


def test_width_is_interpolated_and_infinite_where_not_reached():
    distances = np.array([0.0, 1.0, 2.0, 4.0])
    assert width(distances, [1.0, 0.5, 1.5, 3.0], 0.25) == pytest.approx(1.75)
    assert width(distances, [1.0, 2.0, 0.0, 0.0], 0.5) == 0.5  # the first time
    assert width(distances, [1.0, 1.1, 1.2, 1.3], 0.5) == np.inf
    assert width(distances, [1.0, 1.0, np.inf, np.inf], 0.5) == 2.0
    assert width(distances, [np.inf] * 4, 0.5) == np.inf


def test_a_width_that_is_not_reached_makes_the_mean_infinite(least_squares):
    problem = least_squares
    record = measured(
        probes.Width,
        problem.model,
        "mean_squared_error",
        {"a": problem.weights(np.zeros(5))},
        problem.batches,
        distances=[0.1, 0.2],
        num_rays=1,
        rise=100.0,
    )
    for name in ("width", "width_mean", "width_se"):
        assert np.isposinf(record.values[name]).all()
    assert record.values["width_difference"][0, 0] == 0.0
