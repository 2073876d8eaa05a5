"""What the probing tasks of a study measure: entries of its configuration, and the cost."""

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
    """A list of different values in ascending order, each of which keeps `rule`."""
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

# Sizes for the digits (ResNet-8 of width 8, 8x8 images): a minute or two of one core for a seed.
PROBE_ENTRIES = {
    # One step, side trips and gradients of mini-batches on the base run; batch norm by the
    # batch's own moments.  Batches have `config.batch_size` images.
    "probes.steps": Entry(
        (),
        _STEPS,
        "numbers of updates at which lines and gradients are measured: of snapshots, or of states "
        "that are kept; (): half-way through the run, and the window's first and last",
    ),
    "probes.batches": Entry(8, count(2), "training batches, each stepped along its own gradient"),
    "probes.held_out": Entry(4, count(2), "test batches"),
    "probes.others": Entry(2, count(2), "training batches on which no step is made"),
    "probes.low": Entry(
        0.05,
        _POSITIVE,
        "lowest rate of a line above 0; rates are even in the logarithm",
    ),
    "probes.high": Entry(
        8.0,
        _POSITIVE,
        "highest; a line goes on beyond until the minimum of each batch is passed",
    ),
    "probes.rates": Entry(17, count(8), "number of rates above 0"),
    "probes.gradients": Entry(24, count(3), "batches whose gradients are compared"),
    "probes.trip_steps": Entry(
        (),
        Rule(f"{_STEPS.allowed}, none or two or more", _trip_steps),
        "starts of side trips; (): the window's first and last",
    ),
    "probes.trip_length": Entry(9, count(1), "steps of a trip"),
    "probes.trip_rate": Entry(
        None,
        _POSITIVE.or_none(),
        "rate of trips; None: of the best rates of the line's batches at their start, the one at "
        "trip_quantile",
        float,
    ),
    "probes.trip_quantile": Entry(
        0.5,
        number(0, 1),
        "0.5: the median, 0: the lowest. Beyond twice its own best rate a batch's loss rises: "
        "where best rates differ many times over, as near a loss of 0, take the lowest",
    ),
    "probes.trip_batches": Entry(
        6,
        count(1),
        "batches of trips, one trip each from every start, drawn beside those just seen at the "
        "starts",
    ),
    "probes.basin_positions": Entry(
        11, count(3), "on each segment between trips' ends and the trajectory"
    ),
    "probes.basin_level": Entry(
        0.05, _SHARE, "smaller barriers count as none, as a share of the loss at the starts"
    ),
    # Lines at iterates of the run without momentum.
    "one_step.settle": Entry(
        0.25, number(0, below=1), "share of the run that is left to the new rate to settle"
    ),
    "one_step.iterates": Entry(10, count(2), "evenly spaced over the rest"),
    "one_step.batches": Entry(6, count(2), "whose gradients are stepped along, at each iterate"),
    "one_step.held_out": Entry(4, count(2), "test batches that the loss is measured on"),
    "one_step.others": Entry(6, count(2), "training batches, likewise"),
    "one_step.points": Entry(
        4, _EVEN, "rates from one multiple of the run's rate to the next, up to twice it"
    ),
    # Losses of fixed batches between iterates of the window.
    "convexity.distances": Entry(
        3,
        count(1),
        "between two iterates; evenly spaced in the logarithm, to the whole window",
    ),
    "convexity.pairs": Entry(2, count(1), "of iterates at each distance"),
    "convexity.positions": Entry(9, count(5), "on each segment"),
    "convexity.batches": Entry(4, count(2), "whose losses are measured"),
    # One step on batches of several sizes, and the same with a narrower network.
    "reach.divisor": Entry(
        2, count(2), "the narrower network's width is that of the model over this"
    ),
    "reach.steps": Entry(
        200, count(1), "of its run; the base run is looked at after as many, and at its end"
    ),
    "reach.sizes": Entry(
        (4, 16, 64),
        ascending(count(2), "two or more different integers of at least 2, ascending", fewest=2),
        "of batches; a span of at least `divisor` squared",
    ),
    "reach.images": Entry(
        64, count(4), "in all batches of one size, of which there are four or more"
    ),
    "displacement.lags": Entry(16, count(3), "evenly spaced in the logarithm"),
    "displacement.longest": Entry(0.25, _SHARE, "longest lag, as a share of the window"),
    "shell.places": Entry(
        4,
        _EVEN,
        "stretches of the window whose averages are seen from the mean of the window's other half",
    ),
    "shell.scales": Entry(
        (0.5, 1.0, 1.5),
        Rule("positive numbers, one below 1 and one above", _around_one),
        "of the distance of an iterate at which runs from it start",
    ),
    "shell.steps": Entry(20, count(1), "of these runs"),
    # The end of the conventional run and SWA: rays of normalised filters, and the segment between
    # them.  Batch norm recomputed at every point, on the images that evaluations recompute it on.
    "width.images": Entry(
        500, count(2), "at most so many test images, and, on the segment, training images"
    ),
    "width.size": Entry(100, count(2), "in a batch of them"),
    "width.rays": Entry(4, count(2), "from each point"),
    "width.low": Entry(
        0.05, _POSITIVE, "lowest distance along a ray above 0, in norms of the kernels"
    ),
    "width.high": Entry(1.6, _POSITIVE, "highest; the test error must rise by 5 points on the way"),
    "width.num": Entry(11, count(2), "number of distances above 0, even in the logarithm"),
    "width.positions": Entry(
        5, count(3), "on the segment, which goes on for its length at both ends"
    ),
    # Predictions of cycle ends, of their ensemble and of their mean; batch norm recomputed.
    "ensemble.members": Entry(5, count(2), "the last so many"),
    "ensemble.images": Entry(500, count(2), "at most so many test images"),
    "ensemble.size": Entry(100, count(2), "in a batch of them"),
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
    """The cost of one of these tasks, as a `Task` wants it."""

    def images(config: Mapping[str, Any], sizes: Any) -> float:
        return costs(config)[task]

    return images
