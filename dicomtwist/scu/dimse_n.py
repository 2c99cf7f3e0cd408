"""
The operations and the notification of DIMSE-N that this side invokes (PS3.7 10.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydicom import Dataset
from pydicom.tag import BaseTag, Tag
from twisted.internet.defer import Deferred

from dicomtwist.datasets.codec import DecodingLimits
from dicomtwist.datasets.identifier import decode_identifier, encode_identifier
from dicomtwist.datasets.sources import BytesSource
from dicomtwist.dimse.messages import (
    NActionRQ,
    NCreateRQ,
    NDeleteRQ,
    NEventReportRQ,
    NGetRQ,
    NSetRQ,
    Request,
    Response,
)
from dicomtwist.dimse.status import Status
from dicomtwist.errors import NoPresentationContext
from dicomtwist.exchange.invoking import WindowPlace
from dicomtwist.presentation import PresentationContextTuple
from dicomtwist.scu.dimse_c import ServiceClassUser, check_number
from dicomtwist.sop_class import SOPClass, check_uid
from dicomtwist.sop_relations import carriers

#: The most tags of an N-GET request: its command set stays below the 64 KiB that this library itself accepts of peers.
MAX_TAGS = 16_000

#: One tag in the forms that pydicom takes.
_TagLike = int | str | BaseTag | tuple[int, int]

#: The result of most of these operations: the status and the data set of the response.
Reply = tuple[Status, Dataset | None]


class NormalisedUser(ServiceClassUser):
    """
    The operations and the notification of DIMSE-N that this side invokes.

    They return a Deferred with (:class:`Status`, Dataset or ``None``), for a failure status as well; N-DELETE with the
    :class:`Status` alone. ``status.affected_sop_instance_uid`` is the SOP Instance that was operated on,
    ``status.attribute_identifier_list`` the tags that a status such as 0x0107 refers to. The Deferred fails with

    * the :class:`AssociationError` that ended the association before the response arrived, or :class:`NotEstablished`,
    * :class:`NoPresentationContext` if no accepted context carries the operation,
    * :class:`DataSetError` if the data set cannot be encoded, or the one of the response cannot be decoded,
    * ``ValueError`` or ``TypeError`` if a UID or a number is not valid.

    The presentation context is that of the SOP Class, else of a Meta SOP Class that contains it. With *meta_uid* it is
    the one of that abstract syntax and no other. Unified Procedure Steps are always instances of the SOP Class UPS Push;
    the operations on them use the contexts that carry them: UPS Push, Pull, Watch or Event (PS3.4 CC.2).
    """

    def send_n_create(
        self,
        dataset: Dataset | bytes | None,
        class_uid: str,
        instance_uid: str | None = None,
        *,
        meta_uid: str | None = None,
    ) -> Deferred[Reply]:
        """
        Ask the peer to create a SOP Instance (N-CREATE, PS3.7 10.1.5).

        :param dataset: the Attribute List, ``None`` to leave it to the peer.
        :param class_uid: the SOP Class UID.
        :param instance_uid: the SOP Instance UID; ``None`` to have the peer make one, which is then in
            ``status.affected_sop_instance_uid``.
        :param meta_uid: the abstract syntax of the presentation context, if it is not the SOP Class.
        :returns: see :class:`NormalisedUser`; the data set is the Attribute List of what was created.
        """

        async def create() -> Reply:
            uid = None if instance_uid is None else check_uid(instance_uid, "the SOP Instance UID")
            request = NCreateRQ(affected_sop_class_uid=_class(class_uid), affected_sop_instance_uid=uid)
            return await _ask(self, request, dataset, _context(self, class_uid, request, meta_uid))

        return Deferred.fromCoroutine(create())

    def send_n_set(
        self, dataset: Dataset | bytes, class_uid: str, instance_uid: str, *, meta_uid: str | None = None
    ) -> Deferred[Reply]:
        """
        Ask the peer to change a SOP Instance (N-SET, PS3.7 10.1.3).

        :param dataset: the Modification List.
        :param class_uid: the SOP Class UID.
        :param instance_uid: the SOP Instance UID.
        :param meta_uid: the abstract syntax of the presentation context, if it is not the SOP Class.
        :returns: see :class:`NormalisedUser`; the data set is the Attribute List of what was changed.
        """

        async def change() -> Reply:
            request = NSetRQ(
                requested_sop_class_uid=_class(class_uid), requested_sop_instance_uid=_instance(instance_uid)
            )
            return await _ask(self, request, dataset, _context(self, class_uid, request, meta_uid))

        return Deferred.fromCoroutine(change())

    def send_n_get(
        self,
        identifier_list: Iterable[_TagLike] | None,
        class_uid: str,
        instance_uid: str,
        *,
        meta_uid: str | None = None,
    ) -> Deferred[Reply]:
        """
        Ask the peer for attributes of a SOP Instance (N-GET, PS3.7 10.1.2).

        :param identifier_list: the tags of the attributes, or their keywords, at most 16,000; none for all.
        :param class_uid: the SOP Class UID.
        :param instance_uid: the SOP Instance UID.
        :param meta_uid: the abstract syntax of the presentation context, if it is not the SOP Class.
        :returns: see :class:`NormalisedUser`; the data set is the Attribute List.
        """

        async def get() -> Reply:
            request = NGetRQ(
                requested_sop_class_uid=_class(class_uid),
                requested_sop_instance_uid=_instance(instance_uid),
                attribute_identifier_list=_tags(identifier_list),
            )
            return await _ask(self, request, None, _context(self, class_uid, request, meta_uid))

        return Deferred.fromCoroutine(get())

    def send_n_action(
        self,
        dataset: Dataset | bytes | None,
        action_type: int,
        class_uid: str,
        instance_uid: str,
        *,
        meta_uid: str | None = None,
    ) -> Deferred[Reply]:
        """
        Ask the peer to do something with a SOP Instance (N-ACTION, PS3.7 10.1.4).

        :param dataset: the Action Information, ``None`` for none.
        :param action_type: the Action Type ID.
        :param class_uid: the SOP Class UID.
        :param instance_uid: the SOP Instance UID.
        :param meta_uid: the abstract syntax of the presentation context, if it is not the SOP Class.
        :returns: see :class:`NormalisedUser`; the data set is the Action Reply.
        """

        async def act() -> Reply:
            request = NActionRQ(
                requested_sop_class_uid=_class(class_uid),
                requested_sop_instance_uid=_instance(instance_uid),
                action_type_id=check_number(action_type, "an Action Type ID"),
            )
            return await _ask(self, request, dataset, _context(self, class_uid, request, meta_uid))

        return Deferred.fromCoroutine(act())

    def send_n_event_report(
        self,
        dataset: Dataset | bytes | None,
        event_type: int,
        class_uid: str,
        instance_uid: str,
        *,
        meta_uid: str | None = None,
        any_role: bool = False,
    ) -> Deferred[Reply]:
        """
        Tell the peer of an event (N-EVENT-REPORT, PS3.7 10.1.1).

        It goes from SCP to SCU: on an association that this side requested, the role of SCP has to be negotiated,
        ``ext_neg=[build_role(sop_class, scp_role=True)]``.

        :param dataset: the Event Information, ``None`` for none.
        :param event_type: the Event Type ID.
        :param class_uid: the SOP Class UID.
        :param instance_uid: the SOP Instance UID.
        :param meta_uid: the abstract syntax of the presentation context, if it is not the SOP Class.
        :param any_role: whether to send it as SCU if the peer did not accept the role of SCP. The standard does not allow
            that, but some peers do not negotiate roles and accept it.
        :returns: see :class:`NormalisedUser`; the data set is the Event Reply.
        """

        async def report() -> Reply:
            request = NEventReportRQ(
                affected_sop_class_uid=_class(class_uid),
                affected_sop_instance_uid=_instance(instance_uid),
                event_type_id=check_number(event_type, "an Event Type ID"),
            )
            try:
                context = _context(self, class_uid, request, meta_uid, as_scu=False)
            except NoPresentationContext:
                if not any_role:
                    raise
                context = _context(self, class_uid, request, meta_uid)
            return await _ask(self, request, dataset, context)

        return Deferred.fromCoroutine(report())

    def send_n_delete(self, class_uid: str, instance_uid: str, *, meta_uid: str | None = None) -> Deferred[Status]:
        """
        Ask the peer to delete a SOP Instance (N-DELETE, PS3.7 10.1.6).

        :param class_uid: the SOP Class UID.
        :param instance_uid: the SOP Instance UID.
        :param meta_uid: the abstract syntax of the presentation context, if it is not the SOP Class.
        :returns: a Deferred with the :class:`Status`, see :class:`NormalisedUser`.
        """

        async def delete() -> Status:
            request = NDeleteRQ(
                requested_sop_class_uid=_class(class_uid), requested_sop_instance_uid=_instance(instance_uid)
            )
            status, _ = await _ask(self, request, None, _context(self, class_uid, request, meta_uid))
            return status

        return Deferred.fromCoroutine(delete())


def _context(
    assoc: NormalisedUser, class_uid: str, request: Request, meta_uid: str | None, *, as_scu: bool = True
) -> PresentationContextTuple:
    """Return the context of *request*: the first accepted one of those that carry it."""
    wanted: Sequence[str]
    if meta_uid is not None:
        wanted = (check_uid(meta_uid, "the Meta SOP Class UID"),)
    else:
        action_type = request.action_type_id if isinstance(request, NActionRQ) else None
        # If the standard has no such operation, the peer refuses it.
        wanted = carriers(class_uid, request.SERVICE, action_type) or (class_uid,)
    first: NoPresentationContext | None = None
    for abstract_syntax in wanted:
        try:
            return assoc.context_for(abstract_syntax, as_scu=as_scu)
        except NoPresentationContext as error:
            first = first or error
    assert first is not None
    if len(wanted) == 1:
        raise first
    others = ", ".join(SOPClass(uid).name for uid in wanted[1:])
    raise NoPresentationContext(f"{first}; nor is there a context for {others}") from first


async def _ask(
    assoc: NormalisedUser, request: Request, dataset: Dataset | bytes | None, context: PresentationContextTuple
) -> Reply:
    syntax = str(context.transfer_syntax)
    encoded = b"" if dataset is None else encode_identifier(dataset, syntax)
    async with WindowPlace(assoc.exchange):
        # A data set without elements is left out: peers fail at a PDV of length 0.
        source = BytesSource(encoded) if encoded else None
        response, data = await assoc.exchange.start(context.context_id, request, source)
    status = _status(request, response)
    if not data or isinstance(request, NDeleteRQ):
        return status, None
    settings = assoc.settings
    limits = DecodingLimits(elements=settings.maximum_attributes, values=settings.maximum_attribute_values)
    return status, await decode_identifier(data, syntax, assoc.ae.executors.decoding, limits)


def _status(request: Request, response: Response) -> Status:
    role = "affected" if isinstance(request, NCreateRQ | NEventReportRQ) else "requested"
    instance_uid: str | None = getattr(response, "affected_sop_instance_uid", None)
    return Status(
        response.status,
        response.SERVICE,
        response.error_comment,
        response.offending_element,
        response.error_id,
        getattr(request, f"{role}_sop_class_uid"),
        getattr(response, "attribute_identifier_list", None),
        instance_uid or getattr(request, f"{role}_sop_instance_uid"),
    )


def _class(uid: str) -> str:
    return check_uid(uid, "the SOP Class UID")


def _instance(uid: str) -> str:
    return check_uid(uid, "the SOP Instance UID")


def _tags(values: Iterable[_TagLike] | None) -> tuple[int, ...] | None:
    """
    Return the tags of an N-GET request, ``None`` for none.

    :raises TypeError: *values* is one tag in place of an iterable of tags.
    :raises ValueError: one of them is not a tag, or there are more than :data:`MAX_TAGS`.
    """
    if values is None:
        return None
    if isinstance(values, str | bytes | int):
        raise TypeError(f"the attributes of an N-GET are an iterable of tags, not {type(values).__name__}")
    tags: list[int] = []
    for value in values:
        if isinstance(value, bool | float):
            raise ValueError(f"{value!r} is not a tag")
        try:
            tags.append(int(Tag(value)))
        except (OverflowError, TypeError) as error:
            raise ValueError(f"{value!r} is not a tag: {error}") from error
        if len(tags) > MAX_TAGS:
            raise ValueError(
                f"an N-GET of more than {MAX_TAGS} attributes: ask for all of them, or in several requests"
            )
    return tuple(tags) or None
