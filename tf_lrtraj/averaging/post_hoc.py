r"""Averages built after training, from snapshots on disk.

An average may have any weights on the snapshots, such as those of a kernel or of a learning-rate
schedule.  All averages are computed in one pass over the files, one file after another, so memory
does not depend on the number of snapshots.

Example:

>>> import tempfile, numpy as np
>>> from tf_lrtraj import kernels
>>> from tf_lrtraj.averaging.snapshots import SnapshotWriter, Timetable, VariableSpec
>>> folder = tempfile.mkdtemp()
>>> writer = SnapshotWriter(folder, [VariableSpec("w", (1,), "float32", "trainable")], Timetable(2))
>>> for step in range(0, 11, 2):
...     writer.write(step, [np.array([step], np.float32)])
>>> found = average_snapshots(folder, {"two": kernels.TwoPoint(4), "swa": kernels.Uniform()})
>>> found["two"].arrays[0], found["two"].exact
(array([8.], dtype=float32), True)
>>> found["swa"].arrays[0], found["swa"].exact
(array([5.], dtype=float32), False)
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from tf_lrtraj import values
from tf_lrtraj.averaging.built_average import BuiltAverage
from tf_lrtraj.averaging.interpolation_error import CoordinateSample, interpolation_error
from tf_lrtraj.averaging.snapshots import Snapshots, nearest
from tf_lrtraj.kernels import Kernel
from tf_lrtraj.kernels.weight_vectors import SUM_TOLERANCE
from tf_lrtraj.theory import fold_onto_snapshots

__all__ = [
    "PostHocAverage",
    "SnapshotWeights",
    "average_snapshots",
    "combine",
    "memory_bytes",
    "snapshot_weights",
]

_PIECE = 1 << 17  # numbers read at a time: half a MiB stays in the cache from disk to sum
_BLOCK = 1 << 15  # numbers processed at a time
_TOGETHER = 4  # snapshots added to the sums at once, to read and write the sums less often
_WARM = 1 << 22  # bytes that the read-ahead thread reads at a time
_AHEAD = 1 << 26  # bytes that the read-ahead thread may be ahead
_BEFORE = 8  # snapshots before the first used one that the error estimate uses


@dataclasses.dataclass(frozen=True)
class SnapshotWeights:
    """Weights on snapshots, and the requested weights that they approximate.

    Attributes:
        steps: [K] update counts of the snapshots, ascending.
        weights: [K] weights that sum to 1.
        last: T, the update count at which the average is taken.
        target: [T+1] requested weights on all iterates; None if weights on snapshots were
            requested, which are always exact.
        early: sum of the absolute weights on iterates older than the first snapshot, which
            were moved to that snapshot.
    """

    steps: np.ndarray
    weights: np.ndarray
    last: int
    target: np.ndarray | None = None
    early: float = 0.0

    @property
    def first(self) -> int:
        """Step of the oldest snapshot with a weight."""
        return int(self.steps[np.flatnonzero(self.weights)[0]])

    @property
    def exact(self) -> bool:
        """Whether all requested weight lies on snapshots."""
        return self.moved == 0.0

    @property
    def moved(self) -> float:
        """Sum of the absolute requested weights on iterates without a snapshot."""
        if self.target is None:
            return 0.0
        held = np.zeros(self.target.size, dtype=bool)
        held[self.steps[self.steps <= self.last]] = True
        return float(np.abs(self.target[~held]).sum())

    @property
    def error_weights(self) -> np.ndarray:
        """[T+1] requested weights minus those built, per iterate; they sum to 0."""
        if self.target is None:
            return np.zeros(self.last + 1)
        difference = self.target.copy()
        upto = self.steps <= self.last
        difference[self.steps[upto]] -= self.weights[upto]
        return difference


def snapshot_weights(
    steps: Any,
    target: Any,
    last: int | None = None,
    *,
    per: str = "update",
    max_early: float = 0.01,
) -> SnapshotWeights:
    """Converts an average of all iterates to weights on the available snapshots.

    Weight on an iterate between two snapshots is divided between them by linear interpolation
    (`theory.fold_onto_snapshots`).

    Args:
        steps: [K] update counts of the snapshots, ascending, equally spaced or not.
        target: a kernel; or [T+1] weights on all iterates, such as those that
            `theory.weights_from_schedule` returns.
        last: T, the step of a snapshot; the newest by default.
        per: the unit of `target`.  With `"update"` the kernel counts updates, as during training.
            With `"snapshot"` it counts the snapshots up to T, or `target` holds one weight for
            each of them.
        max_early: the largest sum of absolute weights on iterates older than the first snapshot
            that may be moved to it.

    Returns:
        `SnapshotWeights`.

    Raises:
        ValueError: if `steps` is empty or not ascending, T is not the step of a snapshot, the
            weights do not fit or do not sum to 1, or the average needs iterates older than the
            first snapshot.

    >>> from tf_lrtraj import kernels
    >>> snapshot_weights([0, 10, 20], kernels.TwoPoint(15)).weights.round(3)
    array([0.25, 0.25, 0.5 ])
    >>> snapshot_weights([0, 10, 20], kernels.TwoPoint(1), per="snapshot").weights
    array([0. , 0.5, 0.5])
    """
    steps = _ascending(steps)
    last = int(steps[-1]) if last is None else last
    if last not in steps:
        raise values.error(
            "last", f"the step of a snapshot; the nearest are {nearest(steps, last)}", last
        )
    values.one_of(["update", "snapshot"]).check("per", per)
    held = steps[steps <= last]
    count = held.size if per == "snapshot" else last + 1
    wanted = _target(target, count, "snapshots" if per == "snapshot" else "iterates")
    weights = np.zeros(steps.size)
    if per == "snapshot":
        weights[: held.size] = wanted
        return SnapshotWeights(steps, weights, last)

    early = float(np.abs(wanted[: held[0]]).sum())
    if early > max_early:
        oldest = int(np.flatnonzero(wanted)[0])
        raise ValueError(
            f"the average needs iterates from step {oldest} on, but the first snapshot is of step "
            f"{held[0]}: {early:.1%} of its weight lies before that. Take snapshots from an "
            "earlier step on, or choose an average that is shorter or starts later."
        )
    weights[: held.size] = fold_onto_snapshots(wanted, held)[1]
    return SnapshotWeights(steps, weights, last, wanted, early)


def _ascending(steps: Any) -> np.ndarray:
    """Checks update counts and returns them as [K] int64."""
    try:
        found = np.asarray(steps, np.int64)
        sound = found.ndim == 1 and found.size > 0 and np.array_equal(found, steps)
    except (TypeError, ValueError, OverflowError):
        sound = False
    if not sound or found[0] < 0 or np.any(np.diff(found) <= 0):
        allowed = (
            "a non-empty, strictly increasing sequence of update counts, integers of at least 0"
        )
        raise values.error("steps", allowed, steps)
    return found


def _target(target: Any, count: int, unit: str) -> np.ndarray:
    if isinstance(target, Kernel):
        return target.weights(count - 1)
    wanted = np.array(target, np.float64)
    if wanted.shape != (count,) or not np.all(np.isfinite(wanted)):
        raise ValueError(
            f"`target` must be a kernel or [{count}] finite weights, one for each of the {unit} up "
            f"to `last`. Received: shape={wanted.shape}"
        )
    if abs(wanted.sum() - 1.0) > SUM_TOLERANCE:
        raise ValueError(
            f"`target` must sum to 1. Received: weights that sum to {float(wanted.sum())!r}"
        )
    return wanted


# --- The streaming pass -------------------------------------------------------------------


def memory_bytes(snapshots: Snapshots, num_averages: int) -> int:
    """Returns the peak memory of `combine` in bytes.

    It is about two float32 copies of the model per average, for the float64 sums, and one more for
    the conversion of one sum at a time to float32.
    """
    width = max(v.read_dtype.itemsize for v in snapshots.variables)
    pieces = 2 * _TOGETHER * _PIECE * width + 16 * _BLOCK + _WARM
    return snapshots.num_weights * (8 * num_averages + width) + pieces


def combine(
    snapshots: Snapshots,
    weights: Mapping[str, Any],
    *,
    sample: CoordinateSample | None = None,
    progress: bool = True,
) -> dict[str, list[np.ndarray]]:
    """Computes weighted sums of snapshots in one pass over the files.

    Each snapshot with a weight is read once for all averages, front to back.  Another thread reads
    ahead into the page cache.  Sums are float64.

    Args:
        snapshots: the snapshots to read.
        weights: name → [K] weights, one for each of `snapshots.steps`.
        sample: collects coordinates of the trainable variables during the pass; the snapshots it
            needs are read even if they have no weight.
        progress: whether to show a progress bar in a terminal.

    Returns:
        name → an array per variable of `snapshots.variables`, float32 (float64 for float64
        variables).

    Raises:
        ValueError: if the weights do not fit.
        RecordError: if a snapshot is damaged; the message names it.
    """
    rows = {name: np.asarray(row, np.float64) for name, row in weights.items()}
    for name, row in rows.items():
        if row.shape != snapshots.steps.shape or not np.all(np.isfinite(row)):
            raise ValueError(
                f"`weights[{name!r}]` must be [{snapshots.steps.size}] finite weights, one per "
                f"snapshot. Received: shape={row.shape}"
            )
    wanted = set() if sample is None else set(sample.steps.tolist())
    read = [
        index
        for index, step in enumerate(snapshots.steps.tolist())
        if step in wanted or any(row[index] for row in rows.values())
    ]
    for index in read[:1]:
        snapshots.checksum(int(snapshots.steps[index]))  # checks its size before memory is taken
    totals = {name: np.zeros(snapshots.num_weights) for name in rows}
    trainable = sum(v.size for v in snapshots.variables if v.role == "trainable")

    groups = [read[low : low + _TOGETHER] for low in range(0, len(read), _TOGETHER)]
    paths = [[snapshots.path(int(snapshots.steps[i])) for i in group] for group in groups]
    width = snapshots.nbytes / max(snapshots.num_weights, 1)  # bytes of a value on disk
    bar = tqdm(total=len(read), desc="snapshots", unit="file", disable=None if progress else True)
    with bar, _ReadAhead(paths) as ahead:
        for group in groups:
            steps = [int(snapshots.steps[i]) for i in group]
            offset = 0
            streams = [snapshots.chunks(step, _PIECE) for step in steps]
            for pieces in zip(*streams, strict=True):
                size = pieces[0].size
                for name, row in rows.items():
                    _add(totals[name][offset : offset + size], pieces, row[group])
                if sample is not None and offset < trainable:
                    for step, piece in zip(steps, pieces, strict=True):
                        sample.add(step, offset, piece[: trainable - offset])
                offset += size
                ahead.used(len(group) * size * width)
            bar.update(len(group))
    return {name: _split(snapshots, totals.pop(name)) for name in list(totals)}


def _add(total: np.ndarray, pieces: Sequence[np.ndarray], weights: np.ndarray) -> None:
    """Computes `total += Σ weights_i pieces_i` in float64, in blocks that fit into the cache."""
    used = [(p, w) for p, w in zip(pieces, weights.tolist(), strict=True) if w]
    if not used:
        return
    block = min(_BLOCK, total.size)
    summed, scaled = np.empty(block), np.empty(block)
    for low in range(0, total.size, _BLOCK):
        part = total[low : low + _BLOCK]
        one, other = summed[: part.size], scaled[: part.size]
        for index, (piece, weight) in enumerate(used):
            into = other if index else one
            np.copyto(into, piece[low : low + _BLOCK])
            into *= weight
            if index:
                one += other
        part += one


def _split(snapshots: Snapshots, flat: np.ndarray) -> list[np.ndarray]:
    arrays, offset = [], 0
    for spec in snapshots.variables:
        part = flat[offset : offset + spec.size]
        # A copy even if the type is unchanged, so that the memory of the sum can be freed.
        arrays.append(part.astype(spec.read_dtype).reshape(spec.shape))
        offset += spec.size
    return arrays


class _ReadAhead:
    """Reads files into the page cache in another thread, slightly ahead of the reader.

    Passing arrays between threads would cost more than it saves.
    """

    def __init__(self, groups: Sequence[Sequence[pathlib.Path]]) -> None:
        self._groups = [list(group) for group in groups]  # files of a group are read in parallel
        self._used = 0.0
        self._stop = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> _ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify()
        self._thread.join()

    def used(self, size: float) -> None:
        """Reports that the reader has read `size` more bytes."""
        with self._changed:
            self._used += size
            self._changed.notify()

    def _work(self) -> None:
        buffer = memoryview(bytearray(_WARM))
        fetched = 0
        for group in self._groups:
            with contextlib.ExitStack() as stack:
                try:
                    files = [stack.enter_context(open(p, "rb", buffering=0)) for p in group]
                except OSError:  # the reader raises the same error
                    return
                while files:
                    for file in list(files):
                        with self._changed:
                            self._changed.wait_for(
                                lambda: self._stop or fetched - self._used < _AHEAD  # noqa: B023
                            )
                        if self._stop:
                            return
                        count = file.readinto(buffer) or 0
                        fetched += count
                        if count < _WARM:  # the end of the file
                            files.remove(file)


# --- Averages with their errors -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PostHocAverage(BuiltAverage):
    """An average built from snapshots, and its estimated error.

    `apply` puts it into a model and `save` writes a model that holds it; see `BuiltAverage`.

    Attributes:
        name: name of the average.
        arrays: one array per variable: trainable variables first, then batch-norm statistics,
            averaged with the same weights.
        weights: the weights on the snapshots.
        error: upper estimate of the distance from the requested average, divided by the distance
            of the average from the raw weights (see docs/averages_afterwards.md).  0 if exact;
            None if it cannot be estimated (fewer than 3 snapshots, or the average equals the raw
            weights).
        quantisation: the same ratio for the error of the snapshots' encoding, an upper bound on
            the root mean square.
        quantisation_bound: largest possible error of a single weight by the encoding.
        distance: estimated distance of the average from the raw weights at `weights.last`.
    """

    name: str
    arrays: list[np.ndarray]
    weights: SnapshotWeights
    error: float | None
    quantisation: float
    quantisation_bound: float
    distance: float

    @property
    def exact(self) -> bool:
        """Whether it is the requested average, up to rounding and the snapshots' encoding."""
        return self.weights.exact

    @property
    def total_error(self) -> float | None:
        """`error` and `quantisation` added in quadrature; None if `error` is unknown."""
        return None if self.error is None else float(np.hypot(self.error, self.quantisation))

    @property
    def verdict(self) -> str:
        """A short text: "exact", or the error."""
        if self.exact:
            text = "exact"
        elif self.error is None:
            text = "error unknown"
        else:
            text = f"off by up to {_percent(self.error)}"
        if self.quantisation_bound:
            text += f", encoding {_percent(self.quantisation)}"
        return text

    def __str__(self) -> str:
        w = self.weights
        used = np.flatnonzero(w.weights)
        lines = [
            f"{self.name}: {used.size} snapshots, steps {w.steps[used[0]]} to {w.steps[used[-1]]}, "
            f"{self.distance:.4g} from the raw weights of step {w.last}"
        ]
        if self.exact:
            lines.append("  exact: every iterate it needs is a snapshot")
        else:
            lines.append(
                f"  {w.moved:.1%} of its weight lay between snapshots and was moved to them"
            )
            if w.early:
                lines.append(f"  {w.early:.2%} lay before the first snapshot, which stands for it")
            lines.append(
                "  error unknown: too few snapshots to tell"
                if self.error is None
                else f"  estimated error: up to {_percent(self.error)} of that distance"
            )
        if self.quantisation_bound:
            lines.append(
                f"  the snapshots' encoding adds at most {_percent(self.quantisation)} (root mean "
                f"square), {self.quantisation_bound:.2g} in a single weight"
            )
        return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100.0 * share:.2g} %"


