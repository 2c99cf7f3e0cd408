"""Whole conversations between two connections, and arbitrary sequences of calls and bytes on one."""

import unittest

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from dicomtwist.errors import InvalidState
from dicomtwist.ul.connection import (
    AbortIndication,
    AssociateConfirmation,
    AssociateIndication,
    ReleaseConfirmation,
    ReleaseIndication,
    Signal,
    ULConnection,
)
from dicomtwist.ul.framing import Fragment
from dicomtwist.ul.pdu import (
    PDV,
    AAbort,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    AReleaseRP,
    AReleaseRQ,
    PDataTF,
)
from dicomtwist.ul.state_machine import State

RQ = AAssociateRQ("SCP", "SCU")
AC = AAssociateAC("SCP", "SCU")
RJ = AAssociateRJ(2, 3, 1)


class Side:
    """A connection with an owner that carries out its events."""

    def __init__(self, requestor):
        self.connection = ULConnection(requestor=requestor, max_length=1000)
        self.heard = []
        self.artim = False
        self.closing = False

    def take(self, events):
        for event in events:
            if event is Signal.START_ARTIM:
                self.artim = True
            elif event is Signal.STOP_ARTIM:
                self.artim = False
            elif event is Signal.CLOSE:
                self.closing = True
            elif isinstance(event, Fragment):
                self.heard.append(bytes(event.data))
            else:
                self.heard.append(event)


class Conversation:
    """Two sides and the wire between them."""

    def __init__(self, size=1 << 20):
        self.requestor, self.acceptor = Side(True), Side(False)
        self.size = size
        self.requestor.connection.associate(RQ)
        for side in self.requestor, self.acceptor:
            side.take(side.connection.connection_made())

    def states(self):
        return self.requestor.connection.state.value, self.acceptor.connection.state.value

    def pump(self):
        """Carry bytes in both directions until there are none, then close if a side requests it."""
        sides = ((self.requestor, self.acceptor), (self.acceptor, self.requestor))
        busy = True
        while busy:
            busy = False
            for sender, receiver in sides:
                data = sender.connection.data_to_send()
                for place in range(0, len(data), self.size):
                    receiver.take(receiver.connection.receive_data(data[place : place + self.size]))
                    busy = True
        if self.requestor.closing or self.acceptor.closing:
            for side, _ in sides:
                side.take(side.connection.connection_lost())

    def associate(self):
        self.pump()
        self.acceptor.take(self.acceptor.connection.accept(AC))
        self.pump()
        return self

    def send(self, sender, receiver, data):
        """Send *data* without the connection, as its owner does in the states that allow it."""
        assert sender.connection.may_send_data
        receiver.take(receiver.connection.receive_data(PDataTF((PDV(1, 2, data),)).encode()))


