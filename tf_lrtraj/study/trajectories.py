"""Tasks on trajectories at constant rates: base run, other rates, pairs, first steps, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import backend, probes, seeds
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.probes.directions import Filters
from tf_lrtraj.probes.vectors import dot, joined, square_distance
from tf_lrtraj.study import iterates, schedule_runs, study_points, training_runs
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.task import PROBE_SEEDS, Sizes, base_run, task
from tf_lrtraj.study.trainer import Run, arrays_of

__all__ = ["TASKS", "one_step_run", "one_step_steps"]

_ABOUT_BASE = (
    *("learning_rate", "momentum", "weight_decay", "batch_size"),
    *("burn_in", "window", "horizon", "every"),
)
_PAIRS = 24  # number of pairs one lag apart, for a mean squared displacement


@task("the run at constant rate")
def base(session: Session, seed: int) -> None:
    """Records batch losses of the base run from its first step, and norms over the window."""
    run, config = training_runs.base(session, seed), session.config
    steps, losses = run.log()
    snapshots = session.snapshots(seed)
    vectors = (session.vector(snapshots.read(step)) for step in snapshots.steps.tolist())
    norms = [dot(vector, vector) for vector in vectors]
    about = {
        **{key: config[key] for key in _ABOUT_BASE},
        "num_train": session.problem.num_train,
        "augmentation": session.problem.augmentation,
        "num_test": len(session.problem.x_test),
        "image_shape": list(session.problem.x_train.shape[1:]),
        "num_weights": int(sum(np.prod(v.shape) for v in session.model.trainable_variables)),
    }
    session.store(
        "base",
        seed,
        (),
        about,
        steps=steps,
        batch_loss=losses,
        snapshot_steps=snapshots.steps,
        squared_norm=norms,
    )


def _at_rate(session: Session, seed: int, factor: float) -> Run:
    """Returns the run at `factor` times the base rate over the window; the base run for 1."""
    if factor == 1.0:
        return training_runs.base(session, seed)
    return schedule_runs.lower_rate_run(session, seed, factor)


def _with_rates(config: Mapping[str, Any], factors: Sequence[float]) -> dict[str, int]:
    """Returns the steps of the base run and of runs at other constant rates over the window."""
    others = {f"rate-{f:g}": int(config["window"]) for f in factors if f != 1.0}
    return base_run(config) | others


@task(
    "distances at several constant rates",
    after=("sweep",),
    steps=lambda config: _with_rates(config, config["rates"]),
)
def rates(session: Session, seed: int) -> None:
    """Measures the squared distance to the centre at several constant rates, in two late halves.

    It is half of the mean squared displacement, of the weights and of normalised filters (mean of 2
    - 2 cos), at a lag proportional to 1 / rate, because small rates need longer lags.  The record
    also has the squared norms, and the excess loss at each rate that the quadratic model of the
    base run predicts.
    """
    config = session.config
    factors = sorted({1.0, *config["rates"]}, reverse=True)
    variables = session.model.trainable_variables
    filters = Filters([tuple(v.shape) for v in variables], probes.filter_axes_of(session.model))
    rows: list[dict[str, Any]] = []
    norms: list[dict[str, Any]] = []
    for factor in factors:
        rate, run = factor * config["learning_rate"], _at_rate(session, seed, factor)
        snapshots = session.snapshots(seed, run.folder.name)
        steps, losses = run.log()
        # The first quarter of the window is not used, because the new rate needs time to settle.
        late = snapshots.steps[snapshots.steps >= run.last - 0.75 * config["window"]]
        halves = np.array_split(late, 2)
        # At the smallest rate half of a half's length.
        shortest = max(int(0.5 * len(halves[1]) * factors[-1] / factors[0]), 1)
        lag = min(round(shortest * factors[0] / factor), len(halves[1]) - 1)
        for half, part in enumerate(halves, start=1):
            starts = np.linspace(0, len(part) - 1 - lag, min(len(part) - lag, _PAIRS))
            squares, angles = [], []
            for i in np.round(starts).astype(int).tolist():
                ends = [session.vector(snapshots.read(int(part[k]))) for k in (i, i + lag)]
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
            vector = session.vector(snapshots.read(step))
            norms.append({"learning_rate": rate, "step": step, "squared_norm": dot(vector, vector)})
    model = iterates.estimate(session, seed).model
    effective = config["learning_rate"] / (1.0 - config["momentum"])
    predicted = [
        {
            "learning_rate": factor * config["learning_rate"],
            "excess": float(model.stationary_loss(factor * effective)),
        }
        for factor in factors
        if factor <= 1.0  # beyond it, the model may be unstable
    ]
    single = session.read("sweep", seed)["about"]["mean_single_loss"][iterates.PART[0]]
    about = {"single_loss": single, "learning_rate": config["learning_rate"]}
    session.store("rates", seed, rows, about, norms=norms, predicted=predicted)


def _pairs_steps(config: Mapping[str, Any]) -> dict[str, int]:
    steps = config["pairs"]["steps"]
    made = {"pairs": 2 * (2 * steps - steps // 2)}
    return _with_rates(config, [config["pairs"]["factor"]]) | made


@task("distances between two trajectories", steps=_pairs_steps, seeds_of=("pairs", "seeds"))
def pairs(session: Session, seed: int) -> None:
    """Measures distances of two runs from one state: first on independent, then on shared
    batches."""
    config = session.config
    burn_in, every, steps = config["burn_in"], config["every"], config["pairs"]["steps"]
    half = burn_in + steps // 2
    rows: list[dict[str, Any]] = []
    for factor in (1.0, config["pairs"]["factor"]):
        name, rate = f"pair-{factor:g}", factor * config["learning_rate"]
        first = _at_rate(session, seed, factor)
        apart = training_runs.fork(
            session,
            seed,
            name,
            burn_in,
            np.full(steps, rate),
            order=seed + training_runs.OTHER_ORDER,
            keep=(half,),
            every=every,
        )
        shared = training_runs.fork(
            session,
            seed,
            f"{name}-shared",
            half,
            np.full(burn_in + steps - half, rate),
            of=name,
            every=every,
        )
        left = session.snapshots(seed, first.folder.name)
        for batches, second in (("independent", apart), ("shared", shared)):
            right = session.snapshots(seed, second.folder.name)
            for step in right.steps.tolist():
                ends = [session.vector(one.read(step)) for one in (left, right)]
                rows.append(
                    {
                        "batches": batches,
                        "learning_rate": rate,
                        "step": step - burn_in,
                        "squared_distance": square_distance(*ends),
                    }
                )
    about = {"switch": half - burn_in, "learning_rate": config["learning_rate"]}
    session.store("pairs", seed, rows, about)


def _start_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    settings = config["start"]
    return 3.0 * (len(settings["steps"]) + 1) * settings["batches"] * config["batch_size"]


@task(
    "the first steps of two runs",
    steps=lambda config: base_run(config) | {"start": max(config["start"]["steps"])},
    images=_start_images,
)
def start(session: Session, seed: int) -> None:
    """Measures the first steps: alignment of batch gradients, and two runs from one point.

    The second run uses independent batches.  Each row has `pair_cosine`, the mean cosine of the
    gradients of two batches; cosines of their mean with the displacement so far and with the mean
    at the start; and the squared distance of the runs.  The last row is from the end of the
    burn-in.
    """
    config = session.config
    steps, rate = config["start"]["steps"], config["learning_rate"]
    first = training_runs.base(session, seed)
    second = training_runs.fork(
        session,
        seed,
        "start-other",
        0,
        np.full(max(steps), rate),
        order=seed + training_runs.OTHER_ORDER,
        keep=tuple(steps),
    )
    random = seeds.generator("start_batches", seed)
    (chosen,) = study_points.drawn(session, (config["start"]["batches"],), random)
    batches = study_points.taken(session, chosen)
    initial = arrays_of(session.initial(seed))
    origin = session.vector(initial)
    rows: list[dict[str, Any]] = []
    at_start = np.zeros(0)
    for step in session.bar([*steps, config["burn_in"]], "first steps"):
        here = first.arrays(step) if step else initial
        point = session.surface.point(here)
        gradients = [
            joined(backend.to_numpy(session.surface.gradient(point, batch)[1])) for batch in batches
        ]
        count = len(gradients)
        units = sum((g / np.sqrt(dot(g, g)) for g in gradients), np.zeros(origin.size))
        row: dict[str, Any] = {"step": step}
        row["pair_cosine"] = (float(units @ units) - count) / (count * (count - 1))
        if step in steps:
            mean = np.mean(gradients, axis=0)
            at_start = mean if not step else at_start
            moved = session.vector(here) - origin
            row["cosine_to_start"] = _cosine(mean, at_start) if at_start.size else None
            if step:
                row["cosine_to_displacement"] = _cosine(-mean, moved)
                there = session.vector(second.arrays(step)) - origin
                row |= {
                    "squared_displacement": 0.5 * (dot(moved, moved) + dot(there, there)),
                    "squared_distance": square_distance(moved, there),
                }
        rows.append(row)
    session.store("start", seed, rows, {"learning_rate": rate})


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return dot(first, second) / float(np.sqrt(dot(first, first) * dot(second, second)))


def one_step_run(session: Session, seed: int) -> Any:
    """Returns a run without momentum at the same effective rate, from the end of the burn-in."""
    config = session.config
    rate = config["learning_rate"] / (1.0 - config["momentum"])
    return training_runs.fork(
        session,
        seed,
        "one_step",
        config["burn_in"],
        np.full(config["window"], rate),
        momentum=0.0,
        every=config["every"],
    )


def one_step_steps(config: Mapping[str, Any]) -> dict[str, int]:
    """Returns the training steps of tasks that read the run without momentum."""
    return base_run(config) | {"one_step": config["window"]}


@task("a run without momentum", steps=one_step_steps, seeds_of=PROBE_SEEDS)
def one_step(session: Session, seed: int) -> None:
    """Records that run; `one_step_lines` measures the effect of its steps on other batches."""
    run, config = one_step_run(session, seed), session.config
    steps, losses = run.log()
    about = {
        "learning_rate": float(run.rates[0]),
        "momentum": run.momentum,
        "window": config["window"],
        "first": run.first,
    }
    session.store("one_step", seed, (), about, steps=steps, batch_loss=losses)


@task(
    "early losses at a large and a small rate",
    steps=lambda config: base_run(config) | {"speed": config["speed"]["steps"]},
    images=lambda config, sizes: 3.0 * config["speed"]["places"] * sizes.parts,
    seeds_of=("speed", "seeds"),
)
def speed(session: Session, seed: int) -> None:
    """Scores, from scratch, iterates at the rate, their averages, and iterates at a small rate."""
    config = session.config
    settings = config["speed"]
    small = config["learning_rate"] * settings["factor"]
    training_runs.base(session, seed)
    early = session.snapshots(seed, which="early")
    places = _places(early, settings["places"])
    slow = training_runs.fork(
        session, seed, "speed-small", 0, np.full(settings["steps"], small), keep=tuple(places)
    )
    rows: list[dict[str, Any]] = []
    for step in places:
        late = ((early.steps > 2 * step / 3) & (early.steps <= step)).astype(np.float64)
        ((_, average),) = study_points.averaged(early, {step: late / late.sum()})
        for rate, of, weights in (
            (config["learning_rate"], "raw", early.read(step)),
            (config["learning_rate"], "average", average),
            (small, "raw", slow.arrays(step)),
        ):
            rows += session.score(weights, iterates.SWEPT, learning_rate=rate, of=of, step=step)
    session.store("speed", seed, rows, {"window_share": 1 / 3})


def _ema_times_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    settings = config["ema_times"]
    return 2.0 * (settings["decades"] * settings["per_decade"] + 2) * sizes.parts


@task("EMAs against their time", images=_ema_times_images, seeds_of=("speed", "seeds"))
def ema_times(session: Session, seed: int) -> None:
    """Scores EMAs by their time constant, while the loss still falls and when it is stationary.

    They are EMAs of the first iterates, at the end of `speed.steps`, and of the window's iterates,
    at its end.  Weights decay as exp(-age / time); times increase from the spacing of the iterates
    by factors of 10^(1/`per_decade`) over `decades`.  A time of 0 is the last iterate alone.
    """
    training_runs.base(session, seed)
    settings = session.config["ema_times"]
    powers = np.arange(settings["decades"] * settings["per_decade"] + 1) / settings["per_decade"]
    rows: list[dict[str, Any]] = []
    for phase in ("early", "window"):
        snapshots = session.snapshots(seed, which=phase)
        ages = (snapshots.steps[-1] - snapshots.steps).astype(np.float64)
        times = [0.0, *(float(ages[-2]) * 10.0**powers).tolist()]
        weights = {}
        for time in times:
            row = np.exp(-ages / time) if time else (ages == 0.0).astype(np.float64)
            weights[time] = row / row.sum()
        at = int(snapshots.steps[-1])
        for time, arrays in study_points.averaged(snapshots, weights):
            rows += session.score(arrays, iterates.SWEPT, phase=phase, time=time, step=at)
    session.store("ema_times", seed, rows, {"per_decade": settings["per_decade"]})


def _places(early: Snapshots, number: int) -> list[int]:
    """Returns `number` evenly spaced steps of snapshots, including the last."""
    indices = np.round(np.arange(1, number + 1) * (len(early) - 1) / number).astype(int)
    return [int(step) for step in early.steps[indices]]


TASKS = (base, rates, pairs, one_step, speed, start, ema_times)
