"""Trains a run with averages and evaluations, and its matched runs.

A workdir holds one run.  Matched runs, under equivalent schedules, are complete runs in
`matched/<average>/` inside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

import tf_lrtraj
from tf_lrtraj import memory, records, report, theory
from tf_lrtraj.averaging import borrow, save_model
from tf_lrtraj.averaging.snapshot_recorder import ModelSnapshots
from tf_lrtraj.records import RAW
from tf_lrtraj.runs import components
from tf_lrtraj.runs.assembly import Assembly, assemble, check_replicas
from tf_lrtraj.runs.components import build_model, load_dataset
from tf_lrtraj.runs.cost_estimates import check_run
from tf_lrtraj.runs.finished_run import is_done
from tf_lrtraj.runs.probing import while_training
from tf_lrtraj.runs.run_config import ConfigError, Plan, rate_momentum, resolve, validate
from tf_lrtraj.runs.run_description import describe
from tf_lrtraj.training import loop, stopping
from tf_lrtraj.training.checkpoints import Checkpointer, CheckpointError
from tf_lrtraj.training.log import RunLog
from tf_lrtraj.training.loggers import LoggedRun, RunLoggers, check_packages
from tf_lrtraj.training.progress import Progress, stage
from tf_lrtraj.training.step import make_train_steps
from tf_lrtraj.training.workers import Workers, losing

CHECKPOINTS = "checkpoints"
SNAPSHOTS = "snapshots"
MODELS = "models"


def prepare(
    config: Any, workdir: str | os.PathLike[str], strategy: Any = None
) -> tuple[dict[str, Any], Any]:
    """Checks the configuration, the data and the workdir before anything is written.

    Args:
        config: a configuration.
        workdir: the folder to write to (only the chief of several workers writes).
        strategy: the run's strategy, to check its limits here; None to skip this.

    Returns:
        (the validated configuration, its data set).

    Raises:
        ConfigError: for anything wrong in the configuration or its data.
        records.RecordError: if the workdir belongs to another configuration, cannot
            be written, or another process is writing there.
        strategies.Refused: if another worker found an error.
    """
    plain = validate(config)
    workers = Workers(strategy)
    workers.from_chief(lambda: check_packages(plain["loggers"], ConfigError))
    workers.from_chief(lambda: records.check_workdir_matches(workdir, plain, validate))
    if workers.count > 1:
        chiefs = workers.from_chief(lambda: _as_stored(plain))
        workers.together(lambda: _check_same(chiefs, _as_stored(plain)))
    dataset = workers.together(lambda: _check_with_data(plain, strategy, workers))
    workers.from_chief(lambda: _check_writable(workdir))
    return plain, dataset


def _check_with_data(config: dict[str, Any], strategy: Any, workers: Workers) -> Any:
    """Loads the data and checks the entries that depend on them."""
    dataset = load_dataset(config)
    plan = resolve(config, dataset.num_examples["train"])
    replicas = 1 if strategy is None else strategy.num_replicas_in_sync
    components.check_optimizer(config, replicas)
    matched_rates(config, plan)
    while_training.check(config, plan, dataset)
    model = None
    if config["model"]["build"] is not None:
        model = build_model(config, dataset)
    if strategy is not None:
        check_replicas(config, strategy)
        # The machine's memory if its processors train; the memory of devices is not known here.
        kinds = {device.device_type for device in tf.config.list_logical_devices()}
        available = memory.total() if kinds == {"CPU"} else None
        size = components.model_size(config, dataset, model)
        check_run(config, plan.averages, size, replicas // workers.count, available)
    if model is None:
        model = build_model(config, dataset)  # to find its errors now
    components.check_together(config, dataset, model, replicas)
    return dataset


def _check_writable(workdir: str | os.PathLike[str]) -> None:
    with records.only_writer(records.prepare_workdir(workdir)):
        pass


def _as_stored(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(records.encode(config)))
    return found


def _check_same(chiefs: dict[str, Any], mine: dict[str, Any]) -> None:
    """Checks that this worker has the chief's configuration."""
    shown = [
        f"config.{key}: {value!r} there, {mine[key]!r} here"
        for key, value in chiefs.items()
        if mine[key] != value
    ]
    if shown:
        raise ConfigError(f"the chief has another configuration: {'; '.join(shown)}")


