"""Tasks: displacement of the weights of the base run, and the shell around their mean.

For weights with covariance S about m, the squared distance from m has mean tr S and, for Gaussian
weights, variance 2 tr S².  With many directions it varies little, and iterates lie near a surface.
In the quadratic model E[‖θ' - m‖² - ‖θ - m‖²] for one step is positive inside an ellipsoid and
negative outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import probes
from tf_lrtraj.probes.vectors import RunningMean, square_distance
from tf_lrtraj.study import training_runs
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.task import base_run, task
from tf_lrtraj.study.trainer import Run, arrays_of

__all__ = ["TASKS"]


@task("displacement against lag")
def displacement(session: Session, seed: int) -> None:
    """Measures squared displacement by lag over the window: `displacement`.

    The record has the arrays `lags`, `mean_squared` and `standard_error` (infinite if there are too
    few disjoint intervals of that length), and the same with prefix `filters_` between normalised
    filters (mean over filters of 2 - 2 cos), on which the loss depends before batch norm.
    """
    training_runs.base(session, seed)
    settings, snapshots = session.config["displacement"], session.snapshots(seed)
    steps = snapshots.steps
    spacing = int(np.diff(steps).min())
    total = int(steps[-1] - steps[0])
    longest = max(int(settings["longest"] * total) // spacing, 1)
    lags = np.unique(np.geomspace(1, longest, settings["lags"]).round().astype(int)) * spacing
    probe = probes.Distance(
        snapshots, lags=lags, filters=True, filter_axes=probes.filter_axes_of(session.model)
    )
    record = probes.measure(probe, progress=session.progress, tell=session.tell)
    values = record.values
    about: dict[str, Any] = {
        "run": "base",
        "total_lag": total,
        "first_step": int(steps[0]),
        "snapshots": len(snapshots),
        "num_weights": record.about["num_weights"],
    }
    for name in ("squared", "filters_squared"):
        about[f"{name}_growth"] = float(values[f"{name}_growth"])
        about[f"{name}_growth_se"] = float(values[f"{name}_growth_se"])
    session.store(
        "displacement",
        seed,
        about=about,
        lags=lags,
        mean_squared=values["mean_squared"],
        standard_error=values["mean_squared_se"],
        filters_mean_squared=values["mean_filters_squared"],
        filters_standard_error=values["mean_filters_squared_se"],
        steps=steps,
        norm=values["norm"],
    )


@task(
    "distances to the centre",
    steps=lambda config: base_run(config) | {"shell": _walks(config) * config["shell"]["steps"]},
)
def shell(session: Session, seed: int) -> None:
    """Measures the distances of iterates and averages from the centre, and their drift: `shell`.

    Distances of the window's snapshots are measured from the mean of the other half of them,
    because their own mean is close to any of their averages.  The record has the arrays `steps` and
    `squared_distance` of all snapshots.  Its rows are: the averages of `places` parts of the window
    ("window"), and of the first and last iterate of each part ("two_point"), with the mean over the
    part's iterates; and ("walk") the squared distance before and after some updates from c + s (θ -
    c), where θ is the last iterate of the part.
    """
    run, config = training_runs.base(session, seed), session.config
    settings, snapshots = config["shell"], session.snapshots(seed)
    halves = np.array_split(snapshots.steps, 2)
    means = []
    for part in halves:
        mean = RunningMean()
        for step in part.tolist():
            mean.add(session.vector(snapshots.read(step)))
        means.append(mean.value)
    squared: list[float] = []
    rows: list[dict[str, Any]] = []
    for half, part in enumerate(halves):
        centre = means[1 - half]
        for stretch in np.array_split(part, settings["places"] // 2):
            average, ends = RunningMean(), RunningMean()
            for step in stretch.tolist():
                vector = session.vector(snapshots.read(step))
                average.add(vector)
                if step in (stretch[0], stretch[-1]):
                    ends.add(vector)
                squared.append(square_distance(vector, centre))
            iterates = float(np.mean(squared[-len(stretch) :]))
            for name, found in (("window", average), ("two_point", ends)):
                rows.append(
                    {
                        "of": name,
                        "from_step": int(stretch[0]),
                        "to_step": int(stretch[-1]),
                        "squared_distance": square_distance(found.value, centre),
                        "iterates": iterates,
                    }
                )
            for scale in settings["scales"]:
                place = centre + scale * (vector - centre)
                after = _walked(session, seed, run, snapshots.read(int(stretch[-1])), place)
                rows.append(
                    {
                        "of": "walk",
                        "scale": scale,
                        "to_step": int(stretch[-1]),
                        "before": square_distance(place, centre),
                        "after": square_distance(after, centre),
                        "iterates": iterates,
                    }
                )
    about = {"updates": settings["steps"], "num_weights": int(means[0].size)}
    session.store("shell", seed, rows, about, steps=snapshots.steps, squared_distance=squared)


def _walked(
    session: Session, seed: int, run: Run, arrays: Sequence[np.ndarray], place: np.ndarray
) -> np.ndarray:
    """Returns the weights after a few updates from a point, on other batches, without velocity."""
    trainer, config = session.trainer, session.config
    moved, low = [*arrays], 0
    for i in range(session.num_trainable):
        size = arrays[i].size
        moved[i] = place[low : low + size].reshape(arrays[i].shape).astype(np.float32)
        low += size
    trainer.compile(run.momentum)
    trainer.put({f"weights/{i}": array for i, array in enumerate(moved)}, run.last)
    rates = np.full(config["shell"]["steps"], config["learning_rate"])
    trainer.steps(run.last, rates, seed + training_runs.OTHER_ORDER)
    return session.vector(arrays_of(trainer.take()))


def _walks(config: Mapping[str, Any]) -> int:
    return int(config["shell"]["places"]) * len(config["shell"]["scales"])


TASKS = (displacement, shell)
