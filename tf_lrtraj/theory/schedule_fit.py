r"""Fits a schedule to an average on a spectrum of curvatures.

Least squares on the logarithm of the expected excess loss, at the end of the
run or all along it:

.. math:: J(\lambda') = \frac1{|S|}\sum_{t \in S}\bigl(\log\ell_t(\lambda') - \log y_t\bigr)^2,
   \qquad \ell_t = \tfrac12\sum_i a_i q_{i,t}.

The second moments :math:`q_{t+1} = (1-\lambda_t a)^2 q_t + \lambda_t^2a^2\sigma^2`
are a linear recursion, and so is their adjoint, so the gradient with respect
to all T rates is exact and costs about as much as the loss curve itself.
Derived in docs/theory/equivalence.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.theory.recursion import solve_backward, solve_forward
from tf_lrtraj.theory.schedule_equivalence import check_rates, schedule_from_weights
from tf_lrtraj.theory.weights_on_iterates import ema_decay_for_window

__all__ = [
    "ScheduleFit",
    "best_schedule",
    "fit_schedule",
    "loss_curve",
    "loss_curve_gradient",
]

# Lower limit of rates as a share of the base rate, which keeps logarithms finite.
_LARGEST_LOG_DROP = 40.0


class Spectrum(Protocol):
    """The attributes of a `QuadraticModel` that are used here."""

    @property
    def curvatures(self) -> np.ndarray: ...
    @property
    def noise_variances(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class ScheduleFit:
    """The result of `fit_schedule`.

    Attributes:
        schedule: [T] the best schedule found.
        losses: [T+1] its expected excess losses.
        misfit: root mean square of log(loss / target) over the fitted steps.
        closed_forms: misfit of every closed-form schedule tried, by name.
        start: name of the closed form the search began from.
        converged: whether the search met its stopping test (rather than its iteration limit).
    """

    schedule: np.ndarray
    losses: np.ndarray
    misfit: float
    closed_forms: dict[str, float]
    start: str
    converged: bool


def best_schedule(
    model: Spectrum, target_losses: Any, base: Any, initial: Any, **options: Any
) -> np.ndarray:
    """Returns the [T] rates of `fit_schedule`: losses as close as possible to `target_losses`.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(curvatures=np.array([0.1, 1.0]), noise_variances=np.ones(2))
    >>> target = loss_curve(model, np.linspace(0.4, 0.1, 20), np.ones(2))
    >>> found = best_schedule(model, target, base=0.4, initial=np.ones(2))
    >>> bool(np.allclose(loss_curve(model, found, np.ones(2)), target, rtol=1e-6))
    True
    """
    return fit_schedule(model, target_losses, base, initial, **options).schedule


def fit_schedule(
    model: Spectrum,
    target_losses: Any,
    base: Any,
    initial: Any,
    *,
    shape: str = "free",
    weights: Any = None,
    candidates: Sequence[Any] = (),
    max_rate: float | None = None,
    max_iterations: int = 500,
) -> ScheduleFit:
    """Minimises the squared log-difference of expected excess loss over schedules.

    The search (L-BFGS-B with exact gradients) starts from the best of the
    closed-form schedules: the base itself, linear and exponential decays, a
    halved tail and, if `weights` are given, the equivalent schedules of that
    average at several curvatures.  The best of all is returned, so the result
    is never worse than any of them (for `shape="monotone"`: than any of them
    with its rises cut off; for a parametric shape: than the closed forms of
    that shape).

    Args:
        model: anything with `curvatures` [D] and `noise_variances` [D].
        target_losses: expected excess losses of the average, [T+1] to match all
            along the run (step 0, where nothing has been learned, is left
            out), or its last value to match the end alone.
        base: learning rates of the averaged run, [T], or a number if
            `target_losses` is a curve.
        initial: [D] start, relative to the minimum.
        shape: "free"; "monotone" (never rises); "linear" (constant share of
            the base, then linear to a final share); "exponential" (the same,
            falling exponentially towards the end as the schedule of an EMA does).
        weights: [T+1] weights of the average, if known.
        candidates: more [T] schedules to start from and to compare with.
        max_rate: upper bound of the free rates; the largest base rate by default.
        max_iterations: the largest number of iterations of the search.

    Raises:
        ValueError: if shapes do not fit, a target is not positive, a rate is
            past the stability limit, or an option is unknown.
    """
    problem = _Problem(model, target_losses, base, initial)
    chosen = _SHAPES[values.one_of(list(_SHAPES)).check("shape", shape)]
    highest = values.number(above=0, below=problem.limit).or_none().check("max_rate", max_rate)
    bound = float(problem.base.max()) if highest is None else highest

    starts = chosen.starts(_closed_forms(problem, weights, candidates))
    misfits = {name: problem.misfit(rates) for name, rates in starts.items()}
    best_start = min(misfits, key=lambda name: misfits[name])
    start = starts[best_start]

    found, converged = _search(problem, chosen(problem, start, bound), max_iterations)
    schedule = min((found, start), key=problem.misfit)
    return ScheduleFit(
        schedule=schedule,
        losses=problem.losses(schedule),
        misfit=float(np.sqrt(problem.misfit(schedule))),
        closed_forms={name: float(np.sqrt(value)) for name, value in misfits.items()},
        start=best_start,
        converged=converged,
    )


def loss_curve(model: Spectrum, learning_rates: Any, initial: Any) -> np.ndarray:
    """Computes [T+1] expected excess losses of SGD from `initial`.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(curvatures=np.array([1.0]), noise_variances=np.array([0.0]))
    >>> loss_curve(model, [0.5, 0.5], [2.0])
    array([2.   , 0.5  , 0.125])
    """
    rates = values.array(1).check("learning_rates", learning_rates)
    return _moments(_modes(model, initial), rates)[1]


def loss_curve_gradient(
    model: Spectrum, learning_rates: Any, initial: Any, loss_gradients: Any
) -> np.ndarray:
    """Computes the [T] gradient of a function of the loss curve from its gradients [T+1].

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(curvatures=np.array([1.0]), noise_variances=np.array([1.0]))
    >>> loss_curve_gradient(model, [0.5], [2.0], [0.0, 1.0])   # d/dλ ½((1-λ)²·4 + λ²)
    array([-1.5])
    """
    rates = values.array(1).check("learning_rates", learning_rates)
    loss_gradients = values.vector(rates.size + 1).check("loss_gradients", loss_gradients)
    modes = _modes(model, initial)
    return _gradient(modes, rates, _moments(modes, rates)[0], loss_gradients)


class _Modes(NamedTuple):
    """The directions of a model as columns [D, 1]."""

    curvature: np.ndarray
    noise: np.ndarray
    start: np.ndarray


def _modes(model: Spectrum, initial: Any) -> _Modes:
    # A `QuadraticModel` given by matrices knows its modes, which are all that losses depend on.
    curvature = values.vector(at_least=0).check(
        "curvatures", getattr(model, "mode_curvatures", model.curvatures)
    )
    noise = values.vector(curvature.size, at_least=0).check(
        "noise_variances", getattr(model, "mode_noise_variances", model.noise_variances)
    )
    start = values.vector(curvature.size).check("initial", initial)
    if hasattr(model, "_to_modes"):
        start = model._to_modes(start)
    return _Modes(curvature[:, None], noise[:, None], start[:, None])


def _moments(modes: _Modes, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([D, T+1] second moments, [T+1] losses)."""
    curvature = modes.curvature
    known = np.empty((curvature.size, rates.size + 1))
    known[:, :1] = modes.start**2
    known[:, 1:] = (rates * curvature) ** 2 * modes.noise
    moments = solve_forward(known, (1.0 - rates * curvature) ** 2)
    return moments, 0.5 * curvature[:, 0] @ moments


