r"""Minimum, zero crossing and polynomial fits of measured curves; second derivatives and noise.

A curve is `losses[k]` at increasing `rates[k]`, the first of which is 0.  The *drop* is the
difference between the loss at rate 0 and the minimum; errors of fits are given in units of the
drop.

A float32 loss has the noise of some hundred roundings, so a second difference over a step h has an
error of noise/h² and another of order h².

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
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_lrtraj.values import error, integer, one_of

DEGREES = (1, 2, 3, 4)
WINDOWS = (0.5, 1.0, 1.5, 2.0, 3.0)  # in multiples of the best rate
LEVELS = (0.01, 0.05, 0.1)  # in units of the drop


@dataclasses.dataclass(frozen=True)
class Minimum:
    """The lowest point of a curve.

    Attributes:
        rate: its rate.
        loss: the loss there.
        gain: the loss at rate 0 minus that loss.
        bracketed: whether the curve rises to the right of it.
    """

    rate: float
    loss: float
    gain: float
    bracketed: bool


@dataclasses.dataclass(frozen=True)
class Fit:
    """A polynomial fitted to a curve between rate 0 and `window`.

    Attributes:
        window: the largest rate used.
        coefficients: the coefficients of ascending powers of the rate.
        error: root mean square residual over the window, in units of the drop; infinite if the
            window is not covered, or the curve does not fall.
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


def check_rates(rates: Any) -> np.ndarray:
    """Returns [K] rates as float64.

    Raises:
        ValueError: unless they are two or more, finite, at least 0 and strictly increasing.
    """
    found = np.asarray(rates, np.float64)
    if (
        found.ndim != 1
        or found.size < 2
        or not np.isfinite(found).all()
        or found[0] < 0.0
        or not (np.diff(found) > 0.0).all()
    ):
        allowed = "two or more strictly increasing, finite numbers of at least 0"
        raise error("rates", allowed, rates)
    return found


def rate_grid(
    low: float, high: float, num: int, scale: str = "log", zero: bool = True
) -> np.ndarray:
    """Returns rates from `low` to `high`.

    Args:
        low, high: the ends; `low` must be positive for `"log"`.
        num: number of rates, including both ends.
        scale: `"log"` or `"linear"`.
        zero: whether to add rate 0 in front, if `low` is not 0.

    Raises:
        ValueError: if the ends are not in order, or there are fewer than two.

    >>> rate_grid(0.01, 1.0, 3)
    array([0.  , 0.01, 0.1 , 1.  ])
    >>> rate_grid(0.0, 1.0, 3, "linear")
    array([0. , 0.5, 1. ])
    """
    one_of(["log", "linear"]).check("scale", scale)
    num = integer(2).check("num", num)
    if not (0.0 <= low < high < np.inf) or (scale == "log" and low == 0.0):
        raise ValueError(
            "`low` and `high` must be finite, in order and at least 0 (above 0 for scale='log'). "
            f"Received: low={low!r}, high={high!r}"
        )
    grid = np.geomspace(low, high, num) if scale == "log" else np.linspace(low, high, num)
    return np.concatenate([[0.0], grid]) if zero and low > 0.0 else grid


def continued(rates: np.ndarray) -> np.ndarray:
    """Returns rates that extend a grid: to twice its end if it is linear, else to ten times.

    A grid counts as linear if its last two steps are equal; otherwise the ratio of its last two
    rates is continued.

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


def minimum(rates: np.ndarray, losses: np.ndarray) -> Minimum:
    """Returns the vertex of the parabola through the lowest point and its two neighbours.

    At an end of the grid, or beside a loss that is not finite, it is the lowest point itself.
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
    """Returns (square, slope) of `loss + slope u + square u²` at the middle of three points."""
    left, right = rates[0] - rates[1], rates[2] - rates[1]
    down, up = (losses[0] - losses[1]) / left, (losses[2] - losses[1]) / right
    square = (up - down) / (right - left)
    return float(square), float(up - square * right)


def zero_crossing(rates: np.ndarray, losses: np.ndarray) -> float:
    """Returns the rate at which the gain returns to 0; 0 without a gain, inf beyond the grid.

    It is interpolated by the parabola through the two rates around it and the previous one.
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
    """Returns the real roots of `square u² + slope u + constant`, without cancellation."""
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
    """Fits a polynomial between rate 0 and `window` by weighted least squares.

    The weights are those of the trapezoid rule, so that the many small rates of a logarithmic grid
    do not dominate.

    Args:
        rates, losses: [K] the curve.
        degree: of the polynomial.
        window: the largest rate used.
        drop: unit of the error; None for the curve's own drop.
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
    # Relative to the first loss, so that the fitted values are as small as the drop.
    found, *_ = np.linalg.lstsq(powers * root[:, None], (y - y[0]) * root, rcond=None)
    rest = powers @ found - (y - y[0])
    left = float(np.sqrt(shares @ rest**2)) / drop if drop > 0.0 else float("inf")
    coefficients = found / unit ** np.arange(degree + 1)
    coefficients[0] += y[0]
    return Fit(float(window), coefficients, left)