def matched_rates(config: dict[str, Any], plan: Plan) -> dict[str, np.ndarray]:
    """Returns the equivalent schedule, [T] rates, of every average with a matched run.

    Raises:
        ConfigError: if an average has no equivalent schedule that can be run.
    """
    base = tf_lrtraj.rates.as_array(plan.rate, plan.total_steps)
    schedules = {}
    for name in config["matched"]["averages"]:
        curvature = config["matched"]["curvature"]
        try:
            momentum = rate_momentum(config)
            rates = theory.schedule_from_weights(
                plan.averages[name].weights(plan.total_steps), base, curvature, momentum
            )
        except ValueError as error:
            raise ConfigError(f"config.matched: the average {name!r}: {error}") from None
        if rates.min() < 0:
            step = int(np.argmax(rates < 0))
            raise ConfigError(
                f"config.matched: the average {name!r} equals a schedule with negative rates "
                f"({rates[step]:.3g} at step {step}), which cannot be run."
            )
        schedules[name] = rates
    return schedules


def run(
    config: dict[str, Any],
    dataset: Any,
    workdir: str | os.PathLike[str],
    strategy: Any,
    strategy_name: str = "",
    tell: Callable[[str], None] = logging.info,
) -> pathlib.Path | None:
    """Trains the run and its matched runs and writes the report; resumes an earlier call.

    Args:
        config: the configuration from `prepare`.
        dataset: the data set from `prepare`.
        workdir: the folder to write to.
        strategy: a `tf.distribute` strategy.
        strategy_name: its name, for the record.
        tell: called with sentences about what starts and its cost in memory and on disk.

    Returns:
        The path of the report; None on workers other than the chief, which write nothing.

    Raises:
        stopping.Diverged: when a training loss is not finite (status "diverged").
        stopping.Interrupted: after SIGTERM or SIGINT (status "interrupted").
        data.DataError: for a damaged file of the data (status "interrupted").
        stopping.Lost: when another worker is gone (status "interrupted").
        records.RecordError: if another process is writing to the workdir.
        strategies.Refused: if the chief could not begin or go on with the run.
    """
    workdir = pathlib.Path(workdir)
    workers = Workers(strategy)
    path = None
    if not workers.chief:
        tell = logging.debug
    plan = resolve(config, dataset.num_examples["train"])
    schedules = matched_rates(config, plan)
    forks = {name: fork_step(plan, rates) for name, rates in schedules.items()}
    base = OneRun(config, dataset, workdir, strategy, strategy_name)
    with contextlib.ExitStack() as held:
        workers.from_chief(lambda: held.enter_context(records.only_writer(workdir)))
        try:
            tell(f"{config['name']}: training in {workdir}")
            dataclasses.replace(base, pinned=tuple(forks.values()), tell=tell).make()
            for name, rates in schedules.items():
                tell(f"{config['name']}: the run under the schedule equivalent to {name!r}")
                dataclasses.replace(
                    base,
                    config=_without_averages(config, name),
                    workdir=records.matched_dir(workdir, name),
                    learning_rates=rates,
                    matched_to={"average": name, **_matched_config(config, name)},
                    fork=(workdir, forks[name]),
                ).make()
        finally:
            if workers.chief and (workdir / records.RUN).exists():
                stage("drawing the report")
                path = report.write_report(workdir)
    workers.wait()  # a worker that ends early looks like one that was lost
    return path


def fork_step(plan: Plan, rates: np.ndarray) -> int:
    """Returns the last checkpoint step of the base run up to which a matched run is identical.

    The schedule of an average that starts late equals the base rate until then, and the same
    initial weights, batches and rates give the same bits.  Returns 0 if there is no such
    checkpoint.  Rates are compared in float32, as the optimizer uses them.
    """
    base = tf_lrtraj.rates.as_array(plan.rate, plan.total_steps)
    differs = np.flatnonzero(rates.astype(np.float32) != base.astype(np.float32))
    same = int(differs[0]) if differs.size else plan.total_steps
    return same // plan.checkpoint * plan.checkpoint if plan.checkpoint else 0


def _matched_config(config: dict[str, Any], name: str) -> dict[str, Any]:
    kernel = dict(config["averages"][name])
    kernel.pop("batch_norm", None)
    return {
        "kernel": kernel,
        "curvature": config["matched"]["curvature"],
        "momentum": rate_momentum(config),
    }


