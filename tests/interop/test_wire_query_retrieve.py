"""
C-FIND, C-GET and C-MOVE, as Wireshark's dissector of DICOM decodes them.
"""

from __future__ import annotations

from dicomtwist import build_context, build_role, evt
from tests.interop.archives import (
    STUDY_FIND,
    STUDY_GET,
    STUDY_MOVE,
    Archive,
    ArchiveTestCase,
    Received,
    keys,
    study,
)
from tests.interop.common import EXPLICIT
from tests.interop.wire import READ, Transcript, WireTestCase


class QueryRetrieveWireTests(WireTestCase, ArchiveTestCase):
    """
    Complete conversations between two AEs of dicomtwist.
    """

    def check_messages(self, fields: dict[str, list[str]], *commands: str) -> str:
        """Check that messages are complete, and that these commands are among them; return all text."""
        lengths = [int(length) for length in fields["dicom.pdv.len"]]
        self.assertEqual([length for length in lengths if length % 2], [])
        said = "\n".join(fields)
        for command in commands:
            self.assertIn(command, said)
        return said

    async def test_find(self) -> None:
        """
        Matches in each transfer syntax, and a C-CANCEL.
        """
        archive = Archive(study(50))
        server = await self.serve_archive(archive)
        for syntax in READ:
            transcript = Transcript()
            ae = self.requestor((STUDY_FIND, syntax))
            async with await ae.associate("127.0.0.1", server.port, evt_handlers=transcript.handlers) as assoc:
                found = await assoc.send_c_find(keys("IMAGE", SOPInstanceUID="", PatientName=""), STUDY_FIND).collect()
                self.assertEqual(len(found), 50)
                answers = assoc.send_c_find(keys("IMAGE", SOPInstanceUID=""), STUDY_FIND)
                answers.cancel()
                async for _ in answers:
                    pass
            fields = await self.check(transcript)
            said = self.check_messages(fields, "C-FIND-RQ", "C-FIND-RSP", "C-CANCEL-RQ")
            self.assertIn(study(50)[0].sop_instance, said)
            # A request of each, with its data set, and a pending response for each match.
            self.assertGreaterEqual(fields["dicom.pdv.flags"].count("0x02"), 52)

    async def test_get(self) -> None:
        """
        Responses alternate with C-STORE requests; one of these is refused, so a list of failed instances follows.
        """
        refused = study(7)[3].sop_instance
        received = Received(**{refused: 0xA700})
        server = await self.serve_archive(Archive(study(7)), maximum_pdu_size=4096)
        transcript = Transcript()
        ae = self.requestor()
        async with await ae.associate(
            "127.0.0.1",
            server.port,
            contexts=[build_context(STUDY_GET, EXPLICIT), build_context(study(7)[0].sop_class, EXPLICIT)],
            ext_neg=[build_role(study(7)[0].sop_class, scp_role=True)],
            evt_handlers=[*transcript.handlers, (evt.EVT_C_STORE, received)],
        ) as assoc:
            identifier = keys("STUDY", StudyInstanceUID=study(7)[0].study)
            result = await assoc.send_c_get(identifier, STUDY_GET).when_done()
            self.assertEqual(result.failed_instances, [refused])
        self.assert_received(received, study(7))
        fields = await self.check(transcript)
        said = self.check_messages(fields, "C-GET-RQ", "C-GET-RSP", "C-STORE-RQ", "C-STORE-RSP")
        self.assertRegex(said, r"\(0000,1022\) +2 Number of Failed Sub-?operations +.*1")
        self.assertRegex(said, rf"\(0008,0058\).*{refused}")

    async def test_move(self) -> None:
        """
        Both associations are checked: that of the C-MOVE, and that with the destination.
        """
        received, stores, moves = Received(), Transcript(), Transcript()
        # At the destination the directions are reversed.
        target = await self.serve((evt.EVT_C_STORE, received), *stores.acceptor_handlers)
        server = await self.serve_archive(Archive(study(7), {"TARGET": ("127.0.0.1", target.port)}))
        ae = self.requestor((STUDY_MOVE, EXPLICIT))
        async with await ae.associate("127.0.0.1", server.port, evt_handlers=moves.handlers) as assoc:
            identifier = keys("STUDY", StudyInstanceUID=study(7)[0].study)
            result = await assoc.send_c_move(identifier, "TARGET", STUDY_MOVE).when_done()
            self.assertEqual(result.suboperations.completed, 7)
        self.assert_received(received, study(7))
        said = self.check_messages(await self.check(moves), "C-MOVE-RQ", "C-MOVE-RSP")
        self.assertRegex(said, r"\(0000,0600\) +6 Move Destination +TARGET")
        said = self.check_messages(await self.check(stores), "C-STORE-RQ", "C-STORE-RSP")
        self.assertRegex(said, r"\(0000,1030\) +8 Move Originator.* +TWISTSCU")
