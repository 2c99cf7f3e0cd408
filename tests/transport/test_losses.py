"""The connection is lost in each state of Table 9-10, in both roles, and callers cancel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.error import ConnectionLost

from dicomtwist import (
    Association,
    AssociationAborted,
    AssociationLost,
    AssociationReleased,
    UserIdentity,
    build_role,
    evt,
)
from dicomtwist.dimse.messages import CEchoRSP
from dicomtwist.testing import ScriptedPeer
from dicomtwist.ul.items import RoleSelection, UserInformation
from dicomtwist.ul.pdu import AAbort, AAssociateAC, AAssociateRQ, AReleaseRP, AReleaseRQ
from dicomtwist.ul.state_machine import State
from tests.memory import CT, VERIFICATION, MemoryTestCase, encoded, instance, part10, store

#: A Deferred that waits in a state, and the exception that it fails with when the connection is lost.
Waiting = tuple[Deferred[Any], type[BaseException]]


#: In these states only a handler or a disk of this side is awaited, which may take any time.
OURS = (
    "requestor_in_sta6_opening_a_file",
    "requestor_in_sta8_releasing",
    "acceptor_in_sta6",
    "acceptor_in_sta8",
    "acceptor_in_sta8_releasing",
    "acceptor_in_sta12",
)


class Losses(MemoryTestCase):
    """Each ``requestor_in_*`` and ``acceptor_in_*`` brings an association into a state."""

    association: Any
    peer: ScriptedPeer
    waiting: list[Waiting]
    handling: Deferred[int]

    # --- as requestor

    def ask(self, **options: Any) -> Deferred[Association]:
        self.peer = self.network.scripted_server(105)
        asking = self.asking(105, evt_handlers=[(evt.EVT_CONN_OPEN, self.opened)], **options)
        return asking

    def opened(self, event: evt.Event) -> None:
        self.association = event.assoc

    def requestor_in_sta5(self) -> State:
        self.waiting = [(self.ask(), AssociationLost)]
        return State.STA5

    def requestor_in_sta5_with_half_an_answer(self) -> State:
        self.waiting = [(self.ask(), AssociationLost)]
        self.peer.send(AAssociateAC("A", "B").encode()[:50])
        return State.STA5

    def established(self) -> None:
        asking = self.ask(ext_neg=[build_role(CT, scu_role=True, scp_role=True)])
        self.peer.accept(information=UserInformation(roles=(RoleSelection(CT, True, True),)))
        self.successResultOf(asking)
        self.handling = Deferred()
        self.association.bind(evt.EVT_C_STORE, lambda event: self.handling)

    def requestor_in_sta6(self) -> State:
        self.established()
        self.waiting = [(self.association.send_c_echo(), AssociationLost) for _ in range(3)]
        self.waiting.append((self.association.release(), AssociationLost))
        return State.STA6

    def requestor_in_sta6_sending(self) -> State:
        self.established()
        self.peer.transport.frozen = True
        path = Path(self.mktemp())
        path.write_bytes(part10(20_000_000))
        self.waiting = [(self.association.send_c_store(path), AssociationLost)]
        self.network.flush()
        return State.STA6

    def requestor_in_sta6_opening_a_file(self) -> State:
        self.established()
        path = Path(self.mktemp())
        path.write_bytes(part10(20_000_000))
        self.network.works = False
        self.waiting = [(self.association.send_c_store(path), AssociationLost)]
        return State.STA6

    def requestor_in_sta6_receiving(self) -> State:
        self.established()
        self.waiting = [(self.association.send_c_echo(), AssociationLost)]
        self.network.flush()
        # A response with a data set although it may have none: it is collected all the same.
        self.peer.send(*self.peer.encode_message(1, CEchoRSP(message_id_being_responded_to=1), encoded(50_000))[:4])
        return State.STA6

    def requestor_in_sta7(self) -> State:
        self.established()
        self.waiting = [(self.association.release(), AssociationLost)]
        return State.STA7

    def performing(self) -> None:
        self.peer.send_message(3, store(), encoded())

    def requestor_in_sta8(self) -> State:
        self.established()
        self.waiting = [(self.association.send_c_echo(), AssociationLost)]
        self.performing()
        self.peer.send(AReleaseRQ())
        return State.STA8

    def requestor_in_sta8_releasing(self) -> State:
        """The A-RELEASE-RQ of this side waits for the handler, so that the requests do not collide."""
        self.established()
        self.performing()
        self.waiting = [(self.association.release(), AssociationLost)]
        self.peer.send(AReleaseRQ())
        return State.STA8

    def requestor_in_sta9(self) -> State:
        self.established()
        self.waiting = [(self.association.release(), AssociationLost)]
        self.network.flush()
        self.performing()
        self.peer.send(AReleaseRQ())
        return State.STA9

    def requestor_in_sta11(self) -> State:
        self.established()
        self.waiting = [(self.association.release(), AssociationLost)]
        self.network.flush()
        self.peer.send(AReleaseRQ())
        return State.STA11

    def requestor_in_sta13_after_abort(self) -> State:
        self.established()
        self.waiting = [(self.association.release(), AssociationAborted)]
        self.association.abort()
        return State.STA13

    def requestor_in_sta13_after_release(self) -> State:
        self.established()
        self.waiting = [(self.association.send_c_echo(), AssociationReleased)]
        self.peer.send(AReleaseRQ())
        return State.STA13

    # --- as acceptor

    def called(self, *handlers: Any) -> None:
        server = self.listen(*handlers)
        self.peer = self.network.scripted_client(104)
        (self.association,) = server.factory.associations
        self.waiting = []

    def accepted(self) -> None:
        self.handling = Deferred()
        self.called((evt.EVT_C_STORE, lambda event: self.handling))
        self.peer.request((1, VERIFICATION), (3, CT))

    def acceptor_in_sta2(self) -> State:
        self.called()
        return State.STA2

    def acceptor_in_sta2_with_half_a_request(self) -> State:
        self.called()
        self.peer.send(AAssociateRQ("A", "B").encode()[:50])
        return State.STA2

    def acceptor_in_sta3(self) -> State:
        self.handling = Deferred()
        self.called((evt.EVT_USER_ID, lambda event: self.handling))
        self.peer.request((1, VERIFICATION), information=UserInformation(user_identity=UserIdentity(1, b"x")))
        return State.STA3

    def acceptor_in_sta6(self) -> State:
        self.accepted()
        self.performing()
        return State.STA6

    def acceptor_in_sta6_releasing(self) -> State:
        """The A-RELEASE-RQ waits for the handler."""
        self.accepted()
        self.performing()
        self.waiting = [(self.association.release(), AssociationLost)]
        return State.STA6

    def acceptor_in_sta6_receiving(self) -> State:
        self.accepted()
        self.peer.send(*self.peer.encode_message(3, store(), encoded(50_000))[:5])
        return State.STA6

    def acceptor_in_sta6_inside_a_pdu(self) -> State:
        self.accepted()
        self.peer.send(b"".join(self.peer.encode_message(3, store(), encoded(50_000)))[:20_000])
        return State.STA6

    def acceptor_in_sta6_streaming(self) -> State:
        @evt.streaming
        async def read(event: evt.StoreEvent) -> int:
            async for _ in event.stream:
                pass
            return 0

        self.called((evt.EVT_C_STORE, read))
        self.peer.request((1, VERIFICATION), (3, CT))
        self.peer.send(*self.peer.encode_message(3, store(), encoded(50_000))[:5])
        return State.STA6

    def acceptor_in_sta7(self) -> State:
        self.accepted()
        self.waiting = [(self.association.release(), AssociationLost)]
        return State.STA7

    def acceptor_in_sta8_releasing(self) -> State:
        """The A-RELEASE-RQ of this side waits for the handler, so that the requests do not collide."""
        self.accepted()
        self.performing()
        self.waiting = [(self.association.release(), AssociationLost)]
        self.peer.send(AReleaseRQ())
        return State.STA8

    def acceptor_in_sta8(self) -> State:
        self.accepted()
        self.performing()
        self.peer.send(AReleaseRQ())
        return State.STA8

    def acceptor_in_sta10(self) -> State:
        self.accepted()
        self.waiting = [(self.association.release(), AssociationLost)]
        self.network.flush()
        self.peer.send(AReleaseRQ())
        return State.STA10

    def acceptor_in_sta12(self) -> State:
        self.accepted()
        self.waiting = [(self.association.release(), AssociationLost)]
        self.network.flush()
        self.performing()
        self.peer.send(AReleaseRQ(), AReleaseRP())
        return State.STA12

    def acceptor_in_sta13_after_rejection(self) -> State:
        self.scp.require_calling_aet = ["NOBODY"]
        self.called()
        self.peer.request((1, VERIFICATION))
        return State.STA13

    def acceptor_in_sta13_after_bad_bytes(self) -> State:
        self.accepted()
        self.peer.send(b"GET / HTTP/1.1\r\n\r\n")
        return State.STA13

    def acceptor_in_sta13_after_release(self) -> State:
        self.accepted()
        self.peer.send(AReleaseRQ())
        return State.STA13

    # --- the connection is lost

    def check(self, prepare: Callable[[], State], lose: Callable[[], None]) -> None:
        state = prepare()
        self.network.flush()
        association = self.association
        self.assertEqual(association.protocol.connection.state, state)
        established = state in (State.STA6, State.STA7, State.STA8, State.STA9, State.STA10, State.STA11, State.STA12)
        self.assertEqual(association.is_established, established)
        ended = association.when_ended()
        notified: list[str] = []
        for event in (evt.EVT_ABORTED, evt.EVT_RELEASED, evt.EVT_CONN_CLOSE):
            association.bind(event, lambda event: notified.append(event.event.name))
        before = (association.is_rejected, association.is_aborted, association.is_released)
        lose()
        self.network.works = True
        self.peer.transport.frozen = False
        self.network.flush()
        self.assertIs(self.successResultOf(ended), association)
        self.assertFalse(association.is_established)
        after = (association.is_rejected, association.is_aborted, association.is_released)
        self.assertEqual(sum(after), 1)
        if any(before):
            self.assertEqual(before, after)
        else:
            self.assertTrue(association.is_aborted)
            self.assertIsInstance(association.end_reason, AssociationLost)
        self.assertEqual(notified[-1], "EVT_CONN_CLOSE")
        self.assertEqual(len(notified), 1 if association.is_rejected else 2)
        for deferred, reason in self.waiting:
            error = self.failureResultOf(deferred, reason).value
            if association.end_reason is not None:
                self.assertIs(error, association.end_reason)
        # A handler that is still running ends without an error.
        if state is State.STA3:
            self.handling.callback((True, None))  # type: ignore[arg-type]
        elif hasattr(self, "handling"):
            self.handling.callback(0)
        self.network.flush()
        self.assertFalse(association.is_established)
        self.assert_clean()

    def check_each(self, lose: Callable[[], Callable[[], None]]) -> None:
        names = [name for name in dir(self) if "_in_sta" in name]
        states = {name.partition("_in_")[2][:5].rstrip("_") for name in names}
        self.assertEqual(len(states), 11, "all but Sta1 and Sta4, in which there is no connection")
        for name in names:
            with self.subTest(name):
                self.setUp()
                self.__dict__.pop("handling", None)
                self.check(getattr(self, name), lose())
                self.tearDown()

    def test_the_peer_closes(self) -> None:
        def lose() -> None:
            self.peer.transport.frozen = False
            self.peer.transport.loseConnection()

        self.check_each(lambda: lose)

    def test_the_peer_resets(self) -> None:
        def lose() -> None:
            self.peer.transport.frozen = False
            self.peer.reset()

        self.check_each(lambda: lose)

    def test_the_cable_is_pulled(self) -> None:
        self.check_each(lambda: lambda: self.network.connections[-1].cut())

    def test_time_goes_by(self) -> None:
        """No state lasts forever if only the peer can end it."""
        for name in [name for name in dir(self) if "_in_sta" in name]:
            with self.subTest(name):
                self.setUp()
                self.__dict__.pop("handling", None)
                state = getattr(self, name)()
                self.network.flush()
                self.network.advance(1000)
                self.network.works = True
                self.network.flush()
                if not self.association.protocol.closed:
                    self.assertIn(name, OURS)
                    for deferred, _ in self.waiting:
                        deferred.addErrback(lambda _: None)
                else:
                    for deferred, _ in self.waiting:
                        self.failureResultOf(deferred)
                    self.assertFalse(self.association.is_established, state)
                self.tearDown()

    def test_what_the_error_says(self) -> None:
        association, peer = self.scripted_scp()
        first = association.send_c_echo()
        peer.reset()
        error = self.failureResultOf(first, AssociationLost).value
        self.assertIsInstance(error.__cause__, ConnectionLost)
        self.assertIn("the connection was lost", str(error))


class Cancelling(MemoryTestCase):
    """``associate(...).cancel()`` at each stage."""

    def test_while_connecting(self) -> None:
        self.network.answers = False
        asking = self.asking()
        asking.cancel()
        self.failureResultOf(asking, CancelledError)
        self.network.answers = True
        self.network.flush()
        self.assertEqual(self.network.connections, [])
        self.assert_clean()

    def test_a_time_limit_of_the_caller(self) -> None:
        self.network.answers = False
        asking = self.asking().addTimeout(5, self.network)
        self.network.advance(5)
        self.failureResultOf(asking, TimeoutError)

    def test_while_connecting_to_a_name(self) -> None:
        self.network.answers = False
        asking = self.scu.associate("pacs.example.org", 104)
        self.network.flush()
        asking.cancel()
        self.failureResultOf(asking, CancelledError)
        self.assert_clean()

    def test_before_the_answer(self) -> None:
        peer = self.network.scripted_server(105)
        asking = self.asking(105)
        peer.take()
        asking.cancel()
        self.failureResultOf(asking, CancelledError)
        self.assertEqual(peer.take(), [AAbort(0, 0)])
        self.assertIsNone(peer.closed)
        peer.accept()  # too late, which is not an error
        self.assertEqual(peer.take(), [])
        peer.close()
        self.assert_clean()

    def test_before_the_answer_of_a_peer_that_says_nothing(self) -> None:
        peer = self.network.scripted_server(105)
        asking = self.asking(105)
        asking.cancel()
        self.failureResultOf(asking, CancelledError)
        assert self.scu.acse_timeout is not None
        self.network.advance(self.scu.acse_timeout)
        self.assertIsNotNone(peer.closed)
        self.assert_clean()

    def test_afterwards(self) -> None:
        self.listen()
        asking = self.asking()
        asking.cancel()
        association = self.successResultOf(asking)
        self.assertTrue(association.is_established)
        self.assertEqual(self.network.result_of(association.send_c_echo()), 0)

    def test_what_waits_for_the_end(self) -> None:
        association, _ = self.both()
        ended, releasing = association.when_ended(), association.release()
        for deferred in (ended, releasing):
            deferred.cancel()
            self.failureResultOf(deferred, CancelledError)
        self.network.flush()
        self.assertTrue(association.is_released)
        self.assert_clean()

    def test_a_store_under_way(self) -> None:
        got: list[int] = []

        def keep(event: evt.StoreEvent) -> int:
            got.append(len(event.encoded_dataset(False)))
            return 0

        association, _ = self.both((evt.EVT_C_STORE, keep))
        storing = association.send_c_store(instance(5_000_000))
        storing.cancel()
        self.failureResultOf(storing, CancelledError)
        self.assertEqual(self.network.result_of(association.send_c_echo()), 0)
        self.assertEqual(got, [len(encoded(5_000_000))], "what has begun is sent to its end")
        self.network.result_of(association.release())
        self.assert_clean()

    def test_a_store_whose_file_is_being_opened(self) -> None:
        association, _ = self.both()
        path = Path(self.mktemp())
        path.write_bytes(part10(3_000_000))
        self.network.works = False
        storing = association.send_c_store(path)
        self.network.flush()
        storing.cancel()
        self.failureResultOf(storing, CancelledError)
        self.network.works = True
        self.assertEqual(self.network.result_of(association.send_c_echo()), 0)
        self.network.result_of(association.release())
        self.assert_clean()
