"""The figures of claims by id, and simpler ones of some claims for the first screen."""

from __future__ import annotations

from tf_lrtraj.report.study import (  # noqa: F401  # each registers its figures
    cooldown_figures,
    minibatch_figures,
    schedule_figures,
    swa_figures,
    trajectory_figures,
)
from tf_lrtraj.report.study.claim_figure import FIGURES

__all__ = ["FIGURES", "HEAD"]

HEAD = "_head"  # suffix of the name of a figure for the first screen
