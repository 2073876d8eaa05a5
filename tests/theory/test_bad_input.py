"""One contract for every function of theory: a bad argument is named, with what was received."""

import functools

import numpy as np
import pytest

from tf_lrtraj import kernels, theory
from tf_lrtraj.theory import moments, quadratic, schedule_equivalence, schedule_fit

NAN = float("nan")
MODEL = theory.QuadraticModel([1.0, 0.5], [1.0, 1.0])
WEIGHTS, RATES, KERNEL = [0.2, 0.3, 0.5], [0.1, 0.1], kernels.TwoPoint(1)
RUN = dict(curvature=0.5, momentum=0.5, convention="keras")
SPECTRUM = dict(curvatures=[1.0, 0.5], noise_variances=[1.0, 1.0])
TRANSIENT = dict(learning_rates=RATES, initial=[1.0, 1.0], momentum=0.5, convention="pytorch")
PAIRS = dict(losses=[1.0, 1.0, 1.0], gaps=[1, 2], jensen_gaps=[0.1, 0.2])
PREDICTOR = theory.AveragePredictor(**PAIRS)

# Each entry: a function and sound arguments.
GOOD = {
    "schedule_from_weights": (
        theory.schedule_from_weights, dict(weights=WEIGHTS, base=RATES, **RUN),
    ),
    "weights_from_schedule": (
        theory.weights_from_schedule, dict(schedule=[0.1, 0.05], base=RATES, **RUN),
    ),
    "response": (schedule_equivalence.response, dict(weights=WEIGHTS, rates=RATES, **RUN)),
    "schedule_mismatch": (
        theory.schedule_mismatch,
        dict(schedule=RATES, weights=WEIGHTS, base=0.1, curvatures=[1.0], momentum=0.0),
    ),
    "fit_schedule": (
        functools.partial(theory.fit_schedule, MODEL),
        dict(target_losses=[2.0, 1.0, 0.9], base=0.5, initial=[1.0, 1.0], shape="free",
             max_rate=1.0, max_iterations=3, candidates=[[0.1, 0.1]]),
    ),
    "loss_curve_gradient": (
        functools.partial(schedule_fit.loss_curve_gradient, MODEL),
        dict(learning_rates=RATES, initial=[1.0, 1.0], loss_gradients=[1.0, 1.0, 1.0]),
    ),
    "time_scales": (theory.time_scales, dict(weights=WEIGHTS)),
    "fold_onto_snapshots": (theory.fold_onto_snapshots, dict(weights=WEIGHTS, every=2)),
    "ema_decay_for_window": (theory.ema_decay_for_window, dict(length=9.0)),
    "window_for_ema_decay": (theory.window_for_ema_decay, dict(decay=0.5)),
    "loss_curves": (
        moments.loss_curves, dict(initial_variances=[1.0, 1.0], **SPECTRUM, **TRANSIENT),
    ),
    "average_moments": (
        functools.partial(theory.average_moments, KERNEL),
        dict(initial_variances=[1.0, 1.0], **SPECTRUM, **TRANSIENT),
    ),
    "average_moments of weights": (
        functools.partial(moments.average_moments, **SPECTRUM, **TRANSIENT),
        dict(kernel=WEIGHTS),
    ),
    "QuadraticModel": (theory.QuadraticModel, SPECTRUM),
    "noise_of_batches": (
        functools.partial(quadratic.noise_of_batches, [1.0], replacement=False),
        dict(batch_size=2, population=5),
    ),
    "stability_limit": (MODEL.stability_limit, dict(momentum=0.5)),
    "stationary_variance": (MODEL.stationary_variance, dict(learning_rate=0.1, momentum=0.5)),
    "stationary_distance": (MODEL.stationary_distance, dict(learning_rate=0.1)),
    "lagged_covariance": (MODEL.lagged_covariance, dict(learning_rate=0.1, lag=2)),
    "expected_loss": (MODEL.expected_loss, dict(**TRANSIENT, initial_covariance=[1.0, 1.0])),
    "trajectory_distance": (
        MODEL.trajectory_distance,
        dict(learning_rates=RATES, separation=[1.0, 1.0], shared_batches=True),
    ),
    "one_step_loss": (
        MODEL.one_step_loss, dict(learning_rates=[0.1], iterate=[1.0, 1.0], held_out=True),
    ),
    "best_step": (
        MODEL.best_step, dict(iterate=[1.0, 1.0], held_out=True, spread=[1.0, 1.0]),
    ),
    "shell": (MODEL.shell, dict(iterate=[1.0, 1.0], learning_rate=0.1)),
    "simulate": (
        MODEL.simulate, dict(num_runs=2, seed=0, kernels={"a": KERNEL}, **TRANSIENT),
    ),
    "stationary_factor": (
        theory.stationary_factor, dict(kernel=KERNEL, contraction=0.5, num_steps=3),
    ),
    "effective_learning_rate": (
        functools.partial(theory.effective_learning_rate, KERNEL),
        dict(learning_rate=0.1, curvature=0.5),
    ),
    "ema_decay_for_factor": (theory.ema_decay_for_factor, dict(factor=0.5, contraction=0.5)),
    "window_length_for_factor": (
        theory.window_length_for_factor, dict(factor=0.5, contraction=0.5),
    ),
    "predict_average_loss": (theory.predict_average_loss, dict(weights=WEIGHTS, **PAIRS)),
    "AveragePredictor": (
        theory.AveragePredictor,
        dict(loss_errors=0.1, gap_errors=0.1, starts=[0, 0], method="mixture", **PAIRS),
    ),
    "counted pairs": (theory.AveragePredictor, dict(counts=[1, 2], **PAIRS)),
    "predict": (PREDICTOR.predict, dict(weights=WEIGHTS, level=0.9)),
    "optimal": (PREDICTOR.optimal, dict(caution=1.0)),
    "SparsePredictor": (
        theory.SparsePredictor,
        dict(count=9, positions=[0, 2, 4, 6], losses=np.ones(4), starts=[0, 2], gaps=[2, 4],
             jensen_gaps=[0.1, 0.2]),
    ),
    "estimate_spectrum": (
        theory.estimate_spectrum, dict(lags=[1, 2], jensen_gaps=[0.1, 0.2], count=10, every=1,
                                       rate=0.5),
    ),
    "combine_averages": (
        theory.combine_averages, dict(stored=[(KERNEL, 10)], target=KERNEL, num_steps=12),
    ),
    "squared_distances": (theory.squared_distances, dict(snapshots=np.ones((3, 2)))),
    "predict_squared_distance": (
        theory.predict_squared_distance,
        dict(weights=WEIGHTS, to_point=[1.0, 1.0, 1.0], gaps=[1, 2], displacements=[1.0, 2.0]),
    ),
}  # fmt: skip

