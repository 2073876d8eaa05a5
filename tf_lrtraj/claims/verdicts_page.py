"""Makes docs/verdicts.md: the ledgers of several scales side by side."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tf_lrtraj.claims.ledger import CLAIMS, LEDGER
from tf_lrtraj.claims.verdicts import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    SIGNS,
    VERDICTS,
    bounds_shown,
    shown,
)
from tf_lrtraj.records import read_json
from tf_lrtraj.statistics import Interval


def verdicts_page(folders: Sequence[str | os.PathLike[str]]) -> str:
    """Returns docs/verdicts.md: for each claim a row, for each reproduction a column.

    Args:
        folders: workdirs of reproductions that have been judged.

    Raises:
        RecordError: if a folder has no ledger, or it is damaged.
    """
    ledgers = [read_json(pathlib.Path(folder) / LEDGER, dict[str, Any]) for folder in folders]
    found = [{entry["id"]: entry for entry in ledger["claims"]} for ledger in ledgers]
    scales = [str(ledger["scale"]) for ledger in ledgers]
    lines = [_HEAD.format(folders=" ".join(f"results/{pathlib.Path(f).name}" for f in folders))]
    lines += ["| claim | " + " | ".join(f"[{s}](reproduction_{s}.md)" for s in scales) + " |"]
    lines += ["|---" * (len(scales) + 1) + "|"]
    for claim in CLAIMS:
        cells = [_cell(entries.get(claim.id)) for entries in found]
        name = f"[{claim.id}](claims.md#{_anchor(f'{claim.id}. {claim.title}')}) {claim.title}"
        lines.append("| " + " | ".join([name, *cells]) + " |")
    counts = [
        "<br>".join(f"{ledger['counts'][v]} {v}" for v in VERDICTS if ledger["counts"].get(v))
        for ledger in ledgers
    ]
    lines.append("| **In all** | " + " | ".join(counts) + " |")
    return "\n".join(lines) + "\n"


def _cell(entry: Mapping[str, Any] | None) -> str:
    """Returns a verdict with the number that decides it."""
    if entry is None or entry["verdict"] == NOT_RUN:
        return SIGNS[NOT_RUN]
    text = f"{SIGNS[entry['verdict']]} {entry['verdict']}"
    part = _deciding(entry)
    if part is None:
        return text
    interval = Interval(*(_number(part[key]) for key in ("value", "low", "high")))
    wanted = bounds_shown(part["wanted"]["low"], part["wanted"]["high"])
    return f"{text}: `{part['name']}` {shown(interval)}, wanted {wanted}"


def _deciding(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first condition that is not met, part that fails or is undecided, or part of all."""
    if entry["verdict"] not in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE):
        return None
    unmet = [condition for condition in entry["conditions"] if not condition["met"]]
    parts = [part for part in entry["parts"] if part["verdict"] == entry["verdict"]]
    return next(iter([*unmet, *parts, *entry["parts"]]), None)


def _number(value: Any) -> float:
    return float(value) if value is not None else math.nan


def _anchor(heading: str) -> str:
    """Returns the anchor that GitHub gives a heading.

    >>> _anchor("B1. A batch's loss along its own step")
    'b1-a-batchs-loss-along-its-own-step'
    """
    kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


_HEAD = """# Verdicts at every scale

This page is made from the ledgers under `results/`; a test keeps it in step with them:

    python -c "import tf_lrtraj.claims as c, sys; print(c.verdicts_page(sys.argv[1:]), end='')" \\
        {folders} > docs/verdicts.md

Each cell has the verdict and the number that decides it, with its interval: the first part that
fails or stays undecided, the condition that is not met, or, where all parts hold, the first of
them. [Claims](claims.md) explains every part, and the page of a scale, linked above its column, has
all numbers and figures. `–`: the scale is not meant for the claim.
"""
