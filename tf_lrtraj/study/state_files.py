"""The states from which training runs resume: named arrays in one file, written atomically."""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_lrtraj.records import RecordError
from tf_lrtraj.records.archives import load_arrays, save_arrays

__all__ = ["read_arrays", "write_arrays"]

_SUM = "checksum"


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes an `.npz` file under a temporary name and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {name: np.asarray(array) for name, array in arrays.items()}
    save_arrays(path, {**held, _SUM: np.array(_checksum(held))}, compress=False)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a file that `write_arrays` wrote.

    Raises:
        RecordError: if the file is missing or damaged.
    """
    try:
        arrays = load_arrays(path, largest=None)
        if int(arrays.pop(_SUM)) != _checksum(arrays):
            raise ValueError("checksum")
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise RecordError(
            f"{path} does not hold the state of a run: the file is damaged. Delete it, and the "
            "run resumes from the previous state."
        ) from None
    return arrays


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), value)
    return value
