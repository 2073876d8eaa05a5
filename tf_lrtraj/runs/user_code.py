"""Functions of a user's own modules, which a configuration names as "package.module:function".

A module is looked for in the current folder first, then among the installed packages.  A record of
a run names such functions too, so reading it must not call just any function: those of the
standard library are refused, and a function of an installed package (anything that is not in the
current folder) must have the parameters that the caller gives by name, without `**`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tf_lrtraj.runs.config_checks import ConfigError, refusal
from tf_lrtraj.values import closest

__all__ = ["call", "find_function", "import_modules"]

_INSTALLED = ("site-packages", "dist-packages")


def import_modules(names: Sequence[str]) -> None:
    """Imports modules that register a user's own layers with Keras, also from the current folder.

    Raises:
        ConfigError: if one cannot be imported.
    """
    for name in names:
        _import(name, f"--import: {name!r}")


def find_function(key: str, text: str) -> Callable[..., Any]:
    """Returns the function that an entry of a configuration names.

    Args:
        key: the entry, such as "model.build", for errors.
        text: "package.module:function".

    Raises:
        ConfigError: if there is no such module or function; says where it was looked for.
    """
    name, colon, attribute = text.partition(":")
    if not colon or not all(part.isidentifier() for part in [*name.split("."), attribute]):
        raise refusal(key, "'package.module:function', such as 'mine:build'", text)
    if name.partition(".")[0] in sys.stdlib_module_names:
        raise refusal(key, "a function of your own, not of the standard library", text)
    module = _import(name, f"`config.{key}`={text!r}")
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        where = getattr(module, "__file__", None) or name
        raise ConfigError(
            f"`config.{key}`={text!r}: {where} has no function {attribute!r}."
            f"{closest(attribute, known)}"
        )
    return _with_owner(key, text, found)


def call(
    key: str,
    text: str,
    function: Callable[..., Any],
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    optional: bool = False,
) -> Any:
    """Calls a function of `find_function`.

    Args:
        key, text: as for `find_function`.
        options: the entries of the configuration beside it, by name.
        given: the arguments that the package gives by name.
        optional: whether a function of the current folder may lack parameters of `given`.

    Raises:
        ConfigError: if the arguments do not fit, or the function raises an error.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        raise refusal(key, "a function written in Python", text) from None
    named = set(signature.parameters)
    if not _is_local(function) and not set(given) <= named:
        allowed = (
            f"a function with parameters {list(given)}, as it is not in the current folder "
            f"{os.getcwd()}"
        )
        raise refusal(key, allowed, text)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    if optional and not takes_any:
        given = {name: value for name, value in given.items() if name in named}
    group = key.partition(".")[0]
    twice = set(given) & set(options)
    if twice:
        raise refusal(
            f"{group}.options", f"without {sorted(twice)}, which are given", dict(options)
        )
    unknown = [name for name in options if name not in named]
    if unknown and not takes_any:
        hint = closest(unknown[0], named)
        raise ConfigError(
            f"`config.{group}.options` has {unknown[0]!r}, which is no parameter of {text}.{hint} "
            f"Its parameters: {list(signature.parameters)}"
        )
    try:
        signature.bind(**given, **options)
    except TypeError as error:
        raise ConfigError(
            f"`config.{key}`={text!r} is called with {[*given, *options]}: {error}"
        ) from None
    try:
        return function(**given, **options)
    except Exception as error:  # the function is the user's own code
        raise ConfigError(f"`config.{key}`={text!r} failed: {_described(error)}") from error


def _import(name: str, what: str) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except Exception as error:  # the module is the user's own code
        missing = isinstance(error, ModuleNotFoundError) and error.name in _parents(name)
        if not missing:
            raise ConfigError(f"{what} cannot be imported: {_described(error)}") from None
        there = [path.stem for path in pathlib.Path(folder).glob("*.py")]
        raise ConfigError(
            f"{what} cannot be imported: there is no module {error.name!r} in the current folder "  # type: ignore[attr-defined]
            f"{folder} or among the installed packages.{closest(name, there)}"
        ) from None


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _with_owner(key: str, text: str, function: Callable[..., Any]) -> Callable[..., Any]:
    owner = str(getattr(function, "__module__", None) or "builtins").partition(".")[0]
    if owner in sys.stdlib_module_names:
        raise refusal(key, "a function of your own, not of the standard library", text)
    return function


def _is_local(function: Callable[..., Any]) -> bool:
    """Returns whether a function is defined in the current folder."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    if file is None:
        return False
    path, folder = pathlib.Path(file).resolve(), pathlib.Path.cwd().resolve()
    return path.is_relative_to(folder) and not set(_INSTALLED) & set(path.parts)


def _described(error: BaseException) -> str:
    """Returns an error in one line, with the place in the user's code if it is known."""
    lines = str(error).strip().splitlines() or [""]
    trace = error.__traceback__
    place = ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if os.path.abspath(file).startswith(os.getcwd() + os.sep) and not any(
            part in file for part in _INSTALLED
        ):
            place = f" ({os.path.basename(file)}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {lines[0]}{place}"
