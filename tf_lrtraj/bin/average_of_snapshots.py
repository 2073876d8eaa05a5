"""`lrtraj-average --workdir` and `--snapshots`: averages of snapshots, and the advisor."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.bin import common
from tf_lrtraj.bin.requested_averages import requested
from tf_lrtraj.records import append_rows
from tf_lrtraj.runs.run_config import read_config

if TYPE_CHECKING:
    from tf_lrtraj.runs.average_run import Target


def run(options: Any) -> None:
    """Builds averages, or recommends one."""
    _check(options)
    # All checks are made before TensorFlow is loaded.
    snapshots = _snapshots(options)
    config = read_config(options.workdir, options.data_dir) if options.workdir else None
    if options.advise:
        _advise(options, snapshots, config)
    else:
        _build(options, snapshots, config, requested(options, snapshots, config))


def _check(options: Any) -> None:
    """Raises ValueError for flags that do not go together."""
    own_model = bool(options.snapshots)
    wants_losses = bool(options.evaluate or options.advise)
    unused = [n for n in ("json", "evaluate", "split", "batch_norm") if getattr(options, n)]
    mistakes = {
        "either --workdir=… or --snapshots=… is needed. Try --help.": (
            bool(options.workdir) == own_model
        ),
        "--model and --data go with --snapshots, not with --workdir.": options.workdir
        and (options.model or options.data or options.batch_norm_data),
        "--output and --soup go with --files; --export=DIR writes averages.": options.output
        or options.soup,
        "--evaluate, --export and --advise need --model=FILE.keras.": own_model
        and (wants_losses or options.export)
        and not options.model,
        "--advise considers all averages: leave out --kernel and --schedule.": options.advise
        and (options.kernel or options.schedule),
        f"--advise does not use {', '.join('--' + name for name in unused)}: leave it out. It has "
        "--advise_split, --advise_held_out and --advise_batch_norm.": options.advise and unused,
        "--kernel=…, --schedule=… or --advise is needed. Try --help.": not (
            options.advise or options.kernel or options.schedule
        ),
        "--evaluate and --advise with --snapshots need --data=FILE.npz.": own_model
        and wants_losses
        and not options.data,
    }
    for message, is_mistake in mistakes.items():
        if is_mistake:
            raise ValueError(message)


def _snapshots(options: Any) -> Snapshots:
    from tf_lrtraj.runs.average_run import open_snapshots

    if options.snapshots:
        return Snapshots(options.snapshots)
    if not pathlib.Path(options.workdir).is_dir():
        raise ValueError(f"--workdir: there is no folder {options.workdir!r}")
    return open_snapshots(options.workdir)


def _target(options: Any, snapshots: Snapshots, config: dict[str, Any] | None) -> Target:
    """Returns the model of the averages: the run's, or a custom one."""
    from tf_lrtraj.runs import average_run, user_code

    if config is not None:
        return average_run.RunTarget(config, options.workdir, common.one_device(config))
    common.quiet_tensorflow()
    data = {"data": average_run.read_arrays(options.data)} if options.data else {}
    if options.advise and options.advise_held_out:
        data["held_out"] = average_run.read_arrays(options.advise_held_out)
    inputs = None
    if options.batch_norm_data:
        inputs, _ = average_run.read_arrays(options.batch_norm_data)
    user_code.import_modules(options["import"].value)
    return average_run.ModelTarget(snapshots, options.model, data, inputs)


