"""Own models, data, optimizers, losses and metrics: what fits trains, the rest is one line."""

import re
import sys

import keras
import numpy as np
import pytest
from helpers import run_python, start_python
from run_helpers import changed, checkpoint_values, make

from tf_lrtraj import records, report
from tf_lrtraj.runs import components, evaluate_run, train_run, user_code
from tf_lrtraj.runs.assembly import assemble
from tf_lrtraj.runs.components import load_dataset
from tf_lrtraj.runs.config_checks import ConfigError
from tf_lrtraj.runs.run_config import default_config, rate_momentum, read_config, validate
from tf_lrtraj.training.step import make_train_steps
from tf_lrtraj.training.strategies import make_strategy

MINE = '''
import os
import signal
import keras
import numpy as np

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")


def arrays():
    return (X[:48], Y[:48]), (X[48:], Y[48:])


class Source:
    """Ends the process at an example, once the run has a checkpoint, if the environment says so."""

    def __len__(self):
        return 48

    def __getitem__(self, index):
        if index == 7 and os.path.exists(os.environ.get("KILL_AFTER", "")):
            os.kill(os.getpid(), signal.SIGKILL)
        return X[index], Y[index]


def source():
    return {"train": Source(), "test": (X[48:], Y[48:]), "num_classes": 2}


def uncounted():
    return {"train": Source(), "test": (X[48:], Y[48:])}


def regression():
    return (X[:48], X[:48] @ [1.0, -1.0, 0.5, 0.0]), (X[48:], X[48:] @ [1.0, -1.0, 0.5, 0.0])


def mlp(num_classes, input_shape, width=8, dropout=0.0):
    return keras.Sequential([
        keras.Input(input_shape),
        keras.layers.Dense(width, "relu", kernel_regularizer=keras.regularizers.L2(1e-3)),
        keras.layers.Dropout(dropout),
        keras.layers.Dense(num_classes or 1),
    ])


def three(input_shape):
    return mlp(3, input_shape)


def nothing(num_classes, input_shape):
    return None


def failing(num_classes, input_shape):
    raise RuntimeError("no such layer")


def short():
    return (X, Y[:5]), (X, Y)
'''
SMALL = {
    "data.load": "mine:arrays",
    "data.batch_size": 12,
    "model.build": "mine:mlp",
    "optimizer.name": "AdamW",
    "optimizer.momentum": 0.9,
    "schedule.constant": 0.01,
    "total": "9 steps",
    "log_every": "3 steps",
    "evaluate.every": "never",
    "evaluate.batch_size": 10,
    "checkpoint.every": "3 steps",
    "steps_per_call": 3,
    "loggers": (),
}


