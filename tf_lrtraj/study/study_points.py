"""The points and batches of a study's probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from tf_lrtraj.averaging.post_hoc import combine
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.data.portable import Order, augmented
from tf_lrtraj.probes.batches import Batch
from tf_lrtraj.records import RecordError
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.state_files import read_arrays
from tf_lrtraj.study.trainer import arrays_of, state_name

__all__ = [
    "averaged",
    "chunks",
    "drawn",
    "just_seen",
    "probe_steps",
    "taken",
    "trip_steps",
    "unseen",
    "weights_at",
]

K = TypeVar("K")
_AT_ONCE = 8  # averages in memory


# Points ---------------------------------------------------------------------------------------


def probe_steps(session: Session, seed: int) -> tuple[int, ...]:
    """Returns the updates at which lines and gradients of the base run are measured."""
    steps = session.snapshots(seed).steps
    half_way = int(steps[-1]) // 2  # a state that the base run keeps
    default = tuple(sorted({half_way, int(steps[0]), int(steps[-1])}))
    return tuple(session.config["probes"]["steps"]) or default


def trip_steps(session: Session, seed: int) -> tuple[int, ...]:
    """Returns the updates at which side trips leave the base run."""
    steps = session.snapshots(seed).steps.tolist()
    return tuple(session.config["probes"]["trip_steps"]) or (steps[0], steps[-1])


def weights_at(session: Session, seed: int, step: int, run: str = "base") -> list[np.ndarray]:
    """Returns trainable weights and batch-norm statistics of a run after `step` updates.

    They are read from a snapshot or a state.  The statistics do not affect the losses measured
    here.  Without them a point would have the current statistics of the model, and an unfinished
    record would seem to be of another point.

    Raises:
        RecordError: if there is neither.
    """
    folder = session.state_folder(run, seed)
    for which in ("window", "horizon", "early"):
        if (folder / which).is_dir():
            snapshots = session.snapshots(seed, run, which)
            if step in snapshots.steps:
                return snapshots.read(step)
    path = folder / state_name(step)
    if not path.exists():
        raise RecordError(
            f"the run {run!r} of seed {seed} has neither a snapshot nor a state of step {step}: "
            "`config.probes` must name steps of which one is kept"
        )
    return arrays_of(read_arrays(path))


def averaged(
    snapshots: Snapshots, weights: Mapping[K, np.ndarray]
) -> Iterator[tuple[K, list[np.ndarray]]]:
    """Yields averages of snapshots one by one, with few of them in memory.

    Args:
        snapshots: the snapshots of a run.
        weights: key → weights of all snapshots, [len(snapshots)].

    Yields:
        (key, arrays: weights and statistics averaged alike).
    """
    items = list(weights.items())
    for low in range(0, len(items), _AT_ONCE):
        group = items[low : low + _AT_ONCE]
        rows = {str(number): row for number, (_, row) in enumerate(group)}
        built = combine(snapshots, rows, progress=False)
        for number, (key, _) in enumerate(group):
            yield key, built.pop(str(number))


# Batches --------------------------------------------------------------------------------------


def _order(session: Session, seed: int) -> Order:
    return Order(len(session.problem.x_train), session.config["batch_size"], seed)


def just_seen(session: Session, seed: int, step: int) -> np.ndarray:
    """Returns the [batch] indices of the training images of the update that led to `step`."""
    return _order(session, seed).rows(step - 1)


def unseen(session: Session, seed: int, step: int) -> np.ndarray:
    """Returns the training images that a run has not seen yet in its epoch, after `step` updates.

    The next batch is drawn uniformly from these.
    """
    order = _order(session, seed)
    seen = [order.rows(step - back) for back in range(1, step % order.steps_per_epoch + 1)]
    every = np.arange(len(session.problem.x_train))
    return np.setdiff1d(every, np.concatenate(seen) if seen else [])


def drawn(
    session: Session,
    counts: Sequence[int],
    random: np.random.Generator,
    without: Any = (),
    size: int | None = None,
) -> list[list[np.ndarray]]:
    """Draws groups of batches of training images without repetition.

    Args:
        counts: number of batches of each group.
        random: the random generator of the draw.
        without: images to exclude.
        size: images per batch; by default that of a training batch.

    Raises:
        ValueError: if there are not so many images.
    """
    size = size or session.config["batch_size"]
    rows = np.setdiff1d(np.arange(len(session.problem.x_train)), np.asarray(without, np.int64))
    if sum(counts) * size > len(rows):
        raise ValueError(
            f"{sum(counts)} batches of {size} training images are more than there are to draw "
            f"from, {len(rows)}: lower the numbers of batches, or their size, in the configuration."
        )
    order = iter(random.permutation(rows)[: sum(counts) * size].reshape(-1, size))
    return [[next(order) for _ in range(count)] for count in counts]


def taken(
    session: Session, rows: Sequence[np.ndarray], augment: np.random.Generator | None = None
) -> list[Batch]:
    """Returns the batches of these training images, augmented if `augment` is given."""
    problem = session.problem
    found = [(problem.x_train[r], problem.y_train[r]) for r in rows]
    if augment is None:
        return found
    return [(augmented(x, problem.augmentation, augment), y) for x, y in found]


def chunks(
    images: tuple[np.ndarray, np.ndarray], size: int, most: int | None = None
) -> list[Batch]:
    """Returns the first `most` images of a set, or all, in equal batches of at most `size`."""
    x, y = (array[:most] for array in images)
    parts = max(-(-len(x) // size), 1)
    return list(zip(np.array_split(x, parts), np.array_split(y, parts), strict=True))
