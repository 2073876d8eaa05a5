"""Barriers, their uncertainty, and means over crossed factors, on curves that are known."""

import numpy as np
import pytest

from tf_lrtraj.probes import barriers
from tf_lrtraj.probes.basin import positions, summary
from tf_lrtraj.statistics import crossed_mean, mean_and_se, student

GRID = np.linspace(-0.25, 1.25, 13)  # 0, 1 and 1/2 among them


def test_height_over_the_line_between_the_ends():
    inside = GRID[(GRID >= 0) & (GRID <= 1)]
    hill = np.sin(np.pi * inside) ** 2
    offsets, slopes = np.array([0.3, 1.0, 2.0]), np.array([0.0, 0.5, -0.7])
    curves = np.sin(np.pi * GRID) ** 2
    losses = offsets + slopes * GRID[:, None] + curves[:, None] * [0.8, 1.0, 1.2]
    where, heights = barriers.excess(GRID, losses)
    np.testing.assert_allclose(where, inside)
    np.testing.assert_allclose(heights, hill[:, None] * [0.8, 1.0, 1.2], atol=1e-14)
    found = barriers.highest(where, heights)
    assert found.at == pytest.approx(0.5)
    assert found.height == pytest.approx(1.0)
    assert found.se == pytest.approx(0.2 / np.sqrt(3))
    assert found.cross == pytest.approx(1.0)
    assert found.upper == pytest.approx(1.0 + student(2) * 0.2 / np.sqrt(3))
    # Over the larger end, the first: slopes fall on average.
    plain = barriers.highest(*barriers.over_larger_end(GRID, losses))
    means = (losses - losses[2]).mean(1)
    assert plain.height == pytest.approx(means[2:-2].max())


def test_a_convex_curve_has_no_barrier():
    losses = np.stack([(GRID - 0.3) ** 2, 2.0 * (GRID - 0.4) ** 2] * 3, axis=1)
    found = summary(GRID, losses, np.full_like(losses, np.inf), level=0.01)
    assert found["barrier"] == 0.0
    assert found["barrier_upper"] == 0.0
    assert found["verdict"] == barriers.ONE_BASIN
    assert found["middle"] == pytest.approx(-0.25 * 1.5)  # -¼ of the mean second coefficient
    assert np.isnan(found["error_barrier"])
    assert found["barrier_level"] == 0.01
    relative = summary(GRID, losses, losses, relative_level=0.5)
    ends = np.mean([0.09, 0.49, 0.32, 0.72])
    assert relative["barrier_level"] == pytest.approx(0.5 * ends)


def test_losses_that_overflowed_are_a_barrier():
    losses = np.ones((13, 4))
    losses[6] = np.inf
    found = summary(GRID, losses, np.ones((13, 4)))
    assert np.isposinf(found["barrier"])
    assert found["verdict"] == barriers.BARRIER


def test_a_single_batch_decides_nothing():
    losses = np.ones((13, 1))
    losses[6] = 9.0
    found = summary(GRID, losses, np.ones((13, 1)))
    assert found["barrier"] == 8.0
    assert found["verdict"] == barriers.UNDECIDED
    assert np.isnan([found["barrier_se"], found["barrier_cross"], found["rise_se"]]).all()


def test_what_taking_a_maximum_does_to_noise():
    """On a flat curve the plain maximum is too large, the cross-fitted one is not."""
    rng = np.random.default_rng(0)
    runs, count, noise = 2000, 8, 1.0
    where = np.linspace(0.0, 1.0, 9)
    plain, cross, errors, covered = [], [], [], []
    for _ in range(runs):
        heights = rng.normal(scale=noise, size=(9, count))
        found = barriers.highest(where, heights)
        plain.append(found.height)
        cross.append(found.cross)
        errors.append(found.cross_se)
        covered.append(found.upper >= 0.0)
    standard = noise / np.sqrt(count)
    assert np.mean(plain) > 1.2 * standard  # the bias: 1.49 standard errors in theory
    assert abs(np.mean(cross)) < 4 * standard / np.sqrt(runs)
    # The halves choose the same position by chance, so they are not quite independent.
    assert 0.85 < np.sqrt(np.mean(np.square(errors))) / np.std(cross) < 1.0
    assert np.mean(covered) > 0.97


