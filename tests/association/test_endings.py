"""How associations end: released or aborted, by either side, at any time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from twisted.internet.defer import Deferred

from dicomtwist import (
    Association,
    AssociationAborted,
    AssociationReleased,
    AssociationTimeout,
    AsyncOperationsWindow,
    NotEstablished,
    UserIdentity,
    build_context,
    evt,
)
from dicomtwist.datasets.codec import encode_dataset
from dicomtwist.datasets.sources import Chunk
from dicomtwist.dimse.messages import RESPONSES, CEchoRQ, CEchoRSP, CFindRQ, CStoreRSP, Request, Response
from dicomtwist.exchange.exchange import Exchange
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.testing import ScriptedPeer
from dicomtwist.ul.items import UserInformation
from dicomtwist.ul.pdu import AAbort, AAssociateAC, AReleaseRP, AReleaseRQ, PDataTF
from tests.memory import CONTEXTS, VERIFICATION, MemoryTestCase, echo, encoded, instance, part10, store

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
MPPS = "1.2.840.10008.3.1.2.3.3"


def ending(association: AssociationInterface) -> str:
    """Return the flags of an association that are set."""
    words = [word for word in ("established", "rejected", "aborted", "released") if getattr(association, f"is_{word}")]
    return " ".join(words)


class Release(MemoryTestCase):
    def test_by_the_requestor(self) -> None:
        association, accepted = self.both()
        releasing = association.release()
        again = association.release()
        self.network.flush()
        self.assertIsNone(self.successResultOf(releasing))
        self.assertIsNone(self.successResultOf(again))
        self.assertIsNone(self.successResultOf(association.release()))
        self.assertEqual((ending(association), ending(accepted)), ("released", "released"))
        self.assertEqual((association.end_reason, accepted.end_reason), (None, None))
        self.assertTrue(association.was_established)
        self.assert_clean()

    def test_by_the_acceptor(self) -> None:
        association, accepted = self.both()
        ended = association.when_ended()
        self.network.result_of(accepted.release())
        self.assertIs(self.successResultOf(ended), association)
        self.assertEqual((ending(association), ending(accepted)), ("released", "released"))
        self.assert_clean()

    def test_by_both_at_once(self) -> None:
        association, accepted = self.both()
        releasing = [association.release(), accepted.release()]
        self.network.flush()
        for deferred in releasing:
            self.assertIsNone(self.successResultOf(deferred))
        self.assertEqual((ending(association), ending(accepted)), ("released", "released"))
        self.assert_clean()

    def test_a_collision_as_requestor(self) -> None:
        association, peer = self.scripted_scp()
        releasing = association.release()
        self.assertEqual(peer.take(), [AReleaseRQ()])
        peer.send(AReleaseRQ())
        self.assertEqual(peer.take(), [AReleaseRP()], "the requestor answers first")
        self.assertEqual(ending(association), "established")
        peer.send(AReleaseRP())
        self.successResultOf(releasing)
        self.assertEqual(ending(association), "released")
        self.assert_clean()

    def test_a_collision_as_acceptor(self) -> None:
        association, peer = self.scripted_scu()
        releasing = association.release()
        self.assertEqual(peer.take(), [AReleaseRQ()])
        peer.send(AReleaseRQ())
        self.assertEqual(peer.take(), [], "the requestor answers first")
        peer.send(AReleaseRP())
        self.assertEqual(peer.take(), [AReleaseRP()])
        self.assertNoResult(releasing)
        peer.close()
        self.successResultOf(releasing)
        self.assertEqual(ending(association), "released")
        self.assert_clean()

    def test_it_waits_for_what_was_asked_for(self) -> None:
        association, peer = self.scripted_scp()
        echoes = [association.send_c_echo(), association.send_c_store(instance())]
        releasing = association.release()
        self.assertEqual([type(pdu) for pdu in peer.take()], [PDataTF])
        peer.send_message(1, CEchoRSP(message_id_being_responded_to=1))
        self.successResultOf(echoes[0])
        self.assertEqual({type(pdu) for pdu in peer.take()}, {PDataTF})
        self.assertNoResult(releasing)
        request = peer.messages()[-1][0]
        peer.send_message(3, CStoreRSP(message_id_being_responded_to=request.message_id))  # type: ignore[attr-defined]
        self.successResultOf(echoes[1])
        self.assertEqual(peer.take(), [AReleaseRQ()])
        peer.send(AReleaseRP())
        self.successResultOf(releasing)

    def test_it_waits_for_what_the_peer_asked_for(self) -> None:
        """This side may send nothing behind its A-RELEASE-RQ, so the responses that it owes come first."""
        results: list[Deferred[int]] = []

        def handler(event: evt.Event) -> Deferred[int]:
            results.append(Deferred())
            return results[-1]

        association, peer = self.scripted_scu((evt.EVT_C_ECHO, handler))
        peer.send_message(1, echo(1))
        releasing = association.release()
        self.network.advance(29)
        peer.send_message(1, echo(2))
        self.network.advance(29)
        self.assertEqual(peer.take(), [], "the peer has sent something meanwhile")
        results[0].callback(0)
        results[1].callback(0)
        *answers, request = peer.take()
        self.assertEqual(({type(answer) for answer in answers}, request), ({PDataTF}, AReleaseRQ()))
        self.assertEqual([one.message_id_being_responded_to for one, _ in peer.messages()], [1, 2])  # type: ignore[attr-defined]
        peer.send(AReleaseRP())
        self.successResultOf(releasing)
        peer.close()
        self.assert_clean()

    def test_it_does_not_wait_for_ever(self) -> None:
        """A handler that does not end within the ACSE timeout, while nothing is sent or received, is left behind."""
        association, peer = self.scripted_scu((evt.EVT_C_ECHO, lambda event: Deferred()))
        peer.send_message(1, echo(1))
        releasing = association.release()
        self.network.advance(31)
        self.assertEqual(peer.take(), [AReleaseRQ()])
        peer.send(AReleaseRP())
        self.successResultOf(releasing)
        peer.close()
        self.assert_clean()

    def answered_query(self, end: Callable[[Association, ScriptedPeer], Any]) -> list[type]:
        """Return the kinds of what is sent if the association is to *end* while a query is performed."""
        found: Deferred[None] = Deferred()
        identifier = encode_dataset(Dataset(), ImplicitVRLittleEndian) or b""

        async def find(event: evt.IdentifierEvent) -> Any:
            await found
            for _ in range(5):
                yield 0xFF00, identifier

        self.scp.add_supported_context(FIND)
        self.listen((evt.EVT_C_FIND, find), (evt.EVT_C_ECHO, lambda event: 0))
        peer = self.network.scripted_client(104)
        peer.request((1, VERIFICATION), (3, FIND))
        peer.take()
        (association,) = self.scp._associations
        peer.send_message(3, CFindRQ(message_id=1, affected_sop_class_uid=FIND, priority=0), identifier)
        peer.send_message(1, echo(2))
        end(association, peer)
        self.assertEqual(peer.take(), [])
        found.callback(None)
        self.network.flush()
        kinds = [type(pdu) for pdu in peer.pdus]
        responses = [(one.message_id_being_responded_to, one.status) for one, _ in peer.messages()]  # type: ignore[attr-defined]
        self.assertEqual(responses, [(1, 0xFF00)] * 5 + [(1, 0), (2, 0)])
        if kinds[-1] is AReleaseRQ:
            peer.send(AReleaseRP())
        self.assertEqual(ending(association), "released")
        peer.close()
        self.assert_clean()
        return kinds[-1:]

    def test_behind_responses_that_are_held_back(self) -> None:
        """The responses to a query are written together; all of them come before the answer to a release."""
        self.assertEqual(self.answered_query(lambda _, peer: peer.send(AReleaseRQ())), [AReleaseRP])

    def test_before_our_release(self) -> None:
        self.assertEqual(self.answered_query(lambda association, _: association.release()), [AReleaseRQ])

    def test_in_a_handler(self) -> None:
        """A handler that waits for the release is not waited for, since it would wait for itself."""
        self.released_by_a_handler(other_first=False)

    def test_in_a_handler_beside_another(self) -> None:
        self.released_by_a_handler(other_first=True)

    def released_by_a_handler(self, *, other_first: bool) -> None:
        other: Deferred[int] = Deferred()

        async def handler(event: evt.Event) -> int:
            await event.assoc.release()
            return 0

        association, peer = self.scripted_scu(
            (evt.EVT_C_ECHO, handler),
            (evt.EVT_C_STORE, lambda event: other),
            (evt.EVT_ASYNC_OPS, lambda event: (8, 8)),
            information=UserInformation(async_operations=AsyncOperationsWindow(8, 8)),
        )
        if other_first:
            peer.send_message(3, store(1), encoded(100))
        peer.send_message(1, echo(2))
        if other_first:
            self.assertEqual(peer.take(), [])
            other.callback(0)
        sent = [type(pdu) for pdu in peer.take()]
        self.assertEqual(sent, [PDataTF, AReleaseRQ] if other_first else [AReleaseRQ])
        peer.send(AReleaseRP())
        self.assertEqual(ending(association), "released")
        peer.close()
        self.assert_clean()

    def test_while_a_handler_is_at_work(self) -> None:
        waiting: Deferred[int] = Deferred()
        association, peer = self.scripted_scu((evt.EVT_C_ECHO, lambda event: waiting))
        peer.send_message(1, echo())
        peer.send(AReleaseRQ())
        self.assertEqual(peer.take(), [], "first the answer")
        waiting.callback(0)
        answer, release = peer.take()
        self.assertIsInstance(answer, PDataTF)
        self.assertEqual(release, AReleaseRP())
        self.assertEqual(ending(association), "released")
        peer.close()
        self.assert_clean()

    def test_the_peer_releases_while_we_wait_for_an_answer(self) -> None:
        association, peer = self.scripted_scp()
        echoing = association.send_c_echo()
        peer.send(AReleaseRQ())
        self.assertEqual(peer.take()[-1], AReleaseRP())
        self.failureResultOf(echoing, AssociationReleased)
        self.assertEqual(ending(association), "released")
        self.failureResultOf(association.send_c_echo(), NotEstablished)
        peer.close()
        self.assert_clean()

    def test_inside_a_data_set(self) -> None:
        got: list[Any] = []
        association, peer = self.scripted_scu((evt.EVT_C_STORE, lambda event: got.append(event)))
        pieces = ScriptedPeer.encode_message(3, store(), encoded(50_000))
        peer.send(*pieces[:4], AReleaseRQ())
        (abort,) = peer.take()
        self.assertIsInstance(abort, AAbort)
        self.assertEqual(ending(association), "aborted")
        self.assertEqual(got, [])
        peer.close()
        self.assert_clean()

    def test_in_a_with_statement(self) -> None:
        association, accepted = self.both()

        async def use() -> None:
            async with association as entered:
                await entered.send_c_echo()

        self.network.result_of(use())
        self.assertEqual((ending(association), ending(accepted)), ("released", "released"))
        self.assert_clean()

    def test_the_peer_answers_release_with_abort(self) -> None:
        association, peer = self.scripted_scp()
        releasing = association.release()
        self.network.flush()
        peer.send(AAbort(2, 2))
        error = self.failureResultOf(releasing, AssociationAborted).value
        self.assertEqual((error.by_peer, error.source, error.reason), (True, 2, 2))
        self.assertEqual(ending(association), "aborted")
        self.assert_clean()

    def test_not_established(self) -> None:
        association, _ = self.both()
        association.abort()
        self.network.flush()
        self.failureResultOf(association.release(), AssociationAborted)

    def test_in_the_callback_of_the_last_answer(self) -> None:
        association, accepted = self.both()
        done = association.send_c_echo().addCallback(lambda status: association.release())
        self.network.flush()
        self.assertIsNone(self.successResultOf(done))
        self.assertEqual(ending(accepted), "released")
        self.assert_clean()


class Abort(MemoryTestCase):
    def test_by_either_side(self) -> None:
        for place in (0, 1):
            self.setUp()
            waiting: Deferred[int] = Deferred()
            sides = self.both((evt.EVT_C_ECHO, lambda event, waiting=waiting: waiting))
            echoing = sides[0].send_c_echo()
            self.network.flush()
            sides[place].abort("enough")
            self.network.flush()
            error = self.failureResultOf(echoing, AssociationAborted).value
            self.assertEqual((error.by_peer, error.detail), (bool(place), "" if place else "enough"))
            for side in sides:
                self.assertEqual(ending(side), "aborted")
                self.assertIsInstance(side.end_reason, AssociationAborted)
            waiting.callback(0)  # nobody is left to be told
            self.assert_clean()

    def test_the_flags_are_true_when_the_caller_hears_of_it(self) -> None:
        ends: list[Callable[[Association, ScriptedPeer], None]] = [
            lambda association, peer: association.abort(),
            lambda association, peer: peer.send(AAbort()),
            lambda association, peer: peer.reset(),
            lambda association, peer: peer.send(b"\xff" * 10),
            lambda association, peer: self.network.advance(1000),
        ]
        for end in ends:
            self.setUp()
            association, peer = self.scripted_scp()
            said: list[str] = []

            def say(reason: object, association: Association = association, said: list[str] = said) -> None:
                said.append(ending(association))

            association.send_c_echo().addErrback(say)
            end(association, peer)
            self.assertEqual(said, ["aborted"])
            self.tearDown()

    def test_twice(self) -> None:
        association, peer = self.scripted_scp()
        association.abort("first")
        association.abort("second")
        self.assertEqual(peer.take(), [AAbort(0, 0)])
        self.assertIn("first", str(association.end_reason))

    def test_when_left_by_an_exception(self) -> None:
        association, accepted = self.both()

        async def use() -> None:
            async with association:
                raise KeyError("x")

        with self.assertRaises(KeyError):
            self.network.result_of(use())
        self.assertEqual((ending(association), ending(accepted)), ("aborted", "aborted"))
        self.assertIn("KeyError", str(association.end_reason))
        self.assert_clean()

    def test_inside_a_handler(self) -> None:
        async def later(event: evt.Event) -> int:
            await Deferred.fromCoroutine(self.nothing())
            event.assoc.abort("no")
            return 0

        def at_once(event: evt.Event) -> int:
            event.assoc.abort("no")
            return 0

        for handler in (at_once, later):
            self.setUp()
            association, peer = self.scripted_scu((evt.EVT_C_ECHO, handler), (evt.EVT_C_STORE, handler))
            peer.send(*ScriptedPeer.encode_message(3, store(), encoded()), *ScriptedPeer.encode_message(1, echo()))
            self.assertEqual(peer.take(), [AAbort(0, 0)])
            self.assertEqual(ending(association), "aborted")
            peer.close()
            self.assert_clean()

    async def nothing(self) -> None:
        pass

    def test_inside_any_notification_of_the_acceptor(self) -> None:
        called: list[str] = []
        heard: set[evt.EventType] = set()

        def abort(event: evt.Event) -> None:
            heard.add(event.event)
            event.assoc.abort("no")

        def work(event: evt.Event) -> int:
            called.append(event.event.name)
            return 0

        for event in evt.get_events():
            if event.is_intervention:
                continue
            self.setUp()
            called.clear()
            server = self.listen((event, abort), (evt.EVT_C_ECHO, work))
            peer = self.network.scripted_client(104)
            peer.request((1, VERIFICATION))
            (association,) = server.factory.associations or [None]
            if peer.closed is None:
                peer.send_message(1, echo())
            if peer.closed is None:
                peer.send(AReleaseRQ())
            peer.take()
            peer.close()
            if association is not None and event not in heard:
                continue
            with self.subTest(event=event):
                if association is not None and event not in LATE:
                    self.assertEqual(ending(association), "aborted")
                    self.assertLessEqual(peer.pdus.count(AAbort(0, 0)), 1)
                if event in (evt.EVT_DIMSE_RECV, evt.EVT_ESTABLISHED, evt.EVT_REQUESTED, evt.EVT_PDU_RECV):
                    self.assertEqual(called, [])
                if event in (evt.EVT_CONN_OPEN, evt.EVT_REQUESTED):
                    self.assertEqual([pdu for pdu in peer.pdus if isinstance(pdu, AAssociateAC)], [])
                self.assertEqual(server.active_associations, [])
                self.assert_clean()

    def test_inside_any_notification_of_the_requestor(self) -> None:
        for event in evt.get_events():
            if event.is_intervention:
                continue
            self.setUp()
            self.listen()
            heard: list[AssociationInterface] = []

            def abort(event: evt.Event, heard: list[AssociationInterface] = heard) -> None:
                heard.append(event.assoc)
                event.assoc.abort("no")

            asking = self.asking(evt_handlers=[(event, abort)])
            asking.addCallback(self.use)
            self.network.flush()
            if not heard:
                asking.addErrback(lambda _: None)
                continue
            with self.subTest(event=event):
                if event not in LATE:
                    self.assertEqual(ending(heard[0]), "aborted")
                    self.failureResultOf(asking, AssociationAborted)
                self.assert_clean()

    async def _use(self, association: Association) -> None:
        await association.send_c_echo()
        await association.release()

    def use(self, association: Association) -> Deferred[None]:
        return Deferred.fromCoroutine(self._use(association))

    def test_the_peer_aborts_while_a_handler_decides(self) -> None:
        verifying: Deferred[Any] = Deferred()
        server = self.listen((evt.EVT_USER_ID, lambda event: verifying))
        peer = self.network.scripted_client(104)
        peer.request((1, VERIFICATION), information=UserInformation(user_identity=UserIdentity(1, b"x")))
        (association,) = server.factory.associations
        peer.send(AAbort())
        self.assertIsNotNone(peer.closed)
        self.assertEqual(ending(association), "aborted")
        verifying.callback((True, None))
        self.network.flush()
        self.assertEqual(ending(association), "aborted")
        self.assertFalse(association.was_established)
        self.assertEqual(peer.pdus, [])
        self.assert_clean()

    def test_the_peer_leaves_while_a_handler_decides_and_raises(self) -> None:
        verifying: Deferred[Any] = Deferred()
        self.listen((evt.EVT_USER_ID, lambda event: verifying))
        peer = self.network.scripted_client(104)
        peer.request((1, VERIFICATION), information=UserInformation(user_identity=UserIdentity(1, b"x")))
        peer.close()
        verifying.errback(KeyError("x"))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assert_clean()

    def test_what_is_queued_is_dropped(self) -> None:
        association, peer = self.scripted_scp()
        end = self.network.connections[-1].server
        end.frozen = True
        storing = association.send_c_store(instance(50_000_000))
        self.network.flush()
        sent = association.bytes_sent
        association.abort()
        self.assertEqual(association.bytes_sent, sent + 10)
        self.failureResultOf(storing, AssociationAborted)
        end.frozen = False
        self.assertEqual(peer.take()[-1], AAbort(0, 0))
        self.assertLess(len(peer.received), 1_000_000)

    def test_a_bad_message_and_a_release_in_one_read(self) -> None:
        association, peer = self.scripted_scu()
        peer.send(*ScriptedPeer.encode_message(99, echo()), AReleaseRQ())
        self.assertEqual(peer.take(), [AAbort(2, 6)])
        self.assertEqual(ending(association), "aborted")

    def test_a_context_that_was_not_accepted(self) -> None:
        association, peer = self.scripted_scu()
        peer.send_message(5, store(), encoded())
        (abort,) = peer.take()
        self.assertIsInstance(abort, AAbort)
        self.assertIn("context ID 5 was not accepted", str(association.end_reason))


#: These tell that it is over already.
LATE = (evt.EVT_RELEASED, evt.EVT_ABORTED, evt.EVT_CONN_CLOSE, evt.EVT_RECORD, evt.EVT_REJECTED)


class SlowSource:
    """A data set whose first chunk is there at once; the test gives each later one."""

    def __init__(self) -> None:
        self.wanted: list[Deferred[Chunk]] = []
        self.is_closed = False
        self._is_first = True

    def read(self) -> Chunk | Deferred[Chunk]:
        if self._is_first:
            self._is_first = False
            return b"\1\2" * 50, False
        self.wanted.append(Deferred())
        return self.wanted[-1]

    def close(self) -> None:
        self.is_closed = True


#: A value that makes a data set longer than the buffers of a connection.
LONG = b"\1\2" * 150_000


def long_dataset() -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    dataset.add_new(0x00091001, "OB", LONG)
    return dataset


class EarlyFinalResponse(MemoryTestCase):
    """A peer may answer before it has received the data set; the rest of it is sent, then the release is requested."""

    def setUp(self) -> None:
        super().setUp()
        self.scu.requested_contexts = [
            *CONTEXTS,
            build_context(FIND),
            build_context(GET),
            build_context(MOVE),
            build_context(MPPS),
        ]

    def refused(
        self, begin: Callable[[Association], Any], status: int = 0xA700, **options: Any
    ) -> tuple[Any, Association, ScriptedPeer]:
        """Let a peer refuse the request that *begin* sends, whose data set it has not read; return what *begin* returned."""
        association, peer = self.scripted_scp(**options)
        peer.transport.pauseProducing()
        asking = begin(association)
        self.network.flush()
        self.assertTrue(association.exchange.outgoing.busy, "the data set is longer than the buffers")
        (operation,) = association.exchange._operations.values()
        peer.send_message(operation.context_id, response_to(operation.request, status))
        return asking, association, peer

    def check_release(self, association: Association, peer: ScriptedPeer) -> None:
        """Check that the release is requested as soon as the peer has read the rest, without a timer."""
        releasing = association.release()
        self.network.flush()
        self.assertNoResult(releasing)
        peer.transport.resumeProducing()
        self.assertEqual(peer.take()[-1], AReleaseRQ())
        ((_, data),) = peer.messages()
        self.assertIn(LONG, data, "the data set was sent whole")
        peer.send(AReleaseRP())
        self.assertIsNone(self.successResultOf(releasing))
        self.assertEqual(self.network.seconds(), 0.0)
        self.assert_clean()

    def test_to_a_c_store(self) -> None:
        dataset = instance()
        dataset.PixelData = LONG
        self.scu.requested_contexts = CONTEXTS
        storing, association, peer = self.refused(lambda association: association.send_c_store(dataset))
        self.assertEqual(self.successResultOf(storing), 0xA700)
        self.check_release(association, peer)

    def test_to_a_c_store_of_a_file(self) -> None:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(part10(100))
            file.write(b"\xfc\xff\xfc\xffOB\0\0" + len(LONG).to_bytes(4, "little") + LONG)
        storing, association, peer = self.refused(lambda association: association.send_c_store(path), 0x0122)
        self.assertEqual(self.successResultOf(storing), 0x0122)
        self.check_release(association, peer)

    def test_to_a_query(self) -> None:
        for service, model in (("find", FIND), ("get", GET)):
            with self.subTest(service=service):
                answers, association, peer = self.refused(self.querying(service, model))
                self.assertEqual(answers.status, 0xA700)
                self.check_release(association, peer)
                del self.network.ports[105]

    def querying(self, service: str, model: str) -> Callable[[Association], Any]:
        return lambda association: getattr(association, f"send_c_{service}")(long_dataset(), model)

    def test_to_a_c_move(self) -> None:
        _answers, association, peer = self.refused(
            lambda association: association.send_c_move(long_dataset(), "ELSEWHERE", MOVE)
        )
        self.check_release(association, peer)

    def test_to_a_normalised_request(self) -> None:
        requests: dict[str, Callable[[Association], Any]] = {
            "N-CREATE": lambda association: association.send_n_create(long_dataset(), MPPS, "1.2.3"),
            "N-SET": lambda association: association.send_n_set(long_dataset(), MPPS, "1.2.3"),
            "N-ACTION": lambda association: association.send_n_action(long_dataset(), 1, MPPS, "1.2.3"),
            "N-EVENT-REPORT": lambda association: association.send_n_event_report(
                long_dataset(), 1, MPPS, "1.2.3", any_role=True
            ),
        }
        for name, begin in requests.items():
            with self.subTest(service=name):
                _, association, peer = self.refused(begin, 0x0110)
                self.check_release(association, peer)
                del self.network.ports[105]

    def test_the_release_may_be_asked_for_before_the_response(self) -> None:
        association, peer = self.scripted_scp()
        peer.transport.pauseProducing()
        storing = association.send_c_store(instance(400_000))
        releasing = association.release()
        peer.send_message(3, CStoreRSP(message_id_being_responded_to=1, status=0xA700))
        self.assertEqual(self.successResultOf(storing), 0xA700)
        peer.transport.resumeProducing()
        self.assertEqual(peer.take()[-1], AReleaseRQ())
        peer.send(AReleaseRP())
        self.successResultOf(releasing)
        self.assertEqual(self.network.seconds(), 0.0)

    def test_the_release_of_the_peer_is_answered_after_the_rest(self) -> None:
        association, peer = self.scripted_scp()
        peer.transport.pauseProducing()
        storing = association.send_c_store(instance(400_000))
        peer.send_message(3, CStoreRSP(message_id_being_responded_to=1, status=0xA700))
        self.successResultOf(storing)
        peer.send(AReleaseRQ())
        peer.transport.resumeProducing()
        self.assertEqual(peer.take()[-1], AReleaseRP())
        self.assertEqual(ending(association), "released")

    def test_the_next_request_follows_the_rest(self) -> None:
        storing, association, peer = self.refused(lambda association: association.send_c_store(instance(400_000)))
        self.successResultOf(storing)
        echoing = association.send_c_echo()
        self.network.flush()
        peer.transport.resumeProducing()
        (_, data), (request, _) = peer.messages()
        self.assertGreater(len(data), 400_000)
        self.assertEqual(request, CEchoRQ(message_id=2))
        peer.send_message(1, CEchoRSP(message_id_being_responded_to=2))
        self.assertEqual(self.successResultOf(echoing), 0)

    def test_with_a_window(self) -> None:
        """All of several requests are answered while the first one's data set is being sent: the others were not sent."""
        information = UserInformation(
            maximum_length=0, implementation_class_uid="1.2.3", async_operations=AsyncOperationsWindow(3, 3)
        )
        association, peer = self.scripted_scp_with_window(information)
        peer.transport.pauseProducing()
        storing = [association.send_c_store(instance(400_000, f"1.2.{number}")) for number in range(3)]
        self.network.flush()
        peer.send_message(3, CStoreRSP(message_id_being_responded_to=1, status=0xA700))
        self.assertEqual(self.successResultOf(storing[0]), 0xA700)
        releasing = association.release()
        peer.transport.resumeProducing()
        self.assertEqual([message.message_id for message, _ in peer.messages()], [1, 2, 3])  # type: ignore[attr-defined]
        self.assertNoResult(releasing)
        for number in (3, 2):
            peer.send_message(3, CStoreRSP(message_id_being_responded_to=number))
        for each in storing[1:]:
            self.assertEqual(self.successResultOf(each), 0)
        self.assertEqual(peer.take()[-1], AReleaseRQ())
        peer.send(AReleaseRP())
        self.successResultOf(releasing)

    def test_a_response_to_a_request_that_was_not_sent(self) -> None:
        """A peer cannot answer a request of which no byte was sent: the association is aborted, nothing counts as stored."""
        information = UserInformation(
            maximum_length=0, implementation_class_uid="1.2.3", async_operations=AsyncOperationsWindow(3, 3)
        )
        association, peer = self.scripted_scp_with_window(information)
        peer.transport.pauseProducing()
        storing = [association.send_c_store(instance(400_000, f"1.2.{number}")) for number in range(3)]
        self.network.flush()
        peer.send_message(3, CStoreRSP(message_id_being_responded_to=2, status=0))
        for each in storing:
            self.failureResultOf(each, AssociationAborted)
        peer.close()

    def scripted_scp_with_window(self, information: UserInformation) -> tuple[Association, ScriptedPeer]:
        peer = self.network.scripted_server(105)
        asking = self.asking(105, ext_neg=[AsyncOperationsWindow(3, 3)])
        peer.accept(information=information)
        return self.successResultOf(asking), peer

    def begin_slow(self) -> tuple[ScriptedPeer, SlowSource, Deferred[None]]:
        association, peer = self.scripted_scp()
        source = SlowSource()
        association.exchange.enter_window()
        answer = association.exchange.start(3, store(), source)
        answer.addCallback(left, association.exchange)
        peer.take()
        peer.send_message(3, CStoreRSP(message_id_being_responded_to=1, status=0xA700))
        self.assertEqual(self.successResultOf(answer)[0].status, 0xA700)
        return peer, source, association.release()

    def test_a_slow_source(self) -> None:
        peer, source, releasing = self.begin_slow()
        self.network.advance(50)
        self.assertNoResult(releasing)
        source.wanted[0].callback((b"\3\4", True))
        self.assertEqual(peer.take()[-1], AReleaseRQ())
        self.assertTrue(source.is_closed)
        peer.send(AReleaseRP())
        self.successResultOf(releasing)

    def test_a_source_that_fails(self) -> None:
        peer, source, releasing = self.begin_slow()
        source.wanted[0].errback(OSError(5, "Input/output error"))
        self.assertIsInstance(peer.take()[-1], AAbort)
        peer.close()
        self.assertIn("Input/output error", str(self.failureResultOf(releasing, AssociationAborted).value))
        self.assertTrue(source.is_closed)

    def test_a_source_that_gives_nothing_more(self) -> None:
        """Nobody waits for the rest of such a data set, so the network timeout limits it."""
        peer, source, releasing = self.begin_slow()
        self.network.advance(60)
        self.failureResultOf(releasing, AssociationTimeout)
        self.assertIsInstance(peer.take()[-1], AAbort)
        self.assertTrue(source.is_closed)
        self.assert_clean()

    def test_a_cancel_that_waits_is_sent_before_the_release(self) -> None:
        association, peer = self.scripted_scp()
        peer.transport.pauseProducing()
        answers = association.send_c_find(long_dataset(), FIND)
        self.network.flush()
        association.exchange.cancel(1)
        peer.send_message(5, response_to(association.exchange._operations[1].request, 0xA700))
        releasing = association.release()
        peer.transport.resumeProducing()
        self.assertEqual(peer.take()[-1], AReleaseRQ())
        self.assertEqual([type(message).__name__ for message, _ in peer.messages()], ["CFindRQ", "CCancelRQ"])
        peer.send(AReleaseRP())
        self.successResultOf(releasing)
        self.assertEqual(answers.status, 0xA700)


def left(answer: tuple[Response, bytes | None], exchange: Exchange) -> tuple[Response, bytes | None]:
    exchange.leave_window()
    return answer


def response_to(request: Request, status: int) -> Response:
    return RESPONSES[type(request)](message_id_being_responded_to=request.message_id, status=status)
