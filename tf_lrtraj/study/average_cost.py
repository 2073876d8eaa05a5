"""Task: the cost of a running average in memory and time, compared with a training step."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend, kernels
from tf_lrtraj.averaging import AverageState
from tf_lrtraj.study.problem import build_model
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.task import ONCE, task
from tf_lrtraj.study.trainer import Trainer

__all__ = ["TASKS"]

# "single" is SWA as published; "auto" is the default precision of this package.
PRECISIONS = ("single", "auto")


@task(
    "time and memory of an average",
    steps=lambda config: {"cost": 2 * (config["cost"]["repeats"] + 1) * config["cost"]["steps"]},
    seeds_of=ONCE,
)
def cost(session: Session, seed: int) -> None:
    """Measures the time of an SWA update and of a training step in turn, and the memory.

    The networks are the scale's own and one of `config.cost.depth` and `config.cost.width`,
    on batches of the scale's images.
    """
    config, problem = session.config, session.problem
    settings = config["cost"]
    rows: list[dict[str, Any]] = []
    large = {key: settings[key] for key in ("depth", "width")}
    for name, size in (("own", {}), ("large", large)):
        chosen = {**config["model"], **size}
        model = build_model({**config, "model": chosen}, problem, seed)
        trainer = Trainer(model, session.loss, problem, config["batch_size"])
        trainer.compile(config["momentum"])
        network = {"network": name, "depth": chosen["depth"], "width": chosen["width"]}
        rows += [{**network, **row} for row in _measured(session, trainer, seed)]
    epoch = max(problem.num_train // config["batch_size"], 1)
    about = {"steps_per_epoch": epoch, "batch_size": config["batch_size"]}
    session.store("cost", seed, rows, about)


def _measured(session: Session, trainer: Trainer, seed: int) -> list[dict[str, Any]]:
    """Returns a row for each precision and repeat: seconds of a step and of an update, bytes."""
    repeats, steps = (session.config["cost"][key] for key in ("repeats", "steps"))
    model, rates = trainer.model, np.zeros(steps)  # a step at rate 0 takes as long as any
    weights = model.trainable_variables
    size = sum(array.nbytes for array in backend.to_numpy(backend.values(weights)))
    averages = {p: _Average(model, p) for p in PRECISIONS}
    trainer.steps(0, rates, seed)  # compile everything before measuring
    for average in averages.values():
        average.update(1)
    rows = []
    for repeat in range(repeats):
        begin = time.perf_counter()
        trainer.steps(0, rates, seed)
        of_step = (time.perf_counter() - begin) / steps
        for precision, average in averages.items():
            begin = time.perf_counter()
            average.update(steps)
            of_update = (time.perf_counter() - begin) / steps
            rows.append(
                {
                    "precision": precision,
                    "repeat": repeat,
                    "step_seconds": of_step,
                    "update_seconds": of_update,
                    "weights_bytes": size,
                    "extra_bytes": average.nbytes,
                }
            )
    return rows


class _Average:
    """SWA of a model's weights, updated as by `WeightAveraging`."""

    def __init__(self, model: keras.Model, precision: str) -> None:
        variables = list(model.trainable_variables)
        self._state = AverageState(variables, {"swa": kernels.Uniform()}, precision)
        self._update = backend.compiled_update(
            self._state.update, model, writes=self._state.variables, reads=variables
        )
        self._made = 0

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in backend.to_numpy(self._state.variables))

    def update(self, count: int) -> None:
        """Makes `count` updates and waits for the last."""
        for _ in range(count):
            self._made += 1
            self._update(backend.scalars(np.asarray(self._made)))
        backend.to_numpy(self._state.variables[-1:])


TASKS = (cost,)
