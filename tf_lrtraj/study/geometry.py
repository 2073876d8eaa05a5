"""Tasks: how far the weights of the base run move, and the shell that they move on.

With weights of covariance S about m, the squared distance from m has mean tr S and, where they
are Gaussian, variance 2 tr S²: in many directions it varies little, and iterates lie near a
surface.  Of the quadratic model E[‖θ' - m‖² - ‖θ - m‖²] for one step is positive inside an
ellipsoid and negative outside.
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
    """Squared displacement of weights against lag over the window: `displacement`.

    Arrays `lags`, `mean_squared`, `standard_error` (infinite where too few stretches of
    that length do not overlap), and the same with prefix `filters_` between filters divided by
    their norms (mean over filters of 2 - 2 cos), which is what counts before batch norm.
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
    """Where averages lie, and whether steps lead away from the centre or towards it: `shell`.

    The window's snapshots, each half of them seen from the mean of the other: their own mean is
    close to any average of them.  Arrays `steps` and `squared_distance` of all of them; rows of
    the averages of `places` stretches ("window"), and of each stretch's first and last iterate
    ("two_point"), beside the mean of the stretch's iterates; rows ("walk") of the squared distance
    before and after some updates from c + s (θ - c), θ the stretch's last iterate.
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
    """Where a few updates lead from a place, on batches of another order, without a velocity."""
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
