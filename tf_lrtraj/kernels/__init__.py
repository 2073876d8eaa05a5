r"""Averaging kernels: the weights of an average of the iterates of a run.

A kernel is an immutable description of a weighted average of iterates
:math:`\theta_0, \dots, \theta_T`, where `T` is the number of updates made so far.  It does not
depend on TensorFlow, networks or data.  The callback that averages during training, the averages
built from snapshots, and the theory of averages and learning-rate schedules all use it.

There are two families of kernels:

* A `RecursiveKernel` needs one running copy of the weights,
  :math:`\phi_t = \phi_{t-1} + \alpha_t (\theta_t - \phi_{t-1})`.  It is described by its mixing
  coefficients :math:`\alpha_t` (`mixing`).  `BEMA` adds a correction to its running average when
  it is read.
* A `LagKernel` is a fixed combination of the last iterates,
  :math:`\phi_t = \sum_i w_i\, \theta_{t - l_i}` (`lags`).  It needs a ring buffer that reaches back
  to its largest lag.

Example:

>>> from tf_lrtraj import kernels
>>> kernels.Exponential(decay=0.5).weights(3)
array([0.125, 0.125, 0.25 , 0.5  ])
>>> kernels.Uniform(start=1).weights(3).round(3)
array([0.   , 0.333, 0.333, 0.333])
>>> kernels.from_config({"kernel": "TwoPoint", "gap": 2}).weights(3)
array([0. , 0.5, 0. , 0.5])

Every kernel takes `end`, the number of updates after which its average does not change.

>>> kernels.Uniform(start=1, end=2).weights(4)
array([0. , 0.5, 0.5, 0. , 0. ])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tf_lrtraj.configurable import Family
from tf_lrtraj.kernels.kernel_base import (
    Kernel,
    LagKernel,
    RecursiveKernel,
)
from tf_lrtraj.kernels.lags import Custom, TwoPoint, Window
from tf_lrtraj.kernels.recursive import BEMA, DECAYS, Exponential, HalfLife, PowerFunction, Uniform
from tf_lrtraj.kernels.weight_vectors import autocorrelation, check_weights

__all__ = [
    "BEMA",
    "DECAYS",
    "Custom",
    "Exponential",
    "HalfLife",
    "Kernel",
    "LagKernel",
    "PowerFunction",
    "RecursiveKernel",
    "TwoPoint",
    "Uniform",
    "Window",
    "autocorrelation",
    "check_weights",
    "from_config",
]

KERNELS: Family[Kernel] = Family(
    "kernel",
    "Exponential(decay=0.99)",
    *(Exponential, HalfLife, BEMA, Uniform, PowerFunction, Window, TwoPoint, Custom),
)


def from_config(config: Mapping[str, Any]) -> Kernel:
    """Builds a kernel from `{"kernel": name, **arguments}`, as `get_config` returns it.

    Raises:
        ValueError: if the kernel's name or an argument is unknown or missing
            (close names are suggested), or a value is out of range.

    >>> from_config({"kernel": "Exponential", "decay": 0.9}) == Exponential(0.9)
    True
    """
    return KERNELS.from_config(config)
