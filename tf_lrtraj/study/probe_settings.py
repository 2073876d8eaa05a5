"""What the probing tasks of a reproduction measure: settings, what is allowed, and the cost.

`PROBE_DEFAULTS` and `PROBE_CHECKS` are parts of the reproduction's configuration; `costs`
serves its plan.

>>> from tf_lrtraj.study import probe_settings
>>> sorted(probe_settings.PROBE_DEFAULTS)
['convexity', 'displacement', 'ensemble', 'one_step', 'probes', 'reach', 'shell', 'width']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import config_dict

from tf_lrtraj.runs.old_checks import Check, integer, is_integer, is_number, number, optional

__all__ = [
    "PROBE_CHECKS",
    "PROBE_DEFAULTS",
    "REACH_TRIP",
    "batches_of",
    "costs",
    "images_of",
    "iterate_pairs",
]

REACH_TRIP = 4  # steps of the side trips on batches of several sizes

# Sizes for the digits (ResNet-8 of width 8, 8x8 images): a minute or two of one core for a seed.
PROBE_DEFAULTS: dict[str, Any] = {
    # One step, side trips and gradients of mini-batches on the base run; batch norm by the
    # batch's own moments.  Batches have `config.batch_size` images.
    "probes": {
        # Numbers of updates at which lines and gradients are measured: of snapshots, or of states
        # that are kept.  (): half-way through the run, and the window's first and last.
        "steps": (),
        "batches": 8,  # training batches, each stepped along its own gradient
        "held_out": 4,  # test batches
        "others": 2,  # training batches on which no step is made
        # Rates of the line: 0, and `rates` from `low` to `high`, even in the logarithm; it
        # goes on beyond `high` until the minimum of each batch is passed.
        "low": 0.05,
        "high": 8.0,
        "rates": 17,
        "gradients": 24,  # batches whose gradients are compared
        "trip_steps": (),  # starts of side trips, two or more; (): the window's first and last
        "trip_length": 9,  # steps of a trip
        # Rate of trips; None: of the best rates of the line's batches at their start, the one at
        # this quantile.  Beyond twice its own a batch's loss rises: where best rates differ many
        # times over, as near a loss of 0, take the lowest.
        "trip_rate": config_dict.placeholder(float),
        "trip_quantile": 0.5,  # 0.5: the median, 0: the lowest
        # Batches of trips, one trip each, from every start: first the one just seen at each
        # start, then so many drawn from the rest.
        "trip_batches": 6,
        "basin_positions": 11,  # on each segment between trips' ends and the trajectory
        "basin_level": 0.05,  # smaller barriers count as none, as a share of the loss at the starts
    },
    # Lines at iterates of the run without momentum.
    "one_step": {
        "settle": 0.25,  # share of the run that is left to the new rate to settle
        "iterates": 10,  # evenly spaced over the rest
        "batches": 6,  # whose gradients are stepped along, at each iterate
        "held_out": 4,  # test batches that the loss is measured on
        "others": 6,  # training batches, likewise
        "points": 4,  # rates from one multiple of the run's rate to the next, up to twice it; even
    },
    # Losses of fixed batches between iterates of the window.
    "convexity": {
        "distances": 3,  # between two iterates; evenly spaced in the logarithm, to the whole window
        "pairs": 2,  # of iterates at each distance
        "positions": 9,  # on each segment
        "batches": 4,
    },
    # One step on batches of several sizes, and the same with a narrower network.
    "reach": {
        "divisor": 2,  # the narrower network's width is that of the model over this
        "steps": 200,  # of its run; the base run is looked at after as many, and at its end
        "sizes": (4, 16, 64),  # of batches; a span of at least `divisor` squared
        "images": 64,  # in all batches of one size, of which there are four or more
    },
    "displacement": {
        "lags": 16,  # evenly spaced in the logarithm
        "longest": 0.25,  # longest lag, as a share of the window
    },
    # Averages over `places` stretches of the window, each seen from the mean of the window's
    # other half; and runs of `steps` updates that start there at `scales` times an iterate's place.
    "shell": {"places": 4, "scales": (0.5, 1.0, 1.5), "steps": 20},
    # The end of the conventional run and SWA: rays of normalised filters, and the segment between
    # them.  Batch norm recomputed at every point, on the images that evaluations recompute it on.
    "width": {
        "images": 500,  # at most so many test images, and, on the segment, training images
        "size": 100,  # in a batch of them
        "rays": 4,
        # Distances along a ray, in norms of the kernels: 0, and `num` from `low` to `high`,
        # even in the logarithm.  The test error must rise by 5 points on the way.
        "low": 0.05,
        "high": 1.6,
        "num": 11,
        "positions": 5,  # on the segment; it goes on for its length at both ends
    },
    # Predictions of cycle ends, of their ensemble and of their mean; batch norm recomputed.
    "ensemble": {
        "members": 5,  # the last so many
        "images": 500,  # at most so many test images
        "size": 100,  # in a batch of them
    },
}


def _above(low: float, high: float) -> Check:
    return (
        f"a number above {low:g} and at most {high:g}",
        lambda value: is_number(value) and low < value <= high,
    )


_STEPS: Check = (
    "different positive integers, ascending",
    lambda value: (
        isinstance(value, (list, tuple))
        and all(is_integer(step) and step > 0 for step in value)
        and list(value) == sorted(set(value))
    ),
)
_TRIP_STEPS: Check = (
    f"{_STEPS[0]}, none or two or more",
    lambda value: _STEPS[1](value) and len(value) != 1,
)
_POSITIVE: Check = ("a positive number", lambda value: is_number(value) and value > 0)

# Key → (what is allowed, whether a value is).
PROBE_CHECKS: dict[str, Check] = {
    "probes.steps": _STEPS,
    "probes.batches": integer(2),
    "probes.held_out": integer(2),
    "probes.others": integer(2),
    "probes.low": _POSITIVE,
    "probes.high": _POSITIVE,  # and above `low`, which rate_grid tells
    "probes.rates": integer(8),
    "probes.gradients": integer(3),
    "probes.trip_steps": _TRIP_STEPS,
    "probes.trip_length": integer(1),
    "probes.trip_rate": optional(_POSITIVE),
    "probes.trip_quantile": (
        "a number from 0 to 1",
        lambda value: is_number(value) and 0 <= value <= 1,
    ),
    "probes.trip_batches": integer(1),
    "probes.basin_positions": integer(3),
    "probes.basin_level": _above(0, 1),
    "one_step.settle": number(0, 1),
    "one_step.iterates": integer(2),
    "one_step.batches": integer(2),
    "one_step.held_out": integer(2),
    "one_step.others": integer(2),
    "one_step.points": (
        "an even integer of at least 2",
        lambda value: is_integer(value) and value >= 2 and value % 2 == 0,
    ),
    "convexity.distances": integer(1),
    "convexity.pairs": integer(1),
    "convexity.positions": integer(5),
    "convexity.batches": integer(2),
    "reach.divisor": integer(2),
    "reach.steps": integer(1),
    "reach.sizes": (
        "two or more different integers of at least 2, ascending",
        lambda value: _STEPS[1](value) and len(value) >= 2 and value[0] >= 2,
    ),
    "reach.images": integer(4),
    "displacement.lags": integer(3),
    "displacement.longest": _above(0, 1),
    "shell.places": (
        "an even integer of at least 2",
        lambda value: is_integer(value) and value >= 2 and value % 2 == 0,
    ),
    "shell.scales": (
        "positive numbers, one below 1 and one above",
        lambda value: (
            isinstance(value, (list, tuple))
            and all(is_number(scale) and scale > 0 for scale in value)
            and min(value, default=1) < 1 < max(value, default=1)
        ),
    ),
    "shell.steps": integer(1),
    "width.images": integer(2),
    "width.size": integer(2),
    "width.rays": integer(2),
    "width.low": _POSITIVE,
    "width.high": _POSITIVE,
    "width.num": integer(2),
    "width.positions": integer(3),
    "ensemble.members": integer(2),
    "ensemble.images": integer(2),
    "ensemble.size": integer(2),
}


def iterate_pairs(count: int, settings: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Pairs of `count` iterates, by number: at each distance so many, evenly over them.

    >>> iterate_pairs(9, {"distances": 3, "pairs": 2})
    [(0, 1), (7, 8), (0, 3), (5, 8), (0, 8)]
    """
    apart = np.geomspace(1, count - 1, settings["distances"]).round().astype(int)
    return [
        (first, first + distance)
        for distance in np.unique(apart).tolist()
        for first in np.unique(
            np.linspace(0, count - 1 - distance, settings["pairs"]).round().astype(int)
        ).tolist()
    ]


