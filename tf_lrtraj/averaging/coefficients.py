"""Arithmetic on tensors for the coefficients of an update inside a compiled step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj.kernels.kernel_base import ON_HOST, Arithmetic


class _OfTensors(Arithmetic):
    """`kernel_base.Arithmetic` on scalar tensors of the backend, in float64 if it is available."""

    def __init__(self) -> None:
        bits = 64 if backend.has_float64() else 32
        self._integer, self._number = f"int{bits}", f"float{bits}"

    def integers(self, steps: Any) -> Any:
        return ops.cast(steps, self._integer)

    def numbers(self, values: Any) -> Any:
        return ops.cast(values, self._number)

    def _like(self, value: Any, other: Any) -> Any:
        """Converts a Python number to the dtype of the tensor `other`."""
        return ops.convert_to_tensor(value, dtype=other.dtype) if _is_plain(value) else value

    def where(self, condition: Any, one: Any, other: Any) -> Any:
        if _is_plain(one) and _is_plain(other):
            one = self.numbers(one)
        return ops.where(condition, self._like(one, other), self._like(other, one))

    def maximum(self, one: Any, other: Any) -> Any:
        return ops.maximum(self._like(one, other), self._like(other, one))

    def minimum(self, one: Any, other: Any) -> Any:
        return ops.minimum(self._like(one, other), self._like(other, one))

    def power(self, base: Any, exponent: float) -> Any:
        return ops.power(base, self._like(exponent, base))

    log1p = staticmethod(ops.log1p)
    expm1 = staticmethod(ops.expm1)


def arithmetic() -> Arithmetic:
    """Returns the `kernel_base.Arithmetic` that computes the coefficients of an update.

    torch runs eagerly, so its coefficients are computed on the host.
    """
    return ON_HOST if backend.name() == "torch" else _OfTensors()


def stacked(scalars: Sequence[Any]) -> Any:
    """Stacks scalars into one vector of NumPy or of the backend."""
    if all(isinstance(one, np.ndarray) for one in scalars):
        return np.array(scalars, np.float64)
    return ops.stack(list(scalars))


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float))
