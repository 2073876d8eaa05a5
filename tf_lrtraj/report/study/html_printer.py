"""Blocks as the HTML of a self-contained page: everything escaped, figures embedded."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from tf_lrtraj.report.study.page_blocks import (
    Block,
    Code,
    Figure,
    Fold,
    Gallery,
    Heading,
    Items,
    Link,
    Mark,
    Paragraph,
    Section,
    Strip,
    Table,
    Text,
)
from tf_lrtraj.report.study.registry import HEAD

__all__ = ["printed"]

_UNIT = re.compile(r"(?<=\d) (?=%)")


def printed(blocks: Sequence[Block], figures: Mapping[str, str]) -> str:
    """The body of a page.

    Args:
        blocks: from top to bottom.
        figures: name → SVG element, whose content has the id svg-NAME.

    >>> print(printed([Paragraph(("1 < 2, ", Link("see", "B1")))], {}), end="")
    <p>1 &lt; 2, <a href="#B1">see</a></p>
    """
    return "".join(f"{_block(block, figures)}\n" for block in blocks)


def _block(block: Block, figures: Mapping[str, str]) -> str:
    match block:
        case Heading(level, text, name, title):
            told = f"{text}. {title}" if title else text
            return f'<h{level} id="{_escaped(name)}">{_escaped(told)}</h{level}>'
        case Paragraph(text, notice):
            kind = ' class="notice"' if notice else ""
            return f"<p{kind}>{_text(text)}</p>"
        case Items(items):
            return f"<ul>{''.join(f'<li>{_text(item)}</li>' for item in items)}</ul>"
        case Table():
            return _table(block)
        case Strip(title, cells):
            inner = "".join(_cell(*cell) for cell in cells)
            return f'<div class="strip"><p>{_escaped(title)}</p><ul>{inner}</ul></div>'
        case Figure(name, _, caption):
            return (
                f'<figure id="figure-{_escaped(name)}"><div class="pan">{figures[name]}</div>'
                f"<figcaption>{_escaped(caption)}</figcaption></figure>"
            )
        case Gallery(shown):
            return f'<div class="gallery">{"".join(_small(*one, figures) for one in shown)}</div>'
        case Section(blocks):
            return f"<section>\n{printed(blocks, figures)}</section>"
        case Fold(summary, blocks):
            inner = printed(blocks, figures)
            return f"<details><summary>{_escaped(summary)}</summary>\n{inner}</details>"


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{_escaped(head)}</th>' for head in table.heads)
    rows = []
    for first, *rest in table.rows:
        # On narrow screens rows are stacked, and each entry says what it is.
        entries = "".join(
            f'<td data-head="{_escaped(head)}">{_text(text)}</td>'
            for head, text in zip(table.heads[1:], rest, strict=True)
        )
        rows.append(f'<tr><th scope="row">{_text(first)}</th>{entries}</tr>')
    kind = "" if len(table.heads) < 3 else ' class="wide"'
    return f"<table{kind}><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(name: str, title: str, verdict: str) -> str:
    mark, told = Mark(verdict), _escaped(f"{name}, {verdict}: {title}")
    return (
        f'<li><a class="cell {mark.kind}" href="#{_escaped(name)}" title="{told}" '
        f'aria-label="{told}">{mark.sign} {_escaped(name)}</a></li>'
    )


def _small(figure: Figure, title: str, figures: Mapping[str, str]) -> str:
    """A drawing that stands elsewhere on the page is referred to."""
    name, drawing = _escaped(figure.name.removesuffix(HEAD)), figures[figure.name]
    if not figure.name.endswith(HEAD):
        box = re.search(r'viewBox="[^"]*"', drawing)
        drawing = (
            f'<svg role="img" aria-label="{_escaped(figure.alt)}" {box.group() if box else ""}>'
            f'<use href="#svg-{name}"/></svg>'
        )
    return f'<a href="#{name}">{drawing}<span>{_escaped(title)}</span></a>'


def _text(text: Text) -> str:
    if isinstance(text, tuple):
        return "".join(map(_text, text))
    match text:
        case Mark():
            sign = f'<span class="sign" aria-hidden="true">{text.sign}</span>'
            return f'<span class="mark {text.kind}">{sign} {_escaped(text.said)}</span>'
        case Link(words, to):
            return f'<a href="#{_escaped(to)}">{_escaped(words)}</a>'
        case Code(words):
            return f"<code>{_escaped(words)}</code>"
        case _:
            return _escaped(text)


def _escaped(text: str) -> str:
    """A number and its unit stay on one line."""
    return html.escape(_UNIT.sub("\u00a0", text), quote=True)
