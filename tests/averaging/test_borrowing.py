"""A model is lent to one at a time, and comes back to the bit."""

import contextlib
import gc
import threading
import weakref

import keras
import numpy as np
import pytest

from tf_lrtraj import WeightAveraging, backend, kernels
from tf_lrtraj.averaging.borrowing import borrow, holder_of

INPUTS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
LABELS = INPUTS[:, :1]


def network():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def trained(*callbacks):
    model = network()
    model.fit(INPUTS, LABELS, batch_size=8, verbose=0, callbacks=list(callbacks))
    return model


def averaging():
    return WeightAveraging({"ema": kernels.Exponential(0.5), "swa": kernels.Uniform()})


def bits(model):
    variables = [*model.variables, *model.metrics_variables]
    return [a.tobytes() for a in backend.to_numpy(backend.values(variables))]


def test_two_callbacks_cannot_hold_one_model_at_once():
    first, second = averaging(), averaging()
    model = trained(first, second)
    before = bits(model)
    message = "already holds the average 'ema', borrowed in thread 'MainThread'"
    with first.borrowed("ema"):
        inside = bits(model)
        with pytest.raises(RuntimeError, match=message), second.borrowed("swa"):
            raise AssertionError("not reached")
        for call in (
            lambda: second.evaluate((INPUTS, LABELS)),
            lambda: second.save("swa", "never.keras"),
            second.update,
        ):
            with pytest.raises(RuntimeError, match="holds the average 'ema'"):
                call()
        assert bits(model) == inside  # a refusal changes nothing
    assert bits(model) == before
    with second.borrowed("swa"):
        pass


def test_a_state_is_not_started_from_borrowed_weights():
    first = averaging()
    model = trained(first)
    late = averaging()
    late.set_model(model)
    with first.borrowed("ema"), pytest.raises(RuntimeError, match="cannot be averaged"):
        late.get_average("ema")
    for own, raw in zip(late.get_average("ema"), model.get_weights(), strict=True):
        np.testing.assert_array_equal(own, raw)


def test_another_thread_is_refused_while_the_model_is_lent():
    first = averaging()
    model = trained(first)
    errors = []

    def other():
        try:
            with first.borrowed("swa"):
                pass
        except RuntimeError as error:
            errors.append(str(error))

    with first.borrowed("ema"):
        inside = bits(model)
        thread = threading.Thread(target=other, name="evaluator")
        thread.start()
        thread.join()
        assert bits(model) == inside
    assert len(errors) == 1
    assert "holds the average 'ema', borrowed in thread 'MainThread'" in errors[0]
    assert "'evaluator'" in errors[0]


