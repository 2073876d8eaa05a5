"""The description of a run in `run.json`; see docs/records.md."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

import tensorflow as tf

from tf_lrtraj import records
from tf_lrtraj.records import RAW
from tf_lrtraj.runs.assembly import Assembly
from tf_lrtraj.runs.components import weight_decay_of
from tf_lrtraj.training.progress import program_name
from tf_lrtraj.training.run_files import now, parameters, versions


def _command() -> str:
    """Returns the command line, without the folder of the program."""
    return shlex.join([program_name(), *sys.argv[1:]])


def describe(
    assembly: Assembly, strategy_name: str, matched_to: dict[str, Any] | None
) -> dict[str, Any]:
    """Returns the content of `run.json` at the start of a run."""
    config, plan = assembly.config, assembly.plan
    model = assembly.model
    return {
        "format": records.FORMAT,
        "status": "incomplete",
        "name": config["name"],
        "command": _command(),
        "created": now(),
        "versions": versions(),
        "seed": config["seed"],
        "threads": {
            "intra_op": tf.config.threading.get_intra_op_parallelism_threads(),
            "inter_op": tf.config.threading.get_inter_op_parallelism_threads(),
            "processors": os.cpu_count(),
        },
        "strategy": strategy_name,
        "num_replicas": assembly.strategy.num_replicas_in_sync,
        "total_steps": plan.total_steps,
        "batch_size": config["data"]["batch_size"],
        "steps_per_epoch": plan.steps_per_epoch,
        "dataset": {
            "name": assembly.dataset.name,
            "num_examples": dict(assembly.dataset.num_examples),
            "num_classes": assembly.dataset.num_classes,
            "unit": assembly.dataset.unit,
        },
        "model": {
            "name": model.name,
            "parameters": parameters(model),
        },
        "optimizer": {
            "name": config["optimizer"]["name"],
            "weight_decay": weight_decay_of(config, assembly.optimizer),
        },
        "loss": config["loss"]["name"] or "cross-entropy of logits",
        "averages": {name: kernel.get_config() for name, kernel in plan.averages.items()},
        "average_bytes": (
            assembly.averages.memory_bytes() if assembly.averages is not None else {}
        ),
        "batch_norm": {name: assembly.evaluator.describe(name) for name in [RAW, *plan.averages]},
        "matched_to": matched_to,
        "message": None,
        "resumed_at": [],
    }
