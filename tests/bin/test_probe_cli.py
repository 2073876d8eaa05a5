"""`lrtraj-probe`: mistakes are one clear line, told before TensorFlow starts."""

import json
import subprocess
import sys

import pytest

from tf_lrtraj.runs.probing.requests import OPTIONS, PROBES, check_request
from tf_lrtraj.runs.run_config import default_config, validate


def run(*args):
    command = [sys.executable, "-m", "tf_lrtraj.bin.probe", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(json.dumps(validate(default_config())))
    return folder


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--probe must be one of"),
        (["--probe=line"], "--workdir: there is no folder"),
        (
            ["--probe=line", "--workdir={}", "--rays=3"],
            "`rays` is not an option of the probe 'line'",
        ),
        (["--probe=basin", "--workdir={}"], "at least 2 points"),
        (["--probe=plane", "--workdir={}", "--points=1,2,3,4"], "exactly 3 points"),
        (["--probe=line", "--workdir={}", "--low=1", "--high=0.1"], "`low` must be below `high`"),
    ],
)
def test_mistakes_are_one_line(args, message, workdir):
    done = run(*[arg.format(workdir) for arg in args])
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_help_names_every_probe_and_option():
    text = run("--help").stdout
    for name in [*PROBES, *(f"--{name}" for name in OPTIONS if name != "per_layer")]:
        assert name in text, name


@pytest.mark.parametrize("kind", sorted(PROBES))
def test_every_option_has_a_default_that_is_allowed(kind):
    points = {"basin": ["1", "2"], "plane": ["1", "2", "3"], "ensemble": ["1", "2"]}
    request = check_request(kind, {"points": points[kind]} if kind in points else {})
    for name, value in request.items():
        if name != "points":
            assert OPTIONS[name].check(value), name
