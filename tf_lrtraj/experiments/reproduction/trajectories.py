"""What trajectories do at constant rates: the base run's record, other rates, pairs, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.averaging.post_hoc import combine
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.experiments.reproduction import iterates, runs, schedules
from tf_lrtraj.experiments.reproduction.bench import Bench
from tf_lrtraj.experiments.reproduction.task import Sizes, Task, base_run
from tf_lrtraj.experiments.reproduction.trainer import arrays_of
from tf_lrtraj.theory import mean_squared_displacement

__all__ = ["TASKS", "base", "one_step", "pairs", "rates", "speed"]


def _vector(bench: Bench, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The trainable weights of a snapshot, in one vector."""
    count = len(bench.model.trainable_variables)
    return np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in arrays[:count]])


def base(bench: Bench, seed: int) -> None:
    """Batch losses of the base run from its first step, and norms over the window."""
    run, config = runs.base(bench, seed), bench.config
    steps, losses = run.log()
    snapshots = bench.snapshots(seed)
    norms = [float(np.sum(_vector(bench, snapshots.read(s)) ** 2)) for s in snapshots.steps]
    about = {
        key: config[key]
        for key in (
            "learning_rate",
            "momentum",
            "weight_decay",
            "batch_size",
            "burn_in",
            "window",
            "horizon",
            "every",
        )
    }
    about |= {
        "num_train": bench.problem.num_train,
        "augmentation": bench.problem.augmentation,
        "num_test": len(bench.problem.x_test),
        "image_shape": list(bench.problem.x_train.shape[1:]),
        "num_weights": int(sum(np.prod(v.shape) for v in bench.model.trainable_variables)),
    }
    bench.store(
        "base",
        seed,
        (),
        about,
        steps=steps,
        batch_loss=losses,
        snapshot_steps=snapshots.steps,
        squared_norm=norms,
    )


def _spread(vectors: Sequence[np.ndarray]) -> float:
    """Mean squared distance to the centre of the stationary state: half the displacement at
    lags of half the stretch, which a finite mean would underestimate."""
    lag = len(vectors) // 2
    return 0.5 * float(mean_squared_displacement(vectors, lag)[lag])


def rates(bench: Bench, seed: int) -> None:
    """Squared distance to the centre at several constant rates, over two halves of a late part."""
    config, rows = bench.config, []
    for factor in sorted({1.0, *config["rates"]}, reverse=True):
        if factor == 1.0:
            run = runs.base(bench, seed)
            snapshots = bench.snapshots(seed)
        else:
            run = schedules.lower_rate_run(bench, seed, factor)
            snapshots = bench.snapshots(seed, run.folder.name)
        steps, losses = run.log()
        # The first quarter of the window is left to the new rate to settle.
        late = snapshots.steps[snapshots.steps >= run.last - 0.75 * config["window"]]
        for half, part in enumerate(np.array_split(late, 2), start=1):
            vectors = [_vector(bench, snapshots.read(int(step))) for step in part]
            inside = (steps > part[0]) & (steps <= part[-1])
            rows.append(
                {
                    "learning_rate": factor * config["learning_rate"],
                    "half": half,
                    "from_step": int(part[0]),
                    "to_step": int(part[-1]),
                    "iterates": len(part),
                    "squared_distance": _spread(vectors),
                    "squared_norm": float(np.mean([v @ v for v in vectors])),
                    "batch_loss": float(losses[inside].mean()),
                    "batch_loss_se": float(losses[inside].std(ddof=1) / np.sqrt(inside.sum())),
                }
            )
    bench.store("rates", seed, rows)


def pairs(bench: Bench, seed: int) -> None:
    """Distances of two trajectories: on the same batches from apart, on others from together."""
    config = bench.config
    burn_in, every, low = config["burn_in"], config["every"], config["pairs"]["factor"]
    runs.base(bench, seed)
    constant = np.full(config["window"], config["learning_rate"])
    slow = schedules.lower_rate_run(bench, seed, low)
    shared = runs.fork(
        bench,
        seed,
        "pair-shared",
        burn_in,
        constant,
        state=runs.total_steps(config) // 2,
        every=every,
    )
    apart = runs.fork(
        bench, seed, "pair-apart", burn_in, constant, order=seed + runs.OTHER_ORDER, every=every
    )
    slow_apart = runs.fork(
        bench,
        seed,
        f"pair-apart-{low:g}",
        burn_in,
        low * constant,
        order=seed + runs.OTHER_ORDER,
        every=every,
    )
    rows: list[dict[str, Any]] = []
    for batches, factor, first, second in (
        ("shared", 1.0, "base", shared.folder.name),
        ("independent", 1.0, "base", apart.folder.name),
        ("independent", low, slow.folder.name, slow_apart.folder.name),
    ):
        left, right = bench.snapshots(seed, first), bench.snapshots(seed, second)
        for step in left.steps.tolist():
            difference = _vector(bench, left.read(step)) - _vector(bench, right.read(step))
            rows.append(
                {
                    "batches": batches,
                    "learning_rate": factor * config["learning_rate"],
                    "step": step - burn_in,
                    "squared_distance": float(difference @ difference),
                }
            )
    bench.store("pairs", seed, rows)


