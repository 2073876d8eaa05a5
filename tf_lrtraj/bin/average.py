r"""Builds averages of a run afterwards, from its snapshots, and advises which one to take.

Any kernel, any number of them, in one pass over the files:

  lrtraj-average --workdir=runs/digits --kernel=ema:0.99 --kernel=swa:start=500 --evaluate
  lrtraj-average --workdir=runs/digits --kernel=window:200,every=20 --kernel=two_point:100 \
      --last=700 --evaluate --split=test,train --json=rows.jsonl
  lrtraj-average --workdir=runs/digits --kernel='{"kernel": "Exponential", "decay": 0.99}' \
      --export=averages/

A kernel is a short name (ema:DECAY, swa:START, window:LENGTH, two_point:GAP, power:…; further
arguments by name after commas), a call such as "Uniform(start=500)", or JSON.  NAME=KERNEL
gives the average a name.  Kernels count updates, as during training, and --per=snapshot
makes them count snapshots.  Each average is exact where every iterate it needs is a snapshot;
otherwise weight between snapshots goes to the two around it, and the error is estimated.

A schedule the run did not have, emulated by weights on its snapshots:

  lrtraj-average --workdir=runs/digits --schedule=linear:200 --evaluate
  lrtraj-average --workdir=runs/digits --schedule='{"rate": "Cosine", "start": 0.5, "steps": 810}'

linear:200, cosine:200 and one_minus_sqrt:200 fall from the run's rate over the last 200 updates.

Which average is best?  Measured on few single snapshots and pairs, predicted for all:

  lrtraj-average --workdir=runs/digits --advise
  lrtraj-average --workdir=runs/digits --advise --advise_examples=4000 --advise_held_out=test \
      --verify=24

The cost is told before.  Measured losses are kept in WORKDIR/advice, so an interrupted advice
goes on where it stopped.

A Keras model of your own, with snapshots by tf_lrtraj.averaging.SnapshotRecorder:

  lrtraj-average --snapshots=DIR --model=FILE.keras --data=FILE.npz --kernel=ema:0.999 --evaluate

FILE.npz holds x (and y, for losses); batch-norm statistics are recomputed on x, or on the x of
--batch_norm_data=OTHER.npz.  --import=MODULE imports a module that registers layers of your own
with Keras.

Weight files that exist (.keras, .weights.h5, or .npz of arrays) are averaged too: all alike, by
a kernel with the files in order as iterates, or greedily, best first, each if a held-out metric
gets no worse:

  lrtraj-average --files a.keras b.keras c.weights.h5 --output=mean.keras \
      --batch_norm_data=train.npz
  lrtraj-average --files *.keras --kernel=ema:0.5 --output=ema.weights.h5
  lrtraj-average --files *.keras --soup=accuracy --data=held_out.npz --output=soup.keras
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from absl import flags

from tf_lrtraj.bin import average_of_files, common, outputs
from tf_lrtraj.bin.requested_averages import requested


def main(argv: list[str]) -> None:
    options = flags.FLAGS
    if argv[1:] and not options.files:
        common.fail(f"unexpected arguments {argv[1:]}. Try --help.")
    from tf_lrtraj.records import RecordError
    from tf_lrtraj.runs.config_checks import ConfigError

    if options.workdir:
        common.need_tensorflow()
    try:
        if options.files:
            average_of_files.run(options, [*options.files, *argv[1:]])
            return
        _check(options)
        # Everything a mistake can be found in comes before TensorFlow is loaded.
        snapshots = _snapshots(options)
        config = _config(options)
        averages = {} if options.advise else requested(options, snapshots, config)
        if options.advise:
            _advise(options, snapshots, config)
        else:
            _build(options, snapshots, config, averages)
    except (ConfigError, RecordError, ValueError, FileNotFoundError) as error:
        common.fail(str(error))


def _check(options: Any) -> None:
    if bool(options.workdir) == bool(options.snapshots):
        raise ValueError("either --workdir=… or --snapshots=… is needed. Try --help.")
    if options.workdir and (options.model or options.data or options.batch_norm_data):
        raise ValueError("--model and --data go with --snapshots; a workdir knows its own.")
    if options.output or options.soup:
        raise ValueError("--output and --soup go with --files; --export=DIR writes averages.")
    wanted = bool(options.evaluate or options.export or options.advise)
    if options.snapshots and wanted and not options.model:
        raise ValueError("--evaluate, --export and --advise need --model=FILE.keras.")
    if options.advise and (options.kernel or options.schedule):
        raise ValueError("--advise tries all averages itself; leave out --kernel and --schedule.")
    unused = [n for n in ("json", "evaluate", "split", "batch_norm") if getattr(options, n)]
    if options.advise and unused:
        raise ValueError(
            f"--advise does not use {', '.join('--' + name for name in unused)}: leave out. It has "
            "--advise_split, --advise_held_out and --advise_batch_norm."
        )
    if not options.advise and not (options.kernel or options.schedule):
        raise ValueError("--kernel=…, --schedule=… or --advise is needed. Try --help.")
    for name in ("data", "batch_norm_data"):
        path = getattr(options, name)
        if path and not pathlib.Path(path).is_file():
            raise ValueError(f"--{name}: there is no file {path!r}")
    if options.json:
        outputs.check_place("--json", options.json)
    if options.export:
        outputs.check_folder("--export", options.export)
    if options.model and not pathlib.Path(options.model).is_file():
        raise ValueError(f"--model: there is no file {options.model!r}")
    if options.snapshots and (options.evaluate or options.advise) and not options.data:
        raise ValueError("--evaluate and --advise with --snapshots need --data=FILE.npz.")


def _snapshots(options: Any) -> Any:
    from tf_lrtraj.averaging.snapshots import Snapshots
    from tf_lrtraj.runs.average_run import open_snapshots

    if options.snapshots:
        return Snapshots(options.snapshots)
    if not pathlib.Path(options.workdir).is_dir():
        raise ValueError(f"--workdir: there is no folder {options.workdir!r}")
    return open_snapshots(options.workdir)


def _config(options: Any) -> dict[str, Any] | None:
    """The run's configuration; None without a workdir."""
    if not options.workdir:
        return None
    from tf_lrtraj.runs.run_config import read_config

    return read_config(options.workdir, options.data_dir)


