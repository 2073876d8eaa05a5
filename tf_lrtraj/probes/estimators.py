r"""What the Gram matrix of batch gradients says, without bias, and with errors.

With batch gradients :math:`g_i = G + \varepsilon_i`, independent, of mean `G` and
:math:`\operatorname{Cov}\varepsilon_i = \Sigma / B_i` for :math:`B_i` examples,

.. math:: \mathbb E\langle g_i, g_j\rangle = \lVert G\rVert^2 \; (i \ne j), \qquad
   \mathbb E\lVert g_i\rVert^2 = \lVert G\rVert^2 + \operatorname{tr}\Sigma / B_i

so products of *different* batches estimate :math:`\lVert G\rVert^2` without bias, and what the
squares have more is the noise.  In the quadratic model they are :math:`\theta^\top A^2\theta` and
:math:`\operatorname{tr}(A^2C)` (docs/theory/model.md).

Pairs share batches, so pairs are not independent: every error here is the jackknife's
over *batches*, one left out at a time with all its pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


def jackknife(statistic: Callable[[np.ndarray], float], size: int) -> Estimate:
    """A statistic of `size` things, and the error that leaving out one at a time shows.

    Args:
        statistic: ascending indices of the things that count → a number.
        size: at least 3.

    Returns:
        the statistic of all, with error inf if any of the numbers is not finite.

    Raises:
        ValueError: for fewer than 3 things.

    >>> numbers = np.array([1.0, 2.0, 6.0])
    >>> estimate = jackknife(lambda kept: float(numbers[kept].mean()), 3)
    >>> bool(np.isclose(estimate.error, numbers.std(ddof=1) / 3**0.5))
    True
    """
    return _jackknife(lambda kept: [statistic(kept)], size)[0]


def _jackknife(statistics: Callable[[np.ndarray], Sequence[float]], size: int) -> list[Estimate]:
    """The same of several statistics at a time."""
    if size < 3:
        raise ValueError(f"a jackknife needs at least 3 batches. Received: {size}")
    everything = np.arange(size)
    values = np.array(statistics(everything), np.float64)
    without = np.array([statistics(np.delete(everything, i)) for i in range(size)], np.float64)
    known = np.isfinite(values) & np.isfinite(without).all(axis=0)
    without[:, ~known] = 0.0
    spread = np.sum((without - without.mean(axis=0)) ** 2, axis=0)
    errors = np.where(known, np.sqrt((size - 1) / size * spread), np.inf)
    return [Estimate(float(v), float(e)) for v, e in zip(values, errors, strict=True)]


def cosines(gram: np.ndarray) -> np.ndarray:
    """[N, N] cosines of all pairs; NaN for a vector of length 0."""
    lengths = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        return gram / np.outer(lengths, lengths)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """[N (N-1) / 2] entries above the diagonal."""
    return matrix[np.triu_indices(len(matrix), 1)]


def cosines_to_rest(gram: np.ndarray) -> np.ndarray:
    """[N] cosine of each vector with the mean of the *others*."""
    squares = np.diag(gram)
    across = gram.sum(axis=1) - squares
    rest = gram.sum() - 2.0 * gram.sum(axis=1) + squares
    return _ratio(across, np.sqrt(squares) * np.sqrt(np.maximum(rest, 0.0)))


def cosines_to_mean(gram: np.ndarray) -> np.ndarray:
    """[N] cosine of each vector with the mean of all, itself among them: biased upwards.

    Of N vectors at right angles each has 1/√N.
    """
    total = max(float(gram.sum()), 0.0)
    return _ratio(gram.sum(axis=1), np.sqrt(np.diag(gram) * total))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    found = np.full(above.shape, np.nan)
    return np.divide(above, below, out=found, where=below > 0.0)


class Alignment(NamedTuple):
    """What a Gram matrix says.

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
    """(‖G‖², tr Σ of one example), both unbiased.

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
    """Everything that `Alignment` names, with jackknife errors over batches.

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

    return Alignment(*_jackknife(statistics, len(gram)))


def direction_cosines(gram: np.ndarray, products: np.ndarray, square: float) -> np.ndarray:
    """[N] cosine of each vector with a direction.

    Args:
        gram: [N, N] inner products of the vectors.
        products: [N] their products with the direction.
        square: squared length of the direction.
    """
    return _ratio(products, np.sqrt(np.diag(gram) * square))


def mean_direction_cosine(gram: np.ndarray, products: np.ndarray, square: float) -> Estimate:
    """Cosine of the *mean* vector with a direction; arguments as in `direction_cosines`.

    The mean of few batches is longer than what it estimates, so the cosine is too small.
    """

    def cosine(kept: np.ndarray) -> float:
        length = np.sqrt(max(float(gram[np.ix_(kept, kept)].sum()), 0.0) * square)
        return float(products[kept].sum() / length) if length > 0.0 else np.nan

    return jackknife(cosine, len(gram))
