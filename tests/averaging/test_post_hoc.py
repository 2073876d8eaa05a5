"""Averages built afterwards: against sums written out, and errors against runs known whole."""

import tracemalloc

import numpy as np
import pytest
from helpers import flip_bit, write_snapshots

from tf_lrtraj import kernels, theory
from tf_lrtraj.averaging import interpolation_error, post_hoc
from tf_lrtraj.averaging.snapshots import Snapshots, SnapshotWriter, Timetable, VariableSpec
from tf_lrtraj.records import RecordError

SPECS = [
    VariableSpec("kernel", (3, 5), "float32", "trainable"),
    VariableSpec("bias", (5,), "float64", "trainable"),
    VariableSpec("mean", (5,), "float32", "statistic"),
    VariableSpec("variance", (5,), "float32", "statistic"),
]


def write(folder, steps, iterates, specs=SPECS, encoding="exact"):
    """Snapshots of `iterates(step)`, a list of arrays."""
    writer = SnapshotWriter(folder, specs, Timetable(1), encoding)
    for step in steps:
        writer.write(int(step), iterates(int(step)))
    return Snapshots(folder)


def random_values(step):
    rng = np.random.default_rng(step)
    return [rng.normal(3.0, 1.0, size=spec.shape).astype(spec.dtype) for spec in SPECS]


def slow_sum(snapshots, weights):
    """The obvious twin: everything in memory, one snapshot after the other, in float64."""
    totals = [np.zeros(spec.shape) for spec in snapshots.variables]
    for step, weight in zip(snapshots.steps, weights, strict=True):
        for total, array in zip(totals, snapshots.read(int(step)), strict=True):
            total += weight * array.astype(np.float64)
    return totals


# --- Sums -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["exact", "int16", "int8"])
def test_sums_equal_the_slow_twin(tmp_path, encoding, monkeypatch):
    monkeypatch.setattr(post_hoc, "_PIECE", 7)  # several pieces per variable
    monkeypatch.setattr(post_hoc, "_BLOCK", 4)
    monkeypatch.setattr(post_hoc, "_WARM", 50)
    monkeypatch.setattr(post_hoc, "_AHEAD", 100)
    snapshots = write(tmp_path, range(0, 60, 5), random_values, encoding=encoding)
    rng = np.random.default_rng(0)
    signed = rng.normal(size=len(snapshots))
    signed /= signed.sum()
    weights = {"signed": signed, "last": np.eye(len(snapshots))[-1]}
    found = post_hoc.combine(snapshots, weights)
    for name, row in weights.items():
        for array, expected, spec in zip(found[name], slow_sum(snapshots, row), SPECS, strict=True):
            assert array.dtype == spec.dtype and array.shape == spec.shape
            rtol = 1e-14 if spec.dtype == "float64" else 6e-8
            scale = np.abs(signed).sum() * 10
            np.testing.assert_allclose(array, expected, rtol=rtol, atol=rtol * scale)
    for array, expected in zip(found["last"], snapshots.read(55), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_snapshots_are_read_once_and_those_without_weight_not_at_all(tmp_path, monkeypatch):
    snapshots = write(tmp_path, range(6), random_values)
    read = []
    chunks = Snapshots.chunks
    monkeypatch.setattr(
        Snapshots, "chunks", lambda self, step, size: read.append(step) or chunks(self, step, size)
    )
    post_hoc.combine(
        snapshots, {"a": [0, 0, 0.5, 0, 0.5, 0], "b": [0, 0, 0, 0, 0.5, 0.5]}, progress=False
    )
    assert read == [2, 4, 5]


def test_a_damaged_snapshot_is_named_and_its_thread_ends(tmp_path):
    import threading

    snapshots = write(tmp_path, range(3), random_values)
    flip_bit(snapshots.path(1), -3)
    before = threading.active_count()
    with pytest.raises(RecordError, match=r"step_000000001\.safetensors is damaged"):
        post_hoc.combine(snapshots, {"all": np.full(3, 1 / 3)})
    assert threading.active_count() == before


def test_weights_that_do_not_fit_are_refused(tmp_path):
    snapshots = write(tmp_path, range(3), random_values)
    with pytest.raises(ValueError, match=r"`weights\['x'\]` must be \[3\] finite weights"):
        post_hoc.combine(snapshots, {"x": [0.5, 0.5]})
    with pytest.raises(ValueError, match="finite"):
        post_hoc.combine(snapshots, {"x": [0.5, 0.5, np.nan]})


@pytest.mark.parametrize("num_averages", [1, 3])
def test_memory_is_that_stated_whatever_the_number_of_snapshots(tmp_path, num_averages):
    size = 3_000_000
    spec = VariableSpec("w", (size,), "float32", "trainable")
    snapshots = write(tmp_path, range(20), lambda step: [np.full(size, step, np.float32)], [spec])
    names = [f"a{i}" for i in range(num_averages)]
    weights = {name: np.full(20, 0.05) for name in names}
    tracemalloc.start()
    try:
        found = post_hoc.combine(snapshots, weights)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["a0"][0][::1000] == pytest.approx(9.5)
    stated = post_hoc.memory_bytes(snapshots, num_averages)
    assert 0.5 * stated < peak <= stated
    # Below 4 float32 copies for one average, once the model is larger than what is read at a time.
    pieces = stated - 4 * size * (2 * num_averages + 1)
    assert pieces < 25e6
    if num_averages == 1:
        assert peak - pieces < 4 * 4 * size


# --- Weights on snapshots -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "exact"),
    [
        (kernels.Uniform(start=20, every=10), True),
        (kernels.Window(length=3, every=20), True),
        (kernels.TwoPoint(30), True),
        (kernels.TwoPoint(35), False),
        (kernels.Exponential(0.9), False),
        (kernels.Window(length=30), False),
        (kernels.Exponential(0.0), True),
        (kernels.PowerFunction(-0.5, start=20, every=10), True),
        (kernels.HalfLife(0.3, longest=50, every=10), True),
        (kernels.HalfLife(0.3), False),
        (kernels.BEMA(start=20), False),
        (kernels.BEMA(ema_power=0.0, start=20), True),
    ],
)
def test_exactness_is_that_of_the_iterates_needed(kernel, exact):
    steps = np.arange(0, 101, 10)
    found = post_hoc.snapshot_weights(steps, kernel)
    assert found.exact == exact
    target = kernel.weights(100)
    expected = theory.fold_onto_snapshots(target, 10)[1]
    np.testing.assert_allclose(found.weights, expected, rtol=0, atol=1e-15)
    if exact:
        np.testing.assert_array_equal(found.weights, target[steps])
    assert found.error_weights.sum() == pytest.approx(0.0, abs=1e-12)
    iterates = np.random.default_rng(1).normal(size=101)
    error = target @ iterates - found.weights @ iterates[steps]
    assert found.error_weights @ iterates == pytest.approx(error, abs=1e-12)


