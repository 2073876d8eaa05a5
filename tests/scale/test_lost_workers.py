"""Errors of collectives say which worker is gone; other errors stay what they are."""

import pytest
import tensorflow as tf

from tf_lrtraj.training.strategies import make_strategy
from tf_lrtraj.training.workers import Lost, Workers, losing

# What TensorFlow 2.21 says when a worker was killed, and when the chief was.
SILENT = """Graph execution error:

Detected at node CollectiveReduceV2 defined at (most recent call last):
Collective ops is aborted by: Error reported from /job:worker/task:1: The following tasks are \
unhealthy (stopped sending heartbeats):
/job:worker/replica:0/task:1
The tasks have crashed. Check the task logs for an earlier error."""
RESET = """Graph execution error:

Detected at node CollectiveReduceV2 defined at (most recent call last):
Collective ops is aborted by: recvmsg:Connection reset by peer
Additional GRPC error information from remote target /job:worker/replica:0/task:0"""


@pytest.mark.parametrize(
    ("message", "who"),
    [
        (SILENT, r"\(/job:worker/replica:0/task:1 sends no heartbeats\)"),
        (RESET, r"Connection reset by peer"),
        ("Socket closed", r"\(Socket closed\)"),
    ],
)
def test_a_lost_worker_is_named(message, who):
    with pytest.raises(Lost, match=who) as error, losing():
        raise tf.errors.UnavailableError(None, None, message)
    assert "Start all workers again" in str(error.value) and "\n" not in str(error.value)


def test_other_errors_are_left_alone():
    with pytest.raises(tf.errors.InternalError), losing():
        raise tf.errors.InternalError(None, None, "the disk is on fire")
    with pytest.raises(tf.errors.InvalidArgumentError), losing():
        raise tf.errors.InvalidArgumentError(None, None, "Collective: shapes differ")
    with pytest.raises(tf.errors.UnavailableError), losing(several=False):
        raise tf.errors.UnavailableError(None, None, SILENT)


def test_a_process_alone_has_nobody_to_ask():
    things = object()  # nothing that JSON could hold
    for workers in (Workers(None), Workers(make_strategy("one_device"))):
        assert workers.chief and workers.count == 1
        assert workers.any(True) and not workers.any(False)
        assert workers.from_chief(lambda: things) is things
        assert workers.together(lambda: things) is things
        with pytest.raises(ZeroDivisionError):
            workers.together(lambda: 1 / 0)
        workers.wait()
        workers.share([object()])