def test_verdicts_are_seldom_wrong_on_either_side():
    """At a barrier exactly of the level neither answer is given more often than stated."""
    rng = np.random.default_rng(1)
    where, level, runs = np.linspace(0.0, 1.0, 9), 0.5, 1000
    hill = level * np.sin(np.pi * where)
    verdicts = []
    for _ in range(runs):
        heights = hill[:, None] + rng.normal(scale=0.3, size=(9, 8))
        verdicts.append(barriers.verdict(barriers.highest(where, heights), level, 8))
    verdicts = np.array(verdicts)
    assert np.mean(verdicts == barriers.ONE_BASIN) < 0.03
    assert np.mean(verdicts == barriers.BARRIER) < 0.03
    # And where it is clear they say so.
    tall = barriers.highest(where, 2.0 * hill[:, None] + rng.normal(scale=0.1, size=(9, 8)))
    low = barriers.highest(where, 0.2 * hill[:, None] + rng.normal(scale=0.1, size=(9, 8)))
    assert barriers.verdict(tall, level, 8) == barriers.BARRIER
    assert barriers.verdict(low, level, 8) == barriers.ONE_BASIN


def test_asymmetry_against_a_loop():
    rng = np.random.default_rng(2)
    losses = rng.normal(size=(13, 5))
    for centre in (0.5, 0.0, 1.0):
        found = barriers.asymmetry(GRID, losses, centre)
        expected = []
        for i, after in enumerate(GRID):
            for j, before in enumerate(GRID):
                if after > centre and abs(after + before - 2 * centre) < 1e-12:
                    gap = losses[i] - losses[j]
                    expected.append((after - centre, gap.mean(), gap.std(ddof=1) / np.sqrt(5)))
        assert len(expected) == {0.5: 6, 0.0: 2, 1.0: 2}[centre]
        np.testing.assert_allclose(np.array(found).T, expected)


def test_a_grid_without_a_middle_is_compared_around_it():
    offsets, _, _ = barriers.offsets(np.linspace(0.0, 1.0, 4), 0.5)
    np.testing.assert_allclose(offsets, [1 / 6, 0.5])


def test_positions_reach_as_far_as_asked():
    np.testing.assert_allclose(positions(5, 0.3), np.arange(-2, 7) / 4)
    np.testing.assert_allclose(positions(11, (0.0, 0.2)), np.arange(13) / 10)
    grid = positions(22, (1.0, 2.0))
    assert {0.0, 1.0} <= set(grid.tolist())
    assert grid[0] == pytest.approx(-1.0)
    assert grid[-1] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: positions(2), "`num` must be an integer of at least 3"),
        (lambda: positions(5, -0.1), "`extend` must be two numbers of at least 0"),
        (lambda: positions(5, (0.0, 0.1, 0.2)), "`extend` must be two numbers"),
        (lambda: barriers.excess([0.0, 0.5], np.ones((2, 1))), "must be increasing, with 0 and 1"),
        (lambda: barriers.excess([0.0, 1.0], np.ones((3, 1))), "`losses` must be"),
        (lambda: barriers.check_pairs([("a", "a")], ["a", "b"]), "`pairs` must be pairs of diff"),
        (lambda: barriers.check_pairs([("a", "x")], ["a", "b"]), "Received: pairs=\\('a', 'x'\\)"),
        (lambda: barriers.check_pairs([], ["a", "b"]), "at least one pair"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Uncertainty ----------------------------------------------------------------------------------


def test_crossed_factors_against_many_draws():
    """The estimated variance of the mean is that of means over many draws, on average."""
    rng = np.random.default_rng(4)
    n, m, runs = 4, 6, 20_000
    rows, columns = 1.0 * rng.normal(size=(n, 1, runs)), 0.7 * rng.normal(size=(1, m, runs))
    values = rows + columns + 0.4 * rng.normal(size=(n, m, runs))
    means, errors = crossed_mean(values)
    variance = 1.0 / n + 0.49 / m + 0.16 / (n * m)
    assert np.var(means) == pytest.approx(variance, rel=0.03)
    assert np.mean(errors**2) == pytest.approx(variance, rel=0.03)
    # As if all numbers were independent, the variance would come out far too small.
    naive = values.var(axis=(0, 1), ddof=1).mean() / (n * m)
    assert naive < 0.3 * variance


def test_one_entry_of_a_factor_is_held_fixed():
    values = np.array([[1.0, 2.0, 6.0]])
    for given in (values, values.T):
        mean, error = crossed_mean(given)
        assert (mean, error) == (3.0, mean_and_se(values[0])[1])
    assert np.isnan(crossed_mean(np.ones((1, 1)))[1])
    assert np.isnan(mean_and_se(np.ones(1))[1])
