"""
The fuzzing targets: functions that are fed with arbitrary bytes, and assert what has to hold for any bytes. The code under test
may only raise the errors that its docstring in dicomtwist names. If there are two ways to a result, both have to lead to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.util import find_spec
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from dicomtwist import AE, Association, AsyncOperationsWindow, build_context, evt
from dicomtwist.datasets import encode_dataset
from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner
from dicomtwist.datasets.layout_cache import Layouts
from dicomtwist.dimse.message_stream import MessageReceiver
from dicomtwist.dimse.messages import Message, decode_message
from dicomtwist.errors import AssociationError, InvalidMessage, InvalidPDU, NoPresentationContext
from dicomtwist.part10 import FileMeta, NotDicomFile, encode_preamble_and_meta, read_file_meta
from dicomtwist.testing import MemoryNetwork
from dicomtwist.ul.connection import ULConnection
from dicomtwist.ul.framing import MAX_ASSOCIATE_LENGTH, ControlPDU, Fragment, Frame, Framer
from dicomtwist.ul.items import ProposedContext, UserInformation
from dicomtwist.ul.pdu import AAssociateRQ, decode_pdu
from dicomtwist.ul.state_machine import State
from fuzz.dicomweb_targets import DICOMWEB_TARGETS
from fuzz.log_watch import LogWatch
from fuzz.web_targets import WEB_TARGETS

VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
UIDS = frozenset((0x00080016, 0x00080018, 0x0020000D, 0x0020000E))

#: The most bytes of a deflated data set that are inflated; more takes time and reaches no other code.
MAX_INFLATED = 4 * 1024

#: A time that is longer than all timeouts of one connection together, in seconds.
FOR_EVER = 1000

Target = Callable[[bytes], None]


def cut(data: bytes, way: int) -> Iterator[bytes]:
    """Cut *data* as reads from a socket might: whole if *way* is 0, else in pieces of *way* bytes."""
    size = way or len(data) or 1
    return (data[place : place + size] for place in range(0, len(data), size))


def pdu(data: bytes) -> None:
    """Decode a PDU: the first byte is its type, the rest its body. Encoding it again and decoding that gives the same PDU."""
    if not data:
        return
    try:
        decoded = decode_pdu(data[0], memoryview(data)[1:])
    except InvalidPDU:
        return
    try:
        again = decoded.encode()
    except ValueError:
        return  # an item of nearly 64 KiB becomes too long by a field that was left out
    assert decode_pdu(again[0], memoryview(again)[6:]) == decoded


def _content(frames: list[Frame]) -> list[object]:
    """Return the content of frames, independent of the cuts between them."""
    content: list[Any] = []
    fresh = True
    for frame in frames:
        if isinstance(frame, Fragment):
            if fresh:
                content.append([frame.context_id, frame.control, b"", False])
            content[-1][2] += bytes(frame.data)
            content[-1][3] = fresh = frame.ends
        elif isinstance(frame, ControlPDU):
            content.append((frame.pdu_type, bytes(frame.body)))
        else:
            content.append((type(frame), frame.reason))
    return content


def framing(data: bytes) -> None:
    """Frame a byte stream. The result does not depend on the cuts, and the framer buffers no more than a PDU may have."""
    whole = _content(Framer(1000).feed(data))
    framer = Framer(1000)
    frames: list[Frame] = []
    for piece in cut(data, 1 + len(data) % 7):
        frames += framer.feed(piece)
        assert len(framer._partial) <= min(len(data), MAX_ASSOCIATE_LENGTH)
    assert _content(frames) == whole


def command(data: bytes) -> None:
    """Decode a command set. Encoding it again and decoding that gives the same message."""
    try:
        message = decode_message(data)
    except InvalidMessage:
        return
    again = decode_message(message.encode())
    assert type(again) is type(message)
    assert not again.tolerated or "UIDs that are not ASCII" in message.tolerated
    for field in fields(message):
        if not field.init:
            continue
        before, after = getattr(message, field.name), getattr(again, field.name)
        assert before == after or not before, field.name  # an empty value equals a missing one


class _Messages:
    """A user of messages that checks the order in which they arrive."""

    def __init__(self) -> None:
        self.in_dataset = False

    def message_received(self, context_id: int, message: Message) -> None:
        assert not self.in_dataset and context_id in (1, 3)
        self.in_dataset = message.has_dataset

    def dataset_fragment_received(self, data: memoryview) -> None:
        assert self.in_dataset and data

    def dataset_received(self) -> None:
        assert self.in_dataset
        self.in_dataset = False


def messages(data: bytes) -> None:
    """Receive P-DATA-TF PDUs, which give messages with their data sets, in order."""
    user = _Messages()
    receiver = MessageReceiver(user, (1, 3), 5000)
    framer = Framer()
    try:
        for piece in cut(data, len(data) % 50):
            for frame in framer.feed(piece):
                if isinstance(frame, Fragment):
                    receiver.receive(frame)
                    assert receiver.mid_message or not user.in_dataset
    except InvalidMessage:
        pass


def header(data: bytes) -> None:
    """Scan the header of a data set; the first byte chooses the transfer syntax. The result does not depend on the cuts."""
    if not data:
        return
    syntax = SYNTAXES[data[0] % len(SYNTAXES)]
    results: list[dict[int, bytes] | None] = []
    for way in (0, 1 + data[0] // 8):
        scanner = HeaderScanner(syntax, UIDS, max_value_length=100, max_inflated=MAX_INFLATED)
        try:
            for piece in cut(data[1:], way):
                if scanner.feed(piece):
                    break
            scanner.finish()
            results.append(dict(scanner.values))
        except HeaderError:
            results.append(None)
        assert all(len(value) <= 100 for value in scanner.values.values())
        assert len(scanner._pending) < 16  # a header, and the beginning of the next
    if syntax == SYNTAXES[2] and None in results:
        return  # errors in deflated bytes after the wanted elements show or not, depending on the cuts
    assert results[0] == results[1], results


def layouts(data: bytes) -> None:
    """
    Learn the layout of a data set. The first byte chooses the transfer syntax, the next twelve say how to change the data set
    that is the rest. If the changed data set has the same layout, a scan finds the same values.
    """
    if len(data) < 14:
        return
    syntax = SYNTAXES[data[0] % len(SYNTAXES)]
    first = data[13:]
    changed = bytearray(first)
    for number in range(1, 13, 3):
        changed[int.from_bytes(data[number : number + 2], "big") % len(first)] ^= data[number + 2]
    known = Layouts(UIDS, 100)
    scanner = HeaderScanner(syntax, UIDS, max_value_length=100, sequences=True, max_inflated=MAX_INFLATED)
    try:
        if not scanner.feed(first):
            scanner.finish()
    except HeaderError:
        return
    known.learn(first, syntax, scanner.values)
    for candidate in (first, bytes(changed), bytes(changed[: len(changed) // 2])):
        for whole in (True, False):
            values = known.values(candidate, syntax, whole=whole)
            if values is None:
                continue
            scanner = HeaderScanner(syntax, UIDS, max_value_length=100, sequences=True)
            if not scanner.feed(candidate):
                assert whole, "it may go on"
                scanner.finish()
            assert values == scanner.values, (values, scanner.values)


def part10(data: bytes) -> None:
    """Read the File Meta Information of a Part 10 file, and encode it again."""
    try:
        meta, start = read_file_meta(BytesIO(data))
    except NotDicomFile:
        return
    assert 132 <= start <= len(data)
    assert isinstance(meta, FileMeta)
    try:
        again = encode_preamble_and_meta(meta)
    except ValueError:
        return
    assert read_file_meta(BytesIO(again))[0].transfer_syntax_uid == meta.transfer_syntax_uid


def state_machine(data: bytes) -> None:
    """Drive the sans-I/O connection with calls of the user and with received bytes; one byte chooses each."""
    if not data:
        return
    connection = ULConnection(requestor=bool(data[0] & 1), max_length=1000)
    if connection.requestor:
        connection.associate(AAssociateRQ("A", "B"))
    connection.connection_made()
    position = 1
    while position + 1 < len(data):
        what, length = data[position], data[position + 1]
        position += 2
        if what & 0x80:
            connection.receive_data(data[position : position + length])
            position += length
        elif what & 1 and connection.state is State.STA6:
            connection.release()
        elif what & 2 and connection.state in (State.STA8, State.STA9, State.STA12):
            connection.release_response()
        elif what & 4:
            connection.abort()
        elif what & 8:
            connection.artim_expired()
        elif what & 16:
            connection.protocol_error(6, "x")
        sent = connection.data_to_send()
        while sent:
            end = 6 + int.from_bytes(sent[2:6], "big")
            decode_pdu(sent[0], memoryview(sent)[6:end])
            sent = sent[end:]
    connection.connection_lost()
    assert connection.state is State.STA1


def _stored(event: evt.StoreEvent) -> int:
    try:
        repr(event.dataset)
    except Exception:
        # The error of a data set that cannot be decoded, or whatever pydicom raises when values are accessed.
        return 0xC000
    return 0


@evt.streaming
async def _streamed(event: evt.StoreEvent) -> int:
    try:
        async for piece in event.stream:
            len(piece)
    except AssociationError:
        pass
    return 0


def make_acceptor(network: MemoryNetwork) -> AE:
    """Return an AE that listens at 104, with a handler of each kind: buffered and streaming."""
    scp = AE("SCP", reactor=network)
    scp.supported_contexts = [build_context(VERIFICATION), build_context(CT, SYNTAXES), build_context(MR, SYNTAXES)]
    window = (evt.EVT_ASYNC_OPS, lambda event: (3, 3))
    other = scp.host(ae_title="STREAMS", evt_handlers=[(evt.EVT_C_STORE, _streamed), window])
    scp.start_server(104, evt_handlers=[(evt.EVT_C_STORE, _stored), window], others=[other])
    return scp


#: The association requests that precede the bytes of a target.
REQUEST = tuple(
    AAssociateRQ(
        title,
        "FUZZ",
        tuple(ProposedContext(2 * number + 1, uid, SYNTAXES) for number, uid in enumerate((VERIFICATION, CT, MR))),
        UserInformation(maximum_length=16384, async_operations=AsyncOperationsWindow(2, 2)),
    ).encode()
    for title in ("SCP", "STREAMS")
)


def _run_out(network: MemoryNetwork, *aes: AE) -> None:
    """Let all timeouts expire, and assert that no connection, timer, thread or association is left."""
    network.advance(FOR_EVER)
    for connection in network.connections:
        connection.client.loseConnection()
    network.advance(FOR_EVER)
    assert not [connection for connection in network.connections if connection.is_open], "a connection is open"
    assert not network.getDelayedCalls(), network.getDelayedCalls()
    assert not network.pools, "threads are left"
    assert not any(ae._associations for ae in aes), "an association is left"


def acceptor(data: bytes) -> None:
    """Receive bytes as an acceptor. The first byte chooses whether an association exists, its handler, and the cuts."""
    if not data:
        return
    with LogWatch() as watch:
        network = MemoryNetwork()
        scp = make_acceptor(network)
        peer = network.scripted_client(104)
        way = data[0]
        if way & 1:
            peer.send(REQUEST[way >> 1 & 1])
        for piece in cut(data[1:], (way >> 2) * 3):
            if peer.closed is None:
                peer.send(piece)
            if way & 0x80:
                network.advance(1)
        _run_out(network, scp)
        watch.check()


def requestor(data: bytes) -> None:
    """Receive bytes as a requestor, which sends a C-ECHO and a C-STORE when it can; the first byte is as for an acceptor."""
    if not data:
        return
    with LogWatch() as watch:
        network = MemoryNetwork()
        scu = AE("SCU", reactor=network)
        scu.requested_contexts = [build_context(VERIFICATION), build_context(CT, ExplicitVRLittleEndian)]
        peer = network.scripted_server(105)
        ended: list[object] = []

        async def converse() -> None:
            try:
                assoc: Association = await scu.associate("127.0.0.1", 105)
                echo: Deferred[Any] = assoc.send_c_echo()
                echo.addErrback(lambda reason: reason.trap(AssociationError, NoPresentationContext))
                await assoc.send_c_store(BytesIO(INSTANCE))
                await echo
                await assoc.release()
            except (AssociationError, NoPresentationContext) as error:
                ended.append(error)

        conversation = Deferred.fromCoroutine(converse())
        conversation.addBoth(ended.append)
        network.flush()
        way = data[0]
        if way & 1:
            peer.accept()
        for piece in cut(data[1:], (way >> 2) * 3):
            if peer.closed is None:
                peer.send(piece)
            if way & 0x80:
                network.advance(1)
        _run_out(network, scu)
        assert ended, "somebody still waits"
        if isinstance(ended[-1], Failure):
            ended[-1].raiseException()
        watch.check()


def _instance() -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT, "1.2.3.4"
    meta = encode_preamble_and_meta(FileMeta(CT, "1.2.3.4", SYNTAXES[1], "1.2.3"))
    return meta + encode_dataset(dataset, SYNTAXES[1])


#: The instance that the requestor sends.
INSTANCE = _instance()

TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (pdu, framing, command, messages, header, layouts, part10, state_machine, acceptor, requestor)
}
TARGETS.update(DICOMWEB_TARGETS)
TARGETS.update(WEB_TARGETS)
if find_spec("sqlalchemy") is not None:
    from fuzz.archive_targets import ARCHIVE_TARGETS

    TARGETS.update(ARCHIVE_TARGETS)
