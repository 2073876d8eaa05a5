"""The blocks of a reproduction's page, for all output formats.

`html_printer` and `markdown_printer` print the same blocks, each by its own `Printer`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tf_lrtraj.claims.verdicts import (
    INCONCLUSIVE,
    NOT_JUDGED,
    NOT_MEASURED,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    SIGNS,
)

# Verdict → its class of the style.
_KINDS = {
    REPRODUCED: "yes",
    NOT_REPRODUCED: "no",
    INCONCLUSIVE: "open",
    NOT_MEASURED: "blank",
    NOT_RUN: "none",
    NOT_JUDGED: "plain",
}


@dataclasses.dataclass(frozen=True)
class Mark:
    """A verdict: a sign and a word; `word` replaces the verdict's own."""

    verdict: str
    word: str = ""

    @property
    def sign(self) -> str:
        return SIGNS[self.verdict]

    @property
    def kind(self) -> str:
        return _KINDS[self.verdict]

    @property
    def said(self) -> str:
        return self.word or self.verdict


@dataclasses.dataclass(frozen=True)
class Link:
    """A link to the section or heading with the id `to`."""

    text: str
    to: str


@dataclasses.dataclass(frozen=True)
class Code:
    """Text to be typed, such as a command."""

    text: str


Piece = str | Mark | Link | Code
Text = Piece | tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3; links lead to its `id`.

    A heading with a `title` has a short name as its text, followed by the title.
    """

    level: int
    text: str
    id: str
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A paragraph; with `notice` it is highlighted."""

    text: Text
    notice: bool = False


@dataclasses.dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[Text]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with heads; the first entry of a row is its name."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[Text, ...]]


@dataclasses.dataclass(frozen=True)
class Strip:
    """A cell for each claim of a group: (id, title, verdict)."""

    title: str
    cells: Sequence[tuple[str, str, str]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure, `figures/NAME.svg`."""

    name: str
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Small figures of the first screen, side by side, with their titles."""

    figures: Sequence[tuple[Figure, str]]


@dataclasses.dataclass(frozen=True)
class Section:
    """Blocks about one topic; the first is the heading."""

    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Fold:
    """Blocks that fold out below a summary."""

    summary: str
    blocks: Sequence[Block]


Block = Heading | Paragraph | Items | Table | Strip | Figure | Gallery | Section | Fold


class Printer:
    """Prints blocks and pieces of text, each by the method named after its class."""

    def block(self, block: Block) -> Any:
        return getattr(self, type(block).__name__.lower())(block)

    def text(self, text: Text) -> str:
        if isinstance(text, tuple):
            return "".join(map(self.text, text))
        if isinstance(text, str):
            return self.escaped(text)
        return str(getattr(self, type(text).__name__.lower())(text))

    def escaped(self, text: str) -> str:
        """Escapes text, so that nothing in it is markup."""
        raise NotImplementedError
