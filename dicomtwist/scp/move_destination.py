"""
The destination of a C-MOVE, which gets associations of its own (PS3.4 C.4.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.error import ConnectError
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.datasets.codec import UNCOMPRESSED
from dicomtwist.datasets.outgoing_instance import OutgoingInstance, Transcoder
from dicomtwist.dimse.messages import Response
from dicomtwist.dimse.status import MOVE_DESTINATION_INVALID, Status
from dicomtwist.errors import AssociationError, NoPresentationContext, NotEstablished, Refused, loggable
from dicomtwist.exchange.exchange import Exchange
from dicomtwist.exchange.store_request import prepare, prepare_at_once
from dicomtwist.interfaces import AssociationSide
from dicomtwist.presentation import (
    PresentationContext,
    PresentationContextTuple,
    StoragePresentationContexts,
    build_context,
)
from dicomtwist.sop_class import check_uid
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

if TYPE_CHECKING:
    from dicomtwist.exchange.invoking import InvokingAssociation
    from dicomtwist.scp.performed import PerformingAssociation

#: The most presentation contexts that are added to those proposed at first. For each an association is made again.
MAX_ADDED_CONTEXTS: Final = 16

#: The result of a presentation context whose abstract syntax the acceptor does not support (PS3.8 9.3.3.2).
_ABSTRACT_SYNTAX_NOT_SUPPORTED: Final = 3

#: The beginning of each Implementation Class UID of GDCM; its version follows.
_GDCM: Final = "1.2.826.0.1.3680043.2.1143.107.104.103.115."


class _OneSyntaxAssociation:
    """
    An association with GDCM, whose SCP reads the data sets of all contexts in the transfer syntax of the last one that it
    accepted, and ends at the first one in another. So only the contexts in that transfer syntax are used.
    """

    def __init__(self, association: PerformingAssociation) -> None:
        self._association = association
        self._syntax = association.accepted_contexts[-1].transfer_syntax[0] if association.accepted_contexts else None
        self.ae = association.ae
        self.settings = association.settings

    @property
    def remote(self) -> AssociationSide:
        return self._association.remote

    @property
    def exchange(self) -> Exchange:
        return self._association.exchange

    def context_for(
        self, abstract_syntax: str, transfer_syntax: str | None = None, *, as_scu: bool = True
    ) -> PresentationContextTuple:
        """
        Return the accepted presentation context for a service.

        :raises NoPresentationContext: *transfer_syntax* is not the one that the peer reads, or there is no such context.
        """
        if transfer_syntax not in (None, self._syntax):
            raise NoPresentationContext(f"the peer reads data sets in the transfer syntax {self._syntax} only")
        return self._association.context_for(abstract_syntax, self._syntax, as_scu=as_scu)

    def status_of(self, response: Response, sop_class: str = "") -> Status:
        return self._association.status_of(response, sop_class)


class _DestinationAssociation:
    """
    An association with the destination.

    :ivar invoking: the association as it is used to send instances.
    :ivar busy: the number of instances in progress on it.
    :ivar added: the contexts that were added to its proposal, each SOP Class UID and transfer syntax UID.
    """

    __slots__ = ("added", "association", "busy", "invoking")

    def __init__(self, association: PerformingAssociation, added: frozenset[tuple[str, str]]) -> None:
        self.association = association
        is_gdcm = association.acceptor.implementation_class_uid.startswith(_GDCM)
        self.invoking: InvokingAssociation = _OneSyntaxAssociation(association) if is_gdcm else association
        self.added = added
        self.busy = 0

    @property
    def room(self) -> int:
        """The number of further instances that may be in progress."""
        return self.association.exchange.invoke_limit - self.busy


class MoveAssociations:
    """
    The associations that the instances of one C-MOVE are sent over.

    They are made for the first instance, and propose a presentation context for exactly its SOP Class and transfer syntax, if
    no given one names its SOP Class. If a later instance lacks a context, an association is released and made again with that
    context: some destinations serve one association at a time, and a second one would wait for ever.

    :param source: the association that the C-MOVE came on.
    :param move_destination: the AE title to send to.
    :param originator_id: the Message ID of the C-MOVE.
    :param priority: its priority.
    :param address: the positional arguments of :meth:`dicomtwist.AE.associate` that reach the destination.
    :param arguments: further arguments of it; and ``move_associations``, the number of associations to use.
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
        self._source = source
        self._move_destination = move_destination
        self._arguments = {"ae_title": move_destination, **arguments}
        number = self._arguments.pop("move_associations", source.settings.move_associations)
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"move_associations is a number above 0, not {number!r}")
        self._number = number
        self._address = address
        self._given: list[PresentationContext] = self._arguments.pop("contexts", None) or self._ae.requested_contexts
        self._contexts = self._given or _any_storage()
        self._added: dict[tuple[str, str], None] = {}
        self._priority = priority
        # The AE title of the C-MOVE requestor, and the Message ID of its request (PS3.7 9.1.1.1.8).
        self._originator_aet = source.requestor.ae_title if source.is_acceptor else source.acceptor.ae_title
        self._originator_id = originator_id
        self._connected: list[_DestinationAssociation] = []
        self._is_open = False
        self._idle: Deferred[None] | None = None

    # --- for SubOperationQueue

    @property
    def capacity(self) -> int:
        """The operations that the windows of all associations allow."""
        return sum(connection.association.exchange.invoke_limit for connection in self._usable)

    def prepare_at_once(self, instance: OutgoingInstance) -> Exchange | None:
        """Prepare *instance* for the association with the most room, if nothing has to be awaited for it."""
        usable = self._usable
        if not usable:
            return None
        connection = usable[0] if len(usable) == 1 else max(usable, key=lambda each: each.room)
        if not prepare_at_once(
            connection.invoking, instance, self._priority, self._originator_aet, self._originator_id
        ):
            return None
        connection.busy += 1
        return connection.association.exchange

    async def prepare(self, instance: OutgoingInstance) -> Exchange:
        """Prepare an instance that needs an association or has to be encoded, or raise why it cannot be sent."""
        try:
            if not self._is_open:
                await self._open(instance)
            connection = await self._association_for(instance)
        except BaseException:
            instance.close()
            raise
        await prepare(connection.invoking, instance, self._priority, self._originator_aet, self._originator_id)
        connection.busy += 1
        return connection.association.exchange

    def done(self, exchange: Exchange) -> None:
        """Note that an instance was answered or given up, and wake a call that waits for an idle association."""
        for connection in self._connected:
            if connection.association.exchange is exchange:
                connection.busy -= 1
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.callback(None)

    async def close(self) -> None:
        """Release the associations."""
        await DeferredList(
            [Deferred.fromCoroutine(self._release(connection.association)) for connection in self._connected]
        )

    # --- inside

    @property
    def _usable(self) -> list[_DestinationAssociation]:
        return [connection for connection in self._connected if connection.association.is_established]

    async def _open(self, first: OutgoingInstance) -> None:
        """Make the associations. If the destination accepts none, :meth:`prepare` fails for each instance."""
        self._is_open = True
        wanted = first.sop_class_uid, first.transfer_syntax
        if all(wanted) and not any(wanted[0] == context.abstract_syntax for context in self._given):
            self._added[wanted] = None
        results: list[tuple[bool, Any]] = await DeferredList(
            [Deferred.fromCoroutine(self._connect()) for _ in range(self._number)], consumeErrors=True
        )
        failures: list[Failure] = []
        for success, result in results:
            (self._connected if success else failures).append(result)
        if self._connected or not failures:
            return
        error = failures[0].value
        if isinstance(error, TypeError | ValueError):
            why = f"the destination cannot be reached: {error}"
            raise Refused(MOVE_DESTINATION_INVALID, why) from error
        address = ":".join(str(part) for part in self._address if part is not None)
        self._source.log_refusal(
            self.log.info,
            "the move destination {destination!r} at {place} could not be reached: {error}",
            destination=self._move_destination,
            place=address,
            error=loggable(error),
        )

    async def _connect(self) -> _DestinationAssociation:
        added = frozenset(self._added)
        proposed_last = contexts_for(self._added, self._ae.transcoder)
        # The given contexts stay in front, see contexts_for.
        contexts = [*self._contexts[: MAX_PRESENTATION_CONTEXTS - len(proposed_last)], *proposed_last]
        return _DestinationAssociation(
            await self._ae.associate(*self._address, contexts=contexts, **self._arguments), added
        )

    async def _release(self, association: PerformingAssociation) -> None:
        if not association.is_established:
            return
        try:
            await association.release()
        except (AssociationError, NotEstablished):
            pass  # the association has ended in another way
        except CancelledError:
            pass  # a late C-CANCEL: the release goes on, but is not waited for
        except Exception:
            self.log.failure(
                "while the association with the move destination {destination!r} was released",
                destination=self._move_destination,
                association=self._source,
            )

    async def _association_for(self, instance: OutgoingInstance) -> _DestinationAssociation:
        """Return the association for *instance*. If none can send it, return one on which the instance fails."""
        usable = self._usable
        if not usable:
            why = "has ended" if self._connected else "could not be made"
            raise NotEstablished(f"the association with the move destination {why}")
        connection = max(usable, key=lambda each: each.room)
        wanted = instance.sop_class_uid, instance.transfer_syntax
        if self._can_send(connection, instance) or not all(wanted) or self._is_refused(connection, *wanted):
            return connection
        if wanted not in self._added and len(self._added) >= MAX_ADDED_CONTEXTS:
            return connection
        return await self._reconnect(connection, wanted)

    @staticmethod
    def _can_send(connection: _DestinationAssociation, instance: OutgoingInstance) -> bool:
        """Return whether *instance* can be sent over *connection*, after a conversion if that is possible."""
        try:
            connection.invoking.context_for(instance.sop_class_uid, instance.transfer_syntax)
        except NoPresentationContext:
            return instance.transfer_syntax in UNCOMPRESSED and any(
                context.abstract_syntax == instance.sop_class_uid
                and not UNCOMPRESSED.isdisjoint(context.transfer_syntax)
                for context in connection.association.accepted_contexts
            )
        return True

    def _is_refused(self, connection: _DestinationAssociation, sop_class: str, syntax: str) -> bool:
        """Return whether the destination refused the SOP Class or its transfer syntax, so that no other proposal can help."""
        if any(
            context.abstract_syntax == sop_class and context.result == _ABSTRACT_SYNTAX_NOT_SUPPORTED
            for context in connection.association.rejected_contexts
        ):
            return True
        return (sop_class, syntax) in connection.added or any(
            context.abstract_syntax == sop_class and context.transfer_syntax == [syntax] for context in self._contexts
        )

    async def _reconnect(self, connection: _DestinationAssociation, wanted: tuple[str, str]) -> _DestinationAssociation:
        """Replace an association by one with a context for *wanted*, or without it if the destination rejects that one."""
        while connection.busy:
            self._idle = Deferred()
            await self._idle
        self._connected.remove(connection)
        await self._release(connection.association)
        self._added[wanted] = None
        try:
            try:
                made = await self._connect()
            except AssociationError as error:
                self._source.log_refusal(
                    self.log.info,
                    "the move destination {destination!r} rejects an association with {wanted}: {error}",
                    destination=self._move_destination,
                    wanted=wanted,
                    error=loggable(error),
                )
                del self._added[wanted]
                made = await self._connect()
        except (AssociationError, ConnectError) as error:
            raise NotEstablished(
                f"the association with the move destination could not be made again: {error}"
            ) from error
        self._connected.append(made)
        return made


