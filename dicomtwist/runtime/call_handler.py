"""
Calling a user's handler, which returns a value, or a Deferred, a coroutine or another awaitable with the value.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from types import CoroutineType
from typing import Any

from twisted.internet.defer import Deferred

from dicomtwist.eventloop.coroutines import SteppedItems, running_loop, to_deferred

__all__ = ["await_handler", "call_handler", "items_of"]


def call_handler(handler: Callable[..., Any], event: object, arguments: Sequence[Any] = ()) -> Any:
    """
    Call ``handler(event, *arguments)``.

    A value that is known at once is returned as it is, so that the response to a C-STORE or C-ECHO costs no Deferred. If an
    event loop of asyncio runs in this thread, a coroutine may await what asyncio awaits as well.

    :returns: the value, or a Deferred that fires with it.
    """
    result = handler(event, *arguments)
    kind = type(result)
    if kind is int or kind is Deferred:  # most handlers return one of these
        return result
    # Look at the class, since a Dataset looks up attributes of an instance among its elements.
    if kind is CoroutineType or (hasattr(kind, "__await__") and not isinstance(result, Deferred)):
        return to_deferred(result)
    return result


async def await_handler(handler: Callable[..., Any], event: object, arguments: Sequence[Any] = ()) -> Any:
    """Call a handler from a coroutine, as :func:`call_handler` does, and return the value when it is known."""
    result = call_handler(handler, event, arguments)
    return await result if isinstance(result, Deferred) else result


def items_of(items: Any) -> AsyncIterator[Any]:
    """Return the asynchronous iterator of what a handler returned, for a coroutine that awaits Deferreds only."""
    iterator: AsyncIterator[Any] = items.__aiter__()
    return iterator if running_loop() is None else SteppedItems(iterator)
