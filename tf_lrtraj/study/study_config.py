"""The configuration of a reproduction: its defaults, what each entry means, what is allowed.

>>> config = default_config()
>>> config.momentum = 1.5
>>> validate(config)
Traceback (most recent call last):
    ...
tf_lrtraj.runs.config_checks.ConfigError: `config.momentum` must be a number in [0, 1). \
Received: 1.5
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from tf_lrtraj import claims, kernels, records
from tf_lrtraj.claims import power
from tf_lrtraj.runs.old_checks import (
    TEXT,
    TRUTH,
    Check,
    ConfigError,
    as_dict,
    check_all,
    integer,
    is_integer,
    is_number,
    merge,
    number,
    one_of,
    optional,
)
from tf_lrtraj.study.probe_settings import PROBE_CHECKS, PROBE_DEFAULTS

__all__ = ["default_config", "full_size_config", "lead", "validate"]

STEMS = ("cifar", "imagenet")
_FREE = ("averages",)  # their keys are checked by the kernels they describe


def default_config() -> ml_collections.ConfigDict:
    """What every `configs/reproduce_*.py` starts from: the scale `digits`.

    Lengths are numbers of updates.  The base run has a constant rate: `burn_in` updates,
    then a window in which it should be stationary.
    """
    return ml_collections.ConfigDict(
        {
            "name": "digits",  # of the scale
            "command": "lrtraj-reproduce --config=configs/reproduce_digits.py",  # shown on the page
            "runs_here": True,  # False: a scale that is described and was not run
            "claims": (),  # ids of those that the scale is there for; (): all
            "judged": False,  # whether there are verdicts; a smoke test has numbers only
            # What can be decided, told before the run: claim, part, expected value, scatter of
            # a unit in the pilot, count of units; see tf_lrtraj.claims.power.
            "power": (),
            "pilot": config_dict.placeholder(str),  # the run that the scatter comes from
            "data": {
                "name": "digits",  # "digits" (embedded) or a TensorFlow Datasets name
                "dir": config_dict.placeholder(str),  # where TFDS data lies; None: its default
                "download": False,  # let TFDS download and prepare what is missing
                "image_size": config_dict.placeholder(int),  # None: as stored
                "augmentation": "none",  # none, crop_flip, random_resized_crop (streamed)
                # Of a set too large for memory, which is streamed in training: images of it, both
                # training and test, that are held for scores and probes.
                "held_images": 5000,
                # An .npz file with x_train, y_train, x_test, y_test instead, ready to train on:
                # for machines without TensorFlow.
                "file": config_dict.placeholder(str),
            },
            "model": {"depth": 8, "width": 8, "stem": "cifar"},
            "seeds": 2,  # initial weights and data order
            "batch_size": 16,
            "learning_rate": 0.1,
            "momentum": 0.9,
            "weight_decay": 1e-2,  # L2 on all trainable weights
            "burn_in": 1200,
            "window": 400,
            "every": 10,  # updates between snapshots in the window
            "segment": 500,  # updates between saved states: what an interruption may cost
            "log_every": 20,
            # The last `horizon` updates of the window: every iterate is kept, the averages
            # below cover them, and schedules act there.
            "horizon": 200,
            "horizon_every": 1,  # keep only every so many of them; emulations then interpolate
            # Horizons, evenly over the window: the last ends with it.  Averages and schedules are
            # compared at each, of which a seed's mean is taken.
            "places": 1,
            "raw_iterates": 3,  # of each horizon, whose mean loss is the level without averaging
            # Of the last horizon: places along it where averages are compared with the runs under
            # their two equivalent schedules, and the names of these averages; (): all.
            "along": {"places": 4, "averages": ()},
            "averages": {
                "ema": {"kernel": "Exponential", "decay": 0.97},
                "swa": {"kernel": "Uniform"},
                "two_point": {"kernel": "TwoPoint", "gap": 150},
            },
            "evaluate": {
                "batch_size": 500,
                "part": 1000,  # training images of the set "train_part"
                "batch_norm_images": 1000,  # training images that batch norm is recomputed on
                "levels": 9,  # single iterates of the window, evaluated on all images
            },
            # Averages of n points `gap` updates apart, ending at `ends` places of the window.
            "many_points": {"points": (2, 4, 8), "gaps": (10, 20, 50), "ends": 3},
            # Test against training loss of averages, low rates and decays: of the runs from this
            # window ("window"), or of those on equal budgets ("budget"); and places on each decay.
            "trade_off": {"of": "window", "places": 3},
            "late_iterates": 6,  # of runs at other rates, evaluated over their last quarter
            # Runs at other constant rates, times the base rate.  Those of 1/n for n in
            # many_points.points are made as well.
            "rates": (0.5, 0.25, 0.125),
            # Losses predicted from `singles` iterates and `pairs` pairs at each of `lags`
            # distances, and measured for about `verify` averages.
            "sweep": {"singles": 16, "lags": 6, "pairs": 4, "verify": 24},
            # SWA, FGE and a conventional run, each of `steps` updates from scratch.
            "budget": {
                "steps": config_dict.placeholder(int),  # None: burn_in + window
                # From so much of the budget on models are collected, rounded to whole cycles.
                "swa_start": 0.75,
                "swa_rate": 0.5,  # SWA's constant rate and the highest of a cycle, times the rate
                "low": 0.01,  # at the end of a cycle, times the rate
                # Updates between models that SWA at constant rate collects; None: an epoch.
                "every": config_dict.placeholder(int),
                "cycle": 1,  # length of a cycle, times `every`
            },
            # Time and memory of an average: beside the scale's network, on one of this size.
            "cost": {"depth": 8, "width": 16, "repeats": 5, "steps": 4},
            # Two runs from the burn-in's end, at the base rate and at `factor` times it: on
            # independent batches for `steps`, and on shared ones from half-way on.
            "pairs": {"seeds": 2, "factor": 0.125, "steps": 160},
            # From scratch: iterates and averages at the rate, against `factor` times the rate.
            "speed": {"seeds": 2, "steps": 400, "places": 8, "factor": 0.125},
            # Steps of the base run, and of a second one on independent batches, at which
            # gradients of `batches` batches and the distance of the two are measured.
            "start": {"steps": (0, 1, 3, 10, 30, 100), "batches": 6},
            # EMAs of the early iterates of `speed` and of the window's, by their time.
            "ema_times": {"decades": 3, "per_decade": 4},
            "probe_seeds": 2,  # of probes that take a point apart, and of the run without momentum
            **copy.deepcopy(PROBE_DEFAULTS),
        }
    )


def full_size_config() -> ml_collections.ConfigDict:
    """ResNet-34 on 32×32 images, the size of the papers' CIFAR figures; for an accelerator."""
    config = default_config()
    config.runs_here = False
    config.judged = True
    config.seeds = config.probe_seeds = config.pairs.seeds = config.speed.seeds = 3
    config.model.depth = 34
    config.model.width = 64
    config.batch_size = 128
    config.learning_rate = 0.1
    config.weight_decay = 5e-4
    config.burn_in = 30000  # 77 epochs
    config.window = 10000
    config.every = 100
    config.segment = 2000
    config.log_every = 100
    config.horizon = 2000
    config.horizon_every = 10
    config.places = 2
    config.raw_iterates = 10
    config.along.update(places=10, averages=("ema", "swa"))
    config.trade_off.places = 5
    config.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.998},
        "swa": {"kernel": "Uniform"},
        "two_point": {"kernel": "TwoPoint", "gap": 1500},
    }
    config.evaluate.part = 10000
    config.evaluate.batch_norm_images = 10000
    config.budget.cycle = 2
    config.cost.update(depth=34, width=64, repeats=7, steps=20)
    config.many_points.gaps = (100, 300, 700)
    config.many_points.ends = 20
    config.late_iterates = 20
    config.sweep.update(singles=24, pairs=34)  # 204 pairs
    config.pairs.steps = 1600  # 4 epochs
    config.speed.steps = 6000
    config.probes.update(batches=32, held_out=8, low=0.02, gradients=32)
    config.convexity.update(distances=4, pairs=4, batches=8)
    config.reach.update(steps=4000, sizes=(8, 32, 128, 512), images=512)
    config.start.steps = (0, 1, 3, 10, 30, 100, 300)
    config.shell.steps = 30
    config.one_step.iterates = 16
    config.width.update(images=5000, size=500)
    config.ensemble.update(images=5000, size=500)
    return config


