"""
An association over a blocking socket that spends as little time as possible on each message.

It encodes and decodes with :mod:`dicomtwist.ul` and :mod:`dicomtwist.dimse`, without an event loop, and drops the data sets
that it receives. So the measured time is mostly that of the server, also if one client stands for 64.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from typing import Final

from benchmarks import instances
from benchmarks.harness import MAX_PDU
from dicomtwist.dimse.message_stream import MessageReceiver, encode_command_pdata, encode_pdata, payload_length
from dicomtwist.dimse.messages import CFindRQ, CGetRQ, CGetRSP, CStoreRQ, CStoreRSP, Message, Response
from dicomtwist.presentation import StoragePresentationContexts
from dicomtwist.ul.framing import ControlPDU, Fragment, Framer
from dicomtwist.ul.items import ProposedContext, RoleSelection, UserInformation
from dicomtwist.ul.pdu import AAssociateAC, AAssociateRQ, AReleaseRQ

EXPLICIT, IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
MR: Final = "1.2.840.10008.5.1.4.1.1.4"
FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
_TIMEOUT: Final = 120.0


class WireError(Exception):
    """The server refused something, or the connection was lost."""


def storing() -> bytes:
    """Return an A-ASSOCIATE-RQ that proposes MR Image Storage and C-FIND."""
    return _request([(MR, (EXPLICIT,)), (FIND, (EXPLICIT,))])


def retrieving() -> bytes:
    """Return an A-ASSOCIATE-RQ that proposes what getscu proposes: C-GET, and 120 SOP Classes to receive."""
    classes = [str(context.abstract_syntax) for context in StoragePresentationContexts]
    syntaxes = (EXPLICIT, BIG_ENDIAN, IMPLICIT)
    contexts = [(GET, (EXPLICIT,)), *((uid, syntaxes) for uid in classes)]
    return _request(contexts, [RoleSelection(uid, False, True) for uid in classes])


def _request(contexts: list[tuple[str, tuple[str, ...]]], roles: Iterable[RoleSelection] = ()) -> bytes:
    proposed = tuple(ProposedContext(2 * number + 1, *context) for number, context in enumerate(contexts))
    # All servers but dcmqrscp accept any called AE title.
    user = UserInformation(maximum_length=MAX_PDU, implementation_class_uid="1.2.826.0.1.9", roles=tuple(roles))
    return AAssociateRQ("DCMQRSCP", "BENCHMARK", proposed, user).encode()


def secured(ca: str, key: str, certificate: str) -> ssl.SSLContext:
    """Return the TLS settings of a client, from paths of PEM files."""
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, key)
    return context


class Wire:
    """
    An association, from the request on.

    :param request: the encoded A-ASSOCIATE-RQ.
    :param secure: the settings for TLS; ``None`` for none.
    :raises WireError: it is not accepted.
    :raises OSError: there is no connection.

    :ivar socket: its connection.
    :ivar received: the number of bytes of data sets that were received.
    :ivar data_sets: the number of data sets that were received.
    """

    def __init__(self, port: int, request: bytes, secure: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if secure is not None:
            self.socket = secure.wrap_socket(self.socket, server_hostname="localhost")
        self._whole: list[tuple[int, Message]] = []
        self._current: tuple[int, Message] = (0, Message())
        self.received = self.data_sets = 0
        self._framer = Framer(MAX_PDU)
        self.socket.sendall(request)
        while not (frames := self._read()):
            pass
        answer = frames[0]
        if not isinstance(answer, ControlPDU) or answer.pdu_type != AAssociateAC.pdu_type:
            raise WireError(f"the association is not accepted: {answer}")
        accepted = AAssociateAC.decode(answer.body)
        self._contexts = {one.context_id for one in accepted.presentation_contexts if one.result == 0}
        self._receiver = MessageReceiver(self, self._contexts)
        self._payload = payload_length(accepted.user_information.maximum_length or 0)

    def _read(self) -> list[object]:
        data = self.socket.recv(1 << 18)
        if not data:
            raise WireError("the server closed the connection")
        return list(self._framer.feed(data))

    # --- MessageUser

    def message_received(self, context_id: int, message: Message) -> None:
        """Keep a message until its data set is complete."""
        if message.has_dataset:
            self._current = context_id, message
        else:
            self._whole.append((context_id, message))

    def dataset_fragment_received(self, data: memoryview) -> None:
        """Count and drop a part of a data set."""
        self.received += len(data)

    def dataset_received(self) -> None:
        """Count a data set; its message is complete."""
        self.data_sets += 1
        self._whole.append(self._current)

    # --- messages

    def send(self, context_id: int, message: Message, dataset: bytes = b"") -> None:
        """Send a message."""
        if context_id not in self._contexts:
            raise WireError(f"presentation context {context_id} was not accepted")
        buffers = encode_command_pdata(context_id, message.encode(), self._payload)
        if dataset:
            buffers += encode_pdata(context_id, False, dataset, self._payload)
        self.socket.sendall(b"".join(buffers))

    def receive(self) -> list[tuple[int, Message]]:
        """Wait for one read from the connection, and return the messages that it completed, perhaps none."""
        for frame in self._read():
            if not isinstance(frame, Fragment):
                raise WireError(f"the association ended: {frame}")
            self._receiver.receive(frame)
        whole, self._whole = self._whole, []
        return whole

    def release(self) -> None:
        """Release the association and close the connection."""
        self.socket.sendall(AReleaseRQ().encode())
        while not any(isinstance(frame, ControlPDU) for frame in self._read()):
            pass
        self.socket.close()

    # --- services

    def store(self, number: int, dataset: bytes) -> None:
        """Send a C-STORE-RQ for the instance *number* of :mod:`benchmarks.instances`, on a context of :func:`storing`."""
        uid = instances.instance_uid(number)
        rq = CStoreRQ(message_id=1, affected_sop_class_uid=MR, affected_sop_instance_uid=uid, has_dataset=True)
        self.send(1, rq, dataset)

    def find(self, number: int, study: int) -> None:
        """Send a C-FIND-RQ for the instance *number* in the study *study*, on a context of :func:`storing`."""
        keys = [
            (0x0008, 0x0018, b"UI", instances.instance_uid(number)),
            (0x0008, 0x0052, b"CS", "IMAGE"),
            (0x0020, 0x000D, b"UI", instances.study_uid(study)),
            (0x0020, 0x000E, b"UI", instances.series_uid(study)),
            (0x0020, 0x0013, b"IS", ""),
        ]
        self.send(3, CFindRQ(message_id=1, affected_sop_class_uid=FIND, has_dataset=True), _encoded(keys))

    def get(self, study: str, expected: int) -> None:
        """
        Retrieve a study, on the contexts of :func:`retrieving`.

        :raises WireError: it does not have *expected* instances, or not all of them came.
        """
        before = self.data_sets
        keys = [(0x0008, 0x0052, b"CS", "STUDY"), (0x0020, 0x000D, b"UI", study)]
        self.send(1, CGetRQ(message_id=1, affected_sop_class_uid=GET, has_dataset=True), _encoded(keys))
        while True:
            for context_id, message in self.receive():
                if isinstance(message, CStoreRQ):
                    self.send(context_id, _stored(message))
                elif isinstance(message, CGetRSP) and message.status != 0xFF00:
                    if message.status or self.data_sets - before != expected:
                        raise WireError(f"{self.data_sets - before} of {expected} instances came: {message}")
                    return


def _stored(request: CStoreRQ) -> Response:
    return CStoreRSP(
        message_id_being_responded_to=request.message_id,
        affected_sop_class_uid=request.affected_sop_class_uid,
        affected_sop_instance_uid=request.affected_sop_instance_uid,
    )


def _encoded(keys: list[tuple[int, int, bytes, str]]) -> bytes:
    """Encode an identifier in Explicit VR Little Endian."""
    encoded = b""
    for group, element, vr, text in keys:
        value = text.encode()
        if len(value) % 2:
            value += b"\0" if vr == b"UI" else b" "
        encoded += group.to_bytes(2, "little") + element.to_bytes(2, "little") + vr + len(value).to_bytes(2, "little")
        encoded += value
    return encoded