def _gradient(
    modes: _Modes, rates: np.ndarray, moments: np.ndarray, loss_gradients: np.ndarray
) -> np.ndarray:
    curvature = modes.curvature
    contraction = 1.0 - rates * curvature
    adjoint = solve_backward(0.5 * curvature * loss_gradients, contraction**2)[:, 1:]
    slope = rates * curvature * modes.noise - contraction * moments[:, :-1]
    return np.einsum("dt,dt->t", adjoint, 2.0 * curvature * slope)


class _Problem:
    """Targets, and the misfit of a schedule to them with its gradient."""

    def __init__(self, model: Spectrum, target_losses: Any, base: Any, initial: Any) -> None:
        self.modes = _modes(model, initial)
        curvature = self.modes.curvature
        target = values.array().check("target_losses", target_losses)
        if target.ndim == 1 and target.size >= 2:
            self.base = check_rates("base", base, target.size - 1)
            self.steps = np.arange(1, target.size)
            target = target[1:]
        elif target.ndim == 0 and np.ndim(base) == 1 and np.size(base) >= 1:
            self.base = check_rates("base", base, np.size(base))
            self.steps = np.array([self.base.size])
            target = target[None]
        else:
            raise ValueError(
                "`target_losses` must be a curve of shape [T+1], or one number with `base` of "
                f"shape [T]. Received: shapes {target.shape} and {np.shape(base)}"
            )
        if np.any(target <= 0.0):
            raise values.error("target_losses", "positive excess losses", target_losses)
        self.log_target = np.log(target)
        self.limit = 2.0 / float(curvature.max()) if curvature.max() > 0.0 else np.inf
        if not 0.0 < self.base.max() < self.limit:
            raise ValueError(
                f"`base` must reach above 0 and stay below the stability limit {self.limit!r}. "
                f"Received: rates up to {float(self.base.max())!r}"
            )

    def losses(self, rates: np.ndarray) -> np.ndarray:
        return _moments(self.modes, rates)[1]

    def misfit(self, rates: np.ndarray) -> float:
        return float(np.mean(self._differences(self.losses(rates)) ** 2))

    def misfit_and_gradient(self, rates: np.ndarray) -> tuple[float, np.ndarray]:
        moments, losses = _moments(self.modes, rates)
        differences = self._differences(losses)
        slopes = np.zeros_like(losses)
        slopes[self.steps] = 2.0 * differences / (differences.size * losses[self.steps])
        gradient = _gradient(self.modes, rates, moments, slopes)
        return float(np.mean(differences**2)), gradient

    def _differences(self, losses: np.ndarray) -> np.ndarray:
        # The logarithm of a loss of exactly 0 is infinite; keep it finite for the search.
        return np.log(np.maximum(losses[self.steps], 1e-300)) - self.log_target


