"""`WeightAveraging`: several averages of a model's weights, as one Keras callback."""

from __future__ import annotations

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
from tf_lrtraj.averaging.backup import Backup, checksum, to_npz
from tf_lrtraj.averaging.borrowing import holder_of
from tf_lrtraj.averaging.companions import callbacks_beside, check_order
from tf_lrtraj.averaging.model_averages import ModelAverages, split
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
from tf_lrtraj.records import RAW, local_path, write_atomically
from tf_lrtraj.records.archives import load_arrays


class WeightAveraging(keras.callbacks.Callback, ModelAverages):
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
        batch_norm_call: a function of the model and a batch of `batch_norm_data` that runs it
            through the model in training mode, for models that train in a way that cannot be
            found out (a GAN, whose `call` is not what `train_step` calls).
        validation_data: what `fit` takes as `validation_data`.  Every
            average is evaluated on it at the end of an epoch, and the results join
            the epoch's `logs` as `val_<name>_<metric>`, where callbacks that come
            later in the list (EarlyStopping, TensorBoard, …) and `History` find them.
            Where batch-norm statistics are recomputed, so is `val_raw_<metric>`, the raw
            weights with recomputed statistics.
        validation_steps: evaluate on at most this many batches; None for all.
        validation_freq: do so every so many epochs.
        save_best: name → `.keras` path.  The average is saved there whenever its
            `val_<name>_<monitor>` improves.
        monitor: the compiled metric that `save_best` goes by.
        mode: `"min"` or `"max"`: what improvement means; may be left out for `"loss"`.
        variables: which trainable variables are averaged, a function of a variable; None for
            all.  The others stay raw wherever an average is lent.
        on_non_finite: what to do where weights are not finite after a step.  Such an iterate is
            left out of every average, with a warning; `"stop"` also ends the training, as
            `keras.callbacks.TerminateOnNaN` does, and `"skip"` goes on.  `"ignore"` does not look,
            which saves one reading of the weights at every update.

    In a `fit` with `keras.callbacks.BackupAndRestore` the averages are saved and
    restored in step with the model, and so are the model's random streams (dropout's),
    which Keras leaves out.  WeightAveraging must come before it in `callbacks`, and
    before callbacks that monitor an average; another order is refused.

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
        keras.callbacks.Callback.__init__(self)
        ModelAverages.__init__(self)
        average_settings.check_names(averages)
        # Durations wait for the `fit` that says how long an epoch is.
        self._unresolved: dict[str, Any] = {
            name: kernel
            for name, kernel in averages.items()
            if average_settings.has_durations(kernel)
        }
        self.averages = average_settings.check_averages(averages, but=self._unresolved)
        if isinstance(batch_norm, str):
            batch_norm = {name: batch_norm for name in averages}
        if not isinstance(batch_norm, Mapping) or set(batch_norm) != set(averages):
            raise ValueError(
                f"`batch_norm` must name a policy for each of {sorted(averages)}. "
                f"Received: {batch_norm!r}"
            )
        self.batch_norm = {
            name: bn.check_policy(p, f"batch_norm[{name!r}]") for name, p in batch_norm.items()
        }
        self.batch_norm_batches = average_settings.check_count(
            batch_norm_batches, "batch_norm_batches", optional=True
        )
        self.batch_size = average_settings.check_count(batch_size, "batch_size")
        self.validation_freq = average_settings.check_count(validation_freq, "validation_freq")
        self.validation_steps = average_settings.check_count(
            validation_steps, "validation_steps", optional=True
        )
        self.batch_norm_data, self.validation_data = batch_norm_data, validation_data
        # Whether data end is asked when training begins: their limits may still be set.
        self._check_data(self.batch_norm_batches or 1, self.validation_steps or 1)
        self.batch_norm_call = average_settings.check_function(batch_norm_call, "batch_norm_call")
        self.variables = average_settings.check_function(variables, "variables")
        self.on_non_finite = average_settings.check_choice(
            on_non_finite, average_settings.NON_FINITE, "on_non_finite"
        )
        self.save_best = average_settings.check_save_best(
            {} if save_best is None else save_best, averages, validation_data
        )
        self.monitor = monitor
        self.mode = average_settings.check_monitor(monitor, mode)
        self.best: dict[str, float] = {}
        self._backup: Backup | None = None
        self._begun = False
        self._counter: UpdateCounter | None = None
        # Where the training stood when `fit` gave the model, and at the last update.
        self._at_set_model: Standing | None = None
        self._left: Standing | None = None
        self._loaded_iterations: int | None = None
        self._carried: dict[str, Any] | None = None

    def _check_data(self, batches: int | None, steps: int | None) -> None:
        """Refuses data that cannot be read again, do not end, or do not fit together."""
        average_settings.check_lengths(self.validation_data, "validation_data")
        bn.check_data(self.batch_norm_data, batches=batches)
        bn.check_data(self.validation_data, "validation_data", steps, limit="validation_steps")

    # Where the trajectory begins --------------------------------------------------------------

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
        self._counter = UpdateCounter(model, type(self).__name__)
        self._at_set_model = self._counter.standing()
        if not self.num_updates and not self._unresolved and holder_of(model) is None:
            self.start()

    def start(self) -> None:
        self._refuse_durations()
        super().start()
        self._left = None if self._counter is None else self._counter.standing()
        self._loaded_iterations = None
        if self._carried is not None:
            carried, self._carried = self._carried, None
            self._load_arrays(carried, "the copied callback")

    start.__doc__ = ModelAverages.start.__doc__

    def reset(self) -> None:
        super().reset()
        self._carried = self._left = self._loaded_iterations = None
        self.best = {}

    reset.__doc__ = ModelAverages.reset.__doc__

    def _refuse_durations(self) -> None:
        if self._unresolved:
            raise RuntimeError(
                f"The averages {sorted(self._unresolved)} are in epochs or percent of a `fit`, and "
                "none has begun. Give numbers of updates for a loop of your own."
            )

    # Training ---------------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        model = self.model
        check_trainable(model, self)
        if self._counter is None:  # built after `set_model`, by Keras
            self._counter = UpdateCounter(model, type(self).__name__)
            self._at_set_model = self._counter.standing()
        self._resolve()
        if self.num_updates:
            self._check_model()
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
        if self._recomputes_raw() and not backend.is_distributed(self.batch_norm_data):
            self._recomputed("The training", [], batches=1)  # what is wrong shows now
        counter.restart()
        self._left = counter.standing()
        self._warn_of_averages_that_never_begin()
        if (self.params or {}).get("verbose"):
            print(f"WeightAveraging: {self._require_state().describe_memory()}")

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
        self._join_new_weights()

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
            self._refuse_borrowed("be averaged")
            if not self._make_update() and self.on_non_finite == "stop":
                model.stop_training = True
        if self._backup is not None and self._backup.due_after_batch():
            self._save_backup(self._backup)

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

    def update(self, weights: Any = None) -> bool:
        self._refuse_durations()
        averaged = super().update(weights)
        if self._counter is not None and weights is None:
            self._left = None
        return averaged

    update.__doc__ = ModelAverages.update.__doc__

    # At the end of an epoch -------------------------------------------------------------------

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.validation_data is not None and (epoch + 1) % self.validation_freq == 0:
            self._validate({} if logs is None else logs)
        if self._backup is not None and self._backup.due_after_epoch():
            self._save_backup(self._backup)

    def _validate(self, logs: dict[str, Any]) -> None:
        """Puts metrics of every average into `logs`, and saves those that are the best so far."""
        x, y, sample_weight = split(self.validation_data)
        options = {"steps": self.validation_steps}
        if y is not None:
            options["batch_size"] = self.batch_size
        names = [*([RAW] if self._recomputes_raw() else []), *self.averages]
        for name, metrics in self._evaluate(names, (x, y, sample_weight), options).items():
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

    # Saving the state -------------------------------------------------------------------------

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Writes every buffer and the update count to an `.npz` file, whole or not at all."""
        local_path(path, "path")
        write_atomically(path, to_npz(self._state_arrays()))

    def _state_arrays(self) -> dict[str, Any]:
        """Everything that `_load_arrays` needs to go on."""
        state = self._require_state()
        buffers = backend.to_numpy(backend.values(state.variables))
        return {
            "averages": np.array(self._describe_averages()),
            "num_updates": np.int64(self.num_updates),
            "iterations": np.int64(steps_made(self.model)),
            **{f"buffer_{i}": buffer for i, buffer in enumerate(buffers)},
        }

    def _describe_averages(self) -> str:
        averages = {name: kernel.get_config() for name, kernel in self.averages.items()}
        return json.dumps({"averages": averages, "batch_norm": self.batch_norm})

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Reads what `save_state` wrote; the next updates go on from there, to the bit.

        Raises:
            ValueError: if the file holds the state of other averages or another model, or
                is damaged.
            OSError: if it cannot be read.
        """
        local_path(path, "path")
        try:
            stored = load_arrays(path, largest=None)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is no saved state: {error}") from None
        self._require_model()
        self._load_arrays(stored, path)

    def _load_arrays(self, stored: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
        state = self._require_state()
        self._check_model()
        described = str(stored.get("averages", "nothing known"))
        if described != self._describe_averages():
            raise ValueError(
                f"`path` must hold the state of the averages {self._describe_averages()}. "
                f"Received: {str(path)!r} with {described}"
            )
        names = [f"buffer_{i}" for i in range(len(state.variables))]
        held = {name: stored[name] for name in names if name in stored}
        shapes = [tuple(held[name].shape) if name in held else None for name in names]
        counts = [stored.get(name, -1) for name in ("num_updates", "iterations")]
        sound = all(array.dtype.kind in "fc" for array in held.values()) and all(
            not count.shape and count.dtype.kind in "iu" and count >= 0
            for count in map(np.asarray, counts)
        )
        if not sound:
            raise ValueError(f"{os.fspath(path)} is no saved state: its content is damaged")
        if shapes != [tuple(v.shape) for v in state.variables]:
            raise ValueError(
                "`path` must hold averages of this model. "
                f"Received: {str(path)!r} with buffers of shapes {shapes}"
            )
        backend.assign(state.variables, [stored[name] for name in names])
        self.num_updates, self._loaded_iterations = (int(count) for count in counts)

    # In step with BackupAndRestore ------------------------------------------------------------

    def _random_streams(self) -> list[Any]:
        """The model's variables that Keras does not save with its weights: seeds of dropout."""
        saved = {id(variable) for variable in self.model.weights}
        return [v for v in self.model.non_trainable_variables if id(v) not in saved]

    def _save_backup(self, backup: Backup) -> None:
        streams = backend.to_numpy(backend.values(self._random_streams()))
        backup.write(
            self.num_updates,
            {
                **self._state_arrays(),
                **{f"stream_{i}": stream for i, stream in enumerate(streams)},
                "best": np.array(json.dumps(self.best)),
                "checksum": np.uint32(checksum(self.model.weights)),
            },
        )

    def _restore(self, model: Any, counts_changed: bool) -> bool:
        """Loads the state that goes with the weights another callback has just put in.

        Returns:
            whether there was one; not, where weights were loaded that no training had made.
        """
        backup = self._backup
        stored = None if backup is None else backup.read(checksum(model.weights))
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
            self._join_new_weights()
        self._load_arrays(stored, backup.folder)
        self._loaded_iterations = None
        streams = self._random_streams()
        backend.assign(streams, [stored[f"stream_{i}"] for i in range(len(streams))])
        self.best = json.loads(str(stored["best"]))
        return True

    # Copies -----------------------------------------------------------------------------------

    _NOT_COPIED = (
        "_model",
        "model",
        "state",
        "_averaged",
        "_update",
        "_update_from",
        "_recompute",
        "_seen_versions",
        "_training_thread",
        "_counter",
        "_at_set_model",
        "_left",
        "_backup",
    )

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in vars(self).items() if k not in self._NOT_COPIED}
        if self.state is not None and self.num_updates:
            kept["_carried"] = self._state_arrays()
        return kept

    def __setstate__(self, kept: Mapping[str, Any]) -> None:
        keras.callbacks.Callback.__init__(self)
        ModelAverages.__init__(self)
        for name, value in kept.items():
            setattr(self, name, value)
        self._backup = self._counter = self._at_set_model = self._left = None
        self._begun = False
        self.num_updates = 0  # until the model is there

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightAveraging:
        new = type(self).__new__(type(self))
        shared = ("batch_norm_data", "validation_data", "batch_norm_call", "variables", "params")
        kept = self.__getstate__()
        new.__setstate__({k: v if k in shared else copy.deepcopy(v, memo) for k, v in kept.items()})
        return new
