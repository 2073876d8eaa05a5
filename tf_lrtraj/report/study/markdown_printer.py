"""Prints blocks as Markdown that is readable as text, in lines of at most `WIDTH` characters.

Rows of tables cannot be broken; a table with a longer row than `LONGEST` is printed as a list.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterator, Sequence

from tf_lrtraj.report.study import page_blocks as blocks

WIDTH, LONGEST = 120, 400
# Texts that begin a heading, a list or a quotation at the start of a line.
_BEGINS = re.compile(r"^(\d*)([-+#=.)])(?=\s|$)")


def printed(page: Sequence[blocks.Block], figures: str) -> str:
    """Returns a document.

    Args:
        page: its blocks, from top to bottom.
        figures: the relative path from the document to the folder of figures.

    >>> from tf_lrtraj.report.study.page_blocks import Heading, Link, Paragraph
    >>> print(printed([Heading(2, "What was run", "run"), Paragraph(Link("run", "run"))], "f"))
    ## What was run
    <BLANKLINE>
    [run](#what-was-run)
    <BLANKLINE>
    """
    printer = _Markdown(page, figures)
    return "\n".join(line for block in page for line in [*printer.block(block), ""])


class _Markdown(blocks.Printer):
    """Blocks as lists of lines."""

    def __init__(self, page: Sequence[blocks.Block], figures: str) -> None:
        self._figures = figures
        self._anchors = {heading.id: _slug(heading.text) for heading in _headings(page)}

    def escaped(self, text: str) -> str:
        """Escapes text for Markdown: no bars, lines, tags or formulas."""
        whole = re.sub(r"\s+", " ", text)
        return html.escape(re.sub(r"([\\|*_`\[\]$~])", r"\\\1", whole), quote=False)

    def heading(self, block: blocks.Heading) -> list[str]:
        beside = ["", *_wrapped(f"**{self.escaped(block.title)}**")] if block.title else []
        return [f"{'#' * block.level} {self.escaped(block.text)}", *beside]

    def paragraph(self, block: blocks.Paragraph) -> list[str]:
        return _wrapped(self.text(block.text), *(("> ", "> ") if block.notice else ()))

    def items(self, block: blocks.Items) -> list[str]:
        return [line for item in block.items for line in _wrapped(self.text(item), "- ", "  ")]

    def table(self, block: blocks.Table) -> list[str]:
        heads = [self.escaped(head) for head in block.heads]
        rows = [[self.text(text) for text in row] for row in block.rows]
        lines = [f"| {' | '.join(row)} |" for row in [heads, *rows]]
        if max(map(len, lines)) <= LONGEST:
            return [lines[0], "|---" * len(heads) + "|", *lines[1:]]
        told = (zip(heads, row, strict=True) for row in rows)
        items = ["; ".join(f"{head}: {text}" for head, text in row) for row in told]
        return [line for item in items for line in _wrapped(item, "- ", "  ")]

    def strip(self, block: blocks.Strip) -> list[str]:
        marks = [
            f"{blocks.Mark(verdict).sign}\u00a0[{name}](#{self._anchor(name)})"
            for name, _, verdict in block.cells
        ]
        return _wrapped(f"{self.escaped(block.title)}: {', '.join(marks)}")

    def figure(self, block: blocks.Figure) -> list[str]:
        return [*self._image(block), "", *_wrapped(self.escaped(block.caption))]

    def gallery(self, block: blocks.Gallery) -> list[str]:
        return _separated([self._image(figure) for figure, _ in block.figures])

    def section(self, block: blocks.Section) -> list[str]:
        return _separated([self.block(one) for one in block.blocks])

    def fold(self, block: blocks.Fold) -> list[str]:
        begin = f"<details><summary>{self.escaped(block.summary)}</summary>"
        return [begin, "", *self.section(blocks.Section(block.blocks)), "", "</details>"]

    def mark(self, piece: blocks.Mark) -> str:
        return f"{piece.sign} {self.escaped(piece.said)}"

    def link(self, piece: blocks.Link) -> str:
        return f"[{self.escaped(piece.text)}](#{self._anchor(piece.to)})"

    def code(self, piece: blocks.Code) -> str:
        return f"`{' '.join(piece.text.replace('`', ' ').split())}`"

    def _anchor(self, name: str) -> str:
        return self._anchors.get(name, _slug(name))

    def _image(self, figure: blocks.Figure) -> list[str]:
        return _wrapped(f"![{self.escaped(figure.alt)}]({self._figures}/{figure.name}.svg)")


def _separated(parts: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of several parts, with a blank line between them."""
    return [line for part in parts for line in [*part, ""]][:-1]


def _headings(page: Sequence[blocks.Block]) -> Iterator[blocks.Heading]:
    for block in page:
        if isinstance(block, blocks.Heading):
            yield block
        elif isinstance(block, (blocks.Section, blocks.Fold)):
            yield from _headings(block.blocks)


def _slug(text: str) -> str:
    """Returns GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    """Breaks text into lines of at most `WIDTH` characters that do not begin a Markdown element."""
    lines = textwrap.wrap(
        text,
        WIDTH - len(rest),
        break_long_words=any(len(word) > LONGEST for word in text.split()),
        break_on_hyphens=False,
    )
    kept = [_BEGINS.sub(r"\1\\\2", line) for line in lines]
    return [(rest if i else first) + line for i, line in enumerate(kept)]
