r"""The quadratic model of batch losses: a common curvature, and a minimiser for every batch.

.. math:: L_x(\theta) = \tfrac12 (\theta - \xi_x)^\top A (\theta - \xi_x), \qquad
          \mathbb E\,\xi_x = 0, \quad \operatorname{Cov} \xi_x = C

with the full loss :math:`\tfrac12\theta^\top A\theta + \tfrac12 \operatorname{tr}(AC)` and
SGD :math:`\theta_{t+1} = \theta_t - \lambda_t A(\theta_t - \xi_t)`, a fresh batch each step.
It is the model described by Sandler et al. 2023 (arXiv 2301.02312), close to the noisy
quadratic model of Schaul et al. 2013 (arXiv 1206.1106).  The formulas are derived in
docs/theory/model.md; all are exact for this model.

>>> model = QuadraticModel(curvatures=[1.0, 0.1], noise_variances=[1.0, 1.0])
>>> model.stationary_variance(0.5).round(4)
array([0.3333, 0.0256])
>>> model.expected_loss([0.5, 0.5], initial=[2.0, 2.0]).round(4)
array([2.2   , 0.8056, 0.4444])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.kernels import Kernel
from tf_lrtraj.theory import checks, moments, stationary
from tf_lrtraj.theory.landmarks import GradientStatistics, OneStep, Shell
from tf_lrtraj.theory.simulate import Simulation, simulate

__all__ = ["QuadraticModel", "noise_of_batches"]


def noise_of_batches(
    sample_noise: Any,
    batch_size: int,
    population: int | None = None,
    replacement: bool = True,
) -> np.ndarray:
    """Computes the covariance of a batch's minimiser, from that of single samples.

    Args:
        sample_noise: [D] or [D, D], (co)variance of one sample's minimiser over the population
            (with divisor N).
        batch_size: B samples per batch.
        population: number N of samples; infinite by default.
        replacement: whether samples within a batch may repeat.

    Returns:
        C₁/B; without replacement C₁/B · (N-B)/(N-1).  Batches are drawn afresh each step:
        the correlation between the batches of one epoch is not modelled.

    Raises:
        ValueError: if a batch without replacement is larger than the population, or
            `population` is missing for it.

    >>> noise_of_batches([1.0], batch_size=5, population=9, replacement=False)
    array([0.1])
    """
    noise = values.array().check("sample_noise", sample_noise)
    batch_size = values.integer(1).check("batch_size", batch_size)
    if replacement:
        return noise / batch_size
    size = values.integer(1).check("population", population)
    if batch_size > size:
        raise ValueError(
            f"`batch_size` must be at most `population` = {size} without replacement. "
            f"Received: batch_size={batch_size!r}"
        )
    return noise / batch_size * ((size - batch_size) / max(size - 1, 1))


class QuadraticModel:
    """SGD on a quadratic loss with batch noise, in expectation.

    Args:
        curvatures: the Hessian of every batch loss, as its eigenvalues [D] or as a symmetric
            positive semi-definite matrix [D, D].
        noise_variances: the covariance of a batch's minimiser about the full loss's, [D] for
            independent coordinates or [D, D].  It need not commute with the curvature.

    Positions (`initial`, `iterate`) are relative to the minimiser of the full loss, in the
    coordinates the curvature is given in.

    Raises:
        ValueError: for wrong shapes, NaN, negative curvature or variance, a matrix that is
            not symmetric or not positive semi-definite.

    >>> model = QuadraticModel([[2.0, 1.0], [1.0, 2.0]], [1.0, 0.5])
    >>> model.mode_curvatures.round(12), round(model.stability_limit(), 4)
    (array([1., 3.]), 0.6667)
    """

    def __init__(self, curvatures: Any, noise_variances: Any) -> None:
        a = checks.covariance("curvatures", curvatures)
        noise = checks.covariance("noise_variances", noise_variances, len(a))
        self.curvatures, self.noise_variances = a, noise
        self._basis: np.ndarray | None = None  # columns are modes; none needed for spectra
        self._mode_noise: np.ndarray | None = None  # [D, D], where modes are correlated
        if a.ndim == 2:
            eigenvalues, self._basis = np.linalg.eigh(a)
            self.mode_curvatures = np.maximum(eigenvalues, 0.0)
            noise = np.diag(noise) if noise.ndim == 1 else noise
            noise = self._basis.T @ noise @ self._basis
        else:
            self.mode_curvatures = a
        if noise.ndim == 2:
            self._mode_noise = noise
            self.mode_noise_variances = np.maximum(np.diag(noise), 0.0)
        else:
            self.mode_noise_variances = noise

    @classmethod
    def of_batches(
        cls,
        curvatures: Any,
        sample_noise: Any,
        batch_size: int,
        population: int | None = None,
        replacement: bool = True,
    ) -> QuadraticModel:
        """Makes the model of batches of `batch_size` samples, as in `noise_of_batches`."""
        return cls(curvatures, noise_of_batches(sample_noise, batch_size, population, replacement))

    @property
    def size(self) -> int:
        """D."""
        return self.mode_curvatures.size

    @property
    def irreducible_loss(self) -> float:
        """½ tr(AC): the full loss at its minimum.  Excess losses are above it."""
        return 0.5 * float(self.mode_curvatures @ self.mode_noise_variances)

    def stability_limit(self, momentum: float = 0.0) -> float:
        """The rate 2 (1+β) / a_max below which a stationary state exists; inf if all is flat."""
        beta = checks.momentum(momentum, "keras")
        largest = float(self.mode_curvatures.max())
        return 2.0 * (1.0 + beta) / largest if largest else np.inf

    # --- Between the given coordinates and the modes ---------------------------------------

    def _to_modes(self, points: np.ndarray) -> np.ndarray:
        return points if self._basis is None else points @ self._basis

    def _from_modes(self, matrix: np.ndarray) -> np.ndarray:
        return matrix if self._basis is None else self._basis @ matrix @ self._basis.T

    def _mode_spread(self, name: str, value: Any) -> np.ndarray:
        """[D] variances of the modes for a (co)variance given in the model's coordinates."""
        if value is None:
            return np.zeros(self.size)
        spread = checks.covariance(name, value, self.size)
        if self._basis is None:
            return np.diag(spread).copy() if spread.ndim == 2 else spread
        scaled = spread @ self._basis if spread.ndim == 2 else spread[:, None] * self._basis
        return np.maximum(np.sum(self._basis * scaled, axis=0), 0.0)

    def _squares(self, iterate: Any, spread: Any) -> np.ndarray:
        """[D] E θ² per mode, for an iterate with mean `iterate` and covariance `spread`."""
        mean = self._to_modes(values.vector(self.size).check("iterate", iterate))
        return mean**2 + self._mode_spread("spread", spread)

    # --- Transients -------------------------------------------------------------------------

    def expected_losses(
        self,
        learning_rates: Any,
        initial: Any,
        kernels: Mapping[str, Kernel] | None = None,
        *,
        momentum: float = 0.0,
        convention: str = "keras",
        initial_covariance: Any = None,
    ) -> dict[str, np.ndarray]:
        """Computes expected excess losses after every update, of the iterate and of averages.

        Args:
            learning_rates: [T]; they may vary and may be negative.
            initial: [D] start (its mean, if `initial_covariance` is given).
            kernels: averages by name.
            momentum, convention: as in `moments.loss_curves`.
            initial_covariance: [D] or [D, D] of the start; none by default.

        Returns:
            {"raw": [T+1], name: [T+1], …}, exact; see docs/theory/moments.md.

        >>> from tf_lrtraj import kernels
        >>> model = QuadraticModel([1.0], [1.0])
        >>> model.expected_losses([0.5] * 3, [1.0], {"swa": kernels.Uniform()})["swa"].round(4)
        array([0.5   , 0.3125, 0.2153, 0.1592])
        """
        start = self._to_modes(values.vector(self.size).check("initial", initial))
        return moments.loss_curves(
            self.mode_curvatures,
            self.mode_noise_variances,
            learning_rates,
            start,
            kernels,
            momentum=momentum,
            convention=convention,
            initial_variances=self._mode_spread("initial_covariance", initial_covariance),
        )

    def expected_loss(self, learning_rates: Any, initial: Any, **options: Any) -> np.ndarray:
        """[T+1] expected excess loss of SGD; arguments as in `expected_losses`."""
        return self.expected_losses(learning_rates, initial, **options)[moments.RAW]

    def expected_loss_of_average(
        self, kernel: Kernel, learning_rates: Any, initial: Any, **options: Any
    ) -> np.ndarray:
        """[T+1] expected excess loss of the average held after t = 0 … T updates.

        >>> from tf_lrtraj import kernels
        >>> model = QuadraticModel([1.0], [1.0])
        >>> model.expected_loss_of_average(kernels.TwoPoint(1), [0.5], [1.0])
        array([0.5   , 0.3125])
        """
        named = {"average": kernel}
        return self.expected_losses(learning_rates, initial, named, **options)["average"]

    def expected_square_distance(
        self,
        learning_rates: Any,
        initial: Any,
        *,
        momentum: float = 0.0,
        convention: str = "keras",
    ) -> np.ndarray:
        """[T+1] E‖θ_t‖², the squared distance to the minimum."""
        start = self._to_modes(values.vector(self.size).check("initial", initial))
        return self._square_norm(
            start, self.mode_noise_variances, learning_rates, momentum, convention
        )

    def trajectory_distance(
        self,
        learning_rates: Any,
        separation: Any,
        shared_batches: bool,
        *,
        momentum: float = 0.0,
        convention: str = "keras",
    ) -> np.ndarray:
        """[T+1] E‖θ_t - θ'_t‖² of two runs at the same rates.

        Args:
            separation: [D] θ_0 - θ'_0.
            shared_batches: True: the difference contracts as Π(I - λA) for any noise; False:
                independent batches, for which it tends to twice tr S.
        """
        start = self._to_modes(values.vector(self.size).check("separation", separation))
        noise = (0.0 if shared_batches else 2.0) * self.mode_noise_variances
        return self._square_norm(start, noise, learning_rates, momentum, convention)

    def _square_norm(
        self, start: np.ndarray, noise: np.ndarray, rates: Any, momentum: float, convention: str
    ) -> np.ndarray:
        a = self.mode_curvatures
        beta = checks.momentum(momentum, convention)
        make = moments.dynamics_factory(a, a * a * noise, start**2, beta, convention)
        checked = values.array(1).check("learning_rates", rates)
        return moments.run_streams(make, np.ones(self.size), checked, {})[moments.RAW]

    # --- Stationary state -------------------------------------------------------------------

    def _rate(self, learning_rate: Any, momentum: float = 0.0) -> tuple[float, float]:
        beta = checks.momentum(momentum, "keras")
        return checks.stable_rate(learning_rate, self.mode_curvatures.max(), beta), beta

    def _mode_variance(self, rate: float, beta: float = 0.0) -> np.ndarray:
        return stationary.mode_variance(self.mode_curvatures, self.mode_noise_variances, rate, beta)

    def _mode_covariance(self, rate: float, beta: float = 0.0) -> np.ndarray:
        if self._mode_noise is None:
            return np.diag(self._mode_variance(rate, beta))
        return stationary.mode_covariance(self.mode_curvatures, self._mode_noise, rate, beta)

    def stationary_variance(self, learning_rate: float, momentum: float = 0.0) -> np.ndarray:
        """[D] stationary variance of each coordinate at a constant rate.

        One mode: λaσ² / (2 - λa); with momentum λaσ²(1+β) / ((1-β)(2(1+β) - λa)), in either
        convention. Flat modes have 0, the limit for small curvatures.

        Raises:
            ValueError: if the rate is not positive or not below `stability_limit(momentum)`.
        """
        rate, beta = self._rate(learning_rate, momentum)
        if self._mode_noise is None and self._basis is None:
            return self._mode_variance(rate, beta)
        return np.diag(self.stationary_covariance(rate, beta)).copy()

    def stationary_covariance(self, learning_rate: float, momentum: float = 0.0) -> np.ndarray:
        """[D, D] stationary covariance: λ a_i a_j C_ij / (a_i + a_j - λ a_i a_j) in the modes."""
        rate, beta = self._rate(learning_rate, momentum)
        return self._from_modes(self._mode_covariance(rate, beta))

    def stationary_loss(self, learning_rate: float, momentum: float = 0.0) -> float:
        """Expected excess loss in the stationary state."""
        rate, beta = self._rate(learning_rate, momentum)
        return 0.5 * float(self.mode_curvatures @ self._mode_variance(rate, beta))

    def stationary_distance(self, learning_rate: float, momentum: float = 0.0) -> float:
        """√E‖θ‖² in the stationary state: √(λ tr(AC) / 2) for small rates, the √λ law."""
        rate, beta = self._rate(learning_rate, momentum)
        return float(np.sqrt(self._mode_variance(rate, beta).sum()))

    def lagged_covariance(self, learning_rate: float, lag: int) -> np.ndarray:
        """[D, D] Cov(θ_{t+lag}, θ_t) = (I - λA)^lag S in the stationary state of plain SGD."""
        rate, _ = self._rate(learning_rate)
        power = (1.0 - rate * self.mode_curvatures) ** values.integer(0).check("lag", lag)
        return self._from_modes(power[:, None] * self._mode_covariance(rate))

    def _factors(self, kernel: Any, rate: float, num_steps: int | None) -> np.ndarray:
        contraction = 1.0 - rate * self.mode_curvatures
        return np.asarray(stationary.stationary_factor(kernel, contraction, num_steps))

    def stationary_covariance_of_average(
        self, kernel: Kernel | Any, learning_rate: float, num_steps: int | None = None
    ) -> np.ndarray:
        """[D, D] covariance of an average: ½ (X_i + X_j) S_ij in the modes (plain SGD).

        Args:
            kernel, num_steps: as in `stationary_factor`.
        """
        rate, _ = self._rate(learning_rate)
        factors = self._factors(kernel, rate, num_steps)
        both = 0.5 * (factors[:, None] + factors)
        return self._from_modes(both * self._mode_covariance(rate))

    def stationary_loss_of_average(
        self, kernel: Kernel | Any, learning_rate: float, num_steps: int | None = None
    ) -> float:
        """Expected excess loss of an average in the stationary state (plain SGD)."""
        rate, _ = self._rate(learning_rate)
        kept = self._factors(kernel, rate, num_steps) * self._mode_variance(rate)
        return 0.5 * float(self.mode_curvatures @ kept)

    def effective_learning_rate(
        self, kernel: Kernel | Any, learning_rate: float, num_steps: int | None = None
    ) -> float:
        """Finds the constant rate whose stationary expected loss equals that of the average.

        Unlike the rates per curvature (`theory.effective_learning_rate`) it is one number,
        so it matches the total loss and no single mode.

        >>> from tf_lrtraj import kernels
        >>> model = QuadraticModel([1.0, 0.01], [1.0, 1.0])
        >>> round(model.effective_learning_rate(kernels.TwoPoint(50), 0.2), 4)
        0.1053
        """
        from scipy.optimize import brentq  # slow to import, and rarely needed

        rate, _ = self._rate(learning_rate)
        wanted = self.stationary_loss_of_average(kernel, rate, num_steps)
        if wanted <= 0.0:
            if self.irreducible_loss == 0.0:
                raise ValueError(
                    "An effective rate needs noise in a curved mode. Received: "
                    "noise_variances that are 0 wherever curvatures are positive"
                )
            return 0.0
        # The loss is a strictly increasing function of the rate, from 0 to inf at the limit
        # of the curved modes that are noisy.
        curved = self.mode_curvatures * self.mode_noise_variances > 0.0
        limit = 2.0 / float(self.mode_curvatures[curved].max())

        def miss(share: float) -> float:
            loss = self.mode_curvatures @ self._mode_variance(share * limit) * 0.5
            return float(np.log(loss / wanted))

        tiny = 1e-12 * min(1.0, wanted / self.irreducible_loss)
        return limit * float(brentq(miss, tiny, 1.0 - 1e-15, xtol=1e-16, rtol=1e-14))

    # --- One step, and where a point lies ---------------------------------------------------

    def one_step_loss(
        self, learning_rates: Any, iterate: Any, held_out: bool, spread: Any = None
    ) -> np.ndarray:
        """[n] expected batch loss after one step from `iterate`, per learning rate.

        Args:
            learning_rates: [n] rates of the single step.
            iterate: [D] start of the step.
            held_out: False: the loss of the batch whose gradient was taken; True: of another.
            spread: [D] or [D, D] covariance of the start, e.g. `stationary_variance(rate)`.

        This is the loss itself, `irreducible_loss` included.

        >>> model = QuadraticModel([1.0], [1.0])
        >>> model.one_step_loss([0.0, 0.5, 1.0], [1.0], held_out=False)
        array([1.  , 0.25, 0.  ])
        >>> model.one_step_loss([0.0, 0.5, 1.0], [1.0], held_out=True)
        array([1.  , 0.75, 1.  ])
        """
        a, noise = self.mode_curvatures, self.mode_noise_variances
        squares = self._squares(iterate, spread)
        rates = values.vector().check("learning_rates", learning_rates)
        shrink: np.ndarray = (1.0 - np.multiply.outer(rates, a)) ** 2
        if not held_out:
            return 0.5 * shrink @ (a * (squares + noise))
        kick = np.multiply.outer(rates, a) ** 2
        return 0.5 * (shrink @ (a * squares) + kick @ (a * noise)) + 0.5 * (a @ noise)

    def best_step(self, iterate: Any, held_out: bool, spread: Any = None) -> OneStep:
        """Best rate, gain and zero crossing of `one_step_loss`; same arguments.

        In the stationary state of rate λ₀ the held-out gain is best at λ₀/2 and 0 at λ₀,
        exactly, on any spectrum.

        >>> model = QuadraticModel([2.0], [1.0])
        >>> step = model.best_step([0.0], held_out=True, spread=model.stationary_variance(0.1))
        >>> round(step.zero_crossing, 12)
        0.1
        """
        a, noise = self.mode_curvatures, self.mode_noise_variances
        squares = self._squares(iterate, spread)
        # Both curves are L(0) - slope·λ + bend·λ²/2, with the same bend.
        slope = a**2 @ (squares if held_out else squares + noise)
        bend = a**3 @ (squares + noise)
        if bend == 0.0:
            return OneStep(best_rate=0.0, gain=0.0)
        return OneStep(best_rate=float(slope / bend), gain=float(0.5 * slope**2 / bend))

    def shell(self, iterate: Any, learning_rate: float, spread: Any = None) -> Shell:
        """Returns the position of a point relative to the shell of a rate, and the drift of ‖θ‖².

        >>> model = QuadraticModel([1.0, 1.0], [1.0, 1.0])
        >>> model.shell([0.3, 0.0], learning_rate=0.1).position < 1.0
        True
        """
        rate, _ = self._rate(learning_rate)
        a = self.mode_curvatures
        inward = float((2.0 * a - rate * a**2) @ self._squares(iterate, spread))
        outward = rate * float(a**2 @ self.mode_noise_variances)
        position = inward / outward if outward else np.inf
        return Shell(drift=rate * (outward - inward), position=position)

    def gradient_statistics(self, iterate: Any, spread: Any = None) -> GradientStatistics:
        """Signal, noise, cosines and noise scale of batch gradients at a point."""
        squared = self.mode_curvatures**2
        signal = float(squared @ self._squares(iterate, spread))
        return GradientStatistics(signal, noise=float(squared @ self.mode_noise_variances))

    # --- Monte Carlo ------------------------------------------------------------------------

    def simulate(
        self,
        learning_rates: Any,
        initial: Any,
        num_runs: int,
        seed: int,
        kernels: Kernel | Sequence[Kernel] | Mapping[str, Kernel] | None = None,
        *,
        momentum: float = 0.0,
        convention: str = "keras",
    ) -> Simulation:
        """Runs SGD `num_runs` times with Gaussian batch minimisers.

        Args:
            learning_rates: [T].
            initial: [D], or [num_runs, D] for a start of its own per run.
            num_runs: independent runs, at least 2.
            seed: the same seed gives the same numbers.
            kernels: averages, by name or as a list (then named "0", "1", …).

        >>> from tf_lrtraj import kernels
        >>> model = QuadraticModel([1.0, 0.2], [1.0, 1.0])
        >>> found = model.simulate([0.5] * 60, [1.0, 1.0], 400, seed=0, kernels=kernels.TwoPoint(9))
        >>> expected = model.expected_loss([0.5] * 60, [1.0, 1.0])
        >>> bool(np.all(abs(found.losses[1:] - expected[1:]) < 4 * found.stderr[1:]))
        True
        """
        beta = checks.momentum(momentum, convention)
        factor: np.ndarray = np.sqrt(self.mode_noise_variances)
        if self._mode_noise is not None:
            variances, vectors = np.linalg.eigh(self._mode_noise)
            factor = vectors * np.sqrt(np.maximum(variances, 0.0))

        return simulate(
            self.mode_curvatures,
            factor,
            learning_rates,
            initial,
            num_runs,
            seed,
            kernels,
            momentum=beta,
            convention=convention,
            basis=self._basis,
        )
