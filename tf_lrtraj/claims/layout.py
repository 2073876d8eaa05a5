"""The records of each task of a reproduction, and its seeds.

A task that is not named here writes `measured/TASK/seed*.json` for every seed of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Tasks that run once, for any number of seeds.
ONCE = ("two_time_scales", "single_runs", "averaging_length", "cost", "independent")
# Task → entry of the configuration with its number of seeds.
SEEDS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(ONCE, ()),
    **dict.fromkeys(
        (
            *("line", "side_trip", "basin", "gradients", "one_step_lines", "width", "ensemble"),
            *("one_step", "trained", "convexity", "reach", "cooldown_curvature"),
        ),
        ("probe_seeds",),
    ),
    "pairs": ("pairs", "seeds"),
    "speed": ("speed", "seeds"),
    "ema_times": ("speed", "seeds"),
}
# Task that writes probe records → patterns of their names.
PROBES_OF = {
    "line": ("line-*",),
    "side_trip": ("side_trip-*",),
    "basin": ("basin",),
    "convexity": ("convexity",),
    "cooldown_curvature": ("eigenvalues-*",),
    "gradients": ("gradients-*",),
    "one_step_lines": ("one_step-*",),
    "width": ("width", "sgd_to_swa"),
    "ensemble": ("ensemble",),
}


def records_of(task: str) -> tuple[str, ...]:
    """Returns patterns of the files that a task writes in the workdir."""
    probes = PROBES_OF.get(task)
    if probes is None:
        return (f"measured/{task}/seed*.json",)
    return tuple(f"probes/seed*/{pattern}.npz" for pattern in probes)


def seeds_of(task: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the seeds of a task in a configuration.

    >>> seeds_of("base", {"seeds": 3}), seeds_of("cost", {"seeds": 3})
    ((0, 1, 2), (0,))
    """
    path = SEEDS_OF.get(task, ("seeds",))
    if not path:
        return (0,)
    found: Any = config
    for key in path:
        found = found.get(key, {}) if isinstance(found, Mapping) else {}
    if not isinstance(found, int):
        return (0,)
    return tuple(range(max(min(found, config.get("seeds", found)), 0)))
