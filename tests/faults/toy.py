"""A run of the training program whose network is a few numbers; all else is the product's own.

What is stubbed computes: the model's assembly, the training steps, the evaluation and
the page.  Everything that touches a file is real: checkpoints, rows, snapshots, saved models,
configuration, schedule, TensorBoard.  A run takes a fraction of a second, so that a fault can be
tried at every single operation on a file.
"""

import contextlib
import errno
import io
import mmap
import os
import pathlib
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from torturing import comparing, saboteur

from tf_lrtraj import rates, records, report
from tf_lrtraj.averaging import AverageState
from tf_lrtraj.bin import common
from tf_lrtraj.bin import train as program_module
from tf_lrtraj.runs import train_run
from tf_lrtraj.runs.assembly import Assembly
from tf_lrtraj.runs.run_config import default_config, resolve
from tf_lrtraj.training.evaluation import Result
from tf_lrtraj.training.strategies import make_strategy

ROOT = pathlib.Path(__file__).parents[2]


def config(**changes):
    made = default_config()
    settings = {
        "name": "toy",
        "data.batch_size": 32,
        "total": "12 steps",
        "log_every": "2 steps",
        "evaluate.every": "6 steps",
        "checkpoint.every": "4 steps",
        "snapshots.every": "1 steps",
        "snapshots.limit": 4,
        "steps_per_call": 4,
        "batch_norm.policy": "average",
    } | {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in settings.items():
        made.update_from_flattened_dict({key: value})
    made.averages = {
        "ema": {"kernel": "Exponential", "decay": 0.8},
        "two_point": {"kernel": "TwoPoint", "gap": 3},
    }
    return made


class ToyEvaluator:
    """Reads averages as they are; the loss of weights is their mean square."""

    has_batch_norm = False

    def __init__(self, model, averages):
        self.model, self.averages = model, averages

    def weights(self, name, step, policy=None):
        others = [v.numpy() for v in self.model.non_trainable_variables]
        if name == records.RAW:
            return [v.numpy() for v in self.model.trainable_variables], others
        coefficients = self.averages.read_coefficients(name, step)
        return [np.asarray(a, np.float32) for a in self.averages.read(name, coefficients)], others

    def host_weights(self, weights):
        return weights

    def describe(self, name, policy=None):
        return "none"


def assemble(config, dataset, strategy, learning_rates=None):
    plan = resolve(config, dataset.num_examples["train"])
    rate = plan.rate if learning_rates is None else rates.as_rate(learning_rates)
    keras.backend.clear_session()  # so that names do not count the runs of this process
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(40)], name="toy")
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    averages = AverageState(model.trainable_variables, plan.averages) if plan.averages else None
    table = rates.as_array(rate, plan.total_steps)
    assembly = Assembly(config, plan, dataset, strategy, model, optimizer, averages, table)
    assembly.evaluator = ToyEvaluator(model, averages)
    return assembly


def train_steps(assembly, start):
    def run(step, count):
        losses = []
        for now in range(step, step + count):
            for number, variable in enumerate(assembly.model.trainable_variables):
                noise = np.random.default_rng((now, number)).normal(size=variable.shape)
                variable.assign(0.9 * variable.numpy() + noise.astype(np.float32))
            if assembly.averages is not None:
                assembly.averages.update(now + 1)
            losses.append(float(np.mean(assembly.model.trainable_variables[0].numpy() ** 2)))
        return {"loss": np.array(losses), "accuracy": np.array(losses) / 10}

    return run


def evaluate_all(assembly, step, log):
    for name in [records.RAW, *assembly.plan.averages]:
        loss = float(np.mean(assembly.evaluator.weights(name, step)[0][0] ** 2))
        log.evaluation(step, "test", name, "none", Result({"loss": loss, "accuracy": loss / 10}, 5))


def write_report(workdir):
    path = pathlib.Path(workdir) / "report.html"
    records.write_atomically(path, "<html>" + 10_000 * " " + "</html>")
    return path


