"""
pynetdicom, in a process of its own, in both roles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from dicomtwist import (
    AssociationAborted,
    AssociationRejected,
    AsyncOperationsWindow,
    NoAcceptedContexts,
    NoPresentationContext,
    SOPClassCommonExtended,
    SOPClassExtended,
    UserIdentity,
    build_context,
    build_role,
    evt,
)
from tests.interop.common import (
    CT,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    Recorder,
    Store,
    store_stream,
)
from tests.interop.scripts import PynetdicomTestCase, told
from tests.peers import dataset_bytes, dicom_files, one_per_transfer_syntax

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
STORAGE_SERVICE = "1.2.840.10008.4.2"


class ScpTests(PynetdicomTestCase):
    """
    Our client, pynetdicom's server.
    """

    async def test_echo_and_store(self) -> None:
        """
        C-ECHO, and a C-STORE in each transfer syntax, byte for byte; several associations at once; the release.
        """
        peer = await self.scp()
        files = list(one_per_transfer_syntax(without_study=True).values())
        ae = self.requestor()
        for sop_class, syntax in dict.fromkeys((file.sop_class, file.transfer_syntax) for file in files):
            ae.add_requested_context(sop_class, syntax)
        async with await ae.associate("127.0.0.1", peer.port, ae_title="ANYBODY") as assoc:
            self.assertEqual(await assoc.send_c_echo(), 0)
            for file in files:
                self.assertEqual(await assoc.send_c_store(file.path), 0)
        stored = await peer.stored(len(files))
        for (syntax, instance, data), file in zip(stored, files, strict=True):
            expected = dataset_bytes(file.path)
            self.assertEqual((syntax, instance), (file.transfer_syntax, file.sop_instance))
            self.assertEqual(data == expected + b"\0" * (len(expected) & 1), True, file.name)
        await peer.told("released")
        seen = (await peer.told("established"))[0]
        self.assertEqual(seen["ae_title"], "TWISTSCU")
        self.assertEqual(seen["maximum_length"], ae.maximum_pdu_size)
        self.assertEqual(seen["implementation_class_uid"], ae.implementation_class_uid)
        self.assertEqual(seen["implementation_version_name"], ae.implementation_version_name)

        async def echo() -> int:
            async with await ae.associate("127.0.0.1", peer.port) as assoc:
                return await assoc.send_c_echo()

        results = await DeferredList([Deferred.fromCoroutine(echo()) for _ in range(8)])
        self.assertEqual(results, [(True, 0)] * 8)
        await peer.told("released", 9)

    async def test_conversion_and_status(self) -> None:
        """
        An acceptor that accepts only Implicit VR, and one that returns a warning.
        """
        peer = await self.scp(syntaxes=[IMPLICIT], status=0xB007)
        (file,) = (file for file in dicom_files() if file.name.endswith("CT_small.dcm"))
        (compressed,) = (file for file in dicom_files() if file.name.endswith("/MR_small_RLE.dcm"))
        ae = self.requestor((CT, [EXPLICIT, IMPLICIT]), (MR, [compressed.transfer_syntax, IMPLICIT]))
        async with await ae.associate("127.0.0.1", peer.port) as assoc:
            status = await assoc.send_c_store(file.path)
            self.assertEqual((status, status.category.name), (0xB007, "WARNING"))
            await self.assert_fails(assoc.send_c_store(compressed.path), NoPresentationContext)
        ((syntax, instance, _),) = await peer.stored(1)
        self.assertEqual((syntax, instance), (IMPLICIT, file.sop_instance))
        # MR with the compressed transfer syntax only: nothing is accepted, which has an exception of its own.
        ae = self.requestor((MR, compressed.transfer_syntax))
        error = await self.assert_fails(ae.associate("127.0.0.1", peer.port), NoAcceptedContexts)
        self.assertIn(MR, str(error))

    async def test_pdu_sizes(self) -> None:
        """
        An acceptor without a maximum PDU length, and with odd and small ones, on both sides.
        """
        (file,) = (file for file in dicom_files() if file.name.endswith("CT_small.dcm"))
        for theirs in (0, 129, 4097):
            peer = await self.scp(maximum_pdu_size=theirs)
            for ours in (0, 4097):
                ae = self.requestor((CT, EXPLICIT))
                async with await ae.associate("127.0.0.1", peer.port, max_pdu=ours) as assoc:
                    self.assertEqual(assoc.acceptor.maximum_length, theirs)
                    self.assertEqual(await assoc.send_c_store(file.path), 0)
            stored = await peer.stored(2)
            self.assertEqual([data == dataset_bytes(file.path) for _, _, data in stored], [True, True], theirs)

    async def test_negotiation(self) -> None:
        """
        pynetdicom's handlers get the items that we propose besides the contexts, and we get its answers.
        """
        peer = await self.scp()
        ae = self.requestor((CT, EXPLICIT), MR, FIND)
        items = [
            build_role(CT, scu_role=True, scp_role=True),
            build_role(MR, scp_role=True),
            AsyncOperationsWindow(5, 3),
            SOPClassExtended(FIND, b"\1\0\1"),
            SOPClassExtended(CT, b"\2"),
            SOPClassCommonExtended(CT, STORAGE_SERVICE, (MR, "1.2.840.10008.5.1.4.1.1.7")),
            UserIdentity(5, b"alice", response_requested=True),
        ]
        async with await ae.associate("127.0.0.1", peer.port, ext_neg=items) as assoc:
            roles = {context.abstract_syntax: (context.as_scu, context.as_scp) for context in assoc.accepted_contexts}
            self.assertEqual(roles, {CT: (True, True), MR: (False, True), FIND: (True, False)})
            granted = {uid: (item.scu_role, item.scp_role) for uid, item in assoc.acceptor.role_selection.items()}
            self.assertEqual(granted, {CT: (True, True), MR: (False, True)})
            self.assertEqual(assoc.acceptor.user_identity, b"hello")
            self.assertEqual(assoc.acceptor.sop_class_extended, {FIND: b"\1", CT: b"\2"})
            # pynetdicom calls its handler, but operates synchronously, and says so.
            self.assertEqual(assoc.acceptor.asynchronous_operations, (1, 1))
            self.assertEqual(assoc.requestor.asynchronous_operations, (5, 3))
            self.assertEqual(assoc.acceptor.ae_title, "ANY-SCP")
            self.assertTrue(assoc.acceptor.implementation_version_name.startswith("PYNETDICOM"))
            error = await self.assert_fails(
                assoc.send_c_store(next(file.path for file in dicom_files() if file.sop_class == MR)),
                NoPresentationContext,
            )
            self.assertIn("as SCU", str(error))
        self.assertEqual(await peer.told("user"), [5])
        self.assertEqual(await peer.told("extended"), [{FIND: "010001", CT: "02"}])
        self.assertEqual(await peer.told("common"), [{CT: [STORAGE_SERVICE, [MR, "1.2.840.10008.5.1.4.1.1.7"]]}])
        self.assertEqual(await peer.told("window"), [[5, 3]])
        (seen,) = await peer.told("established")
        self.assertEqual(seen["roles"], {CT: [True, True], MR: [False, True]})
        self.assertEqual(seen["asynchronous_operations"], [5, 3])

    async def test_user_identities(self) -> None:
        """
        Each type of user identity, with and without a response, and a user who is refused.
        """
        peer = await self.scp()
        ae = self.requestor()
        for kind in range(1, 6):
            for wanted in (False, True):
                identity = UserIdentity(kind, b"token", b"pass" if kind == 2 else b"", response_requested=wanted)
                async with await ae.associate("127.0.0.1", peer.port, ext_neg=[identity]) as assoc:
                    # A username has no response (PS3.7 D.3.3.7.2), and pynetdicom omits the item.
                    self.assertEqual(assoc.acceptor.user_identity, b"hello" if wanted and kind > 2 else None, kind)
        identity = UserIdentity(1, b"mallory")
        error = await self.assert_fails(ae.associate("127.0.0.1", peer.port, ext_neg=[identity]), AssociationRejected)
        self.assertEqual((error.source, error.reason), (2, 1))
        seen = [(line["user"], line["primary"], line["secondary"]) for line in told(peer.process) if "user" in line]
        expected_seen = [(kind, "token", "pass" if kind == 2 else "") for kind in range(1, 6) for _ in range(2)]
        self.assertEqual(seen, [*expected_seen, (1, "mallory", "")])

    async def test_rejections(self) -> None:
        """
        Every rejection reason of pynetdicom, and the connection error when pynetdicom has stopped.
        """
        peer = await self.scp(require_called_aet=True, require_calling_aet=["TWISTSCU"], maximum_associations=1)
        ae = self.requestor()
        error = await self.assert_fails(ae.associate("127.0.0.1", peer.port), AssociationRejected)
        self.assertEqual((error.result, error.source, error.reason), (1, 1, 7))
        self.assertIn("called AE title not recognised", str(error))
        other = self.requestor(ae_title="SOMEBODY")
        error = await self.assert_fails(
            other.associate("127.0.0.1", peer.port, ae_title="PYNETDICOM"), AssociationRejected
        )
        self.assertEqual((error.result, error.source, error.reason), (1, 1, 3))
        first = await ae.associate("127.0.0.1", peer.port, ae_title="PYNETDICOM")
        error = await self.assert_fails(
            ae.associate("127.0.0.1", peer.port, ae_title="PYNETDICOM"), AssociationRejected
        )
        self.assertEqual((error.result, error.source, error.reason), (2, 3, 2))
        self.assertFalse(error.is_permanent)
        await first.release()
        await peer.told("released")
        assoc = await ae.associate("127.0.0.1", peer.port, ae_title="PYNETDICOM")
        assoc.abort()
        await peer.told("aborted")
        error = await self.assert_fails(assoc.release(), AssociationAborted)
        self.assertFalse(error.by_peer)


class ScuTests(PynetdicomTestCase):
    """
    pynetdicom's client, our server.
    """

    async def test_echo_and_store(self) -> None:
        """
        C-ECHO, and a C-STORE in each transfer syntax, byte for byte; the release; an abort.
        """
        store, streamed = Store(), Store()
        released, aborted = Recorder(), Recorder()
        server = await self.serve((evt.EVT_C_STORE, store), (evt.EVT_RELEASED, released), (evt.EVT_ABORTED, aborted))
        streaming = await self.serve((evt.EVT_C_STORE, store_stream, [streamed]))
        files = list(one_per_transfer_syntax(without_study=True).values())
        lines = await self.scu(
            server.port,
            """