# --- Doing it -----------------------------------------------------------------------------


def _target(options: Any, snapshots: Any, config: dict[str, Any] | None) -> Any:
    common.quiet_tensorflow()
    from tf_lrtraj.runs import average_files
    from tf_lrtraj.runs import average_run as average

    if config is not None:
        common.configure_threads(config["threads"], config["deterministic"])
        strategy = common.make_strategy_or_fail("one_device", 0, "")
        return average.RunTarget(config, options.workdir, strategy)
    data = {"data": average.read_arrays(options.data)} if options.data else {}
    held_out = options.advise_held_out
    if options.advise and held_out:
        data["held_out"] = average.read_arrays(held_out)
    inputs = average.read_arrays(options.batch_norm_data)[0] if options.batch_norm_data else None
    average_files.import_modules(options["import"].value)
    return average.ModelTarget(snapshots, options.model, data, inputs)


def _build(
    options: Any, snapshots: Any, config: dict[str, Any] | None, averages: dict[str, Any]
) -> None:
    from tf_lrtraj.averaging.post_hoc import average_snapshots, memory_bytes

    target = _target(options, snapshots, config) if options.evaluate or options.export else None
    splits: list[str] = []
    if target is not None:
        policy = _policy(options, target)
        if options.evaluate:
            splits = [target.check_split(s) for s in options.split or [_own_split(target)]]
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
    columns = "".join(f"{s + ' loss':>14}{'accuracy':>10}" for s in splits)
    print(f"\n{'average':<24}{'error':<22}{columns}")
    raw = {"raw": snapshots.read(last)} if splits else {}
    for name, arrays in {**raw, **{n: a.arrays for n, a in built.items()}}.items():
        found = built.get(name)
        line = f"{name:<24}{found.verdict if found else f'step {last}':<22}"
        weights = target.weights(arrays, last, policy) if target is not None else None
        for split in splits:
            assert target is not None
            values = target.evaluate(weights, split, options.limit)
            accuracy = values.get("accuracy")
            shown = f"{accuracy:>10.4f}" if accuracy is not None else f"{'-':>10}"
            line += f"{values['loss']:>14.4f}{shown}"
            _record(options, target, name, found, last, policy, {"split": split, **values})
        if found is not None and not splits:
            _record(options, target, name, found, last, None, {})
        print(line, flush=True)
        if options.export and found is not None:
            _export(options, target, name, weights)
    if target is not None and splits:
        print(f"batch norm: {target.describe(policy)}")


def _policy(options: Any, target: Any) -> str:
    policy = options.batch_norm or target.policy
    given = options.data or options.batch_norm_data
    if policy == "recompute" and options.snapshots and not given:
        raise ValueError("--batch_norm=recompute needs --batch_norm_data=FILE.npz or --data=…")
    return policy


def _own_split(target: Any) -> str:
    return target.assembly.eval_split if hasattr(target, "assembly") else "data"


def _record(
    options: Any, target: Any, name: str, found: Any, last: int, policy: str | None, values: Any
) -> None:
    if not options.json:
        return
    from tf_lrtraj.records import append_rows

    row = {"kind": "eval" if values else "average", "step": last, "weights": name}
    if found is not None:
        row |= {
            "exact": found.exact,
            "error": found.error,
            "quantisation": found.quantisation,
            "distance": found.distance,
        }
    if policy is not None:
        row["batch_norm"] = target.describe(policy)
    append_rows(options.json, [{**row, **values}])


