"""Runs a study: plans it, runs the missing tasks, judges the claims, writes the page."""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypedDict

import keras
import numpy as np

import tf_lrtraj
from tf_lrtraj import backend, claims, kernels, records, values
from tf_lrtraj.claims import power
from tf_lrtraj.claims.verdicts import bounds_shown
from tf_lrtraj.report.study import write_results
from tf_lrtraj.runs import cost_estimates
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.study import task_plan as plans
from tf_lrtraj.study.problem import Problem
from tf_lrtraj.study.session import MEASURED, STATE, Session
from tf_lrtraj.study.study_config import validate
from tf_lrtraj.study.task import Task
from tf_lrtraj.training.stopping import Diverged, Interrupted, StopRequest, stop_signals

__all__ = ["describe_plan", "needed_tasks", "prepare", "run"]


def needed_tasks(
    ids: Collection[str] | None, config: Mapping[str, Any] | None = None
) -> set[str] | None:
    """Returns the names of the tasks whose records these claims need; None for all.

    Args:
        ids: the ids of claims; None for those of the scale.
        config: the configuration of the scale.

    Raises:
        ConfigError: for an id that no claim has.
    """
    ids = ids or (config or {}).get("claims") or None
    if ids is None:
        return None
    try:
        chosen = claims.chosen(ids)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return {task for claim in chosen for task in claim.needs}


