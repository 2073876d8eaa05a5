"""The torture, shortened; the full one stands in results/torture."""

import json
import signal
import time

import pytest
from helpers import ROOT, run_python, start_python


@pytest.mark.long
def test_killed_at_random_moments_it_ends_the_same(tmp_path):
    folders = [f"--out={tmp_path}", f"--scratch={tmp_path / 'scratch'}"]
    run_python(ROOT / "tools/torture.py", "--trials=3", "--seed=7", *folders, timeout=1500)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["fork_equals_fresh"] == "identical"
    assert len(record["trials"]) == 3
    for trial in record["trials"]:
        assert trial["identical"] and trial["kills"] >= 1


@pytest.mark.long
@pytest.mark.parametrize("seconds", [2.0, 6.0])
def test_a_signal_while_the_program_starts(seconds, tmp_path):
    script = (
        "import sys; from tf_lrtraj.bin import train; sys.argv[0] = 'lrtraj-train'; train.run()"
    )
    process = start_python("-c", script, "--config=digits_demo", f"--workdir={tmp_path}")
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 75, errors
    assert "error: stopped by SIGTERM. Run the same command again to resume." in errors


RECORD = ROOT / "results" / "torture" / "record.json"


def test_the_committed_record_holds_what_it_says():
    record = json.loads(RECORD.read_text())
    trials = record["trials"]
    made = [trial["trial"] for trial in trials]
    assert made == list(range(record["wanted"])) and len(trials) >= 100
    assert all(trial["identical"] and not trial["problems"] for trial in trials)
    assert all(any(a["ended"] == "SIGKILL" for a in trial["attempts"]) for trial in trials)
    page = (RECORD.parent / "README.md").read_text()
    assert f"| trials | {len(trials)} of {record['wanted']}" in page
