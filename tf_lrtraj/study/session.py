"""The shared state of a study's tasks: problem, model, runs and files."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from tf_lrtraj import probes, records, seeds
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.probes.batches import Batch
from tf_lrtraj.probes.vectors import joined
from tf_lrtraj.study.problem import Problem, build_model, load_problem
from tf_lrtraj.study.scoring import Scorer
from tf_lrtraj.study.trainer import Run, Trainer, Watch, state_of

__all__ = ["MEASURED", "PROBES", "STATE", "Session"]

MEASURED, PROBES, STATE = "measured", "probes", "state"


class Session:
    """A running study.

    Args:
        config: the result of `study_config.validate`.
        folder: the workdir.
        tell: called with a few words about each stage.
        progress: whether to show progress bars on a terminal.
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

    # Expensive parts, made when they are first needed --------------------------------------

    @functools.cached_property
    def problem(self) -> Problem:
        return load_problem(self.config)

    @functools.cached_property
    def model(self) -> keras.Model:
        """The model of all runs, to which their weights are assigned."""
        return build_model(self.config, self.problem, seed=0)

    @functools.cached_property
    def loss(self) -> keras.losses.Loss:
        """The cross-entropy of logits, without the decay term."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @functools.cached_property
    def surface(self) -> probes.Surface:
        """The loss of batches in training mode, with batch statistics."""
        return probes.Surface(self.model, self.loss)

    @functools.cached_property
    def trainer(self) -> Trainer:
        return Trainer(self.model, self.loss, self.problem, self.config["batch_size"])

    @functools.cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.model, self.loss, self.problem, self.config["evaluate"])

    @functools.cached_property
    def narrow(self) -> Session:
        """The same problem with a narrower network, whose runs have other names."""
        model = dict(self.config["model"])
        model["width"] //= self.config["reach"]["divisor"]
        found = Session({**self.config, "model": model}, self.folder, self.tell, self.progress)
        found.problem = self.problem
        return found

    # Weights and batches --------------------------------------------------------------------

    def initial(self, seed: int) -> dict[str, np.ndarray]:
        """Returns the state before the first step; initial weights depend on the seed."""
        model = build_model(self.config, self.problem, seed)
        return state_of([*model.trainable_variables, *model.non_trainable_variables])

    @functools.cached_property
    def num_trainable(self) -> int:
        """Number of trainable arrays, which come first in a state and in a snapshot."""
        return len(self.model.trainable_variables)

    def trainable(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Returns the trainable weights among the arrays of a state or a snapshot."""
        return arrays[: self.num_trainable]

    def vector(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the trainable weights of a state or a snapshot as one vector."""
        return joined(self.trainable(arrays))

    def batches(self, name: str, count: int, seed: int) -> list[Batch]:
        """Draws `count` batches of a set ("train" or "test") with `seed`, without repetition."""
        size = self.config["batch_size"]
        x, y = self.problem.images(name, 0)
        if count * size > len(x):
            raise ValueError(
                f"{count} batches of {size} {name} images need more than the {len(x)} images "
                "there are."
            )
        order = seeds.generator("held_batches", seed, len(x)).permutation(len(x))
        return [(x[rows], y[rows]) for rows in order[: count * size].reshape(count, size)]

    # Runs -----------------------------------------------------------------------------------

    def run(
        self,
        name: str,
        seed: int,
        rates: np.ndarray,
        *,
        first: int = 0,
        start: Callable[[], dict[str, np.ndarray]] | None = None,
        momentum: float | None = None,
        order_seed: int | None = None,
        **options: Any,
    ) -> Run:
        """Returns a training run with the settings of the configuration, without training it.

        Args:
            name: the name of its folder.
            seed: the seed of its initial weights and, unless `order_seed` says otherwise, of its
                batches.
            rates: [n] rates of its steps.
            first: the step that it starts from.
            start: () → its initial state; by default the initial state of the seed.
            momentum: its momentum; by default that of the configuration.
            order_seed: the seed of the order of batches.
            **options: `keep`, `snapshots` and `whole` of `Run`.
        """
        return Run(
            self.trainer,
            self.state_folder(name, seed),
            first,
            rates,
            self.config["momentum"] if momentum is None else momentum,
            seed if order_seed is None else order_seed,
            start or (lambda: self.initial(seed)),
            segment=self.config["segment"],
            log_every=self.config["log_every"],
            **options,
        )

    def finish(self, run: Run, what: str, watch: Watch | None = None) -> Run:
        """Trains the missing steps of a run, with a progress bar, and returns the run."""
        if not run.path(run.last).exists():
            with self.bar(what=what, total=len(run.rates), unit="step") as bar:
                run.finish(watch, bar.update)
        return run

    def bar(
        self, items: Any = None, what: str = "", total: int | None = None, unit: str = "it"
    ) -> Any:
        """Returns a progress bar, which is shown only on a terminal."""
        hidden = None if self.progress else True
        return tqdm(items, total=total, desc=what, unit=unit, disable=hidden)

    # Files ----------------------------------------------------------------------------------

    def state_folder(self, run: str, seed: int) -> pathlib.Path:
        """Returns the folder of a run's states and snapshots, which only measurements need."""
        return self.folder / STATE / f"seed{seed}" / run

    def snapshots(self, seed: int, run: str = "base", which: str = "window") -> Snapshots:
        """Returns iterates of a run: "window" (every `config.every` steps) or "horizon" (all)."""
        return Snapshots(self.state_folder(run, seed) / which)

    def record_path(self, task: str, seed: int) -> pathlib.Path:
        return self.folder / MEASURED / task / f"seed{seed}.json"

    def probe_path(self, name: str, seed: int) -> pathlib.Path:
        path = self.folder / PROBES / f"seed{seed}" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def measure(
        self, probe: probes.Probe, name: str, seed: int, run: str | None = "base", **about: Any
    ) -> None:
        """Measures a probe and writes its record.

        Args:
            probe: the probe.
            name: the name of the record.
            seed: the seed of the record.
            run: the run of the points; None for points of several runs.
            **about: further entries of the record's `about`.
        """
        of = {} if run is None else {"run": run}
        probes.measure(
            probe,
            self.probe_path(name, seed),
            progress=self.progress,
            tell=self.tell,
            about={**of, "run_seed": seed, **about},
        )

    def score(
        self,
        weights: Sequence[Any],
        sets: Sequence[str],
        policy: str = "recompute",
        **label: Any,
    ) -> list[dict[str, Any]]:
        """Returns rows of scores, each with a label.

        Args:
            weights: trainable weights and batch-norm statistics.
            sets: the sets of images; see `Scorer.score`.
            policy: the batch-norm policy; see there.
        """
        return [{**label, **row} for row in self.scorer.score(weights, sets, policy)]

    def read(self, task: str, seed: int) -> dict[str, Any]:
        """Reads a record that `store` wrote."""
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
        """Writes a record of measured numbers atomically."""
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
