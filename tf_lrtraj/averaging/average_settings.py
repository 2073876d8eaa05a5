"""Checks of the arguments of averages, made before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from tf_lrtraj import values
from tf_lrtraj.averaging.model_files import check_model_path
from tf_lrtraj.backend.batch_norm import check_policy
from tf_lrtraj.durations import resolve_durations
from tf_lrtraj.kernels import Kernel, from_config
from tf_lrtraj.records import check_average_name

# The raw weights as Keras evaluates them, with the running statistics of training.
RAW_RUNNING = "raw_running"

# What to do with an iterate that is not finite.
NON_FINITE = ("skip", "stop", "ignore")


def read_averages(averages: Any) -> tuple[dict[str, Kernel], dict[str, Any]]:
    """Splits averages into kernels and configurations that contain durations.

    Args:
        averages: name → kernel, or a kernel's configuration.

    Returns:
        (name → kernel, name → configuration).  Configurations are resolved once the length of
        a `fit` is known.

    Raises:
        ValueError: if `averages` is empty, a name cannot be used, or a value is not a kernel.
    """
    if not isinstance(averages, Mapping) or not averages:
        allowed = "a non-empty dict of name -> tf_lrtraj.kernels kernel"
        raise values.error("averages", allowed, averages)
    for name in averages:
        check_average_name(name)
        if name == RAW_RUNNING:
            raise ValueError(
                f"an average cannot be named {name!r}: that name stands for the raw weights with "
                "their running statistics."
            )
    waiting = {name: kernel for name, kernel in averages.items() if has_durations(kernel)}
    kernels = {n: check_kernel(n, kernel) for n, kernel in averages.items() if n not in waiting}
    return kernels, waiting


def has_durations(kernel: Any) -> bool:
    """Returns whether a kernel's configuration counts updates in epochs or shares of a run.

    Raises:
        ValueError: if the configuration cannot be resolved for any run.

    >>> has_durations({"kernel": "Uniform", "start": "75 percent"})
    True
    """
    if not isinstance(kernel, Mapping):
        return False
    # Long enough that no duration rounds to 0.
    resolved = resolve_durations(kernel, 10**6, 10**9)
    from_config(resolved)
    return resolved != dict(kernel)


def check_kernel(name: str, kernel: Any) -> Kernel:
    """Returns the kernel of an average, built from its configuration if needed."""
    if isinstance(kernel, Mapping):
        return from_config(kernel)
    if not isinstance(kernel, Kernel):
        raise ValueError(
            f"`averages[{name!r}]` must be a kernel such as tf_lrtraj.kernels.Exponential(0.99)"
            f". Received: {kernel!r}"
        )
    return kernel


def check_policies(batch_norm: Any, averages: Collection[str]) -> dict[str, str]:
    """Returns a dict name → batch-norm policy, given one policy for all or such a dict."""
    if isinstance(batch_norm, str):
        batch_norm = dict.fromkeys(averages, batch_norm)
    if not isinstance(batch_norm, Mapping) or set(batch_norm) != set(averages):
        allowed = f"a policy for each of {sorted(averages)}"
        raise values.error("batch_norm", allowed, batch_norm)
    return {n: check_policy(policy, f"batch_norm[{n!r}]") for n, policy in batch_norm.items()}


def check_save_best(
    save_best: Mapping[str, Any], averages: Mapping[str, Any], validation_data: Any
) -> dict[str, Any]:
    """Checks the names and paths of the averages whose best version is saved."""
    allowed = f"a dict of paths, with keys among {sorted(averages)}"
    if not isinstance(save_best, Mapping):
        raise values.error("save_best", allowed, save_best)
    unknown = [name for name in save_best if name not in averages]
    if unknown:
        raise values.error("save_best", allowed, unknown)
    if save_best and validation_data is None:
        raise ValueError("`save_best` needs `validation_data` to determine which is best.")
    return {
        name: check_model_path(path, f"save_best[{name!r}]") for name, path in save_best.items()
    }


def check_monitor(monitor: Any, mode: Any) -> str:
    """Checks the metric that determines the best average, and returns the mode."""
    sound = isinstance(monitor, str) and (mode is None or isinstance(mode, str))
    if not sound or mode not in (("min", "max", None) if monitor == "loss" else ("min", "max")):
        raise ValueError(
            "`mode` must be 'min' or 'max', and is needed if `monitor` is not 'loss'. "
            f"Received: monitor={monitor!r}, mode={mode!r}"
        )
    return mode or "min"


def check_lengths(data: Any, name: str) -> None:
    """Raises ValueError if inputs and targets differ in length.

    >>> check_lengths(([[0.0], [1.0]], [1]), "validation_data")
    >>> import numpy as np
    >>> check_lengths((np.zeros((2, 1)), np.zeros(3)), "validation_data")
    Traceback (most recent call last):
    ...
    ValueError: `validation_data` must hold as many inputs as targets. Received: lengths [2, 3]
    """
    if not isinstance(data, (tuple, list)):
        return
    shapes = [getattr(part, "shape", None) for part in data]
    lengths = [shape[0] for shape in shapes if isinstance(shape, tuple) and shape]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"`{name}` must hold as many inputs as targets. Received: lengths {lengths}"
        )


def check_function(value: Any, name: str) -> Callable[..., Any] | None:
    """Returns `value` if it is a function or None; raises ValueError otherwise."""
    if value is not None and not callable(value):
        raise values.error(name, "a function or None", value)
    return value
