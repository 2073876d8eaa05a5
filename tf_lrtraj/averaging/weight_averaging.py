"""`WeightAveraging`: several averages of a model's weights, as one Keras callback."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.averaging import average_settings
from tf_lrtraj.averaging.backup import Backup, read_state, restore_streams
from tf_lrtraj.averaging.borrowing import holder_of, refuse_lent
from tf_lrtraj.averaging.lending import Lending, split
from tf_lrtraj.averaging.model_averages import ModelAverages, chosen, wide
from tf_lrtraj.averaging.model_files import check_model_path, save_model
from tf_lrtraj.averaging.other_callbacks import callbacks_beside, check_order
from tf_lrtraj.averaging.state import AverageState
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.backend.weight_updates import (
    Standing,
    UpdateCounter,
    check_model,
    check_trainable,
    is_built,
    steps_made,
)
from tf_lrtraj.durations import resolve_durations
from tf_lrtraj.kernels import Kernel
from tf_lrtraj.records import RAW, local_path
from tf_lrtraj.records.archives import save_arrays
from tf_lrtraj.values import integer, one_of


class WeightAveraging(keras.callbacks.Callback):
    """Keeps any number of weight averages beside a model that is being trained.

    The model trains on its raw weights and ends with them; the averages live in
    buffers of their own (float32 or wider, laid out over devices as the weights are) and are put
    into the model only inside `borrowed`.

    Example:

    >>> import keras, numpy as np
    >>> from tf_lrtraj import WeightAveraging, kernels
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> averaging = WeightAveraging({"ema": kernels.Exponential(0.9), "swa": kernels.Uniform()})
    >>> x, y = np.ones((8, 3)), np.ones((8, 1))
    >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[averaging])
    >>> averaging.num_updates
    3
    >>> with averaging.borrowed("ema"):
    ...     predictions = model.predict(x, verbose=0)
    >>> sorted(averaging.evaluate((x, y)))
    ['ema', 'raw', 'swa']

    Args:
        averages: name → kernel, or a kernel's configuration, in which numbers of updates may be
            durations of the `fit` that follows:
            `{"kernel": "Uniform", "start": "75 percent"}`, `"3 epochs"`.
        batch_norm: what statistics batch-norm layers use with averaged weights:
            `"recompute"` (pooled moments of `batch_norm_data` under the averaged
            weights), `"average"` (running statistics averaged by the same kernel)
            or `"copy"` (the raw weights' own); or a dict name → policy.
            Models without batch norm ignore it.
        batch_norm_data: for `"recompute"`: what `fit` takes as its data, with or without targets.
        batch_norm_batches: use at most this many batches; None for all.
        batch_size: batch size when `batch_norm_data` or `validation_data` are arrays.
        batch_norm_call: a function (model, batch) that runs a batch of `batch_norm_data` through
            the model in training mode, for models that train in a way that cannot be found out
            (a GAN, whose `call` is not what `train_step` calls).
        validation_data: what `fit` takes as `validation_data`.  Every average is evaluated on it
            at the end of an epoch.  The results join the epoch's `logs` as
            `val_<name>_<metric>`, for `History` and the callbacks that come later in the list.
            With recomputed batch-norm statistics `val_raw_<metric>` joins them, of the raw
            weights with recomputed statistics.
        validation_steps: evaluate on at most this many batches; None for all.
        validation_freq: do so every so many epochs.
        save_best: name → `.keras` path.  The average is saved there whenever its
            `val_<name>_<monitor>` improves.
        monitor: the compiled metric that `save_best` goes by.
        mode: `"min"` or `"max"`: what improvement means; may be left out for `"loss"`.
        variables: which trainable variables are averaged, a function of a variable; None for
            all.  The others stay raw wherever an average is lent.
        on_non_finite: what to do where weights are not finite after a step.  `"skip"` leaves such
            an iterate out of every average, with a warning; `"stop"` also ends the training;
            `"ignore"` does not look, which saves one reading of the weights at every update.

    In a `fit` with `keras.callbacks.BackupAndRestore` the averages, and the model's random
    streams (dropout's), are saved and restored in step with the model.  WeightAveraging must come
    before it in `callbacks`, and before callbacks that monitor an average.

    Copies and pickles hold the averages; a copied callback goes on with them once it has a model.
    Data sets are shared by copies.

    Raises:
        ValueError: for unknown policies, bad names, or counts below 1; for data that
            cannot be read again or never end.
    """

    def __init__(
        self,
        averages: Mapping[str, Kernel | Mapping[str, Any]],
        batch_norm: str | Mapping[str, str] = "recompute",
        batch_norm_data: Any = None,
        batch_norm_batches: int | None = None,
        batch_size: int = 128,
        validation_data: Any = None,
        validation_freq: int = 1,
        save_best: Mapping[str, str | os.PathLike[str]] | None = None,
        monitor: str = "loss",
        mode: str | None = None,
        *,
        batch_norm_call: Callable[[Any, Any], Any] | None = None,
        validation_steps: int | None = None,
        variables: Callable[[Any], bool] | None = None,
        on_non_finite: str = "skip",
    ) -> None:
        super().__init__()
        self.averages, self._unresolved = average_settings.read_averages(averages)
        self.batch_norm = average_settings.check_policies(batch_norm, averages)
        self.batch_norm_batches = (
            integer(1).or_none().check("batch_norm_batches", batch_norm_batches)
        )
        self.batch_size = integer(1).check("batch_size", batch_size)
        self.validation_freq = integer(1).check("validation_freq", validation_freq)
        self.validation_steps = integer(1).or_none().check("validation_steps", validation_steps)
        self.batch_norm_data, self.validation_data = batch_norm_data, validation_data
        # Whether data end is asked when training begins: their limits may still be set.
        self._check_data(self.batch_norm_batches or 1, self.validation_steps or 1)
        self.batch_norm_call = average_settings.check_function(batch_norm_call, "batch_norm_call")
        self.variables = average_settings.check_function(variables, "variables")
        self.on_non_finite = one_of(average_settings.NON_FINITE).check(
            "on_non_finite", on_non_finite
        )
        self.save_best = average_settings.check_save_best(
            {} if save_best is None else save_best, averages, validation_data
        )
        self.monitor = monitor
        self.mode = average_settings.check_monitor(monitor, mode)
        self.best: dict[str, float] = {}
        self.skipped = 0
        self._forget_training()

    def _forget_training(self) -> None:
        """Sets what belongs to a model and its training, and is no part of a copy."""
        self._running: ModelAverages | None = None
        self._training_thread: threading.Thread | None = None
        self._backup: Backup | None = None
        self._begun = False
        self._counter: UpdateCounter | None = None
        # Where the training stood when `fit` gave the model, and at the last update.
        self._at_set_model: Standing | None = None
        self._left: Standing | None = None
        self._loaded_iterations: int | None = None
        # State of the callback that this one is a copy of, until it has a model.
        self._carried: dict[str, Any] | None = None

    def _check_data(self, batches: int | None, steps: int | None) -> None:
        """Refuses data that cannot be read again, do not end, or do not fit together."""
        average_settings.check_lengths(self.validation_data, "validation_data")
        bn.check_data(self.batch_norm_data, batches=batches)
        bn.check_data(self.validation_data, "validation_data", steps, limit="validation_steps")

    @property
    def state(self) -> AverageState | None:
        """The buffers; None until the averages have begun."""
        return None if self._running is None else self._running.state

    @property
    def num_updates(self) -> int:
        """Updates made so far."""
        return 0 if self._running is None else self._running.num_updates

    # Beginning --------------------------------------------------------------------------------

    def set_model(self, model: Any) -> None:
        """Gives the model whose weights are averaged; `θ_0` is what it holds now.

        `fit` calls it, and begins at the weights that other callbacks restore or load
        before the first step.  In a loop of your own load weights before, or call `start` after.

        Raises:
            ValueError: for what is no model of Keras 3.
        """
        check_model(model, type(self).__name__)
        training = self._training_thread is not None and model is self._model
        super().set_model(model)
        if training or not is_built(model):  # `evaluate` gives the model too
            return
        self._follow(model)
        if not self.num_updates and not self._unresolved and holder_of(model) is None:
            self.start()

    def _follow(self, model: Any) -> None:
        self._counter = UpdateCounter(model, type(self).__name__)
        self._at_set_model = self._counter.standing()

    def start(self) -> None:
        """Begins the averages at the model's current weights, `θ_0`; the count of updates is 0.

        `set_model` does so by itself for a model that has its weights by then.

        Raises:
            RuntimeError: without a model, or while it holds borrowed weights.
            ValueError: if the model has no weights yet, or averages do not fit into memory.
        """
        self._refuse_durations()
        self._require_model()
        refuse_lent(self.model, "its own weights cannot be averaged")
        self.skipped = 0
        if self._running is None or not self._running.restart(self.model):
            self._running = ModelAverages(self.model, self)
        self._left = None if self._counter is None else self._counter.standing()
        self._loaded_iterations = None
        if self._carried is not None:
            carried, self._carried = self._carried, None
            self._load(carried, "the copied callback")

    def reset(self) -> None:
        """Forgets every average, and the model: the next training begins anew."""
        self._running = self._carried = self._left = self._loaded_iterations = None
        self.skipped = 0
        self.best = {}

    # What must be there, and what must not ----------------------------------------------------

    def _require_model(self) -> Any:
        if self.model is None:
            raise RuntimeError(
                "WeightAveraging has no model yet: pass it to `fit` in `callbacks=[…]`, or "
                "call `set_model(model)` first."
            )
        return self.model

    def _require_averages(self) -> ModelAverages:
        if self._running is None:
            self.start()
        assert self._running is not None
        return self._running

    def _refuse_durations(self) -> None:
        if self._unresolved:
            raise RuntimeError(
                f"The averages {sorted(self._unresolved)} are in epochs or percent of a `fit`, and "
                "none has begun. Give numbers of updates for a loop of your own."
            )

    def _refuse_other_threads(self, what: str) -> None:
        """A model must not change hands while another thread trains it."""
        thread = self._training_thread
        if thread is None or thread is threading.current_thread() or not thread.is_alive():
            return
        raise RuntimeError(
            f"{what} cannot be borrowed in thread "
            f"{threading.current_thread().name!r}: thread {thread.name!r} is training the model. "
            "Borrow in a callback of that training, or after it. (After a `fit` that ended in an "
            "exception call `on_train_end()` first.)"
        )

    # Updating ---------------------------------------------------------------------------------

    def update(self, weights: Any = None) -> bool:
        """Makes one update of every average.

        `fit` calls it after every optimizer step; a custom loop calls it itself, after
        `set_model`, once per step and outside of compiled functions.

        Args:
            weights: for a loop that keeps the weights outside of the model's variables (Keras'
                loops on JAX): arrays in the order of `model.trainable_variables`; where running
                statistics are averaged, a pair of these and the arrays of
                `model.non_trainable_variables`.  None for what the model holds.

        Returns:
            whether the weights were averaged: those that are not finite are left out, with
            a warning, and are no update.

        Raises:
            RuntimeError: without a model, in a compiled function, while the model holds borrowed
                weights, or on JAX if nothing has been assigned to the model's variables since
                the last update.
            ValueError: if `weights` do not fit the model.
        """
        self._refuse_durations()
        model = self._require_model()
        if backend.is_tracing():
            raise RuntimeError(
                "`update()` must be called outside of tf.function and jax.jit: compiled, it would "
                "run once only. Call it after the compiled step."
            )
        refuse_lent(self.model, "its own weights cannot be averaged")
        running = self._running
        if running is None:
            raise RuntimeError(
                "The averages have not begun: the model had no weights when `set_model` was "
                "called, or `reset` was. Call `start()` once it has them, before the first step."
            )
        running.check_model(model)
        given = None if weights is None else running.given(model, weights)
        if given is None and not running.note_versions():
            raise RuntimeError(
                "Nothing has been assigned to the model's variables since the last update. A loop "
                "that keeps the weights elsewhere gives them: "
                "`update(weights=trainable_variables)`."
            )
        averaged = self._update(running, given)
        if self._counter is not None and weights is None:
            self._left = None
        return averaged

    def _update(self, running: ModelAverages, given: list[Any] | None = None) -> bool:
        arrays = backend.values(running.variables) if given is None else given
        if self.on_non_finite != "ignore" and not backend.all_finite(arrays):
            self.skipped += 1
            if self.skipped == 1:
                warnings.warn(
                    f"The weights after update {running.num_updates} are not finite: such "
                    "iterates are left out of the averages and counted in `skipped`.",
                    stacklevel=4,
                )
            return False
        running.update(given)
        return True

    # Reading and lending ----------------------------------------------------------------------

    def get_average(self, name: str) -> list[np.ndarray]:
        """The average `name` as arrays in the order of `model.trainable_variables`.

        Where `variables` chooses some of them, those.  A weight that has become trainable
        since the last training is as it is.

        Raises:
            KeyError: for an unknown name.
        """
        self._require_model()
        if not self.num_updates:
            refuse_lent(self.model, "its own weights cannot be averaged")
        average = {id(v): a for v, a in self._require_averages().average(name, self.model)}
        own = chosen(self.model, self)
        return backend.to_numpy([average.get(id(v), wide(v)) for v in own])

    def borrowed(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """Puts an average into the model inside a `with` block, raw weights after it, to the bit.

        Returns:
            a context manager that yields the model.

        Raises:
            RuntimeError: if other weights are in the model already, here or in another thread
                (the message says whose), or another thread is training it; also if the model
                is trained inside the block.
            KeyError: for an unknown name.
        """
        model = self._require_model()
        if holder_of(model) is None:
            self._require_averages()
        self._refuse_other_threads(f"The average {name!r}")
        return self._lending().borrowed(name)

    def _lending(self) -> Lending:
        return Lending(self.model, self._require_averages, self)

    def evaluate(self, data: Any, **kwargs: Any) -> dict[str, dict[str, float]]:
        """Evaluates the raw weights and every average with the model's compiled metrics.

        Where batch-norm statistics are recomputed for averages, they are for `"raw"` too: running
        statistics lag behind the weights, and would make averages look better than they are.
        `"raw_running"` is then the raw weights with their running statistics.

        Args:
            data: what `model.evaluate` takes; `(x, y)` or `(x, y, sample_weight)`, a tuple or a
                list, is split.
            **kwargs: passed on to `model.evaluate`.

        Returns:
            {"raw": {metric: value}, name: {metric: value}, …}
        """
        self._require_model()
        refuse_lent(self.model, "its own weights cannot be evaluated")
        self._require_averages()
        self._refuse_other_threads("The raw weights")
        lending = self._lending()
        raw = [RAW, average_settings.RAW_RUNNING] if lending.recomputes_raw else [RAW]
        return lending.evaluate([*raw, *self.averages], data, kwargs)

    def save(self, name: str, path: str | os.PathLike[str]) -> None:
        """Writes a model that holds the average `name`, or its weights.

        The file appears whole or not at all.

        Args:
            name: of the average.
            path: a local path, or one that TensorFlow's file systems know (`gs://…`).  It ends
                in `.keras`, or in `.safetensors` for the weights by the variables' paths.

        Raises:
            ValueError: if `path` ends in neither, or cannot be reached.
        """
        target = check_model_path(path)
        with self.borrowed(name) as model:
            save_model(model, target, {"average": name, "updates": str(self.num_updates)})

    # Training ---------------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        model = self.model
        check_trainable(model, self)
        if self._counter is None:  # built after `set_model`, by Keras
            self._follow(model)
        self._resolve()
        if self._running is not None and self.num_updates:
            self._running.check_model(model)
        self._check_data(self.batch_norm_batches, self.validation_steps)
        bn.check_model(model, self.batch_norm.values())
        beside = callbacks_beside(self)
        evaluated = list(self.averages) if self.validation_data is not None else []
        check_order(self, beside, [f"val_{name}_" for name in evaluated])
        followed = [c for c in beside if isinstance(c, keras.callbacks.BackupAndRestore)]
        if not followed:
            self._backup = None
        elif self._backup is None or self._backup.followed is not followed[0]:
            self._backup = Backup(followed[0])
        self._begun = False
        self._training_thread = threading.current_thread()

    def _resolve(self) -> None:
        """Makes kernels of configurations with durations, now that `fit` tells its length."""
        if not self._unresolved:
            return
        steps, total = self._updates_of_fit()
        kernels = dict(self.averages)
        for name, config in self._unresolved.items():
            resolved = resolve_durations(config, steps, total, name=f"averages[{name!r}]")
            kernels[name] = average_settings.check_kernel(name, resolved)
        self.averages = {name: kernels[name] for name in self.batch_norm}
        self._unresolved = {}

    def _updates_of_fit(self) -> tuple[float | None, int | None]:
        """(updates of an epoch, updates of the whole `fit`), where Keras knows them."""
        params = self.params or {}
        batches, epochs = params.get("steps"), params.get("epochs")
        if not batches or not epochs:
            return None, None
        optimizer = getattr(self.model, "optimizer", None)
        each = getattr(optimizer, "gradient_accumulation_steps", None) or 1
        return batches / each, batches * epochs // each

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begin()
        assert self._counter is not None
        self._counter.start_epoch()

    def _begin(self) -> None:
        """Takes up the averages where the model stands, once per `fit`.

        Not in `on_train_begin`: only after that has every callback put into the
        model what it restores.
        """
        if self._begun:
            return
        self._begun = True
        model, counter = self.model, self._counter
        before = self._at_set_model
        assert counter is not None and before is not None
        now = counter.standing()
        stepped = now.counts != before.counts
        # What has moved since `fit` gave the model, another callback has put in.
        moved = stepped or not now.same_weights(before)
        if not (moved and self._restore(model, stepped)):
            self._go_on(now)
        self._lending().check_recomputation()
        counter.restart()
        self._left = counter.standing()
        self._warn_of_averages_that_never_begin()
        if (self.params or {}).get("verbose"):
            print(f"WeightAveraging: {self._require_averages().state.describe_memory()}")

    def _go_on(self, now: Standing) -> None:
        """Begins at the weights of now, or goes on from those of the last update."""
        left = self._left
        if not self.num_updates:
            self.start()
        elif self._loaded_iterations is not None:
            self._warn_of_iterations(self._loaded_iterations, steps_made(self.model))
        elif left is not None and not now.same_weights(left):
            if now.steps_since(left) and now.same_optimizers(left):
                before = max(left.counts.values(), default=0)
                self._warn_of_iterations(before, max(now.counts.values(), default=0))
            elif now.same_optimizers(left):
                warnings.warn(
                    "The model's weights were set after the last update, by something other than "
                    f"training: the averages, of {self.num_updates} updates, begin anew. Use a "
                    "WeightAveraging of its own for each run to keep them.",
                    stacklevel=3,
                )
                self.reset()
                self.start()
            else:
                raise ValueError(
                    "The model has another optimizer, and other weights, than at the last update "
                    f"of the averages (number {self.num_updates}): whether this is the same "
                    "training cannot be known. Call `averaging.reset()` to begin anew, or "
                    "train with WeightAveraging all along."
                )
        self._loaded_iterations = None
        self._require_averages().join_new_weights(self.model)

    def _warn_of_iterations(self, before: int, now: int) -> None:
        if now > before:
            warnings.warn(
                f"The optimizer went from {before} to {now} iterations without "
                "WeightAveraging: its averages leave those weights out.",
                stacklevel=4,
            )

    def _warn_of_averages_that_never_begin(self) -> None:
        _, updates = self._updates_of_fit()
        if updates is None:
            return
        end = self.num_updates + updates
        begins = {name: kernel.first_average for name, kernel in self.averages.items()}
        late = {name: begin for name, begin in begins.items() if begin is not None and begin > end}
        if late:
            warnings.warn(
                f"WeightAveraging: the averages {late} begin at that update, and this `fit` "
                f"ends at update {end}: until then they are the raw weights.",
                stacklevel=3,
            )

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        model = self.model  # on JAX this brings the variables up to date
        assert self._counter is not None
        # Weights do not move on the micro-steps of gradient accumulation, nor when
        # loss scaling skips a step.
        if self._counter.moved():
            refuse_lent(self.model, "its own weights cannot be averaged")
            if not self._update(self._require_averages()) and self.on_non_finite == "stop":
                model.stop_training = True
        if self._backup is not None and self._backup.due_after_batch():
            self._write_backup(self._backup)

    def on_train_end(self, logs: Any = None) -> None:
        self._training_thread = None
        self._begin()  # a training restored at its end has no epochs left
        if self._counter is not None:
            self._left = self._counter.standing()
        if self.skipped:
            warnings.warn(
                f"WeightAveraging left out {self.skipped} iterates that were not finite.",
                stacklevel=3,
            )

    # At the end of an epoch -------------------------------------------------------------------

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.validation_data is not None and (epoch + 1) % self.validation_freq == 0:
            self._validate({} if logs is None else logs)
        if self._backup is not None and self._backup.due_after_epoch():
            self._write_backup(self._backup)

    def _validate(self, logs: dict[str, Any]) -> None:
        """Puts metrics of every average into `logs`, and saves those that are the best so far."""
        data, lending = split(self.validation_data), self._lending()
        options = {"steps": self.validation_steps}
        if data[1] is not None:  # arrays
            options["batch_size"] = self.batch_size
        names = [*([RAW] if lending.recomputes_raw else []), *self.averages]
        for name, metrics in lending.evaluate(names, data, options).items():
            for metric, value in metrics.items():
                key = f"val_{name}_{metric}"
                if key in logs:
                    raise ValueError(
                        f"The average {name!r} needs another name: {key!r} is a metric of the "
                        "model already."
                    )
                logs[key] = value
            if name in self.save_best:
                self._save_if_best(name, metrics)

    def _save_if_best(self, name: str, metrics: Mapping[str, float]) -> None:
        if self.monitor not in metrics:
            raise ValueError(
                f"`monitor` must be one of the compiled metrics {sorted(metrics)}. "
                f"Received: monitor={self.monitor!r}"
            )
        sign = 1.0 if self.mode == "min" else -1.0
        value = metrics[self.monitor]
        # A value that is not a number is never the best.
        if sign * value < sign * self.best.get(name, sign * math.inf):
            self.best[name] = value
            self.save(name, self.save_best[name])

    # Saving and copying the state -------------------------------------------------------------

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Writes every buffer and the update count to an `.npz` file, whole or not at all."""
        local_path(path, "path")
        save_arrays(path, self._arrays(), compress=False)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Reads what `save_state` wrote; the next updates go on from there, to the bit.

        Raises:
            ValueError: if the file holds the state of other averages or another model, or
                is damaged.
            OSError: if it cannot be read.
        """
        stored = read_state(path)
        self._require_model()
        self._load(stored, os.fspath(path))

    def _arrays(self) -> dict[str, Any]:
        return self._require_averages().arrays(self.model)

    def _load(self, stored: Mapping[str, Any], path: str) -> None:
        running = self._require_averages()
        running.check_model(self.model)
        self._loaded_iterations = running.load(stored, path)

    def _write_backup(self, backup: Backup) -> None:
        backup.write(self.model, self.num_updates, self._arrays(), self.best)

    def _restore(self, model: Any, counts_changed: bool) -> bool:
        """Loads the state that goes with the weights another callback has just put in.

        Returns:
            whether there was one; not, where weights were loaded that no training had made.
        """
        backup = self._backup
        stored = None if backup is None else backup.read(model)
        if stored is None and not counts_changed and not (backup and backup.files()):
            return False
        if backup is None or stored is None:
            where = "no BackupAndRestore is in `callbacks`" if backup is None else backup.folder
            raise ValueError(
                f"The model was restored at iteration {steps_made(model)}, and WeightAveraging has "
                f"no state that goes with it ({where}). It must train with BackupAndRestore from "
                "the start for its averages to be restored too. To average from here on instead, "
                "load the weights before `fit`."
            )
        if self.num_updates:
            self._require_averages().join_new_weights(model)
        self._load(stored, str(backup.folder))
        self._loaded_iterations = None
        restore_streams(model, stored)
        self.best = json.loads(str(stored["best"]))
        return True

    # Of a model or its training, and set anew by `_forget_training`.
    _NOT_COPIED = (
        *("_model", "model", "_running", "_training_thread"),
        *("_counter", "_at_set_model", "_left", "_backup", "_begun", "_loaded_iterations"),
    )

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in vars(self).items() if k not in self._NOT_COPIED}
        if self.num_updates:
            kept["_carried"] = self._arrays()
        return kept

    def __setstate__(self, kept: Mapping[str, Any]) -> None:
        super().__init__()
        self._forget_training()
        for name, value in kept.items():
            setattr(self, name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightAveraging:
        new = type(self).__new__(type(self))
        shared = ("batch_norm_data", "validation_data", "batch_norm_call", "variables", "params")
        kept = self.__getstate__()
        new.__setstate__({k: v if k in shared else copy.deepcopy(v, memo) for k, v in kept.items()})
        return new
