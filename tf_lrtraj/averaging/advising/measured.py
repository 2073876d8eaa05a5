"""`MeasuredLosses`: measures the losses of averages of snapshots once, and stores them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from tf_lrtraj.averaging.post_hoc import combine
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.records import MetricsWriter, Row, read_rows

__all__ = ["MeasuredLosses", "Measurement"]

_TOGETHER = 4  # long averages built in one pass: 9 copies of the model in memory
_KEPT = 3  # snapshots kept in memory for pairs


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A function that measures the loss of weights, and its description.

    Attributes:
        name: name of the data set, such as "train".
        function: takes arrays in the order of `Snapshots.variables` (statistics averaged as the
            weights are) and returns a loss, or a dict with "loss" and further values to record.
        identity: all settings besides the arrays that the result depends on, such as data and
            batch norm.
        images: number of examples that pass through the network in one measurement, including
            those for batch norm.
    """

    name: str
    function: Callable[[list[np.ndarray]], float | Mapping[str, float]]
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    images: int = 0


class _MeasuredRow(Row):
    key: str
    set: str
    seconds: float
    loss: float


class MeasuredLosses:
    """Measures averages of snapshots, each once, and keeps the results in a file.

    Args:
        snapshots: the snapshots to average.
        steps: [K] steps of the snapshots in use.
        measurement: the measured loss.
        path: a .jsonl file that is read at the start and appended to; None stores nothing.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        steps: Sequence[int],
        measurement: Measurement,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.snapshots = snapshots
        self.steps = [int(step) for step in steps]
        self.measurement = measurement
        self.seconds: list[float] = []
        self._path = None if path is None else pathlib.Path(path)
        self._checksums = {step: snapshots.checksum(step) for step in self.steps}
        self._identity = json.dumps(dict(measurement.identity), sort_keys=True)
        self._known: dict[str, dict[str, Any]] = {}
        self._recent: OrderedDict[int, list[np.ndarray]] = OrderedDict()
        if self._path is not None and self._path.exists():
            self._known = {row["key"]: row for row in read_rows(self._path, _MeasuredRow)}

    def _key(self, weights: np.ndarray) -> str:
        used = [
            (self.steps[i], self._checksums[self.steps[i]], float(weights[i]).hex())
            for i in np.flatnonzero(weights).tolist()
        ]
        text = json.dumps([self.measurement.name, self._identity, used])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def missing(self, averages: Sequence[np.ndarray]) -> int:
        """Returns how many of these averages have not been measured."""
        return len({self._key(w) for w in averages} - set(self._known))

    def measure(
        self, averages: Mapping[str, np.ndarray], description: str, progress: bool = True
    ) -> dict[str, dict[str, float]]:
        """Measures those averages that have not been measured.

        Args:
            averages: label → [K] weights on `steps`.
            description: label of the progress bar.
            progress: whether to show a progress bar in a terminal.

        Returns:
            label → {"loss": …, …}.
        """
        keys = {label: self._key(weights) for label, weights in averages.items()}
        todo = [label for label, key in keys.items() if key not in self._known]
        few = [label for label in todo if np.count_nonzero(averages[label]) <= 2]
        many = [label for label in todo if label not in few]
        bar = tqdm(
            total=len(todo), desc=description, unit="loss", disable=None if progress else True
        )
        with bar:
            for label in few:
                self._measure(keys[label], label, self._from_few(averages[label]))
                bar.update()
            for low in range(0, len(many), _TOGETHER):
                group = many[low : low + _TOGETHER]
                places = np.searchsorted(self.snapshots.steps, self.steps)
                weights = {}
                for label in group:
                    weights[label] = np.zeros(len(self.snapshots))
                    weights[label][places] = averages[label]
                built = combine(self.snapshots, weights, progress=False)
                for label in group:
                    self._measure(keys[label], label, built.pop(label))
                    bar.update()
        return {label: self._known[key] for label, key in keys.items()}

    def _from_few(self, weights: np.ndarray) -> list[np.ndarray]:
        totals: list[Any] = []
        for index in np.flatnonzero(weights).tolist():
            arrays = self._read(self.steps[index])
            scaled = [weights[index] * array.astype(np.float64) for array in arrays]
            totals = [a + b for a, b in zip(totals, scaled, strict=True)] if totals else scaled
        return [
            total.astype(spec.read_dtype)
            for total, spec in zip(totals, self.snapshots.variables, strict=True)
        ]

    def _read(self, step: int) -> list[np.ndarray]:
        if step not in self._recent:
            self._recent[step] = self.snapshots.read(step)
            while len(self._recent) > _KEPT:
                self._recent.popitem(last=False)
        self._recent.move_to_end(step)
        return self._recent[step]

    def _measure(self, key: str, label: str, arrays: list[np.ndarray]) -> None:
        if key in self._known:  # two labels for the same average
            return
        begin = time.perf_counter()
        result = self.measurement.function(arrays)
        self.seconds.append(time.perf_counter() - begin)
        values = dict(result) if isinstance(result, Mapping) else {"loss": result}
        values = {name: float(value) for name, value in values.items()}
        row = {
            "step": self.steps[-1],
            "key": key,
            "set": self.measurement.name,
            "average": label,
            "seconds": round(self.seconds[-1], 4),
            **values,
        }
        self._known[key] = row
        if self._path is not None:
            with MetricsWriter(self._path) as writer:
                writer.write(row)

    @property
    def seconds_each(self) -> float | None:
        """Median seconds of a measurement, without the first one, which compiles, if possible.

        Before the first measurement it comes from an earlier process; None if there is none.
        """
        before = [
            row["seconds"]
            for row in self._known.values()
            if row["set"] == self.measurement.name and is_finite(row.get("seconds"))
        ]
        timed = self.seconds[1:] or before or self.seconds
        return float(np.median(timed)) if timed else None


def is_finite(value: Any) -> bool:
    """Returns whether a measured value is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)
