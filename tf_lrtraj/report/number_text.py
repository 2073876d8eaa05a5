"""Accuracies, differences and losses as text."""

from __future__ import annotations

import math
from typing import Any


def is_finite(value: Any) -> bool:
    """Returns whether `value` is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _decimals(examples: int | None) -> int:
    # Enough digits to show one image in `examples`.
    return 2 if examples is not None and examples >= 5000 else 1


def percent(accuracy: float | None, examples: int | None = None, error: float | None = None) -> str:
    """Formats an accuracy, with two decimals for 5,000 examples or more, and its error.

    >>> percent(0.9417), percent(0.94171, 10_000), percent(None), percent(0.9417, error=0.002)
    ('94.2 %', '94.17 %', '–', '94.2 ± 0.2 %')
    """
    if not is_finite(accuracy):
        return "–" if accuracy is None else str(accuracy)
    decimals = _decimals(examples)
    shown = "" if error is None else f" ± {100 * error:.{decimals}f}"
    return f"{100 * accuracy:.{decimals}f}{shown} %"  # type: ignore[operator]


def points(
    difference: float | None, examples: int | None = None, error: float | None = None
) -> str:
    """Formats a difference of accuracies in percentage points, with its sign and its error.

    >>> points(0.0312), points(-0.02), points(-0.0004), points(None), points(0.02, error=0.004)
    ('+3.1', '−2.0', '0.0', '–', '+2.0 ± 0.4')
    """
    if not is_finite(difference):
        return "–"
    decimals = _decimals(examples)
    value = round(100 * difference, decimals)  # type: ignore[operator]
    shown = "" if error is None else f" ± {100 * error:.{decimals}f}"
    return (f"{value:+.{decimals}f}".replace("-", "−") if value else f"{0:.{decimals}f}") + shown


def number(value: float | None, signed: bool = False, error: float | None = None) -> str:
    """Formats a loss or, with `signed`, a difference of losses, and its error.

    >>> number(0.20137), number(12.345), number(-0.11, signed=True), number(1e9)
    ('0.2014', '12.345', '−0.1100', '1e+09')
    >>> number(0.20137, error=0.003)
    '0.2014 ± 0.0030'
    """
    if value is None:
        return "–"
    if not is_finite(value):
        return "–" if signed else str(value)
    size = abs(value)
    form = (
        "4g" if size >= 1e4 else "3f" if size >= 10 else "4f" if size >= 1e-3 or size == 0 else "2e"
    )
    shown = "" if error is None else f" ± {error:.{form}}"
    return (
        f"{value:{'+' if signed else ''}.{form}}".replace("-", "−", 1 if value < 0 else 0) + shown
    )
