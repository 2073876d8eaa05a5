"""Makes SVG figures compact, and embeds several of them in a page."""

from __future__ import annotations

import html
import re

_PROLOG = re.compile(r"<\?xml.*?\?>\s*|<!DOCTYPE.*?>\s*|<metadata>.*?</metadata>\s*", re.DOTALL)
_COMMENT = re.compile(r"\s*<!--.*?-->", re.DOTALL)
_SPACE = re.compile(r">\s+<")
# Factors of a scale are small numbers that need all their digits.
_NUMBER = re.compile(r"scale\([^)]*\)|data:[^\"]*|-?\d+\.\d{3,}")
_ID = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r"#([A-Za-z_][\w.-]*)")
_WIDTH = re.compile(r'<svg [^>]*width="([\d.]+pt)"')
# The page says this once, for all figures.
_STYLE = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)


def compact(text: str) -> str:
    """Returns the figure with coordinates to a hundredth of a point, without comments.

    >>> compact('<svg><!-- a --> <path d="M 1.23456 2.0"/> </svg>')
    '<svg><path d="M 1.23 2.0"/></svg>'
    """
    text = _COMMENT.sub("", _PROLOG.sub("", text))
    return _SPACE.sub("><", _NUMBER.sub(_rounded, text)).strip()


def _rounded(match: re.Match[str]) -> str:
    found = match.group()
    return found if found[0] in "sd" else f"{float(found) + 0.0:.2f}".rstrip("0").rstrip(".")


def inline(text: str, name: str, alt: str) -> str:
    """Returns a compact figure as an element of a page.

    Args:
        text: the text of the figure.
        name: the prefix of its ids, which must be unique on the page; the figure itself is
            svg-NAME.
        alt: the alternative text.

    >>> inline('<svg a="1"><g id="b"/><use href="#b"/></svg>', "B1", "1 & 2")  # doctest: +ELLIPSIS
    '<svg role="img" aria-label="1 &amp; 2" a="1"><g id="svg-B1"><g id="B1-b"/>...</g></svg>'
    """
    text = _STYLE.sub("", text)
    ids = set(_ID.findall(text))
    used = {found for found in _REFERENCE.findall(text) if found in ids}

    def identity(match: re.Match[str]) -> str:
        return f' id="{name}-{match.group(1)}"' if match.group(1) in used else ""

    def reference(match: re.Match[str]) -> str:
        return f"#{name}-{match.group(1)}" if match.group(1) in used else match.group()

    text = _REFERENCE.sub(reference, _ID.sub(identity, text))
    attributes = f'role="img" aria-label="{html.escape(alt, quote=True)}"'
    if width := _WIDTH.search(text):
        attributes += f' style="--w:{width.group(1)}"'  # its own width, for narrow screens
    head, body = text.split(">", 1)
    inner = body.removesuffix("</svg>")
    return f'{head.replace("<svg", f"<svg {attributes}", 1)}><g id="svg-{name}">{inner}</g></svg>'
