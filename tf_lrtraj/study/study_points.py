"""Where a reproduction's probes measure: points of its runs, and batches of its data."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_lrtraj.probes.batches import Batch
from tf_lrtraj.probes.surface import Surface
from tf_lrtraj.records import RecordError
from tf_lrtraj.study.problem import Batches, crop_and_flip
from tf_lrtraj.study.session import Bench
from tf_lrtraj.study.state_files import read_arrays
from tf_lrtraj.study.trainer import arrays_of, state_name

__all__ = [
    "chunks",
    "drawn",
    "just_seen",
    "probe_steps",
    "recalibrated",
    "taken",
    "trip_steps",
    "unseen",
    "weights_at",
]


# Points ---------------------------------------------------------------------------------------


def probe_steps(bench: Bench, seed: int) -> tuple[int, ...]:
    """Numbers of updates at which lines and gradients of the base run are measured."""
    steps = bench.snapshots(seed).steps
    half_way = int(steps[-1]) // 2  # a state that the base run keeps
    default = tuple(sorted({half_way, int(steps[0]), int(steps[-1])}))
    return tuple(bench.config["probes"]["steps"]) or default


def trip_steps(bench: Bench, seed: int) -> tuple[int, ...]:
    """Numbers of updates at which side trips leave the base run."""
    steps = bench.snapshots(seed).steps.tolist()
    return tuple(bench.config["probes"]["trip_steps"]) or (steps[0], steps[-1])


def weights_at(bench: Bench, seed: int, step: int, run: str = "base") -> list[np.ndarray]:
    """Trainable weights and batch-norm statistics of a run after `step` updates.

    From a snapshot or a state.  The statistics do not matter to the losses that are measured
    here; without them a point would have those that the model happens to hold, and a record that
    was begun earlier would be taken for one of another point.

    Raises:
        RecordError: if neither is there.
    """
    folder = bench.state_folder(run, seed)
    for which in ("window", "horizon", "early"):
        if (folder / which).is_dir():
            snapshots = bench.snapshots(seed, run, which)
            if step in snapshots.steps:
                return snapshots.read(step)
    path = folder / state_name(step)
    if not path.exists():
        raise RecordError(
            f"the run {run!r} of seed {seed} has neither a snapshot nor a state of step {step}: "
            "`config.probes` must name steps of which one is kept"
        )
    return arrays_of(read_arrays(path))


# Batches --------------------------------------------------------------------------------------


def _order(bench: Bench, seed: int) -> Batches:
    return Batches(bench.problem, bench.config["batch_size"], seed, 0, 1 << 62)


def just_seen(bench: Bench, seed: int, step: int) -> np.ndarray:
    """[batch] the training images of the update that led to `step`."""
    return _order(bench, seed).rows(step - 1)


def unseen(bench: Bench, seed: int, step: int) -> np.ndarray:
    """Training images that a run has not seen yet in its epoch, after `step` updates.

    The next batch is drawn from these, each as likely as any other.
    """
    count = len(bench.problem.x_train)
    place = step % (count // bench.config["batch_size"])
    order = _order(bench, seed)
    seen = [order.rows(step - back) for back in range(1, place + 1)]
    return np.setdiff1d(np.arange(count), np.concatenate(seen) if seen else [])


def drawn(
    bench: Bench,
    counts: Sequence[int],
    random: np.random.Generator,
    without: Any = (),
    size: int | None = None,
) -> list[list[np.ndarray]]:
    """For each of `counts` so many batches of training images, no image in two of them.

    Args:
        counts: numbers of batches.
        random: of the draw.
        without: images that are not to be among them.
        size: images in a batch; those of a training batch by default.

    Raises:
        ValueError: if there are not so many images.
    """
    size = size or bench.config["batch_size"]
    rows = np.setdiff1d(np.arange(len(bench.problem.x_train)), np.asarray(without, np.int64))
    if sum(counts) * size > len(rows):
        raise ValueError(
            f"{sum(counts)} batches of {size} training images are more than there are to draw "
            f"from, {len(rows)}: lower the numbers of batches, or their size, in the configuration."
        )
    order = iter(random.permutation(rows)[: sum(counts) * size].reshape(-1, size))
    return [[next(order) for _ in range(count)] for count in counts]


def taken(
    bench: Bench, rows: Sequence[np.ndarray], augment: np.random.Generator | None = None
) -> list[Batch]:
    """The batches of these training images, as training sees them if `augment` is given."""
    problem = bench.problem
    found = [(problem.x_train[r], problem.y_train[r]) for r in rows]
    if augment is not None and problem.augmentation == "crop_flip":
        return [(crop_and_flip(x, augment), y) for x, y in found]
    return found


def chunks(
    images: tuple[np.ndarray, np.ndarray], size: int, most: int | None = None
) -> list[Batch]:
    """The first `most` images of a set, or all, in equal batches of at most `size`."""
    x, y = (array[:most] for array in images)
    parts = max(-(-len(x) // size), 1)
    return list(zip(np.array_split(x, parts), np.array_split(y, parts), strict=True))


_recalibrated: weakref.WeakKeyDictionary[Bench, Surface] = weakref.WeakKeyDictionary()


def recalibrated(bench: Bench) -> Surface:
    """The loss as averages are evaluated: batch norm recomputed on the same training images."""
    if bench not in _recalibrated:  # compiled once for all tasks
        settings = bench.config["evaluate"]
        x, y = bench.problem.images("train_part", settings["batch_norm_images"])
        cuts = range(settings["batch_size"], len(x), settings["batch_size"])
        moments = list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))
        _recalibrated[bench] = Surface(
            bench.model, bench.loss, batch_norm="recalibrated", moment_batches=moments
        )
    return _recalibrated[bench]
