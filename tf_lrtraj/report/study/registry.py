"""The figure of every claim by the claim's id, and of some a simpler one for the first screen."""

from __future__ import annotations

from tf_lrtraj.report.study import (
    minibatch_figures,
    schedule_figures,
    swa_figures,
    trajectory_figures,
)
from tf_lrtraj.report.study.claim_figure import ClaimFigure

__all__ = ["FIGURES", "HEAD"]

HEAD = "_head"  # what the name of a figure for the first screen ends with

FIGURES: dict[str, ClaimFigure] = {
    **minibatch_figures.FIGURES,
    **trajectory_figures.FIGURES,
    **schedule_figures.FIGURES,
    **swa_figures.FIGURES,
    **{f"{name}{HEAD}": figure for name, figure in minibatch_figures.HEADS.items()},
}
