"""The page of a reproduction: the table of verdicts first, then what stands behind each.

Everything is drawn from the records and the ledger in the folder; the same records give
the same page, to the byte.  Text is escaped, figures are embedded, and the page's own policy
forbids scripts and anything from outside.
"""

from __future__ import annotations

import dataclasses
import html
import os
import pathlib
import re
from typing import Any

from tf_lrtraj.records import write_atomically
from tf_lrtraj.report.drawing import to_svg
from tf_lrtraj.report.reproduction import setting, svg
from tf_lrtraj.report.reproduction.entries import GROUPS, Entry, command, counts, entries, sentence
from tf_lrtraj.report.reproduction.legend import LEGEND, reasons
from tf_lrtraj.report.reproduction.plates import PLATES, SETTLED, STATIONARITY, draw
from tf_lrtraj.report.reproduction.reading import Source

__all__ = ["markdown_page", "write_page"]

_BRIEF = 2  # parts of what was measured that stand in a table
PAGE, FIGURES = "report.html", "figures"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A figure: its file's text, and its element of the page."""

    name: str
    alt: str
    caption: str
    svg: str
    element: str


def write_page(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Writes `report.html` and `figures/*.svg` from the records and `ledger.json`.

    Args:
        folder: of the reproduction.

    Returns:
        The path of the page.

    Raises:
        RecordError: if there is no ledger, or it is damaged.
        OSError: if the files cannot be written.

    >>> write_page("no/such/folder")
    Traceback (most recent call last):
    ...
    tf_lrtraj.records.RecordError: no/such/folder is not a folder, so it holds no reproduction.
    """
    import jinja2

    source = Source(folder)
    claims = entries(source)
    figures = _figures(source)
    target = source.folder / FIGURES
    target.mkdir(exist_ok=True)
    for name, figure in figures.items():
        write_atomically(target / f"{name}.svg", f"{figure.svg}\n")
    for name in sorted(PLATES.keys() - figures.keys()):
        # A figure of records that are gone must not stand beside a page without it.
        (target / f"{name}.svg").unlink(missing_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parents[1] / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(unbroken=_unbroken, sentence=sentence)
    page = environment.get_template("reproduction.html.j2").render(
        scale=setting.scale(source),
        claims=claims,
        legend=LEGEND,
        reasons=reasons(source, claims),
        command=command(source),
        counts=counts(claims),
        groups=_groups(claims),
        facts=setting.facts(source),
        stationarity=[figures[name] for name in STATIONARITY if name in figures],
        settled=next((claim for claim in claims if claim.id == SETTLED), None),
        figures=figures,
        undrawn=source.undrawn,
        problems=[*filter(None, [setting.state(source)]), *source.problems],
    )
    path = source.folder / PAGE
    # A lone surrogate, legal in JSON text, has no form in UTF-8.
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def markdown_page(folder: str | os.PathLike[str], results: str = ".") -> str:
    """The table of verdicts and a paragraph for each claim, in Markdown.

    Args:
        folder: of the reproduction; its figures are those that `write_page` wrote.
        results: the way from the document to that folder, for links to figures.

    Raises:
        RecordError: as `write_page`.
    """
    source = Source(folder)
    claims = entries(source)
    there = {path.stem for path in (source.folder / FIGURES).glob("*.svg")}
    why = reasons(source, claims)
    told = ", ".join(f"{count} {verdict}" for verdict, _, _, count in counts(claims))
    lines = [f"# The reproduction at the scale {_code(setting.scale(source))}", "", f"{told}.", ""]
    lines += [*(f"- *{_cell(term)}*: {_cell(text)}" for term, text in LEGEND), ""]
    lines += ["| id | claim | measured | verdict | figure |", "|---|---|---|---|---|"]
    for claim in claims:
        lines.append(
            f"| [{claim.id}](#{claim.id.lower()}) | {_cell(claim.sentence)} "
            f"| {_cell('; '.join(claim.decisive[:_BRIEF]) or claim.reason)}"
            f"{_because(why.get(claim.id))} "
            f"| {claim.sign} {claim.verdict} | {_links(claim, there, results)} |"
        )
    lines += ["", *(f"- {_cell(name)}: {_cell(text)}" for name, text in setting.facts(source)), ""]
    for problem in filter(None, [setting.state(source), *source.problems]):
        lines += [f"> {_cell(problem)}", ""]
    for claim in claims:
        lines += [f"## {claim.id}", "", f"**{claim.sign} {claim.verdict}.** {_paragraph(claim)}"]
        lines += ["", _code(claim.command), ""]
    return "\n".join(lines)


# Parts ----------------------------------------------------------------------------------------


def _figures(source: Source) -> dict[str, Shown]:
    found = {}
    for name in PLATES:
        plate = draw(source, name)
        if plate is None:
            continue
        text = svg.compact(to_svg(plate.figure))
        element = svg.inline(text, name, plate.alt)
        found[name] = Shown(name, plate.alt, plate.caption, text, element)
    return found


def _groups(claims: list[Entry]) -> list[tuple[str, list[Entry]]]:
    named = [(title, [c for c in claims if c.id.startswith(k)]) for k, title in GROUPS.items()]
    rest = [c for c in claims if not c.id.startswith(tuple(GROUPS))]
    return [(title, of) for title, of in [*named, ("Others", rest)] if of]


def _unbroken(text: Any) -> str:
    """A number and its unit stay on one line."""
    return str(text).replace(" %", "\u00a0%")


def _cell(text: str) -> str:
    """Text inside a Markdown table: no bars, no lines, no tags."""
    return re.sub(r"([|*_`\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _code(text: str) -> str:
    """Text as code, in which Markdown leaves everything as it is but a backtick."""
    return f"`{' '.join(text.replace('`', ' ').split())}`"


def _links(claim: Entry, there: set[str], results: str) -> str:
    names = [name for name in claim.figures if name in there]
    return ", ".join(f"[{name}]({results}/{FIGURES}/{name}.svg)" for name in names) or "–"


def _because(reason: str | None) -> str:
    return f"; {_cell(reason)}" if reason else ""


def _paragraph(claim: Entry) -> str:
    parts = [
        claim.sentence,
        claim.experiment,
        f"Threshold: {claim.threshold}" if claim.threshold else "",
        f"Measured: {claim.statistic}" if claim.statistic else "",
        claim.reason,
        *claim.notes,
    ]
    return _cell(" ".join(map(sentence, filter(None, parts))))
