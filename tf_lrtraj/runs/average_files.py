"""Averages of weight files, with given weights or as a greedy soup.

`WeightFiles` reads the files of one architecture one at a time, and sums, evaluates and saves them;
`greedy_soup` selects the files of a uniform average (Wortsman et al. 2022, arXiv 2203.05482).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tf_lrtraj.averaging.weight_files import NAMED, check_ending, read_named, read_weights
from tf_lrtraj.records.archives import save_arrays
from tf_lrtraj.records.tensor_files import write_tensors
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.values import one_of

__all__ = [
    "MODES",
    "Soup",
    "WeightFiles",
    "better",
    "evaluate_model",
    "greedy_soup",
    "load_model",
]

MODES = ("auto", "min", "max")
_LOWER = ("loss", "error", "entropy", "mse", "mae", "perplexity", "divergence")
_HIGHER = ("acc", "auc", "precision", "recall", "f1", "iou", "score", "similarity", "r2")


def load_model(path: str | os.PathLike[str]) -> Any:
    """Loads a `.keras` model in Keras' safe mode.

    Raises:
        ConfigError: if it cannot be loaded; the message gives the remedy for a custom class.
    """
    from tf_lrtraj.averaging import model_files

    try:
        return model_files.load_model(path)
    except (OSError, ValueError) as error:
        found = re.search(r"Could not locate class '(\w+)'", f"{error} {error.__context__}")
        if found is None:
            raise ConfigError(str(error)) from None
        raise ConfigError(
            f"the model {os.fspath(path)} has a class {found[1]!r} that Keras does not know. Give "
            "--import=MODULE, a module that registers it with "
            "keras.saving.register_keras_serializable"
        ) from None


def evaluate_model(
    model: Any, x: np.ndarray, y: np.ndarray | None, batch_size: int
) -> dict[str, float]:
    """Returns the compiled loss and metrics of a Keras model.

    Raises:
        ConfigError: if there are no labels, or the model is not compiled.
    """
    if y is None:
        raise ConfigError("evaluating needs labels: an array `y` beside `x`")
    if not model.compiled:
        raise ConfigError("the model is not compiled, so it has no loss")
    found = model.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)
    return {name: float(value) for name, value in found.items()}


class WeightFiles:
    """Weight files of one architecture.

    Args:
        paths: `.keras`, `.weights.h5`, `.npz` or `.safetensors` files.
        model: a `.keras` file of the model; by default the first `.keras` file among the paths. Not
            needed if all files are `.npz` or `.safetensors`.
        batch_norm_data: inputs on which batch-norm statistics are recomputed; by default they are
            averaged with the weights.
        data: (x, y) for evaluations.
        batch_size: the batch size of evaluation and recomputation.

    Raises:
        ConfigError: if a model is needed or cannot be loaded.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        model: str | os.PathLike[str] | None = None,
        batch_norm_data: np.ndarray | None = None,
        data: tuple[np.ndarray, np.ndarray | None] | None = None,
        batch_size: int = 128,
    ) -> None:
        self.paths = [pathlib.Path(path) for path in paths]
        endings = [check_ending(path) for path in self.paths]
        if model is None and ".keras" in endings:
            model = self.paths[endings.index(".keras")]
        if model is None and not set(endings) <= set(NAMED):
            raise ConfigError("--model=FILE.keras is needed to read .weights.h5 files")
        self.model = None if model is None else load_model(model)
        self._batch_norm_data = batch_norm_data
        self._data = data
        self._batch_size = batch_size
        self._names: list[str] = []

    @property
    def has_batch_norm(self) -> bool:
        from tf_lrtraj.backend import batch_norm as bn

        return self.model is not None and bool(bn.find_statistics(self.model))

    def describe(self) -> str:
        """Returns the description of the averages' batch-norm statistics."""
        if not self.has_batch_norm:
            return "none"
        if self._batch_norm_data is None:
            return "average"
        return f"recompute({len(self._batch_norm_data)} examples)"

    def _read(self, index: int) -> list[np.ndarray]:
        if self.model is not None:
            return read_weights(self.paths[index], self.model)
        named = read_named(self.paths[index])
        self._names = self._names or list(named)
        if set(named) != set(self._names):
            raise ConfigError(
                f"{self.paths[index]} holds the arrays {list(named)[:3]}…, and {self.paths[0]} "
                f"holds {self._names[:3]}…"
            )
        return [named[name] for name in self._names]

    def average(self, weights: Sequence[float] | np.ndarray) -> list[np.ndarray]:
        """Returns the weighted sum of the files' arrays, computed in float64.

        Integer arrays are those of the last file with a nonzero weight.

        Args:
            weights: one for each file; they sum to 1.

        Raises:
            ConfigError: if the files do not fit together.
        """
        total: list[np.ndarray] = []
        dtypes: list[np.dtype[Any]] = []
        for index in np.flatnonzero(weights).tolist():
            arrays = self._read(index)
            if not total:
                dtypes = [array.dtype for array in arrays]
                total = [np.zeros(array.shape) for array in arrays]
            if [array.shape for array in arrays] != [array.shape for array in total]:
                raise ConfigError(f"{self.paths[index]} holds arrays of other shapes")
            for at, array in enumerate(arrays):
                if array.dtype.kind in "iub":
                    total[at] = array
                else:
                    total[at] += weights[index] * array.astype(np.float64)
        return [sums.astype(dtype) for sums, dtype in zip(total, dtypes, strict=True)]

    @contextlib.contextmanager
    def _in_model(self, arrays: Sequence[np.ndarray]) -> Iterator[Any]:
        """Returns the model with these weights; recomputes batch-norm statistics if there are
        data."""
        from tf_lrtraj.averaging import borrow
        from tf_lrtraj.backend import batch_norm as bn

        model: Any = self.model
        held = {id(v): array for v, array in zip(model.weights, arrays, strict=True)}
        trainable = [held[id(v)] for v in model.trainable_variables]
        others = [held.get(id(v), v.value) for v in model.non_trainable_variables]
        if self.has_batch_norm and self._batch_norm_data is not None:
            data = bn.check_data(self._batch_norm_data)
            others = bn.Recompute(model)(trainable, others, data, batch_size=self._batch_size)
        with borrow(model, trainable, others, "an average of files"):
            yield model

    def evaluate(self, arrays: Sequence[np.ndarray]) -> dict[str, float]:
        """Returns the compiled loss and metrics of weights.

        Raises:
            ConfigError: if there are no labels, or the model is not compiled.
        """
        if self.model is None or self._data is None:
            raise ConfigError("evaluating needs --data=FILE.npz with x and y, and a model")
        with self._in_model(arrays) as model:
            return evaluate_model(model, *self._data, self._batch_size)

    def save(self, arrays: Sequence[np.ndarray], path: str | os.PathLike[str]) -> None:
        """Writes a file of weights atomically.

        An `.npz` or `.safetensors` file holds an array for each of `model.weights`, named by its
        path; without a model, the arrays of the files under their names.
        """
        from tf_lrtraj.averaging.model_files import save_weights, weight_names

        ending = check_ending(path)
        if self.model is None:
            named = dict(zip(self._names, arrays, strict=True))
        elif ending == ".npz":
            with self._in_model(arrays) as model:
                named = dict(zip(weight_names(model), model.get_weights(), strict=True))
        else:
            with self._in_model(arrays) as model:
                save_weights(model, path)
            return
        if ending == ".npz":
            save_arrays(path, named, compress=False)
        else:
            write_tensors(path, named, {})


