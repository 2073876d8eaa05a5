"""`lrtraj-average --files`: averages of weight files."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_lrtraj.bin import common, tables

_OTHERS = (
    *("workdir", "snapshots", "schedule", "advise", "export", "split", "batch_norm", "last"),
    *("base", "limit", "json"),
)


def check(options: Any, files: Sequence[str]) -> dict[str, np.ndarray]:
    """Checks the flags before any work; returns {name: weights of the files}, {} for a soup."""
    from tf_lrtraj.averaging.weight_files import check_ending
    from tf_lrtraj.runs import average_files, kernel_parsing

    for name in _OTHERS:
        if getattr(options, name):
            raise ValueError(f"--{name} does not go with --files. Try --help.")
    if len(options.kernel) > 1 or (options.kernel and options.soup):
        raise ValueError("--files takes at most one of --kernel=… and --soup=METRIC.")
    if not (options.output or options.evaluate):
        raise ValueError("--files needs --output=FILE, --evaluate or both.")
    for path in files:
        check_ending(path)
        if not pathlib.Path(path).is_file():
            raise ValueError(f"--files: there is no file {path!r}")
    if len(files) < 2:
        raise ValueError(f"--files must name at least two files. Received: {list(files)}")
    if options.output:
        check_ending(options.output)
    if (options.evaluate or options.soup) and not options.data:
        raise ValueError("--evaluate and --soup need --data=FILE.npz.")
    if options.soup:
        average_files.better(options.soup, options.metric_mode)
        return {}
    if not options.kernel:
        return {"uniform": np.full(len(files), 1.0 / len(files))}
    name, kernel = kernel_parsing.parse_average(options.kernel[0])
    tables.check_reach(kernel, len(files) - 1)
    return {name: kernel.weights(len(files) - 1)}


def run(options: Any, files: Sequence[str]) -> None:
    """Builds, evaluates and writes the average."""
    averages = check(options, files)
    common.quiet_tensorflow()
    from tf_lrtraj.averaging.weight_files import NAMED
    from tf_lrtraj.runs import average_files, average_run, user_code

    user_code.import_modules(options["import"].value)
    statistics = (
        average_run.read_arrays(options.batch_norm_data) if options.batch_norm_data else None
    )
    weight_files = average_files.WeightFiles(
        files,
        options.model,
        None if statistics is None else statistics[0],
        average_run.read_arrays(options.data) if options.data else None,
    )
    if weight_files.model is None and options.output and not options.output.endswith(NAMED):
        raise ValueError(f"--model=FILE.keras is needed to write anything but {', '.join(NAMED)}")
    if options.soup:
        soup = average_files.greedy_soup(
            weight_files, options.soup, options.metric_mode, lambda text: print(text, flush=True)
        )
        averages = {"soup": soup.weights}
    ((name, weights),) = averages.items()
    print(f"{name}: {np.count_nonzero(weights)} of {len(files)} files")
    for path, weight in zip(files, weights.tolist(), strict=True):
        print(f"  {weight:8.4f}  {path}")
    arrays = weight_files.average(weights)
    if options.evaluate:
        rows = dict(zip(files, np.eye(len(files)), strict=True))
        for label, row in {**rows, name: weights}.items():
            found = weight_files.evaluate(arrays if row is weights else weight_files.average(row))
            shown = "  ".join(f"{metric} {value:.4f}" for metric, value in found.items())
            print(f"{label:<24}{shown}", flush=True)
    if options.output:
        weight_files.save(arrays, options.output)
        print(f"written: {options.output}")
    if weight_files.has_batch_norm:
        advice = "" if options.batch_norm_data else "; --batch_norm_data=FILE.npz recomputes them"
        print(f"batch-norm statistics: {weight_files.describe()}{advice}")