TEXT, SPECTRA = ["fast"], [[1.0, NAN], [1.0, -0.5], np.ones((2, 3)), "abc"]
VECTORS = [[NAN, 1.0, 1.0], "abc", [[[1.0]]], np.ones(17)]
COUNTS = [1.5, True, -1, "3"]
# What is wrong for a parameter of each name, whichever function takes it.
BAD = {
    "weights": VECTORS[:-1],
    "kernel": [[0.5, 0.6, 0.0], *VECTORS],
    "base": [-0.1, NAN, *VECTORS],
    "rates": VECTORS,
    "schedule": [[], *VECTORS[:-1]],
    "curvature": [-1.0, NAN, "flat"],
    "momentum": [1.0, -0.1, NAN, "heavy"],
    "convention": ["jax", None],
    "curvatures": [[], *SPECTRA],
    "noise_variances": [[1.0], *SPECTRA],
    "initial_variances": [[1.0], *SPECTRA],
    "initial_covariance": [[1.0], [[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.2], [0.1, 1.0]], *SPECTRA],
    "spread": [[1.0], *SPECTRA],
    "target_losses": [1.0, [1.0, -1.0, 1.0], [1.0, NAN, 1.0]],
    "shape": ["cubic"],
    "max_rate": [5.0, 0.0],
    "max_iterations": [0, *COUNTS],
    "candidates": [[[0.1]]],
    "learning_rates": [0.1, [0.1, float("inf")], TEXT],
    "initial": VECTORS,
    "iterate": VECTORS,
    "separation": VECTORS,
    "loss_gradients": VECTORS,
    "learning_rate": [0.0, -0.1, 5.0, NAN, "fast"],
    "lag": COUNTS,
    "num_runs": [1, *COUNTS],
    "seed": COUNTS,
    "kernels": [{"a": 3}, [0.5]],
    "num_steps": COUNTS,
    "contraction": [1.1, NAN, "half"],
    "factor": [1.5, 0.0, "half"],
    "length": [0.5, "long"],
    "decay": [1.0, -0.1, "slow"],
    "every": [0, 20, *COUNTS],
    "batch_size": [0, 6, *COUNTS],
    "population": [None, 0, *COUNTS],
    "losses": VECTORS[:-1],
    "gaps": [[1, 12], [0, 1], [1.5, 1], *VECTORS],
    "lags": [[1, 12], [0, 1], [1.5, 1], *VECTORS],
    "jensen_gaps": [[0.1, NAN], "abc"],
    "loss_errors": [-1.0, NAN, [0.1]],
    "gap_errors": [-1.0, NAN, [0.1]],
    "starts": [[0, 12], [-1, 0], [0.5, 0]],
    "counts": [[1, 0], [1, 1.5], [1]],
    "method": ["spline"],
    "level": [0.0, 1.0, "high"],
    "caution": [-1.0, NAN],
    "positions": [[0, 2, 2, 6], [0, 2, 5, 9], [-1, 2, 5, 7]],
    "count": [0, 1.5, True],
    "rate": [0.0, NAN, "fast"],
    "stored": [[], [(0.9, 5)], [(KERNEL, -1)], [(KERNEL, 20)], [(KERNEL, 10**8)]],
    "snapshots": [np.zeros(3), [[0.0, NAN]], "abc"],
    "to_point": [[1.0, 1.0, -1.0], "abc"],
    "displacements": [[1.0, NAN], "abc"],
}
# Where the function stores another name or takes a wider range.
# Where an argument goes by another name, and where it may be what is bad elsewhere.
NAMES = {
    ("average_moments of weights", "kernel"): "weights",
    ("stationary_factor", "kernel"): "weights",
}
ALLOWED = {("estimate_spectrum", "every", 20)}

