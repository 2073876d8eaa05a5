"""Which figure shows which claim, and how each is drawn from the records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.report.probes import ensembles, gradients, line, segments, side_trips, widths
from tf_lrtraj.report.probes.sentences import sentences
from tf_lrtraj.report.reproduction import (
    averages,
    basins,
    budget,
    equivalence,
    lines,
    speed,
    stationarity,
    stationary_state,
)
from tf_lrtraj.report.reproduction.reading import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PLATES", "SETTLED", "STATIONARITY", "Plate", "draw", "of_claim"]

STATIONARITY = ("base",)  # shown before all claims
SETTLED = "B7"  # the claim whose tests say whether the run has levelled off


@dataclasses.dataclass(frozen=True)
class Plate:
    """A figure and the words under it.

    Attributes:
        name: its file is figures/NAME.svg.
        alt: what it shows, for those who do not see it.
        caption: what stands below it.
        figure: drawn.
    """

    name: str
    alt: str
    caption: str
    figure: Figure


_Make = Callable[[Source], "tuple[Figure, str] | None"]


def _of_tasks(draw: Callable[..., Figure | None], caption: Callable[..., str], *more: Any) -> _Make:
    def made(source: Source) -> tuple[Figure, str] | None:
        figure = draw(source.tasks, *more)
        return None if figure is None else (figure, caption(source.tasks, *more))

    return made


def _of_probes(
    name: str, draw: Callable[..., Figure], text: str, most: int = 1, told: int = 1
) -> _Make:
    """Of one probe, at up to `most` points of the first seed that has it.

    The caption is `text` and the first `told` findings at each point.
    """

    def made(source: Source) -> tuple[Figure, str] | None:
        found = _spread(source.probes(name), most)
        if not found:
            return None
        findings = [one for record in found for one in sentences(record)[:told]]
        figure = draw(found if most > 1 else found[0])
        return figure, " ".join([text, *(f"{one[0].upper()}{one[1:]}." for one in findings)])

    return made


def _spread(records: Sequence[ArrayRecord], most: int) -> list[ArrayRecord]:
    """At most so many, the first and the last among them."""
    count = len(records)
    if count <= most:
        return list(records)
    if most == 1:
        return [records[-1]]
    return [records[round(i * (count - 1) / (most - 1))] for i in range(most)]


def _of_lines(
    name: str, draw: Callable[..., Figure | None], caption: Callable[..., str], *first: str
) -> _Make:
    """Of the lines of all seeds; `draw` takes the tasks as well if it needs them."""

    def made(source: Source) -> tuple[Figure, str] | None:
        lines = source.all_probes(name)
        given = (source.tasks, lines) if first else (lines,)
        figure = draw(*given) if lines else None
        return None if figure is None else (figure, caption(*given))

    return made


def _basin(source: Source) -> tuple[Figure, str] | None:
    found = source.probes("basin")
    if not found:
        return None
    figure = basins.draw(found[0])
    if figure is None:  # other points than those of trips
        return segments.draw(found[0]), "Losses along straight segments, and barriers."
    return figure, basins.caption(found[0])


def _rates(source: Source) -> tuple[Figure, str] | None:
    figure = stationary_state.draw_rates(source.tasks, source.number("B8", "exponent"))
    return None if figure is None else (figure, stationary_state.caption_rates(source.tasks))


def _sweep(source: Source) -> tuple[Figure, str] | None:
    figure = averages.draw_sweep(source.tasks)
    known = {
        which: (
            source.number("A5", f"median_error_{which}"),
            source.number("A5", f"worst_error_{which}"),
        )
        for which in averages.SWEPT
    }
    return None if figure is None else (figure, averages.caption_sweep(source.tasks, known))


# Name of a figure → (what it shows, how it is made).  A figure belongs to the claim whose id its
# name begins with; those of STATIONARITY stand before all claims.
PLATES: dict[str, tuple[str, _Make]] = {
    "base": (
        "Loss and norm of the constant-rate run",
        _of_tasks(stationarity.draw_levels, stationarity.caption_levels),
    ),
    "B1": (
        "Loss of a training batch and of others along one gradient step, and fits to it",
        _of_probes(
            "line",
            line.draw,
            "Above: losses of the batch that gave the gradient, of held-out and of other training "
            "batches, after one step against its rate; below: how well polynomials fit the first.",
            most=3,
            told=0,
        ),
    ),
    "B2": (
        "Lowest loss of batches along one step, against the trained model's loss",
        _of_lines("line", lines.draw_lowest, lines.caption_lowest, "tasks"),
    ),
    "B3": (
        "Best rate and gain of one step, on its own batch and on others",
        _of_lines("line", lines.draw_held_out, lines.caption_held_out),
    ),
    "B4": (
        "Loss of other batches after one more step from the stationary state",
        _of_lines("one_step", lines.draw_one_step, lines.caption_one_step, "tasks"),
    ),
    "B5": (
        "Losses over repeated steps on one fixed batch",
        _of_probes("side_trip", side_trips.draw, "Repeated steps on one fixed batch.", most=3),
    ),
    "B6": (
        "Losses along segments between ends of side trips and the trajectory",
        _basin,
    ),
    "B7": (
        "Squared displacement of the weights against lag",
        _of_tasks(stationarity.draw_displacement, stationarity.caption_displacement),
    ),
    "B8": (
        "Distance of iterates from their centre against the rate",
        _rates,
    ),
    "B9": (
        "Distances of iterates and averages from the centre",
        _of_tasks(stationary_state.draw_shell, stationary_state.caption_shell),
    ),
    "B10": (
        "Squared distance between two runs against steps",
        _of_tasks(stationary_state.draw_pairs, stationary_state.caption_pairs),
    ),
    "B11": (
        "Cosines between gradients of mini-batches",
        _of_probes("gradients", gradients.draw, "Gradients of mini-batches.", most=2),
    ),
    "A1": (
        "Runs under equivalent schedules, minus the averages",
        _of_tasks(equivalence.draw_gaps, equivalence.caption_gaps),
    ),
    "A1_levels": (
        "Losses and accuracies of averages and of runs under equivalent schedules",
        _of_tasks(equivalence.draw_levels, equivalence.caption_levels),
    ),
    "A2": (
        "Averages of two points against their gap, beside a run at half the rate",
        _of_tasks(averages.draw_points, averages.caption_points, (2,)),
    ),
    "A3": (
        "Averages of four and eight points against their gap, beside runs at lower rates",
        _of_tasks(averages.draw_points, averages.caption_points, (4, 8)),
    ),
    "A4": (
        "Decaying schedules, trained and emulated",
        _of_tasks(averages.draw_decays, averages.caption_decays),
    ),
    "A5": (
        "Predicted against measured loss of every average",
        _sweep,
    ),
    "A6": (
        "Loss against steps: large rate, its average, small rate",
        _of_tasks(speed.draw_speed, speed.caption_speed),
    ),
    "A6_model": (
        "Synthetic model with two time scales",
        _of_tasks(speed.draw_two_time_scales, speed.caption_two_time_scales),
    ),
    "A7": (
        "Single runs of the synthetic model beside its formulas",
        _of_tasks(speed.draw_single_runs, speed.caption_single_runs),
    ),
    "S1": (
        "Test accuracy of SWA and of the conventional run at equal budget",
        _of_tasks(budget.draw_methods, budget.caption_methods, budget.S1),
    ),
    "S2": (
        "The cyclical rate and where models were collected",
        _of_tasks(budget.draw_cycle, budget.caption_cycle),
    ),
    "S3": (
        "Time and memory of the running average",
        _of_tasks(budget.draw_cost, budget.caption_cost),
    ),
    "S4": (
        "Losses along random rays from the last iterate and from SWA",
        _of_probes(
            "width",
            widths.draw,
            "Loss and error against the distance along random rays, the same from both points "
            "(thin: single rays; bands: two standard errors). Marks: where the loss has risen by "
            "the stated amount.",
            told=0,
        ),
    ),
    "S4_segment": (
        "Losses along the segment from the last iterate to SWA",
        _of_probes(
            "sgd_to_swa",
            segments.draw,
            "Along the line through the last iterate and SWA, and beyond both; right: how much "
            "higher the loss is on SWA's side at the same distance from the middle.",
            told=0,
        ),
    ),
    "S5": (
        "Differences of predictions against distance of weights",
        _of_probes("ensemble", ensembles.draw, "Ensemble of snapshots, and their average."),
    ),
    "S6": (
        "Test accuracy of FGE ensembles, their members, SWA and independent runs",
        _of_tasks(budget.draw_methods, budget.caption_methods, budget.S6),
    ),
    "S7": (
        "Test accuracy of averages by their batch-norm statistics",
        _of_tasks(budget.draw_policies, budget.caption_policies),
    ),
}


def of_claim(name: str) -> tuple[str, ...]:
    """Names of the figures of a claim, the telling one first.

    >>> of_claim("A1"), of_claim("B1"), of_claim("Z9")
    (('A1', 'A1_levels'), ('B1',), ())
    """
    return tuple(plate for plate in PLATES if plate == name or plate.startswith(f"{name}_"))


def draw(source: Source, name: str) -> Plate | None:
    """The figure of that name; None where its records are missing.

    What cannot be drawn from the records there are is added to `source.problems`.
    """
    alt, make = PLATES[name]
    try:
        made = make(source)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        source.undrawn.add(name)
        source.problems.append(f"The figure {name!r} could not be drawn from its records ({what}).")
        return None
    return None if made is None else Plate(name, alt, made[1], made[0])
