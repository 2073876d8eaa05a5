r"""The loss of one mini-batch along its own step, and the losses of held-out batches.

For every batch x with direction d, such as its gradient, the record holds :math:`L_x(\theta -
\lambda d)` and :math:`L_y(\theta - \lambda d)` of each held-out batch y, over a grid of rates λ
(Sandler et al. 2023, arXiv 2301.02312).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes import fits
from tf_lrtraj.probes.base import put_estimate
from tf_lrtraj.probes.batches import check_groups, size_of
from tf_lrtraj.probes.steps import StepProbe
from tf_lrtraj.probes.vectors import fingerprint
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.statistics import bootstrap, crossed_mean, mean_and_se
from tf_lrtraj.values import integer, one_of

BRACKETS = ("each", "mean", "none")
DEFAULT_RATES = (1e-3, 10.0, 33)  # ends and number of rates of the default grid, logarithmic
FIT_WINDOW = 2.0  # window of the mean curve's parabola, in multiples of the best rate
_CHUNK = 8  # rates in one piece of work
_LANDMARKS = ("best_rate", "gain", "zero_crossing")
_AXES = {"held_out": "held", "others": "other"}


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class Line(StepProbe):
    """Losses along one step of each of N batches.

    Coordinates of the record:
        rate: [K] learning rates λ, from 0; more than asked for where it was extended.
        batch: [N] numbers of the batches whose steps are taken.
        held: [H] numbers of held-out batches, and `other`, [O], of others, where given.
        curve: "train", and "held_out" and "others" where given.
        degree, window, level, power: of fits; windows in multiples of the best rate,
            levels and errors in units of the batch's drop, see `fits`.

    Values (losses in the unit of the loss, NaN where not measured, inf where not finite):
        train [rate, batch]: loss of the batch itself.
        held_out_each [rate, batch, held], others_each: loss of each other batch after the
            step of `batch`: all batches share one list of held-out batches.
        held_out [rate, batch], others: their mean over that list.
        gradient_norm, direction_norm, slope [batch]: of g and d, and -⟨g, d⟩, the
            derivative of `train` by the rate at 0.
        best_rate, gain, zero_crossing [curve, batch]: of each batch's curve.
        bracketed [batch]: 1 where the minimum of `train` was passed, else 0.
        curvature [batch]: dᵀHd by the parabola fitted to `train` up to twice the best rate.
        fit_error [degree, window, batch], valid_to [degree, level, batch]: of polynomials
            fitted to `train`; the latter in multiples of the batch's best rate.
        mean, mean_se [curve, rate]: over batches, with standard error (over batches and over
            held-out batches).
        mean_best_rate, mean_gain, mean_zero_crossing [curve], and with suffix `_se`: of the
            mean curve; errors from resampling batches (and held-out batches) 400 times.
        mean_fit [curve, power]: parabola of the mean curve, up to twice its best rate.

    Memory: a direction and three copies of the weights.  Cost: N (1 + H + O) K forward
    passes and N gradients; recalibrated batch norm adds its batches N K times.

    Args:
        surface, weights, batches, direction, velocity, momentum, learning_rate, seed: see
            `StepProbe`; `seed` also of the resampling.
        held_out: batches that are not used for the steps; None for none.
        rates: increasing rates; 0 is put in front if it is missing.  None for 33 from
            0.001 to 10, evenly spaced in the logarithm.
        others: further training batches, for comparison with the held-out ones.
        bracket: extend the grid until the training minimum is passed for `"each"` batch, or for the
            `"mean"` over batches; `"none"` does not extend it.
        extensions: largest number of extensions: each doubles the end of a linear grid, and
            multiplies that of any other by ten.

    Raises:
        ValueError: for batches, rates, directions or options that do not fit.

    Example: y = wx with squared loss; the batch's parabola ends at 0, the other's does not.

    >>> import keras
    >>> from tf_lrtraj import probes
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.zeros((1, 1))])
    >>> surface, x = probes.Surface(model, "mse"), np.ones((1, 1))
    >>> line = Line(surface, None, [(x, 2 * x)], held_out=[(x, x)], rates=[0, 0.25, 0.5, 0.75, 1])
    >>> record = probes.measure(line)
    >>> record.values["train"][:, 0]
    array([4., 1., 0., 1., 4.])
    >>> record.values["held_out"][:, 0]
    array([1., 0., 1., 4., 9.])
    >>> record.values["best_rate"][:, 0]
    array([0.5 , 0.25])
    """

    kind = "line"
    growing = "rate"

    held_out: Any = None
    rates: Any = None
    others: Any = None
    bracket: str = "each"
    extensions: int = 3

    def __post_init__(self) -> None:
        self._beside = check_groups(held_out=self.held_out, others=self.others)
        given = fits.rate_grid(*DEFAULT_RATES) if self.rates is None else self.rates
        found = fits.check_rates(given)
        self.rates = found if found[0] == 0.0 else np.concatenate([[0.0], found])
        one_of(BRACKETS).check("bracket", self.bracket)
        self.extensions = integer(0).check("extensions", self.extensions)
        super().__post_init__()
        self._recalibrated = self.surface.calibration_passes > 0

    # Measuring ----------------------------------------------------------------------------

    def coordinates(self) -> dict[str, Any]:
        found = {
            "rate": self.rates,
            "batch": np.arange(len(self.batches)),
            "curve": np.array(["train", *self._beside]),
            "degree": np.array(fits.DEGREES),
            "window": np.array(fits.WINDOWS),
            "level": np.array(fits.LEVELS),
            "power": np.arange(3),
        }
        return found | {_AXES[name]: np.arange(len(group)) for name, group in self._beside.items()}

    def parts(self) -> Collection[str]:
        return self._beside

    def about(self) -> dict[str, Any]:
        held_out = self._beside.get("held_out", [])
        return super().about() | {
            "batch_sizes": sorted({size_of(batch) for batch in self.batches}),
            "held_out_sizes": sorted({size_of(batch) for batch in held_out}),
            "bracket": self.bracket,
            "extensions": self.extensions,
            "seed": int(self.seed),
            **{
                name: fingerprint(self._beside[name]) if name in self._beside else None
                for name in _AXES
            },
        }

    def pieces(self, record: ArrayRecord) -> list[Any]:
        """Returns (batch, curve, column, rates): a few rates of one batch along one direction.

        With recalibrated batch norm (batch, None, None, [rate]): everything at one point.
        """
        found: list[Any] = []
        for i in range(len(self.batches)):
            curves = {"train": record.missing("train")[:, i, None]}
            curves |= {f"{n}_each": record.missing(f"{n}_each")[:, i] for n in self._beside}
            if self._recalibrated:
                lacking = np.concatenate(list(curves.values()), axis=1).any(axis=1)
                found += [(i, None, None, [k]) for k in np.flatnonzero(lacking).tolist()]
                continue
            for name, missing in curves.items():
                for j in range(missing.shape[1]):
                    ks = np.flatnonzero(missing[:, j]).tolist()
                    found += [(i, name, j, ks[a : a + _CHUNK]) for a in range(0, len(ks), _CHUNK)]
        return found

    def measure(self, record: ArrayRecord, piece: Any) -> None:
        i, name, j, ks = piece
        step = self.put_step(record, i)
        rates = record.coordinates["rate"][ks]
        if name is None:
            self._measure_all(record, i, ks[0])
        elif name == "train":
            losses = self.surface.along(self.weights, step.vector, rates, self.batches[i])
            record.put("train", (ks, i), losses)
        else:
            batch = self._beside[name.removesuffix("_each")][j]
            losses = self.surface.along(self.weights, step.vector, rates, batch)
            record.put(name, (ks, i, j), losses)

    def _measure_all(self, record: ArrayRecord, i: int, k: int) -> None:
        rate = float(record.coordinates["rate"][k])
        moved = self.surface.moved(self.weights, self.step(i).vector, rate)
        beside = [batch for group in self._beside.values() for batch in group]
        losses, _ = self.surface.evaluate(moved, [self.batches[i], *beside])
        record.put("train", (k, i), losses[0])
        start = 1
        for name, group in self._beside.items():
            record.put(f"{name}_each", (k, i), losses[start : start + len(group)])
            start += len(group)

    def passes(self, pieces: Sequence[Any]) -> float:
        beside = sum(map(len, self._beside.values())) if self._recalibrated else 0
        return self.spec.passes(
            directions=len({i for i, *_ in pieces}),
            points=sum(len(ks) for *_, ks in pieces),
            batches=1 + beside,
            calibration=self.surface.calibration_passes,
        )

    def grow(self, record: ArrayRecord) -> ArrayRecord | None:
        rates, longest = record.coordinates["rate"], self.rates
        for _ in range(self.extensions):
            if len(longest) > len(rates):
                break
            longest = np.concatenate([longest, fits.continued(longest)])
        if self.bracket == "none" or len(longest) <= len(rates):
            return None
        train = record.values["train"]
        curves = train if self.bracket == "each" else train.mean(1, keepdims=True)
        if (np.argmin(curves, axis=0) < len(rates) - 1).all():
            return None
        return record.extended("rate", longest[len(rates) :])

    # Derived values -----------------------------------------------------------------------

    def finish(self, record: ArrayRecord) -> None:
        rates, values = record.coordinates["rate"], record.values
        each = {"train": values["train"]}
        for name in self._beside:
            each[name] = values[f"{name}_each"]
            record.put(name, ..., each[name].mean(-1))
        for c, (name, curves) in enumerate(each.items()):
            for i in range(len(self.batches)):
                found = _landmarks(rates, values[name][:, i])
                for what, number in zip(_LANDMARKS, found, strict=True):
                    record.put(what, (c, i), number)
            # [batch, rate], or [batch, held, rate], where both factors count
            spread = np.moveaxis(curves, 0, -1)
            mean, error = crossed_mean(spread) if spread.ndim == 3 else mean_and_se(spread, 0)
            put_estimate(record, "mean", c, (mean, error))
            found, errors = bootstrap(curves, lambda y: _landmarks(rates, y), seed=int(self.seed))
            for what, number, its_error in zip(_LANDMARKS, found, errors, strict=True):
                put_estimate(record, f"mean_{what}", c, (number, its_error))
            window = FIT_WINDOW * found[0] if found[0] > 0.0 else rates[-1]
            record.put("mean_fit", c, fits.polynomial(rates, mean, 2, window).coefficients)
        for i in range(len(self.batches)):
            curve = values["train"][:, i]
            best = fits.minimum(rates, curve)
            unit = best.rate or np.inf
            record.put("bracketed", i, float(best.bracketed))
            parabola = fits.polynomial(rates, curve, 2, FIT_WINDOW * best.rate)
            record.put("curvature", i, parabola.curvature)
            record.put("fit_error", (..., i), fits.errors(rates, curve))
            for d, degree in enumerate(fits.DEGREES):
                record.put("valid_to", (d, ..., i), fits.valid_to(rates, curve, degree) / unit)


def _landmarks(rates: np.ndarray, curve: np.ndarray) -> np.ndarray:
    best = fits.minimum(rates, curve)
    return np.array([best.rate, best.gain, fits.zero_crossing(rates, curve)])