@pytest.fixture(autouse=True)
def mine(tmp_path_factory, monkeypatch):
    """The current folder holds mine.py."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return folder


def own_config(**changes):
    config = changed(default_config(), **SMALL)
    config.averages = {"ema": {"kernel": "Exponential", "decay": 0.8}}
    for key, value in changes.items():
        group, _, last = key.rpartition("__")
        place = config[group.replace("__", ".")] if group else config
        place[last] = value
    return config


WRONG = {
    "module": ({"model__build": "mien:mlp"}, r"no module 'mien' in the current folder \S+ or"),
    "nearest module": ({"model__build": "mines:mlp"}, r"Did you mean 'mine'\?"),
    "function": (
        {"model__build": "mine:mpl"},
        r"mine.py has no function 'mpl'. Did you mean 'mlp'",
    ),
    "no colon": ({"model__build": "mine.mlp"}, r"must be 'package.module:function'"),
    "library": ({"data__load": "os:system"}, r"not of the standard library"),
    "installed": ({"data__load": "numpy:load"}, r"with parameters \['data_dir'\], as it is not in"),
    "no model": ({"model__build": "mine:nothing"}, r"returns a keras.Model.*builtins.NoneType"),
    "raises": (
        {"model__build": "mine:failing"},
        r"failed: RuntimeError: no such layer \(mine.py, line \d+\)",
    ),
    "outputs": (
        {"model__build": "mine:three"},
        r"logits of shape \['batch', 2\], one for each of 2 classes. .*\['batch', 3\]",
    ),
    "option": ({"model__options": {"widht": 3}}, r"no parameter of mine:mlp. Did you mean 'width'"),
    "value": ({"model__options": {"width": -3}}, r"`config.model.build`='mine:mlp' failed: .*-3"),
    "file": ({"model__build": "none.keras"}, r"'none.keras'.*No such file"),
    "lengths": ({"data__load": "mine:short"}, r"'mine:short': .*a row for each example"),
    "classes": ({"data__load": "mine:uncounted"}, r"must return .num_classes. beside its splits"),
    "optimizer": ({"optimizer__name": "adamw"}, r"class of keras.optimizers. Did you mean 'AdamW'"),
    "its option": (
        {"optimizer__options": {"weight_deacy": 0.1}},
        r"no argument of AdamW. Did you mean 'weight_decay'",
    ),
    "its rate": ({"optimizer__options": {"learning_rate": 1}}, r"config.schedule gives it"),
    "its averages": ({"optimizer__options": {"use_ema": True}}, r"config.averages keeps averages"),
    "L2": ({"optimizer__weight_decay": 0.1}, r"config.optimizer.options gives the arguments of Ad"),
    "loss": ({"loss__name": "MeanSquareError"}, r"keras.losses. Did you mean 'MeanSquaredError'"),
    "its options": (
        {"loss__name": "Huber", "loss__options": {"dleta": 1}},
        r"no argument of Huber. Did you mean 'delta'",
    ),
    "loss of one class": (
        {"loss__name": "MeanSquaredError"},
        r"outputs of shape \[2, 2\] with targets of shape \[2\]",
    ),
    "no loss": (
        {"data__load": "mine:regression"},
        r"`config.loss.name` must be a loss of Keras, such as 'MeanSquaredError'",
    ),
    "metric": ({"metrics": {"x": {"metric": "MeanAbsolutError"}}}, r"Did you mean 'MeanAbsoluteE"),
    "no metric": ({"metrics": {"x": {}}}, r"`config.metrics.x` must be a metric's class"),
    "its name": ({"metrics": {"loss": {"metric": "AUC"}}}, r"with a name of its own"),
    "ResNet": ({"model__depth": 20}, r"`config.model.depth` must be 8, its default: it belongs to"),
    "mixing": ({"data__augmentation": "mixup"}, r"'none' for inputs that are not images"),
    "matched": (
        {"optimizer__name": "Ftrl", "matched__averages": ("ema",)},
        r"the rate times a direction: .*'Ftrl'",
    ),
    "trips": (
        {"probes": {"side_trip": {"every": "3 steps", "batches": 1, "held_out_batches": 1}}},
        r"the run's rate is one of AdamW: give them a rate, `learning_rate`",
    ),
    "ResNet for tables": ({"model__build": None}, r"`config.model.build` must be a function"),
    "batch": ({"data__batch_size": 49}, r"at most the number of training images, 48|48"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_are_one_line_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as error:
        train_run.prepare(own_config(**changes), tmp_path / "run", make_strategy("one_device"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_regression_has_its_metrics_and_no_accuracy(tmp_path):
    config = own_config(
        data__load="mine:regression",
        loss__name="MeanSquaredError",
        metrics={"mae": {"metric": "MeanAbsoluteError"}, "r2": {"metric": "R2Score"}},
        matched__averages=("ema",),
        snapshots__every="1 steps",
        probes={"line": {"every": "4 steps", "batches": 1, "held_out_batches": 1}},
    )
    make(tmp_path, config)
    run = records.load_run(tmp_path)
    assert run.status == "done" and run.metrics() == ["loss", "mae", "r2"]
    assert run.matched()["ema"].status == "done"
    assert run.run["matched_to"] is None and run.run["loss"] == "MeanSquaredError"
    assert run.run["optimizer"]["weight_decay"].startswith("decoupled: 0.004 times the rate")
    steps, _ = run.train_series("mae")
    assert steps.tolist() == [3, 6, 9]
    import mine

    model = keras.saving.load_model(tmp_path / "models" / "ema.keras")
    x, y = mine.regression()[1]
    errors = model.predict(x, verbose=0)[:, 0] - y
    for name, expected in {"loss": np.mean(errors**2), "mae": np.mean(np.abs(errors))}.items():
        assert run.series(name, "ema")[1][-1] == pytest.approx(expected, rel=1e-5)
    text = report.text_summary(tmp_path)
    assert "accuracy" not in text and "test split, 16 examples" in text and "mae" in text
    page = (tmp_path / "report.html").read_text()
    assert "Accuracy" not in page and "test mae of the raw weights" in page
    assert "48 training examples" in page and "test loss" in page
    found = read_config(tmp_path)
    assembly, step = evaluate_run.open_checkpoint(found, tmp_path, make_strategy("one_device"))
    row = list(evaluate_run.evaluate(assembly, step))[-1]
    recorded = run.rows("eval", "ema", "test")[-1]
    assert row == {key: recorded[key] for key in row}


def test_a_keras_file_is_a_model_and_sets_the_initial_weights(mine, tmp_path):
    import mine as module

    model = module.mlp(2, (4,))
    model.save("start.keras")
    config = validate(own_config(model__build="start.keras"))
    assembly = assemble(config, load_dataset(config), make_strategy("one_device"))
    for one, other in zip(assembly.model.weights, model.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def trained(strategy, **changes):
    config = validate(own_config(**changes))
    keras.utils.set_random_seed(0)
    assembly = assemble(config, load_dataset(config), strategy)
    steps = make_train_steps(
        strategy, assembly.model, assembly.optimizer, None, batch_size=12,
        objective=assembly.objective,
    )  # fmt: skip
    found = steps(iter(assembly.train_batches(0)), 0, 4)
    return assembly, found


def test_penalties_and_weight_decay_are_those_of_fit():
    """The weights after four steps, on the run's own batches in a loop of Keras."""
    options = {"optimizer__options": {"weight_decay": 0.3, "beta_1": 0.5}}
    assembly, found = trained(make_strategy("one_device"), **options)
    import mine

    keras.utils.set_random_seed(0)
    model = mine.mlp(2, (4,))
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.3, beta_1=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    losses = []
    for x, y in assembly.dataset.train_batches(12, 0).take(4):
        losses.append(float(loss(y, model(x))))
        model.train_on_batch(x, y)
    np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)
    for one, other in zip(assembly.model.weights, model.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


OPTIMIZERS = {
    "Muon": {"momentum": 0.9},
    "Lion": {"weight_decay": 0.1},
    "RMSprop": {"momentum": 0.8},
    "Adafactor": {},
}


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS.items(), ids=OPTIMIZERS)
def test_any_optimizer_trains(name, options):
    assembly, found = trained(
        make_strategy("one_device"), optimizer__name=name, optimizer__options=options
    )
    assert np.isfinite(found["loss"]).all() and len(set(found["loss"].tolist())) == 4
    assert int(assembly.optimizer.iterations.numpy()) == 4


