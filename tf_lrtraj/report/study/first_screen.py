"""The first screen: five findings, a cell for every claim, and the most important figures."""

from __future__ import annotations

import collections
import math
import string
from collections.abc import Callable, Iterator, Mapping

from tf_lrtraj.claims import VERDICTS, Claim, Judgement, Study
from tf_lrtraj.claims.verdicts import (
    INCONCLUSIVE,
    NOT_JUDGED,
    NOT_MEASURED,
    NOT_RUN,
    REPRODUCED,
    number,
)
from tf_lrtraj.report.study.page_blocks import (
    Block,
    Figure,
    Fold,
    Gallery,
    Items,
    Link,
    Mark,
    Paragraph,
    Strip,
    Text,
)
from tf_lrtraj.report.study.registry import HEAD

GROUPS = {
    "B": "Mini-batch losses and trajectories",
    "A": "Averaging and schedules",
    "S": "SWA and FGE",
    "O": "Found here",
}
# Claims of the first screen, the most important first → sentence, in which {NAME} is replaced by
# the value of the part of that name, and {NAME:HOW} by its form in `_FORMATS`.
HEADS = {
    "B4": "After a run without momentum one more step stops helping held-out images at "
    "{zero_crossing} times the run's rate, and helps most at {best_rate} times it",
    "O1": "Averages of 2, 4 and 8 distant points have the loss of a rate that is {divisor_2}, "
    "{divisor_4} and {divisor_8} times smaller",
    "A1": "Of what a run under the equivalent schedule takes off the training loss, EMA takes "
    "{share_ema:percent} % and SWA {share_swa:percent} %",
    "A6": "An average's loss lies {network_lower:below} % below that of the iterates, and a small "
    "rate takes {network_speed:factor} times as many steps to reach the same loss",
    "O2": "At equal training loss the test loss of averages less that of runs at lower rates is "
    "{difference_low_rates}, and less that of decayed runs {difference_decays}",
    "O3": "At a cooldown's end the Hessian's largest eigenvalue is {sharper:factor} times that at "
    "the average of the same updates",
    "S1": "SWA's test accuracy less that of a conventional run of equal budget is "
    "{swa_gain_constant_rate} points at a constant rate and {swa_gain_cyclical_rate} points at a "
    "cyclical one",
    "S4": "The test error is 5 points up at {wider:factor} times the distance from SWA as from the "
    "end of a conventional run",
    "S6": "The test accuracy of an FGE ensemble less its mean member's is {over_members} points, "
    "and less a conventional run's {over_run} points",
}
# Claims whose figures come first, as many as exist and fit.
_SHOWN = ("B4", "B1", "O1", "A1", "O2", "A6", "O3", "S1", "S4", "S6", "S8")
_FORMATS: dict[str, Callable[[float], float]] = {
    "": float,
    "percent": lambda value: 100.0 * value,
    "factor": math.exp,  # of a logarithm
    "below": lambda value: -100.0 * math.expm1(value),  # %, of the logarithm of a ratio
}
_SENTENCES, _FIGURES = 4, 6


def first_screen(study: Study, figures: Mapping[str, Figure]) -> Iterator[Block]:
    """The blocks below the title; `figures`: name → figure, of those that are drawn."""
    if not study.records.judged:
        told = "This is a smoke test: it shows that everything runs. It gives numbers, no verdicts."
        yield Paragraph(told, notice=True)
    yield Paragraph(_counts(study))
    yield from (Paragraph(text) for text in _sentences(study))
    for title, members in grouped(study).items():
        found = [(claim.id, claim.title, study.judgements[claim].verdict) for claim in members]
        verdicts = [verdict for *_, verdict in found]
        share = f" ({verdicts.count(REPRODUCED)} of {len(found)} reproduced)"
        yield Strip(title + (share if study.records.judged else ""), found)
    titles = {claim.id: claim.title for claim in study.judgements}
    shown = [
        (figures.get(f"{name}{HEAD}", figures[name]), f"{name}. {titles[name]}")
        for name in _SHOWN
        if name in figures
    ]
    if shown:
        yield Gallery(shown[:_FIGURES])
    # Scales that were run before the current claims have no table of what they can decide.
    set_when = _BEFORE if "power" in study.records.config else _AFTER
    yield Fold("How to read this page", [Items((*_LEGEND[:2], set_when, *_LEGEND[2:]))])


