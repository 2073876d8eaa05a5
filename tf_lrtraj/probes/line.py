r"""The loss of one mini-batch along its own step, and of held-out batches beside it.

For every batch x, with direction d (its gradient, say), the record holds
:math:`L_x(\theta - \lambda d)` and :math:`L_y(\theta - \lambda d)` of each held-out
batch y, over a grid of rates λ (Sandler et al. 2023, arXiv 2301.02312).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes import fits
from tf_lrtraj.probes.base import Probe, fingerprint, measure
from tf_lrtraj.probes.batches import Batch, check_batches, size_of
from tf_lrtraj.probes.record import ProbeRecord
from tf_lrtraj.probes.steps import GRADIENT_PASSES, Direction, Step
from tf_lrtraj.probes.surface import Surface
from tf_lrtraj.probes.uncertainty import crossed_mean, mean_and_se
from tf_lrtraj.records import ArrayRecord

BRACKETS = ("each", "mean", "none")
DEFAULT_RATES = (1e-3, 10.0, 33)  # ends and number of the default grid, logarithmic
FIT_WINDOW = 2.0  # of the mean curve's parabola, in multiples of the best rate
_CHUNK = 8  # rates in one piece of work


class Line(Probe):
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
        surface: what is measured, and in which mode.
        weights: the start θ, as `Surface.point` takes it; None for the model's own.
        batches: training batches, (inputs, targets) each.
        held_out: batches that take no part in the steps; None for none.
        rates: increasing rates; 0 is put in front if it is missing.  None for 33 from
            0.001 to 10, evenly spaced in the logarithm.
        direction: `"gradient"`, `"momentum"`, `"random"` or a vector: see `Direction`, which
            also says what `velocity`, `momentum`, `learning_rate` and `seed` are.
        others: more training batches, to compare the held-out ones with.
        bracket: extend the grid until the training minimum is passed for `"each"` batch, or
            for the `"mean"` over batches; `"none"` leaves it.
        extensions: at most so many times: a linear grid doubles its end each time, any
            other goes on to ten times.

    Raises:
        ValueError: for batches, rates, directions or options that do not fit.
    """

    kind = "line"
    growing = "rate"

    def __init__(
        self,
        surface: Surface,
        weights: Any,
        batches: Sequence[Batch],
        *,
        held_out: Sequence[Batch] | None = None,
        rates: Any = None,
        direction: Any = "gradient",
        velocity: Any = None,
        momentum: float = 0.9,
        learning_rate: float | None = None,
        seed: int = 0,
        others: Sequence[Batch] | None = None,
        bracket: str = "each",
        extensions: int = 3,
    ) -> None:
        self.surface = surface
        self.batches = check_batches(batches)
        self.held_out = [] if held_out is None else check_batches(held_out, "held_out")
        self.others = [] if others is None else check_batches(others, "others")
        found = fits.check_rates(fits.rate_grid(*DEFAULT_RATES) if rates is None else rates)
        self.rates = found if found[0] == 0.0 else np.concatenate([[0.0], found])
        if bracket not in BRACKETS:
            raise ValueError(
                f"`bracket` must be one of {list(BRACKETS)}. Received: bracket={bracket!r}"
            )
        if isinstance(extensions, bool) or not isinstance(extensions, int) or extensions < 0:
            raise ValueError(
                "`extensions` must be an integer of at least 0. "
                f"Received: extensions={extensions!r}"
            )
        self.bracket, self.extensions, self.seed = bracket, extensions, int(seed)
        self.point = surface.point(weights)
        self.direction = Direction(
            surface,
            direction,
            velocity=velocity,
            momentum=momentum,
            learning_rate=learning_rate,
            seed=seed,
        )
        groups = {"held_out": self.held_out, "others": self.others}
        self._others_of = {name: batches for name, batches in groups.items() if batches}
        self._recalibrated = surface.calibration_passes > 0
        self._step: tuple[int, Step] | None = None

    # What is measured ---------------------------------------------------------------------

    def empty(self) -> ArrayRecord:
        curves = ["train", *self._others_of]
        coordinates: dict[str, Any] = {
            "rate": self.rates,
            "batch": np.arange(len(self.batches)),
            "curve": np.array(curves),
            "degree": np.array(fits.DEGREES),
            "window": np.array(fits.WINDOWS),
            "level": np.array(fits.LEVELS),
            "power": np.arange(3),
        }
        dims: dict[str, tuple[str, ...]] = {"train": ("rate", "batch")}
        for name, batches in self._others_of.items():
            axis = {"held_out": "held", "others": "other"}[name]
            coordinates[axis] = np.arange(len(batches))
            dims |= {name: ("rate", "batch"), f"{name}_each": ("rate", "batch", axis)}
        dims |= dict.fromkeys(
            ["gradient_norm", "direction_norm", "slope", "bracketed", "curvature"], ("batch",)
        )
        dims |= dict.fromkeys(["best_rate", "gain", "zero_crossing"], ("curve", "batch"))
        dims |= {
            "fit_error": ("degree", "window", "batch"),
            "valid_to": ("degree", "level", "batch"),
            "mean": ("curve", "rate"),
            "mean_se": ("curve", "rate"),
            "mean_fit": ("curve", "power"),
        }
        for name in ("best_rate", "gain", "zero_crossing"):
            dims |= {f"mean_{name}": ("curve",), f"mean_{name}_se": ("curve",)}
        about = {
            **self.surface.about(),
            **self.direction.about(),
            "batch_sizes": sorted({size_of(batch) for batch in self.batches}),
            "held_out_sizes": sorted({size_of(batch) for batch in self.held_out}),
            "bracket": self.bracket,
            "extensions": self.extensions,
            "seed": self.seed,
            "weights": self.surface.fingerprint(self.point),
            "batches": fingerprint(self.batches),
            "held_out": fingerprint(self.held_out) if self.held_out else None,
            "others": fingerprint(self.others) if self.others else None,
        }
        return ArrayRecord.empty(self.kind, coordinates, dims, about)

    def pieces(self, record: ArrayRecord) -> list[Any]:
        """(batch, curve, column, rates): a few rates of one batch along one direction.

        With recalibrated batch norm (batch, None, None, [rate]): everything at one point.
        """
        found: list[Any] = []
        for i in range(len(self.batches)):
            if self._recalibrated:
                lacking = record.missing("train")[:, i]
                for name in self._others_of:
                    lacking = lacking | record.missing(f"{name}_each")[:, i].any(-1)
                found += [(i, None, None, [k]) for k in np.flatnonzero(lacking).tolist()]
                continue
            columns: list[Any] = [("train", None, record.missing("train")[:, i])]
            for name, batches in self._others_of.items():
                lacking = record.missing(f"{name}_each")[:, i]
                columns += [(f"{name}_each", j, lacking[:, j]) for j in range(len(batches))]
            for name, j, lacking in columns:
                ks = np.flatnonzero(lacking).tolist()
                found += [(i, name, j, ks[a : a + _CHUNK]) for a in range(0, len(ks), _CHUNK)]
        return found

    def measure(self, record: ArrayRecord, piece: Any) -> None:
        i, name, j, ks = piece
        step = self._step_of(i)
        record.put("gradient_norm", i, step.gradient_norm)
        record.put("direction_norm", i, step.norm)
        record.put("slope", i, step.slope)
        rates = record.coordinates["rate"][ks]
        if name == "train":
            losses = self.surface.along(self.point, step.vector, rates, self.batches[i])
            record.put("train", (ks, i), losses)
        elif name is not None:
            batch = self._others_of[name.removesuffix("_each")][j]
            losses = self.surface.along(self.point, step.vector, rates, batch)
            record.put(name, (ks, i, j), losses)
        else:
            moved = self.surface.moved(self.point, step.vector, float(rates[0]))
            batches = [batch for group in self._others_of.values() for batch in group]
            losses, _ = self.surface.evaluate(moved, [self.batches[i], *batches])
            record.put("train", (ks[0], i), losses[0])
            start = 1
            for group, members in self._others_of.items():
                record.put(f"{group}_each", (ks[0], i), losses[start : start + len(members)])
                start += len(members)

    def _step_of(self, i: int) -> Step:
        if self._step is None or self._step[0] != i:
            self._step = None  # its memory first
            self._step = (i, self.direction.of(self.point, self.batches[i], i))
        return self._step[1]

    def passes(self, pieces: Sequence[Any]) -> float:
        per_rate = 1
        if self._recalibrated:
            per_rate += sum(map(len, self._others_of.values())) + self.surface.calibration_passes
        gradients = len({i for i, *_ in pieces})
        return per_rate * sum(len(ks) for *_, ks in pieces) + GRADIENT_PASSES * gradients

    def seconds_per_pass(self) -> float:
        return self.surface.seconds_per_pass(self.batches[0])

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

    # What follows from it -----------------------------------------------------------------

    def finish(self, record: ArrayRecord) -> None:
        rates, values = record.coordinates["rate"], record.values
        each = {"train": values["train"]}
        for name in self._others_of:
            each[name] = values[f"{name}_each"]
            record.put(name, ..., each[name].mean(-1))
        for c, (name, curves) in enumerate(each.items()):
            for i in range(len(self.batches)):
                best = fits.minimum(rates, values[name][:, i])
                record.put("best_rate", (c, i), best.rate)
                record.put("gain", (c, i), best.gain)
                crossing = fits.zero_crossing(rates, values[name][:, i])
                record.put("zero_crossing", (c, i), crossing)
            # [batch, rate], or [batch, held, rate], where both factors count
            spread = np.moveaxis(curves, 0, -1)
            mean, error = crossed_mean(spread) if spread.ndim == 3 else mean_and_se(spread, 0)
            record.put("mean", c, mean)
            record.put("mean_se", c, error)
            found, errors = fits.bootstrap(curves, lambda y: _landmarks(rates, y), seed=self.seed)
            for k, what in enumerate(("best_rate", "gain", "zero_crossing")):
                record.put(f"mean_{what}", c, found[k])
                record.put(f"mean_{what}_se", c, errors[k])
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