@dataclasses.dataclass(frozen=True)
class Soup:
    """A greedy soup.

    Attributes:
        weights: [K] weights of the files; equal for those in the soup, 0 for the others.
        singles: [K] the metric of each file.
        value: the metric of the soup.
    """

    weights: np.ndarray
    singles: np.ndarray
    value: float


def better(metric: str, mode: str) -> Callable[[float, float], bool]:
    """Returns a function that tells whether its first metric value is no worse than its second.

    Raises:
        ConfigError: if the direction of the metric is not known.
    """
    if mode == "auto":
        name = metric.lower()
        lower, higher = (any(part in name for part in parts) for parts in (_LOWER, _HIGHER))
        if lower == higher:
            raise ConfigError(
                f"--metric_mode=min or max is needed: nothing is known of the metric {metric!r}"
            )
        mode = "min" if lower else "max"
    return (lambda a, b: a <= b) if mode == "min" else (lambda a, b: a >= b)


def greedy_soup(
    files: WeightFiles,
    metric: str,
    mode: str = "auto",
    tell: Callable[[str], None] = lambda text: None,
) -> Soup:
    """Adds files to a uniform average, best first, if the metric does not become worse.

    Args:
        files: weight files with data for evaluations, which should be held out from training.
        metric: "loss", or a metric that the model was compiled with.
        mode: "min" or "max", whichever is better, or "auto" for the metric's name.
        tell: called with a line for each file.

    Raises:
        ConfigError: for an unknown metric or direction, or one that is not finite for any file.
    """
    no_worse = better(metric, mode)

    def value(weights: np.ndarray) -> float:
        found = files.evaluate(files.average(weights))
        return found[one_of(sorted(found)).check("--soup", metric, ConfigError)]

    count = len(files.paths)
    singles = np.array([value(row) for row in np.eye(count)])
    order = [index for index in np.argsort(singles, kind="stable") if np.isfinite(singles[index])]
    if not order:
        raise ConfigError(f"{metric} is not finite for any of the files")
    if no_worse(1.0, 0.0):  # higher is better
        order = sorted(order, key=lambda index: -singles[index])
    chosen, best = [order[0]], float(singles[order[0]])
    tell(f"{files.paths[order[0]]}: {metric} {best:.4f}, the best file")
    for index in order[1:]:
        weights = np.zeros(count)
        weights[[*chosen, index]] = 1.0 / (len(chosen) + 1)
        candidate = value(weights)
        taken = bool(np.isfinite(candidate)) and no_worse(candidate, best)
        tell(
            f"{files.paths[index]}: {metric} {singles[index]:.4f} alone, {candidate:.4f} with it: "
            f"{'added' if taken else 'left out'}"
        )
        if taken:
            chosen, best = [*chosen, index], candidate
    weights = np.zeros(count)
    weights[chosen] = 1.0 / len(chosen)
    return Soup(weights, singles, best)
