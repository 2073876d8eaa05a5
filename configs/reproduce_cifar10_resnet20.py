"""What one learning rate does, on CIFAR-10 with ResNet-20: the mechanics, for two CPU cores.

Command:  for k in 0 1 2: OMP_NUM_THREADS=1 KERAS_BACKEND=torch nice lrtraj-reproduce \\
              --config=configs/reproduce_cifar10_resnet20.py --workdir=runs/resnet20 \\
              --config.data.dir=DIR --only_seed=k
          and then the same without --only_seed.
          (DIR: folder of tensorflow-datasets with cifar10, made by tools/prepare_data.py)
Machine:  2 CPU cores, one seed on each; can be interrupted and resumed at any time
Runtime:  --dry_run prints the number of images; a core trains 350 to 640 a second
Expected: results/reproduction_cifar10_resnet20, once it has been run
Note:     all 50,000 training images, at 24 by 24 pixels, cropped and flipped; ResNet-20 of
          width 16; batches of 128.  The settings of the papers' figures are not known; these are
          ours.  Weight decay acts on all weights: on kernels alone, the scales of batch norm keep
          growing and nothing becomes stationary.  Sizes were fixed with the power table, before
          the run.
"""

import pathlib

from tf_lrtraj.study.study_config import cifar_config


def get_config():
    power = pathlib.Path(__file__).with_name("power_cifar10_resnet20.json")
    config = cifar_config("cifar10_resnet20", power)
    config.claims = (
        *(f"B{number}" for number in range(1, 15)),
        *(f"A{number}" for number in range(1, 11)),
        *("S3", "O1", "O2", "O4", "O5"),
    )
    config.pilot = (
        "two seeds of this configuration with ResNet-8 on 16 by 16 pixels, a burn-in of 6 epochs "
        "and a window of 3; B4, B5, B6, B11, B12 and O5: the digits"
    )
    config.data.name = "cifar10"
    config.model.depth = 20
    config.seeds = config.probe_seeds = config.pairs.seeds = config.speed.seeds = 3
    config.burn_in = 7800  # 20 epochs
    config.window = 3900
    config.every = 30
    config.horizon = 390
    config.averages.ema.decay = 0.985
    config.averages.two_point.gap = 260
    config.places = 2
    config.raw_iterates = 10
    config.along = {"places": 10, "averages": ("ema", "swa")}
    config.evaluate.update(part=4000, batch_norm_images=1500, levels=6)
    config.many_points = {"points": (2, 4, 8), "gaps": (30, 90, 300), "ends": 20}
    config.late_iterates = 20
    config.trade_off.places = 5
    config.sweep.update(singles=20, lags=8, pairs=25, verify=16)  # 200 pairs
    config.pairs.steps = 1560  # 4 epochs
    config.speed.update(steps=3900, places=12)  # 10 epochs
    config.start.steps = (0, 1, 3, 10, 30, 100, 300)
    config.shell.steps = 30
    config.displacement.longest = 0.4
    config.probes.update(batches=32, held_out=4, others=2, low=0.02, gradients=32)
    config.probes.update(trip_batches=4, basin_positions=9)
    config.one_step.update(iterates=12, batches=6, held_out=2, others=8)
    config.convexity.update(distances=4, pairs=4, batches=8)
    config.reach.update(steps=1560, sizes=(8, 32, 128, 512), images=512)
    config.cost.update(depth=34, width=64, repeats=7, steps=5)
    return config
