"""The stop of a server: it has one deadline, whatever the peers do."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from dicomtwist import PoolStopped, Server, evt
from dicomtwist.ae.server import CLOSE_SECONDS
from dicomtwist.pool import AssociationPool
from dicomtwist.testing import ScriptedPeer
from dicomtwist.ul.pdu import AAbort, AReleaseRQ
from tests.memory import VERIFICATION, MemoryTestCase, echo, encoded, store

GRACE = 10.0


class Stop(MemoryTestCase):
    """The scripted peers here never close a connection."""

    def setUp(self) -> None:
        super().setUp()
        self.scp.acse_timeout = 30

    def client(self, server: Server, *, established: bool = True) -> ScriptedPeer:
        peer = self.network.scripted_client(104)
        if established:
            peer.request((1, VERIFICATION), (3, "1.2.840.10008.5.1.4.1.1.2"))
        return peer

    def stops_after(self, server: Server, grace: float | None = GRACE) -> float:
        """Stop *server* and return how long that took, in seconds; the clock advances in small steps."""
        since = self.network.seconds()
        stopping = server.shutdown(grace)
        self.network.flush()
        while not stopping.called:
            self.network.advance(0.25)
            self.assertLess(self.network.seconds() - since, 1000, "the server does not stop")
        self.assertIsNone(self.successResultOf(stopping))
        self.assert_clean_server(server)
        return self.network.seconds() - since

    def assert_clean_server(self, server: Server) -> None:
        self.assertEqual(server.factory.associations, set())
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_nobody(self) -> None:
        self.assertEqual(self.stops_after(self.listen()), 0)

    def test_a_peer_that_ignores_the_abort(self) -> None:
        server = self.listen()
        peer = self.client(server)
        self.assertEqual(self.stops_after(server), GRACE + CLOSE_SECONDS)
        self.assertIsInstance(peer.take()[-1], AAbort)

    def test_many_that_ignore_it(self) -> None:
        server = self.listen()
        for _ in range(20):
            self.client(server)
        self.assertEqual(self.stops_after(server), GRACE + CLOSE_SECONDS)

    def test_without_an_acse_timeout(self) -> None:
        self.scp.acse_timeout = None
        server = self.listen()
        self.client(server)
        self.client(server, established=False)
        self.assertEqual(self.stops_after(server), GRACE + CLOSE_SECONDS)

    def test_no_grace(self) -> None:
        server = self.listen()
        self.client(server)
        self.assertEqual(self.stops_after(server, 0), CLOSE_SECONDS)

    def test_no_timer_is_left(self) -> None:
        """The code that waits finds no timer of the grace any more, such as a test that looks whether the reactor is clean."""
        server = self.listen()
        peer = self.client(server)
        left: list[Any] = []
        server.shutdown(GRACE).addCallback(lambda _: left.append(list(self.network.getDelayedCalls())))
        self.network.advance(1)
        peer.send(AReleaseRQ())
        peer.close()
        self.network.flush()
        self.assertEqual(left, [[]])

    def test_a_grace_without_limit(self) -> None:
        """Associations may go on for ever then; a connection without an association may not."""
        server = self.listen()
        silent = self.client(server, established=False)
        peer = self.client(server)
        stopping = server.shutdown(None)
        self.network.advance(CLOSE_SECONDS)
        self.assertIsNotNone(silent.closed)
        self.network.advance(30)
        self.assertNoResult(stopping)
        peer.send(AAbort(0, 0))
        peer.close()
        self.successResultOf(stopping)

    def test_a_connection_without_an_association(self) -> None:
        server = self.listen()
        self.client(server, established=False)
        self.assertLessEqual(self.stops_after(server), CLOSE_SECONDS)

    def test_half_a_request(self) -> None:
        server = self.listen()
        peer = self.client(server, established=False)
        peer.send(b"\1\0\0\0\1\0" + bytes(100))
        self.assertLessEqual(self.stops_after(server), CLOSE_SECONDS)

    def test_while_the_handlers_decide(self) -> None:
        waiting: Deferred[Any] = Deferred()
        server = self.listen((evt.EVT_USER_ID, lambda event: waiting))
        self.client(server)
        self.assertLessEqual(self.stops_after(server), GRACE + CLOSE_SECONDS)

    def test_a_peer_that_neither_reads_nor_closes(self) -> None:
        server = self.listen((evt.EVT_C_ECHO, lambda event: 0))
        peer = self.client(server)
        peer.transport.frozen = True
        self.assertEqual(self.stops_after(server), GRACE + CLOSE_SECONDS)

    def test_a_peer_that_releases_and_does_not_close(self) -> None:
        """The connection of an association that has ended is limited as well, by the ACSE timeout and by the stop."""
        server = self.listen()
        peer = self.client(server)
        peer.send(AReleaseRQ())
        self.assertLessEqual(self.stops_after(server), CLOSE_SECONDS)

    def test_a_peer_that_was_aborted_before(self) -> None:
        server = self.listen()
        self.client(server)
        (association,) = server.factory.associations
        association.abort()
        self.network.advance(5)
        self.assertEqual(self.stops_after(server), CLOSE_SECONDS)

    def test_a_peer_that_breaks_the_rules_in_the_grace(self) -> None:
        """The ARTIM timer of its abort begins within the grace and would last longer than the stop."""
        server = self.listen()
        peer = self.client(server)
        stopping = server.shutdown(GRACE)
        self.network.advance(GRACE - 1)
        peer.send(b"\x99\0\0\0\0\0")
        self.network.advance(1 + CLOSE_SECONDS)
        self.successResultOf(stopping)

    def test_a_data_set_on_its_way(self) -> None:
        got: list[Any] = []
        server = self.listen((evt.EVT_C_STORE, got.append))
        peer = self.client(server)
        peer.send(*ScriptedPeer.encode_message(3, store(), encoded(50_000))[:3])
        self.assertEqual(self.stops_after(server), GRACE + CLOSE_SECONDS)
        self.assertEqual(got, [])

    def test_a_handler_that_does_not_end(self) -> None:
        waiting: Deferred[int] = Deferred()
        server = self.listen((evt.EVT_C_ECHO, lambda event: waiting))
        peer = self.client(server)
        peer.send_message(1, echo())
        self.assertEqual(self.stops_after(server), GRACE + CLOSE_SECONDS)
        waiting.callback(0)

    def test_a_connection_that_comes_during_the_stop(self) -> None:
        """One that was accepted before, and was not counted yet because its PROXY header was still to come."""
        server = self.listen()
        port = self.network.ports[104]
        stopping = server.shutdown(0)
        self.network.ports[104] = port
        late = self.network.scripted_client(104)
        del self.network.ports[104]
        self.network.flush()
        self.assertIsNotNone(late.closed)
        self.successResultOf(stopping)
        self.assert_clean_server(server)

    def test_the_associations_that_an_ae_requested(self) -> None:
        _association, peer = self.scripted_scp()
        stopping = self.scu.shutdown()
        self.network.advance(CLOSE_SECONDS)
        self.successResultOf(stopping)
        self.assertIsInstance(peer.take()[-1], AAbort)

    def test_a_pool(self) -> None:
        peer = self.network.scripted_server(105)
        pool = AssociationPool(self.scu, "127.0.0.1", 105, ae_title="PEER", grace=GRACE)
        pool.startService()
        echoing = pool.send_c_echo()
        self.network.flush()
        peer.accept()
        stopping = pool.stopService()
        self.network.advance(GRACE + CLOSE_SECONDS)
        self.failureResultOf(echoing, PoolStopped)
        self.assertTrue(stopping.called)

    def test_a_pool_that_is_still_connecting(self) -> None:
        peer = self.network.scripted_server(105)
        pool = AssociationPool(self.scu, "127.0.0.1", 105, ae_title="PEER", grace=GRACE)
        pool.startService()
        echoing = pool.send_c_echo()
        self.network.flush()
        self.assertTrue(peer.pdus)
        stopping = pool.stopService()
        self.network.advance(GRACE + CLOSE_SECONDS)
        self.assertTrue(stopping.called)
        echoing.addErrback(lambda reason: None)