def contexts_for(
    instances: Iterable[tuple[str, str]], transcoder: Transcoder | None = None
) -> list[PresentationContext]:
    """
    Return contexts that let an acceptor take each instance as it is stored, whatever its order of transfer syntaxes is.

    Each transfer syntax of a SOP Class has a context of its own. If one of them is uncompressed, a further context has Explicit
    and Implicit VR as well, for acceptors that accept no other: such instances can be converted, and PS3.5 10.1 requires
    Implicit VR.

    GDCM's SCP reads all data sets in the transfer syntax of the last context that it accepts, whatever context they come in,
    and accepts Implicit VR if it is among several. If all uncompressed instances are in one transfer syntax, the further
    contexts come first, so that GDCM reads that one. Otherwise they come last, so that GDCM reads Implicit VR, which each of
    these instances can be converted to.

    :param instances: the SOP Class and transfer syntax UID of each instance, as its file has them: a UID may identify something
        else; one that is malformed gets no context, since a peer may abort because of it.
    :param transcoder: converts from compressed transfer syntaxes; for the SOP Classes of these there is a context with Explicit
        and Implicit VR then, behind the others.
    :returns: 128 contexts at most; the contexts that a conversion can replace are the first to be left out.
    """
    any_of: dict[str, PresentationContext] = {}
    compressed: dict[tuple[str, str], PresentationContext] = {}
    exact: dict[tuple[str, str], PresentationContext] = {}
    decoded: dict[str, PresentationContext] = {}
    for sop_class, syntax in dict.fromkeys(instances):
        if len(any_of) + len(compressed) >= MAX_PRESENTATION_CONTEXTS:
            break
        if not (_is_uid(sop_class) and _is_uid(syntax)):
            continue
        if syntax not in UNCOMPRESSED:
            compressed[sop_class, syntax] = PresentationContext.received(1, sop_class, [syntax])
            if transcoder is not None and transcoder.targets(syntax):
                uncompressed = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
                decoded[sop_class] = PresentationContext.received(1, sop_class, uncompressed)
            continue
        if sop_class not in any_of:
            syntaxes = [syntax, ExplicitVRLittleEndian, ImplicitVRLittleEndian]
            any_of[sop_class] = PresentationContext.received(1, sop_class, syntaxes)
        exact[sop_class, syntax] = PresentationContext.received(1, sop_class, [syntax])
    room = MAX_PRESENTATION_CONTEXTS - len(compressed) - len(any_of)
    kept = [*exact.values()][:room]
    in_place_of = [context for sop_class, context in decoded.items() if sop_class not in any_of][: room - len(kept)]
    if not any_of and len({syntax for _, syntax in compressed}) == 1:
        return [*in_place_of, *compressed.values()]
    compressed_first = [*compressed.values(), *in_place_of]
    if len({syntax for _, syntax in exact}) == 1:
        return [*compressed_first, *any_of.values(), *kept]
    return [*compressed_first, *kept, *any_of.values()]


def _is_uid(text: str) -> bool:
    try:
        return check_uid(text, "a UID") == text
    except ValueError:
        return False


def _any_storage() -> list[PresentationContext]:
    """Return contexts for the common storage SOP Classes: in Explicit VR, as most files are, and in Implicit VR."""
    return [
        build_context(context.abstract_syntax, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        for context in StoragePresentationContexts
        if context.abstract_syntax is not None
    ]
