"""The default configuration with two averages, for tests that start a process."""

from tf_lrtraj.runs.run_config import default_config


def get_config():
    config = default_config()
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.8},
        "two_point": {"kernel": "TwoPoint", "gap": 6, "batch_norm": "average"},
    }
    return config
