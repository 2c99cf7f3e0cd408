"""
DIMSE-N: N-EVENT-REPORT, N-GET, N-SET, N-ACTION, N-CREATE and N-DELETE (PS3.7 10.1; PS3.4 Annexes F, H, J, P, R, S, CC, DD,
EE and KK).
"""

from __future__ import annotations

from typing import Any, Final

from pydicom import Dataset
from pydicom.uid import UID

from dicomtwist import evt
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.datasets.sources import BytesSource
from dicomtwist.dimse import status as codes
from dicomtwist.dimse.messages import (
    Message,
    NActionRQ,
    NActionRSP,
    NCreateRQ,
    NCreateRSP,
    NDeleteRQ,
    NEventReportRQ,
    NEventReportRSP,
    NGetRQ,
    NSetRQ,
    Response,
)
from dicomtwist.dimse.status import Status
from dicomtwist.scp.multiple_responses import with_dataset, with_decoded
from dicomtwist.scp.performed import Performance, status_response
from dicomtwist.sop_class import check_uid
from dicomtwist.sop_relations import carriers, meta_members

#: The event type of each request, and the class of the event that its handler receives.
_HOOKS: Final[dict[type[Message], tuple[evt.EventType, type[evt.NormalisedEvent]]]] = {
    NEventReportRQ: (evt.EVT_N_EVENT_REPORT, evt.EventReportEvent),
    NGetRQ: (evt.EVT_N_GET, evt.GetEvent),
    NSetRQ: (evt.EVT_N_SET, evt.SetEvent),
    NActionRQ: (evt.EVT_N_ACTION, evt.ActionEvent),
    NCreateRQ: (evt.EVT_N_CREATE, evt.CreateEvent),
    NDeleteRQ: (evt.EVT_N_DELETE, evt.NormalisedEvent),
}

#: Failures that name the Event or Action Type that they refer to (PS3.7 C.5).
_OF_A_TYPE: Final = frozenset(
    (codes.NO_SUCH_EVENT_TYPE, codes.NO_SUCH_ARGUMENT, codes.INVALID_ARGUMENT_VALUE, codes.NO_SUCH_ACTION)
)


def perform_normalised(performance: Performance) -> None:
    """
    Give the request to the handler of its event, and answer with its result: a status, or (status, reply).

    The reply is a Dataset, ``bytes`` in the transfer syntax of the context, or ``None``. The status is 0x0110 if there is no
    handler, if it raises, or if its reply cannot be encoded.
    """
    hook, kind = _HOOKS[type(performance.request)]
    event = kind(hook, performance)

    def handle(encoded: bytes) -> None:
        event.complete(encoded)
        _handle(performance, event)

    if not _fits(performance, event):
        performance.refuse(codes.SOP_CLASS_NOT_SUPPORTED, "the SOP Class is not one of the presentation context")
    elif not performance.assoc.has_handler(hook):
        performance.refuse(codes.PROCESSING_FAILURE, f"no handler is bound to {hook.name}")
    elif performance.stream is None:
        _handle(performance, event)
    else:
        # Images to print arrive in N-SET, so the limit is that of instances.
        limit = performance.assoc.settings.maximum_buffered_size
        with_dataset(performance, codes.PROCESSING_FAILURE, handle, limit, codes.RESOURCE_LIMITATION)


def _fits(performance: Performance, event: evt.NormalisedEvent) -> bool:
    """
    Whether the SOP Class belongs to the presentation context: it is the abstract syntax, a member of the Meta SOP Class, or
    both are SOP Classes of UPS.

    A Meta SOP Class with unknown members accepts any SOP Class.
    """
    request, context = performance.request, str(performance.context.abstract_syntax)
    uid = event.sop_class_uid
    if uid == context or context in carriers(uid, request.SERVICE):
        return True
    return UID(context).type == "Meta SOP Class" and not meta_members(context)


def _handle(performance: Performance, event: evt.NormalisedEvent) -> None:
    def call() -> None:
        if performance.is_cancelled:
            # The peer is gone.
            if performance.memory is not None:
                performance.memory.release()
            return
        performance.call(event.event, event, lambda value: _answer(performance, event, value), codes.PROCESSING_FAILURE)

    with_decoded(performance, event, codes.RESOURCE_LIMITATION, call)


def _answer(performance: Performance, event: evt.NormalisedEvent, value: Any) -> None:
    status, reply = value, None
    if isinstance(value, tuple):
        if len(value) != 2:
            raise TypeError(f"a handler returned a tuple of {len(value)}, (status, data set or None) was expected")
        status, reply = value
    response = status_response(performance, status)
    if isinstance(response, NCreateRSP):
        _name_instance(response, event, status, reply)
    source = None
    if reply is not None:
        if isinstance(performance.request, NDeleteRQ):
            raise TypeError("a handler of EVT_N_DELETE returned a data set, of which the response has none")
        encoded = encode_identifier(reply, str(performance.context.transfer_syntax))
        source = BytesSource(encoded) if encoded else None
    if source is not None or response.status in _OF_A_TYPE:
        _name_type(response, performance)
    performance.finish(response, source)


def _name_type(response: Response, performance: Performance) -> None:
    """Set the Event or Action Type of a reply or a failure (PS3.7 10.1.1.1.7, 10.1.4.1.7)."""
    request = performance.request
    if isinstance(response, NEventReportRSP) and isinstance(request, NEventReportRQ):
        response.event_type_id = request.event_type_id
    elif isinstance(response, NActionRSP) and isinstance(request, NActionRQ):
        response.action_type_id = request.action_type_id


def _name_instance(response: NCreateRSP, event: evt.NormalisedEvent, status: Any, reply: Any) -> None:
    """Set the UID of the created instance if the request left it to this side (PS3.7 10.1.5.1.3)."""
    if response.affected_sop_instance_uid or codes.category(response.status) is codes.StatusCategory.FAILURE:
        return
    uid = None
    if isinstance(status, Status):
        uid = status.affected_sop_instance_uid
    for dataset in (status, reply):
        if not uid and isinstance(dataset, Dataset):
            uid = dataset.get("AffectedSOPInstanceUID") or dataset.get("SOPInstanceUID")
    response.affected_sop_instance_uid = check_uid(uid or event.sop_instance_uid, "the Affected SOP Instance UID")
