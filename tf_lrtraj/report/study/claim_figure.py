"""The figure of a claim: drawn from what its judge judged, and from nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from tf_lrtraj.claims import Judgement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ClaimFigure"]


@dataclasses.dataclass(frozen=True)
class ClaimFigure:
    """How a claim is drawn.

    Attributes:
        alt: what it shows, for those who do not see it.
        caption: one or two sentences that tell how to read it, without numbers: these stand in
            the table of parts.
        draw: the judgement, whose `drawn` holds what is drawn and whose parts hold the intervals
            and thresholds → the figure; None where there is nothing to draw.
    """

    alt: str
    caption: str
    draw: Callable[[Judgement], Figure | None]
