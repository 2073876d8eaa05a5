"""Averages under `tf.distribute`: in `fit`, in custom loops, and on several workers."""

import collections
import contextlib
import json
import pathlib
import runpy
import subprocess

import keras
import numpy as np
import pytest
from helpers import assert_same_bits, average_of, free_ports, start_python
from keras_helpers import Iterates

from tf_lrtraj import AveragedOptimizer, WeightAveraging, backend, kernels
from tf_lrtraj.averaging import AverageState, SnapshotRecorder, Snapshots
from tf_lrtraj.averaging.averaged_optimizer import find_averaged
from tf_lrtraj.backend import batch_norm as bn

if keras.backend.backend() != "tensorflow":
    pytest.skip("tf.distribute is TensorFlow's", allow_module_level=True)

import tensorflow as tf

RNG = np.random.default_rng(0)
INPUTS = (RNG.normal(size=(64, 4)) * 2 + 1).astype(np.float32)
LABELS = INPUTS[:, :1] - INPUTS[:, 1:2] ** 2
AVERAGES = {
    "ema": kernels.Exponential(0.8, start=1),
    "swa": kernels.Uniform(start=2, every=2),
    "two_point": kernels.TwoPoint(3),
    "signed": kernels.Custom([1.5, 0.0, -0.5]),
}


@pytest.fixture(scope="module", params=["one_device", "mirrored"])
def strategy(request):
    if request.param == "one_device":
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    from tf_lrtraj.training.strategies import make_strategy

    return make_strategy("mirrored", num_devices=2)


def network(synchronized=True):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(5, use_bias=False)(inputs)
    x = keras.layers.BatchNormalization(momentum=0.8, synchronized=synchronized)(x)
    x = keras.layers.Dense(3, activation="tanh")(x)
    x = keras.layers.BatchNormalization(momentum=0.8, synchronized=synchronized)(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Dropout(0.0)(x)))
    model.compile(momentum(), "mse", metrics=["mae"])
    return model


def momentum(**options):
    return keras.optimizers.SGD(0.05, momentum=0.9, **options)


def numpy(variables):
    return backend.to_numpy(backend.values(variables))


def every_replica(variables):
    """The bits of each replica's own copy."""
    return [
        part.numpy().tobytes()
        for variable in variables
        for part in (getattr(variable.value, "values", None) or [variable.value])
    ]


