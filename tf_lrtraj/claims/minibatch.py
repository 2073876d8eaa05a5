"""Claims B1 to B6 and B11: losses and gradients of mini-batches at points of a trajectory."""

from __future__ import annotations

import math

import numpy as np

from tf_lrtraj.claims.records_reader import NotRun, Probed, Records
from tf_lrtraj.claims.statistics import (
    Estimate,
    combine,
    crossed,
    mean_of,
    median_of,
    ratio,
)
from tf_lrtraj.claims.verdicts import (
    Claim,
    Judgement,
    Part,
    above,
    below,
    conclude,
    within,
)
from tf_lrtraj.records import RecordError

SOURCE = "Sandler et al. 2023, arXiv 2301.02312"

# B1.  A parabola y = 2u - u² over 0 ≤ u ≤ 2 has a standard deviation of √(4/45) = 0.298 of its
# height.  A root-mean-square misfit of 6.7 % of the height then leaves 5 % of the variance
# unexplained (R² = 0.95), the usual bar for "close to".
FIT_ERROR = round(math.sqrt(0.05 * 4 / 45), 4)
FIT_DEGREE, FIT_WINDOW = 2, 2.0
# B3.  With no noise the two curves are one (ratios of 1).  A factor of 2 is what nobody needs a
# test to see in a figure.
CURVE_RATIO = 0.5
# B5.  A tenth of where it began is "near 0" on the axis of a figure; "about 3" is 3 ± 1.
NEAR_ZERO, TRIP_STEP = 0.1, 4
# B5.  Held-out loss "starts equal": the two differ by less than a quarter, the sampling error of
# a handful of batches of a hundred images.
EQUAL_START = 0.25
# B11.  Two batches' gradients of cosine 1/4 hold noise of three times the signal's power; the
# cosine with the full gradient is then √(1/4) = 1/2, an angle of 60 degrees.
ALIGNMENT = 0.25


def by_step(found: tuple[Probed, ...]) -> dict[int, list[Probed]]:
    """Records by the step at which they were taken; every one is judged."""
    steps: dict[int, list[Probed]] = {}
    for probe in found:
        steps.setdefault(probe.step, []).append(probe)
    return steps


# B1 -------------------------------------------------------------------------------------------


def judge_b1(records: Records) -> Judgement:
    """Misfit of parabolas to each batch's own curve."""
    found = records.probes("line-*", "line")
    parts, numbers = [], {}
    for step, probes in by_step(found).items():
        errors: dict[int, list[float]] = {degree: [] for degree in (2, 3, 4)}
        for probe in probes:
            window = probe.index("window", FIT_WINDOW)
            for degree in errors:
                if degree not in probe.coordinate("degree"):
                    continue
                row = probe.index("degree", degree)
                # Infinite: the curve gained nothing, or its window was not measured.
                errors[degree] += probe.array("fit_error", finite=False)[row, window].tolist()
        middle = median_of(errors[FIT_DEGREE])
        if not math.isfinite(middle.value):
            raise RecordError(f"{probes[0].name}: half of the fits could not be made.")
        what = f"step {step}: median misfit of a parabola, in units of the drop,"
        parts.append(below(f"misfit_step_{step}", middle, FIT_ERROR, what))
        for degree in (3, 4):
            if errors[degree]:
                numbers[f"misfit_degree_{degree}_step_{step}"] = median_of(errors[degree])
    notes = [
        f"windows reach to {FIT_WINDOW:g} times each batch's best rate; intervals are those of "
        "order statistics over batches"
    ]
    return conclude(parts, numbers=numbers, notes=notes)


# B2 -------------------------------------------------------------------------------------------


def judge_b2(records: Records) -> Judgement:
    """Each batch's lowest loss along its step against the fully trained model's mean loss."""
    found = records.probes("line-*", "line")
    trained = {
        record.seed: record.value("loss", method="conventional", set="train_part")
        for record in records.measured("budget")
    }
    level = combine([Estimate(loss) for loss in trained.values()])
    parts = []
    for step, probes in by_step(found).items():
        each = []
        for probe in probes:
            # A loss that overflowed is no minimum, so infinite ones may stand.
            lowest = probe.array("train", finite=False).min(axis=0)
            if not np.isfinite(lowest).all():
                raise RecordError(f"{probe.name}: a batch has no finite loss.")
            each.append(mean_of(lowest - trained.get(probe.seed, level.value), "batches"))
        what = f"step {step}: lowest loss of the batch less the trained model's mean loss"
        parts.append(below(f"difference_step_{step}", combine(each), 0.0, what))
    notes = [
        "the trained model is the conventional run at the end of its whole budget, batch norm "
        "recomputed; a batch along its step is normalised by itself",
    ]
    return conclude(parts, notes=notes, numbers={"trained_loss": level.value})


