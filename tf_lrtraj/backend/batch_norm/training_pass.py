"""The forward pass of one batch as in training, which records the inputs of batch-norm layers.

The weights are given, and the model does not change.  The effects of a pass on layers are known
after tracing and stored in an `Observed`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from tf_lrtraj import backend
from tf_lrtraj.backend import layer_calls
from tf_lrtraj.backend.batch_norm.layers import Statistics, other_statistics, torch_modules
from tf_lrtraj.backend.batch_norm.pooling import Moments, moments, pool

# Runs one batch of data, as it was given, through a model in training mode.
Call = Callable[[Any, Any], Any]


@dataclasses.dataclass
class Observed:
    """The effects of traced passes.

    Attributes:
        measured: ids of batch-norm layers that normalised by the batch.
        called: ids of batch-norm layers that were called.
        trained: paths of trainable variables that a pass itself changed.
        moved: (layer, variable) of changed statistics of layers other than batch norm.
    """

    measured: set[int] = dataclasses.field(default_factory=set)
    called: set[int] = dataclasses.field(default_factory=set)
    trained: list[str] = dataclasses.field(default_factory=list)
    moved: list[tuple[str, str]] = dataclasses.field(default_factory=list)


# Running a batch ------------------------------------------------------------------------------


def call_on_inputs(model: Any, inputs: Any) -> None:
    """Runs a batch of inputs, ready for the network, in training mode."""
    model(inputs, training=True)


def call_as_fit(model: Any, inputs: Any) -> None:
    """Runs a batch of inputs as Keras' own `train_step` does on this backend.

    A model whose `call` has no argument `training` does not receive it. On JAX its layers receive
    it only through the `call` of the model.
    """
    options = {"training": True} if takes_training(model) else {}
    (model.call if backend.name() == "jax" else model)(inputs, **options)


def takes_training(model: Any) -> bool:
    """Returns whether `fit` passes `training=True` to the model."""
    return "training" in inspect.signature(model.call).parameters


def has_own_step(model: Any) -> bool:
    """Returns whether the model's class overrides Keras' `train_step`."""
    return getattr(type(model), "train_step", None) is not keras.Model.train_step


class _Reached(BaseException):
    """Ends a `train_step` after it has called the model; `except Exception` does not catch it."""


class _Unprepared(Exception):
    """The model was called on something that `fit` would not call it on."""


def call_by_step(model: Any, batch: Any, start: Callable[[], None] = lambda: None) -> None:
    """Runs a batch as the model's own `train_step` does, up to the model's first outputs.

    Args:
        model: a model that overrides `train_step`.
        batch: as the data hold it; inputs alone are also tried with None for targets.
        start: called at the start of each try.

    Raises:
        ValueError: if `train_step` fails before it calls the model, or never calls it.
    """
    step = model.train_step
    step = getattr(step, "python_function", step)  # of a tf.function
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        batch = batch[0]
        alone = True
    else:
        alone = not isinstance(batch, (tuple, list))
    failures = []
    for data in [(batch, None), batch] if alone else [batch]:
        start()
        reached: list[inspect.BoundArguments] = []
        handler = functools.partial(_reached, reached)
        try:
            with layer_calls.intercepted({model: handler}), _no_updates(model):
                step(*_arguments_of_step(model), data)
        except _Reached:
            if backend.name() == "jax":
                # Outside the step: values recorded inside would belong to its gradient.
                start()
                model.call(*reached[0].args, **reached[0].kwargs)
            return
        except Exception as error:
            if reached:
                raise
            failures.append(error)
    why = (
        f"it failed before that with {type(failures[0]).__name__}: {failures[0]}"
        if failures
        else "it does not"
    )
    raise ValueError(
        "Batch-norm statistics are measured where `train_step` of "
        f"{type(model).__name__} calls the model, and {why}. Give `batch_norm_data` with "
        "targets, as `fit` is given them, or `batch_norm_call`, a function (model, batch) that "
        "runs a batch in training mode."
    ) from (failures[0] if failures else None)


def _reached(
    reached: list[Any], model: Any, call: Callable[..., Any], given: inspect.BoundArguments
) -> Any:
    first = next(iter(given.arguments.values()), None)
    if any(part is None for part in keras.tree.flatten(first)):
        raise _Unprepared(f"{type(model).__name__} was called without inputs")
    reached.append(given)
    if backend.name() != "jax":
        call(*given.args, **given.kwargs)
    raise _Reached


@contextlib.contextmanager
def _no_updates(model: Any) -> Iterator[None]:
    """Prevents a step that never calls the model from changing weights or building optimizers."""

    def apply(*_: Any, **__: Any) -> None:
        raise _Unprepared(f"{type(model).__name__} was to be updated before it was called")

    optimizers = [v for v in vars(model).values() if isinstance(v, keras.optimizers.Optimizer)]
    for optimizer in optimizers:
        optimizer.apply = apply
    try:
        yield
    finally:
        for optimizer in optimizers:
            del optimizer.apply


def _arguments_of_step(model: Any) -> tuple[Any, ...]:
    """Returns the arguments of `train_step` before the data: on JAX the whole state."""
    if backend.name() != "jax":
        return ()
    optimizer = getattr(model, "optimizer", None)
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        [] if optimizer is None else optimizer.variables,
    )
    # Metrics come after the model's call, and have no values inside Keras' own loops.
    metrics = [ops.zeros(v.shape, v.dtype) for v in model.metrics_variables]
    return ((*([variable.value for variable in group] for group in groups), metrics),)


# Measuring moments ----------------------------------------------------------------------------


def batch_moments(
    model: Any,
    statistics: Sequence[Statistics],
    trainable: Sequence[Any],
    non_trainable: Sequence[Any],
    batch: Any,
    call: Call = call_on_inputs,
    observed: Observed | None = None,
) -> tuple[list[Moments], list[Any]]:
    """Returns the moments of the inputs of every batch-norm layer in one batch.

    Each layer normalises by its batch's own moments, as in training.

    Args:
        model, trainable, non_trainable: as in `backend.given_weights`.
        statistics: the layers to measure.
        batch: the argument of `call`.
        call: runs the batch through the model.
        observed: receives the effects of the pass.

    Returns:
        for each entry of `statistics` (number of elements, [channels] mean, [channels]
        variance), with 0 elements for a layer that this pass did not call in training
        mode; and the values the non-trainable variables would have afterwards.
    """
    observed = Observed() if observed is None else observed
    heard: dict[int, list[Moments]] = {id(entry.layer): [] for entry in statistics}

    def start() -> None:
        for calls in heard.values():
            calls.clear()

    with backend.given_weights(model, trainable, non_trainable) as scope:
        value_of = scope.get_current_value
        before = {id(v): value_of(v) for v in model.variables}
        handlers: dict[Any, layer_calls.Handler] = {
            entry.layer: functools.partial(_record_moments, heard, observed, value_of)
            for entry in statistics
        }
        for layer in layer_calls.layers_of(model):
            if isinstance(layer, keras.layers.SpectralNormalization):
                handlers[layer] = _in_inference
        handlers |= {layer: _with_given_weights for layer in torch_modules(model)}
        with layer_calls.intercepted(handlers), _modes_kept(model):
            if call is call_by_step:
                call_by_step(model, batch, start)
            else:
                call(model, batch)
        updated = [value_of(variable) for variable in model.non_trainable_variables]
        trained = [v for v in model.trainable_variables if value_of(v) is not before.get(id(v))]
        observed.trained += [v.path for v in trained]
        observed.moved += [
            (layer.name, v.path)
            for layer, v in other_statistics(model)
            if value_of(v) is not before.get(id(v))
        ]
    pooled = []
    for entry in statistics:
        calls = heard[id(entry.layer)]
        if not calls:
            nothing = ops.zeros(entry.layer.moving_mean.shape, "float32")
            calls = [(ops.zeros((), "float32"), nothing, nothing)]
        pooled.append(calls[0] if len(calls) == 1 else pool(calls))
    return pooled, updated


def _record_moments(
    heard: dict[int, list[Moments]],
    observed: Observed,
    value_of: Callable[[Any], Any],
    layer: Any,
    call: Callable[..., Any],
    given: inspect.BoundArguments,
) -> Any:
    """Records the moments of a batch-norm layer's inputs, if it normalises by them.

    Changed running statistics show that it does; the source of `training` does not matter.
    """
    observed.called.add(id(layer))
    before = value_of(layer.moving_mean)
    renorm = getattr(layer, "renorm", False)
    if renorm:  # it would correct towards statistics of the raw weights
        layer.renorm = False
    try:
        outputs = call(*given.args, **given.kwargs)
    finally:
        if renorm:
            layer.renorm = True
    if value_of(layer.moving_mean) is not before:
        observed.measured.add(id(layer))
        inputs = next(iter(given.arguments.values()))
        mask = {**given.arguments, **given.kwargs}.get("mask")
        heard[id(layer)].append(moments(inputs, layer.axis, mask))
    return outputs


def _in_inference(layer: Any, call: Callable[..., Any], given: inspect.BoundArguments) -> Any:
    """Calls spectral normalisation in inference mode, which does not divide the kernel again."""
    if "training" in given.signature.parameters:
        given.arguments["training"] = False
    return call(*given.args, **given.kwargs)


def _with_given_weights(layer: Any, call: Callable[..., Any], given: inspect.BoundArguments) -> Any:
    """Calls a torch module with the values its variables have now, and copies of its buffers."""
    import torch

    module = layer.module
    variables = {id(variable._value): variable for variable in layer.variables}
    state = {
        name: variables[id(p)].value for name, p in module.named_parameters() if id(p) in variables
    }
    state |= {name: buffer.clone() for name, buffer in module.named_buffers()}
    kwargs = dict(given.kwargs)
    layer.train(kwargs.pop("training", None) is not False)
    return torch.func.functional_call(module, state, given.args, kwargs)


@contextlib.contextmanager
def _modes_kept(model: Any) -> Iterator[None]:
    """Restores the modes of torch modules, which every call of a wrapper sets."""
    modules = [part for layer in torch_modules(model) for part in layer.modules()]
    modes = [module.training for module in modules]
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
