"""The order in which the records of a dataset on disk are read: streams, parts, windows.

The places of a global batch of B images are divided into V = gcd(B, 48) equal parts, and *stream* v
fills the v-th part of every batch.  Every position of the infinite sequence of images belongs to
one stream; of the N positions of an epoch, n_v belong to stream v, Σ n_v = N.  The files of an
epoch are permuted, concatenated and divided into V *parts* of n_0, n_1, … records, and stream v
reads part v.  Every image therefore occurs once in an epoch, and a pipeline that makes only some
rows of the batches reads only the files of their streams.

Within its part a stream

1. reads the files in groups of `files_at_once`, one record from each file in turn; 2. permutes
consecutive windows of these records; the last window of a part is shorter.

The beginning of a step is computed from counts: the part, the group of files, the number of records
before it in each file, and the place in the window.

Nothing here depends on the number of hosts or replicas.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.data import randomness

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["Files", "Streams", "cut", "enter", "file_order", "groups", "window_order"]

# Divisible by the usual numbers of hosts; more streams would keep more files open.
MOST_STREAMS = 48
# Files that all streams of a batch together read from at a time.
FILES_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Files:
    """Pieces of files, one entry each; the columns are NumPy arrays or tensors, all [n].

    Attributes:
        name: paths.
        skip: records before the piece.
        take: records in the piece.
        total: records in the whole file.
    """

    name: Any
    skip: Any
    take: Any
    total: Any

    def columns(self) -> tuple[Any, Any, Any, Any]:
        return self.name, self.skip, self.take, self.total

    def map(self, function: Callable[[Any], Any]) -> Files:
        return Files(*(function(column) for column in self.columns()))


@dataclasses.dataclass(frozen=True)
class Streams:
    """The assignment of the places of a global batch to streams.

    >>> streams = Streams(24)
    >>> streams.count, streams.block, streams.files_at_once
    (24, 1, 1)
    >>> Streams(1000).count, Streams(1024).count, Streams(1024).block
    (8, 16, 64)
    >>> Streams(1024).touched(part=256, ids=[1, 3])
    [4, 5, 6, 7, 12, 13, 14, 15]
    """

    batch_size: int

    @property
    def count(self) -> int:
        """The number of streams."""
        return math.gcd(self.batch_size, MOST_STREAMS)

    @property
    def block(self) -> int:
        """Number of consecutive places of a batch that a stream fills."""
        return self.batch_size // self.count

    @property
    def files_at_once(self) -> int:
        """Number of files that one stream reads in turn."""
        return max(1, FILES_AT_ONCE // self.count)

    def touched(self, part: int, ids: Sequence[int]) -> list[int]:
        """Returns the streams that fill a place of the parts `ids`, of `part` places each."""
        found = {
            stream
            for i in ids
            for stream in range(i * part // self.block, -(-(i + 1) * part // self.block))
        }
        return sorted(found)

    def before(self, position: Any, stream: Any, minimum: Any = min) -> Any:
        """Returns the number of positions below `position` of streams below `stream`.

        `minimum` is that of the numbers' kind, `tf.minimum` for tensors.
        """
        batches, place = position // self.batch_size, position % self.batch_size
        return batches * (stream * self.block) + minimum(place, stream * self.block)

    def index(self, position: int, stream: int) -> int:
        """Returns the number of positions below `position` that belong to `stream`."""
        return self.before(position, stream + 1) - self.before(position, stream)

    def part(self, first: Any, size: Any, stream: Any) -> tuple[Any, Any]:
        """First record, and the one after the last, of what a stream reads of an epoch.

        Args:
            first: int64 scalar, position at which the epoch begins.
            size: its number of records.
            stream: int64 scalar.
        """
        import tensorflow as tf

        def bound(stream: Any) -> Any:
            before = [self.before(p, stream, tf.minimum) for p in (first, first + size)]
            return before[1] - before[0]

        return bound(stream), bound(stream + 1)

    def positions(self, touched: Sequence[int], start_step: int) -> Callable[[Any], Any]:
        """From the index of an image in the sequence of the streams touched to its position."""
        import tensorflow as tf

        streams = tf.constant(touched, tf.int64)
        per_step = len(touched) * self.block

        def position(index: tf.Tensor) -> tf.Tensor:
            step, place = start_step + index // per_step, index % per_step
            stream = tf.gather(streams, place // self.block)
            return step * self.batch_size + stream * self.block + place % self.block

        return position


def file_order(seed: int, epoch: Any, num_files: int) -> tf.Tensor:
    """Indices of the files in the order of an epoch.  int64 [num_files]"""
    import tensorflow as tf

    keys = randomness.words(seed, epoch, randomness.FILES)[0, :3]
    return randomness.permute(tf.range(num_files, dtype=tf.int64), num_files, keys)


def window_order(seed: int, epoch: Any, stream: Any, window: Any, size: Any) -> tf.Tensor:
    """Returns the permutation of the records of a window of a stream. int64 [size]"""
    import tensorflow as tf

    address = window + stream * 2**32
    keys = randomness.words(seed, address, randomness.WINDOW + randomness.STREAMS * epoch)[0, :3]
    return randomness.permute(tf.range(size, dtype=tf.int64), size, keys)


def cut(files: Files, first: Any, last: Any) -> Files:
    """Returns the pieces with the records `first … last - 1` of concatenated files."""
    import tensorflow as tf

    starts = tf.cumsum(files.take, exclusive=True)
    low = tf.clip_by_value(first - starts, 0, files.take)
    high = tf.clip_by_value(last - starts, 0, files.take)
    kept = tf.boolean_mask(tf.range(tf.size(low)), high > low)
    return Files(files.name, files.skip + low, high - low, files.total).map(
        lambda column: tf.gather(column, kept)
    )


def groups(files: Files, together: int, first: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the position of record `first` in consecutive groups of `together` files.

    Returns:
        (the number of groups, its group, its place in that group).
    """
    import tensorflow as tf

    num_files = tf.size(files.take, out_type=tf.int64)
    count = -(-num_files // together)
    sizes = tf.math.unsorted_segment_sum(
        files.take, tf.range(num_files, dtype=tf.int64) // together, count
    )
    ends = tf.cumsum(sizes)
    group = tf.searchsorted(ends, first[None], side="right", out_type=tf.int64)[0]
    return count, group, first - tf.gather(ends - sizes, group)


def enter(files: Files, place: Any) -> tuple[Files, tf.Tensor]:
    """Returns the rest of files that are read in turn, after the first `place` records.

    Returns:
        (the remaining pieces after full rounds; the number of records of the next round to drop).
    """
    import tensorflow as tf

    lengths = tf.sort(files.take)
    ended_before = tf.cumsum(lengths, exclusive=True)
    left = tf.range(tf.size(lengths, out_type=tf.int64), 0, -1)
    # Records read when the i-th shortest file ends: all of the shorter ones, and as many rounds of
    # all others.
    ended = tf.reduce_sum(tf.cast(ended_before + left * lengths <= place, tf.int64))
    still = tf.size(lengths, out_type=tf.int64) - ended
    rest = place - tf.reduce_sum(lengths[:ended])
    rounds = tf.where(still > 0, rest // tf.maximum(still, 1), 0)
    done = tf.where(still > 0, tf.minimum(files.take, rounds), files.take)
    open_files = tf.boolean_mask(tf.range(tf.size(done)), files.take > done)
    pieces = Files(files.name, files.skip + done, files.take - done, files.total)
    return pieces.map(lambda column: tf.gather(column, open_files)), rest - rounds * still


def table(instructions: Sequence[Any]) -> Files:
    """Returns tensorflow-datasets' file instructions with records as NumPy columns."""
    used = [file for file in instructions if file.examples_in_shard]
    skip = np.array([file.skip for file in used], np.int64)
    total = np.array([file.examples_in_shard for file in used], np.int64)
    take = np.array([file.take for file in used], np.int64)  # -1 for "all that follow"
    names = np.array([str(file.filename) for file in used])
    return Files(names, skip, np.where(take < 0, total - skip, take), total)
