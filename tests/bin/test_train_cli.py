"""`lrtraj-train` and `lrtraj-evaluate`: mistakes are one clear line, before any training."""

import functools
import os

import pytest

from tf_lrtraj.bin import common
from tf_lrtraj.records import naming


@pytest.fixture
def train(program, tmp_path):
    return functools.partial(
        program, "lrtraj-train", "--config=digits_demo", f"--workdir={tmp_path / 'run'}"
    )


@pytest.fixture
def refuses(refused, tmp_path):
    def run(*args, workdir=tmp_path / "run"):
        return refused("lrtraj-train", "--config=digits_demo", f"--workdir={workdir}", *args)

    return run


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--config.optimizr.momentum=0.5", ["optimizr"]),
        ("--config.data.batchsize=5", ["batchsize"]),
        ("--config.schedule.constant=-0.1", ["config.schedule", "constant=-0.1", "at least 0"]),
        (
            "--config.averages.ema.decay=1.5",
            ["config.averages.ema", "decay=1.5", "below 1"],
        ),
        ("--config.total=8 epochs 100 steps", ["config.total", "8 epochs 100 steps", "one amount"]),
        ("--config.data.name=cifar01", ["cifar01", "cifar10"]),
        ("--config.data.batch_size=5000", ["batch_size", "5000"]),
        ("--config.model.depth=9", ["config.model", "9"]),
        ("--config.seed=many", ["many"]),
        ("--strategy=mirored", ["mirored", "mirrored"]),
        ("--strategy=tpu", ["no TPU", "one_device"]),
        ("--num_devices=2", ["num_devices=2", "mirrored"]),
    ],
)
def test_mistakes_name_value_and_remedy_before_anything_is_written(
    refuses, tmp_path, override, expected
):
    error = refuses(override)
    for text in expected:
        assert text in error
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_prepared_says_how(train, tmp_path):
    code, _, error = train("--config.data.name=cifar10", f"--config.data.dir={tmp_path}/none")
    assert code == common.USAGE
    assert "tools/prepare_data.py" in error and "cifar10" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_workdir_for_users(refuses, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be written" in refuses(workdir=tmp_path / "locked" / "run")


def test_a_workdir_of_another_configuration(train, tmp_path):
    from tf_lrtraj.records import write_json
    from tf_lrtraj.runs.run_config import default_config, validate

    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", validate(default_config()))
    code, _, error = train()
    assert code == common.USAGE
    assert "another configuration" in error and "data.batch_size: there 128, asked 32" in error


def test_a_folder_named_like_a_configuration_does_not_hide_it(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits_demo").mkdir()  # a workdir, say
    flags = ["--config=digits_demo", "--workdir=digits_demo", "--config.seed=-1"]
    assert "`config.seed` must be" in refused("lrtraj-train", *flags)


def test_another_backend_of_keras_is_refused(refuses, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert "Received: KERAS_BACKEND='jax'" in refuses()
    assert not (tmp_path / "run").exists()


def test_errors_of_the_system_name_the_file_and_not_the_temporary_one():
    with pytest.raises(OSError) as caught, naming("runs/a/run.json"):
        raise PermissionError(13, "Permission denied", "runs/a/.run.json.12.tmp")
    assert common._system_error(caught.value).startswith("runs/a/run.json: Permission denied.")
