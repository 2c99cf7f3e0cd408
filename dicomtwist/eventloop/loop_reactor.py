"""
Twisted's reactor on an event loop of asyncio, which may be another loop later.

A process has one reactor, and Twisted does not start it twice. A program may run several event loops one after the other, such
as one for each test, or for each ``asyncio.run``. So this reactor moves on to the loop that runs.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial
from threading import Lock, Thread
from typing import Any, Final, Protocol
from weakref import WeakSet

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.error import ConnectionLost
from twisted.internet.main import installReactor
from twisted.logger import Logger
from twisted.python import threadable
from twisted.python.failure import Failure

from dicomtwist.errors import ReactorConflict
from dicomtwist.eventloop.coroutines import running_loop

__all__ = ["Ending", "LoopReactor", "Owner", "installed_reactor", "reactor_of_running_loop"]

#: The time that connections have to close when their event loop ends, in seconds.
CLOSE_SECONDS: Final = 1.0


class Owner(Protocol):
    """The code that runs an event loop for the reactor by itself."""

    def give_up(self) -> bool:
        """Stop the event loop if nothing needs it, and return whether it has stopped."""


class Ending(Protocol):
    """A thing that has to end before its event loop does: an association, or a server."""

    async def end(self, seconds: float) -> None:
        """End it within *seconds*."""


class DaemonThread(Thread):
    """A thread that does not keep the interpreter from ending."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "daemon": True})


