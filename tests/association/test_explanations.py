"""The texts of errors about presentation contexts name SOP Classes and transfer syntaxes, and say what to add."""

from __future__ import annotations

from typing import Any

import pydicom.uid
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

import dicomtwist.sop_class
from dicomtwist import (
    STORAGE_TRANSFER_SYNTAXES,
    AllStoragePresentationContexts,
    Association,
    NoAcceptedContexts,
    NoPresentationContext,
    StoragePresentationContexts,
    build_context,
    build_contexts,
    evt,
)
from dicomtwist.association.explanations import Proposal, explain_missing_context, syntax_names
from dicomtwist.presentation import PresentationContext
from dicomtwist.sop_class import MRImageStorage, Verification
from tests.memory import MemoryTestCase

JPEG_LS = str(get_testdata_file("MR_small_jpeg_ls_lossless.dcm"))


class CompressedImages(MemoryTestCase):
    """A JPEG-LS image, from the first attempt to the one that works."""

    def setUp(self) -> None:
        super().setUp()
        self.stored: list[str] = []

    def store(self, event: Any) -> int:
        self.stored.append(event.context.transfer_syntax)
        return 0x0000

    def error(self, association: Association | None = None) -> str:
        """Return the error of sending the image on *association*, which is made if it is not given."""
        association = association or self.associate()
        sending = association.send_c_store(JPEG_LS)
        self.network.flush()
        return str(self.failureResultOf(sending, NoPresentationContext).value)

    def test_followed_to_the_end(self) -> None:
        """The client does what the errors say, and so does the server."""
        self.scp.supported_contexts = AllStoragePresentationContexts
        self.listen((evt.EVT_C_STORE, self.store))
        self.scu.requested_contexts = [build_context(Verification), *StoragePresentationContexts][:120]
        self.assertEqual(
            self.error(),
            "no accepted presentation context for MR Image Storage with JPEG-LS Lossless Image Compression as SCU: the accepted"
            " transfer syntax is Implicit VR Little Endian. Propose one of its own:"
            " ae.add_requested_context(MRImageStorage, JPEGLSLossless)",
        )
        names = {**vars(pydicom.uid), "MRImageStorage": dicomtwist.sop_class.MRImageStorage, "ae": self.scu}
        eval("ae.add_requested_context(MRImageStorage, JPEGLSLossless)", names)
        self.assertEqual(
            self.error(),
            "the peer did not accept a presentation context for MR Image Storage with JPEG-LS Lossless Image Compression:"
            " Transfer Syntax(es) Not Supported; it accepted Implicit VR Little Endian",
        )
        self.scp.supported_contexts = build_contexts(AllStoragePresentationContexts, STORAGE_TRANSFER_SYNTAXES)
        self.assertEqual(self.network.result_of(self.associate().send_c_store(JPEG_LS)), 0x0000)
        self.assertEqual(self.stored, [JPEGLSLossless])

    def test_nothing_proposed(self) -> None:
        self.listen()
        self.assertEqual(
            self.error(),
            "no presentation context was proposed for MR Image Storage: add it to the requested contexts,"
            " ae.add_requested_context(MRImageStorage, JPEGLSLossless)",
        )

    def test_nothing_accepted(self) -> None:
        """The error of the association names what the peer does not take."""
        self.scp.supported_contexts = [build_context(MRImageStorage)]
        self.listen()
        self.scu.requested_contexts = [
            build_context(MRImageStorage, [JPEGLSLossless]),
            build_context(MRImageStorage, STORAGE_TRANSFER_SYNTAXES[4:]),
        ]
        error = str(self.failureResultOf(self.asking(), NoAcceptedContexts).value)
        self.assertIn("with JPEG-LS Lossless Image Compression: Transfer Syntax(es) Not Supported", error)
        self.assertRegex(error, r"with [^;]* and \d\d more: Transfer Syntax")
        self.assertTrue(
            error.endswith(". Propose other transfer syntaxes as well, or configure the peer to accept these")
        )

    def test_the_acceptor_cannot_propose(self) -> None:
        """An acceptor that sends learns what the peer should have proposed."""
        association, accepted = self.both()
        self.assertEqual(self.error(accepted), "the peer proposed no presentation context for MR Image Storage")
        self.network.result_of(association.release())


