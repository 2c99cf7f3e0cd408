"""
C-STORE requests for instances that are opened: the presentation context, the command set, and how they are sent (PS3.7
9.1.1).
"""

from __future__ import annotations

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet.defer import Deferred

from dicomtwist.datasets.codec import UNCOMPRESSED
from dicomtwist.datasets.outgoing_instance import OutgoingInstance, Transcoder
from dicomtwist.dimse.messages import HIGH, LOW, MEDIUM, CStoreRQ, Response
from dicomtwist.errors import AssociationError, NoPresentationContext, NotEstablished
from dicomtwist.exchange.exchange import Exchange
from dicomtwist.exchange.invoking import InvokingAssociation
from dicomtwist.presentation import PresentationContextTuple
from dicomtwist.runtime.networks import host_of

#: The uncompressed transfer syntaxes in order of preference for a conversion: Explicit VR keeps the VRs, deflating costs time.
UNCOMPRESSED_BY_PREFERENCE = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    *sorted(UNCOMPRESSED - {ExplicitVRLittleEndian, ImplicitVRLittleEndian}, reverse=True),
)


async def prepare(
    assoc: InvokingAssociation,
    instance: OutgoingInstance,
    priority: int,
    originator_aet: str | None = None,
    originator_id: int | None = None,
) -> None:
    """
    Choose the presentation context for *instance*, encode the data set for it, and make the request.

    The instance is closed if that fails.

    :param priority: 0 medium, 1 high, 2 low.
    :param originator_aet: the AE title of the C-MOVE requestor that this is a sub-operation for (PS3.7 9.1.1.1.8).
    :param originator_id: the Message ID of its C-MOVE request.
    :raises AssociationError: the one that ended the association.
    :raises NoPresentationContext: no accepted context fits.
    :raises DataSetError: the data set cannot be encoded.
    :raises OSError: the file cannot be read again to convert it.
    """
    try:
        assoc.exchange.check()
        transcoder = assoc.ae.transcoder
        context = _context(assoc, instance.sop_class_uid, instance.transfer_syntax, transcoder)
        syntax = str(context.transfer_syntax)
        if not instance.is_in(syntax):
            await instance.convert(syntax, assoc.ae.executors.decoding, transcoder, host_of(assoc.remote.address))
    except BaseException:
        instance.close()
        raise
    _set_request(instance, context, priority, originator_aet, originator_id)


def prepare_at_once(
    assoc: InvokingAssociation,
    instance: OutgoingInstance,
    priority: int,
    originator_aet: str | None = None,
    originator_id: int | None = None,
) -> bool:
    """
    Do the work of :func:`prepare` if the instance is a file that is sent as it is, for which nothing has to be awaited.

    :returns: whether the instance is prepared. If not, it is unchanged, and :func:`prepare` does it or says why it fails.
    """
    syntax = instance.transfer_syntax
    if not instance.is_in(syntax):
        return False
    try:
        assoc.exchange.check()
        context = assoc.context_for(instance.sop_class_uid, syntax)
    except (AssociationError, NotEstablished, NoPresentationContext):
        return False
    _set_request(instance, context, priority, originator_aet, originator_id)
    return True


def send(exchange: Exchange, instance: OutgoingInstance) -> Deferred[tuple[Response, bytes | None]]:
    """
    Send an instance that is prepared, which closes it. The caller has a place in the window.

    :returns: the Deferred of :meth:`Exchange.start`.
    """
    return exchange.start(instance.context.context_id, instance.request, instance.source)


def _set_request(
    instance: OutgoingInstance,
    context: PresentationContextTuple,
    priority: int,
    originator_aet: str | None,
    originator_id: int | None,
) -> None:
    instance.context = context
    if priority not in (MEDIUM, HIGH, LOW):
        # That of a sub-operation is the one of the peer's C-GET or C-MOVE, which may be any number.
        priority = MEDIUM
    instance.request = CStoreRQ(
        affected_sop_class_uid=str(context.abstract_syntax),
        affected_sop_instance_uid=instance.sop_instance_uid,
        priority=priority,
        move_originator_application_entity_title=originator_aet,
        move_originator_message_id=originator_id,
    )


def _context(
    assoc: InvokingAssociation, sop_class: str, syntax: str, transcoder: Transcoder | None
) -> PresentationContextTuple:
    """
    Return the accepted context with exactly *syntax*, else one with a syntax that the data set can be converted to.

    :param transcoder: converts from and to compressed transfer syntaxes; ``None`` if nothing does.
    :raises NoPresentationContext: there is neither.
    """
    try:
        return assoc.context_for(sop_class, syntax)
    except NoPresentationContext:
        if syntax not in UNCOMPRESSED and transcoder is None:
            raise
    others: list[str] = [*UNCOMPRESSED_BY_PREFERENCE] if syntax in UNCOMPRESSED else []
    if transcoder is not None:
        others += transcoder.targets(syntax)
    for other in others:
        try:
            return assoc.context_for(sop_class, other)
        except NoPresentationContext:
            continue
    return assoc.context_for(sop_class, syntax)
