"""`lrtraj-probe`: mistakes are one clear line, told before TensorFlow starts."""

import json
import subprocess
import sys

import pytest

from tf_lrtraj import specs
from tf_lrtraj.runs.run_config import default_config, validate


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
        (
            ["--probe=line", "--workdir={}", "--low=1", "--high=0.1"],
            "`line.low` must be below `high`, 0.1. Received: line.low=1.0",
        ),
    ],
)
def test_mistakes_are_one_line(refused, args, message, workdir):
    assert message in refused("lrtraj-probe", *(arg.format(workdir) for arg in args))


def test_help_names_every_probe_and_option():
    command = [sys.executable, "-m", "tf_lrtraj.bin.probe", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    options = [name for name in specs.options() if name != "per_layer"]
    for name in [*specs.requestable(), *(f"--{name}" for name in options)]:
        assert name in text, name
