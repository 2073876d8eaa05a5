"""Evaluates a checkpoint of a run: its raw weights and any of its averages."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from tf_lrtraj.records import RAW
from tf_lrtraj.runs.assembly import Assembly, assemble
from tf_lrtraj.runs.components import load_dataset
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.runs.train_run import CHECKPOINTS
from tf_lrtraj.training.checkpoints import Checkpointer
from tf_lrtraj.values import one_of


def open_checkpoint(
    config: dict[str, Any],
    workdir: str | os.PathLike[str],
    strategy: Any,
    step: int | None = None,
) -> tuple[Assembly, int]:
    """Builds a run's parts and restores one of its checkpoints.

    Args:
        config: the result of `run_config.read_config`.
        workdir: the run's folder.
        strategy: a `tf.distribute` strategy; it need not be the one that trained.
        step: the step of the checkpoint; None for the newest intact one.

    Returns:
        (the assembly, the step of the checkpoint).

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        CheckpointError: if it is damaged.
    """
    folder = pathlib.Path(workdir) / CHECKPOINTS
    if not folder.is_dir():
        raise FileNotFoundError(f"there are no checkpoints in {folder}")
    assembly = assemble(config, load_dataset(config), strategy)
    # Reading only: damaged checkpoints are skipped, not deleted.
    checkpointer = Checkpointer(folder, assembly.checkpointed, writer=False)
    found, _ = checkpointer.restore(step)
    return assembly, found


def evaluate(
    assembly: Assembly,
    step: int,
    names: Sequence[str] | None = None,
    split: str | None = None,
    batch_norm: str | None = None,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Evaluates weights of a restored run, one row each (as in `metrics.jsonl`).

    The raw weights of a model with batch norm have two rows if statistics are recomputed: with
    recomputed and with running statistics.

    Args:
        assembly: the assembly, with a checkpoint restored.
        step: the step of that checkpoint.
        names: "raw" and names of averages; None for all.
        split: None for the configured one.
        batch_norm: a policy to use instead of the configured ones.
        limit: largest number of examples; None for all.

    Raises:
        ConfigError: for unknown names, splits, or a policy the checkpoint cannot serve.
    """
    known = [RAW, *assembly.plan.averages]
    names = [one_of(known).check("weights", name, ConfigError) for name in names or known]
    splits = sorted(assembly.dataset.num_examples)
    split = one_of(splits).check("split", split or assembly.eval_split, ConfigError)
    evaluator = assembly.evaluator
    if batch_norm == "average" and "average" not in evaluator.policies.values():
        raise ConfigError(
            "batch-norm policy 'average' needs statistics that were averaged during the run; "
            "this run did not keep them. Choose 'recompute' or 'copy'."
        )
    default = assembly.config["batch_norm"]["policy"]
    for name, policy in evaluator.candidates(names, default, batch_norm):
        weights = evaluator.weights(name, step, policy)
        result = evaluator.evaluate(weights, assembly.eval_batches(split, limit))
        yield {
            "kind": "eval",
            "step": step,
            "split": split,
            "weights": name,
            "batch_norm": evaluator.describe(name, policy),
            **result.values,
            "examples": result.examples,
        }
