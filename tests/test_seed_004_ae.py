"""
Application Entity, sentence by sentence of the reference document 004.

The tests of the newer documents 000 and 001 cover what this document has in common with them.
"""

from __future__ import annotations

from typing import Any

from dicomtwist import (
    AE,
    AllStoragePresentationContexts,
    AssociationRejected,
    StoragePresentationContexts,
    build_role,
    evt,
)
from dicomtwist.sop_class import CTImageStorage, Verification
from tests.loopback import LoopbackTestCase


class TitleTests(LoopbackTestCase):
    """
    The AE title.
    """

    def test_minimal(self) -> None:
        """
        "A minimal initialisation of AE requires no parameters"; "The AE title can set by supplying the ae_title keyword
        parameter during initialisation ... Or afterwards with the ae_title property". The default is dicomtwist's own name.
        """
        self.assertEqual(AE().ae_title, "DICOMTWIST")
        self.assertEqual(AE(ae_title="MY_AE_TITLE").ae_title, "MY_AE_TITLE")
        ae = AE()
        ae.ae_title = "MY_AE_TITLE"
        self.assertEqual(ae.ae_title, "MY_AE_TITLE")

    def test_spaces(self) -> None:
        """
        "Leading and trailing spaces (hex 0x20) are non-significant."
        """
        self.assertEqual(AE(ae_title="  MY TITLE  ").ae_title, "MY TITLE")

    def test_length(self) -> None:
        """
        "Maximum 16 characters (once non-significant characters are removed)."
        """
        self.assertEqual(AE(ae_title="  ABCDEFGHIJKLMNOP ").ae_title, "ABCDEFGHIJKLMNOP")
        self.assertRaises(ValueError, AE, ae_title="ABCDEFGHIJKLMNOPQ")

    def test_characters(self) -> None:
        """
        "the basic G0 Set of the ISO/IEC 646:1991 (ASCII) standard excluding backslash ... and all control characters".
        """
        for code in range(256):
            title = f"A{chr(code)}B"
            if 0x20 <= code <= 0x7E and code != 0x5C:
                self.assertEqual(AE(ae_title=title).ae_title, title)
            else:
                self.assertRaises(ValueError, AE, ae_title=title)
                ae = AE()
                self.assertRaises(ValueError, setattr, ae, "ae_title", title)

    def test_all_spaces(self) -> None:
        """
        "An AE title made entirely of spaces is not allowed."
        """
        for title in ("", " ", " " * 16):
            self.assertRaises(ValueError, AE, ae_title=title)

    async def test_per_server(self) -> None:
        """
        "it's also possible to give each SCP its own AE title through the ae_title keyword parameter in
        AE.start_server()".
        """
        ae = self.scp("FIRST")
        ae.require_called_aet = True
        first = await self.serve(ae)
        second = await self.serve(ae, ae_title="SECOND")
        scu = self.scu()
        await (await scu.associate("127.0.0.1", first.port, ae_title="FIRST")).release()
        await (await scu.associate("127.0.0.1", second.port, ae_title="SECOND")).release()
        for port, title in ((first.port, "SECOND"), (second.port, "FIRST")):
            error = await self.failure(scu.associate("127.0.0.1", port, ae_title=title), AssociationRejected)
            self.assertEqual((error.result, error.source, error.reason), (1, 1, 7))
        self.assertEqual(ae.ae_title, "FIRST")

    async def test_on_the_wire(self) -> None:
        """Spaces around a title are ignored, in titles of the program and in titles from the network."""
        ae = self.scp(" SCP ")
        ae.require_called_aet = True
        ae.require_calling_aet = ["SCU "]
        server = await self.serve(ae)
        assoc = await self.scu(" SCU").associate("127.0.0.1", server.port, ae_title="  SCP")
        self.assertEqual((assoc.requestor.ae_title, assoc.acceptor.ae_title), ("SCU", "SCP"))
        await assoc.release()


class ContextTests(LoopbackTestCase):
    """
    "Creating an SCU" and "Creating an SCP", as far as the examples differ from those of the newer documents.
    """

    def test_127_and_one(self) -> None:
        """
        ``ae.requested_contexts = StoragePresentationContexts[:127]`` and one more; "limited to a total of 128".
        """
        ae = AE()
        ae.requested_contexts = AllStoragePresentationContexts[:127]
        ae.add_requested_context(Verification)
        self.assertEqual(len(ae.requested_contexts), 128)
        self.assertRaises(ValueError, ae.add_requested_context, Verification)
        ae.requested_contexts = StoragePresentationContexts[:127]
        self.assertEqual(len(ae.requested_contexts), 120)

    def test_no_limit_for_acceptors(self) -> None:
        """
        "As the association Acceptor you're not limited".
        """
        ae = AE()
        ae.supported_contexts = AllStoragePresentationContexts
        ae.add_supported_context(Verification)
        self.assertEqual(len(ae.supported_contexts), 171)

    async def test_roles(self) -> None:
        """
        ``ae.add_supported_context(CTImageStorage, scu_role=False, scp_role=True)``; "if you wish to respond to the
        proposed role selection then both scu_role and scp_role must be set".
        """
        ae = AE()
        ae.add_supported_context(CTImageStorage, scu_role=False, scp_role=True)
        server = await self.serve(ae)
        role = build_role(CTImageStorage, scu_role=True, scp_role=True)
        async with await self.scu().associate("127.0.0.1", server.port, ext_neg=[role]) as assoc:
            (context,) = assoc.accepted_contexts
            self.assertEqual((context.as_scu, context.as_scp), (False, True))
            self.assertEqual(list(assoc.acceptor.role_selection.values()), [build_role(CTImageStorage, False, True)])

    async def test_user_identity(self) -> None:
        """
        ``handlers = [(evt.EVT_USER_ID, handle_user_id)]``. The server of the example has no supported contexts, and would be
        useless. Here that is an error, as in the newer documents, whose example has one.
        """

        def handle_user_id(event: evt.Event) -> tuple[bool, Any]:
            return True, None

        handlers = [(evt.EVT_USER_ID, handle_user_id)]
        ae = AE()
        self.assertRaises(ValueError, ae.start_server, ("", 0), evt_handlers=handlers)
        ae.add_supported_context(Verification)
        server = await self.serve(ae, ("", 0), evt_handlers=handlers)
        await (await self.scu().associate("127.0.0.1", server.port)).release()

    async def test_bind_address(self) -> None:
        """``bind_address=("", port)``: only the port; and ``start_server(("", port))``."""
        server = await self.serve(self.scp(), ("", 0))
        async with await self.scu().associate("127.0.0.1", server.port, bind_address=("", 0)) as assoc:
            self.assertEqual(assoc.requestor.address, "127.0.0.1")
