"""`lrtraj-average`: mistakes are one clear line; a Keras model's snapshots from end to end."""

import functools
import sys

import numpy as np
import pytest

from tf_lrtraj import kernels, records, theory
from tf_lrtraj.averaging import weight_files
from tf_lrtraj.averaging.snapshots import Snapshots, SnapshotWriter, Timetable, VariableSpec
from tf_lrtraj.runs import kernel_parsing


@pytest.fixture
def average(program):
    """Runs `lrtraj-average`; returns (exit code, standard output, standard error)."""
    return functools.partial(program, "lrtraj-average")


@pytest.fixture
def refuses(refused):
    """What `lrtraj-average` says of arguments that it refuses."""
    return functools.partial(refused, "lrtraj-average")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Snapshots 20, 30, …, 100 of one weight that equals the step."""
    path = tmp_path_factory.mktemp("snapshots")
    writer = SnapshotWriter(path, [VariableSpec("w", (1,), "float32", "trainable")], Timetable(10))
    for step in range(20, 101, 10):
        writer.write(step, [np.array([step], np.float32)])
    np.savez(path / "one.npz", a=np.array([1.0, 2.0]), count=3)
    np.savez(path / "two.npz", a=np.array([3.0, 6.0]), count=5)
    np.savez(path / "other.npz", b=np.zeros(2), count=5)
    return path


TWO = ("--files", "{folder}/one.npz", "{folder}/two.npz")


@pytest.mark.parametrize(
    ("text", "name", "kernel"),
    [
        ("ema:0.99", "ema-0.99", kernels.Exponential(0.99)),
        ("ema:decay=0.9,start=5", "ema-decay=0.9-start=5", kernels.Exponential(0.9, start=5)),
        ("swa:start=500", "swa-start=500", kernels.Uniform(500)),
        ("window:200,every=10", "window-200-every=10", kernels.Window(200, 10)),
        ("two_point:100", "two_point-100", kernels.TwoPoint(100)),
        ("power:-0.5,start=80", "power--0.5-start=80", kernels.PowerFunction(-0.5, 80)),
        ("half_life:0.05,longest=9", "half_life-0.05-longest=9", kernels.HalfLife(0.05, 9)),
        ("bema:start=3", "bema-start=3", kernels.BEMA(start=3)),
        ("late=two_point:100", "late", kernels.TwoPoint(100)),
        ("Uniform(start=3)", "Uniform-start=3", kernels.Uniform(3)),
        ('x={"kernel": "TwoPoint", "gap": 3}', "x", kernels.TwoPoint(3)),
        ("c=Custom([1.5, -0.5])", "c", kernels.Custom([1.5, -0.5])),
    ],
)
def test_kernels_in_every_form(text, name, kernel):
    assert kernel_parsing.parse_average(text) == (name, kernel)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], ["--workdir", "--snapshots"]),
        (["--snapshots={folder}"], ["--kernel", "--advise"]),
        (["--snapshots={folder}", "--kernel=ema:1.5"], ["decay", "1.5"]),
        (["--snapshots={folder}", "--kernel=emma:0.5"], ["'emma'", "'ema'"]),
        (["--snapshots={folder}", "--kernel=0.99"], ["`--kernel` must be like ema:0.99"]),
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
        (["--snapshots={folder}", "--schedule=0.05:20", "--base=0.1"], ["shape='0.05'"]),
        (["--snapshots={folder}/none", "--kernel=ema:0.5"], ["no folder of snapshots"]),
        (["--workdir={folder}/none", "--kernel=ema:0.5"], ["there is no folder"]),
        (["--workdir={folder}", "--kernel=ema:0.5"], ["--config.snapshots.every="]),
        (["--workdir={folder}", "--advise", "--kernel=ema:0.5"], ["--advise considers all"]),
        (["--snapshots={folder}", "--kernel=ema:0.5", "--output=a.keras"], ["--output", "--files"]),
        (
            ["--snapshots={folder}", "--kernel=ema:0.5", "--batch_norm_data=none.npz"],
            ["--batch_norm_data: there is no file 'none.npz'"],
        ),
        (["--files", "a.keras"], ["--output=FILE, --evaluate or both"]),
        (["--files", "a.pt", "--output=a.npz"], ["must end in .keras, ", "'a.pt'"]),
        (["--files", "a.keras", "b.npz", "--output=a.npz"], ["there is no file 'a.keras'"]),
        (["--files", "{folder}/one.npz", "--output=a.npz"], ["at least two files"]),
        ([*TWO, "--output=a.h5"], ["must end in", "'a.h5'"]),
        ([*TWO, "--output=/nowhere/a.keras"], ["there is no folder '/nowhere'"]),
        ([*TWO, "--output=a.keras"], ["--model=FILE.keras is needed to write"]),
        ([*TWO, "--soup=loss", "--output=a.npz"], ["need --data=FILE.npz"]),
        (
            [*TWO, "--soup=oddness", f"--data={__file__}", "--output=a.npz"],
            ["--metric_mode=min or max", "'oddness'"],
        ),
        ([*TWO, "--kernel=swa:5", "--output=a.npz"], ["beyond the run of 1"]),
        ([*TWO, "--kernel=ema:0.5", "--kernel=swa:0", "--output=a.npz"], ["at most one of"]),
        ([*TWO, "--workdir=runs", "--output=a.npz"], ["--workdir does not go with --files"]),
        ([*TWO, "--import=no_such_module", "--output=a.npz"], ["--import: 'no_such_module'"]),
    ],
)
def test_mistakes_are_one_clear_line(refuses, folder, args, expected):
    error = refuses(*(arg.format(folder=folder) for arg in args))
    for text in expected:
        assert text in error


def test_a_damaged_snapshot_is_named(refuses, tmp_path):
    spec = VariableSpec("w", (2,), "float32", "trainable")
    writer = SnapshotWriter(tmp_path, [spec], Timetable(1))
    for step in range(4):
        writer.write(step, [np.zeros(2, np.float32)])
    path = Snapshots(tmp_path).path(2)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    error = refuses(f"--snapshots={tmp_path}", "--kernel=window:3", late=True)
    assert "step_000000002.safetensors is damaged" in error


def test_averages_without_a_model_say_what_they_are(average, folder, tmp_path):
    code, out, error = average(
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


def test_kernels_may_count_snapshots(average, folder, tmp_path):
    code, _, error = average(
        f"--snapshots={folder}", "--kernel=window:3", "--per=snapshot", "--last=90",
        f"--json={tmp_path}/rows.jsonl",
    )  # fmt: skip
    assert code == 0, error
    (row,) = records.read_rows(tmp_path / "rows.jsonl")
    assert row["exact"] and row["distance"] == 10.0 and row["step"] == 90


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


def test_a_model_of_one_s_own_from_end_to_end(average, own_model):
    import keras

    path, x, y = own_model
    given = [
        f"--snapshots={path}/snapshots",
        f"--model={path}/model.keras",
        f"--data={path}/data.npz",
    ]
    code, out, error = average(
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
    code, out, error = average(
        *given, "--kernel=tail=window:5,every=4", f"--export={path}/out",
        "--export_format=safetensors",
    )  # fmt: skip
    assert code == 0 and f"written: {path / 'out' / 'tail.safetensors'}" in out, error
    by_name = weight_files.read_named(path / "out" / "tail.safetensors")
    assert len(by_name) == len(loaded.weights)
    for array, kept in zip(by_name.values(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(array, kept, rtol=1e-5, atol=1e-6)
    hidden = keras.Model(loaded.input, loaded.layers[1].output)(x)
    norm = loaded.layers[2]
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(norm.moving_mean), np.mean(hidden, axis=0), rtol=1e-4, atol=1e-5
    )
    metrics = loaded.evaluate(x, y, verbose=0, return_dict=True)
    assert rows["tail"]["loss"] == pytest.approx(metrics["loss"], rel=1e-4)

    code, out, error = average(
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


def test_snapshots_of_another_model_are_refused(refuses, own_model, folder):
    path, _, _ = own_model
    error = refuses(
        f"--snapshots={folder}",
        f"--model={path}/model.keras",
        f"--data={path}/data.npz",
        "--kernel=two_point:10",
        "--evaluate",
    )
    assert "are not of the model" in error


# --- Weight files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], [2.0, 4.0]),
        (["--kernel=ema:0.25"], [2.5, 5.0]),
        (["--kernel=c=Custom([2,-1])"], [5, 10]),
    ],
)
def test_files_of_arrays_need_no_model(average, refuses, folder, tmp_path, more, expected):
    files = [f"{folder}/one.npz", f"{folder}/two.npz"]
    code, out, error = average("--files", *files, *more, f"--output={tmp_path}/mean.npz")
    assert code == 0, error
    with np.load(tmp_path / "mean.npz") as found:
        np.testing.assert_array_equal(found["a"], expected)
    code, out, error = average("--files", *files, *more, f"--output={tmp_path}/mean.safetensors")
    assert code == 0, error
    found = weight_files.read_named(tmp_path / "mean.safetensors")
    np.testing.assert_array_equal(found["a"], expected)
    files = [f"{tmp_path}/mean.npz", f"{tmp_path}/mean.safetensors"]
    code, out, error = average("--files", *files, f"--output={tmp_path}/again.npz")
    assert code == 0, error
    with np.load(tmp_path / "again.npz") as found:
        np.testing.assert_array_equal(found["a"], expected)
        assert found["count"] == 5 and found["count"].dtype.kind == "i"
    assert "2 of 2 files" in out
    files[1] = f"{folder}/other.npz"
    error = refuses("--files", *files, *more, f"--output={tmp_path}/mean.npz", late=True)
    assert "other.npz holds the arrays ['b'" in error


@pytest.fixture(scope="module")
def ingredients(own_model, tmp_path_factory):
    """Three snapshots of the model in three kinds of files, a bad fourth; held-out data."""
    import keras

    path, x, y = own_model
    folder = tmp_path_factory.mktemp("files")
    model = keras.saving.load_model(path / "model.keras")
    snapshots = Snapshots(path / "snapshots")
    rng = np.random.default_rng(5)
    weights = []
    for name, step in (("a.keras", 64), ("b.weights.h5", 96), ("c.npz", 128), ("bad.npz", 0)):
        arrays = snapshots.read(step)
        if name == "bad.npz":
            arrays[:4] = [9.0 * rng.normal(size=a.shape) for a in arrays[:4]]
        held = dict(zip([id(v) for v in model.trainable_variables], arrays, strict=False))
        held |= {id(v): a for v, a in zip(model.non_trainable_variables, arrays[6:], strict=False)}
        model.set_weights([held[id(v)] for v in model.weights])
        weights.append(model.get_weights())
        if name.endswith(".keras"):
            model.save(folder / name)
        elif name.endswith(".h5"):
            model.save_weights(folder / name)
        else:
            np.savez(folder / name, *model.get_weights())
    np.savez(folder / "train.npz", x=x[:128])
    np.savez(folder / "held_out.npz", x=x[128:], y=y[128:])
    return folder, weights, x, y


def in_model(path, weights, x=None):
    """A model with the weights, batch norm recomputed on x by hand."""
    import keras

    model = keras.saving.load_model(path)
    model.set_weights(weights)
    if x is not None:
        hidden = keras.ops.convert_to_numpy(keras.Model(model.input, model.layers[1].output)(x))
        model.layers[2].moving_mean.assign(hidden.mean(0))
        model.layers[2].moving_variance.assign(hidden.var(0))
    return model


@pytest.mark.parametrize(
    "output", ["mean.keras", "mean.weights.h5", "mean.npz", "mean.safetensors"]
)
@pytest.mark.parametrize("recompute", [True, False])
def test_files_of_three_kinds_are_averaged(average, ingredients, tmp_path, output, recompute):
    import keras

    folder, weights, x, _ = ingredients
    files = [folder / name for name in ("a.keras", "b.weights.h5", "c.npz")]
    more = [f"--batch_norm_data={folder}/train.npz"] if recompute else []
    code, out, error = average("--files", *files, f"--output={tmp_path / output}", *more)
    assert code == 0, error
    mean = [np.mean(arrays, 0) for arrays in zip(*weights[:3], strict=True)]
    expected = in_model(folder / "a.keras", mean, x[:128] if recompute else None)
    if output.endswith(".npz"):
        with np.load(tmp_path / output) as found:
            found = in_model(folder / "a.keras", [found[v.path] for v in expected.weights])
    elif output.endswith(".safetensors"):
        found = in_model(folder / "a.keras", weight_files.read_weights(tmp_path / output, expected))
    elif output.endswith(".keras"):
        found = keras.saving.load_model(tmp_path / output)
    else:
        found = in_model(folder / "a.keras", weights[0])
        found.load_weights(tmp_path / output)
    for one, other in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    said = "recompute(128 examples)" if recompute else "average; --batch_norm_data=FILE.npz"
    assert f"batch-norm statistics: {said}" in out


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_greedy_soup_is_that_of_its_recipe(average, ingredients, tmp_path, metric):
    """Best first, each if the metric gets no worse, written out again by hand."""
    folder, weights, x, y = ingredients
    files = [folder / name for name in ("bad.npz", "a.keras", "b.weights.h5", "c.npz")]
    weights = [weights[3], *weights[:3]]

    def measure(chosen):
        mean = [np.mean(arrays, 0) for arrays in zip(*(weights[i] for i in chosen), strict=True)]
        model = in_model(folder / "a.keras", mean, x[:128])
        return model.evaluate(x[128:], y[128:], verbose=0, return_dict=True)[metric]

    sign = 1.0 if metric == "loss" else -1.0
    order = sorted(range(4), key=lambda i: sign * measure([i]))
    soup = [order[0]]
    for index in order[1:]:
        if sign * measure([*soup, index]) <= sign * measure(soup):
            soup.append(index)
    code, out, error = average(
        "--files", *files, f"--soup={metric}", f"--data={folder}/held_out.npz",
        f"--batch_norm_data={folder}/train.npz", f"--output={tmp_path}/soup.npz", "--evaluate",
    )  # fmt: skip
    assert code == 0, error
    assert 0 not in soup and f"soup: {len(soup)} of 4 files" in out
    assert out.count("added") == len(soup) - 1 and "bad.npz: " in out and "left out" in out
    mean = [np.mean(arrays, 0) for arrays in zip(*(weights[i] for i in soup), strict=True)]
    expected = in_model(folder / "a.keras", mean, x[:128])
    with np.load(tmp_path / "soup.npz") as found:
        for variable in expected.weights:
            np.testing.assert_allclose(found[variable.path], variable, rtol=1e-4, atol=1e-5)
    row = next(line for line in out.splitlines() if line.startswith("soup  "))
    assert f"{metric} {measure(soup):.4f}" in row


def test_unknown_metrics_and_foreign_files_are_one_clear_line(refuses, ingredients, folder):
    here = ingredients[0]
    files = ["--files", here / "a.keras", here / "c.npz"]
    data = f"--data={here}/held_out.npz"
    error = refuses(*files, "--soup=f1", data, "--evaluate")
    assert "`--soup` must be one of ['accuracy', 'loss']" in error
    error = refuses("--files", here / "a.keras", folder / "one.npz", "--evaluate", data, late=True)
    assert "one.npz does not hold weights of the model" in error
    error = refuses("--files", here / "b.weights.h5", here / "c.npz", "--evaluate", data)
    assert "--model=FILE.keras is needed" in error


LAYER = """
import keras

