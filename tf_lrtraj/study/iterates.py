"""Scores of iterates and of averages of them: levels, averages, many points, the sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.averaging.advising.advisor import advise
from tf_lrtraj.averaging.advising.measured import Measurement
from tf_lrtraj.averaging.advising.measurement_plan import Effort
from tf_lrtraj.averaging.post_hoc import combine
from tf_lrtraj.study import training_runs
from tf_lrtraj.study.session import Bench
from tf_lrtraj.study.task import Sizes, Task
from tf_lrtraj.study.trainer import arrays_of
from tf_lrtraj.theory.estimate import SpectrumEstimate, estimate_spectrum

__all__ = ["TASKS", "averages", "estimate", "levels", "many_points", "spaced", "sweep"]

ALL = ("train", "test")
PART = ("train_part", "test")
SWEPT = ("train_part", "test_part")


def spaced(config: Mapping[str, Any], number: int, share: float = 1.0) -> list[int]:
    """`number` steps of snapshots, evenly over the last `share` of the window, its end included."""
    every, total = config["every"], training_runs.total_steps(config)
    places = np.linspace(total - share * config["window"], total, number)
    steps = total - np.round((total - places) / every) * every
    return [int(step) for step in np.unique(steps)]


def levels(bench: Bench, seed: int) -> None:
    """Single iterates over the window, on all images: has the loss levelled off?"""
    training_runs.base(bench, seed)
    snapshots = bench.snapshots(seed)
    rows: list[dict[str, Any]] = []
    for step in bench.bar(spaced(bench.config, bench.config["evaluate"]["levels"]), "levels"):
        rows += [{"step": step, **row} for row in bench.scorer.score(snapshots.read(step), ALL)]
    bench.store("levels", seed, rows)


def averages(bench: Bench, seed: int) -> None:
    """The raw weights and the averages at the end, under every batch-norm policy."""
    run = training_runs.base(bench, seed)
    raw = arrays_of(run.state())
    count = len(bench.model.trainable_variables)
    score = bench.scorer.score
    rows = [{"average": "raw", **row} for row in score(raw, ALL)]
    rows += [{"average": "raw", **row} for row in score(raw, ["test"], "running")]
    for name, arrays in training_runs.averages(bench, seed).items():
        named = {"average": name}
        rows += [{**named, **row} for row in score(arrays[:count], ALL)]
        rows += [{**named, **row} for row in score(arrays, ["test"], "average")]
        copied = [*arrays[:count], *raw[count:]]
        rows += [{**named, **row} for row in score(copied, ["test"], "copy")]
    about = {"kernels": bench.config["averages"], "horizon": bench.config["horizon"]}
    bench.store("averages", seed, rows, about)


def _far_points(config: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """(points, gap, end) of the averages of far points, and of single iterates (1, 0, end).

    The largest gap at every end; for two points the others too, at every fourth end.
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


def many_points(bench: Bench, seed: int) -> None:
    """Averages of n iterates `gap` updates apart, ending at places of the window."""
    training_runs.base(bench, seed)
    config, snapshots = bench.config, bench.snapshots(seed)
    steps, wanted = snapshots.steps.tolist(), _far_points(config)
    rows: list[dict[str, Any]] = []
    with bench.bar(total=len(wanted), what="many points") as bar:
        for low in range(0, len(wanted), 8):  # so many averages in memory at once
            group = wanted[low : low + 8]
            weights = {}
            for points, gap, end in group:
                row = np.zeros(len(steps))
                row[[steps.index(end - k * gap) for k in range(points)]] = 1.0 / points
                weights[f"{points} {gap} {end}"] = row
            built = combine(snapshots, weights, progress=False)
            for points, gap, end in group:
                meant = {"points": points, "gap": gap, "end": end}
                arrays = built.pop(f"{points} {gap} {end}")
                scored = bench.scorer.score(arrays, PART)
                if points == 1:
                    scored += bench.scorer.score(arrays, ["test"], "running")
                rows += [{**meant, **row} for row in scored]
                bar.update()
    pairs = sorted({(n, gap) for n, gap, _ in wanted if n > 1})
    bench.store(
        "many_points",
        seed,
        rows,
        {"every": config["every"]},
        predicted=_predicted(bench, seed, pairs),
    )


