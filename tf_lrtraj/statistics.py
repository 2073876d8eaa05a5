"""Means, medians, ratios and slopes with their intervals, and Holm's method.

An `Estimate` is a number with its standard error and degrees of freedom; `Estimate.interval` is
Student's interval.  `Median` and `PairedRatio` have their own intervals.  The interval of an
unknown number is infinite, so that it passes no threshold.

>>> [round(x, 3) for x in mean_of([1.0, 2.0, 3.0]).interval()]
[2.0, -0.484, 4.484]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

from tf_lrtraj import seeds

LEVEL = 0.95  # of intervals, unless a test of equivalence says otherwise
TOST = 0.90  # two one-sided tests at 5 % each are one 90 % interval
BLOCKS = 10  # of a run, for errors that respect its autocorrelation


class Interval(NamedTuple):
    """A number and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with a standard error, which is NaN if unknown.

    Attributes:
        value: the number.
        error: its standard error.
        dof: degrees of freedom of the error.
    """

    value: float
    error: float = math.nan
    dof: float = math.inf

    def interval(self, level: float = LEVEL) -> Interval:
        """Student's interval; infinite without an error."""
        if not (math.isfinite(self.error) and self.dof >= 1.0 and math.isfinite(self.value)):
            return Interval(self.value, -math.inf, math.inf)
        half = 0.0 if self.error == 0.0 else self.error * student(self.dof, level)
        return Interval(self.value, self.value - half, self.value + half)

    def scaled(self, factor: float) -> Estimate:
        """Returns the estimate multiplied by `factor`."""
        return Estimate(self.value * factor, self.error * abs(factor), self.dof)


def student(dof: float, level: float = LEVEL) -> float:
    """Half width of a two-sided interval in standard errors.

    >>> round(student(2), 3), round(student(float("inf")), 3)
    (4.303, 1.96)
    """
    tail = 0.5 + 0.5 * level
    return float(special.ndtri(tail) if math.isinf(dof) else special.stdtrit(dof, tail))


def mean_of(values: Any) -> Estimate:
    """Returns the mean of independent numbers; the mean of a single number has no error.

    Raises:
        ValueError: if `values` is empty.
    """
    found = np.asarray(values, np.float64).ravel()
    count = found.size
    if not count:
        raise ValueError("`values` must hold at least one number. Received: none")
    mean = float(found.mean())
    if count < 2:
        return Estimate(mean, math.nan, 0.0)
    error = float(found.std(ddof=1) / math.sqrt(count))
    # Differences at rounding level count as 0: equal records must give an exact mean.
    if error <= 1e-14 * float(np.abs(found).max()):
        error = 0.0
    return Estimate(mean, error, count - 1.0)


class Median:
    """The median and its distribution-free interval from order statistics.

    Fewer than six numbers give no 95 % interval.

    Args:
        values: independent numbers.

    >>> Median([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]).interval()
    Interval(value=3.5, low=1.0, high=6.0)
    """

    def __init__(self, values: Any) -> None:
        self._sorted = np.sort(np.asarray(values, np.float64).ravel())

    def interval(self, level: float = LEVEL) -> Interval:
        found, count = self._sorted, self._sorted.size
        if not count:
            return Interval(math.nan, -math.inf, math.inf)
        # The largest rank with P(Binomial(count, 1/2) < rank) <= (1 - level) / 2.
        rank = int(stats.binom.ppf(0.5 * (1.0 - level), count, 0.5))
        while rank > 0 and stats.binom.cdf(rank - 1, count, 0.5) > 0.5 * (1.0 - level):
            rank -= 1
        middle = float(np.median(found))
        if rank < 1:
            return Interval(middle, -math.inf, math.inf)
        return Interval(middle, float(found[rank - 1]), float(found[count - rank]))


