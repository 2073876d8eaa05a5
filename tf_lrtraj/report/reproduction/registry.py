"""The figure of every claim, by the claim's id."""

from __future__ import annotations

from tf_lrtraj.report.reproduction import minibatch, schedules, swa, trajectory
from tf_lrtraj.report.reproduction.claim_figure import ClaimFigure

__all__ = ["FIGURES"]

FIGURES: dict[str, ClaimFigure] = {
    **minibatch.FIGURES,
    **trajectory.FIGURES,
    **schedules.FIGURES,
    **swa.FIGURES,
}
