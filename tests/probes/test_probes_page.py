"""docs/probes.md: its code runs, and it names every public probe."""

import importlib.util
import pathlib
import re

import keras
import numpy as np

from tf_lrtraj import probes
from tf_lrtraj.records import ArrayRecord
from tf_lrtraj.specs import PROBES, requestable

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "probes.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    first, second, third, table, config = blocks
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int32)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    names = {"model": model, "x_train": x, "y_train": y, "x_test": x[:64], "y_test": y[:64]}
    exec(first, names)
    assert ArrayRecord.read("line.npz").complete
    assert names["record"].values["mean"].shape[1] == names["record"].coordinates["rate"].size
    exec(second, names)
    written = sorted(path.name for path in (tmp_path / "probes").iterdir())
    assert written == ["line-000000000.npz", "line-000000008.npz"]
    exec(third, names)
    assert names["trips"].complete and names["trips"].about["optimizer"] == "Adam"
    assert "config.probes" in config
    if importlib.util.find_spec("xarray"):
        exec(table, names)
        assert names["table"].shape == (names["record"].values["train"].size, 1)


def test_the_page_names_every_probe_and_class():
    table = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, re.MULTILINE))
    assert {kind: getattr(probes, name).kind for kind, name in table.items()} == {
        kind: kind for kind in requestable()
    }
    assert all(f"`{spec.class_name}`" in PAGE for spec in PROBES.values())
