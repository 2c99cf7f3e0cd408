"""
One operation on one association, as ``find``, ``get``, ``move`` and ``commit`` need it, and what Ctrl-C does to both.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults

from dicomtwist import AE, Association, AssociationError, NotEstablished, PresentationContext
from dicomtwist.evt import HandlerTuple
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.display.console import Output
from dicomtwist.tools.explain import NO_ASSOCIATION_ERRORS, Cause, cause_of
from dicomtwist.tools.interrupts import ALL_WELL, NO_ASSOCIATION, SOME_FAILED, Interrupts

__all__ = ["Asking", "together"]


class Asking:
    """
    An association that is asked for, used and released.

    :param connection: to whom and how.
    :param interrupts: the first asks the operation to stop, the second aborts the association.

    :ivar ae: in whose name it is asked for.
    :ivar association: it, once there is one.
    :ivar cause: why there is none.
    :ivar error: what went wrong on it, in words.
    """

    def __init__(self, connection: Connection, reactor: Any, output: Output, interrupts: Interrupts) -> None:
        self._connection = connection
        self._interrupts = interrupts
        self._output = output
        self._asking: Deferred[Association] | None = None
        self._cancel: Callable[[], None] | None = None
        self.ae: AE = connection.make_ae(reactor)
        self.association: Association | None = None
        self.cause: Cause | None = None
        self.error = ""
        output.follow(self.ae)
        interrupts.handle(self._stop, self._abort)

    @property
    def interrupted(self) -> bool:
        """Whether the user wants no more."""
        return self._interrupts.count > 0

    async def associate(
        self,
        contexts: Iterable[PresentationContext],
        handlers: Iterable[HandlerTuple] = (),
        items: Iterable[object] = (),
    ) -> Association | None:
        """Ask for the association; return it, or ``None`` where there is none, for the reason in :attr:`cause`."""
        self._asking = self._connection.associate(self.ae, contexts, handlers, items)
        try:
            self.association = await self._asking
        except CancelledError:
            return None
        except NO_ASSOCIATION_ERRORS as error:
            self.cause = cause_of(error, self._connection)
            return None
        finally:
            self._asking = None
        return self.association

    def stops_with(self, cancel: Callable[[], None]) -> None:
        """Have *cancel* called at the first interrupt; at once where there was one."""
        self._cancel = cancel
        if self.interrupted:
            cancel()

    async def release(self) -> None:
        """Release the association; it does not matter where that fails, since all was answered."""
        if self.association is not None and self.association.is_established:
            try:
                await self.association.release()
            except (AssociationError, NotEstablished) as error:
                self._output.note(f"not released: {error}")

    def exit_status(self, done: bool) -> int:
        """Return the exit status; *done* says whether the operation did all that it was asked for."""
        if self.association is None and self.cause is not None:
            return NO_ASSOCIATION
        return ALL_WELL if done and not (self.interrupted or self.error or self.cause) else SOME_FAILED

    def tell(self) -> None:
        """Say what went wrong."""
        if self.cause is not None:
            self._output.error(str(self.cause))
        if self.error:
            self._output.error(self.error)
        if self.interrupted:
            self._output.error("interrupted")

    def document(self) -> dict[str, Any]:
        """Return what went wrong, for JSON."""
        return {
            "interrupted": self.interrupted,
            "error": self.error or None,
            "cause": self.cause and self.cause.document(),
        }

    def _stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        if self._cancel is not None:
            self._cancel()

    def _abort(self) -> None:
        self._stop()
        if self.association is not None:
            self.association.abort("interrupted")


async def together(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Run *coroutines* beside each other until all are done; raise what the first that fails raises."""
    try:
        await gatherResults([Deferred.fromCoroutine(each) for each in coroutines], consumeErrors=True)
    except FirstError as error:
        # Whoever waits knows the errors of what was done, and not the one that wraps them.
        error.subFailure.raiseException()
