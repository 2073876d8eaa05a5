"""The training runs of a reproduction: the base run of each seed, and those that fork from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend, batch_norm, kernels
from tf_lrtraj.averaging import WeightAveraging
from tf_lrtraj.experiments.reproduction.bench import Bench
from tf_lrtraj.experiments.reproduction.config import lead
from tf_lrtraj.experiments.reproduction.states import read_arrays, write_arrays
from tf_lrtraj.experiments.reproduction.trainer import Run, state_name

__all__ = ["averages", "base", "fork", "fork_step", "total_steps"]

AVERAGES = "averages.npz"
OTHER_ORDER = 1000  # added to the seed: batches in another order


def total_steps(config: Mapping[str, Any]) -> int:
    """Length of the base run."""
    return int(config["burn_in"] + config["window"])


def fork_step(config: Mapping[str, Any]) -> int:
    """Where runs under an equivalent schedule leave the base run.

    The averages begin `horizon` updates before the end; with momentum the schedule that
    equals them differs from the base rate a little earlier, by powers of the momentum.
    """
    return total_steps(config) - int(config["horizon"]) - lead(config["momentum"])


def base(bench: Bench, seed: int) -> Run:
    """The run at constant rate from scratch, made if it is not there yet.

    Keeps the states others fork from; iterates of the window and, every one, of the horizon;
    and the averages over the horizon, as the callback makes them.
    """
    config = bench.config
    total, burn_in = total_steps(config), config["burn_in"]
    fork, begin = fork_step(config), total - config["horizon"]
    kept = [
        ("window", config["every"], burn_in, total),
        ("horizon", config["horizon_every"], fork, total),
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
        keep=(config["reach"]["steps"], total // 2, burn_in, fork, begin),
        segment=config["segment"],
        snapshots=tuple(kept),
        log_every=config["log_every"],
        whole=(begin, total),
    )
    averaging: list[WeightAveraging] = []

    def callbacks(low: int, high: int) -> Iterable[keras.callbacks.Callback]:
        if low != begin:
            return []
        chosen = {name: kernels.from_config(k) for name, k in config["averages"].items()}
        averaging[:] = [WeightAveraging(chosen, batch_norm="average")]
        return averaging

    def done(low: int, high: int) -> None:
        if low == begin:
            write_arrays(run.folder / AVERAGES, _arrays_of(averaging[0]))

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


def averages(bench: Bench, seed: int) -> dict[str, list[np.ndarray]]:
    """name → arrays of the averages over the horizon, statistics averaged alike."""
    run = base(bench, seed)
    stored = read_arrays(run.folder / AVERAGES)
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
        state: the step of the base run whose state it starts with; `at` by default.  At
            step 0 it starts as the base run does.
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
        found = read_arrays(bench.state_folder("base", seed) / state_name(source))
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
