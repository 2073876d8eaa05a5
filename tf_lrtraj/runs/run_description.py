"""What `run.json` says of a run; see docs/records.md."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import shlex
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tf_lrtraj
from tf_lrtraj import records
from tf_lrtraj.records import RAW
from tf_lrtraj.runs.assembly import Assembly


def _command() -> str:
    """The command line, without where the program itself is installed."""
    program = pathlib.Path(sys.argv[0])
    name = f"lrtraj-{program.stem}" if program.suffix == ".py" else program.name
    return shlex.join([name, *sys.argv[1:]])


def describe(
    assembly: Assembly, strategy_name: str, matched_to: dict[str, Any] | None
) -> dict[str, Any]:
    """The content of `run.json` at the start of a run."""
    config, plan = assembly.config, assembly.plan
    model = assembly.model
    return {
        "format": records.FORMAT,
        "status": "incomplete",
        "name": config["name"],
        "command": _command(),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "tf_lrtraj": tf_lrtraj.__version__,
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "backend": keras.backend.backend(),
        },
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
        },
        "model": {
            "name": model.name,
            "parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
        },
        "averages": {name: kernel.get_config() for name, kernel in plan.averages.items()},
        "average_bytes": (
            assembly.averages.memory_bytes() if assembly.averages is not None else {}
        ),
        "batch_norm": {name: assembly.evaluator.describe(name) for name in [RAW, *plan.averages]},
        "matched_to": matched_to,
        "message": None,
        "resumed_at": [],
    }
