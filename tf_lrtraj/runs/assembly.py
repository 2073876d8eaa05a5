"""Builds the parts of a run from its configuration: data, model, optimizer, averages."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tf_lrtraj import rates
from tf_lrtraj.averaging import AverageState
from tf_lrtraj.runs import components
from tf_lrtraj.runs.config_checks import refusal
from tf_lrtraj.runs.run_config import Plan, resolve
from tf_lrtraj.schedules import RateSchedule
from tf_lrtraj.training import host_memory
from tf_lrtraj.training.evaluation import Evaluator, averaged_statistics
from tf_lrtraj.training.objective import Objective, classification
from tf_lrtraj.training.progress import Progress, stage

# Batches for recomputed statistics are drawn in a separate data order, the same at every
# evaluation.
MOMENT_SEED_OFFSET = 1_000_003


@dataclasses.dataclass
class Assembly:
    """The parts of a run, or of its evaluation."""

    config: dict[str, Any]
    plan: Plan
    dataset: Any
    strategy: Any
    model: Any
    optimizer: Any
    averages: AverageState | None
    learning_rates: np.ndarray
    objective: Objective = dataclasses.field(default_factory=classification)
    progress: Progress | None = None
    # Each pipeline is built once and iterated again: building one traces functions, which takes
    # longer than a small evaluation and leaves a megabyte for the garbage collector.
    _pipelines: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """The evaluator of the raw weights and the averages."""
        return Evaluator(
            self.strategy,
            self.model,
            self.averages,
            self.plan.policies,
            self.moment_batches,
            self.config["batch_norm"]["batches"],
            self.objective,
        )

    @property
    def numbers_per_input(self) -> int:
        """Numbers in the input of one example."""
        leaves = _leaves(self.dataset.input_shape)
        return sum(int(np.prod([size or 1 for size in shape])) for shape in leaves)

    @property
    def checkpointed(self) -> dict[str, list[Any]]:
        """The groups of variables in a checkpoint."""
        return {
            "model": list(self.model.variables),
            "optimizer": list(self.optimizer.variables),
            "averages": self.averages.variables if self.averages is not None else [],
        }

    def doing(self, activity: str) -> contextlib.AbstractContextManager[None]:
        """Makes the progress bar, if there is one, show an activity inside the block."""
        return contextlib.nullcontext() if self.progress is None else self.progress.doing(activity)

    @property
    def eval_split(self) -> str:
        """The split to evaluate on."""
        return self.config["data"]["eval_split"] or self.dataset.eval_split

    def train_batches(self, start_step: int) -> Any:
        """Returns distributed training batches (images, labels), from a global step on."""
        return self._distributed_training(self.config["seed"], start_step)

    def moment_batches(self) -> Iterable[Any]:
        """Returns the training batches from which batch-norm statistics are recomputed."""
        count = self.config["batch_norm"]["batches"]
        seed = (self.config["seed"] + MOMENT_SEED_OFFSET) % 2**31
        if "moments" not in self._pipelines:
            self._pipelines["moments"] = self._distributed_training(seed, 0)
        return itertools.islice(self._pipelines["moments"], count)

    def _distributed_training(self, seed: int, start_step: int) -> Any:
        batch = self.config["data"]["batch_size"]
        return _Batches(
            self.strategy.distribute_datasets_from_function(
                lambda context: self.dataset.train_batches(
                    batch, seed, start_step, **_shards(context)
                )
            )
        )

    def eval_batches(self, split: str, limit: int | None = None) -> Any:
        """Returns distributed evaluation batches (images, labels, weights), each image once.

        Args:
            split: the split of the data set.
            limit: largest number of images; None for all.
        """
        if limit is not None:
            limit = min(limit, self.dataset.num_examples[split])
        key = "eval", split, limit
        if key not in self._pipelines:
            self._pipelines[key] = self._distributed_evaluation(split, limit)
        return self._pipelines[key]

    def _distributed_evaluation(self, split: str, limit: int | None) -> Any:
        replicas = self.strategy.num_replicas_in_sync
        batch = self.config["evaluate"]["batch_size"]
        batch = -(-batch // replicas) * replicas

        return _Batches(
            self.strategy.distribute_datasets_from_function(
                lambda context: self.dataset.eval_batches(
                    split, batch, limit=limit, **_shards(context)
                )
            )
        )


class _Batches:
    """Distributed batches that can be iterated again, and keep the allocator's settings."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    @property
    def element_spec(self) -> Any:
        """Shapes and dtypes of a batch on every replica."""
        return self._batches.element_spec

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self._batches)
        host_memory.keep_freed_memory_again()
        return iterator


def _shards(context: Any) -> dict[str, Any]:
    """Returns the parts of each global batch that an input pipeline makes for its replicas."""
    per_pipeline = context.num_replicas_in_sync // context.num_input_pipelines
    first = context.input_pipeline_id * per_pipeline
    return {
        "num_shards": context.num_replicas_in_sync,
        "shard_ids": tuple(range(first, first + per_pipeline)),
    }


def check_replicas(config: dict[str, Any], strategy: Any) -> None:
    """Checks that batches can be split evenly.

    Raises:
        ConfigError: if they cannot.
    """
    replicas = strategy.num_replicas_in_sync
    if config["data"]["batch_size"] % replicas:
        allowed = f"a multiple of the number of replicas, {replicas}"
        raise refusal("data.batch_size", allowed, config["data"]["batch_size"])


def assemble(
    config: dict[str, Any],
    dataset: Any,
    strategy: Any,
    learning_rates: np.ndarray | None = None,
) -> Assembly:
    """Builds model, optimizer, averages and evaluator under a strategy.

    Args:
        config: a validated configuration.
        dataset: the result of `components.load_dataset`.
        strategy: a `tf.distribute` strategy.
        learning_rates: [T] rates instead of the configured schedule (for a matched run).

    Raises:
        ConfigError: if the parts do not fit together.
    """
    plan = resolve(config, dataset.num_examples["train"])
    check_replicas(config, strategy)
    stage("building the network")
    rate = plan.rate if learning_rates is None else rates.as_rate(learning_rates)
    with strategy.scope():
        model = components.build_model(config, dataset)
        optimizer = components.make_optimizer(config, RateSchedule(rate), model)
        optimizer.build(model.trainable_variables)
        averages = None
        if plan.averages:
            statistics = averaged_statistics(model, plan.policies)
            averages = AverageState([*model.trainable_variables, *statistics], plan.averages)
    objective = components.make_objective(config, dataset, model)
    return Assembly(
        config=config,
        plan=plan,
        dataset=dataset,
        strategy=strategy,
        model=model,
        optimizer=optimizer,
        averages=averages,
        learning_rates=rates.as_array(rate, plan.total_steps),
        objective=objective,
    )


def _leaves(shape: Any) -> list[tuple[int | None, ...]]:
    """Returns the shapes in a nest of shapes."""
    if isinstance(shape, dict):
        return [leaf for one in shape.values() for leaf in _leaves(one)]
    if any(isinstance(one, (tuple, dict)) for one in shape):
        return [leaf for one in shape for leaf in _leaves(one)]
    return [shape]
