"""
Handlers of code that blocks: plain functions and generators are called in worker threads, so that they may block as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction
from time import monotonic
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from dicomtwist import evt
from dicomtwist.eventloop.coroutines import to_deferred
from dicomtwist.eventloop.loop_reactor import DaemonThread, LoopReactor

__all__ = ["Lend", "handlers_in_threads", "in_thread"]

#: The time for which one call into a thread makes items, in seconds, and the most items that it makes.
TURN_SECONDS: Final = 0.01
ITEMS_AT_ONCE: Final = 64

#: The most handlers of one reactor that run at once. Further ones wait for one of these to end.
HANDLER_THREADS: Final = 200

#: Makes the ``event.assoc`` of a handler in a worker thread, from the reactor and the :class:`dicomtwist.Association`.
Lend: TypeAlias = Callable[[Any, Any], Any]

_pools: WeakKeyDictionary[Any, ThreadPool] = WeakKeyDictionary()


def _pool(reactor: Any) -> ThreadPool:
    """
    Return the threads for handlers of *reactor*, in its thread.

    They are not those of the reactor, which look up host names: ten handlers that connect to a host would wait for its address
    for ever.
    """
    pool = _pools.get(reactor)
    if pool is None:
        pool = _pools[reactor] = ThreadPool(0, HANDLER_THREADS, "dicomtwist-handlers")
        pool.threadFactory = DaemonThread
        pool.start()
        if not isinstance(reactor, LoopReactor):
            reactor.addSystemEventTrigger("during", "shutdown", pool.stop)
    return pool


def _call_in_thread(reactor: Any, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
    """Call *function* in a worker thread with the context variables of the caller, which say what handler it is inside of."""
    return deferToThreadPool(reactor, _pool(reactor), copy_context().run, function, *arguments)


class _Raised:
    """The exception that a generator raised in place of an item."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def handlers_in_threads(
    reactor: Any, handlers: Iterable[evt.HandlerTuple] | None, lend: Lend
) -> list[evt.HandlerTuple] | None:
    """Return the (event, handler, arguments) of *handlers* with functions that call the handlers in worker threads."""
    if handlers is None:
        return None
    result: list[Any] = []
    for entry in handlers:
        event, handler, *rest = entry
        result.append((event, in_thread(reactor, event, handler, lend), *rest))
    return result


class _InThread:
    """
    Calls *handler* in a worker thread. Two of these are equal if their handlers are, so that ``unbind`` finds them.

    :param reactor: the reactor of the association.
    :param lend: makes the association that the handler finds in the event.
    """

    def __init__(self, reactor: Any, handler: evt.Handler, lend: Lend) -> None:
        self._reactor = reactor
        self._handler = handler
        self._lend = lend
        wraps(handler)(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _InThread) and other._handler == self._handler

    def __hash__(self) -> int:
        return hash(self._handler)

    def __call__(self, event: evt.Event, *arguments: Any) -> Deferred[Any]:
        association = event.assoc
        event.assoc = self._lend(self._reactor, association)
        calling = _call_in_thread(self._reactor, self._handler, event, *arguments)
        return calling.addCallback(self._wrap, event, association)

    def _wrap(self, result: Any, event: evt.Event, association: Any) -> Any:
        kind = type(result)
        if hasattr(kind, "__await__") and not isinstance(result, Deferred):
            # Of a callable that does not look like a coroutine function. It runs in the reactor's thread from here on.
            event.assoc = association
            return to_deferred(result)
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

        _call_in_thread(self._reactor, function).addBoth(done)
        return result


def in_thread(reactor: Any, event: evt.EventType, handler: evt.Handler, lend: Lend) -> evt.Handler:
    """
    Return a function that calls *handler* in a worker thread, if it is a plain function for an event that it answers.

    A coroutine function, and one that is marked as streaming, runs in the reactor's thread, because it awaits what happens
    there. So does a handler of a notification: it would see the association as it is later.
    """
    function = getattr(handler, "func", handler)
    is_coroutine = iscoroutinefunction(function) or isasyncgenfunction(function)
    if not event.is_intervention or is_coroutine or getattr(handler, "is_streaming", False):
        return handler
    return _InThread(reactor, handler, lend)
