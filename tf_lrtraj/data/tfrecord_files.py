"""Reads TFRecord files, and finds the damage in a file that cannot be read.

TensorFlow detects a flipped bit by the record's checksum and reports the byte, but not the file.
It does not detect a file that ends early between two records.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tf_lrtraj.data.dataset import DataError, plain
from tf_lrtraj.data.order import Files

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["check_counts", "check_files", "explain", "read_file", "read_in_turn"]

# Around the bytes of a record: its length (8) with a checksum (4), and a checksum (4).
HEADER, FRAME = 12, 16
# Without quotation marks, which TensorFlow would escape.
_DESCRIBED = " records that the dataset is described with"
_FAULT = re.compile(f"data file .*?{_DESCRIBED}")
_OFFSET = re.compile(r"(?:corrupted|truncated) record at (\d+)")
_IMAGE = re.compile(r"[^\n]*(?:JPEG|PNG|GIF|BMP|image format)[^\n\t]*")
_RECORD = re.compile(r"Could not parse example|Feature: \S+ \(data type")
_MISSING = re.compile(r"(\S+); No such file")


def read_file(name: Any, skip: Any, take: Any, total: Any) -> tf.data.Dataset:
    """Returns the records of a piece of a file; a file of another length is an error.

    Args:
        name: string scalar, the path.
        skip, take: int64 scalars, records before the piece and in it.
        total: int64 scalar, records in the file.
    """
    import tensorflow as tf

    # Without a buffer TensorFlow skips a record by reading only its header, and whole images come
    # as fast.  Over a network it is the buffer that makes reading fast.
    remote = tf.strings.regex_full_match(name, "[a-z0-9]+://.*")
    buffer = tf.where(remote, tf.constant(1 << 18, tf.int64), 0)

    def from_record(number: Any) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(name, buffer_size=buffer).skip(number)

    def complain(how: str) -> Any:
        def raise_error(_: tf.Tensor) -> tf.Tensor:
            count = tf.strings.as_string(total)
            message = ["data file ", name, f" holds {how} than the ", count, _DESCRIBED]
            with tf.control_dependencies([tf.debugging.Assert(False, [tf.strings.join(message)])]):
                return tf.identity(name)

        return plain(raise_error)

    too_short = tf.data.Dataset.from_tensors(0).map(complain("fewer"))
    records = from_record(skip).concatenate(too_short).take(take)
    # After the last record, check whether there is another one.
    last = tf.logical_and(tf.equal(skip + take, total), tf.logical_not(remote))
    beyond = from_record(total).take(tf.cast(last, tf.int64))
    return records.concatenate(beyond.map(complain("more")))


def read_in_turn(files: Files, together: int) -> tf.data.Dataset:
    """Returns records of at most `together` files in turn, until all are read."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(files.columns()).interleave(
        plain(read_file), cycle_length=together, block_length=1
    )


def check_files(files: Files, what: str) -> None:
    """Finds files that are missing or too short, without reading them.

    Raises:
        DataError: naming the first such file.
    """
    listed: dict[str, dict[str, int]] = {}
    for name, total in zip(files.name.tolist(), files.total.tolist(), strict=True):
        folder, base = os.path.split(name)
        if folder not in listed:
            listed[folder] = _sizes(folder)
        size = listed[folder].get(base)
        if size is None:
            raise DataError(f"the data file {name!r} of {what} is missing. Prepare it anew.")
        if 0 <= size < total * FRAME:
            raise DataError(
                f"the data file {name!r} of {what} has {size} bytes, which cannot hold its "
                f"{total} records. Prepare it anew."
            )


def check_counts(files: Files, what: str) -> None:
    """Counts the records of whole files by their headers.

    Raises:
        DataError: naming the first file that does not hold as many as described.
    """
    for name, total in zip(files.name.tolist(), files.total.tolist(), strict=True):
        found = sum(1 for _ in _record_offsets(name))
        if found != total:
            raise DataError(
                f"the data file {name!r} of {what} holds {found} records instead of {total}. "
                "Prepare it anew."
            )


def _sizes(folder: str) -> dict[str, int]:
    """Returns the sizes of the files in a folder; -1 if each would need a request."""
    if "://" in folder:
        import tensorflow as tf

        return {name: -1 for name in tf.io.gfile.listdir(folder)}
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except OSError:
        return {}


def explain(error: BaseException, names: Iterable[str]) -> str | None:
    """Returns what an error of TensorFlow says about a dataset's files, in one line.

    Args:
        error: the error raised on reading.
        names: the files that may have been read, likely ones first.

    Returns:
        A sentence that names the file if it can be found; None if the error does not concern
        files or images.
    """
    text, names = str(error), list(names)
    fault = _FAULT.search(text)
    if fault:
        return f"the {fault.group()}. Prepare it anew."
    missing = _MISSING.search(text)
    if missing and missing.group(1) in names:
        return f"the data file {missing.group(1)!r} is missing. Prepare it anew."
    offset = _OFFSET.search(text)
    if offset:
        place = int(offset.group(1))
        for name in names:
            found = _damaged(name, place)
            if found is not None:
                return (
                    f"the data file {name!r} is damaged: record {found[0]} (from 0), at byte "
                    f"{found[1]}, does not agree with its checksum or ends too early. Replace it."
                )
        return f"a data file is damaged: {offset.group()}. Replace it."
    image = _IMAGE.search(text)
    if image:
        return f"an image cannot be decoded: {image.group().strip()[:200]}."
    if _RECORD.search(text):
        return "a record cannot be parsed: the files are not those of this dataset."
    return None


def _damaged(name: str, place: int) -> tuple[int, int] | None:
    """Returns (number, first byte) of the unreadable record that TensorFlow reports, if any.

    If the header is intact, TensorFlow reports the byte after it.
    """
    for number, offset in enumerate(_record_offsets(name, place)):
        if offset in (place, place - HEADER) and _cannot_read(name, number):
            return number, offset
    return None


def _record_offsets(name: str, last: float = math.inf) -> Iterator[int]:
    """Returns the first bytes of the records of a file, up to byte `last`."""
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(name, "rb") if "://" in name else open(name, "rb", 0) as file:
            offset = 0
            while offset <= last:
                file.seek(offset)
                header = file.read(HEADER)
                if not header:
                    return
                yield offset
                offset += struct.unpack("<Q", header[:8].ljust(8, b"\0"))[0] + FRAME
    except (OSError, OverflowError, tf.errors.OpError):
        return


def _cannot_read(name: str, number: int) -> bool:
    import tensorflow as tf

    try:
        for _ in tf.data.TFRecordDataset(name, buffer_size=0).skip(number).take(1):
            return False
    except tf.errors.DataLossError:
        pass
    return True