class Texts(MemoryTestCase):
    """The texts themselves."""

    def explain(self, syntax: str | None, accepted: list[str], *rejected: PresentationContext, **kinds: Any) -> str:
        for context in rejected:
            context.result = context.result or 4
        options: dict[str, Any] = {"role": "SCU", "has_role": True, "is_requestor": True, **kinds}
        return explain_missing_context(MRImageStorage, syntax, accepted=accepted, rejected=rejected, **options)

    def test_another_syntax_was_refused(self) -> None:
        """The one of the data set was never proposed."""
        refused = PresentationContext(MRImageStorage, [ExplicitVRLittleEndian, RLELossless])
        self.assertEqual(
            self.explain(JPEGLSLossless, [], refused),
            "the peer did not accept a presentation context for MR Image Storage: Transfer Syntax(es) Not Supported:"
            " Explicit VR Little Endian, RLE Lossless; propose ae.add_requested_context(MRImageStorage, JPEGLSLossless)",
        )
        self.assertIn(
            "Propose one of its own: ae.add_requested", self.explain(JPEGLSLossless, [ImplicitVRLittleEndian], refused)
        )

    def test_role(self) -> None:
        text = self.explain(None, [ImplicitVRLittleEndian], has_role=False, role="SCP")
        self.assertTrue(text.endswith("as SCP: role selection has not given us this role"))

    def test_the_class_was_refused(self) -> None:
        refused = PresentationContext(MRImageStorage, JPEGLSLossless)
        refused.result = 3
        self.assertEqual(
            self.explain(JPEGLSLossless, [], refused),
            "the peer did not accept a presentation context for MR Image Storage with JPEG-LS Lossless Image Compression:"
            " Abstract Syntax Not Supported",
        )

    def test_private_syntaxes(self) -> None:
        """A UID without a name is quoted in the call."""
        text = self.explain("1.2.3.4", [ImplicitVRLittleEndian])
        self.assertIn("with 1.2.3.4 as SCU", text)
        self.assertIn("ae.add_requested_context(MRImageStorage, '1.2.3.4')", text)

    def test_the_call_is_that_of_the_caller(self) -> None:
        """The advice is a call of the interface in use; the user of a program gets none."""
        for proposal, words in (
            (
                Proposal.AE,
                ": add it to the requested contexts, ae.add_requested_context(MRImageStorage, JPEGLSLossless)",
            ),
            (
                Proposal.ASSOCIATE,
                ": propose it by associate(..., contexts=[build_context(MRImageStorage, JPEGLSLossless), ...])",
            ),
            (
                Proposal.CONNECT,
                ": propose it by connect(..., contexts=[build_context(MRImageStorage, JPEGLSLossless), ...])",
            ),
            (Proposal.PROGRAM, " with JPEG-LS Lossless Image Compression"),
        ):
            text = self.explain(JPEGLSLossless, [], proposal=proposal)
            self.assertEqual(text, f"no presentation context was proposed for MR Image Storage{words}")
        text = self.explain(JPEGLSLossless, [ImplicitVRLittleEndian], proposal=Proposal.PROGRAM)
        self.assertNotIn("Propose", text)

    def test_names(self) -> None:
        four = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless, JPEGLSLossless]
        self.assertEqual(syntax_names(four).count(","), 3)
        self.assertTrue(syntax_names([*four, "1.2.3"]).endswith("RLE Lossless and 2 more"))
        self.assertEqual(syntax_names([]), "")

    def test_hostile_names(self) -> None:
        """A name from a peer is quoted and cut, so that a terminal does not interpret it."""
        self.assertEqual(syntax_names(["\x1b[31m\nA"]), r"'\x1b[31m\nA'")
        self.assertEqual(len(syntax_names(["9" * 60000])), 102)  # with its quotes
