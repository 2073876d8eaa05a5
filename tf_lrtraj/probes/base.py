"""What all probes share: pieces of work, a store that survives interruption, the cost told first.

A probe says *what* is measured, piece by piece; `measure` works through the pieces
that its store does not hold yet.  *When* to probe is a matter of the caller.
"""

from __future__ import annotations

import abc
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from tf_lrtraj import backend
from tf_lrtraj.probes.record import ProbeRecord
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.records.shapes import decode
from tf_lrtraj.records.strict_json import encode

_SAVE_EVERY = 5.0  # seconds; what an interruption may lose, beside the piece at work


class Probe(abc.ABC):
    """Something to measure in pieces.

    Attributes:
        kind: name of the probe in its record.
        growing: a coordinate that may be extended while measuring, or None.
    """

    kind: str
    growing: str | None = None

    @abc.abstractmethod
    def empty(self) -> ArrayRecord:
        """The record before anything has been measured; `about` tells one probe from another."""

    @abc.abstractmethod
    def pieces(self, record: ArrayRecord) -> Sequence[Any]:
        """The pieces of work that `record` still lacks."""

    @abc.abstractmethod
    def measure(self, record: ArrayRecord, piece: Any) -> None:
        """Measures one piece and puts it into `record`."""

    @abc.abstractmethod
    def passes(self, pieces: Sequence[Any]) -> float:
        """What pieces cost, in forward passes of one batch (a gradient counts as three)."""

    @abc.abstractmethod
    def seconds_per_pass(self) -> float:
        """Measured time of one forward pass of one batch."""

    def grow(self, record: ArrayRecord) -> ArrayRecord | None:
        """A longer record if what was measured asks for more (a minimum at the edge), else None."""
        return None

    def finish(self, record: ArrayRecord) -> None:  # noqa: B027 (most probes have nothing to add)
        """Fills in what follows from everything measured; cheap."""


def measure(
    probe: Probe,
    path: Any = None,
    *,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
    about: Mapping[str, Any] | None = None,
) -> ProbeRecord:
    """Measures what a probe's store lacks, and returns all of it.

    Args:
        probe: what to measure.
        path: an `.npz` file that is written as the work goes on; a later call with the
            same probe goes on where it stopped.  None keeps nothing.
        progress: show a progress bar where standard error is a terminal.
        tell: called with what the work will cost, before it starts.
        about: more that the record is to say of itself (of which run, at which step).

    Raises:
        RecordError: if the file holds measurements of something else, or is damaged.
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
                passes, seconds = probe.passes(pieces), probe.seconds_per_pass()
                tell(
                    f"{probe.kind}: {len(pieces):,} pieces, {passes:,.0f} forward passes of "
                    f"{seconds:.3g} s, about {_duration(passes * seconds)}"
                )
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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def fingerprint(arrays: Any) -> str:
    """A checksum of a nest of arrays, for the `about` of a record: the same work, or other?

    >>> fingerprint([np.zeros(2), np.ones(1)]) == fingerprint([np.zeros(2), np.ones(1)])
    True
    """
    total = 0
    for array in keras.tree.flatten(arrays):
        host = np.ascontiguousarray(keras.ops.convert_to_numpy(array))
        total = zlib.crc32(f"{host.dtype}{host.shape}".encode(), total)
        total = zlib.crc32(host.data.cast("B") if host.size else b"", total)
    return f"{total:08x}"
