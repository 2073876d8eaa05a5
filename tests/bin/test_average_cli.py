"""`lrtraj-average`: mistakes are one clear line; a Keras model's snapshots from end to end."""

import sys

import numpy as np
import pytest
from absl import flags

from tf_lrtraj import kernels, records, theory
from tf_lrtraj.averaging.snapshots import Snapshots, SnapshotWriter, Timetable, VariableSpec
from tf_lrtraj.bin import average, common
from tf_lrtraj.experiments import texts


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs the program in this process; returns (exit code, standard output, standard error)."""

    def run(*args):
        forget_flags()
        monkeypatch.setattr(sys, "argv", ["lrtraj-average", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            average.run()
        output = capsys.readouterr()
        return stopped.value.code or 0, output.out, output.err

    yield run
    forget_flags()


def forget_flags():
    """Undoes what a program defines and parses, as if its process were new."""
    flags.FLAGS.unparse_flags()
    ours = {
        flag.name
        for module, defined in flags.FLAGS.flags_by_module_dict().items()
        for flag in defined
        if module.startswith("tf_lrtraj.")
    }
    for name in ours & set(flags.FLAGS):
        delattr(flags.FLAGS, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Snapshots 20, 30, …, 100 of one weight that equals the step."""
    path = tmp_path_factory.mktemp("snapshots")
    writer = SnapshotWriter(path, [VariableSpec("w", (1,), "float32", "trainable")], Timetable(10))
    for step in range(20, 101, 10):
        writer.write(step, [np.array([step], np.float32)])
    return path


@pytest.mark.parametrize(
    ("text", "name", "kernel"),
    [
        ("ema:0.99", "ema-0.99", kernels.Exponential(0.99)),
        ("ema:decay=0.9,start=5", "ema-decay=0.9-start=5", kernels.Exponential(0.9, start=5)),
        ("swa:start=500", "swa-start=500", kernels.Uniform(500)),
        ("window:200,every=10", "window-200-every=10", kernels.Window(200, 10)),
        ("two_point:100", "two_point-100", kernels.TwoPoint(100)),
        ("late=two_point:100", "late", kernels.TwoPoint(100)),
        ("Uniform(start=3)", "Uniform-start=3", kernels.Uniform(3)),
        ('x={"kernel": "TwoPoint", "gap": 3}', "x", kernels.TwoPoint(3)),
        ("c=Custom([1.5, -0.5])", "c", kernels.Custom([1.5, -0.5])),
    ],
)
def test_kernels_in_every_form(text, name, kernel):
    assert texts.parse_average(text) == (name, kernel)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], ["--workdir", "--snapshots"]),
        (["--snapshots={folder}"], ["--kernel", "--advise"]),
        (["--snapshots={folder}", "--kernel=ema:1.5"], ["decay", "1.5"]),
        (["--snapshots={folder}", "--kernel=emma:0.5"], ["emma:0.5", "'ema'"]),
        (["--snapshots={folder}", "--kernel=0.99"], ["--kernel must look like ema:0.99"]),
        (["--snapshots={folder}", "--kernel={{oops"], ["not JSON"]),
        (["--snapshots={folder}", "--kernel=two_point:10", "--last=95"], ["90, 100", "last=95"]),
        (["--snapshots={folder}", "--kernel=two_point:90"], ["step 10", "first snapshot"]),
        (["--snapshots={folder}", "--kernel=two_point:101"], ["beyond the run of 100"]),
        (["--snapshots={folder}", "--kernel=ema:0.5", "--kernel=ema:0.5"], ["two averages"]),
        (["--snapshots={folder}", "--kernel=ema:0.5", "--evaluate"], ["need --model"]),
        (["--snapshots={folder}", "--schedule=linear:50"], ["--base"]),
        (["--snapshots={folder}", "--schedule=linear:500", "--base=0.1"], ["linear:500", "100"]),
        (["--snapshots={folder}", "--schedule=lineal:50", "--base=0.1"], ["lineal", "linear"]),
        (["--snapshots={folder}", "--advise", "--model=none.keras"], ["no file 'none.keras'"]),
        (
            ["--snapshots={folder}", "--kernel=ema:0.5", "--evaluate", f"--model={__file__}"],
            ["--data=FILE.npz"],
        ),
        (["--workdir={folder}", "--advise", "--split=test"], ["does not use --split"]),
        (
            ["--snapshots={folder}", "--kernel=ema:0.5", "--json=/nowhere/rows.jsonl"],
            ["--json: there is no folder '/nowhere'"],
        ),
        (
            [
                "--snapshots={folder}",
                "--kernel=ema:0.5",
                f"--model={__file__}",
                f"--export={__file__}/x",
            ],
            ["--export:", "none can be made there"],
        ),
        (["--snapshots={folder}", "--schedule=0.05:20", "--base=0.1"], ["'0.05' with 20"]),
        (["--snapshots={folder}/none", "--kernel=ema:0.5"], ["no folder of snapshots"]),
        (["--workdir={folder}/none", "--kernel=ema:0.5"], ["there is no folder"]),
        (["--workdir={folder}", "--kernel=ema:0.5"], ["--config.snapshots.every="]),
        (["--workdir={folder}", "--advise", "--kernel=ema:0.5"], ["--advise tries all"]),
        (["--snapshots={folder}", "--kernell=ema:0.5"], ["kernell"]),
        (["--snapshots={folder}", "extra"], ["unexpected arguments", "extra"]),
    ],
)
def test_mistakes_are_one_clear_line(program, folder, args, expected):
    code, out, error = program(*(arg.format(folder=folder) for arg in args))
    assert code == common.USAGE
    for text in expected:
        assert text in error
    assert "Traceback" not in error and out == ""


