"""Snapshots on disk: when they are taken, that they come back as they were, and damage."""

import json

import keras
import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, cut_short, with_changed_byte
from keras_helpers import Iterates

from tf_lrtraj.averaging import SnapshotRecorder, Snapshots
from tf_lrtraj.averaging.snapshots import SnapshotWriter, Timetable, VariableSpec
from tf_lrtraj.records import RecordError

SPECS = [
    VariableSpec("dense/kernel", (5, 7), "float32", "trainable"),
    VariableSpec("dense/scale", (), "bfloat16", "trainable"),
    VariableSpec("wide/kernel", (3,), "float64", "trainable"),
    VariableSpec("norm/mean", (4,), "float32", "statistic"),
]


def values(seed):
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(5, 7)).astype(np.float32),
        np.asarray(rng.normal(), ml_dtypes.bfloat16),
        rng.normal(size=3),
        rng.normal(size=4).astype(np.float32),
    ]


def taken(timetable, last):
    """What a run of `last` steps leaves, one step at a time."""
    steps = []
    for step in range(last + 1):
        if timetable.due(step):
            steps = timetable.kept([*steps, step], step)
    return steps


@pytest.mark.parametrize(
    "timetable",
    [
        Timetable(1),
        Timetable(7, start=5),
        Timetable(3, start=4, limit=5),
        Timetable(3, limit=4, when_full="drop_oldest"),
        Timetable(1, limit=2),
    ],
)
def test_timetable(timetable):
    for last in range(90):
        steps = taken(timetable, last)
        assert timetable.limit is None or len(steps) <= timetable.limit
        later = next(s for s in range(last + 1, 10_000) if timetable.due(s))
        assert timetable.next_due(last) == later
        if last >= timetable.start and timetable.when_full == "thin":
            spacing = timetable.spacing(last)
            if timetable.due(last):
                assert steps == list(range(timetable.start, last + 1, spacing))
            full = timetable.limit is not None and spacing > timetable.every
            assert not full or len(steps) > timetable.limit // 2  # never thinner than needed


def test_exact_snapshots_come_back_to_the_bit(tmp_path):
    writer = SnapshotWriter(tmp_path, SPECS, Timetable(10))
    for step in (0, 10, 20):
        writer.write(step, values(step))
    snapshots = Snapshots(tmp_path)
    assert snapshots.steps.tolist() == [0, 10, 20] and len(snapshots) == 3
    assert snapshots.variables == SPECS
    assert (snapshots.num_weights, snapshots.num_trainable) == (43, 3)
    assert snapshots.nbytes == 35 * 4 + 2 + 3 * 8 + 4 * 4
    for step in (0, 10, 20):
        for read, original, spec in zip(snapshots.read(step), values(step), SPECS, strict=True):
            assert read.dtype == spec.read_dtype and read.shape == spec.shape
            np.testing.assert_array_equal(read, np.asarray(original, spec.read_dtype))
        pieces = np.concatenate(list(snapshots.chunks(step, size=4)))
        whole = np.concatenate([value.ravel() for value in snapshots.read(step)])
        np.testing.assert_array_equal(pieces, whole)
        assert snapshots.error_bound(step) == 0.0


@pytest.mark.parametrize(("encoding", "largest"), [("int16", 32767), ("int8", 127)])
def test_integers_err_by_half_a_scale_at_most(tmp_path, encoding, largest):
    writer = SnapshotWriter(tmp_path, SPECS, Timetable(1), encoding)
    writer.write(3, values(3))
    snapshots = Snapshots(tmp_path)
    bounds = []
    for read, original, spec in zip(snapshots.read(3), values(3), SPECS, strict=True):
        original = np.asarray(original, np.float64)
        bound = 0.0 if spec.role == "statistic" else np.abs(original).max() / largest / 2
        assert np.abs(read - original).max() <= bound * (1 + 1e-6)
        bounds.append(bound)
    assert snapshots.error_bound(3) == pytest.approx(max(bounds))
    assert np.abs(snapshots.read(3)[0] - values(3)[0]).max() > 0  # it does round


def test_a_variable_of_zeros_stays_zero(tmp_path):
    writer = SnapshotWriter(tmp_path, SPECS[:1], Timetable(1), "int8")
    writer.write(0, [np.zeros((5, 7), np.float32)])
    np.testing.assert_array_equal(Snapshots(tmp_path).read(0)[0], 0.0)
    with pytest.raises(ValueError, match="'dense/kernel' holds values that are not finite"):
        writer.write(1, [np.full((5, 7), np.nan, np.float32)])
    assert Snapshots(tmp_path).steps.tolist() == [0]


def test_only_what_the_timetable_keeps_is_on_disk(tmp_path):
    timetable = Timetable(2, limit=3)
    writer = SnapshotWriter(tmp_path, SPECS, timetable)
    for step in range(41):
        if timetable.due(step):
            writer.write(step, values(step))
        assert writer.steps() == taken(timetable, step)
    (tmp_path / ".step_000000099.safetensors.1.tmp").write_bytes(b"half")
    writer.forget_after(16)
    assert writer.steps() == [0, 16]
    assert not list(tmp_path.glob(".*"))


