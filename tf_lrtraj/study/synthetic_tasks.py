"""The synthetic experiments as tasks of a reproduction."""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_lrtraj.runs import synthetic_run
from tf_lrtraj.study.session import Bench
from tf_lrtraj.study.task import Task, no_runs

__all__ = ["TASKS", "averaging_length", "single_runs", "two_time_scales"]


def _store(bench: Bench, name: str, seed: int) -> None:
    settings = synthetic_run.validate({})
    record: dict[str, Any] = dict(synthetic_run.EXPERIMENTS[name](settings[name], settings["seed"]))
    arrays = {key: value for key, value in record.items() if isinstance(value, np.ndarray)}
    rest = {key: value for key, value in record.items() if key not in arrays}
    bench.store(name, seed, (), {**rest, "settings": settings[name]}, **arrays)


def two_time_scales(bench: Bench, seed: int) -> None:
    """A large rate, its average and a small rate, on a model with a fast and a slow scale."""
    _store(bench, "two_time_scales", seed)


def single_runs(bench: Bench, seed: int) -> None:
    """Theory, Monte Carlo and averaged SGD on the quadratic model."""
    _store(bench, "single_runs", seed)


def averaging_length(bench: Bench, seed: int) -> None:
    """Loss at the end of a run of the quadratic model against the length of an average."""
    _store(bench, "averaging_length", seed)


TASKS = (
    Task("two_time_scales", two_time_scales, "synthetic model of two time scales", steps=no_runs),
    Task("single_runs", single_runs, "synthetic model against theory", steps=no_runs),
    Task("averaging_length", averaging_length, "synthetic averages by length", steps=no_runs),
)
