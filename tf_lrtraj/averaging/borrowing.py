"""Putting other weights into a model for a while, and saving a model whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
import uuid
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from tf_lrtraj import backend
from tf_lrtraj.records import naming, sync, temporary_path

# Which models hold other weights than their own, and whose.
_holders: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def holder_of(model: Any) -> str | None:
    """What a model holds in place of its own weights, and who put it there; None if nothing."""
    with _lock:
        return _holders.get(model)


@contextlib.contextmanager
def claim(model: Any, what: str) -> Iterator[None]:
    """Marks a model as holding other weights, and refuses training, inside a `with` block.

    Args:
        model: a Keras model.
        what: the weights, for the error that others get (`"the average 'ema'"`).

    Raises:
        RuntimeError: if the model is claimed already, by this thread or by another (the
            message says by whom), or if it was trained inside the block.
    """
    thread = threading.current_thread().name
    with _lock:
        holder = _holders.get(model)
        if holder is not None:
            raise RuntimeError(
                f"The model already holds {holder}, so it cannot take {what} (thread {thread!r}). "
                "A model is lent to one at a time: leave that `with` block first."
            )
        before = backend.iterations(model)
        _holders[model] = f"{what}, borrowed in thread {thread!r}"

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            f"The model holds {what}, borrowed in thread {thread!r}: leave `borrowed` before "
            "training, which would train the borrowed weights and lose them."
        )

    # `fit` and `train_on_batch` both ask for the training function before they move a weight.
    own = vars(model).get("make_train_function")
    model.make_train_function = refuse
    try:
        yield
    finally:
        if own is None:
            del model.make_train_function
        else:
            model.make_train_function = own
        with _lock:
            del _holders[model]
    if backend.iterations(model) != before:
        raise RuntimeError(
            f"The optimizer made steps while the model held {what}. They moved the borrowed "
            "weights and are lost; the model has its own weights back, but its optimizer's state "
            "has moved on."
        )


@contextlib.contextmanager
def lend(model: Any, trainable: Sequence[Any], non_trainable: Sequence[Any]) -> Iterator[Any]:
    """What `borrow` does, for a caller that has claimed the model already."""
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    # Evaluating inside the block must not disturb the metrics of a running epoch.
    restore = backend.backup([*variables, *model.metrics_variables])
    try:
        backend.assign(variables, [*trainable, *non_trainable])
        yield model
    finally:
        restore()


@contextlib.contextmanager
def borrow(
    model: Any,
    trainable: Sequence[Any],
    non_trainable: Sequence[Any],
    what: str = "other weights",
) -> Iterator[Any]:
    """Gives the model other weights inside a `with` block and its own after it, to the bit.

    The raw values are copied and assigned back, also when an exception flies;
    adding and subtracting a difference would change low bits.  The metrics are
    put back too.  The optimizer's state is not copied: training is refused.

    Args:
        model: a built Keras model.
        trainable: values in the order of `model.trainable_variables`.
        non_trainable: values in the order of `model.non_trainable_variables`.
        what: the weights, for the error that a second borrower gets.

    Yields:
        the model.

    Raises:
        RuntimeError: if the model holds borrowed weights already, or is trained
            inside the block.
    """
    with claim(model, what), lend(model, trainable, non_trainable):
        yield model


def check_model_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns `path` if Keras can save a model there, or raises ValueError."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"`path` must be a path that ends in '.keras'. Received: path={path!r}")
    target = pathlib.Path(path)
    if target.suffix != ".keras":
        raise ValueError(f"`path` must end in '.keras'. Received: path={str(path)!r}")
    return target


def load_model(path: str | os.PathLike[str]) -> Any:
    """Loads a `.keras` file without trust: no code that is stored in it is run.

    Raises:
        ValueError: if it cannot be loaded, or asks for code of its own (a `Lambda` layer).
        OSError: if it cannot be read.
    """
    import keras

    open(path, "rb").close()
    try:
        return keras.saving.load_model(path, safe_mode=True)
    except Exception as error:  # zipfile, h5py, JSON and layers raise many kinds on damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the model {os.fspath(path)} cannot be loaded: {reason}") from None


def save_model(model: Any, path: str | os.PathLike[str]) -> None:
    """Saves a `.keras` file under a temporary name, then renames it."""
    target = check_model_path(path)
    # Threads may save at a time; Keras wants the ending.
    temporary = temporary_path(target.with_name(f"{target.stem}.{uuid.uuid4().hex}"), ".keras")
    try:
        with naming(target):
            model.save(temporary)
            sync(temporary)  # before the name stands for it
            os.replace(temporary, target)
            sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
