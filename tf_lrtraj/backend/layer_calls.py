"""The layers of a model: listing them, and intercepting their calls inside a `with` block.

A compiled function keeps the handlers that were in force when it was traced.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# (the layer, its own `call`, the arguments it was given by name) → what the call returns.
Handler = Callable[[Any, Callable[..., Any], inspect.BoundArguments], Any]


def layers_of(model: Any, *, itself: bool = False) -> list[Any]:
    """Every layer inside a model, nested ones included; with `itself` the model as well."""
    return list(model._flatten_layers(include_self=itself, recursive=True))


class _Handlers(threading.local):
    """Handlers in force in this thread, the innermost last; others may be using the model."""

    def __init__(self) -> None:
        self.stack: list[dict[int, Handler]] = []


_handlers = _Handlers()
_lock = threading.Lock()
_tapped: dict[int, int] = {}  # layer → how many blocks go on, in all threads


@contextlib.contextmanager
def intercepted(handlers: Mapping[Any, Handler]) -> Iterator[None]:
    """Hands every call of the given layers in this thread to a handler inside a `with` block.

    Of nested blocks the innermost that names a layer has its calls.

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