class PairedRatio:
    """A ratio of two means over the same seeds, with Fieller's interval.

    Fieller (Journal of the Royal Statistical Society B 16, 1954): the interval holds every r for
    which Student's test does not reject that the mean of `above` - r `below` is 0. It is infinite
    if the test does not reject that the mean of `below` is 0.

    Args:
        above: [n] numbers, one a seed.
        below: [n] numbers of the same seeds.

    Raises:
        ValueError: if their lengths differ, or there is none.

    >>> [round(x, 3) for x in PairedRatio([1.0, 1.1, 0.95], [2.0, 2.1, 1.9]).interval()]
    [0.508, 0.469, 0.54]
    """

    def __init__(self, above: Any, below: Any) -> None:
        self._above, self._below = (
            np.asarray(values, np.float64).ravel() for values in (above, below)
        )
        if self._above.size != self._below.size or not self._above.size:
            raise ValueError(
                "`above` and `below` must be of one length, at least 1. "
                f"Received: lengths {self._above.size} and {self._below.size}"
            )

    @property
    def value(self) -> float:
        below = float(self._below.mean())
        return float(self._above.mean()) / below if below else math.nan

    def interval(self, level: float = LEVEL) -> Interval:
        a, b, n = self._above, self._below, self._above.size
        everything = Interval(self.value, -math.inf, math.inf)
        if n < 2 or not math.isfinite(self.value):
            return everything
        t2 = student(n - 1.0, level) ** 2 / n
        covariance = np.cov(a, b, ddof=1)
        # mean(a - r b)² = t² var(a - r b) / n, a quadratic in r.
        square = float(b.mean() ** 2 - t2 * covariance[1, 1])
        middle = float(a.mean() * b.mean() - t2 * covariance[0, 1])
        rest = float(a.mean() ** 2 - t2 * covariance[0, 0])
        if square <= 0.0:
            return everything
        root = math.sqrt(max(middle**2 - square * rest, 0.0))
        return Interval(self.value, (middle - root) / square, (middle + root) / square)


def holm(rejects: Sequence[Callable[[float], bool]], level: float = LEVEL) -> list[bool]:
    """Returns which of several tests reject, with a family-wise error rate of 1 - `level`.

    Holm's step-down method (Scandinavian Journal of Statistics 6, 1979): of m tests, one rejects
    if it does so at level 1 - (1 - level) / m; then the others are tested as m - 1 tests.

    Args:
        rejects: a function for each test, from a level to whether the test rejects at it.
        level: the level of all tests together.

    >>> holm([lambda level: level < 0.98, lambda level: level < 0.96, lambda level: False])
    [False, False, False]
    >>> holm([lambda level: level < 0.98, lambda level: level < 0.96])
    [True, True]
    """
    found = [False] * len(rejects)
    while left := [i for i, rejected in enumerate(found) if not rejected]:
        strict = 1.0 - (1.0 - level) / len(left)
        more = [i for i in left if rejects[i](strict)]
        if not more:
            break
        for i in more:
            found[i] = True
    return found


def block_numbers(count: int, blocks: int = BLOCKS) -> np.ndarray:
    """[count] which of `blocks` contiguous blocks of nearly equal length each entry is in."""
    return np.arange(count) * min(blocks, count) // count


def trend(times: Any, values: Any, blocks: int = BLOCKS) -> Estimate:
    """Returns the change of a straight-line fit from the first to the last time of a series.

    The line is fitted to means of contiguous blocks, whose residuals give the error.  The error is
    valid for any correlation within blocks.
    """
    x, y = np.asarray(times, np.float64), np.asarray(values, np.float64)
    numbers = block_numbers(x.size, blocks)
    count = int(numbers.max()) + 1
    if count < 3:
        return Estimate(math.nan, math.nan, 0.0)
    at = np.array([x[numbers == i].mean() for i in range(count)])
    means = np.array([y[numbers == i].mean() for i in range(count)])
    return line(at, means).scaled(float(x[-1] - x[0]))


def line(x: Any, y: Any) -> Estimate:
    """Returns the slope of a least-squares line, with the error from its residuals."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    place = x - x.mean()
    square = float(place @ place)
    if x.size < 2 or square == 0.0:
        return Estimate(math.nan, math.nan, 0.0)
    slope = float(place @ y) / square
    if x.size < 3:
        return Estimate(slope, math.nan, 0.0)
    rest = y - y.mean() - slope * place
    error = math.sqrt(float(rest @ rest) / (x.size - 2) / square)
    return Estimate(slope, error, x.size - 2.0)


def exponent(x: Any, y: Any) -> Estimate:
    """Returns the exponent of a power law of y in x: the slope between the logarithms.

    >>> round(exponent([1.0, 2.0, 4.0], [3.0, 6.0, 12.0]).value, 12)
    1.0
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if np.any(x <= 0.0) or np.any(y <= 0.0):
        return Estimate(math.nan, math.nan, 0.0)
    return line(np.log(x), np.log(y))


# Arrays of batches, rays and trips ----------------------------------------------------------


