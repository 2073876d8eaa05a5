"""The papers' claims on the embedded digits: what a newcomer runs first.

Command:  lrtraj-reproduce --config=configs/reproduce_digits.py --workdir=runs/reproduction
Machine:  2 CPU cores
Runtime:  14 minutes of processor time; 21 minutes beside other work that kept both cores busy
Expected: a verdict or a reason for every claim, in runs/reproduction/report.html
Note:     1,297 images of 8 by 8 pixels and a network of 20,000 weights: a test of the machinery
          and a picture of the method.  reproduce_cifar10_cpu is the evidence.
"""

from tf_lrtraj.experiments.reproduction.config import default_config


def get_config():
    return default_config()
