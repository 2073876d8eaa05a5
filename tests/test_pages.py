"""The pages of docs/: every Python example is run by a test, and every command has known flags.

The notebooks in docs/tutorials run when `tools/site.sh` builds the site.
"""

import re
import sys
import types

import keras
import numpy as np
import pytest
from helpers import ROOT, python_blocks, start_python
from test_packaging import scripts

import tf_lrtraj
from tf_lrtraj import RunRecorder, WeightAveraging, kernels, probes, records, report
from tf_lrtraj.averaging import SnapshotRecorder
from tf_lrtraj.training.loggers import check_loggers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int32)

# page → (its Python blocks, the test file that runs them); the other pages have none.
RUN_BY = {
    "averages_afterwards.md": (3, "tests/averaging/test_averaging_pages.py"),
    "averaging.md": (1, "tests/averaging/test_averaging_pages.py"),
    "data.md": (1, "tests/data/test_own_data.py"),
    "decay_forecasts.md": (1, "tests/test_pages.py"),
    "guide.md": (5, "tests/test_pages.py"),  # three of them in test_averaging_pages.py
    "migration.md": (8, "tests/averaging/test_migration.py"),
    "probes.md": (5, "tests/probes/test_probes_page.py"),
    "records.md": (6, "tests/test_pages.py"),  # one of them in test_run_recorder.py
    "reproduction.md": (1, "tests/test_pages.py"),
    "your_own_model.md": (6, "tests/bin/test_your_own_model.py"),
}


def test_every_page_with_code_has_its_test():
    pages = {
        path.name: len(python_blocks(path))
        for path in (ROOT / "docs").rglob("*.md")
        if python_blocks(path)
    }
    assert pages == {name: count for name, (count, _) in RUN_BY.items()}
    for name, (_, test) in RUN_BY.items():
        assert name in (ROOT / test).read_text(encoding="utf-8"), test


def built():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return model


def block(page, text):
    """The one Python block of a page that holds a text."""
    (found,) = (code for code in python_blocks(f"docs/{page}") if text in code)
    return found


def test_the_guide_on_averages_in_fit():
    names = {"model": built(), "x_train": X, "y_train": Y}
    exec(block("guide.md", "epochs=20").replace("epochs=20", "epochs=2"), names)
    assert names["averaging"].num_updates == 4


def test_the_guide_on_batch_norm_of_two_networks():
    names = {}
    exec(block("guide.md", "def both(model, batch)"), names)
    calls = []

    def network(name):
        return lambda batch, training: calls.append((name, batch, training)) or name

    model = types.SimpleNamespace(generator=network("generator"), critic=network("critic"))
    names["both"](model, "batch")
    assert calls == [("generator", "batch", True), ("critic", "generator", True)]


