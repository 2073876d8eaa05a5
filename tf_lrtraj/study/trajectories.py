"""What trajectories do at constant rates: the base run, other rates, pairs, first steps, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import backend, probes
from tf_lrtraj.averaging.post_hoc import combine
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.probes.directions import Filters
from tf_lrtraj.probes.vectors import dot, joined, square_distance
from tf_lrtraj.study import iterates, schedule_runs, study_points, training_runs
from tf_lrtraj.study.session import Bench
from tf_lrtraj.study.task import Sizes, Task, base_run
from tf_lrtraj.study.trainer import Run, arrays_of

__all__ = ["TASKS", "base", "ema_times", "one_step", "pairs", "rates", "speed", "start"]

_PAIRS = 24  # of iterates one lag apart, from which a mean squared displacement is taken


def _vector(bench: Bench, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The trainable weights of a snapshot, in one vector."""
    return joined(arrays[: len(bench.model.trainable_variables)])


def base(bench: Bench, seed: int) -> None:
    """Batch losses of the base run from its first step, and norms over the window."""
    run, config = training_runs.base(bench, seed), bench.config
    steps, losses = run.log()
    snapshots = bench.snapshots(seed)
    vectors = (_vector(bench, snapshots.read(step)) for step in snapshots.steps.tolist())
    norms = [dot(vector, vector) for vector in vectors]
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


def _at_rate(bench: Bench, seed: int, factor: float) -> Run:
    """The run at `factor` times the base rate over the window; the base run itself at 1."""
    return (
        training_runs.base(bench, seed)
        if factor == 1.0
        else schedule_runs.lower_rate_run(bench, seed, factor)
    )


def rates(bench: Bench, seed: int) -> None:
    """Squared distance to the centre at several constant rates, over two halves of a late part.

    Half of the mean squared displacement, of the weights and of filters divided by their norms
    (mean of 2 - 2 cos), at a lag in proportion to 1 / rate: at one lag for all, small rates would
    be given less of the time that they need.  Beside it the squared norms, and the excess loss at
    each rate that the quadratic model of the base run predicts.
    """
    config = bench.config
    factors = sorted({1.0, *config["rates"]}, reverse=True)
    variables = bench.model.trainable_variables
    filters = Filters([tuple(v.shape) for v in variables], probes.filter_axes_of(bench.model))
    rows: list[dict[str, Any]] = []
    norms: list[dict[str, Any]] = []
    for factor in factors:
        rate, run = factor * config["learning_rate"], _at_rate(bench, seed, factor)
        snapshots = bench.snapshots(seed, run.folder.name)
        steps, losses = run.log()
        # The first quarter of the window is left to the new rate to settle.
        late = snapshots.steps[snapshots.steps >= run.last - 0.75 * config["window"]]
        halves = np.array_split(late, 2)
        # At the smallest rate half of a half's length.
        shortest = max(int(0.5 * len(halves[1]) * factors[-1] / factors[0]), 1)
        lag = min(round(shortest * factors[0] / factor), len(halves[1]) - 1)
        for half, part in enumerate(halves, start=1):
            starts = np.linspace(0, len(part) - 1 - lag, min(len(part) - lag, _PAIRS))
            squares, angles = [], []
            for i in np.round(starts).astype(int).tolist():
                ends = [_vector(bench, snapshots.read(int(part[k]))) for k in (i, i + lag)]
                squares.append(square_distance(*ends))
                angles.append(filters.square_distance(*ends))
            inside = (steps > part[0]) & (steps <= part[-1])
            rows.append(
                {
                    "learning_rate": rate,
                    "half": half,
                    "from_step": int(part[0]),
                    "to_step": int(part[-1]),
                    "lag": int(part[lag] - part[0]),
                    "squared_distance": 0.5 * float(np.mean(squares)),
                    "filters_squared_distance": 0.5 * float(np.mean(angles)),
                    "batch_loss": float(losses[inside].mean()),
                }
            )
        for step in halves[1].tolist():
            vector = _vector(bench, snapshots.read(step))
            norms.append({"learning_rate": rate, "step": step, "squared_norm": dot(vector, vector)})
    model = iterates.estimate(bench, seed).model
    effective = config["learning_rate"] / (1.0 - config["momentum"])
    predicted = [
        {
            "learning_rate": factor * config["learning_rate"],
            "excess": float(model.stationary_loss(factor * effective)),
        }
        for factor in factors
        if factor <= 1.0  # beyond, the model need not be stable
    ]
    single = bench.read("sweep", seed)["about"]["mean_single_loss"][iterates.PART[0]]
    about = {"single_loss": single, "learning_rate": config["learning_rate"]}
    bench.store("rates", seed, rows, about, norms=norms, predicted=predicted)


