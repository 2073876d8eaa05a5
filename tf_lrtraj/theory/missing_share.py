r"""The part of a decay's gain that an average of equal weights misses, and priors for it.

.. math:: M = L_{\text{average}} - L_{\text{decay}}

is the difference between the loss of the average of the last n iterates and that of a linear decay
over n steps.  M is never positive for a quadratic loss of fixed curvature, but it is positive for
networks.  To next order, with slow directions that the noise holds back (docs/theory/decays.md),

.. math:: M = m\,\frac{h(\varphi\lambda n)}{h(\varphi x_0)}, \qquad h(x) = 1 - D(x/2)^2,
   \qquad D(z) = \int_0^1 e^{-zx^2}\,dx .
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import special

from tf_lrtraj import values

__all__ = ["ANY_RUN", "LANGUAGE_MODELS", "Priors", "missing_growth"]


def missing_growth(reach: Any) -> Any:
    """Computes h(x) = 1 - D(x/2)², which is x/3 for small x and approaches 1.

    >>> round(float(missing_growth(0.03)), 4), round(float(missing_growth(1e6)), 4)
    (0.0099, 1.0)
    """
    root = np.sqrt(0.5 * np.maximum(np.asarray(reach, np.float64), 1e-12))
    return 1.0 - (0.5 * math.sqrt(math.pi) * special.erf(root) / root) ** 2


_MEAN_AND_WIDTH = values.sequence_of(
    values.number(), "a pair of numbers, a mean and a standard deviation above 0", 2, 2
)


@dataclasses.dataclass(frozen=True)
class Priors:
    """Prior distributions of the parameters, before averages and decays of a run are known.

    Each pair holds a mean and a standard deviation.

    Attributes:
        power: p, the slope of the log gain of a decay against log length at `length`.
        bend: change of that slope per unit of log length.
        average_power, average_bend: slope and bend of the gain of averages.
        summed_power: s of the shape numbers (`decay_shapes`).
        missing: M at λn = `reach`, in units of loss; with `in_shares`, M divided by the gain of a
            decay of a fifth of all steps.
        in_shares: whether `missing` is a share of the gain; `slowness` is then not used.
        slowness: mean and standard deviation of log φ, per unit of λn.
        length: length of a decay, in steps, at which `power` applies; None for a fifth of all
            steps.
        reach: λn at which `missing` applies; None for that of a fifth of all steps.
        gain: log gain of a linear decay of `length` at `learning_rate`.  None if unknown; it is
            then a twentieth of the loss, within a factor of e.
        learning_rate: learning rate at which `gain` applies.
        rate_power: q, the power of the rate with which the gain grows.
        law: relative error of a gain that is transferred from one decay to another.

    Raises:
        ValueError: if a value is not such a pair or is out of range.

    >>> ANY_RUN.missing
    (0.15, 0.08)
    """

    power: tuple[float, float]
    bend: tuple[float, float]
    average_power: tuple[float, float]
    average_bend: tuple[float, float]
    summed_power: tuple[float, float]
    missing: tuple[float, float]
    in_shares: bool
    slowness: tuple[float, float]
    length: float | None = None
    reach: float | None = None
    gain: tuple[float, float] | None = None
    learning_rate: float = 1e-3
    rate_power: float = 0.325
    law: float = 0.01

    def __post_init__(self) -> None:
        averages = ("average_power", "average_bend")
        for name in ("power", "bend", *averages, "summed_power", "missing", "slowness", "gain"):
            pair = getattr(self, name)
            if pair is None and name == "gain":
                continue
            mean, width = _MEAN_AND_WIDTH.check(name, pair)
            values.number(above=0).check(f"{name}[1]", width)
            object.__setattr__(self, name, (mean, width))
        for name in ("length", "reach"):
            object.__setattr__(
                self, name, values.number(above=0).or_none().check(name, getattr(self, name))
            )
        for name in ("learning_rate", "law"):
            values.number(above=0).check(name, getattr(self, name))


# Language models trained with AdamW; computed by `python benchmarks/decay_forecasts.py FOLDER`.
LANGUAGE_MODELS = Priors(
    power=(0.162, 0.01),
    bend=(-0.02, 0.015),
    average_power=(0.15, 0.02),
    average_bend=(0.0, 0.015),
    summed_power=(0.5, 0.12),
    missing=(0.019, 0.0038),
    in_shares=False,
    slowness=(math.log(0.47), 0.5),
    length=5000.0,
    reach=2.5,
    gain=(math.log(0.155), 0.15),
)
# Any other run: shares of the gain, which do not depend on the scales of loss and rate.
ANY_RUN = Priors(
    power=(0.16, 0.06),
    bend=(-0.02, 0.03),
    average_power=(0.15, 0.06),
    average_bend=(0.0, 0.03),
    summed_power=(0.66, 0.1),
    missing=(0.15, 0.08),
    in_shares=True,
    slowness=(math.log(0.47), 1.0),
)
