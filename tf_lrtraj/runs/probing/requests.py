"""What may be asked of each probe: one table for the command line and for configurations.

>>> check_request("line", {"batches": 4})["batches"]
4
>>> check_request("line", {"batches": 0})
Traceback (most recent call last):
    ...
tf_lrtraj.runs.config_checks.ConfigError: `batches` of the probe 'line' must be an integer of at \
least 1. Received: 0
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from tf_lrtraj.runs.config_checks import is_number
from tf_lrtraj.runs.run_config import ConfigError

# kind → what it measures.
PROBES = {
    "line": "loss of batches along a step, against the rate: training, held-out, elsewhere",
    "curvature": "curvature along a step from measured losses, and by Hessian-vector products",
    "side_trip": "steps on one fixed batch, branching off a point: training, held-out, elsewhere",
    "basin": "losses along the segments between points; heights of barriers; SGD to SWA",
    "gradients": "alignment of batch gradients with each other, the mean, and along the run",
    "distance": "squared displacement against lag, norm, distance to the mean; between two runs",
    "width": "losses along random rays from points",
    "plane": "losses on the plane through three points, with the trajectory projected on it",
    "ensemble": "predictions of several weights: accuracy, and difference against distance",
}
# Probes measured at each of some steps, one after another; the others take several points
# together, or the whole run.
AT_STEPS = ("line", "curvature", "side_trip", "gradients")
WITH_POINTS = ("basin", "width", "plane", "ensemble")


def at_steps(kind: str, options: Mapping[str, Any]) -> bool:
    """Whether a probe is measured at each of some steps, and so also while a run trains."""
    return (kind in AT_STEPS and not options.get("along")) or (
        kind == "width" and not options["points"]
    )


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of one or several probes.

    Attributes:
        default: used where nothing is given.
        allowed: says what is, in words.
        check: whether a value is allowed.
        help: what it means.
        probes: kinds it goes with.
    """

    default: Any
    allowed: str
    check: Callable[[Any], bool]
    help: str
    probes: tuple[str, ...]


def _whole(low: int) -> tuple[str, Callable[[Any], bool]]:
    return (
        f"an integer of at least {low}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low,
    )


def _real(
    low: float, high: float = math.inf, above: bool = False
) -> tuple[str, Callable[[Any], bool]]:
    text = f"a number {'above' if above else 'of at least'} {low:g}"
    if high < math.inf:
        text += f" and below {high:g}"

    def check(value: Any) -> bool:
        return is_number(value) and low <= value < high and (value > low or not above)

    return text, check


def _one_of(*allowed: str) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {list(allowed)}", lambda value: isinstance(value, str) and value in allowed


def _maybe(check: tuple[str, Callable[[Any], bool]]) -> tuple[str, Callable[[Any], bool]]:
    return f"{check[0]}, or None", lambda value: value is None or check[1](value)


_TEXT = ("a text", lambda value: isinstance(value, str) and bool(value))
_TRUTH = ("True or False", lambda value: isinstance(value, bool))
_TEXTS = (
    "a list of texts",
    lambda v: isinstance(v, (list, tuple)) and all(isinstance(t, str) and t for t in v),
)
_ALL = tuple(PROBES)
_LOSSES = tuple(kind for kind in PROBES if kind != "distance")
_HELD_OUT = tuple(kind for kind in _LOSSES if kind not in ("curvature", "gradients"))

