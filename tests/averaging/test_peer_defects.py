"""One test per defect found in other tools for averaging weights.

Each test states what must hold, shows that the defective way (the peer itself where it is
installed with Keras, a few lines that do the same where it is not) does not fulfil it, and
that ours does.
"""

import contextlib

import keras
import keras_helpers
import ml_dtypes
import numpy as np
import pytest
from helpers import average_of
from keras import ops
from keras_helpers import FIT, Iterates, X, Y, arrays_of, trainable

from tf_lrtraj import WeightAveraging, backend, kernels
from tf_lrtraj.backend import batch_norm as bn

on_tensorflow = pytest.mark.skipif(
    backend.name() != "tensorflow", reason="the peer does so on TensorFlow only"
)


def network(optimizer=None, **options):
    optimizer = optimizer or keras.optimizers.SGD(0.05)
    return keras_helpers.network(optimizer, units=8, **options)


def changed(before, after):
    """How many numbers differ, and of how many."""
    count = sum(int(np.sum(a != b)) for a, b in zip(before, after, strict=True))
    return count, sum(a.size for a in before)


def distance(actual, expected):
    return max(np.abs(a - e).max() for a, e in zip(actual, expected, strict=True))


def test_averaged_weights_evaluated_with_the_statistics_of_other_weights():
    model = network(norm=True)
    averaging = WeightAveraging(
        {"far": kernels.Custom([-2.0, 0, 0, 3.0])}, batch_norm_data=X, batch_norm="recompute"
    )
    model.fit(X, Y, epochs=4, callbacks=[averaging], **FIT)

    def error_of_statistics(model):
        hidden, norm = model.layers[:2]
        seen = ops.convert_to_numpy(hidden(X)).astype(np.float64)
        mean, variance = arrays_of([norm.moving_mean, norm.moving_variance])
        return max(
            np.abs(mean - seen.mean(0)).max() / seen.std(), np.abs(variance / seen.var(0) - 1).max()
        )

    # The peers put the average beside the running statistics of the raw weights.
    averaging.batch_norm["far"] = "copy"
    with averaging.borrowed("far"):
        assert error_of_statistics(model) > 0.1
    averaging.batch_norm["far"] = "recompute"
    with averaging.borrowed("far"):
        assert error_of_statistics(model) < 1e-5


def swapped_by_arithmetic(weights, averages):
    """a += b; b = a - b; a = a - b, which needs no third buffer and rounds three times."""
    for a, b in zip(weights, averages, strict=True):
        a += b
        b[...] = a - b
        a -= b


def test_swapping_weights_by_adding_and_subtracting():
    model = network()
    averaging = WeightAveraging({"ema": kernels.Exponential(0.9)})
    model.fit(X, Y, callbacks=[averaging], **FIT)
    before = trainable(model)
    weights, averages = [w.copy() for w in before], averaging.get_average("ema")
    swapped_by_arithmetic(weights, averages)
    swapped_by_arithmetic(weights, averages)
    count, total = changed(before, weights)
    assert count > 0.1 * total
    for _ in range(3):
        with averaging.borrowed("ema"):
            assert changed(before, trainable(model))[0] > 0.5 * total
    assert changed(before, trainable(model)) == (0, total)


@on_tensorflow
def test_swapping_weights_as_keras_does():
    model = network(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9))
    seen = []
    swap = keras.callbacks.SwapEMAWeights()

    class AroundEvaluation(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(trainable(self.model))
            self.model.evaluate(X, Y, verbose=0, callbacks=[swap])
            seen.append(trainable(self.model))

    model.fit(X, Y, callbacks=[AroundEvaluation()], **FIT)
    assert changed(*seen)[0] > 0  # the defect is still there
    averaging = WeightAveraging({"ema": kernels.Exponential(0.9)})
    averaging.set_model(model)
    before = trainable(model)
    averaging.evaluate((X, Y))
    assert changed(before, trainable(model))[0] == 0


def test_an_exception_leaves_the_average_in_the_model():
    model = network()
    averaging = WeightAveraging({"ema": kernels.Exponential(0.9)})
    model.fit(X, Y, callbacks=[averaging], **FIT)
    before = trainable(model)

    def fails():
        raise KeyboardInterrupt

    # The peers' way: put the average in, use it, put the raw weights back.
    with contextlib.suppress(KeyboardInterrupt):
        model.set_weights(averaging.get_average("ema"))
        fails()
        model.set_weights(before)
    assert changed(before, trainable(model))[0] > 0
    model.set_weights(before)
    with contextlib.suppress(KeyboardInterrupt), averaging.borrowed("ema"):
        fails()
    assert changed(before, trainable(model))[0] == 0

    class Fails(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    # And from the middle of Keras' own loop, where JAX's variables are not in the model.
    with pytest.raises(KeyboardInterrupt):
        averaging.evaluate((X, Y), callbacks=[Fails()])
    assert changed(before, trainable(model))[0] == 0
    with pytest.raises(KeyboardInterrupt), averaging.borrowed("ema"):
        model.evaluate(X, Y, verbose=0, callbacks=[Fails()])
    assert changed(before, trainable(model))[0] == 0
    assert averaging.evaluate((X, Y))["raw"]["loss"] > 0


def test_a_fit_that_ends_with_the_raw_weights_overwritten():
    def ends_raw(model, *callbacks):
        last = Iterates()
        model.fit(X, Y, callbacks=[*callbacks, last], **FIT)
        return changed(trainable(model), last.values[-1])[0] == 0

    assert not ends_raw(network(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9)))
    assert ends_raw(network(), WeightAveraging({"ema": kernels.Exponential(0.9)}))


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_a_run_that_resumes_with_raw_weights_and_average_exchanged(tmp_path):
    def raw_weights_after_resuming(name, make):
        """The weights that training goes on from, and those it had been stopped at."""
        seen = Iterates()
        folder = str(tmp_path / name)
        with contextlib.suppress(KeyboardInterrupt):
            model, before = make()
            backup = keras.callbacks.BackupAndRestore(folder)
            model.fit(X, Y, epochs=3, callbacks=[seen, *before, backup, Stop()], **FIT)
        resumed = Iterates()
        model, before = make()
        backup = keras.callbacks.BackupAndRestore(folder)
        model.fit(X, Y, epochs=3, callbacks=[*before, backup, resumed], **FIT)
        return resumed.values[0], seen.values[-1], before

    def peer():
        model = network(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9))
        return model, [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]

    resumed, stopped, _ = raw_weights_after_resuming("peer", peer)
    assert distance(resumed, stopped) > 1e-3

    def ours():
        return network(), [WeightAveraging({"ema": kernels.Exponential(0.9)})]

    resumed, stopped, callbacks = raw_weights_after_resuming("ours", ours)
    assert changed(resumed, stopped)[0] == 0
    assert callbacks[0].num_updates == 12
    assert distance(callbacks[0].get_average("ema"), resumed) > 1e-3


