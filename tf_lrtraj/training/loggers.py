"""Sends the rows of a run to TensorBoard, Weights & Biases, MLflow or Trackio.

A `Logger` is one destination.  `RunLoggers` drives those of a run: it starts or continues each of
them, and leaves out a logger that fails, because the records in the workdir are complete without
it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from absl import logging

from tf_lrtraj import records
from tf_lrtraj.values import Rule, boolean, closest, error, sequence_of, text

__all__ = ["LOGGERS", "LoggedRun", "Logger", "RunLoggers", "check_loggers", "check_packages"]

IDENTITIES = "loggers.json"
_PROJECT = "tf_lrtraj"
_TEXTS = sequence_of(text(), "a list of texts")


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """A run, as its loggers receive it at the start.

    Attributes:
        workdir: the run's folder.
        config: its configuration, the content of `config.json`.
        description: the content of `run.json`.
    """

    workdir: pathlib.Path
    config: Mapping[str, Any]
    description: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the run."""
        return str(self.description.get("name") or self.workdir.resolve().name)


class Logger:
    """One destination of a run's rows.

    `start` is called first, then `log` and `flush` any number of times, then `finish`.  Each may
    raise any exception.

    Attributes:
        name: its name in `config.loggers`.
        package: the package that is imported, which is also the extra that installs it.
        rules: the rule of every option.

    Args:
        **options: checked values of some of these options.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    rules: ClassVar[dict[str, Rule]] = {}

    def __init__(self, **options: Any) -> None:
        self.options = options

    def start(self, run: LoggedRun, identity: str | None) -> str | None:
        """Starts a run, or continues the one of `identity`.

        Args:
            run: the run.
            identity: the earlier result of this method for the same workdir; None at first.

        Returns:
            The identity under which the run can be continued; None if it needs none.
        """
        raise NotImplementedError

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Receives the numbers of one row, by name."""
        raise NotImplementedError

    def flush(self) -> None:
        """Makes sure that what was received is stored."""

    def finish(self, status: str) -> None:
        """Ends the run; `status` is "done", "diverged" or "interrupted"."""
        raise NotImplementedError


class TensorBoard(Logger):
    """Writes event files to the folder `tensorboard` of the workdir."""

    name = package = "tensorboard"

    def start(self, run: LoggedRun, identity: str | None) -> str | None:
        import tensorflow as tf

        self._summary = tf.summary
        self._events = tf.summary.create_file_writer(str(run.workdir / "tensorboard"))
        return None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        with self._events.as_default():
            for name, value in values.items():
                self._summary.scalar(name, value, step=step)

    def flush(self) -> None:
        self._events.flush()

    def finish(self, status: str) -> None:
        self._events.close()


class WeightsAndBiases(Logger):
    """Sends rows to Weights & Biases, whose own files go to the folder `wandb` of the workdir."""

    name = package = "wandb"
    rules: ClassVar = {
        "project": text(),
        "entity": text(),
        "group": text(),
        "tags": _TEXTS,
        "mode": text(),
    }

    def start(self, run: LoggedRun, identity: str | None) -> str | None:
        import wandb

        options = {"project": _PROJECT, **self.options}
        self._run = wandb.init(
            **options,
            id=identity,
            resume=None if identity is None else "allow",
            name=run.name,
            config=records.encode(run.config),
            dir=str(run.workdir),
        )
        return str(self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # Steps that are run again give the same numbers, and wandb ignores rows of earlier steps.
        self._run.log(dict(values), step=step)

    def finish(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "done" else 1)


class MLflow(Logger):
    """Sends rows to an MLflow tracking server or a local store of MLflow."""

    name = package = "mlflow"
    rules: ClassVar = {"experiment": text(), "tracking_uri": text()}
    _STATUS: ClassVar = {"done": "FINISHED", "diverged": "FAILED"}

    def start(self, run: LoggedRun, identity: str | None) -> str | None:
        from mlflow import MlflowClient, entities

        self._metric = entities.Metric
        self._client = MlflowClient(tracking_uri=self.options.get("tracking_uri"))
        if identity is not None:
            self._id = identity
            self._client.update_run(identity, status="RUNNING")
            return identity
        experiment = self.options.get("experiment", _PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        self._id = str(self._client.create_run(number, run_name=run.name).info.run_id)
        for name, value in _flat(records.encode(run.config)):
            self._client.log_param(self._id, name, value)
        return self._id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, status: str) -> None:
        self._client.set_terminated(self._id, status=self._STATUS.get(status, "KILLED"))


class Trackio(Logger):
    """Sends rows to Trackio: to its local store, or to a Space of Hugging Face."""

    name = package = "trackio"
    rules: ClassVar = {"project": text(), "group": text(), "space_id": text(), "private": boolean()}

    def start(self, run: LoggedRun, identity: str | None) -> str | None:
        import trackio

        # Trackio identifies a run by its name, so that of the first start is kept.
        name = identity or f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        self._run = trackio.init(
            **{"project": _PROJECT, **self.options},
            name=name,
            config=dict(_flat(records.encode(run.config))),
            resume="never" if identity is None else "allow",
        )
        return name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, status: str) -> None:
        self._run.finish()


