"""Where rows of a run are sent: fakes with the documented calls of wandb, MLflow and Trackio."""

import json
import logging
import sys
import types

import keras
import numpy as np
import pytest
from test_packaging import entries

from tf_lrtraj import RunRecorder, WeightAveraging, kernels, records
from tf_lrtraj.training import loggers as module
from tf_lrtraj.training.loggers import LOGGERS, LoggedRun, RunLoggers, check_loggers
from tf_lrtraj.training.metric_rows import RunRows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
OTHERS = [name for name in LOGGERS if name != "tensorboard"]


class Store:
    """What the three services hold: {run's identity: {"rows": [(step, values)], …}}."""

    def __init__(self):
        self.runs = {}
        self.calls = []
        self.fails = set()  # calls that raise

    def called(self, what):
        self.calls.append(what)
        if what in self.fails:
            raise ConnectionError(f"{what}: no network")

    def run(self, key, **about):
        return self.runs.setdefault(key, {"rows": [], **about})


class FakeRun:
    """A run of wandb (https://docs.wandb.ai/ref/python/run) or Trackio."""

    def __init__(self, store, key):
        self.store, self.id = store, key

    def log(self, values, step=None):
        self.store.called("log")
        self.store.runs[self.id]["rows"].append((step, values))

    def finish(self, exit_code=None):
        self.store.called("finish")
        self.store.runs[self.id]["ended"] = exit_code


def fake_wandb(store):
    def init(*, project, name, config, dir, id=None, resume=None, tags=None, mode=None):
        store.called("start")
        assert resume == (None if id is None else "allow")
        key = id or f"w{len(store.runs)}"
        store.run(key, project=project, name=name, config=config, tags=tags)
        return FakeRun(store, key)

    return types.SimpleNamespace(init=init)


def fake_trackio(store):
    def init(*, project, name, config, resume):
        store.called("start")
        assert (resume == "never") == (name not in store.runs)
        store.run(name, project=project, name=name, config=config)
        return FakeRun(store, name)

    return types.SimpleNamespace(init=init)


def fake_mlflow(store):
    """https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html"""

    class Client:
        def __init__(self, tracking_uri=None):
            store.called("start")

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return name

        def create_run(self, experiment_id, run_name):
            key = f"m{len(store.runs)}"
            store.run(key, project=experiment_id, name=run_name, config={})
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=key))

        def update_run(self, run_id, status):
            assert run_id in store.runs and status == "RUNNING"

        def log_param(self, run_id, key, value):
            store.runs[run_id]["config"][key] = value

        def log_batch(self, run_id, metrics):
            store.called("log")
            assert all(metric.timestamp > 0 for metric in metrics)
            values = {metric.key: metric.value for metric in metrics}
            store.runs[run_id]["rows"].append((metrics[0].step, values))

        def set_terminated(self, run_id, status):
            store.called("finish")
            store.runs[run_id]["ended"] = status

    def metric(key, value, timestamp, step):
        return types.SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step)

    return types.SimpleNamespace(MlflowClient=Client, entities=types.SimpleNamespace(Metric=metric))


FAKES = {"wandb": fake_wandb, "mlflow": fake_mlflow, "trackio": fake_trackio}


@pytest.fixture
def stores(monkeypatch):
    found = {name: Store() for name in FAKES}
    for name, fake in FAKES.items():
        monkeypatch.setitem(sys.modules, name, fake(found[name]))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name)
    return found


def started(workdir, *entries, name="mine"):
    config = {"model": {"width": 8}, "seeds": [1, 2]}
    run = LoggedRun(workdir, config, {"name": name, "status": "incomplete"})
    return RunLoggers(check_loggers("loggers", entries), run)


def rows_of(workdir, loggers, steps):
    """Writes the rows of a run from a step on, as training does."""
    rows = RunRows(workdir, steps[0] - 1, loggers)
    for step in steps:
        rows.train(step, 1.0, 0.1, {"loss": 2.0 / step})
        for batch_norm in ("recompute(2 batches)", "running"):
            about = {"split": "test", "weights": "raw", "batch_norm": batch_norm}
            rows.evaluation(step, 1.0, {**about, "loss": 3.0, "accuracy": 0.5, "examples": 10})
        rows.timing(step, 2.0, 64)
    rows.sync()
    rows.close()


@pytest.mark.parametrize("name", OTHERS)
def test_a_logger_receives_every_number_and_continues_the_same_run(name, stores, tmp_path):
    loggers = started(tmp_path, name)
    rows_of(tmp_path, loggers, [1, 2])  # and the process is killed
    loggers = started(tmp_path, name)
    rows_of(tmp_path, loggers, [3])
    loggers.finish("done")
    ((key, run),) = stores[name].runs.items()
    assert json.loads((tmp_path / "loggers.json").read_text()) == {name: key}
    per_step = [
        {"train/learning_rate": 0.1, "train/loss": 2.0},
        {"test/raw_recomputed/loss": 3.0, "test/raw_recomputed/accuracy": 0.5},
        {"test/raw/loss": 3.0, "test/raw/accuracy": 0.5},
        {"images_per_second": 32.0},
    ]
    assert run["rows"][:4] == [(1, values) for values in per_step]
    assert [step for step, _ in run["rows"]] == [step for step in (1, 2, 3) for _ in per_step]
    assert run["name"].startswith("mine") and run["project"] == "tf_lrtraj"
    nested = name == "wandb"
    assert run["config"] == (
        {"model": {"width": 8}, "seeds": [1, 2]}
        if nested
        else {"model.width": 8, "seeds": "[1, 2]"}
    )
    assert run["ended"] == {"wandb": 0, "mlflow": "FINISHED", "trackio": None}[name]
    assert stores[name].calls.count("finish") == 1


