"""The README's code runs as it stands."""

import json
import pathlib
import re

import keras
import numpy as np

from tf_lrtraj import claims

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


def test_its_numbers_are_those_of_the_records():
    text = " ".join(README.read_text(encoding="utf-8").split())
    assert "thirty-seven claims" in text and len(claims.CLAIMS) == 37
    stated = re.search(r"decays over (.*?) and (.*?) updates it keeps (.*?) and (.*?) %", text)
    lengths, shares = (
        [int(number.replace(",", "")) for number in re.findall(r"[0-9,]*[0-9]", text)]
        for text in (f"{stated[1]} and {stated[2]}", f"{stated[3]} and {stated[4]}")
    )
    folder = README.parent / "results" / "reproduction_cifar10_resnet8"
    kept = []
    for path in folder.glob("measured/cooldown_gain/seed*.json"):
        rows = [row for row in json.loads(path.read_text("utf-8"))["rows"] if row["rate"] == 0.1]
        rows = [row for row in rows if row["set"] == "train_part"]
        raw = np.mean([row["loss"] for row in rows if row["of"] == "raw"])
        gains = [
            [
                raw - np.mean([r["loss"] for r in rows if (r["of"], r.get("length")) == (of, n)])
                for n in lengths
            ]
            for of in ("average", "cooldown")
        ]
        kept.append(np.divide(*gains))
    np.testing.assert_array_equal(np.round(100 * np.mean(kept, axis=0)), shares)
