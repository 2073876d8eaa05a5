"""Prints blocks as HTML of a self-contained page: all text is escaped, figures are embedded."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from tf_lrtraj.report.study import page_blocks as blocks
from tf_lrtraj.report.study.registry import HEAD

_UNIT = re.compile(r"(?<=\d) (?=%)")


def printed(page: Sequence[blocks.Block], figures: Mapping[str, str]) -> str:
    """Returns the body of a page.

    Args:
        page: its blocks, from top to bottom.
        figures: name → SVG element, whose content has the id svg-NAME.

    >>> from tf_lrtraj.report.study.page_blocks import Link, Paragraph
    >>> print(printed([Paragraph(("1 < 2, ", Link("see", "B1")))], {}), end="")
    <p>1 &lt; 2, <a href="#B1">see</a></p>
    """
    return _Html(figures).all(page)


class _Html(blocks.Printer):
    def __init__(self, figures: Mapping[str, str]) -> None:
        self._figures = figures

    def all(self, page: Sequence[blocks.Block]) -> str:
        return "".join(f"{self.block(block)}\n" for block in page)

    def escaped(self, text: str) -> str:
        """A number and its unit stay on one line."""
        return html.escape(_UNIT.sub("\u00a0", text), quote=True)

    def heading(self, block: blocks.Heading) -> str:
        told = f"{block.text}. {block.title}" if block.title else block.text
        tag = f"h{block.level}"
        return f'<{tag} id="{self.escaped(block.id)}">{self.escaped(told)}</{tag}>'

    def paragraph(self, block: blocks.Paragraph) -> str:
        kind = ' class="notice"' if block.notice else ""
        return f"<p{kind}>{self.text(block.text)}</p>"

    def items(self, block: blocks.Items) -> str:
        return f"<ul>{''.join(f'<li>{self.text(item)}</li>' for item in block.items)}</ul>"

    def table(self, block: blocks.Table) -> str:
        heads = "".join(f'<th scope="col">{self.escaped(head)}</th>' for head in block.heads)
        rows = []
        for first, *rest in block.rows:
            # On narrow screens rows are stacked, and each entry has a label.
            entries = "".join(
                f'<td data-head="{self.escaped(head)}">{self.text(text)}</td>'
                for head, text in zip(block.heads[1:], rest, strict=True)
            )
            rows.append(f'<tr><th scope="row">{self.text(first)}</th>{entries}</tr>')
        kind = "" if len(block.heads) < 3 else ' class="wide"'
        return f"<table{kind}><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def strip(self, block: blocks.Strip) -> str:
        cells = ""
        for name, title, verdict in block.cells:
            mark, told = blocks.Mark(verdict), self.escaped(f"{name}, {verdict}: {title}")
            cells += (
                f'<li><a class="cell {mark.kind}" href="#{self.escaped(name)}" title="{told}" '
                f'aria-label="{told}">{mark.sign} {self.escaped(name)}</a></li>'
            )
        return f'<div class="strip"><p>{self.escaped(block.title)}</p><ul>{cells}</ul></div>'

    def figure(self, block: blocks.Figure) -> str:
        return (
            f'<figure id="figure-{self.escaped(block.name)}">'
            f'<div class="pan">{self._figures[block.name]}</div>'
            f"<figcaption>{self.escaped(block.caption)}</figcaption></figure>"
        )

    def gallery(self, block: blocks.Gallery) -> str:
        shown = "".join(self._small(figure, title) for figure, title in block.figures)
        return f'<div class="gallery">{shown}</div>'

    def _small(self, figure: blocks.Figure, title: str) -> str:
        """Refers to a drawing that is elsewhere on the page."""
        name, drawing = self.escaped(figure.name.removesuffix(HEAD)), self._figures[figure.name]
        if not figure.name.endswith(HEAD):
            box = re.search(r'viewBox="[^"]*"', drawing)
            drawing = (
                f'<svg role="img" aria-label="{self.escaped(figure.alt)}" '
                f'{box.group() if box else ""}><use href="#svg-{name}"/></svg>'
            )
        return f'<a href="#{name}">{drawing}<span>{self.escaped(title)}</span></a>'

    def section(self, block: blocks.Section) -> str:
        return f"<section>\n{self.all(block.blocks)}</section>"

    def fold(self, block: blocks.Fold) -> str:
        summary = self.escaped(block.summary)
        return f"<details><summary>{summary}</summary>\n{self.all(block.blocks)}</details>"

    def mark(self, piece: blocks.Mark) -> str:
        sign = f'<span class="sign" aria-hidden="true">{piece.sign}</span>'
        return f'<span class="mark {piece.kind}">{sign} {self.escaped(piece.said)}</span>'

    def link(self, piece: blocks.Link) -> str:
        return f'<a href="#{self.escaped(piece.to)}">{self.escaped(piece.text)}</a>'

    def code(self, piece: blocks.Code) -> str:
        return f"<code>{self.escaped(piece.text)}</code>"
