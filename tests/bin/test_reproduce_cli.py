"""`lrtraj-reproduce`: mistakes in one line, a plan before work, a stop that can be resumed."""

import json
import pathlib
import re
import signal
import time

import pytest
from helpers import run_python, start_python

from tf_lrtraj.bin.common import OK, RESUMABLE

TINY = pathlib.Path(__file__).parents[1] / "study" / "tiny_study.py"
PROGRAM = ["-m", "tf_lrtraj.bin.reproduce"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [f"--config={TINY}", "--claims=A1,Z1"],
            "`claims` must be .*'B1', .*Received: claims='Z1'",
        ),
        (["--config=reproduce_cifar10_resnet34"], "was never run by the project; --force runs it"),
    ],
)
def test_mistakes_are_told_before_any_work(refused, tmp_path, flags, message):
    assert re.search(message, refused("lrtraj-reproduce", *flags, f"--workdir={tmp_path}"))
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_the_plan_and_writes_nothing(program, tmp_path):
    flags = [f"--config={TINY}", f"--workdir={tmp_path}", "--dry_run", "--claims=B1,A4"]
    code, out, errors = program("lrtraj-reproduce", *flags)
    assert code == OK, errors
    names = [line.split()[0] for line in out.splitlines()[1:-1]]
    assert names == ["levels", "decays", "line"]
    assert "3 of 3 to do" in out
    assert not list(tmp_path.iterdir())


def test_sigterm_stops_and_the_same_command_goes_on(tmp_path):
    command = [f"--config={TINY}", f"--workdir={tmp_path}", "--claims=A7,S2"]
    process = start_python(*PROGRAM, *command)
    begin = time.monotonic()
    while not (tmp_path / "measured/single_runs/seed0.json").exists():  # at work on the next
        assert process.poll() is None and time.monotonic() - begin < 240
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == RESUMABLE, errors
    assert "the same command resumes from there" in errors and "Traceback" not in errors
    stopped = json.loads((tmp_path / "run.json").read_text())
    assert stopped["status"] == "interrupted"
    done = run_python(*PROGRAM, *command)
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    verdicts = {entry["id"]: entry["verdict"] for entry in ledger["claims"]}
    assert verdicts["S2"] == "not judged"
    assert verdicts["B1"] == "not measured"
    assert "S2" in done.stdout and "report.html" in done.stdout
