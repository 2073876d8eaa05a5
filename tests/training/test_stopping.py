"""Why training ends early: signals as requests to stop, and losses that are not finite."""

import os
import signal

import pytest

from tf_lrtraj.training.stopping import Diverged, Interrupted, stop_signals


def send(number):
    os.kill(os.getpid(), number)


def test_a_signal_stops_at_once_or_waits_for_who_defers():
    with pytest.raises(Interrupted, match="SIGTERM"), stop_signals():
        send(signal.SIGTERM)
        raise AssertionError("not reached")
    with stop_signals() as stop, pytest.raises(ZeroDivisionError), stop.deferred():
        send(signal.SIGTERM)
        assert stop.requested == "SIGTERM"
        raise ZeroDivisionError  # whoever looks at the request stops in his own way


def test_a_signal_after_the_last_look_is_not_lost():
    reached = []
    with stop_signals() as stop, pytest.raises(Interrupted, match="stopped by SIGTERM"):
        with stop.deferred():
            with stop.deferred():
                send(signal.SIGTERM)
            reached.append("the outer block goes on")
        reached.append("what comes after it does not")
    assert reached == ["the outer block goes on"]


@pytest.mark.parametrize(
    ("last", "where"),
    [(None, "in step 20 "), (21, "in step 20 "), (40, "between steps 20 and 40")],
)
def test_divergence_names_its_steps(last, where):
    error = Diverged("the training loss became nan", 20, last)
    assert str(error).startswith(f"the training loss became nan {where}") and error.step == 20
