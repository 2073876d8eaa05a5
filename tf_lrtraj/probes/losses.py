"""The loss of a batch from a model's outputs, for one output or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj.probes.batches import Batch
from tf_lrtraj.values import error


class BatchLoss:
    """Mean loss and accuracy of a batch, given the outputs of a model.

    Args:
        model: a Keras model; its names of outputs are used and, if `loss` is None, its compiled
            loss and `loss_weights`.
        loss: a `keras.losses.Loss`, its name, or a function (targets, outputs) → losses of
            the examples; for several outputs a list or dict of those, as `compile` takes
            it (None for an output without a loss).

    Raises:
        ValueError: if there is no loss, or it is something else.
    """

    def __init__(self, model: Any, loss: Any = None) -> None:
        self._names = getattr(model, "output_names", None)
        self._weights: Any = None
        if loss is None:
            loss = getattr(model, "loss", None)
            if loss is None:
                raise error("loss", "given for a model that is not compiled", loss)
            compiled = getattr(model, "_compile_loss", None)
            self._weights = None if compiled is None else compiled._user_loss_weights
        self._loss = keras.tree.map_structure(_or_none, loss)
        if not any(one is not None for one in keras.tree.flatten(self._loss)):
            raise error("loss", "at least one loss", loss)

    def mean(self, batch: Batch, outputs: Any) -> Any:
        """Returns the mean loss over a batch, summed in float64 if the backend has it.

        With several outputs: the sum of the outputs' means, times their `loss_weights`.
        """
        terms = [
            mean if factor is None else ops.cast(factor, mean.dtype) * mean
            for factor, mean in self._terms(batch, outputs)
        ]
        return sum(terms[1:], terms[0])

    def accuracy(self, batch: Batch, outputs: Any) -> Any:
        """Returns the share of correct examples; NaN for several outputs, or without class
        labels."""
        found = [*keras.tree.flatten(outputs), *keras.tree.flatten(batch[1])]
        if len(found) != 2:
            return ops.convert_to_tensor(float("nan"), "float32")
        weights = keras.tree.flatten(batch[2])[0] if len(batch) > 2 else None
        return _mean(_correct(found[1], found[0]), weights)

    def _terms(self, batch: Batch, outputs: Any) -> Iterator[tuple[Any, Any]]:
        """Returns (weight of the loss, its mean) for each output that has a loss."""
        targets, weights = batch[1], batch[2] if len(batch) > 2 else None
        named = self._named(outputs)
        functions = _of_outputs(self._loss, named, "loss", shared=True)
        with_loss = [name for name in named if functions[name] is not None]
        found = _of_outputs(targets, named, "targets", some=with_loss)
        factors = _of_outputs(self._weights, named, "loss_weights", shared=True, some=with_loss)
        examples = _of_outputs(weights, named, "weights of examples", shared=True, some=with_loss)
        for name in with_loss:
            losses = functions[name](found[name], named[name])
            yield factors[name], _mean(losses, examples[name])

    def _named(self, outputs: Any) -> dict[Any, Any]:
        """Returns the outputs by name (or by position), in Keras' order."""
        if not keras.tree.is_nested(outputs):
            return {(self._names or [0])[0]: outputs}
        if isinstance(outputs, Mapping):
            named = {key: outputs[key] for key in keras.tree.flatten({k: k for k in outputs})}
        else:
            names = self._names if self._names and len(self._names) == len(outputs) else None
            named = dict(zip(names or range(len(outputs)), outputs, strict=True))
        if any(keras.tree.is_nested(one) for one in named.values()):
            raise ValueError(
                "a model's outputs must be a tensor, or a list, tuple or dict of tensors. "
                f"Received: {keras.tree.map_structure(lambda _: '*', outputs)}"
            )
        return named


