"""Which tasks a reproduction consists of, what they cost, and which are needed for a claim."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tf_lrtraj.experiments.reproduction import (
    budget,
    geometry,
    iterates,
    lines,
    runs,
    schedules,
    synthetic,
    trajectories,
    trips,
    widths,
)
from tf_lrtraj.experiments.reproduction.bench import Bench
from tf_lrtraj.experiments.reproduction.probe_settings import costs

__all__ = ["TASKS", "Task", "images", "plan", "training_steps"]

_ALL = "seeds"


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to measure, for one seed at a time.

    Attributes:
        name: of its record.
        run: (bench, seed) → leaves the record.
        seeds: the entry of the configuration with the number of seeds, or a number.
        what: in a few words.
        after: tasks whose records it reads.
    """

    name: str
    run: Callable[[Bench, int], None]
    seeds: str | int
    what: str
    after: tuple[str, ...] = ()

    def seeds_of(self, config: Mapping[str, Any]) -> list[int]:
        """The seeds it is made for."""
        if isinstance(self.seeds, int):
            return list(range(self.seeds))
        value: Any = config
        for part in self.seeds.split("."):
            value = value[part]
        return list(range(min(int(value), int(config["seeds"]))))


def _on_base(function: Callable[[Bench, int], None]) -> Callable[[Bench, int], None]:
    """A task that reads the base run, which is made first where it is not there."""

    def run(bench: Bench, seed: int) -> None:
        runs.base(bench, seed)
        function(bench, seed)

    return run


def _one_step_lines(bench: Bench, seed: int) -> None:
    trajectories.one_step_run(bench, seed)
    lines.one_step_lines(bench, seed)


# In an order in which each finds what it needs; what several need is made by the first.
TASKS: tuple[Task, ...] = (
    Task("two_time_scales", synthetic.two_time_scales, 1, "synthetic model of two time scales"),
    Task("single_runs", synthetic.single_runs, 1, "synthetic model against theory"),
    Task("base", trajectories.base, _ALL, "the run at constant rate"),
    Task("levels", iterates.levels, _ALL, "losses of single iterates over the window"),
    Task("averages", iterates.averages, _ALL, "the averages at the end"),
    Task("sweep", iterates.sweep, _ALL, "predicted and measured losses of many averages"),
    Task(
        "equivalent",
        schedules.equivalent,
        _ALL,
        "runs under equivalent schedules",
        ("sweep", "averages"),
    ),
    Task("decays", schedules.decays, _ALL, "decays, trained and emulated"),
    Task(
        "many_points",
        iterates.many_points,
        _ALL,
        "averages of n points",
        ("sweep",),
    ),
    Task("lower_rates", schedules.lower_rates, _ALL, "runs at lower constant rates"),
    Task("rates", trajectories.rates, _ALL, "distances at several constant rates"),
    Task("displacement", _on_base(geometry.displacement), _ALL, "displacement against lag"),
    Task("shell", _on_base(geometry.shell), _ALL, "distances to the centre", ("averages",)),
    Task("budget", budget.budget, _ALL, "SWA, FGE and conventional training"),
    Task("independent", budget.independent, 1, "ensemble of independent runs"),
    Task("line", _on_base(lines.line), "probe_seeds", "losses along one step"),
    Task("side_trip", _on_base(trips.side_trip), "probe_seeds", "trips on one batch", ("line",)),
    Task("basin", _on_base(trips.basin), "probe_seeds", "barriers between ends", ("side_trip",)),
    Task("gradients", _on_base(lines.gradients), "probe_seeds", "alignment of gradients"),
    Task("one_step", trajectories.one_step, "probe_seeds", "a run without momentum"),
    Task("one_step_lines", _one_step_lines, "probe_seeds", "its steps on other batches"),
    Task("width", _on_base(widths.width), "probe_seeds", "random rays and the segment to SWA"),
    Task("ensemble", _on_base(widths.ensemble), "probe_seeds", "ensembles against averages"),
    Task("pairs", trajectories.pairs, "pairs.seeds", "distances between two trajectories"),
    Task("speed", trajectories.speed, "speed.seeds", "early losses at a large and a small rate"),
    Task("cost", iterates.cost, 1, "time and memory of an average"),
)