def pairs(bench: Bench, seed: int) -> None:
    """Distances of two runs from one state: on independent batches, and shared from half-way on."""
    config = bench.config
    burn_in, every, steps = config["burn_in"], config["every"], config["pairs"]["steps"]
    half = burn_in + steps // 2
    rows: list[dict[str, Any]] = []
    for factor in (1.0, config["pairs"]["factor"]):
        name, rate = f"pair-{factor:g}", factor * config["learning_rate"]
        first = _at_rate(bench, seed, factor)
        apart = training_runs.fork(
            bench,
            seed,
            name,
            burn_in,
            np.full(steps, rate),
            order=seed + training_runs.OTHER_ORDER,
            keep=(half,),
            every=every,
        )
        shared = training_runs.fork(
            bench,
            seed,
            f"{name}-shared",
            half,
            np.full(burn_in + steps - half, rate),
            of=name,
            every=every,
        )
        left = bench.snapshots(seed, first.folder.name)
        for batches, second in (("independent", apart), ("shared", shared)):
            right = bench.snapshots(seed, second.folder.name)
            for step in right.steps.tolist():
                ends = [_vector(bench, one.read(step)) for one in (left, right)]
                rows.append(
                    {
                        "batches": batches,
                        "learning_rate": rate,
                        "step": step - burn_in,
                        "squared_distance": square_distance(*ends),
                    }
                )
    about = {"switch": half - burn_in, "learning_rate": config["learning_rate"]}
    bench.store("pairs", seed, rows, about)


def start(bench: Bench, seed: int) -> None:
    """The first steps: gradients of batches beside each other, and two runs from one point.

    The second run takes independent batches.  At each step `pair_cosine`, the mean cosine of
    gradients of two batches; cosines of their mean with the displacement so far and with the mean
    at the start; and the runs' squared distance.  The last row is from the burn-in's end.
    """
    config = bench.config
    steps, rate = config["start"]["steps"], config["learning_rate"]
    first = training_runs.base(bench, seed)
    second = training_runs.fork(
        bench,
        seed,
        "start-other",
        0,
        np.full(max(steps), rate),
        order=seed + training_runs.OTHER_ORDER,
        keep=tuple(steps),
    )
    (chosen,) = study_points.drawn(bench, (config["start"]["batches"],), [seed, 4])
    batches = study_points.taken(bench, chosen)
    origin = _vector(bench, arrays_of(bench.initial(seed)))
    rows: list[dict[str, Any]] = []
    at_start = np.zeros(0)
    for step in bench.bar([*steps, config["burn_in"]], "first steps"):
        here = arrays_of(first.state(step) if step else bench.initial(seed))
        point = bench.surface.point(here)
        gradients = [joined(backend.to_numpy(bench.surface.gradient(point, b)[1])) for b in batches]
        count = len(gradients)
        units = sum((g / np.sqrt(dot(g, g)) for g in gradients), np.zeros(origin.size))
        row: dict[str, Any] = {"step": step}
        row["pair_cosine"] = (float(units @ units) - count) / (count * (count - 1))
        if step in steps:
            mean = np.mean(gradients, axis=0)
            at_start = mean if not step else at_start
            moved = _vector(bench, here) - origin
            row["cosine_to_start"] = _cosine(mean, at_start) if at_start.size else None
            if step:
                row["cosine_to_displacement"] = _cosine(-mean, moved)
                there = _vector(bench, arrays_of(second.state(step))) - origin
                row |= {
                    "squared_displacement": 0.5 * (dot(moved, moved) + dot(there, there)),
                    "squared_distance": square_distance(moved, there),
                }
        rows.append(row)
    bench.store("start", seed, rows, {"learning_rate": rate})


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return dot(first, second) / float(np.sqrt(dot(first, first) * dot(second, second)))


