"""A connection with events of both sides in any order: it ends, every caller gets a result, and nothing remains."""

from __future__ import annotations

import unittest
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from dicomtwist import AE, Association, evt
from dicomtwist.dimse.messages import CCancelRQ, CEchoRSP, CStoreRSP
from dicomtwist.errors import AssociationError, DICOMError
from dicomtwist.testing import MemoryNetwork, ScriptedPeer
from dicomtwist.ul.framing import MAX_ASSOCIATE_LENGTH
from dicomtwist.ul.items import ProposedContext
from dicomtwist.ul.pdu import AAbort, AAssociateAC, AAssociateRJ, AAssociateRQ, AReleaseRP, AReleaseRQ
from dicomtwist.ul.state_machine import State
from fuzz.log_watch import LogWatch
from fuzz.targets import FOR_EVER
from tests.hostile.common import pdata
from tests.memory import CONTEXTS, CT, VERIFICATION, echo, encoded, instance, store

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
STORE = b"".join(ScriptedPeer.encode_message(3, store(), encoded(3000)))
PIECES = [
    AAssociateRQ(
        "A", "B", (ProposedContext(1, VERIFICATION, (IMPLICIT,)), ProposedContext(3, CT, (EXPLICIT,)))
    ).encode(),
    AAssociateAC("A", "B").encode(),
    AAssociateRJ(1, 1, 1).encode(),
    AReleaseRQ().encode(),
    AReleaseRP().encode(),
    AAbort(2, 0).encode(),
    b"".join(ScriptedPeer.encode_message(1, echo())),
    b"".join(ScriptedPeer.encode_message(1, CEchoRSP(message_id_being_responded_to=1, status=0))),
    b"".join(ScriptedPeer.encode_message(3, CStoreRSP(message_id_being_responded_to=2, status=0))),
    b"".join(ScriptedPeer.encode_message(1, CCancelRQ(message_id_being_responded_to=1))),
    STORE,
    STORE[:300],
    pdata((3, 0, bytes(200))),
    pdata((3, 2, b"")),
]


class AnyOrder(RuleBasedStateMachine):
    """One association of an AE with a scripted peer."""

    @initialize(acceptor=st.booleans(), established=st.booleans())
    def begin(self, acceptor: bool, established: bool) -> None:
        self.watch = LogWatch()
        self.watch.__enter__()
        self.network = MemoryNetwork()
        self.ae = AE("OURS", reactor=self.network)
        self.ae.supported_contexts = self.ae.requested_contexts = CONTEXTS
        self.ae.maximum_buffered_size = 10_000
        self.waiting: list[Deferred[Any]] = []
        self.outcomes: list[Any] = []
        self.deciding: list[Deferred[int]] = []
        self.association: Association
        handlers = [(evt.EVT_C_STORE, self.decide)]
        if acceptor:
            self.ae.start_server(104, evt_handlers=handlers)
            self.peer = self.network.scripted_client(104)
            self.end = self.peer.transport.other
            if established:
                self.peer.send(PIECES[0])
        else:
            self.peer = self.network.scripted_server(105)
            self.expect(self.ae.associate("127.0.0.1", 105, evt_handlers=handlers))
            self.network.flush()
            self.end = self.peer.transport.other
            if established:
                self.peer.accept()
        (self.association,) = self.ae._associations

    def decide(self, event: evt.StoreEvent) -> Deferred[int]:
        self.deciding.append(Deferred())
        return self.deciding[-1]

    def expect(self, deferred: Deferred[Any]) -> None:
        self.waiting.append(deferred)
        deferred.addBoth(self.outcomes.append)

    @rule(pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=3), size=st.integers(1, 400))
    def receive(self, pieces: list[bytes], size: int) -> None:
        stream = b"".join(pieces)
        for place in range(0, len(stream), size):
            if self.peer.closed is None:
                self.peer.send(stream[place : place + size])

    @rule(piece=st.sampled_from(PIECES), place=st.integers(0, 60), byte=st.integers(0, 255))
    def receive_damaged(self, piece: bytes, place: int, byte: int) -> None:
        if self.peer.closed is None:
            place = min(place, len(piece) - 1)
            self.peer.send(piece[:place] + bytes((byte,)) + piece[place + 1 :])

    @rule(noise=st.binary(max_size=30))
    def receive_noise(self, noise: bytes) -> None:
        if self.peer.closed is None:
            self.peer.send(noise)

    @rule(seconds=st.sampled_from((0.5, 10.0, 29.0, 31.0, 61.0)))
    def time_goes_by(self, seconds: float) -> None:
        self.network.advance(seconds)

    @rule(way=st.sampled_from(("reset", "close", "freeze", "thaw")))
    def the_peer_goes(self, way: str) -> None:
        if way in ("freeze", "thaw"):
            self.peer.transport.frozen = way == "freeze"
        elif way == "reset":
            self.peer.reset()
        else:
            self.peer.close()

    @rule(what=st.sampled_from(("send_c_echo", "send_c_store", "release")))
    def ask(self, what: str) -> None:
        arguments = (instance(2000),) if what == "send_c_store" else ()
        self.expect(getattr(self.association, what)(*arguments))
        self.network.flush()

    @rule()
    def abort(self) -> None:
        self.association.abort("a test")
        self.network.flush()

    @rule(status=st.sampled_from((0, 0xA700)))
    def answer(self, status: int) -> None:
        deciding, self.deciding = self.deciding, []
        for deferred in deciding:
            deferred.callback(status)
        self.network.flush()

    @invariant()
    def is_in_order(self) -> None:
        if not hasattr(self, "association"):
            return
        self.watch.check()
        connection = self.association.protocol.connection
        assert isinstance(connection.state, State)
        assert len(connection._framer._partial) <= MAX_ASSOCIATE_LENGTH
        association = self.association
        assert association.is_rejected + association.is_aborted + association.is_released <= 1
        assert not (association.is_established and association.end_reason)

    def teardown(self) -> None:
        if not hasattr(self, "association"):
            return
        try:
            self.answer(0)
            self.network.advance(FOR_EVER)
            self.peer.transport.frozen = False
            self.peer.reset()
            self.network.advance(FOR_EVER)
            assert not self.end.connected
            assert len(self.outcomes) == len(self.waiting), "somebody waits"
            for outcome in self.outcomes:
                if isinstance(outcome, Failure):
                    assert isinstance(outcome.value, AssociationError | DICOMError), outcome
            assert not self.network.getDelayedCalls()
            assert not self.network.pools
            assert not self.ae._associations
            self.watch.check()
        finally:
            self.watch.__exit__()


class AnyOrderTests(unittest.TestCase):
    def test_any_order(self) -> None:
        run_state_machine_as_test(
            AnyOrder,
            settings=settings(
                max_examples=100,
                stateful_step_count=20,
                deadline=None,
                derandomize=True,  # the same examples each time; the fuzzer tries others
                suppress_health_check=list(HealthCheck),
            ),
        )
