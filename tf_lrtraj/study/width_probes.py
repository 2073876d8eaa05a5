"""Tasks: how wide the optima of a conventional run and of SWA are, and SWA against an ensemble.

Batch norm is recomputed at every point, as it is where averages are evaluated.
"""

from __future__ import annotations

import numpy as np

from tf_lrtraj import probes
from tf_lrtraj.study import study_points
from tf_lrtraj.study.equal_budgets import average, collected, conventional, training_steps
from tf_lrtraj.study.probe_settings import images_of
from tf_lrtraj.study.session import Bench
from tf_lrtraj.study.task import Task
from tf_lrtraj.study.trainer import arrays_of

__all__ = ["TASKS", "ensemble", "width"]


def width(bench: Bench, seed: int) -> None:
    """Test errors along rays, and losses on the segment: `width.npz`, `sgd_to_swa.npz`.

    The points are `sgd`, the end of the conventional run, and `swa`, the average of what the run
    at SWA's constant rate collected.  Rays are of normalised filters (Li et al. 2018): their
    distances are shares of the norm of the point's own kernels.
    """
    settings = bench.config["width"]
    (swa,) = average(bench, seed, "swa_constant").values()
    ends = {"sgd": arrays_of(conventional(bench, seed).state()), "swa": swa}
    surface = study_points.recalibrated(bench)
    training, test = (
        study_points.chunks(bench.problem.images(name, 0), settings["size"], settings["images"])
        for name in ("train", "test")
    )
    rays = probes.Width(
        surface,
        ends,
        test,
        distances=np.geomspace(settings["low"], settings["high"], settings["num"]).tolist(),
        num_rays=settings["rays"],
        seed=seed,
        ray_kind="filter",
    )
    segment = probes.Basin(
        surface, ends, training, held_out=test, num=settings["positions"], extend=1.0
    )
    for name, probe, sets in (
        ("width", rays, {"batches_set": "test"}),
        ("sgd_to_swa", segment, {"batches_set": "train", "held_out_set": "test"}),
    ):
        probes.measure(
            probe,
            bench.probe_path(name, seed),
            progress=bench.progress,
            tell=bench.tell,
            about={"run_seed": seed, **sets},
        )


def ensemble(bench: Bench, seed: int) -> None:
    """Predictions of cycle ends, of their ensemble and of their mean, on test images.

    The members, in `ensemble.npz`, are the last models that the cyclical run collected; they are
    drawn towards their mean as well.
    """
    settings = bench.config["ensemble"]
    snapshots, steps = collected(bench, seed, "swa_cyclical")
    steps = steps[-settings["members"] :]
    probe = probes.Ensemble(
        study_points.recalibrated(bench),
        {str(step): snapshots.read(step) for step in steps},
        study_points.chunks(bench.problem.images("test", 0), settings["size"], settings["images"]),
    )
    probes.measure(
        probe,
        bench.probe_path("ensemble", seed),
        progress=bench.progress,
        tell=bench.tell,
        about={"run": "cyclical", "run_seed": seed, "steps": steps, "batches_set": "test"},
    )


TASKS = tuple(
    Task(name, run, what, steps=training_steps, images=images_of(name))
    for name, run, what in (
        ("width", width, "random rays from SGD and SWA, and the segment between them"),
        ("ensemble", ensemble, "ensembles against averages"),
    )
)
