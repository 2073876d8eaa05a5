r"""Estimates with errors from Gram matrices of batch gradients, and from means along a run.

With batch gradients :math:`g_i = G + \varepsilon_i`, independent, of mean `G` and
:math:`\operatorname{Cov}\varepsilon_i = \Sigma / B_i` for :math:`B_i` examples,

.. math:: \mathbb E\langle g_i, g_j\rangle = \lVert G\rVert^2 \; (i \ne j), \qquad
   \mathbb E\lVert g_i\rVert^2 = \lVert G\rVert^2 + \operatorname{tr}\Sigma / B_i

so products of *different* batches estimate :math:`\lVert G\rVert^2` without bias, and the excess of
the squares is the noise.  In the quadratic model they are :math:`\theta^\top A^2\theta` and
:math:`\operatorname{tr}(A^2C)` (docs/theory/model.md).

Pairs share batches and are not independent, so errors are computed by a jackknife over *batches*:
one batch is left out at a time with all its pairs.

Measurements over a lag, from starts closer than the lag, share steps.  Their errors are computed by
leaving out one *block* of starts at a time, where each block is at least as long as the lag; with
fewer than three such blocks the error is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

MOST_BLOCKS = 8
_FEWEST_BLOCKS = 3


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


def jackknife(statistics: Callable[[np.ndarray], Sequence[float]], size: int) -> list[Estimate]:
    """Computes statistics of `size` items and their jackknife errors.

    Args:
        statistics: function from ascending indices of items to numbers.
        size: number of items, at least 3.

    Returns:
        the statistics of all items; an error is inf if a statistic is not always finite.

    Raises:
        ValueError: for fewer than 3 items.

    >>> numbers = np.array([1.0, 2.0, 6.0])
    >>> (estimate,) = jackknife(lambda kept: [float(numbers[kept].mean())], 3)
    >>> bool(np.isclose(estimate.error, numbers.std(ddof=1) / 3**0.5))
    True
    """
    if size < 3:
        raise ValueError(f"a jackknife needs at least 3 batches. Received: {size}")
    everything = np.arange(size)
    values = np.array(statistics(everything), np.float64)
    without = np.array([statistics(np.delete(everything, i)) for i in range(size)], np.float64)
    errors = np.where(np.isfinite(values), _spread(without), np.inf)
    return [Estimate(float(v), float(e)) for v, e in zip(values, errors, strict=True)]


def _spread(without: np.ndarray) -> np.ndarray:
    """The jackknife's errors from [n, …] statistics, each without one of the n things."""
    count = len(without)
    known = np.isfinite(without).all(axis=0)
    found = np.where(known, without, 0.0)
    spread = np.sum((found - found.mean(axis=0)) ** 2, axis=0)
    return np.where(known, np.sqrt((count - 1) / count * spread), np.inf)


def cosines(gram: np.ndarray) -> np.ndarray:
    """Returns the [N, N] cosines of all pairs; NaN for a vector of length 0."""
    lengths = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        return gram / np.outer(lengths, lengths)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Returns the [N (N-1) / 2] entries above the diagonal."""
    return matrix[np.triu_indices(len(matrix), 1)]


def cosines_to_rest(gram: np.ndarray) -> np.ndarray:
    """Returns the [N] cosines of each vector with the mean of the *others*."""
    squares = np.diag(gram)
    across = gram.sum(axis=1) - squares
    rest = gram.sum() - 2.0 * gram.sum(axis=1) + squares
    return _ratio(across, np.sqrt(squares) * np.sqrt(np.maximum(rest, 0.0)))


def cosines_to_mean(gram: np.ndarray) -> np.ndarray:
    """Returns the [N] cosines of each vector with the mean of all, which are biased upwards.

    Of N vectors at right angles each has 1/√N.
    """
    total = max(float(gram.sum()), 0.0)
    return _ratio(gram.sum(axis=1), np.sqrt(np.diag(gram) * total))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    found = np.full(above.shape, np.nan)
    return np.divide(above, below, out=found, where=below > 0.0)


class Alignment(NamedTuple):
    """Estimates from a Gram matrix.

    Attributes:
        signal: :math:`\\lVert G\\rVert^2`, unbiased; may come out negative.
        noise: :math:`\\operatorname{tr}\\Sigma` of a single example, unbiased.
        noise_scale: noise over signal, in examples: the "simple noise scale" of McCandlish
            et al. 2018 (arXiv 1812.06162).  A ratio of unbiased estimates; inf if the signal
            is not positive.
        share: signal over mean square: the cosine of two batches as a ratio of expectations.
        pair_cosine: mean cosine over all pairs of batches.
        rest_cosine: mean cosine of a batch with the mean of the others.
        mean_cosine: the same with the mean of all: biased upwards.
    """

    signal: Estimate
    noise: Estimate
    noise_scale: Estimate
    share: Estimate
    pair_cosine: Estimate
    rest_cosine: Estimate
    mean_cosine: Estimate


def signal_and_noise(gram: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Returns (‖G‖², tr Σ of one example), both unbiased.

    Args:
        gram: [N, N] inner products of batch gradients.
        sizes: [N] examples in each batch.

    >>> signal_and_noise(np.array([[3.0, 1.0], [1.0, 3.0]]), np.array([8, 8]))
    (1.0, 16.0)
    """
    count = len(gram)
    squares = np.diag(gram)
    signal = (gram.sum() - squares.sum()) / (count * (count - 1))
    noise = (squares - signal).sum() / np.sum(1.0 / sizes)
    return float(signal), float(noise)