for port in (port, options["streaming"]):
    ae = AE("PYNETDICOM")
    ae.add_requested_context(Verification)
    for sop_class, syntax in options["contexts"]:
        ae.add_requested_context(sop_class, syntax)
    assoc = associate(ae)
    tell(echo=assoc.send_c_echo().Status)
    for path in options["paths"]:
        tell(status=assoc.send_c_store(path).Status)
    assoc.release()
    tell(released=assoc.is_released)
assoc = associate(ae)
assoc.abort()
port = int(sys.argv[1])
assoc = associate(ae)
assoc.abort()
""",
            streaming=streaming.port,
            contexts=sorted({(file.sop_class, file.transfer_syntax) for file in files}),
            paths=[file.path for file in files],
        )
        self.assertEqual(lines, ([{"echo": 0}] + [{"status": 0}] * len(files) + [{"released": True}]) * 2)
        for each in (store, streamed):
            for stored, file in zip(each.stored, files, strict=True):
                self.assertEqual(
                    (stored.sop_class, stored.sop_instance, stored.transfer_syntax),
                    (file.sop_class, file.sop_instance, file.transfer_syntax),
                )
                expected = dataset_bytes(file.path)
                self.assertIn(stored.dataset == expected, (True,), file.name)
        await released.wait()
        await aborted.wait()
        requestor = released.events[0].assoc.requestor
        self.assertEqual(requestor.ae_title, "PYNETDICOM")
        self.assertEqual(requestor.maximum_length, 16382)
        self.assertTrue(aborted.events[0].reason.by_peer)

    async def test_pdu_sizes(self) -> None:
        """
        A requestor without a maximum PDU length, and with odd and small ones, on both sides; our side keeps to the maximum.
        """
        (file,) = (file for file in dicom_files() if file.name.endswith("CT_small.dcm"))
        ports, stores = [], []
        for ours in (0, 4096, 16383, 65537):
            stores.append(Store())
            server = await self.serve((evt.EVT_C_STORE, stores[-1]), maximum_pdu_size=ours)
            ports.append(server.port)
        lines = await self.scu(
            0,
            """