LOGGERS: dict[str, type[Logger]] = {
    logger.name: logger for logger in (TensorBoard, WeightsAndBiases, MLflow, Trackio)
}


def check_loggers(
    name: str, value: Any, kind: type[Exception] = ValueError
) -> tuple[dict[str, Any], ...]:
    """Checks a list of loggers and returns it with every logger as a dict.

    Args:
        name: the name of the list, for errors.
        value: a list whose members are names of loggers, or dicts with the name under "logger" and
            options.
        kind: class of the error raised.

    Raises:
        ValueError (or `kind`): for an unknown logger or option, with the closest known one, a value
            that is not allowed, and a logger that is listed twice.

    >>> check_loggers("loggers", ["tensorboard", {"logger": "wandb", "project": "averages"}])
    ({'logger': 'tensorboard'}, {'logger': 'wandb', 'project': 'averages'})
    >>> check_loggers("loggers", ["wandbb"])
    Traceback (most recent call last):
        ...
    ValueError: `loggers[0]` must be one of ['tensorboard', 'wandb', 'mlflow', 'trackio']. \
Did you mean 'wandb'? Received: loggers[0]='wandbb'
    """
    if not isinstance(value, (list, tuple)):
        raise error(name, f"a list of loggers, of {list(LOGGERS)}", value, kind)
    found: list[dict[str, Any]] = []
    for index, entry in enumerate(value):
        where = f"{name}[{index}]"
        given = {"logger": entry} if not isinstance(entry, Mapping) else dict(entry)
        logger = given.pop("logger", None)
        if not isinstance(logger, str) or logger not in LOGGERS:
            raise error(where, f"one of {list(LOGGERS)}", entry, kind, closest(logger, LOGGERS))
        if any(other["logger"] == logger for other in found):
            raise error(name, "a list that names each logger once", value, kind)
        rules = LOGGERS[logger].rules
        for option in given:
            if option not in rules:
                allowed = f"a logger with options of {sorted(rules)}"
                raise error(where, allowed, entry, kind, closest(option, rules))
        options = {key: rules[key].check(f"{where}.{key}", given[key], kind) for key in given}
        found.append({"logger": logger, **options})
    return tuple(found)


def check_packages(entries: Sequence[Mapping[str, Any]], kind: type[Exception]) -> None:
    """Checks that the packages of loggers are installed, without importing them.

    Raises:
        kind: naming the extra that installs a missing package.
    """
    for entry in entries:
        package = LOGGERS[entry["logger"]].package
        if importlib.util.find_spec(package) is None:
            raise kind(
                f"the logger {entry['logger']!r} needs the package {package}, which is not "
                f"installed: pip install 'tf_lrtraj[{package}]'"
            )


class RunLoggers:
    """The loggers of one run; every failure of a logger is a warning, and ends that logger only.

    Args:
        entries: checked loggers, as `check_loggers` returns them.
        run: the run, which is started or continued.  The identities that are needed to continue it
            are stored in the file `loggers.json` of its workdir.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]], run: LoggedRun) -> None:
        self._loggers: list[Logger] = []
        path = run.workdir / IDENTITIES
        identities: dict[str, str] = {}
        with _warning(f"the loggers start new runs, because {path} cannot be read"):
            identities = records.read_json(path, dict[str, str]) if path.exists() else {}
        for entry in entries:
            options = {key: value for key, value in entry.items() if key != "logger"}
            logger = LOGGERS[entry["logger"]](**options)
            earlier = identities.get(logger.name)
            with _warning(_LEFT_OUT.format(logger.name)):
                identity = logger.start(run, earlier)
                self._loggers.append(logger)
                if identity is not None and identity != earlier:
                    identities[logger.name] = identity
                    records.write_json(path, identities)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the numbers of one row."""
        self._call("log", step, values)

    def flush(self) -> None:
        """Makes sure that what was sent is stored, before a checkpoint."""
        self._call("flush")

    def finish(self, status: str) -> None:
        """Ends the run in every logger; only the first call has an effect."""
        for logger in self._loggers:
            with _warning(_AT_THE_END.format(logger.name)):
                logger.finish(status)
        self._loggers = []

    def _call(self, method: str, *arguments: Any) -> None:
        for logger in tuple(self._loggers):
            with _warning(_LEFT_OUT.format(logger.name)):
                getattr(logger, method)(*arguments)
                continue
            self._loggers.remove(logger)


_LEFT_OUT = "the logger {!r} failed and receives nothing more; the records of the run are complete"
_AT_THE_END = "the logger {!r} could not end its run; the records of the run are complete"


@contextlib.contextmanager
def _warning(consequence: str) -> Iterator[None]:
    """Converts an exception inside to a warning with its consequence."""
    try:
        yield
    except Exception as caught:
        logging.warning("%s. %s: %s", consequence, type(caught).__name__, caught)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the entries of a configuration by their dotted keys; lists as JSON.

    >>> dict(_flat({"model": {"width": 8}, "tags": [1, 2]}))
    {'model.width': 8, 'tags': '[1, 2]'}
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else value
