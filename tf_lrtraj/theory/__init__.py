"""Averages, schedules and a quadratic model, in float64 with NumPy and SciPy only.

The result types (`ScheduleEquivalence`, `Prediction`, …) are defined in the modules of the
functions.
"""

from __future__ import annotations

from tf_lrtraj.theory.combination import combine_averages
from tf_lrtraj.theory.decay_forecast import best_decays, what_if
from tf_lrtraj.theory.deviations import SparsePredictor
from tf_lrtraj.theory.diagnosis import diagnose
from tf_lrtraj.theory.estimate import estimate_spectrum
from tf_lrtraj.theory.moments import average_moments
from tf_lrtraj.theory.prediction import AveragePredictor, optimal_weights, predict_average_loss
from tf_lrtraj.theory.quadratic import QuadraticModel
from tf_lrtraj.theory.schedule_equivalence import (
    equivalent_schedule,
    schedule_from_weights,
    weights_from_schedule,
)
from tf_lrtraj.theory.schedule_fit import best_schedule, fit_schedule
from tf_lrtraj.theory.spectrum import schedule_mismatch
from tf_lrtraj.theory.stationary import (
    effective_learning_rate,
    ema_decay_for_factor,
    stationary_factor,
    window_length_for_factor,
)
from tf_lrtraj.theory.weight_space import predict_squared_distance, squared_distances
from tf_lrtraj.theory.weights_on_iterates import (
    ema_decay_for_window,
    fold_onto_snapshots,
    time_scales,
    window_for_ema_decay,
)

__all__ = [
    "AveragePredictor",
    "QuadraticModel",
    "SparsePredictor",
    "average_moments",
    "best_decays",
    "best_schedule",
    "combine_averages",
    "diagnose",
    "effective_learning_rate",
    "ema_decay_for_factor",
    "ema_decay_for_window",
    "equivalent_schedule",
    "estimate_spectrum",
    "fit_schedule",
    "fold_onto_snapshots",
    "optimal_weights",
    "predict_average_loss",
    "predict_squared_distance",
    "schedule_from_weights",
    "schedule_mismatch",
    "squared_distances",
    "stationary_factor",
    "time_scales",
    "weights_from_schedule",
    "what_if",
    "window_for_ema_decay",
    "window_length_for_factor",
]
