"""Communication between the processes of a multi-worker run.

All workers compute every number together, but only one of them knows of a signal, a damaged file or
a full disk.  Small collectives inform the others, so that no worker waits for one that stopped.
Only the chief reads and writes the workdir.  In a run of one process every method returns at once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from tf_lrtraj.training.stopping import Lost
from tf_lrtraj.training.strategies import Refused, is_chief

T = TypeVar("T")
_SMALL, _LARGE = 1 << 9, 1 << 20  # numbers in one message


class Workers:
    """The processes of one strategy.

    Every method must be called by all workers, in the same order.

    Args:
        strategy: a `tf.distribute` strategy; None for a single process.

    Attributes:
        count: number of processes.
        chief: whether this process reads and writes the workdir.
    """

    def __init__(self, strategy: Any) -> None:
        self.count = _count(strategy)
        self.chief = strategy is None or is_chief(strategy)
        if self.count == 1:
            return

        def sum_from_first(numbers: Any) -> Any:
            first = tf.distribute.get_replica_context().replica_id_in_sync_group
            return tf.where(tf.equal(first, 0), numbers, tf.zeros_like(numbers))

        @tf.function(reduce_retracing=False)
        def from_first(numbers: Any) -> Any:
            return strategy.reduce("SUM", strategy.run(sum_from_first, (numbers,)), axis=None)

        @tf.function(reduce_retracing=False)
        def total(number: Any) -> Any:
            return strategy.reduce("SUM", strategy.run(tf.identity, (number,)), axis=None)

        # Traced here and in this order by all workers: keys of collectives are counted.
        self._from_first = {
            size: from_first.get_concrete_function(tf.TensorSpec([size], tf.float32))
            for size in (_SMALL, _LARGE)
        }
        self._total = total.get_concrete_function(tf.TensorSpec([1], tf.float32))

    def any(self, flag: bool) -> bool:
        """Returns whether `flag` is true on at least one worker."""
        if self.count == 1:
            return bool(flag)
        with losing():
            return bool(self._total(tf.constant([float(flag)], tf.float32)).numpy()[0])

    def wait(self) -> None:
        """Returns when all workers have called it."""
        self.any(False)

    def together(self, function: Callable[[], T]) -> T:
        """Calls `function` on every worker and returns its result, if no worker raised.

        Raises:
            Refused: if it raised on another worker only.
        """
        error: Exception | None = None
        result: Any = None
        try:
            result = function()
        except Exception as caught:
            error = caught
        if self.any(error is not None):
            raise error or Refused("another worker of this run stopped; its output says why")
        return result

    def from_chief(self, function: Callable[[], Any]) -> Any:
        """Calls `function` on the chief only and returns its result on every worker.

        Args:
            function: returns a JSON value.

        Raises:
            Refused: on the other workers, with the chief's message, if it raised on the chief.
        """
        if self.count == 1:
            return function()
        error: Exception | None = None
        answer: dict[str, Any] = {}
        if self.chief:
            try:
                answer = {"result": function()}
            except Exception as caught:
                error, answer = caught, {"error": str(caught) or type(caught).__name__}
        answer = json.loads(self._bytes_from_chief(json.dumps(answer).encode()))
        if error is not None:
            raise error
        if "error" in answer:
            raise Refused(f"the chief stopped: {answer['error']}")
        return answer["result"]

    def _bytes_from_chief(self, text: bytes) -> bytes:
        size = np.array([len(text)], np.int64)
        size = self._array_from_chief(size)
        array = np.zeros(int(size[0]), np.uint8)
        if self.chief:
            array[:] = np.frombuffer(text, np.uint8)
        return self._array_from_chief(array).tobytes()

    def _array_from_chief(self, array: np.ndarray) -> np.ndarray:
        """Returns the chief's values without rounding.

        They are sent as float32 integers of 16 bits, to which the other workers add zeros: every
        kind of device and collective supports such sums, and they are exact.
        """
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        pieces = np.zeros(-(-data.size // 2), np.uint16)
        pieces.view(np.uint8)[: data.size] = data
        size = _SMALL if pieces.size <= _SMALL else _LARGE
        for start in range(0, pieces.size, size):
            part = np.zeros(size, np.float32)
            count = min(size, pieces.size - start)
            part[:count] = pieces[start : start + count]
            with losing():
                received = self._from_first[size](tf.constant(part)).numpy()
            pieces[start : start + count] = received[:count]
        return pieces.view(np.uint8)[: data.size].view(array.dtype).reshape(array.shape)

    def share(self, variables: Sequence[Any]) -> None:
        """Assigns the chief's values of these Keras variables on every worker, without rounding.

        All workers must hold variables of the same shapes in the same order.
        """
        if self.count == 1:
            return
        group: list[Any] = []
        held = 0
        for i, variable in enumerate(variables):
            group.append(variable)
            held += int(np.prod(variable.shape))
            if held >= _LARGE or i == len(variables) - 1:
                self._share_group(group)
                group, held = [], 0

    def _share_group(self, group: Sequence[Any]) -> None:
        values = [np.atleast_1d(tf.convert_to_tensor(v.value).numpy()) for v in group]
        data = np.concatenate([value.reshape(-1).view(np.uint8) for value in values])
        data = self._array_from_chief(data)
        if self.chief:
            return  # The chief has them, and restoring assigned them on each of its replicas.
        start = 0
        for variable, value in zip(group, values, strict=True):
            part = data[start : start + value.nbytes].view(value.dtype)
            variable.assign(part.reshape(tuple(variable.shape)))
            start += value.nbytes


def _count(strategy: Any) -> int:
    """Returns the number of processes of this run."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    cluster = strategy.cluster_resolver.cluster_spec().as_dict()
    return len(cluster.get("chief", [])) + len(cluster.get("worker", []))


# Errors of collectives when a worker is gone or was stopped.
_COLLECTIVES_FAILED = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
)


@contextlib.contextmanager
def losing(several: bool = True) -> Iterator[None]:
    """Converts the errors of collectives that lost a worker to `Lost`, with the worker's name.

    Args:
        several: whether there are several workers; if not, errors are not converted.
    """
    try:
        yield
    except _COLLECTIVES_FAILED as error:
        if not several or not _is_about_workers(error.message):
            raise
        raise Lost(
            f"another worker of this run is gone ({_cause(error.message)}), and without it the "
            "others cannot go on. Start all workers again: they go on from the last checkpoint"
        ) from error


_MARKS = (
    "Collective ops is aborted",
    "heartbeat",
    "CoordinationService",
    "GRPC error",
    "Socket closed",
    "Connection re",
    "failed to connect",
)


def _is_about_workers(message: str) -> bool:
    return any(mark in message for mark in _MARKS)


def _cause(message: str) -> str:
    """Returns the lines of TensorFlow's message that name the lost worker, as one line."""
    lines = [line.strip() for line in message.splitlines()]
    for i, line in enumerate(lines):
        if "eartbeat" in line and i + 1 < len(lines) and lines[i + 1].startswith("/job:"):
            return f"{lines[i + 1].split()[0]} sends no heartbeats"
    about = [line for line in lines if _is_about_workers(line) and "defined at" not in line]
    return (about or lines or [""])[0][:300]
