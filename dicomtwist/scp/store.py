"""
The Storage Service Class: C-STORE (PS3.4 Annex B, PS3.7 9.1.1).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from dicomtwist import evt
from dicomtwist.dimse.messages import CStoreRQ
from dicomtwist.dimse.status import (
    CANNOT_UNDERSTAND,
    SOP_CLASS_NOT_SUPPORTED,
    STORE_HANDLER_FAILED,
)
from dicomtwist.scp.multiple_responses import with_dataset
from dicomtwist.scp.performed import Performance, status_response


def perform_store(performance: Performance) -> None:
    """
    Give the instance to the handler of ``EVT_C_STORE``, and answer with the status that it returns.

    A streaming handler is called at once, any other when the data set is complete. The response waits for the end of
    the data set in any case, since a requestor does not read before that.
    """
    request, stream, assoc = performance.request, performance.stream, performance.assoc
    assert isinstance(request, CStoreRQ)
    bound = assoc.handler(evt.EVT_C_STORE)
    if stream is None:
        performance.refuse(CANNOT_UNDERSTAND, "a C-STORE request without a data set")
    elif not request.affected_sop_instance_uid or not request.affected_sop_class_uid:
        performance.refuse(CANNOT_UNDERSTAND, "a C-STORE request without its SOP Class or Instance UID")
    elif request.affected_sop_class_uid != performance.context.abstract_syntax:
        performance.refuse(SOP_CLASS_NOT_SUPPORTED, "the SOP Class is not that of the presentation context")
    elif bound is None:
        performance.refuse(STORE_HANDLER_FAILED, "no handler is bound to EVT_C_STORE")
    else:
        event = evt.StoreEvent(evt.EVT_C_STORE, assoc, request, performance.context, stream)
        if getattr(bound[0], "is_streaming", False):
            _stream(performance, event, bound)
        else:
            limit = assoc.settings.maximum_buffered_size
            with_dataset(
                performance,
                CANNOT_UNDERSTAND,
                lambda data: _handle(performance, event, data),
                limit,
                is_counted=False,
            )


def _handle(performance: Performance, event: evt.StoreEvent, data: bytes) -> None:
    event.complete(data)
    performance.call(evt.EVT_C_STORE, event, performance.answer, STORE_HANDLER_FAILED)


def _stream(performance: Performance, event: evt.StoreEvent, bound: tuple[evt.Handler, tuple[Any, ...]]) -> None:
    stream = event.stream

    def handled(value: Any) -> None:
        response = status_response(performance, value)
        if stream.is_complete:
            performance.finish(response)
        else:
            # The rest of the data set, which the handler has not read, is discarded.
            stream.discard(partial(performance.finish, response))

    performance.call(evt.EVT_C_STORE, event, handled, STORE_HANDLER_FAILED, bound)
