"""The base class of probes, and `measure`, which can resume an interrupted measurement.

A probe divides a measurement into pieces, and `measure` works through the pieces that the record
does not hold yet.  The caller decides when to measure.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from tf_lrtraj import backend
from tf_lrtraj.probes.batches import check_batches
from tf_lrtraj.probes.record import ProbeRecord
from tf_lrtraj.probes.surface import Surface
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.records.shapes import decode
from tf_lrtraj.records.strict_json import encode
from tf_lrtraj.specs import PROBES, ProbeSpec
from tf_lrtraj.values import error

_SAVE_EVERY = (
    5.0  # seconds between writes; an interruption loses at most this and the current piece
)


class Probe(abc.ABC):
    """A measurement in pieces.

    A probe is a dataclass: its fields are its options, and `__post_init__` checks them.
    `tf_lrtraj.specs` lists the values of its record.

    Attributes:
        kind: name of the probe in its record and its spec.
        growing: a coordinate that may be extended while measuring, or None.
    """

    kind: str
    growing: str | None = None

    @property
    def spec(self) -> ProbeSpec:
        """What `tf_lrtraj.specs` declares of its kind."""
        return PROBES[self.kind]

    @abc.abstractmethod
    def coordinates(self) -> dict[str, Any]:
        """Returns the coordinates of the record."""

    @abc.abstractmethod
    def about(self) -> dict[str, Any]:
        """Returns the description that distinguishes the probe from others of its kind."""

    @abc.abstractmethod
    def pieces(self, record: ArrayRecord) -> Sequence[Any]:
        """Returns the pieces that are missing in `record`."""

    @abc.abstractmethod
    def measure(self, record: ArrayRecord, piece: Any) -> None:
        """Measures one piece and writes it to `record`."""

    @abc.abstractmethod
    def passes(self, pieces: Sequence[Any]) -> float:
        """Returns the cost of pieces in forward passes of one batch, by `ProbeSpec.passes`."""

    @abc.abstractmethod
    def seconds_per_pass(self) -> float:
        """Measures the time of one forward pass of one batch."""

    def parts(self) -> Collection[str]:
        """Returns the optional parts of the record's spec that are measured."""
        return ()

    def empty(self) -> ArrayRecord:
        """Returns the record before anything has been measured."""
        dims = self.spec.dims_with(*self.parts())
        return ArrayRecord.empty(self.kind, self.coordinates(), dims, self.about())

    def grow(self, record: ArrayRecord) -> ArrayRecord | None:
        """Returns a longer record if the measured values require it, else None."""
        return None

    def finish(self, record: ArrayRecord) -> None:  # noqa: B027 (most probes have nothing to add)
        """Computes the values that follow from the measured ones; cheap."""


class LossProbe(Probe):
    """A probe of a surface on batches; both are fields of its subclasses."""

    surface: Surface
    batches: Any
    fewest_batches = 1

    def __post_init__(self) -> None:
        if not isinstance(self.surface, Surface):
            raise error("surface", "a probes.Surface, such as Surface(model)", self.surface)
        self.batches = check_batches(self.batches, fewest=self.fewest_batches)

    def seconds_per_pass(self) -> float:
        return self.surface.seconds_per_pass(self.batches[0])


def put_estimate(
    record: ArrayRecord, name: str, index: Any, estimate: tuple[Any, Any] | Sequence[Any]
) -> None:
    """Writes a number and its standard error to `name` and `name_se`."""
    value, spread = estimate
    record.put(name, index, value)
    record.put(f"{name}_se", index, spread)


def lacking(record: ArrayRecord, name: str) -> list[int]:
    """Returns the indices of the first axis of `name` with numbers that are not measured yet."""
    missing = record.missing(name)
    return np.flatnonzero(missing.any(axis=tuple(range(1, missing.ndim)))).tolist()


def measure(
    probe: Probe,
    path: Any = None,
    *,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
    about: Mapping[str, Any] | None = None,
) -> ProbeRecord:
    """Measures a probe and returns its record.

    Args:
        probe: the probe.
        path: an `.npz` file that is written during the measurement; a later call with the same
            probe resumes from it.  None for no file.
        progress: whether to show a progress bar if standard error is a terminal.
        tell: called with a sentence about the cost before the measurement starts.
        about: further entries of the record's `about`, such as the run and the step.

    Raises:
        RecordError: if the file holds another measurement, or is damaged.
    """
    record = probe.empty()
    record.about |= decode(encode(dict(about or {})))
    if path is not None:
        record = ArrayRecord.resume(path, record, probe.growing)
    saved = time.monotonic()
    with backend.random_streams_kept():
        while True:
            pieces = list(probe.pieces(record))
            if tell is not None and pieces:
                tell(_cost(probe, pieces))
            try:
                for piece in tqdm(
                    pieces, desc=probe.kind, disable=None if progress else True, leave=False
                ):
                    probe.measure(record, piece)
                    if path is not None and time.monotonic() - saved > _SAVE_EVERY:
                        record.write(path)
                        saved = time.monotonic()
            except BaseException:
                if path is not None:
                    record.write(path)
                raise
            grown = probe.grow(record)
            if grown is None:
                break
            record = grown
    probe.finish(record)
    if path is not None:
        record.write(path)
    return ProbeRecord.of(record)


def _cost(probe: Probe, pieces: Sequence[Any]) -> str:
    passes, each = probe.passes(pieces), probe.seconds_per_pass()
    seconds = passes * each
    if seconds < 90:
        duration = f"{seconds:.0f} s"
    elif seconds < 5400:
        duration = f"{seconds / 60:.0f} minutes"
    else:
        duration = f"{seconds / 3600:.1f} hours"
    return (
        f"{probe.kind}: {len(pieces):,} pieces, {passes:,.0f} forward passes of {each:.3g} s, "
        f"about {duration}"
    )
