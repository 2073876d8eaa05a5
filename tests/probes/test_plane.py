"""Planes through three points, and trajectories projected on them."""

import numpy as np
import pytest
from probe_cases import Steps

from tf_lrtraj import probes
from tf_lrtraj.probes.plane import Basis, Plane


def random_points(count=3, seed=0):
    rng = np.random.default_rng(seed)
    return [[rng.normal(size=(3, 4)), rng.normal(size=5)] for _ in range(count)]


def test_basis_against_a_qr_decomposition():
    points = random_points()
    basis = Basis(points)
    rows = np.array([np.concatenate([a.ravel() for a in point]) for point in points])
    q, r = np.linalg.qr((rows[1:] - rows[0]).T)
    signs = np.sign(np.diag(r))
    np.testing.assert_allclose(np.stack([basis.u, basis.v]), (q * signs).T, atol=1e-14)
    corners = np.concatenate([[[0.0, 0.0]], (signs[:, None] * r).T])
    np.testing.assert_allclose(basis.coordinates, corners, atol=1e-14)


def test_coordinates_and_shares_are_two_ways_to_the_same_point():
    points = random_points()
    basis = Basis(points)
    for x, y in [(0.0, 0.0), (1.3, -0.4), (-2.0, 3.0)]:
        shares = basis.shares(x, y)
        assert shares.sum() == pytest.approx(1.0)
        mixed = [sum(s * p[i] for s, p in zip(shares, points, strict=True)) for i in range(2)]
        np.testing.assert_allclose(basis.project(mixed), [x, y, 0.0], atol=1e-13)
        # And off the plane by 2, at right angles.
        rng = np.random.default_rng(1)
        away = rng.normal(size=17)
        away -= (away @ basis.u) * basis.u + (away @ basis.v) * basis.v
        away *= 2.0 / np.linalg.norm(away)
        away = [away[:12].reshape(3, 4), away[12:]]
        found = basis.project([a + b for a, b in zip(mixed, away, strict=True)])
        np.testing.assert_allclose(found, [x, y, 2.0], atol=1e-13)
    for i in range(3):
        np.testing.assert_allclose(basis.shares(*basis.coordinates[i]), np.eye(3)[i], atol=1e-13)


def test_a_quadratic_bowl(least_squares):
    problem = least_squares
    rng = np.random.default_rng(2)
    corners = rng.normal(size=(3, 5))
    path = rng.normal(size=(4, 5))
    steps = Steps(None, {i: problem.weights(theta) for i, theta in enumerate(path)})
    record = problem.measured(
        probes.Plane,
        dict(zip("xyz", corners, strict=True)),
        num=(4, 3),
        margin=0.5,
        trajectory=steps,
    )
    u, v = record.coordinates["u"], record.coordinates["v"]
    where = np.stack([record.coordinates["point_u"], record.coordinates["point_v"]], 1)
    extent = np.ptp(where, axis=0).max()
    assert (len(u), len(v)) == (4, 3)
    assert u[0] == pytest.approx(where[:, 0].min() - 0.5 * extent)
    assert v[-1] == pytest.approx(where[:, 1].max() + 0.5 * extent)
    # Distances on the plane are those in weight space.
    for i in range(3):
        gap = np.linalg.norm(corners[i] - corners[i - 1])
        assert np.linalg.norm(where[i] - where[i - 1]) == pytest.approx(gap, rel=1e-6)
    q, r = np.linalg.qr((corners[1:] - corners[0]).T)
    axes = (q * np.sign(np.diag(r))).T
    thetas = corners[0] + u[None, :, None] * axes[0] + v[:, None, None] * axes[1]
    exact = problem.losses(thetas)
    np.testing.assert_allclose(record.values["loss"], exact[..., :4], rtol=5e-5)
    np.testing.assert_allclose(record.values["held_out_loss"], exact[..., 4:], rtol=5e-5)
    offsets = path - corners[0]
    along = offsets @ axes.T
    np.testing.assert_allclose(record.values["trajectory_u"], along[:, 0], atol=1e-6)
    np.testing.assert_allclose(record.values["trajectory_v"], along[:, 1], atol=1e-6)
    rest = np.linalg.norm(offsets - along @ axes, axis=1)
    np.testing.assert_allclose(record.values["trajectory_residual"], rest, rtol=1e-5)
    assert steps.reads == [0, 1, 2, 3]
    assert record.complete


@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_against_a_clone_with_its_weights_set(network, statistics, mode):
    surface = probes.Surface(network.model, network.loss, batch_norm=mode)
    points = {name: [*array, *statistics[name]] for name, array in network.points.items()}
    plane = Plane(surface, points, network.batches[:1], num=2, margin=0.1)
    record = probes.measure(plane)
    for i, v in enumerate(record.coordinates["v"]):
        for j, u in enumerate(record.coordinates["u"]):
            shares = plane.basis.shares(u, v)
            assert shares.min() < 0.0
            clone = network.mixed(dict(zip(network.points, shares, strict=True)), statistics)
            x, y = network.batches[0]
            loss = float(network.loss(y, clone(x, training=mode == "batch")))
            assert record.values["loss"][i, j, 0] == pytest.approx(loss, rel=3e-4)
