"""Files of snapshots: other tools open them, old folders are read on, kills and faults leave them
whole, and training waits for a copy only."""

import json
import os
import signal
import threading
import warnings

import keras
import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, flip_bit, run_python, start_python, write_old_snapshots

from tf_lrtraj.averaging import SnapshotRecorder, Snapshots
from tf_lrtraj.averaging.snapshot_recorder import ModelSnapshots
from tf_lrtraj.averaging.snapshots import SnapshotWriter, Timetable, VariableSpec, array_names
from tf_lrtraj.records import RecordError, tensor_files

DTYPES = ("float32", "float64", "float16", "bfloat16")
SPECS = [
    *(VariableSpec(f"{dtype}/kernel", (5, 7), dtype, "trainable") for dtype in DTYPES),
    VariableSpec("gain", (), "float32", "trainable"),
    VariableSpec("nothing", (0, 3), "float32", "trainable"),
    VariableSpec("zeros", (4,), "float32", "trainable"),
    VariableSpec("norm/mean", (3,), "float32", "statistic"),
    VariableSpec("norm/variance", (3,), "float64", "statistic"),
]


def values(seed):
    rng = np.random.default_rng(seed)
    types = {"bfloat16": ml_dtypes.bfloat16}
    arrays = [np.asarray(rng.normal(size=s.shape), types.get(s.dtype, s.dtype)) for s in SPECS]
    arrays[6][...] = 0
    return arrays


@pytest.fixture(params=["exact", "int16", "int8"])
def encoding(request):
    return request.param


def integers(array, encoding):
    """(integers, scale) that stand for an array, from the definition."""
    wide = np.asarray(array, np.float64)
    largest = {"int16": 32767, "int8": 127}[encoding]
    scale = np.abs(wide).max(initial=0.0) / largest or 1.0
    return np.rint(wide / scale).astype(encoding), scale


def test_each_type_is_stored_as_stated(encoding, tmp_path):
    SnapshotWriter(tmp_path, SPECS, Timetable(1), encoding).write(3, values(3))
    snapshots = Snapshots(tmp_path)
    for spec, read, original in zip(SPECS, snapshots.read(3), values(3), strict=True):
        assert (read.shape, read.dtype) == (spec.shape, spec.read_dtype)
        if encoding == "exact" or spec.role == "statistic":
            assert read.tobytes() == np.asarray(original, spec.read_dtype).tobytes()
        else:
            stored, scale = integers(original, encoding)
            expected = np.multiply(stored, scale, dtype=spec.read_dtype, casting="same_kind")
            assert read.tobytes() == expected.tobytes()


def test_other_tools_open_them(encoding, tmp_path):
    SnapshotWriter(tmp_path, SPECS, Timetable(1), encoding).write(3, values(3))
    library = pytest.importorskip("safetensors.numpy")
    found = library.load_file(tmp_path / "step_000000003.safetensors")
    encoded = [s.name for s in SPECS if encoding != "exact" and s.role == "trainable"]
    assert found.keys() == {s.name for s in SPECS} | {f"{name}_scale" for name in encoded}
    for spec, original in zip(SPECS, values(3), strict=True):
        stored = found[spec.name]
        if spec.name in encoded:
            expected, scale = integers(original, encoding)
            assert found[f"{spec.name}_scale"] == scale
            assert stored.dtype == encoding
        else:
            expected = original
        assert (stored.dtype, stored.shape) == (expected.dtype, expected.shape)
        assert stored.tobytes() == expected.tobytes()
    with pytest.importorskip("safetensors").safe_open(
        tmp_path / "step_000000003.safetensors", "np"
    ) as file:
        told = file.metadata()
    expected = {"writer": "tf_lrtraj", "step": "3", "encoding": encoding}
    assert told == {**expected, "crc32": told["crc32"]}


