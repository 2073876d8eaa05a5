"""`ModelAverages`: the averages of one model's weights, begun, updated and read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.averaging.buffers import buffer_dtype
from tf_lrtraj.averaging.state import AverageState
from tf_lrtraj.kernels import Kernel


class ModelAverages:
    """Running averages of variables of one model.

    Args:
        model: a built Keras model.
        kernels: name → kernel.
        variables: of the model, which are averaged.

    Attributes:
        kernels: as given.
        variables: those averaged, in the order of the buffers.
        state: the buffers.
        num_updates: updates made so far, `T`.
    """

    def __init__(self, model: Any, kernels: Mapping[str, Kernel], variables: Sequence[Any]) -> None:
        self._model = model
        self.kernels = kernels
        self.num_updates = 0
        with backend.strategy_scope(model):
            state = AverageState(variables, kernels)
        self._keep(state, variables)
        self.note_versions()

    def _keep(self, state: AverageState, variables: Sequence[Any]) -> None:
        self.state, self.variables = state, list(variables)
        self._update = backend.compiled_update(
            state.update, self._model, writes=state.variables, reads=self.variables
        )
        self._update_from: Any = None

    def restart(self) -> None:
        """Begins anew at the variables' current values; the count of updates is 0."""
        self.num_updates = 0
        self.state.start()
        self.note_versions()

    def join(self, variables: Sequence[Any]) -> bool:
        """Takes in variables that have not moved until now, so that every average stays exact.

        Returns:
            whether some of them are new.
        """
        known = {id(variable) for variable in self.variables}
        new = [variable for variable in variables if id(variable) not in known]
        if not new:
            return False
        warnings.warn(
            f"{len(new)} weights have become trainable and join the averages at update "
            f"{self.num_updates}. Until now they have not moved, so every average is exact.",
            stacklevel=5,
        )
        variables = [*self.variables, *new]
        with backend.strategy_scope(self._model):
            extended = self.state.extended(variables)
        self._keep(extended, variables)
        return True

    def check_model(self, model: Any) -> None:
        """Raises ValueError for a model that has none of the averaged variables."""
        now = {id(variable) for variable in model.variables}
        if not any(id(variable) in now for variable in self.variables):
            raise ValueError(
                f"The averages are of {len(self.variables)} weights, none of which this model has. "
                "Use a new WeightAveraging for another model, or forget these: "
                "`averaging.reset()`."
            )

    # Updating ---------------------------------------------------------------------------------

    def update(self, values: Sequence[Any] | None = None) -> None:
        """Makes one update of every average.

        Args:
            values: to average in place of what `variables` hold.
        """
        self.num_updates += 1
        row = {key: value[0] for key, value in self.state.plan(self.num_updates, 1).items()}
        if not self.state.changes(row):
            return
        scalars = {key: backend.scalars(value) for key, value in row.items()}
        if values is None:
            self._update(scalars)
            return
        if self._update_from is None:
            self._update_from = backend.compiled_update(
                self.state.update, self._model, writes=self.state.variables, reads=[]
            )
        self._update_from(scalars, values)

    def given(self, model: Any, weights: Any) -> list[Any]:
        """The values of `variables` among the weights that a loop keeps elsewhere.

        Args:
            model: has the variables.
            weights: arrays in the order of `model.trainable_variables`, or a pair of these and
                of arrays in the order of `model.non_trainable_variables`.

        Raises:
            ValueError: if they do not fit.
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
                "`weights` must be a pair (trainable, non-trainable arrays) where running "
                f"statistics are averaged too. Missing: {missing}"
            )
        return [known[id(v)] for v in self.variables]

    def note_versions(self) -> bool:
        """Notes what the variables hold; whether something has been assigned since the last time.

        On JAX a loop may keep the weights elsewhere, and the model's variables as they are.
        """
        if backend.name() != "jax":
            return True
        seen, self._seen = getattr(self, "_seen", []), backend.versions(self.variables)
        return not seen or seen != self._seen

    # Reading ----------------------------------------------------------------------------------

    def average(self, name: str) -> list[tuple[Any, Any]]:
        """(variable, its average in the dtype of the buffers) of each averaged variable.

        Raises:
            KeyError: for an unknown name.
        """
        if name not in self.kernels:
            raise KeyError(f"`name` must be one of {sorted(self.kernels)}. Received: {name!r}")
        if not self.num_updates:  # the average is the weights as they are
            return [(variable, wide(variable)) for variable in self.variables]
        values = self.state.average(name, self.num_updates)
        return list(zip(self.variables, values, strict=True))

    # On disk ----------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Any]:
        """Everything that `load` needs."""
        buffers = backend.to_numpy(backend.values(self.state.variables))
        numbered = {f"buffer_{i}": buffer for i, buffer in enumerate(buffers)}
        return {"num_updates": np.int64(self.num_updates), **numbered}

    def load(self, stored: Mapping[str, Any], path: str) -> None:
        """Goes on from what `arrays` returned.

        Args:
            stored: by name.
            path: where they come from, for errors.

        Raises:
            ValueError: if they are damaged, or of another model.
        """
        names = [f"buffer_{i}" for i in range(len(self.state.variables))]
        held = {name: stored[name] for name in names if name in stored}
        shapes = [tuple(held[name].shape) if name in held else None for name in names]
        count = stored_count(stored, "num_updates", path)
        if any(array.dtype.kind not in "fc" for array in held.values()):
            raise damaged(path)
        if shapes != [tuple(v.shape) for v in self.state.variables]:
            raise ValueError(
                "`path` must hold averages of this model. "
                f"Received: {path!r} with buffers of shapes {shapes}"
            )
        backend.assign(self.state.variables, [stored[name] for name in names])
        self.num_updates = count


def stored_count(stored: Mapping[str, Any], name: str, path: str) -> int:
    """A stored number of steps or updates.

    Raises:
        ValueError: if it is missing or damaged; `path` is named.
    """
    count = np.asarray(stored.get(name, -1))
    if count.shape or count.dtype.kind not in "iu" or count < 0:
        raise damaged(path)
    return int(count)


def damaged(path: str) -> ValueError:
    """The error for a file that holds no sound state of averages."""
    return ValueError(f"{path} is no saved state: its content is damaged")


def wide(variable: Any) -> Any:
    """A copy of a variable's value in the dtype that averages of it have."""
    value = backend.values([variable])[0]
    return keras.ops.copy(keras.ops.cast(value, buffer_dtype(variable.dtype)))
