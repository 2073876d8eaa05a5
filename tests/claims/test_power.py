"""What a scale can decide, told before it runs, and the tool that makes its table."""

import importlib.util
import json
import math
import pathlib
import subprocess
import sys

import pytest
from scipy import stats

from tf_lrtraj import claims
from tf_lrtraj.claims import power

ROOT = pathlib.Path(__file__).parents[2]
TOOL = ROOT / "tools/power_table.py"
ROW = {"claim": "A1", "part": "share", "expected": 0.85, "scatter": 0.03, "count": 3}


def tool():
    spec = importlib.util.spec_from_file_location("power_table", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_half_width_is_students():
    (row,) = power.planned([ROW])
    # A claim of equality: a 90 % interval, so that 5 % are left at each side.
    assert row.half_width == pytest.approx(stats.t.ppf(0.95, 2) * 0.03 / math.sqrt(3))
    assert power.planned([{**ROW, "count": 1}])[0].half_width == math.inf


@pytest.mark.parametrize(
    ("expected", "scatter", "decidable"),
    [(1.0, 0.03, True), (0.6, 0.03, True), (0.9, 0.03, False), (1.0, 0.3, False)],
)
def test_decidable_is_to_clear_the_thresholds_or_to_fail_them(expected, scatter, decidable):
    (row,) = power.planned([{**ROW, "expected": expected, "scatter": scatter}])
    assert row.decidable is decidable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claim": "Z1"}, r"\('Z1', 'share'\)"),
        ({"part": "gap"}, r"a part of it \(share\). Received: \('A1', 'gap'\)"),
        (
            {"scatter": -1.0},
            r"scatter` must be a number of at least 0. Received: power\[1\].scatter=-1.0",
        ),
        ({"count": 0}, "count` must be an integer of at least 1"),
        ({"expected": math.nan}, "expected` must be a finite number"),
        ({"expected": "much"}, "expected` must be a finite number"),
        ({"colour": "red"}, "must have claim, part, expected, scatter, count"),
    ],
)
def test_rows_that_make_no_sense_are_named(change, message):
    with pytest.raises(ValueError, match=r"`power\[1\].*" + message):
        power.planned([ROW, {**ROW, **change}])


def test_the_tool_gives_back_the_intervals_of_the_pilot(study_records, kept_records, tmp_path):
    study = claims.Study(kept_records)
    rows = tool().rows(study, study_records.SEEDS)
    assert len({(row["claim"], row["part"]) for row in rows}) == len(rows) > 30
    found = {claim.id: judgement for claim, judgement in study.judgements.items()}
    for planned in power.planned(rows):
        parts = [p for p in found[planned.claim].parts if p.wanted.name == planned.wanted.name]
        halves = [0.5 * (p.interval.high - p.interval.low) for p in parts]
        assert planned.half_width == pytest.approx(max(halves), rel=0.02)  # three digits are kept
    out = tmp_path / "power.json"
    command = [sys.executable, TOOL, f"--pilot={kept_records}", "--seeds=3", f"--out={out}"]
    subprocess.run(command, check=True, capture_output=True)
    key = lambda row: (row["claim"], row["part"])  # noqa: E731
    assert sorted(json.loads(out.read_text()), key=key) == sorted(rows, key=key)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("power_*.json")), ids=lambda p: p.stem
)
def test_tables_of_the_scales_are_of_todays_claims(path):
    power.planned(json.loads(path.read_text()))
