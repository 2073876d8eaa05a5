"""Tasks: side trips on single batches from several points, and the basins of their ends."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from tf_lrtraj import probes, seeds
from tf_lrtraj.probes.batches import Batch
from tf_lrtraj.records import ArrayRecord, RecordError
from tf_lrtraj.study import study_points, training_runs
from tf_lrtraj.study.probe_settings import images_of
from tf_lrtraj.study.session import Session
from tf_lrtraj.study.task import PROBE_SEEDS, task

__all__ = ["TASKS"]


@task(
    "trips on one batch",
    after=("line",),
    images=images_of("side_trip"),
    seeds_of=PROBE_SEEDS,
    probes=("side_trip-*",),
)
def side_trip(session: Session, seed: int) -> None:
    """Measures side trips, from every start on the same batches: `side_trip-<step>.npz`.

    `held_out` are test images, `others` training images on which no trip makes steps.
    """
    training_runs.base(session, seed)
    sets = _Sets(session, seed)
    for step in sets.starts:
        trip = _trip(session, seed, sets, step)
        about = sets.about | {"step": step, "held_out_set": "test", "others_set": "train"}
        session.measure(trip, f"side_trip-{step:09d}", seed, **about)


@task(
    "barriers between ends",
    after=("side_trip",),
    images=images_of("basin"),
    seeds_of=PROBE_SEEDS,
    probes=("basin",),
    across=True,
)
def basin(session: Session, seed: int) -> None:
    """Measures losses between ends of trips, and from each to its start: `basin.npz`.

    Points are `trip-<step>-<batch>` and `main-<step>`.  The training batches are those of the
    trips, in order, followed by the other ones (`about["own"]` is the number of the trips'
    batches); `held_out` are test images.  `about["segments"]` gives the kind of every pair: "ends"
    of trips on one batch, an end "to_main", or two points of the "main" run.

    With two or more seeds there are controls that should show barriers, whose kinds begin with
    `control_`: the run of the next seed at the last start, `other-main-<step>`, and trips from
    there on the same batches, `other-trip-<step>-<batch>`.
    """
    training_runs.base(session, seed)
    sets = _Sets(session, seed)
    trips = {step: _trip(session, seed, sets, step, keep_ends=True) for step in sets.starts}
    numbers = range(len(sets.batches))
    ends = {_end(step, i): trips[step].end_point(i) for step in sets.starts for i in numbers}
    main = {_main(step): trips[step].weights for step in sets.starts}
    couples = list(itertools.combinations(sets.starts, 2))
    segments = [_segment("ends", a, b, i) for a, b in couples for i in numbers]
    segments += [_segment("to_main", step, step, i) for step in sets.starts for i in numbers]
    segments += [_segment("main", a, b) for a, b in couples]
    pairs = [_names(segment) for segment in segments]
    if session.config["seeds"] > 1:
        last = sets.starts[-1]
        trip = _other_trip(session, seed, sets, last)
        ends |= {f"other-{_end(last, i)}": trip.end_point(i) for i in numbers}
        main[f"other-{_main(last)}"] = trip.weights
        controls = [_segment(kind, last, last, i) for kind in ("ends", "to_main") for i in numbers]
        controls.append(_segment("main", last, last))
        pairs += [(first, f"other-{second}") for first, second in map(_names, controls)]
        segments += [{**one, "kind": f"control_{one['kind']}"} for one in controls]
    share = session.config["probes"]["basin_level"]
    at_starts = [
        session.surface.evaluate(trips[step].weights, sets.batches)[0].mean()
        for step in sets.starts
    ]
    probe = probes.Basin(
        session.surface,
        {**main, **ends},
        [*sets.batches, *sets.others],
        held_out=sets.held_out,
        pairs=pairs,
        num=session.config["probes"]["basin_positions"],
        level=share * float(np.mean(at_starts)),
    )
    session.measure(
        probe,
        "basin",
        seed,
        **sets.about,
        segments=segments,
        own=len(sets.batches),
        held_out_set="test",
        level_share=share,
        loss_at_starts=float(np.mean(at_starts)),
    )


def _end(step: int, batch: int) -> str:
    return f"trip-{step}-{batch}"


def _main(step: int) -> str:
    return f"main-{step}"


def _segment(kind: str, first: int, second: int, batch: int | None = None) -> dict[str, Any]:
    return {"kind": kind, "steps": [first, second], "batch": batch}


def _names(segment: dict[str, Any]) -> tuple[str, str]:
    (first, second), batch = segment["steps"], segment["batch"]
    if segment["kind"] == "main":
        return _main(first), _main(second)
    there = _main(second) if segment["kind"] == "to_main" else _end(second, batch)
    return _end(first, batch), there


class _Sets:
    """The batches of trips and the other batches, the same at every start."""

    def __init__(self, session: Session, seed: int) -> None:
        settings = session.config["probes"]
        self.starts = study_points.trip_steps(session, seed)
        seen = [study_points.just_seen(session, seed, step) for step in self.starts]
        fresh, others = study_points.drawn(
            session,
            (settings["trip_batches"], settings["others"]),
            seeds.generator("side_trip_batches", seed),
            np.concatenate(seen),
        )
        self.batches = study_points.taken(session, [*seen, *fresh])
        self.others = study_points.taken(session, others)
        self.held_out: list[Batch] = session.batches("test", settings["held_out"], seed)
        self.about: dict[str, Any] = {
            "starts": list(self.starts),
            # The start at which each trip's batch was just seen; None for the others.
            "just_seen": [*self.starts, *[None] * settings["trip_batches"]],
        }


def _trip(
    session: Session,
    seed: int,
    sets: _Sets,
    step: int,
    keep_ends: bool = False,
    run_seed: int | None = None,
) -> probes.SideTrip:
    """Returns the trips of a seed, from a step of its own run or another seed's."""
    settings = session.config["probes"]
    return probes.SideTrip(
        session.surface,
        study_points.weights_at(session, seed if run_seed is None else run_seed, step),
        sets.batches,
        held_out=sets.held_out,
        others=sets.others,
        learning_rate=_rate(session, seed, step),
        num_steps=settings["trip_length"],
        keep_ends=keep_ends,
    )


def _other_trip(session: Session, seed: int, sets: _Sets, step: int) -> probes.SideTrip:
    """Returns trips on the same batches at the same rate, from the next seed's run."""
    other = (seed + 1) % session.config["seeds"]
    training_runs.base(session, other)
    return _trip(session, seed, sets, step, keep_ends=True, run_seed=other)


def _rate(session: Session, seed: int, step: int) -> float:
    """Returns the rate of trips from a step: as configured, or from the best rates of the line.

    If no line was measured at the step, the nearest step with one is used.
    """
    given = session.config["probes"]["trip_rate"]
    if given is not None:
        return float(given)
    nearest = min(
        study_points.probe_steps(session, seed), key=lambda other: (abs(other - step), other)
    )
    path = session.probe_path(f"line-{nearest:09d}", seed)
    if not path.exists():
        raise RecordError(
            f"{path.name} is missing: the task line must run before side trips whose rate is "
            "taken from it (`config.probes.trip_rate` is None)"
        )
    best = ArrayRecord.read(path).values["best_rate"][0]  # of each batch's own loss
    rate = float(np.quantile(best, session.config["probes"]["trip_quantile"]))
    if not 0.0 < rate < np.inf:
        raise RecordError(f"{path.name} has no best rate for side trips. Received: {best.tolist()}")
    return rate


TASKS = (side_trip, basin)
