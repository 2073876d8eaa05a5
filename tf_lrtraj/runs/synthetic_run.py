"""Experiments on the quadratic model, which compare theory, simulation and averaged SGD.

Each function takes its part of the configuration and returns a record: a flat dict of the arrays,
numbers and strings that figures and claims need. `run` calls all functions and writes the records
to a folder; `tf_lrtraj.report.synthetic_figures` draws them.

- `two_time_scales`: averaging lowers the noise of fast modes and keeps the speed of slow ones.
- `averaging_against_schedule`: an average of a constant-rate run, and runs whose rate decays.
- `averaging_length`: the effect of the length of an average, and the best length.
- `single_runs`: one-step curves, distances and the shell for single runs.

No TensorFlow: the whole takes well under a minute.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np

from tf_lrtraj import kernels, records, theory, values
from tf_lrtraj.runs.config_checks import ConfigError, Entry, Schema, count
from tf_lrtraj.theory.simulate import Run

Record = dict[str, Any]

# The largest table, of steps or runs times modes: 0.8 GB.
MOST_NUMBERS = 10**8

__all__ = [
    "SCHEMA",
    "averaging_against_schedule",
    "averaging_length",
    "default_config",
    "run",
    "single_runs",
    "two_time_scales",
]

_POSITIVE = values.number(above=0)
_MODES = Entry(60, count(1), "of the quadratic model")
_SMALLEST = Entry(0.003, _POSITIVE, "curvature; the largest is 1")
_START = Entry(3.0, _POSITIVE, "distance from the minimum in every mode")
_RATE = Entry(0.5, _POSITIVE, "of the runs")
_STEPS = Entry(20_000, count(1), "of a run")
_RUNS = Entry(100, count(1), "that are simulated")
_DECAY = Entry(0.98, _POSITIVE, "of the EMA")


def _rates(default: tuple[float, ...], help: str) -> Entry:
    return Entry(default, values.sequence_of(_POSITIVE, "positive numbers, in a list", 1), help)


def _with(entry: Entry, default: Any) -> Entry:
    return dataclasses.replace(entry, default=default)


_ENTRIES = {
    "seed": Entry(0, values.integer(0), "of the simulations"),
    "two_time_scales.fast_modes": Entry(50, count(1), "of curvature 1, at their minimum, noisy"),
    "two_time_scales.slow_curvature": Entry(0.01, _POSITIVE, "of one mode, far from its minimum"),
    "two_time_scales.slow_start": Entry(30.0, _POSITIVE, "its distance from the minimum"),
    "two_time_scales.large_rate": _RATE,
    "two_time_scales.decay": _DECAY,
    "two_time_scales.num_steps": _STEPS,
    "two_time_scales.num_runs": _RUNS,
    "two_time_scales.path_steps": Entry(
        700, count(1), "of the single run that is drawn in the plane"
    ),
    "averaging_against_schedule.modes": _MODES,
    "averaging_against_schedule.smallest_curvature": _SMALLEST,
    "averaging_against_schedule.start": _START,
    "averaging_against_schedule.rate": _RATE,
    "averaging_against_schedule.num_steps": _with(_STEPS, 2000),
    "averaging_against_schedule.num_runs": _with(_RUNS, 400),
    "averaging_against_schedule.decay": _with(_DECAY, 0.99),
    "averaging_against_schedule.swa_share": Entry(0.25, _POSITIVE, "of the run, at its end"),
    "averaging_against_schedule.gap": Entry(200, count(1), "of the average of two points"),
    "averaging_against_schedule.reference_curvature": Entry(
        0.1, _POSITIVE, "at which a schedule is exact"
    ),
    "averaging_length.modes": _with(_MODES, 40),
    "averaging_length.smallest_curvature": _SMALLEST,
    "averaging_length.start": _START,
    "averaging_length.rates": _rates((0.1, 0.5, 1.5), "of the runs"),
    "averaging_length.num_steps": _with(_STEPS, 1000),
    "averaging_length.lengths": Entry(
        16, count(1), "from 1 to num_steps, evenly in their logarithms"
    ),
    "single_runs.modes": _with(_MODES, 30),
    "single_runs.smallest_curvature": _with(_SMALLEST, 0.05),
    "single_runs.start": _START,
    "single_runs.rate": _with(_RATE, 0.2),
    "single_runs.num_steps": _STEPS,
    "single_runs.rates": _rates((0.01, 0.03, 0.1, 0.3, 1.0), "of runs in stationary states"),
    "single_runs.num_runs": _with(_RUNS, 40),
    "single_runs.decay": _DECAY,
}
SCHEMA = Schema(dict(sorted(_ENTRIES.items())))  # the order of stored configurations


def default_config() -> ml_collections.ConfigDict:
    """Returns every entry with its default; `configs/synthetic.py` starts from here."""
    return SCHEMA.defaults()


def validate(config: Any) -> dict[str, Any]:
    """Returns the configuration as plain dicts, checked, defaults filled in.

    Raises:
        ConfigError: naming the key, the value received and what is allowed; for sizes that
            would not fit into memory too.
    """
    checked = SCHEMA.read(config)
    for name in EXPERIMENTS:
        _check_sizes(f"config.{name}", checked[name])
    return checked


def _check_sizes(where: str, config: Mapping[str, Any]) -> None:
    """Refuses sizes whose tables would not fit into memory."""
    modes = config["modes"] if "modes" in config else config["fast_modes"] + 1
    rows = {key: config[key] for key in ("num_steps", "num_runs", "path_steps") if key in config}
    if where.endswith("single_runs"):
        settling = _settling_steps(min(config["rates"]), config["smallest_curvature"])
        rows["the 5 / (smallest rate · smallest_curvature) steps it takes to settle"] = settling
    for key, number in rows.items():
        if number * modes > MOST_NUMBERS:
            what = f"`{where}.{key}`" if key in config else f"`{where}`: {key}"
            raise ConfigError(
                f"{what} times the number of modes must be at most {MOST_NUMBERS:,}. "
                f"Received: {number:,} times {modes:,}"
            )
    if "lengths" in config and config["lengths"] > config["num_steps"]:
        allowed = f"at most num_steps={config['num_steps']}"
        raise values.error(f"{where}.lengths", allowed, config["lengths"], ConfigError)


def run(config: Any, workdir: str | os.PathLike[str]) -> dict[str, Record]:
    """Makes every experiment and writes its record.

    Writes `config.json` and, per experiment, `NAME.npz` (arrays) and `NAME.json` (the rest).

    Returns:
        {name: record}.

    Raises:
        ConfigError: for anything wrong in the configuration.
        OSError: if the folder cannot be written.
    """
    plain = validate(config)
    folder = pathlib.Path(workdir)
    made = {}
    for name, function in EXPERIMENTS.items():
        try:
            made[name] = function(plain[name], plain["seed"])
        except ValueError as error:
            raise ConfigError(f"config.{name}: {error}") from error
    # Only now, so that an error does not change an earlier record.
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in made.items():
        write_record(folder, name, record)
    records.write_json(folder / "config.json", plain)
    return made


def write_record(folder: pathlib.Path, name: str, record: Mapping[str, Any]) -> None:
    """Writes arrays to `NAME.npz`, everything else to `NAME.json`."""
    arrays = {key: value for key, value in record.items() if isinstance(value, np.ndarray)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    records.write_atomically(folder / f"{name}.npz", buffer.getvalue())
    rest = {key: value for key, value in record.items() if key not in arrays}
    records.write_json(folder / f"{name}.json", rest)


# --- Two time scales ------------------------------------------------------------------------


def two_time_scales(config: Mapping[str, Any], seed: int) -> Record:
    """Fast noisy modes and one slow mode: a large rate, its EMA, and the EMA's effective rate.

    The small rate has the same stationary loss as the EMA (`effective_learning_rate` of the whole
    spectrum).  Both reach the same loss, and the EMA reaches it as fast as the large rate.
    """
    fast = config["fast_modes"]
    a = np.append(np.ones(fast), config["slow_curvature"])
    start = np.append(np.zeros(fast), config["slow_start"])
    model = theory.QuadraticModel(a, np.ones(fast + 1))
    large, steps = config["large_rate"], config["num_steps"]
    kernel = kernels.Exponential(config["decay"])
    small = model.effective_learning_rate(kernel, large)

    rates = {"large": np.full(steps, large), "small": np.full(steps, small)}
    with_ema = model.expected_losses(rates["large"], start, {"ema": kernel})
    curves = {
        "large": with_ema["raw"],
        "ema": with_ema["ema"],
        "small": model.expected_loss(rates["small"], start),
    }
    runs = config["num_runs"]
    first = model.simulate(rates["large"], start, runs, seed, {"ema": kernel})
    second = model.simulate(rates["small"], start, runs, seed + 1)
    shown = np.unique(np.geomspace(1, steps, 40).astype(int))
    simulated: dict[str, Any] = {"large": first, "ema": first.averages["ema"], "small": second}

    # The speed of a curve: steps until it comes within a quarter of the common final loss.
    level = 1.25 * model.stationary_loss(small)
    record: Record = {
        "large_rate": large,
        "small_rate": small,
        "decay": config["decay"],
        "stationary_loss_large": model.stationary_loss(large),
        "stationary_loss_small": model.stationary_loss(small),
        "level": level,
        "simulated_steps": shown,
        "num_runs": runs,
    }
    for name, curve in curves.items():
        found = simulated[name]
        record[f"{name}_losses"] = curve
        record[f"{name}_simulated"] = found.losses[shown]
        record[f"{name}_stderr"] = found.stderr[shown]
        record[f"{name}_largest_miss"] = _largest_miss(found, curve, shown)
        reached = np.flatnonzero(curve <= level)
        record[f"{name}_steps_to_level"] = int(reached[0]) if reached.size else None
    plane = theory.QuadraticModel([1.0, config["slow_curvature"]], [1.0, 1.0])
    begin = np.array([0.0, config["slow_start"]])
    for name, rate in (("large", large), ("small", small)):
        record[f"{name}_path"] = _path(plane, np.full(config["path_steps"], rate), begin, seed)
    record["ema_path"] = _averaged(record["large_path"], kernel)
    return record


# --- Averaging against schedule -------------------------------------------------------------


def averaging_against_schedule(config: Mapping[str, Any], seed: int) -> Record:
    """Averages of a constant-rate run, and runs under the equivalent schedules.

    There are three schedules per average: "flat", exact for frozen gradients; "reference", exact at
    a reference curvature along every path (`path_error` is its relative error there); and "best",
    which never rises and is fitted to the average's loss at the end.  On the
    spectrum the first two are approximations: `ratio` is the scheduled run's loss at the
    end over the average's.
    """
    model = _spectrum(config)
    a, steps, rate = model.mode_curvatures, config["num_steps"], config["rate"]
    start, base = np.full(a.size, config["start"]), np.full(steps, rate)
    reference = config["reference_curvature"]
    named: dict[str, kernels.Kernel] = {
        "ema": kernels.Exponential(config["decay"]),
        "swa": kernels.Uniform(start=round((1.0 - config["swa_share"]) * steps)),
        "two_point": kernels.TwoPoint(config["gap"]),
    }
    curves = model.expected_losses(base, start, named)
    simulated = model.simulate(base, start, config["num_runs"], seed, named)
    last = np.array([steps])
    record: Record = {
        "rate": rate,
        "curvatures": a,
        "reference_curvature": reference,
        "raw_losses": curves["raw"],
        "averages": list(named),
        "kernels": {name: kernel.get_config() for name, kernel in named.items()},
        "raw_largest_miss": _largest_miss(simulated, curves["raw"], last),
    }
    for name, kernel in named.items():
        record[f"{name}_losses"] = curves[name]
        record[f"{name}_largest_miss"] = _largest_miss(simulated.averages[name], curves[name], last)
        weights = kernel.weights(steps)
        end = float(curves[name][-1])
        schedules = {
            "flat": theory.schedule_from_weights(weights, base),
            "reference": theory.schedule_from_weights(weights, base, reference),
            "best": theory.best_schedule(
                model, end, base, start, shape="monotone", weights=weights
            ),
        }
        for kind, schedule in schedules.items():
            scheduled = model.expected_loss(schedule, start)
            record[f"{name}_{kind}_schedule"] = schedule
            record[f"{name}_{kind}_losses"] = scheduled
            record[f"{name}_{kind}_ratio"] = float(scheduled[-1] / end)
        record[f"{name}_path_error"] = _path_error(
            kernel, base, schedules["reference"], reference, seed
        )
    return record


def _path_error(
    kernel: kernels.Kernel, base: np.ndarray, schedule: np.ndarray, curvature: float, seed: int
) -> float:
    """Returns the distance of the scheduled run's end from the average, on the same batches."""
    model = theory.QuadraticModel([curvature], [1.0])
    start = np.array([3.0])
    averaged = _path(model, base, start, seed)
    scheduled = _path(model, schedule, start, seed)
    average = kernel.weights(base.size) @ averaged
    return float(np.abs(scheduled[-1] - average).max() / np.abs(averaged).max())


