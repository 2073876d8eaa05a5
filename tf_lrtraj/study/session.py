"""What the tasks of a study share: its problem, its model, and where things lie on disk."""

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
    """One study at work.

    Args:
        config: as `study_config.validate` returns it.
        folder: the workdir.
        tell: receives what goes on, in a few words.
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
    def surface(self) -> probes.Surface:
        """The loss of batches in training mode: batch norm by the batch's own moments."""
        return probes.Surface(self.model, self.loss)

    @functools.cached_property
    def trainer(self) -> Trainer:
        return Trainer(self.model, self.loss, self.problem, self.config["batch_size"])

    @functools.cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.model, self.loss, self.problem, self.config["evaluate"])

    @functools.cached_property
    def narrow(self) -> Session:
        """The same problem with a narrower network, whose runs have names of their own."""
        model = dict(self.config["model"])
        model["width"] //= self.config["reach"]["divisor"]
        found = Session({**self.config, "model": model}, self.folder, self.tell, self.progress)
        found.problem = self.problem
        return found

    # Weights and batches --------------------------------------------------------------------

    def initial(self, seed: int) -> dict[str, np.ndarray]:
        """The state before the first step; every seed has initial weights of its own."""
        model = build_model(self.config, self.problem, seed)
        return state_of([*model.trainable_variables, *model.non_trainable_variables])

    @functools.cached_property
    def num_trainable(self) -> int:
        """Number of trainable arrays, which come first in a state and in a snapshot."""
        return len(self.model.trainable_variables)

    def trainable(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """The trainable weights among the arrays of a state or a snapshot."""
        return arrays[: self.num_trainable]

    def vector(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The trainable weights among the arrays of a state or a snapshot, in one vector."""
        return joined(self.trainable(arrays))

    def batches(self, name: str, count: int, seed: int) -> list[Batch]:
        """`count` batches of a set ("train" or "test"), without repetition, drawn by `seed`."""
        size = self.config["batch_size"]
        x, y = self.problem.images(name, 0)
        if count * size > len(x):
            raise ValueError(
                f"{count} batches of {size} {name} images are more than there are, {len(x)}."
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
        """A training run under the settings of the configuration; nothing is made yet.

        Args:
            name: the name of its folder.
            seed: the seed of its initial weights and, unless `order_seed` says otherwise, of its
                batches.
            rates: [n] rates of its steps.
            first: the step that it starts from.
            start: () → the state that it starts with; the initial one by default.
            momentum: the configuration's by default.
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
        """Makes what is missing of a training run, with a progress bar; returns the run."""
        if not run.path(run.last).exists():
            with self.bar(what=what, total=len(run.rates), unit="step") as bar:
                run.finish(watch, bar.update)
        return run

    def bar(
        self, items: Any = None, what: str = "", total: int | None = None, unit: str = "it"
    ) -> Any:
        """A progress bar where there is a terminal."""
        hidden = None if self.progress else True
        return tqdm(items, total=total, desc=what, unit=unit, disable=hidden)

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

    def measure(
        self, probe: probes.Probe, name: str, seed: int, run: str | None = "base", **about: Any
    ) -> None:
        """Measures a probe into the record of that name.

        Args:
            probe: what to measure.
            name: the name of the record.
            seed: whose record it is.
            run: that the points are of; None for points of several runs.
            **about: what the record says of itself beside these and what the probe says.
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
        """Rows of scores, each with the label before it.

        Args:
            weights: trainable ones and statistics of batch norm.
            sets: the sets of images; see `Scorer.score`.
            policy: the batch-norm policy; see there.
        """
        return [{**label, **row} for row in self.scorer.score(weights, sets, policy)]

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
