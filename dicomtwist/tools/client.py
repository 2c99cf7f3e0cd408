"""
The association on which ``find``, ``get``, ``move`` and ``commit`` run their operation, and what Ctrl-C does to it.
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
from dicomtwist.tools.interrupts import CANCELLED, FAILURE, NO_ASSOCIATION, SUCCESS, Interrupts

__all__ = ["ClientAssociation", "ClientOperation", "run_concurrently"]


class ClientOperation:
    """
    The operation of a subcommand at one peer: what went wrong, and what Ctrl-C does to it.

    :ivar cause: the reason why there is no connection, ``None`` otherwise.
    :ivar error: a description of the failure of the operation, empty if there was none.
    """

    def __init__(self, output: Output, interrupts: Interrupts, words: str) -> None:
        self._interrupts = interrupts
        self._output = output
        self._cancel: Callable[[], object] | None = None
        self.cause: Cause | None = None
        self.error = ""
        interrupts.handle(self._stop, self._abort, words)

    @property
    def is_connected(self) -> bool:
        """Whether the peer has answered at all."""
        raise NotImplementedError

    @property
    def interrupted(self) -> bool:
        """Whether the user has interrupted the subcommand."""
        return self._interrupts.count > 0

    def cancel_on_interrupt(self, cancel: Callable[[], object]) -> None:
        """Have *cancel* called at the first interrupt, at once if that has already come."""
        self._cancel = cancel
        if self.interrupted:
            cancel()

    def exit_status(self, done: bool) -> int:
        """Return the exit status; *done* says whether the operation did everything that was requested."""
        if not self.is_connected and self.cause is not None:
            return NO_ASSOCIATION
        return SUCCESS if done and not (self.interrupted or self.error or self.cause) else FAILURE

    def print_errors(self) -> None:
        """Print what went wrong."""
        if self.cause is not None:
            self._output.error(str(self.cause))
        if self.error:
            self._output.error(self.error)
        if self.interrupted:
            self._output.error("interrupted")

    def document(self) -> dict[str, Any]:
        """Return what went wrong as a part of the JSON document."""
        return {
            "interrupted": self.interrupted,
            "error": self.error or None,
            "cause": self.cause and self.cause.document(),
        }

    def _stop(self) -> None:
        if self._cancel is not None:
            self._cancel()

    def _abort(self) -> None:
        self._stop()


class ClientAssociation(ClientOperation):
    """
    The association of a subcommand: requested, used and released once.

    :param connection: the peer and how to connect to it.
    :param interrupts: the first interrupt cancels the operation, the second aborts the association.
    :param words: the effect of the first one, for the user.

    :ivar ae: the AE that requests the association.
    :ivar association: the association, ``None`` until it is established.
    """

    def __init__(
        self, connection: Connection, reactor: Any, output: Output, interrupts: Interrupts, words: str = CANCELLED
    ) -> None:
        super().__init__(output, interrupts, words)
        self._connection = connection
        self._pending: Deferred[Association] | None = None
        self.ae: AE = connection.make_ae(reactor)
        self.association: Association | None = None
        output.log_associations(self.ae)

    @property
    def is_connected(self) -> bool:
        """Whether the association was established."""
        return self.association is not None

    async def associate(
        self,
        contexts: Iterable[PresentationContext],
        handlers: Iterable[HandlerTuple] = (),
        items: Iterable[object] = (),
    ) -> Association | None:
        """Request the association and return it, or ``None`` if there is none; :attr:`cause` then has the reason."""
        self._pending = self._connection.associate(self.ae, contexts, handlers, items)
        try:
            self.association = await self._pending
        except CancelledError:
            return None
        except NO_ASSOCIATION_ERRORS as error:
            self.cause = cause_of(error, self._connection)
            return None
        finally:
            self._pending = None
        return self.association

    async def release(self) -> None:
        """Release the association. A failure is only noted: every request has been answered by then."""
        if self.association is not None and self.association.is_established:
            try:
                await self.association.release()
            except (AssociationError, NotEstablished) as error:
                self._output.note(f"the association could not be released: {error}")

    def _stop(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
        super()._stop()

    def _abort(self) -> None:
        self._stop()
        if self.association is not None:
            self.association.abort("interrupted")


async def run_concurrently(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Run *coroutines* concurrently until all are done, and raise the first exception that one of them raises."""
    try:
        await gatherResults([Deferred.fromCoroutine(each) for each in coroutines], consumeErrors=True)
    except FirstError as error:
        # Callers handle the errors of the coroutines, not the FirstError that wraps them.
        error.subFailure.raiseException()
