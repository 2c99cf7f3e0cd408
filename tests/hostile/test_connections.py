"""Row 30: too many connections and associations, in all and from one address, and too many requests in a minute."""

from __future__ import annotations

from typing import Any

from dicomtwist import AE, AssociationRejected, build_context
from dicomtwist.association import acceptor
from dicomtwist.association.acceptor import MAX_COUNTED_ADDRESSES, MAX_SURPLUS
from dicomtwist.testing import ScriptedPeer
from dicomtwist.testing.peer import ScriptedPeerFactory
from dicomtwist.ul.pdu import AAssociateAC, AAssociateRJ
from tests.hostile.common import ACSE, HostileTestCase
from tests.memory import VERIFICATION

TOO_MANY, TOO_OFTEN = AAssociateRJ(2, 3, 2), AAssociateRJ(2, 3, 1)


class Connections(HostileTestCase):
    def others(self) -> int:
        """Return the number of connections besides the neighbour's."""
        assert self.server is not None
        return len(self.server.factory.associations) - 1

    def test_5000_that_say_nothing(self) -> None:
        self.scp.maximum_connections, self.scp.maximum_connections_per_peer = 1000, 10_000
        self.serve()
        peers = [ScriptedPeer(self.network) for _ in range(5000)]
        for peer in peers:
            self.network.connectTCP("127.0.0.1", 104, ScriptedPeerFactory(peer))
        self.network.flush()
        self.assertEqual(self.others(), 999 + MAX_SURPLUS)
        self.assertEqual(sum(peer.closed is not None for peer in peers), 5000 - 999 - MAX_SURPLUS)
        self.echo_is_answered()
        # A surplus connection that was accepted is rejected.
        peers[1000].request((1, VERIFICATION))
        self.assertEqual(peers[1000].take(), [TOO_MANY])
        self.assertEqual(self.lines_with("closed at once"), 1)
        self.network.connections[:] = [one for one in self.network.connections if one.is_open]
        self.wait(ACSE)
        self.assertEqual(self.others(), 0)
        self.assertEqual(self.lines_with("connections were closed at once; connections are accepted again"), 1)
        peer = self.connect(established=True)
        self.assertIsInstance(peer.pdus[0], AAssociateAC)
        peers.clear()

    def test_the_last_file_descriptors(self) -> None:
        """A connection that uses one of them is rejected as one too many, until others have closed."""
        few = False
        self.patch(acceptor, "_few_descriptors", lambda transport: few)  # connections in memory have none
        peer = self.connect(established=True)
        self.assertIsInstance(peer.pdus[0], AAssociateAC)
        few = True
        peers = [self.connect(established=True) for _ in range(2)]
        for peer in peers:
            self.assertEqual(peer.pdus, [TOO_MANY])
        self.assertEqual(self.lines_with("file descriptors run out"), 1)
        peers[0].close()
        self.assertEqual(self.lines_with("file descriptors are free again"), 0)
        peers[1].close()
        self.assertEqual(self.lines_with("file descriptors are free again"), 1)
        few = False
        self.echoes(self.connect(established=True))

    def test_of_one_address(self) -> None:
        self.scp.maximum_connections_per_peer = 3
        self.serve()
        assert self.server is not None
        factory = self.server.factory
        silent = [self.connect() for _ in range(2)]  # and the neighbour
        surplus = [self.connect() for _ in range(MAX_SURPLUS)]
        refused = self.connect()
        self.network.flush()
        self.assertIsNotNone(refused.closed)
        surplus[0].request((1, VERIFICATION))
        self.assertEqual(surplus[0].take(), [TOO_MANY])
        # Connections from another address are not affected.
        self.network._free_address, free = self.from_elsewhere, self.network._free_address  # type: ignore[method-assign]
        other = self.connect(established=True)
        self.network._free_address = free  # type: ignore[method-assign]
        self.assertIsInstance(other.pdus[0], AAssociateAC)
        for peer in (*silent, *surplus):
            peer.close()
        self.assertEqual(self.others(), 1)
        self.assertEqual(set(factory._connections.values()), {1})
        again = self.connect(established=True)
        self.assertIsInstance(again.pdus[0], AAssociateAC)

    def from_elsewhere(self) -> Any:
        from twisted.internet.address import IPv4Address

        return IPv4Address("TCP", "192.0.2.7", 5000)

    def test_associations_of_each_ae(self) -> None:
        """If several AEs share a port, each has its own maximum."""
        small, large = AE("SMALL", reactor=self.network), AE("LARGE", reactor=self.network)
        small.maximum_associations = 1
        for ae in (small, large):
            ae.supported_contexts = [build_context(VERIFICATION)]
        self.serve(others=[small, large])
        for _ in range(3):
            self.assertIsInstance(self.answer("LARGE"), AAssociateAC)
        self.assertIsInstance(self.answer("SMALL"), AAssociateAC)
        self.assertEqual(self.answer("SMALL"), TOO_MANY)
        self.assertIsInstance(self.answer("LARGE"), AAssociateAC)

    def answer(self, called: str) -> object:
        peer = self.connect()
        peer.request((1, VERIFICATION), called=called)
        return peer.take()[0]

    def test_rate(self) -> None:
        self.scp.maximum_association_rate = 5
        self.serve()  # the neighbour's association counts
        self.network.advance(1)
        for _ in range(4):
            self.connect(established=True).close()
        for _ in range(3):
            self.assertEqual(self.answer("ANY"), TOO_OFTEN)
        self.wait(60)
        self.assertIsInstance(self.answer("ANY"), AAssociateAC)
        assert self.server is not None
        requests = self.server.factory._requests
        requests.update(str(number) for number in range(MAX_COUNTED_ADDRESSES))
        self.assertIsInstance(self.answer("ANY"), AAssociateAC)
        self.assertEqual(len(requests), 1)

    def test_too_many_and_then_room(self) -> None:
        self.scp.maximum_associations = 3
        self.serve()
        peers: list[ScriptedPeer] = [self.connect(established=True) for _ in range(2)]
        asking = self.neighbour_ae.associate("127.0.0.1", 104)
        self.network.flush()
        error = self.failureResultOf(asking, AssociationRejected).value
        assert isinstance(error, AssociationRejected)
        self.assertEqual((error.result, error.source, error.reason), (2, 3, 2))
        peers[0].close()
        self.assertIsInstance(self.answer("ANY"), AAssociateAC)
