"""What a finished run left behind, read back for comparisons; what tests of strategies share."""

import contextlib
import json
import os
import pathlib
import shutil
import signal

import numpy as np
from run_helpers import changed, checkpoint_steps, checkpoint_values
from scale_config import get_config

from tf_lrtraj import records
from tf_lrtraj.averaging import Snapshots
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.runs import train_run

# For runs whose start-up should be short: no matched run, no probes, no models, no events.
BARE = {"probes": {}, "save_models": False, "loggers": (), "matched.averages": ()}


def scale_config(**changes):
    config = get_config()
    if "probes" in changes:
        config.probes = changes.pop("probes")
    return changed(config, **changes)


def files_of(workdir):
    """Names of all files, without what is in the names of TensorBoard's events."""
    names = (str(p.relative_to(workdir)) for p in pathlib.Path(workdir).rglob("*") if p.is_file())
    return sorted({name.split("events.out")[0] if "events.out" in name else name for name in names})


def go_back(source, workdir, step):
    """A copy of a finished run as if it had been killed after the checkpoint of `step`."""
    shutil.copytree(source, workdir)
    for later in [s for s in checkpoint_steps(workdir) if s > step]:
        shutil.rmtree(workdir / "checkpoints" / f"step_{later:09d}")
    assert checkpoint_steps(workdir)[-1] == step
    run = records.read_json(workdir / records.RUN)
    records.write_json(workdir / records.RUN, {**run, "status": "incomplete"})
    return workdir


@contextlib.contextmanager
def stopped_at(step, monkeypatch):
    """SIGTERM comes to this process while step `step` is evaluated."""
    evaluate = train_run.evaluate_all

    def evaluate_and_stop(assembly, at, log):
        evaluate(assembly, at, log)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train_run, "evaluate_all", evaluate_and_stop)
        yield


def assert_close(actual, expected, what, tolerance):
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=what)
    actual, expected = actual[finite], expected[finite]
    scale = np.abs(expected).max(initial=0) + 1e-3
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=what)


def assert_same_run(one, other, tolerance=1e-4, bits=False):
    """Weights, velocities, averages, rows, snapshots and probes of two runs agree.

    Args:
        tolerance: of every array, relative to its largest value.
        bits: they must be the same to the bit.
    """
    tolerance = 0 if bits else tolerance
    assert checkpoint_steps(one) == checkpoint_steps(other)
    ours, theirs = checkpoint_values(one), checkpoint_values(other)
    assert ours.keys() == theirs.keys()
    assert {"model", "optimizer", "averages"} <= {name.split("/")[0] for name in ours} or (
        one.parent.name == "matched"
    )
    for name, value in theirs.items():
        if bits:
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
        assert_close(np.asarray(ours[name]), np.asarray(value), name, tolerance)
    rows, expected = (records.read_rows(path / records.METRICS) for path in (one, other))
    if bits:
        assert (one / records.METRICS).read_bytes() == (other / records.METRICS).read_bytes()
    assert len(rows) == len(expected) > 5
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        for key, value in wanted.items():
            if key in ("loss", "accuracy"):
                # One image at the border between classes may fall on the other side.
                slack = 1.01 / row.get("examples", 48) if key == "accuracy" else 1e-4 * abs(value)
                assert abs(row[key] - value) <= (0 if bits else slack), (row, wanted)
            else:
                assert row[key] == value, (row, wanted)
    if (other / "snapshots").is_dir():
        ours, theirs = Snapshots(one / "snapshots"), Snapshots(other / "snapshots")
        assert ours.steps.tolist() == theirs.steps.tolist() and len(theirs.steps) > 2
        for step in theirs.steps:
            for i, (a, b) in enumerate(zip(ours.read(step), theirs.read(step), strict=True)):
                assert_close(a, b, f"snapshot {step}, variable {i}", tolerance)
    for path in (other / "probes").rglob("*.npz"):
        ours = ArrayRecord.read(one / path.relative_to(other))
        theirs = ArrayRecord.read(path)
        assert ours.values.keys() == theirs.values.keys()
        for name, value in theirs.values.items():
            if np.issubdtype(value.dtype, np.floating):
                assert_close(ours.values[name], value, f"{path.name}: {name}", 10 * tolerance)
    configs = [json.loads((path / records.CONFIG).read_text()) for path in (one, other)]
    assert configs[0] == configs[1]
    assert records.load_run(one).status == records.load_run(other).status == "done"
