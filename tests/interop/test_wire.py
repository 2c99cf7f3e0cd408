"""
The bytes that dicomtwist writes, as Wireshark's dissector of DICOM decodes them.
"""

from __future__ import annotations

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
    CT,
    EXPLICIT,
    VERIFICATION,
    Store,
)
from tests.interop.wire import ENDINGS, READ, Transcript, WireTestCase
from tests.peers import DicomFile, dicom_files, one_per_transfer_syntax


class WireTests(WireTestCase):
    """
    Both sides are dicomtwist, and none of their bytes are malformed.
    """

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
        fields = await self.check(transcript)
        self.assertEqual(fields["dicom.max_pdu_len"], [str(theirs), str(ours)])
        lengths = [int(length) for length in fields["dicom.pdv.len"]]
        self.assertEqual([length for length in lengths if length % 2], [])
        if ours:
            self.assertLessEqual(max(lengths), ours - 4)
        # Each message has a command set, and each C-STORE request also a data set.
        flags = fields["dicom.pdv.flags"]
        self.assertEqual((flags.count("0x03"), flags.count("0x02")), (2 + 2 * len(files), len(files)))
        self.assertEqual({int(size) < 8 for size in fields["dicom.pdu.len"][2:-2]}, {False})
        self.assertEqual(fields["dicom.pdu.type"][-2:], ["0x05", "0x06"])
        return fields

    async def test_messages(self) -> None:
        """
        C-ECHO and C-STORE in PDUs of several sizes, with failures and their comments.
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
        fields = await self.check(transcript)
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
        # Common extended negotiation and the response to the user identity, which the dissector does not decode.
        common, response = (bytes.fromhex(data.replace(":", "")) for data in fields["dicom.userinfo.data"])
        self.assertEqual(common.count(b"1.2.840.10008."), 4)
        # A user name with its passcode is confirmed with an empty response.
        self.assertEqual(response, b"\0\0")

    async def test_user_identity_response(self) -> None:
        """
        The response to a ticket, which the dissector does not decode.
        """
        transcript = Transcript()
        server = await self.serve((evt.EVT_USER_ID, lambda event: (True, b"response")))
        identity = UserIdentity(3, b"ticket", response_requested=True)
        async with await self.requestor().associate(
            "127.0.0.1", server.port, ext_neg=[identity], evt_handlers=transcript.handlers
        ):
            pass
        fields = await self.check(transcript)
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
        fields = await self.check(transcript, *ENDINGS)
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
        fields = await self.check(transcript, *ENDINGS)
        self.assertEqual((fields["dicom.assoc.abort.source"], fields["dicom.assoc.abort.reason"]), (["0"], ["0"]))

        (file,) = (file for file in dicom_files() if file.name.endswith("CT_small.dcm"))
        server.factory.hosts[0].settings.maximum_object_size = 1000
        transcript = Transcript()
        ae = self.requestor((file.sop_class, EXPLICIT))
        assoc = await ae.associate("127.0.0.1", server.port, evt_handlers=transcript.handlers)
        error = await self.assert_fails(assoc.send_c_store(file.path), AssociationAborted)
        self.assertTrue(error.by_peer)
        fields = await self.check(transcript, *ENDINGS)
        self.assertEqual((fields["dicom.assoc.abort.source"], fields["dicom.assoc.abort.reason"]), (["2"], ["6"]))
