"""Intervals against SciPy, closed forms and slow twins."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tf_lrtraj import statistics as st


@pytest.fixture
def random():
    return np.random.default_rng(7)


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("count", [2, 3, 11])
def test_mean_has_the_interval_of_the_t_test(random, count, level):
    values = random.normal(2.0, 3.0, count)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    found = st.mean_of(values).interval(level)
    np.testing.assert_allclose(found, [values.mean(), *expected], rtol=1e-12)


def test_a_single_number_clears_nothing():
    assert st.mean_of([3.0]).interval() == (3.0, -math.inf, math.inf)


def test_equal_numbers_have_an_exact_mean():
    """Although their mean in floating point may differ from them."""
    assert st.mean_of([0.1] * 3).interval()[1:] == pytest.approx((0.1, 0.1), abs=1e-16)
    assert st.mean_of([0.1] * 3).error == 0.0


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("count", [8, 20, 41])
def test_median_interval_is_that_of_the_quantile_test(random, count, level):
    values = random.normal(size=count)
    expected = stats.quantile_test(values, p=0.5).confidence_interval(level)
    found = st.Median(values).interval(level)
    np.testing.assert_allclose(found, [np.median(values), *expected])


def test_median_interval_by_enumeration():
    """Of all 2^9 patterns of numbers below and above the median, at most 5 % miss it."""
    values = np.arange(9.0)
    _, low, high = st.Median(values).interval()
    rank = int(low)
    missed = sum(
        1
        for signs in itertools.product((0, 1), repeat=9)
        if sum(signs) <= rank or sum(signs) >= 9 - rank
    )
    assert missed / 2**9 <= 0.05
    wider = sum(
        1 for s in itertools.product((0, 1), repeat=9) if sum(s) <= rank + 1 or sum(s) >= 8 - rank
    )
    assert wider / 2**9 > 0.05
    assert high == 8.0 - low


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_numbers_give_no_median_interval(count):
    assert st.Median(np.arange(float(count))).interval()[1:] == (-math.inf, math.inf)


def test_line_is_scipys(random):
    x = np.sort(random.uniform(0, 10, 12))
    y = 3.0 - 0.5 * x + random.normal(size=12)
    expected = stats.linregress(x, y)
    found = st.line(x, y)
    assert found.value == pytest.approx(expected.slope, rel=1e-12)
    assert found.error == pytest.approx(expected.stderr, rel=1e-12)
    assert found.dof == 10


def test_exponent_of_a_power_law():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    found = st.exponent(x, 3.0 * x**0.7)
    assert found.value == pytest.approx(0.7, abs=1e-12)
    assert found.error == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(st.exponent(x, x - 1.0).value)


def test_trend_is_the_line_through_block_means(random):
    times = np.arange(200.0)
    values = 5.0 + 0.01 * times + random.normal(size=200)
    blocks = values.reshape(10, 20).mean(axis=1)
    expected = stats.linregress(times.reshape(10, 20).mean(axis=1), blocks)
    found = st.trend(times, values)
    assert found.value == pytest.approx(expected.slope * 199, rel=1e-12)
    assert found.error == pytest.approx(expected.stderr * 199, rel=1e-12)


def test_trend_of_uneven_blocks_and_of_too_few():
    times = np.arange(23.0)
    assert st.trend(times, 2.0 * times).value == pytest.approx(44.0)
    assert st.trend(times, 2.0 * times).error == pytest.approx(0.0, abs=1e-9)
    assert math.isnan(st.trend(times[:2], times[:2]).value)


def test_blocks_respect_autocorrelation():
    """Intervals of an AR(1) series of ρ = 0.9 hold about as often as they say.

    Those that take entries as independent hold less than half as often.
    """
    random = np.random.default_rng(3)
    runs, length, rho = 600, 1000, 0.9
    noise = random.normal(size=(runs, length + 200))
    series = np.zeros_like(noise)
    for t in range(1, noise.shape[1]):
        series[:, t] = rho * series[:, t - 1] + noise[:, t]
    series = series[:, 200:]
    covered = {"trend": 0, "naive": 0}
    for one in series:
        for name, found in (
            ("trend", st.trend(np.arange(length), one)),
            ("naive", st.mean_of(one)),
        ):
            _, low, high = found.interval()
            covered[name] += low <= 0.0 <= high
    # Blocks of 100 entries at a correlation time of 19 are nearly independent.
    assert covered["trend"] / runs > 0.90
    assert covered["naive"] / runs < 0.5


def test_one_number_has_no_interval_and_none_is_refused():
    two = st.mean_of([1.0, 2.0])
    assert two.interval().low == pytest.approx(1.5 - 12.706204736 * 0.5)
    assert st.mean_of([1.0]).interval().high == math.inf
    with pytest.raises(ValueError, match="at least one"):
        st.mean_of([])


def by_test(above, below, level):
    """Fieller's set by trying ratios: those that Student's test of above - r below keeps."""
    tried = np.linspace(-20.0, 20.0, 80_001)
    rest = above[:, None] - tried * below[:, None]
    t = rest.mean(axis=0) / (rest.std(axis=0, ddof=1) / math.sqrt(len(above)))
    return tried[np.abs(t) <= stats.t.ppf(0.5 + 0.5 * level, len(above) - 1)]


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("count", [3, 5, 20])
def test_a_ratio_of_means_keeps_what_students_test_keeps(random, count, level):
    below = random.normal(4.0, 0.3, count)
    above = 0.7 * below + random.normal(0.0, 0.2, count)
    kept = by_test(above, below, level)
    found = st.PairedRatio(above, below).interval(level)
    assert found.value == pytest.approx(above.mean() / below.mean())
    assert (found.low, found.high) == pytest.approx((kept[0], kept[-1]), abs=5e-4)


@pytest.mark.parametrize("correlation", [-0.8, 0.0, 0.8])
def test_a_ratio_of_means_is_covered_as_often_as_it_says(correlation):
    """3 seeds that scatter by a fifth, 4,000 times."""
    random, hits = np.random.default_rng(4), 0
    covariance = 0.2**2 * np.array([[1.0, correlation], [correlation, 1.0]])
    for _ in range(4000):
        above, below = random.multivariate_normal([0.8, 1.0], covariance, 3).T
        _, low, high = st.PairedRatio(above, below).interval()
        hits += low <= 0.8 <= high
    # Student's test of above - 0.8 below is exact; the standard error of the share is 0.35 %.
    assert hits / 4000 == pytest.approx(0.95, abs=0.012)


def test_a_ratio_of_what_may_be_nothing_is_not_known():
    above, below = np.array([1.0, 1.1, 0.9]), np.array([0.5, -0.4, 0.1])
    assert st.PairedRatio(above, below).interval()[1:] == (-math.inf, math.inf)
    assert st.PairedRatio([1.0], [2.0]).interval() == (0.5, -math.inf, math.inf)
    assert math.isnan(st.PairedRatio([1.0, 1.0], [0.0, 0.0]).interval().value)
    exact = st.PairedRatio([9.0, 10.0, 11.0], [18.0, 20.0, 22.0]).interval()
    assert exact == pytest.approx([0.5] * 3, abs=1e-6)
    with pytest.raises(ValueError, match="one length"):
        st.PairedRatio([1.0], [1.0, 2.0])