CASES = [
    pytest.param(function, name, bad, id=f"{function}-{name}-{index}")
    for function, (_, arguments) in GOOD.items()
    for name in arguments
    for index, bad in enumerate(BAD.get(name, []))
    if not isinstance(bad, int) or (function, name, bad) not in ALLOWED
]


@pytest.mark.parametrize("function", GOOD)
def test_the_sound_arguments_are_sound(function):
    call, arguments = GOOD[function]
    call(**arguments)


@pytest.mark.parametrize(("function", "name", "bad"), CASES)
def test_a_bad_argument_is_named(function, name, bad):
    call, arguments = GOOD[function]
    named = NAMES.get((function, name), name)
    with pytest.raises(ValueError, match=rf"`{named}(\[\d+\])*`.* must .*[Rr]eceived") as error:
        call(**{**arguments, name: bad})
    assert "np.float64" not in str(error.value)


@pytest.mark.parametrize(
    ("function", "change", "message"),
    [
        ("schedule_from_weights", dict(weights=[0.5, 0.4]), "`weights` must sum to 1. .*0.9"),
        ("schedule_from_weights", dict(weights=[1.0]), r"T\+1 weights.* T >= 1"),
        ("schedule_from_weights", dict(curvature=30.0), "stability limit .*= 0.1. Received"),
        (
            "schedule_from_weights",
            dict(weights=kernels.Exponential(0.9), base=0.1),
            "`base` must be a vector of T rates",
        ),
        (
            "weights_from_schedule",
            dict(base=[0.1, 0.0]),
            r"`base` must not be 0 .*base\[1\]=0.0, schedule\[1\]=0.05",
        ),
        (
            "weights_from_schedule",
            dict(schedule=np.full(2000, 9.0), base=0.1, curvature=1.0, momentum=0.0),
            "`schedule` must keep the run within float64's range",
        ),
        ("schedule_mismatch", dict(curvatures=[20.0]), "stability limit"),
        ("fit_schedule", dict(target_losses=1.0), r"or one number with `base` of shape \[T\]"),
        ("fit_schedule", dict(base=4.0), r"stability limit 2.0. Received: rates up to 4.0"),
        ("fold_onto_snapshots", dict(every=3), "`every` must be at most the number of updates, 2"),
        ("fold_onto_snapshots", dict(every=[0, 1]), "update counts that rise to 2"),
        ("loss_curves", dict(kernels={"raw": KERNEL}), "must not use the name 'raw'"),
        ("loss_curves", dict(kernels={"ema": 0.9}), "recursive or lag kernels.*: ema=0.9"),
        ("average_moments of weights", dict(kernel=[0.5, 0.1, 0.1]), "must sum to 1"),
        ("QuadraticModel", dict(curvatures=[[1.0, 2.0]]), r"must have shape \[D\] or \[D, D\]"),
        ("QuadraticModel", dict(curvatures=1.0), r"\[D, D\]. Received: shape=\(\)"),
        ("QuadraticModel", dict(curvatures=[[1.0, 0.2], [0.1, 1.0]]), "must be symmetric"),
        ("QuadraticModel", dict(curvatures=[[1.0, 2.0], [2.0, 1.0]]), "positive semi-definite"),
        ("QuadraticModel", dict(noise_variances=np.ones((2, 3))), r"shape \[2\] or \[2, 2\]"),
        ("stationary_variance", dict(learning_rate=4.0), "below the stability limit 3.0"),
        ("simulate", dict(initial=[1.0]), r"`initial` must have shape \[2\] or \[2, 2\]"),
        ("noise_of_batches", dict(batch_size=6), "`batch_size` must be at most `population` = 5"),
        (
            "stationary_factor",
            dict(kernel=kernels.Uniform(), num_steps=None),
            "`num_steps` must be given",
        ),
        ("stationary_factor", dict(kernel=[0.5, 0.6]), "must sum to 1"),
        ("effective_learning_rate", dict(learning_rate=4.0), "must be below 2, the stability"),
        ("predict_average_loss", dict(jensen_gaps=np.zeros((3, 3))), "`gaps` must be None"),
        (
            "predict_average_loss",
            dict(gaps=None, jensen_gaps=np.zeros((2, 2))),
            r"must have shape \[3, 3\]",
        ),
        (
            "predict_average_loss",
            dict(gaps=None, jensen_gaps=np.eye(3)),
            "symmetric matrix with 0 on its diagonal",
        ),
        (
            "predict_average_loss",
            dict(gaps=None, jensen_gaps=np.triu(np.ones((3, 3)), 1)),
            "symmetric matrix",
        ),
        ("AveragePredictor", dict(starts=[0, 1]), "start 1 with gap 2"),
        ("AveragePredictor", dict(counts=[1, 1]), "`counts` must be None where `starts`"),
        ("SparsePredictor", dict(positions=[0, 1, 2], losses=np.ones(3)), "at least 4 ascending"),
        ("SparsePredictor", dict(starts=[0, 1]), "must be among `positions`"),
        ("estimate_spectrum", dict(jensen_gaps=[0.0, 0.0]), "no mode has a positive amplitude"),
        ("combine_averages", dict(num_steps=9), "at most `num_steps` = 9 updates.*one of 10"),
        (
            "combine_averages",
            dict(stored=[(KERNEL, 10**8)], num_steps=None),
            r"at most 2,147,483,648 bytes.*2,400,000,024 bytes",
        ),
    ],
)
def test_arguments_that_do_not_fit_each_other(function, change, message):
    call, arguments = GOOD[function]
    with pytest.raises(ValueError, match=message):
        call(**{**arguments, **change})
