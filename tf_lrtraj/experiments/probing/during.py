"""Probes of a run while it trains, by its configuration; the run goes on as if there were none."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from tf_lrtraj.experiments.assembly import Assembly
from tf_lrtraj.experiments.config import ConfigError, Plan
from tf_lrtraj.experiments.probing.measuring import Measurer
from tf_lrtraj.experiments.probing.places import SNAPSHOTS, Places, velocity_of
from tf_lrtraj.experiments.probing.requests import at_steps, check_kind, check_request
from tf_lrtraj.probes.callback import record_path
from tf_lrtraj.training.loop import Action, nothing

PROBES = "probes"


def check(config: Mapping[str, Any], plan: Plan) -> None:
    """Makes sure that every probe of a configuration can be measured.

    Raises:
        ConfigError: otherwise.
    """
    for name, (when, what) in plan.probes.items():
        kind, options = _request(name, what)
        if at_steps(kind, options) and when is None:
            raise ConfigError(
                f"`config.probes.{name}` needs `every`, how often it is measured "
                f"(a duration such as '1 epochs')"
            )
        if not at_steps(kind, options) and when is not None:
            raise ConfigError(
                f"`config.probes.{name}`: a {kind!r} probe takes several points of the run, so it "
                "is measured once, at the end. Leave out `every`."
            )
        if not at_steps(kind, options) and plan.snapshots is None:
            raise ConfigError(
                f"`config.probes.{name}`: a {kind!r} probe is measured on snapshots. Take them "
                "with, for example, config.snapshots.every = '20 steps'."
            )


def _request(name: str, what: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    options = dict(what)
    try:
        kind = check_kind(options.pop("probe", name))
        return kind, check_request(kind, options)
    except ConfigError as error:
        raise ConfigError(f"`config.probes.{name}`: {error}") from None


def actions(
    assembly: Assembly, workdir: pathlib.Path, tell: Callable[[str], None], writer: bool = True
) -> list[Action]:
    """The probes of single points, each with its cadence.

    Of several workers the writer alone measures; the others stop at the same steps.
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
    """The probes that take several points, on the run's snapshots."""
    wanted = [
        (name, *_request(name, what))
        for name, (when, what) in assembly.plan.probes.items()
        if when is None
    ]
    if not wanted or not (workdir / SNAPSHOTS).is_dir():
        return
    measurer = Measurer(assembly, tell=tell)
    # Only snapshots are read: checkpoints would be read into the model itself.
    places = Places(assembly, workdir, checkpoints=False)
    for name, kind, options in wanted:
        path = workdir / PROBES / f"{name}.npz"
        measurer.of_the_run(kind, options, places, path)