def test_the_page_on_decays():
    steps = np.arange(200, 20_001, 200)
    names = {"steps": steps, "losses": 3.0 + 8.0 * steps**-0.4}
    exec(block("decay_forecasts.md", "what_if"), names)
    assert len(names["answers"]) == 2 and names["best"]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The current folder, with the run `runs/demo` and its matched run as the page names them."""
    monkeypatch.chdir(tmp_path)
    batches = probes.take_batches(X, Y, batch_size=16, count=2)

    def line(surface):
        rates = probes.rate_grid(0.1, 1.0, 3)
        return probes.Line(surface, surface.point(), batches, rates=rates, bracket="none")

    def fit(workdir, *callbacks):
        ema = {"ema": kernels.Exponential(0.5)}
        averaging = WeightAveraging(ema, batch_norm_data=X, validation_data=(X, Y))
        recorder = RunRecorder(workdir, split="test", batch_size=16)
        options = {"batch_size": 16, "epochs": 2, "verbose": 0, "validation_data": (X, Y)}
        built().fit(X, Y, callbacks=[averaging, recorder, *callbacks], **options)

    fit("runs/demo", probes.ProbeRecorder("runs/demo/probes", {"line": line}, every=100))
    fit(records.matched_dir("runs/demo", "ema"))
    return tmp_path


def test_the_page_on_records(runs, capsys):
    names = {"records": records, "report": report, "probes": probes}
    exec(block("records.md", "run.schedule()"), names)
    assert names["steps"].tolist() == [4, 8] and names["rates"].shape == (8,)
    assert capsys.readouterr().out.startswith("ema ")
    pytest.importorskip("xarray")
    exec(block("records.md", "read_metrics"), names)
    table = names["table"]
    assert len(table) == len(names["run"].all_rows)
    assert table.step.dtype == np.int64 and set(table.weights.dropna()) == {"raw", "ema"}
    last = table[(table.weights == "ema") & (table.step == 8)]
    assert last.accuracy.tolist() == [names["accuracy"][-1]]
    assert {"accuracy", "loss", "rates"} <= set(names["drawn"])
    for name in ("loss.pdf", "line.pdf"):
        assert (runs / name).read_bytes().startswith(b"%PDF")
    exec(block("records.md", "loggers ="), names)
    assert len(check_loggers("loggers", names["loggers"])) == 2


def test_a_table_without_pandas_is_an_error_that_names_the_extra(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"tf_lrtraj\[pandas\]"):
        records.read_metrics("runs/demo")


def test_the_page_on_files_of_probes_and_snapshots(runs):
    code = block("records.md", "ArrayRecord.read")
    names = {}
    exec(
        code.replace("runs/digits/probes/line-000000810", "runs/demo/probes/line-000000000"), names
    )
    assert names["record"].kind == "line"
    pytest.importorskip("safetensors")
    folder = "runs/digits/snapshots"
    built().fit(X, Y, 16, callbacks=[SnapshotRecorder(folder, every=2)], verbose=0)
    exec(block("records.md", "load_file").replace("step_000000100", "step_000000002"), names)
    assert len(names["arrays"]) > 2


def test_the_page_on_the_reproduction(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = block("reproduction.md", "claims.Study")
    exec(code.replace("runs/reproduction", "results/reproduction_cifar10_cpu"), {})
    assert "not measured" in capsys.readouterr().out.replace("_", " ")


def test_the_reference_has_every_public_module_and_program():
    pages = [path.read_text("utf-8") for path in (ROOT / "docs" / "reference").glob("*.md")]
    documented = set(re.findall(r"automodule:: tf_lrtraj\.(\S+)", "".join(pages)))
    public = {name for name in tf_lrtraj.__all__ if name.islower() and not name.startswith("_")}
    assert public <= documented
    helped = set(re.findall(r"\{program-help\} (\w+)", "".join(pages)))
    assert helped == {script.removeprefix("lrtraj-") for script, _ in scripts()}


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    trees = "".join(re.findall(r"```\{toctree\}.*?```", index, re.DOTALL)).split()
    folder = ROOT / "docs"
    pages = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.md")}
    assert pages - set(trees) == {"index"}


# Commands -------------------------------------------------------------------------------------


def commands():
    """Every command line of a program of this package in the pages and the README."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = set()
    for path in pages:
        text = path.read_text(encoding="utf-8")
        for code in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) + re.findall(
            r"`(lrt[^`]+)`", text
        ):
            lines = code.replace("\\\n", " ").splitlines()
            found |= {(line.split("#")[0].strip(), path.name) for line in lines}
    return sorted((line, page) for line, page in found if line.startswith("lrtraj-"))


def test_commands_have_known_flags():
    used = {line.split()[0].removeprefix("lrtraj-") for line, _ in commands()}
    assert len(commands()) > 40
    running = {name: start_python("-m", f"tf_lrtraj.bin.{name}", "--help") for name in used}
    help_of = {name: process.communicate()[0] for name, process in running.items()}
    unknown = []
    for line, page in commands():
        text = help_of[line.split()[0].removeprefix("lrtraj-")]
        for flag in re.findall(r"(?<=\s)--([\w.]+)", line):
            entry = f"config.{flag.removeprefix('config.')}"
            known = (
                re.search(rf"^  {re.escape(entry)}[=.]", text, re.MULTILINE)
                if flag.startswith("config.")
                else re.search(rf"--(\[no\])?{flag.removeprefix('no')}\b|--{flag}\b", text)
            )
            if not known and flag != "help":
                unknown.append(f"{page}: {line}: --{flag}")
    assert unknown == []