def refined_rates(record: ArrayRecord, num: int = 33, up_to: float = 3.0) -> np.ndarray:
    """[num] even rates from 0 to `up_to` times the median best training rate of a record.

    A logarithmic grid finds the minimum; an even one about it is what fits want.

    Raises:
        ValueError: if no batch of the record gained anything.
    """
    best = float(np.median(record.values["best_rate"][0]))
    if not 0.0 < best < np.inf:
        raise ValueError(f"`record` must have a positive best rate. Received: {best!r}")
    return fits.rate_grid(0.0, up_to * best, num, "linear")


def loss_along_step(
    model: Any,
    loss: Any,
    weights: Any,
    batches: Sequence[Batch],
    *,
    held_out: Sequence[Batch] | None = None,
    rates: Any = None,
    direction: Any = "gradient",
    velocity: Any = None,
    momentum: float = 0.9,
    learning_rate: float | None = None,
    seed: int = 0,
    others: Sequence[Batch] | None = None,
    bracket: str = "each",
    extensions: int = 3,
    batch_norm: str = "batch",
    dropout: str = "off",
    moment_batches: Sequence[Batch] | None = None,
    penalties: bool = False,
    path: Any = None,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
) -> ProbeRecord:
    """Losses of batches along their own steps, and of held-out batches beside them.

    Args:
        model, loss: see `Surface`, with `batch_norm`, `dropout`, `moment_batches` and
            `penalties` (by default the penalties of layers' regularizers are left out).
        weights, batches, held_out, rates, direction, velocity, momentum, learning_rate, seed,
            others, bracket, extensions: see `Line`, which also describes the record.
        path, progress, tell: see `measure`.

    Raises:
        ValueError: for arguments that do not fit.
        RecordError: if the file at `path` holds measurements of something else.

    Example: y = wx with squared loss; the batch's parabola ends at 0, the other's does not.

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.zeros((1, 1))])
    >>> x = np.ones((1, 1))
    >>> record = loss_along_step(
    ...     model, "mse", None, [(x, 2 * x)], held_out=[(x, x)], rates=[0, 0.25, 0.5, 0.75, 1]
    ... )
    >>> record.values["train"][:, 0]
    array([4., 1., 0., 1., 4.])
    >>> record.values["held_out"][:, 0]
    array([1., 0., 1., 4., 9.])
    >>> record.values["best_rate"][:, 0]
    array([0.5 , 0.25])
    """
    surface = Surface(
        model,
        loss,
        batch_norm=batch_norm,
        dropout=dropout,
        moment_batches=moment_batches,
        penalties=penalties,
    )
    probe = Line(
        surface,
        weights,
        batches,
        held_out=held_out,
        rates=rates,
        direction=direction,
        velocity=velocity,
        momentum=momentum,
        learning_rate=learning_rate,
        seed=seed,
        others=others,
        bracket=bracket,
        extensions=extensions,
    )
    return measure(probe, path, progress=progress, tell=tell)
