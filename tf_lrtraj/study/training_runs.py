"""The training runs of a reproduction: the base run of each seed, and those that fork from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend, kernels
from tf_lrtraj.averaging import WeightAveraging
from tf_lrtraj.backend import batch_norm
from tf_lrtraj.study.session import Bench
from tf_lrtraj.study.state_files import read_arrays, write_arrays
from tf_lrtraj.study.study_config import lead
from tf_lrtraj.study.trainer import Run, state_name

__all__ = ["averages", "base", "ends", "fork", "fork_step", "horizon_name", "total_steps"]

OTHER_ORDER = 1000  # added to the seed: batches in another order


def total_steps(config: Mapping[str, Any]) -> int:
    """Length of the base run."""
    return int(config["burn_in"] + config["window"])


def ends(config: Mapping[str, Any]) -> list[int]:
    """Steps at which horizons end: `places` of them, evenly over the window, the last at its end.

    >>> ends({"burn_in": 100, "window": 60, "places": 2})
    [130, 160]
    """
    places = int(config["places"])
    return [config["burn_in"] + config["window"] * (i + 1) // places for i in range(places)]


def fork_step(config: Mapping[str, Any], end: int | None = None) -> int:
    """Where runs under an equivalent schedule leave the base run.

    The averages begin `horizon` updates before `end`; with momentum the schedule that equals them
    differs from the base rate a little earlier, by powers of the momentum.  The iterates that are
    kept of a horizon begin here, so its end is one of them.

    Args:
        end: of the horizon; the base run's end by default.
    """
    end = total_steps(config) if end is None else end
    every = int(config["horizon_every"])
    return end - int(config["horizon"]) - -(-lead(config["momentum"]) // every) * every


def horizon_name(config: Mapping[str, Any], end: int) -> str:
    """The folder of the iterates of the horizon that ends there."""
    return "horizon" if end == total_steps(config) else f"horizon-{end}"


def _averages_name(config: Mapping[str, Any], end: int) -> str:
    return "averages.npz" if end == total_steps(config) else f"averages-{end}.npz"


def base(bench: Bench, seed: int) -> Run:
    """The run at constant rate from scratch, made if it is not there yet.

    Keeps the states others fork from; iterates of the window and, every one, of each horizon;
    and the averages over each horizon, as the callback makes them.
    """
    config = bench.config
    total, burn_in = total_steps(config), config["burn_in"]
    stretches = {end - config["horizon"]: end for end in ends(config)}
    forks = {end: fork_step(config, end) for end in stretches.values()}
    kept = [("window", config["every"], burn_in, total)]
    kept += [
        (horizon_name(config, end), config["horizon_every"], at, end) for end, at in forks.items()
    ]
    speed = config["speed"]
    if seed < speed["seeds"]:
        kept.append(("early", _early_every(config), 0, speed["steps"]))
    run = Run(
        bench.trainer,
        bench.state_folder("base", seed),
        0,
        np.full(total, config["learning_rate"]),
        config["momentum"],
        seed,
        lambda: bench.initial(seed),
        keep=(
            *(config["reach"]["steps"], total // 2, burn_in),
            *(*forks.values(), *stretches, *config["start"]["steps"]),
        ),
        segment=config["segment"],
        snapshots=tuple(kept),
        log_every=config["log_every"],
        whole=tuple(stretches.items()),
    )
    averaging: list[WeightAveraging] = []

    def callbacks(low: int, high: int) -> Iterable[keras.callbacks.Callback]:
        if low not in stretches:
            return []
        chosen = {name: kernels.from_config(k) for name, k in config["averages"].items()}
        averaging[:] = [WeightAveraging(chosen, batch_norm="average")]
        return averaging

    def done(low: int, high: int) -> None:
        if low in stretches:
            write_arrays(run.folder / _averages_name(config, high), _arrays_of(averaging[0]))

    bench.finish(run, f"seed {seed}: constant rate", callbacks, done)
    return run


def _early_every(config: Mapping[str, Any]) -> int:
    """Spacing of the first iterates, 12 for each place where early averages are looked at."""
    return max(int(config["speed"]["steps"]) // (12 * int(config["speed"]["places"])), 1)


def _arrays_of(averaging: WeightAveraging) -> dict[str, np.ndarray]:
    """`<average>/<i>`: trainable weights, then averaged mean and variance of each batch norm."""
    found = {}
    for name in averaging.averages:
        with averaging.borrowed(name) as model:
            own = list(model.trainable_variables)
            for entry in batch_norm.find_statistics(model):
                own += [entry.layer.moving_mean, entry.layer.moving_variance]
            for i, array in enumerate(backend.to_numpy(backend.values(own))):
                found[f"{name}/{i}"] = array
    return found


def averages(bench: Bench, seed: int, end: int | None = None) -> dict[str, list[np.ndarray]]:
    """name → arrays of the averages over a horizon, statistics averaged alike.

    Args:
        end: of the horizon; the base run's end by default.
    """
    run = base(bench, seed)
    stored = read_arrays(
        run.folder / _averages_name(bench.config, run.last if end is None else end)
    )
    found = {}
    for name in bench.config["averages"]:
        count = sum(key.startswith(f"{name}/") for key in stored)
        found[name] = [stored[f"{name}/{i}"] for i in range(count)]
    return found


def fork(
    bench: Bench,
    seed: int,
    name: str,
    at: int,
    rates: Any,
    *,
    state: int | None = None,
    of: str = "base",
    momentum: float | None = None,
    order: int | None = None,
    keep: tuple[int, ...] = (),
    every: int | None = None,
) -> Run:
    """A run that leaves the base run, made if it is not there yet.

    Args:
        name: of its folder.
        at: the step it starts from (and whose batch it takes first).
        rates: [n] rates of its steps.
        state: the step of the other run whose state it starts with; `at` by default.  At
            step 0 it starts as the base run does.
        of: the name of that run, which must have been made.
        momentum: the base run's by default.  With another the velocity starts at 0.
        order: seed of the order of batches; the base run's by default.
        keep: steps whose states are kept.
        every: keep an iterate so often, in the folder "window".
    """
    config = bench.config
    rates = np.asarray(rates, np.float64)
    momentum = config["momentum"] if momentum is None else momentum
    source = at if state is None else state
    last = at + len(rates)

    def start() -> dict[str, np.ndarray]:
        if source == 0:
            return bench.initial(seed)
        found = read_arrays(bench.state_folder(of, seed) / state_name(source))
        if momentum != config["momentum"]:
            found = {key: a for key, a in found.items() if not key.startswith("velocity/")}
        return found

    run = Run(
        bench.trainer,
        bench.state_folder(name, seed),
        at,
        rates,
        momentum,
        seed if order is None else order,
        start,
        keep=keep,
        segment=config["segment"],
        snapshots=() if every is None else (("window", every, at, last),),
        log_every=config["log_every"],
    )
    if source and not run.path(run.last).exists():
        base(bench, seed)
    bench.finish(run, f"seed {seed}: {name}")
    return run
