"""Tasks: what an average lacks of a cooldown's gain, and where it is (claim O3).

A cooldown is a linear decay of the rate to 0 at the end of a run at constant rate.  Runs at several
constant rates begin at the end of the burn-in.  After `config.cooldown.settle` updates they have
`places` stretches as long as the longest cooldown.  At the end of each stretch the mean of the last
n iterates is compared with the cooldown over the same n updates, on the same batches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lrtraj import kernels, probes, rates, seeds
from tf_lrtraj.specs import PROBES
from tf_lrtraj.study import iterates, study_points, training_runs
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.state_files import read_arrays
from tf_lrtraj.study.task import PROBE_SEEDS, Sizes, base_run, task
from tf_lrtraj.study.trainer import Run

__all__ = ["TASKS", "continued", "cooldown_run", "ends", "mean_of", "stretch_run"]

_MEAN = re.compile(r"mean-(\d+)-(\d+)\.npz")


def ends(config: Mapping[str, Any]) -> list[int]:
    """Returns the last steps of the stretches, which are those of the cooldowns."""
    settings = config["cooldown"]
    first = config["burn_in"] + settings["settle"]
    longest = settings["lengths"][-1]
    return [first + longest * (place + 1) for place in range(settings["places"])]


def _watch() -> training_runs.Averages:
    """Writes the mean of the iterates of every segment, without the one that it starts from."""
    mean = {"mean": kernels.Uniform(start=1)}
    return training_runs.Averages(
        lambda low, high: mean, lambda low, high: f"mean-{low:09d}-{high:09d}.npz"
    )


def mean_of(run: Run, low: int, high: int) -> list[np.ndarray]:
    """Returns the mean of the iterates after `low` up to `high`, from those of the segments.

    Raises:
        ValueError: if no segments have these ends.
    """
    parts = {}
    for path in run.folder.glob("mean-*.npz"):
        match = _MEAN.fullmatch(path.name)
        if match and low <= int(match[1]) and int(match[2]) <= high:
            parts[path] = int(match[2]) - int(match[1])
    if sum(parts.values()) != high - low:
        raise ValueError(f"{run.folder.name} has no means of segments from {low} to {high}")
    total: list[np.ndarray] = []
    for path, steps in sorted(parts.items()):
        found = read_arrays(path)
        share = steps / (high - low)
        arrays = [share * found[f"mean/{i}"].astype(np.float64) for i in range(len(found))]
        total = [a + b for a, b in zip(total, arrays, strict=True)] if total else arrays
    return [np.asarray(array, np.float32) for array in total]


def _tracked(config: Mapping[str, Any], low: int, high: int) -> tuple[int, ...]:
    return tuple(range(low, high + 1, config["cooldown"]["track"]))


def stretch_run(session: Session, seed: int, factor: float) -> Run:
    """Returns the run at `factor` times the base rate, with the states that cooldowns leave.

    At the first factor it goes on for `config.cooldown.after` updates after the last stretch.
    """
    config, settings = session.config, session.config["cooldown"]
    last = ends(config)[-1]
    keep = {end - n for end in ends(config) for n in (0, *settings["lengths"])}
    steps = last - config["burn_in"]
    if factor == settings["rates"][0]:
        steps += settings["after"]
        keep |= set(_tracked(config, last - settings["lengths"][-1], last + settings["after"]))
    return training_runs.fork(
        session,
        seed,
        f"stretch-{factor:g}",
        config["burn_in"],
        np.full(steps, factor * config["learning_rate"]),
        keep=tuple(sorted(keep)),
        watch=_watch(),
    )


def cooldown_run(session: Session, seed: int, factor: float, length: int, end: int) -> Run:
    """Returns the linear cooldown over the `length` updates before `end`, at a rate's stretch.

    The states and means of the longest one at the last end are kept along its way.
    """
    config, settings = session.config, session.config["cooldown"]
    stretch = stretch_run(session, seed, factor)
    along = (
        factor == settings["rates"][0]
        and length == settings["lengths"][-1]
        and end == ends(config)[-1]
    )
    schedule = rates.Linear(start=factor * config["learning_rate"], steps=length)
    return training_runs.fork(
        session,
        seed,
        f"cooldown-{factor:g}-{length}-{end}",
        end - length,
        rates.as_array(schedule, length),
        of=stretch.folder.name,
        keep=_tracked(config, end - length, end) if along else (),
        watch=_watch(),
    )


def continued(session: Session, seed: int, of: str, arrays: list[np.ndarray]) -> Run:
    """Returns the run at the full rate from the average or from the cooldown's end.

    It starts at the last end, without velocity, on the batches of the run at constant rate.
    """
    config, settings = session.config, session.config["cooldown"]
    end = ends(config)[-1]
    run = session.run(
        f"continued-{of}",
        seed,
        np.full(settings["after"], settings["rates"][0] * config["learning_rate"]),
        first=end,
        start=lambda: {f"weights/{i}": array for i, array in enumerate(arrays)},
        keep=_tracked(config, end, end + settings["after"]),
    )
    return session.finish(run, f"seed {seed}: on from the {of}", _watch())


def _steps(config: Mapping[str, Any]) -> dict[str, int]:
    settings = config["cooldown"]
    stretches = len(settings["rates"]) * settings["places"]
    each = len(settings["rates"]) * (ends(config)[-1] - config["burn_in"]) + settings["after"]
    return base_run(config) | {
        "stretches": each,
        "cooldowns": stretches * sum(settings["lengths"]),
    }


def _gain_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    settings = config["cooldown"]
    stretches = len(settings["rates"]) * settings["places"]
    return float(stretches * (3 * len(settings["lengths"]) + 1) * sizes.some)


@task("averages against cooldowns of several lengths", steps=_steps, images=_gain_images)
def cooldown_gain(session: Session, seed: int) -> None:
    """Scores means and cooldowns of every length, and single iterates of their stretches."""
    config, settings = session.config, session.config["cooldown"]
    rows: list[dict[str, Any]] = []
    for factor in settings["rates"]:
        stretch = stretch_run(session, seed, factor)
        for end in ends(config):
            place = {"rate": factor * config["learning_rate"], "end": end}
            for n in (0, *settings["lengths"]):
                raw = stretch.arrays(end - n)
                rows += session.score(raw, iterates.PART, of="raw", step=end - n, **place)
            for n in settings["lengths"]:
                run = cooldown_run(session, seed, factor, n, end)
                average = mean_of(stretch, end - n, end)
                for of, arrays in (("average", average), ("cooldown", run.arrays())):
                    rows += session.score(arrays, iterates.PART, of=of, length=n, **place)
    about = {"momentum": config["momentum"], "lengths": list(settings["lengths"])}
    session.store("cooldown_gain", seed, rows, about)


def _path_steps(config: Mapping[str, Any]) -> dict[str, int]:
    return _steps(config) | {"continued": 2 * config["cooldown"]["after"]}


def _path_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    settings = config["cooldown"]
    windows = 2 * settings["lengths"][-1] + 3 * settings["after"]
    return float(windows // settings["track"] * (sizes.some - sizes.test))


@task(
    "short averages along a cooldown, and on from its end and from the average",
    steps=_path_steps,
    images=_path_images,
)
def cooldown_path(session: Session, seed: int) -> None:
    """Scores the means of `config.cooldown.track` iterates along runs, which have little noise.

    The runs are, for the longest cooldown at the last end: the one at constant rate, the cooldown,
    and those that go on at the full rate from the average and from the cooldown's end.
    """
    config, settings = session.config, session.config["cooldown"]
    factor, n, track = settings["rates"][0], settings["lengths"][-1], settings["track"]
    end = ends(config)[-1]
    stretch = stretch_run(session, seed, factor)
    cooled = cooldown_run(session, seed, factor, n, end)
    ways = [
        ("constant", stretch, end - n, end + settings["after"]),
        ("cooldown", cooled, end - n, end),
    ]
    for of, arrays in (("average", mean_of(stretch, end - n, end)), ("cooldown", cooled.arrays())):
        run = continued(session, seed, of, arrays)
        ways.append((f"from_{of}", run, end, end + settings["after"]))
    rows: list[dict[str, Any]] = []
    for of, run, low, high in ways:
        for step in range(low + track, high + 1, track):
            arrays = mean_of(run, step - track, step)
            rows += session.score(arrays, iterates.PART[:1], of=of, step=step)
    about = {"begin": end - n, "end": end, "track": track}
    session.store("cooldown_path", seed, rows, about)


def _curvature_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    settings = config["cooldown"]
    products = 3 * settings["iterations"] * settings["batches"]
    return PROBES["eigenvalues"].passes(products) * float(config["batch_size"])


@task(
    "largest eigenvalues of the Hessian at an iterate, an average and a cooldown's end",
    steps=_steps,
    images=_curvature_images,
    seeds_of=PROBE_SEEDS,
    probes=("eigenvalues-*",),
)
def cooldown_curvature(session: Session, seed: int) -> None:
    """Measures the Hessian's eigenvalues: `eigenvalues-raw`, `-average`, `-cooldown`.

    The points belong to the longest cooldown at the last end; the batches are the same at each.
    """
    config, settings = session.config, session.config["cooldown"]
    factor, n, end = settings["rates"][0], settings["lengths"][-1], ends(config)[-1]
    stretch = stretch_run(session, seed, factor)
    points = {
        "raw": stretch.arrays(end),
        "average": mean_of(stretch, end - n, end),
        "cooldown": cooldown_run(session, seed, factor, n, end).arrays(),
    }
    random = seeds.generator("curvature_batches", seed)
    (rows,) = study_points.drawn(session, (settings["batches"],), random)
    batches = study_points.taken(session, rows)
    for name, arrays in points.items():
        probe = probes.Eigenvalues(
            session.surface, arrays, batches, iterations=settings["iterations"], seed=seed
        )
        session.measure(probe, f"eigenvalues-{name}", seed, None, point=name)


TASKS = (cooldown_gain, cooldown_path, cooldown_curvature)