def _export(options: Any, target: Any, name: str, weights: Any) -> None:
    folder = pathlib.Path(options.export)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.keras"
    target.save(weights, path)
    print(f"  written: {path}")


def _advise(options: Any, snapshots: Any, config: dict[str, Any] | None) -> None:
    import numpy as np

    from tf_lrtraj.averaging.advising import advisor
    from tf_lrtraj.averaging.advising.measurement_plan import make_plan
    from tf_lrtraj.report import advice_figure as drawing

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
    print(f"written: {drawing.draw(folder)}")
    if options.export:
        from tf_lrtraj.averaging.post_hoc import combine

        weights = np.zeros(len(snapshots))
        weights[np.searchsorted(snapshots.steps, found.arrays["steps"])] = found.recommended
        arrays = combine(snapshots, {"advised": weights})["advised"]
        last = int(found.arrays["steps"][-1])
        kept = "average" if policy == "batch" else policy
        _export(options, target, "advised", target.weights(arrays, last, kept))


def run() -> None:
    """Entry point of `lrtraj-average`."""
    # Defined here, because several programs share names of flags.
    flags.DEFINE_string("workdir", None, "folder of a run that took snapshots")
    flags.DEFINE_string("snapshots", None, "folder of snapshots, of a model of your own")
    flags.DEFINE_string("model", None, "with --snapshots: the .keras file of the model")
    flags.DEFINE_string("data", None, "with --snapshots: .npz file with x, and y for losses")
    flags.DEFINE_string("batch_norm_data", None, ".npz file whose x batch norm is recomputed on")
    flags.DEFINE_multi_string("import", [], "module to import, which registers layers of your own")
    flags.DEFINE_list("files", [], "weight files to average, with those that follow")
    flags.DEFINE_string("output", None, "--files: .keras, .weights.h5 or .npz file to write")
    flags.DEFINE_string("soup", None, "--files: metric on --data by which files are chosen")
    flags.DEFINE_enum("metric_mode", "auto", ["auto", "min", "max"], "--soup: which is better")
    flags.DEFINE_multi_string("kernel", [], "an average to build; may be given several times")
    flags.DEFINE_multi_string("schedule", [], "a schedule to emulate; may be given several times")
    flags.DEFINE_enum("per", "update", ["update", "snapshot"], "what --kernel counts")
    flags.DEFINE_float("curvature", 0.0, "curvature at which --schedule is exact", lower_bound=0)
    flags.DEFINE_float("momentum", None, "momentum of the run; a workdir knows its own")
    flags.DEFINE_string("base", None, "rates of the run, a number or FILE.csv; a workdir knows")
    flags.DEFINE_integer(
        "last", None, "step of the snapshot averages are taken at; the newest by default"
    )
    flags.DEFINE_integer("first", None, "--advise: leave out older snapshots")
    flags.DEFINE_bool("evaluate", False, "evaluate the averages and the raw weights")
    flags.DEFINE_list("split", None, "--evaluate on these splits; the run's own by default")
    flags.DEFINE_integer(
        "limit", None, "evaluate (on --advise_held_out too) only so many images", lower_bound=1
    )
    flags.DEFINE_enum(
        "batch_norm",
        None,
        ["recompute", "average", "copy"],
        "batch-norm policy; the run's own by default. copy: of the last snapshot",
    )
    flags.DEFINE_string("export", None, "write each average there as a .keras model")
    flags.DEFINE_string("json", None, "also append the results to this .jsonl file")
    flags.DEFINE_string("data_dir", None, "where the run's data lies, if it moved")
    flags.DEFINE_bool("advise", False, "find the best average from few measurements")
    flags.DEFINE_string("advise_split", "train", "--advise: the split losses are measured on")
    flags.DEFINE_integer("advise_examples", 4000, "--advise: how many images of it", lower_bound=1)
    flags.DEFINE_string(
        "advise_held_out", None, "--advise: measure what is built on this split (.npz) too"
    )
    flags.DEFINE_enum(
        "advise_batch_norm",
        None,
        ["recompute", "average", "batch"],
        "--advise: batch norm in measurements; batch: each batch's own statistics",
    )
    flags.DEFINE_integer("advise_singles", 24, "--advise: single snapshots to measure")
    flags.DEFINE_integer("advise_lags", 6, "--advise: distances of pairs to measure")
    flags.DEFINE_integer("advise_pairs", 6, "--advise: pairs per distance")
    flags.DEFINE_integer("advise_calibration", 3, "--advise: long averages to calibrate with")
    flags.DEFINE_bool("advise_every_pair", False, "--advise: measure all pairs (few snapshots)")
    flags.DEFINE_integer(
        "verify", 0, "--advise: also measure so many averages, to compare", lower_bound=0
    )
    flags.DEFINE_string("advise_dir", None, "--advise: where records go; WORKDIR/advice")
    flags.FLAGS.set_gnu_getopt(True)  # flags may follow the names of --files
    common.run_app(main)


if __name__ == "__main__":
    run()
