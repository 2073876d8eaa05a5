"""`Recompute`: batch-norm statistics of a model for any weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj.backend.batch_norm import training_pass
from tf_lrtraj.backend.batch_norm.layers import Statistics, check_model, find_statistics, replace
from tf_lrtraj.backend.batch_norm.pooling import PooledMoments, over_replicas
from tf_lrtraj.backend.batch_norm.reader import read
from tf_lrtraj.backend.batch_norm.training_pass import Call, Observed, batch_moments
from tf_lrtraj.backend.weight_updates import steps_made

INSTEAD = (
    "Choose batch_norm='average' or 'copy', or give `batch_norm_call`, a function (model, batch) "
    "that runs a batch through what is to be measured."
)


class Recompute:
    """Recomputes batch-norm statistics of a model for given weights; compiled once.

    Batch-norm layers that training calls with `training=False` keep their stored statistics.  So
    do layers whose statistics training does not change, as in `fit` for a model whose `call` has no
    argument `training`.  These are found by comparison with the state at the creation of this
    object, so create it before training.

    Args:
        model: a built Keras model; its variables, its random streams, and the global streams of
            Python, NumPy and torch do not change.
        call: a function `(model, batch)` that runs one batch, as the data hold it, in
            training mode; it is traced.  None runs what `fit` runs: the model's own
            `train_step` where there is one, up to the model's first call.

    Example:

    >>> import keras, numpy as np
    >>> from tf_lrtraj import backend
    >>> from tf_lrtraj.backend import batch_norm
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
    >>> recompute = batch_norm.Recompute(model)
    >>> weights = [backend.values(model.trainable_variables),
    ...            backend.values(model.non_trainable_variables)]
    >>> data = np.array([[1.0], [3.0]], "float32")
    >>> [np.asarray(value).tolist() for value in recompute(*weights, data)]
    [[2.0], [1.0]]
    """

    def __init__(self, model: Any, call: Call | None = None) -> None:
        self._model = model
        self._call = call
        self._statistics: list[Statistics] = []
        self._compiled: dict[tuple[Any, bool], tuple[Any, Observed]] = {}
        self._first = {id(e.layer): _state_of(e.layer) for e in find_statistics(model)}
        self._first_iterations = steps_made(model)

    def __call__(
        self,
        trainable: Sequence[Any],
        non_trainable: Sequence[Any],
        data: Any,
        *,
        batch_size: int = 128,
        batches: int | None = None,
    ) -> list[Any]:
        """Returns the non-trainable values with statistics recomputed for the given weights.

        Args:
            trainable, non_trainable: as in `backend.given_weights`.
            data: training data, as `WeightAveraging` takes `batch_norm_data`.  Of a
                `tf.distribute` data set each replica measures its share, and all workers
                must take part.
            batch_size: examples per batch if `data` are arrays.
            batches: largest number of batches; None for all.

        Returns:
            `non_trainable` with the statistics of every trainable batch-norm layer replaced.

        Raises:
            ValueError: if there is no batch, `data` cannot be read, or a layer has running
                statistics or weights that this way of measuring gets wrong.
        """
        statistics = find_statistics(self._model)
        if not statistics:
            return list(non_trainable)
        check_model(self._model, ["recompute"])
        if statistics != self._statistics:  # layers were frozen or unfrozen
            self._statistics, self._compiled = statistics, {}
        call = self._call or self._way()
        distributed = backend.is_distributed(data)
        pooled = PooledMoments()
        state = list(non_trainable)

        def add(batch: Any) -> None:
            nonlocal call, state
            if self._call is not None:
                batch = batch[0] if isinstance(batch, tuple) and len(batch) == 1 else batch
            elif call is not training_pass.call_by_step:
                batch = keras.utils.unpack_x_y_sample_weight(batch)[0]
            # The random streams of layers advance from batch to batch, as in training.
            moments, after = self._measure(call, distributed, trainable, state, batch)
            if not pooled.batches and self._trains_beyond_fit(call, distributed):
                call = training_pass.call_on_inputs
                moments, after = self._measure(call, distributed, trainable, state, batch)
            self._check(self._compiled[call, distributed][1])
            pooled.add(moments)
            state = after

        with backend.random_streams_kept():
            read(self._model, data, add, batch_size=batch_size, batches=batches)
        found = pooled.result()
        self._check_reached(self._compiled[call, distributed][1])
        return replace(non_trainable, statistics, found)

    def _way(self) -> Call:
        own = training_pass.has_own_step(self._model)
        return training_pass.call_by_step if own else training_pass.call_as_fit

    def _measure(
        self, call: Call, distributed: bool, trainable: Any, non_trainable: Any, batch: Any
    ) -> Any:
        if (call, distributed) not in self._compiled:
            self._compiled[call, distributed] = self._compile(call, distributed)
        if not distributed:
            batch = keras.tree.map_structure(_tensor, batch)
        measure, _ = self._compiled[call, distributed]
        return measure(list(trainable), list(non_trainable), batch)

    def _compile(self, call: Call, distributed: bool) -> tuple[Any, Observed]:
        model, statistics, observed = self._model, self._statistics, Observed()

        def measure(trainable: Any, non_trainable: Any, batch: Any) -> Any:
            moments, state = batch_moments(
                model, statistics, trainable, non_trainable, batch, call, observed
            )
            return over_replicas(moments) if distributed else moments, state

        measure = backend.unconverted(measure)
        if distributed:
            return backend.compiled_on_replicas(measure, model), observed
        return backend.compiled(measure), observed

    def _trains_beyond_fit(self, call: Call, distributed: bool) -> bool:
        """Returns whether training runs batch norm on batches although `fit` would not.

        A custom loop may call `model(x, training=True)` where `fit` calls `model(x)`.
        """
        if call is not training_pass.call_as_fit:
            return False
        observed = self._compiled[call, distributed][1]
        layers = {id(entry.layer): entry.layer for entry in self._statistics}
        resting = observed.called - observed.measured
        hears = training_pass.takes_training(self._model) and backend.name() != "jax"
        return not hears and any(not self._statistics_unchanged(layers[key]) for key in resting)

    def _statistics_unchanged(self, layer: Any) -> bool:
        """Returns whether a layer was trained while its statistics did not change."""
        mean, variance, *weights = _state_of(layer)
        first_mean, first_variance, *first = self._first.get(id(layer), _state_of(layer))
        if np.any(mean != first_mean) or np.any(variance != first_variance):
            return False
        iterations = steps_made(self._model)
        since = iterations != self._first_iterations or any(
            np.any(now != then) for now, then in zip(weights, first, strict=True)
        )
        untouched = not np.any(mean) and bool(np.all(variance == 1.0))
        return since or (untouched and iterations > 0)

    def _check(self, observed: Observed) -> None:
        if observed.trained:
            raise ValueError(
                "Batch-norm statistics cannot be recomputed, since calling the model in training "
                f"mode itself changes the weights {sorted(set(observed.trained))}: inference would "
                f"see other activations. {INSTEAD}"
            )
        if observed.moved and self._call is None:
            layers = sorted({layer for layer, _ in observed.moved})
            paths = sorted({path for _, path in observed.moved})
            raise ValueError(
                "batch_norm='recompute' measures batch norm only, and the layers "
                f"{layers} keep running statistics of their own, {paths}. {INSTEAD}"
            )

    def _check_reached(self, observed: Observed) -> None:
        missing = [e.layer for e in self._statistics if id(e.layer) not in observed.called]
        if missing:
            raise ValueError(
                "Batch-norm statistics of the layers "
                f"{[layer.name for layer in missing]} were not measured: no batch reached them. "
                "Give `batch_norm_call`, a function (model, batch) that runs a batch through "
                "them too, or freeze them (layer.trainable = False)."
            )


def recompute(
    model: Any,
    trainable: Sequence[Any],
    non_trainable: Sequence[Any],
    data: Any,
    **options: Any,
) -> list[Any]:
    """Recomputes statistics once; see `Recompute`."""
    return Recompute(model)(trainable, non_trainable, data, **options)


def _state_of(layer: Any) -> list[np.ndarray]:
    """Returns a batch-norm layer's mean, variance and, if any, scale and offset."""
    own = [layer.moving_mean, layer.moving_variance]
    own += [v for v in (layer.gamma, layer.beta) if isinstance(v, keras.Variable)]
    return backend.to_numpy(backend.values(own))


def _tensor(part: Any) -> Any:
    return part if part is None or ops.is_tensor(part) else ops.convert_to_tensor(part)
