"""
Negotiation with DCMTK besides contexts: roles, user identity, and several AE titles.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import UID
from twisted.logger import globalLogPublisher

from dicomtwist import AE, AssociationRejected, NoAcceptedContexts, UserIdentity, build_context, build_role, evt
from dicomtwist.presentation import PresentationContext
from dicomtwist.ul.items import RoleSelection
from tests.interop.common import CT, LOOPBACK, VERIFICATION, InteropTestCase, Recorder, Store
from tests.peers import Process, Result, dcmtk, dcmtk_storescp, free_port, run, start
from tests.secrets import Leaks

MR = "1.2.840.10008.5.1.4.1.1.4"
SC = "1.2.840.10008.5.1.4.1.1.7"
US = "1.2.840.10008.5.1.4.1.1.6.1"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
#: A private SOP Class.
PRIVATE = "1.2.3.4.5.6.7"

#: DCMTK's names of SOP Classes, in its configuration and in its output.
NAMES = {
    CT: "CTImageStorage",
    MR: "MRImageStorage",
    SC: "SecondaryCaptureImageStorage",
    US: "UltrasoundImageStorage",
    PRIVATE: PRIVATE,
}
#: DCMTK's names of roles, in its configuration and in its output, by (SCU, SCP).
ROLES = {(True, True): "BOTH", (False, True): "SCP", (True, False): "SCU"}
PRINTED = {(True, True): "SCP/SCU", (False, True): "SCP", (True, False): "SCU", None: "Default"}

Roles = tuple[bool, bool]

#: (proposed roles, supported roles): the resulting roles of the requestor, SCU and SCP; ``None`` for no role, which
#: rejects. The four outcomes are both, the default, reversed, none (PS3.7 D.3.3.4).
OUTCOMES: dict[tuple[Roles, Roles], Roles | None] = {
    ((True, True), (True, True)): (True, True),
    ((True, True), (True, False)): (True, False),
    ((True, True), (False, True)): (False, True),
    ((True, True), (False, False)): None,
    ((False, True), (True, True)): (False, True),
    ((False, True), (True, False)): None,
    ((False, True), (False, True)): (False, True),
    ((False, True), (False, False)): None,
    ((True, False), (True, True)): (True, False),
    ((True, False), (True, False)): (True, False),
    ((True, False), (False, True)): None,
    ((True, False), (False, False)): None,
}


def ct_small() -> str:
    """A small CT image."""
    return str(get_testdata_file("CT_small.dcm", download=False))


def configuration(path: Path, roles: dict[str, Roles | None]) -> Path:
    """Write a configuration of DCMTK with the profile Test, which has these SOP Classes with these roles."""
    lines = ["[[TransferSyntaxes]]", "[Uncompressed]"]
    lines += ["TransferSyntax1 = LittleEndianExplicit", "TransferSyntax2 = LittleEndianImplicit"]
    lines += ["[[PresentationContexts]]", "[Contexts]"]
    lines += [f"PresentationContext{number} = {NAMES[uid]}\\Uncompressed" for number, uid in enumerate(roles, 1)]
    selected = [f"{NAMES[uid]}\\{ROLES[role]}" for uid, role in roles.items() if role is not None]
    if selected:
        lines += ["[[SCPSCURoleSelection]]", "[Selected]"]
        lines += [f"Role{number} = {words}" for number, words in enumerate(selected, 1)]
    lines += ["[[Profiles]]", "[Test]", "PresentationContexts = Contexts"]
    lines += ["SCPSCURoleSelection = Selected"] if selected else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def printed_contexts(text: str) -> dict[str, tuple[str, str | None]]:
    """Return DCMTK's output about an A-ASSOCIATE-AC: for each SOP Class the result, and the role if it was accepted."""
    answer = text.rpartition("BEGIN A-ASSOCIATE-AC")[2].partition("END A-ASSOCIATE-AC")[0]
    found: dict[str, tuple[str, str | None]] = {}
    for part in answer.split("Context ID:")[1:]:
        result = re.search(r"\((.*)\)", part)
        name = re.search(r"Abstract Syntax: =?(\S+)", part)
        role = re.search(r"Accepted SCP/SCU Role: (\S+)", part)
        assert result and name, part
        accepted = result[1] == "Accepted"
        found[name[1]] = (result[1], role[1] if role and accepted else None)
    return found