for port in options["ports"]:
    for size in options["sizes"]:
        ae = AE()
        ae.add_requested_context(CT, "1.2.840.10008.1.2.1")
        assoc = associate(ae, max_pdu=size)
        tell(status=assoc.send_c_store(options["path"]).Status, maximum=assoc.acceptor.maximum_length)
        assoc.release()
""",
            ports=ports,
            sizes=[0, 129, 4097, 131072],
            path=file.path,
        )
        self.assertEqual([line["status"] for line in lines], [0] * 16)
        self.assertEqual([line["maximum"] for line in lines[::4]], [0, 4096, 16383, 65537])
        expected = dataset_bytes(file.path)
        for store in stores:
            self.assertEqual([data == expected for data in store.datasets], [True] * 4)

    async def test_negotiation(self) -> None:
        """
        Our handlers get the items that pynetdicom proposes, and pynetdicom gets their answers.
        """
        seen: dict[str, Any] = {}

        def user(event: Any) -> tuple[bool, bytes]:
            seen["user"] = (event.user_id_type, event.primary_field, event.secondary_field)
            return True, b"ticket"

        async def extended(event: Any) -> dict[str, bytes]:
            seen["extended"] = event.app_info
            return {FIND: b"\1\0", "1.2.3": b"not proposed"}

        def common(event: Any) -> dict[str, Any]:
            seen["common"] = event.items
            return {}

        def window(event: Any) -> tuple[int, int]:
            seen["window"] = (event.nr_invoked, event.nr_performed)
            return 4, 99

        established = Recorder()
        server = await self.serve(
            (evt.EVT_USER_ID, user),
            (evt.EVT_SOP_EXTENDED, extended),
            (evt.EVT_SOP_COMMON, common),
            (evt.EVT_ASYNC_OPS, window),
            (evt.EVT_ESTABLISHED, established),
            contexts=[build_context(VERIFICATION), build_context(FIND), *_both_roles(CT), *_only_scu(MR)],
        )
        (line,) = await self.scu(
            server.port,
            """
