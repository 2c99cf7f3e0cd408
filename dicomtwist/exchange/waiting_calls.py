"""
The calls of this side that wait for a place in the operations window, for the end of all operations, or for a loop that takes
responses; and the pause of reading while responses wait for loops.

A call that would wait for its own caller fails with :class:`WouldDeadlock`, see :mod:`dicomtwist.exchange.nesting`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from dicomtwist.dimse.messages import CGetRQ
from dicomtwist.errors import WouldDeadlock
from dicomtwist.exchange import nesting
from dicomtwist.exchange.invoked import Operation
from dicomtwist.exchange.operations_window import Window
from dicomtwist.interfaces import ExchangeOwner, PerformedOperation


class WaitingCalls:
    """
    The calls of this side of an association that wait, and the operations that they wait for.

    :param owner: the association.
    :param window: the places for outstanding operations.
    :param operations: the outstanding operations of this side, by Message ID; the exchange changes the dict.
    :param performing: the operations that are performed for the peer, by Message ID; the exchange changes the dict.
    :param cancel: sends C-CANCEL for a Message ID.

    :ivar full: the operations whose queue of pending responses is full, and whether it must not grow at all.
    """

    __slots__ = (
        *("_cancel", "_idle_calls", "_is_closed", "_is_paused", "_nested", "_operations", "_overfull_at"),
        *("_owner", "_performing", "_window", "full"),
    )

    def __init__(
        self,
        owner: ExchangeOwner,
        window: Window,
        operations: dict[int, Operation],
        performing: dict[int, PerformedOperation],
        cancel: Callable[[int], None],
    ) -> None:
        self._owner = owner
        self._window = window
        self._operations = operations
        self._performing = performing
        self._cancel = cancel
        self.full: dict[Operation, bool] = {}
        self._is_paused = self._is_closed = False
        self._overfull_at = 0.0  # when a response of an overfull queue was last taken
        self._nested: dict[Deferred[None], nesting.Frames] = {}  # calls that wait, from inside handlers and loops
        self._idle_calls: dict[Deferred[None], nesting.Frames] = {}  # calls that wait until nothing is under way

    @property
    def is_getting(self) -> bool:
        """Whether a C-GET of this side is under way."""
        return any(type(operation.request) is CGetRQ for operation in self._operations.values())

    def enter_window(self) -> Deferred[None]:
        """
        Return a Deferred that fires with a place in the window, for one more operation.

        It fails with :class:`WouldDeadlock` if the place or the response would wait for the caller itself.
        """
        inside = nesting.frames()
        if inside and not self._is_closed:
            why = self._why_handler_waits(inside, self._operations.values() if self._window.is_taken else ())
            if why is not None:
                return fail(WouldDeadlock(why))
        waiting = self._window.enter()
        if not waiting.called:
            if inside:
                self._nested[waiting] = inside
                waiting.addBoth(self._no_longer, self._nested, waiting)
            if self.full:
                self._balance()
        return waiting

    def wait_until_idle(self, waiting: Deferred[None]) -> None:
        """
        Note a call that waits until no operation of this side is outstanding, such as that of a release.

        :param waiting: fails with :class:`WouldDeadlock` if that would wait for the caller itself.
        """
        inside = nesting.frames()
        gets = [operation for operation in self._operations.values() if type(operation.request) is CGetRQ]
        why = self._why_handler_waits(inside, gets) if inside else None
        if why is not None:
            waiting.errback(WouldDeadlock(why))
        elif not waiting.called:
            self._idle_calls[waiting] = inside
            waiting.addBoth(self._no_longer, self._idle_calls, waiting)
            self._balance()

    def _why_handler_waits(self, inside: nesting.Frames, awaited: Iterable[Operation]) -> str | None:
        return nesting.why_handler_waits(inside, self._performing, awaited)

    @staticmethod
    def _no_longer(result: Any, calls: dict[Deferred[None], nesting.Frames], waiting: Deferred[None]) -> Any:
        del calls[waiting]
        return result

    def _refuse_in_handlers(self) -> None:
        """Fail calls from inside handlers that wait for the window, when C-GETs have taken all of its places."""
        for waiting, inside in list(self._nested.items()):
            why = self._why_handler_waits(inside, self._operations.values())
            if why is not None and not waiting.called:
                self._window.refuse(waiting, Failure(WouldDeadlock(why)))

    def _refuse_in_loops(self) -> None:
        """Fail what is asked from inside a loop whose queue must not grow any more, and would come after what is in it."""
        for full in [operation for operation, overfull in self.full.items() if overfull]:
            why = Failure(
                WouldDeadlock(
                    f"the response would come after more responses to {full.request.SERVICE} than may wait for the loop"
                    " that asks: take them first, for example with collect(), or use another association"
                )
            )
            for waiting, inside in list(self._nested.items()):
                if nesting.is_inside(inside, full) and not waiting.called:
                    self._window.refuse(waiting, why)
            for waiting, inside in list(self._idle_calls.items()):
                if nesting.is_inside(inside, full) and not waiting.called:
                    waiting.errback(why)
            for operation in list(self._operations.values()):
                if nesting.is_inside(operation.inside, full):
                    self._give_up(operation, why)

    def _give_up(self, operation: Operation, why: Failure) -> None:
        if operation.is_given_up:
            return
        if operation.pending is not None:
            self._cancel(operation.message_id)
        self.full.pop(operation, None)
        operation.give_up(why)

    @property
    def handler_awaited(self) -> str | None:
        """The service whose handler a C-GET of this side waits for; ``None`` if it waits for none."""
        if not self._performing or not self.is_getting:
            return None
        return next(iter(self._performing.values())).service_name

    @property
    def stalled_since(self) -> float | None:
        """
        Since when calls have waited for a loop that takes none of its responses, in seconds of the clock; ``None`` if none do.

        The loop may have made them itself: a timer, a thread, or a task that it did not begin does not show that.
        """
        if not any(self.full.values()):
            return None
        waits = self._window.is_waited_for or self._idle_calls or len(self._operations) > len(self.full)
        return self._overfull_at if waits else None

    def refuse_stalled(self, seconds: float) -> bool:
        """
        Fail the calls that have waited too long for a handler or a loop of this side to go on.

        :param seconds: how long they have waited.
        :returns: whether there were any.
        """
        overfull = [operation for operation, overfull in self.full.items() if overfull]
        if overfull:
            reason = f"the loop over the responses to {overfull[0].request.SERVICE} has taken none"
        elif self.handler_awaited is not None:
            reason = f"the handler of {self.handler_awaited} has kept the C-GET waiting"
        else:
            return False
        why = Failure(WouldDeadlock(f"{reason} for {seconds:g} seconds, and this call would wait for that"))
        # Listed before any of them fails: a loop that one of them belongs to goes on at once.
        idle = [waiting for waiting in self._idle_calls if not waiting.called]
        behind = [one for one in self._operations.values() if one not in self.full] if overfull else []
        found = bool(idle) or self._window.is_waited_for
        self._window.refuse_all(why)
        for waiting in idle:
            if not waiting.called:
                waiting.errback(why)
        for operation in behind:
            self._give_up(operation, why)
        return found or bool(behind)

    def set_full(self, operation: Operation, full: bool, overfull: bool = False) -> None:
        """
        Report whether the queue of pending responses of *operation* is full.

        Reading from the peer pauses while the queues of all operations are full, and nothing else waits for one of them to end,
        or while one is overfull. A request from inside the loop over the responses of an overfull one could never be answered,
        so it fails.

        :param overfull: whether the queue must not grow at all.
        """
        if full:
            self.full[operation] = overfull
            if overfull:
                self._overfull_at = self._owner.ae.reactor.seconds()
        else:
            self.full.pop(operation, None)
        self._balance()

    def begun(self, operation: Operation) -> None:
        """Note that *operation* of this side is outstanding now."""
        if self._nested and type(operation.request) is CGetRQ:
            self._refuse_in_handlers()
        if self.full:
            self._balance()

    def close(self) -> None:
        """Read again: the association has ended, and the exchange fails what waits."""
        self._is_closed = True
        self.full.clear()
        self._balance()

    def _balance(self) -> None:
        if len(self._operations) > 1 or self._nested or self._idle_calls:
            if any(self.full.values()):
                self._refuse_in_loops()
        full = self.full
        pause = any(full.values()) or (
            len(full) >= len(self._operations) > 0 and not self._window.is_waited_for and not self._idle_calls
        )
        if pause and not self._is_paused:
            self._is_paused = True
            self._owner.protocol.pause_reading(timed=False)
        elif self._is_paused and not pause:
            self._is_paused = False
            self._owner.protocol.resume_reading(timed=False)
