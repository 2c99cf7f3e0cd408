"""
Use as an SCP, sentence by sentence of the reference document 000.

Each test quotes the sentence that it checks. The examples are those of the document, with ``await`` where a server starts or
stops.
"""

from __future__ import annotations

from typing import Any

from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet.defer import Deferred

from dicomtwist import (
    AE,
    AllStoragePresentationContexts,
    AssociationRejected,
    NoAcceptedContexts,
    StoragePresentationContexts,
    UserIdentity,
    build_context,
    build_role,
    evt,
    presentation,
)
from dicomtwist.presentation import PREBUILT_CONTEXTS, PresentationContext
from dicomtwist.sop_class import CTImageStorage, MRImageStorage, Verification
from tests.loopback import LoopbackTestCase, ct_image

DEFAULT = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"]


class SupportedContextTests(LoopbackTestCase):
    """
    "Adding supported Presentation Contexts".
    """

    def test_one_by_one(self) -> None:
        """
        "Adding presentation contexts one-by-one": a str, a UID, a SOP Class.
        """
        ae = AE()
        ae.add_supported_context("1.2.840.10008.1.1")
        ae.add_supported_context(UID("1.2.840.10008.5.1.4.1.1.4"))
        ae.add_supported_context(CTImageStorage)
        self.assertEqual(
            [context.abstract_syntax for context in ae.supported_contexts],
            [Verification, CTImageStorage, MRImageStorage],
        )

    def test_all_at_once(self) -> None:
        """
        "Adding presentation contexts all at once"; "a prebuilt list of presentation contexts containing 120 of the most
        commonly used Storage Service Classes'".
        """
        ae = AE()
        ae.supported_contexts = StoragePresentationContexts
        self.assertEqual(len(ae.supported_contexts), 120)

    def test_prebuilt_lists(self) -> None:
        """
        "there's a similar list for all the supported service classes".
        """
        for name in PREBUILT_CONTEXTS:
            ae = AE()
            ae.supported_contexts = getattr(presentation, name)
            self.assertGreater(len(ae.supported_contexts), 0, name)

    def test_own_list(self) -> None:
        """
        "Alternatively you can build your own list": PresentationContext instances, or build_context().
        """
        ae = AE()
        contexts = [build_context(CTImageStorage), build_context("1.2.840.10008.1.1")]
        ae.supported_contexts = contexts
        self.assertEqual(len(ae.supported_contexts), 2)
        ae.supported_contexts = [PresentationContext(MRImageStorage, ImplicitVRLittleEndian)]
        self.assertEqual([context.abstract_syntax for context in ae.supported_contexts], [MRImageStorage])

    def test_combined(self) -> None:
        """
        "Combining the all-at-once and one-by-one approaches"; "you're not limited in the number of presentation
        contexts".
        """
        ae = AE()
        ae.supported_contexts = AllStoragePresentationContexts
        ae.add_supported_context(Verification)
        self.assertEqual(len(ae.supported_contexts), 171)

    def test_default_transfer_syntaxes(self) -> None:
        """
        "the following transfer syntaxes are used by default for each context": four.
        """
        ae = AE()
        ae.add_supported_context(Verification)
        self.assertEqual(ae.supported_contexts[0].transfer_syntax, DEFAULT)
        self.assertEqual(build_context(Verification).transfer_syntax, DEFAULT)

    def test_own_transfer_syntaxes(self) -> None:
        """
        "Specifying your own transfer syntax(es)": one as str or UID, or a list, in both places.
        """
        ae = AE()
        ae.add_supported_context(CTImageStorage, transfer_syntax="1.2.840.10008.1.2")
        ae.add_supported_context(MRImageStorage, [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
        self.assertEqual(
            [context.transfer_syntax for context in ae.supported_contexts],
            [[ImplicitVRLittleEndian], [ImplicitVRLittleEndian, ExplicitVRLittleEndian]],
        )
        context_a = build_context(CTImageStorage, ImplicitVRLittleEndian)
        context_b = build_context("1.2.840.10008.1.1", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
        ae.supported_contexts = [context_a, context_b]
        self.assertEqual(ae.supported_contexts, [context_b, context_a])

    def test_order(self) -> None:
        """
        "returned in order of their abstract syntax UID value".
        """
        ae = AE()
        for uid in ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.2"):
            ae.add_supported_context(uid)
        uids = [str(context.abstract_syntax) for context in ae.supported_contexts]
        self.assertEqual(uids, sorted(uids))

    def test_printed(self) -> None:
        """
        The printed form. The example leaves out Deflated, but the list of defaults above it has it. The list takes precedence.
        """
        ae = AE()
        self.assertEqual(len(ae.supported_contexts), 0)
        ae.add_supported_context(Verification)
        self.assertEqual(len(ae.supported_contexts), 1)
        self.assertEqual(
            str(ae.supported_contexts[0]),
            "Abstract Syntax: Verification SOP Class\n"
            "Transfer Syntax(es):\n"
            "    =Implicit VR Little Endian\n"
            "    =Explicit VR Little Endian\n"
            "    =Deflated Explicit VR Little Endian\n"
            "    =Explicit VR Big Endian",
        )

    def test_merged(self) -> None:
        """
        "any additional transfer syntaxes will be combined with the pre-existing context".
        """
        ae = AE()
        ae.add_supported_context(CTImageStorage, ExplicitVRLittleEndian)
        ae.add_supported_context(CTImageStorage, ImplicitVRLittleEndian)
        self.assertEqual(len(ae.supported_contexts), 1)
        self.assertEqual(
            str(ae.supported_contexts[0]),
            "Abstract Syntax: CT Image Storage\n"
            "Transfer Syntax(es):\n"
            "    =Explicit VR Little Endian\n"
            "    =Implicit VR Little Endian",
        )

    async def test_per_server(self) -> None:
        """
        "To set the supported presentation contexts on a per-SCP basis ... use the contexts keyword parameter".
        """
        ae = self.scp()
        first = await self.serve(ae)
        second = await self.serve(ae, contexts=[build_context(MRImageStorage)])
        scu = self.scu()
        scu.add_requested_context(MRImageStorage)
        for server, accepted in ((first, [Verification, CTImageStorage]), (second, [MRImageStorage])):
            async with await scu.associate("127.0.0.1", server.port) as assoc:
                self.assertEqual([context.abstract_syntax for context in assoc.accepted_contexts], accepted)


class RoleTests(LoopbackTestCase):
    """
    "Handling SCP/SCU Role Selection Negotiation", over the network; test_negotiation has every combination.
    """

    async def outcome(self, own: tuple[bool | None, bool | None], proposed: tuple[bool, bool]) -> Any:
        """Return (requestor is SCU, requestor is SCP), or ``None`` if the context is rejected; both sides agree."""
        ae = AE()
        ae.add_supported_context(Verification)
        ae.add_supported_context(CTImageStorage, scu_role=own[0], scp_role=own[1])
        server = await self.serve(ae)
        role = build_role(CTImageStorage, *proposed)
        async with await self.scu().associate("127.0.0.1", server.port, ext_neg=[role]) as assoc:
            await assoc.send_c_echo()
            (accepted,) = ae.active_associations
            ours = [c for c in assoc.accepted_contexts if c.abstract_syntax == CTImageStorage]
            theirs = [c for c in accepted.accepted_contexts if c.abstract_syntax == CTImageStorage]
        if not ours:
            self.assertEqual(theirs, [])
            return None
        self.assertEqual((ours[0].as_scu, ours[0].as_scp), (theirs[0].as_scp, theirs[0].as_scu))
        return ours[0].as_scu, ours[0].as_scp

    async def test_example(self) -> None:
        """
        scu_role=False, scp_role=True: "if the Requestor proposes the SCP role then the Acceptor will accept it while
        rejecting the proposed SCU role (and therefore the Acceptor will be SCU and Requestor SCP)".
        """
        self.assertEqual(await self.outcome((False, True), (True, True)), (False, True))
        self.assertEqual(await self.outcome((False, True), (False, True)), (False, True))

    async def test_none(self) -> None:
        """
        "If either scu_role or scp_role is None (the default) then no response to the role selection will be sent and the
        default roles assumed". A context with one of the two would silently be one without roles: that is an error here.
        """
        self.assertEqual(await self.outcome((None, None), (True, True)), (True, False))
        for own in ((None, True), (False, None)):
            await self.assertFailure(Deferred.fromCoroutine(self.outcome(own, (True, True))), ValueError)

    async def test_rejected(self) -> None:
        """
        Outcome 1: "The proposed roles aren't acceptable and the context is rejected".
        """
        self.assertIsNone(await self.outcome((False, True), (True, False)))
        self.assertIsNone(await self.outcome((False, False), (True, True)))

    async def test_default(self) -> None:
        """
        Outcome 2: "The Acceptor acts as the SCP and the Requestor the SCU (default)".
        """
        self.assertEqual(await self.outcome((True, False), (True, True)), (True, False))

    async def test_reversed(self) -> None:
        """
        Outcome 3: "The Acceptor acts as the SCU and the Requestor the SCP".
        """
        self.assertEqual(await self.outcome((True, True), (False, True)), (False, True))

    async def test_both(self) -> None:
        """
        Outcome 4: "Both Acceptor and Requestor act as SCU and SCP".
        """
        self.assertEqual(await self.outcome((True, True), (True, True)), (True, True))

    async def test_reversed_store(self) -> None:
        """The roles have effect: if they are reversed, the acceptor sends, and the requestor's handler is called."""
        ae = AE()
        ae.add_supported_context(CTImageStorage, scu_role=False, scp_role=True)
        server = await self.serve(ae)
        stored: list[str] = []

        def handle_store(event: Any) -> int:
            stored.append(event.request.AffectedSOPInstanceUID)
            return 0x0000

        role = build_role(CTImageStorage, scp_role=True)
        contexts = [build_context(CTImageStorage)]
        assoc = await self.scu().associate(
            "127.0.0.1",
            server.port,
            contexts=contexts,
            ext_neg=[role],
            evt_handlers=[(evt.EVT_C_STORE, handle_store)],
        )
        await self.failure(assoc.send_c_store(ct_image()), ValueError)
        (accepted,) = ae.active_associations
        self.assertEqual(await accepted.send_c_store(ct_image("1.2.9")), 0)
        self.assertEqual(stored, ["1.2.9"])
        await assoc.release()


class UserIdentityTests(LoopbackTestCase):
    """
    "Handling User Identity Negotiation".
    """

    #: Username; username and password; Kerberos service ticket; SAML assertion; JSON web token.
    FORMS = (
        UserIdentity(1, b"user", response_requested=True),
        UserIdentity(2, b"user", b"password", response_requested=True),
        UserIdentity(3, b"ticket", response_requested=True),
        UserIdentity(4, b"<assertion/>", response_requested=True),
        UserIdentity(5, b"token", response_requested=True),
    )

    async def test_accepted_by_default(self) -> None:
        """
        "By default, all association requests that include user identity negotiation are accepted ... and no user identity
        negotiation response is sent even if one is requested."
        """
        server = await self.serve(self.scp())
        for identity in self.FORMS:
            async with await self.scu().associate("127.0.0.1", server.port, ext_neg=[identity]) as assoc:
                self.assertIsNone(assoc.acceptor.user_identity)

    async def test_handler(self) -> None:
        """
        "To handle a user identity negotiation yourself you should implement and bind a handler": it gets each form, and
        returns is_verified, response.
        """
        seen: list[tuple[int, bytes, bytes]] = []

        def handle_user_id(event: evt.Event) -> tuple[bool, bytes | None]:
            seen.append((event.user_id_type, event.primary_field, event.secondary_field))
            return True, b"answer" if event.user_id_type > 2 else None

        handlers = [(evt.EVT_USER_ID, handle_user_id)]
        server = await self.serve(self.scp(), evt_handlers=handlers)
        answers = []
        for identity in self.FORMS:
            async with await self.scu().associate("127.0.0.1", server.port, ext_neg=[identity]) as assoc:
                answers.append(assoc.acceptor.user_identity)
        self.assertEqual(seen, [(each.identity_type, each.primary, each.secondary) for each in self.FORMS])
        # A name has no response of its own; the empty response is the confirmation (PS3.7 D.3.3.7.2).
        self.assertEqual(answers, [b"", b"", b"answer", b"answer", b"answer"])

    async def test_not_verified(self) -> None:
        """False, or a handler that raises, rejects with (2, 2, 1), because the requestor may try again as another user."""

        def raising(event: evt.Event) -> tuple[bool, None]:
            raise LookupError("no such user")

        for handler in (lambda event: (False, None), raising):
            server = await self.serve(self.scp(), evt_handlers=[(evt.EVT_USER_ID, handler)])
            asked = self.scu().associate("127.0.0.1", server.port, ext_neg=[self.FORMS[1]])
            error = await self.failure(asked, AssociationRejected)
            self.assertEqual((error.result, error.source, error.reason), (2, 2, 1))
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    async def test_response_not_asked_for(self) -> None:
        """A requestor that does not ask for a response gets none."""
        server = await self.serve(self.scp(), evt_handlers=[(evt.EVT_USER_ID, lambda event: (True, b"answer"))])
        async with await self.scu().associate("127.0.0.1", server.port, ext_neg=[UserIdentity(3, b"ticket")]) as assoc:
            self.assertIsNone(assoc.acceptor.user_identity)


class BindAddressTests(LoopbackTestCase):
    """
    "Specifying the bind address".
    """

    async def test_addresses(self) -> None:
        """
        "For IPv4 or IPv6 a 2-tuple of (str host, int port) ... For IPv6 a 4-tuple"; the server is not blocking, and
        ``shutdown()`` stops it.
        """
        ae = AE()
        ae.add_supported_context("1.2.840.10008.1.1")
        for address in (("127.0.0.1", 0), ("::1", 0), ("::1", 0, 0, 0), ("", 0)):
            server = await ae.start_server(address, block=False)
            host, port = server.addresses[0]
            self.assertEqual(host, address[0] or "0.0.0.0")
            async with await self.scu().associate("::1" if host == "::1" else "127.0.0.1", port) as assoc:
                self.assertEqual(await assoc.send_c_echo(), 0)
            await server.shutdown()
            await self.failure(self.scu().associate("::1" if host == "::1" else "127.0.0.1", port), Exception)

    def test_flow_label(self) -> None:
        """
        "int flowinfo": Twisted does not support one that is not 0, and the error says so.
        """
        error = self.assertRaises(ValueError, self.scp().start_server, ("::1", 0, 1, 0))
        self.assertIn("flow label", str(error))

    async def test_port_in_use(self) -> None:
        """After a server was shut down, its port can be used again at once."""
        ae = self.scp()
        server = await ae.start_server(("127.0.0.1", 0))
        port = server.port
        await server.shutdown()
        server = await ae.start_server(("127.0.0.1", port))
        await server.shutdown()

    async def test_nothing_in_common(self) -> None:
        """
        If no context is accepted, the requestor gets an error that says which and why, and no association that it could misuse.
        """
        ae = AE()
        ae.add_supported_context(MRImageStorage)
        server = await self.serve(ae)
        error = await self.failure(self.scu().associate("127.0.0.1", server.port), NoAcceptedContexts)
        self.assertIn("Abstract Syntax Not Supported", str(error))