@pytest.mark.parametrize("status", ["diverged", "interrupted"])
def test_how_a_run_ended_is_told(status, stores, tmp_path):
    started(tmp_path, *OTHERS).finish(status)
    ((_, of_wandb),), ((_, of_mlflow),) = (
        stores[name].runs.items() for name in ("wandb", "mlflow")
    )
    assert of_wandb["ended"] == 1
    assert of_mlflow["ended"] == {"diverged": "FAILED", "interrupted": "KILLED"}[status]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("fails", ["start", "log", "finish"])
def test_a_logger_that_fails_costs_nothing_else(fails, name, stores, tmp_path, caplog):
    stores[name].fails.add(fails)
    other = next(other for other in OTHERS if other != name)
    with caplog.at_level(logging.WARNING):
        loggers = started(tmp_path, name, other)
        rows_of(tmp_path, loggers, [1, 2])
        loggers.finish("done")
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and repr(name) in warnings[0] and "no network" in warnings[0]
    assert stores[name].calls.count(fails) == 1  # a failed logger is not called again
    assert len(records.read_rows(tmp_path / "metrics.jsonl")) == 6
    ((_, run),) = stores[other].runs.items()
    assert len(run["rows"]) == 8 and "ended" in run


def test_options_reach_the_service(stores, tmp_path):
    started(tmp_path, {"logger": "wandb", "project": "p", "tags": ["a"], "mode": "offline"})
    started(tmp_path, {"logger": "mlflow", "experiment": "e"})
    assert [(run["project"], run["tags"]) for run in stores["wandb"].runs.values()] == [
        ("p", ("a",))
    ]
    assert [run["project"] for run in stores["mlflow"].runs.values()] == ["e"]


def test_damaged_identities_start_new_runs(stores, tmp_path, caplog):
    started(tmp_path, "wandb")
    (tmp_path / "loggers.json").write_text("{")
    started(tmp_path, "wandb")
    assert list(stores["wandb"].runs) == ["w0", "w1"]
    assert json.loads((tmp_path / "loggers.json").read_text()) == {"wandb": "w1"}
    assert "loggers.json" in caplog.text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("wandb", r"`loggers` must be a list of loggers, of \['tensorboard', .*loggers='wandb'"),
        (["wandbb"], r"`loggers\[0\]` must be one of .* Did you mean 'wandb'\?"),
        ([{"project": "p"}], r"`loggers\[0\]` must be one of"),
        ([3], r"`loggers\[0\]` must be one of"),
        (["wandb", {"logger": "wandb"}], "names each logger once"),
        (
            [{"logger": "wandb", "projekt": "p"}],
            r"`loggers\[0\]` must be a logger with options of .* Did you mean 'project'\?",
        ),
        ([{"logger": "tensorboard", "project": "p"}], r"options of \[\]"),
        ([{"logger": "wandb", "project": 3}], r"`loggers\[0\].project` must be a non-empty text"),
        ([{"logger": "trackio", "private": 1}], r"`loggers\[0\].private` must be True or False"),
    ],
)
def test_bad_lists_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        check_loggers("loggers", value)


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"package mlflow.*pip install 'tf_lrtraj\[mlflow\]'"):
        RunRecorder(tmp_path / "run", loggers=["mlflow"])
    assert not (tmp_path / "run").exists()


def test_the_extras_install_the_packages():

    for name in OTHERS:
        (requirement,) = entries("options.extras_require", name)
        assert requirement.split()[0] == LOGGERS[name].package


def test_fit_sends_the_rows_that_it_records(stores, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    averaging = WeightAveraging({"ema": kernels.Exponential(0.5)}, validation_data=(X, Y))
    recorder = RunRecorder(tmp_path / "run", batch_size=16, loggers=["wandb", "trackio"])
    for _ in range(2):  # the second `fit` continues the run
        callbacks = [averaging, recorder]
        model.fit(X, Y, 16, epochs=2, verbose=0, validation_data=(X, Y), callbacks=callbacks)
    for name in ("wandb", "trackio"):
        ((_, run),) = stores[name].runs.items()
        sent = [
            (step, values["validation/ema/loss"])
            for step, values in run["rows"]
            if "validation/ema/loss" in values
        ]
        steps, losses = records.load_run(tmp_path / "run").series("loss", "ema", "validation")
        assert sent == list(zip(steps.tolist(), losses.tolist(), strict=True))
        assert [step for step, _ in sent] == [2, 4, 6, 8]
