"""Every JSON file that the package reads, with each entry replaced by another kind of JSON.

What is read of such a file is used, or refused with one line that names the file; a checkpoint
whose record has another shape counts as damaged, and the one before it is taken.
"""

import copy
import json
import pathlib
import shutil
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from tf_lrtraj import claims, records, report
from tf_lrtraj.averaging.advising.measured import MeasuredLosses, Measurement
from tf_lrtraj.averaging.snapshots import Snapshots, SnapshotWriter, Timetable, VariableSpec
from tf_lrtraj.records import ArrayRecord, RecordError
from tf_lrtraj.report import advice_figure, drawing
from tf_lrtraj.report.study import markdown_page
from tf_lrtraj.study import run_study
from tf_lrtraj.training import checkpoints, loop

RESULTS = pathlib.Path(__file__).parents[2] / "results"
GONE = object()
DEEP = json.loads('{"a":[' * 120 + "1" + "]}" * 120)
KINDS = [None, True, -3, 2.5, 1e300, 10**30, "text", "NaN", [], {}, [[{"a": 1}]], DEEP, GONE]
_FLAT = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9" width="9" height="9"></svg>'


def places(tree, most=2, depth=4, path=()):
    """Paths of the entries of a JSON value: all keys, the first entries of every list."""
    if path:
        yield path
    if depth and isinstance(tree, dict):
        for key in tree:
            yield from places(tree[key], most, depth - 1, (*path, key))
    elif depth and isinstance(tree, list):
        for index in range(min(len(tree), most)):
            yield from places(tree[index], most, depth - 1, (*path, index))


def replaced(tree, path, kind):
    """A copy of a JSON value with another entry at a place, or without it."""
    tree = copy.deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    if kind is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = kind
    return tree


def variants(tree, step=1, **options):
    """(what was done, another value) for each place and kind; each `step`-th of them."""
    whole = [((), kind) for kind in KINDS if kind is not GONE]
    whole += [(path, kind) for path in places(tree, **options) for kind in KINDS]
    for path, kind in whole[::step]:
        name = "gone" if kind is GONE else json.dumps(kind)[:20]
        yield f"{path}: {name}", kind if not path else replaced(tree, path, kind)


def write_run(folder):
    records.write_json(folder / "config.json", {"name": "a run", "seed": 0})
    run = {
        "format": 1,
        "status": "done",
        "name": "a run",
        "created": "2024-05-01",
        "command": "lrtraj-train",
        "versions": {"python": "3.11"},
        "seed": 0,
        "threads": {"intra_op": 2},
        "strategy": "one_device",
        "num_replicas": 1,
        "total_steps": 20,
        "batch_size": 64,
        "steps_per_epoch": 10,
        "dataset": {"name": "digits", "num_examples": {"train": 640}, "num_classes": 10},
        "model": {"name": "resnet8", "parameters": 1000},
        "averages": {"ema": {"kernel": "Exponential", "decay": 0.9, "start": 0}},
        "batch_norm": {"raw": "running"},
        "matched_to": {"average": "a", "kernel": {"decay": 0.9}, "curvature": 0.0, "momentum": 0.9},
        "message": None,
        "resumed_at": [10],
        "forked_at": 0,
    }
    records.write_json(folder / "run.json", run)
    common = {"epoch": 1.0, "loss": 2.0, "accuracy": 0.5}
    evaluated = {"kind": "eval", "split": "test", "batch_norm": "none", "examples": 9, **common}
    rows = [{"kind": "train", "step": 10, "learning_rate": 0.1, **common}]
    rows += [{"step": s, "weights": w, **evaluated} for s in (10, 20) for w in ("raw", "ema")]
    records.append_rows(folder / "metrics.jsonl", rows)
    timing = {"step": 10, "seconds": 1.5, "images_per_second": 400.0}
    records.append_rows(folder / "timing.jsonl", [timing])


def read_run(folder):
    with mock.patch.object(drawing, "to_svg", lambda figure: _FLAT):
        report.text_summary(folder)
        report.write_report(folder)


def write_array_record(folder):
    record = ArrayRecord.empty("line", {"rate": [0.0, 0.1]}, {"loss": ("rate",)}, {"seed": 0})
    record.write(folder / "line.npz")
    with np.load(folder / "line.npz") as arrays:
        (folder / "about.json").write_bytes(arrays["about.json"].tobytes())


def read_array_record(folder):
    with np.load(folder / "line.npz") as stored:
        arrays = dict(stored)
    arrays["about.json"] = np.frombuffer((folder / "about.json").read_bytes(), np.uint8)
    np.savez(folder / "about.json.npz", **arrays)
    ArrayRecord.read(folder / "about.json.npz")


