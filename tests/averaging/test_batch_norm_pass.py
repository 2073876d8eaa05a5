"""The pass in which batch-norm statistics are measured is the pass that training runs.

One table of models and the ways in which they are called, one of layers and policies.
References are moments taken with NumPy of what a network is given.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tf_lrtraj import WeightAveraging, backend, kernels
from tf_lrtraj.backend import batch_norm as bn

X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) * 2.0 + 1.0
Y = np.random.default_rng(1).integers(0, 3, 40)
JAX, TORCH = backend.name() == "jax", backend.name() == "torch"
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def array(value):
    return np.asarray(ops.convert_to_numpy(value))


def values(model):
    return backend.values(model.trainable_variables), backend.values(model.non_trainable_variables)


def everything(model):
    optimizers = [v for v in vars(model).values() if isinstance(v, keras.optimizers.Optimizer)]
    variables = [*model.variables, *model.metrics_variables]
    for optimizer in optimizers:
        variables += optimizer.variables
    return [array(variable.value).tobytes() for variable in variables]


def recomputed(model, data, call=None, recompute=None, **options):
    """(mean, variance) of each layer of batch norm, with a check that nothing else changed."""
    before = everything(model)
    recompute = recompute or bn.Recompute(model, call)
    result = recompute(*values(model), data, **options)
    assert everything(model) == before
    places = [(entry.mean, entry.variance) for entry in bn.find_statistics(model)]
    return [(array(result[mean]), array(result[variance])) for mean, variance in places]


def check(found, seen):
    seen = seen.astype(np.float64)
    np.testing.assert_allclose(found[0], seen.mean(0), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found[1], seen.var(0), rtol=1e-4, atol=1e-5)


# Models and the ways in which they are called ---------------------------------------------------


class Network(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Dense(4, kernel_initializer=keras.initializers.HeNormal(seed=1))
        self.norm = layers.BatchNormalization()
        self.last = layers.Dense(3)

    def call(self, inputs, training=None):
        return self.last(self.norm(self.first(inputs), training=training))


class ByContext(Network):
    def call(self, inputs, training=None):
        return self.last(self.norm(self.first(inputs)))


class WithoutArgument(Network):
    def call(self, inputs):
        return self.last(self.norm(self.first(inputs)))


class HiddenArgument(Network):
    def call(self, inputs, **options):
        return self.last(self.norm(self.first(inputs), **options))


def with_step(prepare, base=Network):
    """A model whose `train_step` changes the data before it hands them on."""

    class Prepares(base):
        if JAX:

            def train_step(self, state, data):
                return super().train_step(state, prepare(data))
        else:

            def train_step(self, data):
                return super().train_step(prepare(data))

    return Prepares


def rescaled(data):
    return data[0] / 2.0 - 1.0, data[1]


def rescaled_for_labels(data):
    inputs, labels = data
    return inputs / 2.0 - 1.0, ops.argmax(ops.one_hot(labels, 3), axis=-1)


def rescaled_alone(data):
    return ops.cast(data, "float32") / 2.0 - 1.0, None


class Pipeline(Network):
    """Prepares whole data sets in `fit`, `evaluate` and `predict`, as models with preprocessors."""

    def fit(self, x=None, y=None, **options):
        return super().fit(x / 2.0 - 1.0, y, **options)

    def evaluate(self, x=None, y=None, **options):
        return super().evaluate(x / 2.0 - 1.0, y, **options)

    def predict(self, x, **options):
        return super().predict(x / 2.0 - 1.0, **options)


class Block(layers.Layer):
    """Takes `training` from the call around it."""

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, inputs, **options):
        return self.norm(inputs, **options)


def of_blocks():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), Block(), layers.Dense(3)])
    model.first = model.layers[0]
    return model


def built(make):
    model = make()
    model(X[:2])
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    return model


def first_outputs(model, x):
    return array(model.first(x))


WAYS = {
    "training given on": (Network, X, lambda x: x),
    "training from the context": (ByContext, X, lambda x: x),
    "no argument training": (WithoutArgument, X, lambda x: x),
    "training hidden in kwargs": (HiddenArgument, X, lambda x: x),
    "a layer that hides it": (of_blocks, X, lambda x: x),
    "train_step, inputs alone": (with_step(rescaled), X, lambda x: x / 2 - 1),
    "train_step, (x, y)": (with_step(rescaled), (X, Y), lambda x: x / 2 - 1),
    "train_step that needs y": (with_step(rescaled_for_labels), (X, Y), lambda x: x / 2 - 1),
    "train_step of bare inputs": (with_step(rescaled_alone), X, lambda x: x / 2 - 1),
    "a chain of train_steps": (
        with_step(rescaled, with_step(rescaled)),
        [(X[:16], Y[:16]), (X[16:], Y[16:])],
        lambda x: (x / 2 - 1) / 2 - 1,
    ),
    "own evaluate": (Pipeline, (X, Y), lambda x: x / 2 - 1),
    "own predict": (Pipeline, X, lambda x: x / 2 - 1),
    "own evaluate, batches": (
        Pipeline,
        [(X[:16], Y[:16]), (X[16:], Y[16:])],
        lambda x: x / 2 - 1,
    ),
    "own predict and train_step": (
        with_step(rescaled, Pipeline),
        X,
        lambda x: (x / 2 - 1) / 2 - 1,
    ),
    "own evaluate and train_step": (
        with_step(rescaled, Pipeline),
        (X, Y),
        lambda x: (x / 2 - 1) / 2 - 1,
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_statistics_are_of_what_training_gives_the_network(way):
    make, data, prepare = WAYS[way]
    model = built(make)
    found = recomputed(model, data, batch_size=16)
    check(found[0], first_outputs(model, prepare(X)))


def test_a_step_inside_tf_function():
    tf = pytest.importorskip("tensorflow")
    if backend.name() != "tensorflow":
        pytest.skip("TensorFlow only")

    class Traced(Network):
        @tf.function
        def train_step(self, data):
            return super().train_step(rescaled(data))

    model = built(Traced)
    check(recomputed(model, (X, Y))[0], first_outputs(model, X / 2 - 1))


@pytest.mark.parametrize("make", [ByContext, WithoutArgument, HiddenArgument])
def test_batch_norm_that_training_runs_in_inference_mode_keeps_what_is_stored(make):
    # `fit` tells these models' batch norm nothing of training, so what is stored is what
    # they were trained with; a loop that calls `model(x, training=True)` does tell it.
    if make is ByContext and not JAX:
        pytest.skip("only on JAX does `fit` not tell")
    model = built(make)
    before = bn.Recompute(model)
    model.fit(X, Y, epochs=1, verbose=0)
    for recompute in (before, bn.Recompute(model)):
        ((mean, variance),) = recomputed(model, X, recompute=recompute)
        assert mean.tolist() == [0.0] * 4 and variance.tolist() == [1.0] * 4
    model = built(make)
    recompute = bn.Recompute(model)
    model(X, training=True)
    model.first.kernel.assign(2.0 * model.first.kernel)
    check(recomputed(model, X, recompute=recompute)[0], first_outputs(model, X))


def test_a_fit_is_the_same_with_and_without_statistics_measured_in_it():
    histories = []
    for callbacks in (
        [],
        [
            WeightAveraging(
                {"ema": kernels.Exponential(0.5)}, batch_norm_data=X, validation_data=(X, Y)
            )
        ],
    ):
        keras.utils.set_random_seed(0)
        model = built(with_step(rescaled, Pipeline))
        options = {"epochs": 3, "batch_size": 16, "verbose": 0, "shuffle": False}
        logs = model.fit(X, Y, callbacks=callbacks, **options).history
        histories.append((logs["loss"], everything(model)))
    assert histories[0] == histories[1]


class Adversarial(keras.Model):
    """Two networks with optimizers of their own; `call` uses one of them."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential(
            [keras.Input((6,)), layers.Dense(4), layers.BatchNormalization(name="of_generator")]
        )
        self.critic = keras.Sequential(
            [keras.Input((4,)), layers.BatchNormalization(name="of_critic"), layers.Dense(1)]
        )
        self.critic_optimizer = keras.optimizers.SGD(0.1)

    def call(self, inputs, training=None):
        return self.generator(inputs, training=training)

    if JAX:

        def train_step(self, state, data):
            made = self.generator(data[0], training=True)
            self.critic_optimizer.apply([ops.zeros_like(made)], self.critic.trainable_variables)
            return {}, state
    else:

        def train_step(self, data):
            made = self.generator(data[0], training=True)
            self.critic_optimizer.apply([ops.zeros_like(made)], self.critic.trainable_variables)
            return {}


