"""Associations: how they come about in both roles, and the operations on them."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError

from dicomtwist import (
    AE,
    AssociationAborted,
    AssociationRejected,
    AsyncOperationsWindow,
    DataSetError,
    NoAcceptedContexts,
    NoPresentationContext,
    NotEstablished,
    Status,
    UserIdentity,
    build_context,
    evt,
)
from dicomtwist.dimse.messages import RESPONSES, CEchoRSP, CFindRQ, CStoreRSP, Message, Response
from dicomtwist.errors import REJECT_REASONS, REJECT_RESULTS, REJECT_SOURCES
from dicomtwist.scp import SERVICES
from dicomtwist.testing import ScriptedPeer
from dicomtwist.ul.items import AnsweredContext, UserInformation
from dicomtwist.ul.pdu import AAbort, AAssociateAC, AAssociateRJ, AAssociateRQ, AReleaseRP, AReleaseRQ
from tests.memory import CONTEXTS, CT, VERIFICATION, MemoryTestCase, echo, encoded, instance, part10, store


def statuses(messages: list[tuple[Message, bytes]]) -> list[tuple[int, int]]:
    """(Message ID, status) of each response."""
    found = []
    for message, _ in messages:
        assert isinstance(message, Response)
        found.append((message.message_id_being_responded_to, message.status))
    return found


class Establishment(MemoryTestCase):
    def test_both_roles(self) -> None:
        association, accepted = self.both(ae_title="CALLED")
        self.assertTrue(association.is_requestor)
        self.assertTrue(accepted.is_acceptor)
        for side in (association, accepted):
            self.assertTrue(side.is_established)
            self.assertFalse(side.is_rejected or side.is_aborted or side.is_released)
            self.assertEqual(side.requestor.ae_title, "SCU")
            self.assertEqual([context.abstract_syntax for context in side.accepted_contexts], [VERIFICATION, CT])
            self.assertIsNone(side.end_reason)
        self.assertEqual(association.acceptor.ae_title, "CALLED")
        self.assertEqual(association.bytes_sent, accepted.bytes_received)
        self.assertEqual(self.scp.active_associations, [accepted])
        self.assertEqual(self.scu.active_associations, [association])
        self.assertIn("established", repr(association))
        self.network.result_of(association.release())
        self.assertEqual((association.is_released, accepted.is_released), (True, True))
        self.assertEqual((self.scp.active_associations, self.scu.active_associations), ([], []))
        self.assert_clean()

    def test_a_host_name(self) -> None:
        self.listen()
        asking = self.scu.associate("pacs.example.org", 104)
        association = self.network.result_of(asking)
        self.assertEqual(association.remote.address, "127.0.0.1")

    def test_nobody_listens(self) -> None:
        """The error of the connection is as it is; its traceback says where to."""
        error = self.failureResultOf(self.asking(9), ConnectionRefusedError).value
        self.assertEqual(error.__notes__, ["while dicomtwist connected to 127.0.0.1 port 9"])
        asking = self.scu.associate("tcp:pacs.example.org:9")
        self.network.flush()
        error = self.failureResultOf(asking, ConnectionRefusedError).value
        self.assertEqual(error.__notes__, ["while dicomtwist connected to tcp:pacs.example.org:9"])
        self.assert_clean()

    def test_each_rejection_has_words(self) -> None:
        for result, result_words in REJECT_RESULTS.items():
            for (source, reason), words in REJECT_REASONS.items():
                peer = self.network.scripted_server(105)
                asking = self.asking(105)
                peer.send(AAssociateRJ(result, source, reason))
                error = self.failureResultOf(asking, AssociationRejected).value
                self.assertEqual((error.result, error.source, error.reason), (result, source, reason))
                for part in (result_words, REJECT_SOURCES[source], words):
                    self.assertIn(part, str(error))
                self.assertEqual(error.is_permanent, result == 1)
                self.assertIsNotNone(peer.closed)
                self.assert_clean()
                self.network.ports.clear()

    def test_a_rejection_with_codes_that_are_none(self) -> None:
        peer = self.network.scripted_server(105)
        asking = self.asking(105)
        peer.send(AAssociateRJ(9, 8, 7))
        self.assertIn("(9, 8, 7)", str(self.failureResultOf(asking, AssociationRejected).value))

    def test_the_requestor_of_a_rejection_tells_the_truth(self) -> None:
        peer = self.network.scripted_server(105)
        seen: list[Any] = []
        handler = (evt.EVT_REJECTED, lambda event: seen.append(event.assoc))
        asking = self.asking(105, evt_handlers=[handler])
        peer.send(AAssociateRJ(1, 1, 7))
        self.failureResultOf(asking, AssociationRejected)
        (association,) = seen
        self.assertTrue(association.is_rejected)
        self.assertFalse(association.is_established or association.is_aborted or association.is_released)
        self.assertFalse(association.was_established)
        self.assertIsInstance(association.end_reason, AssociationRejected)

    def test_our_rejections(self) -> None:
        self.scp.require_called_aet = True
        self.scp.require_calling_aet = ["SCU", "SCRIPTED"]
        self.scp.maximum_associations = 1
        self.listen()
        error = self.failureResultOf(self.asking(ae_title="OTHER"), AssociationRejected).value
        self.assertEqual((error.result, error.source, error.reason), (1, 1, 7))
        stranger = AE("STRANGER", reactor=self.network)
        stranger.requested_contexts = CONTEXTS
        asking = stranger.associate("127.0.0.1", 104, ae_title="SCP")
        self.network.flush()
        error = self.failureResultOf(asking, AssociationRejected).value
        self.assertEqual((error.result, error.source, error.reason), (1, 1, 3))
        self.associate(ae_title="SCP")
        error = self.failureResultOf(self.asking(ae_title="SCP"), AssociationRejected).value
        self.assertEqual((error.result, error.source, error.reason), (2, 3, 2))
        peer = self.network.scripted_client(104)
        peer.request((1, VERIFICATION), called="OTHER")
        self.assertEqual(peer.take(), [AAssociateRJ(1, 1, 7)])
        self.assertIsNone(peer.closed, "the one that asked closes")
        peer.close()

    def test_the_limit_holds_for_those_that_are_decided_about_at_once(self) -> None:
        self.scp.maximum_associations = 1
        verifying: list[Deferred[Any]] = []

        def verify(event: evt.Event) -> Deferred[Any]:
            verifying.append(Deferred())
            return verifying[-1]

        self.listen((evt.EVT_USER_ID, verify))
        identity = [UserIdentity(1, b"someone")]
        first, second = self.asking(ext_neg=identity), self.asking(ext_neg=identity)
        for deferred in verifying:
            deferred.callback((True, None))
        self.network.flush()
        self.successResultOf(first)
        self.assertEqual(self.failureResultOf(second, AssociationRejected).value.reason, 2)

    def test_no_context_is_accepted(self) -> None:
        self.scp.supported_contexts = [build_context("1.2.840.10008.5.1.4.1.1.4")]
        server = self.listen()
        error = self.failureResultOf(self.asking(), NoAcceptedContexts).value
        self.assertIn("none of the 2 presentation contexts", str(error))
        self.assertIn(VERIFICATION, str(error))
        self.assertEqual(server.active_associations, [])
        self.assert_clean()

    def test_contexts_that_were_not_accepted(self) -> None:
        peer = self.network.scripted_server(105)
        asking = self.asking(105)
        peer.accept(results=[0, 3])
        association = self.successResultOf(asking)
        (refused,) = association.rejected_contexts
        self.assertEqual((refused.abstract_syntax, refused.result), (CT, 3))
        error = self.failureResultOf(association.send_c_store(instance()), NoPresentationContext).value
        self.assertIn("did not accept", str(error))

    def test_something_else_than_an_answer(self) -> None:
        for answer in (AReleaseRQ(), AReleaseRP(), AAssociateRQ("A", "B"), b"HTTP/1.1 400 Bad Request\r\n\r\n"):
            peer = self.network.scripted_server(105)
            asking = self.asking(105)
            peer.take()
            peer.send(answer)
            (abort,) = peer.take()
            self.assertIsInstance(abort, AAbort)
            self.assertNoResult(asking)
            peer.close()
            error = self.failureResultOf(asking, AssociationAborted).value
            self.assertFalse(error.by_peer)
            self.network.ports.clear()
            self.assert_clean()

    def test_a_request_and_more_in_one_read(self) -> None:
        # Only the answer tells the requestor what it may send: what comes before is out of place.
        for more in (
            [AAbort()],
            [AReleaseRQ()],
            [AAssociateRQ("A", "B")],
            [b"\xff" * 20],
            ScriptedPeer.encode_message(1, echo()),
        ):
            self.scp = AE("SCP", reactor=self.network)
            self.scp.supported_contexts = CONTEXTS
            server = self.listen()
            peer = self.network.scripted_client(104)
            request = AAssociateRQ("SCP", "SCRIPTED")
            peer.send(request, *more)
            peer.take()
            self.assertIsInstance(peer.closed or peer.pdus[-1], Exception | AAbort | AReleaseRP)
            self.assertEqual(server.active_associations, [])
            peer.close()
            self.assert_clean()
            self.network.ports.clear()

    def test_an_answer_and_an_abort_in_one_read(self) -> None:
        peer = self.network.scripted_server(105)
        asking = self.asking(105)
        echoes: list[Deferred[Status]] = []
        asking.addCallback(lambda association: echoes.append(association.send_c_echo()))
        request = peer.take()[0]
        assert isinstance(request, AAssociateRQ)
        answer = AAssociateAC(
            "A", "B", (AnsweredContext(1, 0, "1.2.840.10008.1.2"), AnsweredContext(3, 4)), UserInformation()
        )
        peer.send(answer, AAbort(2, 1))
        self.assertTrue(self.failureResultOf(echoes[0], AssociationAborted).value.by_peer)
        self.assert_clean()


class Echo(MemoryTestCase):
    def test_echo(self) -> None:
        association, _ = self.both()
        self.assertEqual(self.network.result_of(association.send_c_echo()), 0x0000)

    def test_what_a_handler_may_return(self) -> None:
        dataset = Dataset()
        dataset.Status = 0x0122
        dataset.ErrorComment = "not here"

        async def coroutine() -> int:
            return 0x0110

        for value, status in (
            (0, 0),
            (0x0211, 0x0211),
            (Status(0x0212), 0x0212),
            (dataset, 0x0122),
            (lambda: succeed(0x0210), 0x0210),
            (lambda: coroutine(), 0x0110),
            ("Success", 0xC001),
            (True, 0xC001),
            (0x10000, 0xC001),
            (Dataset(), 0xC001),
            (None, 0xC001),
            (lambda: fail(KeyError("gone")), 0xC001),
            (lambda: 1 // 0, 0xC001),
        ):
            with self.subTest(value=value):
                self.setUp()
                handler = (evt.EVT_C_ECHO, lambda event, value=value: value() if callable(value) else value)
                association, _ = self.both(handler)
                answer = self.network.result_of(association.send_c_echo())
                self.assertEqual(answer, status)
                self.assertEqual(bool(self.flushLoggedErrors()), status == 0xC001)
                self.assertTrue(association.is_established)
                if value is dataset:
                    self.assertEqual(answer.error_comment, "not here")
                self.tearDown()

    def test_not_established(self) -> None:
        association, _ = self.both()
        self.network.result_of(association.release())
        error = self.failureResultOf(association.send_c_echo(), NotEstablished).value
        self.assertIsInstance(error, RuntimeError)

    def test_no_context(self) -> None:
        self.listen()
        association = self.associate(contexts=[CONTEXTS[1]])
        self.failureResultOf(association.send_c_echo(), NoPresentationContext)


class Store(MemoryTestCase):
    def received(self, **options: Any) -> Any:
        got: list[tuple[bytes, Any]] = []

        def keep(event: evt.StoreEvent) -> int:
            got.append((event.encoded_dataset(include_meta=False), event.dataset))
            return 0

        association, _ = self.both((evt.EVT_C_STORE, keep), **options)
        return association, got

    def test_a_data_set(self) -> None:
        association, got = self.received()
        self.assertEqual(self.network.result_of(association.send_c_store(instance(300_000))), 0)
        data, dataset = got[0]
        self.assertEqual(data, encoded(300_000))
        self.assertEqual(dataset, instance(300_000))

    def test_a_file_and_what_is_like_one(self) -> None:
        association, got = self.received()
        path = Path(self.mktemp())
        for size in (10, 3_000_000):
            path.write_bytes(part10(size))
            with open(path, "rb") as file:
                for what in (path, os.fspath(path), file, BytesIO(part10(size))):
                    self.assertEqual(self.network.result_of(association.send_c_store(what)), 0)
                    self.assertTrue(got.pop()[0] == encoded(size))
                self.assertFalse(file.closed)

    def test_what_cannot_be_sent(self) -> None:
        association, _ = self.received()
        for what, error in (
            (Dataset(), DataSetError),
            ("/no/such/file", OSError),
            (BytesIO(b"GIF89a" + bytes(500)), Exception),
            (7, TypeError),
        ):
            sending = association.send_c_store(what)
            self.network.flush()
            self.failureResultOf(sending, error)
        self.assertEqual(self.network.result_of(association.send_c_echo()), 0, "the association goes on")

    def test_no_handler(self) -> None:
        association, _ = self.both()
        self.assertEqual(self.network.result_of(association.send_c_store(instance())), 0xC211)

    def test_a_slow_disk_and_a_peer_that_is_gone(self) -> None:
        association, accepted = self.received()
        path = Path(self.mktemp())
        path.write_bytes(part10())
        self.network.works = False
        sending = association.send_c_store(path)
        self.network.flush()
        accepted[:] = []
        self.network.connections[-1].cut()
        self.assertEqual(len(self.network.pools), 1, "the work under way is finished first")
        self.network.works = True
        self.network.flush()
        self.failureResultOf(sending, Exception)
        self.assert_clean()


class Matching(MemoryTestCase):
    """Responses find their requests by the Message ID (PS3.7 9.1)."""

    def three(self) -> tuple[Any, Any, list[Deferred[Status]]]:
        peer = self.network.scripted_server(105)
        asking = self.asking(105, ext_neg=[AsyncOperationsWindow(2, 1)])
        peer.accept(information=UserInformation(async_operations=AsyncOperationsWindow(2, 1)))
        association = self.successResultOf(asking)
        echoes = [association.send_c_echo() for _ in range(3)]
        return association, peer, echoes

    def answer(self, peer: Any, message_id: int, status: int = 0) -> None:
        peer.send_message(1, CEchoRSP(message_id_being_responded_to=message_id, status=status))

    def test_out_of_order(self) -> None:
        _, peer, echoes = self.three()
        first, second = [message.message_id for message, _ in peer.messages()]
        self.answer(peer, second, 0x0112)
        self.assertEqual(self.successResultOf(echoes[1]), 0x0112)
        self.assertNoResult(echoes[0])
        third = peer.messages()[-1][0].message_id
        self.assertEqual(len({first, second, third}), 3)
        self.answer(peer, third, 0x0113)
        self.answer(peer, first, 0x0111)
        self.assertEqual([self.successResultOf(echo) for echo in (echoes[0], echoes[2])], [0x0111, 0x0113])

    def refused(self, association: Any, peer: Any, waiting: list[Deferred[Any]], words: str) -> None:
        self.assertIsInstance(peer.take()[-1], AAbort)
        for deferred in waiting:
            error = self.failureResultOf(deferred, AssociationAborted).value
            self.assertEqual((error.source, error.by_peer), (2, False))
            self.assertIn(words, error.detail)
        self.assertTrue(association.is_aborted)
        peer.close()
        self.assert_clean()

    def test_an_unknown_message_id(self) -> None:
        association, peer, echoes = self.three()
        self.answer(peer, 999)
        self.refused(association, peer, echoes, "Message ID 999")

    def test_a_second_response(self) -> None:
        association, peer, echoes = self.three()
        self.answer(peer, 1)
        self.successResultOf(echoes.pop(0))
        self.answer(peer, 1)
        self.refused(association, peer, echoes, "waits for none")

    def test_the_response_to_another_service(self) -> None:
        association, peer, echoes = self.three()
        peer.send_message(1, CStoreRSP(message_id_being_responded_to=1))
        self.refused(association, peer, echoes, "C-STORE-RSP to C-ECHO-RQ")

    def test_a_cancelled_operation_keeps_its_place(self) -> None:
        # The peer still performs it: one more would be one too many.
        association, peer, echoes = self.three()
        echoes[0].cancel()
        self.failureResultOf(echoes[0], CancelledError)
        self.assertEqual(len(peer.messages()), 2)
        self.answer(peer, 1)
        self.assertEqual(len(peer.messages()), 3)
        self.answer(peer, 2)
        self.answer(peer, 3)
        self.assertEqual([self.successResultOf(echo) for echo in echoes[1:]], [0, 0])
        releasing = association.release()
        self.network.flush()
        peer.send(AReleaseRP())
        self.successResultOf(releasing)

    def test_an_operation_cancelled_before_its_turn_is_not_sent(self) -> None:
        _, peer, echoes = self.three()
        echoes[2].cancel()
        self.failureResultOf(echoes[2], CancelledError)
        self.answer(peer, 1)
        self.answer(peer, 2)
        self.assertEqual(len(peer.messages()), 2)

    def test_who_waits_for_the_window_may_cancel_others_when_it_fails(self) -> None:
        association, _, echoes = self.three()
        echoes += [association.send_c_echo(), association.send_c_echo()]

        def cancel_all(reason: object) -> None:
            for other in echoes:
                other.cancel()

        for deferred in echoes:
            deferred.addErrback(cancel_all)
        self.network.connections[-1].cut()
        self.assertTrue(all(deferred.called for deferred in echoes))


class Performing(MemoryTestCase):
    """Requests that the peer must not send."""

    def pending(self, size: int = 2) -> Any:
        waiting: list[Deferred[int]] = []

        def handler(event: evt.Event) -> Deferred[int]:
            waiting.append(Deferred())
            return waiting[-1]

        window = AsyncOperationsWindow(size, 1)
        association, peer = self.scripted_scu(
            (evt.EVT_C_ECHO, handler),
            (evt.EVT_C_STORE, handler),
            (evt.EVT_ASYNC_OPS, lambda event: (size, 1)),
            information=UserInformation(async_operations=window),
        )
        return association, peer, waiting

    def test_out_of_order(self) -> None:
        _, peer, waiting = self.pending()
        peer.send_message(1, echo(7))
        peer.send_message(3, store(8), encoded())
        waiting[1].callback(0)
        self.assertEqual(statuses(peer.messages()), [(8, 0)])
        waiting[0].callback(0)
        self.assertEqual(statuses(peer.messages()), [(8, 0), (7, 0)])

    def test_more_than_the_window(self) -> None:
        self.scp.settings.maximum_waiting = 0
        _, peer, waiting = self.pending()
        for message_id in (1, 2):
            peer.send_message(1, echo(message_id))
        peer.send_message(3, store(3), encoded(200_000))
        peer.send_message(1, echo(4))
        self.assertEqual(statuses(peer.messages()), [(3, 0x0213), (4, 0x0213)])
        for deferred in waiting:
            deferred.callback(0)
        self.assertEqual(statuses(peer.messages())[2:], [(1, 0), (2, 0)])

    def test_without_a_window_one_at_a_time(self) -> None:
        self.scp.settings.maximum_waiting = 0
        waiting: Deferred[int] = Deferred()
        _, peer = self.scripted_scu((evt.EVT_C_ECHO, lambda event: waiting))
        peer.send_message(1, echo(1))
        peer.send_message(1, echo(2))
        waiting.callback(0)
        self.assertEqual(statuses(peer.messages()), [(2, 0x0213), (1, 0)])

    def test_a_message_id_in_use(self) -> None:
        _, peer, waiting = self.pending()
        peer.send_message(1, echo(1))
        peer.send_message(3, store(1), encoded(100_000))
        self.assertEqual(statuses(peer.messages()), [(1, 0x0210)])
        waiting[0].callback(0)
        self.assertEqual(statuses(peer.messages()), [(1, 0x0210), (1, 0)])
        peer.send_message(1, echo(1))
        self.assertEqual(len(waiting), 2, "free again")

    def test_every_service_is_provided(self) -> None:
        self.assertEqual(set(SERVICES), set(RESPONSES))

    def test_a_service_without_a_handler(self) -> None:
        _, peer, _ = self.pending()
        peer.send_message(1, CFindRQ(message_id=5, affected_sop_class_uid=VERIFICATION), encoded())
        self.assertEqual(statuses(peer.messages()), [(5, 0xC311)])

    def test_the_wrong_sop_class(self) -> None:
        _, peer, _ = self.pending()
        request = store(5)
        request.affected_sop_class_uid = VERIFICATION
        peer.send_message(3, request, encoded())
        self.assertEqual(statuses(peer.messages()), [(5, 0x0122)])