def prepare(config: Any, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Checks the configuration of a workdir and returns it, before long work starts.

    Raises:
        ConfigError: if it is not valid.
        records.RecordError: if the workdir belongs to another configuration.
    """
    plain = validate(config)
    records.check_workdir_matches(folder, plain, validate)
    return plain


def describe_plan(
    config: Mapping[str, Any],
    folder: str | os.PathLike[str],
    needed: Collection[str] | None,
    num_train: int,
    num_test: int,
    only_seed: int | None = None,
) -> str:
    """Returns a table of the tasks, their status, and the cost of those that are left."""
    tasks = plans.plan(config, needed, only_seed)
    done = _done(read_run(folder))
    lines = [f"{'task':<16}{'seeds':<10}{'done':<10}{'images':>14}  what"]
    for task in plans.TASKS:
        seeds = [seed for other, seed in tasks if other is task]
        if not seeds:
            continue
        made = [seed for seed in seeds if (task.name, seed) in done]
        alone = [(task, seed) for seed in seeds]
        whole = plans.images(config, alone, num_train, num_test)
        shared = 3.0 * config["batch_size"] * plans.training_steps(config, alone)
        own = whole - shared if task.name != "base" else whole
        shown = [",".join(map(str, seeds)), ",".join(map(str, made)) or "-"]
        lines.append(f"{task.name:<16}{shown[0]:<10}{shown[1]:<10}{own:>14,.0f}  {task.what}")
    left = [(task, seed) for task, seed in tasks if (task.name, seed) not in done]
    total = plans.images(config, left, num_train, num_test)
    lines.append(
        f"{len(left)} of {len(tasks)} to do: about {plans.training_steps(config, left):,} training "
        f"steps of {config['batch_size']} images; {total:,.0f} images forward in all (a training "
        "step counts as three passes; the table shows evaluations and probes, and the base run)"
    )
    return "\n".join([*lines, *_power_lines(config)])


def _power_lines(config: Mapping[str, Any]) -> list[str]:
    """Returns lines about what the scale can decide, from its configuration."""
    rows = power.planned(config["power"])
    if not rows:
        return []
    lines = [
        "",
        f"What it can decide, with the scatter of the pilot ({config['pilot']}):",
        f"{'claim':<7}{'part':<24}{'expected':>10}{'±':>9}  {'wanted':<16}{'units':<10}decidable",
    ]
    for row in rows:
        wanted = bounds_shown(row.wanted.low, row.wanted.high)
        lines.append(
            f"{row.claim:<7}{row.wanted.name:<24}{row.expected:>10.3g}{row.half_width:>9.2g}  "
            f"{wanted:<16}{f'{row.count} {row.of}':<10}{'yes' if row.decidable else 'no'}"
        )
    return lines


class _Run(TypedDict, total=False):
    created: str
    versions: dict[str, str]
    done: dict[str, list[int]]
    seconds: dict[str, dict[str, float]]


def read_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads `run.json` of a workdir; returns {} if there is none."""
    return records.read_run(folder, _Run)


def _done(run: Mapping[str, Any]) -> set[tuple[str, int]]:
    return {(name, seed) for name, seeds in run.get("done", {}).items() for seed in seeds}


def run(
    config: dict[str, Any],
    folder: str | os.PathLike[str],
    needed: Collection[str] | None = None,
    tell: Callable[[str], None] = print,
    progress: bool = True,
    only_seed: int | None = None,
) -> claims.Study | None:
    """Runs the missing tasks, judges the claims, and writes ledger and page.

    Args:
        config: the configuration from `prepare`.
        folder: the workdir.
        needed: tasks to run, from `needed_tasks`; None for all.
        tell: called with a few words about each stage.
        progress: whether to show progress bars on a terminal.
        only_seed: make only this seed's records, and no ledger or page.  Processes with different
            seeds may share a workdir.

    Returns:
        The records with the judgement of every claim; None with `only_seed`.

    Raises:
        ConfigError: for a seed that the configuration does not have.
        records.RecordError: if the workdir cannot be written, or another process writes to it.
        Diverged: when a training loss is not finite.
        Interrupted: after SIGTERM or SIGINT; what is finished is kept.
    """
    if only_seed is not None:
        values.integer(0, below=config["seeds"]).check("only_seed", only_seed, ConfigError)
    folder = records.prepare_workdir(folder)
    with contextlib.ExitStack() as held:
        held.enter_context(records.only_writer(folder, shared=only_seed is not None))
        if only_seed is not None:
            own = folder / STATE / f"seed{only_seed}"
            own.mkdir(parents=True, exist_ok=True)
            held.enter_context(records.only_writer(own))
        return _run(Session(config, folder, tell, progress), needed, only_seed)


def _run(
    session: Session, needed: Collection[str] | None, only_seed: int | None
) -> claims.Study | None:
    config, folder = session.config, session.folder
    problem = session.problem  # nothing is written if data are missing
    sizes = (len(problem.x_train), len(problem.x_test))
    _check_sizes(config, problem)
    (folder / MEASURED).mkdir(exist_ok=True)
    if not (folder / records.CONFIG).exists():  # `prepare` has compared it with an existing one
        records.write_json(folder / records.CONFIG, config)
    session.tell(describe_plan(config, folder, needed, *sizes, only_seed))
    status, message, study = "interrupted", None, None
    try:
        with stop_signals() as stop:
            _make(session, plans.plan(config, needed, only_seed), sizes, stop)
        everything = {
            (task.name, seed) for task, seed in plans.plan(config, needed_tasks(None, config))
        }
        status = "done" if everything <= _done(read_run(folder)) else "incomplete"
    except Diverged as error:
        status, message = "diverged", str(error)
        raise
    except (KeyboardInterrupt, Interrupted):
        message = "stopped by a signal"
        raise Interrupted(
            "stopped; finished work is kept, and the same command resumes from there"
        ) from None
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
        raise
    finally:
        _note(config, folder, status=status, message=message)
        # No page after an interruption, because figures take a while, and for one seed they say
        # little.
        if status != "interrupted" and only_seed is None:
            study = write_results(folder)
    return study


def _make(
    session: Session, tasks: Sequence[tuple[Task, int]], sizes: tuple[int, int], stop: StopRequest
) -> None:
    """Runs the tasks that are left and records each in `run.json`."""
    config, folder = session.config, session.folder
    done = _done(read_run(folder))
    left = [(task, seed) for task, seed in tasks if (task.name, seed) not in done]
    begin, total = time.monotonic(), plans.images(config, left, *sizes)
    for index, (task, seed) in enumerate(left):
        # The steps of a run that several tasks read count for the first task, which trains it.
        made = plans.images(config, left[:index], *sizes)
        session.tell(
            f"[{index + 1}/{len(left)}] {task.name}, seed {seed}: {task.what}"
            + _time_left(time.monotonic() - begin, made, total - made)
        )
        started = time.monotonic()
        task.run(session, seed)
        seconds = round(time.monotonic() - started, 1)
        _note(config, folder, made=(task.name, seed, seconds), status="incomplete")
        if stop.requested:  # and a library has caught the exception
            raise Interrupted


def _note(
    config: Mapping[str, Any],
    folder: pathlib.Path,
    *,
    status: str,
    message: str | None = None,
    made: tuple[str, int, float] | None = None,
) -> None:
    """Writes `run.json` with a finished task, while other processes wait."""
    with records.one_at_a_time(folder / MEASURED):
        kept = {key: value for key, value in read_run(folder).items() if key in _KEPT}
        state = {**_describe(config), **kept, "status": status, "message": message}
        if made is not None:
            name, seed, seconds = made
            state["done"][name] = sorted({*state["done"].get(name, []), seed})
            state["seconds"].setdefault(name, {})[str(seed)] = seconds
        records.write_json(folder / records.RUN, state)


def _time_left(seconds: float, made: float, ahead: float) -> str:
    if made <= 0 or seconds < 5:
        return ""
    return f" (about {seconds * ahead / made / 60:.0f} min left)"


def _check_sizes(config: Mapping[str, Any], problem: Problem) -> None:
    """Checks the sizes that depend on the data.

    Raises:
        ConfigError: for a network that does not exist, or one too large for any machine (the memory
            of devices is not known here).
    """
    wanted = cost_estimates.needs(
        cost_estimates.size_of(config, problem.x_train.shape[1:], problem.num_classes),
        {name: kernels.from_config(entry) for name, entry in config["averages"].items()},
        batch_size=config["batch_size"],
        eval_batch_size=config["evaluate"]["batch_size"],
    )
    cost_estimates.check_memory(wanted, "config.batch_size", 1, None)


_KEPT = ("done", "seconds", "created", "keras_backend", "versions")


def _describe(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": records.run.FORMAT,
        "name": config["name"],
        "created": time.strftime("%Y-%m-%d"),
        "versions": {
            "tf_lrtraj": tf_lrtraj.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "keras_backend": backend.name(),
        "processors": os.cpu_count(),
        "done": {},
        "seconds": {},
    }
