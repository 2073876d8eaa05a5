"""What averaging does to test accuracy: half of CIFAR-100, ResNet-14, for two CPU cores.

Command:  for k in 0 1 2 3 4: OMP_NUM_THREADS=1 KERAS_BACKEND=torch nice lrtraj-reproduce \\
              --config=configs/reproduce_cifar100_resnet14.py --workdir=runs/resnet14 \\
              --config.data.dir=DIR --only_seed=k
          and then the same without --only_seed.
          (DIR: folder of tensorflow-datasets with cifar100, made by tools/prepare_data.py)
Machine:  2 CPU cores, one seed on each; can be interrupted and resumed at any time
Runtime:  --dry_run prints the number of images; a core trains 450 to 830 a second
Expected: results/reproduction_cifar100_resnet14, once it has been run
Note:     the first 25,000 of CIFAR-100's training images, at 24 by 24 pixels, cropped and
          flipped: few images for 100 classes, so that the network generalises worse than it fits.
          A conventional run, SWA at constant and at cyclical rate and FGE by their authors'
          procedure, 60 epochs each.  Sizes were fixed with the power table, before the run.
"""

import pathlib

from tf_lrtraj.study.study_config import cifar_config


def get_config():
    power = pathlib.Path(__file__).with_name("power_cifar100_resnet14.json")
    config = cifar_config("cifar100_resnet14", power)
    config.claims = ("S1", "S2", "S4", "S5", "S6", "S7", "S8", "O2")
    config.pilot = (
        "two seeds of this configuration with a budget of 8 epochs and cycles of one, where all "
        "runs still descend; S4 and S5: the digits"
    )
    config.data.name = "cifar100"
    config.model.depth = 14
    config.seeds = config.probe_seeds = 5
    config.evaluate.update(part=5000, batch_norm_images=2500)
    config.trade_off.of = "budget"
    config.budget.steps = 11700  # 60 epochs
    config.budget.cycle = 3  # epochs
    config.width.update(images=5000, size=500, rays=8)
    config.ensemble.update(images=5000, size=500)
    return config
