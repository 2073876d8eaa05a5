"""Evaluates and saves averages of a run's snapshots.

`RunTarget` is a run with a workdir; `ModelTarget` is a custom Keras model with a folder of
snapshots. Both convert the arrays of an average to weights with batch-norm statistics by a policy,
and evaluate and save them without changing the model.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tf_lrtraj import records
from tf_lrtraj.averaging.advising.measured import Measurement
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.records.archives import load_arrays
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.values import one_of

__all__ = ["ModelTarget", "RunTarget", "Target", "open_snapshots", "read_arrays"]

_MOST_KEPT = 1 << 28  # bytes of images
BATCH = "batch"  # each batch's own batch-norm statistics, for measurements only


def open_snapshots(workdir: str | os.PathLike[str]) -> Snapshots:
    """Returns the snapshots of a run.

    Raises:
        RecordError: if there are none; the message tells how to write them.
    """
    folder = pathlib.Path(workdir) / "snapshots"
    if not folder.is_dir():
        raise records.RecordError(
            f"{workdir} holds no snapshots. A run writes them with, for example, "
            "--config.snapshots.every='20 steps'"
        )
    return Snapshots(folder)


class Target:
    """The model of averages; see `RunTarget` and `ModelTarget`."""

    snapshots: Snapshots
    policy: str
    splits: Sequence[str]
    default_split = "data"

    def weights(self, arrays: Sequence[np.ndarray], last: int, policy: str | None = None) -> Any:
        """Returns values for every variable of the model.

        Args:
            arrays: the arrays of an average, in the order of `Snapshots.variables`.
            last: step of the snapshot whose statistics the policy "copy" uses.
            policy: the batch-norm policy; None for the target's own.
        """
        policy = policy or self.policy
        split = self.snapshots.num_trainable
        trainable, statistics = list(arrays[:split]), list(arrays[split:])
        if policy == "copy" and statistics:
            statistics = self.snapshots.read(last)[split:]
        return self._weights(trainable, None if policy == "recompute" else statistics)

    def _weights(self, trainable: list[Any], statistics: list[Any] | None) -> Any:
        raise NotImplementedError

    def evaluate(
        self, weights: Any, split: str, limit: int | None = None, batch: bool = False
    ) -> dict[str, float]:
        """Returns {"loss", other metrics, "examples"} for a result of `weights`.

        Args:
            split: one of `splits`.
            limit: largest number of examples; None for all.
            batch: whether batch norm uses each batch's own statistics.
        """
        raise NotImplementedError

    def save(self, weights: Any, path: str | os.PathLike[str]) -> None:
        """Writes a `.keras` model atomically."""
        raise NotImplementedError

    def describe(self, policy: str | None = None) -> str:
        """Returns the description of the batch-norm statistics for records."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Returns the settings of an evaluation besides weights, split and limit."""
        raise NotImplementedError

    def images(self, split: str, limit: int | None, policy: str) -> int:
        """Returns the number of examples of an evaluation, those for batch norm included."""
        raise NotImplementedError

    def measurement(self, split: str, limit: int | None, policy: str) -> Measurement:
        """Returns the measurement of the loss on a split, for `advisor.advise`.

        Args:
            policy: the batch-norm policy, or "batch" for each batch's own statistics.
        """
        batch = policy == BATCH
        last = int(self.snapshots.steps[-1])

        def measure(arrays: list[np.ndarray]) -> dict[str, float]:
            weights = self.weights(arrays, last, "average" if batch else policy)
            return self.evaluate(weights, split, limit, batch)

        said = "each batch's own" if batch else self.describe(policy)
        identity = {**self.identity(), "split": split, "limit": limit, "batch_norm": said}
        return Measurement(split, measure, identity, self.images(split, limit, policy))

    def check_split(self, split: str) -> str:
        """Returns `split` if it exists.

        Raises:
            ConfigError: otherwise.
        """
        return str(one_of(self.splits).check("split", split, ConfigError))

    def _check_variables(self, model: Any, what: str) -> None:
        from tf_lrtraj.averaging.snapshot_recorder import recorded_variables

        expected = [(tuple(v.shape), role) for v, role in recorded_variables(model)]
        found = [(spec.shape, spec.role) for spec in self.snapshots.variables]
        if expected != found:
            where = next(
                (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
                min(len(expected), len(found)),
            )
            raise ConfigError(
                f"the snapshots in {self.snapshots.folder} are not of {what}: it has "
                f"{len(expected)} variables and they have {len(found)}; the first that differs is "
                f"number {where}"
            )


class RunTarget(Target):
    """A run with a workdir: model, data and policies come from its configuration.

    Args:
        config: the result of `run_config.read_config`.
        workdir: the run's folder.
        strategy: a `tf.distribute` strategy.

    Raises:
        RecordError: if there are no snapshots. ConfigError: if data or model are not available, or
        the snapshots are of another model.
    """

    def __init__(
        self, config: dict[str, Any], workdir: str | os.PathLike[str], strategy: Any
    ) -> None:
        from tf_lrtraj.runs.assembly import assemble
        from tf_lrtraj.runs.components import load_dataset
        from tf_lrtraj.training.evaluation import Evaluator

        self.snapshots = open_snapshots(workdir)
        # The run's own averages are not needed and would take memory.
        config = {**config, "averages": {}, "matched": {**config["matched"], "averages": []}}
        self.assembly = assemble(config, load_dataset(config), strategy)
        self._evaluator = Evaluator(
            strategy,
            self.assembly.model,
            moment_batches=self._moment_batches,
            num_moment_batches=config["batch_norm"]["batches"],
            objective=self.assembly.objective,
        )
        self._kept: dict[Any, list[Any]] = {}
        self.policy = config["batch_norm"]["policy"]
        self.splits = sorted(self.assembly.dataset.num_examples)
        self.default_split = self.assembly.eval_split
        self._check_variables(self.assembly.model, f"the model of {workdir}")

    def _weights(self, trainable: list[Any], statistics: list[Any] | None) -> Any:
        return self._evaluator.weights_from(trainable, statistics)

    def evaluate(
        self, weights: Any, split: str, limit: int | None = None, batch: bool = False
    ) -> dict[str, float]:
        limit = self._limit(split, limit)
        count = limit or self.assembly.dataset.num_examples[split]
        batches = self._keep(
            (split, limit), count, lambda: self.assembly.eval_batches(split, limit)
        )
        result = self._evaluator.evaluate(weights, batches, batch)
        return {**result.values, "examples": result.examples}

    def _moment_batches(self) -> Iterable[Any]:
        config = self.assembly.config
        count = config["batch_norm"]["batches"] * config["data"]["batch_size"]
        return self._keep("moments", count, self.assembly.moment_batches)

    def _keep(self, key: Any, count: int, batches: Callable[[], Iterable[Any]]) -> Iterable[Any]:
        """Keeps batches in memory if they are few, because the advisor uses them repeatedly."""
        size = 4 * count * self.assembly.numbers_per_input
        if size > _MOST_KEPT:
            return batches()
        if key not in self._kept:
            self._kept[key] = list(batches())
        return self._kept[key]

    def _limit(self, split: str, limit: int | None) -> int | None:
        return None if limit is None else min(limit, self.assembly.dataset.num_examples[split])

    def save(self, weights: Any, path: str | os.PathLike[str]) -> None:
        from tf_lrtraj.averaging import borrow, save_model

        with borrow(self.assembly.model, *self._evaluator.host_weights(weights)):
            save_model(self.assembly.model, path)

    def describe(self, policy: str | None = None) -> str:
        return self._evaluator.describe("", policy or self.policy)

    def identity(self) -> dict[str, Any]:
        config = self.assembly.config
        keys = ("seed", "data", "model", "loss", "batch_norm", "deterministic")
        return {key: config[key] for key in keys}

    def images(self, split: str, limit: int | None, policy: str) -> int:
        config, count = self.assembly.config, self.assembly.dataset.num_examples[split]
        pooled = config["batch_norm"]["batches"] * config["data"]["batch_size"]
        recomputes = policy == "recompute" and self._evaluator.has_batch_norm
        return (self._limit(split, limit) or count) + (pooled if recomputes else 0)


class ModelTarget(Target):
    """A custom Keras model with a folder of snapshots; runs on every Keras backend.

    Args:
        snapshots: snapshots of a `SnapshotRecorder`.
        path: a `.keras` file of the model, compiled (its loss and metrics are used).
        data: split → (x, y), y None without labels.
        batch_norm_data: inputs on which batch norm is recomputed; those of the first split by
            default.
        batch_size: the batch size of evaluation.

    Raises:
        ConfigError: if the model cannot be loaded, or the snapshots are of another.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        path: str | os.PathLike[str],
        data: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
        batch_norm_data: np.ndarray | None = None,
        batch_size: int = 128,
    ) -> None:
        from tf_lrtraj.averaging.model_weights import ModelWeights
        from tf_lrtraj.runs.average_files import load_model

        self.snapshots = snapshots
        self.model = load_model(path)
        self._path = pathlib.Path(path)
        self._data = dict(data)
        self._batch_size = batch_size
        self._inputs, self._inputs_name = batch_norm_data, "batch_norm_data"
        if batch_norm_data is None and self._data:
            self._inputs_name, (self._inputs, _) = next(iter(self._data.items()))
        self.splits = sorted(self._data)
        self.policy = "average" if self._inputs is None else "recompute"
        self._check_variables(self.model, f"the model {path}")
        self._convert = ModelWeights(self.model, self.policy, self._inputs, batch_size)

    def _weights(self, trainable: list[Any], statistics: list[Any] | None) -> Any:
        if statistics is None and self._inputs is None and self._convert.statistics:
            raise ConfigError("recomputing batch-norm statistics needs --batch_norm_data or --data")
        policy = "recompute" if statistics is None else "average"
        return self._convert([*trainable, *(statistics or [])], policy)

    def evaluate(
        self, weights: Any, split: str, limit: int | None = None, batch: bool = False
    ) -> dict[str, float]:
        from tf_lrtraj.averaging import borrow
        from tf_lrtraj.runs.average_files import evaluate_model

        x, y = self._data[split]
        if batch:
            raise ConfigError("batch statistics are for runs with a --workdir")
        x, y = x[:limit], None if y is None else y[:limit]
        with borrow(self.model, *weights):
            found = evaluate_model(self.model, x, y, self._batch_size)
        return {**found, "examples": len(x)}

    def save(self, weights: Any, path: str | os.PathLike[str]) -> None:
        from tf_lrtraj.averaging import borrow, save_model

        with borrow(self.model, *weights):
            save_model(self.model, path)

    def describe(self, policy: str | None = None) -> str:
        if not self._convert.statistics:
            return "none"
        policy = policy or self.policy
        if policy != "recompute" or self._inputs is None:
            return policy
        return f"recompute({len(self._inputs)} examples of {self._inputs_name})"

    def identity(self) -> dict[str, Any]:
        import zlib

        data: dict[str, Any] = dict(self._data)
        if self._inputs_name == "batch_norm_data":
            data["batch_norm_data"] = (self._inputs,)
        sums = {
            name: [zlib.crc32(np.ascontiguousarray(a).data) for a in arrays if a is not None]
            for name, arrays in data.items()
        }
        stat = self._path.stat()
        return {"model": [self._path.name, stat.st_size, stat.st_mtime_ns], "data": sums}

    def images(self, split: str, limit: int | None, policy: str) -> int:
        recomputes = policy == "recompute" and bool(self._convert.statistics)
        pooled = 0 if self._inputs is None or not recomputes else len(self._inputs)
        return len(self._data[split][0][:limit]) + pooled


def read_arrays(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns (x, y) of an `.npz` file; y is None if it holds no labels.

    Raises:
        ConfigError: if there is no such file, or no array `x` in it.
    """
    try:
        arrays = load_arrays(path, largest=None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the data {path} cannot be read: {error}") from None
    if "x" not in arrays:
        raise ConfigError(
            f"the data {path} must hold an array `x`, and `y` for evaluation. "
            f"Received: {sorted(arrays)}"
        )
    x, y = arrays["x"], arrays.get("y")
    for name, array in (("x", x), ("y", y)):
        if array is not None and (array.ndim < 1 or not len(array)):
            raise ConfigError(
                f"the data {path}: `{name}` must hold at least one example. "
                f"Received: shape={array.shape}"
            )
    if y is not None and len(y) != len(x):
        raise ConfigError(f"the data {path} holds {len(x)} inputs and {len(y)} labels")
    return x, y