def _predicted(bench: Bench, seed: int, pairs: Sequence[tuple[int, int]]) -> list[dict[str, float]]:
    """Loss of n points by the quadratic identity, from the mean single loss and the gap curve."""
    curve = estimate(bench, seed).gaps
    single = bench.read("sweep", seed)["about"]["mean_single_loss"][PART[0]]
    rows = []
    for points, gap in pairs:
        places = np.arange(points) * (gap // bench.config["every"])
        lags = np.abs(places[:, None] - places[None, :])
        rows.append(
            {"points": points, "gap": gap, "loss": single - 2.0 * float(curve[lags].mean())}
        )
    return rows


def sweep(bench: Bench, seed: int) -> None:
    """Predicted and measured losses of a whole sweep, and the best weights there are."""
    training_runs.base(bench, seed)
    config = bench.config
    settings = config["sweep"]
    count = len(bench.model.trainable_variables)

    def measurement(name: str) -> Measurement:
        def measure(arrays: list[np.ndarray]) -> dict[str, float]:
            (row,) = bench.scorer.score(arrays[:count], [name])
            return {"loss": row["loss"], "accuracy": row["accuracy"]}

        images = bench.scorer.images(name) + config["evaluate"]["batch_norm_images"]
        return Measurement(name, measure, {"seed": seed, "set": name}, images)

    sets = {name: measurement(name) for name in SWEPT}
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {"optimal": "optimal", "mean_single_loss": {}}
    curves = {}
    for name, other in zip(SWEPT, reversed(SWEPT), strict=True):
        advice = advise(
            bench.snapshots(seed),
            sets[name],
            held_out=sets[other] if other == "test_part" else None,
            effort=Effort(settings["singles"], settings["lags"], settings["pairs"]),
            verify=settings["verify"],
            folder=bench.state_folder("sweep", seed),  # what was measured once is kept there
            progress=bench.progress,
        )
        rows += _sweep_rows(advice.record, name, other)
        curves[name] = {
            key: advice.arrays[key].tolist() for key in ("lags", "jensen_gaps", "gap_curve")
        }
        about |= {key: advice.record[key] for key in ("level", "snapshots")}
        about["cost"] = advice.record["measured"]
        about["mean_single_loss"][name] = float(np.mean(advice.arrays["losses"]))
    bench.store("sweep", seed, rows, about, **curves)


def _sweep_rows(record: Mapping[str, Any], name: str, other: str) -> list[dict[str, Any]]:
    """Rows of the averages a set's advice predicted and measured."""
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


def estimate(bench: Bench, seed: int) -> SpectrumEstimate:
    """Curvatures and noise of a seed's base run, from the pairs its sweep measured."""
    if not bench.record_path("sweep", seed).exists():
        sweep(bench, seed)
    found, config = bench.read("sweep", seed), bench.config
    return estimate_spectrum(
        found[PART[0]]["lags"],
        found[PART[0]]["jensen_gaps"],
        found["about"]["snapshots"]["count"],
        found["about"]["snapshots"]["every"],
        config["learning_rate"] / (1.0 - config["momentum"]),
    )


def _levels_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    return float(config["evaluate"]["levels"] * sizes.all)


def _averages_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    return float((1 + len(config["averages"])) * (sizes.all + 2 * sizes.test))


def _sweep_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    sweep = config["sweep"]
    count = sweep["singles"] + 2 * sweep["lags"] * sweep["pairs"] + sweep["verify"]
    part = min(config["evaluate"]["part"], sizes.test)
    return float(count * (sizes.part + part + 2 * sizes.moments))


def _many_points_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    wanted = _far_points(config)
    singles = sum(n == 1 for n, *_ in wanted)
    return float(len(wanted) * sizes.some + singles * sizes.test)


TASKS = (
    Task("levels", levels, "losses of single iterates over the window", images=_levels_images),
    Task("averages", averages, "the averages at the end", images=_averages_images),
    Task("sweep", sweep, "predicted and measured losses of many averages", images=_sweep_images),
    Task(
        "many_points",
        many_points,
        "averages of n points",
        after=("sweep",),
        images=_many_points_images,
    ),
)
