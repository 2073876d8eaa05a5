"""Tasks: the width of the optima of a conventional run and of SWA, and SWA against an ensemble.

Batch norm is recomputed at every point, as for evaluations of averages.
"""

from __future__ import annotations

import numpy as np

from tf_lrtraj import probes
from tf_lrtraj.study import study_points
from tf_lrtraj.study.equal_budgets import average, collected, conventional, training_steps
from tf_lrtraj.study.probe_settings import images_of
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.task import PROBE_SEEDS, task

__all__ = ["TASKS"]


@task(
    "random rays from SGD and SWA, and the segment between them",
    steps=training_steps,
    images=images_of("width"),
    seeds_of=PROBE_SEEDS,
    probes=("width", "sgd_to_swa"),
)
def width(session: Session, seed: int) -> None:
    """Measures test errors along rays and losses on the segment: `width.npz`, `sgd_to_swa.npz`.

    The points are `sgd`, the end of the conventional run, and `swa`, the average of the models that
    the run at SWA's constant rate collected.  Rays have normalised filters (Li et al. 2018), and
    their distances are shares of the norm of the point's own kernels.
    """
    settings = session.config["width"]
    (swa,) = average(session, seed, "swa_constant").values()
    ends = {"sgd": conventional(session, seed).arrays(), "swa": swa}
    surface = session.scorer.recalibrated
    training, test = (
        study_points.chunks(session.problem.images(name, 0), settings["size"], settings["images"])
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
    session.measure(rays, "width", seed, None, batches_set="test")
    session.measure(segment, "sgd_to_swa", seed, None, batches_set="train", held_out_set="test")


@task(
    "ensembles against averages",
    steps=training_steps,
    images=images_of("ensemble"),
    seeds_of=PROBE_SEEDS,
    probes=("ensemble",),
)
def ensemble(session: Session, seed: int) -> None:
    """Measures predictions of cycle ends, their ensemble and their mean, on test images.

    The members, in `ensemble.npz`, are the last models that the cyclical run collected; they are
    also scaled towards their mean.
    """
    settings = session.config["ensemble"]
    snapshots, steps = collected(session, seed, "swa_cyclical")
    steps = steps[-settings["members"] :]
    probe = probes.Ensemble(
        session.scorer.recalibrated,
        {str(step): snapshots.read(step) for step in steps},
        study_points.chunks(
            session.problem.images("test", 0), settings["size"], settings["images"]
        ),
    )
    session.measure(probe, "ensemble", seed, "cyclical", steps=steps, batches_set="test")


TASKS = (width, ensemble)
