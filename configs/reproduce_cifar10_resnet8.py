"""What an average lacks of a cooldown's gain, on CIFAR-10 with ResNet-8, for two CPU cores.

Command:  for k in 0 1 2: OMP_NUM_THREADS=1 KERAS_BACKEND=torch nice lrtraj-reproduce \\
              --config=configs/reproduce_cifar10_resnet8.py --workdir=runs/resnet8 \\
              --config.data.dir=DIR --only_seed=k
          and then the same without --only_seed.
          (DIR: folder of tensorflow-datasets with cifar10, made by tools/prepare_data.py)
Machine:  2 CPU cores, one seed on each; can be interrupted and resumed at any time
Runtime:  --dry_run prints the number of images; a core trains 1,000 to 1,700 a second
Expected: results/reproduction_cifar10_resnet8
Note:     claim O3 alone: cooldowns of 50 to 2,000 updates from three constant rates.  All 50,000
          training images, at 16 by 16 pixels, cropped and flipped; batches of 64.
"""

from tf_lrtraj.study.study_config import default_config


def get_config():
    config = default_config("cifar10_resnet8")
    config.judged = True
    config.claims = ("O3",)
    config.seeds = config.probe_seeds = 3
    config.data.update(name="cifar10", image_size=16, augmentation="crop_flip")
    config.model.width = 16
    config.batch_size = 64
    config.weight_decay = 5e-4
    config.burn_in = 6000  # 7.7 epochs
    config.segment = 500
    config.log_every = 50
    config.evaluate.update(part=10000, batch_norm_images=2000)
    config.cooldown = {
        "rates": (1.0, 0.5, 0.25),
        "lengths": (50, 100, 200, 500, 1000, 2000),
        "settle": 2000,
        "places": 2,
        "track": 100,
        "after": 2000,
        "iterations": 30,
        "batches": 16,
    }
    return config
