"""
Handlers of code that blocks: plain functions and generators are called in worker threads, so that they may block as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction
from time import monotonic
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from dicomtwist import evt
from dicomtwist.eventloop.coroutines import to_deferred

__all__ = ["handlers_in_threads", "in_thread"]

#: The time for which one call into a thread makes items, in seconds, and the most items that it makes.
TURN_SECONDS: Final = 0.01
ITEMS_AT_ONCE: Final = 64


class _Raised:
    """The exception that a generator raised in place of an item."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def handlers_in_threads(reactor: Any, handlers: Iterable[evt.HandlerTuple] | None) -> list[evt.HandlerTuple] | None:
    """Return the (event, handler, arguments) of *handlers* with functions that call the handlers in worker threads."""
    if handlers is None:
        return None
    result: list[Any] = []
    for entry in handlers:
        event, handler, *rest = entry
        result.append((event, in_thread(reactor, event, handler), *rest))
    return result


class _InThread:
    """
    Calls *handler* in a worker thread. Two of these are equal if their handlers are, so that ``unbind`` finds them.

    :param reactor: the reactor, whose thread pool is used.
    """

    def __init__(self, reactor: Any, handler: evt.Handler) -> None:
        self._reactor = reactor
        self._handler = handler
        wraps(handler)(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _InThread) and other._handler == self._handler

    def __hash__(self) -> int:
        return hash(self._handler)

    def __call__(self, event: evt.Event, *arguments: Any) -> Deferred[Any]:
        calling = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._handler, event, *arguments)
        return calling.addCallback(self._wrap)

    def _wrap(self, result: Any) -> Any:
        kind = type(result)
        if hasattr(kind, "__await__") and not isinstance(result, Deferred):
            return to_deferred(result)  # of a callable that does not look like a coroutine function
        # A generator, whose code runs when it is asked for its next item.
        return _Items(self._reactor, result) if isinstance(result, Iterator) else result


class _Items:
    """
    The items of a generator, made in a worker thread, as an asynchronous iterator.

    A call into a thread costs more than most items, so it makes several, unless they take their time.
    """

    def __init__(self, reactor: Any, items: Iterator[Any]) -> None:
        self._reactor = reactor
        self._items = items
        self._made: deque[Any] = deque()
        self._busy: Deferred[None] | None = None

    def __aiter__(self) -> _Items:
        return self

    async def __anext__(self) -> Any:
        if not self._made:
            self._made.extend(await self._call(self._make))
        item = self._made.popleft()
        if isinstance(item, _Raised):
            raise item.error
        return item

    def _make(self) -> list[Any]:
        """Return the next items; the last one may be the exception that ends them."""
        made: list[Any] = []
        until = monotonic() + TURN_SECONDS
        try:
            while len(made) < ITEMS_AT_ONCE:
                made.append(next(self._items))
                if monotonic() > until:
                    break
        except StopIteration:
            made.append(_Raised(StopAsyncIteration()))
        except BaseException as error:
            made.append(_Raised(error))
        return made

    async def aclose(self) -> None:
        """Close the generator, when the thread that makes an item has done so."""
        if self._busy is not None:
            await self._busy
        close = getattr(self._items, "close", None)
        if close is not None:
            await self._call(close)

    def _call(self, function: Callable[[], Any]) -> Deferred[Any]:
        busy: Deferred[None] = Deferred()
        self._busy = busy
        result: Deferred[Any] = Deferred()

        def done(value: Any) -> None:
            self._busy = None
            if not result.called:
                result.callback(value)
            busy.callback(None)

        deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function).addBoth(done)
        return result


def in_thread(reactor: Any, event: evt.EventType, handler: evt.Handler) -> evt.Handler:
    """
    Return a function that calls *handler* in a worker thread, if it is a plain function for an event that it answers.

    A coroutine function, and one that is marked as streaming, runs in the reactor's thread, because it awaits what happens
    there. So does a handler of a notification: it would see the association as it is later.
    """
    function = getattr(handler, "func", handler)
    is_coroutine = iscoroutinefunction(function) or isasyncgenfunction(function)
    if not event.is_intervention or is_coroutine or getattr(handler, "is_streaming", False):
        return handler
    return _InThread(reactor, handler)
