"""`AveragedOptimizer`: the same averages however a step is made, and around any Keras optimizer.

`test_contract` holds it to the kernels' definition, beside the callback.
"""

import re

import keras
import numpy as np
import pytest
from helpers import assert_same_bits
from keras import ops
from keras_helpers import Iterates, X, Y, arrays_of, assert_follows, fit, network, trainable

from tf_lrtraj import AveragedOptimizer, WeightAveraging, backend, kernels, schedules
from tf_lrtraj.averaging.averaged_optimizer import find_averaged

KERNELS = {
    "ema": kernels.Exponential(0.8),
    "ema_long": kernels.Exponential(0.9999),
    "swa": kernels.Uniform(start=3, every=2),
    "power": kernels.PowerFunction(2.0),
    "window": kernels.Window(4, every=2),
    "two_point": kernels.TwoPoint(6),
}
SOME = {"ema": KERNELS["ema"], "window": KERNELS["window"]}
on_torch = backend.name() == "torch"


def momentum(**options):
    return keras.optimizers.SGD(**{"learning_rate": 0.05, "momentum": 0.9, **options})


def averaged(inner=None, averages=SOME, **options):
    return AveragedOptimizer(inner or momentum(), averages, **options)


def found_in(averages):
    """Every array of every average."""
    return {
        f"{name} {index}": array
        for name in averages.averages
        for index, array in enumerate(averages.get_average(name))
    }


def assert_near(found, expected, tolerance):
    assert list(found) == list(expected)
    for name, array in expected.items():
        close = {"rtol": tolerance, "atol": tolerance, "err_msg": name}
        np.testing.assert_allclose(found[name], array, **close)


# However a step is made -----------------------------------------------------------------------

SIZE = 4  # sixteen updates an epoch
BATCHES = [(X[i : i + SIZE], Y[i : i + SIZE]) for i in range(0, len(X), SIZE)]
# JAX compiles a callback's update apart from the step, and torch compiles nothing.
COMPILED = {} if on_torch else {"jit_compile": backend.name() == "jax"}


@pytest.fixture(scope="module")
def reference():
    """Averages of the callback, the last weights, and all iterates of a training."""
    model, averaging, iterates = (
        network(momentum(), **COMPILED),
        WeightAveraging(KERNELS),
        Iterates(),
    )
    fit(model, averaging, iterates, batch_size=SIZE)
    return found_in(averaging), trainable(model), iterates.values


@pytest.mark.parametrize("steps", [1] if on_torch else [1, 5, 7])
def test_callback_and_optimizer_agree_to_the_bit(reference, steps):
    model = network(averaged(averages=KERNELS), **COMPILED, steps_per_execution=steps)
    fit(model, batch_size=SIZE)
    assert model.optimizer.num_updates == len(BATCHES)
    assert_same_bits(trainable(model), reference[1])
    assert_same_bits(found_in(model.optimizer), reference[0])


def own_step(model, optimizer):
    """A function of a batch that makes one step of a custom loop."""
    weights = model.trainable_variables
    if backend.name() == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = ops.mean((model(x, training=True) - y) ** 2)
            optimizer.apply(tape.gradient(loss, [v.value for v in weights]), weights)

        return step
    if backend.name() == "torch":
        import torch

        def step(x, y):
            loss = ops.mean((model(x, training=True) - y) ** 2)
            grads = torch.autograd.grad(loss, [v.value for v in weights])
            with torch.no_grad():
                optimizer.apply(list(grads), weights)

        return step
    import jax

    optimizer.build(weights)
    rest = backend.values(model.non_trainable_variables)

    def loss(values, x, y):
        return ops.mean((model.stateless_call(values, rest, x, training=True)[0] - y) ** 2)

    @jax.jit
    def pure(values, held, x, y):
        return optimizer.stateless_apply(held, jax.grad(loss)(values, x, y), values)

    def step(x, y):
        variables = [weights, optimizer.variables]
        new = pure(*map(backend.values, variables), x, y)
        for group, values in zip(variables, new, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)

    return step


