"""
Use as an SCU, sentence by sentence of the reference document 001.
"""

from __future__ import annotations

from typing import Any

from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomtwist import AE, StoragePresentationContexts, build_context, presentation
from dicomtwist.presentation import PREBUILT_CONTEXTS
from dicomtwist.sop_class import CTImageStorage, MRImageStorage, Verification
from tests.loopback import LoopbackTestCase
from tests.test_seed_000_scp import DEFAULT


class RequestedContextTests(LoopbackTestCase):
    """
    "Adding requested Presentation Contexts".
    """

    def test_one_by_one(self) -> None:
        """
        "Adding presentation contexts one-by-one": a str, a UID, a SOP Class.
        """
        ae = AE()
        ae.add_requested_context("1.2.840.10008.1.1")
        ae.add_requested_context(UID("1.2.840.10008.5.1.4.1.1.4"))
        ae.add_requested_context(CTImageStorage)
        self.assertEqual(
            [context.abstract_syntax for context in ae.requested_contexts],
            [Verification, MRImageStorage, CTImageStorage],
        )

    def test_all_at_once(self) -> None:
        """
        "Adding presentation contexts all at once", and "a similar list for all the supported service classes".
        """
        ae = AE()
        ae.requested_contexts = StoragePresentationContexts
        self.assertEqual(len(ae.requested_contexts), 120)
        for name in PREBUILT_CONTEXTS:
            ae.requested_contexts = getattr(presentation, name)[:128]
            self.assertGreater(len(ae.requested_contexts), 0, name)

    def test_own_list(self) -> None:
        """
        "Alternatively you can build your own list of presentation contexts".
        """
        ae = AE()
        contexts = [build_context(CTImageStorage), build_context("1.2.840.10008.1.1")]
        ae.requested_contexts = contexts
        self.assertEqual(ae.requested_contexts, contexts)

    def test_combined(self) -> None:
        """
        "Additional contexts can still be added on a one-by-one basis afterwards".
        """
        ae = AE()
        ae.requested_contexts = StoragePresentationContexts
        ae.add_requested_context(Verification)
        self.assertEqual(len(ae.requested_contexts), 121)
        self.assertEqual(ae.requested_contexts[-1].abstract_syntax, Verification)

    def test_limit(self) -> None:
        """
        "attempting to add more than 128 contexts will raise a ValueError"; "you are able to add 8 additional presentation
        contexts".
        """
        ae = AE()
        ae.requested_contexts = StoragePresentationContexts
        for _ in range(8):
            ae.add_requested_context(Verification)
        self.assertRaises(ValueError, ae.add_requested_context, Verification)
        self.assertEqual(len(ae.requested_contexts), 128)
        self.assertRaises(ValueError, setattr, ae, "requested_contexts", [build_context(Verification)] * 129)
        self.assertEqual(len(ae.requested_contexts), 128)

    def test_default_transfer_syntaxes(self) -> None:
        """
        "the following transfer syntaxes are used by default for each context".
        """
        ae = AE()
        ae.add_requested_context(Verification)
        self.assertEqual(ae.requested_contexts[0].transfer_syntax, DEFAULT)

    def test_own_transfer_syntaxes(self) -> None:
        """
        "Specifying your own transfer syntax(es) ... as either a single str/UID or a list of str/UIDs".
        """
        ae = AE()
        ae.add_requested_context(CTImageStorage, transfer_syntax="1.2.840.10008.1.2")
        ae.add_requested_context(MRImageStorage, [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
        self.assertEqual(
            [context.transfer_syntax for context in ae.requested_contexts],
            [[ImplicitVRLittleEndian], [ImplicitVRLittleEndian, ExplicitVRLittleEndian]],
        )
        context_a = build_context(CTImageStorage, ImplicitVRLittleEndian)
        context_b = build_context("1.2.840.10008.1.1", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
        ae.requested_contexts = [context_a, context_b]
        self.assertEqual(ae.requested_contexts, [context_a, context_b])

    def test_order_and_printed(self) -> None:
        """
        "returned in the order they were added", and the printed form (with Deflated, which the list of defaults has).
        """
        ae = AE()
        self.assertEqual(len(ae.requested_contexts), 0)
        ae.add_requested_context(Verification)
        self.assertEqual(len(ae.requested_contexts), 1)
        self.assertEqual(
            str(ae.requested_contexts[0]),
            "Abstract Syntax: Verification SOP Class\n"
            "Transfer Syntax(es):\n"
            "    =Implicit VR Little Endian\n"
            "    =Explicit VR Little Endian\n"
            "    =Deflated Explicit VR Little Endian\n"
            "    =Explicit VR Big Endian",
        )
        added = [MRImageStorage, CTImageStorage, Verification]
        ae.requested_contexts = []
        for uid in added:
            ae.add_requested_context(uid)
        self.assertEqual([context.abstract_syntax for context in ae.requested_contexts], added)

    def test_repeated(self) -> None:
        """
        "It's also possible to have multiple requested presentation contexts for the same abstract syntax."
        """
        ae = AE()
        ae.add_requested_context(CTImageStorage)
        ae.add_requested_context(CTImageStorage, ImplicitVRLittleEndian)
        self.assertEqual(len(ae.requested_contexts), 2)
        self.assertEqual(
            str(ae.requested_contexts[1]),
            "Abstract Syntax: CT Image Storage\nTransfer Syntax(es):\n    =Implicit VR Little Endian",
        )

    async def test_repeated_on_the_wire(self) -> None:
        """Both contexts are proposed, and each is accepted separately."""
        ae = self.scu()
        ae.requested_contexts = [
            build_context(CTImageStorage, ExplicitVRLittleEndian),
            build_context(CTImageStorage, ImplicitVRLittleEndian),
        ]
        server = await self.serve(self.scp())
        async with await ae.associate("127.0.0.1", server.port) as assoc:
            self.assertEqual(
                [(c.context_id, c.transfer_syntax) for c in assoc.accepted_contexts],
                [(1, [ExplicitVRLittleEndian]), (3, [ImplicitVRLittleEndian])],
            )

    async def test_per_association(self) -> None:
        """
        "To set the requested presentation contexts on a per-association basis ... use the contexts keyword parameter".
        """
        server = await self.serve(self.scp())
        ae = self.scu()
        async with await ae.associate("127.0.0.1", server.port, contexts=[build_context(Verification)]) as assoc:
            self.assertEqual([context.abstract_syntax for context in assoc.accepted_contexts], [Verification])
        self.assertEqual(len(ae.requested_contexts), 2)


class PortTests(LoopbackTestCase):
    """
    "Specifying the network port".
    """

    async def test_bind_address(self) -> None:
        """
        "To specify the port number manually you can use the bind_address keyword parameter", as a 2-tuple for IPv4 and
        IPv6, as a 4-tuple for IPv6. The peer sees the address that was bound.
        """
        ae = AE()
        ae.add_requested_context("1.2.840.10008.1.1")
        self.addCleanup(ae.shutdown)
        cases: list[tuple[str, list[Any]]] = [
            ("127.0.0.1", [("127.0.0.1", 0)]),
            ("::1", [("::1", 0), ("::1", 0, 0, 0)]),
        ]
        for host, binds in cases:
            for bind in binds:
                # A port that is free now; it was never connected, so closing it leaves nothing in TIME_WAIT.
                probe = await self.scp().start_server((bind[0], 0))
                port = probe.port
                await probe.shutdown()
                scp = self.scp()
                server = await self.serve(scp, (host, 0))
                assoc = await ae.associate(host, server.port, bind_address=(bind[0], port, *bind[2:]))
                self.assertEqual((assoc.requestor.address, assoc.requestor.port), (bind[0], port))
                await assoc.send_c_echo()
                (accepted,) = scp.active_associations
                self.assertEqual((accepted.requestor.address, accepted.requestor.port), (bind[0], port))
                await assoc.release()

    async def test_any_port(self) -> None:
        """
        "by default ... use the first port available". This holds even if the AE has a port to listen on, from which the older
        document 003 makes it connect.
        """
        server = await self.serve(self.scp())
        ae = self.scu()
        ae.port = server.port
        async with await ae.associate("127.0.0.1", server.port) as assoc:
            self.assertNotIn(assoc.requestor.port, (0, server.port))

    async def test_ipv6(self) -> None:
        """A peer with an IPv6 address."""
        server = await self.serve(self.scp(), ("::1", 0))
        async with await self.scu().associate("::1", server.port) as assoc:
            self.assertEqual((assoc.acceptor.address, assoc.acceptor.port), ("::1", server.port))
            self.assertEqual(await assoc.send_c_echo(), 0)

    async def test_host_name(self) -> None:
        """A peer with a host name."""
        server = await self.serve(self.scp())
        async with await self.scu().associate("localhost", server.port) as assoc:
            self.assertEqual(await assoc.send_c_echo(), 0)