def plan(
    config: Mapping[str, Any], needed: Collection[str] | None = None
) -> list[tuple[Task, int]]:
    """The tasks in order, each with a seed.

    Args:
        config: validated.
        needed: names of tasks; None for all.
    """
    wanted = {task.name for task in TASKS} if needed is None else set(needed)
    for task in reversed(TASKS):  # what a task reads comes before it
        if task.name in wanted:
            wanted |= set(task.after)
    chosen = [task for task in TASKS if task.name in wanted]
    return [(task, seed) for task in chosen for seed in task.seeds_of(config)]


def training_steps(config: Mapping[str, Any], tasks: Sequence[tuple[Task, int]]) -> int:
    """Training steps of all the runs these tasks need, each run counted once."""
    window, total = config["window"], runs.total_steps(config)
    tail = total - runs.fork_step(config)
    steps: dict[tuple[str, int], int] = {}
    for task, seed in tasks:
        name = task.name
        if name not in ("two_time_scales", "single_runs", "independent"):
            steps["base", seed] = total
        if name == "equivalent":
            steps[name, seed] = tail * len(config["averages"]) * len(schedules.EQUIVALENCES)
        elif name == "decays":
            steps[name, seed] = tail * len(schedules.DECAYS)
        elif name == "budget":
            steps[name, seed] = total - total // 2 + window
        elif name in ("one_step", "one_step_lines"):
            steps["one_step", seed] = window
        elif name == "speed":
            steps[name, seed] = config["speed"]["steps"]
        elif name == "pairs":
            steps[name, seed] = 3 * window
        elif name == "cost":
            steps[name, seed] = 160
        if name in ("lower_rates", "rates", "pairs"):
            factors = {
                "lower_rates": [1.0 / n for n in config["many_points"]["points"]],
                "rates": list(config["rates"]),
                "pairs": [config["pairs"]["factor"]],
            }[name]
            for factor in factors:
                if factor != 1.0:
                    steps[f"rate-{factor:g}", seed] = window
        if name == "independent":
            for other in range(config["seeds"]):
                steps["base", other] = total
    return sum(steps.values())


def images(
    config: Mapping[str, Any], tasks: Sequence[tuple[Task, int]], num_train: int, num_test: int
) -> float:
    """Images that go forward through the network; one in a training step counts as three."""
    evaluate = config["evaluate"]
    moments, part = evaluate["batch_norm_images"], min(evaluate["part"], num_train)
    whole = num_train + num_test + moments
    some = part + num_test + moments
    short = part + min(evaluate["part"], num_test) + 2 * moments
    many, sweep = config["many_points"], config["sweep"]
    averages, cycles = len(config["averages"]), config["window"] // config["cycle"]["length"]
    gaps = sum(gap % config["every"] == 0 for gap in many["gaps"])
    swept = sweep["singles"] + 2 * sweep["lags"] * sweep["pairs"] + sweep["verify"]
    each = {
        "levels": evaluate["levels"] * whole,
        "averages": (1 + averages) * (whole + 2 * num_test),
        "sweep": swept * short,
        "equivalent": (averages * (len(schedules.EQUIVALENCES) + 1) + 1) * whole
        + 2 * averages * some,
        "decays": 2 * len(schedules.DECAYS) * whole,
        "many_points": many["ends"] * (1 + gaps * len(many["points"])) * some,
        "lower_rates": config["late_iterates"] * len(many["points"]) * some,
        "budget": (2 * cycles + 3) * some,
        "independent": config["seeds"] * some,
        "speed": 3 * config["speed"]["places"] * some,
        **costs(config),
    }
    measured = float(sum(each.get(task.name, 0.0) for task, _ in tasks))
    return 3.0 * config["batch_size"] * training_steps(config, tasks) + measured
