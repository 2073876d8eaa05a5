"""`WeightAveraging`: a Keras callback that keeps several averages of a model's weights."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.averaging import average_settings
from tf_lrtraj.averaging.borrowing import holder_of, refuse_lent
from tf_lrtraj.averaging.lending import Lending, split
from tf_lrtraj.averaging.model_averages import chosen, wide
from tf_lrtraj.averaging.model_files import check_model_path, save_model
from tf_lrtraj.averaging.optimizer_averages import OptimizerAverages
from tf_lrtraj.averaging.other_callbacks import callbacks_beside, check_order
from tf_lrtraj.averaging.own_averages import OwnAverages
from tf_lrtraj.averaging.state import AverageState
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.backend.weight_updates import check_model
from tf_lrtraj.kernels import Kernel
from tf_lrtraj.records import RAW, local_path
from tf_lrtraj.values import integer, one_of


class WeightAveraging(keras.callbacks.Callback):
    """Keeps any number of averages of a model's weights during training.

    The model trains on its raw weights and ends with them.  The averages are stored in separate
    buffers (float32 or wider, with the same layout over devices as the weights) and are put into
    the model only inside `borrowed`.

    Without `averages` the callback uses those of the `AveragedOptimizer` that the model is compiled
    with.  They are updated inside the compiled step, so any `steps_per_execution` works, and Keras
    saves and restores them with the optimizer.

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
        averages: name → kernel, or a kernel's configuration.  In a configuration, numbers of
            updates may be durations of the next `fit`, such as `"3 epochs"` or `"75 percent"` in
            `{"kernel": "Uniform", "start": "75 percent"}`.  None uses the averages of the model's
            `AveragedOptimizer`.
        batch_norm: the batch-norm statistics of averaged weights; a policy, or a dict
            name → policy.  `"recompute"` uses pooled moments of `batch_norm_data` under the
            averaged weights; `"average"` uses running statistics averaged by the same kernel (not
            for averages of an optimizer); `"copy"` uses those of the raw weights.  Models without
            batch norm ignore it.
        batch_norm_data: data for `"recompute"`, as `fit` takes them, with or without targets.
        batch_norm_batches: largest number of batches to use; None for all.
        batch_size: batch size if `batch_norm_data` or `validation_data` are arrays.
        batch_norm_call: a function (model, batch) that runs a batch of `batch_norm_data` through
            the model in training mode.  It is needed if `train_step` does not use the model's
            `call`, as in a GAN.
        validation_data: data on which every average is evaluated at the end of an epoch, as `fit`
            takes `validation_data`.  The results are added to the epoch's `logs` as
            `val_<name>_<metric>`, for `History` and the callbacks that come later in the list.  If
            batch-norm statistics are recomputed, `val_raw_<metric>` is added too, for the raw
            weights with recomputed statistics.
        validation_steps: largest number of batches to evaluate; None for all.
        validation_freq: number of epochs between evaluations.
        save_best: name → `.keras` path.  The average is saved there whenever its
            `val_<name>_<monitor>` improves.
        monitor: the compiled metric that `save_best` uses.
        mode: `"min"` or `"max"`, the direction of improvement; may be omitted for `"loss"`.
        variables: a function of a trainable variable that returns whether it is averaged; None
            averages all.  The other variables keep their raw values when an average is lent.
        on_non_finite: the action if weights are not finite after a step.  `"skip"` leaves the
            iterate out of every average, with a warning; `"stop"` also ends the training;
            `"ignore"` skips the check, which saves one read of the weights per update.

    In a `fit` with `keras.callbacks.BackupAndRestore`, the averages and the model's random streams
    (of dropout) are saved and restored in step with the model.  WeightAveraging must come before
    BackupAndRestore in `callbacks`, and before callbacks that monitor an average.

    Copies and pickles contain the averages; a copied callback continues with them once it has a
    model.  Copies share data sets.

    Raises:
        ValueError: if a policy is unknown, a name is not allowed, a count is below 1, or data
            cannot be read again or never end.
    """

    def __init__(
        self,
        averages: Mapping[str, Kernel | Mapping[str, Any]] | None = None,
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
        self.averages: dict[str, Kernel] = {}
        self.batch_norm: dict[str, str] = {}
        waiting: Mapping[str, Any] = {}
        if averages is not None:
            self.averages, waiting = average_settings.read_averages(averages)
            self.batch_norm = average_settings.check_policies(batch_norm, averages)
        self.batch_norm_batches = (
            integer(1).or_none().check("batch_norm_batches", batch_norm_batches)
        )
        self.batch_size = integer(1).check("batch_size", batch_size)
        self.validation_freq = integer(1).check("validation_freq", validation_freq)
        self.validation_steps = integer(1).or_none().check("validation_steps", validation_steps)
        self.batch_norm_data, self.validation_data = batch_norm_data, validation_data
        # Whether data end is checked when training begins, because limits may still be set.
        self._check_data(self.batch_norm_batches or 1, self.validation_steps or 1)
        self.batch_norm_call = average_settings.check_function(batch_norm_call, "batch_norm_call")
        self.variables = average_settings.check_function(variables, "variables")
        self.on_non_finite = one_of(average_settings.NON_FINITE).check(
            "on_non_finite", on_non_finite
        )
        save_best = {} if save_best is None else save_best
        self.save_best: dict[str, Any] = {}
        if averages is not None:
            self.save_best = average_settings.check_save_best(save_best, averages, validation_data)
        self.monitor = monitor
        self.mode = average_settings.check_monitor(monitor, mode)
        self.best: dict[str, float] = {}
        self._training_thread: threading.Thread | None = None
        self._kept: OwnAverages | OptimizerAverages = (
            OptimizerAverages(self, batch_norm, save_best)
            if averages is None
            else OwnAverages(self, waiting)
        )

    def _check_data(self, batches: int | None, steps: int | None) -> None:
        """Raises ValueError for data that cannot be read again, never end or differ in length."""
        average_settings.check_lengths(self.validation_data, "validation_data")
        bn.check_data(self.batch_norm_data, batches=batches)
        bn.check_data(self.validation_data, "validation_data", steps, limit="validation_steps")

    @property
    def state(self) -> AverageState | None:
        """The buffers; None until the averages have begun."""
        return None if self._kept.running is None else self._kept.running.state

    @property
    def num_updates(self) -> int:
        """Number of updates made so far."""
        return self._kept.num_updates

    @property
    def skipped(self) -> int:
        """Number of iterates left out because they were not finite."""
        return self._kept.skipped

    # Beginning --------------------------------------------------------------------------------

    def set_model(self, model: Any) -> None:
        """Sets the model whose weights are averaged; `θ_0` is its current weights.

        `fit` calls this method, and then starts the averages at the weights that other callbacks
        restore before the first step.  In a custom loop, load weights before this call, or call
        `start` after loading them.

        Raises:
            ValueError: if `model` is not a Keras 3 model, or if it has no AveragedOptimizer and no
                `averages` were given.
        """
        check_model(model, type(self).__name__)
        training = self._training_thread is not None and model is self._model
        super().set_model(model)
        if not training:  # `evaluate` inside a training sets the model too
            self._kept.set_model(model)

    def start(self) -> None:
        """Starts the averages at the model's current weights, `θ_0`, with an update count of 0.

        `set_model` does so itself if the model has weights.

        Raises:
            RuntimeError: if no model is set, or if it holds borrowed weights.
            ValueError: if the model has no weights yet, or the averages do not fit into memory.
        """
        self._require_model()
        self._kept.start()

    def reset(self) -> None:
        """Discards every average and the model; the next training starts new averages."""
        self._kept.reset()
        self.best = {}

    # Preconditions ----------------------------------------------------------------------------

    def _require_model(self) -> Any:
        if self.model is None:
            raise RuntimeError(
                "WeightAveraging has no model yet. Pass the callback to `fit` in `callbacks=[…]`, "
                "or call `set_model(model)` first."
            )
        return self.model

    def _refuse_other_threads(self, what: str) -> None:
        """Raises RuntimeError if another thread is training the model."""
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
        """Updates every average once.

        During a `fit` the averages are updated after every optimizer step.  A custom loop calls
        this method after `set_model`, once per step and outside of compiled functions.

        Args:
            weights: arrays in the order of `model.trainable_variables`, for a loop that keeps the
                weights outside of the model (as on JAX).  If running statistics are averaged, a
                pair of these and the arrays of `model.non_trainable_variables`.  None uses the
                model's values.

        Returns:
            Whether the weights were averaged.  Weights that are not finite are left out, with a
            warning, and do not count as an update.

        Raises:
            RuntimeError: if no model is set, inside a compiled function, while the model holds
                borrowed weights, or on JAX if nothing has been assigned to the model's variables
                since the last update.
            ValueError: if `weights` do not fit the model.
        """
        self._require_model()
        return self._kept.update(weights)

    # Reading and lending ----------------------------------------------------------------------

    def get_average(self, name: str) -> list[np.ndarray]:
        """Returns the average `name` as arrays in the order of `model.trainable_variables`.

        Only variables that `variables` selects are included.  A weight that has become trainable
        since the last training has its current value.

        Raises:
            KeyError: for an unknown name.
        """
        self._require_model()
        if not self.num_updates:
            refuse_lent(self.model, "its own weights cannot be averaged")
        average = {id(v): a for v, a in self._kept.averages().average(name, self.model)}
        own = chosen(self.model, self)
        return backend.to_numpy([average.get(id(v), wide(v)) for v in own])

    def borrowed(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """Puts an average into the model inside a `with` block; restores the raw weights exactly.

        Returns:
            A context manager that yields the model.

        Raises:
            RuntimeError: if the model already holds borrowed weights (the message says which), if
                another thread is training it, or if it is trained inside the block.
            KeyError: for an unknown name.
        """
        model = self._require_model()
        if holder_of(model) is None:
            self._kept.averages()
        self._refuse_other_threads(f"The average {name!r}")
        return self._lending().borrowed(name)

    def _lending(self) -> Lending:
        return Lending(self.model, self._kept.averages, self)

    def evaluate(self, data: Any, **kwargs: Any) -> dict[str, dict[str, float]]:
        """Evaluates the raw weights and every average with the model's compiled metrics.

        If batch-norm statistics are recomputed for averages, they are recomputed for `"raw"` too:
        running statistics lag behind the weights, which would flatter the averages.
        `"raw_running"` then stands for the raw weights with their running statistics.

        Args:
            data: data as `model.evaluate` takes them, or a tuple or list `(x, y)` or
                `(x, y, sample_weight)`.
            **kwargs: further arguments of `model.evaluate`.

        Returns:
            {"raw": {metric: value}, name: {metric: value}, …}
        """
        self._require_model()
        refuse_lent(self.model, "its own weights cannot be evaluated")
        self._kept.averages()
        self._refuse_other_threads("The raw weights")
        lending = self._lending()
        raw = [RAW, average_settings.RAW_RUNNING] if lending.recomputes_raw else [RAW]
        return lending.evaluate([*raw, *self.averages], data, kwargs)

    def save(self, name: str, path: str | os.PathLike[str]) -> None:
        """Saves the average `name` as a model or as a file of weights.

        The file appears whole or not at all.

        Args:
            name: name of the average.
            path: a local path, or one of TensorFlow's file systems (`gs://…`).  It ends in
                `.keras` for a model, or in `.safetensors` for the weights, named by the variables'
                paths.

        Raises:
            ValueError: if `path` has another ending or cannot be reached.
            KeyError: for an unknown name.
        """
        target = check_model_path(path)
        with self.borrowed(name) as model:
            save_model(model, target, {"average": name, "updates": str(self.num_updates)})

    # Training ---------------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        self._kept.begin_training()
        self._check_data(self.batch_norm_batches, self.validation_steps)
        bn.check_model(self.model, self.batch_norm.values())
        evaluated = list(self.averages) if self.validation_data is not None else []
        check_order(self, callbacks_beside(self), [f"val_{name}_" for name in evaluated])
        self._training_thread = threading.current_thread()

    def check_recomputation(self) -> None:
        """Recomputes statistics of the raw weights on one batch, to find errors early."""
        self._lending().check_recomputation()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._kept.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._kept.after_batch(batch)

    def on_train_end(self, logs: Any = None) -> None:
        self._training_thread = None
        self._kept.end_training()

    # At the end of an epoch -------------------------------------------------------------------

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.validation_data is not None and (epoch + 1) % self.validation_freq == 0:
            self._validate({} if logs is None else logs)
        self._kept.after_epoch()

    def _validate(self, logs: dict[str, Any]) -> None:
        """Adds the metrics of every average to `logs`, and saves the best averages so far."""
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
                        f"The average {name!r} needs another name: {key!r} is already a metric of "
                        "the model."
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
        """Writes every buffer and the update count to an `.npz` file, whole or not at all.

        Raises:
            RuntimeError: if the averages belong to an optimizer, with which they are saved.
        """
        local_path(path, "path")
        self._require_model()
        self._kept.save_state(path)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Restores a state that `save_state` wrote, bit for bit.

        Raises:
            ValueError: if the file holds the state of other averages or another model, or
                is damaged.
            OSError: if the file cannot be read.
            RuntimeError: if the averages belong to an optimizer, with which they are loaded.
        """
        local_path(path, "path")
        self._require_model()
        self._kept.load_state(path)

    # Copies continue with the averages once they have a model, and share the data.
    _SHARED = ("batch_norm_data", "validation_data", "batch_norm_call", "variables", "params")

    def __getstate__(self) -> dict[str, Any]:
        left = ("_model", "model", "_training_thread", "_kept")
        kept = {key: value for key, value in vars(self).items() if key not in left}
        return kept | {"_kept": self._kept.copied()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__init__()
        self._training_thread = None
        for key, value in state.items():
            setattr(self, key, value)
        kept = state["_kept"]
        own = isinstance(kept, dict)
        self._kept = OwnAverages(self, **kept) if own else OptimizerAverages(self, *kept)

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightAveraging:
        new = type(self).__new__(type(self))
        state = {
            key: value if key in self._SHARED else copy.deepcopy(value, memo)
            for key, value in self.__getstate__().items()
        }
        new.__setstate__(state)
        return new