def test_damage_is_seen(tmp_path):
    writer = SnapshotWriter(tmp_path, SPECS, Timetable(1))
    writer.write(7, values(7))
    path = tmp_path / "step_000000007.safetensors"
    snapshots = Snapshots(tmp_path)
    for damage in (with_changed_byte, cut_short):
        for _ in damage(path):
            with pytest.raises(RecordError, match=r"step_000000007\.safetensors"):
                snapshots.read(7)
    assert len(snapshots.read(7)) == 4
    with pytest.raises(RecordError, match=r"no snapshot of step 8; the nearest are \[7\]"):
        snapshots.read(8)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 3},
        {"encoding": "zip"},
        {"variables": [{"name": 1}]},
        {"every": 0},
        {"start": "x"},
    ],
)
def test_a_damaged_index(tmp_path, change):
    SnapshotWriter(tmp_path, SPECS, Timetable(1)).write(0, values(0))
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, **change}))
    with pytest.raises(RecordError, match=r"index\.json"):
        Snapshots(tmp_path)


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(RecordError, match="no folder"):
        Snapshots(tmp_path / "nothing")
    SnapshotWriter(tmp_path, SPECS, Timetable(2))
    with pytest.raises(RecordError, match="no snapshots yet"):
        Snapshots(tmp_path)
    with pytest.raises(RecordError, match="another every"):
        SnapshotWriter(tmp_path, SPECS, Timetable(3))
    with pytest.raises(RecordError, match="another variables"):
        SnapshotWriter(tmp_path, SPECS[:2], Timetable(2))
    with pytest.raises(ValueError, match=r"`encoding` must be one of .*'zip'"):
        SnapshotWriter(tmp_path, SPECS, Timetable(2), "zip")
    with pytest.raises(ValueError, match=r"must have shape \(5, 7\)"):
        SnapshotWriter(tmp_path, SPECS, Timetable(2)).write(0, values(0)[::-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "`every` must be .* every=0"),
        ({"every": 1.5}, "`every` must be .* every=1.5"),
        ({"start": -1}, "`start` must be .* start=-1"),
        ({"limit": 1}, "`limit` must be .* limit=1"),
        ({"when_full": "stop"}, "`when_full` must be one of .*'stop'"),
    ],
)
def test_bad_timetables(arguments, message):
    with pytest.raises(ValueError, match=message):
        Timetable(**{"every": 1, **arguments})


# The callback -----------------------------------------------------------------------------------

INPUTS = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
TARGETS = INPUTS.sum(1, keepdims=True)


def network(**options):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization()]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mse", **options)
    return model


def iterates_of_all():
    """Keeps the weights and the statistics of batch norm, as snapshots do."""

    def variables(model):
        norm = model.layers[1]
        return [*model.trainable_variables, norm.moving_mean, norm.moving_variance]

    return Iterates(variables=variables)


def fit(model, *callbacks, epochs=2, **options):
    options = {"batch_size": 4, "verbose": 0, "shuffle": False, **options}
    model.fit(INPUTS, TARGETS, epochs=epochs, callbacks=callbacks, **options)


def test_recorder_writes_the_iterates(tmp_path):
    iterates = iterates_of_all()
    recorder = SnapshotRecorder(tmp_path / "snapshots", every=3, start=2)
    fit(network(), recorder, iterates)
    snapshots = Snapshots(tmp_path / "snapshots")
    assert snapshots.steps.tolist() == [2, 5, 8, 11]
    assert [v.role for v in snapshots.variables] == ["trainable"] * 6 + ["statistic"] * 2
    for step in snapshots.steps:
        assert_same_bits(snapshots.read(step), iterates.values[step])


def test_a_second_fit_goes_on_and_a_new_one_replaces_what_is_later(tmp_path):
    folder, model = tmp_path / "snapshots", network()
    recorder = SnapshotRecorder(folder, every=4)
    fit(model, recorder, epochs=1)
    fit(model, recorder, epochs=1)
    assert Snapshots(folder).steps.tolist() == [0, 4, 8, 12]
    old = Snapshots(folder).read(0)
    fit(network(), SnapshotRecorder(folder, every=4), epochs=1)
    assert Snapshots(folder).steps.tolist() == [0, 4]
    np.testing.assert_array_equal(Snapshots(folder).read(0)[0], old[0])


@pytest.mark.parametrize("how", ["initial_epoch", "BackupAndRestore"])
def test_a_fit_that_goes_on_needs_disk_for_what_is_left(tmp_path, monkeypatch, how):
    """Keras counts "epochs" from the first one ever, not from where this fit begins."""

    def callbacks():
        recorder = SnapshotRecorder(tmp_path / "snapshots")
        if how == "initial_epoch":
            return (recorder,)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        return recorder, backup

    model = network()
    fit(model, *callbacks(), epochs=2)
    held = Snapshots(tmp_path / "snapshots")
    assert held.steps.tolist() == list(range(13))
    usage = type("Usage", (), {"free": 12 * held.nbytes})  # for 12 snapshots beside these 13
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    options = {"initial_epoch": 2} if how == "initial_epoch" else {}
    fit(model if options else network(), *callbacks(), epochs=4, **options)
    assert Snapshots(tmp_path / "snapshots").steps.tolist() == list(range(25))


def test_recorder_refuses_what_it_cannot_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"steps_per_execution`? ?(=|must be )1"):
        fit(network(steps_per_execution=2), SnapshotRecorder(tmp_path / "a"))
    with pytest.raises(ValueError, match="`encoding` must be one of"):
        SnapshotRecorder(tmp_path / "a", encoding="zip")
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"Up to 13 snapshots .* are free"):
        fit(network(), SnapshotRecorder(tmp_path / "b"))
    assert not (tmp_path / "b").exists()