def _without_averages(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the configuration of a matched run: the same without averages."""
    return {
        **config,
        "name": f"{config['name']}, schedule equivalent to {name}",
        "averages": {},
        "snapshots": {**config["snapshots"], "every": "never"},
        "probes": {},
        "matched": {**config["matched"], "averages": []},
    }


@dataclasses.dataclass(frozen=True)
class OneRun:
    """The run of one workdir: as configured, or under an equivalent schedule.

    Attributes:
        config, dataset, strategy, strategy_name, tell: as in `run`.
        workdir: the workdir of this run.
        learning_rates: [T] rates instead of the configured schedule.
        matched_to: the entry of `run.json` about the matched average.
        fork: (workdir of another run, step): if this run has not begun, start from that run's
            records and checkpoint of that step, if it exists.
        pinned: steps whose checkpoints are kept for such forks.
    """

    config: dict[str, Any]
    dataset: Any
    workdir: pathlib.Path
    strategy: Any
    strategy_name: str = ""
    learning_rates: np.ndarray | None = None
    matched_to: dict[str, Any] | None = None
    fork: tuple[pathlib.Path, int] | None = None
    pinned: Sequence[int] = ()
    tell: Callable[[str], None] = logging.info

    def make(self) -> None:
        """Trains or resumes the run, unless it is done."""
        workers = Workers(self.strategy)
        if workers.from_chief(lambda: is_done(self.workdir)):
            logging.info("%s is already done", self.workdir)
            return
        workers.from_chief(lambda: str(records.prepare_workdir(self.workdir)))
        keras.utils.set_random_seed(self.config["seed"])
        assembly = assemble(self.config, self.dataset, self.strategy, self.learning_rates)
        if assembly.averages is not None:
            self.tell(assembly.averages.describe_memory())
        checkpointer = Checkpointer(
            self.workdir / CHECKPOINTS,
            assembly.checkpointed,
            keep=self.config["checkpoint"]["keep"],
            writer=workers.chief,
            pinned=self.pinned,
        )
        description = describe(assembly, self.strategy_name, self.matched_to)
        found = workers.from_chief(lambda: self._begin(checkpointer, assembly))
        step, previous = found["step"], found["previous"]
        if step:
            for group in checkpointer.variables.values():
                workers.share(group)
        description["forked_at"] = found["forked_at"]
        if previous and step:
            description["created"] = previous.get("created", description["created"])
            description["resumed_at"] = [*previous.get("resumed_at", []), step]
        if workers.chief:
            records.write_json(self.workdir / records.CONFIG, self.config)
            records.write_json(self.workdir / records.RUN, description)
            records.write_schedule(self.workdir / records.SCHEDULE, assembly.learning_rates)
            loggers = RunLoggers(
                self.config["loggers"], LoggedRun(self.workdir, self.config, description)
            )
        else:
            loggers = None
        log = RunLog(
            self.workdir,
            step,
            assembly.plan.steps_per_epoch,
            lambda step: float(assembly.learning_rates[step]),
            self.config["data"]["batch_size"],
            loggers=loggers,
            writer=workers.chief,
        )
        with (
            _status_written(
                self.workdir / records.RUN if workers.chief else None, description, loggers
            ),
            contextlib.closing(log),
        ):
            self._train(assembly, checkpointer, log, workers, step, loop.Window(found["window"]))

    def _begin(self, checkpointer: Checkpointer, assembly: Assembly) -> dict[str, Any]:
        """Returns the state from which the run starts or resumes, as a JSON value."""
        previous = records.read_run(self.workdir)
        forked_at = previous.get("forked_at", 0)
        if self.fork is not None and not checkpointer.steps():
            forked_at = _take_over(*self.fork, checkpointer, self.workdir, assembly)
        step, window = loop.resume(checkpointer, self.workdir / records.METRICS)
        found = {"previous": previous, "forked_at": forked_at}
        return {**found, "step": step, "window": window.state()}

    def _train(
        self,
        assembly: Assembly,
        checkpointer: Checkpointer,
        log: RunLog,
        workers: Workers,
        step: int,
        window: loop.Window,
    ) -> None:
        plan, config, chief = assembly.plan, self.config, workers.chief
        assembly.progress = Progress(plan.total_steps, step, config["name"])
        assembly.evaluator.on_batch = assembly.progress.tick
        with (
            losing(workers.count > 1),
            self.dataset.named_faults(),
            self._snapshots(assembly, step, writer=chief) as snapshots,
        ):
            probes = while_training.actions(assembly, self.workdir, self.tell, writer=chief)
            loop.Loop(
                _train_steps(assembly, step),
                lambda step: evaluate_all(assembly, step, log),
                checkpointer,
                log,
                loop.Cadence(plan.log, plan.evaluate, plan.checkpoint, config["steps_per_call"]),
                plan.total_steps,
                assembly.progress,
                [*snapshots, *probes],
                workers,
            ).run(step, window)
            if config["save_models"]:
                stage("writing the models")
                save_models(assembly, plan.total_steps, self.workdir / MODELS, writer=chief)
            if chief and plan.probes:
                while_training.at_the_end(assembly, self.workdir, self.tell)

    @contextlib.contextmanager
    def _snapshots(
        self, assembly: Assembly, step: int, writer: bool
    ) -> Iterator[list[loop.Action]]:
        """Yields the writer of the run's snapshots; deletes snapshots later than `step`."""
        plan = assembly.plan
        if plan.snapshots is None:
            yield []
            return
        if not writer:
            yield [loop.Action(plan.snapshots, loop.nothing)]
            return
        snapshots = ModelSnapshots(
            assembly.model,
            self.workdir / SNAPSHOTS,
            plan.snapshots,
            self.config["snapshots"]["encoding"],
            plan.total_steps,
        )
        snapshots.writer.forget_after(step)
        self.tell(
            f"at most {snapshots.most} snapshots of {snapshots.bytes_each / 1e6:.1f} MB are kept"
        )
        with snapshots:
            yield [loop.Action(plan.snapshots, snapshots.write, snapshots.check, snapshots.wait)]


@contextlib.contextmanager
def _status_written(
    path: pathlib.Path | None, description: dict[str, Any], loggers: RunLoggers | None
) -> Iterator[None]:
    """Writes to `run.json` how the work inside the block ended, and tells the loggers.

    Args:
        path: the path of the file; None if another worker writes it.
        description: its other entries.
        loggers: the loggers of the run; None if another worker has them.
    """
    status, message = "interrupted", None
    try:
        yield
        status = "done"
    except stopping.Diverged as error:
        status, message = "diverged", str(error)
        raise
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
        raise
    finally:
        if path is not None:
            records.write_json(path, {**description, "status": status, "message": message})
        if loggers is not None:
            loggers.finish(status)


def _take_over(
    source: pathlib.Path,
    step: int,
    checkpointer: Checkpointer,
    workdir: pathlib.Path,
    assembly: Assembly,
) -> int:
    """Copies another run's checkpoint and the rows of its raw weights instead of the first steps.

    Returns:
        The step, or 0 if the other run has no intact checkpoint of it.
    """
    groups = {name: group for name, group in checkpointer.variables.items() if group}
    other = Checkpointer(source / CHECKPOINTS, groups, writer=False)
    try:
        _, progress = other.restore(step, loop.progress_problem)
    except (FileNotFoundError, CheckpointError):
        return 0
    if checkpointer.writer:
        rows = [
            row
            for row in records.read_rows(source / records.METRICS)
            if row["step"] <= step and row.get("weights", RAW) == RAW
        ]
        for row in rows:
            if "learning_rate" in row:  # equal in float32; the record has float64
                row["learning_rate"] = float(assembly.learning_rates[row["step"] - 1])
        (workdir / records.METRICS).unlink(missing_ok=True)
        with records.MetricsWriter(workdir / records.METRICS) as writer:
            for row in rows:
                writer.write(row)
            writer.sync()
            progress["rows"] = writer.mark()
    checkpointer.save(step, progress)
    return step


def _train_steps(assembly: Assembly, start: int) -> Callable[[int, int], dict[str, np.ndarray]]:
    config = assembly.config
    compiled = make_train_steps(
        assembly.strategy,
        assembly.model,
        assembly.optimizer,
        assembly.averages,
        batch_size=config["data"]["batch_size"],
        weight_decay=config["optimizer"]["weight_decay"],
        weight_decay_on=config["optimizer"]["weight_decay_on"],
        objective=assembly.objective,
    )
    iterator = iter(assembly.train_batches(start))

    return functools.partial(compiled, iterator)


def evaluate_all(assembly: Assembly, step: int, log: RunLog) -> None:
    """Evaluates the raw weights and every average, and writes the rows."""
    config = assembly.config
    evaluator = assembly.evaluator
    splits: list[tuple[str, int | None]] = [(assembly.eval_split, None)]
    if config["evaluate"]["train_examples"]:
        splits.append(("train", config["evaluate"]["train_examples"]))
    names = [RAW, *assembly.plan.averages]
    for name, policy in evaluator.candidates(names, config["batch_norm"]["policy"]):
        with assembly.doing(f"batch norm of {name}"):
            weights = evaluator.weights(name, step, policy)
        for split, limit in splits:
            with assembly.doing(f"evaluating {name} on {split}"):
                result = evaluator.evaluate(weights, assembly.eval_batches(split, limit))
            log.evaluation(step, split, name, evaluator.describe(name, policy), result)


def save_models(
    assembly: Assembly,
    step: int,
    folder: pathlib.Path,
    names: Sequence[str] | None = None,
    writer: bool = True,
) -> list[pathlib.Path]:
    """Writes `.keras` files of the raw weights and of every average, without changing the model.

    All workers must call it, because they recompute statistics together; one of them writes.
    """
    if writer:
        folder.mkdir(parents=True, exist_ok=True)
    evaluator = assembly.evaluator
    paths = []
    for name in names if names is not None else [RAW, *assembly.plan.averages]:
        path = folder / f"{name}.keras"
        if name == RAW:
            if writer:
                save_model(assembly.model, path)
        else:
            weights = evaluator.host_weights(evaluator.weights(name, step))
            if writer:
                with borrow(assembly.model, *weights):
                    save_model(assembly.model, path)
        paths.append(path)
    return paths
