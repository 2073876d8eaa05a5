"""The section of a claim: verdict, figure, measured parts, and folded details."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from tf_lrtraj.claims import Claim, Judgement, Study
from tf_lrtraj.claims.verdicts import (
    INCONCLUSIVE,
    NOT_JUDGED,
    NOT_REPRODUCED,
    REPRODUCED,
    Condition,
    Part,
    bounds_shown,
    shown,
)
from tf_lrtraj.report.study.page_blocks import (
    Block,
    Code,
    Figure,
    Fold,
    Heading,
    Items,
    Mark,
    Paragraph,
    Section,
    Table,
)
from tf_lrtraj.statistics import LEVEL

_PART = {REPRODUCED: "holds", NOT_REPRODUCED: "fails", INCONCLUSIVE: "undecided"}


def section(study: Study, claim: Claim, figure: Figure | None, drawn: Collection[str]) -> Section:
    """Returns the section of a claim.

    Args:
        study: the study with its judgements.
        claim: one of its claims.
        figure: the figure of the claim; None if none is registered.
        drawn: names of the figures that could be drawn.
    """
    found = study.judgements[claim]
    blocks: list[Block] = [
        Heading(3, claim.id, claim.id, claim.title),
        Paragraph(claim.sentence),
        Paragraph((Mark(found.verdict), f". {found.reason}")),
    ]
    if figure is not None and figure.name in drawn:
        blocks.append(figure)
    elif figure is not None and found.parts:
        blocks.append(Paragraph("The figure could not be drawn from these records."))
    if found.parts:
        blocks.append(_parts(found))
    if found.conditions:
        blocks.append(_conditions(found))
    blocks.append(Fold("How it is measured", list(_details(study, claim, found))))
    return Section(blocks)


def _parts(found: Judgement) -> Table:
    def mark(part: Part) -> Mark:
        if found.verdict == NOT_JUDGED:
            return Mark(NOT_JUDGED)
        return Mark(part.verdict, _PART[part.verdict])

    def measured(part: Part) -> str:
        level = part.wanted.level
        told = shown(part.interval)
        return told if level == LEVEL or "[" not in told else f"{told} ({100 * level:g} %)"

    return Table(
        ("Part", "Measured", "Wanted", "Verdict"),
        [
            (p.what, measured(p), bounds_shown(p.wanted.low, p.wanted.high), mark(p))
            for p in found.parts
        ],
    )


def _conditions(found: Judgement) -> Table:
    def mark(condition: Condition) -> Mark:
        if found.verdict == NOT_JUDGED:
            return Mark(NOT_JUDGED)
        return Mark(REPRODUCED, "met") if condition.is_met else Mark(NOT_REPRODUCED, "not met")

    def wanted(c: Condition) -> str:
        return "" if c.low is None and c.high is None else bounds_shown(c.low, c.high)

    return Table(
        ("Condition", "Measured", "Wanted", "Met"),
        [(c.what, shown(c.interval), wanted(c), mark(c)) for c in found.conditions],
    )


def _details(study: Study, claim: Claim, found: Judgement) -> Iterator[Block]:
    command = study.records.config.get("command", "lrtraj-reproduce --config=…")
    yield Items(
        [
            f"Claimed by: {claim.source}",
            f"Measured: {claim.experiment}",
            f"Thresholds: {claim.argument}",
            ("Records: ", *_listed(claim.records)),
            ("Command: ", Code(f"{command} --workdir=… --claims={claim.id}")),
        ]
    )
    if found.notes:
        yield Items(found.notes)
    if found.numbers:
        rows = [(told.what, shown(told.interval)) for told in found.numbers]
        yield Table(("Number that decides nothing", "Measured"), rows)


def _listed(names: tuple[str, ...]) -> Iterator[Code | str]:
    for i, name in enumerate(names):
        if i:
            yield ", "
        yield Code(name)
