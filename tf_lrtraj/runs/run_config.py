"""The configuration of a training run: its entries, their checks, and lengths in steps.

A file in `configs/` changes entries of `default_config()`; `validate` checks the result and returns
plain values before anything starts.

>>> config = default_config()
>>> config.optimizer.momentum = 1.5
>>> validate(config)
Traceback (most recent call last):
    ...
tf_lrtraj.runs.config_checks.ConfigError: `config.optimizer.momentum` must be a number of at \
least 0 and below 1. Received: config.optimizer.momentum=1.5
"""

from __future__ import annotations

import contextlib
import dataclasses
import fractions
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_collections

from tf_lrtraj import kernels, rates, records
from tf_lrtraj.averaging.snapshots import Timetable
from tf_lrtraj.data import augmentations
from tf_lrtraj.durations import NEVER, Duration, resolve_durations
from tf_lrtraj.runs.config_checks import (
    GROUP,
    WEIGHT_DECAY_ON,
    ConfigError,
    Entry,
    Schema,
    as_dict,
    count,
    refusal,
)
from tf_lrtraj.runs.cost_estimates import check_counts
from tf_lrtraj.training.loggers import LOGGERS, check_loggers
from tf_lrtraj.values import (
    LARGEST_COUNT,
    Rule,
    boolean,
    error,
    integer,
    number,
    one_of,
    sequence_of,
    text,
)

DTYPES = ("float32", "mixed_bfloat16")
STEMS = ("cifar", "imagenet")
POLICIES = records.BATCH_NORM_POLICIES
ENCODINGS = ("exact", "int16", "int8")
LONGEST_RUN = 10**8  # steps; the rate of each is stored in memory and in the records


def _length(zero: bool = False, never: bool = False, percent: bool = True) -> Rule:
    """Returns the rule of a duration, which is stored as written; `Plan` converts it to steps."""

    def read(value: Any) -> Any:
        if never and value == NEVER:
            return value
        duration = Duration.parse(value)
        if (duration.amount == 0 and not zero) or (duration.unit == "percent" and not percent):
            raise ValueError
        return value

    units = (
        "'8 epochs' or '300 steps'" if not percent else "'8 epochs', '300 steps' or '10 percent'"
    )
    words = f"one amount and one unit, such as {units}{'' if zero else ', longer than 0'}"
    return Rule(words + (f", or {NEVER!r}" if never else ""), read)


def _limit(value: Any) -> int:
    found: int = count(0).read(value)
    if found == 1:
        raise ValueError
    return found


