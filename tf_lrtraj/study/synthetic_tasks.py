"""The synthetic experiments as tasks of a study."""

from __future__ import annotations

import numpy as np

from tf_lrtraj.runs import synthetic_run
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.task import ONCE, Task, no_runs

__all__ = ["TASKS"]


def _task(name: str, what: str) -> Task:
    def run(session: Session, seed: int) -> None:
        settings = synthetic_run.validate({})
        record = dict(synthetic_run.EXPERIMENTS[name](settings[name], settings["seed"]))
        arrays = {key: value for key, value in record.items() if isinstance(value, np.ndarray)}
        rest = {key: value for key, value in record.items() if key not in arrays}
        session.store(name, seed, (), {**rest, "settings": settings[name]}, **arrays)

    return Task(name, run, what, steps=no_runs, seeds_of=ONCE)


TASKS = (
    # A large rate, its average and a small rate, on a model with a fast and a slow scale.
    _task("two_time_scales", "synthetic model of two time scales"),
    # Theory, Monte Carlo and averaged SGD on the quadratic model.
    _task("single_runs", "synthetic model against theory"),
    # Loss at the end of a run of the quadratic model against the length of an average.
    _task("averaging_length", "synthetic averages by length"),
)
