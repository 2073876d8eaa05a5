"""Files of a stopped run damaged, its clock moved, its disk full or read-only; then it goes on."""

import contextlib
import os
import random
import shutil
import subprocess
import time

import numpy as np
import pytest
import toy
from helpers import flip_bit, start_python

from tf_lrtraj import records
from tf_lrtraj.averaging.snapshots import Snapshots
from tf_lrtraj.training.checkpoints import Checkpointer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert toy.run(folder)[0] == 0
    return toy.contents(folder)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A run whose power was cut after the checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("cut")
    with toy.Fault(folder / "run", 105, False, "cut", folder), pytest.raises(toy.PowerCut):
        toy.run(folder / "run")
    found = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())
    assert [name for name in found if name[0] != "."] == ["step_000000004", "step_000000008"]
    steps = [row["step"] for row in records.read_rows(folder / "run" / "metrics.jsonl")]
    assert max(steps) >= 8
    return folder / "run"


@pytest.fixture
def stopped(cut, tmp_path):
    return shutil.copytree(cut, tmp_path / "run")


def truncate(path, dice):
    os.truncate(path, dice.randrange(path.stat().st_size))


def flip(path, dice):
    flip_bit(path, dice.randrange(path.stat().st_size), dice.randrange(8))


def remove(path, dice):
    path.unlink()


def goes_on(workdir, whole):
    code, errors = toy.run(workdir)
    assert code == 0, errors
    assert not toy.differences(toy.contents(workdir), whole)


@pytest.mark.parametrize("damage", [truncate, flip, remove])
def test_a_damaged_checkpoint_falls_back_and_ends_the_same(damage, stopped, whole):
    dice = random.Random(damage.__name__)
    newest = stopped / "checkpoints" / "step_000000008"
    names = sorted(path.name for path in newest.iterdir())
    assert len(names) == 4
    damage(newest / dice.choice(names), dice)
    goes_on(stopped, whole)
    # Started at 4: the run knows it.
    assert records.read_json(stopped / "run.json")["resumed_at"] == [4]


def test_every_damage_to_a_checkpoint_is_noticed(cut, tmp_path):
    dice = random.Random(0)
    source = cut / "checkpoints"
    for name in sorted(path.name for path in (source / "step_000000008").iterdir()):
        for damage in (truncate, flip, flip, flip, remove):
            folder = shutil.copytree(source, tmp_path / "checkpoints")
            damage(folder / "step_000000008" / name, dice)
            step, problems = Checkpointer(folder, {}).newest_good()
            assert (step, len(problems)) == (4, 1), (name, damage)
            assert "step_000000008" in problems[0]
            shutil.rmtree(folder)


def test_where_all_checkpoints_are_damaged_the_run_is_refused_with_the_list(stopped):
    for step in (4, 8):
        truncate(stopped / "checkpoints" / f"step_{step:09d}" / "variables.index", random.Random(1))
    code, errors = toy.run(stopped)
    assert code == 2 and errors.count("\n") == 1
    assert "step_000000008" in errors and "step_000000004" in errors and "Delete" in errors


def damage_half_row(path):
    path.write_bytes(path.read_bytes() + b'{"kind":"train","st')


def damage_after_four(path):
    lines = path.read_bytes().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if b'"step":6,' in line)
    path.write_bytes(b"".join(lines[:place]) + b"?" + b"".join(lines[place:])[1:])


def damage_bit_after_four(path):
    data = path.read_bytes()
    place = data.index(b'"step":6,') + 7
    path.write_bytes(data[:place] + b"7" + data[place + 1 :])  # still a row, of another step


@pytest.mark.parametrize("damage", [damage_half_row, damage_after_four, damage_bit_after_four])
def test_damaged_rows_are_made_anew(damage, stopped, whole):
    damage(stopped / "metrics.jsonl")
    goes_on(stopped, whole)
    resumed = records.read_json(stopped / "run.json")["resumed_at"]
    assert resumed == [8 if damage is damage_half_row else 4]


def test_rows_damaged_before_every_checkpoint_are_refused_by_name(stopped):
    path = stopped / "metrics.jsonl"
    path.write_bytes(b" " + path.read_bytes()[1:])
    code, errors = toy.run(stopped)
    assert code == 2 and str(path) in errors and "other rows than were written" in errors


def replace_by_a_copy(path):
    shutil.copyfile(path, path.with_name("edited"))
    os.replace(path.with_name("edited"), path)


def replace_by_a_link(path):
    path.rename(path.with_name("moved"))
    path.symlink_to("elsewhere")
    path.with_name("elsewhere").write_bytes(b"")


def cut_in_place(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("what", "said", "kept"),
    [
        (replace_by_a_copy, "replaced", "metrics.jsonl.kept"),
        (replace_by_a_link, "replaced", "metrics.jsonl.kept"),
        (remove, "deleted", "metrics.jsonl"),
        (cut_in_place, "changed", None),
    ],
)
def test_rows_taken_away_while_they_are_written_are_noticed_and_kept(
    what, said, kept, tmp_path, whole, monkeypatch
):
    workdir, real = tmp_path / "run", toy.evaluate_all
    rows = []

    def evaluate(assembly, step, log):
        real(assembly, step, log)
        if step == 6:
            rows.append((workdir / "metrics.jsonl").read_bytes())
            what(*[workdir / "metrics.jsonl", random.Random(0)][: what.__code__.co_argcount])

    monkeypatch.setattr(toy, "evaluate_all", evaluate)
    code, errors = toy.run(workdir)
    monkeypatch.undo()
    assert code == 1 and errors.count("\n") == 1, errors
    assert f"{workdir}/metrics.jsonl: another program {said} it while" in errors
    assert "the same command again" in errors
    assert records.read_json(workdir / "run.json")["status"] == "interrupted"
    if kept is None:
        (workdir / "metrics.jsonl").write_bytes(rows[0])
    else:
        assert (workdir / kept).read_bytes().startswith(rows[0])
        os.replace(workdir / kept, workdir / "metrics.jsonl")
    for name in ("elsewhere", "moved"):
        (workdir / name).unlink(missing_ok=True)
    goes_on(workdir, whole)


