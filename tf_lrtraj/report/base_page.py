"""The template of report pages: one self-contained HTML file.

Text is escaped, and the page's own policy forbids scripts and anything from outside, so a
report from elsewhere is safe to open.  The same content gives the same page, to the byte.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

TEMPLATES = pathlib.Path(__file__).parent / "templates"


def require_libraries() -> None:
    """Checks that the libraries for pages are installed.

    Raises:
        ImportError: if jinja2 or matplotlib is missing (the remedy is named).
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"a report needs jinja2 and matplotlib ({error}): pip install jinja2 matplotlib"
        ) from None


def render(
    template: str, filters: Mapping[str, Callable[..., str]] | None = None, **content: Any
) -> str:
    """Returns the page of a template.

    Args:
        template: name of the file in `templates`.
        filters: functions that the template calls on values.
        content: values of the template's names; each must be given.

    Raises:
        ImportError: as `require_libraries`.
    """
    require_libraries()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(template).render(**content)


def encoded(page: str) -> bytes:
    """Returns the bytes of a page; lone surrogates, which JSON allows and UTF-8 does not, are
    replaced."""
    return page.encode("utf-8", "replace")
