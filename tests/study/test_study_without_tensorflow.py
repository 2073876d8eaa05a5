"""The study on Keras' other backends, on a machine that has no TensorFlow."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tf_lrtraj import claims, data, records

TINY = pathlib.Path(__file__).with_name("tiny_study.py")
WITHOUT = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None  # importing them fails
from tf_lrtraj.bin import reproduce
reproduce.run()
"""


@pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow",
    reason="for the backends that do without TensorFlow",
)
def test_averages_and_schedules_on_this_backend(tmp_path):
    digits = data.load("digits")
    (x, y), (x_test, y_test) = digits.arrays("train"), digits.arrays("test")
    file = tmp_path / "digits.npz"
    np.savez(file, x_train=x[:200], y_train=y[:200], x_test=x_test[:200], y_test=y_test[:200])
    wanted = "A1,S2,S7"
    done = subprocess.run(
        [
            sys.executable,
            *("-c", WITHOUT),
            *(f"--config={TINY}", f"--workdir={tmp_path / 'w'}", f"--config.data.file={file}"),
            f"--claims={wanted}",
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    run = records.read_json(tmp_path / "w/run.json")
    assert run["keras_backend"] == os.environ["KERAS_BACKEND"]
    ledger = claims.make_ledger(tmp_path / "w")
    verdicts = {entry["id"]: entry["verdict"] for entry in ledger["claims"]}
    assert {verdicts[name] for name in wanted.split(",")} == {"not judged"}
