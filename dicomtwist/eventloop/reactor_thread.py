"""
The reactor for code that blocks: calls in its thread, from other threads.

If a reactor runs already in another thread, such as the one of an application on Twisted, it is used. Otherwise a daemon thread
runs one from the first use on. If the program has installed a reactor that does not run, that is left alone: the program may
run it later, or it has ended, or it runs in the process from which this one was forked off.
"""

from __future__ import annotations

import asyncio
import atexit
import os
from collections.abc import Callable
from contextvars import copy_context
from threading import Event, Lock, Thread, get_ident
from threading import enumerate as enumerate_threads
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakSet

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.python import threadable
from twisted.python.failure import Failure

from dicomtwist.errors import AssociationLost, ReactorConflict
from dicomtwist.eventloop.coroutines import running_loop
from dicomtwist.eventloop.loop_reactor import LoopReactor, install, installed_reactor, reactor_lock

__all__ = ["Beginning", "User", "call", "reactor_of_thread", "wait_for"]

T = TypeVar("T")

#: How often a thread that waits looks whether the reactor still runs, in seconds.
LOOK_SECONDS: Final = 1.0

#: The most seconds that the end of the interpreter waits for connections to close.
EXIT_SECONDS: Final = 2.0


class User(Protocol):
    """An object that uses the reactor's thread."""

    @property
    def needs_reactor(self) -> bool:
        """Whether it still uses it."""


class Beginning:
    """A call that makes something which uses the reactor's thread."""

    def __init__(self) -> None:
        self.needs_reactor = True


