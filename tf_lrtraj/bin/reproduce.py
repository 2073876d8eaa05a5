r"""Tests the papers' claims at one scale: runs, probes, verdicts, and a page with figures.

Examples:

  # Print the plan and its cost:
  lrtraj-reproduce --config=reproduce_digits --workdir=runs/reproduction --dry_run

  # A smoke test: everything on the embedded digits (less than ten minutes):
  lrtraj-reproduce --config=reproduce_digits --workdir=runs/reproduction

  # The tasks that two claims need, with another width:
  lrtraj-reproduce --config=reproduce_digits --workdir=runs/wide --claims=A1,B3 \
      --config.model.width=16

  # One process per core; afterwards the command without --only_seed writes the page:
  KERAS_BACKEND=torch lrtraj-reproduce --config=reproduce_cifar10_resnet20 \
      --workdir=runs/resnet20 --config.data.dir=DIR --only_seed=0 &
  KERAS_BACKEND=torch lrtraj-reproduce --config=reproduce_cifar10_resnet20 \
      --workdir=runs/resnet20 --config.data.dir=DIR --only_seed=1

  # Compute the verdicts and draw the page again, from the records alone:
  lrtraj-reproduce --workdir=runs/reproduction --report_only --page=verdicts.md

The configuration selects the scale.  reproduce_digits is a smoke test, which gives numbers and no
verdicts.  reproduce_cifar10_resnet20 and reproduce_cifar100_resnet14 give verdicts on two CPU
cores; reproduce_{cifar10,cifar100,imagenet}_resnet34 are for accelerators.  The same command
resumes an interrupted reproduction.  At the end the program writes ledger.json, the verdicts as
data, and report.html, the page that shows them, and prints a table of the verdicts.  It runs on
every Keras backend: set KERAS_BACKEND=jax or torch to use another than TensorFlow.

Exit codes: 0 done; 1 failed; 2 an error in flags or configuration; 3 a run diverged;
75 interrupted (run the same command again).
"""

from __future__ import annotations

import functools
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from tf_lrtraj.bin import common, configuration, outputs
from tf_lrtraj.runs.config_checks import as_dict
from tf_lrtraj.training.stopping import Interrupted

# Variables from which libraries read their number of threads.
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    given = flags.FLAGS
    if given.report_only:
        return _report(pathlib.Path(given.workdir))
    if given.config is None:
        common.fail("--config=FILE is needed, for example configs/reproduce_digits.py")
    ids = [part.strip() for part in given.claims if part.strip()] or None
    if ids:  # checked before Keras is imported
        from tf_lrtraj import claims

        try:
            claims.chosen(ids)
        except ValueError as error:
            common.fail(f"--claims: {error}")
    configuration.check_program(given.config, "reproduce")
    outputs.check_folder("--workdir", given.workdir)
    config = as_dict(given.config)
    if not config.get("runs_here", True) and not (given.force or given.dry_run):
        common.fail(
            f"the scale {config.get('name')!r} needs accelerators and was never run by the "
            "project; --force runs it (--dry_run shows its cost)"
        )
    if not given.dry_run and _is_done(given.config, pathlib.Path(given.workdir)):
        print(f"{given.workdir}: the reproduction is already done")
        return _report(pathlib.Path(given.workdir))
    common.quiet_tensorflow()
    if given.only_seed is not None:
        for name in _THREADS:
            os.environ.setdefault(name, "1")
    from tf_lrtraj.study import run_study

    try:
        config = run_study.prepare(given.config, given.workdir)
        needed = run_study.needed_tasks(ids, config)
        if given.dry_run:
            print(_plan_text(config, given.workdir, needed, given.only_seed))
            return common.OK
        # Flushed, so that a log shows the progress.
        tell = functools.partial(print, flush=True)
        study = run_study.run(config, given.workdir, needed, tell, only_seed=given.only_seed)
    except OSError as error:
        common.fail(f"--workdir={given.workdir}: {error}")
    except Interrupted as error:
        print(f"lrtraj-reproduce: {error}", file=sys.stderr, flush=True)
        # At once, because JAX may crash while Python shuts down, and the exit code would be lost.
        # Everything is on disk.
        os._exit(common.RESUMABLE)
    if study is None:
        print(
            f"{given.workdir}: the records of seed {given.only_seed} are complete; once those of "
            "every seed are, the command without --only_seed runs the other tasks and writes "
            "the page"
        )
        return common.OK
    _show(study)
    return common.OK


def _is_done(given: Any, workdir: pathlib.Path) -> bool:
    """Returns whether everything is done; checks the configuration without Keras."""
    from tf_lrtraj import claims, records
    from tf_lrtraj.runs.finished_run import is_done
    from tf_lrtraj.study.study_config import validate

    records.check_workdir_matches(workdir, validate(given), validate)
    if not is_done(workdir):
        return False
    found = claims.Records(workdir)  # a later version may have more claims
    return not any(found.lacking(one.needs) for one in claims.CLAIMS if found.judges(one.id))


def _plan_text(config: dict[str, Any], workdir: str, needed: Any, only_seed: int | None) -> str:
    from tf_lrtraj.study import run_study
    from tf_lrtraj.study.problem import load_problem

    problem = load_problem(config)
    sizes = (len(problem.x_train), len(problem.x_test))
    return run_study.describe_plan(config, workdir, needed, *sizes, only_seed)


def _report(workdir: pathlib.Path) -> int:
    """Judges the claims and draws the page from existing records, without Keras."""
    from tf_lrtraj import records
    from tf_lrtraj.report import study as pages

    try:
        records.read_json(workdir / records.CONFIG)
        study = pages.write_results(workdir)
    except records.RecordError as error:
        common.fail(f"--workdir: {error}")
    except OSError as error:
        common.fail(f"--workdir={workdir}: {error}")
    _show(study)
    return common.OK


def _show(study: Any) -> None:
    """Prints the table of verdicts, and with --page writes the page as Markdown."""
    from tf_lrtraj import claims, records
    from tf_lrtraj.report import study as pages

    folder = study.records.folder
    print(claims.ledger_text(study.ledger()))
    print(folder / pages.PAGE)
    if flags.FLAGS.page:
        page = pathlib.Path(flags.FLAGS.page)
        way = os.path.relpath(folder, page.parent)
        try:
            records.write_atomically(page, pages.markdown_page(study, way))
        except OSError as error:
            common.fail(f"--page={page}: {error.strerror}")
        print(page)


def run() -> None:
    """Defines the flags and runs."""
    config_flags.DEFINE_config_file(
        "config", None, "configuration of the scale: a file, or a name such as reproduce_digits"
    )
    flags.DEFINE_string(
        "workdir", None, "folder for records, ledger and report; created if it does not exist"
    )
    flags.DEFINE_list(
        "claims", [], "run only the tasks that these claims need, such as A1,B3; all by default"
    )
    flags.DEFINE_integer(
        "only_seed",
        None,
        "make only the records of this seed, on one thread; processes with different seeds may "
        "share a workdir, and afterwards the command without this flag writes the page",
        lower_bound=0,
    )
    flags.DEFINE_bool("dry_run", False, "print the plan and its cost, and run nothing")
    flags.DEFINE_bool(
        "report_only", False, "only compute the verdicts and draw the page from existing records"
    )
    flags.DEFINE_string("page", None, "also write the page as Markdown to this file")
    flags.DEFINE_bool("force", False, "run a scale that was described but never run")
    from tf_lrtraj.study.study_config import SCHEMA

    common.run_app(main, needs=["workdir"], writes=["page"], schema=SCHEMA)


if __name__ == "__main__":
    run()
