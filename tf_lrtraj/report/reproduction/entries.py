"""The ledger's claims as the page shows them: text only, every number from the ledger."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tf_lrtraj.claims.statistics import Interval
from tf_lrtraj.claims.verdicts import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    VERDICTS,
    shown,
)
from tf_lrtraj.records import problem
from tf_lrtraj.report.reproduction.plates import of_claim
from tf_lrtraj.report.reproduction.reading import ClaimEntry, Source

__all__ = ["GROUPS", "SIGNS", "Entry", "command", "counts", "entries", "sentence"]

# A sign beside the word, for those who cannot tell the colours apart.
SIGNS = {REPRODUCED: "✓", NOT_REPRODUCED: "✗", INCONCLUSIVE: "?", NOT_RUN: "–"}
_CLASSES = {REPRODUCED: "yes", NOT_REPRODUCED: "no", INCONCLUSIVE: "open", NOT_RUN: "none"}
GROUPS = {
    "B": "Mini-batch losses and trajectories",
    "A": "Averaging and schedules",
    "S": "SWA and FGE",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One claim, ready to be shown; all text.

    Attributes:
        numbers: (name, number with its interval).
        figures: names of the figures that show it, the telling one first.
    """

    id: str
    sentence: str
    source: str
    experiment: str
    threshold: str
    argument: str
    verdict: str
    statistic: str
    numbers: tuple[tuple[str, str], ...]
    reason: str
    notes: tuple[str, ...]
    figures: tuple[str, ...]
    command: str

    @property
    def sign(self) -> str:
        """✓, ✗, ? or –."""
        return SIGNS.get(self.verdict, "?")

    @property
    def kind(self) -> str:
        """The verdict as a class of the page's style."""
        return _CLASSES.get(self.verdict, "open")

    @property
    def parts(self) -> list[str]:
        """What was measured, part by part."""
        return self.statistic.split("; ") if self.statistic else []

    @property
    def decisive(self) -> list[str]:
        """The parts, those that the reason of the verdict names before the others."""
        return sorted(self.parts, key=lambda part: part not in self.reason)


_WORDS = {
    "ema": "EMA",
    "swa": "SWA",
    "two_point": "two points",
    "curvature_free": "curvature-free",
    "one_minus_sqrt": "1 − √",
    "zero_crossing": "zero crossing",
    "best_rate": "best rate",
}


def sentence(text: str) -> str:
    """With a capital at its beginning, a full stop at its end, and averages by their names.

    >>> sentence("a gap of 1 %"), sentence("two_point: is it?")
    ('A gap of 1 %.', 'Two points: is it?')
    """
    for name, word in _WORDS.items():
        text = re.sub(rf"(?<!['\"])\b{name}\b", word, text)
    begun = text[:1].upper() + text[1:]
    return begun if not begun or begun.endswith((".", "!", "?", "…")) else f"{begun}."


def entries(source: Source) -> list[Entry]:
    """The claims in the ledger's order; one that is not as it should be is a problem."""
    found = []
    for number, item in enumerate(source.ledger["claims"]):
        if problem(item, ClaimEntry) is None and item["id"] and item["verdict"] in VERDICTS:
            found.append(_entry(item, command(source)))
        else:
            source.problems.append(f"ledger.json: claim number {number + 1} is not a claim.")
    return found


def counts(claims: Sequence[Entry]) -> list[tuple[str, str, str, int]]:
    """(verdict, sign, class, how many) for each verdict that occurs."""
    told = [(v, SIGNS[v], _CLASSES[v], sum(c.verdict == v for c in claims)) for v in VERDICTS]
    return [one for one in told if one[-1]]


def _entry(item: Mapping[str, Any], redo: str) -> Entry:
    def text(key: str) -> str:
        return item.get(key) or ""

    name = text("id")
    return Entry(
        id=name,
        sentence=text("sentence"),
        source=text("source"),
        experiment=text("experiment"),
        threshold=text("threshold"),
        argument=text("argument"),
        verdict=text("verdict"),
        statistic=text("statistic"),
        numbers=tuple(_numbers(item.get("numbers") or {})),
        reason=text("reason"),
        notes=tuple(item.get("notes") or ()),
        figures=of_claim(name),
        command=f"{redo} --claims={name}",
    )


def command(source: Source) -> str:
    """What redoes this reproduction, as its configuration says."""
    told: str = source.config.get("command") or "lrtraj-reproduce --config=…"
    return told if "--workdir" in told else f"{told} --workdir=…"


def _numbers(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    told = []
    for name, value in found.items():
        interval = _interval(value)
        if interval is not None:
            told.append((str(name).replace("_", " "), shown(interval)))
    return told


def _interval(value: Any) -> Interval | None:
    """From {"value", "low", "high"}, [value, low, high], or a bare number."""
    if isinstance(value, Mapping):
        value = [value.get(key) for key in ("value", "low", "high")]
    if isinstance(value, (int, float)):
        value = [value] * 3
    if isinstance(value, Sequence) and len(value) == 3:
        try:
            return Interval(*(float(number) for number in value))
        except (TypeError, ValueError):
            return None
    return None
