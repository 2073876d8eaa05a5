"""Checks before any work that files and folders named by flags can be written or read."""

from __future__ import annotations

import errno
import os
import pathlib

from tf_lrtraj.runs.config_checks import ConfigError

__all__ = ["check_file", "check_folder", "check_place"]


def check_place(flag: str, path: str) -> None:
    """Raises ConfigError if the file cannot be written."""
    place = pathlib.Path(path)
    try:
        if place.is_dir():
            raise ConfigError(f"{flag} must name a file. Received: {path!r}, a folder")
        if not place.parent.is_dir():
            raise ConfigError(f"{flag}: there is no folder {str(place.parent)!r}")
    except OSError as error:  # a name that is too long, say
        raise ConfigError(f"{flag}: {path!r}: {error.strerror}") from None
    if not os.access(place.parent, os.W_OK):
        raise ConfigError(f"{flag}: the folder {str(place.parent)!r} cannot be written")


def check_folder(flag: str, path: str) -> None:
    """Raises ConfigError if the folder does not exist and cannot be made."""
    if not path:
        raise ConfigError(f"{flag} must name a folder. Received: {path!r}")
    place = pathlib.Path(path)
    try:
        there = next(p for p in (place, *place.absolute().parents) if p.exists())
        reason = "" if there.is_dir() else f"{there} is no folder"
        if not reason and not os.access(there, os.W_OK):
            read_only = os.statvfs(there).f_flag & os.ST_RDONLY
            reason = os.strerror(errno.EROFS if read_only else errno.EACCES)
    except OSError as error:  # a name that is too long, say
        reason = str(error.strerror)
    if reason:
        raise ConfigError(f"{flag}: {path} cannot be written ({reason}). Choose another {flag}.")


def check_file(flag: str, path: str) -> None:
    """Raises ConfigError if there is no such file."""
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"{flag}: there is no file {path!r}")