# B3 -------------------------------------------------------------------------------------------


def judge_b3(records: Records) -> Judgement:
    """Best rate and gain of held-out against own batch, and the loss at the own best rate."""
    found = records.probes("line-*", "line")
    parts: list[Part] = []
    for step, probes in by_step(found).items():
        for name, what in (("best_rate", "best rate"), ("gain", "gain")):
            ratios = []
            for probe in probes:
                pair = [_of_curve(probe, name, curve) for curve in ("held_out", "train")]
                ratios.append(ratio(*pair))
            text = f"step {step}: {what}, held-out over own batch,"
            parts.append(below(f"{name}_ratio_step_{step}", combine(ratios), CURVE_RATIO, text))
        text = f"step {step}: held-out loss at the own batch's best rate less that at 0"
        changes = combine([_change_at_best(probe) for probe in probes])
        parts.append(above(f"change_step_{step}", changes, 0.0, text))
    return conclude(parts)


def _of_curve(probe: Probed, name: str, curve: str) -> Estimate:
    row = probe.index("curve", curve)
    value = probe.array(f"mean_{name}", finite=False)[row]
    error = probe.array(f"mean_{name}_se", finite=False)[row]
    if not math.isfinite(value):
        raise RecordError(f"{probe.name}: mean_{name} of {curve!r} is not finite.")
    batches = len(probe.coordinate("batch"))
    return Estimate(float(value), float(error), batches - 1.0, "batches")


def _change_at_best(probe: Probed) -> Estimate:
    rates = probe.coordinate("rate")
    best = _of_curve(probe, "best_rate", "train").value
    at = int(np.argmin(np.abs(rates - best)))
    losses = probe.array("held_out_each", finite=False)[[0, at]]
    if not np.isfinite(losses).all():
        raise RecordError(f"{probe.name}: held-out losses at the best rate are not finite.")
    return crossed(losses[1] - losses[0])


# B5 -------------------------------------------------------------------------------------------


def judge_b5(records: Records) -> Judgement:
    """Losses of a fixed batch and of held-out ones along side trips."""
    found = records.probes("side_trip-*", "side_trip")
    steps = sorted({probe.step for probe in found})
    if len(steps) < 2:
        raise NotRun(["probes/seed0/side_trip-*.npz of a second point"])
    parts, numbers = [], {}
    for step in steps:
        probes = [probe for probe in found if probe.step == step]
        left, early, equal, rises = [], [], [], []
        for probe in probes:
            own, other = probe.array("train_loss"), probe.array("held_out_loss")
            last = own.shape[1] - 1
            if last < TRIP_STEP:
                raise RecordError(f"{probe.name} has trips of fewer than {TRIP_STEP} steps.")
            start = float(own[:, 0].mean())
            left.append(mean_of(own[:, TRIP_STEP] / own[:, 0], "trips"))
            early.append(mean_of(own[:, 3] / own[:, 0], "trips"))
            # Every trip starts at one point: the losses of other batches are the same for all.
            held = mean_of(other[0, 0], "held-out batches").scaled(1.0 / start)
            train = mean_of(own[:, 0], "trips").scaled(1.0 / start)
            error = math.hypot(held.error, train.error)
            dof = min(held.dof, train.dof)
            equal.append(Estimate(held.value - 1.0, error, dof, "batches"))
            rises.append(crossed(other[:, last] - other[:, 0]))
        what = f"step {step}: own loss after {TRIP_STEP} steps over that at the start"
        parts.append(below(f"left_step_{step}", combine(left), NEAR_ZERO, what))
        numbers[f"left_after_3_step_{step}"] = combine(early).interval()
        what = f"step {step}: held-out over own loss at the start, less 1,"
        name = f"start_step_{step}"
        parts.append(within(name, combine(equal), -EQUAL_START, EQUAL_START, what))
        what = f"step {step}: held-out loss at the trip's end less that at its start"
        parts.append(above(f"rise_step_{step}", combine(rises), 0.0, what))
    return conclude(parts, numbers=numbers)


# B11 ------------------------------------------------------------------------------------------


