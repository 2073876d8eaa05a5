"""Probes of a run during training, from its configuration; they do not change the run."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tf_lrtraj import values
from tf_lrtraj.averaging.post_hoc import snapshot_weights
from tf_lrtraj.probes.probe_recorder import record_path
from tf_lrtraj.runs.assembly import Assembly
from tf_lrtraj.runs.probing.probe_batches import check_held_out, check_training
from tf_lrtraj.runs.probing.run_points import (
    SNAPSHOTS,
    RunWeights,
    check_trip,
    equally_spaced,
    nearest_step,
    parse_point,
    velocity_of,
)
from tf_lrtraj.runs.probing.run_probes import Measurer, check_trip_rate
from tf_lrtraj.runs.run_config import ConfigError, Plan
from tf_lrtraj.specs import PROBES as SPECS
from tf_lrtraj.specs import ProbeSpec, check_kind
from tf_lrtraj.training.loop import Action, nothing

PROBES = "probes"


def check(config: Mapping[str, Any], plan: Plan, dataset: Any) -> None:
    """Checks that every probe of a configuration can be measured.

    Raises:
        ConfigError: if one cannot.
    """
    for name, (when, what) in plan.probes.items():
        kind, options = _request(name, what)
        spec, at_steps = SPECS[kind].measured(options), SPECS[kind].at_steps(options)
        problem = ""
        if at_steps and when is None:
            problem = " needs `every`, how often it is measured (a duration such as '1 epochs')"
        elif not at_steps and when is not None:
            problem = (
                f": a {kind!r} probe takes several points of the run, so it is measured once, at "
                "the end. Leave out `every`."
            )
        elif not at_steps and plan.snapshots is None:
            problem = (
                f": a {kind!r} probe is measured on snapshots. Take them with, for example, "
                "config.snapshots.every = '20 steps'."
            )
        if problem:
            raise ConfigError(f"`config.probes.{name}`{problem}")
        try:
            _check_data(spec, config, options, dataset)
            if when is None:
                assert plan.snapshots is not None
                steps = np.array(plan.snapshots.standing(plan.total_steps), np.int64)
                _check_points(spec, options, steps, plan.total_steps)
        except ConfigError as error:
            raise ConfigError(f"`config.probes.{name}`: {error}") from None


def _check_data(
    spec: ProbeSpec, config: Mapping[str, Any], options: Mapping[str, Any], dataset: Any
) -> None:
    """Checks that data and optimizer provide the parts of a probe."""
    settings = config["optimizer"]
    has_velocity = settings["name"] == "SGD" and settings["momentum"]
    if options.get("direction") == "momentum" and not has_velocity:
        raise ConfigError("the run has no momentum of SGD, so there is no velocity")
    if not spec.takes_part("surface"):
        return
    trips = spec.takes_part("trip_ends") and any(
        parse_point(text, trips=True).batch is not None for text in options["points"]
    )
    if spec.takes_part("trip") or trips:
        check_trip_rate(config, options)
    size = options["batch_size"] or config["data"]["batch_size"]
    held_out, count = options.get("held_out_batches", 0), options["batches"]
    if spec.takes_part("others") or trips:
        count += held_out  # as many training batches on which no step is made
    check_training(dataset.num_examples, size, count)
    if held_out:
        split = options["held_out"] or config["data"]["eval_split"] or dataset.eval_split
        check_held_out(dataset.num_examples, size, split, held_out)


def _check_points(
    spec: ProbeSpec, options: Mapping[str, Any], steps: np.ndarray, total: int
) -> None:
    """Checks that the snapshots that exist at the end, at `steps`, include a probe's points."""
    where = "the snapshots that exist at the end"
    if not steps.size:
        raise ConfigError("no snapshot is taken before the run ends")
    for text in options.get("points", ()):
        point = parse_point(text, trips=spec.takes_part("trip_ends"))
        if point.kernel is None:
            nearest_step(point.step, steps, total, where)
        else:
            try:
                snapshot_weights(steps, point.kernel)
            except ValueError as error:
                raise ConfigError(f"the point {text!r}: {error}") from None
        check_trip(point.batch, options["batches"], text)
    if spec.takes_part("trajectory"):
        ends = [nearest_step(options[key] or key, steps, total, where) for key in ("first", "last")]
        equally_spaced(steps, *ends)
    other = options.get("other")
    if other is not None and not pathlib.Path(other).is_dir():
        raise values.error("other", "the workdir of a run", other, ConfigError)


def _request(name: str, what: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns kind and options of an entry of `config.probes`."""
    options, path = dict(what), f"config.probes.{name}"
    kind = check_kind(options.pop("probe", name), f"{path}.probe", ConfigError)
    return kind, SPECS[kind].check(options, path, ConfigError)


def actions(
    assembly: Assembly, workdir: pathlib.Path, tell: Callable[[str], None], writer: bool = True
) -> list[Action]:
    """Returns the actions that measure probes of single points, each with its timetable.

    With several workers only the writer measures; the others stop at the same steps.
    """
    wanted = [
        (name, when, *_request(name, what))
        for name, (when, what) in assembly.plan.probes.items()
        if when is not None
    ]
    if not wanted:
        return []
    if not writer:
        return [Action(when, nothing) for _, when, _, _ in wanted]
    measurer = Measurer(assembly, tell=tell)

    def velocity() -> Any:
        return velocity_of(assembly.optimizer)

    def action(name: str, when: Any, kind: str, options: dict[str, Any]) -> Action:
        def what(step: int) -> None:
            path = record_path(workdir / PROBES, name, step)
            measurer.at_a_step(kind, options, None, step, path, velocity)

        return Action(when, what)

    return [action(*one) for one in wanted]


def at_the_end(assembly: Assembly, workdir: pathlib.Path, tell: Callable[[str], None]) -> None:
    """Measures the probes of several points, on the run's snapshots."""
    wanted = [
        (name, *_request(name, what))
        for name, (when, what) in assembly.plan.probes.items()
        if when is None
    ]
    if not wanted or not (workdir / SNAPSHOTS).is_dir():
        return
    measurer = Measurer(assembly, tell=tell)
    # Only snapshots are used: checkpoints would be read into the model itself.
    run_weights = RunWeights(assembly, workdir, checkpoints=False)
    for name, kind, options in wanted:
        path = workdir / PROBES / f"{name}.npz"
        measurer.of_the_run(kind, options, run_weights, path)
