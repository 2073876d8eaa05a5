"""`combine_stored`: builds an average from averages that were stored during a run.

If a run stored a few averages at intervals, such as `PowerFunction` kernels of two exponents,
other averages can be built after training, without the iterates (`theory.combine_averages`).

>>> import numpy as np
>>> from tf_lrtraj import kernels
>>> iterates = np.random.default_rng(0).normal(size=(101, 3))
>>> narrow, wide = kernels.PowerFunction(16.97), kernels.PowerFunction(6.94)
>>> stored = [
...     StoredAverage(kernel, step, [kernel.weights(step) @ iterates[: step + 1]])
...     for kernel in (narrow, wide)
...     for step in (50, 100)
... ]
>>> found = combine_stored(stored, kernels.PowerFunction(10.0))
>>> wanted = kernels.PowerFunction(10.0).weights(100) @ iterates
>>> bool(np.abs(found.arrays[0] - wanted).max() < 0.02), round(found.combination.error, 3)
(True, 0.047)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.averaging.built_average import BuiltAverage
from tf_lrtraj.averaging.weight_files import read_named, read_weights
from tf_lrtraj.kernels import Kernel
from tf_lrtraj.theory.combination import Combination, combine_averages

__all__ = ["CombinedAverage", "StoredAverage", "combine_stored"]


@dataclasses.dataclass(frozen=True)
class StoredAverage:
    """An average that was stored during a run.

    Attributes:
        kernel: the kernel of the average.
        step: number of updates after which it was stored.
        source: arrays of the average, in the same order for all averages of a run; or a file of
            them: `.npz`, or `.keras` and `.weights.h5`, for which a model is needed.
    """

    kernel: Kernel
    step: int
    source: Sequence[np.ndarray] | str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class CombinedAverage(BuiltAverage):
    """A combination of stored averages; see `BuiltAverage` for `apply` and `save`.

    Attributes:
        arrays: one array per array of the stored averages.
        combination: the coefficients and their error.
    """

    arrays: list[np.ndarray]
    combination: Combination

    def __str__(self) -> str:
        c = self.combination
        used = np.count_nonzero(np.abs(c.coefficients) > 1e-3)
        return (
            f"made of {used} of {c.coefficients.size} stored averages, with coefficients from "
            f"{c.coefficients.min():.3g} to {c.coefficients.max():.3g}\n"
            f"  off by {100 * c.error:.2g} % for independent iterates; at most "
            f"{100 * c.moved:.2g} % of the largest distance between two iterates"
        )


def combine_stored(
    stored: Sequence[StoredAverage],
    target: Kernel | Any,
    num_steps: int | None = None,
    *,
    model: Any = None,
) -> CombinedAverage:
    """Builds the combination of stored averages that is closest to another average.

    Sums are float64.  One stored average at a time is in memory, and those with coefficient 0 are
    not read.

    Args:
        stored: averages of one run.
        target: the requested average: a kernel, or [T+1] weights on the iterates.
        num_steps: T; by default that of the newest stored average.
        model: a built Keras model; needed for `.keras` and `.weights.h5` files, whose trainable
            weights and batch-norm statistics are combined.

    Raises:
        ValueError: as `theory.combine_averages`, or if the shapes of arrays differ, or a model is
            needed.
        OSError: if a file cannot be read.
    """
    for index, average in enumerate(stored):
        if not isinstance(average, StoredAverage):
            raise values.error(f"stored[{index}]", "a StoredAverage", average)
    combination = combine_averages([(s.kernel, s.step) for s in stored], target, num_steps)
    total: list[np.ndarray] = []
    dtypes: list[Any] = []
    for index, (average, share) in enumerate(zip(stored, combination.coefficients, strict=True)):
        if share == 0.0:
            continue
        arrays = _arrays(average.source, model)
        if not total:
            total = [np.zeros(array.shape) for array in arrays]
            dtypes = [np.float64 if a.dtype == np.float64 else np.float32 for a in arrays]
        if [array.shape for array in arrays] != [array.shape for array in total]:
            raise ValueError(
                f"`stored[{index}]` must hold {len(total)} arrays of the shapes of the others. "
                f"Received: {len(arrays)} arrays"
            )
        for sums, array in zip(total, arrays, strict=True):
            sums += share * array
    arrays = [sums.astype(dtype) for sums, dtype in zip(total, dtypes, strict=True)]
    return CombinedAverage(arrays, combination)


def _arrays(source: Any, model: Any) -> list[np.ndarray]:
    if not isinstance(source, (str, os.PathLike)):
        return [np.asarray(array) for array in source]
    if model is None:
        if not os.fspath(source).endswith(".npz"):
            raise ValueError(f"`model` must be given to read {os.fspath(source)!r}")
        return list(read_named(source).values())
    from tf_lrtraj.backend.batch_norm import weights_and_statistics

    positions = {id(variable): index for index, variable in enumerate(model.weights)}
    weights = read_weights(source, model)
    return [weights[positions[id(variable)]] for variable in weights_and_statistics(model)]
