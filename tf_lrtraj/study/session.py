"""What the tasks of a reproduction share: its problem, its model, and where things lie on disk."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from tf_lrtraj import records, seeds
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.probes.surface import Surface
from tf_lrtraj.study.problem import Problem, build_model, load_problem
from tf_lrtraj.study.scoring import Scorer
from tf_lrtraj.study.trainer import Run, Trainer, state_of

__all__ = ["MEASURED", "PROBES", "STATE", "Bench"]

MEASURED, PROBES, STATE = "measured", "probes", "state"


class Bench:
    """One reproduction at work.

    Args:
        config: as `config.validate` returns it.
        folder: the workdir.
        tell: told in a few words what goes on.
        progress: show progress bars where there is a terminal.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        folder: pathlib.Path,
        tell: Callable[[str], None] = print,
        progress: bool = True,
    ) -> None:
        self.config = dict(config)
        self.folder = pathlib.Path(folder)
        self.tell = tell
        self.progress = progress

    # What is expensive is made when it is first needed --------------------------------------

    @functools.cached_property
    def problem(self) -> Problem:
        return load_problem(self.config)

    @functools.cached_property
    def model(self) -> keras.Model:
        """One model for everything: its weights are put in and out of it."""
        return build_model(self.config, self.problem, seed=0)

    @functools.cached_property
    def loss(self) -> keras.losses.Loss:
        """Cross-entropy of logits, without the decay term."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @functools.cached_property
    def surface(self) -> Surface:
        """The loss of batches in training mode: batch norm by the batch's own moments."""
        return Surface(self.model, self.loss)

    @functools.cached_property
    def trainer(self) -> Trainer:
        return Trainer(self.model, self.loss, self.problem, self.config["batch_size"])

    @functools.cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.model, self.loss, self.problem, self.config["evaluate"])

    @functools.cached_property
    def narrow(self) -> Bench:
        """The same problem with a narrower network, whose runs have names of their own."""
        model = dict(self.config["model"])
        model["width"] //= self.config["reach"]["divisor"]
        found = Bench({**self.config, "model": model}, self.folder, self.tell, self.progress)
        found.problem = self.problem
        return found

    def initial(self, seed: int) -> dict[str, np.ndarray]:
        """The state before the first step; every seed has initial weights of its own."""
        model = build_model(self.config, self.problem, seed)
        return state_of([*model.trainable_variables, *model.non_trainable_variables])

    def batches(
        self, name: str, count: int, seed: int, size: int | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """`count` batches of a set ("train" or "test"), without repetition, drawn by `seed`."""
        size = size or self.config["batch_size"]
        x, y = self.problem.images(name, 0)
        order = seeds.generator("held_batches", seed, len(x)).permutation(len(x))
        if count * size > len(x):
            raise ValueError(
                f"{count} batches of {size} {name} images are more than there are, {len(x)}."
            )
        chosen = order[: count * size].reshape(count, size)
        return [(x[rows], y[rows]) for rows in chosen]

    def finish(
        self,
        run: Run,
        what: str,
        callbacks: Callable[..., Any] = lambda *_: (),
        done: Callable[..., None] = lambda *_: None,
    ) -> None:
        """Makes what is missing of a training run, with a progress bar."""
        if run.path(run.last).exists():
            return
        with tqdm(
            total=len(run.rates), desc=what, unit="step", disable=None if self.progress else True
        ) as bar:
            run.finish(callbacks, done, bar.update)

    def bar(self, items: Any = None, what: str = "", total: int | None = None) -> Any:
        """A progress bar where there is a terminal."""
        return tqdm(items, total=total, desc=what, disable=None if self.progress else True)

    # Where things lie -----------------------------------------------------------------------

    def state_folder(self, run: str, seed: int) -> pathlib.Path:
        """Checkpoints and snapshots of a training run; not needed once everything is measured."""
        return self.folder / STATE / f"seed{seed}" / run

    def snapshots(self, seed: int, run: str = "base", which: str = "window") -> Snapshots:
        """Iterates of a run: "window" (every `config.every` steps) or "horizon" (all of it)."""
        return Snapshots(self.state_folder(run, seed) / which)

    def record_path(self, task: str, seed: int) -> pathlib.Path:
        return self.folder / MEASURED / task / f"seed{seed}.json"

    def probe_path(self, name: str, seed: int) -> pathlib.Path:
        path = self.folder / PROBES / f"seed{seed}" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def read(self, task: str, seed: int) -> dict[str, Any]:
        """What `store` wrote."""
        found: dict[str, Any] = records.read_json(self.record_path(task, seed), dict[str, Any])
        return found

    def store(
        self,
        task: str,
        seed: int,
        rows: Sequence[Mapping[str, Any]] = (),
        about: Mapping[str, Any] | None = None,
        **arrays: Any,
    ) -> None:
        """Writes a record of measured numbers, whole or not at all."""
        path = self.record_path(task, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {
            "task": task,
            "seed": seed,
            "about": dict(about or {}),
            "rows": [dict(row) for row in rows],
        }
        for name, array in arrays.items():
            plain = isinstance(array, (dict, list))
            content[name] = array if plain else np.asarray(array).tolist()
        records.write_json(path, content)