def sub(item, **values):
    for name, value in values.items():
        setattr(item, name, value)
    return item

ae = AE("PYNETDICOM")
for uid in (CT, MR, FIND):
    ae.add_requested_context(uid)
assoc = associate(ae, ext_neg=[
    build_role(CT, scu_role=True, scp_role=True),
    build_role(MR, scu_role=True, scp_role=True),
    sub(AsynchronousOperationsWindowNegotiation(), maximum_number_operations_invoked=7,
        maximum_number_operations_performed=2),
    sub(SOPClassExtendedNegotiation(), sop_class_uid=FIND, service_class_application_information=b"\\1\\1\\1"),
    sub(SOPClassCommonExtendedNegotiation(), sop_class_uid=CT, service_class_uid="1.2.840.10008.4.2",
        related_general_sop_class_identification=[MR]),
    sub(UserIdentityNegotiation(), user_identity_type=3, primary_field=b"kerberos", positive_response_requested=True),
])
acceptor = assoc.acceptor
tell(
    established=assoc.is_established, answer=asked_for(acceptor),
    identity=acceptor.user_identity.server_response,
    contexts={str(context.abstract_syntax): [context.as_scu, context.as_scp] for context in assoc.accepted_contexts},
)
assoc.release()
""",
        )
        self.assertEqual(seen["user"], (3, b"kerberos", b""))
        self.assertEqual(seen["extended"], {FIND: b"\1\1\1"})
        self.assertEqual(list(seen["common"]), [CT])
        self.assertEqual(seen["common"][CT].service_class_uid, STORAGE_SERVICE)
        self.assertEqual(seen["common"][CT].related_general_sop_classes, (MR,))
        self.assertEqual(seen["window"], (7, 2))
        association = established.events[0].assoc
        self.assertEqual(association.requestor.asynchronous_operations, (7, 2))
        # The window is that of the requestor: it may invoke 4 operations and is asked to perform 2.
        self.assertEqual(association.acceptor.asynchronous_operations, (2, 4))
        roles = {context.abstract_syntax: (context.as_scu, context.as_scp) for context in association.accepted_contexts}
        self.assertEqual(roles, {CT: (True, True), MR: (False, True), FIND: (False, True)})
        self.assertTrue(line["established"])
        self.assertEqual(line["identity"], "ticket")
        answer = line["answer"]
        self.assertEqual(answer["asynchronous_operations"], [4, 2])
        self.assertEqual(answer["roles"], {CT: [True, True], MR: [True, False]})
        self.assertEqual(answer["sop_class_extended"], {FIND: "0100"})
        self.assertEqual(answer["maximum_length"], association.settings.maximum_pdu_size)
        self.assertEqual(answer["implementation_class_uid"], association.settings.implementation_class_uid)
        self.assertEqual(line["contexts"], {CT: [True, True], MR: [True, False], FIND: [True, False]})

    async def test_rejections(self) -> None:
        """
        Our rejection reasons as pynetdicom gets them.
        """
        server = await self.serve(
            (evt.EVT_USER_ID, lambda event: (event.primary_field != b"mallory", None)),
            require_called_aet=True,
            require_calling_aet=["FRIEND"],
            maximum_associations=1,
        )
        lines = await self.scu(
            server.port,
            """
