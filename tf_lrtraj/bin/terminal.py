"""Escapes control characters in the programs' output."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from absl import logging

_DIGITS = re.compile(r"\d{100,}")


def printable(text: str) -> str:
    r"""Returns `text` with escape sequences for control and formatting characters.

    Line ends, tabs, and a carriage return at the beginning (for progress bars) are kept.  Of
    numbers with a hundred digits or more only the first twenty are shown.

    >>> printable("loss\x1b[2J\n"), printable("abc\u202edef")
    ('loss\\x1b[2J\n', 'abc\\u202edef')
    """
    text = _DIGITS.sub(lambda match: f"{match[0][:20]}… ({len(match[0])} digits)", text)
    if text.isprintable():
        return text
    start = "\r" if text.startswith("\r") else ""
    return start + "".join(
        c if c.isprintable() or c in "\n\t\N{NO-BREAK SPACE}" else _escaped(c)
        for c in text[len(start) :]
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class _Escaping:
    """A stream that applies `printable` to its text."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Applies `printable` to all text that is printed or logged inside the block."""
    handler = logging.get_absl_handler().python_handler
    stream = handler.stream
    with (
        contextlib.redirect_stdout(_Escaping(sys.stdout)),
        contextlib.redirect_stderr(_Escaping(sys.stderr)),
    ):
        handler.stream = sys.stderr
        try:
            yield
        finally:
            handler.stream = stream