@pytest.mark.parametrize("bit", [0, 7])
def test_a_changed_bit_anywhere_is_seen(bit, encoding, tmp_path):
    SnapshotWriter(tmp_path, SPECS[:1] + SPECS[-1:], Timetable(1), encoding).write(
        3, values(3)[:1] + values(3)[-1:]
    )
    path, snapshots = tmp_path / "step_000000003.safetensors", Snapshots(tmp_path)
    before = [array.tobytes() for array in snapshots.read(3)]
    for place in range(path.stat().st_size):
        flip_bit(path, place, bit)
        with pytest.raises(RecordError, match=r"step_000000003\.safetensors is damaged"):
            snapshots.read(3)
        flip_bit(path, place, bit)
    assert [array.tobytes() for array in snapshots.read(3)] == before


def rewritten(path, metadata=None, tensors=None):
    with tensor_files.TensorFile(path) as file:
        held = {name: file.read(name) for name in file.tensors}
        told = dict(file.metadata)
    tensor_files.write_tensors(path, {**held, **(tensors or {})}, {**told, **(metadata or {})})


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": {"step": "4"}},
        {"metadata": {"crc32": "-1"}},
        {"metadata": {"crc32": "7"}},
        {"metadata": {"encoding": "int16"}},
        {"tensors": {"more": np.zeros(1)}},
        {"tensors": {"gain": np.float32([1.0])}},
        {"tensors": {"gain_scale": np.float64(0.0)}},
        {"tensors": {"gain_scale": np.float64(np.nan)}},
        {"tensors": {"gain_scale": np.float64(1e300)}},
        {"tensors": {"gain_scale": np.float32(1.0)}},
    ],
    ids=str,
)
def test_a_sound_file_that_does_not_go_with_the_index_is_refused(changes, tmp_path):
    SnapshotWriter(tmp_path, SPECS, Timetable(1), "int8").write(3, values(3))
    rewritten(tmp_path / "step_000000003.safetensors", **changes)
    with pytest.raises(RecordError, match=r"step_000000003\.safetensors is damaged") as caught:
        Snapshots(tmp_path).read(3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "encoding", "expected"),
    [
        (["a", "b"], "int8", ["a", "b"]),
        (["a", "a", "a"], "exact", ["a", "a#2", "a#3"]),
        (["a", "a#2", "a"], "exact", ["a", "a#2", "a#3"]),
        (["a", "a_scale"], "exact", ["a", "a_scale"]),
        (["a", "a_scale"], "int8", ["a", "a_scale#2"]),
        (["a_scale", "a"], "int8", ["a_scale", "a#2"]),
        (["__metadata__"], "exact", ["__metadata__#2"]),
    ],
)
def test_arrays_have_names_of_their_own(names, encoding, expected, tmp_path):
    specs = [VariableSpec(name, (1,), "float32", "trainable") for name in names]
    assert array_names(specs, encoding) == expected
    SnapshotWriter(tmp_path, specs, Timetable(1), encoding).write(
        0, [np.float32([i]) for i in range(len(specs))]
    )
    assert [float(a[0]) for a in Snapshots(tmp_path).read(0)] == list(map(float, range(len(specs))))


# Old folders ------------------------------------------------------------------------------------


def write_old(folder, encoding, steps):
    variables = [(s.name, s.shape, s.dtype, s.role) for s in SPECS]
    write_old_snapshots(folder, variables, {step: values(step) for step in steps}, encoding)


def test_old_folders_are_read_to_the_bit(encoding, tmp_path):
    write_old(tmp_path / "old", encoding, (0, 5))
    SnapshotWriter(tmp_path / "new", SPECS, Timetable(1), encoding).write(5, values(5))
    old, new = Snapshots(tmp_path / "old"), Snapshots(tmp_path / "new")
    assert old.steps.tolist() == [0, 5] and old.variables == new.variables == SPECS
    assert_same_bits(old.read(5), new.read(5))
    assert old.error_bound(5) == new.error_bound(5)
    pieces = zip(old.chunks(5, 4), new.chunks(5, 4), strict=True)
    assert all(np.array_equal(one, other) for one, other in pieces)
    if encoding == "exact":
        assert old.checksum(5) == new.checksum(5)


