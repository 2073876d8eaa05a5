r"""Trains a network, keeps averages of its weights, evaluates both, and writes a report.

Examples:

  # The demonstration on embedded images of digits (about 2 minutes on 2 cores):
  lrtraj-train --config=digits_demo --workdir=runs/digits_demo

  # Any entry of the configuration can be changed on the command line:
  lrtraj-train --config=digits_demo --workdir=runs/slow \
      --config.schedule.constant=0.02 --config.total="5 epochs"

  # Several GPUs:
  lrtraj-train --config=cifar10_resnet34 --workdir=runs/r34 --strategy=mirrored

  # Several machines: run this on each of them, with TF_CONFIG set (docs/distribution.md):
  lrtraj-train --config=cifar10_resnet34 --workdir=runs/r34 --strategy=multi_worker

`--config` takes a file, or the name of a configuration of the package (in configs/).
The end of this text explains the entries of a configuration.
The same command resumes a run that was stopped.

Exit codes: 0 done; 1 the disk is full or a file cannot be read or written (repair what the
message names and run the command again); 2 an error in flags, configuration or data; 3 the loss
or a weight became non-finite; 75 stopped by SIGTERM or Ctrl-C, or because another worker stopped
(run the command again).  See docs/reliability.md.
"""

from __future__ import annotations

from typing import Any

from absl import flags
from ml_collections import config_flags

from tf_lrtraj.bin import common, configuration, outputs
from tf_lrtraj.runs import run_config
from tf_lrtraj.training import stopping, strategies


def main(argv: list[str]) -> None:
    common.need_tensorflow()
    with stopping.stop_signals():  # also during the slow import of TensorFlow
        _train(flags.FLAGS)


def _train(options: Any) -> None:
    workdir = options.workdir
    # Mistakes that show without TensorFlow come before its slow import.
    configuration.check_program(options.config, "train")
    plain = run_config.validate(options.config)
    several = options.strategy == "multi_worker"
    if not several:  # of several workers each must come to the meetings
        from tf_lrtraj.runs import finished_run

        outputs.check_folder("--workdir", workdir)
        path = finished_run.finished_report(plain, workdir)
        if path is not None:
            print(f"{workdir}: the run is already done")
            _show(workdir, path)
            return
    common.quiet_tensorflow()
    from tf_lrtraj.runs import train_run
    from tf_lrtraj.training.workers import losing

    common.configure_threads(plain["threads"], plain["deterministic"])
    strategy = common.make_strategy_or_fail(
        options.strategy, options.num_devices, options.tpu, join_timeout=options.join_timeout
    )
    with losing(several):
        plain, dataset = train_run.prepare(plain, workdir, strategy)
        path = train_run.run(plain, dataset, workdir, strategy, options.strategy, tell=print)
    if path is not None:  # the chief, of several workers
        _show(workdir, path)


def _show(workdir: str, path: Any) -> None:
    from tf_lrtraj import report

    print(report.text_summary(workdir))
    print(f"report: {path}")


def run() -> None:
    """Entry point of `lrtraj-train`."""
    # Defined here, because several programs share names of flags.
    config_flags.DEFINE_config_file(
        "config",
        None,
        "configuration: a file, or a name such as digits_demo of a configuration of the package",
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "folder for records, checkpoints and the report; created if it does not exist",
    )
    flags.DEFINE_enum(
        "strategy",
        "one_device",
        strategies.STRATEGIES,
        "strategy of tf.distribute: one device, all GPUs of a machine, several machines, or a TPU",
    )
    flags.DEFINE_integer(
        "num_devices",
        0,
        "with --strategy=mirrored: number of GPUs (0: all); without a GPU, number of logical CPUs",
    )
    flags.DEFINE_integer(
        "join_timeout",
        strategies.JOIN_TIMEOUT,
        "with --strategy=multi_worker: seconds to wait for the other workers to start",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "tpu", "", "with --strategy=tpu: name or address of the TPU; empty on a TPU VM"
    )
    common.run_app(main, needs=["config", "workdir"], schema=run_config.SCHEMA)


if __name__ == "__main__":
    run()
