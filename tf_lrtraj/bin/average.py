r"""Builds averages from the snapshots of a run or from weight files, and recommends one.

Averages of snapshots, in one pass over the files:

  lrtraj-average --workdir=runs/digits --kernel=ema:0.99 --kernel=swa:start=500 --evaluate
  lrtraj-average --workdir=runs/digits --kernel=window:200,every=20 --kernel=two_point:100 \
      --last=700 --evaluate --split=test,train --json=rows.jsonl
  lrtraj-average --workdir=runs/digits --kernel='{"kernel": "Exponential", "decay": 0.99}' \
      --export=averages/

A kernel is a short name (ema:DECAY, swa:START, window:LENGTH, two_point:GAP, power:EXPONENT,
half_life:RATIO, bema:, with further arguments by name after commas), a call such as
"Uniform(start=500)", or JSON.  NAME=KERNEL gives the average a name.  The lengths in kernels count
updates, as during training; with --per=snapshot they count snapshots.  An average is exact if
every iterate it needs is a snapshot.  Otherwise the weight of an iterate between two snapshots is
divided between them, and the error is estimated.

A schedule that the run did not have, emulated by an average of its snapshots:

  lrtraj-average --workdir=runs/digits --schedule=linear:200 --evaluate
  lrtraj-average --workdir=runs/digits --schedule='{"rate": "Cosine", "start": 0.5, "steps": 810}'

linear:200, cosine:200 and one_minus_sqrt:200 decay from the run's rate to 0 over the last 200
updates.

The best average, predicted for all averages from measurements of few snapshots and pairs:

  lrtraj-average --workdir=runs/digits --advise
  lrtraj-average --workdir=runs/digits --advise --advise_examples=4000 --advise_held_out=test \
      --verify=24

The program prints the cost first.  Measured losses are kept in WORKDIR/advice, so the same command
resumes an interrupted measurement.

Your own Keras model, with snapshots from tf_lrtraj.averaging.SnapshotRecorder:

  lrtraj-average --snapshots=DIR --model=FILE.keras --data=FILE.npz --kernel=ema:0.999 --evaluate

FILE.npz holds x and, for losses, y; batch-norm statistics are recomputed on x, or on the x of
--batch_norm_data=OTHER.npz.  --import=MODULE imports a module that registers your own layers
with Keras.

Weight files (.keras, .weights.h5, or arrays in .npz or .safetensors) are averaged with equal
weights, with a kernel whose iterates are the files in order, or as a greedy soup: best first,
adding each file that does not make a metric on --data worse:

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
    flags.DEFINE_string("workdir", None, "folder of a run with snapshots")
    flags.DEFINE_string("snapshots", None, "folder of snapshots of your own model")
    flags.DEFINE_string("model", None, "with --snapshots: the .keras file of the model")
    flags.DEFINE_string("data", None, "with --snapshots: .npz file with x, and y for losses")
    flags.DEFINE_string(
        "batch_norm_data", None, ".npz file with x, on which batch norm is recomputed"
    )
    flags.DEFINE_multi_string("import", [], "module to import, which registers your own layers")
    flags.DEFINE_list("files", [], "weight files to average, as --files a.keras b.keras")
    flags.DEFINE_string("output", None, "--files: .keras, .weights.h5 or .npz file to write")
    flags.DEFINE_string(
        "soup", None, "--files: metric on --data, such as accuracy, for a greedy soup"
    )
    flags.DEFINE_enum(
        "metric_mode",
        "auto",
        ["auto", "min", "max"],
        "--soup: whether a lower or a higher metric is better; auto: by its name",
    )
    flags.DEFINE_multi_string("kernel", [], "average to build, such as ema:0.99; may be repeated")
    flags.DEFINE_multi_string(
        "schedule", [], "schedule to emulate, such as linear:200; may be repeated"
    )
    flags.DEFINE_enum("per", "update", ["update", "snapshot"], "unit of the lengths in --kernel")
    flags.DEFINE_float("curvature", 0.0, "curvature at which --schedule is exact", lower_bound=0)
    flags.DEFINE_float("momentum", None, "momentum of the run; read from --workdir by default")
    flags.DEFINE_string("base", None, "rates of the run, a number or FILE.csv; from --workdir")
    flags.DEFINE_integer(
        "last", None, "step at which averages end; that of the newest snapshot by default"
    )
    flags.DEFINE_integer("first", None, "--advise: step of the first snapshot to use")
    flags.DEFINE_bool("evaluate", False, "evaluate the averages and the raw weights")
    flags.DEFINE_list(
        "split", None, "--evaluate: splits, such as test,train; the run's own by default"
    )
    flags.DEFINE_integer(
        "limit",
        None,
        "number of images to evaluate, also on --advise_held_out; all by default",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "batch_norm",
        None,
        ["recompute", "average", "copy"],
        "batch-norm statistics: recomputed, averaged with the same weights, or those of the last "
        "snapshot (copy); the run's policy by default",
    )
    flags.DEFINE_string("export", None, "folder to write each average to")
    flags.DEFINE_enum(
        "export_format",
        "keras",
        ["keras", "safetensors"],
        "--export: NAME.keras, or NAME.safetensors with the weights",
    )
    flags.DEFINE_string("json", None, "also append the results to this .jsonl file")
    flags.DEFINE_string("data_dir", None, "folder of the data set, if it has moved since the run")
    flags.DEFINE_bool("advise", False, "predict the best average from few measurements")
    flags.DEFINE_string("advise_split", "train", "--advise: split on which losses are measured")
    flags.DEFINE_integer("advise_examples", 4000, "--advise: number of its images", lower_bound=1)
    flags.DEFINE_string(
        "advise_held_out",
        None,
        "--advise: second split (or .npz file) on which the built averages are measured too",
    )
    flags.DEFINE_enum(
        "advise_batch_norm",
        None,
        ["recompute", "average", "batch"],
        "--advise: batch-norm statistics of measurements; batch: those of each batch",
    )
    flags.DEFINE_integer("advise_singles", 24, "--advise: number of single snapshots to measure")
    flags.DEFINE_integer("advise_lags", 6, "--advise: number of lags of pairs")
    flags.DEFINE_integer("advise_pairs", 6, "--advise: number of pairs per lag")
    flags.DEFINE_integer(
        "advise_calibration", 3, "--advise: number of long averages for calibration"
    )
    flags.DEFINE_bool("advise_every_pair", False, "--advise: measure all pairs (few snapshots)")
    flags.DEFINE_integer(
        "verify",
        0,
        "--advise: number of further averages to measure, to test the prediction",
        lower_bound=0,
    )
    flags.DEFINE_string(
        "advise_dir", None, "--advise: folder of its records; WORKDIR/advice by default"
    )
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
