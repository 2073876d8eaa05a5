"""Reads training data through Keras, in the forms that `fit` accepts."""

from __future__ import annotations

import contextlib
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from tf_lrtraj import backend

Receive = Callable[[Any], None]

# `tf.data.INFINITE_CARDINALITY`, which needs no TensorFlow to be compared with.
_INFINITE = -1


def check_data(
    data: Any,
    name: str = "batch_norm_data",
    batches: int | None = None,
    limit: str = "batch_norm_batches",
) -> Any:
    """Returns `data` if it can be read repeatedly and is finite.

    Args:
        data: the user's data, or None.
        name: the name of the argument.
        batches: number of batches that will be read; None for all.
        limit: name of the argument that gives this number.

    Raises:
        ValueError: for iterators and generators, for infinite data if `batches` is None, and for
            objects that are not data.

    >>> check_data(iter([1, 2]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: `batch_norm_data` is read each time an average is used, so it must be ...
    """
    for part in data if isinstance(data, (tuple, list)) and len(data) <= 3 else [data]:
        if isinstance(part, Iterator):
            raise ValueError(
                f"`{name}` is read each time an average is used, so it must be arrays or something "
                "that can be iterated again and again. Received an iterator: "
                f"{name}={_shown(data)}"
            )
        if batches is None and _is_endless(part):
            raise ValueError(
                f"`{name}` must come to an end, or `{limit}` must say how many batches of it to "
                f"read. Received: {name}={_shown(data)} without end, {limit}=None"
            )
    known = isinstance(data, (tuple, list, dict)) or _is_array(data) or _is_stream(data)
    if data is not None and (not known or isinstance(data, (str, bytes, set, frozenset))):
        raise ValueError(
            f"`{name}` must be arrays, (x, y), a data set or an iterable of batches, as `fit` "
            f"takes them. Received: {name}={_shown(data)}"
        )
    return data


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 200 else f"{text[:200]}… ({type(data).__name__})"


def _is_array(data: Any) -> bool:
    return hasattr(data, "shape")


def _is_stream(data: Any) -> bool:
    return isinstance(data, (Iterable, keras.utils.PyDataset)) or hasattr(data, "__getitem__")


def _is_endless(data: Any) -> bool:
    """Returns whether the data are known to be infinite."""
    if _is_array(data) or isinstance(data, (tuple, list, dict)):
        return False
    if hasattr(data, "cardinality"):
        return _is_endless_dataset(data)
    if isinstance(data, keras.utils.PyDataset):
        return _length_of(data) is None
    try:
        return len(data) >= sys.maxsize
    except (TypeError, NotImplementedError, ValueError, OverflowError):
        # Without `__len__` and `__iter__` Python calls `__getitem__` with 0, 1, … for ever.
        return hasattr(data, "__getitem__") and not hasattr(type(data), "__iter__")


def _length_of(data: Any) -> int | None:
    """Returns the number of batches in a PyDataset; None if it is unknown."""
    try:
        return data.num_batches
    except (NotImplementedError, TypeError):
        return None


def _is_endless_dataset(data: Any) -> bool:
    """Returns whether a `tf.data` data set is infinite, also after filters and regrouping."""
    count = data.cardinality  # a property of a distributed one
    count = count() if callable(count) else count
    count = int(ops.convert_to_numpy(count)) if hasattr(count, "shape") else int(count)
    if count == _INFINITE or count >= 0:
        return count == _INFINITE
    if "TakeWhile" in type(data).__name__ or not hasattr(data, "_inputs"):
        return False
    return any(_is_endless_dataset(part) for part in data._inputs())


# Arrays or a stream ---------------------------------------------------------------------------


def read(
    model: Any, data: Any, receive: Receive, *, batch_size: int, batches: int | None = None
) -> None:
    """Passes batches of training data to a function, one after the other.

    Batches of arrays are tuples `(x,)`, `(x, y)` or `(x, y, sample_weight)`; batches of a data set
    are its elements.  If the model's class overrides `evaluate` or `predict`, as models with a
    preprocessor do, both pass through them.

    Args:
        model: the model that receives the data.
        data: a stream of batches, or arrays: `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`,
            where a list stands for a tuple as in Keras unless it is the list of the model's
            inputs.
        receive: takes a batch.
        batch_size: examples per batch if `data` are arrays.
        batches: largest number of batches; None for all.

    Raises:
        ValueError: if the form of `data` is ambiguous, or Keras cannot read it.
    """
    check_data(data, batches=batches)
    parts = arrays_in(data, number_of_inputs(model))
    if isinstance(data, tuple) and parts is None:
        data = data[0]  # a data set in a tuple, with None for the rest
    entry = None
    if not (distributed := backend.is_distributed(data)):
        entry = _preprocessing_method(model, targets=parts is None or len(parts) > 1)
    known = not distributed and (hasattr(data, "cardinality") or _is_loader(data))
    if parts is not None and entry:
        _read_through(model, entry, _evaluate_arguments(parts, batch_size), receive, batches)
    elif parts is not None:
        _predicted(parts, lambda batch: receive(batch[0]), batch_size, batches)
    elif known and entry:
        _read_through(model, entry, {"x": data}, receive, batches)
    elif known:
        _predicted(data, receive, None, batches)
    else:
        stream = _pydataset_batches(data) if isinstance(data, keras.utils.PyDataset) else data
        for batch in itertools.islice(iter(stream), batches):
            if entry is None:
                receive(batch)
            else:
                parts = keras.utils.unpack_x_y_sample_weight(batch)
                size = len(keras.tree.flatten(parts[0])[0])
                _read_through(model, entry, _evaluate_arguments(parts, size), receive, None)


