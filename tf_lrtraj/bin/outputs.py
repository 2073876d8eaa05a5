"""Whether what a flag names can be written, as far as that can be told before any work."""

from __future__ import annotations

import os
import pathlib

from tf_lrtraj.runs.config_checks import ConfigError


def check_place(flag: str, path: str) -> None:
    """Raises ConfigError where no file can be written, as far as that can be told before."""
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
    """Raises ConfigError where there is no folder to write into and none can be made."""
    place = pathlib.Path(path)
    try:
        there = next(p for p in (place, *place.absolute().parents) if p.exists())
        possible = there.is_dir() and os.access(there, os.W_OK)
    except OSError:  # a name that is too long, say
        possible = False
    if not possible:
        raise ConfigError(f"{flag}: {path!r} is no folder, and none can be made there")
