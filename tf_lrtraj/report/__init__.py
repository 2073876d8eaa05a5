"""Reports and figures, drawn from records alone; TensorFlow is never imported.

>>> import tf_lrtraj.report
>>> tf_lrtraj.report.write_report("no/such/folder")
Traceback (most recent call last):
...
tf_lrtraj.records.RecordError: no/such/folder is not a folder, so it is not the workdir of a run.
"""

from tf_lrtraj.report.probe_figures.gallery import plot
from tf_lrtraj.report.run_page import figures, render_report, write_figures, write_report
from tf_lrtraj.report.run_summary import text_summary

__all__ = ["figures", "plot", "render_report", "text_summary", "write_figures", "write_report"]
