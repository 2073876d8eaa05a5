"""Converts TensorFlow's errors about files to OSError."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

import tensorflow as tf

_CODES = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENAMETOOLONG,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    errno.EIO,
)


@contextlib.contextmanager
def as_os_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Converts TensorFlow errors inside that quote a system error to an OSError of `path`."""
    try:
        yield
    except tf.errors.OpError as error:
        for code in _CODES:
            if os.strerror(code) in error.message:
                raise OSError(code, os.strerror(code), os.fspath(path)) from error
        raise
