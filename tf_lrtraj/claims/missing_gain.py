"""Claim O3: what an average lacks of a cooldown's gain.

With fixed curvature the mean of the last n iterates has at least the gain of the linear decay over
them, whatever the spectrum (docs/theory/decays.md).  The next order lets the noise hold slow
directions away from the valley's floor: a decay lets go of them and an average does not.  It
predicts the missing loss M > 0 as a function of rate times length; a floor that is lower after a
cooldown than after an average, and that rises back at the full rate; and a Hessian that is sharper
at a cooldown's end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import optimize

from tf_lrtraj.claims.records_reader import Measured, Records
from tf_lrtraj.claims.verdicts import Claim, ExtraNumber, Judgement, Wanted, conclude
from tf_lrtraj.records import RecordError
from tf_lrtraj.statistics import TOST, PairedRatio

SHARE = Wanted(
    "share",
    "what averages take off the loss of single iterates, over what cooldowns of their lengths do",
    high=1.0,
)
COLLAPSE = Wanted(
    "collapse",
    "exponent of the missing loss in the rate over that in the length: 1 for rate times length",
    low=0.5,
    high=1.5,
    level=TOST,
)
LOWER = Wanted(
    "lower_floor",
    "at the full rate again: floor after the average less floor after the cooldown, at first, over "
    "the missing loss",
    low=0.5,
    fails_low=0.25,
)
RETURN = Wanted("return", "the same difference at last, over that at first", high=0.5)
SHARPER = Wanted(
    "sharper",
    "logarithm of the Hessian's largest eigenvalue at the cooldown's end over that at the average",
    low=0.0,
)
POINTS = ("raw", "average", "cooldown")


def judge_o3(records: Records) -> Judgement:
    """The share of the gain, the exponents of the missing loss, floors, and eigenvalues."""
    found, paths = records.measured("cooldown_gain"), records.measured("cooldown_path")
    rates = sorted((float(rate) for rate in found[0].known("rate")), reverse=True)
    lengths = np.array(sorted({int(n) for n in found[0].known("length")}))
    losses = {
        of: np.array([[_losses(record, rate, of, lengths) for rate in rates] for record in found])
        for of in ("raw", "average", "cooldown")
    }  # [seed, rate, length], means over places
    missing = losses["average"] - losses["cooldown"]
    gains = {of: losses["raw"] - losses[of] for of in ("average", "cooldown")}
    parts = [
        SHARE.judge(
            PairedRatio(*(gains[of][:, i].mean(axis=1) for of in ("average", "cooldown"))),
            f"rate {rate:g}",
        )
        for i, rate in enumerate(rates)
    ]
    powers = _exponents(missing, np.array(rates), lengths)
    parts.append(COLLAPSE.judge(PairedRatio(*powers.T)))
    floors = [_floors(record) for record in paths]
    apart = np.array([f["from_average"][1] - f["from_cooldown"][1] for f in floors])
    # The path is that of the longest cooldown at the last place, at the highest rate.
    last = np.array([_last(record, rates[0], lengths[-1]) for record in found])
    parts.append(LOWER.judge(PairedRatio(apart[:, 0], last)))
    parts.append(RETURN.judge(PairedRatio(apart[:, -1], apart[:, 0])))
    top = _largest(records)
    parts.append(SHARPER.judge(np.log(top["cooldown"] / top["average"])))
    numbers = [
        ExtraNumber("exponent_rate", "exponent of the missing loss in the rate", powers[:, 0]),
        ExtraNumber("exponent_length", "exponent of the missing loss in the length", powers[:, 1]),
    ]
    for i, rate in enumerate(rates):
        for j, n in enumerate(lengths):
            what = f"rate {rate:g}, {n} updates: loss of the average above the cooldown's"
            numbers.append(ExtraNumber(f"missing_{rate:g}_{n}", what, missing[:, i, j]))
    falls = [f["cooldown"][1][0] - f["cooldown"][1][-1] for f in floors]
    what = "fall of a short average's loss along the cooldown, over the missing loss"
    numbers.append(ExtraNumber("floor_falls", what, PairedRatio(falls, last)))
    for name in POINTS:
        what = f"largest eigenvalue of the Hessian, {name}"
        numbers.append(ExtraNumber(f"eigenvalue_{name}", what, top[name]))
    drawn: dict[str, Any] = {
        "rates": rates,
        "lengths": lengths,
        "missing": missing,
        "floors": floors,
        "begin": paths[0].setting("begin"),
        "end": paths[0].setting("end"),
        "eigenvalues": top,
    }
    return conclude(parts, numbers=numbers, drawn=drawn)


def _losses(record: Measured, rate: float, of: str, lengths: np.ndarray) -> list[float]:
    """Training losses by length, means over places; of single iterates one mean for all."""
    where = {"rate": rate, "of": of, "set": "train_part"}
    if of == "raw":
        return [float(record.values("loss", **where).mean())] * len(lengths)
    return [float(record.values("loss", length=int(n), **where).mean()) for n in lengths]


def _last(record: Measured, rate: float, length: int) -> float:
    """Missing loss at the last place."""
    end = max(record.known("end"))
    average, cooldown = (
        record.value("loss", rate=rate, of=of, length=int(length), end=end, set="train_part")
        for of in ("average", "cooldown")
    )
    return average - cooldown


def _exponents(missing: np.ndarray, rates: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Exponents [seed, (rate, length)] of the missing loss, by least squares over all of them.

    Losses are fitted and not their logarithms, because short averages may lack nothing; each is
    weighted by its scatter over seeds, which all seeds share.
    """
    scatter = missing.std(axis=0, ddof=1) if len(missing) > 1 else np.ones(missing.shape[1:])
    scatter = np.maximum(scatter, 0.1 * np.median(scatter) + 1e-12)
    x = np.log(rates / rates.max())[:, None] + 0.0 * lengths
    y = np.log(lengths / lengths.max()) + 0.0 * rates[:, None]
    found = []
    for table in missing:

        def residuals(p: np.ndarray, table: np.ndarray = table) -> np.ndarray:
            return ((p[0] * np.exp(p[1] * x + p[2] * y) - table) / scatter).ravel()

        start = [max(float(table[0, -1]), 1e-6), 0.75, 0.75]
        scale = [start[0], 1.0, 1.0]
        fit = optimize.least_squares(residuals, start, x_scale=scale)
        found.append(fit.x[1:])
    return np.array(found)