def _list(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return tuple(value)


_ENTRIES = {
    "name": Entry("run", text(), "name of the run, shown in the report"),
    "seed": Entry(
        0,
        integer(0, below=LARGEST_COUNT),
        "seed of the initial weights, the data order and the augmentation",
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
    "data.load": Entry(
        None,
        text().or_none(),
        "your own data instead of a named set: 'package.module:function', called with `data_dir` "
        "and config.data.options (docs/your_own_model.md)",
        str,
    ),
    "data.options": Entry({}, GROUP, "arguments of the function of config.data.load"),
    "data.augmentation": Entry(
        "none",
        one_of(augmentations.NAMES),
        "augmentation of training images; mixup and cutmix mix pairs of images and their labels",
    ),
    "data.image_size": Entry(
        None, count(4).or_none(), "side of the images in pixels; None: as stored", int
    ),
    "data.batch_size": Entry(128, count(1), "images per step, over all replicas"),
    "data.eval_split": Entry(
        None,
        text().or_none(),
        "split to evaluate on; None: 'test' if the data set has one, else 'validation'",
        str,
    ),
    "model.build": Entry(
        None,
        text().or_none(),
        "your own model instead of a ResNet: 'package.module:function', called with `num_classes`, "
        "`input_shape` and config.model.options; a .keras file; or a backbone such as "
        "'keras_cv:ResNetBackbone' or 'keras_hub:ResNetBackbone'",
        str,
    ),
    "model.options": Entry(
        {}, GROUP, "arguments of the function or backbone of config.model.build"
    ),
    "model.depth": Entry(8, count(8), "depth of the ResNet: 18, 34, 50, or 6n+2 such as 8, 14, 20"),
    "model.width": Entry(16, count(1), "channels of the first stage of the ResNet"),
    "model.stem": Entry(
        "cifar", one_of(STEMS), "first layers of the ResNet, for small or for large images"
    ),
    "model.batch_norm.momentum": Entry(
        0.9, number(0, below=1), "share of the running statistics that each step keeps"
    ),
    "model.batch_norm.epsilon": Entry(1e-5, number(0), "number added to variances"),
    "model.batch_norm.synchronized": Entry(
        False,
        boolean(),
        "whether layers normalise over the global batch instead of each replica's part",
    ),
    "model.dtype": Entry(
        "float32",
        one_of(DTYPES),
        "dtype of the computation; weights and averages are at least float32",
    ),
    "optimizer.name": Entry("SGD", text(), "optimizer: a class of keras.optimizers"),
    "optimizer.options": Entry(
        {},
        GROUP,
        "further arguments of the optimizer, such as {'weight_decay': 0.01} for 'AdamW'; the rate "
        "comes from config.schedule",
    ),
    "optimizer.momentum": Entry(0.9, number(0, below=1), "momentum of SGD"),
    "optimizer.nesterov": Entry(False, boolean(), "whether SGD uses Nesterov's momentum"),
    "optimizer.weight_decay": Entry(
        0.0,
        number(0),
        "L2 weight decay of SGD: this number times a weight is added to its gradient",
    ),
    "optimizer.weight_decay_on": Entry(
        "kernels",
        one_of(WEIGHT_DECAY_ON),
        "weights on which weight decay acts, also that of config.optimizer.options: kernels, or "
        "all trainable weights",
    ),
    "optimizer.label_smoothing": Entry(
        0.0, number(0, below=1), "share of the target probability that is spread over all classes"
    ),
    "loss.name": Entry(
        None,
        text().or_none(),
        "loss: a class of keras.losses, such as 'MeanSquaredError'; None: cross-entropy of logits "
        "with class labels",
        str,
    ),
    "loss.options": Entry({}, GROUP, "arguments of the loss"),
    "metrics": Entry(
        {},
        GROUP,
        "name -> a class of keras.metrics with its arguments, such as {'top5': {'metric': "
        "'SparseTopKCategoricalAccuracy', 'k': 5}}; without config.loss.name, accuracy is "
        "measured in any case",
    ),
    "schedule": Entry(
        {"rate": "Constant", "constant": 0.1},
        GROUP,
        "learning rate: a formula of tf_lrtraj.rates, whose lengths may be durations, such as "
        "{'rate': 'Cosine', 'start': 0.1, 'steps': '8 epochs'}",
    ),
    "total": Entry("8 epochs", _length(percent=False), "length of the run"),
    "averages": Entry(
        {},
        GROUP,
        "name -> kernel of tf_lrtraj.kernels, whose lengths may be durations, such as "
        "{'swa': {'kernel': 'Uniform', 'start': '60 percent'}}; an average may have its own "
        "'batch_norm' policy",
    ),
    "batch_norm.policy": Entry(
        "recompute",
        one_of(POLICIES),
        "batch-norm statistics of averages: recomputed, averaged like the weights, or copied",
    ),
    "batch_norm.batches": Entry(
        20, count(1), "training batches on which 'recompute' computes the statistics"
    ),
    "evaluate.every": Entry(
        "1 epochs",
        _length(never=True),
        "time between evaluations; the last step is always evaluated",
    ),
    "evaluate.batch_size": Entry(500, count(1), "images per batch of an evaluation"),
    "evaluate.train_examples": Entry(
        0, count(0), "number of training images to evaluate too, without augmentation"
    ),
    "checkpoint.every": Entry(
        "1 epochs", _length(never=True), "time between checkpoints; the last step is always saved"
    ),
    "checkpoint.keep": Entry(2, count(1), "number of checkpoints to keep"),
    "snapshots.every": Entry(
        "never",
        _length(never=True),
        "time between snapshots in WORKDIR/snapshots, from which lrtraj-average builds averages",
    ),
    "snapshots.start": Entry("0 steps", _length(zero=True), "time of the first snapshot"),
    "snapshots.encoding": Entry(
        "exact", one_of(ENCODINGS), "encoding of the weights; int16 and int8 round them"
    ),
    "snapshots.limit": Entry(
        0,
        Rule("0, or an integer of at least 2", _limit),
        "largest number of snapshots on disk; 0: no limit",
    ),
    "snapshots.when_full": Entry(
        "thin",
        one_of(("thin", "drop_oldest")),
        "what to drop at the limit: every other snapshot, or the oldest",
    ),
    "probes": Entry(
        {},
        GROUP,
        "name -> a probe to measure during the run, such as {'line': {'every': '1 epochs', "
        "'batches': 4}}: its kind ('probe', by default the name), the durations 'every' and "
        "'start', and its options (lrtraj-probe --help). Probes of several points are measured "
        "at the end, on the snapshots",
    ),
    "log_every": Entry(
        "50 steps", _length(), "time between rows of metrics.jsonl; a row has means over this time"
    ),
    "steps_per_call": Entry(10, count(1), "training steps per compiled call"),
    "loggers": Entry(
        ("tensorboard",),
        Rule("a list of loggers", _list),
        f"where rows are sent besides the records, of {sorted(LOGGERS)}: a list of names, or of "
        "groups with options such as {'logger': 'wandb', 'project': 'averages'}",
    ),
    "save_models": Entry(
        True, boolean(), "whether to write raw.keras and a .keras file per average at the end"
    ),
    "matched.averages": Entry(
        (),
        sequence_of(text(), "a list of names of averages"),
        "averages for which a run under the equivalent schedule is trained too",
    ),
    "matched.curvature": Entry(
        0.0, number(0), "curvature at which that schedule is equivalent; 0: for frozen gradients"
    ),
    "threads": Entry(
        0,
        count(0),
        "threads of TensorFlow, on which the bits of a run depend; 0: TensorFlow's choice",
    ),
    "deterministic": Entry(True, boolean(), "whether operations are reproducible to the bit"),
}
SCHEMA = Schema(_ENTRIES)


def default_config() -> ml_collections.ConfigDict:
    """The configuration every file in `configs/` starts from; `lrtraj-train --help` explains it."""
    return SCHEMA.defaults()


def validate(config: Mapping[str, Any] | ml_collections.ConfigDict) -> dict[str, Any]:
    """Checks a configuration and returns it as nested dicts, with defaults for missing entries.

    `resolve` checks the lengths in steps, which depend on the size of the data set.

    Raises:
        ConfigError: for an unknown key, with the closest known one, or a value that is not allowed.
    """
    plain = SCHEMA.read(_with_loggers(config))
    plain["loggers"] = check_loggers("config.loggers", plain["loggers"], ConfigError)
    for name, entry in plain["averages"].items():
        with _as_config_errors():
            records.check_average_name(name)
        key = f"averages.{name}"
        if not isinstance(entry, Mapping):
            example = "{'kernel': 'Exponential', 'decay': 0.99}"
            raise refusal(key, f"a kernel's configuration, such as {example}", entry)
        one_of(POLICIES).check(
            f"config.{key}.batch_norm", entry.get("batch_norm", POLICIES[0]), ConfigError
        )
    for name, entry in plain["probes"].items():
        with _as_config_errors():
            records.check_average_name(name, "a probe")
        if not isinstance(entry, Mapping):
            example = "{'probe': 'line', 'every': '1 epochs'}"
            raise refusal(f"probes.{name}", f"a probe's options, such as {example}", entry)
    if not set(plain["matched"]["averages"]) <= set(plain["averages"]):
        raise refusal(
            "matched.averages",
            f"names of config.averages, {sorted(plain['averages'])}",
            plain["matched"]["averages"],
        )
    for name, entry in plain["metrics"].items():
        with _as_config_errors():
            records.check_average_name(name, "a metric")
        if name in _RESERVED or not isinstance(entry, Mapping) or "metric" not in entry:
            example = "{'metric': 'MeanAbsoluteError'}"
            allowed = f"a metric's class and arguments, such as {example}, with a name of its own"
            raise refusal(f"metrics.{name}", allowed, entry)
    _check_own_parts(plain)
    return plain


def _with_loggers(config: Any) -> Any:
    """Returns a configuration with `loggers` in place of the `tensorboard` of earlier versions."""
    given = as_dict(config)
    if isinstance(given.get("tensorboard"), bool) and "loggers" not in given:
        given["loggers"] = ("tensorboard",) if given.pop("tensorboard") else ()
    return given


# Columns of `metrics.jsonl` that are no metrics of config.metrics.
_RESERVED = {*records.METRIC_FIELDS, "loss", "accuracy"}


def _check_own_parts(plain: Mapping[str, Any]) -> None:
    """Checks that entries of a default component are not set beside another component."""
    defaults = default_config()

    def unchanged(group: str, keys: Iterable[str], allowed: str) -> None:
        for key in keys:
            default = as_dict(defaults[group])[key]
            if plain[group][key] != default:
                raise refusal(
                    f"{group}.{key}", f"{default!r}, its default: {allowed}", plain[group][key]
                )

    optimizer = plain["optimizer"]["name"]
    if plain["model"]["build"] is None:
        unchanged("model", ["options"], "they belong to config.model.build")
    else:
        resnet = ("depth", "width", "stem", "batch_norm")
        unchanged("model", resnet, "it belongs to the ResNet, and config.model.build is set")
    if plain["data"]["load"] is None:
        unchanged("data", ["options"], "they belong to config.data.load")
    else:
        named = ("name", "download", "image_size")
        unchanged("data", named, "it belongs to named data sets, and config.data.load is set")
    if plain["loss"]["name"] is None:
        unchanged("loss", ["options"], "they belong to config.loss.name")
    else:
        own = "config.loss.options gives the arguments of a loss of Keras"
        unchanged("optimizer", ["label_smoothing"], own)
    if optimizer != "SGD":
        own = f"config.optimizer.options gives the arguments of {optimizer}"
        unchanged("optimizer", ("momentum", "nesterov", "weight_decay"), own)


def rate_momentum(config: Mapping[str, Any]) -> float:
    """Returns β of a run's optimizer if its velocity holds the rate, `v ← βv - λg`, else 0.

    It is the momentum of the theory's schedules; the moments of Adam and its like average
    gradients, and a change of the rate acts at once.

    Raises:
        ConfigError: if a step of the optimizer is not its rate times a direction that does not
            depend on the rate, so that no schedule is equivalent to an average.
    """
    settings = config["optimizer"]
    name = settings["name"]
    if name == "SGD":
        return float(settings["momentum"])
    if name not in _SCALED_BY_RATE:
        raise ConfigError(
            "an average has an equivalent schedule only if a step is the rate times a direction: "
            f"config.optimizer.name must be one of {['SGD', *_SCALED_BY_RATE]}. Received: "
            f"config.optimizer.name={name!r}"
        )
    return float(settings["options"].get("momentum", 0.0)) if name == "RMSprop" else 0.0


_SCALED_BY_RATE = (
    "RMSprop",
    "Adam",
    "AdamW",
    "Adamax",
    "Nadam",
    "Adagrad",
    "Adadelta",
    "Lion",
    "Muon",
)


def read_config(workdir: str | os.PathLike[str], data_dir: str | None = None) -> dict[str, Any]:
    """Returns the validated configuration of an existing run.

    Args:
        workdir: the run's folder.
        data_dir: the folder of its data, if they have moved.

    Raises:
        records.RecordError: if the folder holds no run.
        ConfigError: if its configuration is not valid.
    """
    config = validate(records.read_json(pathlib.Path(workdir) / records.CONFIG))
    if data_dir is not None:
        config["data"]["dir"] = data_dir
    return config


@contextlib.contextmanager
def _as_config_errors(where: str = "") -> Iterator[None]:
    """Converts a ValueError inside to a ConfigError with the entry's name before it."""
    try:
        yield
    except ValueError as caught:
        raise ConfigError(f"{where}: {caught}" if where else str(caught)) from None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration resolved for a data set of known size, with lengths in steps."""

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


@dataclasses.dataclass(frozen=True)
class _Lengths:
    """Converts the durations of one configuration to steps; every error is a ConfigError."""

    per_epoch: fractions.Fraction
    batch: int
    total: int | None = None

    def steps(self, value: Any, name: str, at_least: int = 1) -> int:
        """Returns the steps of a duration."""
        with _as_config_errors():
            found = Duration.parse(value, name).steps(self.per_epoch, self.total, self.batch, name)
        if found < at_least:
            allowed = f"at least {at_least} step long (at batch size {self.batch} it is {found})"
            raise error(name, allowed, value, ConfigError)
        return found

    def every(self, value: Any, name: str) -> int:
        """Returns the steps of a duration; 0 for never."""
        return 0 if value == NEVER else self.steps(value, name)

    def timetable(self, entry: Mapping[str, Any], name: str, **more: Any) -> Timetable | None:
        """Returns the timetable of `every` and `start` of a group; None for never."""
        start = self.steps(entry.get("start", "0 steps"), f"{name}.start", at_least=0)
        every = self.every(entry.get("every", NEVER), f"{name}.every")
        return Timetable(every, start, **more) if every else None

    def in_steps(self, entry: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Returns the configuration of a kernel or rate with lengths in steps."""
        with _as_config_errors():
            return resolve_durations(entry, self.per_epoch, self.total, self.batch, name)


def resolve(plain: Mapping[str, Any], epoch_examples: int) -> Plan:
    """Converts every duration of a validated configuration to steps.

    Args:
        plain: the result of `validate`.
        epoch_examples: number of training images.

    Raises:
        ConfigError: for durations of 0 steps, and for unknown rates and kernels or values out of
        range.
    """
    check_counts(plain, epoch_examples)
    batch = plain["data"]["batch_size"]
    lengths = _Lengths(fractions.Fraction(epoch_examples, batch), batch)
    total = lengths.steps(plain["total"], "config.total")
    if total > LONGEST_RUN:
        allowed = f"at most {LONGEST_RUN:,} steps long (at batch size {batch} it is {total:,})"
        raise refusal("total", allowed, plain["total"])
    lengths = dataclasses.replace(lengths, total=total)
    averages, policies = {}, {}
    # In the order of names: averages that share buffers are identified by their order, which must
    # be the same in a resumed run, and the order in a configuration depends on how it was written.
    for name, entry in sorted(plain["averages"].items()):
        where = f"config.averages.{name}"
        kernel = {key: value for key, value in entry.items() if key != "batch_norm"}
        policies[name] = entry.get("batch_norm", plain["batch_norm"]["policy"])
        kernel = lengths.in_steps(kernel, where)
        with _as_config_errors(where):
            averages[name] = kernels.from_config(kernel)
    schedule = lengths.in_steps(plain["schedule"], "config.schedule")
    with _as_config_errors("config.schedule"):
        rate = rates.from_config(schedule)
    snapshots = plain["snapshots"]
    return Plan(
        total_steps=total,
        steps_per_epoch=epoch_examples / batch,
        rate=rate,
        averages=averages,
        policies=policies,
        log=lengths.every(plain["log_every"], "config.log_every"),
        evaluate=lengths.every(plain["evaluate"]["every"], "config.evaluate.every"),
        checkpoint=lengths.every(plain["checkpoint"]["every"], "config.checkpoint.every"),
        snapshots=lengths.timetable(
            snapshots,
            "config.snapshots",
            limit=snapshots["limit"] or None,
            when_full=snapshots["when_full"],
        ),
        probes={
            name: (
                lengths.timetable(entry, f"config.probes.{name}"),
                {key: value for key, value in entry.items() if key not in ("every", "start")},
            )
            for name, entry in plain["probes"].items()
        },
    )
