"""CIFAR-10, ResNet-8 of width 16 on a CPU: averages of a constant-rate run, and a matched schedule.

Command:  for k in 0 1 2: lrtraj-train --config=configs/cifar10_resnet8_cpu.py \\
              --workdir=runs/cifar10_resnet8_cpu/seed$k --config.seed=$k
Data:     python tools/prepare_data.py --dataset=cifar10 (once; needs the network)
Machine:  2 CPU cores
Runtime:  about an hour a seed, on one core
Expected: results/cifar10_resnet8_cpu
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
    config.total = "24 epochs"
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.998},
        "swa": {"kernel": "Uniform", "start": "60 percent"},
        "two_point": {"kernel": "TwoPoint", "gap": 100},
    }
    config.matched.averages = ("swa",)
    config.evaluate.every = "1 epochs"
    config.evaluate.train_examples = 2000
    config.log_every = "50 steps"
    # For lrtraj-average and lrtraj-probe: from the first step to the last (9,375).
    config.snapshots.every = "25 steps"
    return config