def assert_follow(found, iterates):
    """`found`: {name: arrays of an average}."""
    for name, kernel in AVERAGES.items():
        for actual, exact in zip(found[name], average_of(kernel, iterates), strict=True):
            np.testing.assert_allclose(actual, exact, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def fitted(strategy, tmp_path_factory):
    """Model, averaging, iterates, and the folder of snapshots of a `fit`."""
    folder = tmp_path_factory.mktemp("snapshots")
    with strategy.scope():
        model = network()
    averaging = WeightAveraging(AVERAGES, batch_norm_data=INPUTS, batch_size=32)
    iterates = Iterates()
    callbacks = [averaging, SnapshotRecorder(folder, every=3), iterates]
    options = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
    model.fit(INPUTS, LABELS, callbacks=callbacks, **options)
    return model, averaging, iterates.values, folder


def test_averages_and_snapshots_are_of_the_iterates(fitted):
    _, averaging, iterates, folder = fitted
    assert averaging.num_updates == 8
    assert_follow({name: averaging.get_average(name) for name in AVERAGES}, iterates)
    snapshots = Snapshots(folder)
    assert snapshots.steps.tolist() == [0, 3, 6]
    for step in snapshots.steps.tolist():
        assert_same_bits(snapshots.read(step)[: len(iterates[step])], iterates[step])


def test_every_replica_holds_the_same_average(fitted, strategy):
    averaging = fitted[1]
    for variable in averaging.state.variables:
        copies = {
            part.numpy().tobytes() for part in strategy.experimental_local_results(variable.value)
        }
        assert len(copies) == 1
    if strategy.num_replicas_in_sync == 2:
        assert len(every_replica(averaging.state.variables)) == 2 * len(averaging.state.variables)


def test_an_update_communicates_nothing(fitted):
    averaging = fitted[1]
    update = tf.function(averaging._kept.running._update)
    graph = update.get_concrete_function(tf.constant(9, tf.int64)).graph.as_graph_def()
    operations = {node.op for node in graph.node}
    operations |= {node.op for function in graph.library.function for node in function.node_def}
    assert any(name.startswith("AssignVariable") for name in operations)
    assert not [name for name in operations if "Collective" in name or "Nccl" in name]
    # What MirroredStrategy adds up by other means is a sum of several tensors.
    assert not operations & {"AddN", "_Send", "_Recv", "Broadcast"}


def test_borrowing_and_evaluating_give_every_replicas_bits_back(fitted):
    model, averaging, _, _ = fitted
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    before = every_replica(variables)
    results = averaging.evaluate((INPUTS, LABELS))
    with pytest.raises(KeyboardInterrupt), averaging.borrowed("swa"):
        raise KeyboardInterrupt
    assert every_replica(variables) == before
    plain = network()
    for name in ("ema", "signed"):
        with averaging.borrowed(name):
            plain.set_weights(model.get_weights())
        alone = plain.evaluate(INPUTS, LABELS, verbose=0, return_dict=True)
        assert results[name] == pytest.approx(alone, rel=1e-5)


def test_recomputed_statistics_are_those_of_the_whole_batch(fitted):
    model, averaging, _, _ = fitted
    with averaging.borrowed("ema"):
        mean, variance = numpy([model.layers[2].moving_mean, model.layers[2].moving_variance])
    seen = INPUTS.astype(np.float64) @ averaging.get_average("ema")[0]
    np.testing.assert_allclose(mean, seen.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(variance, seen.var(0), rtol=2e-6)


@pytest.mark.parametrize("synchronized", [False, True])
def test_recomputing_across_replicas_equals_one_device(strategy, synchronized):
    with strategy.scope():
        model = network(synchronized)
    before = every_replica(model.variables)
    # 24 + 24 + 13 examples: the last batch is shared unevenly.
    data = tf.data.Dataset.from_tensor_slices((INPUTS[:61], LABELS[:61])).batch(24)
    trainable = backend.values(model.trainable_variables)
    rest = backend.values(model.non_trainable_variables)
    distributed = strategy.experimental_distribute_dataset(data)
    shared = bn.recompute(model, trainable, rest, distributed)
    alone = bn.recompute(model, trainable, rest, data)
    entries = bn.find_statistics(model)
    # Without synchronisation the second layer sees other activations on half a batch.
    for entry in entries if synchronized or strategy.num_replicas_in_sync == 1 else entries[:1]:
        for position in (entry.mean, entry.variance):
            np.testing.assert_allclose(shared[position], alone[position], rtol=3e-5, atol=1e-6)
    seen = INPUTS[:61].astype(np.float64) @ trainable[0].numpy()
    np.testing.assert_allclose(shared[entries[0].mean], seen.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(shared[entries[0].variance], seen.var(0), rtol=2e-6)
    assert every_replica(model.variables) == before


def test_a_distributed_data_set_as_batch_norm_data(fitted, strategy):
    model, averaging, _, _ = fitted
    statistics = [v for v in model.non_trainable_variables if "moving" in v.path]

    def measured():
        with averaging.borrowed("ema"):
            return numpy(statistics)

    local = measured()
    data = tf.data.Dataset.from_tensor_slices(INPUTS).batch(32)
    averaging.batch_norm_data = strategy.experimental_distribute_dataset(data)
    try:
        shared = measured()
    finally:
        averaging.batch_norm_data = INPUTS
    assert len(local) == 4
    for a, b in zip(shared, local, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def custom_step(strategy, model, inside=lambda number: None):
    """A compiled step on a global batch of 16, the loss summed over replicas."""

    @tf.function
    def step(x, y, number):
        def on_replica(x, y, number):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((model(x, training=True) - y) ** 2) / 16
                scaled = model.optimizer.scale_loss(loss)
            variables = model.trainable_variables
            model.optimizer.apply(tape.gradient(scaled, [v.value for v in variables]), variables)
            inside(number)

        strategy.run(on_replica, args=(x, y, number))

    return step


def custom_loop(strategy, step, after, inputs=INPUTS):
    """Six global batches of 16."""
    data = tf.data.Dataset.from_tensor_slices((inputs, LABELS)).batch(16).repeat()
    iterator = iter(strategy.experimental_distribute_dataset(data))
    for t in range(6):
        x, y = next(iterator)
        step(x, y, tf.constant(t + 1, tf.int64))
        after()


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_custom_loops(strategy, where):
    with strategy.scope():
        model = network()
        model.optimizer.build(model.trainable_variables)
    averaging = WeightAveraging(AVERAGES, batch_norm="copy")
    averaging.set_model(model)
    averaging.get_average("ema")  # takes up the initial weights
    with strategy.scope():
        state = AverageState(model.trainable_variables, AVERAGES)
    iterates = [numpy(model.trainable_variables)]

    def after():
        iterates.append(numpy(model.trainable_variables))
        if where == "outside":
            averaging.update()

    inside = state.update if where == "inside" else lambda number: None
    custom_loop(strategy, custom_step(strategy, model, inside), after)
    if where == "outside":
        found = {name: averaging.get_average(name) for name in AVERAGES}
    else:
        found = {name: backend.to_numpy(state.average(name, 6)) for name in AVERAGES}
    assert_follow(found, iterates)


# Averages in the optimizer --------------------------------------------------------------------


def averaged(inner=None):
    return AveragedOptimizer(inner or momentum(), AVERAGES)


def found_in(optimizer):
    return {name: optimizer.get_average(name) for name in AVERAGES}


def test_averages_of_an_optimizer_in_fit_are_those_of_one_device(strategy):
    def fitted(scope):
        with scope:  # without batch norm, whose cancellations magnify a difference of rounding
            model = plain_network(averaged())
        model.compile(model.optimizer, "mse", steps_per_execution=3)
        model.fit(INPUTS, LABELS, batch_size=16, epochs=2, shuffle=False, verbose=0)
        assert model.optimizer.num_updates == 8
        return model.optimizer

    alone, optimizer = fitted(contextlib.nullcontext()), fitted(strategy.scope())
    for name, arrays in found_in(alone).items():
        for one, other in zip(optimizer.get_average(name), arrays, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)
    variables, replicas = optimizer.variables, strategy.num_replicas_in_sync
    bits = every_replica(variables)
    assert len(bits) == replicas * len(variables)
    for index in range(len(variables)):
        assert len(set(bits[index * replicas : (index + 1) * replicas])) == 1


def scaled(inner):
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)


# (optimizer, updates that six batches make; where a loss is scaled, the second and the last have
# no finite gradient)
OPTIMIZERS = {
    "plain": (averaged, 6),
    "accumulated": (lambda: averaged(momentum(gradient_accumulation_steps=2)), 3),
    "scaled inside": (lambda: averaged(scaled(momentum())), 4),
    "scaled outside": (lambda: scaled(averaged()), 4),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_averages_of_an_optimizer_in_custom_loops(strategy, name):
    make, updates = OPTIMIZERS[name]
    if name == "accumulated" and strategy.num_replicas_in_sync > 1:
        pytest.skip("Keras accumulates no gradients on several replicas")
    inputs = INPUTS.copy()
    if "scaled" in name:
        inputs[16:32] = np.inf  # of four batches the second
    with strategy.scope():
        model = plain_network(make())
        model.optimizer.build(model.trainable_variables)
    iterates = [numpy(model.trainable_variables)]

    def after():
        now = numpy(model.trainable_variables)
        if any(a.tobytes() != b.tobytes() for a, b in zip(now, iterates[-1], strict=True)):
            iterates.append(now)

    custom_loop(strategy, custom_step(strategy, model), after, inputs)
    optimizer = find_averaged(model.optimizer)
    assert optimizer.num_updates == len(iterates) - 1 == updates
    assert_follow(found_in(optimizer), iterates)


def plain_network(optimizer):
    """Without batch norm, whose statistics a batch that is not finite would spoil."""
    keras.utils.set_random_seed(3)
    layers = [keras.Input((4,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse")
    return model


def test_averages_of_an_optimizer_communicate_nothing(strategy):
    def communication(optimizer):
        """Operation → how often a training step has it."""
        with strategy.scope():
            model = plain_network(optimizer())
            model.optimizer.build(model.trainable_variables)
        data = tf.data.Dataset.from_tensor_slices((INPUTS, LABELS)).batch(16)
        x, y = next(iter(strategy.experimental_distribute_dataset(data)))
        step = custom_step(strategy, model)
        graph = step.get_concrete_function(x, y, tf.constant(1, tf.int64)).graph.as_graph_def()
        nodes = [*graph.node, *(node for one in graph.library.function for node in one.node_def)]
        kinds = ("Collective", "Nccl", "AddN", "_Send", "_Recv", "Broadcast")
        found = [node.op for node in nodes if node.op.startswith(kinds)]
        assert [node for node in nodes if node.op.startswith("AssignVariable")]
        return collections.Counter(found)

    expected = communication(momentum)
    assert communication(averaged) == expected
    assert bool(expected) == (strategy.num_replicas_in_sync > 1)  # of the gradients


# Several workers ------------------------------------------------------------------------------

TIME_LIMIT = 300  # seconds for a machine with other work; most of it is TensorFlow's start


@pytest.mark.long
def test_multi_worker_averages_equal_those_of_one_process(tmp_path):
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    script = pathlib.Path(__file__).with_name("multi_worker_program.py")
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {"TF_CONFIG": json.dumps(task), "CUDA_VISIBLE_DEVICES": "-1"}
        arguments = script, tmp_path / f"{index}.npz"
        processes.append(start_python(*arguments, env=environment, stderr=subprocess.STDOUT))
    try:
        # Meanwhile the reference: the same program here, on whole batches.
        runpy.run_path(str(script))["main"](tmp_path / "alone.npz")
        for process in processes:
            said, _ = process.communicate(timeout=TIME_LIMIT)
            assert process.returncode == 0, said[-4000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    first, second, alone = (dict(np.load(tmp_path / f"{name}.npz")) for name in (0, 1, "alone"))
    assert first.keys() == second.keys() == alone.keys()
    assert len([key for key in first if key.startswith("ema")]) > 5
    for key, value in first.items():
        # Each worker keeps its own copies and none was sent, yet they agree to the bit.
        assert value.tobytes() == second[key].tobytes(), key
        np.testing.assert_allclose(value, alone[key], rtol=2e-5, atol=2e-6, err_msg=key)