class LoopReactor(AsyncioSelectorReactor):
    """
    A reactor on an event loop of asyncio.

    :param loop: the event loop.

    :ivar owner: the code that runs the event loop for this reactor; ``None`` if it is an event loop of the program.
    :ivar endings: the associations and servers that have to end before the event loop does.
    :ivar is_foreign: whether it belongs to the process from which this one was forked off.
    """

    _log = Logger()
    _registerAsIOThread = False  # done if it is the reactor of the process

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.owner: Owner | None = None
        self.endings: WeakSet[Any] = WeakSet()
        self._guards: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}
        self.is_foreign = False
        super().__init__(loop)
        pool = self.getThreadPool()
        # Nobody stops the threads, which look up host names; they must not keep the interpreter from ending.
        pool.threadFactory = DaemonThread
        os.register_at_fork(after_in_child=self._forget)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it is on."""
        return self._asyncioEventloop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """
        Begin on *loop*, which runs in this thread, or move on to it.

        When the loop shuts down, as ``asyncio.run`` has it do, connections that are still open are closed.
        """
        self.use(loop)
        if loop not in self._guards:
            self._guards[loop] = guard = self._until_ended(loop)
            with suppress(StopIteration):
                guard.__anext__().send(None)

    def use(self, loop: asyncio.AbstractEventLoop) -> None:
        """Move on to *loop*, which is about to run in this thread or does so."""
        if loop is not self._asyncioEventloop:
            self._move(loop)
        if installed_reactor() is self:
            threadable.registerAsIOThread()
        if not self.running:
            self.startRunning(installSignalHandlers=False)

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        before, self._asyncioEventloop = self._asyncioEventloop, loop
        self._guards = {one: guard for one, guard in self._guards.items() if not one.is_closed()}
        if self._timerHandle is not None:
            self._timerHandle.cancel()
        self._timerHandle = self._scheduledAt = None
        readers, writers = dict(self._readers), dict(self._writers)
        self._readers.clear()
        self._writers.clear()
        if not before.is_closed():
            for descriptor in readers.values():
                before.remove_reader(descriptor)
            for descriptor in writers.values():
                before.remove_writer(descriptor)
        for reader in readers:
            self.addReader(reader)  # type: ignore[no-untyped-call]
        for writer in writers:
            self.addWriter(writer)  # type: ignore[no-untyped-call]
        if before.is_closed():
            self._close_all()
        self._reschedule()  # type: ignore[no-untyped-call]

    def _close_all(self) -> None:
        """Close all connections: nobody waits for them any more."""
        for one in {*self._readers, *self._writers} - self._internalReaders:
            selectable: Any = one
            self.removeReader(selectable)  # type: ignore[no-untyped-call]
            self.removeWriter(selectable)  # type: ignore[no-untyped-call]
            selectable.connectionLost(Failure(ConnectionLost("the event loop of the connection has ended")))

    async def _until_ended(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
        # A loop that shuts down closes the asynchronous generators that have begun in it.
        try:
            yield
        finally:
            self._guards.pop(loop, None)
            if loop is self._asyncioEventloop:
                await self.finish()

    async def finish(self, seconds: float = CLOSE_SECONDS) -> None:
        """
        End what has to end before the event loop does, and close the connections that are left.

        :param seconds: the time that peers have to close their connections.
        """
        endings = [one.end(seconds) for one in list(self.endings)]
        self.endings.clear()
        await asyncio.gather(*endings, return_exceptions=True)
        self._close_all()

    def callFromThread(  # type: ignore[override]
        self, f: Callable[..., Any], *args: object, **kwargs: object
    ) -> None:
        """Call *f* in the thread of the event loop; do nothing after the end of the loop."""
        try:
            self._asyncioEventloop.call_soon_threadsafe(partial(self._call, f, *args, **kwargs))
        except RuntimeError:
            if not self._asyncioEventloop.is_closed():
                raise

    def _call(self, f: Callable[..., Any], *args: object, **kwargs: object) -> None:
        try:
            f(*args, **kwargs)
        except Exception:
            self._log.failure("a call from another thread raised")

    def _forget(self) -> None:
        """
        Be of no use any more, in a process that was forked off, which may install a reactor of its own.

        The event loop and the connections belong to the process from before: nothing here may use them.
        """
        self.is_foreign = True
        self._readers.clear()
        self._writers.clear()
        self.endings = WeakSet()
        self.owner = None
        self._asyncioEventloop = asyncio.SelectorEventLoop()
        self._asyncioEventloop.close()
        if installed_reactor() is self:
            del sys.modules["twisted.internet.reactor"]


_installing = Lock()


def installed_reactor() -> Any:
    """Return the reactor of the process, ``None`` if none is installed."""
    return sys.modules.get("twisted.internet.reactor")


def install(loop: asyncio.AbstractEventLoop) -> LoopReactor:
    """
    Install a reactor on *loop*; with the lock held, see :func:`reactor_lock`.

    :raises ReactorConflict: the loop has no selector.
    """
    try:
        reactor = LoopReactor(loop)
    except (TypeError, NotImplementedError) as error:
        raise ReactorConflict(
            f"the event loop {type(loop).__name__} cannot watch sockets: use asyncio.SelectorEventLoop or uvloop"
        ) from error
    installReactor(reactor)
    return reactor


def reactor_lock() -> Lock:
    """Return the lock that is held while the reactor is installed, or moves on to another loop."""
    return _installing


def reactor_of_running_loop() -> Any:
    """
    Return the reactor on the event loop of the running coroutine. It is installed or moved there if necessary.

    ``connect()`` and ``serve()`` call it. Call it yourself before you use other libraries for Twisted in coroutines of asyncio.

    :raises ReactorConflict: the process has another reactor already, or the reactor runs on another event loop; or no event
        loop of asyncio runs.
    """
    loop = running_loop()
    if loop is None:
        raise ReactorConflict("no event loop of asyncio runs here: call this in a coroutine that asyncio runs")
    with _installing:
        reactor = installed_reactor()
        if reactor is None:
            reactor = install(loop)
        if not isinstance(reactor, LoopReactor):
            return _started(reactor, loop)
        if reactor.loop is not loop and reactor.loop.is_running():
            if reactor.owner is None:
                raise ReactorConflict(
                    "dicomtwist is in use on the event loop of another thread, and a process has one reactor: run all"
                    " coroutines that use it on one event loop, such as by asyncio.run_coroutine_threadsafe()"
                )
            if not reactor.owner.give_up():
                raise ReactorConflict(
                    "dicomtwist.sync has associations or servers open, and a process has one reactor: close them before"
                    " you use dicomtwist.asyncio, or use dicomtwist.sync alone"
                )
        reactor.start(loop)
    return reactor


def _started(reactor: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """Return a reactor that the program has installed, if it is on *loop*."""
    if isinstance(reactor, AsyncioSelectorReactor) and getattr(reactor, "_asyncioEventloop", None) is loop:
        if not reactor.running:
            reactor.startRunning(installSignalHandlers=False)
        return reactor
    raise ReactorConflict(
        f"Twisted's reactor {type(reactor).__name__} is installed in this process already, and it does not run on the event"
        " loop of this coroutine. Use dicomtwist.asyncio before anything imports twisted.internet.reactor; or await the"
        " Deferreds of dicomtwist.AE in coroutines of Twisted; or use dicomtwist.sync in another thread"
    )
