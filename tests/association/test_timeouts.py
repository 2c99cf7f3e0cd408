"""Each timer, in both roles, and what must not set it off."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from dicomtwist import AssociationAborted, AssociationTimeout, UserIdentity, evt
from dicomtwist.dimse.messages import CEchoRSP
from dicomtwist.testing import ScriptedPeer
from dicomtwist.ul.items import UserInformation
from dicomtwist.ul.pdu import (
    PDU_HEADER,
    PDV_HEADER,
    AAbort,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    AReleaseRP,
    AReleaseRQ,
)
from tests.memory import VERIFICATION, MemoryTestCase, echo, encoded, instance, store

#: The defaults.
ACSE, DIMSE, NETWORK, PDU = 30, 30, 60, 120


class Connecting(MemoryTestCase):
    def test_no_answer_from_the_network(self) -> None:
        self.network.answers = False
        self.scu.connection_timeout = 5
        for host in ("127.0.0.1", "::1", "pacs.example.org"):
            asking = self.scu.associate(host, 104)
            self.network.advance(4.9)
            self.assertNoResult(asking)
            self.network.advance(0.1)
            error = self.failureResultOf(asking, AssociationTimeout).value
            self.assertEqual((error.timer, error.seconds), ("connection", 5))
            self.assert_clean()

    def test_without_a_limit(self) -> None:
        self.network.answers = False
        asking = self.asking()
        self.network.advance(100_000)
        self.assertNoResult(asking)
        asking.addErrback(lambda _: None)
        asking.cancel()


class ACSETimeout(MemoryTestCase):
    def timed_out(self, deferred: Deferred[Any], words: str) -> None:
        error = self.failureResultOf(deferred, AssociationTimeout).value
        self.assertEqual((error.timer, error.seconds), ("acse", ACSE))
        self.assertIn(words, str(error))

    def test_no_answer_to_the_request(self) -> None:
        peer = self.network.scripted_server(105)
        asking = self.asking(105)
        peer.take()
        self.network.advance(ACSE - 0.1)
        self.assertEqual(peer.take(), [])
        self.network.advance(0.1)
        self.assertEqual(peer.take(), [AAbort(0, 0)])
        peer.close()
        self.timed_out(asking, "did not answer the request")
        self.assert_clean()

    def test_half_an_answer(self) -> None:
        peer = self.network.scripted_server(105)
        asking = self.asking(105)
        answer = AAssociateAC("A", "B").encode()
        for place in range(ACSE):
            peer.send(answer[place : place + 1])
            self.network.advance(1)
        peer.close()
        self.timed_out(asking, "did not answer the request")

    def test_no_answer_to_the_release(self) -> None:
        association, peer = self.scripted_scp()
        releasing = association.release()
        self.network.advance(ACSE)
        self.assertEqual(peer.take(), [AReleaseRQ(), AAbort(0, 0)])
        self.assertTrue(association.is_aborted)
        peer.close()
        self.timed_out(releasing, "did not agree to the release")
        self.assert_clean()

    def test_no_answer_to_the_release_of_an_acceptor(self) -> None:
        association, peer = self.scripted_scu()
        releasing = association.release()
        self.network.advance(ACSE)
        self.assertEqual(peer.take(), [AReleaseRQ(), AAbort(0, 0)])
        peer.close()
        self.timed_out(releasing, "did not agree to the release")

    def test_handlers_that_do_not_decide(self) -> None:
        server = self.listen((evt.EVT_USER_ID, lambda event: Deferred()))
        peer = self.network.scripted_client(104)
        peer.request((1, VERIFICATION), information=UserInformation(user_identity=UserIdentity(1, b"x")))
        (association,) = server.factory.associations
        self.network.advance(ACSE)
        self.assertEqual(peer.take(), [AAbort(0, 0)])
        self.assertIn("did not decide", str(association.end_reason))
        peer.close()
        self.assert_clean()


class ARTIM(MemoryTestCase):
    def test_silence(self) -> None:
        self.listen()
        peer = self.network.scripted_client(104)
        self.network.advance(ACSE - 0.1)
        self.assertIsNone(peer.closed)
        self.network.advance(0.1)
        self.assertIsNotNone(peer.closed)
        self.assertEqual(peer.received, b"")
        self.assert_clean()

    def test_one_byte_a_second(self) -> None:
        self.listen()
        peer = self.network.scripted_client(104)
        request = AAssociateRQ("SCP", "SLOW").encode()
        peer.send(request[:6])
        for place in range(6, 6 + ACSE - 1):
            self.network.advance(1)
            peer.send(request[place : place + 1])
            self.assertIsNone(peer.closed)
        self.network.advance(1)
        self.assertIsNotNone(peer.closed, "the time is for the whole PDU")
        self.assert_clean()

    def stays_open(self, peer: ScriptedPeer) -> None:
        """The peer does not close: we do."""
        for _ in range(ACSE - 1):
            peer.send(b"\0")  # what it sends does not count
            self.network.advance(1)
        self.assertIsNone(peer.closed)
        self.network.advance(1)
        self.assertIsNotNone(peer.closed)
        self.assert_clean()

    def test_after_our_abort(self) -> None:
        association, peer = self.scripted_scp()
        association.abort()
        self.stays_open(peer)

    def test_after_our_rejection(self) -> None:
        self.scp.require_called_aet = True
        self.listen()
        peer = self.network.scripted_client(104)
        peer.request((1, VERIFICATION), called="WRONG")
        self.assertEqual(peer.take(), [AAssociateRJ(1, 1, 7)])
        self.stays_open(peer)

    def test_after_our_answer_to_a_release(self) -> None:
        _, peer = self.scripted_scu()
        peer.send(AReleaseRQ())
        self.assertEqual(peer.take(), [AReleaseRP()])
        self.stays_open(peer)

    def test_after_bad_bytes(self) -> None:
        _, peer = self.scripted_scu()
        peer.send(b"SSH-2.0-OpenSSH_9.6\r\n")
        self.assertEqual(peer.take(), [AAbort(2, 1)])
        self.stays_open(peer)

    def test_a_peer_that_does_not_even_read(self) -> None:
        association, peer = self.scripted_scp()
        peer.transport.frozen = True
        storing = association.send_c_store(instance(5_000_000))
        self.network.flush()
        association.abort()
        self.failureResultOf(storing, AssociationAborted)
        self.network.advance(ACSE)
        self.assertTrue(association.protocol.closed)
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_a_peer_that_does_not_close_after_a_rejection_of_its_own(self) -> None:
        # We close at once; a peer whose process hangs notices when it wakes up.
        peer = self.network.scripted_server(105)
        asking = self.asking(105)
        peer.send(AAssociateRJ(1, 1, 1))
        self.failureResultOf(asking)
        self.assert_clean()


class DIMSETimeout(MemoryTestCase):
    def timed_out(self, association: Any, words: str, timer: str = "dimse") -> None:
        error = association.end_reason
        self.assertIsInstance(error, AssociationTimeout)
        self.assertEqual((error.timer, error.seconds), (timer, {"dimse": DIMSE, "acse": ACSE, "pdu": PDU}[timer]))
        self.assertIn(words, str(error))
        self.assertTrue(association.is_aborted)

    def test_no_answer(self) -> None:
        association, peer = self.scripted_scp()
        echoing = association.send_c_echo()
        self.network.advance(DIMSE - 0.1)
        self.assertNoResult(echoing)
        self.network.advance(0.1)
        self.assertIs(self.failureResultOf(echoing, AssociationTimeout).value, association.end_reason)
        self.timed_out(association, "did not answer a request")
        self.assertEqual(peer.take()[-1], AAbort(0, 0))

    def test_each_operation_has_its_own_time(self) -> None:
        association, peer = self.scripted_scp()
        for message_id in range(1, 10):
            echoing = association.send_c_echo()
            self.network.advance(DIMSE - 1)
            peer.send_message(1, CEchoRSP(message_id_being_responded_to=message_id))
            self.successResultOf(echoing)
        self.assertTrue(association.is_established)

    def test_a_large_data_set_that_moves(self) -> None:
        got: list[int] = []

        def keep(event: evt.StoreEvent) -> int:
            got.append(len(event.encoded_dataset(False)))
            return 0

        association, peer = self.scripted_scu((evt.EVT_C_STORE, keep))
        for piece in ScriptedPeer.encode_message(3, store(), encoded(500_000)):
            peer.send(piece)
            self.network.advance(DIMSE - 1)
        self.assertEqual(got, [len(encoded(500_000))])
        self.assertTrue(association.is_established)

    def test_a_data_set_that_moves_byte_by_byte(self) -> None:
        self.scp.pdu_timeout = None
        association, peer = self.scripted_scu()
        data = b"".join(ScriptedPeer.encode_message(3, store(), encoded()))
        for place in range(len(data)):
            peer.send(data[place : place + 1])
            self.network.advance(DIMSE - 1)
        self.assertTrue(association.is_established)
        self.assertEqual(len(peer.messages()), 1)

    def test_a_pdu_that_moves_byte_by_byte(self) -> None:
        association, peer = self.scripted_scu()
        pieces = ScriptedPeer.encode_message(3, store(), encoded())
        peer.send(*pieces[:2])
        data = b"".join(pieces[2:])
        for place in range(PDU // 10):
            self.assertTrue(association.is_established, place)
            peer.send(data[place : place + 1])
            self.network.advance(10)
        self.timed_out(association, "a PDU did not arrive completely", "pdu")
        self.assertEqual(peer.take(), [AAbort(0, 0)])

    def test_each_pdu_has_its_own_time(self) -> None:
        association, peer = self.scripted_scu()
        data = b"".join(ScriptedPeer.encode_message(3, store(), encoded(60_000)))
        step = 1000  # no read ends where a PDU does
        for place in range(0, len(data), step):
            peer.send(data[place : place + step])
            self.network.advance(5)
        self.assertTrue(association.is_established)
        self.assertGreater(self.network.seconds(), 2 * PDU)
        self.assertEqual(len(peer.messages()), 1)

    def test_a_pdu_that_is_not_read(self) -> None:
        # What we do not read is not counted against the peer.
        reading: list[Deferred[None]] = [Deferred()]

        @evt.streaming
        async def slow(event: evt.StoreEvent) -> int:
            await reading[0]
            return len([piece async for piece in event.stream]) * 0

        self.scp.network_timeout = None
        self.scp.maximum_pdu_size = 0
        association, peer = self.scripted_scu((evt.EVT_C_STORE, slow))
        data = encoded(3_000_000)
        header = PDU_HEADER.pack(4, len(data) + 6) + PDV_HEADER.pack(len(data) + 2, 3, 2)
        peer.send(*ScriptedPeer.encode_message(3, store(), b"")[:2], header, data[:2_000_000])
        self.network.advance(10 * PDU)
        self.assertTrue(association.is_established)
        reading[0].callback(None)
        self.network.advance(1)
        peer.send(data[2_000_000:])
        self.network.advance(1)
        self.assertEqual(len(peer.messages()), 1)

    def test_a_data_set_that_stops(self) -> None:
        data = b"".join(ScriptedPeer.encode_message(3, store(), encoded(100_000)))
        for stop in (3, 40, 200, 1000, 50_000, len(data) - 1):
            self.setUp()
            association, peer = self.scripted_scu()
            peer.send(data[:stop])
            self.network.advance(DIMSE - 1)
            self.assertTrue(association.is_established)
            self.network.advance(1)
            self.timed_out(association, "did not continue")
            self.assertEqual(peer.take(), [AAbort(0, 0)])
            self.tearDown()

    def test_between_the_fragments_of_a_message(self) -> None:
        association, peer = self.scripted_scu()
        peer.send(*ScriptedPeer.encode_message(3, store(), encoded(100_000))[:6])
        self.network.advance(DIMSE)
        self.timed_out(association, "did not continue")

    def trickle(self, start: bytes) -> None:
        # Each byte is no progress: the time is for the whole PDU.
        association, peer = self.scripted_scu()
        peer.send(start)
        for second in range(ACSE - 1):
            self.network.advance(1)
            if second % 8 == 7:
                peer.send(b"\x00")
            self.assertTrue(association.is_established, second)
        self.network.advance(1)
        self.timed_out(association, "a PDU did not arrive completely", "acse")

    def test_a_header_that_comes_byte_by_byte(self) -> None:
        self.trickle(b"\x05\x00")

    def test_a_control_pdu_that_comes_byte_by_byte(self) -> None:
        self.trickle(b"\x01\x00\x00\x07\xff\xff")

    def test_a_response_that_stops(self) -> None:
        association, peer = self.scripted_scp()
        echoing = association.send_c_echo()
        self.network.flush()
        response = CEchoRSP(message_id_being_responded_to=1)
        pieces = ScriptedPeer.encode_message(1, response, encoded(100_000))
        for piece in pieces[:8]:
            peer.send(piece)
            self.network.advance(DIMSE - 1)
        self.assertNoResult(echoing)
        self.network.advance(1)
        self.failureResultOf(echoing, AssociationTimeout)
        self.timed_out(association, "did not continue")

    def test_our_own_handler_may_take_its_time(self) -> None:
        waiting: Deferred[int] = Deferred()
        association, peer = self.scripted_scu((evt.EVT_C_ECHO, lambda event: waiting))
        peer.send_message(1, echo())
        self.network.advance(10_000)
        self.assertTrue(association.is_established)
        waiting.callback(0)
        self.assertEqual(len(peer.messages()), 1)

    def test_sending_takes_its_time(self) -> None:
        # Only when the last of the request is out does the time for the answer begin.
        association, peer = self.scripted_scp()
        end, ours = peer.transport, association.protocol.transport
        end.frozen = True
        storing = association.send_c_store(instance(10_000_000))
        for _ in range(8):
            self.network.advance(NETWORK - 1)
            end.frozen = False
            for _ in range(6):
                end.step()
                ours.step()
            end.frozen = True
        self.assertNoResult(storing)
        self.assertTrue(association.is_established)
        end.frozen = False
        self.network.advance(DIMSE)
        self.failureResultOf(storing, AssociationTimeout)

    def test_what_is_in_our_buffer_cannot_be_answered(self) -> None:
        # A request that was handed over whole, over a link that takes longer for it than an answer may take.
        association, peer = self.scripted_scp()
        peer.transport.frozen = True
        storing = association.send_c_store(instance(200_000))
        self.network.advance(DIMSE + 1)
        self.assertTrue(association.is_established)
        peer.transport.frozen = False
        self.network.advance(DIMSE - 1)
        self.assertTrue(association.is_established)
        self.network.advance(1)
        self.failureResultOf(storing, AssociationTimeout)


class NetworkTimeout(MemoryTestCase):
    def timed_out(self, association: Any, timer: str, words: str) -> None:
        error = association.end_reason
        self.assertIsInstance(error, AssociationTimeout)
        self.assertEqual((error.timer, error.seconds), (timer, NETWORK))
        self.assertIn(words, str(error))
        self.assertTrue(association.is_aborted)

    def test_nothing_happens(self) -> None:
        association, peer = self.scripted_scp()
        accepted, caller = self.scripted_scu()
        self.network.advance(NETWORK - 0.1)
        self.assertTrue(association.is_established and accepted.is_established)
        self.network.advance(0.1)
        for side in (association, accepted):
            self.timed_out(side, "network", "nothing happened")
        self.assertEqual(peer.take(), [AAbort(0, 0)])
        self.assertEqual(caller.take(), [AAbort(0, 0)])
        self.network.advance(ACSE)
        self.assert_clean()

    def test_an_echo_now_and_then(self) -> None:
        association, accepted = self.both()
        for _ in range(20):
            self.network.advance(NETWORK - 1)
            self.network.result_of(association.send_c_echo())
        self.assertTrue(association.is_established and accepted.is_established)

    def test_the_peer_does_not_read_what_we_send(self) -> None:
        association, peer = self.scripted_scp()
        peer.transport.frozen = True
        storing = association.send_c_store(instance(5_000_000))
        self.network.advance(NETWORK - 0.1)
        self.assertNoResult(storing)
        self.network.advance(0.1)
        self.failureResultOf(storing, AssociationTimeout)
        self.timed_out(association, "write", "did not read")
        self.network.advance(ACSE)
        self.assertTrue(association.protocol.closed)

    def test_the_peer_asks_and_does_not_read_the_answers(self) -> None:
        association, peer = self.scripted_scu()
        peer.transport.pauseProducing()
        request = b"".join(ScriptedPeer.encode_message(1, echo()))
        peer.send(request * 20_000)
        self.network.advance(NETWORK)
        self.timed_out(association, "write", "did not read")
        self.network.advance(ACSE)
        self.assertTrue(association.protocol.closed)

    def test_a_handler_that_does_not_read_its_stream(self) -> None:
        @evt.streaming
        def forget(event: evt.StoreEvent) -> Deferred[int]:
            return Deferred()

        association, peer = self.scripted_scu((evt.EVT_C_STORE, forget))
        peer.send_message(3, store(), encoded(5_000_000))
        self.network.advance(NETWORK - 0.1)
        self.assertTrue(association.is_established)
        self.network.advance(0.1)
        self.timed_out(association, "network", "no handler took")

    def test_a_reset_is_noticed_after_a_pause(self) -> None:
        # A transport that is not read from says nothing of its end: each pause has an end, so that it does.
        @evt.streaming
        def forget(event: evt.StoreEvent) -> Deferred[int]:
            return Deferred()

        association, peer = self.scripted_scu((evt.EVT_C_STORE, forget))
        peer.send_message(3, store(), encoded(5_000_000))
        peer.reset()
        self.assertTrue(association.is_established)
        self.network.advance(NETWORK)
        self.assertTrue(association.protocol.closed)
        self.assert_clean()

    def test_no_limits(self) -> None:
        for ae in (self.scp, self.scu):
            ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.write_timeout = ae.pdu_timeout = None
        association, accepted = self.both((evt.EVT_C_ECHO, lambda event: Deferred()))
        association.send_c_echo().addErrback(lambda _: None)
        self.network.flush()
        self.assertEqual(self.network.getDelayedCalls(), [])
        self.network.advance(1_000_000)
        self.assertTrue(association.is_established and accepted.is_established)

    def test_only_one_timer_is_set(self) -> None:
        association, _ = self.both()
        for _ in range(100):
            self.network.result_of(association.send_c_echo())
            self.network.advance(0.5)
        self.assertLessEqual(len(self.network.getDelayedCalls()), 2, "one for each side")