def test_another_thread_is_refused_while_the_model_trains():
    first = averaging()
    errors = []

    class Elsewhere(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            def other():
                try:
                    with first.borrowed("ema"):
                        pass
                except RuntimeError as error:
                    errors.append(str(error))

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    trained(first, Elsewhere())
    assert len(errors) == 2
    assert "thread 'MainThread' is training the model" in errors[0]


@pytest.mark.parametrize("train", ["fit", "train_on_batch"])
def test_training_is_refused_before_a_weight_moves(train):
    first = averaging()
    model = trained(first)
    before = bits(model)
    with first.borrowed("ema"):
        inside = bits(model)
        with pytest.raises(RuntimeError, match=r"holds the average 'ema'.*before training"):
            getattr(model, train)(INPUTS, LABELS)
        assert bits(model) == inside
    assert bits(model) == before
    model.fit(INPUTS, LABELS, verbose=0)  # and is possible again


def test_steps_of_a_custom_loop_are_noticed():
    first = averaging()
    model = trained(first)
    before = bits(keras.Sequential(model.layers))
    with (
        pytest.raises(RuntimeError, match="made steps while the model held the average 'ema'"),
        first.borrowed("ema"),
    ):
        model.optimizer.apply(
            [keras.ops.ones(v.shape) for v in model.trainable_variables],
            model.trainable_variables,
        )
    assert bits(keras.Sequential(model.layers)) == before
    assert holder_of(model) is None


def test_a_block_that_is_dropped_gives_the_model_back():
    first = averaging()
    model = trained(first)
    before = bits(model)
    block = first.borrowed("ema")
    block.__enter__()
    assert holder_of(model) is not None
    del block
    gc.collect()
    assert bits(model) == before
    assert holder_of(model) is None


def test_models_and_averages_can_be_deleted():
    first = averaging()
    model = trained(first)
    with first.borrowed("ema"):
        pass
    watched = weakref.ref(first.state)
    del first
    gc.collect()
    assert watched() is None
    model.predict(INPUTS, verbose=0)


def test_borrowing_without_an_optimizer():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    before = bits(model)
    ones = [np.ones(v.shape, np.float32) for v in model.trainable_variables]
    with (
        borrow(model, ones, []),
        pytest.raises(RuntimeError, match="already holds other weights"),
        borrow(model, ones, [], "mine"),
    ):
        pass
    assert bits(model) == before


def test_a_model_saved_while_it_is_lent_is_a_whole_model(tmp_path):
    first = averaging()
    model = trained(first)
    first.save("ema", tmp_path / "ema.keras")
    loaded = keras.saving.load_model(tmp_path / "ema.keras")
    for own, average in zip(loaded.get_weights(), first.get_average("ema"), strict=True):
        np.testing.assert_array_equal(own, average)
    loaded.fit(INPUTS, LABELS, verbose=0)
    assert holder_of(model) is None


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
    callback = averaging()
    model = trained(callback)
    for _ in range(2):  # what was written to in place once may behave differently afterwards
        raw = bits(model)
        averages = {n: [a.tobytes() for a in callback.get_average(n)] for n in ("ema", "swa")}
        told = contextlib.nullcontext() if fails else pytest.warns(UserWarning, match="are lost")
        with told, contextlib.suppress(ZeroDivisionError), callback.borrowed("ema"):
            lent = bits(model)
            for variable in model.trainable_variables:
                writes_in_place(variable)
            assert all(a != b for a, b in zip(bits(model)[:2], lent[:2], strict=True))
            if fails:
                raise ZeroDivisionError
        assert bits(model) == raw
        for name, values in averages.items():
            assert [a.tobytes() for a in callback.get_average(name)] == values
        for variable in model.trainable_variables:
            writes_in_place(variable)  # nor is the average the model's after the block
        assert [a.tobytes() for a in callback.get_average("ema")] == averages["ema"]


def test_assigning_casts_and_refuses_another_shape():
    variable = keras.Variable(np.zeros((2, 3), np.float32))
    low = keras.ops.cast(keras.ops.full((2, 3), 1.5), "bfloat16")
    backend.assign([variable], [low])
    np.testing.assert_array_equal(backend.to_numpy([variable])[0], np.full((2, 3), 1.5))
    backend.assign([variable], [np.full((2, 3), 2.5)])
    np.testing.assert_array_equal(backend.to_numpy([variable])[0], np.full((2, 3), 2.5))
    with pytest.raises(ValueError, match="shape"):
        backend.assign([variable], [keras.ops.zeros((3, 2))])
    np.testing.assert_array_equal(backend.to_numpy([variable])[0], np.full((2, 3), 2.5))


def test_a_training_function_of_the_users_own_comes_back():
    first = averaging()
    model = trained(first)
    own = model.make_train_function = lambda force=False: None
    with first.borrowed("ema"):
        assert model.make_train_function is not own
    assert model.make_train_function is own


def test_what_fails_before_a_model_is_lent_leaves_it_free(monkeypatch):
    first = averaging()
    model = trained(first)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "steps_of", lambda optimizer: 1 / 0)
        with pytest.raises(ZeroDivisionError), first.borrowed("ema"):
            pass
    with first.borrowed("ema"):  # nobody holds it
        pass
    model.fit(INPUTS, LABELS, verbose=0)
