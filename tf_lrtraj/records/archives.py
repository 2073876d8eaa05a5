"""Safe reading of archives from untrusted sources: `.npz` and `.keras` files.

Nothing is unpickled.  The unpacked size is limited by the size of the file, and the header of an
array is compared with the archive before the array is created.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lrtraj.records.files import LARGEST, open_file, write_atomically

# An archive may unpack to LARGEST bytes, or to this many times its size if that is more. Only #
# arrays of almost nothing but zeros compress as much.
MOST_EXPANSION = 200
# Largest size in bytes of a text in an archive, such as the configuration of a model.
LARGEST_TEXT = 1 << 26

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def load_arrays(
    source: str | os.PathLike[str] | bytes, largest: int | None = LARGEST
) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` file, by name.

    Args:
        source: its path, or its content.
        largest: bytes that the arrays may take; None for `LARGEST`, or `MOST_EXPANSION` times the
            size of the file if that is more.

    Raises:
        OSError: if the file cannot be read, or is not a regular file. ValueError: if it is not such
        an archive, is damaged or too large, or holds Python objects, which can be read only by
        running code from the file.

    >>> content = io.BytesIO()
    >>> np.savez(content, a=np.arange(3))
    >>> load_arrays(content.getvalue())
    {'a': array([0, 1, 2])}
    """
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else open_file(source)
    try:
        with file, zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if largest is None:
                _check_expansion(archive, members)
            elif (total := sum(info.file_size for info in members)) > largest:
                raise ValueError(f"its arrays take {total:,} bytes, more than {largest:,}")
            return {
                info.filename.removesuffix(".npy"): _read(archive, info, largest)
                for info in members
            }
    except OSError:
        raise
    except (
        Exception
    ) as error:  # zipfile, zlib and NumPy raise many kinds of errors for damaged bytes
        raise ValueError(f"{error or type(error).__name__}") from None


def save_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], *, compress: bool = True
) -> None:
    """Writes an `.npz` file atomically."""
    content, named = io.BytesIO(), dict(arrays)
    if compress:
        np.savez_compressed(content, **named)
    else:
        np.savez(content, **named)
    write_atomically(path, content.getvalue())


def check_archive(path: str | os.PathLike[str]) -> None:
    """Checks that an archive can be unpacked within memory.

    Args:
        path: the path of a `.keras` file, or another zip archive of texts and arrays.

    Raises:
        OSError: if the file cannot be read, or is not a regular file.
        ValueError: if it is no archive, or its members unpack to more than `LARGEST` bytes and
            `MOST_EXPANSION` times its size, or a text in it to more than `LARGEST_TEXT` bytes.
    """
    with open_file(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                _check_expansion(archive, members)
        except OSError:
            raise
        except Exception as error:  # as in `load_arrays`
            raise ValueError(f"{error or type(error).__name__}") from None
    for info in members:
        if info.filename.endswith(".json") and info.file_size > LARGEST_TEXT:
            raise ValueError(
                f"its {info.filename} has {info.file_size:,} bytes, more than {LARGEST_TEXT:,}"
            )


def _check_expansion(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    assert archive.fp is not None
    size = archive.fp.seek(0, os.SEEK_END)
    total = sum(info.file_size for info in members)
    most = max(MOST_EXPANSION * size, LARGEST)
    if total > most:
        raise ValueError(
            f"its {size:,} bytes unpack to {total:,}, more than the {most:,} that are read"
        )


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, largest: int | None) -> np.ndarray:
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{info.filename} has the unknown format {version}")
        shape, fortran, dtype = _HEADERS[version](member)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects, which are not loaded")
        size = math.prod(shape) * dtype.itemsize
        # Checked before the array is created, so that a header cannot request more than there is.
        data = member.read(size + 1)
    if len(data) != size:
        raise ValueError(f"{info.filename} does not hold the {size:,} bytes its header promises")
    array = np.frombuffer(data, dtype) if size else np.zeros(math.prod(shape), dtype)
    return array.reshape(shape, order="F" if fortran else "C").copy()
