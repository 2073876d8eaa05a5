"""Averages of sharded weights: `keras.distribution` on JAX, with four devices of one CPU.

The devices must be asked for before JAX starts, so this file also is a program, which trains in a
process of its own.
"""

import json
import re

import keras
import numpy as np
import pytest
from helpers import TEST_PATHS, assert_same_bits, run_python
from keras_helpers import X, Y, arrays_of, fit, trainable

from tf_lrtraj import AveragedOptimizer, backend, kernels

if backend.name() != "jax":
    pytest.skip("keras.distribution is JAX's", allow_module_level=True)

import jax

KERNELS = {
    "ema": kernels.Exponential(0.8),
    "swa": kernels.Uniform(start=2),
    "long": kernels.Exponential(0.9999),  # with a compensation
    "window": kernels.Window(3),
    "two_point": kernels.TwoPoint(6),
}
COLLECTIVES = (
    "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
)


def distribution(kind):
    devices = keras.distribution.list_devices()
    if kind == "none":
        return None
    if kind == "data":
        return keras.distribution.DataParallel(devices=devices)
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["first/kernel"] = (None, "model")
    layout["first/bias"] = ("model",)
    layout["second/kernel"] = ("model", None)
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


def compiled(averages, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="tanh", name="first")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, name="second")(hidden))
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    if averages:
        optimizer = AveragedOptimizer(optimizer, KERNELS)
    model.compile(optimizer, "mse", **options)
    return model


def collectives(model):
    """Name → count, in the compiled training step."""
    model.optimizer.build(model.trainable_variables)
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([variable.value for variable in group] for group in groups)
    # As Keras compiles it: what comes out lies where it did.
    shardings = None
    if keras.distribution.distribution() is not None:
        shardings = (None, tuple([value.sharding for value in group] for group in state))
    step = jax.jit(model.train_step, donate_argnums=0, out_shardings=shardings)
    place = keras.src.distribution.distribution_lib.distribute_tensor
    data = tuple(jax.numpy.asarray(part[:16]) for part in (X, Y))
    if shardings is not None:
        layouts = [keras.distribution.distribution().get_data_layout(d.shape) for d in data]
        data = tuple(place(one, layout) for one, layout in zip(data, layouts, strict=True))
    text = step.lower(state, data).compile().as_text()
    found = re.findall(rf" ({COLLECTIVES})(?:-start)?\(", text)
    return {name: found.count(name) for name in sorted(set(found))}


def spec(variable):
    """How the axes of a variable are laid out, without trailing ones that are not."""
    axes = [*getattr(variable.value.sharding, "spec", ())]
    while axes and axes[-1] is None:
        axes.pop()
    return axes


KINDS = ("none", "data", "model")


def main(folder):
    """Trains under every kind of distribution; writes what was found as JSON and NumPy arrays."""
    found = {}
    for kind in KINDS:
        keras.distribution.set_distribution(distribution(kind))
        found[kind] = train(f"{folder}/{kind}")
    with open(f"{folder}/found.json", "w", encoding="utf-8") as file:
        json.dump(found, file)


def train(path):
    found = {"devices": len(jax.devices())}
    found["collectives"] = [collectives(compiled(averages)) for averages in (False, True)]
    model = compiled(True, steps_per_execution=2)
    fit(model, epochs=2)
    optimizer, weights = model.optimizer, model.trainable_variables
    buffers = optimizer.state.variables
    found["updates"] = optimizer.num_updates
    found["weights"] = [spec(weight) for weight in weights]
    # Buffers of a kind come in the order of the weights.
    found["buffers"] = [
        [len(buffer.shape) - len(weight.shape), spec(buffer), buffer.name]
        for buffer, weight in zip(buffers, weights * (len(buffers) // len(weights)), strict=True)
    ]
    found["devices of buffers"] = sorted({len(b.value.sharding.device_set) for b in buffers})
    arrays = {f"weights {i}": array for i, array in enumerate(trainable(model))}
    for name in KERNELS:
        arrays |= {f"{name} {i}": a for i, a in enumerate(optimizer.get_average(name))}
    # Saved and loaded, every buffer lies where it lay.
    model.save_weights(f"{path}.weights.h5")
    other = compiled(True)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(f"{path}.weights.h5")
    assert_same_bits(arrays_of(other.optimizer.variables), arrays_of(optimizer.variables))
    found["loaded"] = [spec(buffer) for buffer in other.optimizer.state.variables]
    np.savez(f"{path}.npz", **arrays)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Kind of distribution → what a program found, and its arrays."""
    folder = tmp_path_factory.mktemp("sharded")
    program = f"import test_sharded_averages as t; t.main({str(folder)!r})"
    environment = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": TEST_PATHS,
    }
    run_python("-c", program, env=environment)
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return {kind: (found[kind], dict(np.load(folder / f"{kind}.npz"))) for kind in KINDS}


sharded = pytest.mark.parametrize("kind", KINDS[1:])


@sharded
def test_averages_lie_on_the_devices_as_their_weights_do(trained, kind):
    found = trained[kind][0]
    assert found["devices"] == 4 and found["devices of buffers"] == [4]
    weights, buffers = found["weights"], found["buffers"]
    expected = [[], [], [], []] if kind == "data" else [[None, "model"], ["model"], ["model"], []]
    assert sorted(map(str, weights)) == sorted(map(str, expected))
    assert {rows for rows, _, _ in buffers} == {0, 1}  # averages alone; stacks and rings
    for index, (rows, layout, name) in enumerate(buffers):
        weight = weights[index % len(weights)]
        assert layout == ([None] * rows + weight if weight else []), name
    assert found["loaded"] == [layout for _, layout, _ in buffers]


@sharded
def test_averages_are_those_of_one_device(trained, kind):
    (found, arrays), (_, alone) = trained[kind], trained["none"]
    assert found["updates"] == 8
    assert arrays.keys() == alone.keys() and len(arrays) == 4 * (1 + len(KERNELS))
    for name, array in arrays.items():
        np.testing.assert_allclose(array, alone[name], rtol=1e-5, atol=1e-6, err_msg=name)


@sharded
def test_averaging_communicates_nothing(trained, kind):
    without, with_averages = trained[kind][0]["collectives"]
    assert without["all-reduce"] >= 1  # of the gradients: the search finds what there is
    assert with_averages == without
    assert trained["none"][0]["collectives"] == [{}, {}]
