"""The code of the pages on averages runs, and the tests that docs/peer_defects.md names exist."""

import keras
import numpy as np
import pytest
from helpers import ROOT, functions_of, named_tests, python_blocks

from tf_lrtraj.averaging import SnapshotRecorder

LOSS = "sparse_categorical_crossentropy"
DEFECTS = (ROOT / "docs" / "peer_defects.md").read_text(encoding="utf-8")


def test_every_test_the_page_names_exists():
    assert len(named_tests(DEFECTS)) > 15


def test_every_test_of_a_peers_defect_is_named():
    path = "tests/averaging/test_peer_defects.py"
    for test in (name for name in functions_of(path) if name.startswith("test_")):
        assert f"{path}::{test}`" in DEFECTS


@pytest.fixture
def names(tmp_path, monkeypatch):
    """A classifier and its data, as the pages have them; the current folder is a fresh one."""
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(320, 4)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int32)
    inputs = keras.Input((4,))
    norm = keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs))
    outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.ReLU()(norm))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    half = {"x_train": x[:256], "y_train": y[:256], "x_test": x[256:], "y_test": y[256:]}
    return {"keras": keras, "model": model, **half}


def test_averages_while_training(names, tmp_path):
    (block,) = python_blocks("docs/averaging.md")
    exec(block, names)
    assert names["optimizer"].num_updates == 32
    history = names["history"].history
    assert len(history["val_swa_loss"]) == len(history["val_loss"])
    best = keras.saving.load_model(tmp_path / "best_ema.keras")
    accuracy = best.evaluate(names["x_test"], names["y_test"], verbose=0)[1]
    assert accuracy == max(history["val_ema_accuracy"])


def test_averages_afterwards(names, tmp_path):
    command_line, into_a_model, stored = python_blocks("docs/averages_afterwards.md")
    x, y, model = names["x_train"], names["y_train"], names["model"]
    recorder = SnapshotRecorder("runs/digits/snapshots", every=4)
    model.fit(x, y, batch_size=16, verbose=0, callbacks=[recorder])
    exec(command_line, names)
    exec(into_a_model, names)
    saved = keras.saving.load_model(tmp_path / "swa.keras")
    np.testing.assert_allclose(saved.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)
    exec(stored, names)
    assert names["found"].combination.error < 0.1
    found = keras.saving.load_model(tmp_path / "power_12.keras")
    assert found.evaluate(x, y, verbose=0) < 0.5


def test_the_guide_on_ensembles_and_schedules(names):
    code = python_blocks("docs/guide.md")
    chosen = [block for block in code if "Ensemble(" in block or "Schedule(" in block]
    assert len(chosen) == 3
    fge, warm_up, adam = chosen
    exec(fge.replace("[1000])", "[8])").replace("start=1100, every=200", "start=9, every=8"), names)
    assert len(names["ensemble"]) > 2
    assert names["ensemble"].evaluate(names["x_test"], names["y_test"]).accuracy > 0.5
    for block in (warm_up, adam):
        exec(block, names)
        one_hot = np.eye(2)[names["y_train"]]
        history = names["model"].fit(names["x_train"], one_hot, verbose=0).history
        assert np.isfinite(history["loss"][0])
