"""The configuration of a study: its entries and their checks.

>>> config = default_config()
>>> config.momentum = 1.5
>>> validate(config)
Traceback (most recent call last):
    ...
tf_lrtraj.runs.config_checks.ConfigError: `config.momentum` must be a number of at least 0 and \
below 1. Received: config.momentum=1.5
"""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from tf_lrtraj import claims, kernels, records
from tf_lrtraj.claims import power
from tf_lrtraj.runs.config_checks import (
    GROUP,
    WEIGHT_DECAY_ON,
    ConfigError,
    Entry,
    Schema,
    count,
    refusal,
)
from tf_lrtraj.study.probe_settings import PROBE_ENTRIES, ascending
from tf_lrtraj.values import Rule, boolean, number, one_of, sequence_of, text

__all__ = [
    "SCHEMA",
    "accelerator_config",
    "cifar_config",
    "default_config",
    "full_size_config",
    "lead",
    "validate",
]

AUGMENTATIONS = ("none", "crop_flip", "random_resized_crop")
STEMS = ("cifar", "imagenet")


def _starts(value: Any) -> tuple[int, ...]:
    found: tuple[int, ...] = ascending(count(0), "").read(value)
    if len(found) < 3 or found[0]:
        raise ValueError
    return found


_POSITIVE = number(above=0)
_LIST = sequence_of(Rule("anything", lambda value: value), "a list")