def alignment(gram: np.ndarray, sizes: Sequence[int] | np.ndarray) -> Alignment:
    """Returns the estimates of an `Alignment`, with jackknife errors over batches.

    Args:
        gram: [N, N] inner products of batch gradients.
        sizes: [N] examples in each batch.

    Raises:
        ValueError: for fewer than 3 batches.
    """
    sizes = np.asarray(sizes, np.float64)

    def statistics(kept: np.ndarray) -> list[float]:
        matrix = gram[np.ix_(kept, kept)]
        signal, noise = signal_and_noise(matrix, sizes[kept])
        square = float(np.diag(matrix).mean())
        return [
            signal,
            noise,
            noise / signal if signal > 0.0 else np.inf,
            signal / square if square > 0.0 else np.nan,
            float(off_diagonal(cosines(matrix)).mean()),
            float(cosines_to_rest(matrix).mean()),
            float(cosines_to_mean(matrix).mean()),
        ]

    return Alignment(*jackknife(statistics, len(gram)))


def direction_cosines(gram: np.ndarray, products: np.ndarray, square: float) -> np.ndarray:
    """Returns the [N] cosines of each vector with a direction.

    Args:
        gram: [N, N] inner products of the vectors.
        products: [N] their products with the direction.
        square: squared length of the direction.
    """
    return _ratio(products, np.sqrt(np.diag(gram) * square))


def mean_direction_cosine(gram: np.ndarray, products: np.ndarray, square: float) -> Estimate:
    """Returns the cosine of the *mean* vector with a direction; see `direction_cosines`.

    The mean of few batches is longer than the full gradient, so the cosine is biased downwards.
    """

    def cosine(kept: np.ndarray) -> list[float]:
        length = np.sqrt(max(float(gram[np.ix_(kept, kept)].sum()), 0.0) * square)
        return [float(products[kept].sum() / length) if length > 0.0 else np.nan]

    return jackknife(cosine, len(gram))[0]


# Along a trajectory ----------------------------------------------------------------------------


def blocks(starts: np.ndarray, lag: int) -> np.ndarray | None:
    """Returns the [n] block numbers of starts; None if there are too few blocks for an error."""
    if starts.size < _FEWEST_BLOCKS:
        return None
    spacing = int(np.diff(starts).min())
    extent = int(starts[-1] - starts[0]) + spacing
    count = min(MOST_BLOCKS, extent // max(lag, spacing))
    if count < _FEWEST_BLOCKS:
        return None
    numbers = (starts - starts[0]) * count // extent
    return numbers if np.unique(numbers).size == count else None


def block_mean(
    starts: np.ndarray,
    values: np.ndarray,
    lag: int,
    scales: tuple[np.ndarray, np.ndarray] | None = None,
) -> Estimate:
    """Computes the mean over starts and its error by leaving out blocks of them.

    Args:
        starts: [n] ascending steps.
        values: [n].
        lag: the duration of what starts there.
        scales: two arrays [n]; the mean is divided by the root of the product of theirs.

    >>> block_mean(np.arange(8), np.array([0.0, 2.0] * 4), 1)
    Estimate(value=1.0, error=0.3779644730092272)
    """

    def statistic(kept: np.ndarray) -> float:
        mean = float(values[kept].mean())
        if scales is None:
            return mean
        square = float(scales[0][kept].mean() * scales[1][kept].mean())
        positive = min(scales[0][kept].mean(), scales[1][kept].mean()) > 0.0
        return mean / math.sqrt(square) if positive else math.inf

    if not np.isfinite(values).all():
        return Estimate(math.inf, math.inf)
    whole = statistic(np.ones(values.size, bool))
    numbers = blocks(starts, lag)
    if numbers is None:
        return Estimate(whole, math.inf)
    without = np.array([statistic(numbers != i) for i in range(numbers.max() + 1)])
    return Estimate(whole, float(_spread(without)))


def growth(steps: np.ndarray, lags: np.ndarray, squared: np.ndarray) -> Estimate:
    r"""Returns the growth exponent of squared displacement, :math:`d\ln D / d\ln\Delta`.

    It is 0 in a stationary state, 1 for a random walk and 2 for a drift, and is the slope of a
    straight line through the lags from a quarter of the largest on.

    Args:
        steps: [K] later steps.
        lags: [L].
        squared: [L, K] squared displacements, inf where there is none.

    Returns:
        the slope and its error by leaving out blocks of starts; both inf for fewer than 3 lags.
    """
    lags, squared = np.asarray(lags), np.asarray(squared)
    rows = np.flatnonzero(lags >= lags[-1] / 4)
    if rows.size < 3:
        return Estimate(math.inf, math.inf)
    present = np.isfinite(squared)
    longest = steps[present[-1]] - lags[-1]
    numbers = blocks(longest, int(lags[-1]))
    count = 0 if numbers is None else int(numbers.max()) + 1

    def slope(left_out: int | None) -> float:
        means = []
        for row in rows.tolist():
            starts = steps - lags[row]
            kept = present[row].copy()
            if left_out is not None:
                extent = int(longest[-1] - longest[0]) + int(np.diff(longest).min())
                block = np.clip((starts - longest[0]) * count // extent, 0, count - 1)
                kept &= block != left_out
            means.append(squared[row, kept].mean() if kept.any() else np.nan)
        if not np.all(np.array(means) > 0.0):
            return math.inf
        return float(np.polyfit(np.log(lags[rows]), np.log(means), 1)[0])

    value = slope(None)
    if not count or not math.isfinite(value):
        return Estimate(value, math.inf)
    return Estimate(value, float(_spread(np.array([slope(i) for i in range(count)]))))
