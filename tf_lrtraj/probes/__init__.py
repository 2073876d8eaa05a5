"""Measurements of mini-batch losses along steps, side trips, segments, rays and planes.

A probe does not change the model.  Its record states how batch norm and dropout were used, and
holds every number with its coordinates.  An interrupted measurement can be resumed.
"""

from __future__ import annotations

import importlib
from typing import Any

from tf_lrtraj.specs import PROBES

# name -> module that defines it; loaded on first use, as Keras takes many seconds to import.
_MODULES = {
    **{spec.class_name: kind for kind, spec in PROBES.items()},
    "Mode": "mode",
    "Point": "surface",
    "PointProbe": "point_sets",
    "Probe": "base",
    "ProbeRecord": "record",
    "ProbeRecorder": "probe_recorder",
    "Sketch": "sketches",
    "StepProbe": "steps",
    "Surface": "surface",
    "filter_axes_of": "directions",
    "measure": "base",
    "random_direction": "directions",
    "rate_grid": "fits",
    "take_batches": "batches",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tf_lrtraj.probes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tf_lrtraj.probes.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
