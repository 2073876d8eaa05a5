"""Averages of a running model's weights: online state, batch-norm policies, Keras callback."""

from tf_lrtraj.averaging.borrowing import borrow, save_model
from tf_lrtraj.averaging.callback import WeightAveraging, check_averages
from tf_lrtraj.averaging.recorder import SnapshotRecorder
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.averaging.state import AverageState

__all__ = [
    "AverageState",
    "SnapshotRecorder",
    "Snapshots",
    "WeightAveraging",
    "borrow",
    "check_averages",
    "save_model",
]
