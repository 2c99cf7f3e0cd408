"""
Coroutines that await Deferreds and the awaitables of asyncio alike.

A task of asyncio cannot await a Deferred, and ``Deferred.fromCoroutine`` cannot await a future. If an event loop of asyncio
runs in the thread, a coroutine of a user runs here as a task that awaits either.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

__all__ = [
    "DeferredItems",
    "SteppedItems",
    "await_any",
    "deferred_items",
    "from_deferred",
    "running_loop",
    "to_deferred",
]

T = TypeVar("T")
P = ParamSpec("P")

#: The tasks of coroutines that have not ended: an event loop has only weak references to its tasks.
_tasks: set[asyncio.Task[Any]] = set()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop of asyncio that runs in this thread, ``None`` if none does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _Steps(Awaitable[T]):
    """
    Awaits *coroutine* in a task of asyncio, and waits for the Deferreds that it awaits.

    A cancellation of the task cancels the Deferred, and is raised in the coroutine.
    """

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, T]:
        coroutine = self._coroutine
        step: Callable[[], Any] = partial(coroutine.send, None)
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                value: T = end.value
                return value
            try:
                if isinstance(awaited, Deferred):
                    # The coroutine takes the result from the Deferred itself.
                    yield from _until_fired(awaited)
                    step = partial(coroutine.send, None)
                else:
                    step = partial(coroutine.send, (yield awaited))
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                step = partial(coroutine.throw, error)


def _until_fired(deferred: Deferred[Any]) -> Generator[Any, Any, None]:
    """
    Wait until *deferred* has a result, and leave that in it.

    :raises Exception: the exception that it failed with, which is then taken out of it: it counts as handled.
    """
    loop = running_loop()
    assert loop is not None
    future = loop.create_future()
    failures: list[Failure] = []

    def fired(result: Any) -> Any:
        # After the end of the loop nobody waits, and the future would raise an error here.
        if future.done() or loop.is_closed():
            return result
        future.set_result(None)
        if not isinstance(result, Failure):
            return result
        failures.append(result)
        return None

    deferred.addBoth(fired)
    try:
        yield from future
    except BaseException:
        deferred.cancel()
        deferred.addErrback(lambda reason: None)
        raise
    if failures:
        failures[0].raiseException()


def await_any(coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
    """
    Return an awaitable for asyncio that runs *coroutine*.

    :param coroutine: it may await Deferreds, and all that a task of asyncio may await.
    """
    return _Steps(coroutine)


async def _result_of(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    return await await_any(coroutine)


async def from_deferred(deferred: Deferred[T]) -> T:
    """
    Wait for *deferred* in a coroutine of asyncio.

    A cancellation of the task, such as by ``asyncio.timeout``, cancels the Deferred.

    :returns: its result.
    :raises Exception: the exception that it failed with, unchanged.
    """
    return await await_any(_result_of(deferred))


def to_deferred(awaitable: Awaitable[T], context: Context | None = None) -> Deferred[T]:
    """
    Return a Deferred that fires with the result of *awaitable*.

    If an event loop of asyncio runs in this thread, a task awaits it. The task then sees the context variables of the caller.
    Cancelling the Deferred cancels the task, and the Deferred fires when that has ended.

    :param awaitable: a coroutine, which may await Deferreds and the awaitables of asyncio; a future; any other awaitable.
    :param context: the context for the task instead of a copy of the present one.
    """
    coroutine: Coroutine[Any, Any, T]
    coroutine = awaitable if isinstance(awaitable, Coroutine) else _result_of(awaitable)
    loop = running_loop()
    if loop is None:
        return Deferred.fromCoroutine(coroutine)
    task = loop.create_task(_run(coroutine), context=context)
    _tasks.add(task)

    def ended(task: asyncio.Task[T]) -> None:
        _tasks.discard(task)
        coroutine.close()  # a task that is cancelled before its first step has not begun it

    task.add_done_callback(ended)
    deferred: Deferred[T] = Deferred.fromFuture(task)
    return deferred.addErrback(_translate)


def _translate(reason: Failure) -> Failure:
    """Return Twisted's error in place of asyncio's for a cancellation: handlers of Twisted do not know the other one."""
    if reason.check(asyncio.CancelledError):
        error = CancelledError()
        error.__cause__ = reason.value
        return Failure(error)
    return reason


class SteppedItems(AsyncIterator[T]):
    """
    The items of an asynchronous generator whose code may await the awaitables of asyncio, for code that awaits Deferreds only.

    All steps run in one context: context variables that the generator sets keep their values.
    """

    __slots__ = ("_context", "_items")

    def __init__(self, items: AsyncIterator[T]) -> None:
        self._items = items
        self._context = copy_context()

    def __anext__(self) -> Deferred[T]:
        """Return a Deferred with the next item; it fails with ``StopAsyncIteration`` after the last one."""
        return to_deferred(_step(self._items), self._context).addCallback(_unwrapped)

    def aclose(self) -> Deferred[None]:
        """Close the generator."""
        close = getattr(self._items, "aclose", None)
        return to_deferred(_nothing() if close is None else close(), self._context)


async def _step(items: AsyncIterator[T]) -> tuple[T] | None:
    # A future cannot carry the StopAsyncIteration of an item that is not there without a look at its class.
    try:
        return (await anext(items),)
    except StopAsyncIteration:
        return None


def _unwrapped(item: tuple[T] | None) -> T:
    if item is None:
        raise StopAsyncIteration
    return item[0]


async def _nothing() -> None:
    """Do nothing."""


class DeferredItems(AsyncGenerator[T, None]):
    """
    The items of an asynchronous generator whose code awaits Deferreds, for code that does so as well.

    An event loop of asyncio does not learn of the generator. When it shuts down it would close the generator in a task, which
    fails during a step and cannot await Deferreds. Each step is a Deferred, so that it can be cancelled.
    """

    def __init__(self, items: AsyncIterator[T]) -> None:
        self._items = items
        self._step: Deferred[Any] | None = None
        self._when_ended: list[Deferred[None]] = []

    def __anext__(self) -> Any:
        """Return a Deferred with the next item; it fails with ``StopAsyncIteration`` after the last one."""
        return self._begin(self._items.__anext__)

    def asend(self, value: None) -> Any:
        """Return a Deferred with the next item."""
        return self.__anext__()

    def athrow(self, *error: Any) -> Any:
        """Raise an error in the generator; return a Deferred with the next item."""
        items: Any = self._items
        return self._begin(items.athrow, *error)

    async def aclose(self) -> None:
        """Close the generator. A step that is under way is cancelled first."""
        while self._step is not None:
            ended: Deferred[None] = Deferred()
            self._when_ended.append(ended)
            self._step.cancel()
            await ended
        close = getattr(self._items, "aclose", None)
        if close is not None:
            await self._begin(close)

    def _begin(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Deferred[Any]:
        if self._step is not None:
            raise RuntimeError("the step before has not ended: take the items one at a time")
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, None)  # with the first call a generator becomes known to the event loop
        try:
            awaitable = call(*arguments)
        finally:
            sys.set_asyncgen_hooks(*hooks)
        step = Deferred.fromCoroutine(_result_of(awaitable))
        if not step.called:
            self._step = step
            step.addBoth(self._ended)
        return step

    def _ended(self, result: Any) -> Any:
        self._step = None
        waiting, self._when_ended = self._when_ended, []
        for ended in waiting:
            ended.callback(None)
        return result


def deferred_items(function: Callable[P, AsyncGenerator[T, None]]) -> Callable[P, AsyncGenerator[T, None]]:
    """Have an asynchronous generator function return :class:`DeferredItems`."""

    @wraps(function)
    def generator(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        return DeferredItems(function(*args, **kwargs))

    return generator
