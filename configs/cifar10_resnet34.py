"""CIFAR-10, ResNet-34 with the CIFAR stem: averages of a constant-rate run on one or more GPUs.

Command:  lrtraj-train --config=configs/cifar10_resnet34.py --workdir=runs/cifar10_resnet34 \\
              --strategy=mirrored
Data:     python tools/prepare_data.py --dataset=cifar10 (once; needs the network)
Machine:  one or more GPUs; only the runtime depends on their number
Runtime:  not measured; 200 epochs of 391 steps, then as many under the matched schedule
Expected: not run yet.  The raw weights fluctuate at this rate, and SWA, EMA and the
          two-point average should end clearly above them, near the matched run.
"""

from tf_lrtraj.runs.run_config import default_config


def get_config():
    config = default_config()
    config.name = "ResNet-34 on CIFAR-10, constant rate"
    config.data.name = "cifar10"
    config.data.augmentation = "crop_flip"
    config.data.batch_size = 128
    config.model.depth = 34
    config.model.width = 64
    config.optimizer.weight_decay = 5e-4
    config.schedule = {
        "rate": "Warmup",
        "steps": "1 epochs",
        "inner": {"rate": "Constant", "constant": 0.05},
    }
    config.total = "200 epochs"
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.9998},
        "swa": {"kernel": "Uniform", "start": "75 percent"},
        # A ring of 101 copies of the weights: 8.7 GB in float32.
        "two_point": {"kernel": "TwoPoint", "gap": 100},
    }
    config.matched.averages = ("swa",)
    config.batch_norm.batches = 100
    config.evaluate.every = "5 epochs"
    config.checkpoint.every = "10 epochs"
    config.steps_per_call = 50
    config.deterministic = False
    return config
