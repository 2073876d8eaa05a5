"""`Lending`: puts averages into a model temporarily, to use, evaluate or save them."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from tf_lrtraj import backend
from tf_lrtraj.averaging.average_settings import RAW_RUNNING
from tf_lrtraj.averaging.borrowing import Values, lend
from tf_lrtraj.averaging.model_averages import Settings
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.records import RAW


class Averages(Protocol):
    """Interface of averages that can be lent, such as `ModelAverages`."""

    @property
    def recompute(self) -> Any:
        """The `backend.batch_norm.Recompute` of the model."""

    def average(self, name: str, model: Any) -> list[tuple[Any, Any]]:
        """Returns pairs of a variable and its average in the dtype of the buffers."""


class Lending:
    """Lends a model averages of its weights.

    Args:
        model: a built Keras model.
        averages: a function that returns the averages; it is called after the model is claimed.
        settings: the settings of averages and batch norm.
    """

    def __init__(self, model: Any, averages: Callable[[], Averages], settings: Settings) -> None:
        self._given = model
        self._averages = averages
        self._settings = settings

    @property
    def model(self) -> Any:
        return backend.synchronized(self._given)

    def borrowed(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """Puts an average, or the raw weights under one of their names, into the model in a block.

        The model's own weights are lent too, because on JAX an exception in Keras' loop would
        leave the model without them.
        """
        if name == RAW and self.recomputes_raw:
            what = "its own weights with recomputed statistics"
            return lend(self.model, what, lambda: [*self._own(), *self._recomputed_of_own()])
        if name in (RAW, RAW_RUNNING):
            return lend(self.model, "its own weights", self._own)
        return lend(self.model, f"the average {name!r}", lambda: self._values(name))

    @property
    def recomputes_raw(self) -> bool:
        """Whether raw weights are evaluated with recomputed statistics, as averages are."""
        return (
            self._settings.batch_norm_data is not None
            and "recompute" in self._settings.batch_norm.values()
            and bool(bn.find_statistics(self.model))
        )

    def evaluate(
        self, names: Iterable[str], data: Any, options: Mapping[str, Any]
    ) -> dict[str, dict[str, float]]:
        """Evaluates the model's compiled metrics; names are those that `borrowed` takes.

        Returns:
            {name: {metric: value}}
        """
        arguments = dict(zip(("x", "y", "sample_weight"), split(data), strict=True))
        options = {"verbose": 0, **arguments, **options, "return_dict": True}
        model = self.model
        results: dict[str, dict[str, float]] = {}
        # `evaluate` resets the metrics that a running epoch is still adding to.
        restore_metrics = backend.backup(model.metrics_variables)
        try:
            for name in names:
                # Reading the data may draw from the random streams that shuffle the training data.
                with backend.random_streams_kept(), self.borrowed(name):
                    results[name] = model.evaluate(**options)
        finally:
            restore_metrics()
        return results

    def check_recomputation(self) -> None:
        """Recomputes statistics of the raw weights on one batch, to find errors early."""
        if self.recomputes_raw and not backend.is_distributed(self._settings.batch_norm_data):
            self._recomputed("The training", [], batches=1)

    # The lent values --------------------------------------------------------------------------

    def _own(self) -> Values:
        variables = self.model.trainable_variables
        return list(zip(variables, backend.values(variables), strict=True))

    def _recomputed_of_own(self) -> Values:
        return self._recomputed("The evaluation", self._own())

    def _values(self, name: str) -> Values:
        """Returns (variable, value) of each variable that an average replaces."""
        average = self._averages().average(name, self.model)
        # The policy may have changed since the averages began.
        statistics = {id(v) for v in bn.averaged_variables(self.model)}
        changes = [
            (v, keras.ops.cast(value, v.dtype)) for v, value in average if id(v) not in statistics
        ]
        policy = self._settings.batch_norm[name]
        if policy == "average":
            changes += self._averaged_statistics(name, {id(v): value for v, value in average})
        elif policy == "recompute":
            changes += self._recomputed(f"The average {name!r}", changes)
        return changes

    def _averaged_statistics(self, name: str, average: Mapping[int, Any]) -> Values:
        model = self.model
        for entry in bn.find_statistics(model):
            variance = average.get(id(entry.layer.moving_variance))
            lowest = 0.0 if variance is None else float(np.min(backend.to_numpy([variance])[0]))
            if lowest < 0.0:
                raise ValueError(
                    f"The average {name!r} gives some iterates negative weights, and the averaged "
                    f"variance of {entry.layer.name!r} falls to {lowest:.3g}. Use "
                    "batch_norm='recompute' for this average."
                )
        old = backend.values(model.non_trainable_variables)
        known = [average.get(id(v), v) for v in bn.averaged_variables(model)]
        return _differences(model, old, bn.put_averaged(model, old, known))

    def _recomputed(self, who: str, changes: Values, batches: int | None = None) -> Values:
        """Returns (variable, value) of statistics recomputed under other weights.

        Args:
            who: description of the weights for errors.
            changes: the weights that differ from the model's own.
            batches: number of batches; by default that of the settings.
        """
        model, settings = self.model, self._settings
        if not bn.find_statistics(model):
            return []
        if settings.batch_norm_data is None:
            raise ValueError(
                f"{who} needs `batch_norm_data` to recompute its batch-norm "
                "statistics. Set it, for example `averaging.batch_norm_data = x_train[:4096]`, "
                "or choose batch_norm='average' before training."
            )
        bn.check_data(settings.batch_norm_data, batches=settings.batch_norm_batches)
        known = {id(v): value for v, value in changes}
        trainable, old = (
            [known.get(id(v), value) for v, value in zip(vs, backend.values(vs), strict=True)]
            for vs in (model.trainable_variables, model.non_trainable_variables)
        )
        try:
            new = self._averages().recompute(
                trainable,
                old,
                settings.batch_norm_data,
                batch_size=settings.batch_size,
                batches=settings.batch_norm_batches if batches is None else batches,
            )
        except Exception as error:  # Keras and its backends raise many types, with long messages
            if "batch_norm" in str(error) or "atch-norm" in str(error):
                raise
            raise ValueError(
                "`batch_norm_data` cannot be run through the model in training mode: "
                f"{_reason(error)}"
            ) from error
        changed = _differences(model, old, new)
        if not backend.all_finite([value for _, value in changed]):
            warnings.warn(
                f"The statistics that {who[0].lower()}{who[1:]} gets from `batch_norm_data` are "
                "not finite.",
                stacklevel=6,
            )
        return changed


def split(data: Any) -> tuple[Any, Any, Any]:
    """Splits data as `fit` takes them into (inputs, targets, sample weights).

    >>> split(["x", "y"])
    ('x', 'y', None)
    """
    if isinstance(data, (tuple, list)):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(tuple(data))
        return x, y, sample_weight
    return data, None, None


def _reason(error: Exception) -> str:
    """Returns the first informative line of an error message of Keras."""
    text = re.sub("\x1b\\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Exception encountered when")]
    return lines[0] if lines else type(error).__name__


def _differences(model: Any, old: Sequence[Any], new: Sequence[Any]) -> Values:
    """Returns (variable, value) of the non-trainable variables whose values were replaced."""
    triples = zip(model.non_trainable_variables, old, new, strict=True)
    return [(variable, after) for variable, before, after in triples if after is not before]
