"""A task of a study: something to measure for one seed at a time, with its cost and its records."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tf_lrtraj.study.session import Session

__all__ = ["ONCE", "PROBE_SEEDS", "Sizes", "Task", "base_run", "no_runs", "task"]

# Entries of the configuration with numbers of seeds; see `Task.seeds_of`.
ONCE: tuple[str, ...] = ()
PROBE_SEEDS = ("probe_seeds",)


class Sizes(NamedTuple):
    """Numbers of images: of training and test, and of what one scoring goes over.

    Attributes:
        train: the number of images of the training set.
        test: the number of images of the test set.
        moments: that batch norm is recomputed on.
        part: the number of images of the set "train_part".
    """

    train: int
    test: int
    moments: int
    part: int

    @property
    def all(self) -> int:
        """Of a scoring on all training and test images."""
        return self.train + self.test + self.moments

    @property
    def some(self) -> int:
        """Of a scoring on a part of the training images and all test images."""
        return self.part + self.test + self.moments

    @property
    def parts(self) -> int:
        """Of a scoring on parts of the training and test images."""
        return self.part + min(self.part, self.test) + self.moments


def no_runs(config: Mapping[str, Any]) -> dict[str, int]:
    """Of a task that trains nothing and reads no run."""
    return {}


def base_run(config: Mapping[str, Any]) -> dict[str, int]:
    """Of a task that reads the base run."""
    return {"base": int(config["burn_in"] + config["window"])}


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to measure, for one seed at a time.

    `claims.layout` knows the seeds and records of every task as well, since claims are judged
    from the records alone; a test compares the two.

    Attributes:
        name: the name of its record.
        run: (session, seed) → leaves the record.
        what: in a few words.
        after: tasks whose records it reads.
        steps: configuration → name of a run that it needs → training steps of that run.
        images: configuration and numbers of images → images that go forward through the network
            beside training, for one seed; a gradient counts as three.
        seeds_of: the entry of the configuration with the number of seeds that it is made for;
            `ONCE` for the first seed alone.
        probes: patterns of the names of the probe records that it leaves; () for a record of
            measured numbers.
        across: whether it reads runs of other seeds, so that no process that makes one seed
            alone can make it.
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
        """Measures, and leaves the record."""
        self.run(session, seed)

    def measured(self, session: Session, seed: int) -> dict[str, Any]:
        """The measured numbers of a seed, made if they are not there yet."""
        if not session.record_path(self.name, seed).exists():
            self.run(session, seed)
        return session.read(self.name, seed)

    def seeds(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """The seeds it is made for; never more than the configuration has."""
        if self.seeds_of == ONCE:
            return (0,)
        count = functools.reduce(lambda group, key: group[key], self.seeds_of, config)
        return tuple(range(min(int(count), config["seeds"])))  # type: ignore[call-overload]

    @property
    def records(self) -> tuple[str, ...]:
        """Patterns of the files that it leaves in the workdir."""
        if self.probes:
            return tuple(f"probes/seed*/{pattern}.npz" for pattern in self.probes)
        return (f"measured/{self.name}/seed*.json",)


def task(what: str, **options: Any) -> Callable[[Callable[[Session, int], None]], Task]:
    """Decorates the function that measures, whose name becomes the task's.

    Args:
        what: in a few words.
        **options: other attributes of the `Task`.
    """
    return lambda run: Task(run.__name__, run, what, **options)
