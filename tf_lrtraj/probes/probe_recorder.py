"""A Keras callback that measures probes during `fit`, without changing the training."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from tf_lrtraj.backend.weight_updates import StepCallback
from tf_lrtraj.probes.base import Probe, measure
from tf_lrtraj.probes.surface import Surface
from tf_lrtraj.records import check_average_name, local_path
from tf_lrtraj.values import error, integer


def record_path(folder: str | os.PathLike[str], name: str, step: int) -> pathlib.Path:
    """Returns the path of a probe's record at a step.

    >>> record_path("probes", "line", 120).as_posix()
    'probes/line-000000120.npz'
    """
    return pathlib.Path(folder) / f"{name}-{step:09d}.npz"


class ProbeRecorder(StepCallback):
    """Measures probes at the current weights every `every` optimizer steps.

    It does not change weights, optimizer, batch-norm statistics or random streams.

    Example:

    >>> import keras, numpy as np, tempfile
    >>> from tf_lrtraj import probes
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = np.random.default_rng(0).normal(size=(32, 3)), np.ones((32, 1))
    >>> batches = probes.take_batches(x, y, batch_size=8, count=3)
    >>> def line(surface):
    ...     return probes.Line(surface, surface.point(), batches[:2], held_out=batches[2:])
    >>> folder = tempfile.mkdtemp()
    >>> recorder = probes.ProbeRecorder(folder, {"line": line}, every=2)
    >>> history = model.fit(x, y, batch_size=8, epochs=1, verbose=0, callbacks=[recorder])
    >>> sorted(path.name for path in pathlib.Path(folder).iterdir())
    ['line-000000000.npz', 'line-000000002.npz', 'line-000000004.npz']

    Args:
        folder: the folder of the records, one file per probe and step.
        probes: name → function from a `Surface` to a `Probe` of `surface.point()`.
        every: optimizer steps between measurements.
        start: optimizer steps before the first measurement.
        loss: as `Surface` takes it; by default the model's own.
        batch_norm, dropout, moment_batches, penalties: as `Surface` takes them.

    Raises:
        ValueError: for a cadence below 1, a negative start, or names that cannot name files.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        probes: Mapping[str, Callable[[Surface], Probe]],
        every: int,
        start: int = 0,
        *,
        loss: Any = None,
        batch_norm: str = "batch",
        dropout: str = "off",
        moment_batches: Any = None,
        penalties: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(probes, Mapping) or not all(map(callable, probes.values())):
            allowed = "a mapping of names to functions from a Surface to a Probe"
            raise error("probes", allowed, probes)
        for name in probes:
            check_average_name(name, "a probe")
        self.folder = local_path(folder, "folder")
        self.probes = dict(probes)
        self.every = integer(1).check("every", every)
        self.start = integer(0).check("start", start)
        self._options: dict[str, Any] = {
            "loss": loss,
            "batch_norm": batch_norm,
            "dropout": dropout,
            "moment_batches": moment_batches,
            "penalties": penalties,
        }
        self._surface: Surface | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._surface = None

    def at_step(self, step: int) -> None:
        if step < self.start or (step - self.start) % self.every:
            return
        if self._surface is None:  # compiled once
            self._surface = Surface(self.model, **self._options)
        for name, build in self.probes.items():
            path = record_path(self.folder, name, step)
            measure(build(self._surface), path, about={"step": step})
