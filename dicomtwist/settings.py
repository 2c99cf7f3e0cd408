"""
The settings of an Application Entity: what it tells of itself, what it waits for, and what it takes at the most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from dicomtwist.ul.framing import DEFAULT_MAX_LENGTH

#: Who wrote this implementation: a UID derived from a UUID (PS3.5 B.2).
IMPLEMENTATION_CLASS_UID: Final = "2.25.260441731958706374411094471653409221487"
IMPLEMENTATION_VERSION_NAME: Final = "DICOMTWIST_0.1"


@dataclass(slots=True)
class Settings:
    """
    What holds for the associations of an AE. Times are in seconds, ``None`` for no limit.

    :ivar ae_title: the AE title.
    :ivar implementation_class_uid: the Implementation Class UID (PS3.7 D.3.3.2).
    :ivar implementation_version_name: the Implementation Version Name, ``None`` to leave it out.
    :ivar acse_timeout: for the answer to an association or release request, and how long the ARTIM timer runs: for an
        A-ASSOCIATE-RQ to come whole, for the connection to close in the end.
    :ivar dimse_timeout: for the answer to a DIMSE request, and for a message that has begun to go on. Each byte that
        comes starts it anew, so that a large data set that moves slowly is not timed out.
    :ivar network_timeout: for anything to come while nothing is under way, for the peer to take what is written, and
        for a handler to take what it streams.
    :ivar connection_timeout: for the TCP connection to be made; ``None`` leaves it to the operating system.
    :ivar maximum_pdu_size: the longest P-DATA-TF that is taken, in bytes, 0 for no limit.
    :ivar maximum_associations: how many associations a server has at once; one more is rejected as transient (local
        limit exceeded). An event-driven association costs some kilobytes and no thread, hence a default of 1000.
    :ivar maximum_operations: how many operations of one association are performed at once, where the peer may ask for
        any number (asynchronous operations window 0).
    :ivar maximum_object_size: the longest data set that is taken, in bytes; a longer one aborts the association.
    :ivar maximum_buffered_size: the longest data set that is collected in memory for a handler, in bytes; a longer one
        is refused with status 0xA700 and the association goes on.
    :ivar require_called_aet: reject requests for another title than ours (1, 1, 7).
    :ivar require_calling_aet: the titles that may ask; empty for any. Others are rejected (1, 1, 3).
    :ivar promiscuous: accept every Storage SOP Class, and unknown ones, in any transfer syntax.
    """

    ae_title: str = "DICOMTWIST"
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID
    implementation_version_name: str | None = IMPLEMENTATION_VERSION_NAME
    acse_timeout: float | None = 30.0
    dimse_timeout: float | None = 30.0
    network_timeout: float | None = 60.0
    connection_timeout: float | None = None
    maximum_pdu_size: int = DEFAULT_MAX_LENGTH
    maximum_associations: int = 1000
    maximum_operations: int = 64
    maximum_object_size: int = 8 * 1024**3
    maximum_buffered_size: int = 512 * 1024**2
    require_called_aet: bool = False
    require_calling_aet: list[str] = field(default_factory=list)
    promiscuous: bool = False