@keras.saving.register_keras_serializable("own")
class Twice(keras.layers.Layer):
    def call(self, inputs):
        return 2.0 * inputs
"""


def test_models_with_layers_and_schedules_of_one_s_own_load(
    average, refuses, tmp_path, monkeypatch
):
    import keras

    from tf_lrtraj import rates, schedules
    from tf_lrtraj.averaging import SnapshotRecorder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "layers_of_mine.py").write_text(LAYER)
    scope = {}
    exec(LAYER, scope)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1), scope["Twice"]()])
    rate = rates.Warmup(keras.optimizers.schedules.CosineDecay(0.1, 8), 2)
    model.compile(keras.optimizers.SGD(schedules.RateSchedule(rate)), "mse")
    x = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    recorder = SnapshotRecorder("snapshots")
    model.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0, callbacks=[recorder])
    model.save("model.keras")
    np.savez("data.npz", x=x, y=x[:, :1])
    np.savez("statistics.npz", x=x[:16])
    given = ["--snapshots=snapshots", "--model=model.keras", "--data=data.npz", "--evaluate",
             "--kernel=window:3", "--batch_norm_data=statistics.npz"]  # fmt: skip
    del keras.saving.get_custom_objects()["own>Twice"]
    assert "a class 'Twice' that Keras does not know. Give --imp" in refuses(*given)
    code, _, error = average(*given, "--import=layers_of_mine", "--export=out")
    assert code == 0, error
    snapshots = Snapshots("snapshots")
    mean = np.mean([snapshots.read(step)[0] for step in (6, 7, 8)], axis=0)
    loaded = keras.saving.load_model("out/window-3.keras")
    np.testing.assert_allclose(loaded.get_weights()[0], mean, rtol=1e-6)
    assert loaded.optimizer._learning_rate.rate == rate


def test_batch_norm_may_have_data_of_its_own(average, own_model, tmp_path):
    path, x, _ = own_model
    np.savez(tmp_path / "statistics.npz", x=x[:64])
    code, out, error = average(
        f"--snapshots={path}/snapshots", f"--model={path}/model.keras", f"--data={path}/data.npz",
        f"--batch_norm_data={tmp_path}/statistics.npz", "--kernel=tail=window:5,every=4",
        f"--export={tmp_path}", "--evaluate",
    )  # fmt: skip
    assert code == 0, error
    assert "recompute(64 examples of batch_norm_data)" in out
    import keras

    loaded = keras.saving.load_model(tmp_path / "tail.keras")
    expected = in_model(tmp_path / "tail.keras", loaded.get_weights(), x[:64])
    for one, other in zip(loaded.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
