"""
What a service class provider does with each request.

:data:`SERVICES` maps request classes to functions that get a :class:`~dicomtwist.services.performance.Performance` and answer
it, at once or later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dicomtwist.dimse.messages import CEchoRQ, CFindRQ, CStoreRQ, Message
from dicomtwist.services.performance import Performance
from dicomtwist.services.query import perform_find
from dicomtwist.services.storage import perform_store
from dicomtwist.services.verification import perform_echo

__all__ = ["SERVICES", "Performance"]

SERVICES: Final[dict[type[Message], Callable[[Performance], None]]] = {
    CEchoRQ: perform_echo,
    CStoreRQ: perform_store,
    CFindRQ: perform_find,
}
