"""The rows of a run as a table of pandas."""

from __future__ import annotations

import os
from typing import Any

from tf_lrtraj.records.repeated_runs import load_record

# The first columns; metrics follow in the order in which they occur.
_COLUMNS = ("kind", "step", "epoch", "split", "weights", "batch_norm")


def read_metrics(workdir: str | os.PathLike[str]) -> Any:
    """Returns the rows of `metrics.jsonl` as a `pandas.DataFrame`.

    Each row of the file is a row of the table, in the same order.  The columns are `kind` ("train"
    or "eval"), `step`, `epoch`, `split`, `weights`, `batch_norm`, and one for each metric, such as
    `loss`, `accuracy`, `learning_rate` and `examples`.  Entries that a row does not have are
    missing values.

    Example: the last evaluation of every set of weights.

    >>> import tempfile
    >>> from tf_lrtraj import records
    >>> workdir = tempfile.mkdtemp()
    >>> for name in ("config", "run"):
    ...     records.write_json(f"{workdir}/{name}.json", {"format": 1, "status": "done"})
    >>> with records.MetricsWriter(f"{workdir}/metrics.jsonl") as rows:
    ...     for step, weights, loss in [(5, "raw", 2.0), (9, "raw", 1.5), (9, "ema", 1.25)]:
    ...         rows.write({"kind": "eval", "step": step, "weights": weights, "loss": loss})
    >>> table = records.read_metrics(workdir)
    >>> table[table.kind == "eval"].groupby("weights").loss.last().to_dict()
    {'ema': 1.25, 'raw': 1.5}

    Args:
        workdir: the folder of a run, or of repeated runs, whose table begins with a column `run`,
            the name of the run's folder.  A matched run is in the folder
            `matched_dir(workdir, name)`.

    Raises:
        ImportError: if pandas is not installed (`pip install tf_lrtraj[pandas]`).
        RecordError: if `workdir` holds no run, or a file is damaged.
    """
    try:
        import pandas
    except ImportError:
        raise ImportError(
            "`read_metrics` needs pandas: pip install pandas (or tf_lrtraj[pandas])"
        ) from None
    record = load_record(workdir)
    rows = [{"run": run.workdir.name} | row for run in record.runs for row in run.all_rows]
    first = ("run",) if record.runs else ()
    rows = rows or record.all_rows
    columns = dict.fromkeys([*first, *_COLUMNS, *(key for row in rows for key in row)])
    return pandas.DataFrame(rows, columns=list(columns))
