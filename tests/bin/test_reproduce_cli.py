"""`lrtraj-reproduce`: mistakes in one line, a plan before work, a stop that can be resumed."""

import json
import pathlib
import re
import signal
import time

import pytest
from helpers import run_python, start_python
from study_helpers import tiny

from tf_lrtraj.bin.common import OK, RESUMABLE
from tf_lrtraj.records import write_json
from tf_lrtraj.study.study_config import validate

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


LATER = """
import pathlib, sys
from tf_lrtraj.bin import reproduce
folder, config = pathlib.Path(sys.argv[1]), __import__("json").loads(sys.argv[2])
print(reproduce._is_done(config, folder))
for place in ("measured/cooldown_gain", "measured/cooldown_path", "probes/seed0"):
    (folder / place).mkdir(parents=True)
for name in ("measured/cooldown_gain/seed0.json", "measured/cooldown_path/seed0.json"):
    (folder / name).touch()
for name in ("raw", "average", "cooldown"):
    print(reproduce._is_done(config, folder))
    (folder / f"probes/seed0/eigenvalues-{name}.npz").touch()
print(reproduce._is_done(config, folder))
"""


def test_a_run_is_not_done_while_a_claim_lacks_records(tmp_path):
    """As after an update of the package that adds a claim."""
    config = tiny()
    config.claims = ("O3",)
    config = validate(config)
    write_json(tmp_path / "config.json", config)
    write_json(tmp_path / "run.json", {"format": 1, "status": "done"})
    done = run_python("-c", LATER, str(tmp_path), json.dumps(config))
    assert done.stdout.split() == ["False"] * 4 + ["True"]
