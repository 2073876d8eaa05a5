"""What one mini-batch's loss does: measured along steps, side trips, segments and planes.

Probes never touch the model they measure, state which batch norm and dropout they
measured with, keep every number with its coordinates, and go on where they stopped.
"""

from __future__ import annotations

import importlib
from typing import Any

# name -> module that defines it; loaded on first use, as Keras takes many seconds to import.
_MODULES = {
    "Direction": "steps",
    "Line": "line",
    "Mode": "mode",
    "Plane": "planes",
    "Point": "surface",
    "Probe": "probe",
    "ProbeRecorder": "callback",
    "Segments": "segments",
    "SideTrip": "side_trips",
    "Surface": "surface",
    "Width": "widths",
    "filter_axes_of": "directions",
    "loss_along_rays": "widths",
    "loss_along_segment": "segments",
    "loss_along_step": "line",
    "loss_on_plane": "planes",
    "measure": "probe",
    "random_direction": "directions",
    "rate_grid": "fits",
    "refined_rates": "line",
    "side_trip": "side_trips",
    "take_batches": "surface",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tf_lrtraj.probes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tf_lrtraj.probes.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
