"""Averages of one model's weights: begun, updated, read, lent, evaluated and saved."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.averaging.average_settings import RAW_RUNNING
from tf_lrtraj.averaging.borrowing import Values, holder_of, lend
from tf_lrtraj.averaging.buffers import buffer_dtype
from tf_lrtraj.averaging.model_files import check_model_path, save_model
from tf_lrtraj.averaging.state import AverageState
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.backend.weight_updates import check_built
from tf_lrtraj.kernels import Kernel
from tf_lrtraj.records import RAW


class ModelAverages:
    """What `WeightAveraging` does with a model, whoever trains it.

    Attributes:
        averages: name → kernel.
        batch_norm: name → policy.
        batch_norm_data, batch_norm_batches, batch_norm_call, batch_size: as in `WeightAveraging`.
        variables: which trainable variables are averaged, a function; None for all.
        on_non_finite: with `"ignore"` iterates that are not finite are averaged too.
        state: the buffers; None until the averages have begun.
        num_updates: updates made so far, `T`.
        skipped: iterates that were left out because they were not finite.
    """

    averages: dict[str, Kernel]
    batch_norm: dict[str, str]
    batch_norm_data: Any
    batch_norm_batches: int | None
    batch_norm_call: Callable[[Any, Any], Any] | None
    batch_size: int
    variables: Callable[[Any], bool] | None
    on_non_finite: str

    # The variables that `state` averages, in the order of its buffers.
    _averaged: list[Any]

    def __init__(self) -> None:
        self.state: AverageState | None = None
        self.num_updates = 0
        self.skipped = 0
        self._averaged = []
        self._with_statistics = False
        self._update: Any = None
        self._update_from: Any = None
        self._seen_versions: list[Any] = []
        self._training_thread: threading.Thread | None = None

    @property
    def model(self) -> Any:  # Keras' callbacks bring their own
        raise NotImplementedError

    # Beginning --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins the averages at the model's current weights, `θ_0`; the count of updates is 0.

        `set_model` does so by itself for a model that has its weights by then.

        Raises:
            RuntimeError: without a model, or while it holds borrowed weights.
            ValueError: if the model has no weights yet, or averages do not fit into memory.
        """
        model = self._require_model()
        self._refuse_borrowed("be averaged")
        self.num_updates = self.skipped = 0
        wanted = [id(v) for v in self._wanted(self._needs_statistics())]
        if self.state is not None and wanted == [id(v) for v in self._averaged]:
            self.state.start()
        else:
            self._build(model)
        self._remember_versions()

    def reset(self) -> None:
        """Forgets every average, and the model: the next training begins anew."""
        self.state = None
        self.num_updates = self.skipped = 0
        self._averaged = []

    def _require_model(self) -> Any:
        if self.model is None:
            raise RuntimeError(
                "WeightAveraging has no model yet: pass it to `fit` in `callbacks=[…]`, or "
                "call `set_model(model)` first."
            )
        return self.model

    def _require_state(self) -> AverageState:
        if self.state is None:
            self.start()
        assert self.state is not None
        return self.state

    def _chosen(self) -> list[Any]:
        """The model's trainable variables that are averaged."""
        wanted = self.variables
        return [v for v in self.model.trainable_variables if wanted is None or wanted(v)]

    def _wanted(self, with_statistics: bool) -> list[Any]:
        """The variables to average now: weights, and running statistics if they are followed."""
        return [*self._chosen(), *(bn.averaged_variables(self.model) if with_statistics else ())]

    def _needs_statistics(self) -> bool:
        return "average" in self.batch_norm.values()

    def _build(self, model: Any) -> None:
        check_built(model, type(self).__name__)
        self._recompute = bn.Recompute(model, self.batch_norm_call)
        chosen = self._chosen()
        if not chosen:
            raise ValueError(
                "The model has no trainable weights to average"
                + ("." if self.variables is None else ", or `variables` chooses none.")
            )
        missing = self._recomputed_without_data()
        if missing:
            warnings.warn(
                f"Averages {missing} recompute batch-norm statistics but `batch_norm_data` is "
                "missing: they can be read but not evaluated, borrowed or saved until it is set "
                "(for example `averaging.batch_norm_data = x_train[:4096]`).",
                stacklevel=4,
            )
        self._with_statistics = self._needs_statistics()
        self._set_state(self._wanted(self._with_statistics))

    def _set_state(self, averaged: list[Any], state: AverageState | None = None) -> None:
        model = self.model
        if state is None:
            with backend.strategy_scope(model):
                state = AverageState(averaged, self.averages)
        self.state, self._averaged = state, averaged
        self._update = backend.compiled_update(
            state.update, model, writes=state.variables, reads=averaged
        )
        self._update_from = None

    def _join_new_weights(self) -> None:
        """Takes in weights that have become trainable; they had not moved until now.

        Raises:
            ValueError: for another model.
        """
        state = self._require_state()
        self._check_model()
        known = {id(variable) for variable in self._averaged}
        new = [v for v in self._wanted(self._with_statistics) if id(v) not in known]
        if not new:
            return
        warnings.warn(
            f"{len(new)} weights have become trainable and join the averages at update "
            f"{self.num_updates}. Until now they have not moved, so every average is exact.",
            stacklevel=4,
        )
        averaged = [*self._averaged, *new]
        with backend.strategy_scope(self.model):
            extended = state.extended(averaged)
        self._set_state(averaged, extended)
        self._recompute = bn.Recompute(self.model, self.batch_norm_call)

    def _recomputed_without_data(self) -> list[str]:
        if self.batch_norm_data is not None or not bn.find_statistics(self.model):
            return []
        return [name for name, policy in self.batch_norm.items() if policy == "recompute"]

    def _check_model(self) -> None:
        """Refuses a model that shares no weights with what was averaged."""
        now = {id(variable) for variable in self.model.variables}
        if self._averaged and not any(id(variable) in now for variable in self._averaged):
            raise ValueError(
                f"The averages are of {len(self._averaged)} weights, none of which this model has. "
                "Use a new WeightAveraging for another model, or forget these: "
                "`averaging.reset()`."
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
        self._require_model()
        if backend.is_tracing():
            raise RuntimeError(
                "`update()` must be called outside of tf.function and jax.jit: compiled, it would "
                "run once only. Call it after the compiled step."
            )
        self._refuse_borrowed("be averaged")
        if self.state is None:
            raise RuntimeError(
                "The averages have not begun: the model had no weights when `set_model` was "
                "called, or `reset` was. Call `start()` once it has them, before the first step."
            )
        self._check_model()
        given = None if weights is None else self._given(weights)
        if given is None:
            self._refuse_what_was_not_assigned()
        return self._make_update(given)

    def _make_update(self, values: list[Any] | None = None) -> bool:
        state = self._require_state()
        arrays = backend.values(self._averaged) if values is None else values
        if self.on_non_finite != "ignore" and not backend.all_finite(arrays):
            self.skipped += 1
            if self.skipped == 1:
                warnings.warn(
                    f"The weights after update {self.num_updates} are not finite: such "
                    "iterates are left out of the averages and counted in `skipped`.",
                    stacklevel=4,
                )
            return False
        self.num_updates += 1
        row = {key: value[0] for key, value in state.plan(self.num_updates, 1).items()}
        if state.changes(row):
            scalars = {key: backend.scalars(value) for key, value in row.items()}
            if values is None:
                self._update(scalars)
            else:
                if self._update_from is None:
                    self._update_from = backend.compiled_update(
                        state.update, self.model, writes=state.variables, reads=[]
                    )
                self._update_from(scalars, values)
        return True

    def _given(self, weights: Any) -> list[Any]:
        """The values of `_averaged` among those a loop gives."""
        model = self.model
        parts = weights if isinstance(weights, tuple) and len(weights) == 2 else (weights, None)
        known: dict[int, Any] = {}
        for name, variables, values in (
            ("trainable_variables", model.trainable_variables, parts[0]),
            ("non_trainable_variables", model.non_trainable_variables, parts[1]),
        ):
            if values is None:
                continue
            arrays = list(values)
            shapes = [tuple(getattr(array, "shape", ())) for array in arrays]
            if shapes != [tuple(v.shape) for v in variables]:
                raise ValueError(
                    f"`weights` must hold {len(variables)} arrays of the shapes of "
                    f"`model.{name}`. Received: {len(arrays)} arrays of shapes {shapes}"
                )
            known |= {
                id(v): keras.ops.cast(a, v.dtype) for v, a in zip(variables, arrays, strict=True)
            }
        missing = [v.path for v in self._averaged if id(v) not in known]
        if missing:
            raise ValueError(
                "`weights` must be a pair (trainable, non-trainable arrays) where running "
                f"statistics are averaged too. Missing: {missing}"
            )
        return [known[id(v)] for v in self._averaged]

    def _remember_versions(self) -> None:
        """On JAX a loop may keep the weights elsewhere, and the model's variables as they are."""
        if backend.name() == "jax":
            self._seen_versions = backend.versions(self._averaged)

    def _refuse_what_was_not_assigned(self) -> None:
        seen = self._seen_versions
        self._remember_versions()
        if seen and seen == self._seen_versions:
            raise RuntimeError(
                "Nothing has been assigned to the model's variables since the last update. A loop "
                "that keeps the weights elsewhere gives them: "
                "`update(weights=trainable_variables)`."
            )

    def _refuse_borrowed(self, purpose: str) -> None:
        holder = holder_of(self.model) if self.model is not None else None
        if holder is not None:
            raise RuntimeError(
                f"The model holds {holder}, so its own weights cannot {purpose}: leave `borrowed` "
                "first."
            )

    # Reading ----------------------------------------------------------------------------------

    def _average(self, name: str) -> dict[int, Any]:
        """id of each averaged variable → its average."""
        state = self._require_state()
        if name not in self.averages:
            raise KeyError(f"`name` must be one of {sorted(self.averages)}. Received: {name!r}")
        if not self.num_updates:
            # Before the first update the average is the weights as they are.
            return {id(v): _wide(v) for v in self._averaged}
        self._check_model()
        values = state.average(name, self.num_updates)
        return {id(v): value for v, value in zip(self._averaged, values, strict=True)}

    def get_average(self, name: str) -> list[np.ndarray]:
        """The average `name` as arrays in the order of `model.trainable_variables`.

        Where `variables` chooses some of them, those.  A weight that has become trainable
        since the last training is as it is.

        Raises:
            KeyError: for an unknown name.
        """
        self._require_model()
        if not self.num_updates:
            self._refuse_borrowed("be averaged")
        average = self._average(name)
        return backend.to_numpy([average.get(id(v), _wide(v)) for v in self._chosen()])

    def _values(self, name: str) -> Values:
        """(variable, value) of everything that differs where the model holds an average."""
        average = self._average(name)
        # The policy may have changed since the averages began.
        statistics = {id(v) for v in bn.averaged_variables(self.model)}
        changes = [
            (v, keras.ops.cast(average[id(v)], v.dtype))
            for v in self._averaged
            if id(v) not in statistics
        ]
        policy = self.batch_norm[name]
        if policy == "average":
            changes += self._averaged_statistics(name, average)
        elif policy == "recompute":
            changes += self._recomputed(f"The average {name!r}", changes)
        return changes

    def _averaged_statistics(self, name: str, average: Mapping[int, Any]) -> Values:
        for entry in bn.find_statistics(self.model):
            variance = average.get(id(entry.layer.moving_variance))
            lowest = 0.0 if variance is None else float(np.min(_as_numpy(variance)))
            if lowest < 0.0:
                raise ValueError(
                    f"The average {name!r} gives some iterates weights below 0, and the averaged "
                    f"variance of {entry.layer.name!r} falls to {lowest:.3g}. Choose "
                    "batch_norm='recompute' for it."
                )
        model = self.model
        old = backend.values(model.non_trainable_variables)
        known = [average.get(id(v), v) for v in bn.averaged_variables(model)]
        return _differences(model, old, bn.put_averaged(model, old, known))

    def _recomputed(self, who: str, changes: Values, batches: int | None = None) -> Values:
        """(variable, value) of statistics recomputed where the model holds other weights.

        Args:
            who: needs them, for an error.
            changes: the weights, where they differ from the model's own.
            batches: use this many in place of `batch_norm_batches`.
        """
        model = self.model
        if not bn.find_statistics(model):
            return []
        if self.batch_norm_data is None:
            raise ValueError(
                f"{who} needs `batch_norm_data` to recompute its batch-norm "
                "statistics. Set it, for example `averaging.batch_norm_data = x_train[:4096]`, "
                "or choose batch_norm='average' before training."
            )
        bn.check_data(self.batch_norm_data, batches=self.batch_norm_batches)
        known = {id(v): value for v, value in changes}
        trainable, old = (
            [known.get(id(v), value) for v, value in zip(vs, backend.values(vs), strict=True)]
            for vs in (model.trainable_variables, model.non_trainable_variables)
        )
        try:
            new = self._recompute(
                trainable,
                old,
                self.batch_norm_data,
                batch_size=self.batch_size,
                batches=self.batch_norm_batches if batches is None else batches,
            )
        except Exception as error:  # Keras and its backends raise many kinds, of many lines
            if "batch_norm" in str(error) or "atch-norm" in str(error):
                raise
            raise ValueError(
                "`batch_norm_data` cannot be run through the model in training mode: "
                f"{_reason(error)}"
            ) from error
        changed = _differences(model, old, new)
        if not backend.all_finite([value for _, value in changed]):
            warnings.warn(
                f"The statistics that {who[0].lower()}{who[1:]} gets from `batch_norm_data` are "
                "not finite.",
                stacklevel=6,
            )
        return changed

    # Lending ----------------------------------------------------------------------------------

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
        return self._lend(f"the average {name!r}", lambda: self._values(name))

    def _lend(
        self, what: str, values: Callable[[], Values]
    ) -> contextlib.AbstractContextManager[Any]:
        self._require_model()
        if holder_of(self.model) is None:
            self._require_state()
        self._refuse_other_threads(what)
        return lend(self.model, what, values)

    def _refuse_other_threads(self, what: str) -> None:
        """A model must not change hands while another thread trains it."""
        thread = self._training_thread
        if thread is None or thread is threading.current_thread() or not thread.is_alive():
            return
        raise RuntimeError(
            f"{what[0].upper()}{what[1:]} cannot be borrowed in thread "
            f"{threading.current_thread().name!r}: thread {thread.name!r} is training the model. "
            "Borrow in a callback of that training, or after it. (After a `fit` that ended in an "
            "exception call `on_train_end()` first.)"
        )

    def evaluate(self, data: Any, **kwargs: Any) -> dict[str, dict[str, float]]:
        """Evaluates the raw weights and every average with the model's compiled metrics.

        Where batch-norm statistics are recomputed for averages, they are for the raw weights too:
        running statistics lag behind the weights, and would make averages look better than they
        are.  What the raw weights give with their running statistics, as `model.evaluate`
        shows them, stands beside that as `"raw_running"`.

        Args:
            data: what `model.evaluate` takes; `(x, y)` or `(x, y, sample_weight)`, a tuple or a
                list, is split.
            **kwargs: passed on to `model.evaluate`.

        Returns:
            {"raw": {metric: value}, name: {metric: value}, …}
        """
        self._require_model()
        self._refuse_borrowed("be evaluated")
        raw = [RAW, RAW_RUNNING] if self._recomputes_raw() else [RAW]
        return self._evaluate([*raw, *self.averages], data, kwargs)

    def _recomputes_raw(self) -> bool:
        """Whether raw weights are shown with recomputed statistics, as averages are."""
        return (
            self.batch_norm_data is not None
            and "recompute" in self.batch_norm.values()
            and bool(bn.find_statistics(self.model))
        )

    def _shown(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """Lends the model what stands for a name of `evaluate`.

        Its own weights are lent too: on JAX an exception in Keras' own loop leaves a
        model without them.
        """
        if name == RAW_RUNNING or (name == RAW and not self._recomputes_raw()):
            return self._lend("its own weights", self._own)
        if name == RAW:
            return self._lend(
                "its own weights with recomputed statistics",
                lambda: [*self._own(), *self._recomputed("The evaluation", self._own())],
            )
        return self.borrowed(name)

    def _own(self) -> Values:
        variables = self.model.trainable_variables
        return list(zip(variables, backend.values(variables), strict=True))

    def _evaluate(
        self, names: Iterable[str], data: Any, options: Mapping[str, Any]
    ) -> dict[str, dict[str, float]]:
        x, y, sample_weight = split(data)
        arguments = {"x": x, "y": y, "sample_weight": sample_weight}
        options = {"verbose": 0, **arguments, **options, "return_dict": True}
        model = self.model
        results: dict[str, dict[str, float]] = {}
        # `evaluate` resets the metrics that a running epoch is still adding to.
        restore_metrics = backend.backup(model.metrics_variables)
        try:
            for name in names:
                # Reading data may draw from the streams that shuffle the training's.
                with backend.random_streams_kept(), self._shown(name):
                    results[name] = model.evaluate(**options)
        finally:
            restore_metrics()
        return results

    def save(self, name: str, path: str | os.PathLike[str]) -> None:
        """Writes a `.keras` model that holds the average `name`.

        The file appears whole or not at all.

        Args:
            name: of the average.
            path: a local path, or one that TensorFlow's file systems know (`gs://…`).

        Raises:
            ValueError: if `path` does not end in `.keras`, or cannot be reached.
        """
        target = check_model_path(path)
        with self.borrowed(name) as model:
            save_model(model, target)


def split(data: Any) -> tuple[Any, Any, Any]:
    """(inputs, targets, sample weights) of what `fit` takes as `validation_data`.

    >>> split(["x", "y"])
    ('x', 'y', None)
    """
    if isinstance(data, (tuple, list)):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(tuple(data))
        return x, y, sample_weight
    return data, None, None


def _wide(variable: Any) -> Any:
    """A variable's value in the dtype that averages of it have."""
    value = backend.values([variable])[0]
    return keras.ops.copy(keras.ops.cast(value, buffer_dtype(variable.dtype)))


def _reason(error: Exception) -> str:
    """What an error says, in one line: Keras writes where it came from before and after."""
    text = re.sub("\x1b\\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Exception encountered when")]
    return lines[0] if lines else type(error).__name__


def _differences(model: Any, old: Sequence[Any], new: Sequence[Any]) -> Values:
    """(variable, value) of the non-trainable variables whose values were replaced."""
    triples = zip(model.non_trainable_variables, old, new, strict=True)
    return [(variable, after) for variable, before, after in triples if after is not before]


def _as_numpy(array: Any) -> np.ndarray:
    return backend.to_numpy([array])[0]
