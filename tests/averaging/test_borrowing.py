"""A model is lent to one at a time, and comes back to the bit."""

import contextlib
import gc
import threading
import weakref

import keras
import numpy as np
import pytest
from helpers import assert_same_bits
from keras_helpers import X, Y, arrays_of, everything, fit, network, trainable

from tf_lrtraj import WeightAveraging, backend, kernels
from tf_lrtraj.averaging.borrowing import borrow, holder_of


def averaging():
    return WeightAveraging({"ema": kernels.Exponential(0.5), "swa": kernels.Uniform()})


@pytest.fixture(scope="module")
def pair():
    """A model and two callbacks that follow it; whoever uses them leaves them as they are."""
    model, first, second = network(), averaging(), averaging()
    fit(model, first, second)
    return model, first, second


@pytest.fixture
def lent(pair):
    """The model and the first callback; nothing of the model may have changed afterwards."""
    model, first, _ = pair
    before = everything(model)
    yield model, first
    assert holder_of(model) is None
    assert_same_bits(everything(model), before)


def weights(model):
    """The values of weights and metrics, without the optimizer's."""
    return arrays_of([*model.weights, *model.metrics_variables])


def test_two_callbacks_cannot_hold_one_model_at_once(lent, pair):
    model, first = lent
    second = pair[2]
    message = "already holds the average 'ema', borrowed in thread 'MainThread'"
    with first.borrowed("ema"):
        inside = everything(model)
        for other, name in ((first, "swa"), (second, "swa")):
            with pytest.raises(RuntimeError, match=message), other.borrowed(name):
                raise AssertionError("not reached")
        for call in (
            lambda: second.evaluate((X, Y)),
            lambda: second.save("swa", "never.keras"),
            second.update,
        ):
            with pytest.raises(RuntimeError, match="holds the average 'ema'"):
                call()
        with pytest.raises(RuntimeError, match="leave `borrowed`"):
            first.update()
        assert_same_bits(everything(model), inside)  # a refusal changes nothing
    for other in (first, second):  # and leaves nothing locked
        with other.borrowed("swa"):
            pass


def test_a_state_is_not_started_from_borrowed_weights(lent):
    model, first = lent
    late = averaging()
    late.set_model(model)
    with first.borrowed("ema"), pytest.raises(RuntimeError, match="cannot be averaged"):
        late.get_average("ema")
    np.testing.assert_equal(late.get_average("ema"), trainable(model))


def in_another_thread(borrow_it, name=None):
    """Borrows in another thread; returns the error's text, if there was one."""
    errors = []

    def other():
        try:
            with borrow_it():
                pass
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=other, name=name)
    thread.start()
    thread.join()
    return errors


def test_another_thread_is_refused_while_the_model_is_lent(lent):
    model, first = lent
    with first.borrowed("ema"):
        inside = everything(model)
        (error,) = in_another_thread(lambda: first.borrowed("swa"), "evaluator")
        assert_same_bits(everything(model), inside)
    assert "holds the average 'ema', borrowed in thread 'MainThread'" in error
    assert "'evaluator'" in error


