"""The synthetic experiments: averaging on a quadratic model, by formula and by simulation.

Command:  python -m tf_lrtraj.bin.synthetic --config=configs/synthetic.py --workdir=runs/synthetic
Machine:  1 CPU core
Runtime:  about half a minute
Expected: the EMA of a large constant rate reaches the small rate's loss in a small part of
          its steps (two_time_scales); simulation within a few standard errors of theory
          throughout; the held-out gain of one step is 0 at the run's own rate, and the distance
          to the minimum grows with an exponent near 1/2 in the rate (single_runs).
"""

from tf_lrtraj.runs import synthetic_run


def get_config():
    return synthetic_run.default_config()
