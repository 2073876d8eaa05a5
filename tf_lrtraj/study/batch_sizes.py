"""Task: how far one step reaches, by the size of its batch and the width of the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lrtraj import probes, seeds
from tf_lrtraj.study import study_points, training_runs
from tf_lrtraj.study.probe_settings import REACH_TRIP, batches_of, images_of
from tf_lrtraj.study.session import Bench
from tf_lrtraj.study.task import Task, base_run
from tf_lrtraj.study.trainer import Run, arrays_of

__all__ = ["TASKS", "narrow_run", "reach"]


def narrow_run(bench: Bench, seed: int) -> Run:
    """The first steps of the base run, with the narrower network."""
    config, narrow = bench.config, bench.narrow
    run = Run(
        narrow.trainer,
        narrow.state_folder("narrow", seed),
        0,
        np.full(config["reach"]["steps"], config["learning_rate"]),
        config["momentum"],
        seed,
        lambda: narrow.initial(seed),
        segment=config["segment"],
        log_every=config["log_every"],
    )
    narrow.finish(run, f"seed {seed}: narrower network")
    return run


def reach(bench: Bench, seed: int) -> None:
    """Loss before a step and the lowest along it, for batches of several sizes.

    Of both networks after `config.reach.steps` updates, and of the base run at its end; there
    also what side trips of a few steps leave, and how gradients are aligned.
    """
    training_runs.base(bench, seed)
    steps, end = bench.config["reach"]["steps"], training_runs.total_steps(bench.config)
    places = (
        ("wide", steps, bench, study_points.weights_at(bench, seed, steps)),
        ("narrow", steps, bench.narrow, arrays_of(narrow_run(bench, seed).state())),
        ("wide", end, bench, study_points.weights_at(bench, seed, end)),
    )
    rows: list[dict[str, Any]] = []
    for network, step, of, weights in places:
        arrays = weights[: len(of.model.trainable_variables)]
        place = {
            "network": network,
            "step": step,
            "weights": int(sum(np.size(array) for array in arrays)),
        }
        for size in bench.config["reach"]["sizes"]:
            found = _steps_of(of, seed, arrays, size, more=step == end)
            rows.append({**place, "size": size, **found})
    about = {
        "steps": steps,
        "end": end,
        "trip_steps": REACH_TRIP,
        "batch_size": bench.config["batch_size"],
    }
    bench.store("reach", seed, rows, about)


def _steps_of(bench: Bench, seed: int, weights: Any, size: int, more: bool) -> dict[str, float]:
    """Numbers of batches of one size, the same ones for every network."""
    settings, count = bench.config["probes"], batches_of(size, bench.config["reach"])
    (rows,) = study_points.drawn(
        bench, (count,), seeds.generator("reach_batches", seed, size), size=size
    )
    batches = study_points.taken(bench, rows)
    line = probes.measure(
        probes.Line(
            bench.surface,
            weights,
            batches,
            rates=probes.rate_grid(settings["low"], settings["high"], settings["rates"]),
            extensions=1,
        ),
        progress=bench.progress,
    ).values
    start, gain = line["train"][0], line["gain"][0]
    rate = float(np.quantile(line["best_rate"][0], settings["trip_quantile"]))
    found = {
        "start": float(start.mean()),
        "lowest": float((start - gain).mean()),
        "rate": rate,
    }
    if more:
        trips = probes.SideTrip(
            bench.surface, weights, batches, learning_rate=rate, num_steps=REACH_TRIP
        )
        left = probes.measure(trips, progress=bench.progress).values["train_loss"]
        aligned = probes.Gradients(bench.surface, weights, batches)
        share = probes.measure(aligned, progress=bench.progress).values["share"]
        found |= {"left": float((left[:, -1] / left[:, 0]).mean()), "share": float(share[0])}
    return found


def _narrow_steps(config: Mapping[str, Any]) -> dict[str, int]:
    return base_run(config) | {"narrow": int(config["reach"]["steps"])}


TASKS = (
    Task(
        "reach",
        reach,
        "steps on batches of several sizes",
        steps=_narrow_steps,
        images=images_of("reach"),
    ),
)
