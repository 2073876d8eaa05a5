"""Averages of a model's weights: online state, batch-norm policies, callbacks, snapshots on disk.

`Snapshots` and `average_snapshots` need NumPy only, and Keras takes many seconds to import.  So
each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tf_lrtraj.averaging.averaged_optimizer import AveragedOptimizer
    from tf_lrtraj.averaging.borrowing import borrow
    from tf_lrtraj.averaging.model_files import save_model
    from tf_lrtraj.averaging.post_hoc import average_snapshots, snapshot_weights
    from tf_lrtraj.averaging.prediction_ensemble import Ensemble, EnsembleResult
    from tf_lrtraj.averaging.snapshot_recorder import SnapshotRecorder
    from tf_lrtraj.averaging.snapshots import Snapshots
    from tf_lrtraj.averaging.state import AverageState
    from tf_lrtraj.averaging.stored_averages import StoredAverage, combine_stored
    from tf_lrtraj.averaging.weight_averaging import WeightAveraging

_MODULES = {
    "AveragedOptimizer": "averaged_optimizer",
    "AverageState": "state",
    "Ensemble": "prediction_ensemble",
    "EnsembleResult": "prediction_ensemble",
    "SnapshotRecorder": "snapshot_recorder",
    "Snapshots": "snapshots",
    "StoredAverage": "stored_averages",
    "WeightAveraging": "weight_averaging",
    "average_snapshots": "post_hoc",
    "borrow": "borrowing",
    "combine_stored": "stored_averages",
    "save_model": "model_files",
    "snapshot_weights": "post_hoc",
}

__all__ = [
    "AverageState",
    "AveragedOptimizer",
    "Ensemble",
    "EnsembleResult",
    "SnapshotRecorder",
    "Snapshots",
    "StoredAverage",
    "WeightAveraging",
    "average_snapshots",
    "borrow",
    "combine_stored",
    "save_model",
    "snapshot_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tf_lrtraj.averaging' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tf_lrtraj.averaging.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
