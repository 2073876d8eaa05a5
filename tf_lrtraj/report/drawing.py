"""Shared parts of figures: colours, style, panels, axes, legends, notes, marks of seeds."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # matplotlib takes a second to import, and text output does not need it
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from tf_lrtraj.statistics import Interval

# Okabe and Ito's palette, which colour-blind readers can distinguish.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#332288", "#000000")
GREY = "#7a7a7a"
BLUE, ORANGE, GREEN = PALETTE[:3]
INK = "#333333"
DASHED = (0, (4, 2))


# Errors of drawing when a record lacks an entry, or holds one of another kind.
UNDRAWN = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)


def reason(error: BaseException) -> str:
    """Returns in one line why a figure could not be drawn.

    >>> reason(KeyError("loss"))
    "KeyError: 'loss'"
    """
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Sets the style of this package for figures inside a block."""
    import matplotlib

    # From the defaults, not the user's settings, so that the same records give the same figure.
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
    """Returns a class of figures that a notebook displays, also if pyplot is not configured."""
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            with style():
                buffer = io.BytesIO()
                self.savefig(buffer, format="png", dpi=96)
            return buffer.getvalue()

    return NotebookFigure


def notebook_figure(**options: Any) -> Figure:
    """Returns a Matplotlib figure that a notebook displays; `options` are those of `Figure`."""
    return _figure_class()(**options)


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Returns a figure of `width` by `height` inches and its panels, row by row."""
    figure = notebook_figure(figsize=(width, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for one in axes:
        one.set_axisbelow(True)
    return figure, axes


def title(axes: Axes, text: str) -> None:
    """Writes a panel's title, at its left."""
    axes.set_title(text, loc="left", fontsize=9.5, color="#222222")


def labels(axes: Axes, x: str = "", y: str = "", heading: str = "") -> None:
    """Writes the labels of a panel's axes, and its title, if given."""
    if x:
        axes.set_xlabel(x)
    if y:
        axes.set_ylabel(y)
    if heading:
        title(axes, heading)


def log_ticks(axes: Axes, values: Any, base: float = 10.0) -> None:
    """Makes the x axis logarithmic, with a label for each of a few integers."""
    axes.set_xscale("log", base=base)
    axes.set_xticks(values, [f"{value:,.0f}" for value in values])
    axes.minorticks_off()


def sparse_log_ticks(axis: Axis) -> None:
    """Labels a logarithmic axis, such as `axes.xaxis`, at 1, 3, 10, 30, … only."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())


def columns(axes: Axes, names: Sequence[str], label: str = "") -> None:
    """Makes a column of a panel for each name."""
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xticks(range(len(names)), names)
    axes.grid(axis="x", visible=False)
    labels(axes, label)


def rows(axes: Axes, names: Sequence[str], top: float = -0.6, size: float | None = None) -> None:
    """Makes a row of a panel for each name, from the top down."""
    axes.set_ylim(len(names) - 1.0 - top, top)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.grid(axis="y", visible=False)


def legend(
    figure: Figure,
    columns: int = 2,
    *,
    panel: Axes | None = None,
    loc: str = "outside upper left",
    size: float | None = 8.5,
) -> None:
    """Draws a legend outside the panels, for the marks of one panel or of all."""
    style: Any = {"loc": loc, "ncols": columns, "frameon": False, "fontsize": size}
    if panel is None:
        figure.legend(**style)
    else:
        figure.legend(*panel.get_legend_handles_labels(), **style)


def note(figure: Figure, text: str, size: float = 7.5) -> None:
    """Writes a note below a figure."""
    figure.supxlabel(text, fontsize=size, color=GREY, x=0.01, ha="left")


def corner_names(axes: Axes, names: Mapping[str, str], top: float = 0.97, **text: Any) -> None:
    """Writes names in their colours {name: colour} at the upper left."""
    for place, (name, color) in enumerate(names.items()):
        axes.annotate(
            name, (0.03, top), xycoords="axes fraction", xytext=(0, -11 * place),
            textcoords="offset points", color=color, fontsize=8.5, va="top", **text,
        )  # fmt: skip


def dots(
    axes: Axes, place: float, values: Any, color: str, spread: float = 0.14, **marks: Any
) -> None:
    """Draws the numbers of seeds side by side."""
    values = np.ravel(values)
    at = place + (np.linspace(-spread, spread, len(values)) if len(values) > 1 else np.zeros(1))
    marks = marks or {"markersize": 4.5, "alpha": 0.5, "markeredgewidth": 0}
    axes.plot(at, values, "o", color=color, **marks)


def seed_lines(
    axes: Axes, x: Any, curves: Any, color: str, mark: str = "-", thin: float = 0.8, **mean: Any
) -> np.ndarray:
    """Draws a thin line for each seed of [seed, x] and a thick one for the mean; returns the
    mean."""
    table = np.asarray(curves, np.float64)
    axes.plot(x, table.T, color=color, linewidth=thin, alpha=0.45)
    middle: np.ndarray = table.mean(axis=0)
    axes.plot(x, middle, mark, color=color, **({"linewidth": 2.0} | mean))
    return middle


def value_bar(
    axes: Axes,
    place: float,
    found: Interval,
    color: str,
    along: str = "y",
    *,
    size: float = 14.0,
    width: float = 1.6,
    caps: float = 4.0,
) -> None:
    """Draws a number with its interval, if any, along one axis at a place on the other."""
    value, low, high = found
    bar: Any = [[value - low], [high - value]] if np.isfinite([low, high]).all() else None
    x, y, xerr, yerr = (place, value, None, bar) if along == "y" else (value, place, bar, None)
    axes.errorbar(
        [x], [y], xerr=xerr, yerr=yerr, fmt="_" if along == "y" else "|", color=color,
        markersize=size, linewidth=width, capsize=caps,
    )  # fmt: skip


def end(x: Any, y: Any, color: str) -> tuple[float, float, str]:
    """Returns the right end of a curve with its colour, for `label_ends`."""
    return float(x[-1]), float(y[-1]), color


def interval_row(
    axes: Axes,
    place: float,
    found: Interval,
    color: str,
    mark: str = "o",
    *,
    line: str = "",
    linewidth: float,
    alpha: float | None = None,
    markersize: float = 6.0,
) -> None:
    """Draws a number in a row of a panel, with a line for its interval (none if infinite)."""
    axes.plot(
        [found.low, found.high], [place] * 2, color=line or color, linewidth=linewidth, alpha=alpha
    )
    axes.plot([found.value], [place], mark, color=color, markersize=markersize)


def to_svg(figure: Figure) -> str:
    """Returns the figure as SVG text; the same figure gives the same text."""
    with style():
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None}
        )
    return buffer.getvalue()
