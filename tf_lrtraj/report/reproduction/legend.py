"""How to read the page of a reproduction, and what stands behind numbers that surprise."""

from __future__ import annotations

import contextlib

import numpy as np

from tf_lrtraj.claims.verdicts import NOT_REPRODUCED
from tf_lrtraj.report.reproduction.entries import GROUPS, SIGNS, Entry
from tf_lrtraj.report.reproduction.marks import by_seed
from tf_lrtraj.report.reproduction.reading import Source

__all__ = ["LEGEND", "reasons"]

# (term, what it means), in the order shown.
LEGEND = (
    *((f"{letter} and a number", f"a claim about {what}") for letter, what in (
        ("B", f"{GROUPS['B'][0].lower()}{GROUPS['B'][1:]} (Sandler et al. 2023)"),
        ("A", f"{GROUPS['A'][0].lower()}{GROUPS['A'][1:]} (Sandler et al. 2023)"),
        ("S", f"{GROUPS['S']} (Izmailov et al. 2018, Garipov et al. 2018)"),
    )),
    (
        "1.02 [0.944, 1.1]",
        "a mean and its 95 % interval: over seeds, or, with fewer than three, over batches or "
        "iterates of the runs; A1 and A4 ask whether things are equal, with intervals of 90 %",
    ),
    ("wanted: below 1", "the threshold, which was set before anything was run"),
    (f"{SIGNS['reproduced']} reproduced", "every interval lies wholly on the wanted side"),
    (
        f"{SIGNS['not reproduced']} not reproduced",
        "an interval lies wholly on the other side: at this scale, with these settings",
    ),
    (
        f"{SIGNS['inconclusive']} inconclusive",
        "an interval holds the threshold, or a condition of the measurement is not met",
    ),
    (f"{SIGNS['not run at this scale']} not run at this scale", "there is no record of it"),
)  # fmt: skip


def reasons(source: Source, claims: list[Entry]) -> dict[str, str]:
    """Claim → a sentence on why its numbers are what they are, from the records alone."""
    found = {}
    if any(claim.id == "S1" and claim.verdict == NOT_REPRODUCED for claim in claims):
        # What records of another shape do not tell is left out.
        with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError, OverflowError):
            found["S1"] = _short_budget(source)
    return {name: text for name, text in found.items() if text}


def _short_budget(source: Source) -> str:
    """Why SWA stays behind a run that decays: it does so on training images already."""
    records = source.tasks["budget"]

    def accuracy(method: str) -> float:
        found = by_seed(records, "accuracy", method=method, set="train_part")
        return 100.0 * float(np.mean(list(found.values())))

    about = records[min(records)]["about"]
    base = source.tasks["base"]
    data = base[min(base)]["about"]
    epochs = float(about["total"]) * float(source.config["batch_size"]) / float(data["num_train"])
    plain, swa = accuracy("conventional"), accuracy("swa_constant")
    if not swa < plain:
        return ""
    return (
        f"the budget is short, {epochs:.3g} epochs where the paper trains for 150 and more: SWA at "
        "a constant rate lies behind the decayed run on training images already, "
        f"{swa:.3g} against {plain:.3g} %"
    )
