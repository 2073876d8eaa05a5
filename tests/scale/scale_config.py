"""A tiny run with everything on: averages of all kinds, snapshots, probes, a matched run.

A global batch of 48 splits evenly over 1, 2, 3 and 4 replicas; 500 test images in
batches of 144 leave a last one of 68, and 100 training images one of 100.
"""

from tf_lrtraj.runs.run_config import default_config


def get_config():
    config = default_config()
    config.update_from_flattened_dict(
        {
            "data.batch_size": 48,
            "data.augmentation": "crop",
            "model.width": 4,
            "model.batch_norm.synchronized": True,
            "optimizer.momentum": 0.5,
            "optimizer.weight_decay": 1e-3,
            "schedule.constant": 0.05,
            "total": "12 steps",
            "log_every": "4 steps",
            "evaluate.every": "6 steps",
            "evaluate.batch_size": 144,
            "evaluate.train_examples": 100,
            "checkpoint.every": "4 steps",
            "snapshots.every": "5 steps",
            "steps_per_call": 3,
            "batch_norm.batches": 2,
            "threads": 1,
        }
    )
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.8},
        "two_point": {"kernel": "TwoPoint", "gap": 4, "batch_norm": "average"},
    }
    config.matched.averages = ("two_point",)
    config.probes = {
        "line": {"every": "6 steps", "batches": 1, "held_out_batches": 1, "num": 3},
        "basin": {"points": ("5", "10"), "batches": 1, "held_out_batches": 1},
    }
    return config
