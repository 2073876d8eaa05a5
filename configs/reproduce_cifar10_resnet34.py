"""The papers' claims on CIFAR-10 with ResNet-34: full size, one accelerator.

Command:  lrtraj-reproduce --config=configs/reproduce_cifar10_resnet34.py --workdir=DIR --force \\
              --config.data.file=cifar10.npz   (or --config.data.dir, where TFDS has cifar10)
Data:     machines without TensorFlow can use an .npz file with x_train, y_train, x_test, y_test,
          and KERAS_BACKEND=jax.
Machine:  one GPU with 24 GB or more; 90 GB of disk for iterates
Runtime:  not measured.  --dry_run prints the cost: about 450,000 training steps of 128 images
Expected: not run by the project.
Note:     no learning rate or batch size of the papers' figures is known; these are ours.
"""

from tf_lrtraj.study.study_config import full_size_config


def get_config():
    config = full_size_config("cifar10_resnet34")
    config.data.name = "cifar10"
    return config
