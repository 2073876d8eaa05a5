"""The running state of any number of weight averages.

One `AverageState` holds every average of a run.  The coefficients of an update come from the
kernels' own formulas, computed from the number of the update in the compiled step itself.  The
callback, the optimizer and the training loop make the same update of the same state.
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

# Variables are updated in groups of about this many numbers, one average after the other,
# so that a group is read from memory once for all averages, and cast once without a copy
# of all weights.
_GROUP = 1 << 19


class AverageState:
    """Buffers of several averages over one list of variables, and their update.

    The count of updates `T` is the caller's (the training step, or a counter in
    a callback): the same `T` that `kernel.weights(T)` takes.  Where averages begin `T` is
    0 and every average equals the variables' current values.

    Args:
        variables: Keras variables to average.
        kernels: name → kernel.
        precision: how running averages are stored: "single" (float32), "double"
            (float64), "pair" (float32 and a compensation) or "auto": single, and
            double where `kernel.needs_double` (a pair where the backend has no float64).
            The last two cost twice the memory.
        begin: whether the averages begin at the variables' values of now.  Otherwise `start` must
            be called before the first update; it may be part of a compiled step.

    Raises:
        ValueError: for an unknown precision, or averages that the free memory cannot hold.

    Recursive kernels keep one number per weight (a pair two).  Lag kernels keep a
    ring of `max_lag + 1` past values and the average is formed when it is asked for,
    so an update costs one copy whatever the window's length.  `BEMA` keeps both: a running
    average and a ring of two, whose weighted sum is added when the average is read.

    Under a `tf.distribute` strategy create it inside the strategy's scope and
    call `update` inside `strategy.run`: every replica updates its own copy from
    its own copy of the weights, and nothing is communicated.
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
        # Averages stored alike share one buffer per variable, a row each: one operation updates
        # them all, and reads the variable once.
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
        # Asking a Keras variable for its dtype takes microseconds, at every update.
        self._dtypes = [variable.dtype for variable in self._variables]
        self._stack_dtypes = [buffer.dtype for buffer in self._stack]
        self._buffer_dtypes = {n: [b.dtype for b in bs] for n, bs in self._buffers.items()}
        self._ring_dtypes = {n: [b.dtype for b in bs] for n, bs in self._rings.items()}
        # Where the weights are read once, as they are, nothing is gained from groups.
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
        """Begins anew: `T` is 0 and every average equals the variables' current values."""
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
        """This state with more variables, which have not moved so far.

        Of what never moved every average is the value itself, so the averages stay exact.

        Args:
            variables: all variables to average from now on, those of this state among them.
        """
        new = AverageState(variables, self.kernels, self._precision)
        places = {id(variable): index for index, variable in enumerate(self._variables)}
        for own, other in zip(new._kinds(), self._kinds(), strict=True):
            for variable, buffer in zip(variables, own, strict=True):
                if id(variable) in places:
                    backend.assign([buffer], backend.values([other[places[id(variable)]]]))
                elif len(buffer.shape) > len(variable.shape):
                    fill(buffer, variable)  # rings: every place holds what it always was
        return new

    def _kinds(self) -> list[list[Any]]:
        """Lists of buffers that hold one for each variable, in a fixed order."""
        found = [self._stack] if self._stack else []
        for name, buffers in self._buffers.items():
            found.append(buffers)
            if name in self._compensations:
                found.append(self._compensations[name])
        return [*found, *self._rings.values()]

    @property
    def variables(self) -> list[Any]:
        """Every buffer, in a fixed order (for checkpoints)."""
        return [buffer for kind in self._kinds() for buffer in kind]

    def memory_bytes(self) -> dict[str, int]:
        """Bytes held per average."""

        def size(buffers: Iterable[Any]) -> int:
            return sum(int(np.prod(b.shape)) * np.dtype(b.dtype).itemsize for b in buffers)

        row = size(self._stack) // max(len(self._stacked), 1)
        kinds = (self._buffers, self._compensations, self._rings)
        return {
            name: sum(size(kind.get(name, ())) for kind in kinds) + row * (name in self._stacked)
            for name in self.kernels
        }

    def describe_memory(self) -> str:
        """What the averages hold, in words for a user about to train."""
        return describe_bytes(self.memory_bytes())

    def update(self, step: Any, values: Sequence[Any] | None = None, *, counts: Any = None) -> None:
        """Makes the update that follows the `step`-th update of the weights; may be compiled.

        Args:
            step: the number `T` of updates that the weights have made with this one; an integer
                or an integer tensor.
            values: a tensor of each variable's dtype, to be averaged in place of
                what the variables hold.
            counts: a boolean tensor; where it is False, nothing changes.  None for True.
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
        """(name → mixing coefficient, name → place in its ring) of an update."""
        arithmetic = coefficients.arithmetic()
        mixing = {n: self.kernels[n].mixing(step, arithmetic) for n in self._recursive}  # type: ignore[attr-defined]
        slots = {n: self.kernels[n].slots(step, arithmetic) for n in self._rings}
        if counts is not None:
            mixing = {n: arithmetic.where(counts, one, 0.0) for n, one in mixing.items()}
            slots = {n: arithmetic.where(counts, one, -1) for n, one in slots.items()}
        return mixing, slots

    def changes(self, step: int) -> bool:
        """Whether the update of this number would change anything.

        Averages that take every n-th iterate only need no pass over the weights between.
        """
        mixed = any(self.kernels[name].mixing(step) > 0 for name in self._recursive)  # type: ignore[attr-defined]
        return mixed or any(self.kernels[name].slots(step) >= 0 for name in self._rings)

    def average(self, name: str, step: int) -> list[Any]:
        """The average after `step` updates, as backend tensors in the buffers' dtype.

        Args:
            name: of the average.
            step: the number of updates made so far, `T`.

        Raises:
            KeyError: for an unknown name (the known ones are listed).
        """
        coefficients = self.read_coefficients(name, step)
        return self.read(name, coefficients)

    def read_coefficients(self, name: str, step: int) -> np.ndarray:
        """What `read` needs to form the average at `T = step`.

        The weight of each place in the average's ring, [ring_size]: an empty array where it has
        none.
        """
        if name not in self.kernels:
            raise KeyError(f"`name` must be one of {sorted(self.kernels)}. Received: {name!r}")
        return self.kernels[name].ring_weights(step)

    def read(self, name: str, coefficients: Any) -> list[Any]:
        """Forms an average from its buffers; usable inside a compiled function."""
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
        """The weights, each in the dtype asked for."""
        found = []
        for key in enumerate(dtypes):
            if key not in self._casts:
                self._casts[key] = backend.stored(self._weights[key[0]], key[1])
            found.append(self._casts[key])
        return found


def _groups(sizes: Sequence[int]) -> list[list[int]]:
    """Consecutive positions, in groups of about `_GROUP` numbers."""
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
    """`backend.mix` in twice the precision: buffer + compensation is the average."""
    for buffer, compensation, weight in zip(buffers, compensations, sources, strict=True):
        share = ops.cast(mixing, buffer.dtype)
        high, low = backend.values([buffer, compensation])
        change = share * ((weight - high) - low) + low
        total = high + change
        # What the addition lost, exactly (Knuth's two-sum: no order of sizes is assumed).
        part = total - high
        lost = (high - (total - part)) + (change - part)
        copied = backend.is_one(mixing, buffer.dtype)
        buffer.assign(ops.where(copied, weight, total))
        compensation.assign(ops.where(copied, ops.zeros_like(lost), lost))
