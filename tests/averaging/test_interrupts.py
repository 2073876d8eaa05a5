"""Whatever exception strikes wherever while weights are lent, the model has its own back."""

import contextlib
import signal
import sys
import threading

import keras
import pytest
from helpers import assert_same_bits
from keras_helpers import X, Y, arrays_of

from tf_lrtraj.averaging import borrowing, interrupts
from tf_lrtraj.averaging.borrowing import holder_of


def weights(model):
    return arrays_of(model.variables)


class Lender:
    """Lends a small model ones in place of its weights."""

    def __init__(self):
        layers = [keras.layers.Dense(1), keras.layers.BatchNormalization()]
        self.model = keras.Sequential([keras.Input((6,)), *layers])
        self.model.compile("sgd", "mse")
        self.model.fit(X, Y, batch_size=8, verbose=0)

    def borrowed(self, name="ema"):
        return borrowing.lend(self.model, f"the average {name!r}", lambda: self.values(name))

    def values(self, name):
        if name != "ema":
            raise KeyError(f"must be one of ['ema']. Received: {name!r}")
        variables = [*self.model.trainable_variables, self.model.layers[1].moving_mean]
        return [(v, keras.ops.ones(v.shape)) for v in variables]


@pytest.fixture(scope="module")
def lender():
    found = Lender()
    with found.borrowed():  # whatever is made at the first use
        pass
    return found.model, found


class Strikes:
    """Calls a function at the n-th line that is run in some files, in this thread."""

    def __init__(self, files, number, strike):
        self.files, self.left, self.strike = files, number, strike

    def __enter__(self):
        self.previous = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_):
        sys.settrace(self.previous)

    def _enter(self, frame, event, argument):
        file = frame.f_code.co_filename
        # Of contextlib's lines those between a `with` and the generator that lends.
        generator = getattr(frame.f_locals.get("self"), "gen", None)
        ours = getattr(generator, "gi_code", None) is borrowing._LEND
        concerns = file in self.files and (file != contextlib.__file__ or ours)
        return self._line if concerns else None

    def _line(self, frame, event, argument):
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.strike()
        return self._line


@pytest.fixture(autouse=True)
def python_handles_ctrl_c():
    """A shell starts what runs in the background with SIGINT ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def raise_it():
    raise KeyboardInterrupt


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def lines_run(files, call):
    count = Strikes(files, -1, None)
    with count:
        call()
    return -1 - count.left


def use(averaging, seen):
    with averaging.borrowed("ema") as model:
        seen.append(weights(model))


STRIKES = {
    # In the package's own files an exception from nowhere; elsewhere what Ctrl-C does.
    "exception": (raise_it, [borrowing.__file__]),
    "ctrl-c": (press_ctrl_c, [borrowing.__file__, interrupts.__file__, contextlib.__file__]),
}


@pytest.mark.parametrize(("strike", "files"), STRIKES.values(), ids=list(STRIKES))
def test_at_every_line_the_model_has_its_own_weights_and_nobody_holds_it(lender, strike, files):
    model, averaging = lender
    before, handlers = weights(model), signal.getsignal(signal.SIGINT)
    lent: list = []
    total = lines_run(files, lambda: use(averaging, lent))
    assert total > 60 and (lent[0][0] != before[0]).all()
    struck = 0
    for number in range(1, total + 1):
        try:
            with Strikes(files, number, strike):
                use(averaging, [])
        except KeyboardInterrupt:
            struck += 1
        assert holder_of(model) is None, number
        assert_same_bits(weights(model), before)
        assert signal.getsignal(signal.SIGINT) is handlers, number
        assert "make_train_function" not in vars(model), number
    assert struck >= total - 1  # the last line may come when all is done
    model.fit(X, Y, verbose=0)


def test_what_waited_is_done_when_the_weights_are_back(lender):
    model, averaging = lender
    calls = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: calls.append(holder_of(model)))
    try:
        total = lines_run([borrowing.__file__], lambda: use(averaging, []))
        for number in range(1, total + 1):
            with Strikes([borrowing.__file__], number, lambda: signal.raise_signal(signal.SIGUSR1)):
                use(averaging, [])
        assert len(calls) == total
        # In the block, and while the average is computed, a handler runs at once.
        with averaging.borrowed("ema"):
            signal.raise_signal(signal.SIGUSR1)
            assert calls[-1] is not None
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_handlers_set_inside_the_block_stay(lender):
    _, averaging = lender
    previous = signal.getsignal(signal.SIGUSR2)
    try:
        with averaging.borrowed("ema"):
            signal.signal(signal.SIGUSR2, raise_it)
        assert signal.getsignal(signal.SIGUSR2) is raise_it
    finally:
        signal.signal(signal.SIGUSR2, previous)


def test_threads_borrow_without_touching_handlers(lender):
    model, averaging = lender
    before, seen = weights(model), []
    thread = threading.Thread(target=use, args=(averaging, seen))
    thread.start()
    thread.join()
    assert (seen[0][0] != before[0]).all()
    assert_same_bits(weights(model), before)


def test_values_that_cannot_be_computed_leave_the_model_alone(lender):
    model, averaging = lender
    before = weights(model)
    with pytest.raises(KeyError, match="must be one of"), averaging.borrowed("emma"):
        pass
    assert_same_bits(weights(model), before)
    assert holder_of(model) is None
