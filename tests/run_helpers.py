"""Runs of `lrtraj-train` in this process, and what they leave behind; imports TensorFlow."""

import pathlib

import tensorflow as tf

from tf_lrtraj.runs import train_run
from tf_lrtraj.runs.run_config import default_config
from tf_lrtraj.training.strategies import make_strategy

# A run that is mostly start-up; what is compared is bits.
TINY = {
    "data.batch_size": 32,
    "data.augmentation": "crop",
    "model.width": 4,
    "optimizer.momentum": 0.3,
    "total": "26 steps",
    "log_every": "4 steps",
    "evaluate.every": "13 steps",
    "evaluate.batch_size": 250,
    "checkpoint.every": "5 steps",
    "steps_per_call": 3,
    "batch_norm.batches": 2,
    "threads": 1,
}
# Of the run that is made once for all tests in tests/runs.
FINISHED = {"matched__averages": ("two_point",), "snapshots__every": "1 steps"}


def changed(config, **changes):
    """A configuration with entries changed; in their names "__" stands for a dot."""
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


def tiny_config(**changes):
    config = changed(default_config(), **TINY)
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.8},
        "two_point": {"kernel": "TwoPoint", "gap": 6, "batch_norm": "average"},
    }
    return changed(config, **changes)


def make(workdir, config, strategy=None, name="one_device"):
    """Makes a run, or goes on with it; returns the path of its report."""
    strategy = strategy or make_strategy("one_device")
    plain, dataset = train_run.prepare(config, workdir, strategy)
    return train_run.run(plain, dataset, workdir, strategy, name, tell=lambda text: None)


def checkpoint_steps(workdir):
    folder = pathlib.Path(workdir) / "checkpoints"
    return sorted(int(path.name[5:]) for path in folder.glob("step_*"))


def checkpoint_values(workdir, step=None):
    """Every tensor of a checkpoint, by name; of the newest by default."""
    step = checkpoint_steps(workdir)[-1] if step is None else step
    folder = pathlib.Path(workdir) / "checkpoints" / f"step_{step:09d}"
    reader = tf.train.load_checkpoint(str(folder / "variables"))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if "OBJECT_GRAPH" not in name
    }
