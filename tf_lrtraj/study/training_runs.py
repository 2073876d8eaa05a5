"""The training runs of a study: the base run of each seed, and runs that fork from it."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend, kernels
from tf_lrtraj.averaging import WeightAveraging
from tf_lrtraj.backend import batch_norm
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.state_files import read_arrays, write_arrays
from tf_lrtraj.study.study_config import lead
from tf_lrtraj.study.trainer import Run, Watch, state_name

__all__ = [
    "Averages",
    "averages",
    "base",
    "ends",
    "fork",
    "fork_step",
    "horizon_name",
    "total_steps",
]

OTHER_ORDER = 1000  # added to the seed: batches in another order


def total_steps(config: Mapping[str, Any]) -> int:
    """Returns the number of steps of the base run."""
    return int(config["burn_in"] + config["window"])


def ends(config: Mapping[str, Any]) -> list[int]:
    """Returns the last steps of the `places` horizons, evenly spaced over the window.

    >>> ends({"burn_in": 100, "window": 60, "places": 2})
    [130, 160]
    """
    places = int(config["places"])
    return [config["burn_in"] + config["window"] * (i + 1) // places for i in range(places)]


def fork_step(config: Mapping[str, Any], end: int | None = None) -> int:
    """Returns the step at which runs under an equivalent schedule leave the base run.

    The averages begin `horizon` updates before `end`.  With momentum their schedule differs from
    the base rate slightly earlier, by powers of the momentum.  The kept iterates of a horizon begin
    here, so that its end is one of them.

    Args:
        end: the last step of the horizon; the base run's end by default.
    """
    end = total_steps(config) if end is None else end
    every = int(config["horizon_every"])
    return end - int(config["horizon"]) - -(-lead(config["momentum"]) // every) * every


def horizon_name(config: Mapping[str, Any], end: int) -> str:
    """Returns the name of the folder of the iterates of the horizon that ends at `end`."""
    return "horizon" if end == total_steps(config) else f"horizon-{end}"


def _averages_name(config: Mapping[str, Any], end: int) -> str:
    return "averages.npz" if end == total_steps(config) else f"averages-{end}.npz"


def base(session: Session, seed: int) -> Run:
    """Returns the run at constant rate from scratch; trains it if needed.

    It keeps the states from which others fork, iterates of the window, every iterate of each
    horizon, and the averages over each horizon that the callback computes.
    """
    config = session.config
    total, burn_in, speed = total_steps(config), config["burn_in"], config["speed"]
    horizons = {end - config["horizon"]: end for end in ends(config)}
    forks = {end: fork_step(config, end) for end in horizons.values()}
    snapshots = [("window", config["every"], burn_in, total)]
    snapshots += [
        (horizon_name(config, end), config["horizon_every"], at, end) for end, at in forks.items()
    ]
    if seed < speed["seeds"]:  # 12 iterates for each step at which early averages are compared
        every = max(int(speed["steps"]) // (12 * int(speed["places"])), 1)
        snapshots.append(("early", every, 0, speed["steps"]))
    run = session.run(
        "base",
        seed,
        np.full(total, config["learning_rate"]),
        keep=(
            *(config["reach"]["steps"], total // 2, burn_in),
            *(*forks.values(), *horizons, *config["start"]["steps"]),
        ),
        snapshots=tuple(snapshots),
        whole=tuple(horizons.items()),
    )
    chosen = {name: kernels.from_config(entry) for name, entry in config["averages"].items()}
    watch = Averages(
        lambda low, high: chosen if low in horizons else {},
        lambda low, high: _averages_name(config, high),
    )
    return session.finish(run, f"seed {seed}: constant rate", watch)


class Averages(Watch):
    """Averages over segments, each written at the end of its segment.

    Args:
        kernels_of: first and last step of a segment → name → kernel; {} for no average.
        file_name: first and last step → the name of the file in the run's folder, with the arrays
            `<average>/<i>`: trainable weights, then averaged mean and variance of each batch norm.
    """

    def __init__(
        self,
        kernels_of: Callable[[int, int], Mapping[str, kernels.Kernel]],
        file_name: Callable[[int, int], str],
    ) -> None:
        self._kernels_of = kernels_of
        self._file_name = file_name
        self._averaging: WeightAveraging | None = None

    def callbacks(self, low: int, high: int) -> list[keras.callbacks.Callback]:
        chosen = dict(self._kernels_of(low, high))
        self._averaging = WeightAveraging(chosen, batch_norm="average") if chosen else None
        return [] if self._averaging is None else [self._averaging]

    def done(self, run: Run, low: int, high: int) -> None:
        if self._averaging is None:
            return
        found = {}
        for name in self._averaging.averages:
            with self._averaging.borrowed(name) as model:
                own = backend.values(batch_norm.weights_and_statistics(model))
                for i, array in enumerate(backend.to_numpy(own)):
                    found[f"{name}/{i}"] = array
        write_arrays(run.folder / self._file_name(low, high), found)


def averages(session: Session, seed: int, end: int | None = None) -> dict[str, list[np.ndarray]]:
    """Returns name → arrays of the averages over a horizon, with averaged statistics.

    Args:
        end: the last step of the horizon; the base run's end by default.
    """
    run = base(session, seed)
    name_of_file = _averages_name(session.config, run.last if end is None else end)
    stored = read_arrays(run.folder / name_of_file)
    counts = collections.Counter(key.rpartition("/")[0] for key in stored)
    return {
        name: [stored[f"{name}/{i}"] for i in range(counts[name])]
        for name in session.config["averages"]
    }


def fork(
    session: Session,
    seed: int,
    name: str,
    at: int,
    rates: Any,
    *,
    of: str = "base",
    momentum: float | None = None,
    order: int | None = None,
    keep: tuple[int, ...] = (),
    every: int | None = None,
    watch: Watch | None = None,
) -> Run:
    """Returns a run that forks from the base run; trains it if needed.

    Args:
        name: the name of its folder.
        at: the step from which it starts (and whose batch it uses first).
        rates: [n] rates of its steps.
        of: the name of the run from whose state it starts, which must exist; at step 0 it starts
            like the base run.
        momentum: the base run's by default.  With another the velocity starts at 0.
        order: seed of the order of batches; the base run's by default.
        keep: steps whose states are kept.
        every: steps between iterates kept in the folder "window".
        watch: additional work during its segments.
    """
    rates = np.asarray(rates, np.float64)

    def start() -> dict[str, np.ndarray]:
        if at == 0:
            return session.initial(seed)
        found = read_arrays(session.state_folder(of, seed) / state_name(at))
        if momentum not in (None, session.config["momentum"]):
            found = {key: a for key, a in found.items() if not key.startswith("velocity/")}
        return found

    run = session.run(
        name,
        seed,
        rates,
        first=at,
        start=start,
        momentum=momentum,
        order_seed=order,
        keep=keep,
        snapshots=() if every is None else (("window", every, at, at + len(rates)),),
    )
    if at and not run.path(run.last).exists():
        base(session, seed)
    return session.finish(run, f"seed {seed}: {name}", watch)
