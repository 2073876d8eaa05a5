"""Claims B1 to B3, B5 and B11: losses and gradients of mini-batches at points of a trajectory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tf_lrtraj.claims.records_reader import NotMeasured, Probed, Records
from tf_lrtraj.claims.verdicts import SANDLER, Claim, ExtraNumber, Judgement, Part, Wanted, conclude
from tf_lrtraj.records import RecordError

FIT_DEGREE, FIT_WINDOW = 2, 2.0  # the window in multiples of the best rate
_MORE_DEGREES = (3, 4)
TRIP_STEP = 4  # "about 3 steps": 3 with a tolerance of one
MISFIT = Wanted(
    "misfit",
    f"misfit of a parabola up to {FIT_WINDOW:g} times the best rate, % of the drop",
    high=round(100.0 * math.sqrt(0.05 * 4 / 45), 2),
)
BELOW_TRAINED = Wanted(
    "difference",
    "lowest loss of a batch along its step less the trained network's on that batch",
    high=0.0,
)
BEST_RATIO = Wanted(
    "best_rate_ratio", "best rate for held-out batches over that for the own batch", high=0.5
)
GAIN_RATIO = Wanted("gain_ratio", "gain of held-out batches over that of the own batch", high=0.5)
CHANGE = Wanted(
    "change", "held-out loss at the own batch's best rate less that without a step", low=0.0
)
LEFT = Wanted(
    "left", f"own loss after {TRIP_STEP} steps of a trip over that at its start", high=0.1
)
EQUAL = Wanted("start", "held-out over own loss at the start, less 1", low=-0.25, high=0.25)
RISE = Wanted("rise", "held-out loss at the end of a trip less that at its start", low=0.0)
ALIGNED = Wanted("share", "cosine of two batches' gradients, E<g,g'> / E|g|²", high=0.25)


def by_step(found: Iterable[Probed]) -> dict[int, list[Probed]]:
    """Records by the step at which they were taken, each list in the order of seeds."""
    steps: dict[int, list[Probed]] = {}
    for probe in found:
        steps.setdefault(probe.step, []).append(probe)
    return steps


def parts_at_steps(
    wanted: Wanted, found: Iterable[Probed], number: Callable[[Probed], float]
) -> list[Part]:
    """Returns a part, over seeds, for every step with records."""
    return [
        wanted.judge([number(probe) for probe in probes], f"step {step}")
        for step, probes in by_step(found).items()
    ]


def numbers_at_steps(
    found: Iterable[Probed], *numbers: tuple[str, str, Callable[[Probed], float]]
) -> list[ExtraNumber]:
    """Numbers (name, what, of a record) at every step at which there are records."""
    return [
        ExtraNumber(
            f"{name}_step_{step}", f"step {step}: {what}", [number(probe) for probe in probes]
        )
        for step, probes in by_step(found).items()
        for name, what, number in numbers
    ]


def landmark(probe: Probed, name: str, curve: str = "train") -> np.ndarray:
    """[batch] a landmark of a curve, infinite ones included."""
    return probe.array(name, finite=False)[probe.index("curve", curve)]


def images_per_weight(records: Records) -> ExtraNumber:
    """Returns images per weight of a training batch, on which reach, trips and alignment depend."""
    record = records.one("reach")
    weights = record.values("weights", network="wide")[0]
    found = float(record.setting("batch_size") / weights)
    return ExtraNumber("images_per_weight", "images in a batch over weights of the network", found)


# B1 -------------------------------------------------------------------------------------------


def judge_b1(records: Records) -> Judgement:
    """Misfit of parabolas to each batch's own curve."""
    found = records.probes("line-*", "line")
    steps = by_step(found)
    last = max(steps)
    drawn = {
        "misfits": {
            (step, degree): [_misfit(probe, degree) for probe in probes]
            for step, probes in steps.items()
            for degree in (FIT_DEGREE, *_MORE_DEGREES)
        },
        "curves": {step: [_scaled(probe) for probe in probes] for step, probes in steps.items()},
        "line": _line(steps[last][0]),
        "step": last,
    }
    numbers = [
        (
            f"misfit_degree_{degree}",
            f"the same of a polynomial of degree {degree}",
            functools.partial(_misfit, degree=degree),
        )
        for degree in _MORE_DEGREES
    ]
    parts = parts_at_steps(MISFIT, found, lambda probe: _misfit(probe, FIT_DEGREE))
    return conclude(parts, numbers=numbers_at_steps(found, *numbers), drawn=drawn)