def test_damaged_times_and_events_stop_nothing(stopped, whole):
    timing = stopped / "timing.jsonl"
    timing.write_bytes(b"?" + timing.read_bytes()[1:])
    events = next((stopped / "tensorboard").iterdir())
    os.truncate(events, events.stat().st_size - 7)
    code, errors = toy.run(stopped)
    assert code == 0, errors
    wrong = toy.differences(toy.contents(stopped), whole)
    assert all(name.startswith(("timing", "tensorboard/")) for name in wrong)


@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_a_damaged_record_is_refused_and_can_be_deleted(name, stopped, whole):
    path = stopped / name
    os.truncate(path, path.stat().st_size // 2)
    code, errors = toy.run(stopped)
    assert code == 2 and str(path) in errors and "damaged" in errors
    path.unlink()
    goes_on(stopped, whole)


def test_a_damaged_schedule_is_written_anew(stopped, whole):
    flip(stopped / "schedule.npz", random.Random(3))
    goes_on(stopped, whole)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_snapshot_is_named_and_the_others_stand(damage, stopped):
    path = stopped / "snapshots" / "step_000000004.safetensors"
    damage(path, random.Random(5))
    assert toy.run(stopped)[0] == 0
    snapshots = Snapshots(stopped / "snapshots")
    with pytest.raises(records.RecordError, match=path.name):
        snapshots.read(4)
    assert all(np.isfinite(values).all() for values in snapshots.read(8))


@pytest.mark.parametrize("jump", [-4e8, 4e8])
def test_a_clock_that_jumps_decides_nothing(jump, stopped, whole, monkeypatch):
    # Between the starts, within the run at every look, and in the dates of files.
    dice = random.Random(0)
    for path in stopped.rglob("*"):
        date = time.time() + jump * dice.random()
        os.utime(path, (date, date))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump * dice.random())
    goes_on(stopped, whole)


def test_leftovers_of_dead_processes_are_removed(stopped, whole):
    dead = start_python("-c", "")
    dead.communicate()
    for folder in (".", "checkpoints", "models", "snapshots", "probes"):
        (stopped / folder).mkdir(exist_ok=True)
        (stopped / folder / f".something.{dead.pid}.tmp").write_bytes(b"half")
    (stopped / "models" / f".raw.{dead.pid}.tmp.keras").write_bytes(b"half")
    (stopped / "checkpoints" / f".step_000000009.{dead.pid}.tmp").mkdir()
    alive = stopped / f".report.html.{os.getppid()}.tmp"  # another program at work
    alive.write_bytes(b"half")
    (stopped / "probes" / "mine.tmp").write_bytes(b"a user's")
    assert toy.run(stopped)[0] == 0
    left = sorted(path.name for path in stopped.rglob("*") if ".tmp" in path.name)
    assert left == sorted([alive.name, "mine.tmp"])


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of its own; skips the test where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [4, 40, 100])
def test_a_disk_that_is_full(kilobytes, tmp_path, whole):
    disk = tmp_path / "disk"
    with small_disk(disk, f"{kilobytes}k"):
        code, errors = toy.run(disk / "run")
        assert code == 1 and errors.count("\n") == 1, errors
        assert f"{disk}/run" in errors and "No space left on device. Free some space" in errors
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        goes_on(disk / "run", whole)


def test_a_workdir_that_cannot_be_written(tmp_path, whole):
    disk = tmp_path / "disk"
    with small_disk(disk, "2m"):
        with toy.Fault(disk / "run", 105, False, "cut", tmp_path), pytest.raises(toy.PowerCut):
            toy.run(disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, errors = toy.run(disk / "run")
        assert code == 2 and "Read-only file system" in errors and errors.count("\n") == 1
        code, errors = toy.run(disk / "new")
        assert code == 2 and "Choose another --workdir" in errors
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        goes_on(disk / "run", whole)


HOLDER = """
import sys
from tf_lrtraj import records
with records.only_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_program_in_a_workdir_is_refused(stopped, whole):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with start_python("-c", HOLDER, stopped, stdin=subprocess.PIPE, stderr=None) as other:
        assert other.stdout.readline() == "held\n"
        code, errors = toy.run(stopped)
        assert code == 2 and errors.count("\n") == 1, errors
        assert f"another process is writing to workdir {stopped}. Wait" in errors
        assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
        other.kill()  # a lock does not outlive its process
    goes_on(stopped, whole)


WRITER = """
import sys, time
from tf_lrtraj.records import MetricsWriter
with MetricsWriter(sys.argv[1]) as writer:
    for step in range(3000):
        writer.write({"step": step, "kind": "train", "text": "x" * (step % 4000)})
"""


def test_rows_can_be_read_while_they_are_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = start_python("-c", WRITER, path, stdout=None, stderr=None)
    seen, counts = 0, set()
    while True:
        running = writer.poll() is None
        if path.exists():
            rows = records.read_rows(path)
            assert [row["step"] for row in rows] == list(range(len(rows)))
            assert all(len(row["text"]) == row["step"] % 4000 for row in rows)
            assert len(rows) >= seen
            seen = len(rows)
            counts.add(seen)
        if not running:
            break
    assert seen == 3000 and len(counts) > 3
