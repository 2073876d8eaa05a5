r"""`what_if`: predicts the loss of a learning-rate decay from a run at a constant rate.

A decay of n steps that ends at step T reaches

.. math:: L = L_{\text{raw}}(T - fn) - \Gamma,

the loss of the run at step T - fn minus the gain of the decay.  The gain is estimated from
averages of the run's iterates, which keep most of it, from the share that averages miss, and from
trained decays of the run.  docs/theory/decays.md derives it and compares it with trained decays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_lrtraj import seeds, values
from tf_lrtraj.theory import checks
from tf_lrtraj.theory.constant_curve import ConstantCurve
from tf_lrtraj.theory.decay_checks import (
    Averages,
    Decay,
    constant_rate,
    curve_findings,
    read_averages,
    read_cooldowns,
    read_decays,
)
from tf_lrtraj.theory.decay_gain import PARAMETERS, Gain, Known, fit_gain
from tf_lrtraj.theory.decay_shapes import as_shape
from tf_lrtraj.theory.diagnosis import Finding
from tf_lrtraj.theory.missing_share import ANY_RUN, LANGUAGE_MODELS, Priors

__all__ = ["DecayAnswer", "DecayChoice", "best_decays", "what_if"]

_DRAWS = 1000
_SEED = 0
_WIDE, _OUTSIDE = 0.4, 0.6  # n/T above which bands are doubled, and above which none is given
_NEAR = 0.5  # largest distance in log steps of an average from the end of a decay
_MOST_AVERAGES = 40
_ERROR = 0.01  # default error of a measured loss relative to its gain, as between reruns
# Runs to which the constants of language models apply: rates of AdamW, and gains within so many
# standard deviations of theirs.
_MODEL_RATES, _MODEL_GAINS = (1e-5, 2e-2), 3.0
_NOISY = 0.05  # error of the raw loss, relative to the gain
_WARM_UP = 1.0 / 3.0  # fall of the raw loss in the last fifth of the run, relative to the gain


@dataclasses.dataclass(frozen=True)
class DecayAnswer:
    """Prediction for one decay.

    Attributes:
        shape: name of the shape.
        length, end: number of steps of the decay, and the step at which it ends.
        loss: predicted loss at the end; NaN if no number is given (flag "outside").
        low, high: the band that contains the loss with probability `level`.
        half_low, half_high: the band of probability 1/2.
        gain: Γ, the difference between `raw` and `loss`.
        raw: the smoothed loss of the run at step T - fn.
        average: predicted loss of the average of equal weights of the last `length` iterates.
        share: share of the gain that this average keeps.
        flag: "ok"; "extrapolated" if the decay ends beyond the curve; "outside" if it is longer
            than 0.4 of all steps (bands are doubled; above 0.6 no number is given by default).
        diagnosis: findings that contradict the assumptions; empty if there are none.
        draws: [1000] drawn losses of the bands, from the same random numbers for every decay.
    """

    shape: str
    length: int
    end: int
    loss: float
    low: float
    high: float
    half_low: float
    half_high: float
    gain: float
    raw: float
    average: float
    share: float
    flag: str
    diagnosis: tuple[Finding, ...]
    draws: np.ndarray = dataclasses.field(repr=False, compare=False)


def what_if(
    steps: Any,
    losses: Any,
    learning_rate: Any,
    decays: Sequence[Any],
    averages: Sequence[Any] = (),
    cooldowns: Sequence[Any] = (),
    level: float = 0.9,
    *,
    priors: Priors | None = None,
    outside: bool = False,
    momentum: float = 0.0,
) -> list[DecayAnswer]:
    """Predicts the losses at the ends of decays from a run at a constant rate.

    Args:
        steps: [K] increasing steps of the run's curve, at least 8 above 0.
        losses: [K] losses of the iterates at `steps`, all on the same data.
        learning_rate: the constant rate, or [K] rates at `steps`, constant after a warm-up.
        decays: a list of (shape, length, end).  A shape is "linear", "cosine", "one_minus_sqrt" or
            a `tf_lrtraj.rates.Rate` with values in [0, 1], shares of the constant rate, at steps
            0 to `length` - 1.  A decay that ends at the curve's last step branches off in the
            past; one that ends `length` steps later begins now.
        averages: a list of (length, step, loss) or (length, step, loss, error): the loss of the
            mean of the last `length` iterates at `step`, on the same data.
        cooldowns: a list of (shape, length, end, loss, learning_rate), trained decays of this run.
            Decays from another rate are not used; a finding reports them.
        level: probability of the band.
        priors: `missing_share.LANGUAGE_MODELS`, `ANY_RUN` or other priors.  The default is
            `LANGUAGE_MODELS` if the rate is one of AdamW and known averages and decays gain about
            as many nats as those of language models would, and `ANY_RUN` otherwise.
        outside: whether to predict decays longer than 0.6 of all steps too.
        momentum: β of Keras' SGD, v ← βv - λg, which takes a part of the gain of short decays.  0
            where the rate multiplies the velocity itself, as in Adam and in PyTorch's SGD.

    Returns:
        One `DecayAnswer` per decay, in order.

    Raises:
        ValueError: if steps do not increase, a value is not finite, the rate is not constant, a
            shape is unknown, a length or end lies beyond the run, or `momentum` is outside [0, 1).

    >>> steps = np.arange(200, 20_001, 200)
    >>> losses = 3.0 + 8.0 * steps**-0.4
    >>> answer = what_if(steps, losses, 1e-3, [("linear", 4000, 20_000)], [(4000, 20_000, 3.03)])[0]
    >>> answer.low < answer.loss < 3.03, answer.flag
    (True, 'ok')
    """
    level = values.number(above=0.0, below=1.0).check("level", level)
    beta = checks.momentum(momentum, "keras")
    curve = ConstantCurve(steps, losses)
    rate = constant_rate(steps, learning_rate)
    asked = read_decays(decays, curve)
    measured = read_averages(averages, curve)
    trained, findings = read_cooldowns(cooldowns, curve, rate)
    if not asked:
        return []
    findings = [*curve_findings(curve), *measured.findings, *findings]
    known = _known(curve, measured, trained)
    chosen = _priors(curve, known, rate) if priors is None else priors
    if not known.lengths.size:
        assumed = "a twentieth of the loss, within a factor of e"
        if chosen.gain is not None:
            assumed = "that of language models trained with AdamW"
        findings.append(
            Finding(
                "gain-unknown",
                "Neither averages nor trained decays of this run are known, so the gain is assumed "
                f"to be {assumed}. Measure the loss of one average.",
            )
        )
    random = seeds.generator("decay_draws", _SEED)
    normals = random.standard_normal((_DRAWS, PARAMETERS))
    noise = random.standard_normal((_DRAWS, curve.steps.size)) * curve.noise
    bend = random.standard_normal(_DRAWS)
    laws = random.standard_normal((len(asked), _DRAWS))
    known_normals = random.standard_normal((_DRAWS, known.lengths.size))
    answers: list[DecayAnswer | None] = [None] * len(asked)
    for end in sorted({decay.end for decay in asked}):
        its = [i for i, decay in enumerate(asked) if decay.end == end]
        near = _near(known, end)
        gain = fit_gain(curve, known.part(near), float(end), rate, chosen, beta)
        drawn = _Draws(gain.draws(normals), noise, known_normals[:, near], bend)
        forecast = _Forecast(curve, gain, drawn, level, outside)
        for i, answer in zip(its, forecast([asked[i] for i in its], laws[its]), strict=True):
            answers[i] = dataclasses.replace(answer, diagnosis=(*findings, *answer.diagnosis))
    return [answer for answer in answers if answer is not None]


def _known(curve: ConstantCurve, averages: Averages, cooldowns: list[tuple[Decay, float]]) -> Known:
    """Joins averages and trained decays."""
    line = as_shape("linear", 1)
    count, more = averages.lengths.size, len(cooldowns)
    losses = np.append(averages.losses, [loss for _, loss in cooldowns])
    ends = np.append(averages.ends, [decay.end for decay, _ in cooldowns])
    errors = np.full(count + more, np.nan)
    errors[:count] = averages.errors
    raw = curve.levels(ends).losses
    default = _ERROR * np.abs(raw - losses)
    return Known(
        lengths=np.append(averages.lengths, [decay.length for decay, _ in cooldowns]),
        ends=ends,
        losses=losses,
        errors=np.where(np.isnan(errors), default, errors),
        is_average=np.arange(count + more) < count,
        shapes=[line] * count + [decay.shape for decay, _ in cooldowns],
    )


def _near(known: Known, end: float) -> np.ndarray:
    """Returns the positions of all decays and of the averages nearest to `end`."""
    away = np.abs(np.log(known.ends / end))
    usable = known.is_average & (known.lengths <= _WIDE * known.ends)
    if np.any(usable):  # for an end beyond the curve, the averages at the end of the curve
        usable &= away <= max(_NEAR, float(away[usable].min()) + 0.1)
    order = np.argsort(np.where(usable, away, np.inf), kind="stable")
    chosen = order[: min(int(usable.sum()), _MOST_AVERAGES)]
    return np.concatenate([chosen, np.flatnonzero(~known.is_average)])


def _priors(curve: ConstantCurve, known: Known, rate: float) -> Priors:
    """Returns the priors of language models for runs like theirs, and `ANY_RUN` for others.

    The missing loss of language models is known in nats, so a run is like theirs only if its
    averages and decays gain as many nats.
    """
    models = LANGUAGE_MODELS
    like = _MODEL_RATES[0] <= rate <= _MODEL_RATES[1]
    if like and known.lengths.size and models.gain is not None and models.length is not None:
        levels = curve.levels(known.ends)
        gains = levels.losses - known.losses
        theirs = models.gain[0] + models.rate_power * np.log(rate / models.learning_rate)
        theirs = theirs + models.power[0] * np.log(known.lengths / models.length)
        kept = 1.0 - models.missing[0] * np.exp(-models.gain[0])
        theirs = theirs + np.where(known.is_average, np.log(kept), 0.0)
        spread = np.hypot(models.gain[1], levels.errors / np.exp(theirs))
        off = (np.log(np.maximum(gains, 1e-12)) - theirs) / spread
        like = bool(abs(np.median(off)) <= _MODEL_GAINS)
    return models if like else ANY_RUN


@dataclasses.dataclass(frozen=True)
class _Draws:
    """Random draws.

    Attributes:
        parameters: [N, 9] parameters.
        noise: [N, K] noise of the curve.
        known: [N, J] standard normal numbers for known losses.
        bend: [N] standard normal numbers for the continuation of the curve.
    """

    parameters: np.ndarray
    noise: np.ndarray
    known: np.ndarray
    bend: np.ndarray


class _Forecast:
    """Predicts decays that end at one step."""

    def __init__(
        self, curve: ConstantCurve, gain: Gain, draws: _Draws, level: float, outside: bool
    ) -> None:
        self.curve, self.gain, self.draws = curve, gain, draws
        self.level, self.outside = level, outside

    def __call__(self, decays: list[Decay], laws: np.ndarray) -> list[DecayAnswer]:
        gain, mean, draws = self.gain, self.gain.mean, self.draws
        lengths = np.array([decay.length for decay in decays], np.float64)
        ends = np.array([decay.end for decay in decays], np.float64)
        numbers = [gain.shape_numbers(mean, decay.shape) for decay in decays]
        drawn = [gain.shape_numbers(draws.parameters, decay.shape) for decay in decays]
        f, ratio = np.array(numbers).T
        levels = self.curve.levels(ends - f * lengths)
        line, _ = gain.shape_numbers(mean, as_shape("linear", 1))
        line_raw = self.curve.levels(ends - line * lengths)
        gains = gain.linear(mean, lengths) * ratio
        smooth, average_raw = levels.losses, line_raw.losses
        raw = smooth + draws.noise @ levels.rows.T + draws.bend[:, None] * levels.continuation
        if gain.held is not None:
            smooth = smooth + gain.held.corrections(levels.rows)
            average_raw = average_raw + gain.held.corrections(line_raw.rows)
            raw += gain.held.drawn_corrections(
                levels.rows, draws.parameters - mean, draws.noise, draws.known
            )
        averages = average_raw - gain.averages(mean, lengths)
        moved = np.stack([found[0] for found in drawn], axis=1) - f
        raw -= levels.slopes * lengths * moved
        drawn_gains = gain.linear(draws.parameters, lengths)
        drawn_gains *= np.stack([found[1] for found in drawn], axis=1)
        drawn_gains *= 1.0 + gain.scatter(lengths) * laws.T
        drawn_losses = raw - drawn_gains
        fall = self.curve.levels(0.8 * ends).losses - self.curve.levels(ends).losses
        return [
            self._answer(
                decay,
                loss=float(smooth[i] - gains[i]),
                draws=drawn_losses[:, i],
                gain=float(gains[i]),
                raw=float(smooth[i]),
                average=float(averages[i]),
                error=float(levels.errors[i]),
                fall=float(fall[i]),
            )
            for i, decay in enumerate(decays)
        ]

    def _answer(
        self,
        decay: Decay,
        loss: float,
        draws: np.ndarray,
        gain: float,
        raw: float,
        average: float,
        error: float,
        fall: float,
    ) -> DecayAnswer:
        part = decay.length / decay.end
        flag = "extrapolated" if decay.end > self.curve.last + self.curve.spacing else "ok"
        share = (raw - average) / gain if gain > 0.0 else float("nan")
        if part > _WIDE:
            flag = "outside"
            draws = loss + 2.0 * (draws - loss)
        findings = self._findings(gain, error, fall, share)
        if part > _OUTSIDE and not self.outside:
            loss = gain = average = share = float("nan")
            draws = np.full_like(draws, np.nan)
        tails = [0.5 - 0.5 * self.level, 0.5 + 0.5 * self.level, 0.25, 0.75]
        low, high, half_low, half_high = np.quantile(draws, tails)
        return DecayAnswer(
            shape=decay.shape.name,
            length=decay.length,
            end=decay.end,
            loss=loss,
            low=float(low),
            high=float(high),
            half_low=float(half_low),
            half_high=float(half_high),
            gain=gain,
            raw=raw,
            average=average,
            share=share,
            flag=flag,
            diagnosis=tuple(findings),
            draws=draws,
        )

    def _findings(self, gain: float, error: float, fall: float, share: float) -> list[Finding]:
        findings = []
        if fall > _WARM_UP * gain:
            findings.append(
                Finding(
                    "warming-up",
                    f"The raw loss falls by {fall:.3g} over the last fifth of the steps, more than "
                    f"a third of the decay's gain ({gain:.3g}). At this stage, averages and decays "
                    "do not follow these laws.",
                )
            )
        if error > _NOISY * gain:
            findings.append(
                Finding(
                    "raw-noisy",
                    f"The error of the smoothed raw loss is {error:.2g}, more than a twentieth of "
                    f"the gain ({gain:.3g}). Log the loss more often, or on more data.",
                )
            )
        if share > 1.0:
            findings.append(
                Finding(
                    "share-above-one",
                    f"The average of equal weights keeps {share:.1%} of the decay's gain, as for a "
                    "quadratic loss of fixed curvature; for networks it keeps 70 to 95 %. Use the "
                    "average: a decay gains nothing more.",
                )
            )
        return findings


@dataclasses.dataclass(frozen=True)
class DecayChoice:
    """The best of several decays, and those that do not differ significantly from it.

    Attributes:
        best: the answer with the lowest predicted loss.
        alike: positions of the answers whose difference from the best has a band that contains 0,
            including the best one.
    """

    best: DecayAnswer
    alike: tuple[int, ...]


def best_decays(answers: Sequence[DecayAnswer], level: float = 0.9) -> DecayChoice | None:
    """Finds the decay with the lowest predicted loss; None if no answer has a number.

    Args:
        answers: answers from one call of `what_if`, which share their random numbers.
        level: probability of the bands of differences.

    >>> best_decays([]) is None
    True
    """
    level = values.number(above=0.0, below=1.0).check("level", level)
    there = [i for i, answer in enumerate(answers) if np.isfinite(answer.loss)]
    if not there:
        return None
    first = min(there, key=lambda i: answers[i].loss)
    best = answers[first]
    tail = 0.5 - 0.5 * level
    alike = [
        i
        for i in there
        if i == first or float(np.quantile(answers[i].draws - best.draws, tail)) <= 0.0
    ]
    return DecayChoice(best, tuple(alike))