def roles_of(contexts: list[PresentationContext]) -> dict[str, Roles]:
    """Return (SCU, SCP) of one side by SOP Class."""
    return {str(context.abstract_syntax): (bool(context.as_scu), bool(context.as_scp)) for context in contexts}


async def storescu(port: int, *args: object) -> Result:
    """Run storescu with all its debug output."""
    return await run(dcmtk("storescu"), "-d", *args[:-1], "127.0.0.1", port, args[-1])


class RolesOfTheRequestorTests(InteropTestCase):
    """
    DCMTK proposes roles, our side answers.
    """

    async def answer_to(self, supported: Roles | None) -> tuple[dict[str, Any], Any]:
        """
        Let storescu propose both roles, SCP and SCU for three SOP Classes, for which our side supports *supported*.

        :returns: its output about the answer, and our association.
        """
        contexts = [build_context(CT)]
        for uid in (MR, SC, US):
            context = build_context(uid)
            if supported is not None:
                context.scu_role, context.scp_role = supported
            contexts.append(context)
        established, store = Recorder(), Store()
        server = await self.serve((evt.EVT_ESTABLISHED, established), (evt.EVT_C_STORE, store), contexts=contexts)
        proposals: dict[str, Roles | None] = {CT: None, MR: (True, True), SC: (False, True), US: (True, False)}
        path = configuration(Path(self.mktemp()), proposals)
        result = await storescu(server.port, "-xf", path, "Test", ct_small())
        self.assertEqual(result.code, 0, result.text)
        # The image was sent in the context without roles.
        self.assertEqual([stored.sop_class for stored in store.stored], [CT])
        association = established.events[0].assoc
        asked = association.requestor.role_selection
        self.assertEqual(
            asked, {MR: RoleSelection(MR, True, True), SC: RoleSelection(SC, False, True), US: RoleSelection(US, True)}
        )
        printed = printed_contexts(result.text)
        self.assertEqual(printed.pop("CTImageStorage"), ("Accepted", "Default"))
        return printed, association

    async def test_outcomes(self) -> None:
        """
        All roles that our side can support, against all that can be proposed: both sides have the same result.
        """
        for supported in ((True, True), (True, False), (False, True), (False, False)):
            printed, association = await self.answer_to(supported)
            ours = roles_of(association.accepted_contexts)
            self.assertEqual(ours.pop(CT), (False, True))
            rejected = {str(context.abstract_syntax): context.result for context in association.rejected_contexts}
            for uid, proposed in ((MR, (True, True)), (SC, (False, True)), (US, (True, False))):
                outcome = OUTCOMES[proposed, supported]
                with self.subTest(supported=supported, proposed=proposed):
                    if outcome is None:
                        self.assertEqual(printed[NAMES[uid]], ("User Rejection", None))
                        self.assertEqual(rejected[uid], 1)
                        self.assertNotIn(uid, ours)
                    else:
                        self.assertEqual(printed[NAMES[uid]], ("Accepted", PRINTED[outcome]))
                        # The printed roles are those of the requestor; ours are the opposite ones.
                        self.assertEqual(ours[uid], outcome[::-1])
                        granted = association.acceptor.role_selection[uid]
                        self.assertEqual((granted.scu_role, granted.scp_role), outcome)

    async def test_not_answered(self) -> None:
        """
        If our side sets no roles, none are answered, and the default roles apply.
        """
        printed, association = await self.answer_to(None)
        self.assertEqual(set(printed.values()), {("Accepted", "Default")})
        self.assertEqual(association.acceptor.role_selection, {})
        self.assertEqual(set(roles_of(association.accepted_contexts).values()), {(False, True)})

    async def test_getscu(self) -> None:
        """
        getscu proposes to be SCP of every storage class; if it is accepted as SCP, our side is the SCU.
        """
        contexts = [build_context(STUDY_ROOT_GET)]
        for uid in (CT, MR):
            contexts.append(build_context(uid))
            contexts[-1].scu_role = uid == MR
            contexts[-1].scp_role = True
        established = Recorder()
        server = await self.serve((evt.EVT_ESTABLISHED, established), contexts=contexts)
        await run(dcmtk("getscu"), "-d", "-S", "-k", "QueryRetrieveLevel=STUDY", "127.0.0.1", server.port)
        await established.wait()
        association = established.events[0].assoc
        roles = roles_of(association.accepted_contexts)
        self.assertEqual(roles, {STUDY_ROOT_GET: (False, True), CT: (True, False), MR: (True, False)})
        self.assertEqual(association.acceptor.role_selection[CT], RoleSelection(CT, False, True))
        self.assertGreater(len(association.requestor.role_selection), 50)