def _closed_forms(
    problem: _Problem, weights: Any, candidates: Sequence[Any]
) -> dict[str, np.ndarray]:
    """Schedules to start from, by name."""
    base, num_steps = problem.base, problem.base.size
    left = np.arange(num_steps, 0, -1)
    starts = {"base": base}
    for length in _lengths(num_steps):
        starts[f"linear over {length}"] = base * np.minimum(left / length, 1.0)
        decay = ema_decay_for_window(float(length))
        starts[f"exponential of decay {decay:.6g}"] = base * -np.expm1(left * np.log(decay))
        starts[f"half over {length - 1}"] = base * np.where(left < length, 0.5, 1.0)
    if weights is not None:
        curvatures = np.sort(problem.modes.curvature[:, 0])
        references = {"0": 0.0, "least": curvatures[0], "largest": curvatures[-1]}
        references["median"] = curvatures[curvatures.size // 2]
        references["mean"] = curvatures.mean()
        for name, curvature in references.items():
            starts[f"equivalent at {name} curvature"] = schedule_from_weights(
                weights, base, curvature
            )
    for index, rates in enumerate(candidates):
        starts[f"candidate {index}"] = values.vector(num_steps).check("candidates", rates)
    return starts


def _lengths(num_steps: int) -> list[int]:
    return np.unique(np.geomspace(2, num_steps + 1, 16).round().astype(int)).tolist()


class _Free:
    """Schedules by parameters that L-BFGS-B can search in a box; here every rate by itself.

    In units of the bound, so that steps of order 1 are large ones.

    Attributes:
        first: parameters to start from.
        bounds: the bounds of each parameter.
    """

    def __init__(self, problem: _Problem, start: np.ndarray, bound: float) -> None:
        self._bound = bound
        self.first, self.bounds = np.clip(start / bound, 0.0, 1.0), [(0.0, 1.0)] * start.size

    @classmethod
    def starts(cls, closed_forms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the closed forms converted to this shape."""
        return closed_forms

    def rates(self, x: np.ndarray) -> np.ndarray:
        """[T] rates of parameters."""
        return self._bound * x

    def pull_back(self, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The gradient with respect to the parameters, from that to the rates at `x`."""
        return self._bound * gradient


class _Monotone(_Free):
    """Drops of the logarithm, each at least 0: a box, where sums of decrements are not."""

    def __init__(self, problem: _Problem, start: np.ndarray, bound: float) -> None:
        self._bound = bound
        logs = -np.log(np.clip(start / bound, np.exp(-_LARGEST_LOG_DROP), 1.0))
        self.first = np.maximum(np.diff(logs, prepend=0.0), 0.0)
        self.bounds = [(0.0, _LARGEST_LOG_DROP)] * start.size

    @classmethod
    def starts(cls, closed_forms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.minimum.accumulate(rates) for name, rates in closed_forms.items()}

    def rates(self, x: np.ndarray) -> np.ndarray:
        return self._bound * np.exp(-np.cumsum(x))

    def pull_back(self, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return -np.cumsum((gradient * self.rates(x))[::-1])[::-1]


class _Linear(_Free):
    """The base, then a line to a final share of it; x = (log of the line's length, the share)."""

    name = "linear"

    def __init__(self, problem: _Problem, start: np.ndarray, bound: float) -> None:
        self._base = problem.base
        num_steps = problem.base.size
        self._left = np.arange(num_steps, 0, -1.0)
        self.bounds = [(-1.0, float(np.log(100.0 * num_steps))), (0.0, 1.0)]
        # The lengths of the closed forms, so that the search starts at the best or better.
        lengths = self._lengths(np.array(_lengths(num_steps), dtype=np.float64))
        grid = [np.array([x, share]) for x in np.log(lengths) for share in (0.0, 0.1, 0.5)]
        self.first = min(grid, key=lambda x: problem.misfit(self.rates(x)))

    @classmethod
    def starts(cls, closed_forms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: rates for name, rates in closed_forms.items() if name.split()[0] == cls.name}

    @staticmethod
    def _lengths(lengths: np.ndarray) -> np.ndarray:
        return lengths

    @staticmethod
    def _fall(scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Share of the base that is left, and its derivative to x[0]."""
        return np.minimum(scale, 1.0), np.where(scale < 1.0, -scale, 0.0)

    def rates(self, x: np.ndarray) -> np.ndarray:
        share, _ = self._fall(self._left * np.exp(-x[0]))
        return self._base * (x[1] + (1.0 - x[1]) * share)

    def pull_back(self, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        share, slope = self._fall(self._left * np.exp(-x[0]))
        weighted = gradient * self._base
        return np.array([weighted @ slope * (1.0 - x[1]), weighted @ (1.0 - share)])


class _Exponential(_Linear):
    """The same, falling exponentially towards the end."""

    name = "exponential"

    @staticmethod
    def _lengths(lengths: np.ndarray) -> np.ndarray:
        return -1.0 / np.log((lengths - 1.0) / (lengths + 1.0))

    @staticmethod
    def _fall(scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return -np.expm1(-scale), -scale * np.exp(-scale)


_SHAPES: dict[str, type[_Free]] = {
    "free": _Free,
    "monotone": _Monotone,
    "linear": _Linear,
    "exponential": _Exponential,
}


def _search(problem: _Problem, shape: _Free, max_iterations: int) -> tuple[np.ndarray, bool]:
    from scipy import optimize  # takes about a second to import; only this search needs it

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        misfit, gradient = problem.misfit_and_gradient(shape.rates(x))
        return misfit, shape.pull_back(x, gradient)

    found = optimize.minimize(
        objective,
        shape.first,
        jac=True,
        method="L-BFGS-B",
        bounds=shape.bounds,
        options={
            "maxiter": values.integer(1).check("max_iterations", max_iterations),
            "maxfun": 4 * max_iterations,
            "maxcor": 30,
            "ftol": 1e-15,
            "gtol": 1e-10,
        },
    )
    return shape.rates(found.x), bool(found.success)
