"""One side of an association, with the items that it negotiated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from dicomtwist.presentation import PresentationContext
from dicomtwist.ul.items import (
    RoleSelection,
    SOPClassCommonExtended,
    UserIdentity,
    UserInformation,
)


@dataclass(slots=True)
class ServiceUser:
    """
    One side of an association, with the items that it negotiated.

    :ivar mode: its role, ``"requestor"`` or ``"acceptor"``.
    :ivar ae_title: its AE title, without padding.
    :ivar called_ae_title: the title that a requestor calls.
    :ivar address: its address as the transport reports it (a host, or the path of a UNIX socket).
    :ivar proxy: the address of the proxy whose PROXY header tells :attr:`address`, ``"unix"`` for a UNIX socket; ``""`` for
        a connection without a proxy.
    :ivar port: its TCP port, 0 if it has none.
    :ivar maximum_length: the longest P-DATA-TF that it receives, in bytes, 0 for no limit.
    :ivar implementation_class_uid: its Implementation Class UID, ``""`` if it sent none.
    :ivar implementation_version_name: its Implementation Version Name, ``""`` if it sent none.
    :ivar asynchronous_operations: (operations that it may invoke, operations that it may be asked to perform) at
        once, 0 for any number.
    :ivar role_selection: the role selection items that it sent, by SOP Class.
    :ivar user_identity: the :class:`UserIdentity` that a requestor sent, or the bytes of an acceptor's response.
    :ivar sop_class_extended: the application information that it sent, by SOP Class.
    :ivar sop_class_common_extended: the common extended negotiation items that it sent, by SOP Class.
    :ivar presentation_contexts: the contexts that this side proposed if it is the requestor, or that the acceptor answered.
        The proposal of a peer is in the event of ``EVT_REQUESTED``.
    """

    mode: str = ""
    ae_title: str = ""
    called_ae_title: str = ""
    address: str = ""
    port: int = 0
    proxy: str = ""
    maximum_length: int = 0
    implementation_class_uid: str = ""
    implementation_version_name: str = ""
    asynchronous_operations: tuple[int, int] = (1, 1)
    role_selection: dict[str, RoleSelection] = field(default_factory=dict)
    user_identity: UserIdentity | bytes | None = field(default=None, repr=False)
    sop_class_extended: dict[str, bytes] = field(default_factory=dict)
    sop_class_common_extended: dict[str, SOPClassCommonExtended] = field(default_factory=dict)
    presentation_contexts: list[PresentationContext] = field(default_factory=list)

    @property
    def is_requestor(self) -> bool:
        """Whether it requested the association."""
        return self.mode == "requestor"

    @property
    def is_acceptor(self) -> bool:
        """Whether it was asked for the association."""
        return self.mode == "acceptor"

    @property
    def info(self) -> dict[str, object]:
        """Its role, AE title, address, port, and the longest P-DATA-TF that it receives, as a dict with pynetdicom's keys."""
        return {
            "ae_title": self.ae_title,
            "address": self.address,
            "port": self.port,
            "mode": self.mode,
            "pdv_size": self.maximum_length,
        }

    @property
    def primitive(self) -> NoReturn:
        """:raises AttributeError: always; the message says where the PDU is."""
        raise AttributeError(
            "an association keeps no primitives: event.pdu of EVT_REQUESTED, EVT_ACCEPTED and EVT_REJECTED has the PDU,"
            " and the attributes of requestor and acceptor have its content"
        )

    def learn(self, information: UserInformation) -> None:
        """Take over *information*, which this side sent."""
        # Without the item there is no limit that the peer could enforce (PS3.8 D.1 makes it mandatory).
        self.maximum_length = information.maximum_length or 0
        self.implementation_class_uid = information.implementation_class_uid or ""
        self.implementation_version_name = information.implementation_version_name or ""
        self.role_selection = {role.sop_class_uid: role for role in information.roles}
        self.user_identity = information.user_identity or information.user_identity_response
        self.sop_class_extended = {item.sop_class_uid: item.information for item in information.sop_class_extended}
        self.sop_class_common_extended = {item.sop_class_uid: item for item in information.sop_class_common_extended}