def ae(title):
    ae = AE(title)
    ae.add_requested_context(Verification)
    return ae

associate(ae("FRIEND"), ae_title="SOMEBODY")
associate(ae("FOE"), ae_title="TWIST")
identity = UserIdentityNegotiation()
identity.user_identity_type, identity.primary_field = 1, b"mallory"
associate(ae("FRIEND"), ae_title="TWIST", ext_neg=[identity])
first = associate(ae("FRIEND"), ae_title="TWIST")
associate(ae("FRIEND"), ae_title="TWIST")
tell(status=first.send_c_echo().Status)
first.release()
""",
        )
        self.assertEqual(
            lines,
            [
                {"rejected": [1, 1, 7]},
                {"rejected": [1, 1, 3]},
                {"rejected": [2, 2, 1]},
                {"rejected": [2, 3, 2]},
                {"status": 0},
            ],
        )

    async def test_statuses(self) -> None:
        """
        A status with its other fields.
        """
        from dicomtwist import Status

        status = Status(0xA900, "C-STORE", "wrong patient", (0x00100020, 0x00100010))
        server = await self.serve((evt.EVT_C_STORE, lambda event: status))
        (file,) = (file for file in dicom_files() if file.name.endswith("CT_small.dcm"))
        (line,) = await self.scu(
            server.port,
            """
ae = AE()
ae.add_requested_context(CT, "1.2.840.10008.1.2.1")
assoc = associate(ae)
response = assoc.send_c_store(options["path"])
tell(status=response.Status, comment=response.ErrorComment, elements=[int(tag) for tag in response.OffendingElement])
assoc.release()
""",
            path=str(Path(file.path)),
        )
        self.assertEqual(line, {"status": 0xA900, "comment": "wrong patient", "elements": [0x00100020, 0x00100010]})


def _both_roles(uid: str) -> list[Any]:
    context = build_context(uid)
    context.scu_role = context.scp_role = True
    return [context]


def _only_scu(uid: str) -> list[Any]:
    context = build_context(uid)
    context.scu_role, context.scp_role = True, False
    return [context]