def test_another_thread_is_refused_while_the_model_trains():
    first, errors = averaging(), []

    class Elsewhere(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            errors.extend(in_another_thread(lambda: first.borrowed("ema")))

    fit(network(), first, Elsewhere())
    assert len(errors) == 4
    assert "thread 'MainThread' is training the model" in errors[0]


@pytest.mark.parametrize("train", ["fit", "train_on_batch"])
def test_training_is_refused_before_a_weight_moves(train, lent):
    model, first = lent
    with first.borrowed("ema"):
        inside = everything(model)
        with pytest.raises(RuntimeError, match=r"holds the average 'ema'.*before training"):
            getattr(model, train)(X, Y)
        assert_same_bits(everything(model), inside)


OPTIMIZERS = {
    "the model's": (lambda model: model.optimizer, "made steps while the model held .* 'ema'"),
    "another": (lambda model: keras.optimizers.SGD(0.1), "were changed while .* 'ema'.*are lost"),
}


@pytest.mark.parametrize(("choose", "message"), OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_steps_inside_the_block_are_noticed_and_training_is_possible_again(choose, message):
    first, model = averaging(), network()
    fit(model, first)
    before = weights(model)
    optimizer = choose(model)
    own = optimizer is model.optimizer
    told = pytest.raises(RuntimeError, match=message) if own else pytest.warns(match=message)
    with told, first.borrowed("ema"):
        variables = model.trainable_variables
        optimizer.apply([keras.ops.ones(v.shape) for v in variables], variables)
    assert_same_bits(weights(model), before)
    assert holder_of(model) is None
    fit(model)


def test_quantizing_a_lent_model_is_refused(lent):
    model, first = lent
    own = model.quantize
    with first.borrowed("ema"), pytest.raises(RuntimeError, match="before quantizing"):
        model.quantize("int8")
    assert model.quantize is own


def test_variables_replaced_in_the_block_are_noticed():
    first, model = averaging(), network()
    fit(model, first)
    with (
        pytest.raises(RuntimeError, match="were replaced while it held the average 'ema'"),
        first.borrowed("ema"),
    ):
        model.layers[0].quantize("int8")


def test_a_block_that_is_dropped_gives_the_model_back(lent):
    model, first = lent
    block = first.borrowed("ema")
    block.__enter__()
    assert holder_of(model) is not None
    del block
    gc.collect()


def test_models_and_averages_can_be_deleted():
    first, model = averaging(), network()
    fit(model, first)
    with first.borrowed("ema"):
        pass
    watched = weakref.ref(first.state)
    del first
    gc.collect()
    assert watched() is None
    model.predict(X, verbose=0)


def test_borrowing_without_an_optimizer():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    before = weights(model)
    ones = [np.ones(v.shape, np.float32) for v in model.trainable_variables]
    with (
        borrow(model, ones, []),
        pytest.raises(RuntimeError, match="already holds other weights"),
        borrow(model, ones, [], "mine"),
    ):
        pass
    assert_same_bits(weights(model), before)


def writes_in_place(variable):
    """Changes a variable in every way in which its backend can write into its memory."""
    variable.assign_add(keras.ops.ones(variable.shape))
    if backend.name() == "torch":
        variable.value.data.mul_(3.0)
    if backend.name() != "tensorflow":
        return
    import tensorflow as tf

    raw, ones = variable.value, tf.ones_like(variable.value)
    raw.assign_add(ones)
    raw.assign_sub(3.0 * ones)
    tf.raw_ops.ResourceApplyGradientDescent(var=raw.handle, alpha=0.1, delta=ones)
    tf.function(lambda: raw.assign_add(ones), jit_compile=True)()
    tf.function(lambda: raw.assign(raw * 2.0))()
    tf.raw_ops.ResourceScatterAdd(resource=raw.handle, indices=[0], updates=ones[:1])
    tf.raw_ops.ResourceScatterUpdate(resource=raw.handle, indices=[0], updates=5.0 * ones[:1])


@pytest.mark.parametrize("fails", [False, True])
def test_writing_in_place_inside_the_block_reaches_neither_raw_weights_nor_averages(fails):
    callback, model = averaging(), network()
    fit(model, callback)
    for _ in range(2):  # what was written to in place once may behave differently afterwards
        raw = weights(model)
        averages = {name: callback.get_average(name) for name in ("ema", "swa")}
        told = contextlib.nullcontext() if fails else pytest.warns(UserWarning, match="are lost")
        with told, contextlib.suppress(ZeroDivisionError), callback.borrowed("ema"):
            lent = trainable(model)
            for variable in model.trainable_variables:
                writes_in_place(variable)
            assert all((a != b).any() for a, b in zip(trainable(model), lent, strict=True))
            if fails:
                raise ZeroDivisionError
        assert_same_bits(weights(model), raw)
        for name, values in averages.items():
            assert_same_bits(callback.get_average(name), values)
        for variable in model.trainable_variables:
            writes_in_place(variable)  # nor is the average the model's after the block
        assert_same_bits(callback.get_average("ema"), averages["ema"])


def test_assigning_casts_and_refuses_another_shape():
    variable = keras.Variable(np.zeros((2, 3), np.float32))
    low = keras.ops.cast(keras.ops.full((2, 3), 1.5), "bfloat16")
    backend.assign([variable], [low])
    np.testing.assert_array_equal(arrays_of([variable])[0], np.full((2, 3), 1.5))
    backend.assign([variable], [np.full((2, 3), 2.5)])
    with pytest.raises(ValueError, match="shape"):
        backend.assign([variable], [keras.ops.zeros((3, 2))])
    np.testing.assert_array_equal(arrays_of([variable])[0], np.full((2, 3), 2.5))


def test_a_training_function_of_the_users_own_comes_back():
    first, model = averaging(), network()
    fit(model, first)
    own = model.make_train_function = lambda force=False: None
    with first.borrowed("ema"):
        assert model.make_train_function is not own
    assert model.make_train_function is own


def test_what_fails_before_a_model_is_lent_leaves_it_free(monkeypatch, lent):
    _, first = lent
    with monkeypatch.context() as patch:
        patch.setattr(backend, "steps_of", lambda optimizer: 1 / 0)
        with pytest.raises(ZeroDivisionError), first.borrowed("ema"):
            pass
    with first.borrowed("ema"):  # nobody holds it
        pass
