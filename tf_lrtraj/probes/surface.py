r"""The loss of a model as a function of its weights and of a batch.

Weights are passed to a compiled forward pass as arguments. No variable of the model or its
optimizer and no random stream is changed, so a surface can be measured during training.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.probes.batches import Batch, each_batch
from tf_lrtraj.probes.losses import BatchLoss, activity_regularized, regularizers
from tf_lrtraj.probes.mode import Mode, as_in
from tf_lrtraj.probes.vectors import fingerprint
from tf_lrtraj.probes.weight_forms import read_weights


class Point(NamedTuple):
    """A point in weight space, as backend tensors.

    Attributes:
        trainable: values in the order of `model.trainable_variables`.
        non_trainable: values in the order of `model.non_trainable_variables`.
    """

    trainable: list[Any]
    non_trainable: list[Any]


class Surface:
    """The loss of `model` as a function of the weights and a batch, in a stated mode.

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
            the examples; for several outputs a list or dict of those, as `compile` takes it;
            None for the loss (and `loss_weights`) the model was compiled with.
        batch_norm, dropout: see `Mode`.
        moment_batches: batches from which `"recalibrated"` computes statistics.
        penalties: whether the penalties of weights that layers' regularizers add
            (`kernel_regularizer=…`) are part of the loss.  By default they are not, so the loss
            differs from the `loss` that `fit` reports for such a model.  Activity regularizers,
            `add_loss` and an optimizer's weight decay are never included.

    Raises:
        ValueError: if `model` is not a built Keras model, there is no loss, the mode does not
        exist, batches are missing, or `penalties` is True for a model with activity regularizers.
    """

    def __init__(
        self,
        model: Any,
        loss: Any = None,
        *,
        batch_norm: str = "batch",
        dropout: str = "off",
        moment_batches: Any = None,
        penalties: bool = False,
    ) -> None:
        check_model(model)
        self.model = model
        self.mode = Mode(batch_norm, dropout)
        self._loss = BatchLoss(model, loss)
        self._regularizers = regularizers(model)
        self.penalties = bool(penalties)
        if self.penalties and activity_regularized(model):
            raise ValueError(
                "`penalties=True` includes the penalties of weights only. Received: a model with "
                f"activity regularizers, in {activity_regularized(model)}"
            )
        self._statistics = bn.find_statistics(model)
        self._moment_batches = (
            [] if moment_batches is None else list(each_batch(moment_batches, "moment_batches"))
        )
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

    # Points -------------------------------------------------------------------------------

    def point(self, weights: Any = None) -> Point:
        """Returns a point in weight space.

        Args:
            weights: None for the model's own weights, copied; a `Point`; another Keras model of the
                same architecture; or arrays: in the order of `model.trainable_variables`, or those
                and then mean and variance of each batch-norm layer in turn (as snapshots hold
                them), or as `model.get_weights()` returns them.  Missing values, such as
                statistics, are the model's own.

        Raises:
            ValueError: if the arrays are not of the model's shapes.
        """
        if isinstance(weights, Point):
            return weights
        own = backend.values(self.model.non_trainable_variables)
        if weights is None:
            values = [*backend.values(self.model.trainable_variables), *own]
            copies = [ops.copy(value) for value in values]
            return Point(copies[: -len(own) or None], copies[len(copies) - len(own) :])
        given = read_weights(self.model, weights)
        # Copies: the value may be a variable, or an array that JAX donates in training.
        trainable = [
            ops.copy(ops.cast(given[id(variable)], variable.dtype))
            for variable in self.model.trainable_variables
        ]
        non_trainable = [
            ops.copy(ops.cast(given.get(id(variable), value), variable.dtype))
            for variable, value in zip(self.model.non_trainable_variables, own, strict=True)
        ]
        return Point(trainable, non_trainable)

    def moved(self, origin: Point, direction: Sequence[Any], step: float) -> Point:
        """Returns `origin - step * direction`, with the same statistics."""
        # `ops.cast` of a Python number would round it to float32 first.
        moved = [
            theta - ops.convert_to_tensor(float(step), theta.dtype) * ops.cast(d, theta.dtype)
            for theta, d in zip(origin.trainable, direction, strict=True)
        ]
        return Point(moved, origin.non_trainable)

    def calibrated(self, point: Point) -> Point:
        """Returns the point with the batch-norm statistics that the mode requires.

        The last one is cached, so that many batches at one point need one calibration.
        """
        if not self.calibration_passes:
            return point
        if not any(point is known for known in self._calibrated):
            inputs = [(batch[0],) for batch in self._moment_batches]
            self._calibrated = (point, Point(point.trainable, self._recompute(*point, inputs)))
        return self._calibrated[1]

    @property
    def calibration_passes(self) -> int:
        """Number of forward passes that `calibrated` needs for a point."""
        if self.mode.batch_norm != "recalibrated" or not self._statistics:
            return 0
        return len(self._moment_batches)

    def fingerprint(self, point: Point) -> str:
        """Returns a checksum of the values on which a loss depends; statistics only if used."""
        alone = self.mode.batch_norm == "batch" and self.mode.dropout == "off"
        return fingerprint(point.trainable if alone else [*point.trainable, *point.non_trainable])

    # Measuring ----------------------------------------------------------------------------

    def loss(self, point: Point, batch: Batch) -> float:
        """Returns the mean loss of a batch."""
        return float(self.evaluate(point, [batch])[0][0])

    def evaluate(self, point: Point, batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
        """Returns ([N] mean losses, [N] accuracies) of batches at one point.

        The accuracy is NaN if targets are not class labels.
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
        """Returns the [K] mean losses of a batch at `origin - steps[k] * direction`."""
        if self.mode.batch_norm == "recalibrated":
            return np.array(
                [self.loss(self.moved(origin, direction, step), batch) for step in steps]
            )
        batch, direction = _tensors(batch), list(direction)
        # All passes are started before waiting for the first result.
        found = [
            self._along(*origin, direction, ops.convert_to_tensor(float(step), "float64"), batch)
            if backend.name() != "jax"
            else self._along(*origin, direction, np.float32(step), batch)
            for step in steps
        ]
        return np.array([float(loss) for loss in found])

    def predict(self, point: Point, inputs: Any) -> Any:
        """Returns the outputs for a batch of inputs on the host: an array, or nested arrays."""
        point = self.calibrated(point)
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        outputs = self._predict(*point, inputs)
        return keras.tree.map_structure(lambda array: backend.to_numpy([array])[0], outputs)

    def score(self, outputs: Any, batch: Batch) -> tuple[float, float]:
        """Returns the mean loss (without penalties) and accuracy of outputs, NaN as in
        `evaluate`."""
        given = keras.tree.map_structure(ops.convert_to_tensor, outputs)
        parts = (None, *_tensors(batch[1:]))
        return float(self._loss.mean(parts, given)), float(self._loss.accuracy(parts, given))

    def gradient(self, point: Point, batch: Batch) -> tuple[float, list[Any]]:
        """Returns the mean loss of a batch and its gradient by the trainable weights."""
        point = self.calibrated(point)
        loss, gradient = self._gradient(*point, _tensors(batch))
        return float(loss), list(gradient)

    def hessian_vector(self, point: Point, batch: Batch, vector: Sequence[Any]) -> list[Any]:
        """Returns the Hessian of a batch's mean loss times a vector.

        With batch statistics the moments are differentiated too, exactly.
        """
        point = self.calibrated(point)
        given = [
            ops.cast(array, variable.dtype)
            for array, variable in zip(vector, self.model.trainable_variables, strict=True)
        ]
        return list(self._product(point.trainable, given, point.non_trainable, _tensors(batch)))

    def seconds_per_pass(self, batch: Batch, repeats: int = 3) -> float:
        """Returns the median time of one forward pass of a batch, without compilation."""
        point = self.point()
        self.loss(point, batch)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.loss(point, batch)
            seconds.append(time.perf_counter() - start)
        return float(np.median(seconds))

    def about(self) -> dict[str, Any]:
        """Returns the description of the surface for a record."""
        found = {**self.mode.about(self.model), "keras_backend": backend.name()}
        if self._regularizers or activity_regularized(self.model):
            found["penalties"] = "included" if self.penalties else "left out"
        return found

    # What is compiled ---------------------------------------------------------------------

    def _outputs(self, trainable: Any, non_trainable: Any, inputs: Any, exact: bool = False) -> Any:
        with as_in(self.model, self.mode, exact_moments=exact):
            return backend.forward(self.model, trainable, non_trainable, inputs, training=True)[0]

    def _mean_loss(
        self, trainable: Any, non_trainable: Any, batch: Any, exact: bool = False
    ) -> Any:
        outputs = self._outputs(trainable, non_trainable, batch[0], exact)
        return self._with_penalties(self._loss.mean(batch, outputs), trainable)

    def _with_penalties(self, loss: Any, trainable: Any) -> Any:
        if self.penalties:
            for position, regularizer in self._regularizers:
                penalty = regularizer(ops.cast(trainable[position], loss.dtype))
                loss = loss + ops.cast(penalty, loss.dtype)
        return loss

    def _mean_loss_exactly(self, trainable: Any, non_trainable: Any, batch: Any) -> Any:
        return self._mean_loss(trainable, non_trainable, batch, True)

    def _evaluate_batch(self, trainable: Any, non_trainable: Any, batch: Any) -> Any:
        outputs = self._outputs(trainable, non_trainable, batch[0])
        loss = self._with_penalties(self._loss.mean(batch, outputs), trainable)
        return loss, self._loss.accuracy(batch, outputs)

    def _evaluate_moved(
        self, trainable: Any, non_trainable: Any, direction: Any, step: Any, batch: Any
    ) -> Any:
        moved = [
            theta - ops.cast(step, theta.dtype) * ops.cast(d, theta.dtype)
            for theta, d in zip(trainable, direction, strict=True)
        ]
        return self._mean_loss(moved, non_trainable, batch)


def _tensors(batch: Batch) -> Any:
    return tuple(keras.tree.map_structure(ops.convert_to_tensor, part) for part in batch)


def check_model(model: Any) -> None:
    """Raises ValueError for anything but a built Keras model with trainable weights."""
    if not isinstance(model, keras.Layer):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        torch = any(base.__module__.startswith("torch.") for base in type(model).__mro__)
        hint = " (a torch module goes into keras.layers.TorchModuleWrapper)" if torch else ""
        raise ValueError(
            f"`model` must be a model of Keras {keras.__version__}, built{hint}. "
            f"Received: an object of type {kind}"
        )
    if not model.built:
        raise ValueError("`model` must be built: call it once, or give it an input shape.")
    if model.weights and not model.trainable_variables:
        raise ValueError(
            "`model` must have trainable weights. Received: a model whose "
            f"{len(model.weights)} weights are all frozen"
        )