def own_train_step(model, optimizer):
    """A model of the same layers that makes its steps by a `train_step` of its own."""
    if backend.name() == "jax":

        class Model(keras.Model):
            def train_step(self, state, data):
                import jax

                values, rest, held, metrics = state

                def loss(values, x, y):
                    return ops.mean((self.stateless_call(values, rest, x)[0] - y) ** 2)

                x, y = data[:2]
                value, grads = jax.value_and_grad(loss)(values, x, y)
                values, held = self.optimizer.stateless_apply(held, grads, values)
                return {"loss": value}, (values, rest, held, metrics)

    else:

        class Model(keras.Model):
            def train_step(self, data):
                self.own_step(*data[:2])
                return {"loss": 0.0}

    other = Model(model.inputs, model.outputs)
    other.compile(optimizer, **COMPILED)
    if backend.name() != "jax":
        other.own_step = own_step(other, optimizer)
    return other


def by_fit(model):
    fit(model, batch_size=SIZE)


def by_train_on_batch(model):
    for x, y in BATCHES:
        model.train_on_batch(x, y)


def by_loop(model):
    step = own_step(model, model.optimizer)
    for x, y in BATCHES:
        step(ops.convert_to_tensor(x), ops.convert_to_tensor(y))


def by_train_step(model):
    fit(own_train_step(model, model.optimizer), batch_size=SIZE)