def test_the_momentum_of_the_theory_is_that_of_a_velocity_with_the_rate():
    config = validate(own_config())
    assert rate_momentum(config) == 0.0
    config["optimizer"] = {"name": "RMSprop", "options": {"momentum": 0.8}}
    assert rate_momentum(config) == 0.8
    config["optimizer"] = {"name": "SGD", "momentum": 0.7}
    assert rate_momentum(config) == 0.7


def test_clipping_is_refused_on_several_replicas():
    config = validate(own_config(optimizer__options={"clipnorm": 1.0}))
    components.check_optimizer(config, 1)
    with pytest.raises(ConfigError, match="without 'clipnorm' on 2 replicas"):
        components.check_optimizer(config, 2)


def test_functions_are_called_with_what_they_take(mine):
    (mine / "more.py").write_text("from numpy import load\ndef own(a, b=2):\n    return a, b\n")
    function = user_code.find_function("data.load", "more:own")
    called = user_code.call("data.load", "more:own", function, {"a": 1}, {"data_dir": 3}, True)
    assert called == (1, 2)
    again = user_code.find_function("data.load", "more:load")  # numpy's, under another name
    with pytest.raises(ConfigError, match="as it is not in the current folder"):
        user_code.call("data.load", "more:load", again, {"file": "x"}, {"data_dir": None}, True)


