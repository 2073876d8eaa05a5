"""The same command on a run that is done: it says so, without importing TensorFlow."""

import pytest
from helpers import run_python

from tf_lrtraj import kernels, records
from tf_lrtraj.bin.configuration import known_configs
from tf_lrtraj.runs.finished_run import finished_report
from tf_lrtraj.runs.run_config import default_config, validate

SCRIPT = """
import sys
from tf_lrtraj.bin import train
try:
    train.run()
finally:
    loaded = {name.partition(".")[0] for name in sys.modules}
    print("loaded:", sorted(loaded & {"tensorflow", "keras", "tensorflow_datasets"}))
"""
SWA = {"kernel": "Uniform", "start": 4}


def write_run(folder, config, status="done"):
    folder.mkdir(parents=True)
    records.write_json(folder / records.CONFIG, config)
    averages = {
        name: kernels.from_config(entry).get_config() for name, entry in config["averages"].items()
    }
    run = {"format": records.FORMAT, "status": status, "name": "run", "seed": 0}
    records.write_json(
        folder / records.RUN, {**run, "total_steps": 10, "batch_size": 8, "averages": averages}
    )
    row = {"kind": "eval", "step": 10, "split": "test", "batch_norm": "running", "examples": 5}
    with records.MetricsWriter(folder / records.METRICS) as writer:
        for weights in ("raw", *averages):
            writer.write({**row, "weights": weights, "loss": 0.5, "accuracy": 0.75})


@pytest.fixture
def config():
    config = default_config()
    config.total = "10 steps"
    config.averages = {"swa": SWA}
    config.matched.averages = ("swa",)
    return validate(config)


@pytest.mark.parametrize(
    ("base", "matched", "done"),
    [
        ("done", "done", True),
        ("done", "interrupted", False),
        ("done", None, False),
        ("diverged", "done", False),
        ("incomplete", None, False),
        (None, None, False),
    ],
)
def test_a_run_is_done_when_its_matched_runs_are(tmp_path, config, base, matched, done):
    workdir = tmp_path / "run"
    if base is not None:
        write_run(workdir, config, base)
    if matched is not None:
        write_run(records.matched_dir(workdir, "swa"), {**config, "averages": {}}, matched)
    path = finished_report(config, workdir)
    assert path == (workdir / "report.html" if done else None)
    assert (workdir / "report.html").exists() == done


def test_a_workdir_of_another_run_is_refused(tmp_path, config):
    write_run(tmp_path / "run", config)
    with pytest.raises(records.RecordError, match="seed: there 0, asked 1"):
        finished_report({**config, "seed": 1}, tmp_path / "run")


def test_the_program_says_so_without_tensorflow(tmp_path):
    path = tmp_path / "config.py"
    source = known_configs()["digits_demo"].read_text()
    path.write_text(source.replace('("swa",)', "()").replace('"60 percent"', "486"))
    module = {}
    exec(compile(path.read_text(), str(path), "exec"), module)
    write_run(tmp_path / "run", validate(module["get_config"]()))
    done = run_python("-c", SCRIPT, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert "the run is already done" in done.stdout and "75.0 %" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert (tmp_path / "run" / "report.html").exists()
    assert done.stderr == ""  # no stages where there is no terminal