def errors(
    rates: np.ndarray,
    losses: np.ndarray,
    degrees: Sequence[int] = DEGREES,
    windows: Sequence[float] = WINDOWS,
) -> np.ndarray:
    """Returns [degree, window] relative errors of fits; windows in multiples of the best rate."""
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
    """Returns for each level the largest rate at which a polynomial's error is within the level.

    Every measured rate is tried as the end of the window, from the first with more points than
    coefficients.  The result is the last one before the error first exceeds the level, and 0 if it
    always does.  If the error never exceeds it, the result is the end of the grid.
    """
    drop = minimum(rates, losses).gain
    found = np.zeros(len(levels))
    open_ = np.ones(len(levels), bool)
    for end in rates[degree + 1 :]:
        left = polynomial(rates, losses, degree, float(end), drop).error
        open_ &= left <= np.asarray(levels)
        if not open_.any():
            break
        found[open_] = end
    return found


# Second differences ----------------------------------------------------------------------------

POINTS = 9  # equally spaced values from which the noise is estimated


class SecondDerivative(NamedTuple):
    """A second derivative by central differences.

    Attributes:
        value: extrapolated from the best step and twice that.
        error: the estimated error from noise and from the step's length.
        step: the best step; inf where none gave a finite value.
    """

    value: float
    error: float
    step: float


def noise_level(values: Any) -> float:
    r"""Returns the standard deviation of the noise in equally spaced values of a smooth function.

    The k-th differences of a smooth function over close points vanish quickly, those of
    independent noise of deviation ε do not: their mean square is
    :math:`\binom{2k}{k} \varepsilon^2`.  Of the orders k at which the differences
    change sign and the next two agree within a factor of 4, the lowest is taken (after
    Moré and Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33, 2011).

    Args:
        values: [m] with m ≥ 5.

    Returns:
        the deviation; 0 if all values are equal; if no order passes, the smallest estimate, which
        is an approximate upper bound.

    Raises:
        ValueError: for fewer values, or values that are not finite.

    >>> rng = np.random.default_rng(0)
    >>> levels = [noise_level(np.linspace(0, 1, 9) + 1e-3 * rng.normal(size=9)) for _ in range(500)]
    >>> round(float(np.median(levels)) / 1e-3, 1)
    0.9
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 1 or table.size < 5 or not np.isfinite(table).all():
        raise error("values", "at least 5 finite numbers", values)
    levels, signs, share = [], [], 1.0
    for order in range(1, table.size):
        table = np.diff(table)
        share *= (4.0 * order - 2.0) / order  # (2k)! / (k!)²
        levels.append(float(np.sqrt(np.mean(table**2) / share)))
        signs.append(bool((table > 0.0).any() and (table < 0.0).any()))
    for k in range(len(levels) - 2):
        near = levels[k : k + 3]
        if signs[k] and max(near) <= 4.0 * min(near):
            return levels[k]
    return min(levels)


def second_derivative(
    steps: np.ndarray, minus: np.ndarray, middle: float, plus: np.ndarray, noise: float
) -> SecondDerivative:
    """Returns the best second derivative from values at several steps on both sides.

    For each step h the error is the noise of the extrapolated difference, 3.13 noise/h², plus a
    third of the disagreement of the differences over h and 2h (or 2h and 4h, scaled); the step with
    the smallest sum is used.

    Args:
        steps: [J] steps, each twice the one before.
        minus, plus: [J] values at -steps and steps.
        middle: value at 0.
        noise: standard deviation of one value's noise.

    >>> h = 1e-3 * 2.0 ** np.arange(8)
    >>> round(second_derivative(h, np.exp(-h), 1.0, np.exp(h), 1e-16).value, 9)
    1.0
    """
    with np.errstate(invalid="ignore"):
        found = (plus + minus - 2.0 * middle) / steps**2
        change = np.abs(np.diff(found))
        further = np.append(change[1:] / 4.0, 0.0)
        values = found[:-1] - np.diff(found) / 3.0
        # Of (4 D(h) - D(2h)) / 3: ±h 4/3, ±2h 1/12, the middle 2.5, in units of 1/h².
        share = np.sqrt(2.0 * (4.0 / 3.0) ** 2 + 2.0 / 12.0**2 + 2.5**2)
        errors = share * noise / steps[:-1] ** 2 + np.maximum(change, further) / 3.0
    finite = np.isfinite(errors)
    if not finite.any():
        return SecondDerivative(np.inf, np.inf, np.inf)
    best = int(np.argmin(np.where(finite, errors, np.inf)))
    return SecondDerivative(float(values[best]), float(errors[best]), float(steps[best]))
