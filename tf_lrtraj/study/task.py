"""A task of a reproduction: something to measure for one seed at a time, with its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tf_lrtraj.claims.layout import seeds_of
from tf_lrtraj.study.session import Bench

__all__ = ["Sizes", "Task", "base_run", "no_images", "no_runs"]


class Sizes(NamedTuple):
    """Numbers of images: of training and test, and of what one scoring goes over.

    Attributes:
        train: of the training set.
        test: of the test set.
        moments: that batch norm is recomputed on.
        part: of the set "train_part".
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


def no_runs(config: Mapping[str, Any]) -> dict[str, int]:
    """Of a task that trains nothing and reads no run."""
    return {}


def base_run(config: Mapping[str, Any]) -> dict[str, int]:
    """Of a task that reads the base run."""
    return {"base": int(config["burn_in"] + config["window"])}


def no_images(config: Mapping[str, Any], sizes: Sizes) -> float:
    """Of a task whose scoring is not worth counting."""
    return 0.0


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to measure, for one seed at a time.

    Attributes:
        name: of its record; `claims.layout` knows its seeds and files by it.
        run: (bench, seed) → leaves the record.
        what: in a few words.
        after: tasks whose records it reads.
        steps: configuration → name of a run that it needs → training steps of that run.
        images: configuration and numbers of images → images that go forward through the network
            beside training, for one seed; a gradient counts as three.
        across: whether it reads runs of other seeds, so that no process that makes one seed
            alone can make it.
    """

    name: str
    run: Callable[[Bench, int], None]
    what: str
    after: tuple[str, ...] = ()
    steps: Callable[[Mapping[str, Any]], Mapping[str, int]] = base_run
    images: Callable[[Mapping[str, Any], Sizes], float] = no_images
    across: bool = False

    def seeds(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """The seeds it is made for."""
        return seeds_of(self.name, config)
