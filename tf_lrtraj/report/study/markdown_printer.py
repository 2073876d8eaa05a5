"""Blocks as Markdown that reads well as text too: no line of more than `WIDTH` characters.

Rows of tables cannot be broken; a table with a longer row than `LONGEST` is printed as a list.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterator, Sequence

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

__all__ = ["LONGEST", "WIDTH", "printed"]

WIDTH, LONGEST = 120, 400
# What begins a heading, a list or a quotation where a line begins with it.
_BEGINS = re.compile(r"^(\d*)([-+#=.)])(?=\s|$)")


def printed(blocks: Sequence[Block], figures: str) -> str:
    """A document.

    Args:
        blocks: from top to bottom.
        figures: the way from the document to the folder of figures.

    >>> print(printed([Heading(2, "What was run", "run"), Paragraph(Link("run", "run"))], "f"))
    ## What was run
    <BLANKLINE>
    [run](#what-was-run)
    <BLANKLINE>
    """
    return _Printer(blocks, figures).document


class _Printer:
    def __init__(self, blocks: Sequence[Block], figures: str) -> None:
        self._figures = figures
        self._anchors = {heading.id: _slug(heading.text) for heading in _headings(blocks)}
        self.document = "\n".join(line for block in blocks for line in [*self._block(block), ""])

    def _block(self, block: Block) -> list[str]:
        match block:
            case Heading(level, text, _, title):
                beside = ["", *_broken(f"**{_escaped(title)}**")] if title else []
                return [f"{'#' * level} {_escaped(text)}", *beside]
            case Paragraph(text, notice):
                return self._wrapped(text, *(("> ", "> ") if notice else ()))
            case Items(items):
                return [line for item in items for line in self._wrapped(item, "- ", "  ")]
            case Table():
                return self._table(block)
            case Strip(title, cells):
                marks = [
                    f"{Mark(v).sign}\u00a0[{name}](#{self._anchor(name)})" for name, _, v in cells
                ]
                return _broken(f"{_escaped(title)}: {', '.join(marks)}")
            case Figure(name, alt, caption):
                return [*self._image(name, alt), "", *_broken(_escaped(caption))]
            case Gallery(shown):
                images = [self._image(one.name, one.alt) for one, _ in shown]
                return [line for image in images for line in [*image, ""]][:-1]
            case Section(blocks):
                return [line for one in blocks for line in [*self._block(one), ""]][:-1]
            case Fold(summary, blocks):
                inner = [line for one in blocks for line in ["", *self._block(one)]]
                begin = f"<details><summary>{_escaped(summary)}</summary>"
                return [begin, *inner, "", "</details>"]

    def _table(self, table: Table) -> list[str]:
        rows = [[self._text(text) for text in row] for row in table.rows]
        lines = [f"| {' | '.join(row)} |" for row in [[*map(_escaped, table.heads)], *rows]]
        if max(map(len, lines)) <= LONGEST:
            return [lines[0], "|---" * len(table.heads) + "|", *lines[1:]]
        told = (zip(table.heads, row, strict=True) for row in rows)
        items = ["; ".join(f"{_escaped(head)}: {text}" for head, text in row) for row in told]
        return [line for item in items for line in _broken(item, "- ", "  ")]

    def _wrapped(self, text: Text, first: str = "", rest: str = "") -> list[str]:
        return _broken(self._text(text), first, rest)

    def _text(self, text: Text) -> str:
        if isinstance(text, tuple):
            return "".join(map(self._text, text))
        match text:
            case Mark():
                return f"{text.sign} {_escaped(text.said)}"
            case Link(words, to):
                return f"[{_escaped(words)}](#{self._anchor(to)})"
            case Code(words):
                return f"`{' '.join(words.replace('`', ' ').split())}`"
            case _:
                return _escaped(text)

    def _anchor(self, name: str) -> str:
        return self._anchors.get(name, _slug(name))

    def _image(self, name: str, alt: str) -> list[str]:
        return _broken(f"![{_escaped(alt)}]({self._figures}/{name}.svg)")


def _headings(blocks: Sequence[Block]) -> Iterator[Heading]:
    for block in blocks:
        if isinstance(block, Heading):
            yield block
        elif isinstance(block, (Section, Fold)):
            yield from _headings(block.blocks)


def _slug(text: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def _escaped(text: str) -> str:
    """Text in which Markdown sees nothing of its own: no bars, lines, tags or formulas."""
    whole = re.sub(r"\s+", " ", text)
    return html.escape(re.sub(r"([\\|*_`\[\]$~])", r"\\\1", whole), quote=False)


def _broken(text: str, first: str = "", rest: str = "") -> list[str]:
    """Lines that are at most `WIDTH` long, and that begin nothing by accident."""
    lines = textwrap.wrap(
        text,
        WIDTH - len(rest),
        break_long_words=any(len(word) > LONGEST for word in text.split()),
        break_on_hyphens=False,
    )
    kept = [_BEGINS.sub(r"\1\\\2", line) for line in lines]
    return [(rest if i else first) + line for i, line in enumerate(kept)]
