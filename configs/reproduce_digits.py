"""The papers' claims on the embedded digits: the first reproduction to run.

Command:  lrtraj-reproduce --config=configs/reproduce_digits.py --workdir=runs/reproduction
Machine:  2 CPU cores
Runtime:  five minutes of two quiet cores
Expected: numbers and figures of every claim, in runs/reproduction/report.html
Note:     1,297 images of 8 by 8 pixels, a network of 20,000 weights and two seeds: a test of the
          programs and an illustration of the method, without verdicts.  The scales
          cifar10_resnet20 and cifar100_resnet14 are the evidence.
"""

from tf_lrtraj.study.study_config import default_config


def get_config():
    config = default_config()
    config.budget.steps = 800
    return config
