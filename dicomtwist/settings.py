"""
The settings of an Application Entity: how it identifies itself, its timeouts and its limits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from dicomtwist.runtime.networks import LOOPBACK, UNIX, parse_networks
from dicomtwist.ul.ae_title import check_ae_title
from dicomtwist.ul.framing import DEFAULT_MAX_LENGTH

#: The Implementation Class UID of dicomtwist, derived from a UUID (PS3.5 B.2).
IMPLEMENTATION_CLASS_UID: Final = "2.25.260441731958706374411094471653409221487"
IMPLEMENTATION_VERSION_NAME: Final = "DICOMTWIST_0.1"

#: The smallest maximum PDU size that may be announced, in bytes: the header of a fragment has 6 (PS3.8 9.3.5.1), and below
#: this size the headers would be most of the data.
SHORTEST_PDU: Final = 64


@dataclass(slots=True)
class Settings:
    """
    The settings of the associations of an AE. Times are in seconds, ``None`` for no limit.

    Assignment checks the value: ``TypeError`` for a wrong type, ``ValueError`` for a value out of range.

    :ivar ae_title: the AE title.
    :ivar implementation_class_uid: the Implementation Class UID (PS3.7 D.3.3.2).
    :ivar implementation_version_name: the Implementation Version Name, ``None`` to omit it.
    :ivar acse_timeout: the time for the answer to an association or release request, and the duration of the ARTIM timer:
        the time for a complete A-ASSOCIATE-RQ, and for the connection to close in the end.
    :ivar dimse_timeout: the time for the answer to a DIMSE request, and for the next byte of a message that has begun. Each
        received byte restarts it, so that a large data set on a slow line does not time out.
    :ivar network_timeout: the time for the next byte while no operation is in progress, and for a handler to read the data
        that it streams.
    :ivar write_timeout: the time for the peer to accept some of the written bytes; each accepted byte restarts it.
    :ivar pdu_timeout: the time for a complete P-DATA-TF, from its first byte to its last; bytes between them do not restart
        it. For a PDU of any other kind the ACSE timeout applies. It has to be longer for a large :attr:`maximum_pdu_size`
        on a slow line.
    :ivar connection_timeout: the time to establish the TCP connection; ``None`` leaves it to the operating system.
    :ivar maximum_pdu_size: the longest P-DATA-TF that is accepted, in bytes, 0 for no limit.
    :ivar maximum_associations: the number of associations that an AE has at once on one server; one more is rejected as
        transient (local limit exceeded). An event-driven association costs some kilobytes and no thread, hence a default of
        1000.
    :ivar maximum_connections: the number of connections that a server has at once, with or without an association. One more
        is accepted only to be rejected as for ``maximum_associations``; if 64 of those wait for their rejection, the next
        one is closed at once. For all AEs of a server, the setting of the first one applies.
    :ivar maximum_connections_per_peer: the number of connections from one address at once, with the same consequences.
    :ivar maximum_association_rate: the number of associations that one address may request in a minute, ``None`` for any
        number; one more is rejected as transient (temporary congestion).
    :ivar maximum_operations: the number of operations of one association that are performed at once, if the peer may invoke
        any number (asynchronous operations window 0).
    :ivar move_associations: the number of associations that send the instances of one C-MOVE at once.
    :ivar maximum_object_size: the longest data set that is accepted, in bytes; a longer one aborts the association.
    :ivar maximum_buffered_size: the longest data set that is collected in memory for a handler, in bytes; a longer one
        is refused with status 0xA700 and the association continues.
    :ivar maximum_identifier_size: the longest identifier of a C-FIND, C-GET or C-MOVE that is accepted, in bytes, also after a
        deflated one is inflated; a longer one is refused with status 0xA700. A list of 10,000 UIDs takes 650 KB at the most.
    :ivar maximum_identifier_elements: the most elements and items of sequences that an identifier has, in all levels
        together; one with more is refused likewise. Identifiers have some dozens, those of a worklist up to some hundreds.
    :ivar maximum_identifier_values: the most backslashes in an identifier, which divide the values of an element, with the
        same consequence.
    :ivar maximum_attributes: the most elements and items of the data set of a DIMSE-N request, such as the attributes of a
        performed procedure step or a request for storage commitment; one with more is refused with status 0x0213. Each
        instance that is referenced takes three. A response that this side asked for fails with
        :class:`~dicomtwist.errors.DataSetTooLong`.
    :ivar maximum_attribute_values: the most values in such a data set besides the first of each element, which a backslash
        divides from it, with the same consequences. Tags count as well, but not numbers, which are unpacked at once.
    :ivar maximum_request_memory: the most bytes that the data sets of requests take in memory at once, of all associations
        together and until each is answered; those of one host take half of it. One more is refused with status 0x0213, that of
        a C-FIND, C-GET or C-MOVE with 0xA700. Data sets up to 64 KiB and those of C-STORE do not count.
    :ivar require_called_aet: whether to reject requests for an AE title other than that of the AE (1, 1, 7).
    :ivar require_calling_aet: the AE titles that may request associations; empty for any. Others are rejected (1, 1, 3).
    :ivar trusted_proxies: the proxies whose PROXY headers are believed at endpoints of ``haproxy:``: addresses, networks,
        ``"loopback"``, ``"unix"``. An association that comes through any other one is rejected (1, 1, 1).
    :ivar maximum_refusals_logged: the number of lines in the log about refused operations of one association; one more
        line says that further ones are not logged. The line about the end of the association counts them all.
    :ivar promiscuous: whether to accept every Storage SOP Class, and unknown ones, in any transfer syntax and any role.
    :ivar keep_compression: whether to accept a compressed transfer syntax that a requestor proposes first in a context,
        whatever the order of the supported context.
    :ivar requestor_order: whether of several transfer syntaxes in one context the first supported one in the requestor's order
        is accepted. Otherwise the order of the supported context decides.
    :ivar maximum_waiting: the number of requests of one association that wait because the operations window is full; while
        as many wait, nothing is read from the peer, or a further request is refused with status 0x0213 if an operation
        under way needs what the peer sends.
    """

    ae_title: str = "DICOMTWIST"
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID
    implementation_version_name: str | None = IMPLEMENTATION_VERSION_NAME
    acse_timeout: float | None = 30.0
    dimse_timeout: float | None = 30.0
    network_timeout: float | None = 60.0
    write_timeout: float | None = 60.0
    pdu_timeout: float | None = 120.0
    connection_timeout: float | None = None
    maximum_pdu_size: int = DEFAULT_MAX_LENGTH
    maximum_associations: int = 1000
    maximum_connections: int = 2000
    maximum_connections_per_peer: int = 500
    maximum_association_rate: int | None = None
    maximum_operations: int = 64
    move_associations: int = 1
    maximum_object_size: int = 8 * 1024**3
    maximum_buffered_size: int = 512 * 1024**2
    maximum_identifier_size: int = 1024**2
    maximum_identifier_elements: int = 4096
    maximum_identifier_values: int = 20_000
    maximum_attributes: int = 100_000
    maximum_attribute_values: int = 100_000
    maximum_request_memory: int = 512 * 1024**2
    require_called_aet: bool = False
    require_calling_aet: list[str] = field(default_factory=list)
    trusted_proxies: list[str] = field(default_factory=lambda: [LOOPBACK, UNIX])
    maximum_refusals_logged: int = 20
    promiscuous: bool = False
    keep_compression: bool = False
    requestor_order: bool = False
    maximum_waiting: int = 64

    def __setattr__(self, name: str, value: Any) -> None:
        check = _CHECKS.get(name)
        object.__setattr__(self, name, value if check is None else check(name, value))


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(value).__name__}")
    if not value > 0:
        raise ValueError(f"{name} must be a number of seconds above 0, or None for no limit, not {value}")
    return value


def _number(lowest: int, highest: int | None = None) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, not {type(value).__name__}")
        if value < lowest or (highest is not None and value > highest):
            most = "" if highest is None else f" and at most {highest}"
            raise ValueError(f"{name} must be at least {lowest}{most}, not {value}")
        return value

    return check


def _number_or_none(lowest: int) -> Callable[[str, Any], int | None]:
    check = _number(lowest)
    return lambda name, value: None if value is None else check(name, value)


def _pdu_size(name: str, value: Any) -> int:
    size = _number(0, 0xFFFFFFFF)(name, value)
    if 0 < size < SHORTEST_PDU:
        raise ValueError(f"{name} must be 0 for no limit, or at least {SHORTEST_PDU}, not {size}")
    return size


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}")
    return value


def _version_name(name: str, value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a str or None, not {type(value).__name__}")
    if value is not None and not (1 <= len(value) <= 16 and value.isascii() and value.isprintable()):
        raise ValueError(
            f"{name} must have 1 to 16 characters of ASCII (PS3.7 D.3.3.2), or be None to omit it, not {value!r}"
        )
    return value


def _class_uid(name: str, value: Any) -> str:
    # Imported here because it needs pydicom: commands that only show the defaults in their options start faster without it.
    from dicomtwist.sop_class import check_uid

    return check_uid(value, "the Implementation Class UID")


def _titles(name: str, value: Any) -> list[str]:
    if isinstance(value, str | bytes):
        # A plain str is one title, and an empty one means any: nobody wants to iterate over its characters.
        value = [value] if value.strip() else []
    return [check_ae_title(title, f"a title of {name}") for title in value]


def _networks(name: str, value: Any) -> list[str]:
    networks = [value] if isinstance(value, str) else list(value)
    try:
        parse_networks(networks)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return networks


_CHECKS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "ae_title": lambda name, value: check_ae_title(value),
    "implementation_class_uid": _class_uid,
    "implementation_version_name": _version_name,
    "acse_timeout": _seconds,
    "dimse_timeout": _seconds,
    "network_timeout": _seconds,
    "write_timeout": _seconds,
    "pdu_timeout": _seconds,
    "connection_timeout": _seconds,
    "maximum_pdu_size": _pdu_size,
    "maximum_associations": _number(1),
    "maximum_connections": _number(1),
    "maximum_connections_per_peer": _number(1),
    "maximum_association_rate": _number_or_none(1),
    "maximum_operations": _number(1, 0xFFFF),
    "move_associations": _number(1, 64),
    "maximum_object_size": _number(1),
    "maximum_buffered_size": _number(1),
    "maximum_identifier_size": _number(1),
    "maximum_identifier_elements": _number(1),
    "maximum_identifier_values": _number(1),
    "maximum_attributes": _number(1),
    "maximum_attribute_values": _number(1),
    "maximum_request_memory": _number(1),
    "require_called_aet": _flag,
    "require_calling_aet": _titles,
    "trusted_proxies": _networks,
    "maximum_refusals_logged": _number(0),
    "promiscuous": _flag,
    "keep_compression": _flag,
    "requestor_order": _flag,
    "maximum_waiting": _number(0, 0xFFFF),
}