def _evaluate_arguments(parts: Sequence[Any], batch_size: int) -> dict[str, Any]:
    """Arrays as arguments of `evaluate`."""
    named = zip(("x", "y", "sample_weight"), parts, strict=False)
    return {**{key: part for key, part in named if part is not None}, "batch_size": batch_size}


def _pydataset_batches(data: Any) -> Iterator[Any]:
    """Yields the batches of a PyDataset, without calling `on_epoch_end`, which may reorder."""
    length = _length_of(data)
    for i in itertools.count() if length is None else range(length):
        yield data[i]


def _is_loader(data: Any) -> bool:
    """Returns whether data are a loader or data set of torch or grain, which Keras finds by
    name."""
    kinds = {"DataLoader", "MapDataset", "IterDataset"}
    return any(
        kind.__name__ in kinds and kind.__module__.split(".")[0] in {"torch", "grain"}
        for kind in type(data).__mro__
    )


def number_of_inputs(model: Any) -> int:
    """Returns the number of inputs in a list for the model; 1 if it takes no list."""
    inputs = getattr(model, "inputs", None)
    if isinstance(inputs, (list, tuple)) and inputs:
        return len(inputs)
    built = (model.get_build_config() or {}).get("input_shape")
    if isinstance(built, (list, tuple)) and built and isinstance(built[0], (list, tuple)):
        return len(built)
    return 1


def arrays_in(data: Any, inputs: int) -> tuple[Any, ...] | None:
    """`(x,)`, `(x, y)` or `(x, y, sample_weight)` of arrays; None for a stream of batches.

    A list of arrays is the inputs of a model that has several.  For any other it is
    `[x, y]` or `[x, y, sample_weight]` as Keras reads it where two or three arrays are
    equally long, and otherwise batches of inputs; a list of tuples or of like dicts is batches.

    Raises:
        ValueError: for another number of arrays than a model with several inputs can take,
            or for tuples of more than three.
    """
    if _is_array(data) or isinstance(data, dict):
        return (data,)
    if not isinstance(data, (tuple, list)) or not _all_arrays(data):
        return None
    if isinstance(data, list):
        plain = all(map(_is_array, data))
        if plain and inputs > 1:
            if len(data) != inputs:
                raise ValueError(
                    f"a list of arrays must hold the model's {inputs} inputs. Received: "
                    f"{len(data)} arrays. For inputs and targets give (x, y)."
                )
            return (data,)
        if not plain and _are_batches(data, inputs):
            return None
        if plain and len(data) > 1:
            lengths = {array.shape[0] for array in data if len(array.shape)}
            if len(data) > 3 or len(lengths) != 1:
                return None
    if not 1 <= len(data) <= 3:
        raise ValueError(
            "a tuple of arrays must be (x,), (x, y) or (x, y, sample_weight). "
            f"Received: {len(data)} of them"
        )
    parts = list(data)
    while len(parts) > 1 and parts[-1] is None:
        parts.pop()
    return tuple(parts)


def _all_arrays(data: Any) -> bool:
    leaves = keras.tree.flatten(data)
    return bool(leaves) and _is_array(leaves[0]) and all(_is_array(a) or a is None for a in leaves)


def _are_batches(data: list[Any], inputs: int) -> bool:
    """Returns whether a list of nested arrays is a list of batches and not `[x, y]`."""
    if len(data) not in (2, 3) or all(isinstance(part, tuple) for part in data):
        return True
    if all(isinstance(part, dict) for part in data):
        return len({tuple(part) for part in data}) == 1
    lists = all(isinstance(part, list) for part in data)
    return lists and not (inputs > 1 and len(data[0]) == inputs)


# Through Keras --------------------------------------------------------------------------------


