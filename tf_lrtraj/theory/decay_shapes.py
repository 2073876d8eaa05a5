r"""Shapes of decays, and the two numbers of a shape that determine its loss.

Let :math:`l(x)` be the learning rate, as a share of the constant rate, when the share x of the
decay remains, and :math:`I(x) = \int_0^x l^s`.  The shape enters through

.. math:: f = 1 - I(1), \qquad K = \int I(x)^p\,dl(x).

The loss at the end of a decay of n steps is that after :math:`(1 - f) n` steps at the constant
rate, less K times the gain of an immediate stop (docs/theory/decays.md).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from tf_lrtraj import rates, values

__all__ = ["SHAPES", "DecayShape", "as_shape"]

SHAPES = ("linear", "cosine", "one_minus_sqrt")
_GRID = 400
_TINY = 1e-12
_STEP = 1e-3  # step of finite differences in p and s


@dataclasses.dataclass(frozen=True, eq=False)
class DecayShape:
    """The learning rate as a function of the remaining share of the decay.

    Attributes:
        name: name of the shape for tables.
        remaining: [G] remaining shares of the decay, from 0 to 1.
        left: [G] learning rates at `remaining`, as shares of the constant rate.
    """

    name: str
    remaining: np.ndarray
    left: np.ndarray

    def numbers(self, power: float, summed_power: float) -> tuple[float, float]:
        """Computes (f, K) at p = `power` and s = `summed_power`.

        >>> f, k = as_shape("linear", 100).numbers(0.163, 0.66)
        >>> bool(abs(f - (1 - 1 / 1.66)) < 1e-4), bool(abs(k - 1.66**-0.163 / 1.27058) < 1e-4)
        (True, True)
        """
        height = np.maximum(self.left, 0.0) ** summed_power
        widths = np.diff(self.remaining)
        summed = np.concatenate([[0.0], np.cumsum(0.5 * (height[1:] + height[:-1]) * widths)])
        inside = np.maximum(summed, _TINY) ** power
        levels = np.append(self.left, 1.0)  # a decay may begin with a jump from the full rate
        inside = np.append(inside, inside[-1])
        gain = float(np.sum(np.diff(levels) * 0.5 * (inside[1:] + inside[:-1])))
        return 1.0 - float(summed[-1]), gain

    def linearised(self, power: float, summed_power: float) -> np.ndarray:
        """Returns [2, 3]: f and log K, each with its derivatives with respect to p and s."""
        return _linearised(self, power, summed_power)


@functools.lru_cache(maxsize=256)
def _linearised(shape: DecayShape, power: float, summed_power: float) -> np.ndarray:
    def at(p: float, s: float) -> np.ndarray:
        f, gain = shape.numbers(p, s)
        return np.array([f, np.log(max(gain, _TINY))])

    by_power = at(power + _STEP, summed_power) - at(power - _STEP, summed_power)
    by_sum = at(power, summed_power + _STEP) - at(power, summed_power - _STEP)
    slopes = np.stack([by_power, by_sum]) / (2.0 * _STEP)
    return np.vstack([at(power, summed_power), slopes]).T


def _named(name: str, remaining: np.ndarray) -> np.ndarray:
    if name == "linear":
        return remaining
    if name == "cosine":
        return np.sin(0.5 * np.pi * remaining) ** 2
    return 1.0 - np.sqrt(1.0 - remaining)


@functools.lru_cache(maxsize=len(SHAPES))
def _named_shape(name: str) -> DecayShape:
    # The grid is fine at both ends: 1-√ is steep at its start, and small rates matter at the end.
    grid = 0.5 * (1.0 - np.cos(np.pi * np.linspace(0.0, 1.0, _GRID + 1)))
    return DecayShape(name, grid, _named(name, grid))


def as_shape(shape: Any, length: int) -> DecayShape:
    """Returns the shape of a name or a rate.

    Args:
        shape: one of `SHAPES`, or a `tf_lrtraj.rates.Rate` whose values at steps 0 to `length` - 1
            are shares of the constant rate, in [0, 1].
        length: n, the number of steps of the decay.

    Raises:
        ValueError: if the name is unknown, or the rate leaves [0, 1] or stays at 1.

    >>> float(as_shape(rates.Linear(start=1.0, steps=100), 100).left[-1])
    1.0
    """
    if isinstance(shape, rates.Rate):
        places = np.unique(np.linspace(0, length - 1, min(length, _GRID)).round().astype(np.int64))
        left = np.asarray(shape(places), np.float64)
        if np.any(left < 0.0) or np.any(left > 1.0 + 1e-9):
            allowed = "a rate with values in [0, 1], shares of the constant rate"
            raise values.error("shape", allowed, shape)
        if np.all(left >= 1.0):
            raise values.error("shape", "a rate that falls below 1 within the decay", shape)
        # The rate of a step applies until the next step, and the last rate until the end.
        remaining = np.append(1.0 - places / length, 0.0)[::-1]
        return DecayShape(type(shape).__name__, remaining, np.append(left, left[-1])[::-1])
    name = values.Rule(
        f"one of {list(SHAPES)}, or a rate of tf_lrtraj.rates", _read_name, SHAPES
    ).check("shape", shape)
    return _named_shape(name)


def _read_name(given: Any) -> str:
    if not isinstance(given, str) or given not in SHAPES:
        raise ValueError
    return given
