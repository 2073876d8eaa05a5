"""The figure of every claim by the claim's id, and of some a simpler one for the first screen."""

from __future__ import annotations

from tf_lrtraj.report.reproduction import minibatch, schedules, swa, trajectory
from tf_lrtraj.report.reproduction.claim_figure import ClaimFigure

__all__ = ["FIGURES", "HEAD"]

HEAD = "_head"  # what the name of a figure for the first screen ends with

FIGURES: dict[str, ClaimFigure] = {
    **minibatch.FIGURES,
    **trajectory.FIGURES,
    **schedules.FIGURES,
    **swa.FIGURES,
    **{f"{name}{HEAD}": figure for name, figure in minibatch.HEADS.items()},
}