def both_networks(model, batch):
    model.critic(model.generator(batch, training=True), training=True)


def test_what_calls_cannot_be_found_out_is_an_error_and_a_function_says_it():
    model = built(Adversarial)
    with pytest.raises(ValueError, match=r"`train_step` of Adversarial calls the model.*_call`"):
        recomputed(model, X)
    generator, critic = recomputed(model, X, both_networks)
    check(generator, array(model.generator.layers[0](X)))
    made = first_normalised(array(model.generator.layers[0](X)))
    check(critic, made)
    with pytest.raises(ValueError, match=r"\['of_critic'\] were not measured.*batch_norm_call"):
        recomputed(model, X, lambda model, batch: model(batch, training=True))
    model.critic.trainable = False
    assert len(recomputed(model, X, lambda model, batch: model(batch, training=True))) == 1


def first_normalised(x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)


def test_a_step_that_needs_targets_says_so():
    model = built(with_step(rescaled_for_labels))
    with pytest.raises(ValueError, match=r"calls the model, and it failed.*`batch_norm_data` with"):
        recomputed(model, X)


# Layers and policies ----------------------------------------------------------------------------


class RunningCentre(layers.Layer):
    def build(self, shape):
        self.centre = self.add_weight(shape=shape[-1:], initializer="zeros", trainable=False)

    def call(self, inputs, training=None):
        if training:
            self.centre.assign(0.9 * self.centre + 0.1 * ops.mean(inputs, axis=0))
        return inputs - self.centre


