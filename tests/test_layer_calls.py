"""Listening to layers: whose handler, which thread, and nothing left behind."""

import threading

import keras
import numpy as np
import pytest
from keras import ops

from tf_lrtraj.backend.layer_calls import intercepted

ONES = np.ones((2, 3), np.float32)


@pytest.fixture
def layer():
    layer = keras.layers.Dropout(0.5, seed=1)
    layer.build((None, 3))
    return layer


def scaled(factor):
    def handler(layer, call, given):
        return factor * call(*given.args, **given.kwargs)

    return handler


def result(layer, **options):
    return np.asarray(ops.convert_to_numpy(layer(ONES, **options)))


def test_a_handler_has_the_call_and_its_arguments_by_name(layer):
    seen = []

    def handler(its, call, given):
        seen.append((its, dict(given.arguments)))
        given.arguments["training"] = False
        return call(*given.args, **given.kwargs)

    with intercepted({layer: handler}):
        np.testing.assert_array_equal(result(layer, training=True), ONES)
    ((its, arguments),) = seen
    assert its is layer and arguments["training"] is True
    np.testing.assert_array_equal(ops.convert_to_numpy(arguments["inputs"]), ONES)


def test_of_nested_blocks_the_innermost_that_names_the_layer_has_the_call(layer):
    other = keras.layers.Identity()
    with intercepted({layer: scaled(2.0), other: scaled(3.0)}):
        with intercepted({layer: scaled(5.0)}):
            assert result(layer)[0, 0] == 5.0
            assert result(other)[0, 0] == 3.0
        assert result(layer)[0, 0] == 2.0
    assert result(layer)[0, 0] == result(other)[0, 0] == 1.0


def test_nothing_is_left_after_an_exception(layer):
    before = layer.call
    with pytest.raises(KeyError), intercepted({layer: scaled(2.0)}):
        assert layer.call != before
        raise KeyError
    assert "call" not in vars(layer) and layer.call == before
    assert result(layer)[0, 0] == 1.0


def test_a_handler_that_fails_leaves_the_next_call_alone(layer):
    def failing(its, call, given):
        raise RuntimeError("not today")

    with intercepted({layer: failing}):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="not today"):
                layer(ONES)
    assert result(layer)[0, 0] == 1.0


def test_no_handlers_at_all(layer):
    with intercepted({}):
        assert result(layer)[0, 0] == 1.0


def test_other_threads_hear_nothing_and_may_end_in_any_order(layer):
    inside, done = threading.Event(), threading.Event()
    found = {}

    def elsewhere():
        found["without"] = result(layer)[0, 0]
        with intercepted({layer: scaled(7.0)}):
            found["with"] = result(layer)[0, 0]
            inside.set()
            done.wait(30)
            found["alone"] = result(layer)[0, 0]

    with intercepted({layer: scaled(2.0)}):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        assert inside.wait(30)
        assert result(layer)[0, 0] == 2.0
    assert result(layer)[0, 0] == 1.0  # the other block still goes on
    done.set()
    thread.join(30)
    assert found == {"without": 1.0, "with": 7.0, "alone": 7.0}
    assert "call" not in vars(layer)