# Lengths are numbers of updates.  The base run has a constant rate: `burn_in` updates, then a
# window in which it should be stationary.  The defaults are the scale `digits`.
_ENTRIES = {
    "name": Entry("digits", text(), "name of the scale"),
    "command": Entry(
        "lrtraj-reproduce --config=configs/reproduce_digits.py", text(), "command shown on the page"
    ),
    "runs_here": Entry(True, boolean(), "whether the scale was run; False: only described"),
    "claims": Entry((), _LIST, "ids of the claims that the scale is meant for; (): all"),
    "judged": Entry(False, boolean(), "whether claims get verdicts; a smoke test has numbers only"),
    "power": Entry(
        (),
        _LIST,
        "what the run can decide: rows of claim, part, expected value, standard deviation of a "
        "unit in the pilot run, and number of units; see tf_lrtraj.claims.power",
    ),
    "pilot": Entry(
        None, text().or_none(), "pilot run from which the standard deviations come", str
    ),
    "data.name": Entry(
        "digits", text(), "data set: 'digits' (embedded) or a name of TensorFlow Datasets (TFDS)"
    ),
    "data.dir": Entry(
        None, text().or_none(), "folder of the TFDS data; None: TFDS' default folder", str
    ),
    "data.download": Entry(
        False, boolean(), "whether TFDS may download and prepare a missing data set"
    ),
    "data.image_size": Entry(
        None, count(4).or_none(), "side of the images in pixels; None: as stored", int
    ),
    "data.augmentation": Entry(
        "none",
        one_of(AUGMENTATIONS),
        "augmentation of training images; streamed sets need random_resized_crop",
    ),
    "data.held_images": Entry(
        5000,
        count(1),
        "training and test images of a streamed set that are kept in memory for evaluations and "
        "probes",
    ),
    "data.file": Entry(
        None,
        text().or_none(),
        ".npz file with x_train, y_train, x_test and y_test, normalised; replaces data.name and "
        "does not need TensorFlow",
        str,
    ),
    "model.depth": Entry(8, count(8), "depth of the ResNet: 18, 34, 50, or 6n+2 such as 8, 14, 20"),
    "model.width": Entry(8, count(1), "channels of the first stage of the ResNet"),
    "model.stem": Entry(
        "cifar", one_of(STEMS), "first layers of the ResNet, for small or for large images"
    ),
    "seeds": Entry(
        2, count(1), "number of seeds; a seed determines initial weights and data order"
    ),
    "batch_size": Entry(16, count(2), "images per step"),
    "learning_rate": Entry(0.1, _POSITIVE, "constant learning rate of the base run"),
    "momentum": Entry(0.9, number(0, below=1), "momentum of SGD"),
    "weight_decay": Entry(
        1e-2, number(0), "L2 weight decay: this number times a weight is added to its gradient"
    ),
    "weight_decay_on": Entry(
        "all",
        one_of(WEIGHT_DECAY_ON),
        "weights on which weight decay acts: kernels, or all trainable weights",
    ),
    "burn_in": Entry(1200, count(2), "updates of the base run before the window"),
    "window": Entry(
        400, count(16), "updates of the window, in which the base run should be stationary"
    ),
    "every": Entry(10, count(1), "updates between snapshots in the window"),
    "segment": Entry(
        500, count(1), "updates between saved states; an interruption costs at most as many"
    ),
    "log_every": Entry(20, count(1), "updates over which a logged batch loss is averaged"),
    "horizon": Entry(
        200,
        count(8),
        "updates at the end of the window over which averages are built and schedules decay",
    ),
    "horizon_every": Entry(
        1,
        count(1),
        "updates between the iterates of a horizon that are kept; emulations interpolate",
    ),
    "places": Entry(
        1,
        count(1),
        "number of horizons, evenly spaced over the window, the last at its end; comparisons of "
        "averages and schedules are averaged over them for each seed",
    ),
    "raw_iterates": Entry(
        3, count(1), "iterates of each horizon whose mean loss is the level without averaging"
    ),
    "along.places": Entry(
        4,
        count(1),
        "steps of the last horizon at which averages are compared with the runs under their two "
        "equivalent schedules",
    ),
    "along.averages": Entry(
        (), sequence_of(text(), "a list of names"), "averages compared there; (): all"
    ),
    "averages": Entry(
        {
            "ema": {"kernel": "Exponential", "decay": 0.97},
            "swa": {"kernel": "Uniform"},
            "two_point": {"kernel": "TwoPoint", "gap": 150},
        },
        GROUP,
        "name -> kernel of tf_lrtraj.kernels, whose lengths are updates of a horizon",
    ),
    "evaluate.batch_size": Entry(500, count(1), "images per batch of an evaluation"),
    "evaluate.part": Entry(1000, count(1), "number of training images in the set 'train_part'"),
    "evaluate.batch_norm_images": Entry(
        1000, count(2), "training images on which batch norm is recomputed"
    ),
    "evaluate.levels": Entry(
        9, count(3), "single iterates of the window that are evaluated on all images"
    ),
    "many_points.points": Entry(
        (2, 4, 8),
        ascending(count(2), "different integers of at least 2, ascending"),
        "numbers n of iterates in averages of n distant points",
    ),
    "many_points.gaps": Entry(
        (10, 20, 50),
        ascending(count(1), "different positive integers, ascending"),
        "updates between these points, for each gap",
    ),
    "many_points.ends": Entry(3, count(1), "steps of the window at which these averages end"),
    "trade_off.of": Entry(
        "window",
        one_of(("window", "budget")),
        "runs whose test and training losses are compared (averages, low rates, decays): those "
        "from the window, or those with equal budgets",
    ),
    "trade_off.places": Entry(3, count(2), "steps of each decay at which it is evaluated"),
    "late_iterates": Entry(
        6, count(3), "iterates of runs at other rates that are evaluated, over their last quarter"
    ),
    "rates": Entry(
        (0.5, 0.25, 0.125),
        sequence_of(_POSITIVE, "a list of positive numbers"),
        "other constant rates of runs, as multiples of learning_rate; runs at 1/n for n in "
        "many_points.points are added",
    ),
    "sweep.singles": Entry(
        16, count(4), "iterates from whose losses the losses of averages are predicted"
    ),
    "sweep.lags": Entry(6, count(2), "lags at which pairs of iterates are measured"),
    "sweep.pairs": Entry(4, count(1), "pairs at each of these lags"),
    "sweep.verify": Entry(
        24, count(1), "approximate number of averages measured to test the prediction"
    ),
    "budget.steps": Entry(
        None,
        count(16).or_none(),
        "updates of SWA, of FGE and of a conventional run, each from scratch; None: burn_in "
        "+ window",
        int,
    ),
    "budget.swa_start": Entry(
        0.75,
        number(0, below=1),
        "share of the budget after which models are collected, rounded to whole cycles",
    ),
    "budget.swa_rate": Entry(
        0.5,
        _POSITIVE,
        "SWA's constant rate and the highest rate of a cycle, as a multiple of learning_rate",
    ),
    "budget.low": Entry(
        0.01, number(0, below=1), "rate at the end of a cycle, as a multiple of learning_rate"
    ),
    "budget.every": Entry(
        None,
        count(1).or_none(),
        "updates between the models that SWA at a constant rate collects; None: an epoch",
        int,
    ),
    "budget.cycle": Entry(1, count(1), "length of a cycle, as a multiple of budget.every"),
    "cooldown.rates": Entry(
        (1.0, 0.5),
        sequence_of(_POSITIVE, "a list of positive numbers", 1),
        "constant rates from which linear cooldowns are compared with averages, as multiples of "
        "learning_rate; the first one's runs are followed",
    ),
    "cooldown.lengths": Entry(
        (10, 20, 40),
        ascending(count(2), "different integers of at least 2, ascending"),
        "updates of these cooldowns, and of the averages",
    ),
    "cooldown.settle": Entry(40, count(1), "updates at each rate before the first comparison"),
    "cooldown.places": Entry(1, count(1), "comparisons of each length along a run"),
    "cooldown.track": Entry(
        10, count(2), "updates of the short averages that are scored along the longest cooldown"
    ),
    "cooldown.after": Entry(
        40, count(2), "updates at the full rate after it, from the average and from its end"
    ),
    "cooldown.iterations": Entry(
        12, count(2), "Lanczos iterations for the largest eigenvalues of the Hessian"
    ),
    "cooldown.batches": Entry(2, count(1), "training batches of that Hessian"),
    "cost.depth": Entry(
        8, count(8), "depth of a second network on which the cost of averages is measured"
    ),
    "cost.width": Entry(16, count(1), "width of that network"),
    "cost.repeats": Entry(5, count(3), "repeats of that measurement"),
    "cost.steps": Entry(4, count(1), "training steps per repeat"),
    "pairs.seeds": Entry(
        2,
        count(0),
        "seeds with two more runs from the end of the burn-in, at the base rate and at another: "
        "on independent batches, and on shared batches in their second half",
    ),
    "pairs.factor": Entry(0.125, _POSITIVE, "the other rate, as a multiple of learning_rate"),
    "pairs.steps": Entry(160, count(4), "updates of these runs"),
    "speed.seeds": Entry(
        2,
        count(0),
        "seeds for which the first steps at learning_rate and at a smaller rate are compared",
    ),
    "speed.steps": Entry(400, count(12), "updates of these runs"),
    "speed.places": Entry(8, count(1), "steps at which their losses are compared"),
    "speed.factor": Entry(0.125, _POSITIVE, "the smaller rate, as a multiple of learning_rate"),
    "start.steps": Entry(
        (0, 1, 3, 10, 30, 100),
        Rule("0 and two or more other integers, ascending", _starts),
        "steps at which the gradients of the base run, and its distance from a run on "
        "independent batches, are measured",
    ),
    "start.batches": Entry(6, count(2), "batches whose gradients are measured there"),
    "ema_times.decades": Entry(3, count(1), "decades covered by the time constants of EMAs"),
    "ema_times.per_decade": Entry(4, count(1), "time constants per decade"),
    "probe_seeds": Entry(
        2,
        count(0),
        "seeds for which the more expensive probes and the run without momentum are measured",
    ),
    **PROBE_ENTRIES,
}
SCHEMA = Schema(_ENTRIES)


