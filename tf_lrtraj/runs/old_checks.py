"""The checks of the study's configuration, until it is a `Schema` too."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from tf_lrtraj.runs.config_checks import ConfigError, as_dict, unknown_key

__all__ = [
    "TEXT",
    "TRUTH",
    "Check",
    "ConfigError",
    "as_dict",
    "check_all",
    "get",
    "integer",
    "is_integer",
    "is_number",
    "merge",
    "number",
    "one_of",
    "optional",
    "unknown_key",
]


# What is allowed, in words, and whether a value is.
Check = tuple[str, Callable[[Any], bool]]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; an integer beyond every float is none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def integer(minimum: int, below: int = 2**31) -> Check:
    """A count; so many that arrays of them fit in no memory are refused here, not there."""
    return (
        f"an integer of at least {minimum}, below {below}",
        lambda value: is_integer(value) and minimum <= value < below,
    )


def number(low: float, high: float = math.inf) -> Check:
    if high == math.inf:
        return f"a number of at least {low:g}", lambda value: is_number(value) and value >= low
    return (
        f"a number in [{low:g}, {high:g})",
        lambda value: is_number(value) and low <= value < high,
    )


def one_of(allowed: Iterable[str]) -> Check:
    choices = list(allowed)
    return f"one of {choices}", lambda value: isinstance(value, str) and value in choices


def optional(check: Check) -> Check:
    return f"{check[0]}, or None", lambda value: value is None or check[1](value)


TRUTH: Check = ("True or False", lambda value: isinstance(value, bool))
TEXT: Check = ("a non-empty text", lambda value: isinstance(value, str) and bool(value))


def check_all(plain: Mapping[str, Any], checks: Mapping[str, Check]) -> None:
    """Checks the entries that `checks` names.

    Raises:
        ConfigError: naming the entry, the value received and what is allowed.
    """
    for key, (allowed, check) in checks.items():
        value = get(plain, key)
        if not check(value):
            raise ConfigError(f"`config.{key}` must be {allowed}. Received: {value!r}")


def merge(
    defaults: dict[str, Any],
    given: Mapping[str, Any],
    path: str = "config",
    free: Collection[str] = (),
) -> dict[str, Any]:
    """`defaults` with the given values put in; unknown keys are refused with the nearest known one.

    Args:
        free: keys, as `group.key`, of parts whose content is not known here.

    Raises:
        ConfigError: for an unknown key, or a value where a group is needed.
    """
    for key in given:
        if key not in defaults:
            raise ConfigError(unknown_key(path, key, defaults))
    merged = {}
    for key, default in defaults.items():
        value = given.get(key, default)
        if isinstance(default, dict):
            is_free = f"{path}.{key}" in {f"config.{f}" for f in free}
            if not isinstance(value, Mapping):
                keys = "" if is_free else f" with the keys {sorted(default)}"
                raise ConfigError(f"`{path}.{key}` must be a group{keys}. Received: {value!r}")
            if not is_free:
                value = merge(default, dict(value), f"{path}.{key}", free)
        merged[key] = value
    return merged


def get(plain: Mapping[str, Any], key: str) -> Any:
    """The entry `group.key` of nested settings."""
    value: Any = plain
    for part in key.split("."):
        value = value[part]
    return value