def test_an_average_in_bfloat16_that_never_moves():
    # Kept in the weights' own precision, at decay 0.999: 0.001 of a difference is below half a
    # unit in the last of bfloat16's 8 binary digits.
    average = np.float64(1.0)
    twin = ml_dtypes.bfloat16(1.0)
    for _ in range(1000):
        average = 0.999 * average + 0.001 * 1.5
        twin = ml_dtypes.bfloat16(
            ml_dtypes.bfloat16(0.999) * twin + ml_dtypes.bfloat16(0.001) * ml_dtypes.bfloat16(1.5)
        )
    assert average > 1.3 and float(twin) == 1.0
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, dtype="bfloat16")])
    averaging = WeightAveraging({"ema": kernels.Exponential(0.999)})
    model.set_weights([np.ones((3, 1)), np.ones(1)])
    averaging.set_model(model)
    moved = [np.full((3, 1), 1.5), np.full(1, 1.5)]
    for _ in range(1000):
        backend.assign(model.trainable_variables, moved)
        averaging.update()
    for value in averaging.get_average("ema"):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, average, rtol=1e-5)


def test_updating_an_average_on_the_micro_steps_of_gradient_accumulation():
    accumulate = {"learning_rate": 0.05, "gradient_accumulation_steps": 4}
    kernel = kernels.Exponential(0.8, start=1)  # Keras' average starts from the first update
    peer = network(keras.optimizers.SGD(**accumulate, use_ema=True, ema_momentum=0.8))
    iterates = Iterates()
    peer.fit(X, Y, epochs=6, callbacks=[iterates], **FIT)
    average = trainable(peer)  # where Keras leaves it
    assert len(iterates.values) == 7
    assert distance(average, average_of(kernel, iterates.values)) > 1e-3

    ours = network(keras.optimizers.SGD(**accumulate))
    averaging, iterates = WeightAveraging({"ema": kernel}), Iterates()
    ours.fit(X, Y, epochs=6, callbacks=[averaging, iterates], **FIT)
    assert averaging.num_updates == 6
    assert distance(averaging.get_average("ema"), average_of(kernel, iterates.values)) < 1e-6


def test_statistics_measured_by_calling_the_model_in_training_mode():
    model = network(norm=True, dropout=0.2)
    before = arrays_of(model.variables)
    model(X, training=True)  # moves running statistics, and dropout's random stream
    moved = arrays_of(model.variables)
    assert changed(before, moved)[0] >= 16 + 1
    values = [backend.values(v) for v in (model.trainable_variables, model.non_trainable_variables)]
    bn.recompute(model, *values, X, batch_size=40)
    assert changed(moved, arrays_of(model.variables))[0] == 0


def test_the_last_partial_batch_is_dropped():
    model = network(norm=True)
    averaging = WeightAveraging({"ema": kernels.Exponential(0.9)}, batch_norm_data=X, batch_size=40)
    model.fit(X, Y, callbacks=[averaging], **FIT)
    with averaging.borrowed("ema"):
        seen = ops.convert_to_numpy(model.layers[0](X)).astype(np.float64)
        (mean,) = arrays_of([model.layers[1].moving_mean])
    assert np.abs(mean - seen[:40].mean(0)).max() > 1e-2
    np.testing.assert_allclose(mean, seen.mean(0), rtol=1e-5, atol=1e-5)


def test_weights_between_two_sightings_are_left_out_in_silence():
    # With steps_per_execution=4 callbacks see every fourth step: an average that follows them
    # is of other iterates than it says.
    if backend.name() == "torch":
        pytest.skip("Keras itself refuses steps_per_execution there")
    model = network()
    model.compile("sgd", "mse", steps_per_execution=4)
    sightings = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: sightings.append(batch)
    )
    model.fit(X, Y, callbacks=[count], **FIT)
    assert len(sightings) == 1 and int(model.optimizer.iterations) == 4
    averaging = WeightAveraging({"ema": kernels.Exponential(0.9)})
    before = trainable(model)
    with pytest.raises(ValueError, match="steps_per_execution=1"):
        model.fit(X, Y, callbacks=[averaging], **FIT)
    assert changed(before, trainable(model))[0] == 0