OPTIONS: dict[str, Option] = {
    "batches": Option(8, *_whole(1), "training batches to measure on", _LOSSES),
    "batch_size": Option(
        None, *_maybe(_whole(1)), "images in a batch; the run's own by default", _LOSSES
    ),
    "held_out": Option(
        None, *_maybe(_TEXT), "split of held-out batches; the run's own by default", _HELD_OUT
    ),
    "held_out_batches": Option(4, *_whole(1), "held-out batches to measure on", _HELD_OUT),
    "batch_norm": Option(
        "batch",
        *_one_of("batch", "frozen", "recalibrated"),
        "batch norm by each batch's own moments, the point's stored statistics, or "
        "statistics recomputed for every point",
        _LOSSES,
    ),
    "dropout": Option("off", *_one_of("off", "pinned"), "dropout off, or pinned masks", _LOSSES),
    "seed": Option(0, *_whole(0), "of the batches and of random directions", _ALL),
    "direction": Option(
        "gradient",
        *_one_of("gradient", "momentum", "random"),
        "of the step: each batch's gradient, the optimizer's velocity, a random one",
        ("line", "curvature"),
    ),
    "low": Option(1e-2, *_real(0, above=True), "smallest rate but 0", ("line",)),
    "high": Option(1.0, *_real(0, above=True), "largest rate, before extension", ("line",)),
    "num": Option(
        24,
        *_whole(3),
        "rates of a line, or points along a segment, ray or side",
        ("line", "basin", "plane", "width"),
    ),
    "scale": Option("log", *_one_of("log", "linear"), "spacing of the rates", ("line",)),
    "num_steps": Option(9, *_whole(1), "steps of a side trip", ("side_trip", "basin")),
    "learning_rate": Option(
        None,
        *_maybe(_real(0, above=True)),
        "of a side trip; by default what moves as far as the run on a steady gradient, λ/(1 - β)",
        ("side_trip", "basin"),
    ),
    "momentum": Option(0.0, *_real(0, 1), "of a side trip", ("side_trip", "basin")),
    "points": Option(
        (),
        *_TEXTS,
        'steps, shares ("50%"), "first", "last", averages such as swa=Uniform(start=500), or '
        "trip:STEP:BATCH, the end of a side trip (basin)",
        WITH_POINTS,
    ),
    "extend": Option(
        0.0, *_real(0), "length by which a segment goes on beyond both ends, in lengths", ("basin",)
    ),
    "level": Option(
        None,
        *_maybe(_real(0, above=True)),
        "barriers below it count as none; by default 5 % of the mean loss of the ends",
        ("basin",),
    ),
    "margin": Option(0.3, *_real(0), "around the three points, in their extent", ("plane",)),
    "per_layer": Option(False, *_TRUTH, "also layer by layer", ("basin", "gradients")),
    "rays": Option(8, *_whole(2), "random rays", ("width",)),
    "radius": Option(
        None,
        *_maybe(_real(0, above=True)),
        "length of the rays; by default three times the largest "
        "distance between the points, or half the norm of a single one",
        ("width",),
    ),
    "ray_kind": Option(
        "uniform",
        *_one_of("uniform", "filter"),
        "random directions, or filter-normalised",
        ("width",),
    ),
    "along": Option(False, *_TRUTH, "gradients of the same batches along the run", ("gradients",)),
    "first": Option(
        None, *_maybe(_TEXT), "first step of the trajectory", ("distance", "gradients")
    ),
    "last": Option(None, *_maybe(_TEXT), "last step of the trajectory", ("distance", "gradients")),
    "sketch": Option(
        0, *_whole(0), "numbers kept of each iterate; 0 keeps all of it", ("distance",)
    ),
    "other": Option(None, *_maybe(_TEXT), "workdir of a second run", ("distance",)),
}


def options_of(kind: str) -> dict[str, Option]:
    """The options of a probe."""
    return {name: option for name, option in OPTIONS.items() if kind in option.probes}


def check_kind(kind: Any) -> str:
    """Returns the kind of a probe, or raises ConfigError naming those there are."""
    if not isinstance(kind, str) or kind not in PROBES:
        close = difflib.get_close_matches(str(kind), PROBES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"a probe must be one of {list(PROBES)}.{hint} Received: {kind!r}")
    return str(kind)


def check_request(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a probe, those not given at their defaults.

    Raises:
        ConfigError: for unknown options, those of other probes, and values not allowed.
    """
    known = options_of(check_kind(kind))
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            goes = f"; it goes with {list(OPTIONS[name].probes)}" if name in OPTIONS else ""
            raise ConfigError(
                f"`{name}` is not an option of the probe {kind!r}{goes}.{hint} "
                f"Options of {kind!r}: {sorted(known)}"
            )
        if not known[name].check(value):
            raise ConfigError(
                f"`{name}` of the probe {kind!r} must be {known[name].allowed}. Received: {value!r}"
            )
    request = {name: given.get(name, option.default) for name, option in known.items()}
    if "points" in request:
        request["points"] = tuple(request["points"])
    fewest = {"basin": 2, "plane": 3, "ensemble": 2}.get(kind, 0)
    if len(request.get("points", ())) < fewest or (kind == "plane" and len(request["points"]) > 3):
        raise ConfigError(
            f"the probe {kind!r} needs {'exactly' if kind == 'plane' else 'at least'} {fewest} "
            f"points. Received: points={list(request['points'])}"
        )
    if kind == "gradients" and request["batches"] < 3:
        raise ConfigError(
            "`batches` of the probe 'gradients' must be at least 3, which a jackknife needs. "
            f"Received: {request['batches']!r}"
        )
    if kind == "line" and request["low"] >= request["high"]:
        raise ConfigError(
            "`low` must be below `high` for the probe 'line'. "
            f"Received: low={request['low']!r}, high={request['high']!r}"
        )
    return request