def test_old_folders_are_gone_on_with(encoding, tmp_path):
    folder = tmp_path / "old"
    write_old(folder, encoding, range(4))
    expected = [Snapshots(folder).read(step) for step in range(4)]
    renamed = [VariableSpec(f"{s.name}_7", s.shape, s.dtype, s.role) for s in SPECS]
    writer = SnapshotWriter(folder, renamed, Timetable(1), encoding)
    writer.forget_after(2)
    for step in (2, 3):
        writer.write(step, values(step))
    snapshots = Snapshots(folder)
    assert snapshots.variables == SPECS
    assert json.loads((folder / "index.json").read_text())["format"] == 2
    assert [snapshots.path(step).suffix for step in range(4)] == [".snap"] * 2 + [
        ".safetensors"
    ] * 2
    assert sorted(path.name for path in folder.glob("*2.*")) == ["step_000000002.safetensors"]
    for step in range(4):
        assert_same_bits(snapshots.read(step), expected[step])


def test_old_files_that_are_damaged_are_named(encoding, tmp_path):
    write_old(tmp_path / "old", encoding, [1])
    path, snapshots = tmp_path / "old" / "step_000000001.snap", Snapshots(tmp_path / "old")
    whole = path.read_bytes()
    for content in (whole[:9], whole[:-1], whole + b"x", b"x" + whole[1:], whole[:-1] + b"\x7f"):
        path.write_bytes(content)
        with pytest.raises(RecordError, match=r"step_000000001\.snap"):
            snapshots.read(1)
    path.write_bytes(whole)
    assert len(snapshots.read(1)) == len(SPECS)


def test_old_files_are_dropped_by_a_timetable(tmp_path):
    folder = tmp_path / "old"
    write_old(folder, "exact", [0])
    index = json.loads((folder / "index.json").read_text())
    index.update(limit=2, when_full="drop_oldest")
    (folder / "index.json").write_text(json.dumps(index))
    writer = SnapshotWriter(folder, SPECS, Timetable(1, 0, 2, "drop_oldest"))
    for step in (1, 2):
        writer.write(step, values(step))
    assert sorted(path.name for path in folder.glob("step_*")) == [
        "step_000000001.safetensors",
        "step_000000002.safetensors",
    ]


# Training ---------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
Y = X.sum(1, keepdims=True)
WAIT = 30.0


def network():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization()]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    return model


def fit(*callbacks, model=None, epochs=2, **options):
    model = network() if model is None else model
    options = {"batch_size": 4, "verbose": 0, "shuffle": False, **options}
    model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **options)


def doing(function):
    return keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: function(batch))


class Slow:
    """Files of snapshots wait until they are let through, or fail."""

    def __init__(self, monkeypatch):
        self.reached, self.opened = threading.Semaphore(0), threading.Semaphore(0)
        self.failure, self.free = None, False
        real = tensor_files.write_tensors

        def write(path, *arguments):
            self.reached.release()
            assert self.free or self.opened.acquire(timeout=WAIT)
            if self.failure is not None:
                raise OSError(self.failure, os.strerror(self.failure), str(path))
            real(path, *arguments)

        monkeypatch.setattr("tf_lrtraj.averaging.snapshots.write_tensors", write)


@pytest.fixture
def slow(monkeypatch):
    return Slow(monkeypatch)


def test_training_goes_on_while_a_snapshot_is_written(slow, tmp_path):
    made = []

    def let_through(batch):
        made.append(batch)
        if len(made) == 6:  # nothing is written before
            assert not list((tmp_path / "s").glob("step_*"))
            slow.free = True
            slow.opened.release(10)

    fit(SnapshotRecorder(tmp_path / "s", every=5), doing(let_through))
    assert Snapshots(tmp_path / "s").steps.tolist() == [0, 5, 10]