def _of_outputs(
    given: Any,
    outputs: Mapping[Any, Any],
    what: str,
    shared: bool = False,
    some: list[Any] | None = None,
) -> dict[Any, Any]:
    """Assigns entries to outputs: by name in a dict, by position in a list.

    Args:
        given: a dict, list or tuple, or a single entry.
        outputs: name → output.
        what: the name of the entries, for the error.
        shared: whether a single entry is used for every output.
        some: the outputs that need an entry; a dict or list may be limited to them.
    """
    names, needed = list(outputs), list(outputs) if some is None else some
    if isinstance(given, Mapping):
        if set(needed) <= set(given) or (some is None and set(given) <= set(names)):
            return {name: given.get(name) for name in names}
        if len(names) == len(given) == 1:
            return dict.fromkeys(names, next(iter(given.values())))
        got: Any = f"the keys {list(given)}"
    elif isinstance(given, (list, tuple)):
        for keys in (names, needed):
            if len(given) == len(keys):
                return {**dict.fromkeys(names), **dict(zip(keys, given, strict=True))}
        got = f"{len(given)} of them"
    elif shared or len(names) == 1:
        return dict.fromkeys(names, given)
    else:
        got = type(given).__name__
    raise ValueError(
        f"the {what} must be a dict or list for the model's outputs {names}. Received: {got}"
    )


def per_example(loss: Any) -> Callable[[Any, Any], Any]:
    """Returns a function (targets, outputs) → losses of the examples.

    The losses are [B] in float32 or wider, or a scalar for a function that returns one.  Losses of
    tokens, [B, T, …], are averaged over the tokens of each example, without those that the loss
    masks (`ignore_class`); an example whose tokens are all masked has loss 0.

    Args:
        loss: a `keras.losses.Loss`, its name, or a function (targets, outputs) → losses.

    Raises:
        ValueError: if it is something else.
    """
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if not callable(loss):
        function = "a function of targets and outputs"
        allowed = f"a keras.losses.Loss, the name of one, {function}, or a list or dict of those"
        raise error("loss", allowed, loss)
    function = loss.call if isinstance(loss, keras.losses.Loss) else loss

    def losses_of(targets: Any, outputs: Any) -> Any:
        dtype = _wide(keras.backend.standardize_dtype(outputs.dtype))
        if "float" in keras.backend.standardize_dtype(targets.dtype):
            targets = ops.cast(targets, dtype)
        losses = function(targets, ops.cast(outputs, dtype))
        axes = tuple(range(1, len(losses.shape)))
        if not axes:
            return losses
        mask = getattr(losses, "_keras_mask", None)  # Keras' own mark of tokens to ignore
        if mask is None:
            return ops.mean(losses, axis=axes)
        mask = ops.cast(mask, losses.dtype)
        return ops.sum(losses * mask, axis=axes) / ops.maximum(ops.sum(mask, axis=axes), 1.0)

    return losses_of


def _or_none(loss: Any) -> Callable[[Any, Any], Any] | None:
    return None if loss is None else per_example(loss)


def _wide(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _mean(numbers: Any, weights: Any) -> Any:
    """Returns the (weighted) mean over examples, summed in float64 if the backend has it."""
    if len(numbers.shape) == 0:
        return numbers
    wide = ops.cast(numbers, "float64" if backend.has_float64() else "float32")
    if weights is None:
        # Not `ops.mean`, which uses float32 on torch.
        return ops.sum(wide) / ops.cast(ops.shape(wide)[0], wide.dtype)
    weights = ops.cast(weights, wide.dtype)
    return ops.sum(weights * wide) / ops.sum(weights)


def _correct(targets: Any, outputs: Any) -> Any:
    """Returns [B] numbers, 1 where the largest output is the target's class; NaN for other targets.

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


# --- Penalties on weights -----------------------------------------------------------------


def regularizers(model: Any) -> list[tuple[int, Any]]:
    """(position among `model.trainable_variables`, regularizer) of every weight that has one."""
    found = ((i, getattr(v, "regularizer", None)) for i, v in enumerate(model.trainable_variables))
    return [(i, regularizer) for i, regularizer in found if regularizer is not None]


def activity_regularized(model: Any) -> list[str]:
    """Names of the layers with an activity regularizer."""
    layers = model._flatten_layers(include_self=True, recursive=True)
    return [x.name for x in layers if getattr(x, "activity_regularizer", None) is not None]