def mean_and_se(values: np.ndarray, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean along an axis and its standard error for independent entries.

    The error of a single entry is NaN (infinite in a record).

    >>> mean_and_se(np.array([1.0, 3.0]))
    (np.float64(2.0), np.float64(1.0))
    """
    values = np.asarray(values, np.float64)
    count = values.shape[axis]
    with np.errstate(invalid="ignore", over="ignore"):
        mean = np.mean(values, axis=axis)
        if count < 2:
            return mean, np.full_like(mean, np.nan)
        return mean, np.std(values, axis=axis, ddof=1) / np.sqrt(count)


def crossed_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""Returns the mean of [n, m, …] numbers over two crossed factors, and its standard error.

    Every trip is measured on the same held-out batches, so the n m numbers are not
    independent.  With effects of rows, of columns and of their pairs,
    \(x_{ij} = \mu + r_i + c_j + e_{ij}\), the variance of the mean is estimated without bias by

    .. math:: \frac{s^2(\bar x_{i\cdot})}{n} + \frac{s^2(\bar x_{\cdot j})}{m}
        - \frac{s^2_e}{nm},

    with either of its first two terms as a lower bound. A factor with one entry is treated as
    fixed: the error is then over the other factor alone.

    >>> crossed_mean(np.array([[0.0, 2.0], [0.0, 2.0]]))  # rows do not differ
    (np.float64(1.0), np.float64(1.0))
    """
    values = np.asarray(values, np.float64)
    n, m = values.shape[:2]
    with np.errstate(invalid="ignore", over="ignore"):
        rows, columns = values.mean(axis=1), values.mean(axis=0)
        mean = rows.mean(axis=0)
        of_rows = rows.var(axis=0, ddof=1) / n if n > 1 else None
        of_columns = columns.var(axis=0, ddof=1) / m if m > 1 else None
        if of_rows is None or of_columns is None:
            known = of_rows if of_columns is None else of_columns
            return mean, np.full_like(mean, np.nan) if known is None else np.sqrt(known)
        rest = values - rows[:, None] - columns[None] + mean
        shared = np.sum(rest**2, axis=(0, 1)) / ((n - 1) * (m - 1) * n * m)
        variance = np.maximum(of_rows + of_columns - shared, np.maximum(of_rows, of_columns))
        return mean, np.sqrt(variance)


def exponents(sizes: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Returns the slope of log value against log size, and its standard error over batches.

    Each batch has its own least-squares slope; the error is the standard error of their mean.

    Args:
        sizes: [S] positive.
        values: [S, N]; batches with a value that is not positive are left out.

    Returns:
        (slope, error); inf if they cannot be estimated.

    >>> values = np.array([[1.0, 3.0], [4.0, 12.0], [16.0, 48.0]])
    >>> [round(number, 9) for number in exponents(np.array([1.0, 2.0, 4.0]), values)]
    [2.0, 0.0]
    """
    sizes, values = np.asarray(sizes, np.float64), np.asarray(values, np.float64)
    kept = (np.isfinite(values) & (values > 0.0)).all(axis=0)
    if sizes.size < 2 or not kept.any() or np.any(sizes <= 0.0):
        return np.inf, np.inf
    place = np.log(sizes) - np.log(sizes).mean()
    slopes = place @ np.log(values[:, kept]) / (place @ place)
    mean, error = mean_and_se(slopes)
    return float(mean), float(np.nan_to_num(error, nan=np.inf))


def bootstrap(
    curves: np.ndarray,
    statistic: Callable[[np.ndarray], Any],
    repeats: int = 400,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (a statistic of the mean curve, its bootstrap standard error).

    Args:
        curves: [K, batch] or [K, batch, held-out batch]; both axes of batches are resampled
            independently, because all batches use the same held-out batches.
        statistic: the statistic of a curve [K], a number or a vector.
        repeats: number of resamplings.
        seed: the seed of the draw.

    Returns:
        the statistic, and half the distance between the 16 % and 84 % points of its
        resampled values: infinite where one of these is, or with a single batch.
    """
    axes = tuple(range(1, curves.ndim))
    value = np.asarray(statistic(curves.mean(axes)), np.float64)
    if curves.shape[1] < 2:
        return value, np.full_like(value, np.inf)
    rng = seeds.generator("resampling", seed)
    found = []
    for _ in range(repeats):
        # Weights of a resampling: how often each was drawn.
        mean = curves
        for size in reversed(curves.shape[1:]):
            counts = np.bincount(rng.integers(size, size=size), minlength=size)
            drawn = counts > 0  # an infinite loss counts only if it was drawn
            mean = mean[..., drawn] @ (counts[drawn] / size)
        found.append(np.asarray(statistic(mean), np.float64))
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(np.array(found), [0.16, 0.84], axis=0, method="nearest")
        return value, np.where(np.isfinite(high), 0.5 * (high - low), np.inf)
