"""
What we write, as Wireshark's dissector of DICOM reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dicomtwist import (
    AllStoragePresentationContexts,
    AssociationAborted,
    AssociationRejected,
    AsyncOperationsWindow,
    SOPClassCommonExtended,
    SOPClassExtended,
    Status,
    UserIdentity,
    build_context,
    build_role,
    evt,
)
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES
from tests.interop.common import (
    BIG_ENDIAN,
    CT,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    InteropTestCase,
    Store,
)
from tests.peers import DicomFile, dicom_files, one_per_transfer_syntax, require, run, tool

#: A TCP segment of the capture, in bytes: IP has 16 bits for a length.
SEGMENT = 32768

#: What the dissector says where a length does not add up.
COMPLAINTS = ("_ws.malformed", "_ws.expert", "dicom.pdv.len.invalid", "dicom.assoc.item.len.invalid")

#: What it remarks upon where it is as it should be.
ENDINGS = ("dicom.assoc.reject", "dicom.assoc.abort")


@dataclass
class Transcript:
    """
    What went over one connection, as its requestor saw it.

    :ivar pieces: (sent by the requestor, bytes), in order.
    """

    pieces: list[tuple[bool, bytes]] = field(default_factory=list)

    @property
    def handlers(self) -> list[Any]:
        """The handlers that write it."""
        return [
            (evt.EVT_DATA_SENT, lambda event: self.pieces.append((True, bytes(event.data)))),
            (evt.EVT_DATA_RECV, lambda event: self.pieces.append((False, bytes(event.data)))),
        ]

    def hexdump(self) -> Iterator[str]:
        """The lines that text2pcap wants."""
        for sent, data in self.pieces:
            for start in range(0, len(data), SEGMENT):
                yield "O" if sent else "I"
                segment = data[start : start + SEGMENT]
                for offset in range(0, len(segment), 16):
                    yield f"{offset:06x} {segment[offset : offset + 16].hex(' ')}"


def walk(pairs: Any) -> Iterator[tuple[str, Any]]:
    """All names and values in what tshark tells, at any depth. A name may occur more than once."""
    if isinstance(pairs, list):
        for entry in pairs:
            if isinstance(entry, tuple):
                yield entry
                yield from walk(entry[1])
            else:
                yield from walk(entry)


#: The transfer syntaxes in whose contexts the dissector reads messages. In others it takes command sets for malformed,
#: those of DCMTK as well.
READ = (IMPLICIT, EXPLICIT, BIG_ENDIAN)


class WireTests(InteropTestCase):
    """
    Nothing that either side of ours writes is malformed.
    """

    def setUp(self) -> None:
        require("tshark", "text2pcap")

    async def _dissect(self, transcript: Transcript) -> list[tuple[str, Any]]:
        """What the DICOM layers of all packets hold."""
        text, capture = Path(self.mktemp()), Path(self.mktemp())
        text.write_text("\n".join(transcript.hexdump()) + "\n")
        result = await run(tool("text2pcap"), "-q", "-D", "-4", "10.0.0.1,10.0.0.2", "-T", "40000,104", text, capture)
        self.assertEqual(result.code, 0, result.text)
        result = await run(tool("tshark"), "-r", capture, "-Y", "dicom", "-T", "json", timeout=120)
        self.assertEqual(result.code, 0, result.text)
        packets = json.loads(result.stdout, object_pairs_hook=lambda pairs: pairs)
        found: list[tuple[str, Any]] = []
        for name, layer in walk(packets):
            if name in ("dicom", "_ws.malformed"):
                found += [(name, layer), *walk(layer)]
        return found

    async def _check(self, transcript: Transcript, *remarks: str) -> dict[str, list[str]]:
        """Check that nothing is wrong, besides some remarks; return the values of each name."""
        fields: dict[str, list[str]] = {}
        for name, value in await self._dissect(transcript):
            if name == "_ws.expert" and value[0][0] in remarks:
                continue
            if not name.startswith("_ws.expert."):
                self.assertFalse(name.startswith(COMPLAINTS), f"{name}: {value}")
            if isinstance(value, str):
                fields.setdefault(name, []).append(value)
        return fields

    async def _messages(self, files: list[DicomFile], ours: int, theirs: int) -> dict[str, list[str]]:
        transcript = Transcript()
        status = Status(0xA900, "C-STORE", "no such patient", (0x00100020,))
        server = await self.serve((evt.EVT_C_STORE, lambda event: status), maximum_pdu_size=ours)
        proposals = dict.fromkeys((file.sop_class, file.transfer_syntax) for file in files)
        ae = self.requestor((VERIFICATION, EXPLICIT), *proposals, maximum_pdu_size=theirs)
        async with await ae.associate("127.0.0.1", server.port, evt_handlers=transcript.handlers) as assoc:
            self.assertEqual(await assoc.send_c_echo(), 0)
            for file in files:
                self.assertEqual(await assoc.send_c_store(file.path), 0xA900)
        fields = await self._check(transcript)
        self.assertEqual(fields["dicom.max_pdu_len"], [str(theirs), str(ours)])
        lengths = [int(length) for length in fields["dicom.pdv.len"]]
        self.assertEqual([length for length in lengths if length % 2], [])
        if ours:
            self.assertLessEqual(max(lengths), ours - 4)
        # Of each message a command set, and of each C-STORE request a data set as well.
        flags = fields["dicom.pdv.flags"]
        self.assertEqual((flags.count("0x03"), flags.count("0x02")), (2 + 2 * len(files), len(files)))
        self.assertEqual({int(size) < 8 for size in fields["dicom.pdu.len"][2:-2]}, {False})
        self.assertEqual(fields["dicom.pdu.type"][-2:], ["0x05", "0x06"])
        return fields

    async def test_messages(self) -> None:
        """
        C-ECHO and C-STORE in PDUs of several sizes, with failures and what is said of them.
        """
        files = [file for file in one_per_transfer_syntax().values() if file.transfer_syntax in READ]
        self.assertEqual(len(files), 3)
        for ours, theirs in ((131072, 131072), (4096, 1024), (0, 0)):
            fields = await self._messages(files, ours, theirs)
            said = " ".join(fields)
            for file in files:
                self.assertRegex(said, rf"Affected SOP Instance UID +{file.sop_instance}")
            self.assertRegex(said, r"\(0000,0900\) +2 Status +.*0xa900")
            self.assertRegex(said, r"\(0000,0902\) +16 Error Comment +no such patient")

    async def test_negotiation(self) -> None:
        """
        128 presentation contexts with every transfer syntax, and every item of extended negotiation.
        """
        transcript = Transcript()
        contexts = [context.copy() for context in AllStoragePresentationContexts]
        for context in contexts:
            context.transfer_syntax = list(ALL_TRANSFER_SYNTAXES)
            context.scu_role = context.scp_role = True
        server = await self.serve(
            (evt.EVT_USER_ID, lambda event: (True, b"response")),
            (evt.EVT_SOP_EXTENDED, lambda event: event.app_info),
            (evt.EVT_ASYNC_OPS, lambda event: (3, 4)),
            contexts=contexts,
        )
        items = [
            build_role(CT, scu_role=True, scp_role=True),
            build_role("1.2.840.10008.5.1.4.1.1.4", scp_role=True),
            AsyncOperationsWindow(5, 6),
            SOPClassExtended(CT, b"\1\0\1"),
            SOPClassCommonExtended(CT, "1.2.840.10008.4.2", ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7")),
            UserIdentity(2, b"alice", b"secret", response_requested=True),
        ]
        ae = self.requestor()
        proposed = [build_context("1.2.3"), build_context(CT, "1.2.840.10008.1.2.6.1"), *contexts[:126]]
        async with await ae.associate(
            "127.0.0.1", server.port, contexts=proposed, ext_neg=items, evt_handlers=transcript.handlers
        ):
            pass
        fields = await self._check(transcript)
        self.assertEqual(fields["dicom.pdu.type"], ["0x01", "0x02", "0x05", "0x06"])
        self.assertEqual(fields["dicom.pctx.id"], [f"0x{number:02x}" for number in range(1, 256, 2)] * 2)
        self.assertEqual(fields["dicom.pctx.result"], ["0x03", "0x04", *["0x00"] * 126])
        self.assertEqual(fields["dicom.userinfo.asyncneg.maxnumopsinv"], ["5", "3"])
        self.assertEqual(fields["dicom.userinfo.asyncneg.maxnumopsper"], ["6", "4"])
        self.assertEqual(fields["dicom.userinfo.rolesel.scurole"], ["0x01", "0x00"] * 2)
        self.assertEqual(fields["dicom.userinfo.rolesel.scprole"], ["0x01", "0x01"] * 2)
        self.assertEqual([CT in uid for uid in fields["dicom.userinfo.extneg.sopclassuid"]], [True, True])
        self.assertEqual(fields["dicom.userinfo.user_identify.primary_field"], ["alice"])
        self.assertEqual(fields["dicom.userinfo.user_identify.secondary_field"], ["secret"])
        # Common extended negotiation and the identity's response, which the dissector leaves as they are.
        common, response = (bytes.fromhex(data.replace(":", "")) for data in fields["dicom.userinfo.data"])
        self.assertEqual(common.count(b"1.2.840.10008."), 4)
        # A name and its password are confirmed with an empty one.
        self.assertEqual(response, b"\0\0")

    async def test_user_identity_response(self) -> None:
        """
        The answer to a ticket, which the dissector leaves as it is.
        """
        transcript = Transcript()
        server = await self.serve((evt.EVT_USER_ID, lambda event: (True, b"response")))
        identity = UserIdentity(3, b"ticket", response_requested=True)
        async with await self.requestor().associate(
            "127.0.0.1", server.port, ext_neg=[identity], evt_handlers=transcript.handlers
        ):
            pass
        fields = await self._check(transcript)
        (response,) = (bytes.fromhex(data.replace(":", "")) for data in fields["dicom.userinfo.data"])
        self.assertEqual(response, b"\0\x08response")

    async def test_rejection(self) -> None:
        """
        A rejection, with its three codes.
        """
        transcript = Transcript()
        server = await self.serve(require_called_aet=True)
        associating = self.requestor().associate(
            "127.0.0.1", server.port, ae_title="SOMEBODY", evt_handlers=transcript.handlers
        )
        await self.assert_fails(associating, AssociationRejected)
        fields = await self._check(transcript, *ENDINGS)
        codes = [fields[f"dicom.assoc.reject.{name}"] for name in ("result", "source", "reason")]
        self.assertEqual(codes, [["1"], ["1"], ["7"]])

    async def test_aborts(self) -> None:
        """
        An abort by the user, and one by the provider.
        """
        server = await self.serve((evt.EVT_C_STORE, Store()))
        transcript = Transcript()
        assoc = await self.requestor().associate("127.0.0.1", server.port, evt_handlers=transcript.handlers)
        assoc.abort()
        await assoc.when_ended()
        fields = await self._check(transcript, *ENDINGS)
        self.assertEqual((fields["dicom.assoc.abort.source"], fields["dicom.assoc.abort.reason"]), (["0"], ["0"]))

        (file,) = (file for file in dicom_files() if file.name.endswith("CT_small.dcm"))
        server.factory.hosts[0].settings.maximum_object_size = 1000
        transcript = Transcript()
        ae = self.requestor((file.sop_class, EXPLICIT))
        assoc = await ae.associate("127.0.0.1", server.port, evt_handlers=transcript.handlers)
        error = await self.assert_fails(assoc.send_c_store(file.path), AssociationAborted)
        self.assertTrue(error.by_peer)
        fields = await self._check(transcript, *ENDINGS)
        self.assertEqual((fields["dicom.assoc.abort.source"], fields["dicom.assoc.abort.reason"]), (["2"], ["6"]))
