"""docs/your_own_model.md: its modules, configurations and commands run as they stand."""

import shlex
import sys

import pytest
from helpers import ROOT, python_blocks

from tf_lrtraj import records
from tf_lrtraj.runs.run_config import default_config, validate

PAGE = (ROOT / "docs" / "your_own_model.md").read_text(encoding="utf-8")
BLOCKS = python_blocks(PAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """mine.py of the page with all of its functions, and the configuration of the MLP."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("mine.py", "mlp_config.py"):
        parts = [block for block in BLOCKS if block.startswith(f"# {name}")]
        (folder / name).write_text("\n\n".join(parts))
    return folder


@pytest.fixture(autouse=True)
def user(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return folder


def test_the_commands_for_an_mlp_run(program, user):
    (block,) = [b for b in PAGE.split("```bash\n")[1:] if b.startswith("lrtraj-train --config=mlp")]
    commands = block.partition("```")[0].splitlines()
    assert len(commands) == 5
    outputs = {}
    for command in commands:
        name, *arguments = shlex.split(command)
        code, outputs[name], errors = program(name, *arguments)
        assert code == 0, f"{command}\n{errors}"
    run = records.load_run(user / "runs" / "mlp")
    assert run.status == "done" and run.metrics() == ["accuracy", "loss", "top3"]
    assert run.series("accuracy", "ema")[1][-1] > 0.8
    assert run.matched()["ema"].status == "done"
    evaluated = outputs["lrtraj-evaluate"].splitlines()
    assert "accuracy" in evaluated[1] and "top3" in evaluated[1] and evaluated[-1].startswith("ema")
    assert "test loss" in outputs["lrtraj-average"]
    assert (user / "runs" / "mlp" / "probes" / "line-000000104.npz").exists()


SHORT = {
    "total": "4 steps",
    "data.batch_size": 20,
    "evaluate.every": "never",
    "save_models": False,
    "loggers": (),
}


def short_config(text):
    config = default_config()
    config.update_from_flattened_dict(SHORT)
    exec(text, {"config": config})
    return config


@pytest.mark.parametrize("what", ["transformer", "transformer with padding", "regression"])
def test_the_other_examples_train(what, user, tmp_path):
    from run_helpers import make

    text = 'config.data.load = "mine:sequences"\nconfig.model.build = "mine:transformer"\n'
    if "padding" in what:
        text += (
            'config.loss.name = "SparseCategoricalCrossentropy"\n'
            'config.loss.options = {"from_logits": True, "ignore_class": 0}\n'
        )
    for line in text.splitlines():
        assert line in PAGE
    if what == "regression":
        (text,) = [block for block in BLOCKS if "mine:regressor" in block]
    config = short_config(text)
    config.averages = {"ema": {"kernel": "Exponential", "decay": 0.5}}
    make(tmp_path, config)
    run = records.load_run(tmp_path)
    expected = {
        "transformer": ["accuracy", "loss"],
        "transformer with padding": ["loss"],
        "regression": ["loss", "mae", "rmse"],
    }
    assert run.status == "done" and run.metrics() == expected[what]


def test_the_configuration_of_a_backbone_is_valid():
    (text,) = [block for block in BLOCKS if "keras_cv:" in block]
    assert validate(short_config(text))["model"]["build"] == "keras_cv:ResNetBackbone"
