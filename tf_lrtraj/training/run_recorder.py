"""`RunRecorder`: a Keras callback that writes the records of a run while `fit` trains it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shlex
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend, records
from tf_lrtraj.averaging import WeightAveraging
from tf_lrtraj.averaging.other_callbacks import calling_list
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.backend.weight_updates import steps_made
from tf_lrtraj.records import RAW
from tf_lrtraj.schedules import EquivalentSchedule
from tf_lrtraj.training.fit_logs import Window, evaluations, numbers
from tf_lrtraj.training.loggers import check_loggers, check_packages
from tf_lrtraj.training.rate_record import RateRecord, schedule_of, updates_per_batch
from tf_lrtraj.training.run_files import RunFiles, now, parameters, versions
from tf_lrtraj.values import integer, text

_COUNT = integer(1).or_none()


class RunRecorder(keras.callbacks.Callback):
    """Writes the records of a run into a workdir while `fit` trains a model.

    The records are training means, the evaluations of `fit` on its `validation_data`, the learning
    rate of every update, and the final status.  Evaluations of averages are recorded if a
    `WeightAveraging` with `validation_data` comes earlier in `callbacks`.
    `tf_lrtraj.records.load_run` reads the records; `lrtraj-report --workdir=…` and
    `tf_lrtraj.report.write_report(workdir)` draw a page from them.  The page includes probes if a
    `probes.ProbeRecorder` writes to the folder `probes` of the workdir.

    A workdir holds one run.  A recorder continues its own run in a later `fit` of the same model
    and, with `keras.callbacks.BackupAndRestore`, after a stop; rows of steps that are run again are
    removed.

    For a run under the schedule that is equivalent to an average, pass the folder
    `tf_lrtraj.records.matched_dir(workdir, average)` to the recorder of a second `fit`.  If its
    optimizer uses an `EquivalentSchedule`, the record names the average, and the page compares the
    two runs.

    Example:

    >>> import keras, numpy as np, tempfile
    >>> from tf_lrtraj import RunRecorder, WeightAveraging, kernels, records
    >>> keras.utils.set_random_seed(0)
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> data = np.ones((8, 3)), np.ones((8, 1))
    >>> averaging = WeightAveraging({"ema": kernels.Exponential(0.9)}, validation_data=data)
    >>> workdir = tempfile.mkdtemp() + "/run"
    >>> history = model.fit(
    ...     *data, epochs=3, verbose=0, validation_data=data,
    ...     callbacks=[averaging, RunRecorder(workdir, seed=0)],
    ... )
    >>> run = records.load_run(workdir)
    >>> run.status, run.weights_names(), run.series("loss", "ema", "validation")[0]
    ('done', ['raw', 'ema'], array([1, 2, 3]))

    Args:
        workdir: the folder, which is created if needed.
        name: the name of the run; by default the folder's.
        every: optimizer steps between rows of training means; None for a row at the end of each
            epoch.  Within an epoch the means are computed from Keras' running means, which is exact
            for batches of equal size.
        split: the name of the split of `validation_data`.
        seed, batch_size, data: for the record: the seed, the examples per batch, the name of the
            data.
        examples: number of examples in `validation_data`, for the errors of accuracies on the page.
        config: further entries of `config.json`, a JSON object.
        loggers: where rows are sent besides the records: a list of "tensorboard", "wandb",
            "mlflow" and "trackio", or of dicts with options, such as
            `{"logger": "wandb", "project": "averages"}`.  A logger that fails is left out with a
            warning.

    Raises:
        ImportError: if the package of a logger is not installed.
        ValueError: for arguments out of range, and when `fit` begins, if a `WeightAveraging`
            that evaluates averages comes later in `callbacks`.
        tf_lrtraj.records.RecordError: when `fit` begins, if the workdir holds another run,
            cannot be written, or another process is writing to it.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        name: str | None = None,
        every: int | None = None,
        split: str = "validation",
        seed: int | None = None,
        batch_size: int | None = None,
        data: str | None = None,
        examples: int | None = None,
        config: Mapping[str, Any] | None = None,
        loggers: Sequence[str | Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        self.every = _COUNT.check("every", every)
        self.batch_size = _COUNT.check("batch_size", batch_size)
        self.examples = _COUNT.check("examples", examples)
        self.split = text().check("split", split)
        try:
            self.config = records.encode({} if config is None else dict(config))
        except (TypeError, ValueError) as error:
            raise ValueError(f"`config` must hold what JSON can: {error}") from None
        self.loggers = check_loggers("loggers", loggers)
        check_packages(self.loggers, ImportError)
        self.workdir = records.local_path(workdir, "workdir")
        self.name = name or self.workdir.resolve().name
        self.seed, self.data = seed, data
        self._step = 0
        self._counted = 0  # of the model's updates when `_step` was brought up to date
        self._recorded = False  # whether this recorder has recorded a run
        self._run: RunFiles | None = None
        self._epoch = 0.0
        self._first_epoch: int | None = None
        self._averaging: WeightAveraging | None = None
        self._has_batch_norm = False
        self._window = Window()
        self._non_finite: int | None = None

    # What `fit` calls -------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        if self._run is not None:  # an exception ended the previous `fit`
            self._run.end("interrupted", _INTERRUPTED)
            self._run = None
        running, called = calling_list(self)
        running = running if called is self else None
        members = [] if running is None else list(running.callbacks)
        self._averaging = self._find_averaging(members)
        self._has_batch_norm = bool(bn.find_statistics(self.model, frozen=True))
        self._first_epoch = None
        resumes = any(isinstance(c, keras.callbacks.BackupAndRestore) for c in members)
        held = contextlib.ExitStack()
        records.prepare_workdir(self.workdir)
        held.enter_context(records.only_writer(self.workdir))
        try:
            earlier = self._earlier_run(resumes)
        except BaseException:
            held.close()
            raise
        self._run = RunFiles(self.workdir, held, earlier, self.loggers)
        if running is not None:
            # `fit` always deletes the list, while Keras calls `on_train_end` only after success. #
            # Python also calls this when the process exits.
            weakref.finalize(running, RunFiles.end, self._run, "interrupted", _INTERRUPTED)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._first_epoch is None:  # BackupAndRestore has restored its step by now
            self._begin(epoch)
        # If data end unexpectedly, TensorFlow counts a step that was not made.
        self._counted = steps_made(self.model)
        self._window.start_epoch()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        run = self._required_run()
        step = self._count_updates()
        run.rates.note(step)
        if not logs or "loss" not in logs:
            return
        self._window.add(batch + 1, numbers(logs))
        finite = bool(np.isfinite(logs["loss"]))
        if finite or self._non_finite is None:
            self._non_finite = None if finite else step
        if self.every is not None and step // self.every > run.rows_at // self.every:
            steps = (self.params or {}).get("steps")
            part = (batch + 1) / steps if steps else 0.0
            run.train_row(step, self._epoch + part, run.rates.before(step), self._window.means())
            self._window.clear()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        run, step = self._required_run(), self._step
        self._epoch += 1.0
        found = numbers(logs or {})
        training = {key: value for key, value in found.items() if not key.startswith("val_")}
        if self.every is None and "loss" in training:
            run.train_row(step, self._epoch, run.rates.before(step), training)
        names = [] if self._averaging is None else list(self._averaging.averages)
        for weights, named, metrics in evaluations(found, names):
            policy = "recompute" if weights == RAW and named else self._policy(weights)
            row = {"split": self.split, "weights": weights, "batch_norm": policy}
            if self.examples is not None:
                metrics = {**metrics, "examples": self.examples}
            run.eval_row(step, self._epoch, {**row, **metrics})
        run.timing_row(step, self.batch_size)

    def on_train_end(self, logs: Any = None) -> None:
        run, step = self._required_run(), self._step
        status, message = "done", None
        if self._non_finite is not None:
            status = "diverged"
            message = f"The training loss is not finite from step {self._non_finite:,} on."
        elif run.planned is not None and step < run.planned:
            message = f"Training ended at step {step:,} of the {run.planned:,} planned."
        self._counted = steps_made(self.model)
        run.description["total_steps"] = step
        run.end(status, message)
        self._run = None

    # The run ----------------------------------------------------------------------------------

    def _count_updates(self) -> int:
        counted = steps_made(self.model)
        self._step += counted - self._counted
        self._counted = counted
        return self._step

    def _required_run(self) -> RunFiles:
        if self._run is None:
            raise RuntimeError(
                "RunRecorder has no run: pass it to `fit` in `callbacks=[…]`, or in a loop of your "
                "own call `set_model(model)` and `on_train_begin()` first."
            )
        return self._run

    def _find_averaging(self, members: list[Any]) -> WeightAveraging | None:
        found = [c for c in members if isinstance(c, WeightAveraging)]
        late = found and members.index(self) < members.index(found[0])
        if late and found[0].validation_data is not None:
            raise ValueError(
                "`callbacks` must list WeightAveraging before RunRecorder, which writes the "
                "epoch's metrics. Received: callbacks="
                f"{[type(member).__name__ for member in members]}"
            )
        return found[0] if found else None

    def _earlier_run(self, resumes: bool) -> dict[str, Any]:
        """Returns the content of `run.json` if it is of this run, and {} if there is none.

        Raises:
            RecordError: if the workdir holds another run.
        """
        path = self.workdir / records.RUN
        if not path.exists():
            return {}
        found = records.load_run(self.workdir).run
        own = self._continues()
        stopped = resumes and found["status"] in ("incomplete", "interrupted")
        if not own and not stopped:
            raise records.RecordError(
                f"workdir {self.workdir} holds a run already ({found['status']}). Choose another "
                "workdir, or delete that one."
            )
        return found

    def _continues(self) -> bool:
        """Returns whether the model is at the end of this recorder's run, or was trained
        further."""
        return self._recorded and steps_made(self.model) >= self._counted

    def _begin(self, epoch: int) -> None:
        """Writes the files before the first step; continues the rows of an earlier run."""
        run = self._required_run()
        if self._continues():
            self._count_updates()  # those of training in between
        else:
            self._step, self._epoch = steps_made(self.model), float(epoch)
        self._recorded = True
        step = self._step
        self._first_epoch = epoch
        self._non_finite = None
        params, optimizer = self.params or {}, self.model.optimizer
        if params.get("steps") and params.get("epochs"):
            batches = params["steps"] * (params["epochs"] - epoch)
            run.planned = step + int(batches * updates_per_batch(optimizer))
        config = self._config(run.earlier)
        if run.earlier:
            records.check_workdir_matches(self.workdir, config)
        run.begin(config, self._description(run, step), step, RateRecord(optimizer))

    def _config(self, earlier: Mapping[str, Any]) -> dict[str, Any]:
        model, averaging = self.model, self._averaging
        optimizer = _described(model.optimizer)
        if earlier and isinstance(optimizer.get("config"), dict):
            # A callback may have changed the rate since; it is still the same run.
            stored = records.read_json(self.workdir / records.CONFIG).get("optimizer", {})
            rate = (stored.get("config") or {}).get("learning_rate")
            if isinstance(rate, float):
                optimizer["config"]["learning_rate"] = rate
        return {
            "name": self.name,
            "model": {"class": type(model).__name__, "parameters": parameters(model)},
            "optimizer": optimizer,
            "loss": _described(model.loss),
            "averages": {} if averaging is None else _kernels(averaging),
            "batch_norm": {} if averaging is None else dict(averaging.batch_norm),
            **self.config,
        }

    def _description(self, run: RunFiles, step: int) -> dict[str, Any]:
        earlier, averaging, steps = run.earlier, self._averaging, (self.params or {}).get("steps")
        strategy = backend.strategy_of(self.model)
        replicas = 1 if strategy is None else strategy.num_replicas_in_sync
        names = [RAW] if averaging is None else [RAW, *averaging.averages]
        return {
            "format": records.FORMAT,
            "status": "incomplete",
            "name": self.name,
            "command": shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
            "created": earlier.get("created") or now(),
            "versions": versions(),
            "seed": self.seed,
            "threads": {"processors": os.cpu_count()},
            "strategy": None if replicas == 1 else type(strategy).__name__,
            "num_replicas": replicas,
            "total_steps": run.planned,
            "batch_size": self.batch_size,
            "steps_per_epoch": steps,
            "dataset": {} if self.data is None else {"name": self.data},
            "model": {"name": self.model.name, "parameters": parameters(self.model)},
            "averages": {} if averaging is None else _kernels(averaging),
            "batch_norm": {name: self._policy(name) for name in names},
            "matched_to": self._matched_to(),
            "message": None,
            "resumed_at": [*earlier.get("resumed_at", []), step] if earlier else [],
        }

    def _matched_to(self) -> dict[str, Any] | None:
        schedule = schedule_of(self.model.optimizer)
        folder = self.workdir.resolve()
        if not isinstance(schedule, EquivalentSchedule) or folder.parent.name != records.MATCHED:
            return None
        return {
            "average": folder.name,
            "kernel": schedule.kernel.get_config(),
            "curvature": schedule.curvature,
            "momentum": schedule.momentum,
        }

    def _policy(self, weights: str) -> str:
        """Returns the batch-norm policy of the evaluations of some weights."""
        if not self._has_batch_norm:
            return "none"
        if weights == RAW or self._averaging is None:
            return "running"
        return self._averaging.batch_norm[weights]


_INTERRUPTED = "Training stopped before its end: an exception, or the end of the process."


def _kernels(averaging: WeightAveraging) -> dict[str, Any]:
    return {name: kernel.get_config() for name, kernel in averaging.averages.items()}


def _described(thing: Any) -> Any:
    """Returns a Keras object's configuration, or its name if JSON cannot hold it."""
    if thing is None or isinstance(thing, str):
        return {} if thing is None else {"name": thing}
    if isinstance(thing, (list, tuple)):
        return [_described(one) for one in thing]
    if isinstance(thing, Mapping):
        return {str(key): _described(one) for key, one in thing.items()}
    name = getattr(thing, "__name__", type(thing).__name__)
    try:
        config = records.encode(thing.get_config())
        config.pop("name", None)  # Keras numbers its objects there
        return {"class": name, "config": config}
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return {"class": name}