class RolesOfTheAcceptorTests(InteropTestCase):
    """
    Our side proposes roles, DCMTK answers.
    """

    ITEMS = (
        build_role(MR, scu_role=True, scp_role=True),
        build_role(SC, scp_role=True),
        build_role(US, scu_role=True),
    )

    async def roles_at(self, port: int, title: str, *proposals: str) -> Any:
        """Propose the roles; return the association, which is already released."""
        ae = self.requestor(CT, MR, SC, US, *proposals)
        async with await ae.associate("127.0.0.1", port, ae_title=title, ext_neg=self.ITEMS) as association:
            pass
        return association

    async def storescp(self, roles: dict[str, Roles | None]) -> tuple[int, Process]:
        """Start storescp with a profile of roles."""
        path = configuration(Path(self.mktemp()), roles)
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        port = free_port()
        process = await start(self, dcmtk("storescp"), "-d", "-xf", path, "Test", "-od", folder, port, ready=port)
        return port, process

    async def test_storescp(self) -> None:
        """
        The roles that storescp prints as accepted are those of our side; a SOP Class without a role in it is not accepted.
        """
        for supported in ((True, True), (True, False), (False, True)):
            port, process = await self.storescp({CT: None, MR: supported, SC: supported, US: supported})
            association = await self.roles_at(port, "STORESCP")
            await process.wait_for("I: Association Release")
            printed = printed_contexts(process.text)
            self.assertEqual(printed[NAMES[CT]], ("Accepted", "Default"))
            ours = roles_of(association.accepted_contexts)
            self.assertEqual(ours[CT], (True, False))
            for item in self.ITEMS:
                uid = item.sop_class_uid
                with self.subTest(supported=supported, sop_class=NAMES[uid]):
                    result, role = printed[NAMES[uid]]
                    self.assertEqual(uid in ours, result == "Accepted", printed)
                    if uid in ours:
                        granted = next((each for each, name in PRINTED.items() if name == role), None) or (True, False)
                        # It may grant more than was proposed; our roles are no more than the proposal.
                        self.assertEqual(ours[uid], (item.scu_role and granted[0], item.scp_role and granted[1]))

    async def test_dcmqrscp(self) -> None:
        """
        dcmqrscp grants the proposed roles, so that C-GET can work; a class without a proposal has the default roles.
        """
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        port = free_port()
        path = folder / "dcmqrscp.cfg"
        path.write_text(
            f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\nHostTable BEGIN\nHostTable END\n"
            "VendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\nARCHIVE {folder.absolute()} RW (9, 1024mb) ANY\nAETable END\n"
        )
        await start(self, dcmtk("dcmqrscp"), "--single-process", "-c", path, ready=port)
        association = await self.roles_at(port, "ARCHIVE", STUDY_ROOT_GET)
        self.assertEqual(
            roles_of(association.accepted_contexts),
            {CT: (True, False), MR: (True, True), SC: (False, True), US: (True, False), STUDY_ROOT_GET: (True, False)},
        )
        self.assertEqual(association.acceptor.role_selection, {item.sop_class_uid: item for item in self.ITEMS})
        self.assertTrue(association.is_released)

    async def test_without_roles(self) -> None:
        """
        storescp without a profile answers no roles: then our roles are the default ones, or none.
        """
        port = await dcmtk_storescp(self, self.mktemp(), "-d")
        association = await self.roles_at(port, "STORESCP")
        for uid, roles in roles_of(association.accepted_contexts).items():
            granted = association.acceptor.role_selection.get(uid)
            if granted is None:
                self.assertEqual(roles, (True, False), NAMES[uid])
            else:
                self.assertEqual(roles, (granted.scu_role, granted.scp_role), NAMES[uid])


