"""
The inputs from which the fuzzer starts: conversations of two AEs, recorded on a network in memory, and parts of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from io import BytesIO

from pydicom import Dataset
from pydicom.sequence import Sequence
from twisted.internet.defer import Deferred, gatherResults

from dicomtwist import AE, AsyncOperationsWindow, UserIdentity, build_role, evt
from dicomtwist.datasets import encode_dataset
from dicomtwist.dimse.messages import MESSAGES, Message
from dicomtwist.errors import AssociationError
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.testing import MemoryNetwork
from dicomtwist.ul.items import SOPClassCommonExtended, SOPClassExtended
from dicomtwist.ul.pdu import PDU_HEADER
from fuzz.dicomweb_targets import dicomweb_seeds
from fuzz.targets import CT, MR, SYNTAXES, TARGETS, VERIFICATION, make_acceptor
from fuzz.web_targets import web_seeds


def instance(sop_class: str = CT, pixels: int = 300) -> Dataset:
    """Return a data set with the elements that dicomtwist reads, and with nested sequences."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3.5"
    inner = Dataset()
    inner.CodeValue = "A"
    item.PurposeOfReferenceCodeSequence = Sequence([inner])
    dataset.ReferencedImageSequence = Sequence([item, Dataset()])
    dataset["ReferencedImageSequence"].is_undefined_length = True
    dataset.PatientName = "Nobody"
    dataset.add_new(0x7FE00010, "OW", bytes(pixels))
    return dataset


class Recorder:
    """
    Records both directions of the conversations of an AE.

    :ivar sent: the bytes that the AE sent, one item for each conversation.
    :ivar received: the bytes that it received, likewise.
    """

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.received: list[bytes] = []

    def handlers(self) -> list[evt.HandlerTuple]:
        """Begin a new conversation, and return the handlers that record it."""
        self.sent.append(b"")
        self.received.append(b"")
        return [(evt.EVT_DATA_SENT, self._sent), (evt.EVT_DATA_RECV, self._received)]

    def _sent(self, event: evt.Event) -> None:
        self.sent[-1] += event.data

    def _received(self, event: evt.Event) -> None:
        self.received[-1] += event.data


async def _converse(network: MemoryNetwork, recorder: Recorder) -> None:
    scu = AE("SCU", reactor=network)
    for syntax in SYNTAXES:
        scu.add_requested_context(CT, syntax)
    scu.add_requested_context(VERIFICATION)
    scu.add_requested_context(MR, SYNTAXES[1])
    negotiation = [
        AsyncOperationsWindow(3, 3),
        build_role(CT, scu_role=True, scp_role=True),
        SOPClassExtended(CT, b"\1\2\3"),
        SOPClassCommonExtended(CT, "1.2.840.10008.4.2", (MR,)),
        UserIdentity(2, b"name", b"word", True),
    ]
    for title, ext_neg, size in (("SCP", [], 300), ("STREAMS", negotiation, 3000), ("NOBODY", negotiation[:1], 40000)):
        assoc = await scu.associate("127.0.0.1", 104, ae_title=title, ext_neg=ext_neg, evt_handlers=recorder.handlers())
        operations: list[Deferred[object]] = [assoc.send_c_echo()]  # type: ignore[list-item]
        for sop_class, syntax in [(CT, syntax) for syntax in SYNTAXES] + [(MR, SYNTAXES[1])]:
            meta = encode_preamble_and_meta(FileMeta(sop_class, "1.2.3.4", syntax, "1.2.3"))
            file = BytesIO(meta + encode_dataset(instance(sop_class, size), syntax))
            operations.append(assoc.send_c_store(file))  # type: ignore[arg-type]
        await gatherResults(operations)
        await assoc.release()
    assoc = await scu.associate("127.0.0.1", 104, evt_handlers=recorder.handlers())
    assoc.abort()
    await assoc.when_ended()
    scu.ae_title = "UNWELCOME"
    try:
        await scu.associate("127.0.0.1", 104, evt_handlers=recorder.handlers())
    except AssociationError:
        pass


def record() -> Recorder:
    """Return the conversations of a requestor with an acceptor."""
    network, recorder = MemoryNetwork(), Recorder()
    scp = make_acceptor(network)
    scp.settings.require_calling_aet = ["SCU"]
    network.result_of(_converse(network, recorder))
    return recorder


def pdus(stream: bytes) -> list[bytes]:
    """Cut a stream into its PDUs."""
    found = []
    while stream:
        end = PDU_HEADER.size + PDU_HEADER.unpack_from(stream)[1]
        found.append(stream[:end])
        stream = stream[end:]
    return found


def _every_message() -> Iterable[Message]:
    for cls in MESSAGES.values():
        message = cls()
        for name, value in (
            ("affected_sop_class_uid", CT),
            ("requested_sop_class_uid", CT),
            ("affected_sop_instance_uid", "1.2.3"),
            ("attribute_identifier_list", (0x00100010, 0x00080018)),
            ("move_destination", "THERE"),
            ("error_comment", "why"),
            ("number_of_remaining_suboperations", 3),
        ):
            if hasattr(message, name):
                setattr(message, name, value)
        yield message


def seeds() -> dict[str, list[bytes]]:
    """Return the seeds of each target."""
    recorder = record()
    conversations = recorder.sent + recorder.received
    whole = [pdu for stream in conversations for pdu in pdus(stream)]
    control = {pdu for pdu in whole if pdu[0] != 4}
    commands = [message.encode() for message in _every_message()]
    data = {syntax: encode_dataset(instance(), syntax) for syntax in SYNTAXES}
    small = {syntax: encode_dataset(instance(pixels=20), syntax) for syntax in SYNTAXES}
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    found = {
        "pdu": [pdu[:1] + pdu[6:] for pdu in sorted(control)],
        "framing": conversations,
        "command": commands,
        "messages": [
            b"".join(pdu for pdu in pdus(stream) if pdu[0] == 4)
            for stream in conversations
            if b"\4\0" in {pdu[:2] for pdu in pdus(stream)}
        ],
        "layouts": [bytes((number,)) + bytes(12) + encoded for number, encoded in enumerate(small.values())],
        "header": [bytes((number + 4 * 8,)) + encoded for number, encoded in enumerate(small.values())]
        + [b"\2" + bomb.compress(bytes(1 << 14)) + bomb.flush()],
        "part10": [
            encode_preamble_and_meta(FileMeta(CT, "1.2.3.4", syntax, "1.2.3", "V", "SOURCE")) + encoded
            for syntax, encoded in data.items()
        ],
        "state_machine": [
            bytes((role,)) + b"".join(bytes((0x80, len(pdu))) + pdu for pdu in pdus(stream) if len(pdu) < 256) + ends
            for role, streams in ((0, recorder.sent), (1, recorder.received))
            for stream in streams
            for ends in (b"", b"\1\0", b"\2\0", b"\4\0", b"\10\0", b"\20\0")
        ],
        "acceptor": [bytes((way,)) + stream for stream in recorder.sent for way in (0, 4 * 7)]
        + [bytes((way,)) + b"".join(pdus(stream)[1:]) for stream in recorder.sent for way in (1, 3, 0x81)],
        "requestor": [bytes((way,)) + stream for stream in recorder.received for way in (0, 4 * 7)]
        + [bytes((way,)) + b"".join(pdus(stream)[1:]) for stream in recorder.received for way in (1, 0x81)],
    }
    found.update(dicomweb_seeds(instance(pixels=20)))
    found.update(web_seeds())
    if "query" in TARGETS:
        from fuzz.archive_targets import archive_seeds

        found.update(archive_seeds())
    return found
