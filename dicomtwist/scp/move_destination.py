"""
The destination of a C-MOVE: an association of its own, or several (PS3.4 C.4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.error import ConnectError
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.datasets.codec import UNCOMPRESSED
from dicomtwist.datasets.outgoing_instance import OutgoingInstance
from dicomtwist.dimse.status import MOVE_DESTINATION_INVALID
from dicomtwist.errors import AssociationError, NoPresentationContext, NotEstablished, Refused
from dicomtwist.exchange.exchange import Exchange
from dicomtwist.exchange.store_request import prepare, prepare_at_once
from dicomtwist.presentation import PresentationContext, StoragePresentationContexts, build_context

if TYPE_CHECKING:
    from dicomtwist.scp.performed import PerformingAssociation

#: How many presentation contexts are added to those that were proposed at first: each costs an association anew.
MAX_ADDED_CONTEXTS: Final = 16

#: The result of a presentation context whose SOP Class the acceptor does not support (PS3.8 9.3.3.2).
_ABSTRACT_SYNTAX_NOT_SUPPORTED: Final = 3

#: A proposal has 128 presentation contexts at the most (PS3.8 9.3.2.2).
_MAX_CONTEXTS: Final = 128


class _Line:
    """
    An association with the destination.

    :ivar busy: how many requests are under way on it.
    :ivar added: the contexts that were added to its proposal.
    """

    __slots__ = ("added", "association", "busy")

    def __init__(self, association: PerformingAssociation, added: frozenset[tuple[str, str]]) -> None:
        self.association = association
        self.added = added
        self.busy = 0

    @property
    def room(self) -> int:
        """How many more requests may be under way."""
        return self.association.exchange.invoke_limit - self.busy


class MoveAssociations:
    """
    The associations that the instances of one C-MOVE are sent over.

    They are made when the first instance is there, and propose a presentation context for just what it is. Where a later
    one cannot be sent for want of a context, an association is released and made again with it: some destinations serve
    one association at a time, and another one beside it would wait for ever.

    :param source: the association that the C-MOVE came on.
    :param move_destination: the AE title to send to.
    :param originator_id: the Message ID of the C-MOVE.
    :param priority: its priority.
    :param arguments: how the destination is reached: the arguments of :meth:`dicomtwist.AE.associate`, positional ones
        first; ``move_associations`` says how many associations to use.
    """

    log = Logger()

    def __init__(
        self,
        source: PerformingAssociation,
        move_destination: str,
        originator_id: int,
        priority: int,
        address: tuple[Any, ...],
        arguments: Mapping[str, Any],
    ) -> None:
        self._ae = source.ae
        self._arguments = {"ae_title": move_destination, **arguments}
        number = self._arguments.pop("move_associations", source.settings.move_associations)
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"move_associations is a number above 0, not {number!r}")
        self._number = number
        self._address = address
        self._given: list[PresentationContext] = self._arguments.pop("contexts", None) or self._ae.requested_contexts
        self._contexts = self._given or _any_storage()
        self._added: dict[tuple[str, str], PresentationContext] = {}
        self._priority = priority
        # PS3.7 9.1.1.1.8: who asked for the move, and the ID that it has there.
        self._originator_aet = source.requestor.ae_title if source.is_acceptor else source.acceptor.ae_title
        self._originator_id = originator_id
        self._lines: list[_Line] = []
        self._is_open = False
        self._idle: Deferred[None] | None = None

    # --- for SubOperations

    @property
    def capacity(self) -> int:
        """As many as the windows of the associations allow."""
        return sum(line.association.exchange.invoke_limit for line in self._usable)

    def prepare_at_once(self, instance: OutgoingInstance) -> Exchange | None:
        """Prepare *instance* for the association with most room, if nothing has to be awaited for it."""
        usable = self._usable
        if not usable:
            return None
        line = usable[0] if len(usable) == 1 else max(usable, key=lambda each: each.room)
        if not prepare_at_once(line.association, instance, self._priority, self._originator_aet, self._originator_id):
            return None
        line.busy += 1
        return line.association.exchange

    async def prepare(self, instance: OutgoingInstance) -> Exchange:
        """Prepare an instance that needs an association, or has to be converted, or fails."""
        try:
            if not self._is_open:
                await self._open(instance)
            line = await self._line_for(instance)
        except BaseException:
            instance.close()
            raise
        await prepare(line.association, instance, self._priority, self._originator_aet, self._originator_id)
        line.busy += 1
        return line.association.exchange

    def done(self, exchange: Exchange) -> None:
        """A request was answered, or given up."""
        for line in self._lines:
            if line.association.exchange is exchange:
                line.busy -= 1
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.callback(None)

    async def close(self) -> None:
        """Release the associations."""
        await DeferredList([Deferred.fromCoroutine(self._release(line.association)) for line in self._lines])

    # --- inside

    @property
    def _usable(self) -> list[_Line]:
        return [line for line in self._lines if line.association.is_established]

    async def _open(self, first: OutgoingInstance) -> None:
        """Make the associations; a destination that does not accept any fails what is stored there."""
        self._is_open = True
        wanted = first.sop_class_uid, first.transfer_syntax
        if all(wanted) and not any(wanted[0] == context.abstract_syntax for context in self._given):
            self._added[wanted] = build_context(*wanted)
        results: list[tuple[bool, Any]] = await DeferredList(
            [Deferred.fromCoroutine(self._line()) for _ in range(self._number)], consumeErrors=True
        )
        failures: list[Failure] = []
        for success, result in results:
            (self._lines if success else failures).append(result)
        if self._lines or not failures:
            return
        error = failures[0].value
        if isinstance(error, TypeError | ValueError):
            why = f"the destination cannot be reached: {error}"
            raise Refused(MOVE_DESTINATION_INVALID, why) from error
        self.log.info("the move destination could not be reached: {error}", error=error)

    async def _line(self) -> _Line:
        added = frozenset(self._added)
        contexts = [*self._added.values(), *self._contexts][:_MAX_CONTEXTS]
        return _Line(await self._ae.associate(*self._address, contexts=contexts, **self._arguments), added)

    async def _release(self, association: PerformingAssociation) -> None:
        if not association.is_established:
            return
        try:
            await association.release()
        except (AssociationError, NotEstablished):
            pass  # it is over as well
        except CancelledError:
            pass  # a C-CANCEL that came late: nobody waits for the release any more, which goes on
        except Exception:
            self.log.failure("while the association with the move destination was released")

    async def _line_for(self, instance: OutgoingInstance) -> _Line:
        """Return the association for *instance*; one that cannot take it if none can."""
        usable = self._usable
        if not usable:
            why = "has ended" if self._lines else "could not be made"
            raise NotEstablished(f"the association with the move destination {why}")
        line = max(usable, key=lambda each: each.room)
        wanted = instance.sop_class_uid, instance.transfer_syntax
        if self._takes(line.association, instance) or not all(wanted) or self._is_refused(line, *wanted):
            return line
        if wanted not in self._added and len(self._added) >= MAX_ADDED_CONTEXTS:
            return line
        return await self._again(line, wanted)

    @staticmethod
    def _takes(association: PerformingAssociation, instance: OutgoingInstance) -> bool:
        """Whether *instance* can be sent over *association*, converted where that is possible."""
        try:
            association.context_for(instance.sop_class_uid, instance.transfer_syntax)
        except NoPresentationContext:
            return instance.transfer_syntax in UNCOMPRESSED and any(
                context.abstract_syntax == instance.sop_class_uid
                and not UNCOMPRESSED.isdisjoint(context.transfer_syntax)
                for context in association.accepted_contexts
            )
        return True

    def _is_refused(self, line: _Line, sop_class: str, syntax: str) -> bool:
        """Whether the destination does not take the SOP Class, or not in the transfer syntax: nothing else would help."""
        if any(
            context.abstract_syntax == sop_class and context.result == _ABSTRACT_SYNTAX_NOT_SUPPORTED
            for context in line.association.rejected_contexts
        ):
            return True
        return (sop_class, syntax) in line.added or any(
            context.abstract_syntax == sop_class and context.transfer_syntax == [syntax] for context in self._contexts
        )

    async def _again(self, line: _Line, wanted: tuple[str, str]) -> _Line:
        """Make an association again, with a context for *wanted*; without it, where the destination minds."""
        while line.busy:
            self._idle = Deferred()
            await self._idle
        self._lines.remove(line)
        await self._release(line.association)
        self._added[wanted] = build_context(*wanted)
        try:
            try:
                made = await self._line()
            except AssociationError as error:
                self.log.info("the move destination takes no {wanted}: {error}", wanted=wanted, error=error)
                del self._added[wanted]
                made = await self._line()
        except (AssociationError, ConnectError) as error:
            raise NotEstablished(
                f"the association with the move destination could not be made again: {error}"
            ) from error
        self._lines.append(made)
        return made


def _any_storage() -> list[PresentationContext]:
    """Return contexts for what is stored mostly: in Explicit VR, as most files are."""
    return [
        build_context(context.abstract_syntax, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        for context in StoragePresentationContexts
        if context.abstract_syntax is not None
    ]
