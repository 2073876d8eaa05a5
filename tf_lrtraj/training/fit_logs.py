"""Reads the `logs` of Keras' `fit`: training means, and evaluations of several weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from tf_lrtraj.records import RAW

# Names under which Keras logs what records call "accuracy".
_ACCURACY = (
    "accuracy",
    "acc",
    "sparse_categorical_accuracy",
    "categorical_accuracy",
    "binary_accuracy",
)


def numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """Returns the scalars of an epoch's logs, with the names that records use for accuracies.

    >>> numbers({"loss": 1, "sparse_categorical_accuracy": 0.5, "val_acc": 0.25})
    {'loss': 1.0, 'accuracy': 0.5, 'val_accuracy': 0.25}
    """
    found = {}
    for key, value in logs.items():
        with contextlib.suppress(TypeError, ValueError):
            prefix = "val_" if key.startswith("val_") else ""
            found[prefix + _metric(key.removeprefix("val_"))] = float(value)
    return found


def _metric(name: str) -> str:
    return "accuracy" if name in _ACCURACY else name


def evaluations(
    found: Mapping[str, float], averages: Iterable[str]
) -> list[tuple[str, bool, dict[str, float]]]:
    """Returns (weights, whether they are named, {metric: value}) of an epoch's evaluations.

    The raw weights come first: as `val_raw_<metric>`, which `WeightAveraging` logs where it
    recomputes batch-norm statistics, and as `val_<metric>`, which Keras logs.

    Args:
        found: the result of `numbers`.
        averages: names of averages, whose metrics are called `val_<name>_<metric>`.

    >>> found = {"loss": 3.0, "val_loss": 2.0, "val_ema_acc": 0.5, "val_raw_loss": 1.0}
    >>> for row in evaluations(found, ["ema"]):
    ...     print(row)
    ('raw', True, {'loss': 1.0})
    ('raw', False, {'loss': 2.0})
    ('ema', True, {'accuracy': 0.5})
    """
    names = sorted([*averages, RAW], key=len, reverse=True)  # "ema_slow" before "ema"
    result: dict[tuple[str, bool], dict[str, float]] = {}
    for key, value in found.items():
        if not key.startswith("val_"):
            continue
        metric = key.removeprefix("val_")
        name = next((n for n in names if metric.startswith(f"{n}_")), None)
        metric = metric if name is None else metric.removeprefix(f"{name}_")
        row = result.setdefault((name or RAW, name is not None), {})
        row[_metric(metric)] = value
    ordered = sorted(result.items(), key=lambda item: (item[0][0] != RAW, not item[0][1]))
    return [(name, named, metrics) for (name, named), metrics in ordered]


class Window:
    """Means of a window of steps, from Keras' running means of an epoch."""

    def __init__(self) -> None:
        self._count, self._sums = 0, dict[str, float]()  # of the window
        self.start_epoch()

    def start_epoch(self) -> None:
        self._seen, self._totals = 0, dict[str, float]()  # of the epoch

    def add(self, count: int, means: Mapping[str, float]) -> None:
        """Adds the means of the first `count` batches of the epoch."""
        for key, mean in means.items():
            total = count * mean
            added = total - self._totals.get(key, 0.0)
            self._sums[key] = self._sums.get(key, 0.0) + added
            self._totals[key] = total
        self._count += count - self._seen
        self._seen = count

    def means(self) -> dict[str, float]:
        return {key: value / max(self._count, 1) for key, value in self._sums.items()}

    def clear(self) -> None:
        self._count, self._sums = 0, {}