class Renormalised(layers.Layer):
    """Divides its own kernel whenever it trains."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4), initializer="ones", name="kernel")

    def call(self, inputs, training=None):
        if training:
            self.kernel.assign(self.kernel / ops.norm(self.kernel))
        return ops.matmul(inputs, self.kernel)


class Subclass(layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training, mask=mask) + 1.0


def spectral():
    return layers.SpectralNormalization(layers.Dense(4))


LAYERS = {
    "other statistics": (lambda: RunningCentre(name="centre"), r"layers \['centre'\] keep running"),
    "weights of its own": (Renormalised, r"itself changes the weights \['.*kernel'\]"),
    "spectral normalisation": (spectral, None),
    "adapted": (layers.Normalization, None),
    "a subclass": (Subclass, None),
    "frozen": (lambda: layers.BatchNormalization(trainable=False), None),
    "dropout": (lambda: layers.Dropout(0.5), None),
    "a recurrent state": (
        lambda: keras.Sequential(
            [layers.Reshape((3, 2)), layers.LSTM(4, stateful=True)], name="recurrent"
        ),
        None,
    ),
}


@pytest.mark.parametrize("policy", bn.POLICIES)
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_before_batch_norm(kind, policy):
    make, refusal = LAYERS[kind]
    stateful = kind == "a recurrent state"
    if stateful and TORCH:
        pytest.skip("Keras cannot train these on torch")
    inputs = keras.Input(batch_shape=(20 if stateful else None, 6))
    model = keras.Model(inputs, layers.BatchNormalization(name="norm")(make()(inputs)))
    model.compile("sgd", "mse")
    targets = np.zeros((40, model.output.shape[-1]), np.float32)
    averaging = WeightAveraging(
        {"ema": kernels.Exponential(0.5)}, policy, batch_norm_data=X, batch_size=20
    )
    options = {"epochs": 2, "batch_size": 20, "verbose": 0, "callbacks": [averaging]}
    if policy == "recompute" and refusal:
        before = [array(v.value) for v in model.variables]
        with pytest.raises(ValueError, match=refusal):  # and before the first step
            model.fit(X, targets, **options)
        for variable, value in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(array(variable.value), value)
        return
    model.fit(X, targets, **options)
    raw = array(model.get_layer("norm").moving_mean.value)
    with averaging.borrowed("ema"):
        norm = model.get_layer("norm")
        found = array(norm.moving_mean.value), array(norm.moving_variance.value)
        before = keras.Model(inputs, norm.input)
        seen = None if stateful else array(before(X))  # as inference sees it
    if policy == "copy":
        np.testing.assert_array_equal(found[0], raw)
    elif policy == "average":
        assert np.any(found[0] != raw)
    elif kind in ("spectral normalisation", "adapted", "frozen"):
        check(found, seen)


def test_averaged_variables_are_all_running_statistics_of_what_is_trained():
    inputs = keras.Input((6,))
    outputs = layers.BatchNormalization()(RunningCentre()(inputs))
    fixed = RunningCentre(trainable=False)
    model = keras.Model(inputs, layers.BatchNormalization(trainable=False)(fixed(outputs)))
    variables = bn.averaged_variables(model)
    assert [tuple(v.shape) for v in variables] == [(6,)] * 3
    new = [np.full(6, float(i), np.float32) for i in range(3)]
    put = bn.put_averaged(model, backend.values(model.non_trainable_variables), new)
    by_variable = dict(zip(map(id, model.non_trainable_variables), map(array, put), strict=True))
    for variable, value in zip(variables, new, strict=True):
        np.testing.assert_array_equal(by_variable.pop(id(variable)), value)
    kept = [array(v.value) for v in model.non_trainable_variables if id(v) in by_variable]
    for old, value in zip(kept, by_variable.values(), strict=True):
        np.testing.assert_array_equal(old, value)


@pytest.mark.skipif(not TORCH, reason="torch only")
def test_torch_modules_take_the_given_weights_and_their_batch_norm_is_refused():
    import torch

    module = torch.nn.Linear(6, 4)
    model = keras.Sequential([layers.TorchModuleWrapper(module), layers.BatchNormalization()])
    model(X[:2])
    trainable, rest = values(model)
    result = bn.recompute(model, [2.0 * value for value in trainable], rest, X)
    kernel, bias = (2.0 * p.detach().numpy() for p in module.parameters())
    (entry,) = bn.find_statistics(model)
    check((array(result[entry.mean]), array(result[entry.variance])), X @ kernel.T + bias)

    inner = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))
    model = keras.Sequential(
        [layers.TorchModuleWrapper(inner, name="wrapped"), layers.BatchNormalization()]
    )
    model(X[:2])
    model.compile("sgd", "mse")
    for policy in ("recompute", "average"):
        averaging = WeightAveraging({"ema": kernels.Uniform()}, policy, batch_norm_data=X)
        with pytest.raises(ValueError, match=rf"'{policy}' cannot serve BatchNorm1d '1'.*wrapped"):
            model.fit(X, np.zeros((40, 4)), verbose=0, callbacks=[averaging])
    bn.check_model(model, ["copy"])