def test_what_is_written_later_are_the_weights_of_the_step(slow, tmp_path):
    seen, model = {}, network()

    def keep(batch):
        step = int(model.optimizer.iterations)
        seen[step] = [np.array(w) for w in model.get_weights()[:2]]
        if step >= 10:
            slow.free = True
            slow.opened.release(10)

    fit(SnapshotRecorder(tmp_path / "s", every=5, start=5), doing(keep), model=model)
    snapshots = Snapshots(tmp_path / "s")
    assert snapshots.steps.tolist() == [5, 10]
    for step in (5, 10):
        assert_same_bits(snapshots.read(step)[:2], seen[step])


@pytest.mark.parametrize("number", [28, 13])
def test_a_file_that_cannot_be_written_ends_training_at_the_next_step(slow, number, tmp_path):
    slow.failure, slow.free, steps = number, True, []
    recorder = SnapshotRecorder(tmp_path / "s", every=4, start=4)

    def wait(batch):
        steps.append(batch)
        if len(steps) == 4:
            recorder._snapshots._background.finish()

    path = str(tmp_path / "s" / "step_000000004.safetensors")
    with pytest.raises(OSError) as caught:
        fit(recorder, doing(wait))
    assert (caught.value.errno, caught.value.filename) == (number, path)
    assert len(steps) == 4  # the fifth raised before this callback was called
    slow.failure = None
    fit(recorder)  # told once
    assert Snapshots(tmp_path / "s").steps.tolist() == [4, 8, 12]


def test_a_failure_in_the_last_steps_is_raised_at_the_end(slow, tmp_path):
    slow.failure = 28
    threading.Timer(0.3, slow.opened.release).start()
    with pytest.raises(OSError, match=r"step_000000012\.safetensors"):
        fit(SnapshotRecorder(tmp_path / "s", every=100, start=12))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_was_taken_is_there_after_an_exception(slow, error, tmp_path):
    def interrupt(batch):
        if batch == 4:
            threading.Timer(0.3, slow.opened.release, [10]).start()
            raise error

    recorder = SnapshotRecorder(tmp_path / "s", every=4)
    with pytest.raises(error):
        fit(recorder, doing(interrupt))
    assert Snapshots(tmp_path / "s").steps.tolist() == [0, 4]  # waits for them
    slow.free = True
    fit(recorder)
    assert Snapshots(tmp_path / "s").steps.tolist() == [0, 4, 8, 12]


def test_memory_is_for_two_snapshots(slow, tmp_path):
    model = network()
    snapshots = ModelSnapshots(model, tmp_path / "s", Timetable(1))
    snapshots.write(0)
    snapshots.write(1)
    third = threading.Thread(target=snapshots.write, args=(2,))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    slow.free = True
    slow.opened.release(10)
    third.join(WAIT)
    snapshots.wait()
    assert Snapshots(tmp_path / "s").steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_models_of_other_types_are_kept_to_the_bit(dtype, tmp_path):
    layer = keras.layers.Dense(2, dtype=dtype)
    model = keras.Sequential([keras.Input((3,)), layer])
    with ModelSnapshots(model, tmp_path, Timetable(1)) as snapshots:
        snapshots.write(0)
    read = Snapshots(tmp_path)
    assert {spec.dtype for spec in read.variables} == {dtype}
    kernel = np.asarray(keras.ops.convert_to_numpy(layer.kernel), read.variables[0].read_dtype)
    assert np.any(kernel) and read.read(0)[0].tobytes() == kernel.tobytes()


