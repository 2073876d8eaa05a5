r"""Evaluates a checkpoint of a run: the raw weights and every average in it.

Examples:

  lrtraj-evaluate --workdir=runs/digits_demo
  lrtraj-evaluate --workdir=runs/digits_demo --weights=swa,ema --split=train
  lrtraj-evaluate --workdir=runs/digits_demo --weights=swa --batch_norm=copy
  lrtraj-evaluate --workdir=runs/digits_demo --step=900 --json=rows.jsonl

The third command evaluates an average with the batch-norm statistics of the raw
weights.  Raw weights are evaluated twice: with recomputed statistics, as averages,
and with the running statistics of the training.  If a checkpoint is damaged, the
previous one is used.
"""

from __future__ import annotations

from absl import flags

from tf_lrtraj.bin import common
from tf_lrtraj.runs.run_config import POLICIES, read_config


def main(argv: list[str]) -> None:
    common.need_tensorflow()
    options = flags.FLAGS
    config = read_config(options.workdir, options.data_dir)
    strategy = common.one_device(config)
    from tf_lrtraj.records import append_rows
    from tf_lrtraj.runs import evaluate_run

    try:
        assembly, step = evaluate_run.open_checkpoint(
            config, options.workdir, strategy, options.step
        )
    except FileNotFoundError as error:
        common.fail(str(error))
    print(f"checkpoint of step {step}")
    names = ["loss", *assembly.objective.means, *assembly.objective.metrics]
    widths = [max(10, len(name) + 2) for name in names]
    columns = "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    unit = assembly.dataset.unit
    print(f"{'weights':<16}{'split':<12}{columns}{unit:>{len(unit) + 3}}  batch norm")
    rows = evaluate_run.evaluate(
        assembly, step, options.weights, options.split, options.batch_norm, options.limit
    )
    for row in rows:
        found = "".join(
            f"{row[name]:>{width}.4f}" for name, width in zip(names, widths, strict=True)
        )
        counted = f"{row['examples']:>{len(unit) + 3}}"
        print(
            f"{row['weights']:<16}{row['split']:<12}{found}{counted}  {row['batch_norm']}",
            flush=True,
        )
        if options.json:
            append_rows(options.json, [row])


def run() -> None:
    """Entry point of `lrtraj-evaluate`."""
    # Defined here, because several programs share names of flags.
    flags.DEFINE_string("workdir", None, "folder of a run")
    flags.DEFINE_list(
        "weights",
        None,
        "weights to evaluate: 'raw' and names of averages, such as raw,swa; all by default",
    )
    flags.DEFINE_integer(
        "step", None, "step of the checkpoint; the newest by default", lower_bound=0
    )
    flags.DEFINE_string(
        "split", None, "split of the data set, such as test; the run's evaluation split by default"
    )
    flags.DEFINE_enum(
        "batch_norm",
        None,
        POLICIES,
        "batch-norm statistics of averages; the run's policy by default",
    )
    flags.DEFINE_integer(
        "limit", None, "number of examples to evaluate; all by default", lower_bound=1
    )
    flags.DEFINE_string("data_dir", None, "folder of the data set, if it has moved since the run")
    flags.DEFINE_string("json", None, "also append the rows to this .jsonl file")
    common.run_app(main, needs=["workdir"], writes=["json"])


if __name__ == "__main__":
    run()
