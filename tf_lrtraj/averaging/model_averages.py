"""`ModelAverages`: creates, updates, reads and stores the averages of one model's weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.averaging.buffers import buffer_dtype
from tf_lrtraj.averaging.state import AverageState
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.backend.weight_updates import check_built, steps_made
from tf_lrtraj.kernels import Kernel


class Settings(Protocol):
    """Settings of averages and of batch norm; see `WeightAveraging`."""

    averages: dict[str, Kernel]
    variables: Callable[[Any], bool] | None
    batch_norm: dict[str, str]
    batch_norm_data: Any
    batch_norm_batches: int | None
    batch_norm_call: Callable[[Any, Any], Any] | None
    batch_size: int


class ModelAverages:
    """Running averages of the weights of one model.

    Args:
        model: a Keras model.
        settings: settings of the averages.

    Attributes:
        variables: the averaged variables, in the order of the buffers.
        state: the buffers.
        num_updates: number of updates made so far, `T`.
        recompute: the model's `backend.batch_norm.Recompute`, for `Lending`.

    Raises:
        ValueError: if the model has no weights yet or none to average, or if the averages do not
            fit into memory.
    """

    def __init__(self, model: Any, settings: Settings) -> None:
        check_built(model, "WeightAveraging")
        self._model, self._settings = model, settings
        self.recompute: Any = bn.Recompute(model, settings.batch_norm_call)
        if not chosen(model, settings):
            raise ValueError(
                "The model has no trainable weights to average"
                + ("." if settings.variables is None else ", or `variables` selects none.")
            )
        recomputed = [n for n, policy in settings.batch_norm.items() if policy == "recompute"]
        if recomputed and settings.batch_norm_data is None and bn.find_statistics(model):
            warnings.warn(
                f"The averages {recomputed} recompute batch-norm statistics, but `batch_norm_data` "
                "is missing. They can be read, but not evaluated, borrowed or saved until it is "
                "set (for example `averaging.batch_norm_data = x_train[:4096]`).",
                stacklevel=5,
            )
        self.num_updates = 0
        self._with_statistics = _needs_statistics(settings)
        variables = self._wanted(model)
        with backend.strategy_scope(model):
            state = AverageState(variables, settings.averages)
        self._keep(state, variables)
        self._seen: list[Any] = []
        self.note_versions()

    def _wanted(self, model: Any) -> list[Any]:
        """Returns the variables to average: weights, and running statistics if requested."""
        statistics = bn.averaged_variables(model) if self._with_statistics else []
        return [*chosen(model, self._settings), *statistics]

    def _keep(self, state: AverageState, variables: Sequence[Any]) -> None:
        self.state, self.variables = state, list(variables)
        self._update = backend.compiled_update(
            state.update, self._model, writes=state.variables, reads=self.variables
        )
        self._update_from: Any = None

    def restart(self, model: Any) -> bool:
        """Restarts the averages at the current weights, with an update count of 0.

        Returns:
            Whether this was possible; False if the set of variables to average has changed.
        """
        self._with_statistics = _needs_statistics(self._settings)
        if [*map(id, self._wanted(model))] != [*map(id, self.variables)]:
            return False
        self.num_updates = 0
        self.state.start()
        self.note_versions()
        return True

    def join_new_weights(self, model: Any) -> None:
        """Adds weights that have become trainable; they have not moved until now.

        Raises:
            ValueError: if the averages belong to another model.
        """
        self.check_model(model)
        known = {id(variable) for variable in self.variables}
        new = [variable for variable in self._wanted(model) if id(variable) not in known]
        if not new:
            return
        warnings.warn(
            f"{len(new)} weights have become trainable and join the averages at update "
            f"{self.num_updates}. Until now they have not moved, so every average is exact.",
            stacklevel=4,
        )
        variables = [*self.variables, *new]
        with backend.strategy_scope(model):
            extended = self.state.extended(variables)
        self._keep(extended, variables)
        self.recompute = bn.Recompute(model, self._settings.batch_norm_call)

    def check_model(self, model: Any) -> None:
        """Raises ValueError for a model that has none of the averaged variables."""
        now = {id(variable) for variable in model.variables}
        if not any(id(variable) in now for variable in self.variables):
            raise ValueError(
                f"The averages are of {len(self.variables)} weights, none of which this model has. "
                "Use a new WeightAveraging for another model, or discard these averages with "
                "`averaging.reset()`."
            )

    # Updating ---------------------------------------------------------------------------------

    def update(self, values: Sequence[Any] | None = None) -> None:
        """Updates every average once.

        Args:
            values: values to average instead of those that `variables` hold.
        """
        self.num_updates += 1
        if not self.state.changes(self.num_updates):
            return
        step = backend.scalars(np.asarray(self.num_updates))
        if values is None:
            self._update(step)
            return
        if self._update_from is None:
            self._update_from = backend.compiled_update(
                self.state.update, self._model, writes=self.state.variables, reads=[]
            )
        self._update_from(step, values)

    def given(self, model: Any, weights: Any) -> list[Any]:
        """Selects the values of `variables` from weights that a loop keeps outside of the model.

        Args:
            model: the model of the variables.
            weights: arrays in the order of `model.trainable_variables`, or a pair of these and
                of arrays in the order of `model.non_trainable_variables`.

        Raises:
            ValueError: if the arrays do not fit.
        """
        parts = weights if isinstance(weights, tuple) and len(weights) == 2 else (weights, None)
        known: dict[int, Any] = {}
        for name, values in zip(("trainable", "non_trainable"), parts, strict=True):
            if values is None:
                continue
            variables, arrays = getattr(model, f"{name}_variables"), list(values)
            shapes = [tuple(getattr(array, "shape", ())) for array in arrays]
            if shapes != [tuple(v.shape) for v in variables]:
                raise ValueError(
                    f"`weights` must hold {len(variables)} arrays of the shapes of "
                    f"`model.{name}_variables`. Received: {len(arrays)} arrays of shapes {shapes}"
                )
            known |= {
                id(v): keras.ops.cast(a, v.dtype) for v, a in zip(variables, arrays, strict=True)
            }
        missing = [v.path for v in self.variables if id(v) not in known]
        if missing:
            raise ValueError(
                "`weights` must be a pair (trainable, non-trainable arrays) if running "
                f"statistics are averaged too. Missing: {missing}"
            )
        return [known[id(v)] for v in self.variables]

    def note_versions(self) -> bool:
        """Records the versions of the variables.

        Returns:
            Whether a variable has been assigned since the last call.  On JAX a loop may keep the
            weights outside of the model and leave the model's variables unchanged.  True on other
            backends.
        """
        if backend.name() != "jax":
            return True
        seen, self._seen = self._seen, backend.versions(self.variables)
        return not seen or seen != self._seen

    # Reading ----------------------------------------------------------------------------------

    def average(self, name: str, model: Any) -> list[tuple[Any, Any]]:
        """Returns pairs of a variable and its average in the dtype of the buffers.

        Raises:
            KeyError: for an unknown name.
            ValueError: if the averages belong to another model.
        """
        known = sorted(self._settings.averages)
        if name not in known:
            raise KeyError(f"`name` must be one of {known}. Received: {name!r}")
        if not self.num_updates:  # the average equals the current weights
            return [(variable, wide(variable)) for variable in self.variables]
        self.check_model(model)
        values = self.state.average(name, self.num_updates)
        return list(zip(self.variables, values, strict=True))

    # Storing ----------------------------------------------------------------------------------

    def arrays(self, model: Any) -> dict[str, Any]:
        """Returns the state that `load` restores."""
        buffers = backend.to_numpy(backend.values(self.state.variables))
        return {
            "averages": np.array(self._described()),
            "num_updates": np.int64(self.num_updates),
            "iterations": np.int64(steps_made(model)),
            **{f"buffer_{i}": buffer for i, buffer in enumerate(buffers)},
        }

    def _described(self) -> str:
        averages = {name: k.get_config() for name, k in self._settings.averages.items()}
        return json.dumps({"averages": averages, "batch_norm": self._settings.batch_norm})

    def load(self, stored: Mapping[str, Any], path: str) -> int:
        """Restores a state that `arrays` returned.

        Args:
            stored: the arrays by name.
            path: origin of the arrays, for errors.

        Returns:
            The number of steps that the optimizer had made.

        Raises:
            ValueError: if the state is of other averages or another model, or is damaged.
        """
        described = str(stored.get("averages", "no known averages"))
        if described != self._described():
            raise ValueError(
                f"`path` must hold the state of the averages {self._described()}. "
                f"Received: {path!r} with {described}"
            )
        names = [f"buffer_{i}" for i in range(len(self.state.variables))]
        held = {name: stored[name] for name in names if name in stored}
        shapes = [tuple(held[name].shape) if name in held else None for name in names]
        counts = [np.asarray(stored.get(name, -1)) for name in ("num_updates", "iterations")]
        sound = all(array.dtype.kind in "fc" for array in held.values()) and all(
            not count.shape and count.dtype.kind in "iu" and count >= 0 for count in counts
        )
        if not sound:
            raise ValueError(f"{path} is not a saved state: its content is damaged")
        if shapes != [tuple(v.shape) for v in self.state.variables]:
            raise ValueError(
                "`path` must hold averages of this model. "
                f"Received: {path!r} with buffers of shapes {shapes}"
            )
        backend.assign(self.state.variables, [stored[name] for name in names])
        self.num_updates, iterations = map(int, counts)
        return iterations


def chosen(model: Any, settings: Settings) -> list[Any]:
    """Returns the model's trainable variables that are averaged."""
    wanted = settings.variables
    return [v for v in model.trainable_variables if wanted is None or wanted(v)]


def _needs_statistics(settings: Settings) -> bool:
    return "average" in settings.batch_norm.values()


def wide(variable: Any) -> Any:
    """Returns a copy of a variable's value in the dtype of its averages."""
    value = backend.values([variable])[0]
    return keras.ops.copy(keras.ops.cast(value, buffer_dtype(variable.dtype)))