def test_an_earlier_end_uses_only_what_was_there_then():
    found = post_hoc.snapshot_weights([10, 20, 40, 80], kernels.TwoPoint(20), last=40)
    np.testing.assert_array_equal(found.weights, [0.0, 0.5, 0.5, 0.0])
    assert found.exact and found.first == 20 and found.last == 40


def test_kernels_may_count_snapshots():
    steps = [0, 10, 25, 30]
    kernel = kernels.Exponential(0.5)
    found = post_hoc.snapshot_weights(steps, kernel, last=25, per="snapshot")
    np.testing.assert_array_equal(found.weights, [*kernel.weights(2), 0.0])
    assert found.exact and found.moved == 0.0


def test_iterates_older_than_the_first_snapshot_are_refused_or_told():
    steps = np.arange(50, 101, 10)
    with pytest.raises(ValueError, match=r"from step 40 on.*step 50.*50\.0%"):
        post_hoc.snapshot_weights(steps, kernels.TwoPoint(60))
    with pytest.raises(ValueError, match="first snapshot is of step 50"):
        post_hoc.snapshot_weights(steps, kernels.Exponential(0.99))
    found = post_hoc.snapshot_weights(steps, kernels.Exponential(0.9))
    assert found.early == pytest.approx(0.9**51, rel=1e-12)
    assert found.weights.sum() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"last": 15}, r"step of a snapshot; the nearest are \[0, 10, 20\]. Received: last=15"),
        ({"per": "epoch"}, r"one of \['update', 'snapshot'\]"),
        ({"target": [0.5, 0.5]}, r"\[21\] finite weights, one for each of the iterates"),
        ({"target": np.full(21, 0.1)}, "sum to 1"),
        ({"target": [0.5, 0.5], "per": "snapshot"}, r"\[3\] finite weights.*snapshots"),
    ],
)
def test_bad_targets_are_named(arguments, message):
    arguments = {"target": kernels.TwoPoint(10), **arguments}
    with pytest.raises(ValueError, match=message):
        post_hoc.snapshot_weights([0, 10, 20], **arguments)


@pytest.mark.parametrize(
    "steps", [[], [0, 20, 10], [0, 10, 10], [-10, 0, 10], [0.5, 1.5, 2.5], [[0, 10, 20]], 5, "x"]
)
@pytest.mark.parametrize("per", ["update", "snapshot"])
def test_steps_that_do_not_ascend_are_refused(steps, per):
    with pytest.raises(ValueError, match=r"`steps` must be .* Received: steps="):
        post_hoc.snapshot_weights(steps, kernels.Exponential(0.5), per=per)


