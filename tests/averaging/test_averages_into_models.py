"""Averages built afterwards, put into models and files; with batch norm, on every backend."""

import keras
import numpy as np
import pytest
from keras import ops

from tf_lrtraj import WeightAveraging, kernels
from tf_lrtraj.averaging import (
    SnapshotRecorder,
    StoredAverage,
    average_snapshots,
    borrow,
    combine_stored,
)
from tf_lrtraj.averaging.weight_files import read_weights

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 5)).astype(np.float32)
Y = X[:, :1] * 2.0
KERNELS = {
    "window": kernels.Window(3, every=2),
    "narrow": kernels.PowerFunction(9.0),
    "wide": kernels.PowerFunction(3.0),
}


def network(norm=True, dtype=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(4, dtype=dtype)(inputs)
    if norm:
        hidden = keras.layers.BatchNormalization(momentum=0.8)(hidden)
    hidden = keras.layers.Dropout(0.1, seed=3)(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.ReLU()(hidden)))
    model.compile(keras.optimizers.SGD(0.02), "mse")
    return model


def values(model):
    return [np.array(ops.convert_to_numpy(v.value)) for v in model.variables]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = network()
    recorder = SnapshotRecorder(folder / "snapshots", every=2)
    averaging = WeightAveraging(KERNELS, batch_norm_data=X)
    model.fit(X, Y, batch_size=16, epochs=4, verbose=0, callbacks=[recorder, averaging])
    return model, folder, averaging


POLICIES = {
    "recomputed": {"batch_norm_data": X},
    "recomputed from a dict's values in batches": {"batch_norm_data": X, "batch_size": 7},
    "averaged": {"batch_norm": "average"},
}


def expected_weights(averaging, folder, policy):
    """Trainable weights, then mean and variance, without what is tested."""
    weights = [np.asarray(a, np.float64) for a in averaging.get_average("window")]
    if policy == "averaged":
        snapshots = average_snapshots(folder / "snapshots", {"w": KERNELS["window"]})["w"].arrays
        return weights, snapshots[-2:]
    hidden = X.astype(np.float64) @ weights[0] + weights[1]
    return weights, [hidden.mean(0), hidden.var(0)]


def check(model, weights, statistics):
    for variable, array in zip(model.trainable_variables, weights, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(variable), array, rtol=1e-5, atol=1e-6)
    norm = next(x for x in model.layers if isinstance(x, keras.layers.BatchNormalization))
    for variable, array in zip((norm.moving_mean, norm.moving_variance), statistics, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(variable), array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("how", ["apply", "a.keras", "a.weights.h5"])
def test_an_average_of_snapshots_in_a_model(trained, tmp_path, policy, how):
    model, folder, averaging = trained
    found = average_snapshots(folder / "snapshots", {"w": KERNELS["window"]})["w"]
    before = values(model)
    other = network()
    if how == "apply":
        found.apply(other, **POLICIES[policy])
    else:
        found.save(tmp_path / how, model, **POLICIES[policy])
        if how.endswith(".keras"):
            other = keras.saving.load_model(tmp_path / how)
        else:
            other.load_weights(tmp_path / how)
        assert [p.name for p in tmp_path.iterdir()] == [how]
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)
    check(other, *expected_weights(averaging, folder, policy))


@pytest.mark.parametrize("ending", ["arrays", ".keras", ".weights.h5", ".npz"])
def test_an_average_made_of_stored_ones(trained, tmp_path, ending):
    model, _, averaging = trained
    stored = []
    for name in ("narrow", "wide"):
        source = averaging.get_average(name)
        if ending != "arrays":
            source = tmp_path / f"{name}{ending}"
            with averaging.borrowed(name):
                if ending == ".npz":
                    np.savez(source, **{v.path: ops.convert_to_numpy(v) for v in model.weights})
                elif ending == ".keras":
                    model.save(source)
                else:
                    model.save_weights(source)
        stored.append(StoredAverage(KERNELS[name], 24, source))
    before = values(model)
    target = kernels.PowerFunction(5.0)
    found = combine_stored(stored, target, model=None if ending == "arrays" else model)
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert found.combination.error < 0.1 and "2 of 2 stored averages" in str(found)
    arrays = [averaging.get_average(name) for name in ("narrow", "wide")]
    expected = [
        sum(
            c * np.asarray(a, np.float64)
            for c, a in zip(found.combination.coefficients, pair, strict=True)
        )
        for pair in zip(*arrays, strict=True)
    ]
    other = network()
    found.apply(other, batch_norm_data=X)
    hidden = X.astype(np.float64) @ expected[0] + expected[1]
    check(other, expected, [hidden.mean(0), hidden.var(0)])


def test_a_model_of_another_precision_takes_it(trained):
    _, folder, averaging = trained
    found = average_snapshots(folder / "snapshots", {"w": KERNELS["window"]})["w"]
    half = network(dtype=keras.DTypePolicy("mixed_bfloat16"))
    found.apply(half, batch_norm_data=X)
    weights, _ = expected_weights(averaging, folder, "recomputed")
    np.testing.assert_allclose(ops.convert_to_numpy(half.trainable_variables[0]), weights[0], 1e-5)


def test_what_does_not_fit_is_refused_and_nothing_changes(trained, tmp_path):
    model, folder, _ = trained
    found = average_snapshots(folder / "snapshots", {"w": KERNELS["window"]})["w"]
    before = values(model)
    bare = network(norm=False)
    for call, message in [
        (lambda: found.apply(model), r"give `batch_norm_data`.*Received: batch_norm_data=None"),
        (lambda: found.apply(model, batch_norm="copy"), "must be one of.*'copy'"),
        (lambda: found.apply(bare), r"must be 4 arrays .*Received: 8 arrays"),
        (lambda: found.save(tmp_path / "a.h5", model, batch_norm_data=X), r"\.weights\.h5"),
        (lambda: found.save(tmp_path / "n" / "a.keras", model), "folder that exists"),
        (lambda: read_weights(tmp_path / "a.pt", model), r"must end in \.keras, "),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    own = (
        [v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    )
    with borrow(model, *own), pytest.raises(RuntimeError, match="holds other weights"):
        found.apply(model, batch_norm_data=X)
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"no archive", "cannot be read"),
        ("a.keras", b"no archive", "cannot be loaded"),
        ("a.weights.h5", b"no archive", "does not hold weights of the model"),
        ("b.npz", {"arr_0": np.zeros(3)}, "holds 1, and number 0"),
        ("b.npz", {"dense/kernel": np.array(["a"])}, "must hold arrays of numbers"),
        ("b.npz", {}, "must hold arrays of numbers"),
    ],
)
def test_files_that_hold_no_weights_are_named(trained, tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        read_weights(path, trained[0])
