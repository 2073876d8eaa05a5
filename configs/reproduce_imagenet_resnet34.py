"""The papers' claims on ImageNet with ResNet-34: full size, one or more accelerators.

Command:  lrtraj-reproduce --config=configs/reproduce_imagenet_resnet34.py --workdir=DIR --force \\
              --config.data.dir=DATA
Data:     tensorflow-datasets' imagenet2012, streamed; 5,000 images of training and as many of
          validation are held in memory, for scores and probes.  "All training images" in the
          records are those 5,000.
Machine:  a GPU with 40 GB or more; 50 GB of memory, 250 GB of disk for iterates
Runtime:  not measured; --dry_run prints the cost
Expected: not run by the project; the streamed path is tested on small data only.
"""

from tf_lrtraj.study.study_config import accelerator_config


def get_config():
    config = accelerator_config("imagenet_resnet34")
    config.data.name = "imagenet2012"
    config.data.image_size = 224
    config.data.augmentation = "random_resized_crop"
    config.model.stem = "imagenet"
    config.batch_size = 256
    config.weight_decay = 5e-5
    config.burn_in = 240000  # 48 epochs
    config.window = 80000
    config.every = 1000
    config.segment = 5000
    config.log_every = 500
    config.horizon = 20000
    config.horizon_every = 100
    config.averages.ema.decay = 0.9998
    config.averages.two_point.gap = 15000
    config.evaluate.update(batch_size=250, part=5000, batch_norm_images=5000)
    config.many_points.gaps = (1000, 4000, 8000)
    config.pairs.steps = 8000
    config.speed.steps = 48000
    config.probes.gradients = 12
    config.one_step.update(batches=6, held_out=4, others=4)
    config.width.update(images=2000, size=250)
    config.ensemble.update(images=2000, size=250)
    return config