def batches_of(size: int, settings: Mapping[str, Any]) -> int:
    """Number of batches of a size, of which steps are made: four at least.

    >>> [batches_of(size, {"images": 64}) for size in (4, 64)]
    [16, 4]
    """
    return max(int(settings["images"]) // size, 4)


def costs(config: Mapping[str, Any]) -> dict[str, float]:
    """Task → images that go forward through the network, for one seed; a gradient counts as three.

    Grids that have to be extended, and the test set's end, are not foreseen.

    Args:
        config: of the reproduction, validated.
    """
    # Keras takes many seconds to import, and mistakes in a configuration show without it.
    from tf_lrtraj.probes.ensemble import SCALES
    from tf_lrtraj.probes.steps import GRADIENT_PASSES

    probe, one, width, members = (config[k] for k in ("probes", "one_step", "width", "ensemble"))
    batch = config["batch_size"]
    starts = len(probe["trip_steps"]) or 2
    points = len(probe["steps"]) or 3
    trips = starts + probe["trip_batches"]
    # The batch itself, test batches, and other training batches.
    beside = probe["held_out"] + probe["others"]
    line = GRADIENT_PASSES + (1 + probe["rates"]) * (1 + beside)
    step = GRADIENT_PASSES + (1 + 2 * one["points"]) * (1 + one["held_out"] + one["others"])
    trip = (probe["trip_length"] + 1) * (GRADIENT_PASSES + 1 + beside)
    pairs = starts * (starts - 1) // 2 * (trips + 1) + starts * trips
    segment = probe["basin_positions"] * (trips + beside)
    # To the ends of all trips, and the trips' losses at their starts.
    walks = starts * trips * (probe["trip_length"] * GRADIENT_PASSES + 1)
    if config["seeds"] > 1:  # trips from another seed's run, and segments there
        walks += trips * probe["trip_length"] * GRADIENT_PASSES
        pairs += 2 * trips + 1
    convexity, reach = config["convexity"], config["reach"]
    segments = len(iterate_pairs(config["window"] // config["every"] + 1, convexity))
    # At three places, and trips and gradients at one of them.
    steps = 3 * (GRADIENT_PASSES + 1 + probe["rates"])
    steps += GRADIENT_PASSES + (REACH_TRIP + 1) * (GRADIENT_PASSES + 1)
    moments = config["evaluate"]["batch_norm_images"]
    rays = 2 * (1 + width["rays"] * width["num"]) * (width["images"] + moments)
    segment_places = 3 * width["positions"] - 2
    return {
        "line": float(points * probe["batches"] * line * batch),
        "side_trip": float(starts * trips * trip * batch),
        "basin": float((walks + pairs * segment) * batch),
        "gradients": float(points * probe["gradients"] * GRADIENT_PASSES * batch),
        "one_step_lines": float(one["iterates"] * one["batches"] * step * batch),
        "convexity": float(segments * convexity["positions"] * convexity["batches"] * batch),
        "reach": float(steps * sum(batches_of(size, reach) * size for size in reach["sizes"])),
        "displacement": 0.0,
        "width": float(rays + segment_places * (2 * width["images"] + moments)),
        "ensemble": float((len(SCALES) * members["members"] + 1) * (members["images"] + moments)),
    }


def images_of(task: str) -> Callable[[Mapping[str, Any], Any], float]:
    """The cost of one of these tasks, as a `Task` wants it."""

    def images(config: Mapping[str, Any], sizes: Any) -> float:
        return costs(config)[task]

    return images