def test_weights_for_other_steps_are_refused(tmp_path):
    snapshots = write(tmp_path, [0, 10, 20], random_values)
    kernel = kernels.Exponential(0.5)
    sound = post_hoc.snapshot_weights(snapshots.steps, kernel, per="snapshot")
    assert post_hoc.average_snapshots(snapshots, {"w": sound})["w"].weights is sound
    for steps, message in [
        ([0, 5, 20], r"^w: .* 3 snapshots .* number 1 \(from 0\), 5 instead of 10"),
        ([0, 10], r"2 steps; .* number 2 \(from 0\), none instead of 20"),
        ([0, 10, 20, 30], r"4 steps; .* number 3 \(from 0\), 30 instead of none"),
    ]:
        other = post_hoc.snapshot_weights(steps, kernel, per="snapshot")
        with pytest.raises(ValueError, match=message):
            post_hoc.average_snapshots(snapshots, {"w": other})


def test_an_emulated_schedule_ends_where_the_schedule_would(tmp_path):
    """On a quadratic of one curvature, every iterate kept, the equality is exact."""
    rng = np.random.default_rng(3)
    steps, curvature, base = 40, 0.7, 0.8
    schedule = np.minimum(base, np.linspace(2.0, 0.05, steps))
    minimisers = rng.normal(size=(steps, 6))

    def run(rates):
        iterates = [np.full(6, 2.0)]
        for rate, minimiser in zip(rates, minimisers, strict=True):
            iterates.append(iterates[-1] - rate * curvature * (iterates[-1] - minimiser))
        return np.array(iterates)

    constant = run(np.full(steps, base))
    snapshots = write_snapshots(tmp_path, range(steps + 1), constant)
    target = theory.weights_from_schedule(schedule, base, curvature)
    found = post_hoc.average_snapshots(snapshots, {"emulated": target})["emulated"]
    assert found.exact and found.verdict == "exact"
    np.testing.assert_allclose(found.arrays[0], run(schedule)[-1], rtol=1e-5, atol=1e-6)


# --- Errors ---------------------------------------------------------------------------------


def test_sampled_coordinates_estimate_distances(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    arrays = [rng.normal(size=(40, 500)), rng.normal(size=300), rng.normal(size=(2, 2))]
    raw = [rng.normal(size=a.shape) for a in arrays]
    size = sum(a.size for a in arrays)
    sample = interpolation_error.CoordinateSample(size, [7], count=5000)
    flat = np.concatenate([a.ravel() for a in raw])
    for low in range(0, size, 777):
        sample.add(7, low, flat[low : low + 777])
    sample.add(8, 0, flat)  # not asked for
    true = sum(float(np.sum((a - b) ** 2)) for a, b in zip(arrays, raw, strict=True))
    assert sample.squared_distance(7, arrays) == pytest.approx(true, rel=0.06)
    assert sample.values.shape == (1, 5000)


@pytest.mark.parametrize("encoding", ["int16", "int8"])
def test_the_encoding_s_error_is_stated(tmp_path, encoding):
    rng = np.random.default_rng(6)
    iterates = rng.uniform(-1.0, 1.0, size=(41, 5000)).astype(np.float32)
    snapshots = write_snapshots(tmp_path, range(41), iterates, encoding)
    found = post_hoc.average_snapshots(snapshots, {"w": kernels.Window(20)})["w"]
    true = iterates[-20:].astype(np.float64).mean(axis=0)
    error = found.arrays[0] - true
    relative = np.linalg.norm(error) / np.linalg.norm(true - iterates[-1])
    assert found.exact and "encoding" in found.verdict
    assert relative == pytest.approx(found.quantisation, rel=0.1)
    assert found.total_error == pytest.approx(found.quantisation)
    assert np.abs(error).max() <= found.quantisation_bound * (1 + 1e-4) + 1e-7
    assert "encoding adds at most" in str(found)


def test_the_raw_weights_are_an_average_too(tmp_path):
    snapshots = write(tmp_path, range(0, 30, 10), random_values)
    found = post_hoc.average_snapshots(snapshots, {"raw": kernels.Exponential(0.0)})["raw"]
    assert found.distance == 0.0 and found.error == 0.0 and found.exact
    assert "exact" in str(found)


def test_too_few_snapshots_for_an_error_say_so(tmp_path):
    snapshots = write(tmp_path, [0, 10], random_values)
    found = post_hoc.average_snapshots(snapshots, {"w": kernels.Window(5)})["w"]
    assert found.error is None and found.total_error is None
    assert found.verdict == "error unknown"


def test_mistakes_name_the_average(tmp_path):
    write(tmp_path, [0, 10], random_values)
    with pytest.raises(ValueError, match=r"^far: `target` must be"):
        post_hoc.average_snapshots(tmp_path, {"far": [0.5, 0.5]})
    with pytest.raises(RecordError, match="no folder of snapshots"):
        post_hoc.average_snapshots(tmp_path / "none", {"w": kernels.Window(5)})