def default_config(name: str = "digits") -> ml_collections.ConfigDict:
    """Returns the configuration that every `configs/reproduce_*.py` changes: the scale `digits`.

    Args:
        name: the name of the scale, whose file is `configs/reproduce_NAME.py`.
    """
    config = SCHEMA.defaults()
    config.name = name
    config.command = f"lrtraj-reproduce --config=configs/reproduce_{name}.py"
    return config


def cifar_config(name: str, power_table: str | os.PathLike[str]) -> ml_collections.ConfigDict:
    """Returns a scale for two CPU cores: CIFAR at 24×24 pixels, cropped and flipped, width 16.

    Args:
        name: the name of the scale.
        power_table: the JSON file with `config.power`.
    """
    config = default_config(name)
    config.judged = True
    config.power = json.loads(pathlib.Path(power_table).read_text())
    config.data.update(image_size=24, augmentation="crop_flip")
    config.model.width = 16
    config.batch_size = 128
    config.weight_decay = 5e-4
    config.segment = 390
    config.log_every = 39
    return config


def accelerator_config(name: str) -> ml_collections.ConfigDict:
    """Returns a scale with ResNet-34 of width 64, for accelerators; such scales were never run."""
    config = default_config(name)
    config.runs_here = False
    config.judged = True
    config.seeds = config.probe_seeds = config.pairs.seeds = config.speed.seeds = 3
    config.model.update(depth=34, width=64)
    config.places = 2
    config.raw_iterates = 10
    config.along.update(places=10, averages=("ema", "swa"))
    config.many_points.ends = 20
    config.late_iterates = 20
    config.sweep.update(singles=24, pairs=34)  # 204 pairs
    config.budget.cycle = 2
    config.cost.update(depth=34, width=64, repeats=7, steps=20)
    config.probes.batches = 32
    return config


