"""What all figures share: colours, style, panels, and text of a drawn figure."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # matplotlib takes a second to import, and text needs none of it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#332288", "#000000")
GREY = "#7a7a7a"
BLUE, ORANGE, GREEN = PALETTE[:3]


# What drawing raises where a record lacks something, or holds something else.
UNDRAWN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)


def reason(error: BaseException) -> str:
    """Why a figure could not be drawn, on one line.

    >>> reason(KeyError("loss"))
    "KeyError: 'loss'"
    """
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def style() -> Iterator[None]:
    """A block in which figures are drawn and saved in this package's style."""
    import matplotlib

    # From the defaults, not from the user's own settings: the same records, the same figure.
    settings: Any = {
        **{k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")},
        "font.family": ["DejaVu Sans"],
        "font.size": 9.0,
        "axes.edgecolor": "#444444",
        "axes.labelcolor": "#333333",
        "axes.linewidth": 0.8,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.7,
        "xtick.color": "#444444",
        "ytick.color": "#444444",
        "svg.fonttype": "path",
        "svg.hashsalt": "tf_lrtraj",
    }
    with matplotlib.rc_context(settings):
        yield


@functools.cache
def _figure_class() -> type[Figure]:
    """Figures that a notebook shows by themselves, also where pyplot is not set up there."""
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            with style():
                buffer = io.BytesIO()
                self.savefig(buffer, format="png", dpi=96)
            return buffer.getvalue()

    return NotebookFigure


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `width` by `height` inches and its panels, row by row."""
    figure = _figure_class()(figsize=(width, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for one in axes:
        one.set_axisbelow(True)
    return figure, axes


def title(axes: Axes, text: str) -> None:
    """A panel's title, at its left."""
    axes.set_title(text, loc="left", fontsize=9.5, color="#222222")


def to_svg(figure: Figure) -> str:
    """The figure as SVG text; the same figure gives the same text."""
    with style():
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None}
        )
    return buffer.getvalue()