def _misfit(probe: Probed, degree: int) -> float:
    """The median over batches, in per cent of the drop."""
    row, window = probe.index("degree", degree), probe.index("window", FIT_WINDOW)
    # Infinite: the curve had no gain, or its window was not measured.
    middle = float(np.median(probe.array("fit_error", finite=False)[row, window]))
    if not math.isfinite(middle):
        raise RecordError(f"{probe.name}: half of the fits could not be made.")
    return 100.0 * middle


def _scaled(probe: Probed) -> list[tuple[np.ndarray, np.ndarray]]:
    """Curve of each batch: rates over its best one, changes of the loss over its drop."""
    rates = probe.coordinate("rate")
    losses = probe.array("train", finite=False)
    best, gain = (probe.array(name, finite=False)[0] for name in ("best_rate", "gain"))
    found = []
    for i in np.flatnonzero((best > 0.0) & np.isfinite(best) & (gain > 0.0)):
        inside = rates <= 1.15 * FIT_WINDOW * best[i]
        found.append((rates[inside] / best[i], (losses[inside, i] - losses[0, i]) / gain[i]))
    return found


def _line(probe: Probed) -> dict[str, Any]:
    """Losses along the steps of one record: [rate, batch] of each set of batches."""
    best = float(np.median(probe.array("best_rate", finite=False)[0]))
    rates = probe.coordinate("rate")
    inside = rates <= 2.5 * best
    curves: dict[str, Any] = {
        name: probe.array(name, finite=False)[inside]
        for name in ("train", "held_out", "others")
        if name in probe.record.values
    }
    return {"rate": rates[inside], **curves}


# B2 -------------------------------------------------------------------------------------------


def judge_b2(records: Records) -> Judgement:
    """Each batch's lowest loss along its step, against the trained network's loss on it."""
    found = records.probes("line-*", "line")
    trained = {record.seed: record.array("batch_loss") for record in records.measured("trained")}
    for probe in found:
        if probe.seed not in trained:
            raise NotMeasured(f"No trained network of seed {probe.seed}.")

    parts = parts_at_steps(
        BELOW_TRAINED, found, lambda probe: float(np.mean(_lowest(probe) - trained[probe.seed]))
    )
    steps = by_step(found)
    drawn = {
        "steps": list(steps),
        "start": [
            [float(p.array("train", finite=False)[0].mean()) for p in steps[s]] for s in steps
        ],
        "lowest": [[float(_lowest(probe).mean()) for probe in steps[step]] for step in steps],
        "trained": [float(losses.mean()) for losses in trained.values()],
    }
    scores = [r.value("loss", set="train_part") for r in records.measured("trained")]
    what = "training loss of the trained network, batch norm recomputed"
    return conclude(parts, numbers=[ExtraNumber("trained_loss", what, scores)], drawn=drawn)


def _lowest(probe: Probed) -> np.ndarray:
    # A loss that overflowed is not a minimum, so infinite ones are allowed.
    lowest = probe.array("train", finite=False).min(axis=0)
    if not np.isfinite(lowest).all():
        raise RecordError(f"{probe.name}: a batch has no finite loss.")
    return np.asarray(lowest)


# B3 -------------------------------------------------------------------------------------------


def judge_b3(records: Records) -> Judgement:
    """Best rate and gain of held-out against own batch, and the loss at the own best rate."""
    found = records.probes("line-*", "line")
    parts = [
        *parts_at_steps(BEST_RATIO, found, lambda probe: _paired(probe, "best_rate", "held_out")),
        *parts_at_steps(GAIN_RATIO, found, lambda probe: _paired(probe, "gain", "held_out")),
        *parts_at_steps(CHANGE, found, _change_at_best),
    ]
    others = (
        "others_best_rate_ratio",
        "best rate for other training batches over that for the own batch",
        lambda probe: _paired(probe, "best_rate", "others"),
    )
    lacking = {probe.step for probe in found if "others" not in probe.record.values}
    known = [probe for probe in found if probe.step not in lacking]
    return conclude(parts, numbers=numbers_at_steps(known, others))


def _paired(probe: Probed, name: str, curve: str) -> float:
    """The mean over batches of a landmark of other batches over that of the step's own."""
    other, own = landmark(probe, name, curve), landmark(probe, name)
    if not (np.isfinite(probe.array(name, finite=False)).all() and (own > 0.0).all()):
        raise RecordError(f"{probe.name}: a batch has no {name} of its own.")
    return float(np.mean(other / own))


