"""Averages against schedules: equivalent runs, emulated decays, and runs at lower rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lrtraj import kernels, rates, theory
from tf_lrtraj.averaging.post_hoc import combine, snapshot_weights
from tf_lrtraj.experiments.reproduction import iterates, runs
from tf_lrtraj.experiments.reproduction.bench import Bench
from tf_lrtraj.experiments.reproduction.task import Sizes, Task, base_run
from tf_lrtraj.experiments.reproduction.trainer import arrays_of
from tf_lrtraj.theory import SpectrumEstimate

__all__ = ["DECAYS", "EQUIVALENCES", "TASKS", "decay_rates", "decays", "equivalent", "lower_rates"]

EQUIVALENCES = ("curvature_free", "curvature", "spectrum")
DECAYS = ("cosine", "linear", "one_minus_sqrt")


def full_weights(config: Mapping[str, Any], kernel: kernels.Kernel) -> np.ndarray:
    """[T+1] weights on all iterates of an average over the horizon."""
    weights = np.zeros(runs.total_steps(config) + 1)
    horizon = config["horizon"]
    weights[-horizon - 1 :] = kernel.weights(horizon)
    return weights


def equivalent_rates(
    config: Mapping[str, Any], kernel: kernels.Kernel, equivalence: str, found: SpectrumEstimate
) -> np.ndarray:
    """[n] rates from `runs.fork_step` on of the run that should end where the average does.

    Raises:
        ValueError: for an unknown equivalence.
    """
    base, momentum = config["learning_rate"], config["momentum"]
    fork, horizon = runs.fork_step(config), config["horizon"]
    if equivalence == "curvature_free":
        return theory.schedule_from_weights(full_weights(config, kernel), base, 0.0, momentum)[
            fork:
        ]
    # With curvature both take the effective rate and no momentum, as modes that are slow against
    # it see it.  The path-wise answer with momentum exists too, but where a mode oscillates its
    # rates swing far beyond the base rate and below 0.
    effective = base / (1.0 - momentum)
    weights = kernel.weights(horizon)
    if equivalence == "curvature":
        schedule = theory.schedule_from_weights(weights, effective, found.curvature)
    elif equivalence == "spectrum":
        target = found.model.expected_loss_of_average(
            kernel, np.full(horizon, effective), found.initial
        )
        schedule = theory.best_schedule(
            found.model, target, effective, found.initial, weights=weights
        )
    else:
        raise ValueError(
            f"`equivalence` must be one of {list(EQUIVALENCES)}. Received: {equivalence!r}"
        )
    lead = np.full(runs.total_steps(config) - horizon - fork, base)
    return np.concatenate([lead, schedule * (1.0 - momentum)])


def predicted_excess(
    config: Mapping[str, Any], kernel: kernels.Kernel, schedule: np.ndarray, found: SpectrumEstimate
) -> tuple[float, float]:
    """Expected excess loss of the average and of the run under the schedule, by the model."""
    effective = 1.0 / (1.0 - config["momentum"])
    horizon = config["horizon"]
    constant = np.full(horizon, config["learning_rate"] * effective)
    average = found.model.expected_loss_of_average(kernel, constant, found.initial)[-1]
    run = found.model.expected_loss(schedule[-horizon:] * effective, found.initial)[-1]
    return float(average), float(run)


def equivalent(bench: Bench, seed: int) -> None:
    """Each average against the runs under its three equivalent schedules, at the end and half-way.

    A run half-way equals a partial average of the base run's iterates, by the inverse map.
    """
    config = bench.config
    found = iterates.estimate(bench, seed)
    runs.base(bench, seed)
    count = len(bench.model.trainable_variables)
    fork, total = runs.fork_step(config), runs.total_steps(config)
    half = total - config["horizon"] // 2
    rows: list[dict[str, Any]] = []
    predicted = [{"average": "raw", "of": "raw", "excess": float(found.excess.sum())}]
    for name, kernel_config in config["averages"].items():
        kernel = kernels.from_config(kernel_config)
        for equivalence in EQUIVALENCES:
            schedule = equivalent_rates(config, kernel, equivalence, found)
            run = runs.fork(
                bench, seed, f"equivalent-{name}-{equivalence}", fork, schedule, keep=(half,)
            )
            label = {"average": name, "equivalence": equivalence}
            named = {**label, "of": "run", "share": 1.0}
            weights = arrays_of(run.state())[:count]
            rows += [{**named, **row} for row in bench.scorer.score(weights, iterates.ALL)]
            excess = predicted_excess(config, kernel, schedule, found)
            for of, value in zip(("average", "run"), excess, strict=True):
                predicted.append({**label, "of": of, "excess": value})
            if equivalence == "curvature_free":
                along = {**label, "share": 0.5}
                weights = arrays_of(run.state(half))[:count]
                scored = bench.scorer.score(weights, iterates.PART)
                rows += [{**along, "of": "run", **row} for row in scored]
                weights = emulated(bench, seed, schedule[: half - fork], half)[:count]
                scored = bench.scorer.score(weights, iterates.PART)
                rows += [{**along, "of": "average", **row} for row in scored]
    for row in bench.read("averages", seed)["rows"]:
        if row["policy"] == "recompute":
            of = "raw" if row["average"] == "raw" else "average"
            rows.append({**row, "equivalence": "none", "of": of, "share": 1.0})
    about = {
        "estimates": {
            "curvature": found.curvature,
            "curvatures": found.curvatures.tolist(),
            "noise_variances": found.noise_variances.tolist(),
            "excess": found.excess.tolist(),
            "unresolved": found.unresolved,
            "set": "train_part",
        },
        "predicted": predicted,
        "kernels": config["averages"],
        "fork": fork,
        "half": half,
    }
    bench.store("equivalent", seed, rows, about)


def emulated(bench: Bench, seed: int, schedule: np.ndarray, last: int) -> list[np.ndarray]:
    """Where a run under `schedule` from the fork to step `last` ends, built from snapshots."""
    config, snapshots = bench.config, bench.snapshots(seed, which="horizon")
    base = np.full(last, config["learning_rate"])
    whole = base.copy()
    whole[-len(schedule) :] = schedule
    weights = theory.weights_from_schedule(whole, base, 0.0, config["momentum"])
    # What the inverse map puts before the fork is rounding: powers of the momentum.
    early = weights[: snapshots.steps[0]].sum()
    weights[: snapshots.steps[0]] = 0.0
    weights[-1] += early
    folded = snapshot_weights(snapshots.steps, weights, last)
    return combine(snapshots, {"emulated": folded.weights}, progress=False)["emulated"]


def decay_rates(config: Mapping[str, Any], name: str) -> np.ndarray:
    """[n] rates from `runs.fork_step` on: constant, then a decay to 0 over the horizon."""
    base, horizon = config["learning_rate"], config["horizon"]
    formulas = {
        "cosine": rates.Cosine(start=base, steps=horizon),
        "linear": rates.Linear(start=base, steps=horizon),
        "one_minus_sqrt": rates.OneMinusSqrt(start=base, hold=0, steps=horizon),
    }
    lead = runs.total_steps(config) - horizon - runs.fork_step(config)
    return np.concatenate([np.full(lead, base), rates.as_array(formulas[name], horizon)])


def decays(bench: Bench, seed: int) -> None:
    """Decays that were trained against the same decays emulated from constant-rate iterates."""
    config, count = bench.config, len(bench.model.trainable_variables)
    runs.base(bench, seed)
    rows: list[dict[str, Any]] = []
    for name in DECAYS:
        schedule = decay_rates(config, name)
        run = runs.fork(bench, seed, f"decay-{name}", runs.fork_step(config), schedule)
        found = {
            "trained": arrays_of(run.state()),
            "emulated": emulated(bench, seed, schedule, runs.total_steps(config)),
        }
        for of, arrays in found.items():
            scored = bench.scorer.score(arrays[:count], iterates.ALL)
            rows += [{"decay": name, "of": of, **row} for row in scored]
    bench.store("decays", seed, rows, {"snapshot_every": config["horizon_every"]})


def lower_rate_run(bench: Bench, seed: int, factor: float) -> Any:
    """A run at `factor` times the base rate, from the burn-in's end to the base run's end."""
    config = bench.config
    return runs.fork(
        bench,
        seed,
        f"rate-{factor:g}",
        config["burn_in"],
        np.full(config["window"], factor * config["learning_rate"]),
        every=config["every"],
    )


def lower_rates(bench: Bench, seed: int) -> None:
    """Late single iterates of runs at 1/n of the rate, for the averages of n points."""
    config, rows = bench.config, []
    for points in config["many_points"]["points"]:
        run = lower_rate_run(bench, seed, 1.0 / points)
        snapshots = bench.snapshots(seed, run.folder.name)
        for step in iterates.spaced(config, config["late_iterates"], share=0.25):
            scored = bench.scorer.score(snapshots.read(step), iterates.PART)
            label = {"points": points, "learning_rate": config["learning_rate"] / points}
            rows += [{**label, "step": step, **row} for row in scored]
    bench.store("lower_rates", seed, rows)


def _tail(config: Mapping[str, Any]) -> int:
    return runs.total_steps(config) - runs.fork_step(config)


def _equivalent_steps(config: Mapping[str, Any]) -> dict[str, int]:
    count = len(config["averages"]) * len(EQUIVALENCES)
    return base_run(config) | {"equivalent": count * _tail(config)}


def _equivalent_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    averages = len(config["averages"])
    whole = averages * (len(EQUIVALENCES) + 1) + 1
    return float(whole * sizes.all + 2 * averages * sizes.some)


def _decays_steps(config: Mapping[str, Any]) -> dict[str, int]:
    return base_run(config) | {"decays": len(DECAYS) * _tail(config)}


def _decays_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    return float(2 * len(DECAYS) * sizes.all)


def _lower_rates_steps(config: Mapping[str, Any]) -> dict[str, int]:
    points = config["many_points"]["points"]
    return base_run(config) | {f"rate-{1.0 / n:g}": int(config["window"]) for n in points}


def _lower_rates_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    return float(config["late_iterates"] * len(config["many_points"]["points"]) * sizes.some)


TASKS = (
    Task(
        "equivalent",
        equivalent,
        "runs under equivalent schedules",
        after=("sweep", "averages"),
        steps=_equivalent_steps,
        images=_equivalent_images,
    ),
    Task(
        "decays",
        decays,
        "decays, trained and emulated",
        steps=_decays_steps,
        images=_decays_images,
    ),
    Task(
        "lower_rates",
        lower_rates,
        "runs at lower constant rates",
        steps=_lower_rates_steps,
        images=_lower_rates_images,
    ),
)
