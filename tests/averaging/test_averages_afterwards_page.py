"""The code of docs/averages_afterwards.md and of the guide on ensembles and schedules runs."""

import pathlib
import re

import keras
import numpy as np
import pytest

from tf_lrtraj.averaging import SnapshotRecorder

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(640, 4)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int32)
    inputs = keras.Input((4,))
    norm = keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs))
    outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.ReLU()(norm))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    half = {"x_train": x[:512], "y_train": y[:512], "x_test": x[512:], "y_test": y[512:]}
    return {"keras": keras, "model": model, **half}


def test_averages_afterwards(names, tmp_path):
    command_line, into_a_model, stored = blocks("averages_afterwards.md")
    x, y, model = names["x_train"], names["y_train"], names["model"]
    recorder = SnapshotRecorder("runs/digits/snapshots", every=4)
    model.fit(x, y, epochs=1, verbose=0, callbacks=[recorder])
    exec(command_line, names)
    exec(into_a_model, names)
    saved = keras.saving.load_model(tmp_path / "swa.keras")
    np.testing.assert_allclose(saved.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)
    exec(stored, names)
    assert names["found"].combination.error < 0.1
    found = keras.saving.load_model(tmp_path / "power_12.keras")
    assert found.evaluate(x, y, verbose=0) < 0.5


def test_the_guide_on_ensembles_and_schedules(names):
    code = blocks("guide.md")
    chosen = [block for block in code if "Ensemble(" in block or "Schedule(" in block]
    assert len(chosen) == 3
    fge, warm_up, adam = chosen
    exec(fge.replace("[1000])", "[8])").replace("start=1100, every=200", "start=9, every=8"), names)
    assert (
        len(names["ensemble"]) > 2
        and names["ensemble"].evaluate(names["x_test"], names["y_test"]).accuracy > 0.5
    )
    for block in (warm_up, adam):
        exec(block, names)
        model = names["model"]
        one_hot = np.eye(2)[names["y_train"]]
        assert np.isfinite(model.fit(names["x_train"], one_hot, verbose=0).history["loss"][0])