def _floors(record: Measured) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Run → (steps, losses of short averages)."""
    floors = {}
    for of in ("constant", "cooldown", "from_average", "from_cooldown"):
        steps, losses = record.curve("step", "loss", of=of, set="train_part")
        floors[of] = steps, losses
    if floors["from_average"][0].tolist() != floors["from_cooldown"][0].tolist():
        raise RecordError(f"{record.name}: the two runs are not followed at the same steps.")
    return floors


def _largest(records: Records) -> dict[str, np.ndarray]:
    """Point → [seed] largest eigenvalue."""
    found: dict[str, dict[int, float]] = {name: {} for name in POINTS}
    for probe in records.probes("eigenvalues-*", "eigenvalues"):
        point = probe.name.rpartition("-")[2].removesuffix(".npz")
        top = float(probe.array("eigenvalues").max())
        if not top > 0.0:
            raise RecordError(f"{probe.name}: the largest eigenvalue is {top:g}, not positive.")
        if point in found:
            found[point][probe.seed] = top
    return {name: np.array([tops[seed] for seed in sorted(tops)]) for name, tops in found.items()}


CLAIMS = (
    Claim(
        "O3",
        "An average lacks part of a decay's gain, by rate times length",
        "Averages keep less than the whole gain of a linear decay over the same updates; the "
        "missing loss depends on rate times length, because the noise holds slow directions up "
        "until the rate falls.",
        "found here, registered before this run",
        ("cooldown_gain", "cooldown_path", "cooldown_curvature"),
        "Linear cooldowns of several lengths from runs at several constant rates, each against the "
        "mean of the iterates of the same updates. For the longest one, short averages along it, "
        "and after it at the full rate again, from its end and from the average; and the largest "
        "eigenvalue of the Hessian at both.",
        (SHARE, COLLAPSE, LOWER, RETURN, SHARPER),
        "With fixed curvature the share is at least 1 for any spectrum and noise, so 1 decides. If "
        "the missing loss depended on the length alone the ratio of its exponents would be 0, for "
        "rate times length it is 1, and for the squared rate 2: the nearest of them decides. If "
        "the cooldown moved slow directions, the floor is lower after it by most of the missing "
        "loss (half and more; under a quarter contradicts), it returns by more than half, and the "
        "curvature is higher at its end, all of which an average that merely is imperfect does not "
        "do.",
        judge_o3,
    ),
)
