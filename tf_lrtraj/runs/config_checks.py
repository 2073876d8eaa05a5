"""Schemas of configurations: defaults, checks and help of every entry, declared once.

A `Schema` is a table of entries, each with a default, a `tf_lrtraj.values.Rule` and a line of help.
Defaults, checks and the text of --help are derived from it:

>>> from tf_lrtraj.values import text
>>> schema = Schema(
...     {
...         "seed": Entry(0, count(0), "of the initial weights"),
...         "model.width": Entry(16, count(1), "channels of the first stage"),
...         "model.file": Entry(None, text().or_none(), "of weights to start from", str),
...     }
... )
>>> config = schema.defaults()  # an ml_collections.ConfigDict
>>> config.model.width = 32
>>> schema.read(config)
{'seed': 0, 'model': {'width': 32, 'file': None}}
>>> schema.read({"model": {"widht": 32}})
Traceback (most recent call last):
    ...
tf_lrtraj.runs.config_checks.ConfigError: unknown key `config.model.widht`. \
Did you mean config.model.width? Known keys of config.model: ['file', 'width']
>>> schema.read({"model": {"width": 0}})
Traceback (most recent call last):
    ...
tf_lrtraj.runs.config_checks.ConfigError: `config.model.width` must be an integer of at least 1 \
and below 2147483648. Received: config.model.width=0
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from tf_lrtraj.records import encode
from tf_lrtraj.values import LARGEST_COUNT, Rule, error, integer

__all__ = [
    "GROUP",
    "WEIGHT_DECAY_ON",
    "ConfigError",
    "Entry",
    "Schema",
    "as_dict",
    "count",
    "refusal",
    "unknown_key",
]

# Weights on which weight decay acts: kernels, or all trainable weights.
WEIGHT_DECAY_ON = ("kernels", "all")


class ConfigError(ValueError):
    """A configuration holds an unknown key or a value that is not allowed."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of a configuration.

    Attributes:
        default: the value if none is given.
        rule: the allowed values.
        help: its description in --help.
        kind: the type of its values if the default is None, for overrides by flags.
    """

    default: Any
    rule: Rule
    help: str
    kind: type | None = None


def count(at_least: int) -> Rule:
    """Returns the rule of a count, which refuses numbers larger than any array."""
    return integer(at_least, below=LARGEST_COUNT)


def _group(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError
    encode(value)  # TypeError
    return value


# A group whose keys are checked by the described object, such as a kernel.
GROUP = Rule("a group of settings that JSON can hold", _group)


class Schema:
    """The entries of a configuration.

    Args:
        entries: dotted key, such as "model.width" → entry; keys of a group are consecutive.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = dict(entries)
        self._tree: dict[str, Any] = {}
        for key, entry in self.entries.items():
            *groups, last = key.split(".")
            node = self._tree
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = entry

    def defaults(self) -> ml_collections.ConfigDict:
        """Returns a new configuration of the defaults, which a file and flags may change."""
        return ml_collections.ConfigDict(_defaults(self._tree))

    def read(self, config: Any) -> dict[str, Any]:
        """Returns a checked configuration as nested dicts, with defaults for missing entries.

        Args:
            config: a ConfigDict or a mapping, in which entries may be missing.

        Raises:
            ConfigError: for an unknown key, with the closest known one, or a value that is not
                allowed.
        """
        return _read(self._tree, as_dict(config), "config")

    def help(self) -> str:
        """Returns every entry with its default, description and allowed values, for --help."""
        return "\n".join(
            textwrap.fill(
                f"config.{key}={entry.default!r}: {entry.help}; {entry.rule.allowed}.",
                width=92,
                initial_indent="  ",
                subsequent_indent="      ",
                break_on_hyphens=False,
            )
            for key, entry in self.entries.items()
        )


def _defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    def value(entry: Any) -> Any:
        if not isinstance(entry, Entry):
            return _defaults(entry)
        # An entry with the plain value None could not be changed by a flag.
        return (
            copy.deepcopy(entry.default)
            if entry.kind is None
            else config_dict.placeholder(entry.kind)
        )

    return {key: value(entry) for key, entry in tree.items()}


def _read(tree: Mapping[str, Any], given: Mapping[str, Any], path: str) -> dict[str, Any]:
    for key in given:
        if key not in tree:
            raise ConfigError(unknown_key(path, key, tree))
    found: dict[str, Any] = {}
    for key, entry in tree.items():
        name = f"{path}.{key}"
        if isinstance(entry, Entry):
            value = given.get(key, copy.deepcopy(entry.default))
            found[key] = entry.rule.check(name, value, ConfigError)
            continue
        value = given.get(key, {})
        if not isinstance(value, Mapping):
            raise error(name, f"a group with the keys {sorted(entry)}", value, ConfigError)
        found[key] = _read(entry, value, name)
    return found


def as_dict(config: Any) -> dict[str, Any]:
    """Returns the top level of a configuration as a dict.

    Raises:
        ConfigError: if it is something else.
    """
    if isinstance(config, ml_collections.ConfigDict):
        return dict(config.to_dict())
    if not isinstance(config, Mapping):
        raise error("config", "a ConfigDict or a dict", config, ConfigError)
    return dict(config)


def refusal(key: str, allowed: str, value: Any) -> Exception:
    """Returns the error for an entry that does not fit the others, to be raised.

    >>> raise refusal("horizon", "at most config.window, 100", 200)
    Traceback (most recent call last):
        ...
    tf_lrtraj.runs.config_checks.ConfigError: `config.horizon` must be at most config.window, 100. \
Received: config.horizon=200
    """
    return error(f"config.{key}", allowed, value, ConfigError)


def unknown_key(
    path: str, key: Any, known: Iterable[Any], config: Mapping[str, Any] | None = None
) -> str:
    """Returns the message for an unknown key of a group of a configuration.

    Args:
        path: the path of the group, such as `config.optimizer`.
        key: the unknown key.
        known: the keys of the group.
        config: the whole configuration, whose other groups are searched for the key.

    >>> print(unknown_key("config.optimizer", "momentun", ["momentum", "nesterov"]))
    unknown key `config.optimizer.momentun`. Did you mean config.optimizer.momentum? \
Known keys of config.optimizer: ['momentum', 'nesterov']
    """
    names = sorted(map(str, known))
    near = [f"{path}.{name}" for name in difflib.get_close_matches(str(key), names, n=1)]
    if not near and config is not None:
        near = [other for other in _paths(config, "config") if other.endswith(f".{key}")]
        if len(near) > (3 if path == "config" else 1):
            near = []
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"unknown key `{path}.{key}`.{hint} Known keys of {path}: {names}"


def _paths(config: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in config.items():
        yield f"{path}.{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{path}.{key}")
