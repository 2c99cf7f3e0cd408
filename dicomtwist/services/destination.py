"""
The destination of a C-MOVE: an association of its own, or several (PS3.4 C.4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.dimse.status import Status
from dicomtwist.errors import AssociationError, NoPresentationContext, NotEstablished
from dicomtwist.presentation import PresentationContext, StoragePresentationContexts, build_context
from dicomtwist.services.suboperations import Instance, describe

if TYPE_CHECKING:
    from dicomtwist.association import Association

#: How many more associations are made for what the first ones did not propose: one for each SOP Class and transfer syntax.
MAX_EXTRA_ASSOCIATIONS: Final = 16


class MoveAssociations:
    """
    The associations that the instances of one C-MOVE are sent over.

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
        source: Association,
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
        if self._arguments.get("contexts") is None:
            self._arguments["contexts"] = self._ae.requested_contexts or StoragePresentationContexts
        self._priority = priority
        # PS3.7 9.1.1.1.8: who asked for the move, and the ID that it has there.
        self._originator_aet = source.requestor.ae_title if source.is_acceptor else source.acceptor.ae_title
        self._originator_id = originator_id
        self._associations: list[Association] = []
        self._busy: dict[Association, int] = {}
        self._extra: dict[tuple[str, str], Deferred[Association | None]] = {}
        self._failure: Failure | None = None

    async def open(self) -> None:
        """
        Make the associations; a destination that does not accept any fails what is stored there.

        :raises TypeError: the arguments are not those of ``associate``.
        :raises ValueError: likewise.
        """
        asking = [self._ae.associate(*self._address, **self._arguments) for _ in range(self._number)]
        results: list[tuple[bool, Any]] = await DeferredList(asking, consumeErrors=True)
        for success, result in results:
            if success:
                self._add(result)
            else:
                self._failure = result
        if not self._associations and self._failure is not None:
            if self._failure.check(TypeError, ValueError):
                self._failure.raiseException()
            self.log.info("the move destination could not be reached: {error}", error=self._failure.getErrorMessage())

    def _add(self, association: Association) -> None:
        self._associations.append(association)
        self._busy[association] = 0

    @property
    def capacity(self) -> int:
        """As many as the windows of the associations allow."""
        return sum(each.exchange.invoke_limit for each in self._associations if each.is_established)

    def store(self, instance: Instance) -> Deferred[Status]:
        """Store one, over the association that has most room."""
        return Deferred.fromCoroutine(self._store(instance))

    async def _store(self, instance: Instance) -> Status:
        usable = [each for each in self._associations if each.is_established]
        if not usable:
            reason = "has ended" if self._associations else "could not be made"
            raise NotEstablished(f"the association with the move destination {reason}")
        association = max(usable, key=lambda each: each.exchange.invoke_limit - self._busy[each])
        try:
            return await self._send(association, instance)
        except NoPresentationContext as error:
            extra = await self._extra_for(instance)
            if extra is None:
                raise
            self.log.debug("an association of its own for what was not proposed: {error}", error=error)
        return await self._send(extra, instance)

    async def _send(self, association: Association, instance: Instance) -> Status:
        self._busy[association] += 1
        try:
            return await association.send_c_store(
                instance,
                priority=self._priority,
                originator_aet=self._originator_aet,
                originator_id=self._originator_id,
            )
        finally:
            self._busy[association] -= 1

    async def _extra_for(self, instance: Instance) -> Association | None:
        """Return an association for the SOP Class and transfer syntax of *instance*, which no other has proposed."""
        described = await describe(instance, self._ae.threads)
        wanted = described.sop_class_uid, described.transfer_syntax
        if not all(wanted) or self._was_proposed(*wanted):
            return None
        if wanted not in self._extra:
            if len(self._extra) >= MAX_EXTRA_ASSOCIATIONS:
                return None
            self._extra[wanted] = Deferred.fromCoroutine(self._open_extra(*wanted))
        # Several may wait for it: each has its own Deferred, since whoever is cancelled cancels what it waits for.
        mine: Deferred[Association | None] = Deferred()

        def opened(association: Association | None) -> Association | None:
            if not mine.called:
                mine.callback(association)
            return association

        self._extra[wanted].addCallback(opened)
        return await mine

    def _was_proposed(self, sop_class: str, syntax: str) -> bool:
        proposed: list[PresentationContext] = self._arguments["contexts"]
        return any(context.abstract_syntax == sop_class and syntax in context.transfer_syntax for context in proposed)

    async def _open_extra(self, sop_class: str, syntax: str) -> Association | None:
        arguments = {**self._arguments, "contexts": [build_context(sop_class, syntax)]}
        try:
            association = await self._ae.associate(*self._address, **arguments)
        except Exception as error:
            self.log.info("the move destination takes no {sop_class} in {syntax}: {error}",
                          sop_class=sop_class, syntax=syntax, error=error)  # fmt: skip
            return None
        self._busy[association] = 0
        return association

    async def close(self) -> None:
        """Release the associations."""
        releasing = [association.release() for association in self._busy if association.is_established]
        for _, result in await DeferredList(releasing, consumeErrors=True):
            if isinstance(result, Failure) and not result.check(AssociationError, NotEstablished):
                self.log.failure("while the association with the move destination was released", result)
