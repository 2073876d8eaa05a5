r"""Runs experiments on the quadratic model and draws their figures, in half a minute.

Examples:

  lrtraj-synthetic --config=synthetic --workdir=runs/synthetic
  lrtraj-synthetic --config=synthetic --workdir=runs/other --config.seed=7

Writes a record (`NAME.npz`, `NAME.json`) and a figure (`NAME.svg`) per experiment to --workdir.
TensorFlow is not needed.  Exit code 2: an error in the flags or the configuration.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from tf_lrtraj.bin import common, configuration
from tf_lrtraj.runs import synthetic_run


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    from tf_lrtraj.report import synthetic_figures as report

    config, workdir = flags.FLAGS.config, flags.FLAGS.workdir
    configuration.check_program(config, "synthetic")
    try:
        synthetic_run.run(config, workdir)
        for path in report.draw(workdir):
            print(path)
    except OSError as error:
        common.fail(f"--workdir={workdir}: {error.strerror}")
    return common.OK


def run() -> None:
    """Defines the flags and runs."""
    # Defined here: importing several programs must not define a flag twice.
    config_flags.DEFINE_config_file(
        "config", None, "configuration: a file, or a name such as synthetic"
    )
    flags.DEFINE_string(
        "workdir", None, "folder for records and figures; created if it does not exist"
    )
    common.run_app(
        main, needs=["config", "workdir"], folders=["workdir"], schema=synthetic_run.SCHEMA
    )


if __name__ == "__main__":
    run()
