"""Reading and writing the records of a run; docs/records.md describes their format.

A workdir is a folder of strict JSON files, JSON rows and one array.  Only this package knows the
names of its files.  A file is written under a temporary name in the same folder and then renamed.

Example:

>>> import tempfile
>>> folder = tempfile.mkdtemp()
>>> write_json(f"{folder}/config.json", {"learning_rate": 0.1})
>>> write_json(f"{folder}/run.json", {"format": FORMAT, "status": "done"})
>>> with MetricsWriter(f"{folder}/metrics.jsonl") as metrics:
...     metrics.write({"kind": "eval", "step": 5, "split": "test", "weights": "raw", "loss": 2.0})
>>> load_run(folder).series("loss")
(array([5]), array([2.]))
"""

from tf_lrtraj.records.arrays import ArrayRecord
from tf_lrtraj.records.files import (
    RecordError,
    local_path,
    naming,
    open_file,
    remove_leftovers,
    replacing,
    scheme_of,
    sync,
    temporary_path,
    write_atomically,
)
from tf_lrtraj.records.metrics_frame import read_metrics
from tf_lrtraj.records.repeated_runs import RepeatedRuns, load_record
from tf_lrtraj.records.rows import (
    Mark,
    MetricsWriter,
    Row,
    append_rows,
    damage_before,
    keep_until,
    read_rows,
)
from tf_lrtraj.records.run import (
    BATCH_NORM_POLICIES,
    CONFIG,
    FORMAT,
    MATCHED,
    METRIC_FIELDS,
    METRICS,
    RAW,
    RUN,
    SCHEDULE,
    TIMING,
    RunRecord,
    check_average_name,
    check_workdir_matches,
    load_run,
    matched_dir,
    one_at_a_time,
    only_writer,
    prepare_workdir,
    read_run,
    read_schedule,
    write_schedule,
)
from tf_lrtraj.records.shapes import Count, conform, problem
from tf_lrtraj.records.strict_json import encode, read_json, write_json

# Messages and tracebacks show the name under which users import it.
RecordError.__module__ = __name__

__all__ = [
    "BATCH_NORM_POLICIES",
    "CONFIG",
    "FORMAT",
    "MATCHED",
    "METRICS",
    "METRIC_FIELDS",
    "RAW",
    "RUN",
    "SCHEDULE",
    "TIMING",
    "ArrayRecord",
    "Count",
    "Mark",
    "MetricsWriter",
    "RecordError",
    "RepeatedRuns",
    "Row",
    "RunRecord",
    "append_rows",
    "check_average_name",
    "check_workdir_matches",
    "conform",
    "damage_before",
    "encode",
    "keep_until",
    "load_record",
    "load_run",
    "local_path",
    "matched_dir",
    "naming",
    "one_at_a_time",
    "only_writer",
    "open_file",
    "prepare_workdir",
    "problem",
    "read_json",
    "read_metrics",
    "read_rows",
    "read_run",
    "read_schedule",
    "remove_leftovers",
    "replacing",
    "scheme_of",
    "sync",
    "temporary_path",
    "write_atomically",
    "write_json",
    "write_schedule",
]
