"""docs/averaging.md: its code runs, and the tests it names exist."""

import ast
import pathlib
import re

import keras
import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "averaging.md").read_text(encoding="utf-8")


def test_every_test_the_page_names_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 15
    for path, test in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert test in functions, f"{path}::{test}"


def test_every_test_of_a_peers_defect_is_named():
    path = "tests/averaging/test_peer_defects.py"
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    tests = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    for test in (name for name in tests if name.startswith("test_")):
        assert f"{path}::{test}`" in PAGE


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int32)
    inputs = keras.Input((4,))
    norm = keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.ReLU()(norm)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    names = {
        "keras": keras,
        "model": model,
        "x_train": x,
        "y_train": y,
        "x_test": x[:64],
        "y_test": y[:64],
    }
    exec(block, names)
    history = names["history"].history
    assert len(history["val_swa_loss"]) == len(history["val_loss"])
    best = keras.saving.load_model(tmp_path / "best_ema.keras")
    accuracy = best.evaluate(x[:64], y[:64], verbose=0)[1]
    assert accuracy == max(history["val_ema_accuracy"])
