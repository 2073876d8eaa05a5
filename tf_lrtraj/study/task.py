"""A task of a study: a measurement for one seed at a time, with its cost and its records."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tf_lrtraj.study.session import Session

__all__ = ["ONCE", "PROBE_SEEDS", "Sizes", "Task", "base_run", "no_runs", "task"]

# Entries of the configuration that hold numbers of seeds; see `Task.seeds_of`.
ONCE: tuple[str, ...] = ()
PROBE_SEEDS = ("probe_seeds",)


class Sizes(NamedTuple):
    """Numbers of images: of the sets, and of one scoring.

    Attributes:
        train: the number of images of the training set.
        test: the number of images of the test set.
        moments: the number of images on which batch norm is recomputed.
        part: the number of images of the set "train_part".
    """

    train: int
    test: int
    moments: int
    part: int

    @property
    def all(self) -> int:
        """The number of images of a scoring on all training and test images."""
        return self.train + self.test + self.moments

    @property
    def some(self) -> int:
        """The number of images of a scoring on a part of the training images and all test
        images."""
        return self.part + self.test + self.moments

    @property
    def parts(self) -> int:
        """The number of images of a scoring on parts of the training and test images."""
        return self.part + min(self.part, self.test) + self.moments


def no_runs(config: Mapping[str, Any]) -> dict[str, int]:
    """Returns the training steps of a task without runs: none."""
    return {}


def base_run(config: Mapping[str, Any]) -> dict[str, int]:
    """Returns the training steps of a task that reads the base run."""
    return {"base": int(config["burn_in"] + config["window"])}


@dataclasses.dataclass(frozen=True)
class Task:
    """A measurement for one seed at a time.

    `claims.layout` lists the seeds and records of every task too, because claims are judged from
    the records alone; a test compares the two.

    Attributes:
        name: the name of its record.
        run: (session, seed) → writes the record.
        what: its description in a few words.
        after: tasks whose records it reads.
        steps: configuration → name of a run that it needs → training steps of that run.
        images: configuration and numbers of images → images of forward passes besides training, for
            one seed; a gradient counts as three.
        seeds_of: the entry of the configuration with its number of seeds; `ONCE` for the first seed
            only.
        probes: patterns of the names of its probe records; () for a record of measured numbers.
        across: whether it reads runs of other seeds, so that a process for one seed cannot run it.
    """

    name: str
    run: Callable[[Session, int], None]
    what: str
    after: tuple[str, ...] = ()
    steps: Callable[[Mapping[str, Any]], Mapping[str, int]] = base_run
    images: Callable[[Mapping[str, Any], Sizes], float] = lambda config, sizes: 0.0
    seeds_of: tuple[str, ...] = ("seeds",)
    probes: tuple[str, ...] = ()
    across: bool = False

    def __call__(self, session: Session, seed: int) -> None:
        """Measures and writes the record."""
        self.run(session, seed)

    def measured(self, session: Session, seed: int) -> dict[str, Any]:
        """Returns the measured numbers of a seed; measures them if needed."""
        if not session.record_path(self.name, seed).exists():
            self.run(session, seed)
        return session.read(self.name, seed)

    def seeds(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns its seeds; at most those of the configuration."""
        if self.seeds_of == ONCE:
            return (0,)
        count = functools.reduce(lambda group, key: group[key], self.seeds_of, config)
        return tuple(range(min(int(count), config["seeds"])))  # type: ignore[call-overload]

    @property
    def records(self) -> tuple[str, ...]:
        """Patterns of the files that it writes in the workdir."""
        if self.probes:
            return tuple(f"probes/seed*/{pattern}.npz" for pattern in self.probes)
        return (f"measured/{self.name}/seed*.json",)


def task(what: str, **options: Any) -> Callable[[Callable[[Session, int], None]], Task]:
    """Makes a task from a function that measures, whose name becomes the task's.

    Args:
        what: its description in a few words.
        **options: other attributes of the `Task`.
    """
    return lambda run: Task(run.__name__, run, what, **options)
