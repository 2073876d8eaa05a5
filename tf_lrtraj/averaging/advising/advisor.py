r"""`advise`: finds the best average of snapshots from a few measurements instead of a sweep.

For a quadratic loss, the losses of single snapshots and of the midpoints of a few pairs determine
the loss of every average (docs/theory/prediction.md).  `advise` measures these losses, calibrates
the prediction on a few long averages, and predicts every EMA, SWA and two-point average and the
optimal weights.  It then builds the best averages and measures them.  If all of them are worse
than the raw weights, it recommends the raw weights.

Losses of snapshots that were not measured are interpolated; the bands include the error of the
interpolation (`theory.SparsePredictor`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tf_lrtraj import records
from tf_lrtraj.averaging.advising import sweep as families
from tf_lrtraj.averaging.advising.advice import LEVEL, Advice, make_advice, row_of
from tf_lrtraj.averaging.advising.measured import MeasuredLosses, Measurement, is_finite
from tf_lrtraj.averaging.advising.measurement_plan import (
    DEFAULT,
    RECOMMENDATIONS,
    Effort,
    Plan,
    make_plan,
)
from tf_lrtraj.averaging.advising.sweep import Candidate
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.records import RecordError
from tf_lrtraj.theory import AveragePredictor, SparsePredictor

__all__ = ["Advice", "Effort", "Measurement", "advise"]

MEASURED = "measured.jsonl"


def advise(
    snapshots: Snapshots,
    measurement: Measurement,
    *,
    held_out: Measurement | None = None,
    first: int | None = None,
    last: int | None = None,
    effort: Effort = DEFAULT,
    verify: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> Advice:
    """Measures a few losses, predicts every average, recommends one and verifies it.

    Args:
        snapshots: the snapshots to average.
        measurement: the loss to minimise.
        held_out: a second loss on which the built averages are measured too; an average that is
            worse than the raw weights on it is not recommended.
        first, last, effort, verify: as in `make_plan`.
        folder: folder of the advice.  Measured losses are stored there one by one, so an
            interrupted call continues where it stopped.  None writes nothing.
        progress: whether to show progress bars in a terminal.
        tell: a function that receives messages before and during the work, such as `print`.

    Raises:
        ValueError: as `make_plan`.
        RecordError: if a snapshot is damaged, or a single snapshot's loss is not finite.
    """
    plan = make_plan(snapshots.steps, effort, first, last, verify)
    tell(plan.describe(measurement.images))
    path = None
    if folder is not None:
        path = records.prepare_workdir(folder) / MEASURED
    losses = MeasuredLosses(snapshots, plan.steps.tolist(), measurement, path)
    begin = time.perf_counter()
    predictor, notes = _predictor(plan, losses, progress, tell)
    plain = predictor
    calibration = _measure(losses, plan.calibration, "calibration", progress)
    try:
        usable = [c for c in plan.calibration if is_finite(calibration[c.name]["loss"])]
        if len(usable) >= 2:
            predictor = plain.calibrated(
                [c.weights for c in usable], [calibration[c.name]["loss"] for c in usable]
            )
        else:
            notes.append("not calibrated: the bands hold for a quadratic loss only")
    except ValueError as error:
        notes.append(f"not calibrated ({error}): the bands hold for a quadratic loss only")

    best, chosen = _recommendations(predictor, notes)
    raw = Candidate("raw", "raw", 0.0, np.eye(plan.count)[-1])
    roles = {c.name: "calibration" for c in plan.calibration}
    roles |= {c.name: "recommendation" for c in best if c.name not in roles} | {"raw": "raw"}
    candidates = {c.name: c for c in [*plan.calibration, *best, *plan.sweep, raw]}
    built = list(candidates.values())
    measured = _measure(losses, [*best, raw], "recommendations", progress)  # raw is known
    measured |= _measure(losses, plan.sweep, "sweep", progress) | calibration
    sets = [losses]
    if held_out is not None:
        sets.append(MeasuredLosses(snapshots, plan.steps.tolist(), held_out, path))
        second = _measure(sets[1], built, held_out.name, progress)
        for name, values in second.items():
            target = measured.setdefault(name, {})
            target |= {f"{key}_{held_out.name}": value for key, value in values.items()}
    chosen = _not_worse_than_raw(chosen, built, measured, [s.measurement.name for s in sets], notes)
    rows = [
        row_of(c, predictor, plain, roles.get(c.name, "sweep"), measured.get(c.name), plan.every)
        for c in built
    ]
    advice = make_advice(plan, predictor, rows, chosen, notes, sets, measured["raw"])
    advice.arrays["weights"] = np.stack([c.weights for c in built])
    advice.record["seconds"] = round(time.perf_counter() - begin, 1)
    if folder is not None:
        advice.write(folder)
    return advice


def _measure(
    losses: MeasuredLosses, averages: Sequence[Candidate], description: str, progress: bool
) -> dict[str, dict[str, float]]:
    """Measures averages and returns {name: values}, with the keys of a row of the advice."""
    found = losses.measure({c.name: c.weights for c in averages}, description, progress)
    inner = {"step", "key", "set", "average", "seconds"}
    return {n: {k: v for k, v in row.items() if k not in inner} for n, row in found.items()}


def _predictor(
    plan: Plan, losses: MeasuredLosses, progress: bool, tell: Callable[[str], None]
) -> tuple[AveragePredictor, list[str]]:
    """Measures singles and pairs, and predicts from them."""
    identity = np.eye(plan.count)
    singles = {f"single_{plan.steps[i]}": identity[i] for i in plan.singles}
    pairs = {
        f"pair_{plan.steps[i]}_{plan.steps[j]}": 0.5 * (identity[i] + identity[j])
        for i, j in plan.pairs
    }
    missing = losses.missing([*singles.values(), *pairs.values()])
    known = len(singles) + len(pairs) - missing
    if known:
        tell(f"{known} of these losses were measured before")
    # The first measurement also compiles, so the time is known after two of them.
    labels = list(singles)
    losses.measure({label: singles[label] for label in labels[:2]}, "first two", progress)
    if losses.seconds_each is not None:
        left = (
            missing
            - len(losses.seconds)
            + len(plan.calibration)
            + RECOMMENDATIONS
            + len(plan.sweep)
        )
        tell(
            f"a measurement takes {losses.seconds_each:.2g} s, so about "
            f"{max(left, 0) * losses.seconds_each:.0f} s from here"
        )
    single = losses.measure(singles, "single snapshots", progress)
    pair = losses.measure(pairs, "pairs", progress)
    values = np.array([single[f"single_{plan.steps[i]}"]["loss"] for i in plan.singles])
    if not np.all(np.isfinite(values)):
        step = plan.steps[plan.singles[int(np.flatnonzero(~np.isfinite(values))[-1])]]
        raise RecordError(
            f"the loss of the snapshot of step {step} is not finite; set --first after this step"
        )
    by_place = dict(zip(plan.singles, values.tolist(), strict=True))
    gaps = np.array(
        [
            0.5 * (by_place[i] + by_place[j])
            - pair[f"pair_{plan.steps[i]}_{plan.steps[j]}"]["loss"]
            for i, j in plan.pairs
        ]
    )
    sound = np.isfinite(gaps)
    notes = []
    if not sound.all():
        notes.append(f"{np.sum(~sound)} pairs had a loss that is not finite and were left out")
    starts = np.array([i for i, _ in plan.pairs])[sound]
    lags = np.array([j - i for i, j in plan.pairs])[sound]
    if plan.every_pair and sound.all():
        matrix = np.zeros((plan.count, plan.count))
        matrix[starts, starts + lags] = matrix[starts + lags, starts] = gaps
        return AveragePredictor(values, None, matrix), notes
    predictor = SparsePredictor(plan.count, plan.singles, values, starts, lags, gaps[sound])
    return predictor, notes


def _recommendations(
    predictor: AveragePredictor, notes: list[str]
) -> tuple[list[Candidate], Candidate]:
    """Returns the best average of each family and the optimal weights, and the recommended one."""
    count = predictor.num_snapshots
    named = predictor.recommend()
    families_best = [
        families.candidate("ema", named.ema_decay, count),
        families.candidate("swa", named.swa_length, count),
        families.candidate("two_point", named.two_point_gap, count),
    ]
    # Slightly cautious, because few pairs were measured.
    weights = predictor.optimal(nonnegative=True, caution=0.5).weights
    optimum = Candidate("optimal", "weights", 0.0, np.where(weights > 1e-12, weights, 0.0))
    best = min(families_best, key=lambda c: predictor.loss(c.weights))
    # A named average is preferred unless the optimal weights gain noticeably more.
    gain = predictor.loss(best.weights) - predictor.loss(optimum.weights)
    spread = predictor.predict(optimum.weights, LEVEL).error
    chosen = optimum if gain > 0.1 * spread else best
    try:
        signed = predictor.optimal(nonnegative=False, caution=2.0, smooth=True).weights
        gained = predictor.loss(optimum.weights) - predictor.loss(signed)
        notes.append(
            f"signed weights are predicted to gain another {gained:+.4g}, but they fit losses that "
            "were not measured, so they are not recommended"
        )
    except ValueError:
        pass
    return [*families_best, optimum], chosen


def _not_worse_than_raw(
    chosen: Candidate,
    built: Sequence[Candidate],
    measured: Mapping[str, Mapping[str, float]],
    sets: Sequence[str],
    notes: list[str],
) -> Candidate:
    """Returns `chosen`, or the best measured average if `chosen` is worse than the raw weights."""
    keys = ["loss", *(f"loss_{name}" for name in sets[1:])]

    def pays(average: Candidate) -> bool:
        found = [[measured[name].get(k, math.nan) for name in (average.name, "raw")] for k in keys]
        below = found[0][0] != found[0][1]  # the first loss must be lower, not equal
        return below and all(is_finite(a) and (not is_finite(b) or a <= b) for a, b in found)

    if pays(chosen):
        return chosen
    sound = [c for c in built if pays(c)]
    if not sound:
        notes.append(
            "no average that was built measured better than the raw weights on "
            f"{' and '.join(sets)}: averaging does not help here"
        )
        return next(c for c in built if c.name == "raw")
    best = min(sound, key=lambda c: measured[c.name]["loss"])
    notes.append(
        f"{chosen.name} was predicted best, but did not measure better than the raw weights; "
        f"{best.name}, the best of the averages that did, is recommended"
    )
    return best
