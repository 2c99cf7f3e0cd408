"""
The one way to call a handler of a user: it returns a value, or a Deferred, a coroutine or another awaitable that gives it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import CoroutineType
from typing import Any

from twisted.internet.defer import Deferred

__all__ = ["await_handler", "call_handler"]


def call_handler(handler: Callable[..., Any], event: object, arguments: Sequence[Any] = ()) -> Any:
    """
    Call ``handler(event, *arguments)``.

    Nothing waits for a value that is known at once, so that the response to a C-STORE or C-ECHO costs no Deferred.

    :returns: the value, or a Deferred that gives it.
    """
    result = handler(event, *arguments)
    kind = type(result)
    if kind is int:  # a status, as most handlers return
        return result
    if kind is CoroutineType:
        return Deferred.fromCoroutine(result)
    # The class is asked, since a Dataset looks names up among its elements.
    if hasattr(kind, "__await__") and not isinstance(result, Deferred):
        return Deferred.fromCoroutine(_wait_for(result))
    return result


async def await_handler(handler: Callable[..., Any], event: object, arguments: Sequence[Any] = ()) -> Any:
    """Do the same for a caller that is a coroutine: return the value when it is known."""
    result = call_handler(handler, event, arguments)
    return await result if isinstance(result, Deferred) else result


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