def test_a_damaged_snapshot_is_named(program, tmp_path):
    spec = VariableSpec("w", (2,), "float32", "trainable")
    writer = SnapshotWriter(tmp_path, [spec], Timetable(1))
    for step in range(4):
        writer.write(step, [np.zeros(2, np.float32)])
    path = Snapshots(tmp_path).path(2)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    code, _, error = program(f"--snapshots={tmp_path}", "--kernel=window:3")
    assert code == common.USAGE and "step_000000002.snap is damaged" in error


def test_averages_without_a_model_say_what_they_are(program, folder, tmp_path):
    code, out, error = program(
        f"--snapshots={folder}",
        "--kernel=two_point:40",
        "--kernel=ema:0.9",
        "--schedule=linear:50",
        "--base=0.1",
        f"--json={tmp_path}/rows.jsonl",
    )
    assert code == 0, error
    rows = {row["weights"]: row for row in records.read_rows(tmp_path / "rows.jsonl")}
    assert rows["two_point-40"]["exact"] and rows["two_point-40"]["distance"] == 20.0
    assert not rows["ema-0.9"]["exact"]
    # A steady drift: linear interpolation misses nothing, but what lies before the first snapshot.
    assert rows["ema-0.9"]["error"] < 0.01
    weights = theory.weights_from_schedule(
        np.concatenate([np.full(50, 0.1), 0.1 * np.arange(50, 0, -1) / 50]), 0.1
    )
    distance = 100.0 - weights @ np.arange(101.0)
    assert rows["linear-50"]["distance"] == pytest.approx(distance, rel=1e-5)
    assert "exact" in out and "two_point-40: 2 snapshots, steps 60 to 100" in out


def test_kernels_may_count_snapshots(program, folder, tmp_path):
    code, _, error = program(
        f"--snapshots={folder}", "--kernel=window:3", "--per=snapshot", "--last=90",
        f"--json={tmp_path}/rows.jsonl",
    )  # fmt: skip
    assert code == 0, error
    (row,) = records.read_rows(tmp_path / "rows.jsonl")
    assert row["exact"] and row["distance"] == 10.0 and row["step"] == 90


def test_help_teaches(program):
    code, out, _ = program("--help")
    assert code in (0, 1)
    for text in ("--kernel=ema:0.99", "--advise", "--schedule=linear:200", "--snapshots=DIR"):
        assert text in out


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    """A trained Keras model with batch norm, its snapshots, and its data."""
    import keras

    from tf_lrtraj.averaging import SnapshotRecorder

    path = tmp_path_factory.mktemp("own")
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 6)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.BatchNormalization()(hidden)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss, metrics=["accuracy"])
    recorder = SnapshotRecorder(path / "snapshots", every=4)
    model.fit(x, y, batch_size=16, epochs=8, verbose=0, callbacks=[recorder])
    model.save(path / "model.keras")
    np.savez(path / "data.npz", x=x, y=y)
    return path, x, y


def test_a_model_of_one_s_own_from_end_to_end(program, own_model):
    import keras

    path, x, y = own_model
    given = [
        f"--snapshots={path}/snapshots",
        f"--model={path}/model.keras",
        f"--data={path}/data.npz",
    ]
    code, out, error = program(
        *given,
        "--kernel=tail=window:5,every=4",
        "--evaluate",
        f"--export={path}/out",
        f"--json={path}/rows.jsonl",
    )
    assert code == 0, error
    rows = {row["weights"]: row for row in records.read_rows(path / "rows.jsonl")}
    assert set(rows) == {"raw", "tail"}
    assert rows["tail"]["exact"] and rows["tail"]["batch_norm"] == "recompute(256 examples of data)"
    loaded = keras.saving.load_model(path / "out" / "tail.keras")
    snapshots = Snapshots(path / "snapshots")
    wanted = [snapshots.read(int(step)) for step in snapshots.steps[-5:]]
    for index, variable in enumerate(loaded.trainable_variables):
        expected = np.mean([arrays[index] for arrays in wanted], axis=0)
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(variable), expected, rtol=1e-5, atol=1e-6
        )
    hidden = keras.Model(loaded.input, loaded.layers[1].output)(x)
    norm = loaded.layers[2]
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(norm.moving_mean), np.mean(hidden, axis=0), rtol=1e-4, atol=1e-5
    )
    metrics = loaded.evaluate(x, y, verbose=0, return_dict=True)
    assert rows["tail"]["loss"] == pytest.approx(metrics["loss"], rel=1e-4)

    code, out, error = program(
        *given, "--advise", "--advise_examples=128", "--verify=6", f"--export={path}/out"
    )
    assert code == 0, error
    assert "recommended:" in out and "% of it" in out
    advice = records.read_json(path / "advice" / "advice.json")
    assert advice["identity"]["data"]["batch_norm"] == "recompute(256 examples of data)"
    assert (path / "advice" / "advice.svg").exists() and (path / "out" / "advised.keras").exists()
    recommended = next(r for r in advice["averages"] if r["name"] == advice["recommended"])
    advised = keras.saving.load_model(path / "out" / "advised.keras")
    found = advised.evaluate(x[:128], y[:128], verbose=0, return_dict=True)
    assert recommended["measured"] == pytest.approx(found["loss"], rel=1e-3)


def test_snapshots_of_another_model_are_refused(program, own_model, folder):
    path, _, _ = own_model
    code, _, error = program(
        f"--snapshots={folder}",
        f"--model={path}/model.keras",
        f"--data={path}/data.npz",
        "--kernel=two_point:10",
        "--evaluate",
    )
    assert code == common.USAGE and "are not of the model" in error
