r"""The loss of a model as a function of its weights and of a batch.

Weights are handed to a compiled forward pass as arguments; no variable of the
model, nor its optimizer, nor a random stream is ever written, so a surface can be
measured in the middle of a training run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj import batch_norm as bn
from tf_lrtraj.probes.mode import Mode, as_in
from tf_lrtraj.probes.probe import fingerprint

Batch = tuple[Any, ...]  # (inputs, targets) or (inputs, targets, example weights)


class Point(NamedTuple):
    """A point in weight space, as backend tensors.

    Attributes:
        trainable: in the order of `model.trainable_variables`.
        non_trainable: in the order of `model.non_trainable_variables`.
    """

    trainable: list[Any]
    non_trainable: list[Any]


class Surface:
    """The loss of `model` at any weights, on any batch, in a stated mode.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.set_weights([np.ones((1, 1))])
    >>> surface = Surface(model, "mean_squared_error")
    >>> batch = (np.array([[1.0], [2.0]]), np.array([[0.0], [0.0]]))
    >>> surface.loss(surface.point(), batch)  # (1² + 2²) / 2
    2.5
    >>> loss, gradient = surface.gradient(surface.point(), batch)
    >>> float(gradient[0][0, 0])
    5.0

    Args:
        model: a built Keras model.
        loss: a `keras.losses.Loss`, its name, or a function (targets, outputs) → losses of
            the examples; None for the loss the model was compiled with.  Penalties that
            layers add (`model.losses`) and weight decay are no part of it.
        batch_norm, dropout: see `Mode`.
        moment_batches: batches whose inputs serve `"recalibrated"`.

    Raises:
        ValueError: if there is no loss, the mode does not exist, or batches are missing.
    """

    def __init__(
        self,
        model: Any,
        loss: Any = None,
        *,
        batch_norm: str = "batch",
        dropout: str = "off",
        moment_batches: Sequence[Batch] | None = None,
    ) -> None:
        self.model = model
        self.mode = Mode(batch_norm, dropout)
        if not model.built:
            raise ValueError("`model` must be built: call it once, or give it an input shape.")
        self._per_example = _per_example(model, loss)
        self._statistics = bn.find_statistics(model)
        self._moment_batches = list(moment_batches or ())
        if batch_norm == "recalibrated" and self._statistics and not self._moment_batches:
            raise ValueError(
                "`batch_norm='recalibrated'` needs `moment_batches`, some training batches to "
                f"measure statistics on. Received: moment_batches={moment_batches!r}"
            )
        self._recompute = bn.Recompute(model, call=bn.call_on_inputs)
        self._calibrated: tuple[Point, ...] = ()  # the last one calibrated: before, after
        self._evaluate = backend.compiled(self._evaluate_batch)
        self._along = backend.compiled(self._evaluate_moved)
        self._predict = backend.compiled(self._outputs)
        self._gradient = backend.value_and_gradient(self._mean_loss)
        self._product = backend.hessian_vector_product(self._mean_loss_exactly)
        self._spec = [(tuple(v.shape), v.dtype) for v in model.trainable_variables]

    # Points -------------------------------------------------------------------------------

    def point(self, weights: Any = None) -> Point:
        """A point in weight space.

        Args:
            weights: None for the model's own weights, copied; a `Point`; or arrays in the
                order of `model.trainable_variables`, and after them, if there are any more,
                mean and variance of each batch-norm layer in turn (as snapshots hold them).
                Where the statistics are not given, they are the model's own.

        Raises:
            ValueError: if the arrays are not of the model's shapes.
        """
        if isinstance(weights, Point):
            return weights
        own = backend.values(self.model.non_trainable_variables)
        if weights is None:
            values = [*backend.values(self.model.trainable_variables), *own]
            copies = [ops.copy(value) for value in values]
            return Point(copies[: len(self._spec)], copies[len(self._spec) :])
        arrays = list(weights)
        shapes = [shape for shape, _ in self._spec]
        full = list(shapes)
        for entry in self._statistics:
            full += [tuple(entry.layer.moving_mean.shape)] * 2
        found = [tuple(array.shape) for array in arrays]
        if found not in (shapes, full):
            wrong = next(
                (i for i, (a, b) in enumerate(zip(found, full, strict=False)) if a != b),
                min(len(found), len(full)),
            )
            raise ValueError(
                f"weights must be {len(shapes)} arrays of the model's shapes, or {len(full)} with "
                f"batch-norm statistics. Received: {len(found)} arrays; the first that does not "
                f"fit is number {wrong}"
                + (f" of shape {found[wrong]}" if wrong < len(found) else "")
            )
        trainable = [
            ops.cast(array, dtype)
            for array, (_, dtype) in zip(arrays[: len(shapes)], self._spec, strict=True)
        ]
        extra = arrays[len(shapes) :]
        non_trainable = [ops.copy(value) for value in own]
        if extra:
            pairs = list(zip(extra[::2], extra[1::2], strict=True))
            non_trainable = bn.replace(non_trainable, self._statistics, pairs)
        return Point(trainable, non_trainable)

    def moved(self, origin: Point, direction: Sequence[Any], step: float) -> Point:
        """`origin - step * direction`, with the same statistics."""
        # `ops.cast` of a Python number would round it to float32 first.
        moved = [
            theta - ops.convert_to_tensor(float(step), theta.dtype) * ops.cast(d, theta.dtype)
            for theta, d in zip(origin.trainable, direction, strict=True)
        ]
        return Point(moved, origin.non_trainable)

    def calibrated(self, point: Point) -> Point:
        """The point with the batch-norm statistics its mode asks for.

        The last one is kept, so that many batches at one point cost one calibration.
        """
        if not self.calibration_passes:
            return point
        if not any(point is known for known in self._calibrated):
            inputs = [(batch[0],) for batch in self._moment_batches]
            self._calibrated = (point, Point(point.trainable, self._recompute(*point, inputs)))
        return self._calibrated[1]

    @property
    def calibration_passes(self) -> int:
        """Forward passes that `calibrated` takes for a point."""
        if self.mode.batch_norm != "recalibrated" or not self._statistics:
            return 0
        return len(self._moment_batches)

    def fingerprint(self, point: Point) -> str:
        """A checksum of what of a point a loss depends on: statistics only where they count."""
        alone = self.mode.batch_norm == "batch" and self.mode.dropout == "off"
        return fingerprint(point.trainable if alone else [*point.trainable, *point.non_trainable])

    # Measuring ----------------------------------------------------------------------------

    def loss(self, point: Point, batch: Batch) -> float:
        """Mean loss of a batch."""
        return float(self.evaluate(point, [batch])[0][0])

    def evaluate(self, point: Point, batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
        """([N] mean losses, [N] accuracies) of batches at one point.

        The accuracy is NaN where targets are no class labels.
        """
        point = self.calibrated(point)
        found = [self._evaluate(*point, _tensors(batch)) for batch in batches]
        if not found:
            raise ValueError("`batches` must hold at least one batch. Received: none")
        numbers = np.array([[float(number) for number in pair] for pair in found])
        return numbers[:, 0], numbers[:, 1]

    def along(
        self, origin: Point, direction: Sequence[Any], steps: Sequence[float], batch: Batch
    ) -> np.ndarray:
        """[K] mean losses of a batch at `origin - steps[k] * direction`."""
        if self.mode.batch_norm == "recalibrated":
            return np.array(
                [self.loss(self.moved(origin, direction, step), batch) for step in steps]
            )
        batch, direction = _tensors(batch), list(direction)
        # All passes are started before the first result is waited for.
        found = [
            self._along(*origin, direction, ops.convert_to_tensor(float(step), "float64"), batch)
            if backend.name() != "jax"
            else self._along(*origin, direction, np.float32(step), batch)
            for step in steps
        ]
        return np.array([float(loss) for loss in found])

    def predict(self, point: Point, inputs: Any) -> np.ndarray:
        """Outputs for a batch of inputs, on the host."""
        point = self.calibrated(point)
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        return backend.to_numpy([self._predict(*point, inputs)])[0]

    def score(self, outputs: np.ndarray, batch: Batch) -> tuple[float, float]:
        """Mean loss and accuracy of given outputs for a batch, NaN as in `evaluate`."""
        (_, targets, *rest), given = _tensors(batch), ops.convert_to_tensor(outputs)
        losses = self._per_example(targets, given)
        shaped = (None, targets, *rest)
        return float(_mean(losses, shaped)), float(_mean(_correct(targets, given), shaped))

    def gradient(self, point: Point, batch: Batch) -> tuple[float, list[Any]]:
        """Mean loss of a batch and its gradient by the trainable weights."""
        point = self.calibrated(point)
        loss, gradient = self._gradient(*point, _tensors(batch))
        return float(loss), list(gradient)

    def hessian_vector(self, point: Point, batch: Batch, vector: Sequence[Any]) -> list[Any]:
        """The Hessian of a batch's mean loss times a vector.

        With batch statistics the moments are differentiated as well, exactly.
        """
        point = self.calibrated(point)
        given = [
            ops.cast(array, dtype) for array, (_, dtype) in zip(vector, self._spec, strict=True)
        ]
        return list(self._product(point.trainable, given, point.non_trainable, _tensors(batch)))

    def seconds_per_pass(self, batch: Batch, repeats: int = 3) -> float:
        """Median time of one forward pass of a batch, compilation apart."""
        point = self.point()
        self.loss(point, batch)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.loss(point, batch)
            seconds.append(time.perf_counter() - start)
        return float(np.median(seconds))

    def about(self) -> dict[str, Any]:
        """What a record says of the surface."""
        return {**self.mode.about(self.model), "keras_backend": backend.name()}

    # What is compiled ---------------------------------------------------------------------

    def _outputs(self, trainable: Any, non_trainable: Any, inputs: Any, exact: bool = False) -> Any:
        with as_in(self.model, self.mode, exact_moments=exact):
            return backend.forward(self.model, trainable, non_trainable, inputs, training=True)[0]

    def _mean_loss(
        self, trainable: Any, non_trainable: Any, batch: Any, exact: bool = False
    ) -> Any:
        outputs = self._outputs(trainable, non_trainable, batch[0], exact)
        return _mean(self._per_example(batch[1], outputs), batch)

    def _mean_loss_exactly(self, trainable: Any, non_trainable: Any, batch: Any) -> Any:
        return self._mean_loss(trainable, non_trainable, batch, True)

    def _evaluate_batch(self, trainable: Any, non_trainable: Any, batch: Any) -> Any:
        outputs = self._outputs(trainable, non_trainable, batch[0])
        losses = self._per_example(batch[1], outputs)
        return _mean(losses, batch), _mean(_correct(batch[1], outputs), batch)

    def _evaluate_moved(
        self, trainable: Any, non_trainable: Any, direction: Any, step: Any, batch: Any
    ) -> Any:
        moved = [
            theta - ops.cast(step, theta.dtype) * ops.cast(d, theta.dtype)
            for theta, d in zip(trainable, direction, strict=True)
        ]
        return self._mean_loss(moved, non_trainable, batch)


def _per_example(model: Any, loss: Any) -> Callable[[Any, Any], Any]:
    """(targets, outputs) → [B] losses in float32 or wider."""
    if loss is None:
        loss = getattr(model, "loss", None)
        if loss is None:
            raise ValueError(
                "`loss` must be given for a model that is not compiled. Received: loss=None"
            )
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if not callable(loss):
        raise ValueError(
            "`loss` must be a keras.losses.Loss, the name of one, or a function of targets and "
            f"outputs. Received: loss={loss!r}"
        )
    function = loss.call if isinstance(loss, keras.losses.Loss) else loss

    def per_example(targets: Any, outputs: Any) -> Any:
        dtype = keras.backend.standardize_dtype(outputs.dtype)
        losses = function(targets, ops.cast(outputs, _wide(dtype)))
        axes = tuple(range(1, len(losses.shape)))
        return ops.mean(losses, axis=axes) if axes else losses

    return per_example


def _wide(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _mean(numbers: Any, batch: Any) -> Any:
    """The mean over a batch, summed in float64 where there is one."""
    if len(numbers.shape) == 0:
        return numbers
    wide = ops.cast(numbers, "float64" if backend.has_float64() else "float32")
    if len(batch) < 3:
        # Not `ops.mean`, which on torch goes through float32.
        return ops.sum(wide) / ops.cast(ops.shape(wide)[0], wide.dtype)
    weights = ops.cast(batch[2], wide.dtype)
    return ops.sum(weights * wide) / ops.sum(weights)


def _correct(targets: Any, outputs: Any) -> Any:
    """[B] 1 where the largest output is the target's class; NaN for targets of other kinds.

    Targets are classes as integers, or a distribution over classes for each example.
    """
    nothing = ops.full(ops.shape(outputs)[:1], float("nan"), "float32")
    if len(outputs.shape) != 2 or outputs.shape[-1] == 1:
        return nothing
    predicted = ops.cast(ops.argmax(outputs, axis=-1), "int32")
    if len(targets.shape) == 2 and targets.shape[-1] == outputs.shape[-1]:
        right = ops.cast(predicted == ops.cast(ops.argmax(targets, axis=-1), "int32"), "float32")
        shares = ops.cast(targets, "float32")
        off = ops.abs(ops.sum(shares, axis=-1) - 1.0) + ops.sum(ops.relu(-shares), axis=-1)
        return ops.where(off < 1e-3, right, nothing)
    if len(targets.shape) == 2 and targets.shape[-1] == 1:
        targets = ops.squeeze(targets, -1)
    if len(targets.shape) != 1 or "float" in keras.backend.standardize_dtype(targets.dtype):
        return nothing
    return ops.cast(predicted == ops.cast(targets, "int32"), "float32")


def _tensors(batch: Batch) -> Any:
    return tuple(keras.tree.map_structure(ops.convert_to_tensor, part) for part in batch)


def check_batches(batches: Any, name: str = "batches") -> list[Batch]:
    """Returns a list of (inputs, targets) or (inputs, targets, weights).

    Raises:
        ValueError: if there is none, or one is neither.
    """
    found = list(batches) if isinstance(batches, (Iterable, Iterator)) else [batches]
    for batch in found:
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            raise ValueError(
                f"`{name}` must be a list of (inputs, targets) or (inputs, targets, weights). "
                f"Received an element of type {type(batch).__name__}"
            )
        sizes = {len(array) for array in keras.tree.flatten(tuple(batch))}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"every batch of `{name}` must have the same number, at least 1, of inputs and "
                f"targets. Received: {sorted(sizes)}"
            )
    if not found:
        raise ValueError(f"`{name}` must hold at least one batch. Received: none")
    return [tuple(batch) for batch in found]


def take_batches(x: Any, y: Any, batch_size: int, count: int, seed: int = 0) -> list[Batch]:
    """`count` batches of distinct examples, drawn without replacement.

    Args:
        x, y: arrays of inputs and targets.
        batch_size: examples in a batch.
        count: number of batches.
        seed: of the draw.

    Raises:
        ValueError: if `x` and `y` differ in length, or the data is too small.

    >>> [len(y) for _, y in take_batches(np.zeros((10, 2)), np.arange(10), 4, 2)]
    [4, 4]
    """
    if len(x) != len(y):
        raise ValueError(
            f"`x` and `y` must have the same length. Received: {len(x)} inputs, {len(y)} targets"
        )
    for name, value in (("batch_size", batch_size), ("count", count)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"`{name}` must be an integer of at least 1. Received: {name}={value!r}"
            )
    if batch_size * count > len(x):
        raise ValueError(
            f"{count} batches of {batch_size} need {batch_size * count} examples; the data holds "
            f"{len(x)}. Received: batch_size={batch_size}, count={count}"
        )
    order = np.random.default_rng(seed).permutation(len(x))[: batch_size * count]
    return [(x[part], y[part]) for part in np.split(np.sort(order) if count == 1 else order, count)]
