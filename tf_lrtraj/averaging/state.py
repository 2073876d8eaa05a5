"""`AverageState`: the buffers of any number of weight averages, and their update.

The compiled step computes the coefficients of an update from its number, by the formulas of the
kernels.  The callback, the optimizer and the training loop use the same state and update.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj.averaging import coefficients
from tf_lrtraj.averaging.buffers import (
    PRECISIONS,
    check_memory,
    describe_bytes,
    fill,
    new_buffer,
    precision_of,
)
from tf_lrtraj.kernels import Kernel, RecursiveKernel
from tf_lrtraj.values import one_of

# Variables are updated in groups of about this many values, one average after the other.  So a
# group is read from memory once for all averages, and cast once without a copy of all weights.
_GROUP = 1 << 19


class AverageState:
    """Buffers of several averages over one list of variables, and their update.

    The caller counts the updates `T` (by the training step, or a counter in a callback); this is
    the `T` that `kernel.weights(T)` takes.  At `T = 0` every average equals the variables' values.

    Recursive kernels keep one value per weight, or two in a pair.  Lag kernels keep a ring of
    `max_lag + 1` past values and compute the average when it is read, so an update costs one copy
    for any length of the window.  `BEMA` keeps both: a running average and a ring of two values,
    whose weighted sum is added when the average is read.

    Under a `tf.distribute` strategy, create the state inside the strategy's scope and call `update`
    inside `strategy.run`.  Every replica then updates its own copy from its own copy of the
    weights, without communication.

    Args:
        variables: Keras variables to average.
        kernels: name → kernel.
        precision: how running averages are stored.  `"single"` is float32, `"double"` is float64,
            and `"pair"` is float32 with a float32 compensation; the last two take twice the
            memory.  `"auto"` is single, or, where `kernel.needs_double`, double (a pair if the
            backend has no float64).
        begin: whether the averages start at the variables' current values.  Otherwise `start` must
            be called before the first update; it may be part of a compiled step.

    Raises:
        ValueError: if the precision is unknown, or the averages do not fit into the free memory.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        kernels: Mapping[str, Kernel],
        precision: str = "auto",
        *,
        begin: bool = True,
    ) -> None:
        one_of(PRECISIONS).check("precision", precision)
        self._variables = list(variables)
        self.kernels = dict(kernels)
        self._precision = precision
        check_memory(self._variables, self.kernels, precision)
        chosen = {name: precision_of(k, precision) for name, k in self.kernels.items()}
        recursive = [n for n, k in self.kernels.items() if isinstance(k, RecursiveKernel)]
        # Averages with equal storage share one buffer per variable, with a row each: one operation
        # updates them all and reads the variable once.
        stacked = [n for n in recursive if chosen[n] == "single"]
        self._stacked = stacked if len(stacked) > 1 else []
        alone = [n for n in recursive if n not in self._stacked]
        self._recursive = [*self._stacked, *alone]
        self._stack = [
            new_buffer(f"averages_{index}", variable, "single", rows=len(self._stacked))
            for index, variable in enumerate(self._variables if self._stacked else ())
        ]
        self._buffers: dict[str, list[Any]] = {}
        self._compensations: dict[str, list[Any]] = {}
        for name in alone:
            self._buffers[name] = self._new_buffers(f"{name}_average", chosen[name])
            if chosen[name] == "pair":
                self._compensations[name] = self._new_buffers(f"{name}_compensation", "pair")
        self._rings = {
            name: self._new_buffers(f"{name}_iterates", "single", rows=kernel.ring_size)
            for name, kernel in self.kernels.items()
            if kernel.ring_size
        }
        # Reading the dtype of a Keras variable would take microseconds at every update.
        self._dtypes = [variable.dtype for variable in self._variables]
        self._stack_dtypes = [buffer.dtype for buffer in self._stack]
        self._buffer_dtypes = {n: [b.dtype for b in bs] for n, bs in self._buffers.items()}
        self._ring_dtypes = {n: [b.dtype for b in bs] for n, bs in self._rings.items()}
        # Groups save nothing if the weights are read once and not cast.
        kinds = [*self._buffer_dtypes.values(), *self._ring_dtypes.values()]
        kinds += [self._stack_dtypes] if self._stack else []
        simple = len(kinds) == 1 and kinds[0] == self._dtypes
        sizes = [int(np.prod(v.shape)) for v in self._variables]
        self._groups = [list(range(len(sizes)))] if simple else _groups(sizes)
        if begin:
            self.start()

    def _new_buffers(self, name: str, precision: str, rows: int | None = None) -> list[Any]:
        return [
            new_buffer(f"{name}_{index}", variable, precision, rows)
            for index, variable in enumerate(self._variables)
        ]

    def start(self) -> None:
        """Resets every average to the variables' current values; `T` is 0 again."""
        for buffer, variable in zip(self._stack, self._variables, strict=False):
            fill(buffer, variable)
        for name, buffers in self._buffers.items():
            for buffer, variable in zip(buffers, self._variables, strict=True):
                fill(buffer, variable)
            for buffer in self._compensations.get(name, ()):
                buffer.assign(ops.zeros(buffer.shape, buffer.dtype))
        for rings in self._rings.values():
            for ring, variable in zip(rings, self._variables, strict=True):
                value = ops.cast(ops.convert_to_tensor(variable), ring.dtype)
                backend.assign_row(ring, 0, value)

    def extended(self, variables: Sequence[Any]) -> AverageState:
        """Returns a state with more variables, which must not have moved so far.

        Every average of a constant variable equals its value, so the averages stay exact.

        Args:
            variables: all variables to average from now on, including those of this state.
        """
        new = AverageState(variables, self.kernels, self._precision)
        places = {id(variable): index for index, variable in enumerate(self._variables)}
        for own, other in zip(new._kinds(), self._kinds(), strict=True):
            for variable, buffer in zip(variables, own, strict=True):
                if id(variable) in places:
                    backend.assign([buffer], backend.values([other[places[id(variable)]]]))
                elif len(buffer.shape) > len(variable.shape):
                    fill(buffer, variable)  # a ring: all past values equal the current one
        return new

    def _kinds(self) -> list[list[Any]]:
        """Returns lists of buffers, with one buffer per variable each, in a fixed order."""
        found = [self._stack] if self._stack else []
        for name, buffers in self._buffers.items():
            found.append(buffers)
            if name in self._compensations:
                found.append(self._compensations[name])
        return [*found, *self._rings.values()]

    @property
    def variables(self) -> list[Any]:
        """All buffers, in a fixed order (for checkpoints)."""
        return [buffer for kind in self._kinds() for buffer in kind]

    def memory_bytes(self) -> dict[str, int]:
        """Returns the bytes that each average takes."""

        def size(buffers: Iterable[Any]) -> int:
            return sum(int(np.prod(b.shape)) * np.dtype(b.dtype).itemsize for b in buffers)

        row = size(self._stack) // max(len(self._stacked), 1)
        kinds = (self._buffers, self._compensations, self._rings)
        return {
            name: sum(size(kind.get(name, ())) for kind in kinds) + row * (name in self._stacked)
            for name in self.kernels
        }

    def describe_memory(self) -> str:
        """Describes the memory of the averages in one line."""
        return describe_bytes(self.memory_bytes())

    def update(self, step: Any, values: Sequence[Any] | None = None, *, counts: Any = None) -> None:
        """Updates the averages after the `step`-th update of the weights; may be compiled.

        Args:
            step: the number `T` of updates of the weights, including this one; an integer or an
                integer tensor.
            values: tensors to average instead of the variables' values, in the variables' dtypes.
            counts: a boolean tensor; if it is False, nothing changes.  None means True.
        """
        mixing, slots = self._coefficients(step, counts)
        rows = coefficients.stacked([mixing[name] for name in self._stacked])
        for group in self._groups:
            if values is None:
                weights = backend.values(self._at(self._variables, group))
            else:
                weights = self._at(values, group)
            sources = _Sources(weights, self._at(self._dtypes, group))
            if self._stacked:
                stack = self._at(self._stack, group)
                weights = sources.cast(self._at(self._stack_dtypes, group))
                backend.mix_rows(stack, weights, rows)
            for name in self._recursive:
                if name in self._stacked:
                    continue
                buffers = self._at(self._buffers[name], group)
                weights = sources.cast(self._at(self._buffer_dtypes[name], group))
                if name in self._compensations:
                    pair = self._at(self._compensations[name], group)
                    _mix_pair(buffers, pair, weights, mixing[name])
                else:
                    backend.mix(buffers, weights, mixing[name])
            for name, rings in self._rings.items():
                weights = sources.cast(self._at(self._ring_dtypes[name], group))
                nowhere = counts is not None or self.kernels[name].end is not None
                for ring, weight in zip(self._at(rings, group), weights, strict=True):
                    backend.assign_row(ring, slots[name], weight, or_nowhere=nowhere)

    @staticmethod
    def _at(entries: Sequence[Any], group: Sequence[int]) -> list[Any]:
        return [entries[index] for index in group]

    def _coefficients(self, step: Any, counts: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (name → mixing coefficient, name → place in its ring) of an update."""
        arithmetic = coefficients.arithmetic()
        mixing = {n: self.kernels[n].mixing(step, arithmetic) for n in self._recursive}  # type: ignore[attr-defined]
        slots = {n: self.kernels[n].slots(step, arithmetic) for n in self._rings}
        if counts is not None:
            mixing = {n: arithmetic.where(counts, one, 0.0) for n, one in mixing.items()}
            slots = {n: arithmetic.where(counts, one, -1) for n, one in slots.items()}
        return mixing, slots

    def changes(self, step: int) -> bool:
        """Returns whether the update of this number changes an average.

        Averages of every n-th iterate need no pass over the weights at the steps in between.
        """
        mixed = any(self.kernels[name].mixing(step) > 0 for name in self._recursive)  # type: ignore[attr-defined]
        return mixed or any(self.kernels[name].slots(step) >= 0 for name in self._rings)

    def average(self, name: str, step: int) -> list[Any]:
        """Returns the average after `step` updates, as backend tensors in the buffers' dtype.

        Args:
            name: name of the average.
            step: the number of updates made so far, `T`.

        Raises:
            KeyError: for an unknown name.
        """
        coefficients = self.read_coefficients(name, step)
        return self.read(name, coefficients)

    def read_coefficients(self, name: str, step: int) -> np.ndarray:
        """Returns the coefficients that `read` needs at `T = step`.

        They are the [ring_size] weights of the places in the average's ring; an empty array if it
        has no ring.
        """
        if name not in self.kernels:
            raise KeyError(f"`name` must be one of {sorted(self.kernels)}. Received: {name!r}")
        return self.kernels[name].ring_weights(step)

    def read(self, name: str, coefficients: Any) -> list[Any]:
        """Computes an average from its buffers; may be compiled."""
        rings = backend.values(self._rings.get(name, ()))
        sums = [backend.weighted_sum(coefficients, ring) for ring in rings]
        if name not in self._recursive:
            return sums
        if name in self._stacked:
            position = self._stacked.index(name)
            running = [rows[position] for rows in backend.values(self._stack)]
        else:
            running = backend.values(self._buffers[name])
        if not sums:
            return running
        return [one + ops.cast(add, one.dtype) for one, add in zip(running, sums, strict=True)]


class _Sources:
    """Raw weights, each read and cast once for all averages."""

    def __init__(self, weights: Sequence[Any], dtypes: Sequence[str]) -> None:
        self._weights = weights
        self._casts = dict(zip(enumerate(dtypes), self._weights, strict=True))

    def cast(self, dtypes: Sequence[str]) -> list[Any]:
        """Returns the weights in the given dtypes."""
        found = []
        for key in enumerate(dtypes):
            if key not in self._casts:
                self._casts[key] = backend.stored(self._weights[key[0]], key[1])
            found.append(self._casts[key])
        return found


def _groups(sizes: Sequence[int]) -> list[list[int]]:
    """Divides positions into consecutive groups of about `_GROUP` values."""
    groups: list[list[int]] = []
    total = _GROUP
    for index, size in enumerate(sizes):
        if total + size > _GROUP:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += size
    return groups


def _mix_pair(
    buffers: Sequence[Any], compensations: Sequence[Any], sources: Sequence[Any], mixing: Any
) -> None:
    """Does what `backend.mix` does, in twice the precision: buffer + compensation."""
    for buffer, compensation, weight in zip(buffers, compensations, sources, strict=True):
        share = ops.cast(mixing, buffer.dtype)
        high, low = backend.values([buffer, compensation])
        change = share * ((weight - high) - low) + low
        total = high + change
        # The exact rounding error of the addition (Knuth's two-sum, for any order of sizes).
        part = total - high
        lost = (high - (total - part)) + (change - part)
        copied = backend.is_one(mixing, buffer.dtype)
        buffer.assign(ops.where(copied, weight, total))
        compensation.assign(ops.where(copied, ops.zeros_like(lost), lost))