def _change_at_best(probe: Probed) -> float:
    """Mean change of the held-out loss, each step taken at the rate best for its own batch."""
    rates = probe.coordinate("rate")
    best, losses = landmark(probe, "best_rate"), probe.array("held_out", finite=False)
    pairs = zip(best, losses.T, strict=True)
    changes = np.array([np.interp(rate, rates, column) - column[0] for rate, column in pairs])
    if not np.isfinite(changes).all():
        raise RecordError(f"{probe.name}: held-out losses at the best rate are not finite.")
    return float(changes.mean())


# B5 -------------------------------------------------------------------------------------------


def judge_b5(records: Records) -> Judgement:
    """Losses of a fixed batch and of held-out ones along side trips."""
    found = records.probes("side_trip-*", "side_trip")
    steps = by_step(found)
    if len(steps) < 2:
        raise NotMeasured("Side trips from one point only, where two are needed.")
    for probe in found:
        if probe.array("train_loss").shape[1] <= TRIP_STEP:
            raise RecordError(f"{probe.name} has trips of fewer than {TRIP_STEP} steps.")
    parts = [
        *parts_at_steps(LEFT, found, lambda probe: _left(probe, TRIP_STEP)),
        *parts_at_steps(EQUAL, found, lambda probe: _start_ratio(probe, "held_out_loss") - 1.0),
        *parts_at_steps(RISE, found, _rise),
    ]
    sizes, by_size, told = reach_by_size(records, "left", LEFT.what)
    numbers = [
        images_per_weight(records),
        *numbers_at_steps(
            found,
            (
                "left_after_3",
                "own loss after 3 steps over that at the start",
                lambda probe: _left(probe, 3),
            ),
            (
                "others_start",
                "other training over own loss at the start, less 1",
                lambda probe: _start_ratio(probe, "others_loss") - 1.0,
            ),
        ),
        *told,
    ]
    drawn = {
        "trips": {
            step: [
                {"own": p.array("train_loss"), "held_out": p.array("held_out_loss").mean(axis=-1)}
                for p in probes
            ]
            for step, probes in steps.items()
        },
        "sizes": sizes,
        "left": by_size,
    }
    return conclude(parts, numbers=numbers, drawn=drawn)


def _left(probe: Probed, step: int) -> float:
    own = probe.array("train_loss")
    return float(np.mean(own[:, step] / own[:, 0]))


def _start_ratio(probe: Probed, name: str) -> float:
    # Every trip starts at one point: the losses of other batches are the same for all.
    return float(probe.array(name)[0, 0].mean() / probe.array("train_loss")[:, 0].mean())


def _rise(probe: Probed) -> float:
    other = probe.array("held_out_loss")
    return float(np.mean(other[:, -1] - other[:, 0]))


# B11 ------------------------------------------------------------------------------------------


def judge_b11(records: Records) -> Judgement:
    """Cosine of two batches' gradients as a ratio of expectations."""
    found = records.probes("gradients-*", "gradients")
    parts = parts_at_steps(ALIGNED, found, lambda probe: float(probe.array("share")[0]))
    rest = (
        "rest_cosine",
        "cosine of a batch's gradient with the mean of the others'",
        lambda probe: float(probe.array("rest_cosine")[0]),
    )
    sizes, by_size, told = reach_by_size(records, "share", ALIGNED.what)
    drawn = {
        "sizes": sizes,
        "share": by_size,
        "batch_size": records.one("reach").setting("batch_size"),
    }
    numbers = [images_per_weight(records), *numbers_at_steps(found, rest), *told]
    return conclude(parts, numbers=numbers, drawn=drawn)


def reach_by_size(
    records: Records, name: str, what: str
) -> tuple[np.ndarray, np.ndarray, list[ExtraNumber]]:
    """([size] of batches, [seed, size] a number of theirs at the base run's end, its means)."""
    found, sizes = [], np.zeros(0)
    for record in records.measured("reach"):
        at_end = {"network": "wide", "step": int(record.setting("end"))}
        sizes = record.values("size", **at_end)
        found.append(record.values(name, **at_end))
    values = np.array(found)
    told = [
        ExtraNumber(f"{name}_size_{size:g}", f"batches of {size:g}: {what}", values[:, i])
        for i, size in enumerate(sizes)
    ]
    return sizes, values, told