def grouped(study: Study) -> dict[str, list[Claim]]:
    """Returns title of a group → its claims that this scale measures, for groups with claims."""
    judged = [claim for claim, found in study.judgements.items() if found.verdict != NOT_RUN]
    found = {title: [c for c in judged if c.id[0] == k] for k, title in GROUPS.items()}
    return {title: members for title, members in found.items() if members}


def _counts(study: Study) -> str:
    counts = collections.Counter(found.verdict for found in study.judgements.values())
    others = counts.pop(NOT_RUN, 0)
    told = [
        f"{counts[verdict]} {'is' if counts[verdict] == 1 else 'are'} {verdict}"
        for verdict in VERDICTS
        if counts[verdict]
    ]
    listed = " and ".join(filter(None, [", ".join(told[:-1]), *told[-1:]]))
    count = len(study.judgements) - others
    if not others:
        return f"Of {count} claims {listed}."
    claims = "claim" if count == 1 else "claims"
    return f"This scale measures {count} {claims} of {count + others}: {listed}."


def _sentences(study: Study) -> list[Text]:
    by_id = {claim.id: (claim, found) for claim, found in study.judgements.items()}
    known = [by_id[name] for name in HEADS if name in by_id]
    known = [pair for pair in known if pair[1].verdict != NOT_RUN]
    # Measured claims come before others.
    known.sort(key=lambda pair: not pair[1].parts)
    return [_sentence(claim, found) for claim, found in known[:_SENTENCES]]


def _sentence(claim: Claim, found: Judgement) -> Text:
    if not found.parts:
        why = "was not measured" if found.verdict == NOT_MEASURED else f"is {found.verdict}"
        return (f"“{claim.title}” {why} (", Link(claim.id, claim.id), ").")
    told = _filled(HEADS[claim.id], found)
    begin: tuple[str | Link, ...] = (told or f"“{claim.title}”", " (", Link(claim.id, claim.id))
    return (
        (*begin, ").") if found.verdict == NOT_JUDGED else (*begin, ": ", Mark(found.verdict), ").")
    )


def _filled(template: str, found: Judgement) -> str:
    """Returns the sentence with its numbers; empty if one is missing."""
    values = {part.name: part.interval.value for part in found.parts}
    told = ""
    for text, name, how, _ in string.Formatter().parse(template):
        told += text
        if name is not None:
            value = _FORMATS[how or ""](values.get(name, math.nan))
            if not math.isfinite(value):
                return ""
            told += number(value)
    return told


_BEFORE = "Thresholds were set before the run."
_AFTER = "This scale was run before the claims of today, and their thresholds, were written."
_LEGEND: tuple[Text, ...] = (
    "B: mini-batch losses and trajectories, and A: averaging and schedules (Sandler et al. 2023). "
    "S: SWA and FGE (Izmailov et al. 2018, Garipov et al. 2018). O: found here.",
    "A number stands with its interval: 1.02 [0.94, 1.1]. It is Student's 95 % interval over seeds "
    "unless the part says otherwise. A claim of equality has 90 %: two one-sided tests at 5 %.",
    (Mark(REPRODUCED), ": the whole interval of every part lies on the wanted side."),
    (
        Mark(VERDICTS[1]),
        ": the whole interval of a part lies on the other side, at the level that Holm's method "
        "sets for all parts of the claim together.",
    ),
    (Mark(INCONCLUSIVE), ": an interval holds a threshold, or a condition is not met."),
    (Mark(NOT_MEASURED), ": the records lack what the claim needs; its section says what."),
    (Mark(NOT_JUDGED), ": a smoke test, whose numbers stand without verdicts."),
)
