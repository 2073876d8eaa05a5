"""Averages of weights and learning-rate schedules: training, averaging, prediction, conversion.

Importing this package imports neither TensorFlow nor Keras (which takes many
seconds): `kernels`, `rates`, `records` and `theory` are plain NumPy, and the
names that need Keras are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from tf_lrtraj.registration import register_with_keras

__version__ = "0.1.0"

# name -> module that defines it; "" means the name is itself a submodule.
_LAZY = {
    "AveragedOptimizer": "tf_lrtraj.averaging",
    "RunRecorder": "tf_lrtraj.training.run_recorder",
    "WeightAveraging": "tf_lrtraj.averaging",
    "averaging": "",
    "data": "",
    "kernels": "",
    "models": "",
    "probes": "",
    "rates": "",
    "records": "",
    "report": "",
    "schedules": "",
    "theory": "",
}

__all__ = ["__version__", *sorted(_LAZY)]


register_with_keras()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tf_lrtraj' has no attribute {name!r}")
    if _LAZY[name]:
        return getattr(importlib.import_module(_LAZY[name]), name)
    return importlib.import_module(f"tf_lrtraj.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
