"""`lrtraj-reproduce`: mistakes in one line, a plan before work, a stop that can be resumed."""

import json
import pathlib
import signal
import subprocess
import sys
import time

from tf_lrtraj.bin.common import OK, RESUMABLE, USAGE

TINY = pathlib.Path(__file__).parents[1] / "study" / "tiny_study.py"
PROGRAM = [sys.executable, "-m", "tf_lrtraj.bin.reproduce"]


def run(*args):
    return subprocess.run([*PROGRAM, *args], capture_output=True, text=True, timeout=300)


def test_mistakes_are_told_before_any_work(tmp_path):
    done = run(f"--config={TINY}", f"--workdir={tmp_path}", "--claims=A1,Z1")
    assert done.returncode == USAGE
    assert "`claims` must be among B1, " in done.stderr and "Received: Z1" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_scale_that_was_never_run_is_not_started(tmp_path):
    done = run("--config=reproduce_cifar10_resnet34", f"--workdir={tmp_path}")
    assert done.returncode == USAGE
    assert "was never run by the project; --force runs it" in done.stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    done = run(f"--config={TINY}", f"--workdir={tmp_path}", "--dry_run", "--claims=B1,A4")
    assert done.returncode == OK, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()[1:-1]]
    assert names == ["levels", "decays", "line"]
    assert "3 of 3 to do" in done.stdout
    assert not list(tmp_path.iterdir())


def test_sigterm_stops_and_the_same_command_goes_on(tmp_path):
    command = [f"--config={TINY}", f"--workdir={tmp_path}", "--claims=A7,S2"]
    process = subprocess.Popen(
        [*PROGRAM, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    begin = time.monotonic()
    while not (tmp_path / "measured/single_runs/seed0.json").exists():  # at work on the next
        assert process.poll() is None and time.monotonic() - begin < 240
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == RESUMABLE, errors
    assert "the same command goes on from there" in errors and "Traceback" not in errors
    stopped = json.loads((tmp_path / "run.json").read_text())
    assert stopped["status"] == "interrupted"
    done = run(*command)
    assert done.returncode == OK, done.stderr
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    verdicts = {entry["id"]: entry["verdict"] for entry in ledger["claims"]}
    assert verdicts["S2"] == "not judged"
    assert verdicts["B1"] == "not measured"
    assert "S2" in done.stdout and "report.html" in done.stdout