def one_step_run(bench: Bench, seed: int) -> Any:
    """A run without momentum at the same effective rate, from the burn-in's end."""
    config = bench.config
    rate = config["learning_rate"] / (1.0 - config["momentum"])
    return training_runs.fork(
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
    training_runs.base(bench, seed)
    early = bench.snapshots(seed, which="early")
    places = _places(early, settings["places"])
    slow = training_runs.fork(
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
            scored = bench.scorer.score(arrays, iterates.SWEPT)
            rows += [{"learning_rate": rate, "of": of, "step": step, **row} for row in scored]
    bench.store("speed", seed, rows, {"window_share": 1 / 3})


def ema_times(bench: Bench, seed: int) -> None:
    """EMAs of iterates against their time, while the loss still falls and when it has settled.

    Of the first iterates, taken at the end of `speed.steps`, and of the window's, at its end.
    Weights fall as exp(-age / time); times go from the spacing of the iterates by factors of
    10^(1/`per_decade`) over `decades`.  A time of 0 is the last iterate alone.
    """
    training_runs.base(bench, seed)
    settings = bench.config["ema_times"]
    powers = np.arange(settings["decades"] * settings["per_decade"] + 1) / settings["per_decade"]
    rows: list[dict[str, Any]] = []
    for phase in ("early", "window"):
        snapshots = bench.snapshots(seed, which=phase)
        ages = (snapshots.steps[-1] - snapshots.steps).astype(np.float64)
        times = [0.0, *(float(ages[-2]) * 10.0**powers).tolist()]
        for low in range(0, len(times), 8):  # so many averages in memory at once
            chosen = {}
            for time in times[low : low + 8]:
                weights = np.exp(-ages / time) if time else (ages == 0.0).astype(np.float64)
                chosen[f"{time!r}"] = weights / weights.sum()
            for name, arrays in combine(snapshots, chosen, progress=False).items():
                label = {"phase": phase, "time": float(name), "step": int(snapshots.steps[-1])}
                rows += [{**label, **row} for row in bench.scorer.score(arrays, iterates.SWEPT)]
    bench.store("ema_times", seed, rows, {"per_decade": settings["per_decade"]})


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
    steps = config["pairs"]["steps"]
    return _with_rates(config, [config["pairs"]["factor"]]) | {
        "pairs": 2 * (2 * steps - steps // 2)
    }


def _start_steps(config: Mapping[str, Any]) -> dict[str, int]:
    return base_run(config) | {"start": max(config["start"]["steps"])}


def _start_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    settings = config["start"]
    return 3.0 * (len(settings["steps"]) + 1) * settings["batches"] * config["batch_size"]


def _ema_times_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    settings = config["ema_times"]
    return 2.0 * (settings["decades"] * settings["per_decade"] + 2) * _swept(config, sizes)


def _swept(config: Mapping[str, Any], sizes: Sizes) -> float:
    """Images of a scoring on parts of the training and test images."""
    return float(sizes.part + min(config["evaluate"]["part"], sizes.test) + sizes.moments)


def one_step_steps(config: Mapping[str, Any]) -> dict[str, int]:
    """Of tasks that read the run without momentum."""
    return base_run(config) | {"one_step": config["window"]}


def _speed_steps(config: Mapping[str, Any]) -> dict[str, int]:
    return base_run(config) | {"speed": config["speed"]["steps"]}


def _speed_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    return 3.0 * config["speed"]["places"] * _swept(config, sizes)


TASKS = (
    Task("base", base, "the run at constant rate"),
    Task(
        "rates",
        rates,
        "distances at several constant rates",
        after=("sweep",),
        steps=_rates_steps,
    ),
    Task("pairs", pairs, "distances between two trajectories", steps=_pairs_steps),
    Task("one_step", one_step, "a run without momentum", steps=one_step_steps),
    Task(
        "speed",
        speed,
        "early losses at a large and a small rate",
        steps=_speed_steps,
        images=_speed_images,
    ),
    Task("start", start, "the first steps of two runs", steps=_start_steps, images=_start_images),
    Task("ema_times", ema_times, "EMAs against their time", images=_ema_times_images),
)
