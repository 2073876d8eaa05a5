"""What one mini-batch's loss does: measured along steps, side trips, segments and planes.

Probes never touch the model they measure, state which batch norm and dropout they
measured with, keep every number with its coordinates, and go on where they stopped.
"""

from __future__ import annotations

import importlib
from typing import Any

# name -> module that defines it; loaded on first use, as Keras takes many seconds to import.
_MODULES = {
    "Curvature": "curvature",
    "Direction": "steps",
    "DisplacementTracker": "displacement_tracker",
    "Distance": "distance",
    "Ensembles": "ensemble",
    "Gradients": "gradients",
    "LaggedGradients": "lagged_gradients",
    "Line": "line",
    "Mode": "mode",
    "Modes": "comparison",
    "Plane": "plane",
    "Point": "surface",
    "Probe": "base",
    "ProbeRecord": "record",
    "ProbeRecorder": "probe_recorder",
    "Segments": "basin",
    "Separation": "distance",
    "SideTrip": "side_trip",
    "Sketch": "sketches",
    "Surface": "surface",
    "Width": "width",
    "compare_modes": "comparison",
    "curvature_along_step": "curvature",
    "displacement": "distance",
    "distance_between": "distance",
    "ensemble": "ensemble",
    "filter_axes_of": "directions",
    "gradient_alignment": "gradients",
    "gradients_along": "lagged_gradients",
    "loss_along_rays": "width",
    "loss_along_segment": "basin",
    "loss_along_step": "line",
    "loss_on_plane": "plane",
    "measure": "base",
    "random_direction": "directions",
    "rate_grid": "fits",
    "refined_rates": "line",
    "side_trip": "side_trip",
    "take_batches": "batches",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tf_lrtraj.probes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tf_lrtraj.probes.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
