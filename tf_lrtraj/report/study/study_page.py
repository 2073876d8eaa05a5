"""The page of a reproduction: the findings, then each claim with its details.

One structure of blocks is made from a study and printed twice, as HTML and as Markdown.  The same
records give the same bytes.  Text is escaped, figures are embedded, and the page's own policy
forbids scripts and anything from outside.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence

from tf_lrtraj.claims import Study, write_ledger
from tf_lrtraj.records import write_atomically
from tf_lrtraj.report import base_page
from tf_lrtraj.report.drawing import UNDRAWN, reason, to_svg
from tf_lrtraj.report.study import html_printer, markdown_printer, run_table, svg
from tf_lrtraj.report.study.claim_figure import ClaimFigure
from tf_lrtraj.report.study.claim_section import section
from tf_lrtraj.report.study.first_screen import first_screen, grouped
from tf_lrtraj.report.study.page_blocks import Block, Figure, Heading, Paragraph
from tf_lrtraj.report.study.registry import FIGURES, HEAD

__all__ = ["PAGE", "markdown_page", "write_page", "write_results"]

PAGE, FOLDER = "report.html", "figures"
Figures = Mapping[str, ClaimFigure]


def write_results(folder: str | os.PathLike[str]) -> Study:
    """Judges the records in a folder once; writes `ledger.json`, the page and its figures.

    Raises:
        RecordError: if there is no such folder, or its configuration is damaged.
        OSError: if the files cannot be written.

    >>> write_results("no/such/folder")
    Traceback (most recent call last):
    ...
    tf_lrtraj.records.RecordError: no/such/folder is not a folder, so it holds no records.
    """
    study = Study(folder)
    write_ledger(study)
    write_page(study)
    return study


def write_page(study: Study, figures: Figures = FIGURES) -> pathlib.Path:
    """Writes `report.html` and `figures/*.svg` to the study's folder.

    Args:
        study: records and judgements of a reproduction.
        figures: figures as in `registry`.

    Returns:
        The path of the page.

    Raises:
        OSError: if the files cannot be written.
    """
    drawn, problems = _drawn(study, figures)
    target = study.records.folder / FOLDER
    target.mkdir(exist_ok=True)
    for name, text in drawn.items():
        write_atomically(target / f"{name}.svg", f"{text}\n")
    for path in target.glob("*.svg"):
        # Figures of removed records must not remain in the folder.
        if path.stem not in drawn:
            path.unlink()
    elements = {name: svg.inline(text, name, figures[name].alt) for name, text in drawn.items()}
    blocks = _blocks(study, figures, elements, problems)
    body = html_printer.printed(blocks, elements)
    path = study.records.folder / PAGE
    page = base_page.render("reproduction.html.j2", title=_title(study), body=body)
    write_atomically(path, base_page.encoded(page))
    return path


def markdown_page(study: Study, results: str = ".", figures: Figures = FIGURES) -> bytes:
    """Returns the same page as Markdown.

    Args:
        study: records and judgements of a reproduction.
        results: the relative path from the document to the study's folder, in which `write_page`
            wrote the figures.
        figures: figures as in `registry`.
    """
    there = {path.stem for path in (study.records.folder / FOLDER).glob("*.svg")}
    text = markdown_printer.printed(_blocks(study, figures, there), f"{results}/{FOLDER}")
    return base_page.encoded(text)


def _title(study: Study) -> str:
    return f"Reproduction at the scale {study.records.scale}"


def _blocks(
    study: Study, figures: Figures, drawn: Collection[str], problems: Sequence[str] = ()
) -> list[Block]:
    return list(_made(study, figures, drawn, problems))


def _made(
    study: Study, figures: Figures, drawn: Collection[str], problems: Sequence[str]
) -> Iterator[Block]:
    shown = {name: Figure(name, one.alt, one.caption) for name, one in figures.items()}
    run = run_table.RunState(study)
    yield Heading(1, _title(study), "top")
    yield from first_screen(study, {name: one for name, one in shown.items() if name in drawn})
    for problem in filter(None, [run.problem, *problems]):
        yield Paragraph(problem, notice=True)
    yield Heading(2, "What was run", "run")
    yield Paragraph(
        "The settings of the papers' own figures (rates, batch sizes, starting points) are not "
        "known to us. These are our choice."
    )
    yield run_table.facts(study, run)
    yield Heading(2, "What the run can decide", "power")
    yield from run_table.power(study)
    for title, members in grouped(study).items():
        yield Heading(2, title, f"group-{members[0].id[0]}")
        for claim in members:
            yield section(study, claim, shown.get(claim.id), drawn)
    yield Paragraph(
        "Made by tf_lrtraj from the records in this folder alone. lrtraj-reproduce --report_only "
        "makes it again."
    )


def _drawn(study: Study, figures: Figures) -> tuple[dict[str, str], list[str]]:
    """Returns (name → SVG text, sentences on figures that could not be drawn)."""
    found, problems = {}, []
    judged = {claim.id: found for claim, found in study.judgements.items() if found.parts}
    for name, one in figures.items():
        judgement = judged.get(name.removesuffix(HEAD))
        if judgement is None:
            continue
        try:
            if (figure := one.draw(judgement)) is not None:
                found[name] = svg.compact(to_svg(figure))
        except UNDRAWN as error:
            problems.append(f"The figure {name} could not be drawn ({reason(error)}).")
    return found, problems