# --- Length of the average ------------------------------------------------------------------


def averaging_length(config: Mapping[str, Any], seed: int) -> Record:
    """Loss at the end of a run by the length of an average, with bias and variance.

    Lengths are those of a uniform average; the EMA has the decay of equal mean age.
    """
    del seed  # all of it is exact
    model = _spectrum(config)
    a, steps = model.mode_curvatures, config["num_steps"]
    noise, start = model.mode_noise_variances, np.full(a.size, config["start"])
    lengths = np.unique(np.geomspace(1, steps, config["lengths"]).round().astype(int))
    rates = np.array(config["rates"])
    families: dict[str, Callable[[int], kernels.Kernel]] = {
        "ema": lambda n: kernels.Exponential(theory.ema_decay_for_window(n)),
        "swa": kernels.Window,
    }
    record: Record = {"lengths": lengths, "rates": rates, "families": list(families)}
    record["raw_losses"] = np.array(
        [model.expected_loss(np.full(steps, rate), start)[-1] for rate in rates]
    )
    for name, make in families.items():
        bias, variance = np.empty((2, rates.size, lengths.size))
        stationary = np.empty((rates.size, lengths.size))
        for i, rate in enumerate(rates):
            base = np.full(steps, rate)
            for j, length in enumerate(lengths.tolist()):
                kernel = make(length)
                end = theory.average_moments(kernel, a, noise, base, start)
                bias[i, j] = 0.5 * a @ end.mean**2
                variance[i, j] = 0.5 * a @ end.variance
                stationary[i, j] = model.stationary_loss_of_average(kernel, float(rate))
        record[f"{name}_bias"], record[f"{name}_variance"] = bias, variance
        record[f"{name}_stationary"] = stationary
        record[f"{name}_best_length"] = lengths[np.argmin(bias + variance, axis=1)]
    return record


