"""`WeightAveraging`: several averages of a model's weights, as one Keras callback."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj import batch_norm as bn
from tf_lrtraj.averaging.borrowing import (
    check_model_path,
    claim,
    holder_of,
    lend,
    save_model,
)
from tf_lrtraj.averaging.companions import (
    Backup,
    callbacks_beside,
    check_order,
    checksum,
)
from tf_lrtraj.averaging.state import AverageState
from tf_lrtraj.following import check_built, check_trainable
from tf_lrtraj.kernels import Kernel
from tf_lrtraj.records import RAW, check_average_name, write_atomically
from tf_lrtraj.records.archives import load_arrays


def check_averages(averages: Mapping[str, Kernel]) -> dict[str, Kernel]:
    """Checks names and kernels of a set of averages.

    Raises:
        ValueError: for an empty set, a name that `records.check_average_name`
            refuses, or a value that is no kernel.
    """
    if not isinstance(averages, Mapping) or not averages:
        raise ValueError(
            "`averages` must be a non-empty dict of name -> tf_lrtraj.kernels kernel. "
            f"Received: averages={averages!r}"
        )
    for name, kernel in averages.items():
        check_average_name(name)
        if not isinstance(kernel, Kernel):
            raise ValueError(
                f"`averages[{name!r}]` must be a kernel such as tf_lrtraj.kernels.Exponential(0.99)"
                f". Received: {kernel!r}"
            )
    return dict(averages)


def check_save_best(
    save_best: Mapping[str, Any], averages: Mapping[str, Kernel], validation_data: Any
) -> dict[str, Any]:
    """Checks names and paths of the averages whose best is saved."""
    if not isinstance(save_best, Mapping):
        raise ValueError(f"`save_best` must map averages to paths. Received: {save_best!r}")
    unknown = sorted({str(name) for name in save_best} - set(averages))
    if unknown:
        raise ValueError(
            f"`save_best` must name averages among {sorted(averages)}. Received: {unknown}"
        )
    if save_best and validation_data is None:
        raise ValueError("`save_best` needs `validation_data` to tell which is best.")
    return {name: check_model_path(path) for name, path in save_best.items()}


class WeightAveraging(keras.callbacks.Callback):
    """Keeps any number of weight averages beside a model that is being trained.

    The model trains on its raw weights and ends with them; the averages live in
    buffers of their own (float32 or wider) and are put into the model only
    inside `borrowed`.

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
        averages: name → kernel.
        batch_norm: what statistics batch-norm layers use with averaged weights:
            `"recompute"` (pooled moments of `batch_norm_data` under the averaged
            weights), `"average"` (running statistics averaged by the same kernel)
            or `"copy"` (the raw weights' own); or a dict name → policy.
            Models without batch norm ignore it.
        batch_norm_data: for `"recompute"`: an array of inputs, or a re-iterable
            of batches (`tf.data.Dataset`, `keras.utils.PyDataset`, list).  Of a
            tuple the first element is taken as the inputs.
        batch_norm_batches: use at most this many batches; None for all.
        batch_size: batch size when `batch_norm_data` or `validation_data` are arrays.
        validation_data: what `model.evaluate` takes, `(x, y)` or a dataset.  Every
            average is evaluated on it at the end of an epoch, and the results join
            the epoch's `logs` as `val_<name>_<metric>`, where callbacks that come
            later in the list (EarlyStopping, TensorBoard, …) and `History` find them.
        validation_freq: do so every so many epochs.
        save_best: name → `.keras` path.  The average is saved there whenever its
            `val_<name>_<monitor>` improves.
        monitor: the compiled metric that `save_best` goes by.
        mode: `"min"` or `"max"`: what improvement means; may be left out for `"loss"`.

    In a `fit` with `keras.callbacks.BackupAndRestore` the averages are saved and
    restored in step with the model, and so are the model's random streams (dropout's),
    which Keras leaves out.  WeightAveraging must come before it in `callbacks`, and
    before callbacks that monitor an average; another order is refused.

    Raises:
        ValueError: for unknown policies, bad names, or counts below 1.
    """

    def __init__(
        self,
        averages: Mapping[str, Kernel],
        batch_norm: str | Mapping[str, str] = "recompute",
        batch_norm_data: Any = None,
        batch_norm_batches: int | None = None,
        batch_size: int = 128,
        validation_data: Any = None,
        validation_freq: int = 1,
        save_best: Mapping[str, str | os.PathLike[str]] | None = None,
        monitor: str = "loss",
        mode: str | None = None,
    ) -> None:
        super().__init__()
        self.averages = check_averages(averages)
        if isinstance(batch_norm, str):
            batch_norm = {name: batch_norm for name in self.averages}
        if not isinstance(batch_norm, Mapping) or set(batch_norm) != set(self.averages):
            raise ValueError(
                f"`batch_norm` must name a policy for each of {sorted(self.averages)}. "
                f"Received: {batch_norm!r}"
            )
        self.batch_norm = {
            name: bn.check_policy(p, f"batch_norm[{name!r}]") for name, p in batch_norm.items()
        }
        for label, value in (
            ("batch_norm_batches", batch_norm_batches),
            ("batch_size", batch_size),
            ("validation_freq", validation_freq),
        ):
            optional = label == "batch_norm_batches" and value is None
            counts = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not optional and not counts:
                raise ValueError(
                    f"`{label}` must be an integer of at least 1. Received: {label}={value!r}"
                )
        # Whether it ends is asked when training begins: its limit may still be set.
        self.batch_norm_data = bn.check_data(batch_norm_data, batches=batch_norm_batches or 1)
        self.batch_norm_batches = batch_norm_batches
        self.batch_size = batch_size
        self.state: AverageState | None = None
        self.num_updates = 0
        self.validation_data = validation_data
        self.validation_freq = validation_freq
        self.save_best = check_save_best(
            {} if save_best is None else save_best, self.averages, validation_data
        )
        self.monitor = monitor
        sound = isinstance(monitor, str) and (mode is None or isinstance(mode, str))
        if not sound or mode not in (("min", "max", None) if monitor == "loss" else ("min", "max")):
            raise ValueError(
                "`mode` must be 'min' or 'max', and is needed where `monitor` is not 'loss'. "
                f"Received: monitor={monitor!r}, mode={mode!r}"
            )
        self.mode = mode or "min"
        self.best: dict[str, float] = {}
        self._backup: Backup | None = None
        self._begun = False
        self._seen_iterations = 0
        self._initial_iterations = 0
        self._training_thread: threading.Thread | None = None
        self._update: Any = None

    # Training ---------------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        model = self.model
        check_trainable(model, self)
        bn.check_data(self.batch_norm_data, batches=self.batch_norm_batches)
        bn.check_model(model, self.batch_norm.values())
        if self.state is not None:
            self._check_model()
        beside = callbacks_beside(self)
        evaluated = self.averages if self.validation_data is not None else ()
        check_order(self, beside, [f"val_{name}_" for name in evaluated])
        followed = [c for c in beside if isinstance(c, keras.callbacks.BackupAndRestore)]
        if not followed:
            self._backup = None
        elif self._backup is None or self._backup.followed is not followed[0]:
            self._backup = Backup(followed[0])
        self._begun = False
        self._training_thread = threading.current_thread()

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self._initial_iterations = self._iterations()

    def _iterations(self) -> int:
        """How often the optimizer has moved the weights; 0 without one."""
        return backend.iterations(self.model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begin()

    def _begin(self) -> None:
        """Takes up the averages where the model stands, once per `fit`.

        Not in `on_train_begin`: only after that has every callback put into the
        model what it restores.
        """
        if self._begun:
            return
        self._begun = True
        iterations = self._iterations()
        if self.num_updates == 0:
            self.state = None  # an average asked for early may hold older initial weights
        elif self._seen_iterations == iterations:
            return
        counted, seen = self.num_updates, self._seen_iterations
        self._require_state()
        if iterations != self._initial_iterations:
            self._restore(iterations)
        elif counted and iterations > seen:
            warnings.warn(
                f"The optimizer went from {seen} to {iterations} iterations without "
                "WeightAveraging: its averages leave those weights out.",
                stacklevel=3,
            )
        self._seen_iterations = iterations

    def on_train_end(self, logs: Any = None) -> None:
        self._training_thread = None
        self._begin()  # a training restored at its end has no epochs left

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.validation_data is not None and (epoch + 1) % self.validation_freq == 0:
            self._validate({} if logs is None else logs)
        if self._backup is not None and self._backup.due_after_epoch():
            self._save_backup(self._backup)

    def _validate(self, logs: dict[str, Any]) -> None:
        """Puts metrics of every average into `logs`, and saves those that are the best so far."""
        data = self.validation_data
        options = {"batch_size": self.batch_size} if isinstance(data, tuple) else {}
        for name, metrics in self._evaluate(list(self.averages), data, options).items():
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

    def _build(self, model: Any) -> None:
        check_built(model, type(self).__name__)
        self._statistics = bn.find_statistics(model)
        self._recompute = bn.Recompute(model)
        averaged = list(model.trainable_variables)
        self._num_trainable = len(averaged)
        self._trainable = list(averaged)
        if "average" in self.batch_norm.values():
            for entry in self._statistics:
                averaged += [entry.layer.moving_mean, entry.layer.moving_variance]
        if not averaged:
            raise ValueError("The model has no trainable weights to average.")
        missing = self._recomputed_without_data()
        if missing:
            warnings.warn(
                f"Averages {missing} recompute batch-norm statistics but `batch_norm_data` is "
                "missing: they can be read but not evaluated, borrowed or saved until it is set "
                "(for example `averaging.batch_norm_data = x_train[:4096]`).",
                stacklevel=3,
            )
        with backend.strategy_scope(model):
            self.state = AverageState(averaged, self.averages)
        self._update = backend.compiled_update(
            self.state.update, model, writes=self.state.variables, reads=averaged
        )
        if (self.params or {}).get("verbose"):
            print(f"WeightAveraging: {self.state.describe_memory()}")

    def _recomputed_without_data(self) -> list[str]:
        if not self._statistics or self.batch_norm_data is not None:
            return []
        return [name for name, policy in self.batch_norm.items() if policy == "recompute"]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # Weights do not move on the micro-steps of gradient accumulation, nor when
        # loss scaling skips a step.
        if self._iterations() != self._seen_iterations:
            self.update()
        if self._backup is not None and self._backup.due_after_batch():
            self._save_backup(self._backup)

    def update(self) -> None:
        """Makes one update of every average from the model's weights.

        `fit` calls it after every optimizer step; a custom loop calls it itself
        (after `set_model`).
        """
        self._refuse_borrowed("be averaged")
        state = self._require_state()
        self._seen_iterations = self._iterations()
        self.num_updates += 1
        row = {key: value[0] for key, value in state.plan(self.num_updates, 1).items()}
        if state.changes(row):
            self._update({key: backend.scalars(value) for key, value in row.items()})

    def _refuse_borrowed(self, purpose: str) -> None:
        holder = holder_of(self.model) if self.model is not None else None
        if holder is not None:
            raise RuntimeError(
                f"The model holds {holder}, so its own weights cannot {purpose}: leave `borrowed` "
                "first."
            )

    def _require_state(self) -> AverageState:
        if self.state is None:
            if self.model is None:
                raise RuntimeError(
                    "WeightAveraging has no model yet: pass it to `fit` in `callbacks=[…]`, or "
                    "call `set_model(model)` first."
                )
            self._refuse_borrowed("be averaged")
            self._build(self.model)
        assert self.state is not None
        return self.state

    def _check_model(self) -> None:
        """Refuses a model whose trainable weights are not those that were averaged."""
        now = {id(variable) for variable in self.model.trainable_variables}
        then = {id(variable) for variable in self._trainable}
        if now != then:
            raise ValueError(
                f"The averages are of {len(then)} trainable weights, of which the model now has "
                f"{len(now & then)} among its {len(now)}. Use a new WeightAveraging for another "
                "model, and after layers were frozen or unfrozen."
            )

    # Reading ----------------------------------------------------------------------------------

    def _average(self, name: str) -> list[Any]:
        state = self._require_state()
        self._check_model()
        return state.average(name, self.num_updates)

    def get_average(self, name: str) -> list[np.ndarray]:
        """The average `name` as arrays in the order of `model.trainable_variables`.

        Raises:
            KeyError: for an unknown name.
        """
        average = self._average(name)
        return backend.to_numpy(average[: self._num_trainable])

    def _weights(self, name: str) -> tuple[list[Any], list[Any]]:
        """(trainable, non-trainable) values of the model under the average `name`."""
        model = self.model
        average = self._average(name)
        trainable = [
            keras.ops.cast(value, variable.dtype)
            for value, variable in zip(average, model.trainable_variables, strict=False)
        ]
        non_trainable = backend.values(model.non_trainable_variables)
        policy = self.batch_norm[name]
        if policy == "average":
            extra = average[self._num_trainable :]
            pairs = list(zip(extra[::2], extra[1::2], strict=True))
            non_trainable = bn.replace(non_trainable, self._statistics, pairs)
        elif policy == "recompute" and self._statistics:
            if self.batch_norm_data is None:
                raise ValueError(
                    f"The average {name!r} needs `batch_norm_data` to recompute its batch-norm "
                    "statistics. Set it, for example `averaging.batch_norm_data = x_train[:4096]`, "
                    "or choose batch_norm='average' before training."
                )
            non_trainable = self._recompute(
                trainable,
                non_trainable,
                self.batch_norm_data,
                batch_size=self.batch_size,
                batches=self.batch_norm_batches,
            )
        return trainable, non_trainable

    @contextlib.contextmanager
    def borrowed(self, name: str) -> Iterator[Any]:
        """Puts an average into the model inside a `with` block, raw weights after it, to the bit.

        Yields:
            the model.

        Raises:
            RuntimeError: if other weights are in the model already, here or in another thread
                (the message says whose), or another thread is training it; also if the model
                is trained inside the block.
            KeyError: for an unknown name.
        """
        self._require_state()
        model = self.model
        self._refuse_other_threads(name)
        with claim(model, f"the average {name!r}"), lend(model, *self._weights(name)):
            yield model

    def _refuse_other_threads(self, name: str) -> None:
        """A model must not change hands while another thread trains it."""
        thread = self._training_thread
        if thread is None or thread is threading.current_thread() or not thread.is_alive():
            return
        raise RuntimeError(
            f"The average {name!r} cannot be borrowed in thread "
            f"{threading.current_thread().name!r}: thread {thread.name!r} is training the model. "
            "Borrow in a callback of that training, or after it. (After a `fit` that ended in an "
            "exception call `on_train_end()` first.)"
        )

    def evaluate(self, data: Any, **kwargs: Any) -> dict[str, dict[str, float]]:
        """Evaluates the raw weights and every average with the model's compiled metrics.

        Args:
            data: what `model.evaluate` takes; a tuple `(x, y)` or `(x, y, sample_weight)` is split.
            **kwargs: passed on to `model.evaluate`.

        Returns:
            {"raw": {metric: value}, name: {metric: value}, …}
        """
        self._refuse_borrowed("be evaluated")
        return self._evaluate([RAW, *self.averages], data, kwargs)

    def _evaluate(
        self, names: Iterable[str], data: Any, options: Mapping[str, Any]
    ) -> dict[str, dict[str, float]]:
        x, y, sample_weight = (
            keras.utils.unpack_x_y_sample_weight(data)
            if isinstance(data, tuple)
            else (data, None, None)
        )
        arguments = {"x": x, "y": y, "sample_weight": sample_weight}
        options = {"verbose": 0, **arguments, **options, "return_dict": True}
        model = self.model
        results: dict[str, dict[str, float]] = {}
        # `evaluate` resets the metrics that a running epoch is still adding to.
        restore_metrics = backend.backup(model.metrics_variables)
        try:
            for name in names:
                # On JAX an exception in Keras' own loop leaves a model without its weights.
                with self._kept() if name == RAW else self.borrowed(name):
                    results[name] = model.evaluate(**options)
        finally:
            restore_metrics()
        return results

    def _kept(self) -> contextlib.AbstractContextManager[Any]:
        """Lends the model its own weights, so that it has them back whatever happens."""
        variables = (self.model.trainable_variables, self.model.non_trainable_variables)
        return lend(self.model, *map(backend.values, variables))

    def save(self, name: str, path: str | os.PathLike[str]) -> None:
        """Writes a `.keras` model that holds the average `name`.

        The file appears whole or not at all.

        Raises:
            ValueError: if `path` does not end in `.keras`.
        """
        check_model_path(path)
        with self.borrowed(name) as model:
            save_model(model, path)

    # Saving the state -------------------------------------------------------------------------

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Writes every buffer and the update count to an `.npz` file, whole or not at all."""
        content = io.BytesIO()
        np.savez(content, **self._state_arrays())
        write_atomically(path, content.getvalue())

    def _state_arrays(self) -> dict[str, Any]:
        """Everything that `_load_arrays` needs to go on."""
        state = self._require_state()
        buffers = backend.to_numpy(backend.values(state.variables))
        return {
            "averages": np.array(self._describe_averages()),
            "num_updates": np.int64(self.num_updates),
            "iterations": np.int64(self._seen_iterations),
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
        try:
            stored = load_arrays(path, largest=None)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is no saved state: {error}") from None
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
        sound = all(array.dtype.kind == "f" for array in held.values()) and all(
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
        self.num_updates, self._seen_iterations = (int(count) for count in counts)

    def _random_streams(self) -> list[Any]:
        """The model's variables that Keras does not save with its weights: seeds of dropout."""
        saved = {id(variable) for variable in self.model.weights}
        return [v for v in self.model.non_trainable_variables if id(v) not in saved]

    def _save_backup(self, backup: Backup) -> None:
        streams = backend.to_numpy(backend.values(self._random_streams()))
        backup.write(
            self._seen_iterations,
            {
                **self._state_arrays(),
                **{f"stream_{i}": stream for i, stream in enumerate(streams)},
                "best": np.array(json.dumps(self.best)),
                "checksum": np.uint32(checksum(self.model.weights)),
            },
        )

    def _restore(self, iterations: int) -> None:
        """Loads the state that goes with the model another callback has just restored."""
        backup = self._backup
        stored = None if backup is None else backup.read(iterations)
        if backup is None or stored is None or checksum(self.model.weights) != stored["checksum"]:
            where = "no BackupAndRestore is in `callbacks`" if backup is None else backup.folder
            raise ValueError(
                f"The model was restored at iteration {iterations}, and WeightAveraging has no "
                f"state that goes with it ({where}). It must train with BackupAndRestore from the "
                "start for its averages to be restored too. To average from here on instead, "
                "load the weights before `fit`."
            )
        self._load_arrays(stored, backup.folder)
        streams = self._random_streams()
        backend.assign(streams, [stored[f"stream_{i}"] for i in range(len(streams))])
        self.best = json.loads(str(stored["best"]))