class ConversationTests(unittest.TestCase):
    def test_accept(self):
        talk = Conversation()
        self.assertEqual(talk.states(), (5, 2))
        self.assertTrue(talk.acceptor.artim)
        talk.pump()
        self.assertEqual(talk.acceptor.heard, [AssociateIndication(RQ)])
        self.assertEqual(talk.states(), (5, 3))
        self.assertFalse(talk.acceptor.artim)
        talk.associate()
        self.assertEqual(talk.requestor.heard, [AssociateConfirmation(AC)])
        self.assertEqual(talk.states(), (6, 6))

    def test_byte_by_byte(self):
        talk = Conversation(size=1).associate()
        self.assertEqual(talk.states(), (6, 6))
        talk.requestor.take(talk.requestor.connection.release())
        talk.pump()
        talk.acceptor.take(talk.acceptor.connection.release_response())
        talk.pump()
        self.assertEqual(talk.states(), (1, 1))

    def test_reject(self):
        talk = Conversation()
        talk.pump()
        talk.acceptor.take(talk.acceptor.connection.reject(RJ))
        self.assertTrue(talk.acceptor.artim)
        talk.pump()
        self.assertEqual(talk.requestor.heard, [AssociateConfirmation(RJ)])
        self.assertEqual(talk.states(), (1, 1))
        self.assertFalse(talk.acceptor.artim)

    def test_protocol_version(self):
        for version, heard in ((0x8003, "AssociateIndication"), (0x8002, None)):
            acceptor = Side(False)
            acceptor.take(acceptor.connection.connection_made())
            request = AAssociateRQ("SCP", "SCU", protocol_version=version)
            acceptor.take(acceptor.connection.receive_data(request.encode()))
            self.assertEqual([type(event).__name__ for event in acceptor.heard], [heard] if heard else [])
            if not heard:
                self.assertEqual(acceptor.connection.data_to_send(), AAssociateRJ(1, 2, 2).encode())
                self.assertTrue(acceptor.artim)

    def test_data_both_ways(self):
        talk = Conversation().associate()
        talk.requestor.heard.clear(), talk.acceptor.heard.clear()
        talk.send(talk.requestor, talk.acceptor, b"question")
        talk.send(talk.acceptor, talk.requestor, b"answer")
        self.assertEqual((talk.requestor.heard, talk.acceptor.heard), ([b"answer"], [b"question"]))

    def test_release(self):
        for turn in "requestor", "acceptor":
            talk = Conversation().associate()
            asking, other = talk.requestor, talk.acceptor
            if turn == "acceptor":
                asking, other = other, asking
            asking.take(asking.connection.release())
            self.assertFalse(asking.connection.may_send_data)
            talk.pump()
            self.assertEqual(other.heard[-1], ReleaseIndication())
            # Data in transit may still be sent (AR-7) and arrives (AR-6).
            talk.send(other, asking, b"late")
            self.assertEqual(asking.heard[-1], b"late")
            other.take(other.connection.release_response())
            talk.pump()
            self.assertEqual(asking.heard[-1], ReleaseConfirmation())
            self.assertEqual(talk.states(), (1, 1))

    def test_release_collision(self):
        talk = Conversation().associate()
        for side in talk.requestor, talk.acceptor:
            side.take(side.connection.release())
        talk.pump()
        self.assertEqual(talk.states(), (9, 10))
        for side in talk.requestor, talk.acceptor:
            self.assertEqual(side.heard[-1], ReleaseIndication(collision=True))
        with self.assertRaises(InvalidState):
            talk.acceptor.connection.release_response()
        talk.requestor.take(talk.requestor.connection.release_response())
        talk.pump()
        self.assertEqual(talk.states(), (11, 12))
        self.assertEqual(talk.acceptor.heard[-1], ReleaseConfirmation())
        talk.acceptor.take(talk.acceptor.connection.release_response())
        talk.pump()
        self.assertEqual(talk.requestor.heard[-1], ReleaseConfirmation())
        self.assertEqual(talk.states(), (1, 1))

    def test_abort(self):
        for turn in "requestor", "acceptor":
            talk = Conversation().associate()
            asking, other = talk.requestor, talk.acceptor
            if turn == "acceptor":
                asking, other = other, asking
            asking.take(asking.connection.abort())
            self.assertTrue(asking.artim)
            talk.pump()
            self.assertEqual(other.heard[-1], AbortIndication(0, 0, by_peer=True))
            self.assertEqual(talk.states(), (1, 1))
            self.assertFalse(asking.artim)

    def test_provider_abort(self):
        talk = Conversation().associate()
        talk.acceptor.take(talk.acceptor.connection.receive_data(b"\x99\0\0\0\0\0"))
        self.assertEqual(talk.acceptor.heard[-1].by_peer, False)
        talk.pump()
        self.assertEqual(talk.requestor.heard[-1], AbortIndication(2, 1, by_peer=True))
        self.assertEqual(talk.states(), (1, 1))

    def test_data_over_the_maximum_length(self):
        talk = Conversation().associate()
        talk.send(talk.requestor, talk.acceptor, bytes(994))
        self.assertEqual(talk.acceptor.heard[-1], bytes(994))
        talk.send(talk.requestor, talk.acceptor, bytes(996))
        self.assertEqual((talk.acceptor.heard[-1].source, talk.acceptor.heard[-1].reason), (2, 6))

    def test_lost(self):
        talk = Conversation().associate()
        talk.requestor.take(talk.requestor.connection.connection_lost())
        self.assertTrue(talk.requestor.heard[-1].lost)
        self.assertEqual(talk.requestor.connection.state, State.STA1)
        self.assertEqual(talk.requestor.connection.connection_lost(), [])

    def test_artim(self):
        side = Side(False)
        side.take(side.connection.connection_made())
        side.take(side.connection.artim_expired())
        self.assertTrue(side.closing)
        self.assertEqual(side.connection.state, State.STA1)

    def test_a_malformed_control_pdu(self):
        side = Side(False)
        side.take(side.connection.connection_made())
        side.take(side.connection.receive_data(b"\1\0\0\0\0\4\0\1\0\0"))
        (indication,) = side.heard
        self.assertIn("the minimum is 68", indication.detail)
        self.assertEqual(side.connection.data_to_send(), AAbort(0, 0).encode())

    def test_what_follows_the_end_in_one_read_is_dropped(self):
        talk = Conversation().associate()
        events = talk.acceptor.connection.receive_data(AAbort().encode() + AReleaseRQ().encode() * 3)
        self.assertEqual(events, [AbortIndication(0, 0, by_peer=True), Signal.CLOSE])
        self.assertEqual(talk.acceptor.connection.data_to_send(), b"")

    def test_release_in_the_middle_of_a_data_set(self):
        talk = Conversation().associate()
        part = PDataTF((PDV(1, 0, b"begun"[:4]),)).encode()
        events = talk.acceptor.connection.receive_data(part + AReleaseRQ().encode())
        self.assertEqual([type(event).__name__ for event in events], ["Fragment", "ReleaseIndication"])