@pytest.mark.parametrize("save_freq", ["epoch", 3])
@pytest.mark.parametrize("backup_first", [False, True])
def test_all_snapshots_are_there_when_a_backup_is_saved(
    save_freq, backup_first, tmp_path, monkeypatch
):
    """So that a run that is killed then and goes on from the backup has them all."""
    folder, steps = tmp_path / "s", []
    real = tensor_files.write_tensors

    def late(path, *arguments):
        threading.Event().wait(0.05)
        real(path, *arguments)

    monkeypatch.setattr("tf_lrtraj.averaging.snapshots.write_tensors", late)

    class Backup(keras.callbacks.BackupAndRestore):
        def _save_model(self):
            # On JAX `self.model` brings the variables up to date.
            step = int(self.model.optimizer.iterations)
            there = {path.name for path in folder.glob("step_*")}
            # What is due at this very step is taken again by a run that goes on from here.
            due = range(step if backup_first else step + 1)
            steps.append(step)
            assert there >= {f"step_{one:09d}.safetensors" for one in due}
            super()._save_model()

    callbacks = [SnapshotRecorder(folder), Backup(tmp_path / "b", save_freq=save_freq)]
    fit(*(reversed(callbacks) if backup_first else callbacks))
    assert steps == ([6, 12] if save_freq == "epoch" else [3, 6, 9, 12])


def test_weights_that_are_not_finite_are_told_of_and_not_written(tmp_path):
    model = network()
    with ModelSnapshots(model, tmp_path, Timetable(1)) as snapshots:
        snapshots.write(0, only_finite=True)
        model.set_weights([np.full(w.shape, np.inf) for w in model.get_weights()])
        snapshots.write(1, only_finite=True)
        with pytest.warns(UserWarning, match="at step 1 are not finite, so no snapshot"):
            snapshots.wait()
        with warnings.catch_warnings(action="error"):
            snapshots.check()
    assert Snapshots(tmp_path).steps.tolist() == [0]


KILLED = """
import sys, numpy as np
from tf_lrtraj.averaging.background_writer import BackgroundWriter
from tf_lrtraj.averaging.snapshots import SnapshotWriter, Timetable, VariableSpec

spec = VariableSpec("w", (500_000,), "float32", "trainable")
writer = SnapshotWriter(sys.argv[1], [spec], Timetable(1))
background = BackgroundWriter(sys.argv[1], [[], []])
for step in range(10**6):
    values = [np.full(500_000, step, np.float32)]
    background.write(lambda _: None, lambda _, s=step, v=values: writer.write(s, v))
    print(step, flush=True)
"""


def test_a_kill_leaves_whole_files(tmp_path):
    dice = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / str(number)
        process = start_python("-c", KILLED, str(folder))
        for _ in range(4):
            process.stdout.readline()
        threading.Event().wait(dice.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        snapshots = Snapshots(folder)
        assert snapshots.steps.tolist() == list(range(len(snapshots)))
        for step in snapshots.steps:
            assert np.all(snapshots.read(step)[0] == step)
        writer = SnapshotWriter(folder, snapshots.variables, Timetable(1))
        writer.forget_after(1)
        left = sorted(path.name for path in folder.iterdir())
        assert left == ["index.json", "step_000000000.safetensors", "step_000000001.safetensors"]


STOPPED = """
import os, signal, sys, numpy as np, keras
from tf_lrtraj.averaging import SnapshotRecorder

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told to ignore it
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
stop = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: {what})
model.fit(np.ones((24, 3)), np.ones((24, 1)), batch_size=4, epochs=1, verbose=0,
          callbacks=[SnapshotRecorder(sys.argv[1], every=2), stop])
"""


def test_a_script_that_ctrl_c_ends_leaves_every_snapshot(tmp_path):
    code = STOPPED.format(what="os.kill(os.getpid(), 2) if batch == 4 else None")
    done = run_python("-c", code, str(tmp_path / "s"), check=False)
    assert "KeyboardInterrupt" in done.stderr
    assert Snapshots(tmp_path / "s").steps.tolist() == [0, 2, 4]
