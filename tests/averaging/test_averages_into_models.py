"""Averages built afterwards, put into models and files; with batch norm, on every backend."""

import keras
import numpy as np
import pytest
from helpers import assert_same_bits
from keras_helpers import X, arrays_of, everything, fit, network, trainable

from tf_lrtraj import WeightAveraging, kernels
from tf_lrtraj.averaging import (
    SnapshotRecorder,
    StoredAverage,
    average_snapshots,
    borrow,
    combine_stored,
    save_model,
)
from tf_lrtraj.averaging.snapshot_recorder import ModelSnapshots
from tf_lrtraj.averaging.snapshots import Snapshots, Timetable
from tf_lrtraj.averaging.weight_files import read_named, read_weights
from tf_lrtraj.records.tensor_files import TensorFile, write_tensors

KERNELS = {
    "window": kernels.Window(3, every=2),
    "narrow": kernels.PowerFunction(9.0),
    "wide": kernels.PowerFunction(3.0),
}


def made(norm=True, dtype=None):
    return network(keras.optimizers.SGD(0.02), norm=norm, dropout=0.1, dtype=dtype)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained model, a folder of snapshots, and the averages kept in training."""
    folder, model = tmp_path_factory.mktemp("run"), made()
    averaging = WeightAveraging(KERNELS, batch_norm_data=X)
    recorder = SnapshotRecorder(folder / "snapshots", every=2)
    fit(model, recorder, averaging, epochs=6)
    return model, folder / "snapshots", averaging


@pytest.fixture
def found(trained):
    return average_snapshots(trained[1], {"w": KERNELS["window"]})["w"]


POLICIES = {
    "recomputed": {"batch_norm_data": X},
    "recomputed from a dict's values in batches": {"batch_norm_data": X, "batch_size": 7},
    "averaged": {"batch_norm": "average"},
}


def moments(weights):
    """Mean and variance of what batch norm sees under the weights."""
    hidden = X.astype(np.float64) @ weights[0] + weights[1]
    return [hidden.mean(0), hidden.var(0)]


def check(model, weights, statistics):
    norm = model.get_layer("norm")
    for actual, expected in zip(trainable(model), weights, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    found = arrays_of([norm.moving_mean, norm.moving_variance])
    for actual, expected in zip(found, statistics, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("how", ["apply", "a.keras", "a.weights.h5"])
def test_an_average_of_snapshots_in_a_model(trained, found, tmp_path, policy, how):
    model, _, averaging = trained
    before, other = everything(model), made()
    if how == "apply":
        found.apply(other, **POLICIES[policy])
    else:
        found.save(tmp_path / how, model, **POLICIES[policy])
        if how.endswith(".keras"):
            other = keras.saving.load_model(tmp_path / how)
        else:
            other.load_weights(tmp_path / how)
        assert [p.name for p in tmp_path.iterdir()] == [how]
    assert_same_bits(everything(model), before)
    weights = averaging.get_average("window")
    check(other, weights, found.arrays[-2:] if policy == "averaged" else moments(weights))


@pytest.mark.parametrize("ending", ["arrays", ".keras", ".weights.h5", ".npz", ".safetensors"])
def test_an_average_made_of_stored_ones(trained, tmp_path, ending):
    model, _, averaging = trained
    stored = []
    for name in ("narrow", "wide"):
        source = averaging.get_average(name)
        if ending != "arrays":
            source = tmp_path / f"{name}{ending}"
            with averaging.borrowed(name):
                if ending == ".npz":
                    paths = [v.path for v in model.weights]
                    np.savez(source, **dict(zip(paths, arrays_of(model.weights), strict=True)))
                elif ending in (".keras", ".safetensors"):
                    save_model(model, source)
                else:
                    model.save_weights(source)
        stored.append(StoredAverage(KERNELS[name], 24, source))
    before, target = everything(model), kernels.PowerFunction(5.0)
    found = combine_stored(stored, target, model=None if ending == "arrays" else model)
    assert_same_bits(everything(model), before)
    assert found.combination.error < 0.1 and "2 of 2 stored averages" in str(found)
    one, two = found.combination.coefficients
    averages = [averaging.get_average(name) for name in ("narrow", "wide")]
    expected = [
        one * a.astype(np.float64) + two * b.astype(np.float64)
        for a, b in zip(*averages, strict=True)
    ]
    other = made()
    found.apply(other, batch_norm_data=X)
    check(other, expected, moments(expected))


def test_a_model_of_another_precision_takes_it(trained, found):
    half = made(dtype=keras.DTypePolicy("mixed_bfloat16"))
    found.apply(half, batch_norm_data=X)
    np.testing.assert_allclose(trainable(half)[0], trained[2].get_average("window")[0], 1e-5)


def test_what_does_not_fit_is_refused_and_nothing_changes(trained, found, tmp_path):
    model, bare = trained[0], made(norm=False)
    before = everything(model)
    for call, message in [
        (
            lambda: found.apply(model),
            r"`batch_norm_data` must hold training inputs.*Received: batch_norm_data=None",
        ),
        (lambda: found.apply(model, batch_norm="copy"), "must be one of.*'copy'"),
        (lambda: found.apply(bare), r"must be 4 arrays .*Received: 8 arrays"),
        (lambda: found.save(tmp_path / "a.h5", model, batch_norm_data=X), r"\.weights\.h5"),
        (lambda: found.save(tmp_path / "n" / "a.keras", model), "existing folder"),
        (lambda: read_weights(tmp_path / "a.pt", model), r"must end in \.keras, "),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    own = (
        [v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    )
    with borrow(model, *own), pytest.raises(RuntimeError, match="holds other weights"):
        found.apply(model, batch_norm_data=X)
    assert_same_bits(everything(model), before)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"no archive", "cannot be read"),
        ("a.keras", b"no archive", "cannot be loaded"),
        ("a.weights.h5", b"no archive", "does not hold weights of the model"),
        ("b.npz", {"arr_0": np.zeros(3)}, "the file 1, and number 0"),
        ("b.npz", {"dense/kernel": np.array(["a"])}, "must hold arrays of numbers"),
        ("b.npz", {}, "must hold arrays of numbers"),
        ("a.safetensors", b"no archive", "is damaged: "),
        ("b.safetensors", {"unknown": np.zeros(3)}, "the file 1, and number 0"),
        ("b.safetensors", {}, "must hold arrays of numbers"),
    ],
)
def test_files_that_hold_no_weights_are_named(trained, tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".safetensors":
        write_tensors(path, content, {})
    else:
        np.savez(path, **content)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        read_weights(path, trained[0])


def test_weights_by_name_for_other_tools(trained, tmp_path):
    model, _, averaging = trained
    path, before = tmp_path / "wide.safetensors", everything(model)
    averaging.save("wide", path)
    assert_same_bits(everything(model), before)
    with averaging.borrowed("wide"):
        held = arrays_of(model.weights)
    with TensorFile(path) as file:
        told = {"model": model.name, "average": "wide", "updates": "24"}
        assert file.metadata == {"writer": "tf_lrtraj", **told}
        assert list(file.tensors) == [v.path for v in model.weights]
        assert_same_bits([file.read(name) for name in file.tensors], held)
    library = pytest.importorskip("safetensors.numpy")
    found = library.load_file(path)
    assert_same_bits([found[v.path] for v in model.weights], held)
    assert_same_bits(read_weights(path, model), held)
    library.save_file({name: found[name] for name in reversed(list(found))}, path)
    assert_same_bits(read_weights(path, model), held)
    library.save_file({f"other/{name}": array for name, array in found.items()}, path)
    with pytest.raises(ValueError, match=r"wide\.safetensors does not hold weights .*'other/"):
        read_weights(path, model)


def test_two_variables_of_one_path_are_kept_apart(tmp_path):
    class Pair(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.other = (keras.layers.Dense(2, name="same") for _ in range(2))

        def call(self, x):
            return self.other(self.one(x))

    model = Pair()
    model(np.zeros((1, 2), np.float32))
    if len({v.path for v in model.weights}) == len(model.weights):
        pytest.skip("this Keras gives them paths of their own")
    save_model(model, tmp_path / "a.safetensors")
    assert_same_bits(read_weights(tmp_path / "a.safetensors", model), arrays_of(model.weights))


@pytest.mark.parametrize("encoding", ["exact", "int16", "int8"])
def test_a_snapshot_is_a_file_of_weights(trained, tmp_path, encoding):
    model = trained[0]
    with ModelSnapshots(model, tmp_path, Timetable(1), encoding) as snapshots:
        snapshots.write(5)
    expected = Snapshots(tmp_path).read(5)
    named = read_named(tmp_path / "step_000000005.safetensors")
    assert_same_bits([named[spec.name] for spec in Snapshots(tmp_path).variables], expected)
    read = read_weights(tmp_path / "step_000000005.safetensors", model)
    if encoding == "exact":
        assert_same_bits(read, arrays_of(model.weights))
    else:
        assert not all(
            np.array_equal(*pair) for pair in zip(read, arrays_of(model.weights), strict=True)
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_16_bits_keep_their_type_in_files(dtype, tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype=dtype)])
    save_model(model, tmp_path / "a.safetensors")
    with TensorFile(tmp_path / "a.safetensors") as file:
        assert {tensor.dtype.name for tensor in file.tensors.values()} == {dtype}
    for read, variable in zip(
        read_weights(tmp_path / "a.safetensors", model), model.weights, strict=True
    ):
        kept = np.asarray(keras.ops.convert_to_numpy(variable), np.float32)
        np.testing.assert_array_equal(np.asarray(read, np.float32), kept)
