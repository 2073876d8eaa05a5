"""The papers' claims on CIFAR-10, at a size for two CPU cores.

Command:  KERAS_BACKEND=jax lrtraj-reproduce --config=configs/reproduce_cifar10_cpu.py \\
              --workdir=runs/reproduction_cifar10 --config.data.dir=DIR
          (DIR: folder of tensorflow-datasets with cifar10, made by tools/prepare_data.py)
Machine:  2 CPU cores; on TensorFlow (the default backend) about twice the time
Runtime:  about an hour of both cores; can be interrupted and resumed at any time
Expected: results/reproduction_cifar10_cpu and docs/reproduction_cifar10_cpu.md
Note:     all 50,000 training images, at 16 by 16 pixels, without augmentation, and a ResNet-8 of
          width 8: small enough that a run at constant rate levels off, which the claims about
          stationary states need.  The settings of the papers' figures are not known; these
          are ours.  Weight decay acts on all weights: on kernels alone, the scales of batch norm
          keep growing and nothing becomes stationary.
"""

from tf_lrtraj.study.study_config import default_config


def get_config():
    config = default_config("cifar10_cpu")
    config.judged = True
    config.seeds = 3
    config.data.name = "cifar10"
    config.data.image_size = 16
    config.model.width = 8
    config.batch_size = 64
    config.learning_rate = 0.1
    config.weight_decay = 2e-3
    config.burn_in = 6000  # 7.7 epochs
    config.window = 2000
    config.every = 10
    config.segment = 1000
    config.log_every = 50
    config.horizon = 300
    config.averages.ema.decay = 0.985
    config.averages.two_point.gap = 200
    config.evaluate.part = 4000
    config.evaluate.batch_norm_images = 2000
    config.many_points.gaps = (10, 50, 250)
    config.sweep.singles = 20
    config.speed.steps = 1440
    config.one_step.iterates = 16
    config.width.update(images=2000, size=250)
    config.ensemble.update(images=2000, size=250)
    return config
