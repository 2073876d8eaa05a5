"""Figures of claims, which are drawn from the judgement of the claim alone.

A module of figures registers its functions with `draws` under the claims that they draw;
`registry` imports all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from tf_lrtraj.claims import Judgement
from tf_lrtraj.report.drawing import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, ClaimFigure] = {}  # by the claim's id


@dataclasses.dataclass(frozen=True)
class ClaimFigure:
    """The figure of a claim.

    Attributes:
        alt: the alternative text.
        caption: one or two sentences on how to read it, without numbers, which are in the table of
            parts.
        plot: judgement → figure; its `drawn` holds the curves, and its parts the intervals and
            thresholds.
    """

    alt: str
    caption: str
    plot: Callable[[Judgement], Figure]

    def draw(self, judgement: Judgement) -> Figure | None:
        """Returns the figure; None if nothing was measured."""
        if not judgement.parts:
            return None
        with style():
            return self.plot(judgement)


def draws(
    *names: str, alt: str, caption: str
) -> Callable[[Callable[[Judgement], Figure]], Callable[[Judgement], Figure]]:
    """Registers the decorated function as the figure of these claims."""

    def register(plot: Callable[[Judgement], Figure]) -> Callable[[Judgement], Figure]:
        for name in names:
            FIGURES[name] = ClaimFigure(alt, caption, plot)
        return plot

    return register
