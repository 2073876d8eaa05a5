r"""Tasks: how far the weights of the base run move, and the shell that they move on.

With weights :math:`\theta \sim N(m, S)` the squared distance from the centre has mean
:math:`\operatorname{tr} S` and variance :math:`2\operatorname{tr} S^2`: with many *effective
directions* :math:`n = (\operatorname{tr} S)^2 / \operatorname{tr} S^2` its coefficient of variation
:math:`\sqrt{2/n}` is small, and iterates lie near an ellipsoid's surface.  Inner products
of independent iterates, :math:`\langle\theta-m, \theta'-m\rangle`, have variance
:math:`\operatorname{tr} S^2`, so how much *distances* vary is predicted from *products*
of pairs that are far apart in time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tf_lrtraj import probes
from tf_lrtraj.experiments.reproduction import runs
from tf_lrtraj.experiments.reproduction.bench import Bench
from tf_lrtraj.experiments.reproduction.task import Task
from tf_lrtraj.probes.flat_vectors import RunningMean, joined, square_distance
from tf_lrtraj.theory.weight_space import squared_distances

__all__ = ["TASKS", "Directions", "displacement", "effective_directions", "shell"]


def displacement(bench: Bench, seed: int) -> None:
    """Squared displacement of weights against lag over the window: `displacement`.

    Arrays `lags`, `mean_squared`, `standard_error` (infinite where too few stretches of
    that length do not overlap), and the same with prefix `filters_` between filters divided by
    their norms (mean over filters of 2 - 2 cos), which is what counts before batch norm.
    """
    runs.base(bench, seed)
    settings, snapshots = bench.config["displacement"], bench.snapshots(seed)
    steps = snapshots.steps
    spacing = int(np.diff(steps).min())
    total = int(steps[-1] - steps[0])
    longest = max(int(settings["longest"] * total) // spacing, 1)
    lags = np.unique(np.geomspace(1, longest, settings["lags"]).round().astype(int)) * spacing
    record = probes.displacement(
        snapshots,
        lags=lags,
        filters=True,
        filter_axes=probes.filter_axes_of(bench.model),
        progress=bench.progress,
        tell=bench.tell,
    )
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
    bench.store(
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


@dataclasses.dataclass(frozen=True)
class Directions:
    """How many directions the weights fluctuate in.

    Attributes:
        trace: tr S, the mean squared distance from the centre.
        square_trace: tr S².
    """

    trace: float
    square_trace: float

    @property
    def effective(self) -> float:
        """(tr S)² / tr S²."""
        return self.trace**2 / self.square_trace if self.square_trace > 0.0 else np.inf

    @property
    def variation(self) -> float:
        """Coefficient of variation of the squared distance, for Gaussian weights."""
        return float(np.sqrt(2.0 / self.effective))


def effective_directions(to_centre: Any, distances: Any, apart: float = 0.25) -> Directions:
    """From squared distances of iterates to their centre, and between each other.

    Products of slow directions do not become independent within the window; their
    covariance then adds to `square_trace`, which it can at most double.

    Args:
        to_centre: [K] squared distances to the mean of all iterates, K ≥ 4.
        distances: [K, K] squared distances between iterates, in order and evenly spaced.
        apart: pairs count that are at least this share of the trajectory apart.

    Raises:
        ValueError: for fewer iterates, or shapes that do not fit.

    >>> corners = np.array([[1.0, 1], [-1, 1], [-1, -1], [1, -1]])  # distances do not vary
    >>> between = ((corners[:, None] - corners) ** 2).sum(-1)
    >>> round(effective_directions([2.0, 2, 2, 2], between).trace, 6)
    2.0
    """
    to_centre, distances = np.asarray(to_centre, float), np.asarray(distances, float)
    count = to_centre.size
    if to_centre.ndim != 1 or count < 4 or distances.shape != (count, count):
        raise ValueError(
            "`to_centre` must be [K] of at least 4 iterates and `distances` [K, K]. "
            f"Received: shapes {to_centre.shape} and {distances.shape}"
        )
    products = 0.5 * (to_centre[:, None] + to_centre - distances)
    later = np.arange(count) - np.arange(count)[:, None] >= max(apart * (count - 1), 1.0)
    far = products[later]
    return Directions(float(to_centre.mean()), float(far.var()))


def shell(bench: Bench, seed: int) -> None:
    """Distances of iterates and averages from the centre of the window: `shell`.

    The centre is the mean of the window's snapshots.  `about.predicted_cv` is the coefficient of
    variation of the squared distance that the number of effective directions predicts.
    """
    runs.base(bench, seed)
    snapshots = bench.snapshots(seed)
    steps, count = snapshots.steps, snapshots.num_trainable
    mean = RunningMean()
    for step in steps.tolist():
        mean.add(joined(snapshots.read(step)[:count]))
    every = max(-(-mean.value.size * 4 * len(steps) // bench.config["shell"]["memory"]), 1)
    held: list[np.ndarray] = []
    squared = np.empty(len(steps))
    for k, step in enumerate(steps.tolist()):
        vector = joined(snapshots.read(step)[:count])
        squared[k] = square_distance(vector, mean.value)
        if k % every == 0:
            held.append(vector)
    found = effective_directions(squared[::every], squared_distances(np.stack(held)))
    known = _known_losses(bench, seed)
    rows = []
    weights = {"raw": snapshots.read(steps[-1]), **runs.averages(bench, seed)}
    for name, arrays in weights.items():
        row: dict[str, Any] = {"average": name}
        row["squared_distance"] = square_distance(joined(arrays[:count]), mean.value)
        if name in known:
            row |= {"set": "train", "loss": known[name]}
        rows.append(row)
    bench.store(
        "shell",
        seed,
        rows=rows,
        about={
            "run": "base",
            "predicted_cv": found.variation,
            "effective_directions": found.effective,
            "num_weights": int(mean.value.size),
            "snapshots_of_spectrum": len(held),
        },
        steps=steps,
        squared_distance=squared,
    )


def _known_losses(bench: Bench, seed: int) -> dict[str, float]:
    """Average → loss of the whole training set, where it has been measured."""
    if not bench.record_path("averages", seed).exists():
        return {}
    return {
        row["average"]: row["loss"]
        for row in bench.read("averages", seed)["rows"]
        if row.get("set") == "train" and row.get("policy", "recompute") == "recompute"
    }


TASKS = (
    Task("displacement", displacement, "displacement against lag"),
    Task("shell", shell, "distances to the centre", after=("averages",)),
)