# --- What single runs show ------------------------------------------------------------------


def single_runs(config: Mapping[str, Any], seed: int) -> Record:
    """The model's counterpart of measurements on networks: one-step curves, distances, the shell.

    Values named `…_measured` come from runs, the others from formulas.
    """
    model = _spectrum(config)
    a, rate, steps = model.mode_curvatures, config["rate"], config["num_steps"]
    start, base = np.full(a.size, config["start"]), np.full(steps, rate)
    spread = model.stationary_variance(rate)
    path = _path(model, base, start, seed)
    settled = path[steps // 4 :]

    # One step, on the same batch and on another: far from the minimum, and in the stationary state.
    grid = np.linspace(0.0, 1.2, 61)
    record: Record = {"rate": rate, "step_rates": grid}
    zero = np.zeros(a.size)
    for where, point, around in (("far", start, None), ("settled", zero, spread)):
        for kind, held_out in (("same", False), ("other", True)):
            record[f"{where}_{kind}_losses"] = model.one_step_loss(grid, point, held_out, around)

    # Held-out gain of one more step in the stationary state: 0 at the run's own rate.
    rates = np.array(config["rates"])
    exact, measured, distances, distance_exact = (np.empty(rates.size) for _ in range(4))
    for i, one in enumerate(rates.tolist()):
        exact[i] = model.best_step(zero, True, model.stationary_variance(one)).zero_crossing
        distance_exact[i] = model.stationary_distance(one)
        long = _settling_steps(one, a.min())
        ends = model.simulate(np.full(long, one), zero, config["num_runs"], seed + i).iterates
        squares = np.mean(ends**2, axis=0)
        measured[i] = model.best_step(zero, True, squares).zero_crossing
        distances[i] = np.sqrt(squares.sum())
    record |= {
        "rates": rates,
        "zero_crossings": exact,
        "zero_crossings_measured": measured,
        "distances": distance_exact,
        "distances_measured": distances,
        "distance_exponent": _slope(rates, distance_exact),
        "distance_exponent_measured": _slope(rates, distances),
    }

    # Displacement by lag: it levels off if a run is stationary.
    lags = np.unique(np.geomspace(1, steps // 8, 30).astype(int))
    powers = (1.0 - rate * a) ** lags[:, None]
    record |= {
        "lags": lags,
        "displacement": 2.0 * (1.0 - powers) @ spread,
        "displacement_measured": np.array(
            [np.mean(np.sum((settled[lag:] - settled[:-lag]) ** 2, axis=1)) for lag in lags]
        ),
    }

    # The shell: iterates lie around it, averages inside.
    averaged = _averaged(path, kernels.Exponential(config["decay"]))[steps // 4 :]
    for name, points in (("iterate", settled), ("average", averaged)):
        some = points[:: max(1, len(points) // 2000)]
        record[f"{name}_positions"] = np.array([model.shell(p, rate).position for p in some])
        record[f"{name}_norms"] = np.linalg.norm(some, axis=1)

    # Two runs, on the same batches from different starts, and on different batches.
    count = min(steps, int(np.ceil(4.0 / (rate * a.min()))))
    other = _path(model, base[:count], -start, seed)
    apart = _path(model, base[:count], -start, seed + 1)
    for name, shared, second in (("shared", True, other), ("independent", False, apart)):
        record[f"{name}_square_distance"] = model.trajectory_distance(
            base[:count], 2.0 * start, shared_batches=shared
        )
        record[f"{name}_square_distance_measured"] = np.sum(
            (path[: count + 1] - second) ** 2, axis=1
        )

    # Alignment of gradients along the run.
    shown = np.unique(np.append(0, np.geomspace(1, steps, 60).astype(int)))
    found = [model.gradient_statistics(path[step]) for step in shown]
    record |= {
        "alignment_steps": shown,
        "cosine_between_batches": np.array([one.cosine_between_batches for one in found]),
        "cosine_to_full": np.array([one.cosine_to_full for one in found]),
        "noise_scale": np.array([one.noise_scale for one in found]),
    }
    return record


# --- Helpers --------------------------------------------------------------------------------


def _spectrum(config: Mapping[str, Any]) -> theory.QuadraticModel:
    a = np.geomspace(config["smallest_curvature"], 1.0, config["modes"])
    return theory.QuadraticModel(a, np.ones(a.size))


def _settling_steps(rate: float, curvature: float) -> int:
    """Returns the steps after which the start has decayed to e⁻⁵."""
    return int(np.ceil(min(5.0 / max(rate * curvature, 1e-300), 1e18)))


def _path(
    model: theory.QuadraticModel, rates: np.ndarray, start: np.ndarray, seed: int
) -> np.ndarray:
    """[T+1, D] iterates of one run on a spectrum; the same seed draws the same batches."""
    noise = np.sqrt(model.mode_noise_variances)
    random = np.random.default_rng(seed)
    one = Run(start[None].copy(), random, model.mode_curvatures, noise)
    path = [start]
    for rate in rates.tolist():
        one.step(rate)
        path.append(one.theta[0].copy())
    return np.array(path)


def _averaged(path: np.ndarray, kernel: kernels.RecursiveKernel) -> np.ndarray:
    """[T+1, D] running average of a path."""
    average = np.empty_like(path)
    for t, alpha in enumerate(kernel.mixing(np.arange(len(path))).tolist()):
        before = average[t - 1] if t else path[0]
        average[t] = before + alpha * (path[t] - before)
    return average


def _largest_miss(simulated: Any, expected: np.ndarray, steps: np.ndarray) -> float:
    """Returns the largest distance of simulation and theory at some steps, in standard errors."""
    return float(
        np.max(np.abs(simulated.losses[steps] - expected[steps]) / simulated.stderr[steps])
    )


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Exponent of a power law, by least squares on logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


EXPERIMENTS: dict[str, Callable[[Mapping[str, Any], int], Record]] = {
    "two_time_scales": two_time_scales,
    "averaging_against_schedule": averaging_against_schedule,
    "averaging_length": averaging_length,
    "single_runs": single_runs,
}
