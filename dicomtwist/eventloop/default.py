"""
The reactor of an AE for which the program names none.
"""

from __future__ import annotations

from typing import Any

from dicomtwist.eventloop.coroutines import running_loop
from dicomtwist.eventloop.loop_reactor import LoopReactor, installed_reactor, reactor_of_running_loop

__all__ = ["default_reactor", "follow_loop"]


def default_reactor() -> Any:
    """
    Return the reactor of the process.

    If there is none yet, it is Twisted's default one; inside a coroutine of asyncio, one on the event loop that runs.
    """
    if installed_reactor() is None and running_loop() is not None:
        return reactor_of_running_loop()
    from twisted.internet import reactor

    return reactor


def follow_loop(reactor: Any) -> None:
    """Have *reactor* move on to the event loop of asyncio that runs in this thread, if it was made for that."""
    loop = running_loop()
    if loop is not None and isinstance(reactor, LoopReactor) and reactor.loop is not loop:
        reactor_of_running_loop()
