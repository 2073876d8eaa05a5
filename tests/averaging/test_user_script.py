"""A user's script, killed with SIGKILL in mid-training and started again."""

import signal

import numpy as np
import pytest
from helpers import ROOT, assert_same_bits, average_of, start_python

from tf_lrtraj import kernels

AVERAGES = {
    "ema": kernels.Exponential(0.98),
    "swa": kernels.Uniform(start=40),
    "two_point": kernels.TwoPoint(gap=20),
}
# Runs the script with one more callback, which keeps every iterate on disk and tells each step.
DRIVER = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import keras, numpy as np
import keras_user_script

folder = pathlib.Path(sys.argv[2])

class Iterates(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.keep()
    def on_train_batch_end(self, batch, logs=None):
        self.keep()
    def keep(self):
        step = int(self.model.optimizer.iterations)
        values = [np.array(v) for v in self.model.trainable_variables]
        np.savez(folder / f"iterate_{step}.npz", *values)
        print("step", step, flush=True)

folder.mkdir(exist_ok=True)
averaging = keras_user_script.main(folder, [Iterates()])
for name in averaging.averages:
    np.savez(folder / f"average_{name}.npz", *averaging.get_average(name))
print("updates", averaging.num_updates, flush=True)
"""


def start(folder, kill_at=None):
    """Runs the script to its end, or kills it at a step; returns the lines it printed."""
    process = start_python("-c", DRIVER, ROOT / "examples", folder, stderr=None)
    lines = []
    with process:
        for line in process.stdout:
            lines.append(line.strip())
            if line.strip() == f"step {kill_at}":
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == (-signal.SIGKILL if kill_at else 0)
    return lines


def arrays(path):
    with np.load(path) as stored:
        return [stored[name] for name in sorted(stored.files, key=lambda n: int(n[4:]))]


@pytest.mark.long
def test_user_script_killed_and_restarted_ends_with_the_same_averages(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    last = start(whole)[-1]
    start(killed, kill_at=50)  # in the third epoch of 21 steps
    lines = start(killed, kill_at=100)  # in the fifth
    assert lines[0] == "step 42"  # it went on from the end of the second
    lines = start(killed)
    assert lines[0] == "step 84" and lines[-1] == last == "updates 126"
    iterates = [arrays(killed / f"iterate_{step}.npz") for step in range(127)]
    for name, kernel in AVERAGES.items():
        first, second = (arrays(folder / f"average_{name}.npz") for folder in (whole, killed))
        assert_same_bits(first, second)
        for actual, expected in zip(first, average_of(kernel, iterates), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
    with np.load(whole / "averages.npz") as a, np.load(killed / "averages.npz") as b:
        assert_same_bits(dict(a), dict(b))
    assert not (killed / "backup").exists()
    assert (killed / "best_ema.keras").exists()
