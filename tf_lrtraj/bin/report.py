r"""Draws the report of a workdir from its records alone.

Examples:

  lrtraj-report --workdir=runs/digits_demo
  lrtraj-report --workdir=runs/digits_demo --output=page.html --figures=figures/

Prints the final numbers and the path of the page.  Works on runs that are still going, were
killed or diverged.  Exit code 2 where the workdir holds no run or its records are damaged.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from tf_lrtraj.bin import common


def _fail(message: str) -> int:
    print(f"lrtraj-report: error: {message}", file=sys.stderr)
    return common.USAGE


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    from tf_lrtraj import records, report
    from tf_lrtraj.bin.outputs import check_folder, check_place
    from tf_lrtraj.report.probe_figures import gallery

    workdir, output = flags.FLAGS.workdir, flags.FLAGS.output
    if len(argv) > 1:
        return _fail(f"takes flags only. Received: {' '.join(argv[1:])!r}. Try --workdir=DIR")
    if not workdir:
        return _fail("--workdir=DIR is needed: the folder of a run made by lrtraj-train")
    figures = flags.FLAGS.figures
    try:
        if output is not None:
            check_place("--output", output)
        if figures:
            check_folder("--figures", figures)
    except ValueError as error:
        return _fail(str(error))
    try:
        path = report.write_report(workdir, output)
        if figures:
            report.write_figures(workdir, figures)
        print(report.text_summary(workdir))
        for line in gallery.findings(workdir):
            print(line)
    except (records.RecordError, ImportError) as error:
        return _fail(str(error))
    except OSError as error:
        place = error.filename or output or workdir
        return _fail(
            f"cannot write {place}: {error.strerror}. Choose another --output or --figures"
        )
    print(f"report: {path}")
    return common.OK


def run() -> None:
    """The console script `lrtraj-report`."""
    # Defined here: importing several programs must not define a flag twice.
    flags.DEFINE_string("workdir", None, "Folder of the run to report on.")
    flags.DEFINE_string("output", None, "Page to write; report.html in the workdir by default.")
    flags.DEFINE_string("figures", None, "Also write the figures as SVG files to this folder.")
    common.run_app(main)


if __name__ == "__main__":
    run()
