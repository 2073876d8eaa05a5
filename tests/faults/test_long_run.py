"""What a run holds and leaves does not grow with its steps: the long run, shortened."""

import json

import pytest
from helpers import ROOT, load_script


@pytest.fixture(scope="module")
def long_run():
    return load_script("tools/long_run.py")


@pytest.mark.long
def test_nothing_is_traced_again_and_files_are_bounded(long_run, tmp_path):
    found = long_run.watch(tmp_path / "run", 160)
    assert found["step"] == [50, 100, 150, 160]
    # One trace for evaluation and one for moments, in the first evaluation of four (step 40).
    assert found["traces"] == [2] * 4
    assert max(found["files"]) <= long_run.files_allowed(160)
    assert found["descriptors"][-1] <= max(found["descriptors"][:2])


def test_the_committed_record_holds_what_was_fixed_beforehand(long_run):
    record = json.loads((ROOT / "results" / "long_run" / "record.json").read_text())
    judged = long_run.judge(record["samples"], record["steps"])
    assert record["steps"] == 20_000 and judged["holds"] == dict.fromkeys(judged["holds"], True)
    assert judged["megabytes_per_10000_steps"] == pytest.approx(
        record["judged"]["megabytes_per_10000_steps"], abs=2e-3
    )
