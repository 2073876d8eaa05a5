"""The configuration of a training run: its defaults, what each entry means, and what is allowed.

A file in `configs/` starts from `default_config()` and changes what it needs;
`validate` turns the result into plain, checked values before anything starts.

>>> config = default_config()
>>> config.optimizer.momentum = 1.5
>>> validate(config)
Traceback (most recent call last):
    ...
tf_lrtraj.runs.config_checks.ConfigError: `config.optimizer.momentum` must be a number in \
[0, 1). Received: 1.5
"""

from __future__ import annotations

import dataclasses
import fractions
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from tf_lrtraj import kernels, rates, records
from tf_lrtraj.averaging.snapshots import Timetable
from tf_lrtraj.durations import NEVER, Duration, resolve_durations
from tf_lrtraj.records.strict_json import encode
from tf_lrtraj.runs.config_checks import (
    TEXT,
    TRUTH,
    Check,
    ConfigError,
    as_dict,
    check_all,
    get,
    integer,
    is_integer,
    merge,
    number,
    one_of,
    optional,
)
from tf_lrtraj.runs.cost_estimates import check_counts

AUGMENTATIONS = ("none", "crop", "crop_flip", "random_resized_crop")
DTYPES = ("float32", "mixed_bfloat16")
STEMS = ("cifar", "imagenet")
POLICIES = records.BATCH_NORM_POLICIES
ENCODINGS = ("exact", "int16", "int8")
LONGEST_RUN = 10**8  # steps; the rate of each is kept, in memory and in the records


def default_config() -> ml_collections.ConfigDict:
    """The configuration every file in `configs/` starts from; each entry is explained here."""
    return ml_collections.ConfigDict(
        {
            "name": "run",  # shown in the report
            "seed": 0,  # decides weights, data order and augmentation
            "data": {
                "name": "digits",  # "digits" (embedded) or a TensorFlow Datasets name
                "dir": config_dict.placeholder(str),  # where TFDS data lies; None: its default
                "download": False,  # let TFDS download and prepare what is missing
                "augmentation": "none",  # one of AUGMENTATIONS
                "image_size": config_dict.placeholder(int),  # None: as stored
                "batch_size": 128,  # global, over all replicas
                # None: "test" if the data set has one, else "validation"
                "eval_split": config_dict.placeholder(str),
            },
            "model": {
                "depth": 8,  # 18, 34, 50, or 6n+2
                "width": 16,  # channels of the first stage
                "stem": "cifar",  # one of STEMS
                "batch_norm": {"momentum": 0.9, "epsilon": 1e-5, "synchronized": False},
                "dtype": "float32",  # one of DTYPES
            },
            "optimizer": {
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 0.0,  # L2, on kernels only
                "label_smoothing": 0.0,
            },
            # A formula of tf_lrtraj.rates; numbers of steps may be durations ("5 epochs").
            "schedule": {"rate": "Constant", "constant": 0.1},
            "total": "8 epochs",  # a duration: steps, epochs, examples (elsewhere also percent)
            # name -> kernel of tf_lrtraj.kernels; numbers of steps may be durations.  An entry
            # may set its own "batch_norm" policy.
            "averages": {},
            "batch_norm": {
                "policy": "recompute",  # one of POLICIES, for averaged weights
                "batches": 20,  # training batches for "recompute"
            },
            "evaluate": {
                "every": "1 epochs",  # a duration, or "never" (the end is always evaluated)
                "batch_size": 500,
                "train_examples": 0,  # also evaluate this many training images, unaugmented
            },
            "checkpoint": {"every": "1 epochs", "keep": 2},
            # Iterates kept in workdir/snapshots, for lrtraj-average.
            "snapshots": {
                "every": "never",  # a duration, or "never"
                "start": "0 steps",  # a duration
                "encoding": "exact",  # one of ENCODINGS
                "limit": 0,  # at most so many on disk; 0 for no limit
                "when_full": "thin",  # or "drop_oldest"
            },
            # name -> a probe of the run while it trains: its kind ("probe", by default the name),
            # "every" and "start" as durations, and its options (lrtraj-probe --help).  Probes that
            # need several points are measured at the end, on the snapshots.
            "probes": {},
            "log_every": "50 steps",
            "steps_per_call": 10,  # training steps in one compiled call
            "tensorboard": True,
            "save_models": True,  # write raw.keras and one .keras file per average at the end
            # Averages for which a run under the equivalent schedule is made as well.
            "matched": {"averages": (), "curvature": 0.0},
            "threads": 0,  # 0: TensorFlow's choice.  Bits of a run depend on it.
            "deterministic": True,  # make TensorFlow's operations reproducible to the bit
        }
    )


