r"""Draws the report of a run, or of its repetitions with other seeds, from the records alone.

Examples:

  lrtraj-report --workdir=runs/digits_demo
  lrtraj-report --workdir=runs/digits_demo --output=page.html --figures=figures/
  lrtraj-report --workdir=runs/digits   # of runs/digits/seed0, runs/digits/seed1, ...

The subfolders of a folder that is no run itself may be the workdirs of runs that differ in
config.seed alone.  Their report has means, standard errors, and bands from the lowest to the
highest run.

Prints the final numbers and the path of the page.  The run may be unfinished, killed or diverged.
Exit code 2: the workdir holds no run, or its records are damaged.
"""

from __future__ import annotations

from absl import flags

from tf_lrtraj.bin import common


def main(argv: list[str]) -> None:
    from tf_lrtraj import report
    from tf_lrtraj.report.probe_figures import gallery

    options = flags.FLAGS
    try:
        path = report.write_report(options.workdir, options.output)
        if options.figures:
            report.write_figures(options.workdir, options.figures)
        print(report.text_summary(options.workdir))
        for line in gallery.findings(options.workdir):
            print(line)
    except ImportError as error:
        common.fail(str(error))
    except OSError as error:
        place = error.filename or options.output or options.workdir
        common.fail(f"cannot write {place}: {error.strerror}. Choose another --output or --figures")
    print(f"report: {path}")


def run() -> None:
    """Entry point of `lrtraj-report`."""
    # Defined here, because several programs share names of flags.
    flags.DEFINE_string("workdir", None, "folder of the run, or of runs that differ in their seed")
    flags.DEFINE_string("output", None, "page to write; WORKDIR/report.html by default")
    flags.DEFINE_string(
        "figures", None, "folder to which the figures are written too, as SVG files"
    )
    common.run_app(main, needs=["workdir"], writes=["output"], folders=["figures"])


if __name__ == "__main__":
    run()
