"""Reads weights of a model from arrays in several orders, or from another model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tf_lrtraj import backend
from tf_lrtraj.backend import batch_norm as bn
from tf_lrtraj.probes.vectors import first_misfit, shapes

_GIVE = (
    "Give None (the model's own), a Keras model of the same architecture, its `get_weights()`, "
    "or arrays in the order of `model.trainable_variables`, with or without mean and variance of "
    "each batch-norm layer after them"
)


def read_weights(model: Any, weights: Any) -> dict[int, Any]:
    """Returns {`id` of a variable of `model`: its array in `weights`}.

    Args:
        model: a built Keras model.
        weights: another model of its architecture, or arrays in one of three orders: of
            `model.trainable_variables`; of those and then mean and variance of each batch-norm
            layer in turn, as snapshots hold them; or of `model.get_weights()`.

    Raises:
        ValueError: if it is neither, or the shapes do not fit.
    """
    if hasattr(weights, "weights") and hasattr(weights, "get_weights"):
        return _of_model(model, weights)
    if isinstance(weights, (str, os.PathLike)):
        raise ValueError(
            "`weights` must not be a path: load the file into a model of the same architecture "
            "(`keras.saving.load_model(path)`, or `other.load_weights(path)`) and give that model. "
            f"Received: weights={os.fspath(weights)!r}"
        )
    arrays = None if isinstance(weights, Mapping) or hasattr(weights, "shape") else _listed(weights)
    if arrays is None:
        raise ValueError(
            f"`weights` must hold a model's weights. {_GIVE}. "
            f"Received: weights of type {type(weights).__name__}"
        )
    return _of_arrays(model, arrays)


def _listed(weights: Any) -> list[Any] | None:
    try:
        arrays = list(weights)
    except TypeError:
        return None
    return arrays if all(hasattr(array, "shape") for array in arrays) else None


def _of_model(model: Any, other: Any) -> dict[int, Any]:
    theirs, ours = list(other.weights), list(model.weights)
    if shapes(theirs) != shapes(ours):
        raise ValueError(
            "`weights` must be a built model of the same architecture. Received: model "
            f"{getattr(other, 'name', type(other).__name__)!r} with "
            f"{first_misfit(shapes(theirs), shapes(ours))}"
        )
    return {id(v): value for v, value in zip(ours, backend.values(theirs), strict=True)}


def _of_arrays(model: Any, arrays: Sequence[Any]) -> dict[int, Any]:
    found = shapes(arrays)
    trainable = list(model.trainable_variables)
    with_statistics = bn.weights_and_statistics(model)
    orders = [trainable, with_statistics, list(model.weights)]
    fitting = [order for order in orders if shapes(order) == found]
    if not fitting:
        raise ValueError(
            f"weights must be {len(trainable)} arrays of the model's shapes, in the order of its "
            f"trainable variables, {len(with_statistics)} with batch-norm statistics, or the "
            f"{len(orders[2])} of `get_weights()`. Received: "
            f"{first_misfit(found, shapes(with_statistics))}"
        )
    positions = [[id(variable) for variable in order] for order in fitting]
    if positions[0] != positions[-1]:
        warnings.warn(
            "The shapes of the weights fit two orders, and are taken as trainable variables and "
            "then batch-norm statistics, as snapshots hold them. If they come from "
            "`get_weights()`, give the model itself.",
            stacklevel=4,
        )
    return dict(zip(positions[0], arrays, strict=True))
