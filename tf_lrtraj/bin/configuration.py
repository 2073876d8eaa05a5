"""The flag `--config`: configurations by name, and one-line errors for overrides.

This module does not import TensorFlow.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import traceback
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

import ml_collections
from absl import flags

from tf_lrtraj import kernels, rates
from tf_lrtraj.configurable import parameters
from tf_lrtraj.runs.config_checks import ConfigError, unknown_key
from tf_lrtraj.values import closest

_TRACED = "Error whilst parsing config file:"
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(=.*)?", re.DOTALL)
_TYPES = {int: "an integer", float: "a number", bool: "True or False", str: "text"}


def known_configs() -> dict[str, pathlib.Path]:
    """Returns the configurations of the package: name → file."""
    found: dict[str, pathlib.Path] = {}
    folders: list[Any] = [pathlib.Path(__file__).parents[2] / "configs"]
    with contextlib.suppress(ModuleNotFoundError, TypeError):
        folders.append(resources.files("tf_lrtraj.configs"))
    for folder in folders:
        if folder.is_dir():
            for path in folder.iterdir():
                if path.name.endswith(".py") and not path.name.startswith("_"):
                    found.setdefault(path.name[:-3], pathlib.Path(str(path)))
    return found


def with_paths(args: Sequence[str]) -> Iterator[str]:
    """Yields the arguments, with `--config=NAME` replaced by the path of that configuration.

    Raises:
        ConfigError: if there is neither a file nor a configuration of this name.
    """
    previous = ""
    for arg in args:
        match = re.fullmatch(r"--?config=(.*)", arg)
        value = match.group(1) if match else arg if previous in ("--config", "-config") else None
        previous = arg
        if value is None:
            yield arg
            continue
        path, _, argument = value.partition(":")
        if not pathlib.Path(path).is_file():
            known = known_configs()
            name = pathlib.Path(path).name.removesuffix(".py")
            if name not in known or ("/" in path and not path.startswith("configs/")):
                raise ConfigError(
                    f"--config: there is no file {path!r}, and no configuration of that name."
                    f"{closest(name, known)} Known: {sorted(known)}"
                )
            value = str(known[name]) + (f":{argument}" if argument else "")
        yield f"--config={value}" if match else value


def parse(argv: Sequence[str]) -> list[str]:
    """Parses flags, `--config` and its overrides.

    Returns:
        The arguments that are not flags.

    Raises:
        ConfigError: for errors in flags, in overrides, or in the configuration's own code.
    """
    try:
        rest: list[str] = flags.FLAGS(list(argv))
        # A file that cannot be read raises its error at the first access.
        hasattr(flags.FLAGS["config"].value if "config" in flags.FLAGS else None, "lock")
        return rest
    except (Exception, SystemExit) as error:
        place = _place_in_config(argv, error)
        if place:  # the file is the user's own code, and may raise anything
            kind = "" if isinstance(error, flags.Error) else f"{type(error).__name__}: "
            raise ConfigError(f"the configuration {place}: {kind}{first_line(error)}") from error
        if isinstance(error, SystemExit):
            raise
        _check_overrides(argv)
        if isinstance(error, flags.Error):
            raise ConfigError(f"{first_line(error).rstrip(' ?.')}. Try --help.") from error
        if isinstance(error, (OSError, ImportError, SyntaxError)):
            raise ConfigError(
                f"the configuration file cannot be read: {first_line(error)}"
            ) from error
        if isinstance(error, AttributeError) and "get_config" in str(error):
            raise ConfigError(
                f"the configuration file must define a function get_config(). "
                f"Received: {list(_config_values(argv))[-1]!r}"
            ) from error
        raise ConfigError(f"--config: {first_line(error)}") from error


# Program → an entry that only its configurations have.
_OWN_ENTRIES = {"train": "total", "reproduce": "burn_in", "synthetic": "single_runs"}


def check_program(config: Any, program: str) -> None:
    """Refuses a configuration of another program.

    Args:
        config: the value of --config.
        program: "train", "reproduce" or "synthetic".

    Raises:
        ConfigError: naming the program that the configuration is for.
    """
    keys = set(config.keys()) if hasattr(config, "keys") else set()
    others = [name for name, mark in _OWN_ENTRIES.items() if mark in keys and name != program]
    if others and _OWN_ENTRIES[program] not in keys:
        raise ConfigError(
            f"--config: this configuration is for lrtraj-{others[0]}. Received: "
            f"{getattr(flags.FLAGS['config'], 'config_filename', 'a configuration')!r}"
        )


def _check_overrides(argv: Sequence[str]) -> None:
    """Raises ConfigError for the first override that does not fit the configuration."""
    given = [match for arg in argv[1:] if (match := _OVERRIDE.fullmatch(arg))]
    if not given or "config" not in flags.FLAGS:
        return
    files = list(_config_values(argv))
    if not files:
        raise ConfigError(
            f"--config=FILE must come before its overrides. Received: {given[0].group(0)}"
        )
    try:
        config = flags.FLAGS["config"].parser.parse(files[-1])
    except (Exception, SystemExit):
        return  # the file itself raises the error, which the caller reports
    for match in given:
        _check_override(config, match.group(1), (match.group(2) or "=")[1:])


def _check_override(config: Any, key: str, text: str) -> None:
    group, path = config, "config"
    for part in key.split("."):
        if not hasattr(group, "keys"):
            raise ConfigError(
                f"`{path}` is a value, {group!r}, and has no entries. "
                f"Received: --config.{key}={text}"
            )
        known = list(group.keys())
        if part not in known:
            if part in _arguments(group):
                raise ConfigError(
                    f"`{path}.{part}` is not set in the configuration file, and the command line "
                    "can change only entries that are set: set it there. Received: "
                    f"--config.{key}={text}"
                )
            whole = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
            raise ConfigError(unknown_key(path, part, {*known, *_arguments(group)}, whole))
        kind = group.get_type(part) if isinstance(group, ml_collections.ConfigDict) else None
        group, path = group[part], f"{path}.{part}"
    if hasattr(group, "keys"):
        raise ConfigError(
            f"`{path}` is a group with the keys {sorted(group.keys())}: change these one by one, "
            f"such as --{path}.{next(iter(group.keys()), 'key')}=…. Received: {text!r}"
        )
    if kind in _TYPES and not _fits(text, kind):
        raise ConfigError(f"`{path}` must be {_TYPES[kind]}. Received: {text!r}")


def _arguments(group: Any) -> list[str]:
    """Returns the arguments of the kernel or rate that a group configures, if it does."""
    for family in (kernels.KERNELS, rates.RATES):
        chosen = group.get(family.key)
        if isinstance(chosen, str) and chosen in family:
            return list(parameters(family[chosen]))
    return []


def _fits(text: str, kind: type) -> bool:
    if kind is bool:
        return text.lower() in ("", "true", "false", "t", "f", "1", "0")
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _config_values(argv: Sequence[str]) -> Iterator[str]:
    for position, arg in enumerate(argv):
        match = re.fullmatch(r"--?config=(.*)", arg)
        if match:
            yield match.group(1)
        elif arg in ("--config", "-config") and position + 1 < len(argv):
            yield argv[position + 1]


def _place_in_config(argv: Sequence[str], error: BaseException) -> str:
    """Returns `FILE, line N` if the configuration's own code raised the error, or empty."""
    files = {os.path.abspath(value.partition(":")[0]) for value in _config_values(argv)}
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    frames += re.findall(r'File "(.*?)", line (\d+)', str(error))
    places = [f"{name}, line {line}" for name, line in frames if os.path.abspath(name) in files]
    return places[-1] if places else ""


def first_line(error: BaseException) -> str:
    """Returns an error's message in one line."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    # ml_collections passes on errors of a configuration file with their whole traceback.
    return lines[-1] if _TRACED in text else lines[0]
