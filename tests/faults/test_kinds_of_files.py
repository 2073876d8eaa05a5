"""Something that is no file in the place of a record, itself or behind a link; no reader waits."""

import os
import socket

import numpy as np
import pytest
import toy
from helpers import write_snapshots

from tf_lrtraj import records, report
from tf_lrtraj.averaging.model_files import load_model
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.bin import tables
from tf_lrtraj.runs.average_run import read_arrays
from tf_lrtraj.study import state_files
from tf_lrtraj.training.checkpoints import Checkpointer

REFUSED = (records.RecordError, ValueError, OSError)


def read_snapshot(path):
    return Snapshots(path.parent).read(0)


# file: what reads it
READERS = {
    "a.json": records.read_json,
    "rows.jsonl": records.read_rows,
    "resumed.jsonl": lambda path: records.MetricsWriter(path, resume_step=0),
    "appended.jsonl": lambda path: records.append_rows(path, [{"step": 1}]),
    "schedule.npz": records.read_schedule,
    "record.npz": records.ArrayRecord.read,
    "state.npz": state_files.read_arrays,
    "data.npz": read_arrays,
    "model.keras": load_model,
    "rates.csv": lambda path: tables.parse_rates(str(path), None, 0.1, None),
    "step_000000000.safetensors": read_snapshot,
    "index.json": read_snapshot,
    "run.json": lambda path: records.read_run(path.parent),
}


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def endless_text(path):
    path.symlink_to("/dev/urandom")


def folder(path):
    path.mkdir()


def listening(path):
    with socket.socket(socket.AF_UNIX) as held:
        old = os.getcwd()
        os.chdir(path.parent)  # names of sockets are short
        try:
            held.bind(path.name)
        finally:
            os.chdir(old)


def linked_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def linked_folder(path):
    path.symlink_to(".")


def huge(path):
    path.touch()
    os.truncate(path, 1 << 42)  # takes no room on the disk


UNLISTED = {"more": "variables.data-00001-of-00002"}
KINDS = [pipe, device, endless_text, folder, listening, linked_pipe, linked_folder, huge]


@pytest.fixture
def workplace(tmp_path):
    write_snapshots(tmp_path / "place", [0], np.zeros((1, 2), np.float32))
    return tmp_path / "place"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_in_one_line(name, kind, workplace):
    path = workplace / name
    path.unlink(missing_ok=True)
    kind(path)
    before = sorted(p.name for p in workplace.iterdir())
    with pytest.raises(REFUSED) as caught:
        READERS[name](path)
    said = str(caught.value)
    assert path.name in said or str(workplace) in said
    assert "\n" not in said
    if kind is not huge:
        assert "not a file" in said, said
    assert before == sorted(p.name for p in workplace.iterdir())


@pytest.mark.parametrize("kind", [pipe, linked_pipe, device, folder])
@pytest.mark.parametrize("name", ["variables.index", "manifest.json", "progress.json", "more"])
def test_in_a_checkpoint_it_counts_as_damage(kind, name, tmp_path):
    import tensorflow as tf

    variable = tf.Variable([1.0])
    variable.value = variable
    checkpointer = Checkpointer(tmp_path, {"weights": [variable]})
    for step in (1, 2):
        checkpointer.save(step, {})
    # A file that nobody lists, and that TensorFlow would read.
    path = tmp_path / "step_000000002" / UNLISTED.get(name, name)
    path.unlink(missing_ok=True)
    kind(path)
    assert checkpointer.newest_good()[0] == 1


@pytest.mark.parametrize("name", ["run.json", "config.json", "metrics.jsonl"])
def test_a_run_whose_records_are_pipes_is_refused(name, tmp_path):
    assert toy.run(tmp_path / "run", total="2 steps")[0] == 0
    (tmp_path / "run" / name).unlink()
    os.mkfifo(tmp_path / "run" / name)
    if name != "metrics.jsonl":  # a run that is done does not read its rows
        code, errors = toy.run(tmp_path / "run", total="2 steps")
        assert code == 2 and errors.count("\n") == 1 and "it is a pipe" in errors
    with pytest.raises(records.RecordError, match=rf"{name}|holds no run"):
        report.write_report(tmp_path / "run")
