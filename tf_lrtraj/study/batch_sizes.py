"""Task: the reach of one step, by the size of its batch and the width of the network."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_lrtraj import probes, seeds
from tf_lrtraj.study import study_points, training_runs
from tf_lrtraj.study.probe_settings import REACH_TRIP, batches_of, images_of
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.task import PROBE_SEEDS, base_run, task
from tf_lrtraj.study.trainer import Run

__all__ = ["TASKS", "narrow_run"]


def narrow_run(session: Session, seed: int) -> Run:
    """The first steps of the base run, with the narrower network."""
    config, narrow = session.config, session.narrow
    run = narrow.run("narrow", seed, np.full(config["reach"]["steps"], config["learning_rate"]))
    return narrow.finish(run, f"seed {seed}: narrower network")


@task(
    "steps on batches of several sizes",
    steps=lambda config: base_run(config) | {"narrow": config["reach"]["steps"]},
    images=images_of("reach"),
    seeds_of=PROBE_SEEDS,
)
def reach(session: Session, seed: int) -> None:
    """Measures the loss before a step and the lowest along it, for batches of several sizes.

    It is measured for both networks after `config.reach.steps` updates, and for the base run at its
    end, where short side trips and the alignment of gradients are measured too.
    """
    training_runs.base(session, seed)
    steps, end = session.config["reach"]["steps"], training_runs.total_steps(session.config)
    places = (
        ("wide", steps, session, study_points.weights_at(session, seed, steps)),
        ("narrow", steps, session.narrow, narrow_run(session, seed).arrays()),
        ("wide", end, session, study_points.weights_at(session, seed, end)),
    )
    rows: list[dict[str, Any]] = []
    for network, step, of, weights in places:
        arrays = of.trainable(weights)
        place = {
            "network": network,
            "step": step,
            "weights": int(sum(np.size(array) for array in arrays)),
        }
        for size in session.config["reach"]["sizes"]:
            found = _steps_of(of, seed, arrays, size, more=step == end)
            rows.append({**place, "size": size, **found})
    about = {
        "steps": steps,
        "end": end,
        "trip_steps": REACH_TRIP,
        "batch_size": session.config["batch_size"],
    }
    session.store("reach", seed, rows, about)


def _steps_of(session: Session, seed: int, weights: Any, size: int, more: bool) -> dict[str, float]:
    """Measures batches of one size, which are the same for every network."""
    settings, count = session.config["probes"], batches_of(size, session.config["reach"])
    random = seeds.generator("reach_batches", seed, size)
    (rows,) = study_points.drawn(session, (count,), random, size=size)
    batches = study_points.taken(session, rows)

    def measured(probe: probes.Probe) -> Any:
        return probes.measure(probe, progress=session.progress).values

    grid = probes.rate_grid(settings["low"], settings["high"], settings["rates"])
    line = measured(probes.Line(session.surface, weights, batches, rates=grid, extensions=1))
    start, gain = line["train"][0], line["gain"][0]
    rate = float(np.quantile(line["best_rate"][0], settings["trip_quantile"]))
    found = {
        "start": float(start.mean()),
        "lowest": float((start - gain).mean()),
        "rate": rate,
    }
    if more:
        left = measured(
            probes.SideTrip(
                session.surface, weights, batches, learning_rate=rate, num_steps=REACH_TRIP
            )
        )["train_loss"]
        share = measured(probes.Gradients(session.surface, weights, batches))["share"]
        found |= {"left": float((left[:, -1] / left[:, 0]).mean()), "share": float(share[0])}
    return found


TASKS = (reach,)
