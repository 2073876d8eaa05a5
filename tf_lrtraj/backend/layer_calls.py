"""The layers of a model: listing them, and intercepting their calls inside a `with` block.

A compiled function keeps the handlers that were active when it was traced.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# (the layer, its own `call`, its arguments by name) → the result of the call.
Handler = Callable[[Any, Callable[..., Any], inspect.BoundArguments], Any]


def layers_of(model: Any, *, itself: bool = False) -> list[Any]:
    """Returns all layers inside a model, including nested ones; with `itself` also the model."""
    return list(model._flatten_layers(include_self=itself, recursive=True))


class _Handlers(threading.local):
    """The active handlers of this thread, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[dict[int, Handler]] = []


_handlers = _Handlers()
_lock = threading.Lock()
_tapped: dict[int, int] = {}  # layer → number of active blocks in all threads


@contextlib.contextmanager
def intercepted(handlers: Mapping[Any, Handler]) -> Iterator[None]:
    """Passes every call of the given layers in this thread to a handler inside a `with` block.

    In nested blocks the innermost one that names a layer receives its calls.

    Args:
        handlers: layer → handler.
    """
    for layer in handlers:
        _tap(layer)
    _handlers.stack.append({id(layer): handler for layer, handler in handlers.items()})
    try:
        yield
    finally:
        _handlers.stack.pop()
        for layer in handlers:
            _untap(layer)


def _tap(layer: Any) -> None:
    with _lock:
        _tapped[id(layer)] = _tapped.get(id(layer), 0) + 1
        if _tapped[id(layer)] > 1:
            return
        original = layer.call
        signature = inspect.signature(original)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            for handlers in reversed(_handlers.stack):
                if id(layer) in handlers:
                    return handlers[id(layer)](layer, original, signature.bind(*args, **kwargs))
            return original(*args, **kwargs)

        layer.call = call


def _untap(layer: Any) -> None:
    with _lock:
        _tapped[id(layer)] -= 1
        if not _tapped[id(layer)]:
            del _tapped[id(layer)]
            del layer.call