# Free-form parts: their keys are checked by the formula or kernel they describe.
_FREE = ("schedule", "averages", "probes")

_CHECKS: dict[str, Check] = {
    "name": TEXT,
    "seed": (
        "an integer from 0 to 2147483647",
        lambda value: is_integer(value) and 0 <= value < 2**31,
    ),
    "data.name": TEXT,
    "data.dir": optional(TEXT),
    "data.download": TRUTH,
    "data.augmentation": one_of(AUGMENTATIONS),
    "data.image_size": optional(integer(4)),
    "data.batch_size": integer(1),
    "data.eval_split": optional(TEXT),
    "model.depth": integer(8),
    "model.width": integer(1),
    "model.stem": one_of(STEMS),
    "model.batch_norm.momentum": number(0, 1),
    "model.batch_norm.epsilon": number(0),
    "model.batch_norm.synchronized": TRUTH,
    "model.dtype": one_of(DTYPES),
    "optimizer.momentum": number(0, 1),
    "optimizer.nesterov": TRUTH,
    "optimizer.weight_decay": number(0),
    "optimizer.label_smoothing": number(0, 1),
    "batch_norm.policy": one_of(POLICIES),
    "batch_norm.batches": integer(1),
    "evaluate.batch_size": integer(1),
    "evaluate.train_examples": integer(0),
    "checkpoint.keep": integer(1),
    "snapshots.encoding": one_of(ENCODINGS),
    "snapshots.limit": (
        "0, or an integer of at least 2",
        lambda value: is_integer(value) and (value == 0 or value >= 2),
    ),
    "snapshots.when_full": one_of(("thin", "drop_oldest")),
    "steps_per_call": integer(1),
    "tensorboard": TRUTH,
    "save_models": TRUTH,
    "matched.averages": (
        "a list of names of averages",
        lambda value: isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value),
    ),
    "matched.curvature": number(0),
    "threads": integer(0),
    "deterministic": TRUTH,
}
_DURATIONS = (
    "total",
    "log_every",
    "evaluate.every",
    "checkpoint.every",
    "snapshots.every",
    "snapshots.start",
)
_MAY_BE_NEVER = ("evaluate.every", "checkpoint.every", "snapshots.every")
_MAY_BE_ZERO = ("snapshots.start",)


def validate(config: Mapping[str, Any] | ml_collections.ConfigDict) -> dict[str, Any]:
    """Checks a configuration and returns it as plain nested dicts, defaults filled in.

    What depends on the size of the data set (lengths in steps) is checked by `resolve`.

    Raises:
        ConfigError: naming the key, the value received and what is allowed;
            unknown keys come with the nearest known one.
    """
    plain = merge(default_config().to_dict(), as_dict(config), free=_FREE)
    check_all(plain, _CHECKS)
    for key in _DURATIONS:
        value = get(plain, key)
        if value == NEVER and key in _MAY_BE_NEVER:
            continue
        duration = _checked(Duration.parse, value, f"config.{key}")
        empty = duration.amount == 0 and key not in _MAY_BE_ZERO
        if empty or (key == "total" and duration.unit == "percent"):
            raise ConfigError(
                f"`config.{key}` must be longer than 0"
                + (" and not in percent" if key == "total" else "")
                + f". Received: {value!r}"
            )
    plain["matched"]["averages"] = list(plain["matched"]["averages"])
    for key in _FREE:
        try:
            encode(plain[key])
        except TypeError as error:
            raise ConfigError(f"`config.{key}`: {error}") from None
    _check_averages(plain)
    _check_probes(plain)
    return plain


def read_config(workdir: str | os.PathLike[str], data_dir: str | None = None) -> dict[str, Any]:
    """The validated configuration of a run that exists.

    Args:
        workdir: the run's folder.
        data_dir: where its data lies now, if elsewhere.

    Raises:
        records.RecordError: if the folder holds no run.
        ConfigError: if its configuration is not valid.
    """
    config = validate(records.read_json(pathlib.Path(workdir) / records.CONFIG))
    if data_dir is not None:
        config["data"]["dir"] = data_dir
    return config


def _check_probes(plain: dict[str, Any]) -> None:
    for name, entry in plain["probes"].items():
        _checked(records.check_average_name, name, "a probe")
        if not isinstance(entry, Mapping):
            raise ConfigError(
                f"`config.probes.{name}` must be a probe's options, such as "
                f"{{'probe': 'line', 'every': '1 epochs'}}. Received: {entry!r}"
            )