def full_size_config(name: str) -> ml_collections.ConfigDict:
    """Returns a scale with ResNet-34 on cropped and flipped 32×32 images, as in the papers."""
    config = accelerator_config(name)
    config.data.augmentation = "crop_flip"
    config.batch_size = 128
    config.weight_decay = 5e-4
    config.burn_in = 30000  # 77 epochs
    config.window = 10000
    config.every = 100
    config.segment = 2000
    config.log_every = 100
    config.horizon = 2000
    config.horizon_every = 10
    config.trade_off.places = 5
    config.averages.ema.decay = 0.998
    config.averages.two_point.gap = 1500
    config.evaluate.update(part=10000, batch_norm_images=10000)
    config.many_points.gaps = (100, 300, 700)
    config.pairs.steps = 1600  # 4 epochs
    config.speed.steps = 6000
    config.probes.update(held_out=8, low=0.02, gradients=32)
    config.convexity.update(distances=4, pairs=4, batches=8)
    config.reach.update(steps=4000, sizes=(8, 32, 128, 512), images=512)
    config.start.steps = (0, 1, 3, 10, 30, 100, 300)
    config.shell.steps = 30
    config.cooldown = {
        "rates": (1.0, 0.5, 0.25),
        "lengths": (50, 100, 200, 500, 1000, 2000),
        "settle": 2000,
        "places": 2,
        "track": 100,
        "after": 2000,
        "iterations": 30,
        "batches": 16,
    }
    config.one_step.iterates = 16
    config.width.update(images=5000, size=500)
    config.ensemble.update(images=5000, size=500)
    return config


def validate(config: Mapping[str, Any] | ml_collections.ConfigDict) -> dict[str, Any]:
    """Checks a configuration and returns it as nested dicts, with defaults for missing entries.

    Raises:
        ConfigError: for an unknown key or a value that is not allowed.
    """
    plain = SCHEMA.read(config)
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
    for key, fits, allowed in _conditions(plain):
        if not fits:
            value = functools.reduce(lambda group, part: group[part], key.split("."), plain)
            raise refusal(key, allowed, value)
    return plain


