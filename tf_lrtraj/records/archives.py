"""Files of named arrays (`.npz`) as anybody may have written them, read without trust.

Nothing is unpickled, and no more memory is taken than the file's own bytes account for: what a
header promises is held against what the archive holds before any array is made.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from typing import Any

import numpy as np

# Uncompressed bytes of a record; far beyond any that this package writes.
LARGEST = 1 << 29

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def load_arrays(
    source: str | os.PathLike[str] | bytes, largest: int | None = LARGEST
) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, by name.

    Args:
        source: its path, or its content.
        largest: refuse archives whose arrays take more bytes than this; None for no limit.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no such file, damaged, too large, or holds objects, which only
            unpickling, and so running code of the file's author, could bring back.

    >>> content = io.BytesIO()
    >>> np.savez(content, a=np.arange(3))
    >>> load_arrays(content.getvalue())
    {'a': array([0, 1, 2])}
    """
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            total = sum(info.file_size for info in members)
            if largest is not None and total > largest:
                raise ValueError(f"its arrays take {total:,} bytes, more than {largest:,}")
            return {
                info.filename.removesuffix(".npy"): _read(archive, info, largest)
                for info in members
            }
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds on damaged bytes
        raise ValueError(f"{error or type(error).__name__}") from None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, largest: int | None) -> np.ndarray:
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{info.filename} has the unknown format {version}")
        shape, fortran, dtype = _HEADERS[version](member)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds Python objects, which are not loaded")
        size = math.prod(shape) * dtype.itemsize
        # Read before the array is made, so that a header cannot ask for more than there is.
        data = member.read(size + 1)
    if len(data) != size:
        raise ValueError(f"{info.filename} does not hold the {size:,} bytes its header promises")
    array = np.frombuffer(data, dtype) if size else np.zeros(math.prod(shape), dtype)
    return array.reshape(shape, order="F" if fortran else "C").copy()
