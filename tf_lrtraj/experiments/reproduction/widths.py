"""Tasks: how wide the optima of SGD and SWA are, and averages against ensembles of snapshots.

Batch norm is recomputed at every point, as it is where averages are evaluated.
"""

from __future__ import annotations

import numpy as np

from tf_lrtraj import probes
from tf_lrtraj.experiments.reproduction import points, runs
from tf_lrtraj.experiments.reproduction.bench import Bench
from tf_lrtraj.experiments.reproduction.probe_settings import images_of
from tf_lrtraj.experiments.reproduction.task import Task
from tf_lrtraj.probes.flat_vectors import joined, square_distance

__all__ = ["TASKS", "ensemble", "width"]


def width(bench: Bench, seed: int) -> None:
    """Losses along random rays and on the segment: `width.npz`, `sgd_to_swa.npz`.

    The points are `sgd`, the base run's last snapshot, and `swa`, the average of that name.
    Losses on training images, and on test images as `held_out`.
    """
    runs.base(bench, seed)
    settings, snapshots = bench.config["width"], bench.snapshots(seed)
    last = int(snapshots.steps[-1])
    ends = {
        "sgd": points.weights_at(bench, seed, last),
        "swa": runs.averages(bench, seed)["swa"],
    }
    count = snapshots.num_trainable
    length = square_distance(*(joined(arrays[:count]) for arrays in ends.values())) ** 0.5
    surface = points.recalibrated(bench)
    training, held_out = (
        points.chunks(bench.problem.images(name, 0), settings["size"], settings["images"])
        for name in ("train", "test")
    )
    about = {"run": "base", "run_seed": seed, "step": last, "held_out_set": "test"}
    rays = probes.Width(
        surface,
        ends,
        training,
        held_out=held_out,
        distances=np.linspace(0.0, settings["reach"] * length, settings["num"]).tolist(),
        num_rays=settings["rays"],
        seed=seed,
    )
    segment = probes.Segments(
        surface, ends, training, held_out=held_out, num=settings["positions"], extend=1.0
    )
    for name, probe in (("width", rays), ("sgd_to_swa", segment)):
        probes.measure(
            probe,
            bench.probe_path(name, seed),
            progress=bench.progress,
            tell=bench.tell,
            about={**about, "length": length},
        )


def ensemble(bench: Bench, seed: int) -> None:
    """Predictions of snapshots, of their ensemble and of their mean on test images: `ensemble.npz`.

    The members are the last snapshot and those 1, 2, 4, … snapshots before it, so that
    pairs lie at growing distances; all of them are drawn towards their mean as well.
    """
    runs.base(bench, seed)
    settings, snapshots = bench.config["ensemble"], bench.snapshots(seed)
    back = [0, *(2**i for i in range(settings["members"] - 1))]
    steps = [int(snapshots.steps[-1 - k]) for k in reversed(back) if k < len(snapshots)]
    members = {str(step): points.weights_at(bench, seed, step) for step in steps}
    images = bench.problem.images("test", 0)
    probe = probes.Ensembles(
        points.recalibrated(bench),
        members,
        points.chunks(images, settings["size"], settings["images"]),
    )
    probes.measure(
        probe,
        bench.probe_path("ensemble", seed),
        progress=bench.progress,
        tell=bench.tell,
        about={"run": "base", "run_seed": seed, "steps": steps, "batches_set": "test"},
    )


TASKS = (
    Task("width", width, "random rays and the segment to SWA", images=images_of("width")),
    Task("ensemble", ensemble, "ensembles against averages", images=images_of("ensemble")),
)