_POSITIVE: Check = ("a positive number", lambda value: is_number(value) and value > 0)
_COUNTS: Check = (
    "different integers of at least 2, ascending",
    lambda value: _ascending(value) and all(is_integer(v) and v >= 2 for v in value),
)
_GAPS: Check = (
    "different positive integers, ascending",
    lambda value: _ascending(value) and all(is_integer(v) and v >= 1 for v in value),
)
_STARTS: Check = (
    "0 and other integers, ascending",
    lambda value: (
        _ascending(value) and len(value) > 2 and value[0] == 0 and all(map(is_integer, value))
    ),
)
_RATES: Check = (
    "a list of positive numbers",
    lambda value: isinstance(value, (list, tuple)) and all(is_number(v) and v > 0 for v in value),
)


def _ascending(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and list(value) == sorted(set(value))


_LIST: Check = ("a list", lambda value: isinstance(value, (list, tuple)))

_CHECKS: dict[str, Check] = {
    "name": TEXT,
    "command": TEXT,
    "runs_here": TRUTH,
    "claims": _LIST,
    "judged": TRUTH,
    "power": _LIST,
    "pilot": optional(TEXT),
    "data.name": TEXT,
    "data.dir": optional(TEXT),
    "data.file": optional(TEXT),
    "data.download": TRUTH,
    "data.image_size": optional(integer(4)),
    "data.augmentation": one_of(("none", "crop_flip", "random_resized_crop")),
    "data.held_images": integer(1),
    "model.depth": integer(8),
    "model.width": integer(1),
    "model.stem": one_of(STEMS),
    "seeds": integer(1),
    "batch_size": integer(2),
    "learning_rate": _POSITIVE,
    "momentum": number(0, 1),
    "weight_decay": number(0),
    "burn_in": integer(2),
    "window": integer(16),
    "every": integer(1),
    "segment": integer(1),
    "log_every": integer(1),
    "horizon": integer(8),
    "horizon_every": integer(1),
    "places": integer(1),
    "raw_iterates": integer(1),
    "along.places": integer(1),
    "trade_off.of": one_of(("window", "budget")),
    "trade_off.places": integer(2),
    "evaluate.batch_size": integer(1),
    "evaluate.part": integer(1),
    "evaluate.batch_norm_images": integer(2),
    "evaluate.levels": integer(3),
    "many_points.points": _COUNTS,
    "many_points.gaps": _GAPS,
    "many_points.ends": integer(1),
    "late_iterates": integer(3),
    "rates": _RATES,
    "sweep.singles": integer(4),
    "sweep.lags": integer(2),
    "sweep.pairs": integer(1),
    "sweep.verify": integer(1),
    "pairs.seeds": integer(0),
    "pairs.factor": _POSITIVE,
    "budget.steps": optional(integer(16)),
    "budget.swa_start": number(0, 1),
    "budget.swa_rate": _POSITIVE,
    "budget.low": number(0, 1),
    "budget.every": optional(integer(1)),
    "budget.cycle": integer(1),
    "cost.depth": integer(8),
    "cost.width": integer(1),
    "cost.repeats": integer(3),
    "cost.steps": integer(1),
    "pairs.steps": integer(4),
    "speed.seeds": integer(0),
    "speed.steps": integer(12),
    "speed.places": integer(1),
    "speed.factor": _POSITIVE,
    "start.steps": _STARTS,
    "start.batches": integer(2),
    "ema_times.decades": integer(1),
    "ema_times.per_decade": integer(1),
    "probe_seeds": integer(0),
    **PROBE_CHECKS,
}


def validate(config: Mapping[str, Any] | ml_collections.ConfigDict) -> dict[str, Any]:
    """Checks a configuration and returns it as plain nested dicts, defaults filled in.

    Raises:
        ConfigError: naming the key, the value received and what is allowed.
    """
    plain = merge(default_config().to_dict(), as_dict(config), free=_FREE)
    check_all(plain, _CHECKS)
    try:
        claims.chosen(plain["claims"])
        power.planned(plain["power"])
    except (ValueError, TypeError) as error:
        raise ConfigError(f"config: {error}") from None
    for name, entry in plain["averages"].items():
        try:
            records.check_average_name(name)
            kernels.from_config(entry).weights(plain["horizon"])
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"config.averages.{name}: {error}") from None
    _check_lengths(plain)
    return plain


