"""The figure of every claim, by the claim's id."""

from __future__ import annotations

import importlib
import importlib.util

from tf_lrtraj.report.reproduction.claim_figure import ClaimFigure

__all__ = ["FIGURES"]

_GROUPS = ("minibatch", "trajectory", "schedules", "swa")


def _collected() -> dict[str, ClaimFigure]:
    found: dict[str, ClaimFigure] = {}
    for group in _GROUPS:
        name = f"{__package__}.{group}"
        if importlib.util.find_spec(name) is not None:
            found |= importlib.import_module(name).FIGURES
    return found


FIGURES = _collected()
