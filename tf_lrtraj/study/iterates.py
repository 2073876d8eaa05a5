"""Tasks: scores of iterates and averages: levels, averages, many points, the sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.averaging.advising.advisor import advise
from tf_lrtraj.averaging.advising.measured import Measurement
from tf_lrtraj.averaging.advising.measurement_plan import Effort
from tf_lrtraj.study import study_points, training_runs
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.task import Sizes, task
from tf_lrtraj.theory.estimate import SpectrumEstimate, estimate_spectrum

__all__ = ["TASKS", "averages", "estimate", "levels", "many_points", "spaced", "sweep"]

ALL = ("train", "test")
PART = ("train_part", "test")
SWEPT = ("train_part", "test_part")


def spaced(config: Mapping[str, Any], number: int, share: float = 1.0) -> list[int]:
    """Returns `number` steps of snapshots, evenly over the last `share` of the window."""
    every, total = config["every"], training_runs.total_steps(config)
    places = np.linspace(total - share * config["window"], total, number)
    steps = total - np.round((total - places) / every) * every
    return [int(step) for step in np.unique(steps)]


@task(
    "losses of single iterates over the window",
    images=lambda config, sizes: config["evaluate"]["levels"] * sizes.all,
)
def levels(session: Session, seed: int) -> None:
    """Scores single iterates over the window on all images, to test stationarity."""
    training_runs.base(session, seed)
    snapshots = session.snapshots(seed)
    rows: list[dict[str, Any]] = []
    for step in session.bar(spaced(session.config, session.config["evaluate"]["levels"]), "levels"):
        rows += session.score(snapshots.read(step), ALL, step=step)
    session.store("levels", seed, rows)


@task(
    "the averages at the end",
    images=lambda config, sizes: (1 + len(config["averages"])) * (sizes.all + 2 * sizes.test),
)
def averages(session: Session, seed: int) -> None:
    """Scores the raw weights and the averages at the end, under every batch-norm policy."""
    raw = training_runs.base(session, seed).arrays()
    rows = session.score(raw, ALL, average="raw")
    rows += session.score(raw, ["test"], "running", average="raw")
    for name, arrays in training_runs.averages(session, seed).items():
        rows += session.score(arrays, ALL, average=name)
        rows += session.score(arrays, ["test"], "average", average=name)
        copied = [*session.trainable(arrays), *raw[session.num_trainable :]]
        rows += session.score(copied, ["test"], "copy", average=name)
    about = {"kernels": session.config["averages"], "horizon": session.config["horizon"]}
    session.store("averages", seed, rows, about)


def _far_points(config: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Returns (points, gap, end) of averages of distant points, and of single iterates (1, 0, end).

    The largest gap is used at every end; for two points the others too, at every fourth end.
    """
    settings = config["many_points"]
    gaps = [gap for gap in settings["gaps"] if gap % config["every"] == 0]
    longest = (max(settings["points"]) - 1) * max(gaps)
    ends = spaced(config, settings["ends"], max(1.0 - longest / config["window"], 0.0))
    found = []
    for i, end in enumerate(reversed(ends)):
        found += [(1, 0, end), *((n, max(gaps), end) for n in settings["points"])]
        if i % 4 == 0:
            found += [(2, gap, end) for gap in gaps if gap != max(gaps)]
    return found


def _many_points_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    wanted = _far_points(config)
    singles = sum(points == 1 for points, *_ in wanted)
    return float(len(wanted) * sizes.some + singles * sizes.test)


@task("averages of n points", after=("sweep",), images=_many_points_images)
def many_points(session: Session, seed: int) -> None:
    """Scores averages of n iterates `gap` updates apart, ending at steps of the window."""
    training_runs.base(session, seed)
    config, snapshots = session.config, session.snapshots(seed)
    steps, weights = snapshots.steps.tolist(), {}
    for points, gap, end in _far_points(config):
        row = np.zeros(len(steps))
        row[[steps.index(end - k * gap) for k in range(points)]] = 1.0 / points
        weights[points, gap, end] = row
    rows: list[dict[str, Any]] = []
    built = study_points.averaged(snapshots, weights)
    for (points, gap, end), arrays in session.bar(built, "many points", len(weights)):
        label: dict[str, Any] = {"points": points, "gap": gap, "end": end}
        rows += session.score(arrays, PART, **label)
        if points == 1:
            rows += session.score(arrays, ["test"], "running", **label)
    pairs = sorted({(n, gap) for n, gap, _ in weights if n > 1})
    session.store(
        "many_points",
        seed,
        rows,
        {"every": config["every"]},
        predicted=_predicted(session, seed, pairs),
    )


