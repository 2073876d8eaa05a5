"""The papers' claims on CIFAR-100 with ResNet-34: full size, one accelerator.

Command:  lrtraj-reproduce --config=configs/reproduce_cifar100_resnet34.py --workdir=DIR --force \\
              --config.data.dir=DATA
Machine:  one GPU with 24 GB or more; 90 GB of disk for iterates
Runtime:  not measured; --dry_run prints the cost
Expected: not run by the project.
Note:     lengths, rates and batches as for CIFAR-10 (reproduce_cifar10_resnet34).
"""

from tf_lrtraj.study.study_config import full_size_config


def get_config():
    config = full_size_config("cifar100_resnet34")
    config.data.name = "cifar100"
    return config
