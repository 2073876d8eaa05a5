"""The averages that --kernel and --schedule of `lrtraj-average` request."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from tf_lrtraj.bin import tables
from tf_lrtraj.runs.run_config import rate_momentum


def requested(options: Any, snapshots: Any, config: dict[str, Any] | None) -> dict[str, Any]:
    """Checks the requested averages before reading; returns name → `SnapshotWeights`."""
    from tf_lrtraj.averaging.post_hoc import snapshot_weights
    from tf_lrtraj.runs import kernel_parsing

    last = int(snapshots.steps[-1]) if options.last is None else options.last
    found: dict[str, Any] = {}

    def add(name: str, target: Any, per: str) -> None:
        if name in found:
            raise ValueError(
                f"two averages are named {name!r}: give one of them another name with NAME=KERNEL"
            )
        try:
            found[name] = snapshot_weights(snapshots.steps, target, last, per=per)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    for text in options.kernel:
        name, kernel = kernel_parsing.parse_average(text)
        if options.per == "update":
            tables.check_reach(kernel, last)
        add(name, kernel, options.per)
    for text in options.schedule:
        name, target = _emulated(text, last, options, config)
        add(name, target, "update")
    return found


def _emulated(text: str, last: int, options: Any, config: dict[str, Any] | None) -> tuple[str, Any]:
    """Returns (name, [T+1] weights) of one --schedule."""
    from tf_lrtraj import rates, records, theory

    momentum = options.momentum
    if options.base is not None:
        base = tables.parse_rates(options.base, last, peak=0.1, decay=None)
    elif config is not None:
        base = records.read_schedule(pathlib.Path(options.workdir) / records.SCHEDULE)[:last]
        if base.size < last:
            raise ValueError(f"the run's schedule has {base.size} rates, fewer than --last={last}")
    else:
        raise ValueError("--schedule needs the rates of the run: --base=0.1, or --base=FILE.csv")
    if momentum is None:
        momentum = 0.0 if config is None else rate_momentum(config)
    if text.lstrip().startswith("{"):
        try:
            schedule = rates.as_array(rates.from_config(json.loads(text)), last)
        except ValueError as error:
            raise ValueError(f"--schedule: {error}") from None
        name = "schedule-" + str(json.loads(text)["rate"])
    else:
        shape, _, steps = text.partition(":")
        if steps and not (steps.isascii() and steps.isdigit()):
            raise ValueError(
                f"--schedule must be JSON, or like linear:200 with up to {last} updates. "
                f"Received: {text!r}"
            )
        try:
            schedule = tables.decayed_rates(shape, base, int(steps) if steps else None)
        except ValueError as error:
            raise ValueError(f"--schedule={text}: {error}") from None
        name = text.replace(":", "-")
    weights = theory.weights_from_schedule(schedule, base, options.curvature, momentum)
    return name, weights