# What compiles otherwise than the reference may round otherwise.
WAYS = {
    "train_on_batch": (by_train_on_batch, COMPILED),
    "train_step": (by_train_step, COMPILED),
    "loop": (by_loop, COMPILED),
    "run_eagerly": (by_fit, {"run_eagerly": True}),
    **({} if on_torch else {"jit_compile": (by_fit, {"jit_compile": not COMPILED["jit_compile"]})}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_make_steps_gives_the_same_averages(reference, way):
    train, options = WAYS[way]
    model = network(averaged(averages=KERNELS), **options)
    train(model)
    assert model.optimizer.num_updates == len(BATCHES)
    # Where the weights are those of the reference to the bit, only the averages' own rounding
    # is left; elsewhere sixteen steps have carried the difference on.
    same = all(
        one.tobytes() == other.tobytes()
        for one, other in zip(trainable(model), reference[1], strict=True)
    )
    assert_near(found_in(model.optimizer), reference[0], 1e-7 if same else 2e-6)


def test_a_fused_update_of_many_weights_is_the_same(monkeypatch):
    # Large models have it compiled by XLA on TensorFlow, in steps that are not.
    from tf_lrtraj.backend import compiled_updates

    monkeypatch.setattr(compiled_updates, "XLA_FROM", 1)
    model, iterates = network(averaged(averages=KERNELS), **COMPILED), Iterates()
    fit(model, iterates, batch_size=SIZE)
    assert_follows(model.optimizer, iterates.values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_averages_are_of_the_short_weights_that_are_stored(dtype):
    # XLA leaves out the rounding of a result that is cast back at once.
    options = {} if on_torch else {"jit_compile": True}
    optimizer, iterates = averaged(averages=KERNELS), Iterates(every_batch=True)
    fit(network(optimizer, dtype=keras.DTypePolicy(dtype), **options), iterates, epochs=2)
    wide = [[array.astype(np.float64) for array in one] for one in iterates.values]
    assert_follows(optimizer, wide)


# Around any optimizer -------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": lambda: momentum(nesterov=True, clipvalue=0.5),
    "Adam": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1),
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "Lion": lambda: keras.optimizers.Lion(0.01),
    "Muon": lambda: keras.optimizers.Muon(0.01),
    "Adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "schedule": lambda: keras.optimizers.SGD(
        schedules.EquivalentSchedule(kernels.TwoPoint(2), base=0.1, num_steps=4)
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_averages_of_any_optimizer_and_its_steps_are_its_own(name):
    make = OPTIMIZERS[name]
    plain, model, iterates = (
        network(make(), **COMPILED),
        network(averaged(make()), **COMPILED),
        Iterates(),
    )
    for each in (plain, model):
        if name == "AdamW":
            each.optimizer.exclude_from_weight_decay(var_names=["bias"])
    fit(plain)
    fit(model, iterates)
    assert_follows(model.optimizer, iterates.values)
    # XLA may fuse a step with what follows it, and then round otherwise.
    tolerance = 1e-6 if backend.name() == "jax" else 0
    for one, other in zip(trainable(model), trainable(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    counts = [int(ops.convert_to_numpy(each.optimizer.iterations)) for each in (plain, model)]
    assert counts == [4, 4]


def scaled(inner):
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)


def accumulated(steps):
    return momentum(gradient_accumulation_steps=steps)


def several(first, second):
    """Of the kernels one optimizer, of the biases another."""
    return keras.optimizers.MultiOptimizer(lambda v: first if "kernel" in v.path else second)


# (optimizer, updates that eight batches make, of which the third has no finite gradient where a
# loss is scaled)
NOT_EVERY_STEP = {
    "accumulated": (lambda: averaged(accumulated(3)), 2),
    "scaled inside": (lambda: averaged(scaled(momentum())), 7),
    "scaled outside": (lambda: scaled(averaged()), 7),
    "accumulated, scaled inside": (lambda: averaged(scaled(accumulated(2))), 3),
    "accumulated, scaled outside": (lambda: scaled(averaged(accumulated(2))), 3),
    "several": (lambda: averaged(several(momentum(), keras.optimizers.Adam(0.01))), 8),
    "several accumulate": (lambda: averaged(several(accumulated(2), accumulated(4))), 4),
    "one of several accumulates": (lambda: averaged(several(momentum(), accumulated(4))), 8),
}


@pytest.mark.parametrize("name", NOT_EVERY_STEP)
def test_only_what_moves_the_weights_is_an_update(name):
    make, updates = NOT_EVERY_STEP[name]
    x = X.copy()
    if "scaled" in name:
        x[16:24] = np.inf
    model, iterates = network(make(), metrics=[]), Iterates()
    fit(model, iterates, x=x, batch_size=8)
    optimizer = find_averaged(model.optimizer)
    assert optimizer.num_updates == updates
    assert all(np.isfinite(array).all() for array in trainable(model))
    assert_follows(optimizer, iterates.values)


def test_keras_wraps_it_for_mixed_float16():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, iterates = network(averaged()), Iterates()
    finally:
        keras.config.set_dtype_policy(policy)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    fit(model, iterates)
    assert_follows(find_averaged(model.optimizer), iterates.values)


def test_the_learning_rate_is_the_inner_optimizers():
    def halve(epoch, rate):
        return rate / 2

    model = network(averaged())
    model.optimizer.learning_rate = 0.02
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=1e9)
    scheduler = keras.callbacks.LearningRateScheduler(halve)
    rates = fit(model, scheduler, plateau, epochs=3).history["learning_rate"]
    # The first epoch is the best so far; each later one is no progress.
    assert rates == pytest.approx([0.01, 0.005, 0.00025])
    now = ops.convert_to_numpy(model.optimizer.inner.learning_rate)
    assert float(ops.convert_to_numpy(model.optimizer.learning_rate)) == float(now)


# What it averages -----------------------------------------------------------------------------


def test_weights_loaded_before_the_first_step_are_where_averages_begin():
    model = network(averaged(averages=KERNELS))
    model.optimizer.build(model.trainable_variables)
    loaded = [2 * array + 1 for array in model.get_weights()]
    model.set_weights(loaded)
    for name in KERNELS:
        for one, other in zip(model.optimizer.get_average(name), loaded, strict=True):
            np.testing.assert_array_equal(one, other)
    iterates = Iterates()
    fit(model, iterates, batch_size=SIZE)
    assert_same_bits(iterates.values[0], loaded)
    assert_follows(model.optimizer, iterates.values)


def test_reset_begins_anew():
    model = network(averaged())
    fit(model)
    model.optimizer.reset()
    assert model.optimizer.num_updates == 0
    for name in SOME:
        assert_same_bits(model.optimizer.get_average(name), trainable(model))
    iterates = Iterates()
    fit(model, iterates)
    assert_follows(model.optimizer, iterates.values)


def test_frozen_and_unused_variables():
    model = network()
    model.layers[0].trainable = False
    model.compile(averaged(), "mse")
    frozen = arrays_of(model.layers[0].variables)
    iterates = Iterates()
    fit(model, iterates)
    assert [a.shape for a in model.optimizer.get_average("ema")] == [(4, 1), (1,)]
    assert_follows(model.optimizer, iterates.values)
    assert_same_bits(arrays_of(model.layers[0].variables), frozen)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_variable_without_gradient_stays_what_it_is():
    optimizer = averaged(averages={"ema": kernels.Exponential(0.8)})
    variables = [keras.Variable(ops.ones(3)), keras.Variable(ops.full((2,), 5.0))]
    optimizer.apply([ops.ones(3), None], variables)
    assert optimizer.num_updates == 1
    assert_near(found_in(optimizer), {"ema 0": np.full(3, 0.99), "ema 1": np.full(2, 5.0)}, 1e-6)


def test_weights_of_the_optimizer_can_be_set():
    first, second = network(averaged()), network(averaged())
    fit(first)
    second.optimizer.build(second.trainable_variables)
    second.optimizer.set_weights(arrays_of(first.optimizer.variables))
    assert second.optimizer.num_updates == 4
    assert_same_bits(arrays_of(second.optimizer.variables), arrays_of(first.optimizer.variables))
    for name in SOME:
        assert_same_bits(second.optimizer.get_average(name), first.optimizer.get_average(name))


def test_names_of_its_variables_differ():
    optimizer = averaged(averages={**KERNELS, "gap=2+1": kernels.TwoPoint(3)})
    optimizer.build(network().trainable_variables)
    paths = [variable.path for variable in optimizer.variables]
    assert len(set(paths)) == len(paths), paths


# What it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AveragedOptimizer("sgd", SOME), r"`inner` must be a Keras optimizer.*'sgd'"),
        (lambda: averaged(averaged()), "`inner` must be an optimizer without averages"),
        (lambda: averaged(scaled(averaged())), "`inner` must be an optimizer without averages"),
        (
            lambda: averaged(momentum(use_ema=True)),
            r"must not have `use_ema`.*Exponential\(0\.99\)",
        ),
        (lambda: averaged(scaled(momentum(use_ema=True))), "must not have `use_ema`"),
        (lambda: averaged(averages={}), "`averages` must be a non-empty dict"),
        (lambda: averaged(averages={"ema": 0.99}), r"must be a kernel .*Received: 0\.99"),
        (lambda: averaged(averages={"a": {"kernel": "Emma"}}), "must be .*'Emma'"),
        (lambda: averaged(averages={"raw": kernels.Uniform()}), "'raw'"),
        (
            lambda: averaged(averages={"a": {"kernel": "Uniform", "start": "2 epochs"}}),
            r"`averages\['a'\]` must be a kernel with numbers of updates.*2 epochs",
        ),
        (lambda: averaged(precision="half"), "`precision` must be one of .*'half'"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_a_part_that_keeps_an_average_is_refused_when_it_is_known():
    optimizer = averaged(several(momentum(), momentum(use_ema=True)))
    with pytest.raises(ValueError, match="must not have `use_ema`"):
        optimizer.build(network().trainable_variables)


def test_an_optimizer_that_is_not_built_has_no_averages():
    with pytest.raises(RuntimeError, match=re.escape("optimizer.build(model.trainable_variables)")):
        averaged().get_average("ema")


def test_an_unknown_average_is_named():
    optimizer = averaged()
    optimizer.build(network().trainable_variables)
    with pytest.raises(KeyError, match=r"must be one of \['ema', 'window'\].*'swa'"):
        optimizer.get_average("swa")


def test_a_configuration_makes_the_same_optimizer():
    optimizer = averaged(keras.optimizers.AdamW(0.01), KERNELS, precision="double", name="mine")
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, AveragedOptimizer)
    assert again.get_config() == optimizer.get_config()
    assert {name: repr(kernel) for name, kernel in again.averages.items()} == {
        name: repr(kernel) for name, kernel in KERNELS.items()
    }