SCRIPT = """
import sys
from absl import flags
from tf_lrtraj.bin import common, train
from tf_lrtraj.training import strategies

def run(workdir):
    sys.argv = ["lrtraj-train", "--config=own.py", f"--workdir={workdir}", "--strategy=mirrored",
                "--num_devices=2"]
    try:
        train.run()
    except SystemExit as stop:
        assert not stop.code, stop.code
    flags.FLAGS.unparse_flags()
    for name in [n for n in flags.FLAGS if flags.FLAGS.find_module_defining_flag(n, "").startswith(
            "tf_lrtraj") or n.startswith("config.")]:
        delattr(flags.FLAGS, name)

common.make_strategy_or_fail = lambda *_, made=[], **__: (
    made or made.append(strategies.make_strategy("mirrored", 2)) or made)[0]
for workdir in sys.argv[1:]:
    run(workdir)
"""


def test_killed_and_started_again_a_users_run_ends_with_the_same_bits(mine, tmp_path):
    (mine / "own.py").write_text(
        "from tf_lrtraj.runs.run_config import default_config\n"
        "def get_config():\n    config = default_config()\n"
        f"    config.update_from_flattened_dict({SMALL!r})\n"
        "    config.data.load, config.total = 'mine:source', '24 steps'\n"
        "    config.model.options = {'dropout': 0.3}\n"
        "    config.averages = {'ema': {'kernel': 'Exponential', 'decay': 0.8}}\n"
        "    return config\n"
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    checkpoint = killed / "checkpoints" / "step_000000003"
    process = start_python("-c", SCRIPT, killed, cwd=mine, env={"KILL_AFTER": str(checkpoint)})
    assert process.wait(timeout=300) == -9, process.communicate()
    assert records.load_run(killed).status == "incomplete"
    run_python("-c", SCRIPT, killed, whole, cwd=mine)
    run = records.load_run(killed)
    assert run.status == "done" and run.run["resumed_at"][0] in (3, 6, 9)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    ours, theirs = checkpoint_values(killed), checkpoint_values(whole)
    assert ours.keys() == theirs.keys() and any("optimizer" in name for name in ours)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


# --- Backbones ------------------------------------------------------------------------------

BACKBONE = {
    "stackwise_filters": [64, 128],
    "stackwise_blocks": [1, 1],
    "stackwise_strides": [1, 2],
    "block_type": "basic_block",
}
PACKAGES = {
    "keras_cv": {**BACKBONE, "include_rescaling": False},
    "keras_hub": {
        "stackwise_num_filters": [64, 128],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [3],
    },
}


@pytest.mark.parametrize(("package", "options"), PACKAGES.items(), ids=PACKAGES)
def test_a_backbone_gets_a_head_and_trains(package, options, tmp_path):
    pytest.importorskip(f"{package}.models")
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model.build": f"{package}:ResNetBackbone",
            "data.augmentation": "crop+cutmix",
            "data.batch_size": 32,
            "total": "4 steps",
            "batch_norm.batches": 1,
            "evaluate.every": "never",
            "save_models": False,
        }
    )
    config.model.options = options
    config.averages = {"ema": {"kernel": "Exponential", "decay": 0.5}}
    make(tmp_path, config)
    run = records.load_run(tmp_path)
    assert run.status == "done" and run.run["model"]["name"] == "ResNetBackbone"
    assert run.run["batch_norm"]["ema"] == "recompute(1 batches)"
    steps, losses = run.series("loss", "ema")
    assert steps.tolist() == [4] and np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("keras_cv:ResNetBackbon", {}, r"a backbone of keras_cv. Did you mean 'ResNetBackbone'"),
        ("keras_cv:ResNetBackbone", {"stackwise": 1}, r"no argument of keras_cv:ResNetBackbone"),
        ("keras_cv:ResNetBackbone", {"stackwise_filters": [8]}, r"do not build keras_cv:ResNet"),
    ],
)
def test_mistakes_with_a_backbone_are_one_line(text, options, message):
    pytest.importorskip("keras_cv.models")
    config = default_config()
    config.model.build, config.model.options = text, options
    config = validate(config)
    with pytest.raises(ConfigError, match=message) as error:
        components.build_model(config, load_dataset(config))
    assert "\n" not in str(error.value)


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    for name in ("keras_hub", "keras_hub.models"):
        monkeypatch.setitem(sys.modules, name, None)
    config = default_config()
    config.model.build = "keras_hub:ResNetBackbone"
    config = validate(config)
    with pytest.raises(ConfigError, match=re.escape("pip install 'tf_lrtraj[keras_hub]'")):
        components.build_model(config, load_dataset(config))
