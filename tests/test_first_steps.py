"""examples/first_steps.ipynb runs as it stands, on plain data, in at most 30 lines."""

import json
import pathlib

import keras
import matplotlib.figure

from tf_lrtraj import records

NOTEBOOK = pathlib.Path(__file__).parents[1] / "examples" / "first_steps.ipynb"


def test_the_cells_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    lines = [line for source in sources for line in source.splitlines() if line.strip()]
    assert len(lines) <= 30
    names = {}
    for source in sources:
        exec(source, names)

    _, test = names["train"], names["test"]
    found = names["average"].evaluate(test)
    assert found["swa"]["accuracy"] > 0.85
    figure = names["record"].plot()
    assert isinstance(figure, matplotlib.figure.Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    saved = keras.saving.load_model(tmp_path / "late.keras")
    _, accuracy = saved.evaluate(*test, verbose=0)
    assert abs(accuracy - found["swa"]["accuracy"]) < 0.05  # the same stretch, every 4th step
    run = records.load_run(tmp_path / "first_steps")
    assert run.status == "done" and run.weights_names() == ["raw", "ema", "swa"]
    assert (tmp_path / "first_steps" / "report.html").stat().st_size > 10_000