def one_step_run(bench: Bench, seed: int) -> Any:
    """A run without momentum at the same effective rate, from the burn-in's end."""
    config = bench.config
    rate = config["learning_rate"] / (1.0 - config["momentum"])
    return runs.fork(
        bench,
        seed,
        "one_step",
        config["burn_in"],
        np.full(config["window"], rate),
        momentum=0.0,
        every=config["every"],
    )


def one_step(bench: Bench, seed: int) -> None:
    """The record of that run; what its steps do to other batches is measured along lines."""
    run, config = one_step_run(bench, seed), bench.config
    steps, losses = run.log()
    about = {
        "learning_rate": float(run.rates[0]),
        "momentum": run.momentum,
        "window": config["window"],
        "first": run.first,
    }
    bench.store("one_step", seed, (), about, steps=steps, batch_loss=losses)


def speed(bench: Bench, seed: int) -> None:
    """From scratch: iterates at the rate, averages of them, and iterates at a small rate."""
    config = bench.config
    settings = config["speed"]
    small = config["learning_rate"] * settings["factor"]
    runs.base(bench, seed)
    early = bench.snapshots(seed, which="early")
    places = _places(early, settings["places"])
    slow = runs.fork(
        bench, seed, "speed-small", 0, np.full(settings["steps"], small), keep=tuple(places)
    )
    rows: list[dict[str, Any]] = []
    for step in places:
        weights = np.zeros(len(early))
        weights[(early.steps > 2 * step / 3) & (early.steps <= step)] = 1.0
        average = combine(early, {"average": weights / weights.sum()}, progress=False)["average"]
        for rate, of, arrays in (
            (config["learning_rate"], "raw", early.read(step)),
            (config["learning_rate"], "average", average),
            (small, "raw", arrays_of(slow.state(step))),
        ):
            scored = bench.scorer.score(arrays, iterates.PART)
            rows += [{"learning_rate": rate, "of": of, "step": step, **row} for row in scored]
    bench.store("speed", seed, rows, {"window_share": 1 / 3})


def _places(early: Snapshots, number: int) -> list[int]:
    """`number` steps of snapshots, evenly over them, the last included."""
    indices = np.round(np.arange(1, number + 1) * (len(early) - 1) / number).astype(int)
    return [int(step) for step in early.steps[indices]]


def _with_rates(config: Mapping[str, Any], factors: Sequence[float]) -> dict[str, int]:
    """The base run and those at other constant rates over the window."""
    others = {f"rate-{f:g}": int(config["window"]) for f in factors if f != 1.0}
    return base_run(config) | others


def _rates_steps(config: Mapping[str, Any]) -> dict[str, int]:
    return _with_rates(config, config["rates"])


def _pairs_steps(config: Mapping[str, Any]) -> dict[str, int]:
    return _with_rates(config, [config["pairs"]["factor"]]) | {"pairs": 3 * config["window"]}


def one_step_steps(config: Mapping[str, Any]) -> dict[str, int]:
    """Of tasks that read the run without momentum."""
    return base_run(config) | {"one_step": config["window"]}


def _speed_steps(config: Mapping[str, Any]) -> dict[str, int]:
    return base_run(config) | {"speed": config["speed"]["steps"]}


def _speed_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    return 3.0 * config["speed"]["places"] * sizes.some


TASKS = (
    Task("base", base, "the run at constant rate"),
    Task("rates", rates, "distances at several constant rates", steps=_rates_steps),
    Task("pairs", pairs, "distances between two trajectories", steps=_pairs_steps),
    Task("one_step", one_step, "a run without momentum", steps=one_step_steps),
    Task(
        "speed",
        speed,
        "early losses at a large and a small rate",
        steps=_speed_steps,
        images=_speed_images,
    ),
)