class UserIdentityTests(InteropTestCase):
    """
    storescu sends the identity of its user.
    """

    def setUp(self) -> None:
        self.leaks = Leaks(b"TheUser", b"ThePassword", b"TheTicket", b"TheAnswer")
        globalLogPublisher.addObserver(self.leaks)
        self.addCleanup(globalLogPublisher.removeObserver, self.leaks)
        self.ticket = Path(self.mktemp())
        self.ticket.parent.mkdir(parents=True, exist_ok=True)
        self.ticket.write_bytes(b"TheTicket")

    #: (flags, the type and the fields for the handler); "" stands for the file.
    FORMS = (
        (["-usr", "TheUser"], (1, b"TheUser", b"")),
        (["-usr", "TheUser", "-epw"], (2, b"TheUser", b"")),
        (["-usr", "TheUser", "-pwd", "ThePassword"], (2, b"TheUser", b"ThePassword")),
        (["-kt", ""], (3, b"TheTicket", b"")),
        (["--saml", ""], (4, b"TheTicket", b"")),
        (["--jwt", ""], (5, b"TheTicket", b"")),
    )

    async def ask(self, handler: Callable[[evt.Event], Any], *, response: bool) -> list[Result]:
        """Let storescu send an identity in each form."""
        self.ended = Recorder()
        server = await self.serve(
            (evt.EVT_USER_ID, handler), (evt.EVT_C_STORE, Store()), (evt.EVT_CONN_CLOSE, self.ended)
        )
        results: list[Result] = []
        for flags, _ in self.FORMS:
            words = [word or self.ticket for word in flags] + (["-rsp"] if response else [])
            results.append(await storescu(server.port, "-R", *words, ct_small()))
        await self.ended.wait(len(self.FORMS))
        for event in self.ended.events:
            self.leaks.look_at(event, event.assoc, event.assoc.requestor, event.assoc.acceptor)
        return results

    def handler(self, answer: Any) -> Callable[[evt.Event], Any]:
        """Return a handler that records the identity and returns *answer*, or raises it."""
        self.seen: list[tuple[Any, ...]] = []

        def handle(event: evt.Event) -> Any:
            self.leaks.look_at(event)
            self.seen.append((event.user_id_type, event.primary_field, event.secondary_field, event.response_requested))
            if isinstance(answer, Exception):
                raise answer
            return answer

        return handle

    async def test_fields(self) -> None:
        """
        The handler gets the type and the fields; there is no response if none is requested.
        """
        results = await self.ask(self.handler((True, b"TheAnswer")), response=False)
        self.assertEqual(self.seen, [(*fields, False) for _, fields in self.FORMS])
        for result in results:
            self.assertEqual(result.code, 0, result.text)
            answer = result.text.rpartition("BEGIN A-ASSOCIATE-AC")[2]
            self.assertIn("User Identity Negotiation Response:  none", answer)
        self.assertEqual(self.leaks.found, [])

    async def test_positive_response(self) -> None:
        """
        A user name, with or without a passcode, is confirmed with an empty response; tickets with that of the handler.
        """
        results = await self.ask(self.handler((True, b"TheAnswer")), response=True)
        self.assertEqual(self.seen, [(*fields, True) for _, fields in self.FORMS])
        lengths: list[int] = []
        for result in results:
            self.assertEqual(result.code, 0, result.text)
            length = re.search(r"Server Response \(not dumped\) length: (\d+)", result.text)
            assert length, result.text
            lengths.append(int(length[1]))
        self.assertEqual(lengths, [0, 0, 0, 9, 9, 9])
        self.assertEqual(self.leaks.found, [])

    async def test_rejection(self) -> None:
        """
        A refused user is rejected in each form: transient, by the provider, no reason given.
        """
        results = await self.ask(self.handler((False, b"TheAnswer")), response=True)
        for result in results:
            self.assertNotEqual(result.code, 0)
            self.assertIn("Result: Rejected Transient, Source: Service Provider (ACSE Related)", result.text)
        self.assertEqual(len(self.seen), len(self.FORMS))
        self.assertTrue(all(event.assoc.is_rejected for event in self.ended.events))
        self.assertEqual(self.leaks.found, [])
        self.assertGreater(self.leaks.looked_at, 6)

    async def test_a_handler_that_raises(self) -> None:
        """
        The user is rejected too; the traceback is in the log, the identity is not.
        """
        results = await self.ask(self.handler(LookupError("the directory is down")), response=True)
        for result in results:
            self.assertNotEqual(result.code, 0)
            self.assertIn("Rejected Transient", result.text)
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), len(self.FORMS))
        self.assertEqual(self.leaks.found, [])

    async def test_no_handler(self) -> None:
        """
        Without a handler every user is accepted without a response; a client that requires a response leaves.
        """
        ended = Recorder()
        server = await self.serve((evt.EVT_C_STORE, Store()), (evt.EVT_ABORTED, ended))
        words = ["-R", "-usr", "TheUser", "-pwd", "ThePassword"]
        result = await storescu(server.port, *words, ct_small())
        self.assertEqual(result.code, 0, result.text)
        result = await storescu(server.port, *words, "-rsp", ct_small())
        self.assertIn("Positive response requested but none received", result.text)
        await ended.wait()
        self.assertEqual(self.leaks.found, [])

    async def test_to_dcmtk(self) -> None:
        """
        storescp accepts each form and sends no response; its rejection gives no reason either.
        """
        for flags in ((), ("--refuse",)):
            port = await dcmtk_storescp(self, self.mktemp(), "-d", *flags)
            for kind in range(1, 6):
                fields = (b"TheUser", b"ThePassword") if kind == 2 else (b"TheTicket", b"")
                ae = self.requestor(CT)
                asking = ae.associate("127.0.0.1", port, ext_neg=[UserIdentity(kind, *fields, response_requested=True)])
                if flags:
                    error = await self.assert_fails(asking, AssociationRejected)
                    self.leaks.look_at(error, ae)
                    continue
                async with await asking as association:
                    self.assertIsNone(association.acceptor.user_identity)
                    identity: Any = association.requestor.user_identity
                    self.assertEqual((identity.primary, identity.secondary), fields)
                    self.leaks.look_at(association, association.requestor, ae)
        self.assertEqual(self.leaks.found, [])