def average_snapshots(
    snapshots: Snapshots | str | os.PathLike[str],
    targets: Mapping[str, Any],
    last: int | None = None,
    *,
    per: str = "update",
    progress: bool = True,
) -> dict[str, PostHocAverage]:
    """Builds averages from snapshots in one pass, and estimates the error of each.

    Args:
        snapshots: a `Snapshots` or its folder.
        targets: name → kernel, weights on all iterates (see `snapshot_weights`), or
            `SnapshotWeights` for the steps of these snapshots.
        last, per: as in `snapshot_weights`.
        progress: whether to show a progress bar in a terminal.

    Returns:
        name → `PostHocAverage`.

    Raises:
        ValueError: as `snapshot_weights`, or if `SnapshotWeights` are for other steps.  The
            message names the average.
        RecordError: if there are no snapshots or one is damaged.
    """
    if not isinstance(snapshots, Snapshots):
        snapshots = Snapshots(snapshots)
    folded = {}
    for name, target in targets.items():
        if not isinstance(target, SnapshotWeights):
            try:
                target = snapshot_weights(snapshots.steps, target, last, per=per)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        _check_steps(name, np.ravel(target.steps), snapshots)
        folded[name] = target
    sampled = {w.last for w in folded.values()}
    for w in folded.values():
        if not w.exact:  # earlier snapshots too, for the estimate of displacements
            begin = max(int(np.searchsorted(snapshots.steps, w.first)) - _BEFORE, 0)
            sampled |= set(snapshots.steps[begin:][snapshots.steps[begin:] <= w.last].tolist())
    size = sum(v.size for v in snapshots.variables if v.role == "trainable")
    sample = CoordinateSample(size, sorted(sampled))
    arrays = combine(
        snapshots, {n: w.weights for n, w in folded.items()}, sample=sample, progress=progress
    )
    return {
        name: _with_errors(snapshots, name, arrays[name], weights, sample)
        for name, weights in folded.items()
    }


