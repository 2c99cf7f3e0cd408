"""How associations end: released or aborted, by either side, at any time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from dicomtwist import (
    Association,
    AssociationAborted,
    AssociationReleased,
    NotEstablished,
    UserIdentity,
    evt,
)
from dicomtwist.dimse.messages import CEchoRSP, CStoreRSP
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.testing import ScriptedPeer
from dicomtwist.ul.items import UserInformation
from dicomtwist.ul.pdu import AAbort, AAssociateAC, AReleaseRP, AReleaseRQ, PDataTF
from tests.memory import VERIFICATION, MemoryTestCase, echo, encoded, instance, store


def ending(association: AssociationInterface) -> str:
    """What an association says of itself."""
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