CLAIMS = (
    Claim(
        "B1",
        "A batch's loss along its own step is nearly a parabola",
        "The loss of a fixed training batch along its own gradient step, as a function of the "
        "rate, is smooth and close to a low-degree polynomial (a quadratic for ResNet).",
        SANDLER,
        ("line",),
        "losses of many batches along their gradients at several points of the base run, a "
        "polynomial fitted to each curve; the median over batches of what it leaves, for each seed",
        (MISFIT,),
        "A parabola y = 2u - u² over 0 to 2 has a standard deviation of √(4/45) = 0.298 of its "
        "height. A misfit of 6.67 % of the height leaves 5 % of that variance unexplained, R² = "
        "0.95, which is what is usually asked of a curve that is called close to another. The "
        "median, because the sentence is about batches in general, not about every one.",
        judge_b1,
    ),
    Claim(
        "B2",
        "One large step takes a batch below the trained network's loss",
        "One step with a large enough rate takes the training batch below the average loss of "
        "the fully trained model.",
        SANDLER,
        ("line", "trained"),
        "lowest loss of each batch along its gradient, less the loss of a fully trained network of "
        "the same seed on the same batch, normalised by itself in both; the mean over batches",
        (BELOW_TRAINED,),
        "The sentence has its own threshold, the trained model's loss. The trained model is the "
        "end of the base run with its rate lowered to 0 over the window, not one of the noisy "
        "iterates that the steps are taken from. Pairing by batch leaves the mean as it is and "
        "removes what batches differ by.",
        judge_b2,
    ),
    Claim(
        "B3",
        "Held-out batches improve only for small rates, unlike the batch itself",
        "A held-out batch improves only for small rates; its curve and that of the batch "
        "stepped on differ dramatically.",
        SANDLER,
        ("line",),
        "best rate and gain of test batches over those of the batch stepped on, for each step, and "
        "the change of their loss at the rate best for that batch; means over the steps of a seed",
        (BEST_RATIO, GAIN_RATIO, CHANGE),
        "Without noise the two curves are one and both ratios are 1. A factor of two is what "
        "nobody needs a test to see. That held-out loss is worse than without a step at the rate "
        "that is best for the batch itself is the sentence's first half without any threshold.",
        judge_b3,
    ),
    Claim(
        "B5",
        "Four steps on one batch leave little loss; held-out loss rises",
        "In repeated steps on one fixed batch its loss is near 0 after about 3 steps of 9; "
        "held-out loss starts equal, then rises.",
        SANDLER,
        ("side_trip", "reach"),
        "side trips of 9 steps on each of several batches from two or more points of the base run; "
        "beside them shorter trips on batches of several sizes",
        (LEFT, EQUAL, RISE),
        "A tenth of the starting height is where a curve looks like 0 on the axis of a figure; "
        "'about 3' is taken as 3 with a tolerance of one step. What is left hangs on the images "
        "in a batch per weight of the network: few images are fitted in a step or two, and with as "
        "many as there are weights none is; so the first part says as much about the sizes as "
        "about training, and shorter trips on other sizes stand beside it. Held-out means test "
        "images. Equal can only mean equal up to the scatter of a few batches of a hundred "
        "images, about a tenth each way; a quarter is wider than that and narrower than the gap "
        "between training and test loss of an overfitted network, which is no equality.",
        judge_b5,
    ),
    Claim(
        "B11",
        "Gradients of mini-batches are weakly aligned, all along the trajectory",
        "Mini-batch gradients are weakly aligned with each other and with the full gradient, all "
        "along the trajectory.",
        SANDLER,
        ("gradients", "reach"),
        "all inner products of the gradients of many batches at several points of the base run; "
        "the ratio of expectations for each seed, and the same for batches of several sizes",
        (ALIGNED,),
        "A cosine of 1/4 between batches means that a batch's gradient holds three times more "
        "noise than signal, and a cosine of √(1/4) = 1/2, an angle of 60 degrees, with the full "
        "gradient: half-way between along and across it in terms of its projection. A ratio of "
        "expectations is not biased by the number of batches, as the cosine with their mean is. "
        "It hangs on the size of the batches as 1 / (1 + b/B), where b is the gradient noise "
        "scale: a large enough batch is always well aligned. So the threshold judges the size "
        "that the run is trained with, and other sizes stand beside it.",
        judge_b11,
    ),
)
