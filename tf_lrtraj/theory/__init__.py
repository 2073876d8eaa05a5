"""Averages, schedules and a quadratic model: exact, float64, NumPy and SciPy only."""

from __future__ import annotations

from tf_lrtraj.theory.closed_forms import (
    TimeScales,
    closed_form_schedule,
    ema_decay_for_window,
    fold_onto_snapshots,
    time_scales,
    window_for_ema_decay,
)
from tf_lrtraj.theory.combination import Combination, combine_averages
from tf_lrtraj.theory.deviations import SparsePredictor
from tf_lrtraj.theory.diagnosis import (
    Finding,
    diagnose,
)
from tf_lrtraj.theory.estimate import SpectrumEstimate, estimate_spectrum
from tf_lrtraj.theory.features import GaussianFeaturesModel
from tf_lrtraj.theory.moments import Moments, average_moments, iterate_moments, loss_curves
from tf_lrtraj.theory.prediction import (
    AveragePredictor,
    OptimalAverage,
    Prediction,
    Recommendation,
    optimal_weights,
    predict_average_loss,
)
from tf_lrtraj.theory.quadratic import QuadraticModel, noise_of_batches
from tf_lrtraj.theory.schedule_equivalence import (
    Response,
    ScheduleEquivalence,
    equivalent_schedule,
    response,
    schedule_from_weights,
    weights_from_schedule,
)
from tf_lrtraj.theory.schedule_fit import (
    ScheduleFit,
    best_schedule,
    fit_schedule,
    loss_curve_gradient,
)
from tf_lrtraj.theory.simulate import Simulation
from tf_lrtraj.theory.spectrum import (
    ScheduleMismatch,
    schedule_mismatch,
)
from tf_lrtraj.theory.stationary import (
    effective_learning_rate,
    ema_decay_for_factor,
    stationary_factor,
    window_length_for_factor,
)
from tf_lrtraj.theory.weight_space import (
    autocovariance_from_displacement,
    average_distance_to_mean,
    mean_squared_displacement,
    predict_squared_distance,
    squared_distances,
)

__all__ = [
    "AveragePredictor",
    "Combination",
    "Finding",
    "GaussianFeaturesModel",
    "Moments",
    "OptimalAverage",
    "Prediction",
    "QuadraticModel",
    "Recommendation",
    "Response",
    "ScheduleEquivalence",
    "ScheduleFit",
    "ScheduleMismatch",
    "Simulation",
    "SparsePredictor",
    "SpectrumEstimate",
    "TimeScales",
    "autocovariance_from_displacement",
    "average_distance_to_mean",
    "average_moments",
    "best_schedule",
    "closed_form_schedule",
    "combine_averages",
    "diagnose",
    "effective_learning_rate",
    "ema_decay_for_factor",
    "ema_decay_for_window",
    "equivalent_schedule",
    "estimate_spectrum",
    "fit_schedule",
    "fold_onto_snapshots",
    "iterate_moments",
    "loss_curve_gradient",
    "loss_curves",
    "mean_squared_displacement",
    "noise_of_batches",
    "optimal_weights",
    "predict_average_loss",
    "predict_squared_distance",
    "response",
    "schedule_from_weights",
    "schedule_mismatch",
    "squared_distances",
    "stationary_factor",
    "time_scales",
    "weights_from_schedule",
    "window_for_ema_decay",
    "window_length_for_factor",
]