class RequestTests(unittest.TestCase):
    def test_a_request_that_cannot_be_encoded_fails_at_once(self):
        connection = ULConnection(requestor=True)
        with self.assertRaisesRegex(ValueError, "17 characters"):
            connection.associate(AAssociateRQ("A" * 17, "B"))
        self.assertEqual(connection.state, State.STA1)

    def test_an_answer_that_cannot_be_encoded_changes_nothing(self):
        talk = Conversation()
        talk.pump()
        with self.assertRaisesRegex(ValueError, "17 characters"):
            talk.acceptor.connection.accept(AAssociateAC("A" * 17, "B"))
        self.assertEqual(talk.states(), (5, 3))
        talk.associate()
        self.assertEqual(talk.states(), (6, 6))

    def test_mid_pdu(self):
        connection = Conversation().acceptor.connection
        self.assertFalse(connection.mid_pdu)
        connection.receive_data(RQ.encode()[:50])
        self.assertTrue(connection.mid_pdu)
        connection.receive_data(RQ.encode()[50:])
        self.assertFalse(connection.mid_pdu)


PDUS = [
    RQ,
    AAssociateRQ("SCP", "SCU", protocol_version=2),
    AC,
    RJ,
    PDataTF((PDV(1, 2, b"data"), PDV(1, 2, b""))),
    AReleaseRQ(),
    AReleaseRP(),
    AAbort(2, 3),
]
CALLS = {
    "associate": (RQ,),
    "accept": (AC,),
    "reject": (RJ,),
    "release": (),
    "release_response": (),
    "abort": (),
    "connection_made": (),
    "connection_lost": (),
    "artim_expired": (),
    "protocol_error": (6, "what the data held"),
}
MAY_BE_INVALID = {"associate", "accept", "reject", "release", "release_response", "connection_made"}


class AnyOrder(RuleBasedStateMachine):
    """A connection on which every event can happen, in any order."""

    @initialize(requestor=st.booleans(), opened=st.booleans())
    def begin(self, requestor, opened):
        self.connection = ULConnection(requestor=requestor, max_length=100)
        if opened:
            if requestor:
                self.connection.associate(RQ)
            self.connection.connection_made()

    @rule(name=st.sampled_from(sorted(CALLS)))
    def call(self, name):
        before = self.connection.state
        try:
            events = getattr(self.connection, name)(*CALLS[name])
        except InvalidState:
            assert name in MAY_BE_INVALID
            assert self.connection.state is before
            assert self.connection.data_to_send() == b""
        else:
            assert isinstance(events, list)

    @rule(pdus=st.lists(st.sampled_from(PDUS), min_size=1, max_size=3), size=st.integers(1, 200))
    def receive(self, pdus, size):
        stream = b"".join(pdu.encode() for pdu in pdus)
        for place in range(0, len(stream), size):
            assert isinstance(self.connection.receive_data(stream[place : place + size]), list)

    @rule(noise=st.binary(max_size=30))
    def receive_noise(self, noise):
        assert isinstance(self.connection.receive_data(noise), list)

    @invariant()
    def is_in_order(self):
        connection = self.connection
        assert isinstance(connection.state, State)
        assert connection.may_send_data == (connection.state in (State.STA6, State.STA8))
        assert isinstance(connection.mid_pdu, bool)
        side = {2: False, 3: False, 10: False, 12: False, 4: True, 5: True, 9: True, 11: True}
        assert side.get(connection.state.value, connection.requestor) == connection.requestor
        sent = connection.data_to_send()
        while sent:  # complete PDUs
            length = 6 + int.from_bytes(sent[2:6], "big")
            assert 1 <= sent[0] <= 7 and len(sent) >= length
            sent = sent[length:]

    def teardown(self):
        # In every state, the end of the transport ends the connection.
        self.connection.connection_lost()
        assert self.connection.state is State.STA1


class AnyOrderTests(unittest.TestCase):
    def test_any_order(self):
        run_state_machine_as_test(AnyOrder, settings=settings(max_examples=60, stateful_step_count=25))
