"""What a user asks of averages, checked before anything is trained."""

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
    """Kernels by name, and configurations in durations, which wait for a `fit`.

    Args:
        averages: name → kernel, or a kernel's configuration.

    Raises:
        ValueError: for an empty set, a name that averages cannot have, or no kernel.
    """
    if not isinstance(averages, Mapping) or not averages:
        allowed = "a non-empty dict of name -> tf_lrtraj.kernels kernel"
        raise values.error("averages", allowed, averages)
    for name in averages:
        check_average_name(name)
        if name == RAW_RUNNING:
            raise ValueError(
                f"an average needs another name: {name!r} is the raw weights with their running "
                "statistics."
            )
    waiting = {name: kernel for name, kernel in averages.items() if has_durations(kernel)}
    kernels = {n: check_kernel(n, kernel) for n, kernel in averages.items() if n not in waiting}
    return kernels, waiting


def has_durations(kernel: Any) -> bool:
    """Whether a kernel's configuration counts updates in epochs or shares of a run.

    Raises:
        ValueError: if the configuration cannot be resolved, whatever the run.

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
    """Returns the kernel of an average; a configuration is made into one."""
    if isinstance(kernel, Mapping):
        return from_config(kernel)
    if not isinstance(kernel, Kernel):
        raise ValueError(
            f"`averages[{name!r}]` must be a kernel such as tf_lrtraj.kernels.Exponential(0.99)"
            f". Received: {kernel!r}"
        )
    return kernel


def check_policies(batch_norm: Any, averages: Collection[str]) -> dict[str, str]:
    """Returns name → batch-norm policy, of one policy for all or of such a dict."""
    if isinstance(batch_norm, str):
        batch_norm = dict.fromkeys(averages, batch_norm)
    if not isinstance(batch_norm, Mapping) or set(batch_norm) != set(averages):
        allowed = f"a policy for each of {sorted(averages)}"
        raise values.error("batch_norm", allowed, batch_norm)
    return {n: check_policy(policy, f"batch_norm[{n!r}]") for n, policy in batch_norm.items()}


def check_save_best(
    save_best: Mapping[str, Any], averages: Mapping[str, Any], validation_data: Any
) -> dict[str, Any]:
    """Checks names and paths of the averages whose best is saved."""
    allowed = f"a dict of paths by names of {sorted(averages)}"
    if not isinstance(save_best, Mapping):
        raise values.error("save_best", allowed, save_best)
    unknown = [name for name in save_best if name not in averages]
    if unknown:
        raise values.error("save_best", allowed, unknown)
    if save_best and validation_data is None:
        raise ValueError("`save_best` needs `validation_data` to tell which is best.")
    return {
        name: check_model_path(path, f"save_best[{name!r}]") for name, path in save_best.items()
    }


def check_monitor(monitor: Any, mode: Any) -> str:
    """Checks the metric that the best goes by, and returns the mode."""
    sound = isinstance(monitor, str) and (mode is None or isinstance(mode, str))
    if not sound or mode not in (("min", "max", None) if monitor == "loss" else ("min", "max")):
        raise ValueError(
            "`mode` must be 'min' or 'max', and is needed where `monitor` is not 'loss'. "
            f"Received: monitor={monitor!r}, mode={mode!r}"
        )
    return mode or "min"


def check_lengths(data: Any, name: str) -> None:
    """Raises ValueError for inputs and targets that are not of one length.

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
    """Returns a function or None, or raises ValueError."""
    if value is not None and not callable(value):
        raise values.error(name, "a function or None", value)
    return value