def lead(momentum: float) -> int:
    """Returns how many updates before an average's first iterate its schedule begins to differ.

    Earlier, the difference is below 1e-7, as it decays with powers of the momentum.

    >>> lead(0.0), lead(0.9)
    (0, 153)
    """
    return math.ceil(math.log(1e-7) / math.log(momentum)) if momentum else 0


def _conditions(plain: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """Yields (key, whether its value fits, allowed values); later ones rely on earlier ones."""
    window, every, burn_in = plain["window"], plain["every"], plain["burn_in"]
    horizon, kept, early = plain["horizon"], plain["horizon_every"], lead(plain["momentum"])
    yield "horizon", horizon <= window, f"at most config.window, {window}"
    yield "every", window % every == 0, f"a divisor of config.window, {window}"
    yield (
        "every",
        window // every >= 7,
        f"so small that the window, {window}, holds 8 snapshots",
    )
    yield (
        "burn_in",
        burn_in + window - horizon - early > 0,
        f"long enough that runs can fork {early} updates before the horizon, with this momentum",
    )
    yield "horizon_every", horizon % kept == 0, f"a divisor of config.horizon, {horizon}"
    stretch, places = horizon + -(-early // kept) * kept, plain["places"]
    yield (
        "places",
        places == 1 or stretch <= window // places,
        f"so few that stretches of {stretch} updates do not overlap in the window, {window}",
    )
    along = plain["along"]
    yield (
        "along.averages",
        set(along["averages"]) <= set(plain["averages"]),
        f"among the names of config.averages, {sorted(plain['averages'])}",
    )
    yield (
        "along.places",
        along["places"] * kept <= horizon,
        f"at most the number of iterates kept of the horizon, {horizon // kept}",
    )
    points, gaps = (plain["many_points"][key] for key in ("points", "gaps"))
    usable = [gap for gap in gaps if gap % every == 0]
    yield "many_points.gaps", bool(usable), f"with a multiple of config.every, {every}"
    longest = (max(points) - 1) * max(usable)
    yield (
        "many_points.gaps",
        longest <= window,
        f"so short that {max(points)} points fit into config.window, {window}",
    )
    width, budget = plain["width"], plain["budget"]
    yield "width.high", width["high"] > width["low"], "above config.width.low"
    yield (
        "budget.low",
        budget["low"] < budget["swa_rate"],
        f"below config.budget.swa_rate, {budget['swa_rate']}",
    )
    reach = plain["reach"]
    yield "reach.steps", reach["steps"] <= burn_in, f"at most {burn_in}, the burn-in"
    yield "reach.divisor", reach["divisor"] <= plain["model"]["width"], "at most config.model.width"
    room = (window - longest) // every + 1
    yield (
        "many_points.ends",
        plain["many_points"]["ends"] <= room,
        f"at most {room}, the places of the window where the longest average can end",
    )
    most = f"at most config.burn_in, {burn_in}"
    yield "speed.steps", plain["speed"]["steps"] <= burn_in, most
    yield "start.steps", max(plain["start"]["steps"]) <= burn_in, most
    steps = plain["pairs"]["steps"]
    yield (
        "pairs.steps",
        steps <= window and steps % (2 * every) == 0,
        f"a multiple of twice config.every, {every}, and at most config.window, {window}",
    )
    cooldown = plain["cooldown"]
    track, longest = cooldown["track"], cooldown["lengths"][-1]
    yield (
        "cooldown.track",
        longest % track == 0 and cooldown["after"] % track == 0,
        f"a divisor of the longest cooldown, {longest}, and of config.cooldown.after",
    )
    yield "pairs.factor", plain["pairs"]["factor"] != 1.0, "another than 1"