class _LoopThread:
    """The daemon thread that runs an event loop for the reactor."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reactor: LoopReactor | None = None
        #: The associations and servers that are open, and requests for them.
        self.open: WeakSet[Any] = WeakSet()
        os.register_at_fork(after_in_child=self._forget)

    def start(self, reactor: LoopReactor | None) -> LoopReactor:
        """Begin to run *reactor*, or a new one that is installed; the lock is held."""
        loop = asyncio.new_event_loop()
        reactor = reactor or install(loop)
        reactor.owner = self
        ready = Event()

        def run() -> None:
            asyncio.set_event_loop(loop)
            loop.call_soon(ready.set)
            reactor.use(loop)
            try:
                loop.run_forever()
            finally:
                loop.run_until_complete(reactor.finish())
                loop.close()

        self._loop, self._reactor = loop, reactor
        self._thread = Thread(target=run, name="dicomtwist-sync", daemon=True)
        self._thread.start()
        ready.wait()
        atexit.register(self._exit)
        return reactor

    def beside(self, installed: Any) -> LoopReactor:
        """Return a running reactor beside *installed*, which is that of the process and does not run; the lock is held."""
        reactor = self._reactor
        if reactor is None or reactor is installed:
            return self.start(LoopReactor(asyncio.SelectorEventLoop()))
        return reactor if reactor.loop.is_running() else self.start(reactor)

    def give_up(self) -> bool:
        """Stop the thread if nothing is open, and return whether it has stopped."""
        if any(user.needs_reactor for user in self.open):
            return False
        self._stop(None)
        return True

    def _stop(self, seconds: float | None) -> None:
        thread, loop = self._thread, self._loop
        if thread is None or loop is None:
            return
        self._thread = self._loop = None
        loop.call_soon_threadsafe(loop.stop)
        thread.join(seconds)
        if self._reactor is not None:
            self._reactor.owner = None
        atexit.unregister(self._exit)

    def _exit(self) -> None:
        """Tell the peers, if the interpreter ends with associations."""
        self._stop(EXIT_SECONDS)

    def _forget(self) -> None:
        self._thread = self._loop = self._reactor = None
        self.open = WeakSet()
        atexit.unregister(self._exit)


_loop_thread = _LoopThread()


def check_not_in_reactor(reactor: Any) -> None:
    """:raises ReactorConflict: *reactor* runs in this thread, which would wait for itself."""
    if isinstance(reactor, LoopReactor):
        runs_here = running_loop() is reactor.loop
    else:
        runs_here = reactor is not None and reactor.running and threadable.ioThread == get_ident()
    if not runs_here:
        return
    raise ReactorConflict(
        "a call of dicomtwist.sync would block the reactor, which runs in this thread: use dicomtwist.asyncio in a coroutine"
        " of asyncio, dicomtwist.AE in one of Twisted, or call it in another thread, such as by asyncio.to_thread() or"
        " twisted.internet.threads.deferToThread()"
    )


def reactor_of_thread(user: User) -> Any:
    """
    Return a reactor that runs in another thread; start it if necessary.

    :param user: an object that needs the reactor, for as long as it lives and says so.
    :raises ReactorConflict: the reactor runs in this thread.
    """
    with reactor_lock():
        reactor = installed_reactor()
        check_not_in_reactor(reactor)
        if reactor is None:
            reactor = _loop_thread.start(None)
        elif isinstance(reactor, LoopReactor):
            if not reactor.loop.is_running():
                _loop_thread.start(reactor)
        elif not _is_alive(reactor):
            reactor = _loop_thread.beside(reactor)
        _loop_thread.open.add(user)
        return reactor


def _is_alive(reactor: Any) -> bool:
    """Whether the thread of *reactor* exists and runs it."""
    if isinstance(reactor, LoopReactor):
        return reactor.loop.is_running()
    return bool(reactor.running) and any(thread.ident == threadable.ioThread for thread in enumerate_threads())


class _Call:
    """
    A call in the reactor's thread.

    :param function: returns a value, or a Deferred with it.
    :param discard: called in the reactor's thread with a result that nobody takes.
    """

    def __init__(self, reactor: Any, function: Callable[[], Any], discard: Callable[[Any], object] | None) -> None:
        self._reactor = reactor
        self._function = function
        self._discard = discard
        self._context = copy_context()
        self._deferred: Deferred[Any] | None = None
        self._is_left = False
        self._result: Any = None
        self._ready = Lock()
        self._ready.acquire()

    def result(self) -> Any:
        """Make the call, and wait for its result."""
        try:
            self._reactor.callFromThread(self._start)
            while not self._ready.acquire(timeout=LOOK_SECONDS):
                if not _is_alive(self._reactor) and not self._ready.acquire(timeout=0):
                    raise AssociationLost("the reactor has stopped")
            if isinstance(self._result, Failure):
                self._result.raiseException()
            return self._result
        except BaseException:
            # KeyboardInterrupt, perhaps.
            self._reactor.callFromThread(self._leave)
            raise

    def _start(self) -> None:
        if not self._is_left:
            self._deferred = self._context.run(maybeDeferred, self._function)
            self._deferred.addBoth(self._fired)

    def _fired(self, result: Any) -> None:
        self._result = result
        if self._is_left:
            self._drop()
        else:
            self._ready.release()

    def _leave(self) -> None:
        self._is_left = True
        if self._result is not None:
            self._drop()
        elif self._deferred is not None:
            self._deferred.cancel()

    def _drop(self) -> None:
        result, self._result = self._result, None
        if self._discard is not None and not isinstance(result, Failure):
            self._discard(result)


def wait_for(reactor: Any, function: Callable[[], Deferred[T]], discard: Callable[[T], object] | None = None) -> T:
    """
    Call *function* in the thread of *reactor*, with the context variables of the caller, and wait for its result.

    If the wait is interrupted, such as by Ctrl-C, the Deferred is cancelled.

    :param discard: called in the reactor's thread with a result that arrived but was not taken, because the wait was
        interrupted.
    :returns: the result of the Deferred.
    :raises ReactorConflict: the reactor runs in this thread, or belongs to another process.
    :raises AssociationLost: the reactor stopped meanwhile.
    :raises Exception: the exception that the call failed with, unchanged.
    """
    if getattr(reactor, "is_foreign", False):
        raise ReactorConflict(
            "this belongs to the process from which this one was forked off: connect again in this process, with another AE"
        )
    check_not_in_reactor(reactor)
    check_not_in_reactor(installed_reactor())
    result: T = _Call(reactor, function, discard).result()
    return result


def call(reactor: Any, function: Callable[[], T]) -> T:
    """Call *function*, which returns its result at once, in the thread of *reactor*; see :func:`wait_for`."""

    def deferred() -> Deferred[T]:
        return succeed(function())

    return wait_for(reactor, deferred)
