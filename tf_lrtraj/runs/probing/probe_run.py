"""Measures probes of a finished or interrupted run, for `lrtraj-probe`."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tf_lrtraj import records, report
from tf_lrtraj.probes.probe_recorder import record_path
from tf_lrtraj.report.probe_figures import gallery
from tf_lrtraj.runs.assembly import assemble
from tf_lrtraj.runs.components import load_dataset
from tf_lrtraj.runs.probing.run_points import RunWeights
from tf_lrtraj.runs.probing.run_probes import Measurer
from tf_lrtraj.runs.run_config import ConfigError
from tf_lrtraj.specs import PROBES


def probe_run(
    config: dict[str, Any],
    workdir: str | os.PathLike[str],
    kind: str,
    options: Mapping[str, Any],
    strategy: Any,
    *,
    steps: Sequence[str] = ("last",),
    name: str | None = None,
    tell: Callable[[str], None] = print,
) -> list[pathlib.Path]:
    """Measures a probe of a run, draws it, and updates the run's report.

    Args:
        config: the result of `run_config.read_config`.
        workdir: the run's folder.
        kind, options: the kind, and the result of `specs.ProbeSpec.check`.
        strategy: a `tf.distribute` strategy of one device.
        steps: the steps for probes that are measured at single steps.
        name: the name of the records; the kind by default.
        tell: called with a sentence about the cost of each measurement before it starts.

    Returns:
        the paths of the records, the figure and the report that were written.

    Raises:
        ConfigError, RecordError: if points, batches or data are not available.
    """
    workdir = pathlib.Path(workdir)
    name = records.check_average_name(name or kind, "a probe")
    # The run's own averages are not needed and would take memory.
    bare = {**config, "averages": {}, "probes": {}}
    bare["matched"] = {**config["matched"], "averages": []}
    # The recorded rates are those of a matched run; for other runs they are the configured ones.
    rates = records.read_schedule(workdir / records.SCHEDULE)
    assembly = assemble(bare, load_dataset(bare), strategy, rates)
    run_weights = RunWeights(assembly, workdir)
    measurer = Measurer(assembly, tell=tell)
    folder = workdir / gallery.FOLDER
    if PROBES[kind].at_steps(options):
        wanted = sorted({run_weights.nearest(text) for text in steps})
        written = [record_path(folder, name, step) for step in wanted]
        for step, path in zip(wanted, written, strict=True):
            tell(f"{kind} at step {step}")
            velocity = functools.partial(run_weights.velocity, step)
            measurer.at_a_step(kind, options, run_weights.read(step), step, path, velocity)
    else:
        if list(steps) != ["last"]:
            raise ConfigError(
                f"--steps goes with probes of single points; {kind!r} takes --points, or --first "
                f"and --last. Received: {list(steps)}"
            )
        written = [folder / f"{name}.npz"]
        measurer.of_the_run(kind, options, run_weights, written[0])
    for group in gallery.groups(workdir):
        if group.name == name:
            for text in [*group.findings, group.problem]:
                if text:
                    tell(text)
    written += [path for path in gallery.draw(workdir) if path.stem == name]
    if (workdir / records.RUN).is_file():
        written.append(report.write_report(workdir))
    return written
