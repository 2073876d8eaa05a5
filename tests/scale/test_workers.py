"""Jobs of several processes on loopback: the run of one device; signals, deaths and absences.

Starting a worker is most of what these tests cost, so two finished jobs serve several of them.
"""

import json
import os
import re
import signal
import sys

import numpy as np
import pytest
from clusters import Cluster, train_command
from run_contents import assert_same_run, files_of, go_back, scale_config
from run_helpers import checkpoint_steps, checkpoint_values, make

from tf_lrtraj import records
from tf_lrtraj.training.strategies import make_strategy

pytestmark = pytest.mark.long
RESUMABLE = 75
# What only one process may have left: nothing under another name than the chief's.
LEFTOVERS = re.compile(r"\.tmp|worker|task|temp")


def finish(folder, count, workdirs):
    commands = {index: train_command(workdirs[index]) for index in range(count)}
    with Cluster(folder, commands) as cluster:
        assert cluster.codes() == [0] * count, cluster.all_said()
        return {index: cluster.said(index) for index in range(count)}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A finished job of two workers, each told of a workdir of its own."""
    folder = tmp_path_factory.mktemp("two")
    said = finish(folder, 2, {0: folder / "chief", 1: folder / "other"})
    return folder, said


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A finished job of three workers that share a workdir."""
    folder = tmp_path_factory.mktemp("three")
    finish(folder, 3, dict.fromkeys(range(3), folder / "chief"))
    return folder


def check_whole(workdir, reference):
    assert_same_run(workdir, reference)
    assert_same_run(
        workdir / "matched" / "two_point", reference / "matched" / "two_point", tolerance=1e-3
    )
    assert files_of(workdir) == files_of(reference)
    assert not [name for name in files_of(workdir) if LEFTOVERS.search(name)]
    examples = {(row["split"], row["examples"]) for row in records.load_run(workdir).rows("eval")}
    assert examples == {("test", 500), ("train", 100)}


def test_two_workers_make_the_run_of_one_device(two, everything_on_one_device):
    folder, said = two
    check_whole(folder / "chief", everything_on_one_device)
    assert records.load_run(folder / "chief").run["num_replicas"] == 2
    assert not (folder / "other").exists()  # only the chief writes
    assert "report: " in said[0] and "report: " not in said[1]


def test_three_workers_make_the_run_of_one_device(three, everything_on_one_device):
    check_whole(three / "chief", everything_on_one_device)
    assert records.load_run(three / "chief").run["num_replicas"] == 3


@pytest.mark.parametrize("name, count", [("one_device", 0), ("mirrored", 2), ("mirrored", 4)])
def test_a_job_of_two_workers_goes_on_under_another_strategy(
    two, everything_on_one_device, name, count, tmp_path
):
    workdir = go_back(two[0] / "chief", tmp_path / "run", 8)
    make(workdir, scale_config(), make_strategy(name, count), name)
    assert records.load_run(workdir).run["resumed_at"] == [8]
    assert_same_run(workdir, everything_on_one_device)


def test_two_workers_go_on_with_a_run_of_one_device(everything_on_one_device, tmp_path):
    workdir = go_back(everything_on_one_device, tmp_path / "chief", 8)
    finish(tmp_path, 2, {0: workdir, 1: tmp_path / "other"})
    assert records.load_run(workdir).run["resumed_at"] == [8]
    assert_same_run(workdir, everything_on_one_device)


def has_step(workdir, step):
    """Whether the training row of a step is written."""
    path = workdir / records.METRICS
    return path.exists() and b'"kind":"train","step":%d,' % step in path.read_bytes()


def test_stopped_then_killed_then_finished_it_ends_with_the_same_bits(two, tmp_path):
    workdirs = {0: tmp_path / "chief", 1: tmp_path / "other"}
    commands = {index: train_command(workdirs[index]) for index in range(2)}
    # A signal to the other worker, as early as it can be noticed: both stop at one step.
    with Cluster(tmp_path / "stopped", commands) as cluster:
        cluster.wait_until(lambda: has_step(workdirs[0], 4))
        cluster.processes[1].send_signal(signal.SIGTERM)
        assert cluster.codes() == [RESUMABLE] * 2, cluster.all_said()
        steps = [
            int(re.search(r"stopped by .* after step (\d+)", cluster.said(i)).group(1))
            for i in range(2)
        ]
        assert "a signal to another worker" in cluster.said(0)
    assert steps[0] == steps[1] == checkpoint_steps(workdirs[0])[-1]
    assert 4 <= steps[0] < 12
    assert records.load_run(workdirs[0]).status == "interrupted"
    # A worker that dies without a word.
    with Cluster(tmp_path / "killed", commands) as cluster:
        cluster.wait_until(lambda: records.read_json(workdirs[0] / records.RUN)["resumed_at"])
        cluster.processes[1].send_signal(signal.SIGKILL)
        assert cluster.codes(limit=180, without=[1]) == [RESUMABLE], cluster.all_said()
        assert "another worker of this run is gone" in cluster.said(0), cluster.said(0)
        assert "Traceback" not in cluster.said(0)
    run = records.load_run(workdirs[0])
    assert run.status == "interrupted" and "is gone" in run.run["message"]
    finish(tmp_path / "finished", 2, workdirs)
    run = records.load_run(workdirs[0])
    assert len(run.run["resumed_at"]) == 2
    assert_same_run(workdirs[0], two[0] / "chief", bits=True)
    assert_same_run(
        workdirs[0] / "matched" / "two_point", two[0] / "chief/matched/two_point", bits=True
    )
    assert not workdirs[1].exists()


