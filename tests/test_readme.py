"""The README's code runs as it stands."""

import json
import pathlib
import re

import keras
import numpy as np

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_lines_for_a_keras_user_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    rng = np.random.default_rng(0)
    x = rng.normal(size=(640, 4, 4, 1)).astype(np.float32)
    y = (x.mean((1, 2, 3)) > 0).astype(np.int32)
    inputs = keras.Input((4, 4, 1))
    norm = keras.layers.BatchNormalization()(keras.layers.Conv2D(3, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(norm)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    names = {
        "keras": keras,
        "model": model,
        "optimizer": keras.optimizers.SGD(0.1),
        "loss": loss,
        "x_train": x,
        "y_train": y,
        "x_test": x,
        "y_test": y,
    }
    for block in blocks:
        exec(block, names)
    averaging = names["averaging"]
    assert averaging.num_updates == 200
    loaded = keras.saving.load_model(tmp_path / "swa.keras")
    with averaging.borrowed("swa"):
        expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)


def test_the_counts_of_verdicts_are_those_of_the_committed_ledger():
    root = README.parent
    ledger = json.loads((root / "results/reproduction_cifar10_cpu/ledger.json").read_text("utf-8"))
    text = " ".join(README.read_text(encoding="utf-8").split())
    stated = re.search(r"((?:\d+ [a-z ]+, )+\d+ [a-z ]+), most because", text).group(1)
    counts = {words: int(n) for n, words in (one.split(" ", 1) for one in stated.split(", "))}
    assert counts == ledger["counts"]
    assert sum(counts.values()) == len(ledger["claims"]) == 37
