"""Finds out whether a run is finished, without importing TensorFlow."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tf_lrtraj import records, report
from tf_lrtraj.runs.run_config import validate

__all__ = ["finished_report", "is_done"]


def is_done(workdir: str | os.PathLike[str]) -> bool:
    """Returns whether the run of a workdir has the status done."""
    return records.read_run(workdir).get("status") == "done"


def finished_report(
    config: Mapping[str, Any], workdir: str | os.PathLike[str]
) -> pathlib.Path | None:
    """Writes the report of a run that is done, with its matched runs.

    Args:
        config: a validated configuration.
        workdir: the workdir of the run.

    Returns:
        The path of the report; None if the run is not finished.

    Raises:
        records.RecordError: if the workdir belongs to another configuration, its records are
            damaged, or another process is writing there.
    """
    records.check_workdir_matches(workdir, config, validate)
    matched = [records.matched_dir(workdir, name) for name in config["matched"]["averages"]]
    if not all(is_done(folder) for folder in (workdir, *matched)):
        return None
    with records.only_writer(workdir):
        return report.write_report(workdir)
