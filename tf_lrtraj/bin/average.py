r"""Builds averages of a run afterwards, from its snapshots, and advises which one to take.

Any kernel, any number of them, in one pass over the files:

  lrtraj-average --workdir=runs/digits --kernel=ema:0.99 --kernel=swa:start=500 --evaluate
  lrtraj-average --workdir=runs/digits --kernel=window:200,every=20 --kernel=two_point:100 \
      --last=700 --evaluate --split=test,train --json=rows.jsonl
  lrtraj-average --workdir=runs/digits --kernel='{"kernel": "Exponential", "decay": 0.99}' \
      --export=averages/

A kernel is a short name (ema:DECAY, swa:START, window:LENGTH, two_point:GAP, power:EXPONENT,
half_life:RATIO, bema:; further arguments by name after commas), a call such as
"Uniform(start=500)", or JSON.  NAME=KERNEL gives the average a name.  Kernels count updates, as
during training, and --per=snapshot makes them count snapshots.  Each average is exact where every
iterate it needs is a snapshot; otherwise weight between snapshots goes to the two around it, and
the error is estimated.

A schedule the run did not have, emulated by weights on its snapshots:

  lrtraj-average --workdir=runs/digits --schedule=linear:200 --evaluate
  lrtraj-average --workdir=runs/digits --schedule='{"rate": "Cosine", "start": 0.5, "steps": 810}'

linear:200, cosine:200 and one_minus_sqrt:200 fall from the run's rate over the last 200 updates.

Which average is best?  Measured on few single snapshots and pairs, predicted for all:

  lrtraj-average --workdir=runs/digits --advise
  lrtraj-average --workdir=runs/digits --advise --advise_examples=4000 --advise_held_out=test \
      --verify=24

The cost is printed first.  Measured losses are kept in WORKDIR/advice, so an interrupted advice
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

from absl import flags

from tf_lrtraj.bin import average_of_files, average_of_snapshots, common


def main(argv: list[str]) -> None:
    options = flags.FLAGS
    if argv[1:] and not options.files:
        common.fail(f"unexpected arguments {argv[1:]}. Try --help.")
    if options.workdir:
        common.need_tensorflow()
    try:
        if options.files:
            average_of_files.run(options, [*options.files, *argv[1:]])
        else:
            average_of_snapshots.run(options)
    except (ValueError, FileNotFoundError) as error:
        common.fail(str(error))


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
    common.run_app(
        main,
        reads=["model", "data", "batch_norm_data"],
        writes=["output", "json"],
        folders=["export"],
        arguments=True,
    )


if __name__ == "__main__":
    run()