def _build(
    options: Any, snapshots: Snapshots, config: dict[str, Any] | None, averages: dict[str, Any]
) -> None:
    from tf_lrtraj.averaging.post_hoc import average_snapshots, memory_bytes

    target = _target(options, snapshots, config) if options.evaluate or options.export else None
    splits: list[str] = []
    policy = None
    if target is not None:
        policy = _policy(options, target)
        if options.evaluate:
            splits = [target.check_split(s) for s in options.split or [target.default_split]]
    print(
        f"{len(snapshots)} snapshots of {snapshots.num_weights:,} values ({snapshots.encoding}), "
        f"steps {snapshots.steps[0]} to {snapshots.steps[-1]}; memory for {len(averages)} averages "
        f"{memory_bytes(snapshots, len(averages)) / 1e6:,.0f} MB",
        flush=True,
    )
    built = average_snapshots(snapshots, averages)
    for average in built.values():
        print(average)
    last = next(iter(averages.values())).last
    print()
    raw = {"raw": snapshots.read(last)} if splits else {}
    header = False
    for name, arrays in {**raw, **{n: a.arrays for n, a in built.items()}}.items():
        found = built.get(name)
        line = f"{name:<24}{found.verdict if found else f'step {last}':<22}"
        row = {"kind": "eval" if splits else "average", "step": last, "weights": name}
        if found is not None:
            row |= {
                "exact": found.exact,
                "error": found.error,
                "quantisation": found.quantisation,
                "distance": found.distance,
            }
        rows = [] if splits else [row]
        columns = ""
        if target is not None:
            weights = target.weights(arrays, last, policy)
            for split in splits:
                values = target.evaluate(weights, split, options.limit)
                named, shown = _columns(split, values)
                columns, line = columns + named, line + shown
                said = {"batch_norm": target.describe(policy), "split": split}
                rows.append({**row, **said, **values})
            if options.export and found is not None:
                line += f"\n{_export(options, target, name, weights)}"
        if not header:
            print(f"{'average':<24}{'error':<22}{columns}")
            header = True
        print(line, flush=True)
        if options.json:
            append_rows(options.json, rows)
    if target is not None and splits:
        print(f"batch norm: {target.describe(policy)}")


def _columns(split: str, values: dict[str, float]) -> tuple[str, str]:
    """Returns (the header, the values) of an evaluation's loss and metrics, the loss first."""
    metrics = [name for name in values if name not in ("loss", "examples")]
    widths = {f"{split} loss": 14} | {name: max(10, len(name) + 2) for name in metrics}
    numbers = [values["loss"], *(values[name] for name in metrics)]
    header = "".join(f"{name:>{width}}" for name, width in widths.items())
    shown = zip(numbers, widths.values(), strict=True)
    return header, "".join(f"{number:>{width}.4f}" for number, width in shown)


def _policy(options: Any, target: Target) -> str:
    policy: str = options.batch_norm or target.policy
    given = options.data or options.batch_norm_data
    if policy == "recompute" and options.snapshots and not given:
        raise ValueError("--batch_norm=recompute needs --batch_norm_data=FILE.npz or --data=…")
    return policy


def _export(options: Any, target: Target, name: str, weights: Any) -> str:
    """Writes an average as a model or its weights, and returns a line with the path."""
    folder = pathlib.Path(options.export)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{options.export_format}"
    target.save(weights, path)
    return f"  written: {path}"


def _advise(options: Any, snapshots: Snapshots, config: dict[str, Any] | None) -> None:
    from tf_lrtraj.averaging.advising import advisor
    from tf_lrtraj.averaging.advising.measurement_plan import make_plan
    from tf_lrtraj.report import advice_figure

    effort = advisor.Effort(
        singles=options.advise_singles,
        lags=options.advise_lags,
        pairs=options.advise_pairs,
        calibration=options.advise_calibration,
        every_pair=options.advise_every_pair,
    )
    make_plan(snapshots.steps, effort, options.first, options.last, options.verify)
    target = _target(options, snapshots, config)
    policy = options.advise_batch_norm or target.policy
    split = options.advise_split if config is not None else "data"
    measurement = target.measurement(target.check_split(split), options.advise_examples, policy)
    held_out = None
    if options.advise_held_out:
        name = options.advise_held_out if config is not None else "held_out"
        held_out = target.measurement(target.check_split(name), options.limit, policy)
    home = options.workdir or os.path.dirname(os.path.abspath(options.snapshots))
    folder = pathlib.Path(options.advise_dir or pathlib.Path(home) / "advice")
    print(f"measured on {split}, batch norm: {measurement.identity['batch_norm']}")
    found = advisor.advise(
        snapshots,
        measurement,
        held_out=held_out,
        first=options.first,
        last=options.last,
        effort=effort,
        verify=options.verify,
        folder=folder,
        tell=lambda text: print(text, flush=True),
    )
    print(f"\n{found}")
    print(f"written: {folder / 'advice.json'}, {folder / 'advice.npz'}")
    print(f"written: {advice_figure.draw(folder)}")
    if options.export:
        from tf_lrtraj.averaging.post_hoc import combine

        weights = np.zeros(len(snapshots))
        weights[np.searchsorted(snapshots.steps, found.arrays["steps"])] = found.recommended
        arrays = combine(snapshots, {"advised": weights})["advised"]
        last = int(found.arrays["steps"][-1])
        kept = "average" if policy == "batch" else policy
        print(_export(options, target, "advised", target.weights(arrays, last, kept)))
