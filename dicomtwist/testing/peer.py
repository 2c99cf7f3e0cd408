"""
A peer that does what a test says, whether it conforms to the standard or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias

from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure

from dicomtwist.dimse.message_stream import encode_pdata
from dicomtwist.dimse.messages import Message, decode_message
from dicomtwist.ul.items import AnsweredContext, ProposedContext, UserInformation
from dicomtwist.ul.pdu import (
    COMMAND_FRAGMENT,
    LAST_FRAGMENT,
    PDU,
    PDU_HEADER,
    AAssociateAC,
    AAssociateRQ,
    PDataTF,
    decode_pdu,
)

#: The items that a scripted peer can send.
Sendable: TypeAlias = bytes | PDU


class Flusher(Protocol):
    """The network that a peer belongs to."""

    def flush(self) -> None:
        """Run everything that is due now."""


class ScriptedPeerFactory(Factory):
    """A factory for clients and servers with one protocol."""

    noisy = False

    def __init__(self, peer: ScriptedPeer) -> None:
        self._peer = peer

    def startedConnecting(self, connector: object) -> None:
        pass

    def clientConnectionLost(self, connector: object, reason: Failure) -> None:
        pass

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        pass

    def buildProtocol(self, addr: object) -> ScriptedPeer | None:
        return self._peer if self._peer.transport is None else None


#: The peer's user information: no limit for P-DATA-TF, and an implementation class UID, which is mandatory.
_USER_INFORMATION = UserInformation(maximum_length=0, implementation_class_uid="1.2.3")


class ScriptedPeer(TwistedProtocol):
    """
    A peer that sends what the test says and records what it receives. It does nothing by itself; it does not even close.

    :ivar received: all bytes received.
    :ivar pdus: the complete PDUs in them.
    :ivar closed: the reason why the connection was closed, ``None`` while it is open.
    """

    transport: Any = None

    def __init__(self, network: Flusher) -> None:
        self._network = network
        self._pending = bytearray()
        self._seen = 0
        self.received = bytearray()
        self.pdus: list[PDU] = []
        self.closed: Exception | None = None

    def dataReceived(self, data: bytes) -> None:
        """Record the bytes and the complete PDUs in them."""
        self.received += data
        self._pending += data
        while len(self._pending) >= PDU_HEADER.size:
            pdu_type, length = PDU_HEADER.unpack_from(self._pending)
            end = PDU_HEADER.size + length
            if len(self._pending) < end:
                break
            self.pdus.append(decode_pdu(pdu_type, memoryview(bytes(self._pending[PDU_HEADER.size : end]))))
            del self._pending[:end]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Record the reason."""
        self.closed = reason.value if isinstance(reason.value, Exception) else ConnectionLost()

    def take(self) -> list[PDU]:
        """Return the PDUs received since the last call."""
        self._network.flush()
        taken = self.pdus[self._seen :]
        self._seen = len(self.pdus)
        return taken

    def messages(self) -> list[tuple[Message, bytes]]:
        """Return all complete DIMSE messages received, each with its data set."""
        self._network.flush()
        found: list[tuple[Message, bytes]] = []
        command, data = bytearray(), bytearray()
        message: Message | None = None
        for pdv in [pdv for pdu in self.pdus if isinstance(pdu, PDataTF) for pdv in pdu.pdvs]:
            if pdv.control & COMMAND_FRAGMENT:
                command += pdv.data
            else:
                data += pdv.data
            if not pdv.control & LAST_FRAGMENT:
                continue
            if pdv.control & COMMAND_FRAGMENT:
                message = decode_message(bytes(command))
                command.clear()
            if message is not None and not (message.has_dataset and pdv.control & COMMAND_FRAGMENT):
                found.append((message, bytes(data)))
                data.clear()
                message = None
        return found

    def send(self, *what: Sendable) -> None:
        """Send bytes and PDUs, all in one write, and flush."""
        self.transport.write(b"".join(item if isinstance(item, bytes) else item.encode() for item in what))
        self._network.flush()

    def request(
        self,
        *contexts: tuple[int, str] | ProposedContext,
        called: str = "ANY-SCP",
        calling: str = "SCRIPTED",
        information: UserInformation | None = None,
    ) -> None:
        """
        Request an association.

        :param contexts: for each context, its ID and an abstract syntax, which is proposed in Implicit and in Explicit VR
            Little Endian; or a complete item.
        """
        proposed = [
            context
            if isinstance(context, ProposedContext)
            else ProposedContext(context[0], context[1], ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"))
            for context in contexts
        ]
        self.send(AAssociateRQ(called, calling, tuple(proposed), information or _USER_INFORMATION))

    def accept(self, *, information: UserInformation | None = None, results: Iterable[int] = ()) -> None:
        """
        Accept the received A-ASSOCIATE-RQ, and each context with its first transfer syntax.

        :param results: the results of the contexts in order, if they are not all 0.
        """
        self._network.flush()
        request = next(pdu for pdu in reversed(self.pdus) if isinstance(pdu, AAssociateRQ))
        proposed = request.presentation_contexts
        codes = list(results) + [0] * len(proposed)
        answers = tuple(
            AnsweredContext(context.context_id, result, context.transfer_syntaxes[0])
            for context, result in zip(proposed, codes, strict=False)
        )
        self.send(
            AAssociateAC(request.called_ae_title, request.calling_ae_title, answers, information or _USER_INFORMATION)
        )

    def send_message(self, context_id: int, message: Message, dataset: bytes | None = None) -> None:
        """Send a DIMSE message, with *dataset* if it is given."""
        self.send(*self.encode_message(context_id, message, dataset))

    @staticmethod
    def encode_message(context_id: int, message: Message, dataset: bytes | None = None) -> list[bytes]:
        """Return the P-DATA-TF PDUs of a DIMSE message, to be sent whole or in parts."""
        message.has_dataset = dataset is not None
        buffers = encode_pdata(context_id, True, message.encode(), 16378)
        if dataset is not None:
            buffers += encode_pdata(context_id, False, dataset, 16378)
        return [bytes(buffer) for buffer in buffers]

    def close(self) -> None:
        """Close the connection in order, and flush."""
        self.transport.loseConnection()
        self._network.flush()

    def reset(self) -> None:
        """Reset the connection, and flush."""
        self.transport.abortConnection()
        self._network.flush()