def lead(momentum: float) -> int:
    """How many updates before an average's first iterate its equivalent schedule begins to differ.

    By powers of the momentum: beyond these, by less than 1e-7.

    >>> lead(0.0), lead(0.9)
    (0, 153)
    """
    return math.ceil(math.log(1e-7) / math.log(momentum)) if momentum else 0


def _check_lengths(plain: Mapping[str, Any]) -> None:
    window, every, burn_in = plain["window"], plain["every"], plain["burn_in"]

    def need(key: str, value: Any, fits: bool, allowed: str) -> None:
        if not fits:
            raise ConfigError(f"`config.{key}` must be {allowed}. Received: {value!r}")

    horizon = plain["horizon"]
    need("horizon", horizon, horizon <= window, f"at most config.window, {window}")
    need("every", every, window % every == 0, f"a divisor of config.window, {window}")
    count = window // every + 1
    need("every", every, count >= 8, f"so small that the window, {window}, holds 8 snapshots")
    early = lead(plain["momentum"])
    need(
        "burn_in",
        burn_in,
        burn_in + window - horizon - early > 0,
        f"long enough that runs can fork {early} updates before the horizon, with this momentum",
    )
    kept = plain["horizon_every"]
    need("horizon_every", kept, horizon % kept == 0, f"a divisor of config.horizon, {horizon}")
    stretch, places = horizon + -(-early // kept) * kept, plain["places"]
    need(
        "places",
        places,
        places == 1 or stretch <= window // places,
        f"so few that stretches of {stretch} updates do not overlap in the window, {window}",
    )
    along = plain["along"]
    need(
        "along.averages",
        along["averages"],
        set(along["averages"]) <= set(plain["averages"]),
        f"among the names of config.averages, {sorted(plain['averages'])}",
    )
    need(
        "along.places",
        along["places"],
        along["places"] * kept <= horizon,
        f"at most the number of iterates kept of the horizon, {horizon // kept}",
    )
    many = plain["many_points"]
    usable = [gap for gap in many["gaps"] if gap % every == 0]
    need(
        "many_points.gaps", many["gaps"], bool(usable), f"with a multiple of config.every, {every}"
    )
    longest = (max(many["points"]) - 1) * max(usable)
    need(
        "many_points.gaps",
        many["gaps"],
        longest <= window,
        f"so short that {max(many['points'])} points fit into config.window, {window}",
    )
    width = plain["width"]
    need("width.high", width["high"], width["high"] > width["low"], "above config.width.low")
    budget = plain["budget"]
    low, high = budget["low"], budget["swa_rate"]
    need("budget.low", low, low < high, f"below config.budget.swa_rate, {high}")
    reach = plain["reach"]
    need(
        "reach.steps", reach["steps"], reach["steps"] <= burn_in, f"at most {burn_in}, the burn-in"
    )
    need(
        "reach.divisor",
        reach["divisor"],
        reach["divisor"] <= plain["model"]["width"],
        "at most config.model.width",
    )
    room = (window - longest) // every + 1
    need(
        "many_points.ends",
        many["ends"],
        many["ends"] <= room,
        f"at most {room}, the places of the window where the longest average can end",
    )
    steps = plain["speed"]["steps"]
    need("speed.steps", steps, steps <= burn_in, f"at most config.burn_in, {burn_in}")
    steps = max(plain["start"]["steps"])
    need("start.steps", plain["start"]["steps"], steps <= burn_in, f"at most burn_in, {burn_in}")
    steps = plain["pairs"]["steps"]
    need(
        "pairs.steps",
        steps,
        steps <= window and steps % (2 * every) == 0,
        f"a multiple of twice config.every, {every}, and at most config.window, {window}",
    )
    rates = [1.0 / points for points in many["points"]]
    factor = plain["pairs"]["factor"]
    need(
        "pairs.factor", factor, factor != 1.0, f"another than 1; {rates} need no runs of their own"
    )
