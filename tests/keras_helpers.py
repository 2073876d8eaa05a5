"""Tiny models, data and trainings for every backend of Keras, and what tests ask of them."""

import keras
import numpy as np
from helpers import average_of
from keras import ops

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(64, 6)) * 2 + 1).astype(np.float32)
Y = (X @ RNG.normal(size=(6, 1)) * 0.2 + 0.3 * RNG.normal(size=(64, 1))).astype(np.float32)
VALIDATION = (X[:24], Y[:24])
FIT = {"batch_size": 16, "shuffle": False, "verbose": 0}  # four batches an epoch


def network(
    optimizer=None, *, norm=False, dropout=0.0, units=4, inputs=6, dtype=None, **compile_options
):
    """A compiled model of two dense layers, the same initial weights every time.

    Args:
        optimizer: SGD with a rate of 0.05 and momentum by default.
        norm: batch norm after the first layer.
        dropout: after batch norm, with a seed of its own.
        units: of the first layer.
        inputs: length of an input.
        dtype: of every layer; a name or a `keras.DTypePolicy`.
        compile_options: of `model.compile`.
    """
    keras.utils.set_random_seed(0)
    layers = [keras.Input((inputs,)), keras.layers.Dense(units, dtype=dtype)]
    if norm:
        layers.append(keras.layers.BatchNormalization(momentum=0.9, dtype=dtype, name="norm"))
    layers.append(keras.layers.Activation("tanh", dtype=dtype))
    if dropout:
        layers.append(keras.layers.Dropout(dropout, seed=1, dtype=dtype))
    model = keras.Sequential([*layers, keras.layers.Dense(1, dtype=dtype)])
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, **{"loss": "mse", "metrics": ["mae"], **compile_options})
    return model


def fit(model, *callbacks, x=X, y=Y, epochs=1, **options):
    """`model.fit` on the data here, in their order."""
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **{**FIT, **options})


def arrays_of(variables):
    """The values of variables, copied into NumPy arrays."""
    return [np.array(ops.convert_to_numpy(variable.value)) for variable in variables]


def trainable(model):
    """The trainable weights as arrays."""
    return arrays_of(model.trainable_variables)


def everything(model):
    """The values of all variables of a model: weights, optimizer, metrics, seeds."""
    rest = {} if model.optimizer is None else {"optimizer": model.optimizer.variables}
    groups = {"model": model.variables, "metrics": model.metrics_variables, **rest}
    return {
        f"{group} {i}": array
        for group, variables in groups.items()
        for i, array in enumerate(arrays_of(variables))
    }


class Iterates(keras.callbacks.Callback):
    """Keeps the trainable weights at the start and after every batch that changed them.

    Args:
        every_batch: keep them after a batch that changed nothing, too.
        variables: a function of the model; its trainable variables by default.
    """

    def __init__(self, every_batch=False, variables=None):
        super().__init__()
        self.values, self.every_batch = [], every_batch
        self.variables = variables or (lambda model: model.trainable_variables)

    def on_epoch_begin(self, epoch, logs=None):
        self.keep(again=False)

    def on_train_batch_end(self, batch, logs=None):
        self.keep(again=self.every_batch)

    def keep(self, again=False):
        now = arrays_of(self.variables(self.model))
        if (
            again
            or not self.values
            or any(a.tobytes() != b.tobytes() for a, b in zip(now, self.values[-1], strict=True))
        ):
            self.values.append(now)


class Killed(Exception):
    """What `KillAfter` raises."""


class KillAfter(keras.callbacks.Callback):
    """Ends a training as if its process had died: nothing is tidied up."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch, logs=None):
        self.batches -= 1
        if not self.batches:
            raise Killed


def assert_follows(averaging, iterates, tolerance=2e-6):
    """Every average is `kernel.weights` applied to all iterates, in float64."""
    assert averaging.num_updates == len(iterates) - 1
    for name, kernel in averaging.averages.items():
        for actual, expected in zip(
            averaging.get_average(name), average_of(kernel, iterates), strict=True
        ):
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
