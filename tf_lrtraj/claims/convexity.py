"""Claim B12: how convex the loss of a fixed batch is, along steps and between iterates."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tf_lrtraj.claims.minibatch import FIT_WINDOW, by_step, landmark, parts_at_steps
from tf_lrtraj.claims.records_reader import NotMeasured, Probed, Records
from tf_lrtraj.claims.shared_basin import segments_of
from tf_lrtraj.claims.verdicts import SANDLER, Claim, Condition, Judgement, Wanted, conclude
from tf_lrtraj.records import RecordError

LIMIT = 10.0
# A mean of float32 losses has a relative rounding error of a few times 1.2e-7.
NOISE = 2.0**-20
ALONG = Wanted(
    "line", "part of the way along a batch's step where its loss is concave, %", high=LIMIT
)
BETWEEN = Wanted(
    "segment", "part of the way between iterates where a loss is concave, %", high=LIMIT
)


def lengths(position: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """Returns the lengths (where losses are concave, where their curvature is above the noise).

    Args:
        position: [K] places along a line, ascending.
        losses: [K] at them, or [K, n] of n batches, over which lengths are summed.

    >>> x = np.linspace(0.0, 2.0, 9)
    >>> lengths(x, x**2), lengths(x, x)
    ((0.0, 1.75), (0.0, 0.0))
    """
    y = losses.reshape(len(position), -1)
    gaps = np.diff(position)[:, None]
    slopes, sizes = np.diff(y, axis=0) / gaps, (np.abs(y[1:]) + np.abs(y[:-1])) / gaps
    second, floor = np.diff(slopes, axis=0), NOISE * (sizes[1:] + sizes[:-1])
    covered = np.broadcast_to(0.5 * (gaps[1:] + gaps[:-1]), second.shape)
    return float(covered[second < -floor].sum()), float(covered[np.abs(second) > floor].sum())


def judge_b12(records: Records) -> Judgement:
    """Where the second difference of a fixed batch's loss is negative."""
    lines = records.probes("line-*", "line")
    between, basins = (records.probes(name, "basin") for name in ("convexity", "basin"))
    controls = [
        _share(probe.name, [lengths(probe.coordinate("position"), _control(probe))])
        for probe in basins
    ]
    distances = [_between(probe) for probe in between]
    parts = parts_at_steps(ALONG, lines, _along) + [
        BETWEEN.judge([found[distance] for found in distances], f"{distance} updates apart")
        for distance in distances[0]
    ]
    control = _control(basins[0]).mean(axis=-1)
    condition = Condition(
        "control",
        "the same between the runs of two seeds, where a loss is not convex, %",
        controls,
        low=LIMIT,
    )
    drawn = {
        "control": controls,
        "between": _shown(between[0]),
        "apart": (basins[0].coordinate("position"), control / control[0]),
        "step": max(by_step(lines)),
    }
    return conclude(parts, conditions=[condition], drawn=drawn)


def _share(name: str, found: Iterable[tuple[float, float]]) -> float:
    """Returns the concave share of the resolved length, in per cent."""
    concave, told = np.sum(list(found), axis=0)
    if told <= 0.0:
        raise RecordError(f"{name}: no second difference can be told from rounding errors.")
    return float(100.0 * concave / told)


def _along(probe: Probed) -> float:
    """Up to twice each batch's best rate, all batches counted alike."""
    rates = probe.coordinate("rate")
    losses = probe.array("train", finite=False)
    found = []
    for i, rate in enumerate(landmark(probe, "best_rate")):
        inside = rates <= FIT_WINDOW * rate * (1.0 + 1e-9)
        if inside.sum() < 3 or not np.isfinite(losses[inside, i]).all():
            raise RecordError(f"{probe.name}: batch {i} has fewer than 3 finite losses.")
        found.append(lengths(rates[inside] / rate, losses[inside, i]))
    return _share(probe.name, found)


def _between(probe: Probed) -> dict[int, float]:
    """Distance in updates → the share of segments of that length."""
    position = probe.coordinate("position")
    losses = probe.array("loss")[:, 0]
    apart = _distances(probe)
    return {
        distance: _share(
            probe.name,
            [lengths(position, losses[row]) for row in np.flatnonzero(apart == distance)],
        )
        for distance in np.unique(apart).tolist()
    }


def _distances(probe: Probed) -> np.ndarray:
    first, second = (probe.coordinate(name).astype(int) for name in ("first", "second"))
    return np.asarray(second - first)


def _shown(probe: Probed) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Positions, and distance → [position] mean loss of a segment, over its first end's."""
    losses, apart = probe.array("loss")[:, 0].mean(axis=-1), _distances(probe)
    rows = {d: int(np.flatnonzero(apart == d)[0]) for d in np.unique(apart).tolist()}
    position = probe.coordinate("position")
    return position, {d: losses[row] / losses[row, 0] for d, row in rows.items()}


def _control(probe: Probed) -> np.ndarray:
    """[position, batch] losses on the segment between the runs of two seeds."""
    for row, segment in enumerate(segments_of(probe)):
        if segment["kind"] == "control_main":
            return probe.array("loss")[row, 0]
    raise NotMeasured("No segment between the runs of two seeds, the control.")


CLAIMS = (
    Claim(
        "B12",
        "The loss of a fixed batch is convex-like along the trajectory",
        "The loss of a fixed batch is convex-like along the trajectory.",
        SANDLER,
        ("line", "convexity", "basin"),
        "second differences of the losses of fixed batches, along each batch's own step up to "
        "twice its best rate and on segments between iterates of the run at several distances; "
        "the part of the length where they are negative, rounding errors left out",
        (ALONG, BETWEEN),
        "Along a convex function no second difference is negative; along a sinusoid or a random "
        "walk half of them are, along a quartic from one minimum to another over a hump 58 %, and "
        "along a descent that levels off (a sigmoid) half. A tenth is far from all of these and "
        "leaves room for the kinks of a network of ReLUs. The measurement must be able to see "
        "what is not convex: on segments between the runs of two seeds more than that tenth "
        "must be concave.",
        judge_b12,
    ),
)
