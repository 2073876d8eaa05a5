"""Makes the package's classes known to Keras once both are imported, whichever comes first.

A saved model names the class of its learning-rate schedule as `"tf_lrtraj>RateSchedule"`, and
Keras looks the name up among registered classes.  Importing `tf_lrtraj` imports neither Keras nor
the modules that hold the classes, so what is registered is a stand-in that imports them when a
file asks for one.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from typing import Any

__all__ = ["register_with_keras"]

# registered name -> (module, class)
CLASSES = {
    f"tf_lrtraj>{name}": (module, name)
    for name, module in {
        "AveragedOptimizer": "tf_lrtraj.averaging.averaged_optimizer",
        "EquivalentSchedule": "tf_lrtraj.schedules",
        "RateSchedule": "tf_lrtraj.schedules",
    }.items()
}


class _StandIn:
    """Has what Keras asks of a registered class when it loads a file."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name
        self.__name__ = name

    def from_config(self, config: dict[str, Any]) -> Any:
        # Importing the module registers the class itself.
        return getattr(importlib.import_module(self._module), self._name).from_config(config)


class _WhenKerasIsImported(importlib.abc.MetaPathFinder):
    """Finds Keras as others would, and registers when it has been imported."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "keras" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)  # not installed; it may be later
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _register(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_with_keras() -> None:
    """Registers at once if Keras is imported, otherwise as soon as it is."""
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "saving"):
        _register(keras)
    elif not any(isinstance(finder, _WhenKerasIsImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenKerasIsImported())


def _register(keras: Any) -> None:
    registered = keras.saving.get_custom_objects()
    for name, place in CLASSES.items():
        registered.setdefault(name, _StandIn(*place))