def _check_averages(plain: dict[str, Any]) -> None:
    for name, entry in plain["averages"].items():
        _checked(records.check_average_name, name)
        if not isinstance(entry, Mapping):
            raise ConfigError(
                f"`config.averages.{name}` must be a kernel's configuration, such as "
                f"{{'kernel': 'Exponential', 'decay': 0.99}}. Received: {entry!r}"
            )
        policy = entry.get("batch_norm", "recompute")
        if policy not in POLICIES:
            raise ConfigError(
                f"`config.averages.{name}.batch_norm` must be one of {list(POLICIES)}. "
                f"Received: {policy!r}"
            )
    unknown = sorted(set(plain["matched"]["averages"]) - set(plain["averages"]))
    if unknown:
        raise ConfigError(
            f"`config.matched.averages` must name entries of config.averages "
            f"({sorted(plain['averages'])}). Received unknown: {unknown}"
        )


def _checked(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except ValueError as error:
        raise ConfigError(str(error)) from None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a configuration means for a data set of known size; lengths are in steps."""

    total_steps: int
    steps_per_epoch: float
    rate: rates.Rate
    averages: dict[str, kernels.Kernel]
    policies: dict[str, str]
    log: int
    evaluate: int
    checkpoint: int
    snapshots: Timetable | None = None
    probes: dict[str, tuple[Timetable | None, dict[str, Any]]] = dataclasses.field(
        default_factory=dict
    )


def resolve(plain: Mapping[str, Any], epoch_examples: int) -> Plan:
    """Turns every duration of a validated configuration into steps.

    Args:
        plain: from `validate`.
        epoch_examples: number of training images.

    Raises:
        ConfigError: for durations that come to nothing, and for rates and kernels
            that do not exist or are given values out of range.
    """
    batch = plain["data"]["batch_size"]
    check_counts(plain, epoch_examples)
    per_epoch = fractions.Fraction(epoch_examples, batch)

    def steps(value: Any, name: str, total: int | None, minimum: int = 1) -> int:
        duration = _checked(Duration.parse, value, name)
        count = _checked(duration.steps, per_epoch, total, batch, name)
        if count < minimum:
            raise ConfigError(
                f"`{name}` must come to at least {minimum} step. Received: {value!r}, which is "
                f"{count} steps at batch size {batch}"
            )
        return count

    total = steps(plain["total"], "config.total", None)
    if total > LONGEST_RUN:
        raise ConfigError(
            f"`config.total` must come to at most {LONGEST_RUN:,} steps. "
            f"Received: {plain['total']!r}, which is {total:,} steps at batch size {batch}"
        )

    def every(key: str) -> int:
        value = get(plain, key)
        return 0 if value == NEVER else steps(value, f"config.{key}", total)

    def in_steps(value: Mapping[str, Any], name: str) -> dict[str, Any]:
        return _checked(resolve_durations, value, per_epoch, total, batch, name)

    def timetable() -> Timetable | None:
        options = plain["snapshots"]
        if options["every"] == NEVER:
            return None
        start = steps(options["start"], "config.snapshots.start", total, minimum=0)
        return Timetable(
            every("snapshots.every"), start, options["limit"] or None, options["when_full"]
        )

    def probe(name: str, entry: Mapping[str, Any]) -> tuple[Timetable | None, dict[str, Any]]:
        """(when, what); None where it is measured once, at the end."""
        what = dict(entry)
        where = f"config.probes.{name}"
        start = steps(what.pop("start", "0 steps"), f"{where}.start", total, minimum=0)
        length = what.pop("every", NEVER)
        if length == NEVER:
            return None, what
        return Timetable(steps(length, f"{where}.every", total), start), what

    averages, policies = {}, {}
    # By name: averages that share buffers are told apart by their order, which must be the same
    # when a run goes on, and a configuration's own depends on how it was written down.
    for name, entry in sorted(plain["averages"].items()):
        entry = dict(entry)
        policies[name] = entry.pop("batch_norm", plain["batch_norm"]["policy"])
        where = f"config.averages.{name}"
        averages[name] = _named(where, kernels.from_config, in_steps(entry, where))
    schedule = in_steps(plain["schedule"], "config.schedule")
    return Plan(
        total_steps=total,
        steps_per_epoch=epoch_examples / batch,
        rate=_named("config.schedule", rates.from_config, schedule),
        averages=averages,
        policies=policies,
        log=every("log_every"),
        evaluate=every("evaluate.every"),
        checkpoint=every("checkpoint.every"),
        snapshots=timetable(),
        probes={name: probe(name, entry) for name, entry in plain["probes"].items()},
    )


def _named(where: str, function: Callable[[Any], Any], value: Any) -> Any:
    try:
        return function(value)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