class PromiscuousTests(InteropTestCase):
    """
    A server that accepts every storage SOP Class.
    """

    def private(self) -> Path:
        """Return a file with an instance of a private SOP Class."""
        dataset = dcmread(ct_small())
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(PRIVATE)
        path = Path(self.mktemp())
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path)
        return path

    async def promiscuous(self, store: Store) -> int:
        """Start a server that supports only Verification by name."""
        ae = AE("TWIST")
        ae.add_supported_context(VERIFICATION)
        ae.settings.promiscuous = True
        server = await ae.start_server(LOOPBACK, evt_handlers=[(evt.EVT_C_STORE, store)])
        self.addCleanup(server.shutdown)
        return server.port

    async def test_storescu(self) -> None:
        """
        An instance of a private SOP Class arrives complete, as does one of a known class; a query is not accepted.
        """
        store = Store()
        port = await self.promiscuous(store)
        path = configuration(Path(self.mktemp()), {PRIVATE: None, CT: None})
        file = self.private()
        for each in (file, ct_small()):
            result = await storescu(port, "-xf", path, "Test", each)
            self.assertEqual(result.code, 0, result.text)
        self.assertEqual([stored.sop_class for stored in store.stored], [PRIVATE, CT])
        self.assertEqual(store.stored[0].sop_instance, dcmread(file).SOPInstanceUID)
        self.assertIn(dcmread(file).PixelData, store.stored[0].dataset)
        result = await run(dcmtk("findscu"), "-v", "-S", "-k", "QueryRetrieveLevel=STUDY", "127.0.0.1", port)
        self.assertNotEqual(result.code, 0)
        self.assertIn("No Acceptable Presentation Contexts", result.text)

    async def test_dcmsend(self) -> None:
        """
        dcmsend proposes the SOP Class in the file.
        """
        store = Store()
        port = await self.promiscuous(store)
        result = await run(dcmtk("dcmsend"), "-v", "127.0.0.1", port, self.private())
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual([stored.sop_class for stored in store.stored], [PRIVATE])

    async def test_otherwise(self) -> None:
        """
        Any other server rejects the context, since it does not know the SOP Class.
        """
        store = Store()
        server = await self.serve((evt.EVT_C_STORE, store))
        path = configuration(Path(self.mktemp()), {PRIVATE: None, CT: None})
        result = await storescu(server.port, "-xf", path, "Test", self.private())
        self.assertNotEqual(result.code, 0)
        self.assertEqual(printed_contexts(result.text)[PRIVATE], ("Abstract Syntax Not Supported", None))
        self.assertEqual(store.stored, [])


