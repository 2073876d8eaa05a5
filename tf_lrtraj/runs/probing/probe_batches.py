"""Fixed batches for probes of a run, which depend only on its data set and a seed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lrtraj.runs.assembly import MOMENT_SEED_OFFSET, Assembly
from tf_lrtraj.runs.run_config import ConfigError
from tf_lrtraj.values import error, integer, one_of

# Batches for probes have a separate data order, different from the run's and from that of the
# batches for recomputed statistics.
SEED_OFFSET = 2_000_003

Batches = list[tuple[np.ndarray, np.ndarray]]


def check_training(num_examples: Mapping[str, int], batch_size: int, count: int) -> None:
    """Checks that there are `count` training batches without repeated images.

    Raises:
        ConfigError: if there are fewer.
    """
    images = num_examples["train"]
    integer(1, images).check("batch_size", batch_size, ConfigError)
    if count > images // batch_size:
        raise ConfigError(
            f"{count} training batches of {batch_size} were asked for; the data "
            f"has {images // batch_size} without repeating an image"
        )


def check_held_out(
    num_examples: Mapping[str, int], batch_size: int, split: str, count: int
) -> None:
    """Checks that `split` is not a training split and has `count` batches.

    Raises:
        ConfigError: if it is one, or has fewer batches.
    """
    splits = {name: n for name, n in num_examples.items() if name != "train"}
    one_of(sorted(splits)).check("held_out", split, ConfigError)
    if count * batch_size > splits[split]:
        allowed = f"at most {splits[split] // batch_size}, of {splits[split]} images of {split!r}"
        raise error("held_out_batches", allowed, count, ConfigError)


class ProbeBatches:
    """Batches of a run's data, drawn when they are first needed.

    Args:
        assembly: the assembly of the run.
        batch_size: examples per batch; None for the run's own.
        seed: the seed of the draw.

    Raises:
        ConfigError: if a batch is larger than the data.
    """

    def __init__(self, assembly: Assembly, batch_size: int | None = None, seed: int = 0) -> None:
        self._assembly = assembly
        self.batch_size = batch_size or assembly.config["data"]["batch_size"]
        self._seed = (assembly.config["seed"] + SEED_OFFSET + seed) % 2**31
        check_training(assembly.dataset.num_examples, self.batch_size, 0)

    def training(self, count: int, skip: int = 0) -> Batches:
        """Returns batches as in training, with augmentation; all images are distinct.

        Raises:
            ConfigError: if there are not enough images.
        """
        check_training(self._assembly.dataset.num_examples, self.batch_size, count + skip)
        pipeline = self._assembly.dataset.train_batches(self.batch_size, self._seed, skip)
        return _arrays(pipeline, count)

    def held_out(self, split: str, count: int) -> Batches:
        """Returns batches of an evaluation split, always the same ones.

        Raises:
            ConfigError: if there is no such split, or it is too small.
        """
        dataset = self._assembly.dataset
        check_held_out(dataset.num_examples, self.batch_size, split, count)
        pipeline = dataset.eval_batches(split, self.batch_size, limit=count * self.batch_size)
        return _arrays(pipeline, count)

    def moments(self) -> Batches:
        """Returns the run's batches for recomputed batch-norm statistics."""
        config = self._assembly.config
        seed = (config["seed"] + MOMENT_SEED_OFFSET) % 2**31
        pipeline = self._assembly.dataset.train_batches(config["data"]["batch_size"], seed, 0)
        return _arrays(pipeline, config["batch_norm"]["batches"])


def _arrays(pipeline: Any, count: int) -> Batches:
    return [
        (batch[0].numpy(), batch[1].numpy())  # the third is 1 for every image of a full batch
        for batch in itertools.islice(pipeline, count)
    ]
