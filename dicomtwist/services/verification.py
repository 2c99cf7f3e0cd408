"""
The Verification Service Class: C-ECHO (PS3.4 Annex A, PS3.7 9.1.5).
"""

from __future__ import annotations

from dicomtwist import evt
from dicomtwist.dimse.messages import CEchoRSP
from dicomtwist.dimse.status import ECHO_HANDLER_FAILED
from dicomtwist.services.performance import Performance, status_response


def perform_echo(performance: Performance) -> None:
    """Answer success, or what the handler of ``EVT_C_ECHO`` returns."""
    if not performance.assoc.has_handler(evt.EVT_C_ECHO):
        request = performance.request
        performance.finish(
            CEchoRSP(
                message_id_being_responded_to=request.message_id,
                affected_sop_class_uid="1.2.840.10008.1.1",
            )
        )
        return
    event = evt.DIMSEEvent(evt.EVT_C_ECHO, performance.assoc, performance.request, performance.context)
    performance.call(
        evt.EVT_C_ECHO,
        event,
        lambda value: performance.finish(status_response(performance, value)),
        ECHO_HANDLER_FAILED,
    )
