"""
The Verification Service Class: C-ECHO (PS3.4 Annex A, PS3.7 9.1.5).
"""

from __future__ import annotations

from dicomtwist import evt
from dicomtwist.dimse.status import ECHO_HANDLER_FAILED
from dicomtwist.scp.performed import Performance


def perform_echo(performance: Performance) -> None:
    """Answer with success, or with the status that the handler of ``EVT_C_ECHO`` returns."""
    assoc = performance.assoc
    bound = assoc.handler(evt.EVT_C_ECHO)
    if bound is None:
        performance.answer(0)
        return
    event = evt.DIMSEEvent(evt.EVT_C_ECHO, assoc, performance.request, performance.context)
    performance.call(evt.EVT_C_ECHO, event, performance.answer, ECHO_HANDLER_FAILED, bound)
