r"""What a measured curve of loss against rate says: its minimum, its zero crossing, its shape.

A curve is `losses[k]` at increasing `rates[k]`, the first of which is 0.  The *drop* is
how far the loss falls from rate 0 to its minimum; errors of fits are given in units of it.
NumPy only.

>>> rates = np.linspace(0.0, 3.0, 13)
>>> losses = 2.0 - 2.0 * rates + rates**2
>>> minimum(rates, losses)
Minimum(rate=1.0, loss=1.0, gain=1.0, bracketed=True)
>>> zero_crossing(rates, losses)
2.0
>>> round(polynomial(rates, losses, degree=2, window=2.0).curvature, 9)
2.0
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import seeds

DEGREES = (1, 2, 3, 4)
WINDOWS = (0.5, 1.0, 1.5, 2.0, 3.0)  # in multiples of the best rate
LEVELS = (0.01, 0.05, 0.1)  # in units of the drop


@dataclasses.dataclass(frozen=True)
class Minimum:
    """The lowest point of a curve.

    Attributes:
        rate: where it lies.
        loss: the loss there.
        gain: the loss at rate 0 less that.
        bracketed: whether the curve was seen to rise on its right.
    """

    rate: float
    loss: float
    gain: float
    bracketed: bool


@dataclasses.dataclass(frozen=True)
class Fit:
    """A polynomial fitted to a curve between rate 0 and `window`.

    Attributes:
        window: the largest rate that takes part.
        coefficients: of rising powers of the rate.
        error: root mean square of what is left, the mean taken over the window, in units of
            the drop; infinite where the window is not covered, or the curve does not fall.
    """

    window: float
    coefficients: np.ndarray
    error: float

    @property
    def curvature(self) -> float:
        """Second derivative by the rate at rate 0: dᵀHd for steps along -d."""
        return 2.0 * float(self.coefficients[2]) if len(self.coefficients) > 2 else 0.0

    def __call__(self, rates: Any) -> np.ndarray:
        return np.polynomial.polynomial.polyval(np.asarray(rates, np.float64), self.coefficients)


def check_rates(rates: Any, name: str = "rates") -> np.ndarray:
    """[K] rates as float64, if they are finite, at least 0 and strictly increasing.

    Raises:
        ValueError: otherwise, or for fewer than two.
    """
    found = np.asarray(rates, np.float64)
    if found.ndim != 1 or found.size < 2:
        raise ValueError(f"`{name}` must be a vector of at least two. Received: {name}={rates!r}")
    if not np.isfinite(found).all() or found[0] < 0.0 or not (np.diff(found) > 0.0).all():
        raise ValueError(
            f"`{name}` must be finite, at least 0 and strictly increasing. "
            f"Received: {name}={rates!r}"
        )
    return found


def rate_grid(
    low: float, high: float, num: int, scale: str = "log", zero: bool = True
) -> np.ndarray:
    """Rates from `low` to `high`.

    Args:
        low, high: the ends; `low` must be positive for `"log"`.
        num: how many, both ends among them.
        scale: `"log"` or `"linear"`.
        zero: put rate 0 in front, if `low` is not 0.

    Raises:
        ValueError: if the ends are not in order, or there are fewer than two.

    >>> rate_grid(0.01, 1.0, 3)
    array([0.  , 0.01, 0.1 , 1.  ])
    >>> rate_grid(0.0, 1.0, 3, "linear")
    array([0. , 0.5, 1. ])
    """
    if scale not in ("log", "linear"):
        raise ValueError(f"`scale` must be 'log' or 'linear'. Received: scale={scale!r}")
    if isinstance(num, bool) or not isinstance(num, int) or num < 2:
        raise ValueError(f"`num` must be an integer of at least 2. Received: num={num!r}")
    if not (0.0 <= low < high < np.inf) or (scale == "log" and low == 0.0):
        raise ValueError(
            "`low` and `high` must be finite, in order and at least 0 (above 0 for scale='log'). "
            f"Received: low={low!r}, high={high!r}"
        )
    grid = np.geomspace(low, high, num) if scale == "log" else np.linspace(low, high, num)
    return np.concatenate([[0.0], grid]) if zero and low > 0.0 else grid


def continued(rates: np.ndarray) -> np.ndarray:
    """The rates that go on where a grid ends: to twice its end if linear, else ten times.

    A grid counts as linear where its last two steps are equal; otherwise the ratio of its
    last two rates goes on.

    >>> continued(np.array([0.0, 1.0, 2.0, 3.0]))
    array([4., 5., 6.])
    >>> continued(np.array([0.0, 0.1, 1.0]))
    array([10.])
    """
    end, step = rates[-1], rates[-1] - rates[-2]
    if len(rates) > 2 and np.isclose(rates[-2] - rates[-3], step, rtol=1e-6):
        return end + step * np.arange(1, int(np.ceil(end / step - 1e-6)) + 1)
    ratio = end / rates[-2] if rates[-2] > 0.0 else 2.0
    return end * ratio ** np.arange(1, int(np.ceil(np.log(10.0) / np.log(ratio) - 1e-6)) + 1)


# One curve ------------------------------------------------------------------------------------


def minimum(rates: np.ndarray, losses: np.ndarray) -> Minimum:
    """The vertex of the parabola through the lowest point and its two neighbours.

    At an end of the grid it is the end itself; beside a loss that is not finite, the
    lowest point.
    """
    k = int(np.argmin(losses))
    rate, loss = float(rates[k]), float(losses[k])
    if 0 < k < len(rates) - 1 and np.isfinite(losses[k - 1 : k + 2]).all():
        square, slope = _parabola(rates[k - 1 : k + 2], losses[k - 1 : k + 2])
        if square > 0.0:
            move = -0.5 * slope / square
            rate, loss = rate + move, loss + 0.5 * slope * move
    return Minimum(rate, loss, float(losses[0]) - loss, k < len(rates) - 1)


def _parabola(rates: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """(square, slope) at the middle of three points of `loss + slope u + square u²`."""
    left, right = rates[0] - rates[1], rates[2] - rates[1]
    down, up = (losses[0] - losses[1]) / left, (losses[2] - losses[1]) / right
    square = (up - down) / (right - left)
    return float(square), float(up - square * right)


def zero_crossing(rates: np.ndarray, losses: np.ndarray) -> float:
    """The rate at which the gain is gone again; 0 where there is none, inf beyond the grid.

    Between the two rates where it happens, by the parabola through them and the one before.
    """
    k = int(np.argmin(losses))
    if k == 0:
        return 0.0
    over = np.flatnonzero(losses[k:] >= losses[0])
    if not over.size:
        return float("inf")
    right = k + int(over[0])
    left = right - 1
    if not np.isfinite(losses[right]):
        return float(rates[left])
    height, width = float(losses[0] - losses[left]), float(rates[right] - rates[left])
    square, slope = _parabola(rates[left - 1 : right + 1], losses[left - 1 : right + 1])
    for root in _roots(square, slope, -height):
        if 0.0 < root <= width * (1.0 + 1e-9):
            return float(rates[left] + root)
    return float(rates[left] + width * height / (losses[right] - losses[left]))


def _roots(square: float, slope: float, constant: float) -> list[float]:
    """Real roots of `square u² + slope u + constant`, without cancellation."""
    disc = slope**2 - 4.0 * square * constant
    if disc < 0.0:
        return []
    half = -0.5 * (slope + np.copysign(np.sqrt(disc), slope))
    found = [half / square] if square else []
    return sorted([*found, *([constant / half] if half else [])])


def polynomial(
    rates: np.ndarray,
    losses: np.ndarray,
    degree: int,
    window: float,
    drop: float | None = None,
) -> Fit:
    """Least squares between rate 0 and `window`, each point with the share of the window it covers.

    Shares are those of the trapezoid rule, so that a logarithmic grid is not judged by its
    many small rates.

    Args:
        rates, losses: [K] the curve.
        degree: of the polynomial.
        window: largest rate that takes part.
        drop: unit of the error; None for the curve's own.
    """
    if drop is None:
        drop = minimum(rates, losses).gain
    inside = rates <= window * (1.0 + 1e-9)
    x, y = rates[inside], losses[inside]
    nothing = Fit(float(window), np.full(degree + 1, np.nan), float("inf"))
    if len(x) < degree + 2 or rates[-1] < window * (1.0 - 1e-9) or not np.isfinite(y).all():
        return nothing
    shares = np.zeros(len(x))
    shares[1:] += 0.5 * np.diff(x)
    shares[:-1] += 0.5 * np.diff(x)
    shares /= shares.sum()
    unit = float(x[-1])
    powers = np.vander(x / unit, degree + 1, increasing=True)
    root = np.sqrt(shares)
    # About the first loss, so that what is fitted is as small as the drop.
    found, *_ = np.linalg.lstsq(powers * root[:, None], (y - y[0]) * root, rcond=None)
    rest = powers @ found - (y - y[0])
    error = float(np.sqrt(shares @ rest**2)) / drop if drop > 0.0 else float("inf")
    coefficients = found / unit ** np.arange(degree + 1)
    coefficients[0] += y[0]
    return Fit(float(window), coefficients, error)


def errors(
    rates: np.ndarray,
    losses: np.ndarray,
    degrees: Sequence[int] = DEGREES,
    windows: Sequence[float] = WINDOWS,
) -> np.ndarray:
    """[degree, window] relative errors of fits; windows in multiples of the best rate."""
    best = minimum(rates, losses)
    return np.array(
        [
            [
                polynomial(rates, losses, d, w * best.rate, best.gain).error
                if best.rate > 0.0
                else np.inf
                for w in windows
            ]
            for d in degrees
        ]
    )


def valid_to(
    rates: np.ndarray, losses: np.ndarray, degree: int, levels: Sequence[float] = LEVELS
) -> np.ndarray:
    """[level] the largest rate up to which a polynomial's relative error stays at most `level`.

    Every measured rate is tried as the end of the window, from the first at which the fit
    leaves something over; the answer is the last before the error first exceeds the level,
    0 where it always does.  The end of the grid means: as far as was measured.
    """
    drop = minimum(rates, losses).gain
    found = np.zeros(len(levels))
    open_ = np.ones(len(levels), bool)
    for end in rates[degree + 1 :]:
        error = polynomial(rates, losses, degree, float(end), drop).error
        open_ &= error <= np.asarray(levels)
        if not open_.any():
            break
        found[open_] = end
    return found


# Many curves ----------------------------------------------------------------------------------


def bootstrap(
    curves: np.ndarray,
    statistic: Callable[[np.ndarray], Any],
    repeats: int = 400,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(statistic of the mean curve, its standard error) with everything drawn resampled.

    Args:
        curves: [K, batch] or [K, batch, held-out batch]; of the latter, both axes are
            resampled, each on its own, as the same held-out batches serve all.
        statistic: of a curve [K], a number or a vector.
        repeats: number of resamplings.
        seed: of the draw.

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
            drawn = counts > 0  # a loss that is infinite counts only where it was drawn
            mean = mean[..., drawn] @ (counts[drawn] / size)
        found.append(np.asarray(statistic(mean), np.float64))
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(np.array(found), [0.16, 0.84], axis=0, method="nearest")
        return value, np.where(np.isfinite(high), 0.5 * (high - low), np.inf)
