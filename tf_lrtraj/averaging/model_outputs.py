"""Determines what the outputs of a model are, from the model, its loss and the values.

The average of logits is not the average of predictions, and a softmax of probabilities distorts
them.  So the kind of the outputs must be known before they are averaged:

============== ==================================== ===========================================
kind           outputs                              determined by
============== ==================================== ===========================================
"classes"      probabilities of classes [..., C]    a softmax at the end, rows that sum to 1
"binary"       a probability of one class, [N, 1]   a sigmoid at the end, or the loss
               or [N]
"labels"       independent probabilities [..., L]   a sigmoid at the end, or the loss
"values"       values of a regression               the loss
============== ==================================== ===========================================

The first three kinds may be given as logits.  The last activation of the model is examined first,
then the compiled loss (including `from_logits`), and then the values, which must be consistent.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

__all__ = ["OutputKind", "find_kind", "score", "single_output"]

_LOSSES = {
    "classes": (
        "categoricalcrossentropy",
        "sparsecategoricalcrossentropy",
        "categoricalfocalcrossentropy",
    ),
    "labels": ("binarycrossentropy", "binaryfocalcrossentropy"),
    "values": (
        *("meansquarederror", "meanabsoluteerror", "meanabsolutepercentageerror", "mse", "mae"),
        *("meansquaredlogarithmicerror", "mape", "msle", "huber", "logcosh", "poisson"),
    ),
}
_NEUTRAL = ("Identity", "Reshape", "Flatten", "Permute", "Dropout")
_TINY = float(np.finfo(np.float64).tiny)


@dataclasses.dataclass(frozen=True)
class OutputKind:
    """The kind of a model's outputs, which determines how they are averaged and scored.

    Attributes:
        name: "classes", "binary", "labels" or "values"; "kept" for numbers between 0 and 1 whose
            meaning is unknown, which are averaged unchanged.
        logits: whether outputs are logits.
    """

    name: str
    logits: bool

    def predictions(self, outputs: np.ndarray) -> np.ndarray:
        """Converts outputs to probabilities or values, float64.

        Raises:
            ValueError: if outputs taken for probabilities are none.
        """
        outputs = np.asarray(outputs)
        wide = outputs.astype(np.float64)
        if self.name == "values":
            return wide
        if self.logits:
            return _softmax(wide) if self.name == "classes" else _sigmoid(wide)
        problem = _not_probabilities(outputs, self.name == "classes")
        if problem:
            raise ValueError(
                f"`logits` must be True if the model's outputs are logits. They were taken for "
                f"probabilities, but {problem}. Received: logits=None or False"
            )
        return wide


def single_output(model: Any) -> None:
    """Raises ValueError if a model has several outputs."""
    outputs = getattr(model, "output", None) if _has_outputs(model) else None
    if isinstance(outputs, (list, tuple, dict)) and len(outputs) != 1:
        names = list(outputs) if isinstance(outputs, dict) else list(model.output_names)
        raise several_outputs(names)


def several_outputs(names: Any) -> ValueError:
    """Returns the error for a model with several outputs."""
    return ValueError(f"`model` must have one output. Received: a model with outputs {names}")


def find_kind(model: Any, outputs: np.ndarray, logits: bool | None) -> OutputKind:
    """Determines the kind of a model's outputs.

    Args:
        model: a Keras model, compiled or not.
        outputs: outputs of the model with one set of weights.
        logits: whether the user declares the outputs as logits; None if not declared.

    Raises:
        ValueError: if `logits` contradicts the values or the model, or if the kind cannot be
            determined.
    """
    outputs = np.asarray(outputs)
    single = outputs.ndim == 1 or outputs.shape[-1] == 1
    activation = _activation(model)
    loss, from_logits = _loss(model)
    many = "binary" if single else "labels"
    if loss == "values" or activation not in ("softmax", "sigmoid"):
        name = many if loss == "labels" or (single and loss == "classes") else loss
    else:
        name = "classes" if activation == "softmax" else many
    softmaxed = not single and not _not_probabilities(outputs, classes=True)
    if softmaxed and loss != "values" and activation != "sigmoid":
        name, activation = "classes", "softmax"  # rows that sum to 1 are probabilities
    if logits:
        if activation in ("softmax", "sigmoid"):
            raise ValueError(
                "`logits` must be None or False: the outputs are probabilities already "
                f"({_range(outputs)}{', rows sum to 1' if name == 'classes' else ''}). "
                "Received: logits=True"
            )
        if name in (None, "values"):
            name = "binary" if single else "classes"
        return OutputKind(name, True)
    if logits is None and activation not in ("softmax", "sigmoid") and from_logits:
        return OutputKind(name or ("binary" if single else "classes"), True)
    if name == "values":
        return OutputKind("values", False)
    if name is None:
        if not _not_probabilities(outputs, classes=False):
            return OutputKind("kept", False)
        if logits is None:
            raise ValueError(
                "`logits` must be True or False: it is unknown whether the outputs are logits "
                f"({_range(outputs)}; the model has no compiled loss that determines it). "
                "Received: logits=None"
            )
        return OutputKind("values", False)
    return OutputKind(name, False)


class Score(NamedTuple):
    """Loss and accuracy of predictions.

    Attributes:
        loss_name: "cross-entropy", or "mean squared error" for a regression.
        loss: mean loss over the examples.
        accuracy: share of correct predictions; None for a regression.
        examples: number of examples.
    """

    loss_name: str
    loss: float
    accuracy: float | None
    examples: int


def score(kind: OutputKind, predictions: np.ndarray, y: Any) -> Score:
    """Computes loss and accuracy of predictions.

    Args:
        kind: kind of the predictions.
        predictions: [N, …] results of `OutputKind.predictions`, or a mean of several.
        y: [N, …] labels: integers or one-hot for classes, 0 and 1 for other probabilities, or
            values for a regression.

    Raises:
        ValueError: if the labels do not fit.
    """
    y = np.asarray(y)
    if y.shape[:1] != predictions.shape[:1]:
        raise ValueError(
            f"`y` must hold a label for each of {len(predictions)} examples. "
            f"Received: shape={y.shape}"
        )
    name = kind.name
    if name == "kept":
        name = _kept(predictions, y)
    if name == "classes":
        loss, right = _classes(predictions, y)
        return Score("cross-entropy", loss, right, len(y))
    if y.size != predictions.size or not np.can_cast(y.dtype, np.float64):
        raise ValueError(
            f"`y` must hold a number for each of the outputs, of shape {predictions.shape}. "
            f"Received: shape={y.shape}, dtype={y.dtype}"
        )
    y = y.reshape(predictions.shape).astype(np.float64)
    if name == "values":
        return Score("mean squared error", float(np.mean((predictions - y) ** 2)), None, len(y))
    if y.min(initial=0.0) < 0.0 or y.max(initial=0.0) > 1.0:
        raise ValueError(f"`y` must lie between 0 and 1. Received: {_range(y)}")
    logs = y * np.log(np.maximum(predictions, _TINY))
    logs += (1.0 - y) * np.log(np.maximum(1.0 - predictions, _TINY))
    right = np.mean((predictions > 0.5) == (y > 0.5))
    return Score("cross-entropy", float(-np.mean(logs)), float(right), len(y))


def _classes(predictions: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Computes cross-entropy and accuracy for integer, one-hot or soft labels."""
    count = predictions.shape[-1]
    if y.shape == predictions.shape:
        truth = y.astype(np.float64)
        problem = _not_probabilities(truth, classes=True)
        if problem:
            raise ValueError(f"`y` must be one-hot or probabilities of {count} classes: {problem}.")
        loss = -np.sum(truth * np.log(np.maximum(predictions, _TINY)), axis=-1).mean()
        return float(loss), float(np.mean(predictions.argmax(-1) == truth.argmax(-1)))
    if y.shape == (*predictions.shape[:-1], 1):
        y = y[..., 0]
    whole = y.shape == predictions.shape[:-1] and y.dtype.kind in "iufb"
    labels = y.astype(np.int64) if whole else y
    if not whole or np.any(labels != y):
        raise ValueError(
            f"`y` must hold integer labels of shape {predictions.shape[:-1]}, or one-hot labels of "
            f"shape {predictions.shape}. Received: shape={y.shape}, dtype={y.dtype}"
        )
    if labels.size and (labels.min() < 0 or labels.max() >= count):
        raise ValueError(
            f"`y` must hold labels from 0 to {count - 1}, as the model has {count} outputs. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )
    chosen = np.take_along_axis(predictions, labels[..., None], axis=-1)
    loss = -np.mean(np.log(np.maximum(chosen, _TINY)))
    return float(loss), float(np.mean(predictions.argmax(-1) == labels))


def _kept(predictions: np.ndarray, y: np.ndarray) -> str:
    """Returns the kind of numbers between 0 and 1, given the labels."""
    single = predictions.ndim == 1 or predictions.shape[-1] == 1
    if y.size == predictions.size and y.dtype.kind in "iufb":
        marks = np.all((y == 0) | (y == 1))
        return ("binary" if single else "labels") if marks else "values"
    raise ValueError(
        f"`y` must hold a number for each of the outputs, of shape {predictions.shape}: these are "
        f"not probabilities of classes, as rows do not sum to 1. Received: shape={y.shape}"
    )


# Evidence from the model and the values -----------------------------------------------------


def _has_outputs(model: Any) -> bool:
    """Returns whether a model has symbolic outputs; a subclass with its own `call` has none."""
    try:
        return bool(model.outputs)
    except (AttributeError, ValueError):
        return False


def _activation(model: Any) -> str | None:
    """Returns the name of a model's last activation, such as "softmax", or None."""
    if not _has_outputs(model) or len(model.outputs) != 1:
        return None
    tensor = model.outputs[0]
    for _ in range(10):  # layers that change no values are skipped
        layer = tensor._keras_history.operation
        if _has_outputs(layer) and hasattr(layer, "layers"):  # a nested model
            return _activation(layer)
        layer = getattr(layer, "layer", layer)  # wrappers such as TimeDistributed
        name = getattr(getattr(layer, "activation", None), "__name__", None)
        kind = type(layer).__name__
        if kind.lower() in ("softmax", "sigmoid"):
            return kind.lower()
        neutral = kind in _NEUTRAL or (kind == "Activation" and name == "linear")
        if not neutral:
            return name
        inputs = layer.input
        if isinstance(inputs, (list, tuple, dict)):
            return None
        tensor = inputs
    return None


def _loss(model: Any) -> tuple[str | None, bool]:
    """Returns (kind of outputs that the compiled loss takes, or None; whether it takes logits)."""
    loss = getattr(model, "loss", None)
    while isinstance(loss, (list, tuple, dict)) and len(loss) == 1:
        loss = next(iter(loss.values())) if isinstance(loss, dict) else loss[0]
    from_logits = bool(getattr(loss, "from_logits", False))
    if isinstance(loss, functools.partial):
        from_logits, loss = bool(loss.keywords.get("from_logits")), loss.func
    if not isinstance(loss, str):
        loss = getattr(loss, "__name__", None) or type(loss).__name__
    plain = loss.replace("_", "").lower()
    kind = next((kind for kind, names in _LOSSES.items() if plain in names), None)
    return kind, from_logits


def _not_probabilities(values: np.ndarray, classes: bool) -> str:
    """Returns why values are not probabilities (of classes: rows sum to 1), or an empty text."""
    coarse = values.dtype.itemsize < 4
    tolerance = 2e-2 if coarse else 1e-3
    wide = values.astype(np.float64)
    if wide.size and not (wide.min() >= -tolerance and wide.max() <= 1.0 + tolerance):
        return _range(values)
    if classes:
        sums = wide.sum(axis=-1)
        if sums.size and np.abs(sums - 1.0).max() > tolerance:
            return f"rows sum to {sums.min():.4g} up to {sums.max():.4g}"
    return ""


def _range(values: np.ndarray) -> str:
    wide = values.astype(np.float64)
    return f"they lie between {wide.min():.4g} and {wide.max():.4g}" if wide.size else "none"


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * logits))
