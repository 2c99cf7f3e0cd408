"""
A thread that works in parallel with a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import ParamSpec

__all__ = ["SideThread"]

P = ParamSpec("P")


class SideThread:
    """
    A thread that works in parallel with a worker thread, which then waits for it. Two parallel syncs take as long as the
    longer one.

    :param name: a part of the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: Thread | None = None

    def begin(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Callable[[], None]:
        """
        Call *function* in the thread.

        :returns: a function that waits for the end of the call, and raises its exception if it failed.
        """
        done: SimpleQueue[BaseException | None] = SimpleQueue()

        def call() -> None:
            try:
                function(*args, **kwargs)
            except BaseException as error:
                done.put(error)
            else:
                done.put(None)

        def wait() -> None:
            error = done.get()
            if error is not None:
                raise error

        self._calls.put(call)
        if self._thread is None:
            self._thread = Thread(target=self._run, name=f"dicomtwist-{self._name}", daemon=True)
            self._thread.start()
        return wait

    def stop(self) -> None:
        """End the thread after its current calls; idempotent."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        get = self._calls.get
        while (call := get()) is not None:
            call()
            del call