def test_when_the_chief_is_killed_the_others_stop(tmp_path):
    workdir = tmp_path / "chief"
    with Cluster(tmp_path, dict.fromkeys(range(3), train_command(workdir))) as cluster:
        cluster.wait_until(lambda: has_step(workdir, 4))
        cluster.processes[0].send_signal(signal.SIGKILL)
        assert cluster.codes(limit=180, without=[0]) == [RESUMABLE] * 2, cluster.all_said()
        for index in (1, 2):
            assert "another worker of this run is gone" in cluster.said(index)
            assert "Traceback" not in cluster.said(index)
    assert records.load_run(workdir).status == "incomplete"


def test_a_damaged_checkpoint_is_left_by_all_workers_together(two, tmp_path):
    workdir = go_back(two[0] / "chief", tmp_path / "chief", 12)
    data = workdir / "checkpoints" / "step_000000012" / "variables.data-00000-of-00001"
    flipped = bytearray(data.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    data.write_bytes(flipped)
    finish(tmp_path, 2, {0: workdir, 1: workdir})
    assert records.load_run(workdir).run["resumed_at"] == [8]
    assert_same_run(workdir, two[0] / "chief", bits=True)


def test_what_one_worker_refuses_stops_all(tmp_path):
    commands = {
        0: train_command(tmp_path / "chief"),
        1: train_command(tmp_path / "chief", {"seed": 5}),
    }
    with Cluster(tmp_path, commands) as cluster:
        assert cluster.codes() == [2, 2], cluster.all_said()
        assert "config.seed: 0 there, 5 here" in cluster.said(1)
        assert "another worker of this run stopped" in cluster.said(0)
    assert not (tmp_path / "chief").exists()


def test_a_workdir_of_another_run_is_refused_by_all(two, tmp_path):
    commands = {i: train_command(two[0] / "chief", {"seed": 5}) for i in range(2)}
    with Cluster(tmp_path, commands) as cluster:
        assert cluster.codes() == [2, 2], cluster.all_said()
        for index in range(2):
            assert "seed: there 0, asked 5" in cluster.said(index)


def test_a_worker_that_never_comes_is_not_waited_for_without_end(tmp_path):
    command = train_command(tmp_path / "chief", {}, "--join_timeout=20")
    with Cluster(tmp_path, {0: command}, count=2) as cluster:
        assert cluster.codes() == [RESUMABLE], cluster.all_said()
        assert "within 20 s" in cluster.said(0) and "Traceback" not in cluster.said(0)
    assert not (tmp_path / "chief").exists()


def test_tensorflow_does_not_swallow_signals(tmp_path):
    program = os.path.join(os.path.dirname(__file__), "signal_program.py")
    with Cluster(tmp_path, {0: [sys.executable, program]}) as cluster:
        assert cluster.codes() == [0], cluster.all_said()
        assert "requested: SIGTERM" in cluster.said(0)


def test_nan_on_one_worker_stops_all_at_the_same_step(tmp_path):
    program = os.path.join(os.path.dirname(__file__), "nan_program.py")
    command = [sys.executable, program, str(tmp_path / "chief")]
    with Cluster(tmp_path, {0: command, 1: command}) as cluster:
        assert cluster.codes() == [3, 3], cluster.all_said()
        said = [json.loads(cluster.said(i).splitlines()[-1]) for i in range(2)]
    assert said[0] == said[1] and said[0]["diverged"] > 0
    assert records.load_run(tmp_path / "chief").status == "diverged"
    assert checkpoint_steps(tmp_path / "chief")[-1] <= said[0]["diverged"]
    for value in checkpoint_values(tmp_path / "chief").values():
        assert value.dtype.kind != "f" or np.isfinite(value).all()
