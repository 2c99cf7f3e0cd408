"""Access rules on a network in memory: refused requests, their statuses, and the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from pydicom import Dataset
from twisted.internet.address import IPv4Address
from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogPublisher

from dicomtwist import AE, AssociationRejected, Server, UserIdentity, build_context, evt
from dicomtwist.access.enforcement import Access, Policy
from dicomtwist.access.rules import Identity, parse_rules
from dicomtwist.access.users import Users, hash_passcode
from dicomtwist.dimse.messages import CFindRQ, CFindRSP
from dicomtwist.errors import OperationFailed
from dicomtwist.runtime.executors import Executors
from dicomtwist.sop_class import (
    ModalityPerformedProcedureStep,
    ModalityWorklistInformationFind,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    UnifiedProcedureStepPush,
)
from dicomtwist.testing import MemoryNetwork
from dicomtwist.ul.items import UserInformation
from dicomtwist.ul.pdu import AAssociateAC, AAssociateRJ
from tests.memory import CONTEXTS, CT, VERIFICATION, MemoryTestCase, instance
from tests.secrets import Leaks

NOT_AUTHORISED = 0x0124
SOP_CLASSES = (
    ModalityPerformedProcedureStep,
    ModalityWorklistInformationFind,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    UnifiedProcedureStepPush,
)


class Elsewhere(MemoryNetwork):
    """A listening socket whose clients have an address that the test chooses."""

    address = "10.1.0.5"

    def _free_address(self) -> IPv4Address:
        found = super()._free_address()
        return IPv4Address("TCP", self.address, found.port)


def one_match(event: evt.IdentifierEvent) -> Iterator[Any]:
    yield 0xFF00, Dataset()


def nothing_to_get(event: evt.IdentifierEvent) -> Iterator[Any]:
    yield 0


def nothing_to_move(event: evt.IdentifierEvent) -> Iterator[Any]:
    yield "127.0.0.1", 104
    yield 0


class AccessTestCase(MemoryTestCase):
    """An SCP with handlers for all services, behind rules."""

    def setUp(self) -> None:
        super().setUp()
        self.network: Elsewhere = Elsewhere()
        self.scp = AE("SCP", reactor=self.network)
        self.scu = AE("SCU", reactor=self.network)
        contexts = [*CONTEXTS, *(build_context(uid) for uid in SOP_CLASSES)]
        self.scp.supported_contexts = self.scu.requested_contexts = contexts
        self.asked: list[evt.EventType] = []
        self.lines: list[str] = []
        look = cast(ILogObserver, self.look)
        globalLogPublisher.addObserver(look)
        self.addCleanup(globalLogPublisher.removeObserver, look)

    def look(self, event: LogEvent) -> None:
        self.lines.append(eventAsText(event, includeTimestamp=False, includeSystem=False))

    def noted(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Make a handler whose calls are recorded."""

        def noting(event: evt.Event) -> Any:
            self.asked.append(event.event)
            return handler(event)

        return noting

    def guarded(self, policy: Policy | None = None) -> Server:
        """Listen with *policy*, or with the default policy."""
        self.access = Access(Policy() if policy is None else policy, Executors(self.network).passcodes)
        success = self.noted(lambda event: 0)
        with_list = self.noted(lambda event: (0, None))
        handlers = [
            (evt.EVT_C_STORE, success),
            (evt.EVT_C_FIND, self.noted(one_match)),
            (evt.EVT_C_GET, self.noted(nothing_to_get)),
            (evt.EVT_C_MOVE, self.noted(nothing_to_move)),
            *((event, with_list) for event in (evt.EVT_N_CREATE, evt.EVT_N_SET, evt.EVT_N_ACTION, evt.EVT_N_GET)),
            (evt.EVT_N_DELETE, success),
        ]
        return self.listen(*self.access.guarded(handlers))

    def rules(self, *tables: dict[str, Any], **more: Any) -> Policy:
        return Policy(parse_rules(list(tables)), **more)

    def statuses(self, association: Any) -> dict[str, int]:
        """Send one request of each operation; return the statuses."""
        keys = Dataset()
        keys.QueryRetrieveLevel = "STUDY"

        def last(answers: Any) -> int:
            try:
                self.network.result_of(answers.collect())
            except OperationFailed as error:
                return int(error.status)
            return 0

        send = association
        find, worklist = StudyRootQueryRetrieveInformationModelFind, ModalityWorklistInformationFind
        result = self.network.result_of
        return {
            "echo": int(result(send.send_c_echo())),
            "store": int(result(send.send_c_store(instance()))),
            "find": last(send.send_c_find(keys, find)),
            "worklist": last(send.send_c_find(keys, worklist)),
            "get": last(send.send_c_get(keys, StudyRootQueryRetrieveInformationModelGet)),
            "move": last(send.send_c_move(keys, "SCU", StudyRootQueryRetrieveInformationModelMove)),
            "mpps": int(result(send.send_n_create(Dataset(), ModalityPerformedProcedureStep, "1.2.3"))[0]),
            "commit": int(result(send.send_n_action(keys, 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1"))[0]),
            "other": int(result(send.send_n_create(Dataset(), UnifiedProcedureStepPush, "1.2.3"))[0]),
        }


class Operations(AccessTestCase):
    """A refused operation gets status 0x0124, and its handler is not called."""

    def refused(self, policy: Policy | None = None, address: str = "10.1.0.5") -> set[str]:
        """Return the operations that are refused."""
        self.network.address = address
        self.guarded(policy)
        association = self.associate()
        statuses = self.statuses(association)
        self.network.result_of(association.release())
        refused = {name for name, status in statuses.items() if status == NOT_AUTHORISED}
        self.assertEqual({status for name, status in statuses.items() if name not in refused} - {0x0000}, set())
        # Every operation except C-ECHO has a handler here.
        self.assertEqual(len(self.asked), len(statuses) - len(refused | {"echo"}))
        self.assertEqual(len([line for line in self.lines if "0x0124" in line]), len(refused), self.lines)
        return refused

    def test_strangers(self) -> None:
        self.assertEqual(self.refused(), {"find", "worklist", "get", "move", "mpps", "commit", "other"})

    def test_this_machine(self) -> None:
        self.assertEqual(self.refused(address="127.0.0.1"), set())

    def test_worklist_is_not_find(self) -> None:
        refused = self.refused(self.rules({"allow": ["find"]}))
        self.assertEqual(refused, {"echo", "store", "worklist", "get", "move", "mpps", "commit", "other"})

    def test_modalities(self) -> None:
        refused = self.refused(self.rules({"calling": "SCU", "allow": ["worklist", "mpps", "commit", "echo"]}))
        self.assertEqual(refused, {"store", "find", "get", "move", "other"})

    def test_a_context_of_one_does_not_hide_the_other(self) -> None:
        """A request whose SOP Class differs from that of its context needs the operations of both."""
        for allow, context in (("worklist", 5), ("find", 7)):
            self.network = Elsewhere()
            self.scp = AE("SCP", reactor=self.network)
            self.scp.supported_contexts = CONTEXTS + [build_context(uid) for uid in SOP_CLASSES]
            self.guarded(self.rules({"allow": allow}))
            peer = self.network.scripted_client(104)
            find, worklist = str(StudyRootQueryRetrieveInformationModelFind), str(ModalityWorklistInformationFind)
            peer.request((1, VERIFICATION), (5, find), (7, worklist))
            peer.take()
            named = worklist if context == 5 else find
            peer.send_message(context, CFindRQ(message_id=1, affected_sop_class_uid=named), b"")
            ((response, _),) = peer.messages()
            self.assertNotIn(cast(CFindRSP, response).status, (0x0000, 0xFF00))
            self.assertEqual(self.asked, [])
            peer.close()

    def test_the_peer_learns_no_rules(self) -> None:
        """The Error Comment names the operation, and the log the nearest rule."""
        self.guarded(
            self.rules({"allow": "echo"}, {"name": "inner", "calling": "WS*", "allow": ["find", "get", "store"]})
        )
        association = self.associate()
        keys = Dataset()
        keys.QueryRetrieveLevel = "STUDY"
        result = self.network.result_of
        models = StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet
        refused = []
        for answers in (association.send_c_find(keys, models[0]), association.send_c_get(keys, models[1])):
            refused.append(self.assertRaises(OperationFailed, result, answers.collect()).status)
        find, get = refused
        stored = result(association.send_c_store(instance()))
        for status, name in ((find, "find"), (get, "get"), (stored, "store")):
            self.assertEqual(status, NOT_AUTHORISED)
            self.assertEqual(status.error_comment, f"no rule allows {name}")
        lines = [line for line in self.lines if "rule 2 'inner'" in line]
        self.assertEqual(len(lines), 3, self.lines)
        for line in lines:
            self.assertIn("the calling AE title is 'SCU', not WS*", line)

    def test_one_line_for_many_instances(self) -> None:
        self.guarded(self.rules({"allow": "echo"}))
        association = self.associate()
        for _ in range(5):
            self.assertEqual(self.network.result_of(association.send_c_store(instance())), NOT_AUTHORISED)
        self.network.result_of(association.release())
        (line,) = [line for line in self.lines if "0x0124" in line]
        self.assertEqual(
            line, "C-STORE of 'SCU' at 10.1.0.5 refused with 0x0124: no rule allows store: there is no rule with store"
        )

    def test_streaming(self) -> None:
        """A streaming handler stays streaming behind the rules, and a refused data set is not stored anywhere."""
        streamed: list[int] = []

        @evt.streaming
        async def handle(event: evt.StoreEvent) -> int:
            async for chunk in event.stream:
                streamed.append(len(chunk))
            return 0

        access = Access(self.rules({"allow": "store"}), Executors(self.network).passcodes)
        self.listen(*access.guarded([(evt.EVT_C_STORE, handle)]))
        association = self.associate()
        self.assertEqual(self.network.result_of(association.send_c_store(instance(300_000))), 0)
        self.assertGreater(len(streamed), 1)
        streamed.clear()
        access.change(self.rules({"allow": "echo"}), None)
        self.assertEqual(self.network.result_of(association.send_c_store(instance(300_000))), NOT_AUTHORISED)
        self.assertEqual(streamed, [])
        self.assertEqual(self.network.result_of(association.send_c_echo()), 0)
        self.network.result_of(association.release())

    def test_rules_that_change(self) -> None:
        """New rules apply at once, also to an established association, which goes on."""
        server = self.guarded(self.rules({"allow": "echo"}))
        association = self.associate()
        send = association.send_c_store
        self.assertEqual(self.network.result_of(send(instance())), NOT_AUTHORISED)
        self.access.change(self.rules({"calling": "SCU", "allow": "store"}), server)
        self.assertEqual(self.network.result_of(send(instance())), 0)
        self.assertEqual(self.network.result_of(association.send_c_echo()), NOT_AUTHORISED)
        self.network.result_of(association.release())


class Associations(AccessTestCase):
    """A peer that may do nothing is rejected."""

    def rejected(self, **options: Any) -> tuple[int, int, int]:
        reason = self.failureResultOf(self.asking(**options), AssociationRejected).value
        return reason.result, reason.source, reason.reason

    def test_reasons(self) -> None:
        self.guarded(self.rules({"called": "SCP", "calling": "SCU", "from": "10.1.0.0/16", "allow": "store"}))
        self.assertEqual(self.rejected(ae_title="ELSE"), (1, 1, 7))
        self.scu.ae_title = "ELSE"
        self.assertEqual(self.rejected(ae_title="SCP"), (1, 1, 3))
        self.scu.ae_title = "SCU"
        self.network.address = "10.2.0.1"
        self.assertEqual(self.rejected(ae_title="SCP"), (1, 1, 1))
        lines = [line for line in self.lines if " requested " in line]
        self.assertEqual(len(lines), 3)
        self.assertIn("no rule has this called AE title", lines[0])
        self.assertIn("the nearest is rule 1: the called AE title is 'ELSE', not SCP", lines[0])
        self.assertIn("no rule has this calling AE title", lines[1])
        self.assertIn("the nearest is rule 1: the calling AE title is 'ELSE', not SCU", lines[1])
        self.assertIn("no rule allows anything to this address", lines[2])
        self.assertIn("the nearest is rule 1: the address is '10.2.0.1', not in 10.1.0.0/16", lines[2])
        self.network.address = "10.1.0.1"
        self.network.result_of(self.associate(ae_title="SCP").release())

    def test_rejecting_is_for_who_is_asked(self) -> None:
        """An association that was answered can no longer be rejected; a reason is one byte."""
        server = self.guarded()
        association = self.associate()
        (accepted,) = server.factory.associations
        accepted.reject(1, 1, 1)
        self.assertTrue(association.is_established)
        self.assertRaises(ValueError, accepted.reject, 1, 1, 256)
        self.network.result_of(association.release())


class UsersAtTheDoor(AccessTestCase):
    """User identities (PS3.7 D.3.3.7) in rules."""

    def setUp(self) -> None:
        super().setUp()
        self.leaks = Leaks(b"ThePassword", b"TheTicket")
        globalLogPublisher.addObserver(self.leaks)
        self.addCleanup(globalLogPublisher.removeObserver, self.leaks)
        path = Path(self.mktemp())
        entries = [hash_passcode(name, b"ThePassword", n=16) for name in ("alice", "bob")]
        path.write_text("".join(f"{entry}\n" for entry in entries))
        self.users = Users(path)

    def tearDown(self) -> None:
        super().tearDown()
        self.assertEqual(self.leaks.found, [])

    def answer(self, kind: int = 2, primary: bytes = b"alice", secondary: bytes = b"ThePassword") -> Any:
        """Return the outcome for a user identity, after the delay that an earlier one may have caused."""
        self.network.advance(30)
        peer = self.network.scripted_client(104)
        secondary = secondary if kind == 2 else b""
        identity = UserIdentity(kind, primary, secondary, response_requested=True)
        peer.request((1, VERIFICATION), (3, CT), information=UserInformation(user_identity=identity))
        (answer,) = peer.take()
        peer.close()
        self.network.flush()
        return answer

    def test_passcodes(self) -> None:
        self.guarded(self.rules({"user": "alice", "allow": "store"}, users=self.users))
        accepted = self.answer()
        self.assertIsInstance(accepted, AAssociateAC)
        self.assertEqual(accepted.user_information.user_identity_response, b"")
        for wrong in ((2, b"alice", b"ThePasswort"), (2, b"carol"), (2, b"bob"), (1, b"alice"), (3, b"TheTicket")):
            self.assertEqual(self.answer(*wrong), AAssociateRJ(2, 2, 1), wrong[:2])
        # Without an identity there is no user.
        peer = self.network.scripted_client(104)
        peer.request((1, VERIFICATION))
        self.assertEqual(peer.take(), [AAssociateRJ(1, 1, 1)])
        peer.close()

    def test_what_a_user_may(self) -> None:
        self.guarded(self.rules({"user": "alice", "allow": "store"}, {"allow": "echo"}, users=self.users))
        identity = UserIdentity(2, b"alice", b"ThePassword")
        association = self.associate(ext_neg=[identity])
        self.assertEqual(self.network.result_of(association.send_c_store(instance())), 0)
        self.assertEqual(self.network.result_of(association.send_c_echo()), 0)
        self.network.result_of(association.release())
        association = self.associate(ext_neg=[UserIdentity(2, b"bob", b"ThePassword")])
        self.assertEqual(self.network.result_of(association.send_c_store(instance())), NOT_AUTHORISED)
        self.network.result_of(association.release())
        association = self.associate()
        self.assertEqual(self.network.result_of(association.send_c_store(instance())), NOT_AUTHORISED)
        self.network.result_of(association.release())

    def test_a_user_who_is_removed(self) -> None:
        """Also on an established association, whatever else the rules match."""
        rules = ({"user": "alice", "allow": "store"}, {"allow": "echo"})
        server = self.guarded(self.rules(*rules, users=self.users))
        association = self.associate(ext_neg=[UserIdentity(2, b"alice", b"ThePassword")])
        stranger = self.associate()
        path = Path(self.mktemp())
        path.write_text("")
        self.access.change(self.rules(*rules, users=Users(path)), server)
        self.assertEqual(self.network.result_of(association.send_c_store(instance())), NOT_AUTHORISED)
        self.assertEqual(self.network.result_of(association.send_c_echo()), NOT_AUTHORISED)
        self.assertIn("the user 'alice' is not confirmed any more", "\n".join(self.lines))
        self.assertEqual(self.network.result_of(stranger.send_c_echo()), 0)
        self.access.change(self.rules(*rules, users=self.users), server)
        self.assertEqual(self.network.result_of(association.send_c_store(instance())), 0)
        for one in (association, stranger):
            self.network.result_of(one.release())

    def test_taken_as_it_comes(self) -> None:
        unchecked = frozenset((Identity.USERNAME, Identity.KERBEROS))
        rules = ({"user": "alice", "allow": "store"}, {"identity": "kerberos", "allow": "store"})
        self.guarded(self.rules(*rules, unchecked=unchecked))
        for kind, primary, accepted in (
            (1, b"alice", True),
            (1, b"bob", False),
            (3, b"TheTicket", True),
            (5, b"x", False),
        ):
            answer = self.answer(kind, primary)
            self.assertIs(type(answer), AAssociateAC if accepted else AAssociateRJ, (kind, primary))

    def test_nobody_is_asked(self) -> None:
        """If no rule has a condition on users, an identity is neither confirmed nor refused."""
        server = self.guarded()
        answer = self.answer(2, b"mallory", b"whatever")
        self.assertIsInstance(answer, AAssociateAC)
        self.assertIsNone(answer.user_information.user_identity_response)
        self.access.change(self.rules({"allow": "echo"}, users=self.users), server)
        self.assertEqual(self.answer(2, b"mallory", b"whatever"), AAssociateRJ(2, 2, 1))
        self.access.change(Policy(), server)
        self.assertIsInstance(self.answer(2, b"mallory", b"whatever"), AAssociateAC)

    def test_strangers_cost_no_passcode(self) -> None:
        """A peer that matches no rule under any user name is rejected before a passcode is checked."""
        self.guarded(self.rules({"from": "10.2.0.0/16", "user": "alice", "allow": "store"}, users=self.users))
        self.network.works = False
        self.assertEqual(self.answer(), AAssociateRJ(1, 1, 1))
        self.network.works = True
