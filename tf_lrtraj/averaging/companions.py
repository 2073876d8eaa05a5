"""What `WeightAveraging` must know of the other callbacks in the same `fit`.

Keras calls callbacks in the order of their list, and tells none of them about
the others.  Two things depend on the order: metrics of averages must be in the
epoch's `logs` before other callbacks read them, and the averages must be saved
in step with `keras.callbacks.BackupAndRestore`, which knows only the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras


def callbacks_beside(callback: Any) -> list[Any]:
    """The callbacks of the running `fit`, in order, as seen from one of its hooks.

    A callback is not told what list it stands in, so this looks for the
    `CallbackList` among the callers.  A member that holds other callbacks and forwards
    their hooks stands for those, in the order in which it holds them.  Empty where
    there is no list (a custom loop that calls the hooks itself).
    """
    frame = inspect.currentframe()
    # Whoever forwards hooks is on the way to the list, whether or not it holds `callback`.
    callers: list[Any] = [callback]
    try:
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, keras.callbacks.CallbackList):
                if not any(member is caller for member in owner.callbacks for caller in callers):
                    return []
                return list(_spread(owner.callbacks, callback, callers))
            if isinstance(owner, keras.callbacks.Callback):
                callers.append(owner)
            frame = frame.f_back
        return []
    finally:
        del frame, callers  # frames keep everything in them alive


def _spread(members: Sequence[Any], callback: Any, callers: Sequence[Any]) -> Iterator[Any]:
    listed = {id(member) for member in members}
    for member in members:
        yield member
        if member is callback:
            continue
        forwards = any(member is caller for caller in callers)
        # What is in the list itself is called from there, wherever else it is known.
        held = [one for one in _held(member, {id(member)}) if id(one) not in listed]
        held = [one for one in held if forwards or one is not callback]
        if forwards and not any(one is callback for one in held):
            yield callback  # hidden where this cannot look, but called from there
        yield from held


def _held(member: Any, known: set[int]) -> Iterator[Any]:
    """The callbacks that a callback has among its attributes, and those that these have."""
    for value in vars(member).values():
        values = value.values() if isinstance(value, dict) else value
        for one in values if isinstance(values, (list, tuple, type({}.values()))) else [values]:
            if isinstance(one, keras.callbacks.Callback) and id(one) not in known:
                known.add(id(one))
                yield one
                yield from _held(one, known)


def check_order(callback: Any, members: Sequence[Any], monitored: Iterable[str]) -> None:
    """Raises an error if a callback that depends on `callback` comes before it.

    Args:
        callback: the `WeightAveraging`.
        members: all callbacks, in order.
        monitored: beginnings of the names that `callback` adds to `logs`; empty
            if it adds none.

    Raises:
        ValueError: naming the callback that must come later.
    """
    prefixes = tuple(monitored)
    readers = (keras.callbacks.TensorBoard, keras.callbacks.CSVLogger, keras.callbacks.History)
    for other in members:
        if other is callback:
            return
        if isinstance(other, keras.callbacks.BackupAndRestore):
            reason = "saves the model before the averages of that step are there"
        elif prefixes and str(getattr(other, "monitor", "")).startswith(prefixes):
            reason = f"reads {other.monitor!r} before it is there"
        elif prefixes and isinstance(other, readers):
            reason = "writes the epoch's metrics before those of the averages are there"
        elif getattr(other, "swap_on_epoch", False):
            reason = "has put its own average into the model at the end of an epoch"
        else:
            continue
        raise ValueError(
            f"`callbacks` must list {type(callback).__name__} before {type(other).__name__}, which "
            f"{reason}. Received: callbacks={[type(member).__name__ for member in members]}"
        )
