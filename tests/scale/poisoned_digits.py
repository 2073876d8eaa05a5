"""The digits with NaN in one training image."""

import numpy as np
from run_contents import BARE

from tf_lrtraj import data

# Statistics of each replica's own, so that only one of them meets NaN; checkpoints at every step.
OPTIONS = {
    **BARE,
    "total": "60 steps",
    "data.augmentation": "none",
    "model.batch_norm.synchronized": False,
    "checkpoint.every": "1 steps",
    "evaluate.every": "never",
    "snapshots.every": "never",
}


def poisoned():
    digits = data.load("digits")
    arrays = {split: digits.arrays(split) for split in ("train", "test")}
    images = np.array(arrays["train"][0], np.float32)
    images[7] = np.nan
    return data.from_arrays(
        "digits",
        images,
        arrays["train"][1],
        test_images=np.array(arrays["test"][0], np.float32),
        test_labels=arrays["test"][1],
        mean=[0.0],
        std=[1.0],
    )