class _Reader(keras.Model):
    """A model without weights, whose `predict` passes on the batches that Keras reads."""

    def __init__(self, receive: Receive) -> None:
        super().__init__(name="batch_norm_reader")
        self._receive = receive
        self.built = True

    @property
    def distribute_strategy(self) -> Any:
        return self  # the data stay in one piece

    def experimental_distribute_dataset(self, dataset: Any) -> Any:
        return dataset

    def call(self, inputs: Any) -> Any:
        return inputs

    def make_predict_function(self, force: bool = False) -> None:
        self.predict_function = _batch_passing_step(self._receive)


def _batch_passing_step(receive: Receive) -> Callable[..., Any]:
    """Returns the function that Keras calls instead of a model's compiled `predict_step`."""
    if backend.name() == "jax":

        def take_from(state: Any, iterator: Any) -> tuple[Any, Any]:
            receive(next(iterator))
            return ops.zeros(1), state

        return take_from

    def take(data: Any) -> Any:
        for batch in data:
            receive(batch)
        return ops.zeros(1)

    return take


def _predicted(data: Any, receive: Receive, batch_size: int | None, batches: int | None) -> None:
    count = 0

    def counted(batch: Any) -> None:
        nonlocal count
        count += 1
        with _distributed_by(distribution):
            receive(batch)

    distribution = keras.distribution.distribution()
    # Keras' JAX trainer cannot distribute a last batch that does not divide evenly.
    with _distributed_by(None), _no_warnings():
        try:
            _Reader(counted).predict(data, batch_size=batch_size, steps=batches, verbose=0)
        except UnboundLocalError:
            if count:  # Keras fails for data without a batch
                raise


@contextlib.contextmanager
def _distributed_by(distribution: Any) -> Iterator[None]:
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(distribution)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Suppresses Keras' warning for data that end early or have an unknown length."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Your input ran out of data")
        yield


def _preprocessing_method(model: Any, targets: bool) -> str | None:
    """Returns the overridden method in which the model's class preprocesses data, if any.

    `evaluate` may need targets.
    """
    kind = type(model)
    if kind.fit is keras.Model.fit:
        return None
    predicts = kind.predict is not keras.Model.predict
    evaluates = getattr(model, "compiled", False) and kind.evaluate is not keras.Model.evaluate
    if evaluates and (targets or not predicts):
        return "evaluate"
    return "predict" if predicts else None


def _read_through(
    model: Any, entry: str, given: dict[str, Any], receive: Receive, batches: int | None
) -> None:
    """Reads data through the model's own `evaluate` or `predict`, with its compiled step
    replaced."""
    strategy = backend.strategy_of(model)
    if strategy is not None and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "Batch-norm statistics cannot be recomputed for a model whose class replaces `fit` on "
            f"{strategy.num_replicas_in_sync} replicas: give `batch_norm_data` as "
            "`strategy.experimental_distribute_dataset(…)` of prepared data, or choose "
            "batch_norm='average'."
        )
    options = {**given, "verbose": 0} | ({} if batches is None else {"steps": batches})
    if entry == "predict":
        options = {k: v for k, v in options.items() if k not in ("y", "sample_weight")}
    function = f"{'test' if entry == 'evaluate' else 'predict'}_function"
    with (
        _replaced_function(model, function, _taking_test_steps(receive, entry)),
        _no_warnings(),
    ):
        getattr(model, entry)(**options)


def _taking_test_steps(receive: Receive, entry: str) -> Callable[..., Any]:
    take = _batch_passing_step(receive)
    if entry == "predict":
        return take
    if backend.name() == "jax":
        return lambda state, iterator: ({}, take(state, iterator)[1])

    def take_step(data: Any) -> dict[str, Any]:
        # TensorFlow's trainer passes its iterator, torch's a list of batches.
        take([next(data)] if isinstance(data, Iterator) else data)
        return {}

    return take_step


@contextlib.contextmanager
def _replaced_function(model: Any, function: str, by: Callable[..., Any]) -> Iterator[None]:
    """Replaces a compiled function of a model, and restores its metrics and weights."""
    maker, kept, steps = f"make_{function}", getattr(model, function), model.steps_per_execution
    restore_metrics = backend.backup(model.metrics_variables)
    # On JAX the variables are empty while Keras' loop runs.
    values = [(v, v.value) for v in model.variables] if backend.name() == "jax" else []
    setattr(model, maker, lambda force=False: None)
    setattr(model, function, by)
    model.steps_per_execution = 1
    try:
        yield
    except BaseException:
        for variable, value in values:
            variable.assign(value)
        raise
    finally:
        model.steps_per_execution = steps
        setattr(model, function, kept)
        delattr(model, maker)
        restore_metrics()
