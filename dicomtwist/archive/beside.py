"""
Two things at once that both wait for the medium.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

__all__ = ["Beside"]

_END: Final = None


class Beside:
    """
    One thread, beside the one that uses it; for one user at a time.

    It is there from the first call until :meth:`close`.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Have *work* done; :meth:`wait` has to follow."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="dicomtwist-beside", daemon=True)
            self._thread.start()
        self._work.put(work)

    def wait(self) -> None:
        """Wait until what was begun is done; whatever it raised is raised."""
        error = self._done.get()
        if error is not None:
            raise error

    def close(self) -> None:
        """End the thread; idempotent."""
        if self._thread is not None:
            self._work.put(_END)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (work := self._work.get()) is not _END:
            error: BaseException | None = None
            try:
                work()
            except BaseException as raised:
                error = raised
            del work
            self._done.put(error)