def judge_b11(records: Records) -> Judgement:
    """Cosine of two batches' gradients as a ratio of expectations."""
    found = records.probes("gradients-*", "gradients")
    parts, numbers = [], {}
    for step, probes in by_step(found).items():
        estimates: dict[str, list[Estimate]] = {}
        for probe in probes:
            batches = len(probe.coordinate("batch"))
            for name in ("share", "pair_cosine", "rest_cosine"):
                value = float(probe.array(name)[0])
                error = float(probe.array(f"{name}_se", finite=False)[0])
                one = Estimate(value, error, batches - 1.0, f"{batches} batches")
                estimates.setdefault(name, []).append(one)
        what = f"step {step}: E<g,g'> / E|g|² of two batches"
        parts.append(below(f"share_step_{step}", combine(estimates["share"]), ALIGNMENT, what))
        for name in ("pair_cosine", "rest_cosine"):
            numbers[f"{name}_step_{step}"] = combine(estimates[name]).interval()
    notes = [
        "the cosine of a batch's gradient with the full one is the root of this share "
        f"(wanted: below {math.sqrt(ALIGNMENT):g})",
    ]
    return conclude(parts, numbers=numbers, notes=notes)


CLAIMS = (
    Claim(
        "B1",
        "The loss of a fixed training batch along its own gradient step, as a function of the "
        "rate, is smooth and close to a low-degree polynomial (a quadratic for ResNet).",
        SOURCE,
        ("line",),
        "losses of several batches along their gradients at several points of the base run; "
        "polynomials fitted to each curve",
        f"at every point the median misfit of a parabola up to {FIT_WINDOW:g} times the best rate "
        f"is below {100 * FIT_ERROR:.2g} % of the drop",
        "Over that window a parabola of height 1 has a standard deviation of 0.298. A misfit of "
        "0.067 leaves 5 % of its variance unexplained, R² = 0.95, which is what is usually asked "
        "of a curve that is called close to another. The median, because the sentence is about "
        "batches in general, not about every one.",
        judge_b1,
    ),
    Claim(
        "B2",
        "One step with a large enough rate takes the training batch below the average loss of "
        "the fully trained model.",
        SOURCE,
        ("line", "budget"),
        "lowest loss of each batch along its gradient, against the training loss at the end of "
        "a conventional run",
        "at every point the mean over batches of the difference is below 0",
        "The sentence has its own threshold, the trained model's loss. The hardest trained model "
        "at hand is taken: the conventional run at the end of its decay, not the noisy iterate "
        "of the run that the points are taken from.",
        judge_b2,
    ),
    Claim(
        "B3",
        "A held-out batch improves only for small rates; its curve and that of the batch "
        "stepped on differ dramatically.",
        SOURCE,
        ("line",),
        "best rate and gain of held-out batches and of the batch stepped on, and the held-out "
        "loss at the rate that is best for the batch stepped on",
        f"at every point both ratios, held-out over own, are below {CURVE_RATIO:g}, and at the "
        "own batch's best rate the held-out loss has risen",
        "Without noise the two curves are one and both ratios are 1. A factor of two is what "
        "nobody needs a test to see. That held-out loss is worse than without a step at the rate "
        "that is best for the batch itself is the sentence's first half without any threshold.",
        judge_b3,
    ),
    Claim(
        "B5",
        "In repeated steps on one fixed batch its loss is near 0 after about 3 steps of 9; "
        "held-out loss starts equal, then rises.",
        SOURCE,
        ("side_trip",),
        "side trips of 9 steps on each of several batches from two or more points of the base run",
        f"from every point the own loss after {TRIP_STEP} steps is below {NEAR_ZERO:g} of that at "
        f"the start, own and held-out loss at the start differ by less than "
        f"{100 * EQUAL_START:g} %, and the held-out loss at the end is above that at the start",
        "A tenth of the starting height is where a curve looks like 0 on the axis of a figure; "
        "'about 3' is taken as 3 with a tolerance of one step. Equal can only mean equal up to the "
        "scatter of a few batches of a hundred images, about a tenth each way for own and "
        "held-out batches; a quarter is wider than that and narrower than the gap between "
        "training and test loss of an overfitted network, which is no equality.",
        judge_b5,
    ),
    Claim(
        "B11",
        "Mini-batch gradients are weakly aligned with each other and with the full gradient, all "
        "along the trajectory.",
        SOURCE,
        ("gradients",),
        "all inner products of the gradients of many batches at several points of the base run",
        f"at every point the cosine of two batches' gradients, as a ratio of expectations, is "
        f"below {ALIGNMENT:g}, so that with the full gradient below {math.sqrt(ALIGNMENT):g}",
        "A cosine of 1/4 between batches means that a batch's gradient holds three times more "
        "noise than signal, and an angle of 60 degrees with the full gradient: half-way between "
        "along and across it in terms of its projection. A ratio of expectations is not biased "
        "by the number of batches, as the cosine with their mean is.",
        judge_b11,
    ),
)