VARIABLES = [
    VariableSpec("kernel", (2, 3), "float32", "trainable"),
    VariableSpec("mean", (3,), "float32", "statistic"),
]


def write_snapshots(folder):
    writer = SnapshotWriter(folder / "snapshots", VARIABLES, Timetable(2, limit=9), "int8")
    for step in (0, 2, 4):
        writer.write(step, [np.full(v.shape, step, np.float32) for v in VARIABLES])
    (folder / "snapshots" / "index.json").rename(folder / "index.json")
    data = (folder / "snapshots" / "step_000000002.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    (folder / "step_000000002.json").write_bytes(data[8 : 8 + length])


def read_index(folder):
    shutil.copyfile(folder / "index.json", folder / "snapshots" / "index.json")
    assert [v.shape for v in Snapshots(folder / "snapshots").read(4)] == [(2, 3), (3,)]
    SnapshotWriter(folder / "snapshots", VARIABLES, Timetable(2, limit=9), "int8")


def read_header(folder):
    shutil.copyfile(folder / "index.json", folder / "snapshots" / "index.json")
    path = folder / "snapshots" / "step_000000002.safetensors"
    data, head = path.read_bytes(), (folder / "step_000000002.json").read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    Snapshots(folder / "snapshots").read(2)


def write_advice(folder):
    for name in ("advice.json", "advice.npz"):
        shutil.copyfile(RESULTS / "cifar10_resnet8_cpu" / "seed0" / "advice" / name, folder / name)


def read_advice(folder):
    with mock.patch.object(advice_figure, "to_svg", lambda figure: _FLAT):
        advice_figure.draw(folder)


def write_reproduction(folder):
    for name in ("config.json", "run.json", "measured/base/seed0.json", _MEASURED):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(RESULTS / "reproduction_digits" / name, folder / name)
    base = records.read_json(folder / "measured/base/seed0.json")
    series = {name: found for name, found in base.items() if not isinstance(found, list)}
    records.write_json(folder / "measured/base/seed0.json", series)
    known = claims.CLAIMS[0]
    row = {"claim": known.id, "part": known.wanted[0].name, "expected": 1, "scatter": 1, "count": 3}
    config = records.read_json(folder / "config.json")
    records.write_json(folder / "config.json", {**config, "power": [row], "pilot": "a run"})


_MEASURED = "measured/levels/seed0.json"
_CONCERNED = [claim for claim in claims.CLAIMS if "levels" in claim.needs][:2]


def read_page(folder):
    assert markdown_page(claims.Study(folder, _CONCERNED)).startswith(b"# ")


def read_claims(folder):
    claims.ledger_bytes(claims.make_ledger(folder, _CONCERNED))


def read_state(folder):
    run_study._done(run_study.read_run(folder))


class Losses:
    """Measured losses of averages of snapshots, kept in a file."""

    def __init__(self, folder):
        (folder / "index.json").unlink(missing_ok=True)
        self.snapshots = folder / "snapshots"

    def open(self, folder):
        measurement = Measurement("train", lambda arrays: 1.0)
        snapshots = Snapshots(self.snapshots)
        return MeasuredLosses(snapshots, snapshots.steps.tolist(), measurement, folder / "m.jsonl")


def write_losses(folder):
    write_snapshots(folder)
    shutil.copyfile(folder / "index.json", folder / "snapshots" / "index.json")
    Losses(folder).open(folder).measure({"last": np.array([0.0, 0.0, 1.0])}, "", progress=False)


def read_losses(folder):
    losses = Losses(folder).open(folder)
    assert isinstance(losses.missing([np.array([0.0, 0.0, 1.0])]), int)
    losses.seconds_each


# name: (file, what writes it, what reads it, every how many variants are tried, share refused)
FILES = {
    "run.json": ("run.json", write_run, read_run, 2, 0.5),
    "rows": ("metrics.jsonl", write_run, read_run, 1, 0.3),
    "times": ("timing.jsonl", write_run, read_run, 3, 0.0),
    "config.json": ("config.json", write_run, read_run, 1, 0.1),
    "arrays": ("about.json", write_array_record, read_array_record, 1, 0.5),
    "index of snapshots": ("index.json", write_snapshots, read_index, 1, 0.6),
    "header of a snapshot": ("step_000000002.json", write_snapshots, read_header, 1, 0.5),
    "advice": ("advice.json", write_advice, read_advice, 43, 0.1),
    "configuration of a reproduction": ("config.json", write_reproduction, read_page, 1, 0.0),
    "base run of a reproduction": (
        "measured/base/seed0.json", write_reproduction, read_page, 1, 0.0,
    ),
    "claims from a configuration": ("config.json", write_reproduction, read_claims, 7, 0.05),
    "claims from a measured file": (_MEASURED, write_reproduction, read_claims, 1, 0.0),
    "run.json of a reproduction": ("run.json", write_reproduction, read_state, 1, 0.1),
    "run.json on a page": ("run.json", write_reproduction, read_page, 1, 0.0),
    "measured losses": ("m.jsonl", write_losses, read_losses, 1, 0.3),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_record_of_another_shape_is_used_or_refused_in_one_line(name, tmp_path):
    file, write, read, step, share = FILES[name]
    write(tmp_path)
    path = tmp_path / file
    rows = file.endswith(".jsonl")
    text = path.read_text()
    tree = json.loads(text.splitlines()[-1] if rows else text)
    read(tmp_path)
    tried, refused = 0, 0
    for what, other in variants(tree, step):
        tried += 1
        path.write_text(json.dumps(other) + "\n" + text if rows else json.dumps(other))
        try:
            read(tmp_path)
        except RecordError as error:
            refused += 1
            named = path.stem in str(error) or f"{tmp_path}/snapshots" in str(error)
            assert named and "\n" not in str(error), (what, error)
        except Exception as error:
            raise AssertionError(f"{file}, {what}: {type(error).__name__}: {error}") from error
    assert tried > 10 and refused >= share * tried, (tried, refused)


# --- Checkpoints --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(a workdir with checkpoints of steps 1 and 2, what restores them)."""
    folder = tmp_path_factory.mktemp("stopped")
    variable = tf.Variable([1.0, 2.0])
    variable.value = variable  # as a Keras variable has it
    checkpointer = checkpoints.Checkpointer(folder / "checkpoints", {"weights": [variable]})
    window = {"losses": [0.5], "accuracies": [0.25]}
    with records.MetricsWriter(folder / "metrics.jsonl") as writer:
        for step in (1, 2):
            writer.write({"step": step})
            checkpointer.save(step, {"window": window, "rows": writer.mark()})
    return folder, checkpointer


@pytest.mark.parametrize("file", ["progress.json", "manifest.json"])
def test_a_checkpoint_of_another_shape_falls_back_to_the_one_before(file, stopped, tmp_path):
    folder, checkpointer = stopped
    newest = folder / "checkpoints" / "step_000000002"
    kept = shutil.copytree(folder, tmp_path / "kept")
    tree = json.loads((newest / file).read_text())
    starts = []
    for what, other in variants(tree, most=3):
        (newest / file).write_text(json.dumps(other))
        if file == "progress.json":  # whole by its manifest
            records.write_json(newest / "manifest.json", checkpoints._manifest(newest))
        try:
            step, window = loop.resume(checkpointer, folder / "metrics.jsonl")
        except checkpoints.CheckpointError as error:  # other variables: told, not passed over
            assert "other variables" in str(error) and "\n" not in str(error), what
        else:
            assert step == 2 or window.means() == {"loss": 0.5, "accuracy": 0.25}, what
            starts.append(step)
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    assert loop.resume(checkpointer, folder / "metrics.jsonl")[0] == 2
    assert starts.count(1) > 0.6 * len(starts) > 20


@pytest.mark.parametrize(
    ("shape", "good", "bad", "said"),
    [
        (dict[str, list[float]], {"a": [1, "NaN"]}, {"a": [1, "b"]}, r"`a\[1\]` must be a number"),
        (records.Count, 3, -1, "must be a whole number of at least 0. Received: -1"),
        (records.Count, 3, True, "Received: True"),
        (str | None, None, 5, "must be text or null. Received: 5"),
        (list[dict[str, int]], [{}], [{"b": {}}], r"`\[0\]\.b` must be a whole number"),
        (records.Mark, {"bytes": 1, "sha256": "a"}, {"bytes": 1}, "`sha256` is missing"),
        (records.Mark, {"bytes": 1, "sha256": "a"}, [], "must be a JSON object"),
        (list[int], [1], "9" * 500, r"Received: '9+\.\.\.9+'$"),
    ],
)
def test_what_conforms_to_a_shape(shape, good, bad, said):
    assert records.problem(good, shape) is None
    with pytest.raises(ValueError, match=said) as caught:
        records.conform(bad, shape)
    assert len(str(caught.value)) < 250