class NothingAcceptedTests(InteropTestCase):
    """
    An association without an accepted context.
    """

    async def test_by_dcmtk(self) -> None:
        """
        The caller gets the SOP Classes that were not accepted with the reasons, and the association is released.
        """
        folder = self.mktemp()
        process_port = await dcmtk_storescp(self, folder)
        ae = self.requestor(STUDY_ROOT_GET, PRIVATE)
        error = await self.assert_fails(ae.associate("127.0.0.1", process_port, ae_title="ARCHIVE"), NoAcceptedContexts)
        self.assertEqual(
            str(error),
            "ARCHIVE accepted none of the 2 presentation contexts: 1.2.3.4.5.6.7: Abstract Syntax Not Supported;"
            f" Study Root Query/Retrieve Information Model - GET ({STUDY_ROOT_GET}): Abstract Syntax Not Supported",
        )
        self.assertEqual(ae.active_associations, [])

    async def test_by_us(self) -> None:
        """
        DCMTK's client reports that no context was acceptable, and releases the association.
        """
        ended = Recorder()
        server = await self.serve((evt.EVT_CONN_CLOSE, ended), contexts=[build_context(CT)])
        result = await run(dcmtk("echoscu"), "-v", "127.0.0.1", server.port)
        self.assertNotEqual(result.code, 0)
        self.assertIn("No Acceptable Presentation Contexts", result.text)
        await ended.wait()


class TitleTests(InteropTestCase):
    """
    Several AE titles on one port.
    """

    async def test_each_its_own(self) -> None:
        """
        The called title selects the contexts, the handlers and the settings, on one port.
        """
        images, checks, own = AE("IMAGES"), AE("CHECKS"), AE("OWN")
        images.add_supported_context(CT)
        images.require_called_aet = True
        checks.add_supported_context(VERIFICATION)
        own.add_supported_context(VERIFICATION)
        own.add_supported_context(CT)
        own.require_calling_aet = ["FRIEND"]
        called: list[tuple[str, str]] = []

        def echo(event: evt.DIMSEEvent, name: str) -> int:
            called.append((name, event.assoc.acceptor.ae_title))
            return 0 if name == "checks" else 0x0122

        checks.bind(evt.EVT_C_ECHO, echo, ["checks"])
        own.bind(evt.EVT_C_ECHO, echo, ["own"])
        store = Store()
        server = await images.start_server(LOOPBACK, evt_handlers=[(evt.EVT_C_STORE, store)], others=[checks, own])
        self.addCleanup(server.shutdown)

        async def echoscu(*flags: str) -> Result:
            return await run(dcmtk("echoscu"), "-v", *flags, "127.0.0.1", server.port)

        result = await echoscu("-aec", "CHECKS")
        self.assertEqual(result.code, 0, result.text)
        result = await echoscu("-aec", "IMAGES")
        self.assertIn("No Acceptable Presentation Contexts", result.text)
        result = await echoscu("-aec", "OWN")
        self.assertIn("Reason: Calling AE Title Not Recognized", result.text)
        result = await echoscu("-aec", "OWN", "-aet", "FRIEND")
        self.assertIn("Unknown Status: 0x122", result.text)
        result = await echoscu("-aec", "NOBODY")
        self.assertIn("Reason: Called AE Title Not Recognized", result.text)
        self.assertEqual(called, [("checks", "CHECKS"), ("own", "OWN")])
        result = await storescu(server.port, "-R", "-aec", "IMAGES", ct_small())
        self.assertEqual((result.code, len(store.stored)), (0, 1), result.text)
        result = await storescu(server.port, "-R", "-aec", "CHECKS", ct_small())
        self.assertNotEqual(result.code, 0)
        self.assertEqual(len(store.stored), 1)
        # A handler that start_server got belongs to the AE that started the server.
        result = await storescu(server.port, "-R", "-aec", "OWN", "-aet", "FRIEND", ct_small())
        self.assertNotEqual(result.code, 0, result.text)
        self.assertEqual(len(store.stored), 1)
