"""Entries of a study's configuration for the probing tasks, and the cost of these tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tf_lrtraj.runs.config_checks import Entry, count
from tf_lrtraj.specs import ENSEMBLE_SCALES, PROBES
from tf_lrtraj.values import Rule, number, sequence_of

__all__ = [
    "PROBE_ENTRIES",
    "REACH_TRIP",
    "ascending",
    "batches_of",
    "costs",
    "images_of",
    "iterate_pairs",
]

REACH_TRIP = 4  # steps of the side trips on batches of several sizes


def ascending(rule: Rule, words: str, fewest: int = 1) -> Rule:
    """Returns the rule of a list of different values in ascending order that fulfil `rule`."""
    members = sequence_of(rule, words, fewest)

    def read(value: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = members.read(value)
        if list(found) != sorted(set(found)):
            raise ValueError
        return found

    return Rule(words, read)


_STEPS = ascending(count(1), "different positive integers, ascending", fewest=0)


def _trip_steps(value: Any) -> tuple[int, ...]:
    found: tuple[int, ...] = _STEPS.read(value)
    if len(found) == 1:
        raise ValueError
    return found


def _even(value: Any) -> int:
    found: int = count(2).read(value)
    if found % 2:
        raise ValueError
    return found


def _around_one(value: Any) -> tuple[float, ...]:
    found: tuple[float, ...] = sequence_of(number(above=0), "", fewest=2).read(value)
    if not min(found) < 1 < max(found):
        raise ValueError
    return found


_POSITIVE = number(above=0)
_SHARE = number(above=0, at_most=1)
_EVEN = Rule("an even integer of at least 2", _even)

# Defaults for the digits (ResNet-8 of width 8, 8x8 images): one or two minutes per seed and core.
PROBE_ENTRIES = {
    # One step, side trips and gradients of mini-batches on the base run, with batch statistics.
    # Batches have `config.batch_size` images.
    "probes.steps": Entry(
        (),
        _STEPS,
        "updates, of snapshots or of kept states, at which lines and gradients are measured; "
        "(): the middle of the run, and the first and last update of the window",
    ),
    "probes.batches": Entry(
        8, count(2), "training batches, with a step along the gradient of each"
    ),
    "probes.held_out": Entry(4, count(2), "test batches on which the loss is measured"),
    "probes.others": Entry(
        2, count(2), "training batches on which no step is made and the loss is measured"
    ),
    "probes.low": Entry(
        0.05,
        _POSITIVE,
        "lowest positive rate of a line; rates are evenly spaced in the logarithm",
    ),
    "probes.high": Entry(
        8.0,
        _POSITIVE,
        "highest rate of a line; a line is extended until it passes the minimum of each batch",
    ),
    "probes.rates": Entry(17, count(8), "number of positive rates"),
    "probes.gradients": Entry(24, count(3), "batches whose gradients are compared"),
    "probes.trip_steps": Entry(
        (),
        Rule(f"{_STEPS.allowed}, none or two or more", _trip_steps),
        "updates at which side trips start; (): the first and last update of the window",
    ),
    "probes.trip_length": Entry(9, count(1), "steps of a side trip"),
    "probes.trip_rate": Entry(
        None,
        _POSITIVE.or_none(),
        "learning rate of side trips; None: the quantile trip_quantile of the best rates of the "
        "line's batches at their start",
        float,
    ),
    "probes.trip_quantile": Entry(
        0.5,
        number(0, 1),
        "quantile of the best rates, used as the rate of side trips: 0.5 is the median, 0 the "
        "lowest. Beyond twice its best rate the loss of a batch rises, so use 0 where best rates "
        "differ strongly, as near a loss of 0",
    ),
    "probes.trip_batches": Entry(
        6,
        count(1),
        "batches drawn for side trips, in addition to the batch just seen at each start; each "
        "batch has one trip from every start",
    ),
    "probes.basin_positions": Entry(
        11, count(3), "positions on each segment between the ends of trips and the trajectory"
    ),
    "probes.basin_level": Entry(
        0.05,
        _SHARE,
        "height below which a barrier counts as none, as a share of the loss at the starts",
    ),
    # Lines at iterates of the run without momentum.
    "one_step.settle": Entry(
        0.25,
        number(0, below=1),
        "share of the run without momentum during which it becomes stationary",
    ),
    "one_step.iterates": Entry(
        10, count(2), "iterates measured, evenly spaced over the rest of the run"
    ),
    "one_step.batches": Entry(
        6, count(2), "batches per iterate, with a step along the gradient of each"
    ),
    "one_step.held_out": Entry(4, count(2), "test batches on which the loss is measured"),
    "one_step.others": Entry(6, count(2), "other training batches on which the loss is measured"),
    "one_step.points": Entry(
        4, _EVEN, "rates per interval of one learning rate; rates go up to twice the run's rate"
    ),
    # Losses of fixed batches between iterates of the window.
    "convexity.distances": Entry(
        3,
        count(1),
        "number of distances between two iterates, evenly spaced in the logarithm up to the window",
    ),
    "convexity.pairs": Entry(2, count(1), "pairs of iterates at each distance"),
    "convexity.positions": Entry(9, count(5), "positions on each segment"),
    "convexity.batches": Entry(4, count(2), "batches whose losses are measured"),
    # One step on batches of several sizes, also with a narrower network.
    "reach.divisor": Entry(
        2, count(2), "factor by which the second network is narrower than the model"
    ),
    "reach.steps": Entry(
        200,
        count(1),
        "updates of the narrower network; the base run is measured after as many and at its end",
    ),
    "reach.sizes": Entry(
        (4, 16, 64),
        ascending(count(2), "two or more different integers of at least 2, ascending", fewest=2),
        "batch sizes; the largest is at least divisor squared times the smallest",
    ),
    "reach.images": Entry(
        64, count(4), "images in all batches of one size together; there are at least four batches"
    ),
    "displacement.lags": Entry(16, count(3), "number of lags, evenly spaced in the logarithm"),
    "displacement.longest": Entry(0.25, _SHARE, "longest lag, as a share of the window"),
    "shell.places": Entry(
        4,
        _EVEN,
        "parts of the window whose averages are compared with the mean of the other half of the "
        "window",
    ),
    "shell.scales": Entry(
        (0.5, 1.0, 1.5),
        Rule("positive numbers, one below 1 and one above", _around_one),
        "distances from the mean at which runs start, as multiples of the distance of an iterate",
    ),
    "shell.steps": Entry(20, count(1), "updates of these runs"),
    # The end of the conventional run and SWA: rays of normalised filters, and the segment between
    # them.  Batch norm recomputed at every point, on the images that evaluations recompute it on.
    "width.images": Entry(
        500, count(2), "largest number of test images and, on the segment, of training images"
    ),
    "width.size": Entry(100, count(2), "images per batch"),
    "width.rays": Entry(4, count(2), "rays from each point"),
    "width.low": Entry(
        0.05, _POSITIVE, "lowest positive distance along a ray, in norms of the kernels"
    ),
    "width.high": Entry(
        1.6,
        _POSITIVE,
        "highest distance along a ray; the test error must rise by 5 points before it",
    ),
    "width.num": Entry(
        11, count(2), "number of positive distances, evenly spaced in the logarithm"
    ),
    "width.positions": Entry(
        5, count(3), "positions on the segment, which is extended by its length at both ends"
    ),
    # Predictions of cycle ends, of their ensemble and of their mean; batch norm recomputed.
    "ensemble.members": Entry(5, count(2), "number of members, the last ones of the run"),
    "ensemble.images": Entry(500, count(2), "largest number of test images"),
    "ensemble.size": Entry(100, count(2), "images per batch"),
}


def iterate_pairs(count: int, settings: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Returns pairs of `count` iterates by number: several at each distance, evenly spaced.

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
    """Returns the number of batches of a size on which steps are made, at least four.

    >>> [batches_of(size, {"images": 64}) for size in (4, 64)]
    [16, 4]
    """
    return max(int(settings["images"]) // size, 4)


def costs(config: Mapping[str, Any]) -> dict[str, float]:
    """Returns task → images of forward passes for one seed; a gradient counts as three.

    Extensions of grids, and incomplete last batches of the test set, are ignored.

    Args:
        config: the configuration of the reproduction, validated.
    """
    probe, one, width, members = (config[k] for k in ("probes", "one_step", "width", "ensemble"))
    batch = config["batch_size"]
    starts = len(probe["trip_steps"]) or 2
    points = len(probe["steps"]) or 3
    trips = starts + probe["trip_batches"]
    # The batch itself, test batches, and other training batches.
    beside = probe["held_out"] + probe["others"]
    passes = {kind: spec.passes for kind, spec in PROBES.items()}
    line = passes["line"](1, 1 + probe["rates"], 1 + beside)
    step = passes["line"](1, 1 + 2 * one["points"], 1 + one["held_out"] + one["others"])
    trip = passes["side_trip"](probe["trip_length"] + 1, 1 + beside)
    walk = passes["gradients"](probe["trip_length"])  # to the end of a trip
    pairs = starts * (starts - 1) // 2 * (trips + 1) + starts * trips
    walks = starts * trips * (walk + 1)  # and the trips' losses at their starts
    if config["seeds"] > 1:  # trips from another seed's run, and segments there
        walks += trips * walk
        pairs += 2 * trips + 1
    convexity, reach = config["convexity"], config["reach"]
    segments = len(iterate_pairs(config["window"] // config["every"] + 1, convexity))
    # At three places, and trips and gradients at one of them.
    steps = 3 * passes["line"](1, 1 + probe["rates"])
    steps += passes["gradients"](1) + passes["side_trip"](REACH_TRIP + 1, 1)
    # Passes of one image, as batch norm is recomputed on others.
    moments = config["evaluate"]["batch_norm_images"]
    rays = passes["width"](2 * (1 + width["rays"] * width["num"]), width["images"], moments)
    sgd_to_swa = passes["basin"](3 * width["positions"] - 2, 2 * width["images"], moments)
    to_ends = passes["basin"](pairs * probe["basin_positions"], trips + beside)
    between = passes["basin"](segments * convexity["positions"], convexity["batches"])
    predictors = len(ENSEMBLE_SCALES) * members["members"]
    return {
        "line": points * probe["batches"] * line * batch,
        "side_trip": starts * trips * trip * batch,
        "basin": (walks + to_ends) * batch,
        "gradients": points * passes["gradients"](probe["gradients"]) * batch,
        "one_step_lines": one["iterates"] * one["batches"] * step * batch,
        "convexity": between * batch,
        "reach": steps * sum(batches_of(size, reach) * size for size in reach["sizes"]),
        "displacement": 0.0,
        "width": rays + sgd_to_swa,
        "ensemble": passes["ensemble"](predictors, members["images"], moments),
    }


def images_of(task: str) -> Callable[[Mapping[str, Any], Any], float]:
    """Returns the cost function of one of these tasks, for a `Task`."""

    def images(config: Mapping[str, Any], sizes: Any) -> float:
        return costs(config)[task]

    return images
