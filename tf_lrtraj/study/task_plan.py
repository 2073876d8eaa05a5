"""The tasks of a study, their costs, and their order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tf_lrtraj.study import (
    average_cost,
    batch_sizes,
    cooldowns,
    equal_budgets,
    geometry,
    iterates,
    line_probes,
    schedule_runs,
    side_trip_probes,
    synthetic_tasks,
    trajectories,
    width_probes,
)
from tf_lrtraj.study.task import Sizes, Task

__all__ = ["TASKS", "images", "plan", "training_steps"]

_MODULES = (
    synthetic_tasks,
    trajectories,
    iterates,
    schedule_runs,
    cooldowns,
    geometry,
    equal_budgets,
    line_probes,
    side_trip_probes,
    batch_sizes,
    width_probes,
    average_cost,
)


def _in_order(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Returns tasks after those whose records they read, otherwise in the given order.

    Raises:
        ValueError: for a task that comes after an unknown one, or after itself.
    """
    known, left = {task.name for task in tasks}, list(tasks)
    placed: list[Task] = []
    while left:
        done = {task.name for task in placed}
        ready = next((task for task in left if done.issuperset(task.after)), None)
        if ready is None:
            unknown = {name for task in left for name in task.after} - known
            raise ValueError(f"tasks wait for each other, or for unknown ones: {sorted(unknown)}")
        placed.append(ready)
        left.remove(ready)
    return tuple(placed)


TASKS = _in_order([task for module in _MODULES for task in module.TASKS])


def plan(
    config: Mapping[str, Any],
    needed: Collection[str] | None = None,
    only_seed: int | None = None,
) -> list[tuple[Task, int]]:
    """Returns the tasks in order, each with a seed.

    Args:
        config: the validated configuration.
        needed: names of tasks; None for all.
        only_seed: the seed to which the plan is restricted; tasks that read runs of other seeds
            are then left out.
    """
    wanted = {task.name for task in TASKS} if needed is None else set(needed)
    for task in reversed(TASKS):  # the records that a task reads come before it
        if task.name in wanted:
            wanted |= set(task.after)
    return [
        (task, seed)
        for task in TASKS
        if task.name in wanted
        for seed in task.seeds(config)
        if only_seed is None or (seed == only_seed and not task.across)
    ]


def training_steps(config: Mapping[str, Any], tasks: Sequence[tuple[Task, int]]) -> int:
    """Returns the training steps of all runs of these tasks, each run counted once."""
    steps: dict[tuple[str, int], int] = {}
    for task, seed in tasks:
        steps |= {(run, seed): count for run, count in task.steps(config).items()}
    return sum(steps.values())


def images(
    config: Mapping[str, Any], tasks: Sequence[tuple[Task, int]], num_train: int, num_test: int
) -> float:
    """Returns the images of forward passes; an image of a training step counts as three."""
    evaluate = config["evaluate"]
    sizes = Sizes(
        num_train, num_test, evaluate["batch_norm_images"], min(evaluate["part"], num_train)
    )
    measured = float(sum(task.images(config, sizes) for task, _ in tasks))
    return 3.0 * config["batch_size"] * training_steps(config, tasks) + measured
