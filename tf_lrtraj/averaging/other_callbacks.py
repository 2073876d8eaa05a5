"""Finds the other callbacks of the same `fit`, and checks their order.

Keras calls callbacks in the order of their list, and does not give a callback access to the
others.  Two requirements depend on the order.  Metrics of averages must be in the epoch's `logs`
before other callbacks read them.  The averages must be saved in step with
`keras.callbacks.BackupAndRestore`, which saves the model only.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from tf_lrtraj.backend.weight_updates import held_by


def calling_list(callback: Any) -> tuple[Any, Any]:
    """Finds the `CallbackList` that is calling a hook of `callback`, by its stack frames.

    Returns:
        The list and the member that it calls, which is `callback` itself or a callback that
        forwards hooks to it.  (None, None) if a custom loop calls the hooks.
    """
    frame = inspect.currentframe()
    try:
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, keras.callbacks.CallbackList):
                called = _called_member(owner.callbacks, frame.f_locals, callback)
                return (None, None) if called is None else (owner, called)
            frame = frame.f_back
        return None, None
    finally:
        del frame  # frames keep everything in them alive


def _called_member(members: Sequence[Any], names: Mapping[str, Any], callback: Any) -> Any:
    if any(member is callback for member in members):
        return callback
    # The loop variable of the list, whatever its name is.
    calls = (m for m in members for value in names.values() if value is m)
    return next(calls, None)


def callbacks_beside(callback: Any) -> list[Any]:
    """Returns the callbacks of the running `fit` in order; call it in a hook of `callback`.

    A member that holds other callbacks and forwards their hooks is followed by these.  The list is
    empty if a custom loop calls the hooks.
    """
    running, called = calling_list(callback)
    return [] if running is None else list(_spread(running.callbacks, callback, called))


def _spread(members: Sequence[Any], callback: Any, called: Any) -> Iterator[Any]:
    listed = {id(member) for member in members}
    for member in members:
        yield member
        if member is callback:
            continue
        # A member of the list is called from the list, even if another member holds it too.
        held = [one for one in _held(member, {id(member)}) if id(one) not in listed]
        held = [one for one in held if member is called or one is not callback]
        if member is called and not any(one is callback for one in held):
            yield callback  # held out of sight, but called by this member
        yield from held


def _held(member: Any, known: set[int]) -> Iterator[Any]:
    """Yields the callbacks among the attributes of a callback, recursively."""
    for one in held_by(member):
        if isinstance(one, keras.callbacks.Callback) and id(one) not in known:
            known.add(id(one))
            yield one
            yield from _held(one, known)


def check_order(callback: Any, members: Sequence[Any], monitored: Iterable[str]) -> None:
    """Raises an error if a callback that depends on `callback` comes before it.

    Args:
        callback: the `WeightAveraging`.
        members: all callbacks, in order.
        monitored: prefixes of the names that `callback` adds to `logs`; empty if it adds none.

    Raises:
        ValueError: if a callback must come later; the message names it.
    """
    prefixes = tuple(monitored)
    readers = (keras.callbacks.TensorBoard, keras.callbacks.CSVLogger, keras.callbacks.History)
    for other in members:
        if other is callback:
            return
        if isinstance(other, keras.callbacks.BackupAndRestore):
            reason = "saves the model before the averages of that step are available"
        elif prefixes and str(getattr(other, "monitor", "")).startswith(prefixes):
            reason = f"reads {other.monitor!r} before it is available"
        elif prefixes and isinstance(other, readers):
            reason = "writes the epoch's metrics before those of the averages are available"
        elif getattr(other, "swap_on_epoch", False):
            reason = "has put its own average into the model at the end of an epoch"
        else:
            continue
        raise ValueError(
            f"`callbacks` must list {type(callback).__name__} before {type(other).__name__}, which "
            f"{reason}. Received: callbacks={[type(member).__name__ for member in members]}"
        )