@contextlib.contextmanager
def stubbed():
    """Inside, the training program trains the toy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run, "assemble", assemble)
        patch.setattr(train_run, "build_model", lambda *_: None)
        patch.setattr(train_run, "_train_steps", train_steps)
        patch.setattr(train_run, "evaluate_all", evaluate_all)
        patch.setattr(report, "write_report", write_report)
        patch.setattr(report, "text_summary", lambda workdir: "")
        patch.setattr(common, "configure_threads", lambda *_: None)
        patch.setattr(common, "quiet_tensorflow", lambda: None)
        yield patch


def run(workdir, **changes):
    """`lrtraj-train` on the toy, in this process: (exit code, what it wrote to standard error)."""
    options = types.SimpleNamespace(
        config=config(**changes),
        workdir=str(workdir),
        strategy="one_device",
        num_devices=0,
        tpu="",
        join_timeout=60,
    )
    errors = io.StringIO()
    with stubbed() as patch, contextlib.redirect_stderr(errors):
        patch.setattr(program_module.flags, "FLAGS", options)
        patch.setattr(program_module.common, "make_strategy_or_fail", _strategy)
        try:
            with common.clean_errors():
                program_module.main(["lrtraj-train"])
            code = 0
        except SystemExit as stop:
            code = stop.code
    return code, errors.getvalue()


def _strategy(name, *_, **__):
    return make_strategy(name)


def contents(workdir):
    """What the run leaves, as the torture compares it."""
    return comparing.contents(pathlib.Path(workdir))


def differences(ours, theirs):
    names = sorted({*ours, *theirs})
    return [n for n in names if n not in ours or n not in theirs or ours[n] != theirs[n]]


# --- Faults at the n-th operation on a file -----------------------------------------------


class PowerCut(BaseException):
    """The process is gone; clean-up code that still runs reaches no disk."""


def _full(what, path):
    """The system's error: it names the file, except where one is written that is open."""
    named = () if what.endswith("writing") else (os.fspath(path),)
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)


class Fault(saboteur.Saboteur):
    """Something happens at the n-th operation on a file of the run.

    Kinds: "cut" (nothing reaches the disk from then on, as after SIGKILL), "full" (this and all
    later writes fail with ENOSPC; deleting works), "full once" (only this one fails), or a
    function that is called.
    """

    def __init__(self, workdir, at, half, kind, scratch):
        shared = mmap.mmap(-1, 8 * len(saboteur.COUNTERS))
        super().__init__(pathlib.Path(workdir), shared, pathlib.Path(scratch) / "note", at, half)
        self.kind, self.struck = kind, ""

    def die(self, what, path):
        self.struck = f"{what} {path}"
        if self.kind == "cut":
            raise PowerCut(self.struck)
        if self.kind in ("full", "full once"):
            if what.startswith("after"):
                return
            raise _full(what, path)
        self.kind()

    def _again(self, what, path):
        if self.struck and self.kind == "cut":
            raise PowerCut("after " + self.struck)
        if self.struck and self.kind == "full" and what in ("opening", "writing", "mkdir"):
            raise _full(what, path)

    def step(self, path, what, function, *args, **kwargs):
        if self.concerns(path) or kwargs.get("dir_fd") is not None:
            self._again(what, path)
        return super().step(path, what, function, *args, **kwargs)

    def half_write(self, name, write, data):
        self._again("writing", name)
        return super().half_write(name, write, data)

    def _announce(self, owner, name, counter):
        real = getattr(owner, name)

        def wrapped(this, path, *args, **kwargs):
            self._again("writing", path)
            if self.tick() != self.at:
                return real(this, path, *args, **kwargs)
            result = real(this, path, *args, **kwargs) if self.half else None
            if not callable(self.kind):  # a signal that is waited out cuts nothing
                for written in pathlib.Path(path).parent.glob(f"{pathlib.Path(path).name}*"):
                    os.truncate(written, written.stat().st_size // 2)
            try:
                self.die("half-way through writing", str(path))
            except OSError as error:
                if counter == "model":
                    raise
                text = f"{path}; {error.strerror}"
                raise tf.errors.ResourceExhaustedError(None, None, text) from None
            return result if self.half else real(this, path, *args, **kwargs)

        self._put(owner, name, wrapped)

    @property
    def count(self):
        return int.from_bytes(self.counters[:8], "little")

    def __enter__(self):
        self.install()
        return self

    def __exit__(self, *error):
        self.remove()
        os.close(self.note)
