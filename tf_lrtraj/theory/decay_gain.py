r"""Fits the gain of a decay to measured averages and trained decays of the same run.

The gain of a linear decay over n steps, :math:`\Gamma = L_{\text{raw}}(T - fn) - L`, and that of
the average of the last n iterates, :math:`\Gamma_a`, each follow

.. math:: \log\Gamma(n) = \alpha + p\,\ell + \tfrac12\kappa\ell^2, \qquad \ell = \log(n/n_0);

the gain of other shapes is :math:`\Gamma K/K_{\text{linear}}`, and momentum takes a part of the
gain of short decays (`share_with_momentum`).  At n equal to a fifth of all steps, where M was
measured, the two are linked by :math:`\Gamma = \Gamma_a + M(\lambda n)`.  The nine
parameters have Gaussian priors (`missing_share.Priors`); those of the levels are flat.  The
posterior is approximated by a Gaussian about its mode.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tf_lrtraj.theory.constant_curve import ConstantCurve
from tf_lrtraj.theory.decay_shapes import DecayShape, as_shape
from tf_lrtraj.theory.missing_share import Priors, missing_growth

__all__ = ["PARAMETERS", "Gain", "Known", "fit_gain"]

# Relative error added to a known loss that ended at another step, per log step.
_AVERAGE_DRIFT, _DECAY_DRIFT = 0.05, 0.02
_LINKED = 0.2  # n/T at which averages and decays are linked
_LINK = 0.01  # relative error of the link
_MOMENTUM_ERROR = 0.1  # relative error of the gain that momentum takes: the spectrum is not known
_FLAT = 3.0  # prior standard deviation of a level (a log gain) if losses are known
_ROUNDS = 30
# Positions of the parameters: α, p, κ of decays; the same of averages; s; M; log φ.
_DECAY, _AVERAGE = slice(0, 3), slice(3, 6)
_POWER, _SUMMED, _MISSING, _SLOWNESS, PARAMETERS = 1, 6, 7, 8, 9


@dataclasses.dataclass(frozen=True)
class Known:
    """Measured averages and trained decays, as arrays over both.

    Attributes:
        lengths, ends: [J] lengths and last steps.
        losses: [J] measured losses.
        errors: [J] standard errors of the losses.
        is_average: [J] True for averages of equal weights, False for decays.
        shapes: [J] shapes of the decays; linear for averages.
    """

    lengths: np.ndarray
    ends: np.ndarray
    losses: np.ndarray
    errors: np.ndarray
    is_average: np.ndarray
    shapes: list[DecayShape]

    def part(self, chosen: np.ndarray) -> Known:
        """Returns the entries at some positions."""
        return Known(
            self.lengths[chosen],
            self.ends[chosen],
            self.losses[chosen],
            self.errors[chosen],
            self.is_average[chosen],
            [self.shapes[i] for i in chosen],
        )


@dataclasses.dataclass(frozen=True)
class Held:
    r"""Residuals of known losses, which correct the curve at their steps.

    With errors :math:`\delta \sim N(0, \tau^2)` of the curve, the residuals satisfy
    :math:`r(\theta) + W\delta = \varepsilon`.  A residual is therefore explained in part by the
    error of the curve.

    Attributes:
        rows: [J, K] W, derivatives of the residuals with respect to the curve.
        errors: [J] standard deviations of ε.
        noise: τ, the standard deviation of a loss of the curve.
        precision: [J, J] inverse covariance of the residuals.
        residuals: [J] residuals at the mode.
        slopes: [9, J] derivatives of the residuals with respect to the parameters.
    """

    rows: np.ndarray
    errors: np.ndarray
    noise: float
    precision: np.ndarray
    residuals: np.ndarray
    slopes: np.ndarray

    def corrections(self, rows: np.ndarray) -> np.ndarray:
        """Returns [Q] mean corrections of the curve at points with derivatives [Q, K]."""
        found: np.ndarray = -self._pull(rows) @ self.residuals
        return found

    def drawn_corrections(
        self, rows: np.ndarray, away: np.ndarray, noise: np.ndarray, normals: np.ndarray
    ) -> np.ndarray:
        """Returns [N, Q] corrections to add to drawn noise of the curve.

        Args:
            rows: [Q, K] derivatives with respect to the losses of the curve.
            away: [N, 9] drawn parameters minus the mode.
            noise: [N, K] drawn noise of the curve.
            normals: [N, J] standard normal numbers.
        """
        residuals = self.residuals + away @ self.slopes + noise @ self.rows.T
        found: np.ndarray = (normals * self.errors - residuals) @ self._pull(rows).T
        return found

    def _pull(self, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.noise**2 * rows @ self.rows.T @ self.precision
        return found


@dataclasses.dataclass(frozen=True)
class Gain:
    """Posterior of the gains of decays and averages that end at one step.

    Attributes:
        mean: [9] parameters: α, p, κ of decays; the same of averages; s; m; log φ.
        root: [9, 9] a square root of their covariance.
        length, reach: n₀, and λn at which m applies.
        learning_rate: learning rate of the run.
        priors: the priors of the parameters.
        momentum: β of the run.
        held: residuals of the known losses; None before the fit.
    """

    mean: np.ndarray
    root: np.ndarray
    length: float
    reach: float
    learning_rate: float
    priors: Priors
    momentum: float = 0.0
    held: Held | None = None

    def draws(self, normals: np.ndarray) -> np.ndarray:
        """Returns [N, 9] drawn parameters, given [N, 9] standard normal numbers."""
        return self.mean + normals @ self.root.T

    def linear(self, parameters: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Computes gains of linear decays: parameters [..., 9] and lengths [J] → [..., J]."""
        law = self._law(parameters[..., _DECAY], lengths)
        return law * share_with_momentum(lengths, self.momentum)

    def scatter(self, lengths: np.ndarray) -> np.ndarray:
        """Returns [J] relative errors of the gains of decays of lengths [J] about the law."""
        lost = 1.0 - share_with_momentum(lengths, self.momentum)
        return np.hypot(self.priors.law, _MOMENTUM_ERROR * lost)

    def averages(self, parameters: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Computes gains of averages: parameters [..., 9] and lengths [J] → [..., J]."""
        return self._law(parameters[..., _AVERAGE], lengths)

    def missing(self, parameters: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Computes M: parameters [..., 9] and lengths [J] → [..., J]."""
        size = parameters[..., _MISSING, None]
        if self.priors.in_shares:
            in_loss: np.ndarray = size * self.linear(parameters, lengths)
            return in_loss
        reach = self.learning_rate * lengths
        slowness = np.exp(parameters[..., _SLOWNESS, None])
        growth = missing_growth(slowness * reach) / missing_growth(slowness * self.reach)
        found: np.ndarray = size * growth
        return found

    def _law(self, law: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        at = np.log(lengths / self.length)
        alpha, power, bend = (law[..., i, None] for i in range(3))
        found: np.ndarray = np.exp(alpha + power * at + 0.5 * bend * at**2)
        return found

    def shape_numbers(
        self, parameters: np.ndarray, shape: DecayShape
    ) -> tuple[np.ndarray, np.ndarray]:
        """Computes f and K/K_linear of a shape: parameters [..., 9] → two arrays [...]."""
        power, summed = self.priors.power[0], self.priors.summed_power[0]
        away = parameters[..., [_POWER, _SUMMED]] - np.array([power, summed])
        own = shape.linearised(power, summed)
        line = as_shape("linear", 1).linearised(power, summed)
        f = own[0, 0] + away @ own[0, 1:]
        ratio = np.exp(own[1, 0] - line[1, 0] + away @ (own[1, 1:] - line[1, 1:]))
        return f, ratio


def share_with_momentum(lengths: np.ndarray, momentum: float) -> np.ndarray:
    r"""Returns the gain of linear decays over `lengths` steps with momentum, relative to without.

    The rate scales what is added to the velocity, which forgets in β/(1 - β) steps, so a short
    decay ends with the noise of higher rates.  The form approximates exact moments of the quadratic
    model with :math:`\lambda a/(1-\beta)` log-uniform up to 1, at the same
    :math:`\lambda/(1-\beta)`: to within 0.025 for β from 0.8 to 0.95 and decays of at least
    5 β/(1 - β) steps.

    >>> share_with_momentum(np.array([45.0, 180.0]), 0.9).round(2)
    array([0.47, 0.88])
    """
    lags = momentum / (1.0 - momentum) / lengths
    found: np.ndarray = 1.0 / (1.0 + 2.5 * lags + 81.0 * lags**3)
    return found


def fit_gain(
    curve: ConstantCurve,
    known: Known,
    end: float,
    learning_rate: float,
    priors: Priors,
    momentum: float = 0.0,
) -> Gain:
    """Fits the parameters for decays that end at one step.

    Args:
        curve: loss curve of the run.
        known: measured averages and decays; those that ended at other steps have less weight.
        end: step at which the decays of interest end.
        learning_rate: λ, the constant rate.
        priors: priors of the parameters.
        momentum: β of the run.
    """
    level, width = np.log(0.05 * abs(curve.losses[-1]) + 1e-12), 1.0
    if priors.gain is not None:
        level, width = priors.gain
        level += priors.rate_power * np.log(learning_rate / priors.learning_rate)
    pairs = [
        *((level, _FLAT if known.lengths.size else width), priors.power, priors.bend),
        *((level, _FLAT), priors.average_power, priors.average_bend),
        *(priors.summed_power, priors.missing, priors.slowness),
    ]
    mean, spread = np.array(pairs).T
    gain = Gain(
        mean,
        np.diag(spread),
        priors.length or _LINKED * end,
        priors.reach or learning_rate * _LINKED * end,
        learning_rate,
        priors,
        momentum,
    )
    return _posterior(gain, _Residuals(curve, known, end, gain), spread)


class _Residuals:
    """Whitened residuals of known losses, and the residual of the link."""

    def __init__(self, curve: ConstantCurve, known: Known, end: float, gain: Gain) -> None:
        self.known, self.gain = known, gain
        shapes = {id(shape): shape for shape in known.shapes}
        self._groups = [
            (shape, np.array([s is shape for s in known.shapes])) for shape in shapes.values()
        ]
        self._f = np.zeros(len(known.shapes))
        for shape, its in self._groups:
            self._f[its] = gain.shape_numbers(gain.mean, shape)[0]
        levels = curve.levels(known.ends - self._f * known.lengths)
        self._slope = levels.slopes * known.lengths
        self.seen = levels.losses - known.losses
        drift = np.where(known.is_average, _AVERAGE_DRIFT, _DECAY_DRIFT)
        drift *= np.abs(np.log(known.ends / end))
        law = np.where(known.is_average, 0.0, gain.scatter(known.lengths))
        scale = np.maximum(self.seen, 0.0)
        self.rows, self.noise = levels.rows, curve.noise
        errors = known.errors**2 + (drift**2 + law**2) * scale**2
        least = np.maximum(1e-9 * np.abs(known.losses), 1e-3 * curve.noise) + 1e-12
        self.errors = np.sqrt(errors + least**2)
        covariance = np.diag(self.errors**2) + curve.noise**2 * self.rows @ self.rows.T
        self.whitening = np.linalg.inv(np.linalg.cholesky(covariance))
        self._linked = np.array([_LINKED * end])

    def __call__(self, parameters: np.ndarray) -> np.ndarray:
        """Returns [..., J + 1] independent residuals at parameters [..., 9]."""
        decay = self.gain.linear(parameters, self._linked)
        missing = self.gain.missing(parameters, self._linked)
        link = (self.gain.averages(parameters, self._linked) + missing) / decay - 1.0
        plain = self.plain(parameters) @ self.whitening.T
        return np.concatenate([plain, link / _LINK], axis=-1)

    def plain(self, parameters: np.ndarray) -> np.ndarray:
        """Returns [..., J] residuals in units of loss, before whitening."""
        lengths, gain = self.known.lengths, self.gain
        predicted = np.where(
            self.known.is_average,
            gain.averages(parameters, lengths),
            gain.linear(parameters, lengths),
        )
        moved = np.zeros_like(predicted)
        for shape, its in self._groups:
            f, ratio = gain.shape_numbers(parameters, shape)
            predicted[..., its] *= ratio[..., None]
            moved[..., its] = f[..., None] - self._f[its]
        found: np.ndarray = self.seen - self._slope * moved - predicted
        return found


def _posterior(gain: Gain, residuals: _Residuals, spread: np.ndarray) -> Gain:
    """Finds the mode by damped Gauss-Newton steps, and the Gaussian about it."""
    seen = residuals.seen[residuals.seen > 0.0]
    prior = gain.mean.copy()
    at = prior.copy()
    if seen.size:
        at[0] = at[3] = np.log(np.median(seen))
    weights = 1.0 / spread

    def cost(points: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # long steps may overflow
            total = np.sum(residuals(points) ** 2, axis=-1)
        total += np.sum(((points - prior) * weights) ** 2, axis=-1)
        found: np.ndarray = np.where(np.isnan(total), np.inf, total)
        return found

    size = 1e-5 * np.maximum(spread, 1e-3)
    for _ in range(_ROUNDS):
        points = at + np.vstack([np.zeros(at.size), np.diag(size)])
        found = residuals(points)
        slopes = (found[1:] - found[0]) / size[:, None]
        inverse = np.linalg.inv(slopes @ slopes.T + np.diag(weights**2))
        step = -inverse @ (slopes @ found[0] + (at - prior) * weights**2)
        tried = at + step * 0.5 ** np.arange(12)[:, None]
        costs = cost(np.vstack([at, tried]))
        best = int(np.argmin(costs))
        if best == 0:
            break
        at = tried[best - 1]
        if np.abs(step * weights).max() < 1e-5:
            break
    root = np.linalg.cholesky(0.5 * (inverse + inverse.T))
    plain = residuals.plain(at + np.vstack([np.zeros(at.size), np.diag(size)]))
    held = Held(
        rows=residuals.rows,
        errors=residuals.errors,
        noise=residuals.noise,
        precision=residuals.whitening.T @ residuals.whitening,
        residuals=plain[0],
        slopes=(plain[1:] - plain[0]) / size[:, None],
    )
    return dataclasses.replace(gain, mean=at, root=root, held=held)
