"""CIFAR-10, ResNet-8 of width 16 on a CPU: averages of a constant-rate run, and a matched schedule.

Command:  lrtraj-train --config=configs/cifar10_resnet8_cpu.py --workdir=runs/cifar10_resnet8_cpu
Data:     python tools/prepare_data.py --dataset=cifar10 (once; needs the network)
Machine:  2 CPU cores
Runtime:  about half an hour
Expected: every average beats the raw weights in test accuracy, by 1.2 to 1.8 points with
          batch-norm statistics recomputed for both (results/cifar10_resnet8_cpu); the run
          under the schedule equivalent to SWA ends near SWA.
"""

from tf_lrtraj.runs.run_config import default_config


def get_config():
    config = default_config()
    config.name = "ResNet-8 on CIFAR-10, constant rate"
    config.data.name = "cifar10"
    config.data.augmentation = "crop_flip"
    config.data.batch_size = 128
    config.model.depth = 8
    config.model.width = 16
    config.schedule = {"rate": "Constant", "constant": 0.1}
    config.total = "8 epochs"
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.998},
        "swa": {"kernel": "Uniform", "start": "60 percent"},
        "two_point": {"kernel": "TwoPoint", "gap": 100},
    }
    config.matched.averages = ("swa",)
    config.evaluate.every = "1 epochs"
    config.evaluate.train_examples = 2000
    config.log_every = "50 steps"
    # For lrtraj-average: the second half, up to the very last step (3125).
    config.snapshots.every = "10 steps"
    config.snapshots.start = "1525 steps"
    return config