def _predicted(
    session: Session, seed: int, pairs: Sequence[tuple[int, int]]
) -> list[dict[str, float]]:
    """Returns the predicted loss of n points, from the mean single loss and the gap curve."""
    curve = estimate(session, seed).gaps
    single = sweep.measured(session, seed)["about"]["mean_single_loss"][PART[0]]
    rows = []
    for points, gap in pairs:
        places = np.arange(points) * (gap // session.config["every"])
        lags = np.abs(places[:, None] - places[None, :])
        rows.append(
            {"points": points, "gap": gap, "loss": single - 2.0 * float(curve[lags].mean())}
        )
    return rows


def _sweep_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    sweep = config["sweep"]
    count = sweep["singles"] + 2 * sweep["lags"] * sweep["pairs"] + sweep["verify"]
    return float(count * (sizes.parts + sizes.moments))


@task("predicted and measured losses of many averages", images=_sweep_images)
def sweep(session: Session, seed: int) -> None:
    """Predicts and measures the losses of a whole sweep and of the best weights."""
    training_runs.base(session, seed)
    config = session.config
    settings = config["sweep"]

    def measurement(name: str) -> Measurement:
        def measure(arrays: list[np.ndarray]) -> dict[str, float]:
            (row,) = session.scorer.score(arrays, [name])
            return {"loss": row["loss"], "accuracy": row["accuracy"]}

        images = session.scorer.images(name) + config["evaluate"]["batch_norm_images"]
        return Measurement(name, measure, {"seed": seed, "set": name}, images)

    sets = {name: measurement(name) for name in SWEPT}
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {"optimal": "optimal", "mean_single_loss": {}}
    curves = {}
    for name, other in zip(SWEPT, reversed(SWEPT), strict=True):
        advice = advise(
            session.snapshots(seed),
            sets[name],
            held_out=sets[other] if other == "test_part" else None,
            effort=Effort(settings["singles"], settings["lags"], settings["pairs"]),
            verify=settings["verify"],
            folder=session.state_folder("sweep", seed),  # measured losses are stored there
            progress=session.progress,
        )
        rows += _sweep_rows(advice.record, name, other)
        curves[name] = {
            key: advice.arrays[key].tolist() for key in ("lags", "jensen_gaps", "gap_curve")
        }
        about |= {key: advice.record[key] for key in ("level", "snapshots")}
        about["cost"] = advice.record["measured"]
        about["mean_single_loss"][name] = float(np.mean(advice.arrays["losses"]))
    session.store("sweep", seed, rows, about, **curves)


def _sweep_rows(record: Mapping[str, Any], name: str, other: str) -> list[dict[str, Any]]:
    """Returns rows of the averages whose losses were predicted and measured on a set."""
    rows = [
        {"average": "raw", "role": "raw", "set": name, "measured": record["raw_loss"]},
    ]
    for row in record["averages"]:
        if "measured" not in row:
            continue
        shown = {key: row[key] for key in ("family", "parameter", "role")}
        shown |= {"average": row["name"], "mean_age": row["mean_age_updates"], "chosen_on": name}
        predicted = {key: row[key] for key in ("predicted", "low", "high", "quadratic")}
        rows.append({**shown, **predicted, "set": name, "measured": row["measured"]})
        if row["name"] == "optimal" and f"measured_{other}" in row:
            rows.append({**shown, "set": other, "measured": row[f"measured_{other}"]})
    return rows


def estimate(session: Session, seed: int) -> SpectrumEstimate:
    """Estimates curvatures and noise of a seed's base run, from the pairs of its sweep."""
    found, config = sweep.measured(session, seed), session.config
    return estimate_spectrum(
        found[PART[0]]["lags"],
        found[PART[0]]["jensen_gaps"],
        found["about"]["snapshots"]["count"],
        found["about"]["snapshots"]["every"],
        config["learning_rate"] / (1.0 - config["momentum"]),
    )


TASKS = (levels, averages, sweep, many_points)