def _check_steps(name: str, steps: np.ndarray, snapshots: Snapshots) -> None:
    """Checks that weights, which are assigned by position, have the steps of the snapshots."""
    if np.array_equal(steps, snapshots.steps):
        return
    pairs = itertools.zip_longest(steps.tolist(), snapshots.steps.tolist(), fillvalue="none")
    at, (given, held) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise ValueError(
        f"{name}: `SnapshotWeights` must be for the steps of the {len(snapshots)} snapshots in "
        f"{snapshots.folder}. Received: {steps.size} steps; the first that differs is number {at} "
        f"(from 0), {given} instead of {held}"
    )


def _with_errors(
    snapshots: Snapshots,
    name: str,
    arrays: list[np.ndarray],
    weights: SnapshotWeights,
    sample: CoordinateSample,
) -> PostHocAverage:
    squared = sample.squared_distance(weights.last, arrays[: snapshots.num_trainable])
    error: float | None = 0.0
    if not weights.exact:
        assert weights.target is not None
        found = interpolation_error(*sample.upto(weights.last), weights.target)
        scale = np.sqrt(sample.scale / squared) if squared > 0.0 else 0.0
        error = None if found is None or not scale else float(found * scale)
    used = np.flatnonzero(weights.weights)
    bounds = np.array([snapshots.error_bound(int(step)) for step in weights.steps[used]])
    # Rounding errors are uniformly distributed up to their bound and differ between snapshots.
    rounding = np.sum((weights.weights[used] * bounds) ** 2) / 3.0 * sample.size
    return PostHocAverage(
        name=name,
        arrays=arrays,
        weights=weights,
        error=error,
        quantisation=float(np.sqrt(rounding / squared)) if squared > 0.0 else 0.0,
        quantisation_bound=float(np.abs(weights.weights[used]) @ bounds),
        distance=float(np.sqrt(squared)),
    )
