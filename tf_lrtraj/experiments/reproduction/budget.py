"""SWA, FGE and conventional training with the same number of steps (Izmailov et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import rates
from tf_lrtraj.averaging import Ensemble
from tf_lrtraj.averaging.post_hoc import combine
from tf_lrtraj.experiments.reproduction import iterates, runs
from tf_lrtraj.experiments.reproduction.bench import Bench
from tf_lrtraj.experiments.reproduction.task import Sizes, Task, base_run
from tf_lrtraj.experiments.reproduction.trainer import arrays_of

__all__ = ["TASKS", "budget", "conventional_rates", "cyclical_rates", "independent"]


def conventional_rates(config: Mapping[str, Any]) -> np.ndarray:
    """[n] rates of the second half of training: the base rate until 50 % of the budget, then on
    a line to a hundredth of it at 90 %, then constant (Izmailov et al. 2018, section 5)."""
    total = runs.total_steps(config)
    steps = np.arange(total // 2, total) / total
    share = np.clip((steps - 0.5) / 0.4, 0.0, 1.0)
    return np.asarray(config["learning_rate"] * (1.0 - 0.99 * share))


def cyclical_rates(config: Mapping[str, Any]) -> np.ndarray:
    """[n] rates over the window, the last quarter of the budget."""
    base, cycle = config["learning_rate"], config["cycle"]
    formula = rates.Cyclical(start=base, end=cycle["low"] * base, length=cycle["length"])
    return rates.as_array(formula, config["window"])


def conventional(bench: Bench, seed: int) -> list[np.ndarray]:
    """Weights at the end of the conventional run."""
    config = bench.config
    half = runs.total_steps(config) // 2
    run = runs.fork(bench, seed, "conventional", half, conventional_rates(config))
    return arrays_of(run.state())


def cycle_ends(bench: Bench, seed: int) -> tuple[list[int], list[list[np.ndarray]]]:
    """Steps and weights at the ends of the cycles."""
    config = bench.config
    first, length = config["burn_in"], config["cycle"]["length"]
    ends = list(range(first + length, runs.total_steps(config) + 1, length))
    run = runs.fork(
        bench, seed, "cyclical", first, cyclical_rates(config), keep=tuple(ends), every=length
    )
    return ends, [arrays_of(run.state(step)) for step in ends]


def budget(bench: Bench, seed: int) -> None:
    """Scores of every method on equal budgets: the base run's number of steps."""
    config = bench.config
    count = len(bench.model.trainable_variables)
    runs.base(bench, seed)
    rows: list[dict[str, Any]] = []

    def add(method: str, weights: Sequence[Any], member: int = -1) -> None:
        scored = bench.scorer.score(weights[:count], iterates.PART)
        rows.extend({"method": method, "member": member, **row} for row in scored)

    add("conventional", conventional(bench, seed))
    snapshots = bench.snapshots(seed)
    uniform = np.full(len(snapshots), 1.0 / len(snapshots))
    add("swa_constant", combine(snapshots, {"swa": uniform}, progress=False)["swa"])
    ends, members = cycle_ends(bench, seed)
    for member, weights in enumerate(members):
        add("fge_member", weights, member)
    mean = [np.mean([m[i] for m in members], axis=0, dtype=np.float64) for i in range(count)]
    add("swa_cyclical", [array.astype(np.float32) for array in mean])
    rows += _ensemble(bench, "fge", members)
    cycle = config["cycle"]
    about = {
        "total": runs.total_steps(config),
        "cycle": {
            "length": cycle["length"],
            "high": config["learning_rate"],
            "low": cycle["low"] * config["learning_rate"],
            "first_step": config["burn_in"],
        },
        "members": len(members),
        "swa_iterates": len(snapshots),
    }
    bench.store("budget", seed, rows, about, rates=cyclical_rates(config), collected=ends)


def trade_off_points(bench: Bench, seed: int) -> list[tuple[str, str, list[np.ndarray]]]:
    """(family, label, weights) of points that trade training loss for test loss."""
    raise NotImplementedError  # on the branch of budgets


def independent(bench: Bench, seed: int) -> None:
    """The ensemble of the conventional runs of all seeds, which costs as many budgets."""
    members = [conventional(bench, other) for other in range(bench.config["seeds"])]
    rows = _ensemble(bench, "independent", members)
    bench.store("independent", seed, rows, {"members": len(members)})


def _ensemble(
    bench: Bench, method: str, members: Sequence[Sequence[np.ndarray]]
) -> list[dict[str, Any]]:
    settings = bench.config["evaluate"]
    count = len(bench.model.trainable_variables)
    ensemble = Ensemble(
        bench.model,
        [m[:count] for m in members],
        logits=True,
        batch_norm_data=bench.problem.x_train[: settings["batch_norm_images"]],
        batch_size=settings["batch_size"],
    )
    rows = []
    for name in iterates.PART:
        x, y = bench.problem.images(name, settings["part"])
        found = ensemble.predict(x)
        chosen = found[np.arange(len(y)), y]
        rows.append(
            {
                "method": method,
                "member": -1,
                "set": name,
                "loss": float(-np.log(np.maximum(chosen, 1e-30)).mean()),
                "accuracy": float((found.argmax(axis=1) == y).mean()),
                "images": len(y),
                "policy": "recompute",
            }
        )
    return rows


def _steps(config: Mapping[str, Any]) -> dict[str, int]:
    total = runs.total_steps(config)
    more = {"conventional": total - total // 2, "cyclical": int(config["window"])}
    return base_run(config) | more


def _images(config: Mapping[str, Any], sizes: Sizes) -> float:
    cycles = config["window"] // config["cycle"]["length"]
    return float((2 * cycles + 3) * sizes.some)


def _independent_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    return float(config["seeds"] * sizes.some)


TASKS = (
    Task("budget", budget, "SWA, FGE and conventional training", steps=_steps, images=_images),
    Task(
        "independent",
        independent,
        "ensemble of independent runs",
        after=("budget",),
        images=_independent_images,
        across=True,
    ),
)
