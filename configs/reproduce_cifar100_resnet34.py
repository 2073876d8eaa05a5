"""The papers' claims on CIFAR-100 with ResNet-34: full size, one accelerator.

Command:  lrtraj-reproduce --config=configs/reproduce_cifar100_resnet34.py --workdir=DIR --force \\
              --config.data.dir=DATA
Machine:  one GPU with 24 GB or more; 90 GB of disk for iterates
Runtime:  not measured; --dry_run tells the cost
Expected: not run by the project.
Note:     lengths, rates and batches as for CIFAR-10 (reproduce_cifar10_resnet34).
"""

from tf_lrtraj.experiments.reproduction.config import default_config


def get_config():
    config = default_config()
    config.name = "cifar100_resnet34"
    config.command = "lrtraj-reproduce --config=configs/reproduce_cifar100_resnet34.py"
    config.runs_here = False
    config.data.name = "cifar100"
    config.data.augmentation = "crop_flip"
    config.model.depth = 34
    config.model.width = 64
    config.batch_size = 128
    config.learning_rate = 0.1
    config.weight_decay = 5e-4
    config.burn_in = 30000
    config.window = 10000
    config.every = 100
    config.segment = 2000
    config.log_every = 100
    config.horizon = 2000
    config.horizon_every = 10
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.998},
        "swa": {"kernel": "Uniform"},
        "two_point": {"kernel": "TwoPoint", "gap": 1500},
    }
    config.evaluate.part = 10000
    config.evaluate.batch_norm_images = 10000
    config.many_points.gaps = (100, 400, 1400)
    config.sweep.singles = 24
    config.cycle.length = 1000
    config.speed.steps = 6000
    config.one_step.iterates = 16
    config.width.update(images=5000, size=500)
    config.ensemble.update(images=5000, size=500)
    return config
