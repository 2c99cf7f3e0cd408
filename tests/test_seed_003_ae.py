"""
The AE's attributes, methods and callbacks, by the reference document 003.

It is the oldest of the documents. If a newer one differs (defaults, titles as ``str``), the newer one takes precedence. Its
callbacks work as adapters over the hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from dicomtwist import (
    AE,
    AssociationAborted,
    AssociationRejected,
    AsyncOperationsWindow,
    OperationFailed,
    SOPClassCommonExtended,
    SOPClassExtended,
    StoragePresentationContexts,
    UserIdentity,
    VerificationPresentationContexts,
    build_context,
    build_role,
    evt,
)
from dicomtwist.ae.legacy_callbacks import CALLBACKS, LegacyCallbacks
from dicomtwist.sop_class import (
    CTImageStorage,
    ModalityPerformedProcedureStep,
    MRImageStorage,
    RTConventionalMachineVerification,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
    VerificationSOPClass,
)
from dicomtwist.ul.pdu import AAssociateAC, AAssociateRJ, AAssociateRQ
from tests.loopback import LoopbackTestCase, ct_image


def noting(seen: list[Any], what: object, answer: Any) -> Any:
    """Append *what* to *seen*, and return *answer*."""
    seen.append(what)
    return answer


class AttributeTests(LoopbackTestCase):
    """The attributes."""

    def test_all(self) -> None:
        """Every attribute of the document exists, and those that are documented as settable can be set."""
        ae = AE(ae_title=b"MYAE", port=11112)
        self.assertEqual((ae.ae_title, ae.port, ae.bind_addr), ("MYAE", 11112, ""))
        for name in ("acse_timeout", "dimse_timeout", "network_timeout"):
            setattr(ae, name, 5)
            self.assertEqual(getattr(ae, name), 5)
            setattr(ae, name, None)
            self.assertIsNone(getattr(ae, name))
        ae.maximum_associations = 2
        ae.maximum_pdu_size = 16382
        ae.implementation_class_uid = "1.2.3"
        ae.implementation_version_name = "NAME"
        self.assertEqual((ae.maximum_associations, ae.maximum_pdu_size), (2, 16382))
        self.assertEqual((ae.implementation_class_uid, ae.implementation_version_name), ("1.2.3", "NAME"))
        self.assertEqual((ae.active_associations, ae.requested_contexts, ae.supported_contexts), ([], [], []))

    def test_require_calling_aet(self) -> None:
        """
        "If not empty bytes, the calling AE title must match": one title in bytes works as a list of one.
        """
        ae = AE()
        ae.require_calling_aet = b"SCU"
        self.assertEqual(ae.require_calling_aet, ["SCU"])
        ae.require_calling_aet = b""
        self.assertEqual(ae.require_calling_aet, [])

    def test_require_called_aet(self) -> None:
        """
        "If not empty bytes the called AE title must match": our own title in bytes works as True. Another title would reject
        every request for us, so it is an error that says what to set.
        """
        ae = AE("SCP")
        ae.require_called_aet = b"SCP             "
        self.assertTrue(ae.require_called_aet)
        ae.require_called_aet = b""
        self.assertFalse(ae.require_called_aet)
        error = self.assertRaises(ValueError, setattr, ae, "require_called_aet", b"OTHER")
        self.assertIn("set ae_title", str(error))

    async def test_titles_required(self) -> None:
        """Both rejections have their codes: (1, 1, 7) for the called title, (1, 1, 3) for the calling one."""
        for name, value, reason in (("require_called_aet", b"SCP", 7), ("require_calling_aet", b"OTHER", 3)):
            scp = self.scp()
            setattr(scp, name, value)
            server = await self.serve(scp)
            error = await self.failure(self.scu().associate("127.0.0.1", server.port), AssociationRejected)
            self.assertEqual((error.result, error.source, error.reason), (1, 1, reason))

    async def test_maximum_pdu_size(self) -> None:
        """
        "A value of 0 means there is no maximum size"; each side learns the value of the other.
        """
        scp = self.scp()
        scp.maximum_pdu_size = 0
        server = await self.serve(scp)
        assoc = await self.scu().associate("127.0.0.1", server.port, max_pdu=16382)
        await assoc.send_c_echo()
        (accepted,) = scp.active_associations
        self.assertEqual((assoc.acceptor.maximum_length, accepted.requestor.maximum_length), (0, 16382))
        await assoc.release()

    async def test_implementation(self) -> None:
        """The peer receives the Implementation Class UID and Version Name."""
        scp, scu = self.scp(), self.scu()
        scp.implementation_class_uid, scp.implementation_version_name = "1.2.3", "SCP_V1"
        scu.implementation_class_uid, scu.implementation_version_name = "1.2.4", None
        server = await self.serve(scp)
        assoc = await scu.associate("127.0.0.1", server.port)
        await assoc.send_c_echo()
        (accepted,) = scp.active_associations
        told, heard = assoc.acceptor, accepted.requestor
        self.assertEqual((told.implementation_class_uid, told.implementation_version_name), ("1.2.3", "SCP_V1"))
        self.assertEqual((heard.implementation_class_uid, heard.implementation_version_name), ("1.2.4", ""))
        await assoc.release()

    def test_what_has_no_place(self) -> None:
        """``address`` and ``client_socket`` raise errors that say where to look."""
        self.assertIn("server.addresses", str(self.assertRaises(AttributeError, lambda: AE().address)))
        self.assertIn("transport", str(self.assertRaises(AttributeError, lambda: AE().client_socket)))


class MethodTests(LoopbackTestCase):
    """
    The methods.
    """

    async def test_start_and_stop(self) -> None:
        """
        The C-STORE SCP example: ``ae = AE(port=11112)``, ``ae.start()``; "calling stop() will kill all associations, close
        the listen socket and quit".
        """
        for stop in ("stop", "quit"):
            ae = AE(port=0)
            ae.supported_contexts = StoragePresentationContexts
            ae.bind_addr = "127.0.0.1"

            def on_c_store(dataset: Dataset, context: Any, info: dict[str, Any]) -> int:
                return 0x0000

            ae.on_c_store = on_c_store
            server = await ae.start()
            self.assertEqual(server.addresses[0][0], "127.0.0.1")
            assoc = await self.scu().associate("127.0.0.1", server.port)
            self.assertEqual(await assoc.send_c_store(ct_image()), 0)
            ended = assoc.when_ended()
            await getattr(ae, stop)()
            await ended
            self.assertTrue(assoc.is_aborted)
            self.assertEqual((server.addresses, ae.active_associations), ([], []))

    async def test_c_echo_scu_example(self) -> None:
        """
        The C-ECHO SCU example.
        """
        server = await self.serve(self.scp())
        ae = AE(ae_title=b"MYAE")
        ae.requested_contexts = VerificationPresentationContexts
        assoc = await ae.associate("127.0.0.1", server.port)
        if assoc.is_established:
            self.assertEqual(await assoc.send_c_echo(), 0x0000)
            await assoc.release()
        self.assertTrue(assoc.is_released)

    def test_no_requested_contexts(self) -> None:
        """
        "Raises: RuntimeError - If called with no requested presentation contexts".
        """
        error = self.assertRaises(RuntimeError, AE().associate, "127.0.0.1", 104)
        self.assertIn("add_requested_context()", str(error))

    def test_cleanup_associations(self) -> None:
        """
        "Remove dead associations": there are none to remove.
        """
        AE().cleanup_associations()

    def test_add_requested_context(self) -> None:
        """
        The examples of add_requested_context: by UID, by name, with one transfer syntax, twice with different ones.
        """
        ae = AE()
        ae.add_requested_context("1.2.840.10008.1.1")
        ae.add_requested_context(VerificationSOPClass, ImplicitVRLittleEndian)
        ae.add_requested_context(VerificationSOPClass, [ImplicitVRLittleEndian, ExplicitVRBigEndian])
        self.assertEqual([context.abstract_syntax for context in ae.requested_contexts], [Verification] * 3)
        self.assertEqual(
            str(ae.requested_contexts[2]),
            "Abstract Syntax: Verification SOP Class\n"
            "Transfer Syntax(es):\n"
            "    =Implicit VR Little Endian\n"
            "    =Explicit VR Big Endian",
        )
        for _ in range(125):
            ae.add_requested_context(VerificationSOPClass)
        self.assertRaises(ValueError, ae.add_requested_context, VerificationSOPClass)

    def test_add_supported_context(self) -> None:
        """
        The examples of add_supported_context: extended by further transfer syntaxes, and with roles.
        """
        ae = AE()
        ae.add_supported_context(VerificationSOPClass, [ImplicitVRLittleEndian, ExplicitVRBigEndian])
        ae.add_supported_context(VerificationSOPClass, ExplicitVRLittleEndian)
        (context,) = ae.supported_contexts
        # The example prints them in another order than they are added in; dicomtwist keeps the order of adding.
        self.assertEqual(context.transfer_syntax, [ImplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian])
        ae.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
        self.assertEqual((ae.supported_contexts[1].scu_role, ae.supported_contexts[1].scp_role), (True, True))

    def test_remove_contexts(self) -> None:
        """
        The examples of remove_requested_context and remove_supported_context: a whole context; by a transfer syntax that is its
        only one; by some of several.
        """
        for kind in ("requested", "supported"):
            ae = AE()
            add, remove = getattr(ae, f"add_{kind}_context"), getattr(ae, f"remove_{kind}_context")
            add("1.2.840.10008.1.1")
            remove("1.2.840.10008.1.1")
            self.assertEqual(getattr(ae, f"{kind}_contexts"), [])
            add(VerificationSOPClass, ImplicitVRLittleEndian)
            remove(VerificationSOPClass, ImplicitVRLittleEndian)
            self.assertEqual(getattr(ae, f"{kind}_contexts"), [])
            add(VerificationSOPClass, [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
            remove(VerificationSOPClass, [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
            (context,) = getattr(ae, f"{kind}_contexts")
            self.assertEqual(context.transfer_syntax, [ExplicitVRBigEndian])
            remove(MRImageStorage)
            setattr(ae, f"{kind}_contexts", VerificationPresentationContexts)
            remove(VerificationSOPClass)
            self.assertEqual(getattr(ae, f"{kind}_contexts"), [])


class CallbackTests(LoopbackTestCase):
    """
    The callbacks. Seven of them are documented as not implemented; they work.
    """

    def test_names(self) -> None:
        """
        Every on_* of the document is an attribute of AE, and each is bound to a hook.
        """
        names = {name for name in vars(LegacyCallbacks) if name.startswith("on_")}
        self.assertEqual(names, set(CALLBACKS))
        self.assertEqual(len(names), 25)
        ae = AE()
        for name, (event, _) in CALLBACKS.items():
            self.assertIsNone(getattr(ae, name))
            setattr(ae, name, print)
            self.assertEqual([bound for bound, *_ in ae._handlers.bound()], [event])
            setattr(ae, name, None)
        self.assertRaises(TypeError, setattr, ae, "on_c_echo", 3)

    def test_assigning(self) -> None:
        """An assigned callback can be read back; None unbinds it; a new one replaces the old one."""
        ae = AE()
        self.assertIsNone(ae.on_c_echo)
        for callback in (lambda context, info: 0, lambda context, info: 1):
            ae.on_c_echo = callback
            self.assertIs(ae.on_c_echo, callback)
        ae.on_association_released = print
        ae.on_association_released = repr
        self.assertEqual(len(ae._handlers.bound(evt.EVT_RELEASED)), 1)
        ae.on_association_released = ae.on_c_echo = None
        self.assertEqual(ae._handlers.bound(), [])

    async def test_info(self) -> None:
        """
        on_c_store(dataset, context, info) and on_c_echo(context, info), and every key of the info dict.
        """
        calls: dict[str, Any] = {}
        scp = self.scp("SCP")

        def on_c_store(dataset: Dataset, context: Any, info: dict[str, Any]) -> int:
            calls["store"] = (dataset.PatientName, context, info)
            return 0x0000

        def on_c_echo(context: Any, info: dict[str, Any]) -> int:
            calls["echo"] = (context, info)
            return 0x0122

        scp.on_c_store = on_c_store
        scp.on_c_echo = on_c_echo
        scp.on_sop_class_extended = lambda app_info: dict.fromkeys(app_info, b"\x02")
        server = await self.serve(scp)
        extended = SOPClassExtended(str(CTImageStorage), b"\x01")
        async with await self.scu().associate("127.0.0.1", server.port, ae_title="CALLED", ext_neg=[extended]) as assoc:
            status = await assoc.send_c_store(ct_image(), priority=1, originator_aet="MOVER", originator_id=7)
            self.assertEqual(status, 0)
            self.assertEqual(await assoc.send_c_echo(), 0x0122)
            self.assertEqual(await assoc.send_c_store(ct_image()), 0)
        name, context, info = calls["store"]
        self.assertEqual((name, context.context_id, context.abstract_syntax), ("Test^Case", 3, CTImageStorage))
        self.assertEqual(context.transfer_syntax, ImplicitVRLittleEndian)
        self.assertEqual(info["parameters"]["originator_aet"], None)
        self.assertEqual(info["parameters"]["originator_message_id"], None)
        self.assertEqual(
            info["requestor"],
            {
                "ae_title": b"SCU             ",
                "called_aet": b"CALLED          ",
                "address": "127.0.0.1",
                "port": assoc.requestor.port,
            },
        )
        self.assertEqual(
            info["acceptor"], {"ae_title": b"SCP             ", "address": "127.0.0.1", "port": server.port}
        )
        self.assertEqual(info["sop_class_extended"], {CTImageStorage: b"\x02"})
        context, info = calls["echo"]
        self.assertEqual(context.abstract_syntax, Verification)
        self.assertEqual(info["parameters"], {"message_id": 2})

    async def test_originator(self) -> None:
        """
        'originator_aet' and 'originator_message_id' of a C-MOVE's sub-operation.
        """
        seen: list[dict[str, Any]] = []
        scp = self.scp()
        scp.on_c_store = lambda dataset, context, info: noting(seen, info["parameters"], 0)
        server = await self.serve(scp)
        async with await self.scu().associate("127.0.0.1", server.port) as assoc:
            await assoc.send_c_store(ct_image(), priority=1, originator_aet="MOVER", originator_id=7)
        self.assertEqual(
            seen,
            [
                {
                    "message_id": 1,
                    "priority": 1,
                    "originator_aet": b"MOVER           ",
                    "originator_message_id": 7,
                }
            ],
        )

    async def test_later(self) -> None:
        """A callback may also return a Deferred or be a coroutine, because it is a handler like any other."""
        from twisted.internet import reactor

        scp = self.scp()
        server = await self.serve(scp)

        async def slow(context: Any, info: dict[str, Any]) -> int:
            await deferLater(reactor, 0.001)
            return 0x0122

        def deferred(context: Any, info: dict[str, Any]) -> Deferred[int]:
            return deferLater(reactor, 0.001, lambda: 0x0210)

        async with await self.scu().associate("127.0.0.1", server.port) as assoc:
            for callback, status in ((slow, 0x0122), (deferred, 0x0210)):
                scp.on_c_echo = callback
                self.assertEqual(await assoc.send_c_echo(), status)
            scp.on_c_echo = None
            self.assertEqual(await assoc.send_c_echo(), 0)

    async def test_raising(self) -> None:
        """
        A callback that raises gives the failure status, and its traceback is logged.
        """
        scp = self.scp()

        def on_c_store(dataset: Dataset, context: Any, info: dict[str, Any]) -> int:
            raise NotImplementedError("later")

        scp.on_c_store = on_c_store
        server = await self.serve(scp)
        async with await self.scu().associate("127.0.0.1", server.port) as assoc:
            self.assertEqual(await assoc.send_c_store(ct_image()), 0xC211)
        self.assertEqual(len(self.flushLoggedErrors(NotImplementedError)), 1)

    def record(self, ae: AE, side: str, calls: list[tuple[Any, ...]]) -> None:
        for name in CALLBACKS:
            if "association" in name or "connection" in name:
                setattr(ae, name, lambda *args, name=name: calls.append((side, name, *args)))

    async def test_accepted_and_released(self) -> None:
        """
        on_make_connection, on_receive_connection, on_association_requested, _accepted and _released are called on both sides,
        with the A-ASSOCIATE request and response.
        """
        calls: list[tuple[Any, ...]] = []
        scp, scu = self.scp(), self.scu()
        self.record(scp, "scp", calls)
        self.record(scu, "scu", calls)
        server = await self.serve(scp)
        assoc = await scu.associate("127.0.0.1", server.port)
        await assoc.send_c_echo()
        (accepted,) = scp.active_associations
        ended = accepted.when_ended()
        await assoc.release()
        await ended
        for side, first in (("scu", "on_make_connection"), ("scp", "on_receive_connection")):
            own = [call[1:] for call in calls if call[0] == side]
            self.assertEqual(
                [call[0] for call in own],
                [first, "on_association_requested", "on_association_accepted", "on_association_released"],
            )
            (_, requested, accepted_call, released) = own
            assert isinstance(requested[1], AAssociateRQ) and isinstance(accepted_call[1], AAssociateAC)
            self.assertEqual(requested[1].calling_ae_title, "SCU")
            self.assertEqual(released[1:], (None,))

    async def test_rejected(self) -> None:
        """
        on_association_rejected, with the A-ASSOCIATE-RJ.
        """
        calls: list[tuple[Any, ...]] = []
        scp, scu = self.scp(), self.scu()
        scp.require_calling_aet = ["OTHER"]
        self.record(scp, "scp", calls)
        self.record(scu, "scu", calls)
        server = await self.serve(scp)
        await self.failure(scu.associate("127.0.0.1", server.port), AssociationRejected)
        rejections = [call for call in calls if call[1] == "on_association_rejected"]
        self.assertEqual(sorted(call[0] for call in rejections), ["scp", "scu"])
        self.assertEqual([call[2] for call in rejections], [AAssociateRJ(1, 1, 3)] * 2)

    async def test_aborted(self) -> None:
        """
        on_association_aborted, with the reason.
        """
        calls: list[tuple[Any, ...]] = []
        scp, scu = self.scp(), self.scu()
        self.record(scp, "scp", calls)
        self.record(scu, "scu", calls)
        server = await self.serve(scp)
        assoc = await scu.associate("127.0.0.1", server.port)
        await assoc.send_c_echo()
        (accepted,) = scp.active_associations
        ends = [assoc.when_ended(), accepted.when_ended()]
        assoc.abort()
        for end in ends:
            await end
        aborts = {call[0]: call[2] for call in calls if call[1] == "on_association_aborted"}
        self.assertEqual(set(aborts), {"scp", "scu"})
        self.assertIsInstance(aborts["scp"], AssociationAborted)
        self.assertEqual((aborts["scp"].by_peer, aborts["scu"].by_peer), (True, False))

    async def test_async_ops_window(self) -> None:
        """
        on_async_ops_window(nr_invoked, nr_performed); "If the callback is not implemented then no response ... will be sent".
        In the document its return values are ignored; here they take effect, because the window is real.
        """
        scp = self.scp()
        server = await self.serve(scp)
        proposal = AsyncOperationsWindow(5, 3)
        async with await self.scu().associate("127.0.0.1", server.port, ext_neg=[proposal]) as assoc:
            self.assertEqual(assoc.acceptor.asynchronous_operations, (1, 1))
        seen: list[tuple[int, int]] = []
        scp.on_async_ops_window = lambda invoked, performed: noting(seen, (invoked, performed), (4, 2))
        async with await self.scu().associate("127.0.0.1", server.port, ext_neg=[proposal]) as assoc:
            self.assertEqual(assoc.acceptor.asynchronous_operations, (2, 4))
        self.assertEqual(seen, [(5, 3)])

    async def test_window_that_cannot_be(self) -> None:
        """
        A return value that is not a pair of numbers, or is negative, is logged and gives no response; the association is
        established all the same.
        """
        scp = self.scp()
        server = await self.serve(scp)
        for answer, error in (((-1, 1), ValueError), (5, TypeError), (("a", "b"), TypeError)):
            scp.on_async_ops_window = lambda invoked, performed, answer=answer: answer
            proposal = AsyncOperationsWindow(5, 3)
            async with await self.scu().associate("127.0.0.1", server.port, ext_neg=[proposal]) as assoc:
                self.assertEqual(assoc.acceptor.asynchronous_operations, (1, 1))
            self.assertEqual(len(self.flushLoggedErrors(error)), 1)

    async def test_sop_class_extended(self) -> None:
        """
        on_sop_class_extended(app_info): "{SOP Class UID : Service Class Application Information} ... Return None if no response
        is to be sent". SOP Classes that were not proposed get no answer.
        """
        scp = self.scp()
        server = await self.serve(scp)
        items = [SOPClassExtended(str(CTImageStorage), b"\x01"), SOPClassExtended(str(MRImageStorage), b"\x02")]
        seen: list[dict[str, bytes]] = []
        for answer, expected in (
            (None, {}),
            ({}, {}),
            ({CTImageStorage: b"\x03"}, {CTImageStorage: b"\x03"}),
            ({CTImageStorage: b"\x03", "1.2.3": b"\x04"}, {CTImageStorage: b"\x03"}),
        ):
            scp.on_sop_class_extended = lambda app_info, answer=answer: noting(seen, app_info, answer)
            async with await self.scu().associate("127.0.0.1", server.port, ext_neg=items) as assoc:
                self.assertEqual(assoc.acceptor.sop_class_extended, expected)
        self.assertEqual(seen, [{CTImageStorage: b"\x01", MRImageStorage: b"\x02"}] * 4)
        scp.on_sop_class_extended = lambda app_info: "nonsense"
        async with await self.scu().associate("127.0.0.1", server.port, ext_neg=items) as assoc:
            self.assertEqual(assoc.acceptor.sop_class_extended, {})
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)

    async def test_sop_class_common_extended(self) -> None:
        """
        on_sop_class_common_extended(items): "The {SOP Class UID : SOPClassCommonExtendedNegotiation} items sent by the
        requestor". The returned items are accepted, and known to the acceptor. No response is sent.
        """
        scp = self.scp()
        item = SOPClassCommonExtended(str(CTImageStorage), "1.2.840.10008.4.2", (str(MRImageStorage),))
        seen: list[object] = []
        accepted: list[object] = []
        scp.on_sop_class_common_extended = lambda items: noting(seen, items, items)
        server = await self.serve(
            scp,
            evt_handlers=[(evt.EVT_ESTABLISHED, lambda e: accepted.append(e.assoc.acceptor.sop_class_common_extended))],
        )
        async with await self.scu().associate("127.0.0.1", server.port, ext_neg=[item]) as assoc:
            self.assertEqual(assoc.acceptor.sop_class_common_extended, {})
        self.assertEqual((seen, accepted), ([{CTImageStorage: item}], [{CTImageStorage: item}]))

    async def test_user_identity(self) -> None:
        """
        on_user_identity(user_id_type, primary_field, secondary_field, info): "secondary_field will be None unless the
        user_id_type is 2"; info has the requestor; it returns is_verified, response.
        """
        scp = self.scp()
        server = await self.serve(scp)
        seen: list[tuple[Any, ...]] = []

        def on_user_identity(
            user_id_type: int, primary_field: bytes, secondary_field: bytes | None, info: dict[str, Any]
        ) -> tuple[bool, bytes | None]:
            seen.append((user_id_type, primary_field, secondary_field, info))
            return primary_field != b"stranger", b"ticket"

        scp.on_user_identity = on_user_identity
        for identity in (UserIdentity(2, b"user", b"password"), UserIdentity(3, b"request", response_requested=True)):
            async with await self.scu().associate("127.0.0.1", server.port, ext_neg=[identity]) as assoc:
                expected = b"ticket" if identity.response_requested else None
                self.assertEqual(assoc.acceptor.user_identity, expected)
        asked = self.scu().associate("127.0.0.1", server.port, ext_neg=[UserIdentity(1, b"stranger")])
        error = await self.failure(asked, AssociationRejected)
        self.assertEqual((error.result, error.source, error.reason), (2, 2, 1))
        self.assertEqual(
            [each[:3] for each in seen],
            [(2, b"user", b"password"), (3, b"request", None), (1, b"stranger", None)],
        )
        info = seen[0][3]["requestor"]
        self.assertEqual((info["ae_title"], info["address"]), (b"SCU             ", "127.0.0.1"))
        self.assertGreater(info["port"], 0)

    async def test_subclass(self) -> None:
        """
        The callbacks as methods of a subclass.
        """

        class Own(AE):
            def on_c_echo(self, context: Any, info: dict[str, Any]) -> int:
                return 0x0122

        ae = Own("OWN")
        ae.add_supported_context(Verification)
        server = await self.serve(ae)
        contexts = [build_context(Verification)]
        async with await self.scu().associate("127.0.0.1", server.port, contexts=contexts) as assoc:
            self.assertEqual(await assoc.send_c_echo(), 0x0122)

    async def test_a_hook_of_the_server_comes_first(self) -> None:
        """
        Callbacks and hooks are one mechanism: a handler that is bound to a server takes precedence over the AE's callback.
        """
        scp = self.scp()
        scp.on_c_echo = lambda context, info: 0x0122
        server = await self.serve(scp, evt_handlers=[(evt.EVT_C_ECHO, lambda event: 0x0210)])
        async with await self.scu().associate("127.0.0.1", server.port) as assoc:
            self.assertEqual(await assoc.send_c_echo(), 0x0210)
            server.unbind(evt.EVT_C_ECHO, server.factory.hosts[0].handlers.bound()[0][1])
            self.assertEqual(await assoc.send_c_echo(), 0x0122)

    async def test_status_table(self) -> None:
        """Every status of the tables for C-ECHO and C-STORE, with and without warnings, is passed on unchanged."""
        scp = self.scp()
        server = await self.serve(scp)
        echo = (0x0000, 0x0122, 0x0210, 0x0211, 0x0212)
        store = (*echo, 0xB000, 0xB006, 0xB007, 0x0117, 0x0124, 0xA700, 0xA7FF, 0xA900, 0xA9FF, 0xC000, 0xCFFF)
        async with await self.scu().associate("127.0.0.1", server.port) as assoc:
            for code in echo:
                scp.on_c_echo = lambda context, info, code=code: code
                self.assertEqual(await assoc.send_c_echo(), code)
            for code in store:
                scp.on_c_store = lambda dataset, context, info, code=code: code
                status = await assoc.send_c_store(ct_image())
                self.assertEqual(status, code)
                expected = "Success" if code == 0 else "Warning" if code >> 12 == 0xB else "Failure"
                self.assertEqual(status.category.value, expected)

    async def test_role_selection(self) -> None:
        """
        "If None then ignore the proposal (if either scp_role or scu_role is None then both are assumed to be)". One of them
        alone is an error here, since it would have no effect.
        """
        scp = AE()
        self.assertRaises(ValueError, scp.add_supported_context, CTImageStorage, scp_role=True)
        scp.add_supported_context(CTImageStorage)
        server = await self.serve(scp)
        role = build_role(CTImageStorage, scp_role=True)
        async with await self.scu().associate("127.0.0.1", server.port, ext_neg=[role]) as assoc:
            self.assertEqual(assoc.acceptor.role_selection, {})
            (context,) = assoc.accepted_contexts
            self.assertEqual((context.as_scu, context.as_scp), (True, False))


class QueryCallbackTests(LoopbackTestCase):
    """on_c_find, on_c_get and on_c_move, which are generators, and the callbacks for C-CANCEL."""

    FIND = StudyRootQueryRetrieveInformationModelFind
    GET = StudyRootQueryRetrieveInformationModelGet
    MOVE = StudyRootQueryRetrieveInformationModelMove

    def both(self) -> tuple[AE, AE]:
        """Return an SCP and an SCU of the three services."""
        scp, scu = self.scp("SCP"), self.scu()
        for model in (self.FIND, self.GET, self.MOVE):
            scp.add_supported_context(model)
            scu.add_requested_context(model)
        scp.remove_supported_context(CTImageStorage)
        scp.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
        return scp, scu

    def keys(self) -> Dataset:
        """Return an identifier."""
        dataset = Dataset()
        dataset.QueryRetrieveLevel = "STUDY"
        dataset.StudyInstanceUID = "1.2.3"
        return dataset

    async def test_find(self) -> None:
        """
        on_c_find(dataset, context, info) yields (status, identifier).
        """
        scp, scu = self.both()
        seen: list[Any] = []

        def on_c_find(dataset: Dataset, context: Any, info: dict[str, Any]) -> Iterator[Any]:
            seen.append((dataset.StudyInstanceUID, context.abstract_syntax, info["parameters"]))
            yield 0xFF00, dataset
            status = Dataset()
            status.Status = 0xFF01
            yield status, dataset
            yield 0x0000, None

        scp.on_c_find = on_c_find
        server = await self.serve(scp)
        async with await scu.associate("127.0.0.1", server.port) as assoc:
            statuses = [int(status) async for status, _ in assoc.send_c_find(self.keys(), self.FIND, priority=1)]
        self.assertEqual(statuses, [0xFF00, 0xFF01, 0x0000])
        self.assertEqual(seen, [("1.2.3", self.FIND, {"message_id": 1, "priority": 1})])

    async def test_get(self) -> None:
        """
        on_c_get(dataset, context, info) yields how many, then (status, dataset).
        """
        scp, scu = self.both()

        def on_c_get(dataset: Dataset, context: Any, info: dict[str, Any]) -> Iterator[Any]:
            yield 2
            for number in range(2):
                yield 0xFF00, ct_image(f"{dataset.StudyInstanceUID}.{number}")
            yield 0x0000, None

        scp.on_c_get = on_c_get
        stored: list[str] = []
        scu.on_c_store = lambda dataset, context, info: noting(stored, dataset.SOPInstanceUID, 0)
        server = await self.serve(scp)
        roles = [build_role(CTImageStorage, scu_role=True, scp_role=True)]
        async with await scu.associate("127.0.0.1", server.port, ext_neg=roles) as assoc:
            result = await assoc.send_c_get(self.keys(), self.GET).when_done()
        self.assertEqual((result.status, result.suboperations.completed), (0, 2))
        self.assertEqual(stored, ["1.2.3.0", "1.2.3.1"])

    async def test_move(self) -> None:
        """
        on_c_move(dataset, move_aet, context, info) yields (addr, port), how many, then (status, dataset).
        """
        scp, scu = self.both()
        target = self.scp("TARGET")
        stored: list[str] = []
        target.on_c_store = lambda dataset, context, info: noting(stored, info["parameters"]["originator_aet"], 0)
        where = await self.serve(target)
        titles: list[bytes] = []

        def on_c_move(dataset: Dataset, move_aet: bytes, context: Any, info: dict[str, Any]) -> Iterator[Any]:
            titles.append(move_aet)
            if move_aet != b"TARGET          ":
                yield None, None
                return
            yield "127.0.0.1", where.port
            yield 1
            yield 0xFF00, ct_image()

        scp.on_c_move = on_c_move
        server = await self.serve(scp)
        async with await scu.associate("127.0.0.1", server.port) as assoc:
            result = await assoc.send_c_move(self.keys(), "TARGET", self.MOVE).when_done()
            self.assertEqual((result.status, result.suboperations.completed), (0, 1))
            failed = await self.failure(
                assoc.send_c_move(self.keys(), "NOBODY", self.MOVE).when_done(), OperationFailed
            )
            self.assertEqual(failed.status, 0xA801)
        self.assertEqual(titles, [b"TARGET          ", b"NOBODY          "])
        self.assertEqual(stored, [b"SCU             "])

    #: The statuses of the tables of on_c_find, on_c_get and on_c_move that end an operation.
    FINAL = {
        "find": (0x0000, 0xA700, 0xA900, 0xC000, 0xCFFF, 0xFE00),
        "get": (0x0000, 0xA701, 0xA702, 0xA900, *range(0xAA00, 0xAA05), 0xC000, 0xCFFF, 0xFE00, 0xB000),
        "move": (
            *(0x0000, 0xFE00, 0x0122, 0x0124, 0x0210, 0x0211, 0x0212, 0xA701, 0xA702, 0xA801, 0xA900),
            *(*range(0xAA00, 0xAA05), 0xC000, 0xCFFF),
        ),
    }

    async def test_status_tables(self) -> None:
        """Every status of the tables is passed on unchanged, and has the category that the table gives it."""
        scp, scu = self.both()
        where = await self.serve(self.scp("TARGET"))
        server = await self.serve(scp)
        others = {0x0000: "Success", 0xB000: "Warning", 0xFE00: "Cancel"}
        async with await scu.associate("127.0.0.1", server.port) as assoc:
            ask = {
                "find": lambda: assoc.send_c_find(self.keys(), self.FIND),
                "get": lambda: assoc.send_c_get(self.keys(), self.GET),
                "move": lambda: assoc.send_c_move(self.keys(), "TARGET", self.MOVE),
            }
            first: dict[str, list[Any]] = {"find": [], "get": [0], "move": [("127.0.0.1", where.port), 0]}
            for service, codes in self.FINAL.items():
                for code in codes:
                    answers = [*first[service], (code, None)]
                    setattr(scp, f"on_c_{service}", lambda *args, answers=answers: iter(answers))
                    responses: Any = ask[service]()
                    (status,) = [status async for status, _ in responses]
                    self.assertEqual(status, code, service)
                    self.assertEqual(status.category.value, others.get(code, "Failure"), hex(code))

    async def test_failed_list(self) -> None:
        """
        on_c_get and on_c_move: "If the status is 'Failed', 'Warning' or 'Cancel' then yield a Dataset with a (0008,0058)
        Failed SOP Instance UID List element".
        """
        scp, scu = self.both()
        where = await self.serve(self.scp("TARGET"))
        server = await self.serve(scp)
        failed = Dataset()
        failed.FailedSOPInstanceUIDList = ["1.2.3.1", "1.2.3.2"]
        async with await scu.associate("127.0.0.1", server.port) as assoc:
            for code in (0xA702, 0xB000, 0xFE00):
                scp.on_c_get = lambda dataset, context, info, code=code: iter([2, (code, failed)])
                scp.on_c_move = lambda dataset, move_aet, context, info, code=code: iter(
                    [("127.0.0.1", where.port), 2, (code, failed)]
                )
                for retrieval in (
                    assoc.send_c_get(self.keys(), self.GET),
                    assoc.send_c_move(self.keys(), "TARGET", self.MOVE),
                ):
                    answers = [(int(status), identifier) async for status, identifier in retrieval]
                    self.assertEqual(answers, [(code, failed)])

    async def test_cancel(self) -> None:
        """on_c_find_cancel() and the others are called, each for its own service. The operation ends whatever they return."""
        scp, scu = self.both()
        seen: list[str] = []

        def endless(dataset: Dataset, *others: Any) -> Iterator[Any]:
            while True:
                yield 0xFF00, dataset

        async def wait(dataset: Dataset, *others: Any) -> Any:
            await Deferred()

        scp.on_c_find = endless
        scp.on_c_get = scp.on_c_move = wait
        for name in ("on_c_find_cancel", "on_c_get_cancel", "on_c_move_cancel"):
            setattr(scp, name, lambda name=name: noting(seen, name, False))
        server = await self.serve(scp)
        async with await scu.associate("127.0.0.1", server.port) as assoc:
            found = assoc.send_c_find(self.keys(), self.FIND)
            await anext(found)
            found.cancel()
            statuses = [int(status) async for status, _ in found]
            self.assertEqual(statuses[-1], 0xFE00)
            for ask in (
                lambda: assoc.send_c_get(self.keys(), self.GET),
                lambda: assoc.send_c_move(self.keys(), "TARGET", self.MOVE),
            ):
                retrieval = ask()
                retrieval.cancel()
                self.assertEqual([int(status) async for status, _ in retrieval], [0xFE00])
        self.assertEqual(seen, ["on_c_find_cancel", "on_c_get_cancel", "on_c_move_cancel"])


class NormalisedCallbackTests(LoopbackTestCase):
    """
    The six of DIMSE-N.
    """

    async def test_all(self) -> None:
        """The callbacks get their arguments and info, and return (status, dataset), on_n_delete only the status."""
        seen: dict[str, Any] = {}
        scp, scu = self.scp(), self.scu()
        patient = Dataset()
        patient.PatientName = "Test^Case"
        for name in ("on_n_action", "on_n_create", "on_n_get", "on_n_set"):

            def callback(given: Any, context: Any, info: dict[str, Any], name: str = name) -> Any:
                seen[name] = (given, context.abstract_syntax, info["parameters"])
                return 0x0001, patient

            setattr(scp, name, callback)
        scp.on_n_delete = lambda context, info: noting(seen.setdefault("on_n_delete", []), info["parameters"], 0x0112)
        scu.on_n_event_report = lambda dataset, context, info: noting(
            seen.setdefault("on_n_event_report", []), (dataset, info["parameters"]), (0x0000, patient)
        )
        uid, instance = RTConventionalMachineVerification, "1.2.3"
        scp.add_supported_context(uid)
        scu.add_requested_context(uid)
        server = await self.serve(scp)
        async with await scu.associate("127.0.0.1", server.port) as assoc:
            (accepted,) = server.factory.associations
            expected = (0x0001, patient)
            self.assertEqual(await assoc.send_n_create(patient, uid, instance), expected)
            self.assertEqual(await assoc.send_n_set(patient, uid, instance), expected)
            self.assertEqual(await assoc.send_n_get([0x00100010], uid, instance), expected)
            self.assertEqual(await assoc.send_n_action(patient, 3, uid, instance), expected)
            self.assertEqual(await assoc.send_n_delete(uid, instance), 0x0112)
            self.assertEqual(await accepted.send_n_event_report(patient, 4, uid, instance), (0x0000, patient))
        affected = {"affected_sop_class": uid, "affected_sop_instance": instance}
        requested = {"requested_sop_class": uid, "requested_sop_instance": instance}
        self.assertEqual(
            seen,
            {
                "on_n_create": (patient, uid, {"message_id": 1, **affected}),
                "on_n_set": (patient, uid, {"message_id": 2, **requested}),
                "on_n_get": ([0x00100010], uid, {"message_id": 3, **requested}),
                "on_n_action": (patient, uid, {"message_id": 4, **requested, "action_type": 3}),
                "on_n_delete": [{"message_id": 5, **requested}],
                "on_n_event_report": [(patient, {"message_id": 1, **affected, "event_type": 4})],
            },
        )

    async def test_raising(self) -> None:
        """If one raises, the peer gets 0x0110."""
        scp, scu = self.scp(), self.scu()
        scp.on_n_create = lambda dataset, context, info: info["nothing"]
        scp.add_supported_context(ModalityPerformedProcedureStep)
        scu.add_requested_context(ModalityPerformedProcedureStep)
        server = await self.serve(scp)
        async with await scu.associate("127.0.0.1", server.port) as assoc:
            status, _ = await assoc.send_n_create(None, ModalityPerformedProcedureStep, "1.2.3")
        self.assertEqual(status, 0x0110)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
